//! Files to *records*: `.jsonl`, `.json` and both with `.gz`, `.csv`, `.parquet`, `.txt`, or a
//! folder of such files.

use std::fmt;
use std::io;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use serde_json::Value;

use super::folder::{EXTENSIONS, files_of, how_to_convert_arrow, is_data};
use super::parquet;
use crate::bail_input;
use crate::base::error::Error;
use crate::base::files;
use crate::base::json;
use crate::base::plain::shortened;
use crate::base::wall;
use crate::base::wall::Time;

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

/// Memory that the rows of a file may take for a byte of it: a byte that is a number has a name and
/// a place in its row.
const OF_A_BYTE: u64 = 64;
/// How many bytes a byte of a gzip file may unpack to; text has 3 to 20. What every file may
/// unpack to comes on top.
const UNPACKED: u64 = 100;
const UNPACKED_ALWAYS: u64 = 64 << 20;

/// The first `limit` rows of a file, or of the data files in a folder in the order of their names
/// (see `files_of`). What stands after them is not read.
pub fn read_rows(path: &Path, limit: Option<usize>) -> Result<Vec<Record>> {
    let mut most = limit.unwrap_or(usize::MAX);
    let files = files_of(path)?;
    let mut rows = Vec::new();
    for file in files {
        let own = file_rows(&file, most)?;
        most -= own.len();
        rows.extend(own);
    }
    Ok(rows)
}

/// No row is as long; a file without line ends is no file of rows.
const LONGEST_LINE: u64 = 64 << 20;

/// Whether a file's name ends like this, in any case of letters.
fn is_named(path: &Path, end: &str) -> bool {
    path.to_string_lossy().to_lowercase().ends_with(end)
}

/// The first rows of a file, `most` at most.
fn file_rows(path: &Path, most: usize) -> Result<Vec<Record>> {
    if is_named(path, ".arrow") {
        bail_input!("{}", how_to_convert_arrow(path));
    }
    if !is_data(path) {
        bail_input!("{}: unknown kind of file (have: {})", path.display(), EXTENSIONS.join(" "));
    }
    let wrong = |e: io::Error| Error::Input(format!("{}: {e}", path.display()));
    let mut file = files::open(path)?;
    files::refuse_pointer(path, &mut file)?;
    let size = file.metadata().map_err(wrong)?.len();
    // Where rows stand in lines, so many of them are read and no more.
    if most == usize::MAX || [".json", ".parquet"].iter().any(|end| is_named(path, end)) {
        files::fits(path, size)?;
    }
    let name = path.to_string_lossy().to_lowercase();
    let (name, unpacked): (_, Box<dyn Read>) = match name.strip_suffix(".gz") {
        None => (name.as_str(), Box::new(file)),
        Some(inner) => {
            let decoder = flate2::read::MultiGzDecoder::new(BufReader::new(file));
            let left = UNPACKED_ALWAYS.saturating_add(size.saturating_mul(UNPACKED));
            (inner, Box::new(Unpacked { decoder, left }))
        }
    };
    let reader = BufReader::with_capacity(1 << 16, unpacked);
    let each = match () {
        () if name.len() < path.as_os_str().len() => OF_A_BYTE * UNPACKED,
        () if name.ends_with(".parquet") => OF_A_BYTE * 4,
        () => OF_A_BYTE,
    };
    let memory = wall::allowance(size, each);
    wall::around(&path.display().to_string(), memory, Time::Any, || {
        if name.ends_with(".json") {
            parse_array(path, &whole(path, reader)?, most)
        } else if name.ends_with(".csv") {
            csv_rows(path, reader, most)
        } else if name.ends_with(".parquet") {
            Ok(numbered(path, parquet::rows(path, whole(path, reader)?, most)?))
        } else if name.ends_with(".txt") {
            read_lines(path, reader, most, |line, _| Ok(serde_json::json!({ "text": line })))
        } else {
            read_lines(path, reader, most, json_line)
        }
    })?
}

/// What a gzip file unpacks to. Errors when it is more than text of its size would be.
struct Unpacked<R> {
    decoder: R,
    left: u64,
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self
            .decoder
            .read(buffer)
            .map_err(|e| io::Error::new(e.kind(), format!("not a whole gzip file: {e}")))?;
        match self.left.checked_sub(read as u64) {
            Some(left) => self.left = left,
            None => {
                let why = "it unpacks to far more bytes than text would; unpack it yourself if \
                           you trust it";
                return Err(io::Error::other(why));
            }
        }
        Ok(read)
    }
}

/// All bytes.
fn whole(path: &Path, mut reader: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).map_err(|e| Error::Input(format!("{}: {e}", path.display())))?;
    Ok(bytes)
}

/// Text without the byte order mark that some programs write before it.
fn without_bom(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// What `make` makes of the lines of a UTF-8 text that are not empty, without the byte order mark
/// and the line ends; of the first `most` of them.
fn read_lines(
    path: &Path,
    mut reader: impl BufRead,
    most: usize,
    make: impl Fn(&str, &FileLine) -> Result<Value>,
) -> Result<Vec<Record>> {
    let file: Arc<Path> = path.into();
    let (mut rows, mut bytes) = (Vec::new(), Vec::new());
    let mut number = 0;
    while rows.len() < most {
        bytes.clear();
        let read = (&mut reader)
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut bytes)
            .map_err(|e| Error::Input(format!("{}: {e}", path.display())))?;
        if read as u64 == LONGEST_LINE {
            bail_input!(
                "{}:{}: a line of {} MiB or more; a row is a line",
                path.display(),
                number + 1,
                LONGEST_LINE >> 20
            );
        }
        if read == 0 {
            break;
        }
        number += 1;
        let place = FileLine { file: file.clone(), line: number };
        let line = if number == 1 { without_bom(&bytes) } else { &bytes };
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let text = std::str::from_utf8(line).map_err(|e| {
            Error::Input(format!(
                "{place}: not UTF-8 at byte {} of the line; convert the file to UTF-8",
                e.valid_up_to()
            ))
        })?;
        if !text.trim().is_empty() {
            rows.push(Record { value: make(text, &place)?, place });
        }
    }
    Ok(rows)
}

fn json_line(line: &str, place: &FileLine) -> Result<Value> {
    match json::parse(line) {
        Ok(value) => Ok(value),
        Err(e) => bail_input!("{place}: broken JSON at column {}: {e}", e.column()),
    }
}

/// The rows of a text with one JSON value a line.
pub fn parse_lines(path: &Path, bytes: &[u8]) -> Result<Vec<Record>> {
    read_lines(path, bytes, usize::MAX, json_line)
}

/// The rows of a CSV file. Its first line names the columns. All values are strings.
fn csv_rows(path: &Path, mut reader: impl BufRead, most: usize) -> Result<Vec<Record>> {
    let file: Arc<Path> = path.into();
    let broken = |e: csv::Error| Error::Input(format!("{}: {e}", path.display()));
    // The mark lies in what was read first, whatever lies after it.
    let begin = reader.fill_buf().map_err(|e| broken(e.into()))?;
    let mark = begin.len() - without_bom(begin).len();
    reader.consume(mark);
    // Behind the last row stands one more, which an open quote before it swallows: the crate itself
    // takes the end of a file for the end of a quoted field.
    let reader = reader.chain(&b"\n\"\"\n"[..]);
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(reader);
    let is_last = |row: &csv::StringRecord| row.len() == 1 && row[0].is_empty();
    let open = |line: usize| {
        let path = path.display();
        Error::Input(format!("{path}:{line}: a quote is opened in this row and never closed"))
    };
    let head = reader.headers().map_err(broken)?.clone();
    if is_last(&head) {
        return Ok(Vec::new());
    }
    let mut names: Vec<&str> = head.iter().collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|p| !p[0].is_empty() && p[0] == p[1]) {
        bail_input!("{}: two columns are called {:?}", path.display(), shortened(twice[0], 100));
    }
    let mut rows = Vec::new();
    let (mut all, mut line) = (reader.records().peekable(), 1);
    while rows.len() < most || all.peek().is_none() {
        let row = all.next().ok_or_else(|| open(line))?.map_err(broken)?;
        if is_last(&row) && all.peek().is_none() {
            break;
        }
        line = row.position().map_or(0, csv::Position::line) as usize;
        if row.len() != head.len() {
            all.peek().ok_or_else(|| open(line))?;
            bail_input!(
                "{}:{line}: a row of {} columns, and the first line names {}",
                path.display(),
                row.len(),
                head.len()
            );
        }
        let value =
            head.iter().zip(&row).map(|(key, value)| (key.to_owned(), value.into())).collect();
        rows.push(Record {
            value: Value::Object(value),
            place: FileLine { file: file.clone(), line },
        });
    }
    Ok(rows)
}

/// The rows of one JSON array.
fn parse_array(path: &Path, bytes: &[u8], most: usize) -> Result<Vec<Record>> {
    let bytes = without_bom(bytes);
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let (path, at) = (path.display(), e.valid_up_to());
        Error::Input(format!("{path}: not UTF-8 at byte {at}; convert the file to UTF-8"))
    })?;
    let value: Value = match json::parse(text) {
        Ok(value) => value,
        // One row a line, in a file whose name ends like that of an array.
        Err(_) if bytes.trim_ascii_start().starts_with(b"{") && has_lines(bytes) => {
            return read_lines(path, bytes, most, json_line);
        }
        Err(e) => bail_input!(
            "{}:{}: broken JSON at column {}: {e}",
            path.display(),
            e.line(),
            e.column()
        ),
    };
    match value {
        Value::Array(rows) => Ok(numbered(path, rows.into_iter().take(most))),
        Value::Object(found) => {
            let keys: Vec<&str> = found.keys().map(String::as_str).take(8).collect();
            bail_input!(
                "{}: expected an array of rows, found one object ({}); for one row a line use \
                 .jsonl; with pandas: to_json(FILE, orient=\"records\")",
                path.display(),
                shortened(&keys.join(", "), 200)
            )
        }
        _ => bail_input!("{}: expected an array of rows", path.display()),
    }
}

/// Rows of a file that has no lines: the number of a row serves as its line.
fn numbered(path: &Path, rows: impl IntoIterator<Item = Value>) -> Vec<Record> {
    let file: Arc<Path> = path.into();
    let place = |index: usize| FileLine { file: file.clone(), line: index + 1 };
    let rows = rows.into_iter().enumerate();
    rows.map(|(index, value)| Record { value, place: place(index) }).collect()
}

/// Whether a text has more than one line with something in it.
fn has_lines(bytes: &[u8]) -> bool {
    bytes.split(|b| *b == b'\n').filter(|line| !line.trim_ascii().is_empty()).nth(1).is_some()
}
