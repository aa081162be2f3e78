//! *Rows* to tokens: pairs, edits, prompts and texts, cut to length.

use anyhow::Result;
use serde_json::Value;

use super::Encoder;
use super::boundary::{self, Boundary};
use super::chat::Ending;
use super::packed::{TokenEdit, TokenPair};
use crate::bail_input;
use crate::data::{Conversation, Edit, FileLine, Pair, Text};

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

impl Encoder {
    /// Pairs in tokens, cut to length. Of a prompt the first tokens are kept, of a conversation the
    /// last, which say whose turn it is. Errors (bad input) if a prompt or a response has no
    /// tokens, or if there is no end to put behind a response.
    pub fn pairs(
        &self,
        pairs: &[Pair],
        lengths: Lengths,
        boundary: Boundary,
    ) -> Result<(Vec<TokenPair>, Cut)> {
        let mut cut = Cut::default();
        let mut tokens = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let place = &pair.place;
            let (mut prompt, responses) = match (&pair.conversation, boundary) {
                (Some(conversation), _) => self.conversation(conversation, place)?,
                (None, Boundary::Apart) => self.apart(pair)?,
                (None, Boundary::Trl) => self.as_one_text(pair)?,
            };
            let texts = [(&pair.chosen, "chosen"), (&pair.rejected, "rejected")];
            for (ids, (text, what)) in responses.iter().zip(texts) {
                // Without a text, the row has no such response.
                if ids.is_empty() && !text.is_empty() {
                    bail_input!("{place}: {what} has no tokens");
                }
            }
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

    /// A prompt and its responses, each tokenized apart. Of a response that is not there there are
    /// no tokens.
    fn apart(&self, pair: &Pair) -> Result<(Vec<u32>, [Vec<u32>; 2])> {
        let prompt = self.plain_prompt(&pair.prompt, &pair.place)?;
        let response = |text: &str| match text.is_empty() {
            true => Ok(Vec::new()),
            false => self.response(&pair.prompt, text, &pair.place),
        };
        Ok((prompt, [response(&pair.chosen)?, response(&pair.rejected)?]))
    }

    /// A prompt and its responses, split where the tokens of the prompt alone and of the whole
    /// texts part.
    fn as_one_text(&self, pair: &Pair) -> Result<(Vec<u32>, [Vec<u32>; 2])> {
        let place = &pair.place;
        let Some(end) = self.special("eos_token") else {
            bail_input!(
                "--boundary trl puts the eos_token behind a response, and {} names none",
                self.name
            );
        };
        let ids = |text: &str| self.encode(text, true).map_err(|e| e.context(place.to_string()));
        let whole = |response: &str| match response.ends_with(end) {
            true => ids(&[&pair.prompt, response].concat()),
            false => ids(&[&pair.prompt, response, end].concat()),
        };
        let prompt = ids(&pair.prompt)?;
        let there = |text: &str| (!text.is_empty()).then(|| whole(text)).transpose();
        Ok(split(prompt, [there(&pair.chosen)?, there(&pair.rejected)?]))
    }

    /// Edits in tokens, split as pairs are. Nothing is cut, since what a prompt asks may stand at
    /// its end: errors (bad input) if one has no tokens, or both together more than the model's
    /// context.
    pub fn edits(&self, edits: &[Edit], context: usize) -> Result<Vec<TokenEdit>> {
        edits
            .iter()
            .map(|edit| {
                let prompt = self.plain_prompt(&edit.prompt, &edit.place)?;
                let target = self.response(&edit.prompt, &edit.target, &edit.place)?;
                if target.is_empty() {
                    bail_input!("{}: target has no tokens", edit.place);
                }
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
        let begin = self.render(&of.history, Ending::Prompt, place)?;
        let whole = |message: &Value| {
            let all = [&of.history, std::slice::from_ref(message)].concat();
            self.render(&all, Ending::Message, place)
        };
        let there = |answer: &Option<Value>| answer.as_ref().map(whole).transpose();
        let answers = [there(&of.chosen)?, there(&of.rejected)?];
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
        let common = answers.iter().flatten().map(|all| shared(all)).min().unwrap_or(begin.len());
        if common < begin.len()
            && !begin[..common].starts_with(&self.render(&of.history, Ending::Message, place)?)
        {
            bail_input!(
                "{place}: the chat template writes the turns before the answer differently once it \
                 is there; give prompt, chosen and rejected as plain strings"
            );
        }
        // The template has written the special tokens.
        let ids = |text: &str| self.encode(text, false).map_err(|e| e.context(place.to_string()));
        let [chosen, rejected] = answers.map(|answer| answer.map(|all| ids(&all)).transpose());
        let (prompt, responses) = split(ids(&begin)?, [chosen?, rejected?]);
        if prompt.is_empty() {
            bail_input!("{place}: prompt has no tokens");
        }
        Ok((prompt, responses))
    }

    /// The text of a conversation, as the model's chat template writes it. Errors (bad input) if
    /// the model has none, and if it fails.
    pub fn render(&self, messages: &[Value], ending: Ending, place: &FileLine) -> Result<String> {
        match &self.chat {
            Some(chat) => chat.render(messages, ending, place),
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
            return self.plain_prompt(&prompt.text, &prompt.place);
        }
        let text = self.render(&prompt.messages, Ending::Prompt, &prompt.place)?;
        self.some(&text, false, "prompt", &prompt.place)
    }

    /// A prompt of plain text in tokens. What the tokenizer puts behind a text does not stand
    /// between a prompt and its response.
    fn plain_prompt(&self, text: &str, place: &FileLine) -> Result<Vec<u32>> {
        let own = self.encode(text, false).map_err(|e| e.context(place.to_string()))?;
        let ids = [&self.before[..], &own].concat();
        if ids.is_empty() {
            bail_input!("{place}: prompt has no tokens");
        }
        Ok(ids)
    }

    /// Ids of a response: it goes on where the prompt ends.
    fn response(&self, prompt: &str, text: &str, place: &FileLine) -> Result<Vec<u32>> {
        let going_on = self.going_on.as_ref();
        self.ids(prompt.len() + text.len(), || {
            boundary::response(&self.tokenizer, going_on, prompt, text)
        })
        .map_err(|e| e.context(place.to_string()))
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

    /// Ids of a text that must have some.
    fn some(&self, text: &str, whole: bool, what: &str, place: &FileLine) -> Result<Vec<u32>> {
        let ids = self.encode(text, whole).map_err(|e| e.context(place.to_string()))?;
        if ids.is_empty() {
            bail_input!("{place}: {what} has no tokens");
        }
        Ok(ids)
    }
}

/// Whole texts, split where the tokens of the prompt alone and theirs part. Of a text that is not
/// there there are no tokens.
fn split(mut prompt: Vec<u32>, whole: [Option<Vec<u32>>; 2]) -> (Vec<u32>, [Vec<u32>; 2]) {
    let there: Vec<&[u32]> = whole.iter().flatten().map(Vec::as_slice).collect();
    let split = boundary::common(&prompt, &there);
    prompt.truncate(split);
    (prompt, whole.map(|ids| ids.map_or_else(Vec::new, |ids| ids[split..].to_vec())))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

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
                    .pairs(
                        std::slice::from_ref(&pair),
                        Lengths { prompt: 64, total: 128 },
                        Boundary::Apart,
                    )
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
