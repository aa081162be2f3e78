//! Files to rows: `.jsonl`, `.json`, `.jsonl.gz`, `.csv`, `.parquet`, `.txt`, or a folder of them.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::bail_input;
use crate::base::error::Error;

/// Where a row stands: `file:line`, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub file: Arc<Path>,
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// A row and its place.
#[derive(Debug, Clone)]
pub struct Record {
    pub value: Value,
    pub place: Place,
}

const EXTENSIONS: [&str; 7] =
    [".jsonl", ".json", ".jsonl.gz", ".json.gz", ".csv", ".parquet", ".txt"];

/// All rows of a file, or of a folder's data files sorted by name.
pub fn records(path: &Path) -> Result<Vec<Record>> {
    let metadata =
        std::fs::metadata(path).map_err(|e| Error::Input(format!("{}: {e}", path.display())))?;
    if !metadata.is_dir() {
        return file_records(path);
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
        rows.extend(file_records(&file)?);
    }
    Ok(rows)
}

fn is_data(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    !name.starts_with('.') && EXTENSIONS.iter().any(|e| name.ends_with(e))
}

fn file_records(path: &Path) -> Result<Vec<Record>> {
    if !is_data(path) {
        bail_input!("{}: unknown kind of file (have: {})", path.display(), EXTENSIONS.join(" "));
    }
    let mut bytes =
        std::fs::read(path).map_err(|e| Error::Input(format!("{}: {e}", path.display())))?;
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

/// Non-empty lines of UTF-8 text, without BOM and line ends.
fn lines<'a>(path: &Path, bytes: &'a [u8]) -> Result<Vec<(Place, &'a str)>> {
    let file: Arc<Path> = path.into();
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut out = Vec::new();
    for (index, line) in bytes.split(|b| *b == b'\n').enumerate() {
        let place = Place { file: file.clone(), line: index + 1 };
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

/// JSON lines.
pub fn parse_lines(path: &Path, bytes: &[u8]) -> Result<Vec<Record>> {
    lines(path, bytes)?
        .into_iter()
        .map(|(place, line)| match serde_json::from_str(line) {
            Ok(value) => Ok(Record { value, place }),
            Err(e) => bail_input!("{place}: broken JSON at column {}: {e}", e.column()),
        })
        .collect()
}

/// Rows of a CSV file whose first line names the columns; all values are strings.
fn csv_rows(path: &Path, bytes: &[u8]) -> Result<Vec<Record>> {
    let file: Arc<Path> = path.into();
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = csv::Reader::from_reader(bytes);
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
            place: Place { file: file.clone(), line },
        });
    }
    Ok(rows)
}

/// Rows of a Parquet file; a row's line is its number.
fn parquet_rows(path: &Path, bytes: Vec<u8>) -> Result<Vec<Record>> {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let file: Arc<Path> = path.into();
    let broken =
        |e: parquet::errors::ParquetError| Error::Input(format!("{}: {e}", path.display()));
    let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).map_err(broken)?;
    let mut rows = Vec::new();
    for (index, row) in reader.get_row_iter(None).map_err(broken)?.enumerate() {
        let value = row.map_err(broken)?.to_json_value();
        rows.push(Record { value, place: Place { file: file.clone(), line: index + 1 } });
    }
    Ok(rows)
}

/// One JSON array of rows; a row's line is its number.
fn parse_array(path: &Path, bytes: &[u8]) -> Result<Vec<Record>> {
    let file: Arc<Path> = path.into();
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let value: Value = match serde_json::from_slice(bytes) {
        Ok(value) => value,
        // One row a line under the other ending.
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
            .map(|(i, value)| Record { value, place: Place { file: file.clone(), line: i + 1 } })
            .collect()),
        _ => bail_input!(
            "{}: expected an array of rows; for one row a line use .jsonl",
            path.display()
        ),
    }
}
