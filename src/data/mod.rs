//! Data are *pairs* (a prompt with a chosen and a rejected response), *texts*, and *prompts*, read from files.
//!
//! A row's format is found by its keys ([`FORMATS`]). Every error names file, line, what was found and what was
//! expected; no row is skipped.

pub mod demo;
mod formats;
mod records;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

pub use formats::{FORMATS, Format};
pub use records::{Place, Record, records as read_rows};

use crate::bail_input;
use records::records;

/// One error-evoking prompt with a desirable and an undesirable response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub prompt: String,
    pub chosen: String,
    pub rejected: String,
    /// Of a pair of conversations, whose contents the texts then are.
    pub conversation: Option<Conversation>,
    pub place: Place,
}

/// Messages (objects with "role" and "content") of which an assistant's turn is the answer, a desirable or an undesirable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    pub history: Vec<Value>,
    pub chosen: Value,
    pub rejected: Value,
}

/// A text or a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    pub text: String,
    /// Of a prompt that is a conversation, whose contents the text then is; empty of a plain text.
    pub messages: Vec<Value>,
    pub place: Place,
}

impl Text {
    pub fn plain(text: String, place: Place) -> Self {
        Self { text, messages: Vec::new(), place }
    }
}

/// What an edit's row is for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum EditKind {
    /// The model errs here: to be repaired.
    Failure,
    /// Another prompt with the same error: should change, too.
    Generalization,
    /// An unrelated prompt with what the model says now: should not change.
    Specificity,
}

/// A prompt and the target that should follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    pub prompt: String,
    pub target: String,
    /// What should not follow it, if the row says so.
    pub rejected: Option<String>,
    pub kind: EditKind,
    pub place: Place,
}

/// Renames of keys: `--map prompt=question,chosen=good`.
pub type KeyMap = BTreeMap<String, String>;

/// Parse `--map`: `ours=theirs` pieces. Errors on a piece without `=`.
pub fn parse_map(pieces: &[String]) -> Result<KeyMap> {
    let mut map = KeyMap::new();
    for piece in pieces {
        let Some((ours, theirs)) = piece.split_once('=') else {
            bail_input!("--map {piece:?}: expected OUR_KEY=KEY_IN_FILE, like prompt=question");
        };
        let known: Vec<&str> =
            FORMATS.iter().flat_map(Format::keys).chain(formats::EDIT_KEYS).collect();
        if !known.contains(&ours.trim()) {
            bail_input!("--map: {}", crate::base::error::unknown("key", ours.trim(), &known));
        }
        map.insert(ours.trim().to_owned(), theirs.trim().to_owned());
    }
    Ok(map)
}

/// The pairs of a file or of a folder's files in order of their names.
pub fn read_pairs(path: &Path, map: &KeyMap, limit: Option<usize>) -> Result<Vec<Pair>> {
    pairs_of(records(path)?, path, map, limit)
}

/// The pairs of text that is in memory, called `name` in errors.
pub fn parse_pairs(name: &str, text: &str) -> Result<Vec<Pair>> {
    pairs_of(
        records::parse_lines(Path::new(name), text.as_bytes())?,
        Path::new(name),
        &KeyMap::new(),
        None,
    )
}

fn pairs_of(
    rows: Vec<Record>,
    path: &Path,
    map: &KeyMap,
    limit: Option<usize>,
) -> Result<Vec<Pair>> {
    let pairs: Vec<Pair> = rows
        .into_iter()
        .take(limit.unwrap_or(usize::MAX))
        .map(|row| formats::pair(&row, map))
        .collect::<Result<_>>()?;
    if pairs.is_empty() {
        bail_input!("{}: no rows", path.display());
    }
    Ok(pairs)
}

/// The edits of a file or of a folder's files in order of their names.
pub fn read_edits(path: &Path, map: &KeyMap, limit: Option<usize>) -> Result<Vec<Edit>> {
    edits_of(records(path)?, path, map, limit)
}

/// The edits of text that is in memory, called `name` in errors.
pub fn parse_edits(name: &str, text: &str) -> Result<Vec<Edit>> {
    edits_of(
        records::parse_lines(Path::new(name), text.as_bytes())?,
        Path::new(name),
        &KeyMap::new(),
        None,
    )
}

fn edits_of(
    rows: Vec<Record>,
    path: &Path,
    map: &KeyMap,
    limit: Option<usize>,
) -> Result<Vec<Edit>> {
    let edits: Vec<Edit> = rows
        .into_iter()
        .take(limit.unwrap_or(usize::MAX))
        .map(|row| formats::edit(&row, map))
        .collect::<Result<_>>()?;
    if edits.is_empty() {
        bail_input!("{}: no rows", path.display());
    }
    Ok(edits)
}

/// Texts: rows with `text` (or `prompt`), the lines of a `.txt`. Errors on a conversation.
pub fn read_texts(path: &Path, map: &KeyMap, limit: Option<usize>) -> Result<Vec<Text>> {
    let texts = texts_of(records(path)?, path, &["text", "prompt"], map, limit)?;
    match texts.iter().find(|text| !text.messages.is_empty()) {
        Some(text) => bail_input!("{}: a conversation where plain text is wanted", text.place),
        None => Ok(texts),
    }
}

/// Prompts: rows with `prompt` (a text or a conversation), `prompt.text` (RealToxicityPrompts), `prompt_text` or `text`;
/// the lines of a `.txt`.
pub fn read_prompts(path: &Path, map: &KeyMap, limit: Option<usize>) -> Result<Vec<Text>> {
    texts_of(records(path)?, path, &["prompt", "prompt_text", "text"], map, limit)
}

/// The texts of rows that are in memory.
pub fn parse_texts(name: &str, text: &str) -> Result<Vec<Text>> {
    let rows = records::parse_lines(Path::new(name), text.as_bytes())?;
    texts_of(rows, Path::new(name), &["prompt", "text"], &KeyMap::new(), None)
}

fn texts_of(
    rows: Vec<Record>,
    path: &Path,
    keys: &[&str],
    map: &KeyMap,
    limit: Option<usize>,
) -> Result<Vec<Text>> {
    let texts: Vec<Text> = rows
        .into_iter()
        .take(limit.unwrap_or(usize::MAX))
        .map(|row| formats::text(&row, keys, map))
        .collect::<Result<_>>()?;
    if texts.is_empty() {
        bail_input!("{}: no rows", path.display());
    }
    Ok(texts)
}
