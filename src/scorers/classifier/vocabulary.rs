//! The *vocabulary* of a classifier: its tokenizer, from `tokenizer.json` or from the files that
//! older folders have instead.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use crate::bail_input;
use crate::base::files::read_json;
use crate::tokens::{Encoder, folder};

/// The files that a tokenizer is made from where there is no `tokenizer.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vocabulary {
    /// `vocab.txt`: the words and pieces of words of BERT.
    WordPiece,
    /// `vocab.json` and `merges.txt`: the merges of bytes of GPT-2 and RoBERTa.
    ByteLevel,
    /// None: there must be a `tokenizer.json`.
    None,
}

/// The tokenizer of a folder. Errors (bad input) if there is none, or if it is that of another
/// model.
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
            "{}: no tokenizer.json; write it with transformers: \
             AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
            dir.display()
        ),
    };
    Encoder::from_bytes(&serde_json::to_vec(&made)?, &dir.join(file).display().to_string(), size)
}

/// The number of tokens that texts are cut to: the positions of the model, or fewer where
/// `tokenizer_config.json` says so.
pub fn longest(dir: &Path, positions: usize) -> Result<usize> {
    let said =
        settings(dir)?.get("model_max_length").and_then(Value::as_f64).unwrap_or(f64::INFINITY);
    // Tokenizers without a limit have 1e30 there.
    let longest = if said < positions as f64 { said.max(0.0) as usize } else { positions };
    if longest < 3 {
        bail_input!(
            "{}: a text of {longest} tokens holds no word; see model_max_length and \
             max_position_embeddings",
            dir.display()
        );
    }
    Ok(longest)
}

/// `tokenizer_config.json`, or null if there is none.
fn settings(dir: &Path) -> Result<Value> {
    let path = dir.join("tokenizer_config.json");
    if path.is_file() { read_json(&path) } else { Ok(Value::Null) }
}

/// The tokenizer that `transformers.convert_slow_tokenizer` makes from the files of BERT.
fn word_piece(dir: &Path, settings: &Value) -> Result<Value> {
    let path = dir.join("vocab.txt");
    let model = folder::word_pieces(dir)?;
    let special = special(
        &model["vocab"],
        &path,
        ["[CLS]", "[SEP]"],
        &["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    )?;
    let lowercase = settings.get("do_lower_case").and_then(Value::as_bool).unwrap_or(true);
    let chinese = settings.get("tokenize_chinese_chars").and_then(Value::as_bool).unwrap_or(true);
    Ok(json!({
        "added_tokens": special.added,
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": chinese,
            "lowercase": lowercase,
            "strip_accents": settings.get("strip_accents").and_then(Value::as_bool),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "cls": special.begin, "sep": special.end},
        "model": model,
    }))
}

/// The tokenizer that `transformers.convert_slow_tokenizer` makes from the files of RoBERTa.
fn byte_level(dir: &Path, settings: &Value) -> Result<Value> {
    let path = dir.join("vocab.json");
    let model = folder::byte_pairs(dir)?;
    let special = special(
        &model["vocab"],
        &path,
        ["<s>", "</s>"],
        &["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
    )?;
    let space = settings.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(false);
    Ok(json!({
        "added_tokens": special.added,
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": true,
        },
        "post_processor": {
            "type": "RobertaProcessing", "cls": special.begin, "sep": special.end,
            "trim_offsets": true, "add_prefix_space": space,
        },
        "model": model,
    }))
}

/// The special tokens of a vocabulary, as `tokenizer.json` has them.
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
        // A mask takes the space before it with it (`lstrip`).
        Some(json!({
            "id": id(name)?, "content": name, "single_word": false, "lstrip": *name == "<mask>",
            "rstrip": false, "normalized": false, "special": true,
        }))
    });
    Ok(Special { added: added.collect(), begin: with_id(begin)?, end: with_id(end)? })
}
