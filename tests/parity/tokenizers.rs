//! The files of a tokenizer's folder give the ids, the texts and the special tokens that they give
//! in transformers (`scripts/make_golden_tokenizers.py`).

use serde_json::json;

use crate::support::files::{Folder, bytes};
use crate::support::golden::{self, ids};
use crate::support::tokenizer::{folder, open};

#[test]
fn folders_give_what_transformers_gives() {
    let golden = golden::json("tokenizers/cases.json");
    let texts = golden["texts"].as_array().expect("texts");
    let cases = golden["cases"].as_array().expect("cases");
    assert!(cases.len() > 40, "{} folders", cases.len());
    let mut wrong = Vec::new();
    for case in cases {
        let name = &case["name"];
        let encoder = match open(&folder(case), &case["model"]) {
            Ok(encoder) => encoder,
            Err(error) => {
                wrong.push(format!("{name}: {error:#}"));
                continue;
            }
        };
        for (index, text) in texts.iter().enumerate() {
            let text = text.as_str().expect("a text");
            let plain = ids(&case["plain"][index]);
            for (expected, whole) in [(&plain, false), (&ids(&case["ids"][index]), true)] {
                let found = encoder.encode(text, whole).expect("ids");
                if found != *expected {
                    wrong.push(format!("{name}: {text:?} {whole}: {found:?} not {expected:?}"));
                }
            }
            let decoded = encoder.decode(&plain).expect("a text");
            if case["decoded"][index] != decoded {
                wrong.push(format!("{name}: {decoded:?} not {}", case["decoded"][index]));
            }
        }
        for (token, text) in case["special"].as_object().expect("special tokens") {
            if encoder.special(token) != text.as_str() {
                wrong.push(format!("{name}: {token} {:?} not {text}", encoder.special(token)));
            }
        }
        let all = case["special"].as_object().expect("special tokens");
        let named = ["bos_token", "eos_token", "unk_token", "pad_token"];
        for token in named.into_iter().filter(|token| !all.contains_key(*token)) {
            if let Some(text) = encoder.special(token) {
                wrong.push(format!("{name}: {token} {text:?}, which transformers lacks"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// What can't be made is refused with the line of Python that converts it.
#[test]
fn other_vocabularies_are_refused_with_what_converts_them() {
    let model = json!({"model_type": "llama"});
    let refused = |folder: &Folder| {
        let error = open(folder, &model).err().expect("refused");
        format!("{error:#}")
    };
    for name in ["tokenizer.model", "spiece.model", "tekken.json", "vocab.json"] {
        let folder = Folder::new();
        folder.write(name, "{}");
        let error = refused(&folder);
        let path = folder.root().display().to_string();
        let words = format!(
            "no tokenizer.json; {name} alone is not read; convert it with transformers: python -c \
             \"from transformers import AutoTokenizer; \
             AutoTokenizer.from_pretrained('{path}').save_pretrained('{path}')\""
        );
        assert!(error.contains(&words), "{error}");
    }
    let folder = Folder::new();
    assert!(refused(&folder).contains("no tokenizer.json; save the tokenizer into this folder"));
    folder.write("tokenizer.json", bytes(golden::path("llama/tokenizer.json")));
    let listed = json!({"fast_tokenizer_files": ["tokenizer.json", "tokenizer.4.0.0.json"]});
    folder.write("tokenizer_config.json", listed.to_string());
    let error = refused(&folder);
    assert!(error.contains("\"fast_tokenizer_files\" names \"tokenizer.4.0.0.json\""), "{error}");
    folder.write("tokenizer_config.json", json!({"added_tokens_decoder": {"x": {}}}).to_string());
    let error = refused(&folder);
    assert!(error.contains("\"added_tokens_decoder\": x is no token with an id"), "{error}");
    folder.write("tokenizer_config.json", "{}");
    folder.write("added_tokens.json", json!({"<x>": -1}).to_string());
    assert!(refused(&folder).contains("added_tokens.json: the id of \"<x>\" is no number"));
    folder.write("added_tokens.json", "[]");
    assert!(refused(&folder).contains("added_tokens.json: no JSON object"));
}
