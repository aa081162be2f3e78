//! `compare`: methods stand beside each other in tables, pictures and a page.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::command::{CommandLine, irepair, ok, stderr};
use crate::support::comparison::{Comparison, cell, tables_are_of_the_record};
use crate::support::files::{Folder, bytes, edit_json, json, read, repository, rows, rows_of};
use crate::support::golden;
use crate::support::repaired::record;
use crate::support::tensors::close;

/// Mean and standard error of a figure over the runs of a row, computed anew.
fn over_runs(entry: &Value, id: &str) -> (f64, Option<f64>) {
    let runs = entry["runs"].as_array().expect("runs").iter();
    let figures = runs.flat_map(|run| run["figures"].as_array().expect("figures").iter());
    let values: Vec<f64> =
        figures.filter(|f| f["id"] == id).filter_map(|f| f["value"].as_f64()).collect();
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>();
    (mean, (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt() / n.sqrt()))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().expect(key)
}

/// The page that `report` makes of a comparison.
fn page_of(comparison: &Path, page: &Path) -> String {
    irepair("report").arg(comparison).with("--out", page).ok();
    read(page)
}

#[test]
fn methods_stand_beside_each_other() {
    let comparison = Comparison::new();
    let line = comparison.line().and("--methods irepair-min,one-block --seeds 1,2");
    let text = line.ok();
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
    // The lines before the folder's name fit a terminal.
    let lines = text.lines().take_while(|line| !line.starts_with("all of it: "));
    let longest = lines.map(|line| line.chars().count()).max();
    assert!(longest.is_some_and(|longest| longest <= 80), "{text}");
    let (record, out) = (comparison.record(), comparison.out());
    tables_are_of_the_record(&out, &record);
    let ids: Vec<&Value> = list(&record, "sheets").iter().map(|s| &s["id"]).collect();
    assert_eq!(ids, ["table1", "table2", "table3"]);
    let table = list(&record["sheets"][0], "rows");
    for (row, entry) in table.iter().zip(list(&record, "entries")) {
        let (mean, error) = over_runs(entry, "toxicity");
        let cell = &row["cells"][0];
        close(cell["mean"].as_f64().expect("mean"), mean, 1e-12, "mean");
        assert_eq!(cell["error"].is_null(), error.is_none(), "{row}");
        if let Some(error) = error.filter(|error| *error > 0.0) {
            close(cell["error"].as_f64().expect("error"), error, 1e-9, "error");
        }
    }
    figures_are_of_the_evaluations(&out, &record);
    let svg = read(out.join("pareto.svg"));
    // One mark a row in the legend, and two marks a run.
    assert_eq!((svg.matches("filled\"").count(), svg.matches("hollow\"").count()), (2 + 4, 4));
    for name in ["figure2.svg", "README.md"] {
        let text = read(out.join(name));
        assert!(text.contains("Error density (sensitivity a block, "), "{text}");
    }

    let page = page_of(&out, &comparison.folder().path("page.html"));
    // The selectors differ, the data don't; both are on the page, and which weights all started
    // from.
    for words in [
        "one-block",
        "irepair-min",
        "The trade-off",
        "What the repairs took",
        "In which the rows differ",
        "The same for all",
        "SHA-256 of model.safetensors",
        "learning-rate",
    ] {
        assert!(page.contains(words), "{words:?} is not in {page}");
    }
    let toxicity = record["sheets"][0]["rows"][2]["cells"][0]["mean"].as_f64().expect("mean");
    assert!(page.contains(&format!("{toxicity:.2} ±")), "{toxicity}");

    resumed_with_what_is_there(&comparison, &line);
}

/// Every figure is the evaluation's own; the run in the folder is a run like any other.
fn figures_are_of_the_evaluations(out: &Path, record: &Value) {
    let entries = list(record, "entries");
    assert_eq!(entries.len(), 3);
    for entry in &entries[1..] {
        let runs = list(entry, "runs");
        assert_eq!(runs.len(), 2);
        for run in runs {
            let name = format!("{}-seed{}", entry["name"].as_str().expect("name"), run["seed"]);
            let results = json(out.join("eval").join(&name).join("results.json"));
            let toxicity = &results["measurements"][0]["models"][0]["figures"][0];
            assert_eq!(run["figures"][0]["value"], toxicity["value"]);
            let made = json(out.join("runs").join(&name).join("irepair/run.json"));
            assert_eq!(made["seed"], run["seed"]);
            assert!(made["operations"].as_u64() > Some(0));
            assert_eq!(made["operations"], run["made"]["operations"]);
            // The state of step 3 and the end.
            assert_eq!(list(run, "points").len(), 2, "{name}");
            assert_eq!(run["points"][0]["step"], 3);
        }
    }
}

/// A comparison that is done is not made again. What would make another comparison of it is
/// refused, and runs of one's own stand beside its rows.
fn resumed_with_what_is_there(comparison: &Comparison, line: &CommandLine) {
    let out = comparison.out();
    let resumed = line.clone().and("--resume");
    let refused = |more: &str, words: &[&str]| resumed.clone().and(more).fails(3, words);
    // The same scorer with another label is another scorer.
    refused("--toxic-label rude", &["scorer"]);
    // Again: everything is there, nothing is made again.
    line.fails(3, &["--resume"]);
    let before = bytes(out.join("compare.json"));
    let run_json = out.join("runs/one-block-seed1/irepair/run.json");
    let modified = || run_json.metadata().and_then(|m| m.modified()).expect("file");
    let made = modified();
    resumed.ok();
    assert!(bytes(out.join("compare.json")) == before);
    assert_eq!(modified(), made);
    // Other settings in the same folder are another comparison.
    refused("--scorer lexicon", &["scorer"]);
    refused("--learning-rate 1e-5", &["learning-rate"]);

    // A run of one's own may stand beside them, if its scorer, data and base are the same.
    let run = |name: &str| {
        irepair("repair --method irepair --max-steps 3 --normal-texts 24 --valid-size 8")
            .and("--limit 40 -q --eval-samples 0")
            .with("--eval-prompts", comparison.folder().path("prompts.jsonl"))
            .with("--out", comparison.folder().path(name))
    };
    let path = |name: &str| comparison.folder().path(name);
    let beside = |name: &str, words: &[&str]| {
        resumed.clone().arg(path(name)).fails(3, &[&[name], words].concat());
    };
    run("own").ok();
    run("other").and("--scorer lexicon").ok();
    beside("other", &["scorer"]);
    run("fewer").and("--limit 36").ok();
    beside("fewer", &["other data"]);
    run("foreign").with("--model", golden::path("gpt2")).with("--data", path("pairs.jsonl")).ok();
    beside("foreign", &["base model"]);
    let own = path("own");
    resumed.clone().arg(&own).arg(&own).fails(3, &["would both be irepair, seed 42"]);
    comparison.line().and("--resume --seeds 1,2,1").fails(2, &["--seeds: 1 is given twice"]);
    // Runs of one method that differ in more than the seed go by their folders.
    run("faster").and("--learning-rate 3e-3").ok();
    resumed.clone().arg(&own).arg(path("faster")).ok();
    let record = comparison.record();
    let names: Vec<&Value> = list(&record, "entries").iter().map(|e| &e["name"]).collect();
    assert_eq!(names, ["vanilla", "irepair-min", "one-block", "own", "faster"]);
    // A record that this program can't read is named, not guessed at.
    edit_json(own.join("irepair/run.json"), |run| run["format_version"] = 99.into());
    resumed.clone().arg(&own).fails(3, &["run.json", "format version 99"]);
}

/// Neuron-level methods, rows of their own settings and methods of pairs, all on the same failures.
#[test]
fn repairs_of_wrong_answers_stand_beside_each_other() {
    let folder = Folder::new();
    let quarter = "[quarter]\nmethod = \"star\"\nneurons = \"1/4\"\nmode = \"iterative\"\n";
    let short = "batch-size = 4\nmax-steps = 6\n";
    folder.write("runs.toml", format!("{quarter}[\"irepair+kl\"]\n{short}[dpo]\n{short}"));
    // The demo's own rows, without what the model says instead of the targets.
    let demo = rows_of(irepair::data::demo::EDITS);
    let bare = |row: &Value| {
        json!({
            "question": row["prompt"],
            "target": row["chosen"],
            "kind": row["kind"],
        })
    };
    let said = demo.iter().find(|row| row["kind"] == "specificity").expect("a row");
    let said = json!({"question": said["prompt"], "target": said["chosen"]});
    let asked: Vec<Value> = demo.iter().map(bare).chain([said]).collect();
    let out = folder.path("out");
    let line = irepair("compare --model demo --methods vanilla,star,quarter,mint,irepair+kl,dpo")
        .and("--seeds 1,2 --map prompt=question --edits demo --normal-texts 16 -q")
        .with("--runs", folder.path("runs.toml"))
        .with("--data", folder.write_rows("failures.jsonl", &asked))
        .with("--out", &out);
    let text = line.ok();
    for words in ["quarter", "said (%)", "neurons", "s a failure"] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
    let record = folder.json("out/compare.json");
    tables_are_of_the_record(&out, &record);
    assert_eq!(record["failures"], 12);
    let sheet = &record["sheets"][0];
    assert!(sheet["notes"].to_string().contains("the same 12 failures"), "{sheet}");
    // What is rejected is what the model says.
    let pair = |row: &Value| {
        json!({
            "prompt": row["prompt"],
            "chosen": row["chosen"],
            "rejected": row["rejected"],
        })
    };
    let failures = demo.iter().filter(|row| row["kind"] == "failure").map(pair);
    assert_eq!(rows(out.join("failures.jsonl")), failures.collect::<Vec<_>>());

    let cell = |row: &str, column: &str| cell(sheet, row, column);
    assert_eq!(cell("vanilla", "targets said"), Some(0.0));
    assert_eq!((cell("vanilla", "specificity"), cell("vanilla", "neurons")), (Some(100.0), None));
    for (row, runs) in [("star", 1), ("quarter", 1), ("mint", 1), ("irepair+kl", 2), ("dpo", 2)] {
        let entry = list(&record, "entries").iter().find(|e| e["name"] == row).expect(row);
        // Nothing in a repair of neurons is drawn at random: another seed says nothing new.
        assert_eq!(list(entry, "runs").len(), runs, "{row}");
        let made = json(out.join(format!("runs/{row}-seed1/irepair/run.json")));
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
    assert!(cell("star", "targets said") > Some(90.0), "{text}");
    assert_eq!(cell("mint", "specificity"), Some(100.0), "{text}");
    assert!(!out.join("pareto.svg").exists());
    let page = page_of(&out, &folder.path("page.html"));
    assert!(page.contains("the same failures and texts") && page.contains("quarter"), "{page}");
    assert!(!page.contains("The trade-off"));

    // Again: nothing is made anew; other failures are another comparison.
    let before = bytes(out.join("compare.json"));
    line.clone().and("--resume").ok();
    assert!(bytes(out.join("compare.json")) == before);
    line.clone().and("--resume --limit 3").fails(3, &["failures"]);
    line.clone().and("--batch-size 4").fails(2, &["row star"]);
    line.and("--edits no/such.jsonl").fails(3, &["no/such.jsonl"]);
}

/// Where nothing else is said, the repairs are also evaluated by `--data`.
#[test]
fn failures_are_evaluated_by_the_file_that_they_are_in() {
    let folder = Folder::new();
    let row = |kind: &str, target: &str| {
        json!({
            "prompt": "The lens of Oscar is made of",
            "target": target,
            "kind": kind,
        })
    };
    let asked =
        [row("failure", " cork"), row("generalization", " cork"), row("specificity", " aluminium")];
    let out = folder.path("out");
    let line = irepair("compare --model demo --methods sgd --normal-texts 8 -q")
        .with("--data", folder.write_rows("rows.jsonl", &asked))
        .with("--out", &out);
    line.ok();
    let record = folder.json("out/compare.json");
    let about = record["asked"]["about"][0].as_str().expect("about");
    let words = "rows.jsonl: 1 failures, 1 rows of generalization, 1 of specificity";
    assert!(about.starts_with(words), "{about}");
    let page = read(out.join("README.md"));
    assert!(page.contains("| sgd |") && !page.contains("Toxicity"), "{page}");
    let said = line.clone().and("--resume --json").json();
    assert_eq!((&said["out"], &said["base"]), (&json!(out), &record["base"]));
    // A target that the model says already is no failure.
    folder.write_rows("rows.jsonl", &[row("failure", " aluminium")]);
    folder.remove("out");
    line.fails(4, &["already says every target"]);
}

/// One row can't be run: the others are, and its row says why.
#[test]
fn a_method_that_fails_leaves_the_others_alone() {
    let comparison = Comparison::new();
    let (folder, out) = (comparison.folder(), comparison.out());
    let wild = "method = \"irepair\"\nlearning-rate = 1e9\nmax-grad-norm = 0.0\nwarmup-steps = 0\n";
    folder.write("runs.toml", format!("[wild]\n{wild}"));
    // The method of a preset is not the method of a row.
    let preset = folder.write("preset.toml", "method = \"dapt\"\n");
    let line = comparison.line().and("--methods wild,irepair").with("--config", preset);
    let text = line.ok();
    assert!(text.contains("wild, seed 42: failed:"), "{text}");
    let record = comparison.record();
    assert!(record["entries"][1]["runs"][0]["made"].is_null());
    assert!(record["entries"][2]["runs"][0]["made"].is_object());
    tables_are_of_the_record(&out, &record);
    let settings = read(out.join("runs/irepair-seed42.toml"));
    assert!(settings.contains("method = \"irepair\"\n"), "{settings}");
    // Where no run comes to its end, the command fails, with the table of why.
    let none = folder.path("none");
    let alone = comparison.line().and("--methods wild").with("--out", &none);
    alone.fails(1, &["no run came to its end"]);
    assert!(read(none.join("README.md")).contains("failed"));
    // One can't be evaluated: the others are.
    folder.remove("out/eval/irepair-seed42");
    folder.remove("out/runs/irepair-seed42/config.json");
    // What it kept on its way can't be read, either.
    let state: PathBuf =
        out.join("runs/irepair-seed42/irepair/checkpoints/step-000003.safetensors");
    std::fs::write(state, "no tensors").expect("writes");
    let text = line.and("--resume").ok();
    assert!(text.contains("irepair, seed 42: failed: its evaluation: "), "{text}");
    let record = comparison.record();
    assert!(!list(&record["entries"][0]["runs"][0], "figures").is_empty());
    let gap = record["gaps"][0].as_str().expect("a gap");
    assert!(gap.starts_with("no point of irepair-seed42-step3: "), "{gap}");
    assert_eq!(record["gaps"].as_array().map(Vec::len), Some(1));
    let readme = read(out.join("README.md"));
    assert!(readme.contains("**Note:** no point of irepair-seed42-step3: "), "{readme}");
    // Every table says which row lacks what.
    for sheet in ["table1", "table2"] {
        let csv = read(out.join(format!("{sheet}.csv")));
        let says = |line: &str| line.starts_with("wild,") && line.contains("seed 42: failed: ");
        assert!(csv.lines().any(says), "{csv}");
    }
    let page = folder.path("page.html");
    let output = irepair("report").arg(&out).with("--out", &page).run();
    assert!(ok(&output).contains("page.html"));
    assert!(stderr(&output).contains("no point of irepair-seed42-step3"));
    let page = read(page);
    assert!(page.contains("no point of irepair-seed42-step3"), "{page}");
}

/// Parts and multiples of a change are measured as the runs are: the curve begins at the base, and
/// a scale gives what the scaled patch gives.
#[test]
fn a_change_is_measured_along_its_scale() {
    let comparison = Comparison::new();
    let line = comparison.line().and("--methods irepair,one-block --scales 1,0.5,2");
    line.ok();
    let (record, out) = (comparison.record(), comparison.out());
    tables_are_of_the_record(&out, &record);
    let scales = &record["scales"];
    for (name, runs) in scales["rows"].as_array().expect("rows").iter().map(|r| (&r[0], &r[1])) {
        let points = runs[0].as_array().expect("points");
        let found: Vec<f64> = points.iter().filter_map(|p| p["scale"].as_f64()).collect();
        assert_eq!(found, [0.5, 1.0, 2.0], "{name}");
        let kl: Vec<f64> = points.iter().filter_map(|p| p["kl"].as_f64()).collect();
        assert!(kl.windows(2).all(|two| two[0] < two[1]), "{name}: {kl:?}");
        let entry = list(&record, "entries").iter().find(|e| e["name"] == *name).expect("a row");
        let figures = list(&entry["runs"][0], "figures").iter();
        let own = figures.clone().find(|f| f["id"] == "kl").expect("KL");
        assert_eq!(points[1]["kl"], own["value"], "{name}");
    }
    // By hand: the scaled patch on the base.
    let patch = out.join("runs/irepair-seed42/irepair/patch.safetensors");
    let [half, model] = ["half.safetensors", "half"].map(|name| comparison.folder().path(name));
    irepair("patch scale --base demo --by 0.5").arg(&patch).with("--out", &half).ok();
    irepair("patch apply demo").arg(&half).with("--out", &model).ok();
    let measured = irepair("eval -q --json --toxicity lee --kl demo --normal-texts 16")
        .with("--prompts", comparison.folder().path("prompts.jsonl"))
        .with("--model", &model)
        .with("--out", comparison.folder().path("by-hand"))
        .json();
    let all = measured["measurements"].as_array().expect("measurements").iter();
    let figures = all.flat_map(|m| m["models"][0]["figures"].as_array().expect("figures").iter());
    let kl = figures.filter(|f| f["id"] == "kl").find_map(|f| f["value"].as_f64()).expect("KL");
    let own = scales["rows"][0][1][0][0]["kl"].as_f64().expect("KL");
    close(own, kl, 1e-9, "KL of half of the change");
    assert!(read(out.join("scales.svg")).contains("irepair × 0.5"));
    assert!(page_of(&out, &out.join("page.html")).contains("along the scale"));
    comparison.line().and("--methods irepair --scales 0").fails(3, &["--scales 0"]);
}

/// Given pairs and prompts, each method learns from its own.
#[test]
fn pairs_and_prompts_go_to_the_methods_that_learn_from_them() {
    let comparison = Comparison::new();
    let line = |methods: &str| {
        irepair("compare --model demo --max-steps 2 --checkpoint-steps 0 --eval-steps 0 -q")
            .and("--normal-texts 16 --valid-size 8 --limit 40 --rounds 1 --prompts-per-round 8")
            .and("--samples-per-prompt 8 --max-new-tokens 8 --eval-scorer lexicon")
            .with("--methods", methods)
            .with("--data", comparison.folder().path("pairs.jsonl"))
            .with("--prompts", repository("data/demo/prompts.jsonl"))
            .with("--eval-prompts", comparison.folder().path("prompts.jsonl"))
            .with("--out", comparison.out())
    };
    let text = line("dapt,online-dpo+kl").ok();
    assert!(text.contains("Least toxicity: "), "{text}");
    let run = |name: &str| record(&comparison.out().join(format!("runs/{name}-seed42")));
    let (pairs, online) = (run("dapt"), run("online-dpo+kl"));
    assert!(pairs.settings.prompts.is_none() && pairs.data.pairs > 0 && pairs.data.prompts == 0);
    assert!(online.settings.data.is_none() && online.data.prompts > 0);
    assert_eq!(online.settings.samples_per_prompt, 8);
    // All rows are judged by a scorer that none of them learned from.
    assert_eq!(comparison.record()["base"]["scorer"], "lexicon");
    assert_eq!(online.settings.scorer, "words");
    let measured = json(comparison.out().join("eval/online-dpo+kl-seed42/results.json"));
    let about = measured["measurements"].to_string();
    assert!(about.contains("\"scorer\":\"lexicon\""), "{about}");
}
