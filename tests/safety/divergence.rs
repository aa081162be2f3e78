//! A run that goes wrong ends, says so, and keeps the last good state.

use crate::support::command::irepair;
use crate::support::files::Folder;
use crate::support::golden;
use crate::support::repaired::{demo, quick, record};

#[test]
fn a_run_that_diverges_stops_and_keeps_the_last_good_state() {
    let folder = Folder::new();
    let out = folder.path("out");
    quick(&out)
        .and("-q --learning-rate 1e30 --max-grad-norm 0 --warmup-steps 0")
        .fails(1, &["at step 2", "--learning-rate"]);
    assert!(!out.exists());
    // The state kept is the untouched base: a sane learning rate goes on from it.
    quick(&out).and("-q --resume").ok();
    assert!(out.join("model.safetensors").exists());
}

/// Every way to diverge: with and without originals, states, validation; in the last step; in the
/// weights alone.
#[test]
fn broken_weights_are_never_written() {
    let folder = Folder::new();
    let cases = [
        "--method irepair --eval-steps 0 --learning-rate 1e30",
        "--method irepair --eval-steps 0 --max-steps 1 --learning-rate 1e38",
        "--eval-steps 1 --learning-rate 1e19",
        "--save-steps 1 --learning-rate 1e20",
    ];
    for (index, case) in cases.iter().enumerate() {
        let out = folder.path(format!("out{index}"));
        let wild = quick(&out).and("-q --warmup-steps 0 --max-grad-norm 0").and(case);
        wild.fails(1, &["at step", "--resume"]);
        assert!(!out.exists());
        let calm = wild.and("--resume --learning-rate 1e-4");
        // What overcomes a divergence may be another setting, and nothing else.
        calm.clone().and("--patience 3").fails(3, &["another --patience (30, now 3)"]);
        calm.ok();
        let changed = &record(&out).changed_settings;
        let [change] = &changed[..] else { panic!("{changed:?}") };
        assert_eq!((change.setting.as_str(), change.after.as_str()), ("--learning-rate", "0.0001"));
    }
}

#[test]
fn a_repair_that_changes_nothing_is_a_failed_check() {
    let folder = Folder::new();
    let out = folder.path("out");
    quick(&out).and("-q --learning-rate 0").fails(4, &["nothing changed"]);
    assert_eq!(folder.count(), 0, "something is left");
    // As it says: the corrected command runs.
    quick(&out).and("-q --learning-rate 1e-3").ok();
}

#[test]
fn the_guard_stops_and_goes_back() {
    let folder = Folder::new();
    let out = folder.path("out");
    let guarded = |more: &str| demo(&out).and("-q --max-ppl-increase 5").and(more);
    // A state is saved before the first validation.
    guarded("--learning-rate 3e-2 --warmup-steps 0 --eval-steps 2 --schedule constant")
        .and("--save-steps 1")
        .fails(4, &["guard"]);
    assert!(!out.exists());
    assert_eq!(folder.count(), 0, "something is left");
    // The corrected command is a gentle run. It meets the same guard later, and what was within it
    // is kept.
    guarded("--learning-rate 1e-3 --warmup-steps 11 --eval-steps 1").fails(4, &[]);
    let run = record(&out);
    assert!(run.stopped.contains("guard"), "{}", run.stopped);
    assert!(run.kept_step < run.steps, "{} {}", run.kept_step, run.steps);
    let rise = run.after["ppl"] / run.before["ppl"];
    assert!(rise < 1.05, "perplexity rose by {rise}");
}

/// So few pairs that none is held back: the guard would never look.
#[test]
fn a_guard_without_validations_is_refused() {
    let folder = Folder::new();
    let out = folder.path("out");
    for more in ["", "--dry-run"] {
        irepair("repair --limit 3 --batch-size 1 --max-ppl-increase 5 -q")
            .and(more)
            .with("--model", golden::path("gpt2"))
            .with("--data", golden::path("pairs.jsonl"))
            .with("--eval-text", golden::path("normal.jsonl"))
            .with("--out", &out)
            .fails(3, &["of 3 pairs none is held back"]);
        assert!(!out.exists());
    }
}
