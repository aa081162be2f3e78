//! Files to *records*: `.jsonl`, `.json` and both with `.gz`, `.csv`, `.parquet`, `.txt`, or a
//! folder of such files.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::bail_input;
use crate::base::error::Error;
use crate::base::files;

/// Where a row stands: `file:line`. Lines are counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileLine {
    pub file: Arc<Path>,
    pub line: usize,
}

impl fmt::Display for FileLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A row of a file, and where it stands.
#[derive(Debug, Clone)]
pub struct Record {
    pub value: Value,
    pub place: FileLine,
}

const EXTENSIONS: [&str; 7] =
    [".jsonl", ".json", ".jsonl.gz", ".json.gz", ".csv", ".parquet", ".txt"];

/// All rows of a file, or of the data files in a folder, in the order of their names.
pub fn read_rows(path: &Path) -> Result<Vec<Record>> {
    let metadata =
        std::fs::metadata(path).map_err(|e| Error::Input(format!("{}: {e}", path.display())))?;
    if !metadata.is_dir() {
        return file_rows(path);
    }
    let mut files: Vec<PathBuf> = std::fs::read_dir(path)
        .map_err(|e| Error::Input(format!("{}: {e}", path.display())))?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<_>>()
        .with_context(|| path.display().to_string())?;
    files.retain(|f| f.is_file() && is_data(f));
    files.sort();
    if files.is_empty() {
        bail_input!(
            "{}: no data files in this folder (looked for {})",
            path.display(),
            EXTENSIONS.join(" ")
        );
    }
    let mut rows = Vec::new();
    for file in files {
        rows.extend(file_rows(&file)?);
    }
    Ok(rows)
}

fn is_data(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    !name.starts_with('.') && EXTENSIONS.iter().any(|e| name.ends_with(e))
}

fn file_rows(path: &Path) -> Result<Vec<Record>> {
    if !is_data(path) {
        bail_input!("{}: unknown kind of file (have: {})", path.display(), EXTENSIONS.join(" "));
    }
    let mut bytes = files::read(path)?;
    let mut name = path.to_string_lossy().to_lowercase();
    if let Some(inner) = name.strip_suffix(".gz") {
        let mut plain = Vec::new();
        flate2::read::MultiGzDecoder::new(bytes.as_slice())
            .read_to_end(&mut plain)
            .map_err(|e| Error::Input(format!("{}: not a whole gzip file: {e}", path.display())))?;
        bytes = plain;
        name = inner.to_owned();
    }
    if name.ends_with(".json") {
        return parse_array(path, &bytes);
    }
    if name.ends_with(".csv") {
        return csv_rows(path, &bytes);
    }
    if name.ends_with(".parquet") {
        return parquet_rows(path, bytes);
    }
    if name.ends_with(".txt") {
        return Ok(lines(path, &bytes)?
            .into_iter()
            .map(|(place, line)| Record { value: serde_json::json!({ "text": line }), place })
            .collect());
    }
    parse_lines(path, &bytes)
}

/// Text without the byte order mark that some programs write before it.
fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// The lines of a UTF-8 text that are not empty, without the byte order mark and the line ends.
fn lines<'a>(path: &Path, bytes: &'a [u8]) -> Result<Vec<(FileLine, &'a str)>> {
    let file: Arc<Path> = path.into();
    let mut out = Vec::new();
    for (index, line) in without_bom(bytes).split(|b| *b == b'\n').enumerate() {
        let place = FileLine { file: file.clone(), line: index + 1 };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let text = std::str::from_utf8(line).map_err(|e| {
            Error::Input(format!(
                "{place}: not UTF-8 at byte {} of the line; convert the file to UTF-8",
                e.valid_up_to()
            ))
        })?;
        if !text.trim().is_empty() {
            out.push((place, text));
        }
    }
    Ok(out)
}

/// The rows of a text with one JSON value a line.
pub fn parse_lines(path: &Path, bytes: &[u8]) -> Result<Vec<Record>> {
    lines(path, bytes)?
        .into_iter()
        .map(|(place, line)| match serde_json::from_str(line) {
            Ok(value) => Ok(Record { value, place }),
            Err(e) => bail_input!("{place}: broken JSON at column {}: {e}", e.column()),
        })
        .collect()
}

/// The rows of a CSV file. Its first line names the columns. All values are strings.
fn csv_rows(path: &Path, bytes: &[u8]) -> Result<Vec<Record>> {
    let file: Arc<Path> = path.into();
    let mut reader = csv::Reader::from_reader(without_bom(bytes));
    let broken = |e: csv::Error| Error::Input(format!("{}: {e}", path.display()));
    let head = reader.headers().map_err(broken)?.clone();
    let mut rows = Vec::new();
    for row in reader.records() {
        let row = row.map_err(broken)?;
        let line = row.position().map_or(0, csv::Position::line) as usize;
        let value =
            head.iter().zip(&row).map(|(key, value)| (key.to_owned(), value.into())).collect();
        rows.push(Record {
            value: Value::Object(value),
            place: FileLine { file: file.clone(), line },
        });
    }
    Ok(rows)
}

/// The rows of a Parquet file. The number of a row serves as its line.
fn parquet_rows(path: &Path, bytes: Vec<u8>) -> Result<Vec<Record>> {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let file: Arc<Path> = path.into();
    let broken =
        |e: parquet::errors::ParquetError| Error::Input(format!("{}: {e}", path.display()));
    let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).map_err(broken)?;
    let mut rows = Vec::new();
    for (index, row) in reader.get_row_iter(None).map_err(broken)?.enumerate() {
        let value = row.map_err(broken)?.to_json_value();
        rows.push(Record { value, place: FileLine { file: file.clone(), line: index + 1 } });
    }
    Ok(rows)
}

/// The rows of one JSON array. The number of a row serves as its line.
fn parse_array(path: &Path, bytes: &[u8]) -> Result<Vec<Record>> {
    let file: Arc<Path> = path.into();
    let bytes = without_bom(bytes);
    let value: Value = match serde_json::from_slice(bytes) {
        Ok(value) => value,
        // One row a line, in a file whose name ends like that of an array.
        Err(_) if bytes.trim_ascii_start().starts_with(b"{") && lines(path, bytes)?.len() > 1 => {
            return parse_lines(path, bytes);
        }
        Err(e) => bail_input!(
            "{}:{}: broken JSON at column {}: {e}",
            path.display(),
            e.line(),
            e.column()
        ),
    };
    match value {
        Value::Array(rows) => Ok(rows
            .into_iter()
            .enumerate()
            .map(|(i, value)| Record { value, place: FileLine { file: file.clone(), line: i + 1 } })
            .collect()),
        _ => bail_input!(
            "{}: expected an array of rows; for one row a line use .jsonl",
            path.display()
        ),
    }
}
