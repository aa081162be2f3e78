//! The *encoder* turns texts into ids, and ids into texts.

use std::path::Path;
use std::sync::Once;

use anyhow::Result;
use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::{Tokenizer, TruncationParams};

use super::chat::{ChatTemplate, Ending};
use super::packed::{TokenEdit, TokenPair};
use crate::bail_input;
use crate::base::error::Error;
use crate::base::files;
use crate::base::plain::{plain_line, shortened};
use crate::base::wall;
use crate::base::wall::Time;
use crate::data::{Conversation, Edit, FileLine, Pair, Text};
use crate::say;

/// Lengths that texts are cut to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lengths {
    /// The first tokens of a prompt are kept (as Lee et al. do).
    pub prompt: usize,
    /// Prompt and response together, and normal texts; the first tokens are kept.
    pub total: usize,
}

impl Lengths {
    /// The given lengths, or 64 and 128 as far as the model's context goes. Errors (bad input) if a
    /// given one can't be.
    pub fn within(context: usize, total: Option<usize>, prompt: Option<usize>) -> Result<Self> {
        if let Some(total) = total.filter(|t| *t > context || *t < 2) {
            bail_input!(
                "--max-length {total}: this model has {context} positions; give 2 to {context}"
            );
        }
        let total = total.unwrap_or(context.min(128));
        let prompt = match prompt {
            Some(prompt) if prompt == 0 || prompt >= total => {
                bail_input!(
                    "--max-prompt-length {prompt} leaves no room for a response within \
                     --max-length {total}"
                )
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

/// Memory that a tokenizer may take for a byte of its file, and of a text.
const OF_A_BYTE: u64 = 512;

/// A tokenizer that gives no id beyond the model's vocabulary. It does not pad, and cuts only where
/// it was told to.
pub struct Encoder {
    tokenizer: Tokenizer,
    /// For what goes on within a text. `None` where the tokenizer puts no space before a text.
    continuing: Option<Tokenizer>,
    chat: Option<ChatTemplate>,
    /// The file of the tokenizer, for errors.
    name: String,
    /// Ids are below this.
    vocabulary: usize,
}

impl Encoder {
    /// From a `tokenizer.json`. Errors (bad input) if it can't be read or has ids that the model
    /// doesn't.
    pub fn from_file(path: &Path, vocabulary: usize) -> Result<Self> {
        let bytes = files::read(path)?;
        Self::from_bytes(&bytes, &path.display().to_string(), vocabulary)
    }

    /// From the bytes of a `tokenizer.json`, called `name` in errors.
    pub fn from_bytes(bytes: &[u8], name: &str, vocabulary: usize) -> Result<Self> {
        let read = |bytes: &[u8]| {
            let memory = wall::allowance(bytes.len() as u64, OF_A_BYTE);
            wall::around(name, memory, Time::Limited, || Tokenizer::from_bytes(bytes))?
                .map_err(|e| anyhow::Error::from(Error::Input(format!("{name}: {}", why(&*e)))))
        };
        let tokenizer = prepared(read(bytes)?, name)?;
        // An added token may lie beyond the model: then it matters only if a text has it.
        let (names, end) = (tokenizer.get_vocab(false), vocabulary.saturating_sub(1));
        if let Some((token, id)) = names.into_iter().max_by_key(|(_, id)| *id)
            && id as usize >= vocabulary
        {
            bail_input!(
                "{name}: token {:?} has id {id}, but the model's vocabulary ends at {end}; \
                 tokenizer and model don't belong together",
                shortened(&token, 100)
            );
        }
        let continuing = without_first_space(bytes).map(|bytes| prepared(read(&bytes)?, name));
        let (continuing, name) = (continuing.transpose()?, name.to_owned());
        Ok(Self { tokenizer, continuing, chat: None, name, vocabulary })
    }

    /// The same, with the template that makes texts of conversations.
    pub fn with_chat(self, chat: Option<ChatTemplate>) -> Self {
        Self { chat, ..self }
    }

    /// The same, but texts are cut so that they have at most `longest` tokens with the special
    /// ones, which stay.
    pub fn cut_to(mut self, longest: usize) -> Result<Self> {
        let cut = TruncationParams { max_length: longest, ..Default::default() };
        self.tokenizer
            .with_truncation(Some(cut))
            .map_err(|e| Error::Input(format!("can't cut texts to {longest} tokens: {e}")))?;
        Ok(self)
    }

    /// Ids of a text; `whole` texts and prompts get the special tokens that the tokenizer puts at
    /// the beginning.
    pub fn encode(&self, text: &str, whole: bool) -> Result<Vec<u32>> {
        self.ids(&self.tokenizer, text, whole)
    }

    /// Ids of a text. Errors (bad input) on one that the model has no row for.
    fn ids(&self, tokenizer: &Tokenizer, text: &str, whole: bool) -> Result<Vec<u32>> {
        let name = &self.name;
        let memory = wall::allowance(text.len() as u64, 16 * OF_A_BYTE);
        let work = || tokenizer.encode_fast(text, whole);
        let encoding = wall::around(name, memory, Time::Limited, work)?
            .map_err(|e| Error::Input(format!("{name}: can't tokenize a text: {}", why(&*e))))?;
        let ids = encoding.get_ids();
        if let Some(at) = ids.iter().position(|id| *id as usize >= self.vocabulary) {
            bail_input!(
                "{name}: it makes token {:?} with id {} of a text, but the model's vocabulary ends \
                 at {}; tokenizer and model don't belong together",
                shortened(encoding.get_tokens().get(at).map_or("", String::as_str), 100),
                ids[at],
                self.vocabulary.saturating_sub(1)
            );
        }
        Ok(ids.to_vec())
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
        let (name, count) = (&self.name, ids.len());
        let memory = wall::allowance(count as u64, 64 * OF_A_BYTE);
        let work = || self.tokenizer.decode(ids, skip_special);
        let text = wall::around(name, memory, Time::Limited, work)?;
        Ok(text.map_err(|e| {
            Error::Input(format!("{name}: can't make a text of {count} tokens: {}", why(&*e)))
        })?)
    }

    /// The id of a token given by its text, if the model has it.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token).filter(|id| (*id as usize) < self.vocabulary)
    }

    /// Pairs in tokens, cut to length. Prompt and responses are tokenized apart and joined. Of a
    /// prompt the first tokens are kept, of a conversation the last, which say whose turn it is.
    pub fn pairs(&self, pairs: &[Pair], lengths: Lengths) -> Result<(Vec<TokenPair>, Cut)> {
        let mut cut = Cut::default();
        let mut tokens = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let (mut prompt, responses) = match &pair.conversation {
                None => {
                    let response =
                        |text: &str, what: &str| self.continuation(text, what, &pair.place);
                    let chosen = match pair.chosen.is_empty() {
                        true => Vec::new(),
                        false => response(&pair.chosen, "chosen")?,
                    };
                    let responses = [chosen, response(&pair.rejected, "rejected")?];
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
                    "{}: a prompt of {} tokens leaves no room for a response within \
                     --max-length {}; lower --max-prompt-length",
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

    /// Edits in tokens. Prompt and target are tokenized apart and joined. Nothing is cut, since
    /// what a prompt asks may stand at its end: errors (bad input) if one has no tokens, or both
    /// together more than the model's context.
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

    /// What stands before the answer, and both answers: their last turns, as the chat template
    /// writes them.
    fn conversation(
        &self,
        of: &Conversation,
        place: &FileLine,
    ) -> Result<(Vec<u32>, [Vec<u32>; 2])> {
        let chat = self.chat(place)?;
        let begin = chat.render(&of.history, Ending::Prompt, place)?;
        let whole = |message: &Value| {
            chat.render(
                &[&of.history, std::slice::from_ref(message)].concat(),
                Ending::Message,
                place,
            )
        };
        let (chosen, rejected) = (whole(&of.chosen)?, whole(&of.rejected)?);
        // Some templates open a thought where an answer is to come, but write none in an answer
        // that is there. So the beginning is what all of them begin with.
        let shared = |other: &str| -> usize {
            begin
                .chars()
                .zip(other.chars())
                .take_while(|(a, b)| a == b)
                .map(|(a, _)| a.len_utf8())
                .sum()
        };
        let common = shared(&chosen).min(shared(&rejected));
        if common < begin.len()
            && !begin[..common].starts_with(&chat.render(&of.history, Ending::Message, place)?)
        {
            bail_input!(
                "{place}: the chat template writes the turns before the answer differently once it \
                 is there; give prompt, chosen and rejected as plain strings"
            );
        }
        let answers = [
            self.continuation(&chosen[common..], "chosen", place)?,
            self.continuation(&rejected[common..], "rejected", place)?,
        ];
        // The template has written the special tokens.
        Ok((self.some(&begin[..common], false, "prompt", place)?, answers))
    }

    fn chat(&self, place: &FileLine) -> Result<&ChatTemplate> {
        match &self.chat {
            Some(chat) => Ok(chat),
            None => bail_input!(
                "{place}: a conversation, but this model has no chat template; give plain strings, \
                 or put the template beside its config.json as chat_template.jinja"
            ),
        }
    }

    /// A prompt in tokens; of a conversation, with what stands before the answer. Errors (bad
    /// input) if it has none.
    pub fn prompt(&self, prompt: &Text) -> Result<Vec<u32>> {
        if prompt.messages.is_empty() {
            return self.some(&prompt.text, true, "prompt", &prompt.place);
        }
        let text =
            self.chat(&prompt.place)?.render(&prompt.messages, Ending::Prompt, &prompt.place)?;
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

    fn some(&self, text: &str, whole: bool, what: &str, place: &FileLine) -> Result<Vec<u32>> {
        self.some_of(&self.tokenizer, text, whole, what, place)
    }

    /// Ids of a response: it goes on where the prompt ends.
    fn continuation(&self, text: &str, what: &str, place: &FileLine) -> Result<Vec<u32>> {
        let tokenizer = self.continuing.as_ref().unwrap_or(&self.tokenizer);
        self.some_of(tokenizer, text, false, what, place)
    }

    /// Ids of a text that must have some.
    fn some_of(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        whole: bool,
        what: &str,
        place: &FileLine,
    ) -> Result<Vec<u32>> {
        let ids = self.ids(tokenizer, text, whole).map_err(|e| e.context(place.to_string()))?;
        if ids.is_empty() {
            bail_input!("{place}: {what} has no tokens");
        }
        Ok(ids)
    }
}

/// A tokenizer that neither cuts nor pads, and that gives the same ids every time: what it drops
/// at random in training is switched off, as transformers does where a model is not trained.
fn prepared(mut tokenizer: Tokenizer, name: &str) -> Result<Tokenizer> {
    tokenizer.with_truncation(None).map_err(|e| Error::Input(format!("{name}: {e}")))?;
    tokenizer.with_padding(None);
    if let ModelWrapper::BPE(bpe) = tokenizer.get_model()
        && bpe.dropout.is_some_and(|dropout| dropout != 0.0)
    {
        let mut bpe = bpe.clone();
        bpe.dropout = None;
        tokenizer.with_model(ModelWrapper::BPE(bpe));
        static SAID: Once = Once::new();
        SAID.call_once(|| {
            let name = plain_line(name);
            say!("warning: {name}: its \"dropout\" is switched off: it is for training");
        });
    }
    Ok(tokenizer)
}

/// Why a tokenizer fails, in a line that can be read.
fn why(error: &(dyn std::error::Error + Send + Sync)) -> String {
    let text = error.to_string();
    match text.contains("did not match any variant of untagged enum") {
        true => "a part of it is of no known kind or lacks something".into(),
        false => shortened(&text, 400).into_owned(),
    }
}

/// A `tokenizer.json` without the space that it puts before a text, as SentencePiece does (Llama 2,
/// Mistral); `None` if it puts none.
fn without_first_space(json: &[u8]) -> Option<Vec<u8>> {
    /// The parts that can put one: the vocabulary is not read for nothing.
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
    use serde_json::json;

    use super::*;

    /// Tokenizers such as Llama 2's put a space before a text. Prompt and response are the tokens
    /// of the joined text all the same.
    #[test]
    fn a_response_goes_on_where_the_prompt_ends() {
        let vocabulary = ["<s>", "\u{2581}", "a", "b", "\u{2581}a", "\u{2581}b", "ab"];
        let vocabulary: serde_json::Map<String, Value> =
            vocabulary.iter().enumerate().map(|(id, token)| ((*token).into(), id.into())).collect();
        let merges = ["\u{2581} a", "\u{2581} b", "a b"];
        let model = json!({"type": "BPE", "vocab": vocabulary, "merges": merges});
        let space = "\u{2581}";
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": space});
        let prepend = json!({"type": "Prepend", "prepend": space});
        let metaspace = |scheme: &str| {
            json!({"type": "Metaspace", "replacement": space,
            "prepend_scheme": scheme})
        };
        let begin = json!({
            "type": "TemplateProcessing", "pair": [],
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
        });
        let parts = [
            (json!({"type": "Sequence", "normalizers": [prepend, replace]}), Value::Null),
            (Value::Null, metaspace("first")),
            (Value::Null, metaspace("always")),
            (Value::Null, metaspace("never")),
        ];
        for (normalizer, pre_tokenizer) in parts {
            let what = format!("{normalizer} {pre_tokenizer}");
            let tokenizer = json!({
                "version": "1.0", "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
                "post_processor": begin, "model": model, "added_tokens": []
            });
            let encoder =
                Encoder::from_bytes(tokenizer.to_string().as_bytes(), "tokenizer.json", 7)
                    .expect(&what);
            for (chosen, rejected) in [(" a b", "b"), ("a", " b a"), ("  a", "b b")] {
                let place = FileLine { file: Path::new("x").into(), line: 1 };
                let [prompt, chosen, rejected] = ["a b", chosen, rejected].map(str::to_owned);
                let pair = Pair { prompt, chosen, rejected, conversation: None, place };
                let (tokens, _) = encoder
                    .pairs(std::slice::from_ref(&pair), Lengths { prompt: 64, total: 128 })
                    .expect(&what);
                assert_eq!(tokens[0].prompt[0], 0, "{what}");
                // Two texts can't give a merge across their joint ("b" after "a"): none has one.
                for (ids, text) in
                    [(&tokens[0].chosen, &pair.chosen), (&tokens[0].rejected, &pair.rejected)]
                {
                    let joined =
                        encoder.encode(&format!("{}{text}", pair.prompt), true).expect(&what);
                    assert_eq!([&tokens[0].prompt[..], ids].concat(), joined, "{what}: {text:?}");
                }
            }
        }
    }
}
