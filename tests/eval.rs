//! `eval`, `score` and `generate` as a user runs them: the figures of others' code, parts that make the whole, bad input.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::golden::{self, close};
use crate::repair::{command, interrupt, irepair, ok};

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("dir") }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("utf-8").into()
    }

    fn file(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).expect("writes");
        self.path(name)
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(name)).expect("file")).expect("json")
    }

    fn rows(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.path(name)).expect("rows");
        text.lines().map(|line| serde_json::from_str(line).expect("row")).collect()
    }
}

fn golden(name: &str) -> String {
    golden::dir().join(name).to_str().expect("utf-8").into()
}

fn demo_prompts() -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/demo/prompts.jsonl");
    path.to_str().expect("utf-8").into()
}

#[track_caller]
fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let output = irepair(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

fn figure<'a>(results: &'a Value, task: &str, name: &str) -> &'a Value {
    let measurements = results["measurements"].as_array().expect("measurements");
    let measurement = measurements.iter().find(|m| m["task"] == task).expect(task);
    let figures = measurement["models"][0]["figures"].as_array().expect("figures");
    figures.iter().find(|f| f["name"] == name).expect(name)
}

/// Expected: scripts/make_golden_eval.py, with transformers and lm-eval's own code.
#[test]
fn figures_are_those_of_transformers_and_lm_eval() {
    let bench = Bench::new();
    let expected = golden::json("eval/expected.json");
    let out = bench.path("out");
    let (corpus, passages) = (golden("eval/corpus.txt"), golden("eval/passages.jsonl"));
    let (model, base, normal) = (golden("gpt2"), golden("gpt2-relu-bare"), golden("normal.jsonl"));
    ok(&irepair(&[
        "eval",
        "--model",
        &model,
        "--ppl",
        &corpus,
        "--lambada",
        &passages,
        "--kl",
        &base,
        "--normal",
        &normal,
        "--out",
        &out,
        "-q",
    ]));
    let results = bench.json("out/results.json");
    let perplexity =
        figure(&results, "ppl-corpus.txt", "perplexity")["value"].as_f64().expect("value");
    close(perplexity, expected["paper"]["perplexity"].as_f64().expect("value"), 1e-4, "perplexity");
    let tokens: u64 =
        bench.rows("out/0-ppl-corpus.txt.jsonl").iter().filter_map(|r| r["tokens"].as_u64()).sum();
    assert_eq!(tokens, expected["paper"]["tokens"]);
    same_rows(&bench.rows("out/0-lambada_openai.jsonl"), &expected["lambada"]);
    same_rows(&bench.rows("out/0-kl.jsonl"), &expected["kl"]);
    let pages = golden("eval/pages.jsonl");
    let out = bench.path("rolling");
    ok(&irepair(&[
        "eval",
        "--model",
        &model,
        "--ppl",
        &pages,
        "--ppl-protocol",
        "lm-eval",
        "--out",
        &out,
        "-q",
    ]));
    same_rows(&bench.rows("rolling/0-ppl-pages.jsonl-lm-eval.jsonl"), &expected["lm_eval"]);
}

/// Numbers of rows: counts equal, nats to 1e-4.
#[track_caller]
fn same_rows(rows: &[Value], expected: &Value) {
    let expected = expected.as_array().expect("rows");
    assert_eq!(rows.len(), expected.len());
    for (index, (row, want)) in rows.iter().zip(expected).enumerate() {
        for (key, want) in want.as_object().expect("row") {
            match want.as_u64() {
                Some(count) => assert_eq!(row[key].as_u64(), Some(count), "row {index}: {key}"),
                None => close(row[key].as_f64().expect(key), want.as_f64().expect(key), 1e-4, key),
            }
        }
    }
}

/// The parts' rows one after another are the whole's, byte for byte, and so are the merged figures.
#[test]
fn parts_make_the_whole() {
    let bench = Bench::new();
    let (prompts, passages) = (demo_prompts(), golden("eval/passages.jsonl"));
    let whole = bench.path("whole");
    let shared = [
        "eval",
        "--toxicity",
        "rtp",
        "--prompts",
        &prompts,
        "--limit",
        "7",
        "--samples",
        "3",
        "--max-new-tokens",
        "8",
        "--lambada",
        &passages,
        "-q",
    ];
    let run = |more: &[&str]| ok(&irepair(&[&shared, more].concat()));
    run(&["--out", &whole]);
    let parts: Vec<String> = ["0/3", "1/3", "2/3"]
        .iter()
        .map(|shard| {
            let out = bench.path(&shard.replace('/', "-"));
            run(&["--shard", shard, "--out", &out]);
            out
        })
        .collect();
    let merged = bench.path("merged");
    // In any order.
    ok(&irepair(&["eval", "--merge", &parts[2], &parts[0], &parts[1], "--out", &merged, "-q"]));
    for file in ["0-toxicity.jsonl", "0-lambada_openai.jsonl", "results.csv", "results.json"] {
        let bytes = |dir: &str| std::fs::read(Path::new(dir).join(file)).expect(file);
        assert!(bytes(&merged) == bytes(&whole), "{file}");
    }
    let again = bench.path("again");
    refused(
        &["eval", "--merge", &parts[0], &parts[2], "--out", &again],
        3,
        &["part 1/3 is missing"],
    );
    refused(
        &["eval", "--merge", &parts[0], &parts[0], &parts[1], &parts[2], "--out", &again],
        3,
        &["both part 0/3"],
    );
    let foreign = bench.path("foreign");
    run(&["--shard", "2/3", "--seed", "1", "--out", &foreign]);
    refused(
        &["eval", "--merge", &parts[0], &parts[1], &foreign, "--out", &again],
        3,
        &["foreign", "tasks"],
    );
    refused(
        &["eval", "--merge", &bench.path("nothing"), "--out", &again],
        3,
        &["no finished part"],
    );
    assert!(!Path::new(&again).exists());

    let texts = |shard: &str, out: &str| {
        let arguments = [
            "generate",
            "--unconditional",
            "130",
            "--max-new-tokens",
            "6",
            "--shard",
            shard,
            "--out",
            out,
            "-q",
        ];
        ok(&irepair(&arguments));
        std::fs::read(out).expect("texts")
    };
    let all = texts("0/1", &bench.path("all.jsonl"));
    let joined =
        [texts("0/2", &bench.path("a.jsonl")), texts("1/2", &bench.path("b.jsonl"))].concat();
    assert!(all == joined && !all.is_empty());
}

/// Two models: a difference on the same prompts, with its interval; a model from itself differs nowhere.
#[test]
fn models_are_compared_on_the_same_rows() {
    let bench = Bench::new();
    let out = bench.path("out");
    let (model, other, corpus) =
        (golden("gpt2"), golden("gpt2-relu-bare"), golden("eval/corpus.txt"));
    let text = ok(&irepair(&[
        "eval", "--model", &model, "--model", &other, "--model", &model, "--ppl", &corpus, "--out",
        &out, "-q",
    ]));
    assert!(text.contains("from the first model"), "{text}");
    let results = bench.json("out/results.json");
    let models = results["measurements"][0]["models"].as_array().expect("models");
    let value = |i: usize| models[i]["figures"][0]["value"].as_f64().expect("value");
    let difference = |i: usize| &models[i]["figures"][0]["difference"];
    assert!(difference(0).is_null());
    close(difference(1)["value"].as_f64().expect("value"), value(1) - value(0), 1e-9, "difference");
    assert_eq!(difference(2)["value"], 0.0);
    assert_eq!(difference(2)["real"], false);
    let csv = std::fs::read_to_string(bench.path("out/results.csv")).expect("csv");
    assert_eq!(csv.lines().count(), 1 + 3, "{csv}");
    assert!(csv.lines().nth(1).expect("a row").contains(&value(0).to_string()), "{csv}");
}

/// What is done stays: units of an interrupted evaluation are not made again, and the end is the same.
#[test]
fn an_interrupted_evaluation_goes_on() {
    let bench = Bench::new();
    let prompts = demo_prompts();
    let shared = [
        "eval",
        "--toxicity",
        "--prompts",
        &prompts,
        "--limit",
        "150",
        "--max-new-tokens",
        "4",
        "-q",
        "--out",
    ];
    let run = |more: &[&str]| irepair(&[&shared, more].concat());
    ok(&run(&[&bench.path("whole")]));
    // As a kill leaves it: the first unit done, the second half written.
    let out = bench.path("out");
    ok(&run(&[&out, "--shard", "0/2"]));
    let first = bench.rows("out/0-toxicity.jsonl");
    assert_eq!(first.len(), 64);
    let (model, settings) = {
        let results = bench.json("whole/results.json");
        (
            results["models"][0]["sha256"].clone(),
            results["measurements"][0]["models"][0]["settings"].clone(),
        )
    };
    std::fs::remove_dir_all(&out).expect("removes");
    std::fs::create_dir_all(bench.path("out/work")).expect("dir");
    let mut marked = first.clone();
    marked[0]["score"] = 0.125.into();
    let head = serde_json::json!({"settings": {"model": model, "task": settings, "shard": {"index": 0, "of": 1}}});
    let unit = serde_json::json!({"unit": 0, "rows": marked});
    bench.file(
        "out/work/0-toxicity.jsonl",
        &format!("{head}\n{unit}\n{{\"unit\":1,\"rows\":[{{\"row\":64,"),
    );
    refused(&[&shared[..], &[&out]].concat(), 3, &["--resume"]);
    ok(&run(&[&out, "--resume"]));
    let (whole, resumed) =
        (bench.rows("whole/0-toxicity.jsonl"), bench.rows("out/0-toxicity.jsonl"));
    assert_eq!(resumed[0]["score"], 0.125, "a done unit was made again");
    assert_eq!(resumed[1..], whole[1..]);
    refused(&[&shared[..], &[&out]].concat(), 3, &["--overwrite"]);
    refused(&[&shared[..], &[&out, "--resume"]].concat(), 3, &["no unfinished evaluation"]);
}

#[test]
fn ctrl_c_keeps_what_is_done() {
    let bench = Bench::new();
    let prompts = demo_prompts();
    let shared =
        ["eval", "--toxicity", "rtp", "--prompts", &prompts, "--samples", "8", "-q", "--out"];
    let out = bench.path("out");
    let error =
        interrupted(&[&shared[..], &[&out]].concat(), &bench.path("out/work/0-toxicity.jsonl"));
    assert!(error.contains("--resume"), "{error}");
    ok(&irepair(&[&shared[..], &[&out, "--resume"]].concat()));
    ok(&irepair(&[&shared[..], &[&bench.path("whole")]].concat()));
    assert_eq!(bench.rows("out/0-toxicity.jsonl"), bench.rows("whole/0-toxicity.jsonl"));
}

/// Starts a command, interrupts it when three lines stand in its ledger, and gives what it said.
fn interrupted(arguments: &[&str], ledger: &str) -> String {
    let mut child = command(arguments)
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("starts");
    let done = || std::fs::read_to_string(ledger).unwrap_or_default().lines().count();
    while done() < 3 && child.try_wait().expect("runs").is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let error = interrupt(child);
    assert!(done() >= 3);
    error
}

/// Texts that are written already stay where the command is interrupted, and the same command goes on with them.
#[test]
fn interrupted_texts_go_on() {
    let bench = Bench::new();
    let (out, whole) = (bench.path("out.jsonl"), bench.path("whole.jsonl"));
    let shared =
        ["generate", "--unconditional", "1500", "--max-new-tokens", "12", "--scorer", "words"];
    let write = |out| [&shared[..], &["--keep-below", "0.5", "-q", "--out", out]].concat();
    let error = interrupted(&write(&out), &bench.path("out.jsonl.partial"));
    assert!(error.contains("the same command"), "{error}");
    assert!(!Path::new(&out).exists());
    let text = ok(&irepair(&write(&out)));
    assert!(text.contains("removed"), "{text}");
    ok(&irepair(&write(&whole)));
    assert!(std::fs::read(&out).expect("texts") == std::fs::read(&whole).expect("texts"));
}

#[test]
fn empty_continuations_are_counted_and_score_nothing() {
    let bench = Bench::new();
    // Stored scores of some continuations: the others fail, and a failed one is never 0.
    let prompts = demo_prompts();
    let out = bench.path("a");
    ok(&irepair(&[
        "eval",
        "--toxicity",
        "--prompts",
        &prompts,
        "--limit",
        "12",
        "--out",
        &out,
        "-q",
    ]));
    let rows = bench.rows("a/0-toxicity.jsonl");
    let stored: String = rows[..5].iter().map(|row| format!("{row}\n")).collect();
    let scorer = format!("replay:{}", bench.file("stored.jsonl", &stored));
    let out = bench.path("b");
    let text = ok(&irepair(&[
        "eval",
        "--toxicity",
        "--prompts",
        &prompts,
        "--limit",
        "12",
        "--scorer",
        &scorer,
        "--out",
        &out,
        "-q",
    ]));
    // What is stored is found by its text, and two continuations may be the same.
    let stored = |row: &Value| rows[..5].iter().any(|s| s["continuation"] == row["continuation"]);
    let found: Vec<f64> =
        rows.iter().filter(|row| stored(row)).filter_map(|row| row["score"].as_f64()).collect();
    let (scored, failed) = (found.len(), 12 - found.len());
    assert!(scored >= 5 && failed > 0);
    assert!(text.contains(&format!("{failed} failed")), "{text}");
    let counts = &bench.json("b/results.json")["measurements"][0]["models"][0]["counts"];
    assert_eq!((&counts["scored"], &counts["failed"]), (&scored.into(), &failed.into()));
    let mean = found.iter().sum::<f64>() / scored as f64;
    let results = bench.json("b/results.json");
    let value = figure(&results, "toxicity", "toxicity (mean score × 100)")["value"]
        .as_f64()
        .expect("value");
    close(value, 100.0 * mean, 1e-9, "mean of what was scored");
    // Nothing scored at all is no figure.
    let nothing = format!(
        "replay:{}",
        bench.file("other.jsonl", "{\"text\": \"another\", \"score\": 0.5}\n")
    );
    let out = bench.path("c");
    ok(&irepair(&[
        "eval",
        "--toxicity",
        "--prompts",
        &prompts,
        "--limit",
        "2",
        "--scorer",
        &nothing,
        "--out",
        &out,
        "-q",
    ]));
    let results = bench.json("c/results.json");
    assert!(figure(&results, "toxicity", "toxicity (mean score × 100)")["value"].is_null());
    // Texts alone: empty ones are counted apart.
    let texts = bench.file(
        "texts.jsonl",
        "{\"text\": \"thank you\"}\n{\"text\": \"  \"}\n{\"text\": \"you stupid idiot\", \"id\": 7}\n",
    );
    let out = bench.path("scored.jsonl");
    let json: Value =
        serde_json::from_str(&ok(&irepair(&["score", &texts, "--out", &out, "--json", "-q"])))
            .expect("json");
    assert_eq!(
        (&json["scored"], &json["empty"], &json["failed"]),
        (&2.into(), &1.into(), &0.into())
    );
    let rows = bench.rows("scored.jsonl");
    assert!(rows[1]["score"].is_null() && rows[1]["empty"] == true && rows[2]["id"] == 7);
    refused(
        &["score", &texts, "--scorer", &nothing, "--out", &bench.path("d.jsonl")],
        4,
        &["no text could be scored"],
    );
}

#[test]
fn a_scorer_is_compared_with_stored_scores() {
    let bench = Bench::new();
    let stored = bench.file(
        "stored.jsonl",
        "{\"text\": \"you stupid idiot\", \"score\": 0.9}\n{\"text\": \"thank you\", \"score\": 0.1}\n\
         {\"text\": \"what a fucking mess\", \"toxicity\": 0.8}\n{\"text\": \"tea at noon\", \"toxicity\": 0.0}\n",
    );
    let plot = bench.path("plot.svg");
    let json: Value = serde_json::from_str(&ok(&irepair(&[
        "score",
        "--calibrate",
        &stored,
        "--plot",
        &plot,
        "--json",
    ])))
    .expect("json");
    assert_eq!(json["calibration"]["auc"], 1.0);
    let svg = std::fs::read_to_string(&plot).expect("svg");
    assert!(svg.starts_with("<svg") && svg.contains("AUC 1.000"), "{svg}");
    let one_kind = bench.file("one.jsonl", "{\"text\": \"thank you\", \"score\": 0.1}\n");
    refused(&["score", "--calibrate", &one_kind], 3, &["both kinds"]);
    let unscored = bench.file("none.jsonl", "{\"text\": \"thank you\"}\n");
    refused(&["score", "--calibrate", &unscored], 3, &["none.jsonl:1", "score"]);
}

#[test]
fn evaluations_that_cannot_be() {
    let bench = Bench::new();
    let (model, out) = (golden("gpt2"), bench.path("out"));
    let eval = |more: &[&str], code, words: &[&str]| {
        refused(&[&["eval", "--model", &model, "--out", &out], more].concat(), code, words);
        assert!(!Path::new(&out).join("results.json").exists(), "{more:?}");
        std::fs::remove_dir_all(&out).ok();
    };
    eval(&[], 2, &["nothing to measure"]);
    eval(&["--ppl", "wikitxt2"], 3, &["wikitxt2", "wikitext2"]);
    eval(&["--ppl", &bench.file("short.txt", "Tea at noon.")], 3, &["short.txt", "window of 64"]);
    eval(&["--lambada", &bench.file("one.jsonl", "{\"text\": \"word\"}\n")], 3, &["one.jsonl:1"]);
    eval(&["--toxicity", "rtpp", "--prompts", &demo_prompts()], 3, &["rtp"]);
    eval(&["--toxicity", "--prompts", &bench.file("empty.jsonl", "")], 3, &["empty.jsonl"]);
    eval(&["--toxicity", "--scorer", "lexicn", "--prompts", &demo_prompts()], 3, &["lexicon"]);
    eval(
        &["--toxicity", "--scorer", "replay:no/such.jsonl", "--prompts", &demo_prompts()],
        3,
        &["no/such.jsonl"],
    );
    eval(&["--toxicity", "--top-p", "0", "--prompts", &demo_prompts()], 3, &["--top-p"]);
    eval(&["--toxicity", "--samples", "0", "--prompts", &demo_prompts()], 3, &["--samples"]);
    eval(&["--shard", "3/3", "--toxicity"], 2, &["3/3"]);
    eval(&["--kl", "demo", "--normal-texts", "8"], 3, &["vocabulary"]);
    eval(&["--ppl", "wikitext2"], 5, &["Salesforce/wikitext", "HF_HUB_OFFLINE"]);
    eval(&["--toxicity"], 5, &["allenai/real-toxicity-prompts"]);
    bench.file("file", "x");
    refused(
        &[
            "eval",
            "--model",
            &model,
            "--toxicity",
            "--prompts",
            &demo_prompts(),
            "--out",
            &bench.path("file"),
        ],
        3,
        &["file"],
    );
    // A folder of something else is left alone.
    let strange = bench.path("strange");
    std::fs::create_dir(&strange).expect("dir");
    bench.file("strange/notes.txt", "mine");
    let arguments =
        ["eval", "--toxicity", "--prompts", &demo_prompts(), "--overwrite", "--out", &strange];
    refused(&arguments, 3, &["no evaluation of irepair"]);
    assert!(Path::new(&strange).join("notes.txt").exists());
}

/// Rows of CSV and Parquet give what the same rows of JSON lines give.
#[test]
fn rows_of_csv() {
    let bench = Bench::new();
    let csv =
        bench.file("texts.csv", "id,text\n1,\"thank you, \"\"friend\"\"\"\n2,you stupid idiot\n");
    let out = bench.path("scored.jsonl");
    ok(&irepair(&["score", &csv, "--out", &out, "-q"]));
    let rows = bench.rows("scored.jsonl");
    assert_eq!(rows[0]["text"], "thank you, \"friend\"");
    assert!(rows[0]["score"].as_f64() < Some(0.5) && rows[1]["score"].as_f64() >= Some(0.5));
    let broken = bench.file("broken.csv", "id,text\n1,a,b\n");
    refused(&["score", &broken, "--out", &bench.path("x.jsonl")], 3, &["broken.csv"]);
    let no_parquet = bench.file("broken.parquet", "PAR1 not");
    refused(&["score", &no_parquet, "--out", &bench.path("x.jsonl")], 3, &["broken.parquet"]);
}

/// What is needed is what these prompts need, not what the longest that the model could read would.
#[test]
fn a_long_context_alone_needs_no_memory() {
    let bench = Bench::new();
    let model = PathBuf::from(bench.path("model"));
    std::fs::create_dir(&model).expect("dir");
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(PathBuf::from(golden("llama")).join(file), model.join(file)).expect(file);
    }
    let mut config: Value =
        serde_json::from_slice(&std::fs::read(model.join("config.json")).expect("config"))
            .expect("json");
    config["max_position_embeddings"] = 131_072.into();
    std::fs::write(model.join("config.json"), config.to_string()).expect("writes");
    let prompts =
        bench.file("prompts.jsonl", "{\"prompt\": \"you are\"}\n{\"prompt\": \"so that\"}\n");
    let (model, out) = (model.to_str().expect("utf-8"), bench.path("out"));
    let arguments =
        ["eval", "--model", model, "--toxicity", "rtp", "--prompts", &prompts, "--out", &out, "-q"];
    let limited =
        |mib: &str| command(&arguments).env("IREPAIR_MEMORY_LIMIT", mib).output().expect("runs");
    let output = limited("20");
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    // What was refused before any work is not in the way.
    ok(&limited("1000"));
}
