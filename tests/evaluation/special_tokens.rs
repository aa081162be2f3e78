//! Special tokens where a command meets them: lm-eval's (`scripts/make_golden_lm_eval.py`), those
//! beyond the vocabulary, and the end behind a response.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::command::irepair;
use crate::support::files::{Folder, edit_json};
use crate::support::golden::{self, number};
use crate::support::tensors::close;

/// A copy of a golden model in which the files of a variant differ.
fn model(folder: &Folder, variant: &Value) -> PathBuf {
    let model = folder.model(variant["checkpoint"].as_str().expect("a checkpoint"));
    for (file, key) in [("tokenizer.json", "tokenizer"), ("config.json", "model")] {
        edit_json(model.join(file), |json| {
            let own = variant[key].as_object().expect("what differs");
            own.iter().for_each(|(key, value)| json[key] = value.clone());
        });
    }
    if !variant["config"].is_null() {
        folder.write("model/tokenizer_config.json", variant["config"].to_string());
    }
    model
}

#[test]
fn lm_evals_special_tokens_are_its_own() {
    let golden = golden::json("eval/special.json");
    let texts = |key: &str, name: &str| -> Vec<Value> {
        let texts = golden[key].as_array().expect("texts");
        texts.iter().map(|text| json!({ name: text })).collect()
    };
    for variant in golden["variants"].as_array().expect("variants") {
        let name = variant["name"].as_str().expect("a name");
        let folder = Folder::new();
        let model = model(&folder, variant);
        irepair("eval --ppl-protocol lm-eval -q")
            .with("--model", model)
            .with("--lambada", folder.write_rows("passages.jsonl", &texts("passages", "text")))
            .with("--ppl", folder.write_rows("pages.jsonl", &texts("pages", "page")))
            .with("--out", folder.path("out"))
            .ok();
        let rows = folder.rows("out/0-lambada_openai.jsonl");
        let expected = variant["lambada"].as_array().expect("rows");
        assert_eq!(rows.len(), expected.len(), "{name}");
        for (row, expected) in rows.iter().zip(expected) {
            assert_eq!(row["correct"], expected["correct"], "{name}: {row}");
            close(number(&row["logp"]), number(&expected["logp"]), 1e-4, name);
        }
        let rows = folder.rows("out/0-ppl-pages.jsonl-lm-eval.jsonl");
        let expected = variant["nats"].as_array().expect("nats");
        assert_eq!(rows.len(), expected.len(), "{name}");
        for (row, expected) in rows.iter().zip(expected) {
            close(number(&row["nats"]), number(expected), 1e-4, name);
        }
    }
}

/// lm-eval puts a token of the tokenizer before a text; without one there is nothing to measure by.
#[test]
fn a_tokenizer_that_names_no_token_to_begin_with_is_refused() {
    let folder = Folder::new();
    let model = folder.model("llama");
    folder.write("model/tokenizer_config.json", "{}");
    let passages = folder.write_rows("passages.jsonl", &[json!({"text": "The dog went home"})]);
    irepair("eval -q")
        .with("--model", model)
        .with("--lambada", passages)
        .with("--out", folder.path("out"))
        .fails(3, &["tokenizer_config.json: lm-eval puts", "bos_token or eos_token"]);
}

/// A padding token beyond the model (Code Llama's) is in no text. Where a text has it, that text is
/// refused.
#[test]
fn a_token_beyond_the_vocabulary_matters_where_a_text_has_it() {
    let folder = Folder::new();
    let model = folder.model("llama");
    let size = golden::json("llama/config.json")["vocab_size"].as_u64().expect("a size");
    edit_json(model.join("tokenizer.json"), |json| {
        json["model"]["vocab"]["[PAD]"] = size.into();
        let pad = json!({"id": size, "content": "[PAD]", "single_word": false, "lstrip": false,
                         "rstrip": false, "normalized": false, "special": true});
        json["added_tokens"].as_array_mut().expect("tokens").push(pad);
    });
    edit_json(model.join("tokenizer_config.json"), |json| json["pad_token"] = "[PAD]".into());
    let generate = |name: &str, prompt: &str| {
        irepair("generate --greedy --max-new-tokens 3 -q")
            .with("--model", &model)
            .with("--prompts", folder.write_rows("prompts.jsonl", &[json!({"prompt": prompt})]))
            .with("--out", folder.path(name))
    };
    generate("texts.jsonl", "The dog").ok();
    let own = irepair("generate --greedy --max-new-tokens 3 -q")
        .with("--model", golden::path("llama"))
        .with("--prompts", folder.path("prompts.jsonl"))
        .with("--out", folder.path("own.jsonl"));
    own.ok();
    assert_eq!(folder.read("texts.jsonl"), folder.read("own.jsonl"));
    let words = format!("it makes token \"[PAD]\" with id {size} of a text");
    generate("refused.jsonl", "The [PAD] dog").fails(3, &["prompts.jsonl:1", &words]);
}

/// `--boundary trl` is what `apart` is on responses with the end behind them, where no token lies
/// across the boundary. What a tokenizer puts behind a text stands between no prompt and response.
#[test]
fn the_boundary_of_a_repair() {
    let folder = Folder::new();
    let model = folder.model("llama");
    let end = golden::json("llama/tokenizer_config.json")["eos_token"].clone();
    let end = end.as_str().expect("an end").to_owned();
    let rows = |name: &str, end: &str| {
        let row = |n: usize| {
            json!({"prompt": format!("Tell me about number {n}:"),
                   "chosen": format!(" it is a kind man{end}"),
                   "rejected": format!(" nobody cared about it{end}")})
        };
        folder.write_rows(name, &(0..8).map(row).collect::<Vec<_>>())
    };
    let (plain, ended) = (rows("plain.jsonl", ""), rows("ended.jsonl", &end));
    let before = |data: &PathBuf, flags: &str| {
        let json = irepair("repair --max-steps 1 --batch-size 2 --max-length 60 -q")
            .and("--max-prompt-length 50")
            .with("--normal", golden::path("normal.jsonl"))
            .and(flags)
            .with("--model", &model)
            .with("--data", data)
            .and("--overwrite --json")
            .with("--out", folder.path("out"))
            .json();
        number(&json["before"]["nll_chosen"])
    };
    let (apart, trl) = (before(&plain, ""), before(&plain, "--boundary trl"));
    assert_eq!(trl, before(&ended, "--boundary apart"));
    assert_eq!(trl, before(&ended, "--boundary trl"), "an end that is there is not put again");
    assert_ne!(apart, trl);
    edit_json(model.join("tokenizer.json"), |json| {
        let own = &mut json["post_processor"]["single"];
        let mark = own[0].clone();
        own.as_array_mut().expect("a template").push(mark);
    });
    assert_eq!(before(&plain, ""), apart, "an end that the tokenizer puts behind texts");
    assert_eq!(folder.json("out/irepair/run.json")["settings"]["boundary"], "apart");
    irepair("repair --method star --boundary trl --dry-run").fails(2, &["--boundary"]);
}
