//! *Data* are pairs (a prompt with a chosen and a rejected response), edits (a prompt with the
//! target that should follow it), texts, and prompts. They are read from files.
//!
//! The keys of a row say which format it has ([`FORMATS`]). Every error names the file, the line,
//! what was found, and what was expected. No row is skipped.

pub mod demo;
mod folder;
mod formats;
mod messages;
mod parquet;
mod python;
mod read;
mod records;
pub mod split;
mod unpaired;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use folder::{TRAIN, folder_and_split, is_data};
pub use formats::{FORMATS, Format, KeyMap, parse_map};
pub use read::{
    parse_edits, parse_pairs, parse_texts, read_edits, read_pairs, read_prompts, read_texts,
};
pub use records::{FileLine, Record, read_rows};

/// One error-evoking prompt with a desirable and an undesirable response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub prompt: String,
    /// Empty: the row has no chosen response. It has one of both.
    pub chosen: String,
    /// Empty: the row has no rejected response.
    pub rejected: String,
    /// The messages, if the row has conversations. The three texts are then their contents.
    pub conversation: Option<Conversation>,
    pub place: FileLine,
}

/// Messages (objects with "role" and "content"), and two answers of the assistant to them, or one
/// alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    pub history: Vec<Value>,
    pub chosen: Option<Value>,
    pub rejected: Option<Value>,
}

/// A text or a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    pub text: String,
    /// The messages of a conversation, whose contents are then the text. A plain text has none.
    pub messages: Vec<Value>,
    pub place: FileLine,
}

impl Text {
    pub fn plain(text: String, place: FileLine) -> Self {
        Self { text, messages: Vec::new(), place }
    }

    /// Cuts its tokens to the `longest` first ones, or those of a conversation to the last: its end
    /// says whose turn it is. Says whether any were cut.
    pub fn cut<T>(&self, tokens: &mut Vec<T>, longest: usize) -> bool {
        let over = tokens.len().saturating_sub(longest);
        match self.messages.is_empty() {
            true => tokens.truncate(longest),
            false => drop(tokens.drain(..over)),
        }
        over > 0
    }
}

/// A prompt and the target that should follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    pub prompt: String,
    pub target: String,
    /// What should not follow the prompt, if the row says so.
    pub rejected: Option<String>,
    pub kind: EditKind,
    pub place: FileLine,
}

/// What an edit is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EditKind {
    /// The model is wrong here: to be repaired.
    Failure,
    /// Another prompt with the same error: should change, too.
    Generalization,
    /// An unrelated prompt with what the model says now: should not change.
    Specificity,
}
