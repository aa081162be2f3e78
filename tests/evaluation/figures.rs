//! `eval` and `score`: the figures are those of others' code, and parts make the whole.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::command::irepair;
use crate::support::files::{self, Folder, bytes, demo_prompts, edit_json, read};
use crate::support::golden::{self, number};
use crate::support::tensors::close;

fn figure<'a>(results: &'a Value, task: &str, id: &str) -> &'a Value {
    let measurements = results["measurements"].as_array().expect("measurements");
    let measurement = measurements.iter().find(|m| m["task"] == task).expect(task);
    let figures = measurement["models"][0]["figures"].as_array().expect("figures");
    &figures.iter().find(|f| f["id"] == id).expect(id)["value"]
}

/// The expected figures are from scripts/make_golden_eval.py: transformers and lm-eval's own code.
#[test]
fn figures_are_those_of_transformers_and_lm_eval() {
    let folder = Folder::new();
    let expected = golden::json("eval/expected.json");
    irepair("eval -q")
        .with("--model", golden::path("gpt2"))
        .with("--ppl", golden::path("eval/corpus.txt"))
        .with("--lambada", golden::path("eval/passages.jsonl"))
        .with("--kl", golden::path("gpt2-relu-bare"))
        .with("--normal", golden::path("normal.jsonl"))
        .with("--out", folder.path("out"))
        .ok();
    let results = folder.json("out/results.json");
    let perplexity = number(figure(&results, "ppl-corpus.txt", "ppl"));
    close(perplexity, number(&expected["paper"]["perplexity"]), 1e-4, "perplexity");
    let rows = folder.rows("out/0-ppl-corpus.txt.jsonl");
    let tokens: u64 = rows.iter().filter_map(|r| r["tokens"].as_u64()).sum();
    assert_eq!(tokens, expected["paper"]["tokens"]);
    same_rows(&folder.rows("out/0-lambada_openai.jsonl"), &expected["lambada"]);
    same_rows(&folder.rows("out/0-kl.jsonl"), &expected["kl"]);
    irepair("eval --ppl-protocol lm-eval -q")
        .with("--model", golden::path("gpt2"))
        .with("--ppl", golden::path("eval/pages.jsonl"))
        .with("--out", folder.path("rolling"))
        .ok();
    same_rows(&folder.rows("rolling/0-ppl-pages.jsonl-lm-eval.jsonl"), &expected["lm_eval"]);
}

/// The rows' counts are equal, and their nats agree to 1e-4.
#[track_caller]
fn same_rows(rows: &[Value], expected: &Value) {
    let expected = expected.as_array().expect("rows");
    assert_eq!(rows.len(), expected.len());
    for (index, (row, want)) in rows.iter().zip(expected).enumerate() {
        for (key, want) in want.as_object().expect("row") {
            match want.as_u64() {
                Some(count) => assert_eq!(row[key].as_u64(), Some(count), "row {index}: {key}"),
                None => close(number(&row[key]), number(want), 1e-4, key),
            }
        }
    }
}

/// The parts' rows one after another are the whole's, byte for byte, and so are the merged figures.
#[test]
fn parts_make_the_whole() {
    let folder = Folder::new();
    let whole = folder.path("whole");
    let eval = |out: &Path| {
        irepair("eval --toxicity rtp --limit 7 --samples 3 --max-new-tokens 8 -q")
            .with("--prompts", demo_prompts())
            .with("--lambada", golden::path("eval/passages.jsonl"))
            .with("--out", out)
    };
    eval(&whole).ok();
    let parts: Vec<PathBuf> = ["0/3", "1/3", "2/3"]
        .iter()
        .map(|shard| {
            let out = folder.path(shard.replace('/', "-"));
            eval(&out).with("--shard", shard).ok();
            out
        })
        .collect();
    let merge = |parts: &[&PathBuf], out: &str| {
        let line = irepair("eval --merge");
        parts.iter().fold(line, |line, part| line.arg(part)).with("--out", folder.path(out))
    };
    // In any order.
    let [a, b, c] = [&parts[0], &parts[1], &parts[2]];
    merge(&[c, a, b], "merged").and("-q").ok();
    for file in ["0-toxicity.jsonl", "0-lambada_openai.jsonl", "results.csv"] {
        assert!(bytes(folder.path("merged").join(file)) == bytes(whole.join(file)), "{file}");
    }
    let but_its_id = |dir: &Path| {
        let mut results = files::json(dir.join("results.json"));
        results["run_id"].take();
        results
    };
    assert_eq!(but_its_id(&folder.path("merged")), but_its_id(&whole));
    merge(&[a, c], "again").fails(3, &["part 1/3 is missing"]);
    merge(&[a, a, b, c], "again").fails(3, &["both part 0/3"]);
    let foreign = folder.path("foreign");
    eval(&foreign).and("--shard 2/3 --seed 1").ok();
    merge(&[a, b, &foreign], "again").fails(3, &["foreign", "tasks"]);
    merge(&[&folder.path("nothing")], "again").fails(3, &["no finished part"]);
    // Rows that were lost on the way.
    let mut files = parts.iter().map(|part| part.join("0-toxicity.jsonl"));
    let rows = files.find(|rows| !bytes(rows).is_empty()).expect("a part with rows");
    let all_of_it = bytes(&rows);
    let first = all_of_it.iter().position(|byte| *byte == b'\n').expect("a line") + 1;
    std::fs::write(&rows, &all_of_it[first..]).expect("writes");
    merge(&[a, b, c], "again").fails(3, &["0-toxicity.jsonl", "changed or damaged"]);
    std::fs::write(&rows, &all_of_it).expect("writes");
    // The same weights with other files beside them.
    let other = folder.model("gpt2");
    let of_other = |shard: &str| {
        let out = folder.path(format!("other-{shard}"));
        irepair("eval -q --toxicity rtp --samples 1 --max-new-tokens 4")
            .with("--shard", format!("{shard}/2"))
            .with("--model", &other)
            .with("--prompts", folder.few_prompts())
            .with("--out", &out)
            .ok();
        out
    };
    let one = of_other("0");
    files::edit_json(other.join("generation_config.json"), |config| {
        config["eos_token_id"] = 1.into();
    });
    merge(&[&one, &of_other("1")], "again").fails(3, &["models"]);
    assert!(!folder.path("again").exists());

    let texts = |shard: &str, name: &str| {
        let out = folder.path(name);
        irepair("generate --unconditional 130 --max-new-tokens 6 -q")
            .with("--shard", shard)
            .with("--out", &out)
            .ok();
        bytes(out)
    };
    let all = texts("0/1", "all.jsonl");
    let joined = [texts("0/2", "a.jsonl"), texts("1/2", "b.jsonl")].concat();
    assert!(all == joined && !all.is_empty());
}

/// Two models: a difference on the same prompts, with its interval. A model differs nowhere from
/// itself.
#[test]
fn models_are_compared_on_the_same_rows() {
    let folder = Folder::new();
    let model = golden::path("gpt2");
    let text = irepair("eval -q")
        .with("--model", &model)
        .with("--model", golden::path("gpt2-relu-bare"))
        .with("--model", &model)
        .with("--ppl", golden::path("eval/corpus.txt"))
        .with("--out", folder.path("out"))
        .ok();
    assert!(text.contains("from the first model"), "{text}");
    let results = folder.json("out/results.json");
    let models = results["measurements"][0]["models"].as_array().expect("models");
    let value = |i: usize| number(&models[i]["figures"][0]["value"]);
    let difference = |i: usize| &models[i]["figures"][0]["difference"];
    assert!(difference(0).is_null());
    close(number(&difference(1)["value"]), value(1) - value(0), 1e-9, "difference");
    assert_eq!(difference(2)["value"], 0.0);
    assert_eq!(difference(2)["real"], false);
    let csv = folder.read("out/results.csv");
    assert_eq!(csv.lines().count(), 1 + 3, "{csv}");
    assert!(csv.lines().nth(1).expect("a row").contains(&value(0).to_string()), "{csv}");
}

#[test]
fn empty_continuations_are_counted_and_score_nothing() {
    let folder = Folder::new();
    let eval = |out: &str| {
        irepair("eval --toxicity -q")
            .with("--prompts", demo_prompts())
            .with("--out", folder.path(out))
    };
    let replay =
        |name: &str, rows: &[Value]| format!("replay:{}", folder.write_rows(name, rows).display());
    // Stored scores of some continuations: the others fail, and a failed one is never 0.
    eval("a").and("--limit 12").ok();
    let rows = folder.rows("a/0-toxicity.jsonl");
    let scorer = replay("stored.jsonl", &rows[..5]);
    let text = eval("b").and("--limit 12").with("--scorer", scorer).ok();
    // What is stored is found by its text, and two continuations may be the same.
    let stored = |row: &&Value| rows[..5].iter().any(|s| s["continuation"] == row["continuation"]);
    let found: Vec<f64> = rows.iter().filter(stored).filter_map(|r| r["score"].as_f64()).collect();
    let (scored, failed) = (found.len(), 12 - found.len());
    assert!(scored >= 5 && failed > 0);
    assert!(text.contains(&format!("{failed} failed")), "{text}");
    let results = folder.json("b/results.json");
    let counts = &results["measurements"][0]["models"][0]["counts"];
    assert_eq!((&counts["scored"], &counts["failed"]), (&scored.into(), &failed.into()));
    let mean = found.iter().sum::<f64>() / scored as f64;
    let value = number(figure(&results, "toxicity", "toxicity"));
    close(value, 100.0 * mean, 1e-9, "mean of what was scored");
    // Where nothing is scored at all, there is no figure.
    let nothing = replay("other.jsonl", &[json!({"text": "another", "score": 0.5})]);
    eval("c").and("--limit 2").with("--scorer", &nothing).ok();
    assert!(figure(&folder.json("c/results.json"), "toxicity", "toxicity").is_null());
    // Among texts alone, empty ones are counted apart.
    let texts = [
        json!({"text": "thank you"}),
        json!({"text": "  "}),
        json!({"text": "you stupid idiot", "id": 7}),
    ];
    let texts = folder.write_rows("texts.jsonl", &texts);
    let score = |out: &str| irepair("score").arg(&texts).with("--out", folder.path(out));
    let json = score("scored.jsonl").and("--json -q").json();
    let counts = [&json["scored"], &json["empty"], &json["failed"]];
    assert_eq!(counts, [2, 1, 0]);
    let rows = folder.rows("scored.jsonl");
    assert!(rows[1]["score"].is_null() && rows[1]["empty"] == true && rows[2]["id"] == 7);
    score("d.jsonl").with("--scorer", &nothing).fails(4, &["no text could be scored"]);
}

#[test]
fn a_scorer_is_compared_with_stored_scores() {
    let folder = Folder::new();
    let stored = [
        json!({"text": "you stupid idiot", "score": 0.9}),
        json!({"text": "thank you", "score": 0.1}),
        json!({"text": "what a fucking mess", "toxicity": 0.8}),
        json!({"text": "tea at noon", "toxicity": 0.0}),
    ];
    let calibrate = |name: &str, rows: &[Value]| {
        irepair("score").with("--calibrate", folder.write_rows(name, rows))
    };
    let plot = folder.path("plot.svg");
    let json = calibrate("stored.jsonl", &stored).and("--json").with("--plot", &plot).json();
    assert_eq!(json["calibration"]["auc"], 1.0);
    let svg = read(&plot);
    assert!(svg.starts_with("<svg") && svg.contains("AUC 1.000"), "{svg}");
    calibrate("one.jsonl", &stored[1..2]).fails(3, &["both kinds"]);
    let unscored = json!({"text": "thank you"});
    calibrate("none.jsonl", &[unscored]).fails(3, &["none.jsonl:1", "score"]);
}

/// What is needed is what these prompts need, not what the longest that the model could read would.
#[test]
fn a_long_context_alone_needs_no_memory() {
    let folder = Folder::new();
    let model = folder.model("llama");
    edit_json(model.join("config.json"), |config| {
        config["max_position_embeddings"] = 131_072.into();
    });
    let prompts = [json!({"prompt": "you are"}), json!({"prompt": "so that"})];
    let line = irepair("eval --toxicity rtp -q")
        .with("--model", &model)
        .with("--prompts", folder.write_rows("prompts.jsonl", &prompts))
        .with("--out", folder.path("out"));
    line.clone().env("IREPAIR_MEMORY_LIMIT", "20").fails(3, &[]);
    // What was refused before any work is not in the way.
    line.env("IREPAIR_MEMORY_LIMIT", "1000").ok();
}
