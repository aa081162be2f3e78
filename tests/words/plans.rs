//! What a run will take is said before it, and is true: plans, memory, operations.

use irepair::model::precision::Precision;
use irepair::step::METHODS;

use crate::support::command::{CommandLine, irepair};
use crate::support::files::{Folder, bytes};
use crate::support::golden;
use crate::support::repaired::{demo, quick};
use crate::support::tensors::close;

/// Each part of the run has its time, and the line for people names the same parts.
fn times_are_said(found: &serde_json::Value, text: &str) {
    let parts: Vec<&str> = found["time"]
        .as_array()
        .expect("parts")
        .iter()
        .map(|part| {
            assert!(part["seconds"].as_f64().expect("seconds") > 0.0, "{part}");
            part["what"].as_str().expect("a part")
        })
        .collect();
    let line = text.lines().find(|line| line.starts_with("time    about ")).expect("a time");
    for part in &parts {
        assert!(line.contains(part), "{part:?} is not in {line}");
    }
    assert!(parts.contains(&"12 steps") && parts.contains(&"measuring before and after"));
}

#[test]
fn a_dry_run_writes_nothing_and_the_memory_limit_refuses() {
    let folder = Folder::new();
    let out = folder.path("out");
    let plan = |more: &str| demo(&out).and("--dry-run").and(more);
    let says = |more: &str, words: &[&str]| {
        let plan = plan(more).ok();
        for words in words {
            assert!(plan.contains(words), "{words:?} is not in:\n{plan}");
        }
        plan
    };
    let first = ["48 to learn from, 16 held back", "12 of 4 pairs", "MiB at most"];
    says("", &[&first[..], &["the model writes"]].concat());
    for (flags, words) in [
        ("--select trial --objective dpo --trial-steps 3", "before  18 trial steps are made"),
        ("--method irepair-fixed --fixed-sample 20", "before  the selector looks at 20 pairs"),
    ] {
        let plan = says(flags, &[words]);
        assert!(!plan.contains("the model writes"), "{plan}");
    }
    // The parts of the phase that takes most: writing the continuations, or a step.
    says("--batch-size 1", &["keys and values"]);
    says("--batch-size 24", &["activations"]);
    let found = plan("--json").json();
    assert!(found["memory_mib"].as_u64().expect("memory") > 10);
    times_are_said(&found, &plan("").ok());
    says("--gradient-accumulation-steps 3", &["12 of 12 pairs"]);
    what_the_run_would_refuse(&plan(""));
    // A guard without a text is refused; a method with a KL term will write some.
    let guard = quick(&out).and("--dry-run --max-ppl-increase 5");
    guard.clone().and("--method irepair").fails(3, &["needs a text"]);
    guard.and("--method irepair+kl").ok();
    // Normal texts of a file are counted.
    let few = golden::path("normal.jsonl");
    let counted = quick(&out).and("--dry-run --batch-size 3").with("--normal", few).ok();
    assert!(counted.contains("3 normal texts, 1 held back"), "{counted}");
    // A preset's method gives way to a flag's, and leaves nothing that contradicts it.
    for flags in ["--method dapt", "--method dpo+kl", "--select all --objective dpo"] {
        plan("--config paper-gpt2-large --max-prompt-length 32 --max-length 64").and(flags).ok();
    }
    // And a variable's gives way to a flag's, whichever way it is said.
    for (variable, value, flags, method) in [
        ("IREPAIR_METHOD", "dapt", "--select max", "max-nll"),
        ("IREPAIR_SELECT", "all", "--method irepair", "irepair"),
        ("IREPAIR_OBJECTIVE", "dpo", "--method dapt", "dapt"),
    ] {
        let plan = plan(flags).env(variable, value).ok();
        let words = format!("method  {method}\n");
        assert!(plan.contains(&words), "{variable}={value} {flags}: {plan}");
    }
    // A batch so large that its activations don't fit: 1 MiB less than the plan says is too little.
    let large = plan("--batch-size 24 --recompute never --json");
    let needed = large.json()["memory_mib"].as_u64().expect("memory");
    let about = format!("about {needed} MiB");
    let allowed = format!("{} are allowed", needed - 1);
    let advice = ["activations ", "lower --batch-size", "--max-length"];
    too_little(&large, needed - 1, &[&[&*about, &allowed], &advice[..]].concat());
    large.env("IREPAIR_MEMORY_LIMIT", needed.to_string()).ok();
    // Unless told not to, it then computes the blocks again, and says so.
    let again = plan("--batch-size 24").env("IREPAIR_MEMORY_LIMIT", (needed - 1).to_string()).ok();
    assert!(again.contains("computed again for the backward pass"), "{again}");
    let always = plan("--batch-size 24 --recompute always --json").json();
    assert!(always["memory_mib"].as_u64().expect("memory") < needed, "{always}");
    assert_eq!(always["memory"]["recompute"], true);
    assert_eq!(folder.count(), 0, "something was written");
    memory_is_counted_before_the_weights_are_read(&folder);
}

/// `limit` MiB are too little for this command, and it says for what.
#[track_caller]
fn too_little(line: &CommandLine, limit: u64, words: &[&str]) {
    let always = ["too little memory: about ", " MiB are needed (", "weights "];
    line.clone()
        .env("IREPAIR_MEMORY_LIMIT", limit.to_string())
        .fails(3, &[&always, words].concat());
}

/// A plan refuses what the run itself would.
fn what_the_run_would_refuse(plan: &CommandLine) {
    for (flags, words) in [
        ("--method trial-dpo-ul+kl --limit 12 --valid-size 4", "marks the rejected responses"),
        ("--method irepair-fixed --fixed-sample 100", "48 pairs to learn from"),
        ("--method trial-dpo+kl --valid-size 0", "holds none back"),
        ("--normal-texts 2", "--normal-texts 2 are fewer than a batch of 4"),
    ] {
        plan.clone().and(flags).fails(3, &[words]);
    }
    let elsewhere = Folder::new();
    elsewhere.write("begun.partial/irepair/state/state.safetensors", "");
    let normal = golden::path("normal.jsonl");
    plan.clone()
        .and("--batch-size 5")
        .with("--normal", normal)
        .fails(3, &["4 texts are fewer than a batch of 5"]);
    // A plan minds nothing that is there, and says what is in the run's way.
    for (out, words) in [
        (golden::path("gpt2"), "something else has this name"),
        (elsewhere.path("begun"), "an unfinished run is in"),
    ] {
        let plan = plan.clone().with("--out", out).ok();
        assert!(plan.contains(words), "{plan}");
    }
}

/// Every command counts its memory before it reads the weights: they are broken here.
fn memory_is_counted_before_the_weights_are_read(folder: &Folder) {
    let model = golden::path("gpt2");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let mut whole = bytes(model.join(name));
        if name == "model.safetensors" {
            let at = whole.len() - 4;
            whole[at..].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        folder.write(&format!("model/{name}"), whole);
    }
    let corpus = folder.write("corpus.txt", "The rain came again. ".repeat(40));
    let (out, texts) = (folder.path("out"), folder.path("texts.jsonl"));
    let pairs = golden::path("pairs.jsonl");
    let repair = irepair("repair --valid-size 0 --max-length 64 -q").with("--data", &pairs);
    let eval = irepair("eval --overwrite").with("--ppl", &corpus);
    for (line, advice) in [
        (repair.with("--out", &out), "lower --batch-size"),
        (irepair("sensitivity").with("--data", &pairs), "lower --batch-size"),
        (irepair("generate --unconditional 2").with("--out", &texts), "lower --batch-size"),
        (eval.with("--out", &texts), "a smaller model"),
    ] {
        let line = line.with("--model", folder.path("model"));
        too_little(&line, 10, &[advice]);
        let error = String::from_utf8_lossy(&line.run().stderr).into_owned();
        assert!(error.contains("NaN"), "{line:?}: {error}");
    }
    too_little(&irepair("bench --config gpt2-xl --method dpo"), 10, &["lower --batch"]);
}

#[test]
fn a_dry_run_says_what_it_takes_and_writes_nothing() {
    let folder = Folder::new();
    let out = folder.path("out");
    let line = irepair("repair --method star").with("--out", &out);
    let plan = line.clone().and("--dry-run --json -q").json();
    assert_eq!((plan["rows"].as_u64(), plan["neurons"].as_u64()), (Some(12), Some(6 * 512)));
    let parts = plan["memory"]["parts"].as_array().expect("parts");
    assert!(parts.iter().any(|part| part["name"] == "linear systems"), "{parts:?}");
    assert!(!out.exists());
    line.env("IREPAIR_MEMORY_LIMIT", "10").fails(3, &["linear systems"]);
}

/// The estimate that `--dry-run` and the check of memory go by, for a slice and for everything, at
/// the shape of gpt2.
#[test]
fn the_estimate_is_within_15_percent_of_the_peak() {
    let mixed = if Precision::Bf16.unavailable().is_none() { "bf16" } else { "f32" };
    for (method, dtype) in [("irepair+kl", "f32"), ("dapt+kl", mixed)] {
        let said = irepair("bench --config gpt2 --iterations 1 --profile")
            .with("--method", method)
            .with("--dtype", dtype)
            .warns();
        let line = said.lines().find(|line| line.starts_with("memory: ")).expect("the estimate");
        let numbers: Vec<f64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        close(numbers[1], numbers[0], 0.15, &format!("{method} {dtype}: {line}"));
    }
}

/// Kaplan's formula with what each method skips against the products that were made.
#[test]
fn operations_are_those_of_the_formula() {
    for method in METHODS.iter().map(|m| m.name) {
        let json = irepair("bench --config gpt2 --blocks 3 --tokens 32 --batch 3 --iterations 1")
            .with("--method", method)
            .json();
        let (counted, formula) = (json["gflop"].as_f64(), json["gflop_kaplan"].as_f64());
        let ratio = formula.expect("formula") / counted.expect("counted");
        assert!((ratio - 1.0).abs() < 0.05, "{method}: {ratio} ({json})");
    }
}
