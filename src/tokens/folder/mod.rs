//! The *tokenizer folder*: the files of a model's folder that say how texts become tokens, put
//! together as transformers 5 does. It reads, in this order:
//!
//! 1. `tokenizer_config.json`, and there the class (`classes`);
//! 2. `tokenizer.json`, or else the vocabulary that the class is made from;
//! 3. `special_tokens_map.json` and `added_tokens.json`, unless `tokenizer_config.json` has
//!    `added_tokens_decoder` (`added`).

mod added;
mod classes;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};
use tokenizers::models::ModelWrapper;
use tokenizers::{AddedToken, Tokenizer};

pub use classes::Usual;

use crate::bail_input;
use crate::base::error::Error;
use crate::base::files;
use crate::base::plain::{plain_line, shortened};
use crate::base::wall;
use crate::base::wall::Time;
use crate::say;
use classes::Class;

/// Memory that a tokenizer may take for a byte of its file, and of a text.
pub const OF_A_BYTE: u64 = 512;

/// Vocabularies that transformers converts with code that we lack.
const TO_CONVERT: [&str; 6] = [
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "tiktoken.model",
    "vocab.json",
];

/// What a folder says.
pub struct Found {
    pub tokenizer: Tokenizer,
    /// The file of the vocabulary, for errors.
    pub name: String,
    /// `bos_token` and its like.
    pub special: BTreeMap<String, String>,
    /// Whether the spaces before punctuation are taken out of decoded texts.
    pub cleans_up: bool,
}

/// A setting of `tokenizer_config.json`, if it is there and not null.
fn flag(settings: &Map<String, Value>, key: &str) -> Option<bool> {
    settings.get(key).and_then(Value::as_bool)
}

/// Reads a folder whose model has this `config.json`. Errors (bad input) if there is no tokenizer
/// in it that we can make, and if a file is broken.
pub fn read(dir: &Path, model: &Value, usual: Usual) -> Result<Found> {
    let settings = object(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
    let path = dir.join("tokenizer.json");
    refuse_other_files(dir, &settings)?;
    let json = path.is_file().then(|| files::read(&path)).transpose()?;
    let class = classes::of(&settings, model, usual, json.as_deref());
    if settings.get("auto_map").is_some_and(|map| map["AutoTokenizer"].is_array() || map.is_array())
    {
        say!(
            "warning: {}: \"auto_map\" names a tokenizer with code of its own, which is not run; \
             {} is used",
            plain_line(&dir.join("tokenizer_config.json").display().to_string()),
            class.map_or("tokenizer.json as it stands", |class| class.name)
        );
    }
    let (bytes, file) = match (json, class) {
        (Some(bytes), _) => (bytes, "tokenizer.json"),
        (None, Some(class)) => from_vocabulary(dir, class)?,
        (None, None) => return no_tokenizer(dir),
    };
    let has_json = file == "tokenizer.json";
    let name = dir.join(file).display().to_string();
    let tokens = added::read(dir, &settings, class)?;
    let memory = wall::allowance(bytes.len() as u64, 2 * OF_A_BYTE);
    let made = wall::around(&name, memory, Time::Limited, || {
        let tokenizer = Tokenizer::from_bytes(&bytes)?;
        put_together(tokenizer, class, &settings, &tokens, has_json, &name)
    })?;
    let tokenizer =
        made.map_err(|e| anyhow::Error::from(Error::Input(format!("{name}: {}", why(&*e)))))?;
    let of_bpe = matches!(tokenizer.get_model(), ModelWrapper::BPE(_));
    let anyway = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output";
    let cleans_up = flag(&settings, "clean_up_tokenization_spaces").unwrap_or(false)
        && (!of_bpe || flag(&settings, anyway).unwrap_or(false));
    Ok(Found { tokenizer, name, special: tokens.special(), cleans_up })
}

/// What `tokenizers` gives, which has errors of its own.
type Theirs<T> = tokenizers::Result<T>;

/// The tokenizer of a file as its class makes it, with the tokens that stand elsewhere.
fn put_together(
    mut tokenizer: Tokenizer,
    class: Option<&Class>,
    settings: &Map<String, Value>,
    tokens: &added::Tokens,
    has_json: bool,
    name: &str,
) -> Theirs<Tokenizer> {
    let own: BTreeMap<u32, AddedToken> = tokenizer.get_added_tokens_decoder().into_iter().collect();
    match class {
        Some(class) if class.is_made_from(tokenizer.get_model()) => {
            (class.make)(&mut tokenizer, settings, &|key| tokens.text(key))?;
            tokenizer.add_tokens(tokens.to_add(&own, &[]))?;
            let add = |key: &str, usual: bool| match has_json {
                // Beside a tokenizer.json its own post-processor has the word.
                true => usual,
                false => flag(settings, key).unwrap_or(usual),
            };
            let ends = [
                add("add_bos_token", class.begins).then(|| tokens.text("bos_token")).flatten(),
                add("add_eos_token", false).then(|| tokens.text("eos_token")).flatten(),
            ];
            if class.begins || class.drops_marks || tokenizer.get_post_processor().is_none() {
                added::marks(&mut tokenizer, ends)?;
            }
            if let Some(pair) = class.encloses {
                added::marks(&mut tokenizer, pair.map(|key| tokens.text(key)))?;
            }
            if class.specials_are_plain {
                tokenizer.add_tokens(tokens.plain_specials())?;
            }
        }
        other => {
            if let Some(class) = other {
                say!(
                    "warning: {}: its vocabulary is not that of a {}, which the model's folder \
                     names; it is used as it stands",
                    plain_line(name),
                    class.name
                );
            }
            let contents: Vec<String> = own.values().map(|token| token.content.clone()).collect();
            tokenizer.add_tokens(tokens.to_add(&own, &contents))?;
        }
    }
    if flag(settings, "split_special_tokens").unwrap_or(false) {
        tokenizer.set_encode_special_tokens(true);
    }
    Ok(tokenizer)
}

/// A file that holds an object, if it is there. Errors (bad input) if it holds something else.
fn object(path: &Path) -> Result<Option<Map<String, Value>>> {
    if !path.is_file() {
        return Ok(None);
    }
    match files::read_json(path)? {
        Value::Object(map) => Ok(Some(map)),
        _ => bail_input!("{}: no JSON object", path.display()),
    }
}

/// Errors (bad input) if the folder says that its tokenizer is in other files.
fn refuse_other_files(dir: &Path, settings: &Map<String, Value>) -> Result<()> {
    let listed = settings.get("fast_tokenizer_files").and_then(Value::as_array);
    let other = listed.into_iter().flatten().filter_map(Value::as_str);
    if let Some(other) = other.into_iter().find(|name| *name != "tokenizer.json") {
        bail_input!(
            "{}: \"fast_tokenizer_files\" names {other:?}, which is not implemented; save the \
             tokenizer again: {}",
            dir.join("tokenizer_config.json").display(),
            save_again(dir)
        );
    }
    Ok(())
}

/// The line of Python that writes a `tokenizer.json` into a folder.
fn save_again(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "python -c \"from transformers import AutoTokenizer; \
         AutoTokenizer.from_pretrained('{dir}').save_pretrained('{dir}')\""
    )
}

fn no_tokenizer<T>(dir: &Path) -> Result<T> {
    let found = TO_CONVERT.iter().find(|name| dir.join(name).is_file());
    match found {
        Some(name) => bail_input!(
            "{}: no tokenizer.json; {name} alone is not read; convert it with transformers: {}",
            dir.display(),
            save_again(dir)
        ),
        None => bail_input!(
            "{}: no tokenizer.json; save the tokenizer into this folder with transformers",
            dir.display()
        ),
    }
}

/// The bytes of a `tokenizer.json` with the vocabulary that a class is made from, and the file of
/// that vocabulary.
fn from_vocabulary(dir: &Path, class: &Class) -> Result<(Vec<u8>, &'static str)> {
    let (model, file) = match class.model {
        "BPE" if class.vocabulary && dir.join("vocab.json").is_file() => {
            (byte_pairs(dir)?, "vocab.json")
        }
        "WordPiece" if dir.join("vocab.txt").is_file() => (word_pieces(dir)?, "vocab.txt"),
        _ => return no_tokenizer(dir),
    };
    Ok((serde_json::to_vec(&json!({ "version": "1.0", "model": model }))?, file))
}

/// The model of a tokenizer: `vocab.json` and `merges.txt`, which GPT-2 began with.
pub fn byte_pairs(dir: &Path) -> Result<Value> {
    let vocab = files::read_json(&dir.join("vocab.json"))?;
    let merges = files::read_text(&dir.join("merges.txt"))?;
    let merges: Vec<&str> =
        merges.lines().filter(|line| !line.is_empty() && !line.starts_with("#version")).collect();
    Ok(json!({ "type": "BPE", "vocab": vocab, "merges": merges }))
}

/// The model of a tokenizer: `vocab.txt`, which BERT began with.
pub fn word_pieces(dir: &Path) -> Result<Value> {
    let text = files::read_text(&dir.join("vocab.txt"))?;
    let vocab: Value = text
        .lines()
        .enumerate()
        .map(|(id, word)| (word.trim_end().to_owned(), Value::from(id)))
        .collect();
    Ok(json!({
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100, "vocab": vocab,
    }))
}

/// Why a tokenizer fails, in a line that can be read.
pub fn why(error: &(dyn std::error::Error + Send + Sync)) -> String {
    let text = error.to_string();
    match text.contains("did not match any variant of untagged enum") {
        true => "a part of it is of no known kind or lacks something".into(),
        false => shortened(&text, 400).into_owned(),
    }
}
