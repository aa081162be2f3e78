//! A repair that is killed after any steps, with any settings that decide what a state holds, ends
//! in the bytes of one that was not.

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::support::files::Folder;
use crate::support::process::{kill, until};
use crate::support::repaired::{files, partial, quick, state, steps, steps_made};

const METHODS: &[&str] = &[
    "--method irepair+kl",
    "--method irepair-min --slice sublayer --top-k 2",
    "--method irepair-fixed+kl --kl-budget 0.05",
    "--method dapt --optimizer adamw",
    "--method dpo+kl --gradient-accumulation-steps 2",
    "--select max --objective npo --normalize running",
];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 8, ..Default::default() })]

    #[test]
    fn a_resumed_run_is_an_uninterrupted_one(
        method in select(METHODS),
        seed in any::<u32>(),
        kept in 1..6usize,
        validated in 0..5usize,
        kills in vec(1..15usize, 1..3),
    ) {
        let folder = Folder::new();
        let run = |out: &Path| {
            quick(out)
                .and("-q --max-steps 16")
                .and(method)
                .with("--seed", seed.to_string())
                .with("--save-steps", kept.to_string())
                .with("--eval-steps", validated.to_string())
        };
        let (whole, out) = (folder.path("whole"), folder.path("out"));
        run(&whole).ok();
        let resumed = |out: &Path| run(out).and(if state(out).exists() { "--resume" } else { "" });
        for after in kills.iter().filter(|_| !out.exists()) {
            let line = match partial(&out).exists() {
                true => resumed(&out),
                false => run(&out),
            };
            let mut child = line.start();
            until(&mut child, || steps_made(&partial(&out)) >= *after);
            kill(&mut child);
        }
        if !out.exists() {
            resumed(&out).ok();
        }
        prop_assert_eq!(files(&out), files(&whole));
        let losses = |dir: &Path| -> Vec<f64> { steps(dir).iter().map(|s| s.loss).collect() };
        prop_assert_eq!(losses(&out), losses(&whole));
    }
}
