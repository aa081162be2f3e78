//! Files to pairs, edits, texts and prompts. A file may also be a folder of files, which are read
//! in the order of their names.

use std::path::Path;

use anyhow::Result;

use super::records::{Record, parse_lines, read_rows};
use super::{Edit, KeyMap, Pair, Text};
use super::{formats, unpaired};
use crate::bail_input;

/// Reads pairs, of the first `limit` rows. A rejected response may stand alone, and labelled rows
/// make pairs.
pub fn read_pairs(path: &Path, map: &KeyMap, limit: Option<usize>) -> Result<Vec<Pair>> {
    let rows = read_rows(path, limit)?;
    if rows.first().is_some_and(|row| unpaired::is_labelled(row, map)) {
        return unpaired::labelled(&rows, map);
    }
    make_all(rows, path, |row| unpaired::pair_or_rejected(row, map))
}

/// The pairs in a text of JSON lines, which errors call `name`.
pub fn parse_pairs(name: &str, text: &str) -> Result<Vec<Pair>> {
    parse_all(name, text, |row| formats::pair(row, &KeyMap::new()))
}

/// Reads edits, the first `limit` of them.
pub fn read_edits(path: &Path, map: &KeyMap, limit: Option<usize>) -> Result<Vec<Edit>> {
    make_all(read_rows(path, limit)?, path, |row| formats::edit(row, map))
}

/// The edits in a text of JSON lines, which errors call `name`.
pub fn parse_edits(name: &str, text: &str) -> Result<Vec<Edit>> {
    parse_all(name, text, |row| formats::edit(row, &KeyMap::new()))
}

/// Reads texts, the first `limit` of them: rows with `text` or `prompt`, or the lines of a `.txt`.
/// Errors (bad input) on a conversation.
pub fn read_texts(path: &Path, map: &KeyMap, limit: Option<usize>) -> Result<Vec<Text>> {
    let keys = ["text", "prompt"];
    let texts = make_all(read_rows(path, limit)?, path, |row| formats::text(row, &keys, map))?;
    match texts.iter().find(|text| !text.messages.is_empty()) {
        Some(text) => bail_input!("{}: a conversation where plain text is wanted", text.place),
        None => Ok(texts),
    }
}

/// Reads prompts, the first `limit` of them: rows with `prompt` (a text or a conversation),
/// `prompt.text` (RealToxicityPrompts), `prompt_text` or `text`, or the lines of a `.txt`. A whole
/// conversation (`messages`, `conversations`) gives what stands before its last answer.
pub fn read_prompts(path: &Path, map: &KeyMap, limit: Option<usize>) -> Result<Vec<Text>> {
    let keys = ["prompt", "prompt_text", "text", "messages", "conversations"];
    make_all(read_rows(path, limit)?, path, |row| formats::text(row, &keys, map))
}

/// The texts or prompts in a text of JSON lines, which errors call `name`.
pub fn parse_texts(name: &str, text: &str) -> Result<Vec<Text>> {
    parse_all(name, text, |row| formats::text(row, &["prompt", "text"], &KeyMap::new()))
}

fn parse_all<T>(name: &str, text: &str, make: impl Fn(&Record) -> Result<T>) -> Result<Vec<T>> {
    let path = Path::new(name);
    make_all(parse_lines(path, text.as_bytes())?, path, make)
}

/// What `make` makes of the rows. Errors (bad input) if there are none.
fn make_all<T>(
    rows: Vec<Record>,
    path: &Path,
    make: impl Fn(&Record) -> Result<T>,
) -> Result<Vec<T>> {
    let made: Vec<T> = rows.iter().map(make).collect::<Result<_>>()?;
    if made.is_empty() {
        bail_input!("{}: no rows", path.display());
    }
    Ok(made)
}
