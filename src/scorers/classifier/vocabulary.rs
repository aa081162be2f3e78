//! A classifier's tokenizer: `tokenizer.json`, or the same made of the files that older folders have instead of it.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use crate::bail_input;
use crate::base::error::Error;
use crate::tokens::Encoder;

/// What a tokenizer is made of where there is no `tokenizer.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vocabulary {
    /// `vocab.txt`: BERT's words and their pieces.
    WordPiece,
    /// `vocab.json` and `merges.txt`: GPT-2's and RoBERTa's merges of bytes.
    ByteLevel,
    /// There must be a `tokenizer.json`.
    None,
}

/// The tokenizer of a folder. Errors (bad input) if there is none, or it is another model's.
pub fn open(dir: &Path, vocabulary: Vocabulary, size: usize) -> Result<Encoder> {
    let path = dir.join("tokenizer.json");
    if path.is_file() {
        return Encoder::from_file(&path, size);
    }
    let settings = settings(dir)?;
    let (file, made) = match vocabulary {
        Vocabulary::WordPiece if dir.join("vocab.txt").is_file() => {
            ("vocab.txt", word_piece(dir, &settings)?)
        }
        Vocabulary::ByteLevel if dir.join("vocab.json").is_file() => {
            ("vocab.json", byte_level(dir, &settings)?)
        }
        _ => bail_input!(
            "{}: no tokenizer.json; write it with transformers: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
            dir.display()
        ),
    };
    Encoder::from_bytes(&serde_json::to_vec(&made)?, &dir.join(file).display().to_string(), size)
}

/// Tokens that texts are cut to: the model's positions, or what `tokenizer_config.json` says, if that is less.
pub fn longest(dir: &Path, positions: usize) -> Result<usize> {
    let said =
        settings(dir)?.get("model_max_length").and_then(Value::as_f64).unwrap_or(f64::INFINITY);
    // What is not said is written as 1e30.
    let longest = if said < positions as f64 { said.max(0.0) as usize } else { positions };
    if longest < 3 {
        bail_input!(
            "{}: a text of {longest} tokens holds no word; see model_max_length, max_position_embeddings",
            dir.display()
        );
    }
    Ok(longest)
}

/// `tokenizer_config.json`; null if there is none.
fn settings(dir: &Path) -> Result<Value> {
    let path = dir.join("tokenizer_config.json");
    if path.is_file() { read_json(&path) } else { Ok(Value::Null) }
}

fn read(path: &Path) -> Result<String> {
    Ok(std::fs::read_to_string(path)
        .map_err(|e| Error::Input(format!("{}: {e}", path.display())))?)
}

fn read_json(path: &Path) -> Result<Value> {
    Ok(serde_json::from_str(&read(path)?)
        .map_err(|e| Error::Input(format!("{}: broken JSON: {e}", path.display())))?)
}

/// What `transformers.convert_slow_tokenizer` makes of BERT's files.
fn word_piece(dir: &Path, settings: &Value) -> Result<Value> {
    let path = dir.join("vocab.txt");
    let text = read(&path)?;
    let vocab: Value =
        text.lines().enumerate().map(|(id, word)| (word.to_owned(), Value::from(id))).collect();
    let special = special(
        &vocab,
        &path,
        ["[CLS]", "[SEP]"],
        &["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    )?;
    let lowercase = settings.get("do_lower_case").and_then(Value::as_bool).unwrap_or(true);
    let chinese = settings.get("tokenize_chinese_chars").and_then(Value::as_bool).unwrap_or(true);
    Ok(json!({
        "added_tokens": special.added,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": chinese, "lowercase": lowercase,
            "strip_accents": settings.get("strip_accents").and_then(Value::as_bool),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "cls": special.begin, "sep": special.end},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab,
        },
    }))
}

/// What `transformers.convert_slow_tokenizer` makes of RoBERTa's files.
fn byte_level(dir: &Path, settings: &Value) -> Result<Value> {
    let path = dir.join("vocab.json");
    let vocab = read_json(&path)?;
    let special =
        special(&vocab, &path, ["<s>", "</s>"], &["<s>", "<pad>", "</s>", "<unk>", "<mask>"])?;
    let space = settings.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(false);
    let merges = read(&dir.join("merges.txt"))?;
    let merges: Vec<&str> =
        merges.lines().filter(|line| !line.is_empty() && !line.starts_with("#version")).collect();
    Ok(json!({
        "added_tokens": special.added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": true},
        "post_processor": {
            "type": "RobertaProcessing", "cls": special.begin, "sep": special.end, "trim_offsets": true,
            "add_prefix_space": space,
        },
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }))
}

/// The special tokens of a vocabulary as `tokenizer.json` writes them.
struct Special {
    added: Vec<Value>,
    begin: Value,
    end: Value,
}

fn special(vocab: &Value, path: &Path, [begin, end]: [&str; 2], names: &[&str]) -> Result<Special> {
    let id = |name: &str| vocab.get(name).and_then(Value::as_u64);
    let with_id = |name: &str| -> Result<Value> {
        match id(name) {
            Some(id) => Ok(json!([name, id])),
            None => bail_input!("{}: no token {name}", path.display()),
        }
    };
    let added = names.iter().filter_map(|name| {
        // The mask takes the space before it.
        Some(json!({
            "id": id(name)?, "content": name, "single_word": false, "lstrip": *name == "<mask>", "rstrip": false,
            "normalized": false, "special": true,
        }))
    });
    Ok(Special { added: added.collect(), begin: with_id(begin)?, end: with_id(end)? })
}
