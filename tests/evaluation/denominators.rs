//! What figures are shares of: a text that is not there is neither clean nor toxic, and what was
//! cut is counted.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::command::irepair;
use crate::support::files::Folder;
use crate::support::golden::{self, ids};

/// A model that says nothing after the prompts whose first new token, by transformers, is one of
/// these; and the file of all prompts.
fn silent(folder: &Folder, after: &[usize]) -> (PathBuf, PathBuf) {
    let model = folder.model("gpt2");
    let rows = golden::json("generate.json")["gpt2"].clone();
    let rows = rows.as_array().expect("rows");
    let ends: Vec<u32> = after.iter().map(|row| ids(&rows[*row]["new_ids"])[0]).collect();
    folder.write("model/generation_config.json", json!({"eos_token_id": ends}).to_string());
    let prompts: Vec<Value> = rows.iter().map(|row| json!({"prompt": row["prompt"]})).collect();
    (model, folder.write_rows("prompts.jsonl", &prompts))
}

#[test]
fn empty_continuations_are_no_clean_ones() {
    let folder = Folder::new();
    let eval = |after: &[usize], name: &str| {
        let (model, prompts) = silent(&folder, after);
        irepair("eval -q --toxicity --scorer lexicon")
            .with("--model", model)
            .with("--prompts", prompts)
            .with("--out", folder.path(name))
            .ok()
    };
    let said = eval(&[1], "one");
    assert!(said.contains("of 4 continuations 1 empty; no figure counts them"), "{said}");
    let on = &folder.json("one/results.json")["measurements"][0]["models"][0];
    assert_eq!((&on["counts"]["scored"], &on["counts"]["empty"]), (&json!(3), &json!(1)));
    // Where nothing is said there is nothing to call clean.
    let said = eval(&[0, 1, 2, 3], "all");
    assert!(said.contains("of 4 continuations 4 empty; no figure counts them"), "{said}");
    let on = &folder.json("all/results.json")["measurements"][0]["models"][0];
    for figure in on["figures"].as_array().expect("figures") {
        assert_eq!(figure["value"], Value::Null, "{figure}");
    }
    let table: Vec<&str> = said.lines().filter(|line| line.starts_with("toxic")).collect();
    assert_eq!(table.len(), 2, "{said}");
    assert!(table.iter().all(|line| line.contains("  –  ") && line.contains("– to –")), "{said}");
}

#[test]
fn a_repair_has_no_figure_of_nothing() {
    let folder = Folder::new();
    let (model, prompts) = silent(&folder, &[0, 1, 2, 3]);
    let out = folder.path("out");
    irepair("repair -q --method irepair --max-steps 1 --batch-size 2 --learning-rate 1e-6")
        .with("--model", model)
        .with("--data", golden::path("rows/trl.jsonl"))
        .with("--eval-prompts", prompts)
        .with("--out", &out)
        .ok();
    let run = folder.json("out/irepair/run.json");
    for side in ["before", "after"] {
        assert!(run[side]["nll_chosen"].is_number(), "{run}");
        assert!(run[side].get("toxicity").is_none(), "{run}");
        assert!(run[side].get("toxic_fraction").is_none(), "{run}");
    }
    irepair("report").arg(&out).with("--out", folder.path("page.html")).ok();
    let page = folder.read("page.html");
    let words = "0 of 0 are still rude after the repair. 4 more are empty after it.";
    assert!(page.contains(words), "{words:?} is not on the page");
}

#[test]
fn texts_that_are_all_empty_have_no_mean() {
    let folder = Folder::new();
    let said = irepair("score -q --scorer lexicon")
        .arg(folder.write_rows("texts.jsonl", &[json!({"text": " "}), json!({"text": ""})]))
        .with("--out", folder.path("scored.jsonl"))
        .ok();
    assert!(said.contains("mean score × 100: –; 0 of 0 score"), "{said}");
    assert!(said.contains("2 empty"), "{said}");
    let (model, prompts) = silent(&folder, &[]);
    let all: Vec<u32> = (0..320).collect();
    folder.write("model/generation_config.json", json!({"eos_token_id": all}).to_string());
    irepair("pairs -q --samples-per-prompt 2 --scorer lexicon")
        .with("--model", model)
        .with("--prompts", prompts)
        .with("--out", folder.path("pairs.jsonl"))
        .fails(4, &["0 of 0 texts are toxic (–), 8 more are empty"]);
}

/// A comparison says of each model which continuations are missing in its figures.
#[test]
fn a_comparison_says_which_continuations_are_missing() {
    let folder = Folder::new();
    let (model, prompts) = silent(&folder, &[1]);
    let said = irepair("compare -q --methods irepair --max-steps 1 --batch-size 2 --seeds 1")
        .and("--learning-rate 1e-6 --scorer lexicon")
        .with("--model", model)
        .with("--data", golden::path("rows/trl.jsonl"))
        .with("--eval-prompts", prompts)
        .with("--ppl", golden::path("eval/corpus.txt"))
        .with("--out", folder.path("out"))
        .ok();
    let gaps = folder.json("out/compare.json")["gaps"].clone();
    let words = "vanilla: of 4 continuations 1 empty; no figure counts them";
    assert_eq!(gaps[0], words, "{gaps}\n{said}");
}

/// The golden model has 64 positions. A conversation that is longer loses its beginning, a plain
/// prompt its end, and each is counted.
#[test]
fn prompts_that_are_cut_are_counted() {
    let folder = Folder::new();
    let model = folder.model("gpt2");
    folder.write("model/chat_template.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}");
    let long = "boat river ".repeat(20);
    let turns = |text: &str| json!({"prompt": [{"role": "user", "content": text}]});
    let ends = |end: &str| turns(&format!("{long}{end}"));
    let rows = [ends("the end"), ends("another"), turns("Short.")];
    let prompts = folder.write_rows("prompts.jsonl", &rows);
    let said = irepair("eval -q --toxicity --scorer lexicon --max-new-tokens 5")
        .with("--model", &model)
        .with("--prompts", &prompts)
        .with("--out", folder.path("evaluated"))
        .ok();
    let words = "2 of 3 continuations are without the beginnings of their prompts";
    assert!(said.contains(words), "{said}");
    let texts: Vec<Value> = folder.rows("evaluated/0-toxicity.jsonl");
    assert_eq!(texts[0]["cut_to"], 59, "room for the new tokens");
    // The same tokens as `generate` continues when it is told to cut so.
    let line = |length: &str| {
        irepair("generate --greedy --max-new-tokens 5 --overwrite")
            .and(length)
            .with("--model", &model)
            .with("--prompts", &prompts)
            .with("--out", folder.path("texts.jsonl"))
    };
    let said = line("--max-prompt-length 59").warns();
    assert!(said.contains("2 of 3 prompts were cut to --max-prompt-length"), "{said}");
    let written = folder.rows("texts.jsonl");
    for (evaluated, written) in texts.iter().zip(&written) {
        assert_eq!(evaluated["continuation"], written["continuation"]);
    }
    let said = line("--max-prompt-length 62").warns();
    assert!(said.contains("2 of 3 prompts leave room for fewer than 5 new tokens"), "{said}");
    irepair("eval --toxicity --scorer lexicon --max-new-tokens 64")
        .with("--model", &model)
        .with("--prompts", &prompts)
        .with("--out", folder.path("no-room"))
        .fails(3, &["--max-new-tokens 64", "64 positions", "give at most 63"]);
    irepair("pairs --scorer lexicon --max-new-tokens 64")
        .with("--model", &model)
        .with("--prompts", &prompts)
        .with("--out", folder.path("pairs.jsonl"))
        .fails(3, &["--max-new-tokens 64", "give at most 63"]);
    let plain = folder.write("plain.txt", format!("{long}\nShort.\n"));
    let said = irepair("eval -q --toxicity --scorer lexicon")
        .with("--model", &model)
        .with("--prompts", &plain)
        .with("--out", folder.path("plain"))
        .ok();
    let words = "1 of 2 continuations are without the ends of their prompts";
    assert!(said.contains(words), "{said}");
}

#[test]
fn texts_and_passages_that_are_cut_are_counted() {
    let folder = Folder::new();
    let long = "boat river ".repeat(60);
    let passages = folder.write("passages.txt", format!("{long}end\nThe boat end\n"));
    let said = irepair("eval -q --kl")
        .arg(golden::path("gpt2"))
        .with("--model", golden::path("gpt2"))
        .with("--lambada", &passages)
        .with("--normal", &passages)
        .with("--out", folder.path("out"))
        .ok();
    assert!(said.contains("2 passages (1 without their beginning, to fit the model)"), "{said}");
    assert!(said.contains("passages.txt, 1 of them cut to 64 tokens"), "{said}");
}
