//! Short repairs, and what they leave in their folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use irepair::base::files::hash_file;
use irepair::report::RunRecord;
use irepair::train::log::{StepLine, read_steps};

use super::command::{CommandLine, irepair};
use super::files::{bytes, repository};
use super::golden;

/// A short repair of the demo, measured on few prompts.
pub fn demo(out: impl AsRef<Path>) -> CommandLine {
    demo_on_all(out).with("--eval-prompts", few_prompts())
}

/// The same, measured on all of the demo's prompts.
pub fn demo_on_all(out: impl AsRef<Path>) -> CommandLine {
    irepair("repair --max-steps 12 --eval-steps 4 --save-steps 3 --normal-texts 40")
        .and("--valid-size 16 --limit 64 --batch-size 4 --eval-samples 1")
        .with("--out", out.as_ref())
}

/// The same repair of a model so small that it takes a moment. What the model says is nothing, but
/// every file is written.
pub fn quick(out: impl AsRef<Path>) -> CommandLine {
    demo_on_all(out)
        .with("--model", golden::path("gpt2"))
        .with("--data", repository("data/demo/pairs.jsonl"))
}

/// The first of the demo's prompts: all of them take most of a short repair's time.
pub fn few_prompts() -> PathBuf {
    golden::path("few-prompts.jsonl")
}

/// A short online repair of the demo.
pub fn online(out: impl AsRef<Path>) -> CommandLine {
    online_as(out, "--method online-dpo+kl")
}

/// The same with another method, which these words say.
pub fn online_as(out: impl AsRef<Path>, method: &str) -> CommandLine {
    irepair("repair -q --rounds 2 --prompts-per-round 8 --samples-per-prompt 4 --max-steps 4")
        .and("--eval-samples 0")
        .and("--normal-texts 16 --valid-size 8 --limit 40 --max-new-tokens 8 --model demo")
        .with("--eval-prompts", few_prompts())
        .and(method)
        .with("--out", out.as_ref())
}

/// The record of a repair, read strictly.
pub fn record(out: &Path) -> RunRecord {
    serde_json::from_slice(&bytes(out.join("irepair/run.json"))).expect("read strictly")
}

/// The steps of a repair, which may be under way.
pub fn steps(out: &Path) -> Vec<StepLine> {
    read_steps(&out.join("irepair/steps.jsonl")).expect("steps")
}

/// How many steps stand in the log, if there is one yet.
pub fn steps_made(out: &Path) -> usize {
    read_steps(&out.join("irepair/steps.jsonl")).map_or(0, |steps| steps.len())
}

/// The folder in which a repair works until its output is whole.
pub fn partial(out: &Path) -> PathBuf {
    out.with_file_name(format!("{}.partial", out.file_name().expect("a name").display()))
}

/// The state that a repair goes on from.
pub fn state(out: &Path) -> PathBuf {
    partial(out).join("irepair/state/state.safetensors")
}

/// Hashes of everything in an output that must not depend on when and how it was made.
pub fn files(out: &Path) -> BTreeMap<PathBuf, String> {
    [
        "model.safetensors",
        "irepair/patch.safetensors",
        "irepair/normal.jsonl",
        "irepair/samples.jsonl",
        "irepair/sampled.jsonl",
        "config.json",
    ]
    .into_iter()
    // A method without a KL term has no normal text, and not every run samples.
    .filter(|name| {
        let may_lack = ["irepair/normal.jsonl", "irepair/sampled.jsonl"].contains(name);
        !may_lack || out.join(name).exists()
    })
    .map(|name| (name.into(), hash_file(&out.join(name)).expect(name)))
    .collect()
}
