//! Trials choose the slice of a repair.

use irepair::model::precision::Precision;
use serde_json::Value;

use crate::support::files::{Folder, rows};
use crate::support::process::{kill, until};
use crate::support::repaired::{demo, files, partial, quick, record, steps_made};

/// The trial's winner is the slice of every step, and a run that was killed keeps it. The run is in
/// mixed precision where the processor has it.
#[test]
fn trials_choose_the_slice_of_the_whole_run() {
    let folder = Folder::new();
    let (whole, out) = (folder.path("whole"), folder.path("killed"));
    let repair = |out| {
        demo(out)
            .and("-q --select trial --objective dpo --kl-weight 2 --slice sublayer")
            .and("--trial-steps 2 --dtype bf16 --learning-rate 1e-4")
    };
    repair(&whole).ok();
    let lines = rows(whole.join("irepair/steps.jsonl"));
    let trials: Vec<&Value> = lines.iter().filter(|l| l.get("trial").is_some()).collect();
    assert_eq!(trials.len(), 12, "an attention and an MLP in each of six blocks");
    let loss = |t: &Value| t["valid_loss"].as_f64().expect("loss");
    let best = trials.iter().min_by(|a, b| loss(a).total_cmp(&loss(b))).expect("trials");
    for step in lines.iter().filter(|l| l.get("lr").is_some()) {
        assert_eq!(step["slice"], best["trial"]);
    }
    let run = record(&whole);
    assert_eq!(run.dtype == Precision::Bf16, Precision::Bf16.unavailable().is_none());
    let all_of =
        |parts: [&str; 2]| run.changed.iter().all(|c| parts.iter().any(|p| c.name.contains(p)));
    assert!(all_of([".mlp.", ".ln_2."]) || all_of([".attn.", ".ln_1."]));
    let mut child = repair(&out).start();
    until(&mut child, || steps_made(&partial(&out)) >= 7);
    kill(&mut child);
    repair(&out).and("--resume").ok();
    assert_eq!(files(&out), files(&whole));
}

/// Trials are judged on held-back rows even where nothing is validated later. One that diverges is
/// the worst, not the end.
#[test]
fn trials_without_validations_and_trials_that_diverge() {
    let folder = Folder::new();
    let out = folder.path("out");
    let trial = |more: &str| quick(&out).and("-q --method trial-dpo+kl --trial-steps 2").and(more);
    trial("--eval-steps 0").ok();
    let lines = rows(out.join("irepair/steps.jsonl"));
    let sum = |key: &str| lines.iter().filter_map(|l| l[key].as_u64()).sum::<u64>();
    let trials = lines.iter().filter(|l| l.get("trial").is_some());
    for trial in trials {
        assert!(trial["operations"].as_u64() > Some(0) && trial["tokens"].as_u64() > Some(0));
    }
    assert!(!out.join("irepair/marker_tokens.jsonl").exists(), "DPO alone asks no token");
    // What the trials took is a part of what the run took.
    let run = record(&out);
    assert_eq!((run.operations, run.tokens as u64), (sum("operations"), sum("tokens")));
    assert_eq!(run.resolved["kl-weight"], 2.0);
    assert_eq!((&run.resolved["beta"], &run.resolved["select"]), (&0.1.into(), &"trial".into()));
    // As the error says, the untouched base is the state. A sane rate goes on from it, and makes
    // the trials.
    let broken = trial("--max-grad-norm 0 --overwrite");
    let words = ["the loss of every trial", "--resume"];
    broken.clone().and("--learning-rate 1e30").fails(1, &words);
    broken.and("--learning-rate 1e-4 --resume").ok();
}
