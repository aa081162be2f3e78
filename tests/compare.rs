//! `compare` as a user runs it, on the embedded demo.

use std::path::{Path, PathBuf};
use std::time::Duration;

use irepair::step::METHODS;
use serde_json::{Value, json};

use crate::golden::{self, close};
use crate::repair::{command, interrupt, irepair, ok};

struct Bench {
    dir: tempfile::TempDir,
}

/// Two short rows: a named method, and settings of one's own.
const RUNS: &str =
    "[one-block]\nselect = \"fixed\"\nobjective = \"dpo\"\nkl-weight = 1.0\nfixed-sample = 16\n";

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().expect("dir") };
        std::fs::write(bench.path("runs.toml"), RUNS).expect("writes");
        std::fs::write(bench.path("prompts.jsonl"), PROMPTS).expect("writes");
        std::fs::write(bench.path("pairs.jsonl"), irepair::data::demo::PAIRS).expect("writes");
        bench
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("utf-8").into()
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let (runs, prompts, out) =
            (self.path("runs.toml"), self.path("prompts.jsonl"), self.path("out"));
        let fixed = ["compare", "--runs", &runs, "--eval-prompts", &prompts, "--out", &out, "-q"];
        let short = [
            "--max-steps",
            "6",
            "--eval-steps",
            "3",
            "--checkpoint-steps",
            "3",
            "--normal-texts",
            "16",
        ];
        let rows = ["--valid-size", "8", "--limit", "40"];
        fixed.iter().chain(&short).chain(&rows).chain(more).map(|s| (*s).to_owned()).collect()
    }

    fn run(&self, more: &[&str]) -> std::process::Output {
        let arguments = self.arguments(more);
        irepair(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    #[track_caller]
    fn refused(&self, more: &[&str], code: i32, words: &[&str]) {
        let output = self.run(more);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{more:?}: {error}");
        for word in words {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
    }

    fn record(&self) -> Value {
        let path = self.path("out/compare.json");
        serde_json::from_slice(&std::fs::read(path).expect("compare.json")).expect("json")
    }
}

const PROMPTS: &str =
    "{\"prompt\": \"the old farmer said to the baker that\"}\n{\"prompt\": \"my neighbour is\"}\n";

/// Mean and standard error of a figure over the runs of a row, computed anew.
fn over_runs(entry: &Value, name: &str) -> (f64, Option<f64>) {
    let runs = entry["runs"].as_array().expect("runs").iter();
    let figures = runs.flat_map(|run| run["figures"].as_array().expect("figures").iter());
    let values: Vec<f64> =
        figures.filter(|f| f["name"] == name).filter_map(|f| f["value"].as_f64()).collect();
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
    (mean, (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt() / n.sqrt()))
}

/// The tables' numbers are those of the record, in every form.
fn tables_are_of_the_record(dir: &Path, record: &Value) {
    for sheet in record["sheets"].as_array().expect("sheets") {
        let id = sheet["id"].as_str().expect("id");
        let text = |ending: &str| {
            std::fs::read_to_string(dir.join(format!("{id}.{ending}"))).expect("table")
        };
        let (csv, markdown, latex) = (text("csv"), text("md"), text("tex"));
        let mut lines = csv::Reader::from_reader(csv.as_bytes());
        let rows = sheet["rows"].as_array().expect("rows");
        let found: Vec<csv::StringRecord> = lines.records().map(|r| r.expect("row")).collect();
        assert_eq!(found.len(), rows.len(), "{id}");
        for (row, found) in rows.iter().zip(&found) {
            let name = row["name"].as_str().expect("name");
            let line =
                markdown.lines().find(|l| l.starts_with(&format!("| {name} |"))).expect(name);
            assert!(latex.contains(&format!("{} & ", name)), "{latex}");
            assert_eq!(&found[0], name);
            let cells = row["cells"].as_array().expect("cells");
            for (index, (cell, column)) in
                cells.iter().zip(sheet["columns"].as_array().expect("columns")).enumerate()
            {
                let Some(mean) = cell["mean"].as_f64() else { continue };
                assert_eq!(
                    found[1 + 2 * index].parse::<f64>().expect("number"),
                    mean,
                    "{id} {name}"
                );
                let digits = column["digits"].as_u64().expect("digits") as usize;
                let shown = |plus_minus: &str| match cell["error"].as_f64() {
                    Some(error) => format!("{mean:.digits$}{plus_minus}{error:.digits$}"),
                    None => format!("{mean:.digits$}"),
                };
                assert!(line.contains(&shown(" ± ")), "{} is not in {line}", shown(" ± "));
                let row =
                    latex.lines().find(|line| line.starts_with(&format!("{name} & "))).expect(name);
                assert!(row.contains(&shown(" $\\pm$ ")), "{} is not in {row}", shown(" $\\pm$ "));
                let error = found[2 + 2 * index].parse::<f64>().ok();
                assert_eq!(error, cell["error"].as_f64(), "{id} {name}");
            }
        }
    }
}

#[test]
fn methods_stand_beside_each_other() {
    let bench = Bench::new();
    let rows = ["--methods", "irepair-min,one-block", "--seeds", "1,2"];
    let text = ok(&bench.run(&rows));
    for words in [
        "vanilla",
        "irepair-min",
        "one-block",
        "Mean ± standard error over 2 seeds",
        "area",
        "seconds",
    ] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
    // Up to the folder's name it fits a terminal.
    let lines = text.lines().take_while(|line| !line.starts_with("all of it: "));
    assert!(
        lines.map(|line| line.chars().count()).max().is_some_and(|longest| longest <= 80),
        "{text}"
    );
    let record = bench.record();
    let out = PathBuf::from(bench.path("out"));
    tables_are_of_the_record(&out, &record);
    let ids: Vec<&str> = record["sheets"]
        .as_array()
        .expect("sheets")
        .iter()
        .filter_map(|s| s["id"].as_str())
        .collect();
    assert_eq!(ids, ["table1", "table2", "table3"]);
    for (row, entry) in record["sheets"][0]["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .zip(record["entries"].as_array().expect("entries"))
    {
        let (mean, error) = over_runs(entry, "toxicity (mean score × 100)");
        close(row["cells"][0]["mean"].as_f64().expect("mean"), mean, 1e-12, "mean");
        assert_eq!(row["cells"][0]["error"].is_null(), error.is_none(), "{row}");
        if let Some(error) = error.filter(|error| *error > 0.0) {
            close(row["cells"][0]["error"].as_f64().expect("error"), error, 1e-9, "error");
        }
    }
    // Every figure is the evaluation's own; the run in the folder is a run like any other.
    let entries = record["entries"].as_array().expect("entries");
    assert_eq!(entries.len(), 3);
    for entry in &entries[1..] {
        let runs = entry["runs"].as_array().expect("runs");
        assert_eq!(runs.len(), 2);
        for run in runs {
            let name = format!("{}-seed{}", entry["name"].as_str().expect("name"), run["seed"]);
            let results =
                std::fs::read(out.join("eval").join(&name).join("results.json")).expect("results");
            let results: Value = serde_json::from_slice(&results).expect("json");
            let toxicity = &results["measurements"][0]["models"][0]["figures"][0];
            assert_eq!(run["figures"][0]["value"], toxicity["value"]);
            let made = std::fs::read(out.join("runs").join(&name).join("irepair/run.json"))
                .expect("run.json");
            let made: Value = serde_json::from_slice(&made).expect("json");
            assert_eq!(made["seed"], run["seed"]);
            assert!(
                made["operations"].as_u64() > Some(0)
                    && made["operations"] == run["made"]["operations"]
            );
            // The state of step 3 and the end.
            assert_eq!(run["points"].as_array().expect("points").len(), 2, "{name}");
            assert_eq!(run["points"][0]["step"], 3);
        }
    }
    let svg = std::fs::read_to_string(out.join("pareto.svg")).expect("svg");
    // A legend's mark a row, two marks a run.
    assert_eq!((svg.matches("filled\"").count(), svg.matches("hollow\"").count()), (2 + 4, 4));
    let figure2 = std::fs::read_to_string(out.join("figure2.svg")).expect("svg");
    let readme = std::fs::read_to_string(out.join("README.md")).expect("README");
    for text in [&figure2, &readme] {
        assert!(text.contains("Error density (sensitivity a block, "), "{text}");
    }

    let page = bench.path("page.html");
    ok(&irepair(&["report", &bench.path("out"), "--out", &page]));
    let page = std::fs::read_to_string(page).expect("page");
    for (row, words) in [("one-block", "The trade-off"), ("irepair-min", "What the repairs took")] {
        assert!(page.contains(row) && page.contains(words), "{page}");
    }
    // The selectors differ, the data don't; both are on the page, and which weights all started from.
    for words in [
        "In which the rows differ",
        "The same for all",
        "SHA-256 of model.safetensors",
        "learning-rate",
    ] {
        assert!(page.contains(words), "{words:?} is not in {page}");
    }
    let toxicity = record["sheets"][0]["rows"][2]["cells"][0]["mean"].as_f64().expect("mean");
    assert!(page.contains(&format!("{toxicity:.2} ±")), "{toxicity}");

    // Other words for the same scorer are another scorer.
    bench.refused(&[&rows[..], &["--resume", "--toxic-label", "rude"]].concat(), 3, &["scorer"]);

    // Again: everything is there, nothing is made again.
    bench.refused(&rows, 3, &["--resume"]);
    let before = std::fs::read(out.join("compare.json")).expect("record");
    let run_made =
        |name: &str| std::fs::metadata(out.join(name)).and_then(|m| m.modified()).expect("file");
    let made = run_made("runs/one-block-seed1/irepair/run.json");
    ok(&bench.run(&[&rows[..], &["--resume"]].concat()));
    assert!(std::fs::read(out.join("compare.json")).expect("record") == before);
    assert_eq!(run_made("runs/one-block-seed1/irepair/run.json"), made);
    // Other settings in the same folder are another comparison.
    bench.refused(&[&rows[..], &["--resume", "--scorer", "lexicon"]].concat(), 3, &["scorer"]);
    bench.refused(
        &[&rows[..], &["--resume", "--learning-rate", "1e-5"]].concat(),
        3,
        &["learning-rate"],
    );

    // A run of its own beside them; one of another scorer is none of them.
    let run = |name: &str, more: &[&str]| {
        let out = bench.path(name);
        let settings = [
            "--max-steps",
            "3",
            "--normal-texts",
            "24",
            "--valid-size",
            "8",
            "--limit",
            "40",
            "-q",
        ];
        let method = ["--method", "irepair", "--out", &out];
        ok(&irepair(&[&["repair"], &settings[..], &method[..], more].concat()));
        out
    };
    let (own, other) = (run("own", &[]), run("other", &["--scorer", "lexicon"]));
    bench.refused(&[&rows[..], &["--resume", &other]].concat(), 3, &["other", "scorer"]);
    let other = run("fewer", &["--limit", "36"]);
    bench.refused(&[&rows[..], &["--resume", &other]].concat(), 3, &["fewer", "other data"]);
    let model = golden::dir().join("gpt2");
    let other = run(
        "foreign",
        &["--model", model.to_str().expect("utf-8"), "--data", &bench.path("pairs.jsonl")],
    );
    bench.refused(&[&rows[..], &["--resume", &other]].concat(), 3, &["foreign", "base model"]);
    bench.refused(
        &[&rows[..], &["--resume", &own, &own]].concat(),
        3,
        &["would both be irepair, seed 42"],
    );
    bench.refused(&["--resume", "--seeds", "1,2,1"], 2, &["--seeds: 1 is given twice"]);
    // Runs of one method that differ in more than the seed go by their folders.
    let faster = run("faster", &["--learning-rate", "3e-3"]);
    ok(&bench.run(&[&rows[..], &["--resume", &own, &faster]].concat()));
    let names = bench.record()["entries"]
        .as_array()
        .expect("entries")
        .iter()
        .map(|e| e["name"].clone())
        .collect::<Vec<_>>();
    assert_eq!(names, ["vanilla", "irepair-min", "one-block", "own", "faster"]);
    // A record that this program can't read is named, not guessed at.
    let path = Path::new(&own).join("irepair/run.json");
    let mut made: Value =
        serde_json::from_slice(&std::fs::read(&path).expect("run.json")).expect("json");
    made["format_version"] = 99.into();
    std::fs::write(&path, made.to_string()).expect("writes");
    bench.refused(
        &[&rows[..], &["--resume", &own]].concat(),
        3,
        &["run.json", "format version 99"],
    );
}

/// Neuron-level methods, rows of their own settings and methods of pairs, all on the same failures.
#[test]
fn repairs_of_wrong_answers_stand_beside_each_other() {
    let bench = Bench::new();
    let short = "batch-size = 4\nmax-steps = 6\n";
    let runs = format!(
        "[quarter]\nmethod = \"star\"\nneurons = \"1/4\"\nmode = \"iterative\"\n[\"irepair+kl\"]\n{short}[dpo]\n{short}"
    );
    std::fs::write(bench.path("runs.toml"), runs).expect("writes");
    // The demo's own rows, without what the model says instead of the targets.
    let rows: Vec<Value> = irepair::data::demo::EDITS
        .lines()
        .map(|l| serde_json::from_str(l).expect("a row"))
        .collect();
    let bare = |row: &Value| json!({"question": row["prompt"], "target": row["chosen"], "kind": row["kind"]});
    let said = rows.iter().find(|row| row["kind"] == "specificity").expect("a row");
    let said = json!({"question": said["prompt"], "target": said["chosen"]});
    let lines: Vec<String> =
        rows.iter().map(bare).chain([said]).map(|row| row.to_string()).collect();
    std::fs::write(bench.path("failures.jsonl"), lines.join("\n")).expect("writes");
    let (runs, data, out) =
        (bench.path("runs.toml"), bench.path("failures.jsonl"), bench.path("out"));
    let arguments = [
        "compare",
        "--methods",
        "vanilla,star,quarter,mint,irepair+kl,dpo",
        "--seeds",
        "1,2",
        "--runs",
        &runs,
    ];
    let data =
        ["--data", &data, "--map", "prompt=question", "--edits", "demo", "--normal-texts", "16"];
    let run =
        |more: &[&str]| irepair(&[&arguments[..], &data, &["--out", &out, "-q"], more].concat());
    let text = ok(&run(&[]));
    for words in ["quarter", "said (%)", "neurons", "s a failure"] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
    let (record, out) = (bench.record(), PathBuf::from(&out));
    tables_are_of_the_record(&out, &record);
    assert_eq!(record["failures"], 12);
    assert!(
        record["sheets"][0]["notes"].to_string().contains("the same 12 failures"),
        "{}",
        record["sheets"][0]
    );
    // What is rejected is what the model says.
    let learned = std::fs::read_to_string(out.join("failures.jsonl")).expect("failures");
    let learned: Vec<Value> =
        learned.lines().map(|line| serde_json::from_str(line).expect("a row")).collect();
    let pair = |row: &Value| json!({"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]});
    assert_eq!(
        learned,
        rows.iter().filter(|row| row["kind"] == "failure").map(pair).collect::<Vec<_>>()
    );

    let sheet = &record["sheets"][0];
    let columns: Vec<&str> = sheet["columns"]
        .as_array()
        .expect("columns")
        .iter()
        .filter_map(|c| c["name"].as_str())
        .collect();
    let cell = |row: &str, column: &str| {
        let at = columns
            .iter()
            .position(|c| c.starts_with(column))
            .unwrap_or_else(|| panic!("{column} in {columns:?}"));
        let rows = sheet["rows"].as_array().expect("rows").iter();
        rows.clone().find(|r| r["name"] == row).expect(row)["cells"][at]["mean"].as_f64()
    };
    assert_eq!(cell("vanilla", "targets said"), Some(0.0));
    assert_eq!((cell("vanilla", "specificity"), cell("vanilla", "neurons")), (Some(100.0), None));
    for (row, runs) in [("star", 1), ("quarter", 1), ("mint", 1), ("irepair+kl", 2), ("dpo", 2)] {
        let entry = record["entries"]
            .as_array()
            .expect("entries")
            .iter()
            .find(|e| e["name"] == row)
            .expect(row);
        // Nothing in a repair of neurons is drawn, so that another seed says nothing new.
        assert_eq!(entry["runs"].as_array().expect("runs").len(), runs, "{row}");
        let made = std::fs::read(out.join(format!("runs/{row}-seed1/irepair/run.json")))
            .expect("run.json");
        let made: Value = serde_json::from_slice(&made).expect("json");
        assert_eq!(made["data"]["pairs"], 12, "{row}");
        let neurons = made["edits"]["neurons"].as_object();
        let neurons = neurons.map(|n| n.values().filter_map(Value::as_f64).sum::<f64>());
        assert_eq!(cell(row, "neurons"), neurons, "{row}");
        assert!(cell(row, "seconds a failure") > Some(0.0), "{row}");
        if let Some(seconds) = made["edits"]["repair_seconds"].as_f64() {
            assert_eq!(cell(row, "seconds a failure"), Some(seconds / 12.0), "{row}");
            let repaired = made["edits"]["repaired"].as_f64().expect("repaired");
            assert_eq!(cell(row, "targets said"), Some(100.0 * repaired / 12.0), "{row}");
        }
    }
    assert!(
        cell("star", "targets said") > Some(90.0) && cell("mint", "specificity") == Some(100.0),
        "{text}"
    );
    assert!(!out.join("pareto.svg").exists());
    let page = bench.path("page.html");
    ok(&irepair(&["report", &bench.path("out"), "--out", &page]));
    let page = std::fs::read_to_string(page).expect("page");
    assert!(page.contains("the same failures and texts") && page.contains("quarter"), "{page}");
    assert!(!page.contains("The trade-off"));

    // Again: nothing is made anew; other failures are another comparison.
    let before = std::fs::read(out.join("compare.json")).expect("record");
    ok(&run(&["--resume"]));
    assert!(std::fs::read(out.join("compare.json")).expect("record") == before);
    let refused = |more: &[&str], code: i32, words: &str| {
        let output = run(more);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && error.contains(words), "{more:?}: {error}");
    };
    refused(&["--resume", "--limit", "3"], 3, "failures");
    refused(&["--batch-size", "4"], 2, "row star");
    refused(&["--edits", "no/such.jsonl"], 3, "no/such.jsonl");
}

/// Without a word about it, `--data` says what the repairs are worth, too.
#[test]
fn failures_are_evaluated_by_the_file_that_they_are_in() {
    let bench = Bench::new();
    let row = |kind: &str, target: &str| json!({"prompt": "The lens of Oscar is made of", "target": target, "kind": kind});
    let rows =
        [row("failure", " cork"), row("generalization", " cork"), row("specificity", " aluminium")];
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    std::fs::write(bench.path("rows.jsonl"), lines).expect("writes");
    let (data, out) = (bench.path("rows.jsonl"), bench.path("out"));
    let arguments = [
        "compare",
        "--methods",
        "sgd",
        "--data",
        &data,
        "--normal-texts",
        "8",
        "--out",
        &out,
        "-q",
    ];
    ok(&irepair(&arguments));
    let record = bench.record();
    let about = record["asked"]["about"][0].as_str().expect("about");
    assert!(
        about.starts_with("rows.jsonl: 1 failures, 1 rows of generalization, 1 of specificity"),
        "{about}"
    );
    let page = std::fs::read_to_string(bench.path("out/README.md")).expect("README");
    assert!(page.contains("| sgd |") && !page.contains("Toxicity"), "{page}");
    let said = ok(&irepair(&[&arguments[..], &["--resume", "--json"]].concat()));
    let said: Value = serde_json::from_str(&said).expect("json");
    assert_eq!((&said["out"], &said["base"]), (&json!(out), &record["base"]));
    // What the model says already is no failure.
    std::fs::write(bench.path("rows.jsonl"), format!("{}\n", row("failure", " aluminium")))
        .expect("writes");
    std::fs::remove_dir_all(&out).expect("removed");
    let output = irepair(&arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(4) && error.contains("already says every target"),
        "{error}"
    );
}

/// One row can't be run: the others are, and its row says why.
#[test]
fn a_method_that_fails_leaves_the_others_alone() {
    let bench = Bench::new();
    let wild = "[wild]\nmethod = \"irepair\"\nlearning-rate = 1e9\nmax-grad-norm = 0.0\nwarmup-steps = 0\n";
    std::fs::write(bench.path("runs.toml"), wild).expect("writes");
    // A preset's method is no row's.
    std::fs::write(bench.path("preset.toml"), "method = \"dapt\"\n").expect("writes");
    let preset = bench.path("preset.toml");
    let rows = ["--methods", "wild,irepair", "--config", &preset];
    let text = ok(&bench.run(&rows));
    assert!(text.contains("wild, seed 42: failed:"), "{text}");
    let record = bench.record();
    assert!(record["entries"][1]["runs"][0]["made"].is_null());
    assert!(record["entries"][2]["runs"][0]["made"].is_object());
    tables_are_of_the_record(Path::new(&bench.path("out")), &record);
    let settings =
        std::fs::read_to_string(bench.path("out/runs/irepair-seed42.toml")).expect("settings");
    assert!(settings.contains("method = \"irepair\"\n"), "{settings}");
    // One can't be evaluated: the others are.
    std::fs::remove_dir_all(bench.path("out/eval/irepair-seed42")).expect("removed");
    std::fs::remove_file(bench.path("out/runs/irepair-seed42/config.json")).expect("removed");
    // What it kept on its way can't be read, either.
    let state = bench.path("out/runs/irepair-seed42/irepair/checkpoints/step-000003.safetensors");
    std::fs::write(state, "no tensors").expect("writes");
    let text = ok(&bench.run(&[&rows[..], &["--resume"]].concat()));
    assert!(text.contains("irepair, seed 42: failed: its evaluation: "), "{text}");
    let record = bench.record();
    assert!(!record["entries"][0]["runs"][0]["figures"].as_array().expect("figures").is_empty());
    let gap = record["gaps"][0].as_str().expect("a gap");
    assert!(gap.starts_with("no point of irepair-seed42-step3: "), "{gap}");
    assert_eq!(record["gaps"].as_array().map(Vec::len), Some(1));
    let readme = std::fs::read_to_string(bench.path("out/README.md")).expect("README");
    assert!(readme.contains("**Note:** no point of irepair-seed42-step3: "), "{readme}");
    // Every table says which row lacks what.
    for sheet in ["table1", "table2"] {
        let csv = std::fs::read_to_string(bench.path(&format!("out/{sheet}.csv"))).expect("table");
        assert!(
            csv.lines().any(|line| line.starts_with("wild,") && line.contains("seed 42: failed: ")),
            "{csv}"
        );
    }
    let output = irepair(&["report", &bench.path("out"), "--out", &bench.path("page.html")]);
    assert!(ok(&output).contains("page.html"));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no point of irepair-seed42-step3"));
    let page = std::fs::read_to_string(bench.path("page.html")).expect("page");
    assert!(page.contains("no point of irepair-seed42-step3"), "{page}");
}

#[test]
fn an_interrupted_comparison_goes_on() {
    let bench = Bench::new();
    let rows = ["--methods", "irepair,dapt", "--save-steps", "1", "--max-steps", "40"];
    // Two at a time, here; one after the other below, where nobody interrupts.
    let at_once = [&rows[..], &["--jobs", "2"]].concat();
    let arguments = bench.arguments(&at_once);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut child = command(&arguments)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    let states = ["irepair", "dapt"].map(|method| {
        PathBuf::from(
            bench
                .path(&format!("out/runs/{method}-seed42.partial/irepair/state/state.safetensors")),
        )
    });
    while !states.iter().all(|s| s.exists()) && child.try_wait().expect("runs").is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let error = interrupt(child);
    assert!(error.contains("--resume"), "{error}");
    assert!(states.iter().all(|s| s.exists()), "the runs under way saved their states");
    // Half a run with one learning rate and half with another is neither.
    let other = [&at_once[..], &["--resume", "--learning-rate", "1e-5"]].concat();
    bench.refused(&other, 3, &["begun with other settings"]);
    ok(&bench.run(&[&at_once[..], &["--resume"]].concat()));
    // The bytes of a run that nobody interrupted.
    let whole = Bench::new();
    ok(&whole.run(&rows));
    for method in ["irepair", "dapt"] {
        let weights = format!("out/runs/{method}-seed42/model.safetensors");
        let [found, expected] =
            [&bench, &whole].map(|b| std::fs::read(b.path(&weights)).expect("weights"));
        assert!(found == expected, "{method}");
    }
    let figures = |bench: &Bench| {
        let entries = bench.record()["entries"].as_array().expect("entries").clone();
        let of = |run: &Value| (run["figures"].clone(), run["points"].clone());
        entries
            .iter()
            .flat_map(|e| e["runs"].as_array().expect("runs").iter().map(of))
            .collect::<Vec<_>>()
    };
    assert_eq!(figures(&bench), figures(&whole));
}

#[test]
fn comparisons_that_cannot_be() {
    let bench = Bench::new();
    bench.refused(&["--methods", "irepiar"], 3, &["did you mean \"irepair\""]);
    bench.refused(&["--methods", "irepair,irepair"], 2, &["twice"]);
    bench.refused(&["--method", "irepair"], 2, &["--methods"]);
    bench.refused(&["--seed", "1", "--seeds", "2"], 2, &["--seeds"]);
    bench.refused(&["--methods", "irepair", "--jobs", "0"], 3, &["--jobs 0", "at least 1"]);
    bench.refused(&["--methods", "irepair", "--resume"], 3, &["no comparison"]);
    bench.refused(&["--methods", "irepair", "--ppl", "no/such.txt"], 3, &["no/such.txt"]);
    bench.refused(&["--methods", "irepair", "--toxicity", "leee"], 3, &["lee"]);
    bench.refused(&["no/such/run"], 3, &["no/such/run"]);
    let runs = |text: &str| std::fs::write(bench.path("runs.toml"), text).expect("writes");
    runs("[a]\nlerning-rate = 1\n");
    bench.refused(&[], 3, &["runs.toml:2: [a]", "learning-rate"]);
    runs("a = 1\n");
    bench.refused(&[], 3, &["runs.toml:1", "[a]"]);
    runs("[\"../a\"]\nmethod = \"irepair\"\n");
    bench.refused(&[], 3, &["names a folder"]);
    runs("");
    bench.refused(&[], 3, &["no tables"]);
    std::fs::remove_dir_all(bench.path("out")).ok();
    std::fs::create_dir(bench.path("out")).expect("dir");
    std::fs::write(bench.path("out/notes.txt"), "mine").expect("writes");
    runs(RUNS);
    bench.refused(&[], 3, &["no comparison of irepair"]);
    assert!(Path::new(&bench.path("out/notes.txt")).exists());
}

/// Kaplan's formula with what each method skips against the products that were made.
#[test]
fn operations_are_those_of_the_formula() {
    for method in METHODS.iter().map(|m| m.name) {
        let shape = ["--blocks", "3", "--tokens", "32", "--batch", "3", "--iterations", "1"];
        let arguments = ["bench", "--config", "gpt2", "--method", method];
        let json: Value =
            serde_json::from_str(&ok(&irepair(&[&arguments[..], &shape].concat()))).expect("json");
        let (counted, formula) = (json["gflop"].as_f64(), json["gflop_kaplan"].as_f64());
        let ratio = formula.expect("formula") / counted.expect("counted");
        assert!((ratio - 1.0).abs() < 0.05, "{method}: {ratio} ({json})");
    }
}
