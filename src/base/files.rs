//! *Files*: read with errors that name them, written whole or not at all, hashed.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::error::Error;

/// The text of a file that the user gave. Errors (bad input) name the file.
pub fn read_text(path: &Path) -> Result<String> {
    Ok(std::fs::read_to_string(path)
        .map_err(|e| Error::Input(format!("{}: {e}", path.display())))?)
}

/// The JSON in a file that the user gave. Errors (bad input) name the file.
pub fn read_json(path: &Path) -> Result<Value> {
    Ok(serde_json::from_str(&read_text(path)?)
        .map_err(|e| Error::Input(format!("{}: broken JSON: {e}", path.display())))?)
}

/// The name of an output that is not whole yet, beside its final name.
pub fn partial(out: &Path) -> PathBuf {
    // The components drop a slash at the end of the path.
    let mut name = out.components().collect::<PathBuf>().into_os_string();
    name.push(".partial");
    name.into()
}

/// Writes `bytes` to `path`, whole or not at all: to a file beside it, which is then renamed.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| Ok(file.write_all(bytes)?))
}

/// Like [`write_whole`], but `write` fills the file.
pub fn write_with(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let writing = || format!("writing {}", path.display());
    let mut file = tempfile::NamedTempFile::new_in(dir).with_context(writing)?;
    write(file.as_file_mut()).with_context(writing)?;
    file.as_file().sync_all().with_context(writing)?;
    // A temporary file is private, but everyone may read a result.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let everyone = std::fs::Permissions::from_mode(0o644);
        file.as_file().set_permissions(everyone).with_context(writing)?;
    }
    file.persist(path).with_context(writing)?;
    Ok(())
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of bytes.
pub fn hash_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of texts in their order, with a zero byte after each.
pub fn hash_texts<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update(text.as_bytes());
        hash.update(b"\0");
    }
    hex(&hash.finalize())
}

/// SHA-256 of a file.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut reader = BufReader::with_capacity(
        1 << 20,
        File::open(path).with_context(|| path.display().to_string())?,
    );
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = reader.read(&mut buffer).with_context(|| path.display().to_string())?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}
