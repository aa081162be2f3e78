//! Tokens: records become *packed batches*, in which the sequences lie one after another and nothing is padded.
//!
//! A packed batch has N rows, one a token. Only attention and the positions know where a sequence begins; padding,
//! its masks and its waste do not exist.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use serde_json::Value;
use tokenizers::{Tokenizer, TruncationParams};

use crate::bail_input;
use crate::chat::{ChatTemplate, Ending};
use crate::data::{Conversation, Edit, Pair, Place, Text};
use crate::fault::Fault;

/// Which tokens of a pair count in the NLL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// The response's tokens.
    Response,
    /// Every token but the first (Lee et al.'s code).
    All,
}

/// Rows of a sequence in a packed batch. A *fork* has two endings after one beginning: the beginning's rows, the first
/// ending's (`hidden`), the second ending's; the second does not see the first, and its positions go on from the
/// beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// In the batch.
    pub rows: Range<usize>,
    /// Counted from the sequence's first row: rows that those after them do not see.
    pub hidden: Range<usize>,
}

impl Sequence {
    /// A sequence without a fork.
    pub fn plain(rows: Range<usize>) -> Self {
        Self { rows, hidden: 0..0 }
    }

    /// The rows that `row` sees, itself the last of them, all counted from the first row: some of the beginning, and
    /// those next to it. With a window, only the last `window` of them.
    pub fn seen(&self, row: usize, window: Option<usize>) -> [Range<usize>; 2] {
        let window = window.unwrap_or(usize::MAX);
        if self.hidden.is_empty() || row < self.hidden.end {
            return [0..0, (row + 1).saturating_sub(window)..row + 1];
        }
        let own = self.hidden.end.max((row + 1).saturating_sub(window))..row + 1;
        let left = window - own.len();
        [self.hidden.start.saturating_sub(left)..self.hidden.start, own]
    }
}

/// Token ids of several sequences, one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// (N)
    pub ids: Vec<u32>,
    /// Position of each token in its sequence: (N)
    pub positions: Vec<u32>,
    /// (B)
    pub sequences: Arc<[Sequence]>,
}

impl Packed {
    /// Sequences from position 0.
    pub fn new<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        Self::continuing(sequences.into_iter().map(|ids| (ids, 0)))
    }

    /// New tokens of sequences whose first new token is at the given position (the earlier ones are in a cache).
    pub fn continuing<'a>(sequences: impl IntoIterator<Item = (&'a [u32], usize)>) -> Self {
        let (mut ids, mut positions, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for (sequence, past) in sequences {
            rows.push(Sequence::plain(ids.len()..ids.len() + sequence.len()));
            ids.extend_from_slice(sequence);
            positions.extend((past..past + sequence.len()).map(|p| p as u32));
        }
        Self { ids, positions, sequences: rows.into() }
    }

    /// Forks of (beginning, first ending, second ending): the beginning's rows are computed once for both.
    pub fn forks<'a>(forks: impl IntoIterator<Item = [&'a [u32]; 3]>) -> Self {
        let (mut ids, mut positions, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
        for [beginning, first, second] in forks {
            let start = ids.len();
            let split = beginning.len();
            [beginning, first, second].iter().for_each(|part| ids.extend_from_slice(part));
            positions.extend((0..split + first.len()).chain(split..split + second.len()).map(|p| p as u32));
            sequences.push(Sequence { rows: start..ids.len(), hidden: split..split + first.len() });
        }
        Self { ids, positions, sequences: sequences.into() }
    }

    /// One of the sequences alone.
    pub fn only(&self, index: usize) -> Self {
        let Sequence { rows, hidden } = self.sequences[index].clone();
        let sequence = Sequence { rows: 0..rows.len(), hidden };
        Self {
            ids: self.ids[rows.clone()].to_vec(),
            positions: self.positions[rows].to_vec(),
            sequences: [sequence].into(),
        }
    }

    /// All rows: `0..N`.
    pub fn all_rows(&self) -> Vec<u32> {
        (0..self.ids.len() as u32).collect()
    }
}

/// A packed batch with the predictions that count: row `rows[i]` predicts `targets[i]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub packed: Packed,
    pub rows: Vec<u32>,
    pub targets: Vec<u32>,
    /// Number of predictions of each sequence (of each ending of a fork), in order.
    pub counts: Vec<usize>,
}

impl Batch {
    /// (prompt, response) sequences; the first token of a sequence is never predicted.
    pub fn new<'a>(sequences: impl IntoIterator<Item = (&'a [u32], &'a [u32])>, loss_on: LossOn) -> Self {
        let (mut joined, mut rows, mut targets, mut counts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut start = 0;
        for (prompt, response) in sequences {
            let ids = [prompt, response].concat();
            let first = match loss_on {
                LossOn::Response => prompt.len().max(1),
                LossOn::All => 1,
            };
            counts.push(ids.len().saturating_sub(first));
            rows.extend((first..ids.len()).map(|t| (start + t - 1) as u32));
            targets.extend_from_slice(ids.get(first..).unwrap_or(&[]));
            start += ids.len();
            joined.push(ids);
        }
        Self { packed: Packed::new(joined.iter().map(Vec::as_slice)), rows, targets, counts }
    }

    /// Texts of which every token but the first counts.
    pub fn texts(packed: Packed) -> Self {
        let rows: Vec<u32> =
            packed.sequences.iter().flat_map(|s| s.rows.start as u32..s.rows.end.saturating_sub(1) as u32).collect();
        let targets = rows.iter().map(|row| packed.ids[*row as usize + 1]).collect();
        let counts = packed.sequences.iter().map(|s| s.rows.len().saturating_sub(1)).collect();
        Self { packed, rows, targets, counts }
    }

    /// Pairs as forks, chosen first; the same predictions as of both responses apart.
    pub fn forks(pairs: &[&TokenPair], loss_on: LossOn) -> Self {
        let packed = Packed::forks(pairs.iter().map(|p| [p.prompt.as_slice(), &p.chosen, &p.rejected]));
        let (mut rows, mut targets, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for (pair, sequence) in pairs.iter().zip(packed.sequences.iter()) {
            for (response, skipped) in [(&pair.chosen, 0), (&pair.rejected, pair.chosen.len())] {
                let split = pair.prompt.len();
                let first = match loss_on {
                    LossOn::Response => split.max(1),
                    LossOn::All => 1,
                };
                // Token t of prompt and response; its row lies further on if it is of the second ending.
                let row_of = |t: usize| sequence.rows.start + if t < split { t } else { t + skipped };
                let ids = || pair.prompt.iter().chain(response.iter()).copied();
                let length = split + response.len();
                rows.extend((first..length).map(|t| row_of(t - 1) as u32));
                targets.extend(ids().skip(first));
                counts.push(length.saturating_sub(first));
            }
        }
        Self { packed, rows, targets, counts }
    }

    /// One of the forks alone.
    pub fn only_fork(&self, index: usize) -> Self {
        let start = self.packed.sequences[index].rows.start as u32;
        let first = self.counts[..2 * index].iter().sum::<usize>();
        let counts = self.counts[2 * index..2 * index + 2].to_vec();
        let counted = first..first + counts[0] + counts[1];
        Self {
            packed: self.packed.only(index),
            rows: self.rows[counted.clone()].iter().map(|row| row - start).collect(),
            targets: self.targets[counted].to_vec(),
            counts,
        }
    }
}

/// A pair in tokens.
#[derive(Debug, Clone)]
pub struct TokenPair {
    pub prompt: Vec<u32>,
    pub chosen: Vec<u32>,
    pub rejected: Vec<u32>,
}

/// A prompt and the target that should follow it, in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenEdit {
    pub prompt: Vec<u32>,
    pub target: Vec<u32>,
}

/// Rows of a part of [`PairBatch::forks`], unless one pair has more.
pub const FORK_ROWS: usize = 256;

/// The chosen and the rejected responses of the same pairs.
#[derive(Debug, Clone)]
pub struct PairBatch {
    pub chosen: Batch,
    pub rejected: Batch,
    /// Both, forking from their prompts: counts alternate chosen, rejected. In parts of few rows, so that a graph over
    /// one of them stays small.
    pub forks: Vec<Batch>,
}

impl PairBatch {
    pub fn new(pairs: &[&TokenPair], loss_on: LossOn) -> Self {
        let batch = |response: fn(&TokenPair) -> &Vec<u32>| {
            Batch::new(pairs.iter().map(|p| (p.prompt.as_slice(), response(p).as_slice())), loss_on)
        };
        let rows = |p: &TokenPair| p.prompt.len() + p.chosen.len() + p.rejected.len();
        let mut parts: Vec<Vec<&TokenPair>> = Vec::new();
        let mut room = 0;
        for &pair in pairs {
            match parts.last_mut() {
                Some(part) if rows(pair) <= room => part.push(pair),
                _ => {
                    parts.push(vec![pair]);
                    room = FORK_ROWS;
                }
            }
            room = room.saturating_sub(rows(pair));
        }
        let forks = parts.iter().map(|part| Batch::forks(part, loss_on)).collect();
        Self { chosen: batch(|p| &p.chosen), rejected: batch(|p| &p.rejected), forks }
    }
}

/// Lengths that texts are cut to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// The first tokens of a prompt are kept (as Lee et al. do).
    pub prompt: usize,
    /// Prompt and response together, and normal texts; the first tokens are kept.
    pub total: usize,
}

impl Lengths {
    /// The given lengths, or 64 and 128 as far as the model's context goes. Errors (bad input) if a given one can't be.
    pub fn within(context: usize, total: Option<usize>, prompt: Option<usize>) -> Result<Self> {
        if let Some(total) = total.filter(|t| *t > context || *t < 2) {
            bail_input!("--max-length {total}: this model has {context} positions; give 2 to {context}");
        }
        let total = total.unwrap_or(context.min(128));
        let prompt = match prompt {
            Some(prompt) if prompt == 0 || prompt >= total => {
                bail_input!("--max-prompt-length {prompt} leaves no room for a response within --max-length {total}")
            }
            Some(prompt) => prompt,
            None => (total - total / 4).min(64).min(total.saturating_sub(1)).max(1),
        };
        Ok(Self { prompt, total })
    }
}

/// How many texts were cut to length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cut {
    pub prompts: usize,
    pub responses: usize,
    pub texts: usize,
}

/// A tokenizer that gives ids below the model's vocabulary size; it does not pad, nor cut unless it was told to.
pub struct Encoder {
    tokenizer: Tokenizer,
    /// For what goes on within a text, where the tokenizer puts a space before one.
    continuing: Option<Tokenizer>,
    chat: Option<ChatTemplate>,
}

impl Encoder {
    /// From a `tokenizer.json`. Errors (bad input) if it can't be read or has ids that the model doesn't.
    pub fn from_file(path: &Path, vocabulary: usize) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Fault::Input(format!("{}: {e}", path.display())))?;
        Self::from_bytes(&bytes, &path.display().to_string(), vocabulary)
    }

    /// From the bytes of a `tokenizer.json`, called `name` in errors.
    pub fn from_bytes(bytes: &[u8], name: &str, vocabulary: usize) -> Result<Self> {
        let read = |bytes: &[u8]| {
            Tokenizer::from_bytes(bytes).map_err(|e| Fault::Input(format!("{name}: not a tokenizer: {e}")))
        };
        let encoder = Self::from_tokenizer(read(bytes)?, name, vocabulary)?;
        let continuing = without_first_space(bytes).map(|bytes| read(&bytes)).transpose()?;
        Ok(Self { continuing, ..encoder })
    }

    /// From a tokenizer that was made of the file `name`.
    pub fn from_tokenizer(mut tokenizer: Tokenizer, name: &str, vocabulary: usize) -> Result<Self> {
        tokenizer.with_truncation(None).map_err(|e| Fault::Input(format!("{name}: {e}")))?;
        tokenizer.with_padding(None);
        if let Some((token, id)) = tokenizer.get_vocab(true).into_iter().max_by_key(|(_, id)| *id)
            && id as usize >= vocabulary
        {
            bail_input!(
                "{name}: token {token:?} has id {id}, but the model's vocabulary ends at {}; \
                 tokenizer and model don't belong together",
                vocabulary.saturating_sub(1)
            );
        }
        Ok(Self { tokenizer, continuing: None, chat: None })
    }

    /// The same, with the template that makes texts of conversations.
    pub fn with_chat(self, chat: Option<ChatTemplate>) -> Self {
        Self { chat, ..self }
    }

    /// The same, but texts are cut so that they have at most `longest` tokens with the special ones, which stay.
    pub fn cut_to(mut self, longest: usize) -> Result<Self> {
        let cut = TruncationParams { max_length: longest, ..Default::default() };
        self.tokenizer
            .with_truncation(Some(cut))
            .map_err(|e| Fault::Input(format!("can't cut texts to {longest} tokens: {e}")))?;
        Ok(self)
    }

    /// Ids of a text; `whole` texts and prompts get the special tokens that the tokenizer puts at the beginning.
    pub fn encode(&self, text: &str, whole: bool) -> Result<Vec<u32>> {
        encode(&self.tokenizer, text, whole)
    }

    /// Text of ids, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.text(ids, true)
    }

    /// Text of a token; a special one has its name.
    pub fn token(&self, id: u32) -> Result<String> {
        self.text(&[id], false)
    }

    fn text(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.tokenizer.decode(ids, skip_special).map_err(|e| anyhow::anyhow!("can't decode {} tokens: {e}", ids.len()))
    }

    /// The id of a token given by its text.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Pairs in tokens, cut to length; prompt and responses are tokenized apart and joined. Of a prompt the first tokens
    /// are kept, of a conversation the last, which say whose turn it is.
    pub fn pairs(&self, pairs: &[Pair], lengths: Lengths) -> Result<(Vec<TokenPair>, Cut)> {
        let mut cut = Cut::default();
        let mut tokens = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let (mut prompt, responses) = match &pair.conversation {
                None => {
                    let response = |text: &str, what: &str| self.continuation(text, what, &pair.place);
                    let responses = [response(&pair.chosen, "chosen")?, response(&pair.rejected, "rejected")?];
                    (self.some(&pair.prompt, true, "prompt", &pair.place)?, responses)
                }
                Some(conversation) => self.conversation(conversation, &pair.place)?,
            };
            if let Some(over) = prompt.len().checked_sub(lengths.prompt).filter(|over| *over > 0) {
                match pair.conversation {
                    None => prompt.truncate(lengths.prompt),
                    Some(_) => drop(prompt.drain(..over)),
                }
                cut.prompts += 1;
            }
            let room = lengths.total.saturating_sub(prompt.len());
            if room == 0 {
                bail_input!(
                    "{}: a prompt of {} tokens leaves no room for a response within --max-length {}; \
                     lower --max-prompt-length",
                    pair.place,
                    prompt.len(),
                    lengths.total
                );
            }
            let [chosen, rejected] = responses.map(|mut ids| {
                cut.responses += usize::from(ids.len() > room);
                ids.truncate(room);
                ids
            });
            tokens.push(TokenPair { prompt, chosen, rejected });
        }
        Ok((tokens, cut))
    }

    /// Edits in tokens; prompt and target are tokenized apart and joined. Errors (bad input) if one has no tokens, or
    /// both together more than the model's context: nothing is cut, since what a prompt asks may stand at its end.
    pub fn edits(&self, edits: &[Edit], context: usize) -> Result<Vec<TokenEdit>> {
        edits
            .iter()
            .map(|edit| {
                let prompt = self.some(&edit.prompt, true, "prompt", &edit.place)?;
                let target = self.some(&edit.target, false, "target", &edit.place)?;
                let length = prompt.len() + target.len();
                if length > context {
                    bail_input!(
                        "{}: prompt and target have {length} tokens, the model {context} positions",
                        edit.place
                    );
                }
                Ok(TokenEdit { prompt, target })
            })
            .collect()
    }

    /// What stands before the answer, and both answers: their last turns, as the chat template writes them.
    fn conversation(&self, of: &Conversation, place: &Place) -> Result<(Vec<u32>, [Vec<u32>; 2])> {
        let chat = self.chat(place)?;
        let begin = chat.render(&of.history, Ending::Prompt, place)?;
        let whole = |message: &Value| {
            chat.render(&[&of.history, std::slice::from_ref(message)].concat(), Ending::Message, place)
        };
        let (chosen, rejected) = (whole(&of.chosen)?, whole(&of.rejected)?);
        // Some templates open a thought where an answer is to come, and write none in one that is there: what all begin with.
        let shared = |other: &str| -> usize {
            begin.chars().zip(other.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
        };
        let common = shared(&chosen).min(shared(&rejected));
        if common < begin.len() && !begin[..common].starts_with(&chat.render(&of.history, Ending::Message, place)?) {
            bail_input!(
                "{place}: the chat template writes the turns before the answer differently once it is there; give prompt, \
                 chosen and rejected as plain strings"
            );
        }
        let answers = [
            self.continuation(&chosen[common..], "chosen", place)?,
            self.continuation(&rejected[common..], "rejected", place)?,
        ];
        // The template has written the special tokens.
        Ok((self.some(&begin[..common], false, "prompt", place)?, answers))
    }

    fn chat(&self, place: &Place) -> Result<&ChatTemplate> {
        match &self.chat {
            Some(chat) => Ok(chat),
            None => bail_input!(
                "{place}: a conversation, but this model has no chat template; give plain strings, or put the template \
                 beside its config.json as chat_template.jinja"
            ),
        }
    }

    /// A prompt in tokens; of a conversation, with what stands before the answer. Errors (bad input) if it has none.
    pub fn prompt(&self, prompt: &Text) -> Result<Vec<u32>> {
        if prompt.messages.is_empty() {
            return self.some(&prompt.text, true, "prompt", &prompt.place);
        }
        let text = self.chat(&prompt.place)?.render(&prompt.messages, Ending::Prompt, &prompt.place)?;
        self.some(&text, false, "prompt", &prompt.place)
    }

    /// Texts in tokens, cut to length.
    pub fn texts(&self, texts: &[Text], lengths: Lengths) -> Result<(Vec<Vec<u32>>, Cut)> {
        let mut cut = Cut::default();
        let mut tokens = Vec::with_capacity(texts.len());
        for text in texts {
            let mut ids = self.some(&text.text, true, "text", &text.place)?;
            if ids.len() > lengths.total {
                ids.truncate(lengths.total);
                cut.texts += 1;
            }
            tokens.push(ids);
        }
        Ok((tokens, cut))
    }

    fn some(&self, text: &str, whole: bool, what: &str, place: &Place) -> Result<Vec<u32>> {
        some(&self.tokenizer, text, whole, what, place)
    }

    /// Ids of a response: it goes on where the prompt ends.
    fn continuation(&self, text: &str, what: &str, place: &Place) -> Result<Vec<u32>> {
        some(self.continuing.as_ref().unwrap_or(&self.tokenizer), text, false, what, place)
    }
}

fn encode(tokenizer: &Tokenizer, text: &str, whole: bool) -> Result<Vec<u32>> {
    let encoding =
        tokenizer.encode_fast(text, whole).map_err(|e| Fault::Input(format!("can't tokenize a text: {e}")))?;
    Ok(encoding.get_ids().to_vec())
}

/// Ids of a text that must have some.
fn some(tokenizer: &Tokenizer, text: &str, whole: bool, what: &str, place: &Place) -> Result<Vec<u32>> {
    let ids = encode(tokenizer, text, whole)?;
    if ids.is_empty() {
        bail_input!("{place}: {what} has no tokens");
    }
    Ok(ids)
}

/// A `tokenizer.json` as it is but for the space that it puts before a text (SentencePiece's do, so those of Llama 2 and
/// Mistral); `None` if it puts none.
fn without_first_space(json: &[u8]) -> Option<Vec<u8>> {
    /// The parts that can put one, so that the vocabulary is not read in vain.
    #[derive(serde::Deserialize)]
    struct Parts {
        #[serde(default)]
        normalizer: Value,
        #[serde(default)]
        pre_tokenizer: Value,
    }
    fn remove(part: &mut Value) -> bool {
        match part["type"].as_str() {
            Some("Prepend") => {
                *part = Value::Null;
                true
            }
            Some("Metaspace") if part["prepend_scheme"] != "never" => {
                part["prepend_scheme"] = "never".into();
                part["add_prefix_space"] = false.into();
                true
            }
            Some("ByteLevel") if part["add_prefix_space"] == true => {
                part["add_prefix_space"] = false.into();
                true
            }
            Some("Sequence") => ["normalizers", "pretokenizers"].into_iter().any(|key| {
                let Some(Value::Array(list)) = part.get_mut(key) else { return false };
                let removed = list.iter_mut().map(remove).filter(|removed| *removed).count() > 0;
                list.retain(|part| !part.is_null());
                removed
            }),
            _ => false,
        }
    }
    let Parts { mut normalizer, mut pre_tokenizer } = serde_json::from_slice(json).ok()?;
    if !(remove(&mut normalizer) | remove(&mut pre_tokenizer)) {
        return None;
    }
    let mut whole: Value = serde_json::from_slice(json).ok()?;
    (whole["normalizer"], whole["pre_tokenizer"]) = (normalizer, pre_tokenizer);
    whole["truncation"] = Value::Null;
    whole["padding"] = Value::Null;
    serde_json::to_vec(&whole).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_point_at_the_row_before() {
        let batch = Batch::new([(&[5, 6][..], &[7, 8][..]), (&[9][..], &[10][..])], LossOn::Response);
        assert_eq!(batch.packed.ids, [5, 6, 7, 8, 9, 10]);
        assert_eq!(batch.packed.positions, [0, 1, 2, 3, 0, 1]);
        assert_eq!(*batch.packed.sequences, [Sequence::plain(0..4), Sequence::plain(4..6)]);
        assert_eq!((batch.rows.as_slice(), batch.targets.as_slice()), (&[1, 2, 4][..], &[7, 8, 10][..]));
        assert_eq!(batch.counts, [2, 1]);
        let all = Batch::new([(&[5, 6][..], &[7, 8][..])], LossOn::All);
        assert_eq!((all.rows.as_slice(), all.targets.as_slice()), (&[0, 1, 2][..], &[6, 7, 8][..]));
        let unconditional = Batch::new([(&[][..], &[7, 8][..])], LossOn::Response);
        assert_eq!(unconditional.targets, [8], "the first token is never predicted");
    }

    /// Tokenizers as Llama 2's and Mistral's put a space before a text; prompt and response are the joined text's tokens
    /// all the same.
    #[test]
    fn a_response_goes_on_where_the_prompt_ends() {
        let vocabulary = ["<s>", "\u{2581}", "a", "b", "\u{2581}a", "\u{2581}b", "ab"];
        let vocabulary: serde_json::Map<String, Value> =
            vocabulary.iter().enumerate().map(|(id, token)| ((*token).into(), id.into())).collect();
        let model =
            serde_json::json!({"type": "BPE", "vocab": vocabulary, "merges": ["\u{2581} a", "\u{2581} b", "a b"]});
        let replace = serde_json::json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
        let prepend = serde_json::json!({"type": "Prepend", "prepend": "\u{2581}"});
        let metaspace = |scheme: &str| serde_json::json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme});
        let begin = serde_json::json!({
            "type": "TemplateProcessing", "pair": [],
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        });
        let parts = [
            (serde_json::json!({"type": "Sequence", "normalizers": [prepend, replace]}), Value::Null),
            (Value::Null, metaspace("first")),
            (Value::Null, metaspace("always")),
            (Value::Null, metaspace("never")),
        ];
        for (normalizer, pre_tokenizer) in parts {
            let what = format!("{normalizer} {pre_tokenizer}");
            let json = serde_json::json!({"version": "1.0", "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
                                          "post_processor": begin, "model": model, "added_tokens": []});
            let encoder = Encoder::from_bytes(json.to_string().as_bytes(), "tokenizer.json", 7).expect(&what);
            for (chosen, rejected) in [(" a b", "b"), ("a", " b a"), ("  a", "b b")] {
                let place = Place { file: Path::new("x").into(), line: 1 };
                let [prompt, chosen, rejected] = ["a b", chosen, rejected].map(str::to_owned);
                let pair = Pair { prompt, chosen, rejected, conversation: None, place };
                let (tokens, _) =
                    encoder.pairs(std::slice::from_ref(&pair), Lengths { prompt: 64, total: 128 }).expect(&what);
                assert_eq!(tokens[0].prompt[0], 0, "{what}");
                // A merge across the joint ("b" after "a") can't be had of two texts; none of these has one.
                for (ids, text) in [(&tokens[0].chosen, &pair.chosen), (&tokens[0].rejected, &pair.rejected)] {
                    let joined = encoder.encode(&format!("{}{text}", pair.prompt), true).expect(&what);
                    assert_eq!([&tokens[0].prompt[..], ids].concat(), joined, "{what}: {text:?}");
                }
            }
        }
    }
}
