//! The *boundary* is where a prompt ends and a response begins. One rule holds for pairs, edits,
//! generation and the figures that are made of them:
//!
//! - A prompt's tokens are those of the prompt alone, with the special tokens that its tokenizer
//!   puts before a text, and without those that it puts after one.
//! - A response goes on where the prompt ends. It is tokenized apart, so that no token is of both.
//!   It gets no space that the tokenizer puts before a text, and it may go on within a word. What
//!   stands in it is otherwise what
//!   it would be in the whole text: a special token at the end of the prompt may add or swallow a
//!   space.
//! - Nothing is put after a response.
//!
//! A conversation is written by its template and tokenized as a whole. It is split where the tokens
//! of the prompt and of the whole part.

use std::cell::Cell;

use serde_json::Value;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizer::Range;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::tokenizer::PreTokenizer as _;
use tokenizers::{
    Model as _, ModelWrapper, NormalizedString, OffsetReferential, OffsetType, PreTokenizedString,
    Token, Tokenizer,
};

/// How rows of plain text are split into prompt and response.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Boundary {
    /// The response is tokenized apart and goes on where the prompt ends: no token is of both, and
    /// no eos_token is put behind it.
    #[default]
    Apart,
    /// As TRL's DPOTrainer: prompt, response and eos_token are one text, split where its tokens and
    /// those of the prompt alone part. So a space at the end of the prompt, or a token that lies
    /// across, goes to the response, and the model learns to end it.
    Trl,
}

/// What `tokenizers` gives, which has errors of its own.
type Theirs<T> = tokenizers::Result<T>;

/// The number of first tokens that all of these have in common.
pub fn common(of: &[u32], others: &[&[u32]]) -> usize {
    let shared = |other: &&[u32]| of.iter().zip(other.iter()).take_while(|(a, b)| a == b).count();
    others.iter().map(shared).min().unwrap_or(of.len())
}

/// The part of a tokenizer that splits what goes on within a text: it puts no space before it.
/// `None` where the tokenizer has one that puts none anyway, or has none.
pub fn going_on(tokenizer: &Tokenizer) -> Theirs<Option<PreTokenizerWrapper>> {
    fn remove(part: &mut Value) -> bool {
        match part["type"].as_str() {
            Some("Metaspace") if part["prepend_scheme"] != "never" => {
                part["prepend_scheme"] = "never".into();
                true
            }
            Some("ByteLevel") if part["add_prefix_space"] == true => {
                part["add_prefix_space"] = false.into();
                true
            }
            Some("Sequence") => match &mut part["pretokenizers"] {
                Value::Array(list) => list.iter_mut().fold(false, |any, part| remove(part) | any),
                _ => false,
            },
            _ => false,
        }
    }
    let Some(own) = tokenizer.get_pre_tokenizer() else { return Ok(None) };
    let mut value = serde_json::to_value(own)?;
    match remove(&mut value) {
        true => Ok(Some(serde_json::from_value(value)?)),
        false => Ok(None),
    }
}

/// A piece of a text behind the boundary.
enum Piece {
    /// An added token.
    Token(u32),
    /// Text that begins behind an added token, or where the whole text begins.
    Begins(NormalizedString),
    /// Text that goes on where the prompt ends.
    GoesOn {
        text: NormalizedString,
        /// Whether its first word begins in the prompt.
        in_word: bool,
    },
}

/// The ids of a response behind its prompt. `going_on` is what [`going_on`] gives.
pub fn response(
    tokenizer: &Tokenizer,
    going_on: Option<&PreTokenizerWrapper>,
    prompt: &str,
    response: &str,
) -> Theirs<Vec<u32>> {
    let pieces = match pieces(tokenizer, prompt, response)? {
        Some(pieces) => pieces,
        // A character of both (an accent at the beginning of the response): the prompt counts as
        // any text that such a character does not change.
        None => match pieces(tokenizer, "q", response)? {
            Some(pieces) => pieces,
            None => return Ok(tokenizer.encode_fast(response, false)?.get_ids().to_vec()),
        },
    };
    let mut ids = Vec::new();
    for piece in pieces {
        let own = tokenizer.get_pre_tokenizer();
        let (text, splitter, in_word) = match piece {
            Piece::Token(id) => {
                ids.push(id);
                continue;
            }
            Piece::Begins(text) => (text, own, false),
            Piece::GoesOn { text, in_word } => (text, going_on.or(own), in_word),
        };
        let mut words: PreTokenizedString = text.into();
        if let Some(splitter) = splitter {
            splitter.pre_tokenize(&mut words)?;
        }
        let in_word = Cell::new(in_word);
        words.tokenize(|word| match (tokenizer.get_model(), in_word.take()) {
            (ModelWrapper::WordPiece(pieces), true) => Ok(within_word(pieces, word.get())),
            (model, _) => model.tokenize(word.get()),
        })?;
        let words = words.get_splits(OffsetReferential::Original, OffsetType::None);
        ids.extend(words.iter().flat_map(|(_, _, tokens)| tokens.iter().flatten()).map(|t| t.id));
    }
    Ok(ids)
}

/// The tokens of the rest of a word, whose beginning is in the prompt.
fn within_word(pieces: &WordPiece, word: &str) -> Vec<Token> {
    let (mut tokens, mut start) = (Vec::new(), 0);
    while start < word.len() {
        let ends = word.char_indices().map(|(at, c)| at + c.len_utf8()).filter(|end| *end > start);
        let longest = ends.rev().find_map(|end| {
            let name = format!("{}{}", pieces.continuing_subword_prefix, &word[start..end]);
            Some((pieces.token_to_id(&name)?, name, end))
        });
        let Some((id, name, end)) = longest else {
            // As at the beginning of a word: it is unknown as a whole.
            let unknown = pieces.token_to_id(&pieces.unk_token);
            return unknown
                .map(|id| Token::new(id, pieces.unk_token.clone(), (0, word.len())))
                .into_iter()
                .collect();
        };
        tokens.push(Token::new(id, name, (start, end)));
        start = end;
    }
    tokens
}

/// What lies behind the boundary in the whole text, normalized. `None` if a character or an added
/// token is of both.
fn pieces(tokenizer: &Tokenizer, prompt: &str, response: &str) -> Theirs<Option<Vec<Piece>>> {
    let whole = [prompt, response].concat();
    let boundary = prompt.len();
    let normalizer = tokenizer.get_normalizer();
    let mut found =
        tokenizer.get_added_vocabulary().extract_and_normalize(normalizer, whole.as_str());
    let of_both = Cell::new(false);
    let mut pieces: Vec<(usize, Piece)> = Vec::new();
    for (_, (start, end), tokens) in found.get_splits(OffsetReferential::Original, OffsetType::Byte)
    {
        let Some(tokens) = tokens else { continue };
        // Spaces that an added token swallows belong to it, on whichever side they lie.
        let own = whole.get(start..end).unwrap_or_default();
        let begins = start + (own.len() - own.trim_start().len());
        let ends = end - (own.len() - own.trim_end().len());
        if begins >= boundary {
            pieces.extend(tokens.iter().map(|Token { id, .. }| (start, Piece::Token(*id))));
        } else if ends > boundary {
            return Ok(None);
        }
    }
    found.split(|_, text| {
        let (start, end) = text.offsets_original();
        if start >= boundary && !text.get().is_empty() {
            pieces.push((start, Piece::Begins(text)));
        } else if end > boundary {
            let inside = boundary - start;
            let sides =
                [text.slice(Range::Original(..inside)), text.slice(Range::Original(inside..))];
            match sides {
                [Some(left), Some(right)]
                    if left.get().len() + right.get().len() == text.get().len() =>
                {
                    let mut words: PreTokenizedString = text.into();
                    if let Some(splitter) = tokenizer.get_pre_tokenizer() {
                        splitter.pre_tokenize(&mut words)?;
                    }
                    let in_word = words
                        .get_splits(OffsetReferential::Original, OffsetType::Byte)
                        .iter()
                        .any(|(_, (start, end), _)| *start < boundary && boundary < *end);
                    pieces.push((boundary, Piece::GoesOn { text: right, in_word }));
                }
                _ => of_both.set(true),
            }
        }
        Ok(Vec::<NormalizedString>::new())
    })?;
    pieces.sort_by_key(|(start, _)| *start);
    Ok((!of_both.get()).then(|| pieces.into_iter().map(|(_, piece)| piece).collect()))
}
