//! The *encoder* turns texts into ids, and ids into texts.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Once;

use anyhow::Result;
use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{Encoding, Token, Tokenizer, TruncationParams};

use super::boundary;
use super::chat::ChatTemplate;
use super::folder::{self, Found, OF_A_BYTE, Usual, why};
use crate::bail_input;
use crate::base::error::Error;
use crate::base::files;
use crate::base::plain::{plain_line, shortened};
use crate::base::wall;
use crate::base::wall::Time;
use crate::say;

/// A tokenizer that gives no id beyond the model's vocabulary. It does not pad, and cuts only where
/// it was told to.
pub struct Encoder {
    pub(super) tokenizer: Tokenizer,
    /// Splits what goes on within a text. `None` where the tokenizer puts no space before a text.
    pub(super) going_on: Option<PreTokenizerWrapper>,
    /// Special tokens that the tokenizer puts before a text.
    pub(super) before: Vec<u32>,
    /// `bos_token` and its like.
    pub(super) special: BTreeMap<String, String>,
    /// Whether the spaces before punctuation are taken out of decoded texts.
    cleans_up: bool,
    pub(super) chat: Option<ChatTemplate>,
    /// The file of the tokenizer, for errors.
    pub(super) name: String,
    /// Ids are below this.
    vocabulary: usize,
}

/// Errors (bad input) if the model has no row for a token that the tokenizer makes of a text.
fn within(name: &str, token: &str, id: u32, vocabulary: usize) -> Result<()> {
    if (id as usize) < vocabulary {
        return Ok(());
    }
    bail_input!(
        "{name}: it makes token {:?} with id {id} of a text, but the model's vocabulary ends at \
         {}; tokenizer and model don't belong together",
        shortened(token, 100),
        vocabulary.saturating_sub(1)
    )
}

impl Encoder {
    /// The tokenizer and the chat template of a model's folder, as transformers reads them. Errors
    /// (bad input) if there is no tokenizer in it that we can make, and if a file is broken.
    pub fn of(dir: &Path, model: &Value, usual: Usual, vocabulary: usize) -> Result<Self> {
        let Found { tokenizer, name, special, cleans_up } = folder::read(dir, model, usual)?;
        let chat = ChatTemplate::of(dir, &special)?;
        let own = Self::new(tokenizer, &name, vocabulary)?;
        Ok(Self { chat, special, cleans_up, ..own })
    }

    /// Whether the model has a chat template, so that it expects conversations.
    pub fn has_chat(&self) -> bool {
        self.chat.is_some()
    }

    /// From a `tokenizer.json` alone, as it stands. Errors (bad input) if it can't be read or has
    /// ids that the model doesn't.
    pub fn from_file(path: &Path, vocabulary: usize) -> Result<Self> {
        let bytes = files::read(path)?;
        Self::from_bytes(&bytes, &path.display().to_string(), vocabulary)
    }

    /// From the bytes of a `tokenizer.json`, called `name` in errors.
    pub fn from_bytes(bytes: &[u8], name: &str, vocabulary: usize) -> Result<Self> {
        let memory = wall::allowance(bytes.len() as u64, OF_A_BYTE);
        let made = wall::around(name, memory, Time::Limited, || Tokenizer::from_bytes(bytes))?;
        let tokenizer = made.map_err(|e| broken(name, &*e))?;
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
        Self::new(tokenizer, name, vocabulary)
    }

    fn new(tokenizer: Tokenizer, name: &str, vocabulary: usize) -> Result<Self> {
        let tokenizer = prepared(tokenizer, name)?;
        let text = Token::new(u32::MAX, "x".into(), (0, 1));
        let (going_on, around) = wall::around(name, wall::allowance(0, 0), Time::Limited, || {
            let around = tokenizer.post_process(Encoding::from_tokens(vec![text], 0), None, true);
            (boundary::going_on(&tokenizer), around)
        })?;
        let going_on = going_on.map_err(|e| broken(name, &*e))?;
        let around = around.map_err(|e| broken(name, &*e))?;
        let before: Vec<u32> =
            around.get_ids().iter().copied().take_while(|id| *id != u32::MAX).collect();
        for (id, token) in before.iter().zip(around.get_tokens()) {
            within(name, token, *id, vocabulary)?;
        }
        Ok(Self {
            tokenizer,
            going_on,
            before,
            special: BTreeMap::new(),
            cleans_up: false,
            chat: None,
            name: name.into(),
            vocabulary,
        })
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

    /// Ids of a text; `whole` texts get the special tokens that the tokenizer puts before and after
    /// them.
    pub fn encode(&self, text: &str, whole: bool) -> Result<Vec<u32>> {
        self.ids(text.len(), || Ok(self.tokenizer.encode_fast(text, whole)?.get_ids().to_vec()))
    }

    /// Ids that `work` makes of some bytes of text. Errors (bad input) on one that the model has no
    /// row for.
    pub(super) fn ids(
        &self,
        bytes: usize,
        work: impl FnOnce() -> tokenizers::Result<Vec<u32>>,
    ) -> Result<Vec<u32>> {
        let name = &self.name;
        let memory = wall::allowance(bytes as u64, 16 * OF_A_BYTE);
        let ids = wall::around(name, memory, Time::Limited, work)?
            .map_err(|e| Error::Input(format!("{name}: can't tokenize a text: {}", why(&*e))))?;
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.vocabulary) {
            let token = self.tokenizer.id_to_token(*id).unwrap_or_default();
            within(name, &token, *id, self.vocabulary)?;
        }
        Ok(ids)
    }

    /// Text of ids, without special tokens.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.text(ids, true)
    }

    /// Text of a token; a special one has its name.
    pub fn token(&self, id: u32) -> Result<String> {
        self.text(&[id], false)
    }

    /// The name of a token in the vocabulary, such as `Ġthe` or `▁the`.
    pub fn name_of(&self, id: u32) -> String {
        self.tokenizer.id_to_token(id).unwrap_or_else(|| id.to_string())
    }

    fn text(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let (name, count) = (&self.name, ids.len());
        let memory = wall::allowance(count as u64, 64 * OF_A_BYTE);
        let work = || self.tokenizer.decode(ids, skip_special);
        let text = wall::around(name, memory, Time::Limited, work)?;
        let text = text.map_err(|e| {
            Error::Input(format!("{name}: can't make a text of {count} tokens: {}", why(&*e)))
        })?;
        Ok(match self.cleans_up {
            true => cleaned_up(text),
            false => text,
        })
    }

    /// Text of ids that go on where those of a prompt end. A tokenizer may leave out the space
    /// before a text; here it is there, unless the prompt ends with an added token.
    pub fn decode_after(&self, prompt: &[u32], ids: &[u32]) -> Result<String> {
        let added = self.tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        if prompt.last().is_none_or(|id| added.contains_key(id)) {
            return self.decode(ids);
        }
        let (before, whole) = (self.decode(prompt)?, self.decode(&[prompt, ids].concat())?);
        match whole.strip_prefix(&before) {
            Some(after) => Ok(after.to_owned()),
            // A character of both, or a space that goes where no text follows.
            None => self.decode(ids),
        }
    }

    /// The text of a special token, such as `eos_token`.
    pub fn special(&self, name: &str) -> Option<&str> {
        self.special.get(name).map(String::as_str)
    }

    /// The id of a token given by its text, if the model has it.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token).filter(|id| (*id as usize) < self.vocabulary)
    }
}

/// A text without the spaces that were put before punctuation, as transformers takes them out.
fn cleaned_up(text: String) -> String {
    const FOUND: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    FOUND.iter().fold(text, |text, (from, to)| text.replace(from, to))
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

/// That a tokenizer can't be made, and why.
fn broken(name: &str, error: &(dyn std::error::Error + Send + Sync)) -> anyhow::Error {
    Error::Input(format!("{name}: {}", why(error))).into()
}
