//! *Files*: read with errors that name them, written whole or not at all, hashed.

use std::collections::BTreeMap;
use std::fs::{File, FileType};
use std::io::{BufReader, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::error::Error;
use super::interrupt;
use super::json;
use super::memory;
use crate::bail_input;

/// Opens a regular file to read it. Errors (bad input) name the file. A pipe or a device is refused
/// before it is opened: it could let the program wait, or give bytes, for ever.
pub fn open(path: &Path) -> Result<File> {
    let failed = |e: std::io::Error| Error::Input(format!("{}: {e}", path.display()));
    let kind = std::fs::metadata(path).map_err(failed)?.file_type();
    if !kind.is_file() {
        bail_input!("{}: {}, not a file", path.display(), noun(kind));
    }
    Ok(File::open(path).map_err(failed)?)
}

/// What a path leads to that is no regular file.
fn noun(kind: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_socket() {
            return "a socket";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
    }
    if kind.is_dir() { "a folder" } else { "something else" }
}

/// The bytes of a regular file. Errors (bad input) as [`open`], and if the memory can't hold them.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let failed = |e: std::io::Error| Error::Input(format!("{}: {e}", path.display()));
    let mut file = open(path)?;
    refuse_pointer(path, &mut file)?;
    let length = file.metadata().map_err(failed)?.len();
    fits(path, length)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length as usize).map_err(|e| failed(e.into()))?;
    file.read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// Errors (bad input) if the memory can't hold a file of this length.
pub fn fits(path: &Path, length: u64) -> Result<()> {
    /// What any machine can hold is not asked about.
    const SMALL: u64 = 64 << 20;
    if length > SMALL
        && let Some(left) = memory::left()?.filter(|left| length > *left)
    {
        bail_input!(
            "{}: {} MiB to be read as a whole, but {} MiB of memory are left",
            path.display(),
            length >> 20,
            left >> 20
        );
    }
    Ok(())
}

/// How a pointer of Git LFS begins: a clone without LFS has one in the place of each large file.
const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Errors (bad input) if a file, which was just opened, is a pointer of Git LFS.
pub fn refuse_pointer(path: &Path, file: &mut File) -> Result<()> {
    let failed = |e: std::io::Error| Error::Input(format!("{}: {e}", path.display()));
    let mut begin = Vec::new();
    file.take(POINTER.len() as u64).read_to_end(&mut begin).map_err(failed)?;
    file.rewind().map_err(failed)?;
    if begin == POINTER {
        bail_input!(
            "{}: a pointer of Git LFS stands here instead of the file; get it with: git lfs pull",
            path.display()
        );
    }
    Ok(())
}

/// The bytes of a file, or `None` where there is none. Errors as [`read`].
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::metadata(path) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        _ => read(path).map(Some),
    }
}

/// The text of a file that the user gave. Errors (bad input) name the file.
pub fn read_text(path: &Path) -> Result<String> {
    text(path, read(path)?)
}

/// The text of a file, or of a pipe that the shell or another program feeds: `/dev/stdin`, `<(…)`.
/// A pipe that lies in a folder is refused, for nobody may ever write to it, and so is more text
/// than a person writes.
pub fn read_text_or_pipe(path: &Path) -> Result<String> {
    const MOST: u64 = 1 << 20;
    let open_already = ["/dev/stdin", "/dev/fd", "/proc/self/fd"];
    let is_file = std::fs::metadata(path).is_ok_and(|found| found.is_file());
    #[cfg(unix)]
    let is_pipe = {
        use std::os::unix::fs::FileTypeExt;
        std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo())
    };
    #[cfg(not(unix))]
    let is_pipe = false;
    if is_file || !is_pipe || !open_already.iter().any(|open| path.starts_with(open)) {
        return read_text(path);
    }
    let failed = |e: std::io::Error| Error::Input(format!("{}: {e}", path.display()));
    let mut bytes = Vec::new();
    File::open(path).map_err(failed)?.take(MOST + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MOST {
        bail_input!("{}: the pipe gives more than 1 MiB of text", path.display());
    }
    text(path, bytes)
}

fn text(path: &Path, bytes: Vec<u8>) -> Result<String> {
    Ok(String::from_utf8(bytes).map_err(|e| {
        Error::Input(format!(
            "{}: not UTF-8 at byte {}; convert the file to UTF-8",
            path.display(),
            e.utf8_error().valid_up_to()
        ))
    })?)
}

/// The JSON in a file that the user gave, as Python may have written it. Errors (bad input) name
/// the file.
pub fn read_json(path: &Path) -> Result<Value> {
    Ok(json::parse(&read_text(path)?)
        .map_err(|e| Error::Input(format!("{}: broken JSON: {e}", path.display())))?)
}

/// The name of an output that is not whole yet, beside its final name.
pub fn partial(out: &Path) -> PathBuf {
    // The components drop a slash at the end of the path.
    let mut name = out.components().collect::<PathBuf>().into_os_string();
    name.push(".partial");
    name.into()
}

/// The file that is written when a user names `path`: a link is followed to what it names, so that
/// the link stays. Errors (bad input) if that is a folder, a pipe or a device: a file that is
/// renamed over it would replace it, and a pipe may wait for ever.
pub fn writes_to(path: &Path) -> Result<PathBuf> {
    /// As many links as Linux follows.
    const LINKS: usize = 40;
    let mut place = path.to_owned();
    for _ in 0..LINKS {
        let kind = match std::fs::symlink_metadata(&place) {
            Ok(found) => found.file_type(),
            // Nothing is in the way; what else is wrong, writing will say.
            Err(_) => return Ok(place),
        };
        if kind.is_file() {
            return Ok(place);
        }
        // The links in these folders stand for files that are open already.
        let is_open = ["/dev", "/proc"].iter().any(|of_system| place.starts_with(of_system));
        if !kind.is_symlink() || is_open {
            let noun = if kind.is_symlink() { "an open file" } else { noun(kind) };
            bail_input!(
                "{}: {noun}, and only a file can be replaced; name a new file",
                path.display()
            );
        }
        let target = std::fs::read_link(&place)
            .map_err(|e| Error::Input(format!("{}: {e}", path.display())))?;
        place = folder_of(&place).join(target);
    }
    bail_input!("{}: a link that leads in a circle", path.display())
}

/// The folder that a file lies in.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// How the names of files begin that are being written.
const UNFINISHED: &str = ".irepair-";

/// Removes what a kill left of files that were being written: in a folder of ours, and in those in
/// it.
pub fn sweep(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sweep(&entry.path())?;
        } else if kind.is_file() && entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Writes `bytes` to `path`, whole or not at all: to a file beside it, which is then renamed.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| Ok(file.write_all(bytes)?))
}

/// Like [`write_whole`], but `write` fills the file. What it replaces must be a file (see
/// [`writes_to`]), and keeps its permissions; a new file gets those that the umask allows.
pub fn write_with(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let writing = || format!("writing {}", path.display());
    let place = writes_to(path)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(UNFINISHED);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // The umask takes away from these what it takes from any new file.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let mut file = builder.tempfile_in(folder_of(&place)).with_context(writing)?;
    write(file.as_file_mut()).with_context(writing)?;
    if let Ok(old) = std::fs::metadata(&place) {
        file.as_file().set_permissions(old.permissions()).with_context(writing)?;
    }
    file.as_file().sync_all().with_context(writing)?;
    file.persist(&place).with_context(writing)?;
    Ok(())
}

/// The name of a file in a folder: one part, that leads nowhere else. So whatever gives it, a file
/// or a server, the path that it makes stays inside the folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FileName(String);

impl FileName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for FileName {
    type Error = String;

    fn try_from(name: String) -> std::result::Result<Self, String> {
        if is_plain(&name) {
            Ok(Self(name))
        } else {
            Err(format!("{name:?} is not the name of a file in this folder"))
        }
    }
}

impl From<FileName> for String {
    fn from(name: FileName) -> Self {
        name.0
    }
}

impl AsRef<Path> for FileName {
    fn as_ref(&self) -> &Path {
        Path::new(&self.0)
    }
}

/// Whether this is one part of a path, on every system, and neither of the two dots.
pub fn is_plain(part: &str) -> bool {
    let leads_on = |c: char| matches!(c, '/' | '\\' | '\0') || cfg!(windows) && c == ':';
    !part.is_empty() && part != "." && part != ".." && !part.contains(leads_on)
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
    hash_told(path, |_| ())
}

/// SHA-256 of those of the names that are files, or folders with files, by name.
pub fn hashes<'a>(names: impl Iterator<Item = &'a str>) -> Result<BTreeMap<String, String>> {
    let there = names.filter(|name| Path::new(name).exists());
    there.map(|name| Ok((name.to_owned(), hash_tree(Path::new(name))?))).collect()
}

/// SHA-256 of a file, or of the names and the SHA-256 of all that lies in a folder.
fn hash_tree(path: &Path) -> Result<String> {
    if !path.is_dir() {
        return hash_file(path);
    }
    let reading = || path.display().to_string();
    let entries = std::fs::read_dir(path).with_context(reading)?;
    let mut names = entries.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>>>()?;
    names.sort();
    let mut parts = Vec::new();
    for name in names {
        let inside = path.join(&name);
        // A link to a folder may lead in a circle.
        let is_link = std::fs::symlink_metadata(&inside).with_context(reading)?.is_symlink();
        if inside.is_file() || inside.is_dir() && !is_link {
            parts.extend([name.to_string_lossy().into_owned(), hash_tree(&inside)?]);
        }
    }
    Ok(hash_texts(parts.iter().map(String::as_str)))
}

/// SHA-256 of a file; `told` is told how many bytes were read more. Errors (interrupted) if the
/// user asks to stop.
pub fn hash_told(path: &Path, mut told: impl FnMut(usize)) -> Result<String> {
    let mut reader = BufReader::with_capacity(1 << 20, open(path)?);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = reader.read(&mut buffer).with_context(|| path.display().to_string())?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..n]);
        told(n);
        if interrupt::asked() {
            let why = format!("interrupted while {} was read", path.display());
            return Err(Error::Interrupted(why).into());
        }
    }
}
