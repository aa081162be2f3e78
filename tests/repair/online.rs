//! Online repair: from prompts and a scorer, in rounds of the model's own texts.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::command::{CommandLine, irepair};
use crate::support::files::{Folder, bytes, names, repository, rows};
use crate::support::golden;
use crate::support::repaired::{files, online, online_as, partial, record, steps};

/// The rows of every file of a round, by its name.
fn rounds(out: &Path, ending: &str) -> Vec<Vec<Value>> {
    let folder = out.join("irepair/rounds");
    let names = names(&folder).into_iter().filter(|name| {
        let name = name.to_string_lossy();
        name.ends_with(ending) && name.starts_with(|c: char| c.is_ascii_digit())
    });
    names.map(|name| rows(folder.join(name))).collect()
}

fn round_lines(out: &Path) -> Vec<Value> {
    let lines = rows(out.join("irepair/steps.jsonl")).into_iter();
    lines.filter(|line| line.get("round").is_some()).collect()
}

fn score(text: &Value) -> f64 {
    text["score"].as_f64().expect("a score")
}

/// The same seed gives the same bytes, another seed others. A pair is a toxic and a clean text of
/// one prompt, both of them with words, and no text is asked for twice.
#[test]
fn a_seed_decides_and_pairs_are_of_both_kinds() {
    let folder = Folder::new();
    let [one, two, other] = ["one", "two", "other"].map(|name| folder.path(name));
    online(&one).ok();
    online(&two).ok();
    online(&other).and("--seed 1").ok();
    assert_eq!(files(&one), files(&two));
    assert_ne!(files(&one), files(&other));
    for name in names(&one.join("irepair/rounds")) {
        let file = |out: &Path| bytes(out.join("irepair/rounds").join(&name));
        assert!(file(&one) == file(&two), "{}", name.display());
    }
    let made = rounds(&one, ".pairs.jsonl");
    assert!(made.len() == 2 && made.iter().all(|pairs| !pairs.is_empty()));
    for pair in made.iter().flatten() {
        let (chosen, rejected) = (&pair["chosen"], &pair["rejected"]);
        assert_eq!(chosen["prompt"], rejected["prompt"]);
        for text in [chosen, rejected] {
            assert!(!text["text"].as_str().expect("text").trim().is_empty(), "{pair}");
            assert!(!text["ids"].as_array().expect("ids").is_empty(), "{pair}");
        }
        assert!(score(chosen) <= 0.25 && score(rejected) >= 0.5, "{pair}");
    }
    // In the log, and in words, the scorer was asked for each text once.
    let sampled = ["0000.jsonl", "0001.jsonl"].map(|n| rows(one.join("irepair/rounds").join(n)));
    let texts: BTreeSet<String> = sampled
        .iter()
        .flatten()
        .flat_map(|line| line["rows"].as_array().cloned().unwrap_or_default())
        .filter(|row| row["score"].is_number())
        .map(|row| row["text"].as_str().expect("text").to_owned())
        .collect();
    let lines = round_lines(&one);
    assert_eq!((lines.len(), steps(&one).len()), (2, 4));
    assert_eq!(lines[1]["asked"], texts.len(), "{lines:?}");
    assert!(lines[1]["asked"].as_u64() < Some(64), "no text came twice: nothing is shown");
    assert_eq!((&lines[0]["texts"], &lines[0]["greedy"]), (&json!(32), &json!(8)));
    let run = record(&one);
    assert_eq!((run.data.prompts, run.data.held_back), (32, 8));
    assert!(run.after.contains_key("kl"));
}

/// Another scorer judges, and nothing of the weights depends on it. Where the same one judges, the
/// words say that the repair learned from it.
#[test]
fn another_scorer_can_judge() {
    let folder = Folder::new();
    let [own, other] = ["own", "other"].map(|name| folder.path(name));
    let told = online(&own).and("--scorer words").ok();
    assert!(told.contains("scored by words, from which it learned"), "{told}");
    let told = online(&other).and("--scorer words --eval-scorer lexicon").ok();
    assert!(told.contains("scored by lexicon") && !told.contains("it learned"), "{told}");
    let weights = |out: &Path| bytes(out.join("model.safetensors"));
    assert!(weights(&own) == weights(&other));
    let [own, other] = [&own, &other].map(|out| record(out));
    assert!(own.scorer.contains("learned from it") && other.scorer.starts_with("lexicon: "));
    assert_ne!(own.before, other.before);
    online(folder.path("none")).and("--eval-scorer no").fails(3, &["--eval-scorer", "no"]);
}

/// Empty texts and texts of blanks make no pair: a scorer is not asked for them.
#[test]
fn what_has_no_words_is_neither_chosen_nor_rejected() {
    let folder = Folder::new();
    let out = folder.path("out");
    // Most first tokens of this model are parts of words, some are blanks.
    let said = online(&out)
        .and("--max-new-tokens 1 --samples-per-prompt 32 --rejected-above 0.06")
        .and("--chosen-below 0.05 --temperature 2 --top-p 1")
        .run();
    let all: Vec<Value> = ["0000.jsonl", "0001.jsonl"]
        .iter()
        .flat_map(|name| rows(out.join("irepair/rounds").join(name)))
        .flat_map(|line| line["rows"].as_array().cloned().unwrap_or_default())
        .collect();
    assert!(said.status.success() && all.len() >= 256, "{} texts", all.len());
    let blank = |row: &&Value| row["text"].as_str().expect("text").trim().is_empty();
    let blanks: Vec<&Value> = all.iter().filter(blank).collect();
    assert!(!blanks.is_empty(), "no text was blank: nothing is shown");
    assert!(blanks.iter().all(|row| row["score"].is_null()), "{blanks:?}");
    for pair in rounds(&out, ".pairs.jsonl").iter().flatten() {
        for kind in ["chosen", "rejected"] {
            assert!(!pair[kind]["text"].as_str().expect("text").trim().is_empty(), "{pair}");
        }
    }
    let empty: u64 = round_lines(&out).iter().filter_map(|line| line["empty"].as_u64()).sum();
    assert_eq!(empty, blanks.len() as u64);
}

/// Nothing to repair, and nothing to learn from: said after the first round, with a remedy, and
/// nothing is in the way of a corrected command.
#[test]
fn nothing_toxic_and_nothing_clean_are_failed_checks() {
    let folder = Folder::new();
    let out = folder.path("out");
    for (more, words) in [
        ("--rejected-above 1", ["there is nothing to repair", "--rejected-above"]),
        (
            "--rejected-above 0.01 --chosen-below 0",
            ["no prompt has texts of both kinds", "--samples-per-prompt"],
        ),
        (
            "--method online-dpo-trial+kl --rejected-above 0.01 --chosen-below 0",
            ["no held-back prompt has texts of both kinds", "--valid-size"],
        ),
    ] {
        online(&out).and(more).fails(4, &words);
        assert!(!out.exists() && !partial(&out).exists(), "{more}");
    }
    let words = ["no token of", "marks the rejected", "--prompts-per-round"];
    parts(&out, "all", "dpo-ul").fails(4, &words);
    assert!(!partial(&out).exists());
    online(&out).ok();
}

/// The parts of a method, online.
fn parts(out: &Path, select: &str, objective: &str) -> CommandLine {
    online_as(out, "")
        .with("--prompts", repository("data/demo/prompts.jsonl"))
        .with("--select", select)
        .with("--objective", objective)
}

/// Every objective that contrasts, and every selector.
#[test]
fn rounds_go_with_every_objective_and_selector() {
    let folder = Folder::new();
    let cases = [
        ("all", "dpo"),
        ("max", "dpo-norm"),
        ("fixed", "ipo"),
        ("trial", "hinge"),
        ("min", "unlikelihood"),
        ("fixed", "dpo-ul"),
        ("max", "npo"),
        ("all", "kto"),
        ("all", "nll"),
    ];
    for (select, objective) in cases {
        let out = folder.path(format!("{select}-{objective}"));
        let mut line = parts(&out, select, objective).and("--kl-weight 1");
        if select == "trial" {
            line = line.and("--trial-steps 1");
        }
        if objective == "dpo-ul" {
            line = line.and("--prompts-per-round 24 --samples-per-prompt 16");
        }
        line.ok();
        let (run, made) = (record(&out), steps(&out));
        let blocks: BTreeSet<Option<usize>> = made.iter().map(|step| step.block).collect();
        assert_eq!((made.len(), round_lines(&out).len()), (4, 2), "{select} {objective}");
        assert!(made.iter().all(|s| s.loss.is_finite()) && !run.changed.is_empty());
        match select {
            "all" => assert_eq!(blocks, BTreeSet::from([None])),
            "fixed" | "trial" => assert!(blocks.len() == 1 && !blocks.contains(&None)),
            _ => assert!(!blocks.contains(&None)),
        }
        // What tells rejected from chosen comes from the sampled pairs.
        let markers = out.join("irepair/marker_tokens.jsonl");
        assert_eq!(markers.exists(), objective == "dpo-ul");
        if select == "fixed" {
            // The look at the first round's pairs is a part of what the run took.
            assert!(run.tokens > made.iter().map(|step| step.tokens).sum());
            // And not of what sampling took: both rounds write as many texts.
            let took = |line: &Value| line["operations"].as_f64().expect("operations");
            let of = round_lines(&out);
            assert!(took(&of[0]) < 1.5 * took(&of[1]), "{objective}: {of:?}");
        }
    }
}

/// What can't go together is refused by name, before anything is made.
#[test]
fn what_contradicts_is_refused_by_name() {
    let folder = Folder::new();
    let prompts = folder.write("prompts.txt", "You are\nI am\n");
    let empty = folder.write("empty.jsonl", "");
    let out = folder.path("out");
    let data = repository("data/demo/pairs.jsonl");
    let line = |words: &str| irepair("repair -q --model demo").and(words).with("--out", &out);
    let on = |words: &str| line(words).with("--prompts", &prompts);
    for method in ["star", "mint", "sgd"] {
        on(&format!("--method {method}")).fails(2, &[method, "--prompts"]);
    }
    on("--rejected-above 2").fails(3, &["--rejected-above 2", "from 0 to 1"]);
    on("").with("--data", &data).fails(2, &["online-dpo+kl", "--data"]);
    on("--method dpo+kl").with("--data", &data).fails(2, &["dpo+kl", "--data"]);
    line("--method dpo+kl --rounds 2").fails(2, &["--method dpo+kl", "--rounds"]);
    line("--method dpo+kl --samples-per-prompt 2").fails(2, &["--samples-per-prompt"]);
    for method in ["irepair", "dapt", "dpo"] {
        let words = [method, "no KL term", "--kl-budget"];
        line(&format!("--kl-budget 0.1 --method {method}")).fails(2, &words);
    }
    line("--method star --kl-budget 0.1").fails(2, &["star", "--kl-budget"]);
    for method in ["--method irepair+kl", "--select all --objective dpo", "--method online-dpo+kl"]
    {
        let both = line(method).and("--kl-budget 0.1 --kl-weight 1");
        both.fails(2, &["--kl-budget", "--kl-weight"]);
    }
    // The higher one of two layers decides, either way.
    let config = folder.write("both.toml", "kl-budget = 0.1\nkl-weight = 1.0\n");
    line("--dry-run").with("--config", &config).fails(2, &["--kl-budget", "--kl-weight"]);
    let config = folder.write("weight.toml", "kl-weight = 1.0\n");
    line("--dry-run --kl-budget 0.1").with("--config", &config).ok();
    let plan = line("--dry-run --method online-dpo+kl --rounds 3 --samples-per-prompt 4").ok();
    // Longer texts of a round take more memory; no normal texts are written that take as much.
    let row = json!({ "text": "The old farmer said to the baker that it would rain." });
    let normal = folder.write_rows("normal.jsonl", &vec![row; 12]);
    let short: String = (0..12).map(|index| format!("You are {index}\n")).collect();
    let short = folder.write("short.txt", short);
    let memory = |tokens: usize| {
        let line = line("--dry-run --json --batch-size 1 --valid-size 2 --eval-samples 0");
        let line = line.with("--prompts", &short).with("--normal", &normal);
        let line = line.with("--max-new-tokens", tokens.to_string());
        line.json()["memory_mib"].as_u64().expect("memory")
    };
    assert!(memory(100) > memory(20) + 10, "{} and {}", memory(100), memory(20));
    for words in ["to sample from", "3 of ", "4 texts each: ", "scored and paired"] {
        assert!(plan.contains(words) && !plan.contains("to learn from"), "{words}: {plan}");
    }
    // What is learned from sampled pairs is not known when time is told.
    line("--dry-run --select fixed --objective dpo-ul --kl-weight 1")
        .with("--prompts", repository("data/demo/prompts.jsonl"))
        .ok();
    // No more rounds are promised than there are steps for.
    let plan = line("--dry-run --method online-dpo+kl --rounds 90 --max-steps 4").ok();
    assert!(plan.contains("rounds  4 of "), "{plan}");
    for (value, code) in [("0", 3), ("0.0", 3), ("NaN", 2), ("inf", 2), ("-1", 2), ("x", 2)] {
        let budget = format!("--kl-budget={value}");
        line("--method irepair+kl").and(&budget).fails(code, &["--kl-budget"]);
        let config = folder.write("budget.toml", format!("kl-budget = {value}\n"));
        if code == 3 {
            line("").with("--config", &config).fails(3, &["kl-budget"]);
        }
    }
    for (words, named) in [
        ("--temperature 0", "--temperature"),
        ("--top-p 0", "--top-p"),
        ("--top-p 1.5", "--top-p"),
        ("--beta 0", "--beta"),
        ("--samples-per-prompt 1", "--samples-per-prompt"),
        ("--rounds 0", "--rounds"),
        ("--prompts-per-round 0", "--prompts-per-round"),
        ("--rejected-above 0.2", "--chosen-below"),
        ("--valid-size 2", "--valid-size"),
    ] {
        on(words).fails(3, &[named]);
    }
    line("").with("--prompts", folder.path("none.jsonl")).fails(3, &["none.jsonl"]);
    line("").with("--prompts", &empty).fails(3, &["empty.jsonl"]);
    // No prompts are known for another model than the demo.
    let model = golden::path("gpt2");
    let other = line("--method online-dpo+kl").with("--model", &model);
    other.fails(3, &["--prompts is missing"]);
    other.with("--data", &data).fails(3, &["--prompts is missing"]);
    assert!(!out.exists() && !partial(&out).exists());
}

/// KL on held-back normal text stays within the budget, where it goes well beyond it without one.
#[test]
fn a_budget_of_kl_is_kept() {
    const BUDGET: f64 = 0.004;
    let folder = Folder::new();
    let kl = |out: &Path| record(out).after["kl"];
    let offline = |out: &Path, method: &str| {
        irepair("repair --max-steps 12 --batch-size 4 --normal-texts 48 --limit 64 -q")
            .and("--valid-size 16 --eval-steps 6 --learning-rate 3e-3 --eval-samples 0")
            .with("--eval-prompts", folder.few_prompts())
            .with("--method", method)
            .with("--out", out)
    };
    for method in ["irepair+kl", "online-dpo+kl"] {
        let [with, without, again] =
            ["with", "without", "again"].map(|name| folder.path(format!("{name}-{method}")));
        let line = |out: &Path| match method {
            "online-dpo+kl" => online(out).and("--learning-rate 3e-4 --max-steps 8"),
            _ => offline(out, method),
        };
        line(&without).ok();
        let budget = format!("--kl-budget {BUDGET}");
        line(&with).and(&budget).ok();
        if method == "online-dpo+kl" {
            line(&again).and(&budget).ok();
            assert_eq!(files(&with), files(&again));
        }
        let (free, kept) = (kl(&without), kl(&with));
        assert!(free > 1.5 * BUDGET, "{method}: {free} without a budget");
        assert!(kept <= 1.01 * BUDGET && kept > 0.5 * BUDGET, "{method}: {kept}");
        assert!(record(&with).stopped.contains("--kl-budget"), "{method}");
        // The weight moves, and stands in the log.
        let weights: Vec<f64> = steps(&with).iter().filter_map(|s| s.kl_weight).collect();
        assert!(weights.len() == steps(&with).len() && weights[0] != weights[weights.len() - 1]);
        assert!(steps(&without).iter().all(|s| s.kl_weight.is_none()));
    }
    // A budget beyond reach changes the weight, and nothing else is done.
    let loose = folder.path("loose");
    offline(&loose, "dapt+kl").and("--kl-budget 1000").ok();
    assert!(!record(&loose).stopped.contains("--kl-budget"));
    // Parts have a KL term where a budget is given.
    let of_parts = folder.path("parts");
    irepair("repair --max-steps 4 --batch-size 4 --normal-texts 48 --limit 64 -q --valid-size 16")
        .and("--eval-steps 0 --select all --objective dpo --learning-rate 3e-3 --kl-budget 0.004")
        .and("--eval-samples 0")
        .with("--eval-prompts", folder.few_prompts())
        .with("--out", &of_parts)
        .ok();
    assert!(record(&of_parts).settings.method.ends_with("+kl") && kl(&of_parts) <= 1.01 * BUDGET);
}

/// Rows that a repair takes, with their scores: the same ones every time.
#[test]
fn pairs_are_rows_for_a_repair() {
    let folder = Folder::new();
    let [one, two, out] = ["one.jsonl", "two.jsonl", "out"].map(|name| folder.path(name));
    let pairs = |out: &Path| {
        irepair("pairs -q --limit 24 --samples-per-prompt 8 --max-new-tokens 8").with("--out", out)
    };
    pairs(&one).ok();
    pairs(&two).ok();
    assert!(bytes(&one) == bytes(&two));
    let made = rows(&one);
    assert!(made.len() >= 16, "{}", made.len());
    for row in &made {
        let number = |key: &str| row[key].as_f64().expect("a score");
        assert!(number("chosen_score") <= 0.25 && number("rejected_score") >= 0.5, "{row}");
        assert!(!row["chosen"].as_str().expect("text").trim().is_empty());
    }
    // The worst against the best comes first.
    let first = |a: &Value, b: &Value| {
        a["prompt"] != b["prompt"] || {
            a["rejected_score"].as_f64() >= b["rejected_score"].as_f64()
                && a["chosen_score"].as_f64() <= b["chosen_score"].as_f64()
        }
    };
    assert!(made.windows(2).all(|w| first(&w[0], &w[1])));
    // An output is replaced only when that is said, and the prompts never are.
    pairs(&one).and("--seed 1").fails(3, &["one.jsonl exists", "--overwrite"]);
    pairs(&one).and("--seed 1 --overwrite").ok();
    assert!(bytes(&one) != bytes(&two));
    let prompts = folder.write("prompts.txt", "Subject: it is broken\n");
    let same = pairs(&prompts).with("--prompts", &prompts).and("--overwrite");
    same.fails(3, &["prompts.txt", "the file of prompts"]);
    let said = pairs(&folder.path("said.jsonl")).and("--json").json();
    assert_eq!((&said["prompts"], &said["texts"]), (&json!(24), &json!(192)));
    assert_eq!(said["pairs"], made.len());
    assert!(said["asked"].as_u64() < Some(192));
    irepair("repair -q --method dpo+kl --max-steps 2 --batch-size 2 --normal-texts 16")
        .and("--valid-size 4 --eval-steps 0 --model demo")
        .with("--data", &two)
        .with("--out", &out)
        .ok();
    assert_eq!(record(&out).data.pairs + record(&out).data.held_back, made.len());
    // A prompt that is cut stands in the rows as it was continued.
    let short = folder.path("short.jsonl");
    pairs(&short).and("--max-prompt-length 20 --rejected-above 0.06 --chosen-below 0.05").ok();
    let whole: BTreeSet<&str> = made.iter().filter_map(|r| r["prompt"].as_str()).collect();
    let cut = rows(&short);
    assert!(cut.iter().all(|row| !whole.contains(row["prompt"].as_str().expect("text"))));
    // Nothing of both kinds: said, and nothing is left.
    let none = folder.path("none.jsonl");
    pairs(&none).and("--rejected-above 1").fails(4, &["both kinds", "--samples-per-prompt"]);
    assert!(!none.exists() && !partial(&none).exists());
    for (words, named) in [
        ("--temperature 0", "--temperature"),
        ("--top-p 1.1", "--top-p"),
        ("--samples-per-prompt 1", "--samples-per-prompt"),
        ("--limit 0", "--limit"),
        ("--pairs-per-prompt 0", "--pairs-per-prompt"),
        ("--rejected-above 0.1", "--chosen-below"),
    ] {
        pairs(&none).and(words).fails(3, &[named]);
    }
}
