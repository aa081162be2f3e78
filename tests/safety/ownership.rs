//! A folder is ours only by our mark, and what is kept of a run is taken up only if it is whole and
//! of the very same work.

use std::path::Path;

use serde_json::json;

use crate::support::command::{CommandLine, irepair};
use crate::support::files::{Folder, bytes, edit_json, json, names};
use crate::support::golden;
use crate::support::process::{kill, until};
use crate::support::repaired::{files, partial, quick, record, state, steps_made};

/// An evaluation of a moment.
fn eval(out: &Path) -> CommandLine {
    eval_of(&golden::path("gpt2"), out)
}

fn eval_of(model: &Path, out: &Path) -> CommandLine {
    irepair("eval --ppl-protocol paper -q")
        .with("--model", model)
        .with("--ppl", golden::path("eval/corpus.txt"))
        .with("--out", out)
}

/// Folders that look like ours, but no run of irepair made them.
#[test]
fn a_folder_of_someone_else_is_never_emptied() {
    let looks_like = [
        ("results.json", "{\"accuracy\": 0.9}"),
        ("results.json", "{\"format_version\": 1, \"irepair\": \"0.1.0\", \"run_id\": \"x\"}"),
        ("work/notes.txt", "mine"),
        (".lock", ""),
        (".lock", "{\"irepair\": \"evaluation\"}"),
        ("run.json", "{}"),
        ("irepair/run.json", "{}"),
        ("irepair/run.json", "not even JSON"),
        ("irepair/state/state.safetensors", "mine"),
        ("plan.json", "{}"),
    ];
    for (file, content) in looks_like {
        let folder = Folder::new();
        folder.write("mine.txt", "precious");
        folder.write(file, content);
        let out = folder.root();
        let before = names(out);
        for flags in ["", "--overwrite", "--resume"] {
            eval(out).and(flags).fails(3, &["error: "]);
            quick(out).and("-q").and(flags).fails(3, &["error: "]);
            // What is in the way of a run's unfinished output.
            let other =
                out.with_file_name(format!("{}-out", out.file_name().expect("a name").display()));
            let unfinished = partial(&other);
            std::fs::rename(out, &unfinished).expect("renames");
            quick(&other).and("-q").and(flags).fails(3, &["error: "]);
            std::fs::rename(&unfinished, out).expect("renames");
            assert_eq!(names(out), before, "{file} {flags}");
        }
        for flags in ["", "--resume"] {
            irepair("compare --methods dapt -q").with("--out", out).and(flags).fails(3, &[]);
        }
        assert_eq!(names(out), before, "{file}");
        assert_eq!(folder.read("mine.txt"), "precious");
        assert_eq!(folder.read(file), content);
    }
}

/// What is replaced is renamed first and removed last: a command that fails has changed nothing.
#[test]
fn an_evaluation_is_replaced_when_the_new_one_is_there() {
    let folder = Folder::new();
    let out = folder.path("out");
    eval(&out).ok();
    let first = bytes(out.join("results.json"));
    eval(&out).fails(3, &["exists", "--overwrite"]);
    let broken = folder.model("gpt2");
    edit_json(broken.join("config.json"), |config| config["n_layer"] = json!(7));
    eval_of(&broken, &out).and("--overwrite").fails(3, &[]);
    assert_eq!(bytes(out.join("results.json")), first, "the old results are back");
    assert_eq!(folder.count(), 2, "nothing else is left");
    eval(&out).and("--overwrite").ok();
    let id = |name: &str| json(out.join(name))["run_id"].clone();
    assert_ne!(bytes(out.join("results.json")), first);
    assert!(id("results.json").as_str().is_some_and(|id| id.len() == 32));
    assert_eq!(folder.count(), 2, "nothing else is left");
}

/// A run that is under way after some steps, and was killed.
fn killed(out: &Path, flags: &str) {
    let mut child = quick(out).and("-q --save-steps 1 --max-steps 200").and(flags).start();
    until(&mut child, || state(out).exists() && steps_made(&partial(out)) >= 8);
    kill(&mut child);
}

/// Without them `run.json` would count too few steps, and blocks that were never sliced.
#[test]
fn a_log_that_lost_lines_is_no_log_to_go_on_with() {
    let folder = Folder::new();
    let out = folder.path("out");
    killed(&out, "--method dapt");
    let log = partial(&out).join("irepair/steps.jsonl");
    let whole = bytes(&log);
    let resumed = quick(&out).and("-q --save-steps 1 --max-steps 200 --method dapt --resume");
    std::fs::remove_file(&log).expect("removes");
    resumed.fails(3, &["steps.jsonl", "0 of ", "--overwrite"]);
    let text = String::from_utf8(whole.clone()).expect("utf-8");
    let without_second: String =
        text.lines().enumerate().filter(|(i, _)| *i != 1).map(|(_, l)| format!("{l}\n")).collect();
    std::fs::write(&log, without_second).expect("writes");
    resumed.fails(3, &["steps.jsonl", "--overwrite"]);
    std::fs::write(&log, whole).expect("writes");
    resumed.ok();
    assert!(record(&out).steps >= 8);
}

/// A bit of the state that flips, in its header or in any tensor, and tensors of another dtype.
#[test]
fn a_state_that_is_not_what_was_saved_is_refused() {
    let folder = Folder::new();
    let out = folder.path("out");
    killed(&out, "--method dapt");
    let state = state(&out);
    let whole = bytes(&state);
    let resumed = quick(&out).and("-q --save-steps 1 --max-steps 200 --method dapt --resume");
    let header = u64::from_le_bytes(whole[..8].try_into().expect("eight bytes")) as usize;
    let values = whole.len() - 8 - header;
    for at in [0, values / 3, values / 2, values - 1].map(|at| 8 + header + at) {
        let mut other = whole.clone();
        other[at] ^= 4;
        std::fs::write(&state, other).expect("writes");
        resumed.fails(3, &["state.safetensors", "not those that were saved"]);
    }
    let text = String::from_utf8_lossy(&whole[8..8 + header]).into_owned();
    for (old, new) in
        [("\"F32\"", "\"I32\""), ("stale\\\":0", "stale\\\":1"), ("patient.", "best.ab")]
    {
        let at = text.find(old).unwrap_or_else(|| panic!("{old} is not in {text}"));
        let mut other = whole.clone();
        let new = &new.as_bytes()[..old.len().min(new.len())];
        other[8 + at..8 + at + new.len()].copy_from_slice(new);
        std::fs::write(&state, other).expect("writes");
        resumed.fails(3, &["state.safetensors"]);
    }
    std::fs::write(&state, whole).expect("writes");
    resumed.ok();
}

/// The same weights under another `config.json` or tokenizer are another model.
#[test]
fn what_was_begun_on_another_model_is_not_taken_up() {
    let folder = Folder::new();
    let (out, model) = (folder.path("out"), folder.model("gpt2"));
    let flags = format!("--method dapt --model {}", model.display());
    killed(&out, &flags);
    let resumed = quick(&out).and("-q --save-steps 1 --max-steps 200 --resume").and(&flags);
    for (file, key, value) in [
        ("config.json", "layer_norm_epsilon", json!(1e-3)),
        ("tokenizer_config.json", "model_max_length", json!(32)),
        ("generation_config.json", "eos_token_id", json!(5)),
    ] {
        let whole = bytes(model.join(file));
        edit_json(model.join(file), |config| config[key] = value);
        resumed.fails(3, &["another model"]);
        std::fs::write(model.join(file), whole).expect("writes");
    }
    resumed.ok();
}

/// Normal text is kept for the model that wrote it, not for its weights alone.
#[test]
fn normal_text_is_of_the_model_that_wrote_it() {
    let folder = Folder::new();
    let model = folder.model("gpt2");
    let cache = folder.path("cache");
    let run = |name: &str| {
        let out = folder.path(name);
        quick(&out)
            .and("-q --max-steps 2")
            .with("--model", &model)
            .env("IREPAIR_CACHE", &cache)
            .ok();
        files(&out)
    };
    let count = || cache.join("normal").read_dir().expect("cache").count();
    let first = run("one");
    let kept = count();
    assert_eq!(run("two"), first);
    assert_eq!(count(), kept);
    edit_json(model.join("config.json"), |config| config["layer_norm_epsilon"] = json!(0.5));
    assert_ne!(run("three"), first);
    assert_eq!(count(), 2 * kept, "another model writes its own");
}
