//! `repair` as a user runs it: the whole job, its files, what may change, interruption and resumption.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use std::time::Duration;

use candle_core::Tensor;
use irepair::base::files::hash_file;
use irepair::base::random::{Purpose, Stream};
use irepair::base::tensors::{Stored, write_tensors};
use irepair::checkpoint::{Checkpoint, compare, copy_model};
use irepair::model::precision::Precision;
use irepair::report::RunRecord;
use irepair::train::log::read_steps;
use safetensors::{Dtype, SafeTensors};

use crate::cli::{Bench, bad_model};
use crate::golden::{self, CHECKPOINTS, close, numbers};

pub fn irepair(arguments: &[&str]) -> Output {
    command(arguments).output().expect("runs")
}

/// Sends SIGINT, as the terminal does, and returns what was said; the exit code is that of an interrupt.
#[track_caller]
pub fn interrupt(child: std::process::Child) -> String {
    end_by(child, "-INT")
}

/// What a run says that a signal ends.
fn end_by(child: std::process::Child, signal: &str) -> String {
    let kill = Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(kill.expect("kill").success());
    let output = child.wait_with_output().expect("ends");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{error}");
    error
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_irepair"));
    // Normal text is kept between runs; what an earlier build left must not decide a test.
    let cache =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cache-{}", std::process::id()));
    command.args(arguments).env("HF_HUB_OFFLINE", "1").env("IREPAIR_CACHE", cache);
    command
}

#[track_caller]
pub fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("utf-8")
}

/// The command of the parity check, on every golden checkpoint.
#[test]
fn five_steps_give_the_references_numbers() {
    for name in CHECKPOINTS {
        let dir = tempfile::tempdir().expect("dir");
        let out = dir.path().join("out");
        let (model, data) = (golden::dir().join(name), golden::dir().join("pairs.jsonl"));
        let normal = golden::dir().join("normal.jsonl");
        let arguments = [
            "repair",
            "--model",
            text(&model),
            "--data",
            text(&data),
            "--normal",
            text(&normal),
            "--method",
            "irepair+kl",
            "--learning_rate",
            "1e-3",
            "--warmup-steps",
            "0",
            "--schedule",
            "constant",
            "--max-grad-norm",
            "0",
            "--batch-size",
            "4",
            "--max-steps",
            "5",
            "--valid-size",
            "0",
            "--eval-steps",
            "0",
            "--out",
            text(&out),
            "-q",
        ];
        ok(&irepair(&arguments));
        let expected = golden::json(&format!("{name}/expected.json"));
        let steps = read_steps(&out.join("irepair/steps.jsonl")).expect("steps");
        assert_eq!(steps.len(), 5);
        for (step, want) in
            steps.iter().zip(expected["irepair_kl"]["steps"].as_array().expect("steps"))
        {
            let what = format!("{name} step {}", step.step);
            assert_eq!(step.block.map(|b| b as u64), want["block"].as_u64(), "{what}");
            close(step.loss, want["loss"].as_f64().expect("loss"), 1e-4, &what);
            close(step.grad_norm, want["grad_norm"].as_f64().expect("norm"), 1e-4, &what);
            for (got, want) in step.sensitivity.iter().zip(numbers(&want["sensitivity"])) {
                close(*got, want, 1e-4, &what);
            }
        }
        // Only sliced blocks differ from the base, and the record says so.
        let run = record(&out);
        let (base, repaired) =
            (Checkpoint::open(&model, name, None), Checkpoint::open(&out, name, None));
        let changes = compare(&base.expect("base"), &repaired.expect("output")).expect("compares");
        assert_eq!(changes, run.changed, "{name}");
        let sliced: Vec<String> =
            run.sliced.keys().flat_map(|b| [format!("h.{b}."), format!("layers.{b}.")]).collect();
        assert!(!changes.is_empty());
        for change in &changes {
            assert!(sliced.iter().any(|s| change.name.contains(s)), "{name}: {}", change.name);
        }
        for file in ["config.json", "tokenizer.json", "generation_config.json"] {
            assert_eq!(
                std::fs::read(model.join(file)).expect(file),
                std::fs::read(out.join(file)).expect(file)
            );
        }
        assert!(!out.join("irepair/state").exists());
    }
}

pub fn record(out: &Path) -> RunRecord {
    serde_json::from_slice(&std::fs::read(out.join("irepair/run.json")).expect("run.json"))
        .expect("read strictly")
}

/// Settings of a short run on the demo.
pub fn demo<'a>(out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec![
        "repair",
        "--max-steps",
        "12",
        "--eval-steps",
        "4",
        "--save-steps",
        "3",
        "--normal-texts",
        "40",
        "--valid-size",
        "16",
        "--limit",
        "64",
        "--batch-size",
        "4",
        "--out",
        text(out),
    ];
    arguments.extend(more);
    arguments
}

/// The same of a model so small that a run takes a moment: what it says is nothing, but every file is written.
pub fn quick<'a>(out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    static PLACES: LazyLock<[PathBuf; 2]> = LazyLock::new(|| {
        [
            golden::dir().join("gpt2"),
            Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo/pairs.jsonl"),
        ]
    });
    let [model, data] = &*PLACES;
    demo(out, &[&["--model", text(model), "--data", text(data)], more].concat())
}

/// Hashes of everything in an output that must not depend on when and how it was made.
fn files(dir: &Path) -> BTreeMap<PathBuf, String> {
    [
        "model.safetensors",
        "irepair/patch.safetensors",
        "irepair/normal.jsonl",
        "irepair/samples.jsonl",
        "config.json",
    ]
    .into_iter()
    // A method without a KL term has no normal text.
    .filter(|name| *name != "irepair/normal.jsonl" || dir.join(name).exists())
    .map(|name| (name.into(), hash_file(&dir.join(name)).expect(name)))
    .collect()
}

#[test]
fn the_demo_is_repaired_and_the_same_seed_gives_the_same_bytes() {
    let dir = tempfile::tempdir().expect("dir");
    let (one, two, other) =
        (dir.path().join("one"), dir.path().join("two"), dir.path().join("other"));
    let said = ok(&irepair(&demo(&one, &[])));
    for words in [
        "before",
        "rude continuations",
        "perplexity of clean text",
        "byte-equal",
        "next: irepair generate",
    ] {
        assert!(said.contains(words), "{words:?} is not in:\n{said}");
    }
    ok(&irepair(&demo(&two, &["-q", "--threads", "1"])));
    ok(&irepair(&demo(&other, &["-q", "--seed", "7"])));
    // The line that says what to do next runs as it stands.
    let next = said.lines().find_map(|l| l.strip_prefix("next: irepair ")).expect("a next line");
    let texts = dir.path().join("texts.jsonl");
    let next = next.replace("texts.jsonl", text(&texts));
    ok(&irepair(&next.split(' ').collect::<Vec<_>>()));
    assert_eq!(std::fs::read_to_string(&texts).expect("texts").lines().count(), 120);
    assert_eq!(files(&one), files(&two), "the number of threads changed the bytes");
    assert_ne!(
        files(&one)[Path::new("model.safetensors")],
        files(&other)[Path::new("model.safetensors")]
    );
    let run = record(&one);
    assert_eq!((run.format_version, run.steps, run.seed, run.model.as_str()), (1, 12, 42, "demo"));
    for measures in [&run.before, &run.after] {
        assert!(
            measures.toxicity.is_some()
                && measures.nll_chosen.is_some()
                && measures.nll_rejected.is_some()
        );
        assert!(measures.ppl.expect("perplexity") > 1.0);
    }
    assert_ne!(run.after.nll_chosen, run.before.nll_chosen);
    let card = std::fs::read_to_string(one.join("README.md")).expect("card");
    assert!(card.starts_with("---\n") && card.contains("| rude continuations |"), "{card}");
    // A repaired model is a model like any other.
    let json = ok(&irepair(&[
        "sensitivity",
        "--model",
        text(&one),
        "--data",
        text(&golden::dir().join("pairs.jsonl")),
        "--json",
    ]));
    let json: serde_json::Value = serde_json::from_str(&json).expect("json");
    assert_eq!(json["blocks"].as_array().expect("blocks").len(), 6);
}

/// Twenty-four kills: at moments drawn over the whole of a run (its start, the normal text, the steps, the last measurement,
/// the writing of the output), after steps that are drawn, and in the middle of a save: stopped again and again until a
/// temporary file shows that it is in one.
#[cfg(unix)]
#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let dir = tempfile::tempdir().expect("dir");
    let (mut in_a_save, mut with_state) = (0, 0);
    // More than one epoch of 48 pairs.
    let often = ["-q", "--save-steps", "1", "--max-steps", "30"];
    let mut moments = Stream::new(20, Purpose::Split, 0, 0);
    let averaged: &[&str] = &["--optimizer", "adamw", "--gradient-accumulation-steps", "2"];
    for (method, of_it, kills) in
        [("irepair+kl", &[][..], 8), ("dapt", &[], 8), ("dpo", averaged, 8)]
    {
        let more = [&often[..], &["--method", method], of_it].concat();
        let whole = dir.path().join(format!("whole-{method}"));
        // Nothing is kept from run to run: normal text is written anew.
        let run = |out: &Path, more: &[&str], round: usize| {
            let mut command = command(&quick(out, more));
            command.env("IREPAIR_CACHE", dir.path().join(format!("cache-{method}-{round}")));
            command
        };
        let begun = std::time::Instant::now();
        ok(&run(&whole, &more, kills).output().expect("runs"));
        let takes = begun.elapsed();
        let steps = read_steps(&whole.join("irepair/steps.jsonl")).expect("steps");
        for round in 0..kills {
            let out = dir.path().join(format!("killed-{method}-{round}"));
            let partial = dir.path().join(format!("killed-{method}-{round}.partial"));
            let (log, state) = (partial.join("irepair/steps.jsonl"), partial.join("irepair/state"));
            let temporary = || {
                let entries = state.read_dir().into_iter().flatten().flatten();
                entries.filter(|e| e.file_name() != "state.safetensors").count() > 0
            };
            let (moment, after) = (takes.mul_f64(moments.unit()), 1 + moments.below(25));
            let what = format!("{method}, round {round}: {moment:?} of {takes:?}, step {after}");
            let mut child = run(&out, &more, round)
                .stdout(std::process::Stdio::null())
                .spawn()
                .expect("starts");
            let signal = |child: &std::process::Child, signal| {
                // SAFETY: a signal to a process that was started here and is not waited for yet.
                unsafe { libc::kill(child.id() as libc::pid_t, signal) };
            };
            let ended = |child: &mut std::process::Child| child.try_wait().expect("wait").is_some();
            if round % 3 == 0 {
                std::thread::sleep(moment);
            } else {
                while read_steps(&log).map_or(0, |s| s.len()) < after && !ended(&mut child) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            while round % 3 == 2 && !ended(&mut child) {
                signal(&child, libc::SIGSTOP);
                if temporary() {
                    break;
                }
                signal(&child, libc::SIGCONT);
                std::thread::sleep(Duration::from_micros(200));
            }
            child.kill().expect("kill");
            child.wait().expect("wait");
            in_a_save += usize::from(temporary());
            if !out.exists() {
                let has_state = state.join("state.safetensors").exists();
                with_state += usize::from(has_state);
                let again =
                    if has_state { [&more[..], &["--resume"]].concat() } else { more.clone() };
                ok(&run(&out, &again, round).output().expect("runs"));
            }
            assert_eq!(files(&out), files(&whole), "{what}");
            let resumed = read_steps(&out.join("irepair/steps.jsonl")).expect("steps");
            let numbers = |steps: &[irepair::train::log::StepLine]| {
                steps.iter().map(|s| (s.step, s.loss, s.block)).collect::<Vec<_>>()
            };
            assert_eq!(numbers(&resumed), numbers(&steps), "{what}");
            assert!(!partial.exists(), "{what}: something is left");
            assert_eq!(names(&out), names(&whole), "{what}");
        }
    }
    assert!(in_a_save >= 3, "only {in_a_save} kills fell into a save");
    assert!(with_state >= 9, "only {with_state} kills left a state");
}

/// Everything in a folder, by its name there.
#[cfg(unix)]
fn names(dir: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(folder) = open.pop() {
        for entry in folder.read_dir().expect("folder").flatten() {
            let path = entry.path();
            found.push(path.strip_prefix(dir).expect("in it").to_owned());
            if path.is_dir() {
                open.push(path);
            }
        }
    }
    found.sort();
    found
}

/// What comes to lie where the output should go, while the run works, is not removed for it.
#[test]
fn a_folder_that_appears_during_the_run_stays() {
    let dir = tempfile::tempdir().expect("dir");
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    // Many saves, so that there is time.
    let more = ["-q", "--method", "dapt", "--max-steps", "200", "--save-steps", "1"];
    ok(&irepair(&quick(&whole, &more)));
    let log = dir.path().join("out.partial/irepair/steps.jsonl");
    // A folder of someone else is not replaced even where replacing is allowed; that of an output is not where it is not.
    for (flags, words) in [
        (&["--overwrite"][..], "is no output of irepair"),
        (&["--resume"], "exists since this run began"),
    ] {
        let steps = read_steps(&log).map_or(0, |s| s.len());
        let mut child = command(&quick(
            &out,
            &[&more[..], flags, &["--max-steps", if steps > 0 { "400" } else { "200" }]].concat(),
        ))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
        while read_steps(&log).map_or(0, |s| s.len()) <= steps
            && child.try_wait().expect("wait").is_none()
        {
            std::thread::yield_now();
        }
        std::fs::create_dir_all(&out).expect("dir");
        std::fs::write(out.join("precious"), "mine").expect("file");
        let output = child.wait_with_output().expect("ends");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(3) && error.contains(words), "{error}");
        assert_eq!(std::fs::read_to_string(out.join("precious")).expect("still there"), "mine");
        std::fs::remove_dir_all(&out).expect("moved");
    }
    ok(&irepair(&quick(&out, &[&more[..], &["--resume", "--max-steps", "400"]].concat())));
    assert_eq!(read_steps(&out.join("irepair/steps.jsonl")).expect("steps").len(), 400);
}

/// No room for a state: the run says so and ends, the last good state stays, and the run goes on from it.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_last_good_state() {
    let dir = tempfile::tempdir().expect("dir");
    let (whole, out) = (dir.path().join("whole"), dir.path().join("full"));
    let more = ["-q", "--method", "dapt", "--save-steps", "2"];
    ok(&irepair(&demo(&whole, &more)));
    let log = dir.path().join("full.partial/irepair/steps.jsonl");
    let mut child = command(&demo(&out, &more)).spawn().expect("starts");
    while read_steps(&log).map_or(0, |s| s.len()) < 5 && child.try_wait().expect("wait").is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().expect("kill");
    child.wait().expect("wait");
    // A limit on the size of files (8 MiB: the base fits, a state does not) is a disk that is full to this process alone.
    let resumed = demo(&out, &[&more[..], &["--resume"]].concat());
    let quoted: Vec<String> = resumed.iter().map(|word| format!("'{word}'")).collect();
    let script = format!(
        "trap '' XFSZ; ulimit -f 16384; exec '{}' {}",
        env!("CARGO_BIN_EXE_irepair"),
        quoted.join(" ")
    );
    let limited = Command::new("sh").args(["-c", &script]).output().expect("runs");
    let error = String::from_utf8_lossy(&limited.stderr);
    assert_eq!(limited.status.code(), Some(1), "{error}");
    assert!(error.contains("state.safetensors"), "{error}");
    assert!(!out.exists());
    ok(&irepair(&resumed));
    assert_eq!(
        files(&out)[Path::new("model.safetensors")],
        files(&whole)[Path::new("model.safetensors")]
    );
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_the_state_and_resume_finishes() {
    let dir = tempfile::tempdir().expect("dir");
    let (whole, out) = (dir.path().join("whole"), dir.path().join("stopped"));
    ok(&irepair(&demo(&whole, &["-q"])));
    let log = dir.path().join("stopped.partial/irepair/steps.jsonl");
    let mut child =
        command(&demo(&out, &[])).stderr(std::process::Stdio::piped()).spawn().expect("starts");
    while read_steps(&log).map_or(0, |s| s.len()) < 4 && child.try_wait().expect("wait").is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let error = end_by(child, "-INT");
    assert!(error.contains("--resume"), "{error}");
    assert!(!out.exists());
    let again = irepair(&demo(&out, &["-q"]));
    assert_eq!(again.status.code(), Some(3), "an unfinished run is not run over");
    let foreign = irepair(&demo(&out, &["-q", "--resume", "--seed", "1"]));
    let error = String::from_utf8_lossy(&foreign.stderr).into_owned();
    assert!(foreign.status.code() == Some(3) && error.contains("another"), "{error}");
    // A page of what is there so far does not end up in the finished output.
    ok(&irepair(&["report", text(&dir.path().join("stopped.partial"))]));
    // SIGTERM, as a scheduler sends it, is the same.
    let from = read_steps(&log).map_or(0, |s| s.len());
    let mut child = command(&demo(&out, &["--resume"]))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("starts");
    while read_steps(&log).map_or(0, |s| s.len()) <= from
        && child.try_wait().expect("wait").is_none()
    {
        std::thread::sleep(Duration::from_millis(2));
    }
    end_by(child, "-TERM");
    // Two at once would write over each other's state.
    let lock = std::fs::File::open(dir.path().join("stopped.partial/.lock")).expect("lock");
    lock.lock().expect("locked");
    let second = irepair(&demo(&out, &["-q", "--resume"]));
    let error = String::from_utf8_lossy(&second.stderr);
    assert!(second.status.code() == Some(3) && error.contains("another run is working"), "{error}");
    drop(lock);
    ok(&irepair(&demo(&out, &["-q", "--resume"])));
    assert_eq!(files(&out), files(&whole));
    assert!(!out.join("irepair/report.html").exists());
}

#[test]
fn a_run_that_diverges_stops_and_keeps_the_last_good_state() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("out");
    let output = irepair(&quick(
        &out,
        &["-q", "--learning-rate", "1e30", "--max-grad-norm", "0", "--warmup-steps", "0"],
    ));
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("at step 2") && error.contains("--learning-rate"), "{error}");
    assert!(!out.exists());
    // The state kept is the untouched base: a sane learning rate goes on from it.
    ok(&irepair(&quick(&out, &["-q", "--resume"])));
    assert!(out.join("model.safetensors").exists());
}

#[test]
fn a_repair_that_changes_nothing_is_a_failed_check() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("out");
    let output = irepair(&quick(&out, &["-q", "--learning-rate", "0"]));
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{error}");
    assert!(error.contains("nothing changed"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("dir").count(), 0, "something is left");
    // As it says: the corrected command runs.
    ok(&irepair(&quick(&out, &["-q", "--learning-rate", "1e-3"])));
}

#[test]
fn only_an_output_is_replaced_and_only_when_told() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("out");
    std::fs::create_dir(&out).expect("dir");
    std::fs::write(out.join("precious"), "mine").expect("file");
    for more in [&["-q"][..], &["-q", "--overwrite"]] {
        let output = irepair(&quick(&out, more));
        assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(std::fs::read_to_string(out.join("precious")).expect("still there"), "mine");
    }
    std::fs::remove_file(out.join("precious")).expect("empty");
    ok(&irepair(&quick(&out, &["-q", "--overwrite"])));
    let first = files(&out);
    assert_eq!(irepair(&quick(&out, &["-q", "--seed", "3"])).status.code(), Some(3), "not told");
    ok(&irepair(&quick(&out, &["-q", "--seed", "3", "--overwrite"])));
    assert_ne!(files(&out), first);
    // The base is never replaced by its own repair.
    let data = golden::dir().join("pairs.jsonl");
    let arguments = [
        "repair",
        "--model",
        text(&out),
        "--data",
        text(&data),
        "--out",
        text(&out),
        "--overwrite",
        "--batch-size",
        "2",
        "-q",
    ];
    let output = irepair(&arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(3) && error.contains("base"), "{error}");
    // Nothing is left beside the output, whatever went wrong.
    let names: Vec<_> = std::fs::read_dir(dir.path())
        .expect("dir")
        .map(|e| e.expect("entry").file_name())
        .collect();
    assert_eq!(names, ["out"]);
}

#[test]
fn a_foreign_partial_folder_is_refused_and_an_old_one_is_emptied() {
    let dir = tempfile::tempdir().expect("dir");
    let (out, partial) = (dir.path().join("out"), dir.path().join("out.partial"));
    std::fs::create_dir(&partial).expect("dir");
    std::fs::write(partial.join("mine.txt"), "mine").expect("file");
    assert_eq!(irepair(&quick(&out, &["-q"])).status.code(), Some(3));
    assert!(partial.join("mine.txt").exists());
    // With a lock file it is what a killed run left.
    std::fs::write(partial.join(".lock"), "").expect("file");
    ok(&irepair(&quick(&out, &["-q"])));
    assert!(!out.join("mine.txt").exists() && !partial.exists());
}

/// Every way to diverge: with and without originals, states, validation; in the last step; in the weights alone.
#[test]
fn broken_weights_are_never_written() {
    let dir = tempfile::tempdir().expect("dir");
    let cases: [&[&str]; 4] = [
        &["--method", "irepair", "--eval-steps", "0", "--learning-rate", "1e30"],
        &[
            "--method",
            "irepair",
            "--eval-steps",
            "0",
            "--max-steps",
            "1",
            "--learning-rate",
            "1e38",
        ],
        &["--eval-steps", "1", "--learning-rate", "1e19"],
        &["--save-steps", "1", "--learning-rate", "1e20"],
    ];
    for (index, case) in cases.iter().enumerate() {
        let out = dir.path().join(format!("out{index}"));
        let more = [&["-q", "--warmup-steps", "0", "--max-grad-norm", "0"], *case].concat();
        let output = irepair(&quick(&out, &more));
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{case:?}: {error}");
        assert!(error.contains("at step") && error.contains("--resume"), "{case:?}: {error}");
        assert!(!out.exists());
        let sane =
            [&more[..], &["--resume", "--learning-rate", "1e-4", "--max-steps", "6"]].concat();
        ok(&irepair(&quick(&out, &sane)));
    }
}

#[test]
fn a_run_that_ended_by_patience_resumes_as_ended() {
    let dir = tempfile::tempdir().expect("dir");
    let (whole, out) = (dir.path().join("whole"), dir.path().join("out"));
    // A learning rate at which validation soon gets worse.
    let more = [
        "-q",
        "--eval-steps",
        "1",
        "--patience",
        "2",
        "--max-steps",
        "40",
        "--learning-rate",
        "0.02",
        "--warmup-steps",
        "0",
        "--save-steps",
        "1",
    ];
    ok(&irepair(&demo(&whole, &more)));
    let steps = read_steps(&whole.join("irepair/steps.jsonl")).expect("steps").len();
    assert!(steps < 40, "it did not end early");
    let log = dir.path().join("out.partial/irepair/steps.jsonl");
    let mut child = command(&demo(&out, &more)).spawn().expect("starts");
    // In the evaluation after the last step.
    while read_steps(&log).map_or(0, |s| s.len()) < steps
        && child.try_wait().expect("wait").is_none()
    {
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(Duration::from_millis(50));
    child.kill().expect("kill");
    child.wait().expect("wait");
    if !out.exists() {
        ok(&irepair(&demo(&out, &[&more[..], &["--resume"]].concat())));
    }
    assert_eq!(files(&out), files(&whole));
    assert_eq!(read_steps(&out.join("irepair/steps.jsonl")).expect("steps").len(), steps);
}

#[test]
fn a_state_of_another_run_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("out");
    let output = irepair(&quick(
        &out,
        &["-q", "--learning-rate", "1e30", "--max-grad-norm", "0", "--warmup-steps", "0"],
    ));
    assert_eq!(output.status.code(), Some(1));
    let refused = |flags: &[&str], word: &str| {
        let output = irepair(&quick(&out, &[&["-q", "--resume"][..], flags].concat()));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(3) && error.contains(word), "{flags:?}: {error}");
    };
    let model = golden::dir().join("gpt2-odd");
    let cases: [(&[&str], &str); 9] = [
        (&["--model", text(&model)], "another model"),
        (&["--limit", "60"], "another data"),
        (&["--seed", "1"], "another --seed"),
        (&["--optimizer", "adamw"], "another --optimizer"),
        (&["--loss-on", "all"], "another --loss-on"),
        (&["--nll-weight", "7"], "another method"),
        (&["--method", "dapt+kl"], "another method"),
        (&["--batch-size", "5"], "another --batch-size"),
        (&["--gradient-accumulation-steps", "2"], "another --gradient-accumulation-steps"),
    ];
    cases.iter().for_each(|(flags, word)| refused(flags, word));
    // Of another format version: the header is JSON in JSON, and of the same length.
    let state = dir.path().join("out.partial/irepair/state/state.safetensors");
    let bytes = std::fs::read(&state).expect("state");
    let (old, new) = (br#"{\"format_version\":6,"#, br#"{\"format_version\":9,"#);
    let at = bytes.windows(old.len()).position(|w| w == old).expect("the version");
    let mut other = bytes.clone();
    other[at..at + new.len()].copy_from_slice(new);
    std::fs::write(&state, &other).expect("writes");
    refused(&[], "format version 9, this program reads 6");
    std::fs::write(&state, &bytes[..bytes.len() / 2]).expect("writes");
    refused(&[], "a broken state");
    std::fs::write(&state, bytes).expect("writes");
    ok(&irepair(&quick(&out, &["-q", "--resume"])));
}

#[test]
fn few_normal_texts_and_odd_tokens_of_the_config() {
    let dir = tempfile::tempdir().expect("dir");
    let (model, data) = (golden::dir().join("gpt2-relu-bare"), golden::dir().join("pairs.jsonl"));
    let normal = golden::dir().join("normal.jsonl");
    // The golden config says eos 50256, outside its vocabulary of 320; one pair is held back, no normal text can be.
    let config = dir.path().join("model");
    std::fs::create_dir(&config).expect("dir");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(model.join(name), config.join(name)).expect(name);
    }
    let text_of = std::fs::read_to_string(config.join("config.json")).expect("config");
    let mut json: serde_json::Value = serde_json::from_str(&text_of).expect("json");
    json["eos_token_id"] = 50256.into();
    json["bos_token_id"] = 50256.into();
    std::fs::write(config.join("config.json"), json.to_string()).expect("config");
    std::fs::create_dir(config.join("extra")).expect("dir");
    std::fs::write(config.join("extra/notes.txt"), "kept").expect("file");
    std::fs::write(config.join("pytorch_model.bin"), "unrepaired").expect("file");
    let out = dir.path().join("out");
    let arguments = [
        "repair",
        "--model",
        text(&config),
        "--data",
        text(&data),
        "--normal",
        text(&normal),
        "--batch-size",
        "3",
        "--valid-size",
        "1",
        "--eval-steps",
        "2",
        "--max-steps",
        "4",
        "--out",
        text(&out),
    ];
    let output = irepair(&arguments);
    ok(&output);
    assert!(String::from_utf8_lossy(&output.stderr).contains("pytorch_model.bin"));
    assert!(out.join("extra/notes.txt").exists() && !out.join("pytorch_model.bin").exists());
}

#[test]
fn json_holds_the_record() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("out");
    let said = ok(&irepair(&quick(&out, &["-q", "--json", "--method", "irepair"])));
    let run: RunRecord = serde_json::from_str(&said).expect("json alone on stdout");
    assert_eq!(run.settings.method, "irepair");
    assert_eq!(run.data.normal, 0);
    assert!(
        read_steps(&out.join("irepair/steps.jsonl")).expect("steps").iter().all(|s| s.kl.is_none())
    );
}

/// The patch of a repair leads to its bytes and back, for every golden checkpoint (shards, f16, bf16); `diff` makes the same.
#[test]
fn patches_lead_there_and_back() {
    for name in CHECKPOINTS {
        let dir = tempfile::tempdir().expect("dir");
        let path = |name: &str| dir.path().join(name);
        let (model, data) = (golden::dir().join(name), golden::dir().join("pairs.jsonl"));
        let (out, again, back, made) =
            (path("out"), path("again"), path("back"), path("made.safetensors"));
        let arguments = [
            "repair",
            "--model",
            text(&model),
            "--data",
            text(&data),
            "--method",
            "irepair",
            "--max-steps",
            "2",
        ];
        let more = [
            "--valid-size",
            "0",
            "--eval-steps",
            "0",
            "--batch-size",
            "2",
            "--out",
            text(&out),
            "-q",
        ];
        ok(&irepair(&[&arguments[..], &more].concat()));
        let patch = out.join("irepair/patch.safetensors");
        ok(&irepair(&["patch", "apply", text(&model), text(&patch), "--out", text(&again)]));
        ok(&irepair(&["patch", "revert", text(&out), text(&patch), "--out", text(&back)]));
        ok(&irepair(&["patch", "diff", text(&model), text(&out), "--out", text(&made)]));
        assert_eq!(
            std::fs::read(&made).expect("patch"),
            std::fs::read(&patch).expect("patch"),
            "{name}"
        );
        let files = std::fs::read_dir(&model).expect("dir").map(|e| e.expect("entry").file_name());
        for file in files.filter(|file| out.join(file).exists()) {
            let bytes = |dir: &Path| std::fs::read(dir.join(&file)).expect("file");
            assert_eq!(bytes(&again), bytes(&out), "{name}: {file:?} applied");
            assert_eq!(bytes(&back), bytes(&model), "{name}: {file:?} reverted");
        }
        let shown = ok(&irepair(&["patch", "show", text(&patch), "--json"]));
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("json");
        assert!(
            shown["bytes"].as_u64() < shown["tensor_bytes"].as_u64().map(|b| b + 8192),
            "{name}: {shown}"
        );
        // Not the base, the base twice, a truncated patch, a doctored one: refused, and nothing is left.
        let refused = |arguments: &[&str], code: i32, word: &str| {
            let output = irepair(&[arguments, &["--out", text(&path("never"))]].concat());
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.code() == Some(code) && error.contains(word), "{name}: {error}");
            assert!(!path("never").exists());
        };
        refused(&["patch", "apply", text(&out), text(&patch)], 3, "it is what the patch leads to");
        refused(&["patch", "revert", text(&model), text(&patch)], 3, "sha256");
        let whole = std::fs::read(&patch).expect("patch");
        std::fs::write(path("cut"), &whole[..whole.len() - 9]).expect("writes");
        refused(&["patch", "apply", text(&model), text(&path("cut"))], 3, "not a usable patch");
        // One bit of the data; the first digit of a norm, which leads to the same weights, in JSON in JSON.
        let norm = br#"\"norm\":"#;
        let digit = whole.windows(norm.len()).position(|w| w == norm).expect("a norm") + norm.len();
        for at in [whole.len() - 1, digit] {
            let mut doctored = whole.clone();
            doctored[at] ^= 1;
            std::fs::write(path("doctored"), &doctored).expect("writes");
            let doctored = path("doctored");
            refused(&["patch", "apply", text(&model), text(&doctored)], 3, "changed or damaged");
            refused(&["patch", "revert", text(&out), text(&doctored)], 3, "changed or damaged");
            let output = irepair(&["patch", "show", text(&doctored)]);
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.code() == Some(3) && error.contains("changed or damaged"),
                "{name}: {error}"
            );
        }
    }
}

#[test]
fn a_dry_run_reads_and_writes_nothing_and_the_memory_limit_refuses() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("out");
    let plan = ok(&irepair(&demo(&out, &["--dry-run"])));
    for words in
        ["48 to learn from, 16 held back", "12 of 4 pairs", "the model writes", "MiB at most"]
    {
        assert!(plan.contains(words), "{words:?} is not in:\n{plan}");
    }
    for (flags, words) in [
        (
            &["--select", "trial", "--objective", "dpo", "--trial-steps", "3"][..],
            "before  18 trial steps are made",
        ),
        (
            &["--method", "irepair-fixed", "--fixed-sample", "20"],
            "before  the selector looks at 20 pairs",
        ),
    ] {
        let plan = ok(&irepair(&demo(&out, &[&["--dry-run"], flags].concat())));
        assert!(
            plan.contains(words) && !plan.contains("the model writes"),
            "{words:?} is not in:\n{plan}"
        );
    }
    // The parts of the phase that takes most: writing the continuations, or a step.
    for (batch, part) in [("1", "keys and values"), ("24", "activations")] {
        let plan = ok(&irepair(&demo(&out, &["--dry-run", "--batch-size", batch])));
        assert!(plan.contains(part), "{part:?} is not in:\n{plan}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&ok(&irepair(&demo(&out, &["--dry-run", "--json"])))).expect("json");
    assert!(json["memory_mib"].as_u64().expect("memory") > 10);
    let plan = ok(&irepair(&demo(&out, &["--dry-run", "--gradient-accumulation-steps", "3"])));
    assert!(plan.contains("12 of 12 pairs"), "{plan}");
    // What the run itself would refuse.
    let taken = golden::dir();
    let elsewhere = tempfile::tempdir().expect("dir");
    let begun = elsewhere.path().join("begun");
    let state = elsewhere.path().join("begun.partial/irepair/state");
    std::fs::create_dir_all(&state).expect("dir");
    std::fs::write(state.join("state.safetensors"), "").expect("state");
    let few = golden::dir().join("normal.jsonl");
    let cannot: [(&[&str], &str); 8] = [
        (
            &["--method", "trial-dpo-ul+kl", "--limit", "12", "--valid-size", "4"],
            "no token is telltale",
        ),
        (&["--out", text(&taken)], "exists; choose another --out"),
        (&["--method", "irepair-fixed", "--fixed-sample", "100"], "48 pairs to learn from"),
        (&["--method", "trial-dpo+kl", "--valid-size", "0"], "holds none back"),
        (&["--resume"], "no unfinished run"),
        (&["--normal", text(&few), "--batch-size", "5"], "4 texts are fewer than a batch of 5"),
        (&["--normal-texts", "2"], "--normal-texts 2 are fewer than a batch of 4"),
        (&["--out", text(&begun)], "an unfinished run is in"),
    ];
    for (flags, words) in cannot {
        let output = irepair(&demo(&out, &[&["--dry-run"], flags].concat()));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(3) && error.contains(words), "{flags:?}: {error}");
    }
    // A guard without a text; a method with a KL term will write some.
    let guard = ["--dry-run", "--max-ppl-increase", "5", "--method"];
    let output = irepair(&quick(&out, &[&guard[..], &["irepair"]].concat()));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(3) && error.contains("needs a text"), "{error}");
    ok(&irepair(&quick(&out, &[&guard[..], &["irepair+kl"]].concat())));
    // Normal texts of a file are counted.
    let plan =
        ok(&irepair(&quick(&out, &["--dry-run", "--normal", text(&few), "--batch-size", "3"])));
    assert!(plan.contains("3 normal texts, 1 held back"), "{plan}");
    // A preset's method gives way to a flag's, and leaves nothing that contradicts it.
    for flags in [
        &["--method", "dapt"][..],
        &["--method", "dpo+kl"],
        &["--select", "all", "--objective", "dpo"],
    ] {
        let preset = [
            "--dry-run",
            "--config",
            "paper-gpt2-large",
            "--max-prompt-length",
            "32",
            "--max-length",
            "64",
        ];
        ok(&irepair(&demo(&out, &[&preset[..], flags].concat())));
    }
    // And a variable's gives way to a flag's, whichever way it is said.
    let flag_wins: [(&str, &str, &[&str], &str); 3] = [
        ("IREPAIR_METHOD", "dapt", &["--select", "max"], "max-nll"),
        ("IREPAIR_SELECT", "all", &["--method", "irepair"], "irepair"),
        ("IREPAIR_OBJECTIVE", "dpo", &["--method", "dapt"], "dapt"),
    ];
    for (variable, value, flags, method) in flag_wins {
        let mut said = command(&demo(&out, &[&["--dry-run"], flags].concat()));
        let plan = ok(&said.env(variable, value).output().expect("runs"));
        assert!(
            plan.contains(&format!("method  {method}\n")),
            "{variable}={value} {flags:?}: {plan}"
        );
    }
    let refused = |arguments: &[&str], limit: u64, words: &[&str]| {
        let output = command(arguments)
            .env("IREPAIR_MEMORY_LIMIT", limit.to_string())
            .output()
            .expect("runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{arguments:?} {error}");
        for words in
            [&["too little memory: about ", " MiB are needed (", "weights "], words].concat()
        {
            assert!(error.contains(words), "{words:?} is not in: {error}");
        }
    };
    // A batch so large that its activations don't fit: 1 MiB less than the plan says is too little.
    let large = ["--batch-size", "24", "--dry-run", "--json"];
    let plan: serde_json::Value =
        serde_json::from_str(&ok(&irepair(&demo(&out, &large)))).expect("json");
    let needed = plan["memory_mib"].as_u64().expect("memory");
    let words = [format!("about {needed} MiB"), format!("{} are allowed", needed - 1)];
    refused(
        &demo(&out, &large),
        needed - 1,
        &[&words[0], &words[1], "activations ", "lower --batch-size", "--max-length"],
    );
    ok(&command(&demo(&out, &large))
        .env("IREPAIR_MEMORY_LIMIT", needed.to_string())
        .output()
        .expect("runs"));
    assert_eq!(std::fs::read_dir(dir.path()).expect("dir").count(), 0, "something was written");
    // Every command, before it reads the weights: they are broken.
    let model = dir.path().join("model");
    std::fs::create_dir(&model).expect("dir");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(golden::dir().join("gpt2").join(name), model.join(name)).expect(name);
    }
    let mut bytes = std::fs::read(model.join("model.safetensors")).expect("weights");
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(model.join("model.safetensors"), bytes).expect("writes");
    let [corpus, texts] = ["corpus.txt", "texts.jsonl"].map(|name| dir.path().join(name));
    std::fs::write(&corpus, "The rain came again. ".repeat(40)).expect("writes");
    let (pairs, corpus, texts) = (golden::dir().join("pairs.jsonl"), text(&corpus), text(&texts));
    let pairs = text(&pairs);
    let model = ["--model", text(&model)];
    let repair = [
        "repair",
        "--data",
        pairs,
        "--valid-size",
        "0",
        "--max-length",
        "64",
        "--out",
        text(&out),
        "-q",
    ];
    let commands: [(&[&str], &str); 4] = [
        (&repair, "lower --batch-size"),
        (&["sensitivity", "--data", pairs], "lower --batch-size"),
        (&["generate", "--unconditional", "2", "--out", texts], "lower --batch-size"),
        (&["eval", "--ppl", corpus, "--out", texts, "--overwrite"], "a smaller model"),
    ];
    for (arguments, advice) in commands {
        refused(&[arguments, &model].concat(), 10, &[advice]);
        let output = irepair(&[arguments, &model].concat());
        assert!(String::from_utf8_lossy(&output.stderr).contains("NaN"), "{arguments:?}");
    }
    refused(&["bench", "--config", "gpt2-xl", "--method", "dpo"], 10, &["lower --batch"]);
}

#[test]
fn the_guard_stops_and_goes_back() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("out");
    let wild = [
        "-q",
        "--learning-rate",
        "3e-2",
        "--warmup-steps",
        "0",
        "--eval-steps",
        "2",
        "--schedule",
        "constant",
    ];
    // A state is saved before the first validation.
    let output = irepair(&demo(
        &out,
        &[&wild[..], &["--save-steps", "1", "--max-ppl-increase", "5"]].concat(),
    ));
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{error}");
    assert!(error.contains("guard") && !out.exists(), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("dir").count(), 0, "something is left");
    // The corrected command, a gentle run into the same guard, later: what was within it is kept.
    let gentle = ["-q", "--learning-rate", "1e-3", "--warmup-steps", "11", "--eval-steps", "1"];
    let output = irepair(&demo(&out, &[&gentle[..], &["--max-ppl-increase", "5"]].concat()));
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{error}");
    let run = record(&out);
    assert!(
        run.stopped.contains("guard") && run.kept_step < run.steps,
        "{} {}",
        run.kept_step,
        run.steps
    );
    let rise = run.after.ppl.expect("ppl") / run.before.ppl.expect("ppl");
    assert!(rise < 1.05, "perplexity rose by {rise}");
}

/// Too few pairs to hold any back: the guard would never look.
#[test]
fn a_guard_without_validations_is_refused() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("out");
    let (model, data) = (golden::dir().join("gpt2"), golden::dir().join("pairs.jsonl"));
    let repair = [
        "repair",
        "--model",
        text(&model),
        "--data",
        text(&data),
        "--limit",
        "3",
        "--batch-size",
        "1",
    ];
    let clean = golden::dir().join("normal.jsonl");
    let guard = ["--max-ppl-increase", "5", "--eval-text", text(&clean), "--out", text(&out)];
    for more in [&["-q"][..], &["-q", "--dry-run"]] {
        let output = irepair(&[&repair[..], &guard, more].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(3) && error.contains("of 3 pairs none is held back"),
            "{error}"
        );
        assert!(!out.exists());
    }
}

#[test]
fn curves_go_to_tensorboard() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("out");
    ok(&irepair(&demo(
        &out,
        &["-q", "--report-to", "tensorboard", "--gradient-accumulation-steps", "2"],
    )));
    let folder = out.join("irepair/tensorboard");
    let file = folder.read_dir().expect("folder").next().expect("a file").expect("entry").path();
    assert!(text(&file).contains("events.out.tfevents."));
    let bytes = std::fs::read(&file).expect("events");
    let (mut at, mut records) = (0, 0);
    while at < bytes.len() {
        let length =
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes")) as usize;
        at += 8 + 4 + length + 4;
        records += 1;
    }
    let lines =
        std::fs::read_to_string(out.join("irepair/steps.jsonl")).expect("log").lines().count();
    // Beside the lines: the version of the format, and the session's start.
    assert_eq!((at, records), (bytes.len(), lines + 2));
    for tag in ["train/loss", "train/kl", "valid/loss", "sensitivity/block_05"] {
        assert!(bytes.windows(tag.len()).any(|w| w == tag.as_bytes()), "{tag}");
    }
}

/// The trial's winner is the slice of every step; a run that was killed keeps it. In mixed precision where there is one.
#[test]
fn trials_choose_the_slice_of_the_whole_run() {
    let dir = tempfile::tempdir().expect("dir");
    let (whole, out) = (dir.path().join("whole"), dir.path().join("killed"));
    let parts = [
        "-q",
        "--select",
        "trial",
        "--objective",
        "dpo",
        "--kl-weight",
        "2",
        "--slice",
        "sublayer",
    ];
    let more = [&parts[..], &["--trial-steps", "2", "--dtype", "bf16", "--learning-rate", "1e-4"]]
        .concat();
    ok(&irepair(&demo(&whole, &more)));
    let log = std::fs::read_to_string(whole.join("irepair/steps.jsonl")).expect("log");
    let lines: Vec<serde_json::Value> =
        log.lines().map(|l| serde_json::from_str(l).expect("json")).collect();
    let trials: Vec<&serde_json::Value> =
        lines.iter().filter(|l| l.get("trial").is_some()).collect();
    assert_eq!(trials.len(), 12, "an attention and an MLP in each of six blocks");
    let loss = |t: &serde_json::Value| t["valid_loss"].as_f64().expect("loss");
    let best = trials.iter().min_by(|a, b| loss(a).total_cmp(&loss(b))).expect("trials");
    for step in lines.iter().filter(|l| l.get("lr").is_some()) {
        assert_eq!(step["slice"], best["trial"]);
    }
    let run = record(&whole);
    assert_eq!(run.dtype == Precision::Bf16, Precision::Bf16.unavailable().is_none());
    assert!(
        run.changed.iter().all(|c| c.name.contains(".mlp.") || c.name.contains(".ln_2."))
            || run.changed.iter().all(|c| c.name.contains(".attn.") || c.name.contains(".ln_1."))
    );
    let log = dir.path().join("killed.partial/irepair/steps.jsonl");
    let mut child = command(&demo(&out, &more)).spawn().expect("starts");
    while read_steps(&log).map_or(0, |s| s.len()) < 7 && child.try_wait().expect("wait").is_none() {
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().expect("kill");
    child.wait().expect("wait");
    ok(&irepair(&demo(&out, &[&more[..], &["--resume"]].concat())));
    assert_eq!(files(&out), files(&whole));
}

/// What selectors find before the first step, and what they learn in later ones, is in the state: a kill loses neither.
#[test]
fn what_a_selector_knows_survives_a_kill() {
    let dir = tempfile::tempdir().expect("dir");
    let trial = &["--method", "trial-dpo-ul+kl", "--trial-steps", "2", "--save-steps", "100"];
    let cases: [(&str, &[&str]); 5] = [
        ("trial", trial),
        ("trials", trial),
        ("fixed", &["--method", "irepair-fixed+kl", "--save-steps", "100"]),
        ("start", &["--select", "max", "--normalize", "start", "--save-steps", "100"]),
        ("running", &["--select", "max", "--normalize", "running", "--save-steps", "3"]),
    ];
    for (name, method) in cases {
        let (whole, out) = (dir.path().join(format!("whole-{name}")), dir.path().join(name));
        let more = [&["-q"][..], method].concat();
        ok(&irepair(&demo(&whole, &more)));
        let partial = dir.path().join(format!("{name}.partial"));
        let state = partial.join("irepair/state/state.safetensors");
        let mut child = command(&demo(&out, &more)).spawn().expect("starts");
        // The first of all: after a trial, a look, or steps. Or that of all trials.
        let log = partial.join("irepair/steps.jsonl");
        let stands = || match name {
            "trials" => std::fs::read_to_string(&log).is_ok_and(|log| log.contains("{\"step\"")),
            _ => state.exists(),
        };
        while !stands() && child.try_wait().expect("wait").is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert!(state.exists(), "{name}");
        let trials = |dir: &Path| -> Vec<String> {
            let log = std::fs::read_to_string(dir.join("irepair/steps.jsonl")).expect("log");
            log.lines().filter(|line| line.starts_with("{\"trial\"")).map(str::to_owned).collect()
        };
        // So early that the state is that of before the first step, not one of the end.
        let step = read_steps(&partial.join("irepair/steps.jsonl")).expect("steps").len();
        assert!(step < 12, "{name}: all steps were made before there was a state");
        let made = trials(&partial);
        assert_eq!(made.is_empty(), !name.starts_with("trial"));
        ok(&irepair(&demo(&out, &[&more[..], &["--resume"]].concat())));
        // With the seconds that they took: they were not made again. The log may be one trial ahead of the state.
        let sure = if name == "trial" { made.len().saturating_sub(1).max(1) } else { made.len() };
        assert_eq!(trials(&out)[..sure], made[..sure], "{name}");
        assert_eq!(trials(&out).len(), trials(&whole).len(), "{name}");
        assert_eq!(files(&out), files(&whole), "{name}");
        assert_eq!(record(&out).tokens, record(&whole).tokens, "{name}");
        if name == "trials" {
            // What it works against lies beside the result: words of the rejected responses.
            let found = std::fs::read_to_string(out.join("irepair/telltale.jsonl"))
                .expect("telltale tokens");
            let found = found
                .lines()
                .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("a line"));
            let said: Vec<String> = found
                .map(|t| {
                    assert!(
                        t["rejected"].as_u64() >= Some(10) && t["weight"].as_f64() > Some(0.8),
                        "{t}"
                    );
                    t["token"].as_str().expect("a token").trim().to_owned()
                })
                .collect();
            assert!(said.iter().any(|word| word == "damn"), "{said:?}");
        }
    }
}

/// Trials are judged on held-back rows even where nothing is validated later; one that diverges is the worst, not the end.
#[test]
fn trials_without_validations_and_trials_that_diverge() {
    let dir = tempfile::tempdir().expect("dir");
    let out = dir.path().join("out");
    ok(&irepair(&quick(
        &out,
        &["-q", "--method", "trial-dpo+kl", "--trial-steps", "2", "--eval-steps", "0"],
    )));
    let log = std::fs::read_to_string(out.join("irepair/steps.jsonl")).expect("log");
    let lines: Vec<serde_json::Value> =
        log.lines().map(|l| serde_json::from_str(l).expect("json")).collect();
    let sum = |key: &str| lines.iter().filter_map(|l| l[key].as_u64()).sum::<u64>();
    let trials: Vec<&serde_json::Value> =
        lines.iter().filter(|l| l.get("trial").is_some()).collect();
    assert!(
        trials.iter().all(|t| t["operations"].as_u64() > Some(0) && t["tokens"].as_u64() > Some(0))
    );
    assert!(!out.join("irepair/telltale.jsonl").exists(), "DPO alone asks no token");
    // What the trials took is a part of what the run took.
    let run = record(&out);
    assert_eq!((run.operations, run.tokens as u64), (sum("operations"), sum("tokens")));
    assert_eq!(run.resolved["kl-weight"], 2.0);
    assert_eq!((&run.resolved["beta"], &run.resolved["select"]), (&0.1.into(), &"trial".into()));
    let broken = ["-q", "--method", "trial-dpo+kl", "--trial-steps", "2", "--max-grad-norm", "0"];
    let output =
        irepair(&quick(&out, &[&broken[..], &["--learning-rate", "1e30", "--overwrite"]].concat()));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(1) && error.contains("the loss of every trial"),
        "{error}"
    );
    // As the error says: the untouched base is the state that a sane rate goes on from, trials and all.
    assert!(error.contains("--resume"), "{error}");
    ok(&irepair(&quick(
        &out,
        &[&broken[..], &["--learning-rate", "1e-4", "--resume", "--overwrite"]].concat(),
    )));
}

/// As on a processor without AVX512-BF16, `--dtype bf16` is f32, to the byte, and says so; the fast path is near.
#[test]
fn bf16_without_fast_products_is_f32() {
    let dir = tempfile::tempdir().expect("dir");
    let run = |name: &str, dtype: &str, plain: bool| {
        let out = dir.path().join(name);
        let mut command = command(&demo(
            &out,
            &["--method", "irepair", "--learning-rate", "1e-4", "--dtype", dtype],
        ));
        if plain {
            command.env("IREPAIR_PLAIN_PRODUCTS", "1");
        }
        let output = command.output().expect("runs");
        let said = ok(&output);
        let warnings = String::from_utf8_lossy(&output.stderr).matches("f32 is used").count();
        let steps = read_steps(&out.join("irepair/steps.jsonl")).expect("steps");
        (files(&out), record(&out), steps, (warnings, said.matches("in f32").count()))
    };
    let (bytes, fallback, _, said) = run("fallback", "bf16", true);
    assert_eq!(
        (fallback.dtype, fallback.settings.dtype, said),
        (Precision::F32, Precision::Bf16, (1, 1))
    );
    let (same, asked, plain, said) = run("plain", "f32", true);
    assert_eq!((asked.dtype, said), (Precision::F32, (0, 0)));
    assert_eq!(bytes, same);
    let (_, fast, steps, _) = run("fast", "bf16", false);
    assert_eq!(fast.dtype == Precision::Bf16, Precision::Bf16.unavailable().is_none());
    for (fast, plain) in steps.iter().zip(&plain) {
        assert_eq!(fast.block, plain.block);
        close(fast.loss, plain.loss, 0.01, "bf16 and f32");
    }
    let rounded =
        steps.iter().zip(&plain).any(|(fast, plain)| (fast.loss / plain.loss - 1.0).abs() > 1e-5);
    assert_eq!(rounded, fast.dtype == Precision::Bf16, "rounding shows");
    // A measurement of what is not there would mislead.
    let mut bench = command(&["bench", "--dtype", "bf16"]);
    let output = bench.env("IREPAIR_PLAIN_PRODUCTS", "1").output().expect("runs");
    assert_eq!(output.status.code(), Some(3));
    let doctor = command(&["doctor"]).env("IREPAIR_PLAIN_PRODUCTS", "1").output().expect("runs");
    assert!(ok(&doctor).contains("f32 is used"));
}

/// A tied head that is stored beside its embedding changes with it, there and back; one that differs is refused.
#[test]
fn a_tied_head_that_is_stored_stays_its_embedding() {
    for (name, embedding) in
        [("gpt2", "transformer.wte.weight"), ("llama", "model.embed_tokens.weight")]
    {
        let bench = Bench::new();
        let (model, data) = (bench.model_of(name), golden::dir().join("pairs.jsonl"));
        let floats = Checkpoint::open(&model, name, None).expect("opens").floats().expect("floats");
        let store = |head: &Tensor| {
            let stored = |(name, tensor): (&String, &Tensor)| {
                (name.clone(), Stored::values(tensor, Dtype::F32))
            };
            let mut tensors: BTreeMap<String, Stored> = floats.iter().map(stored).collect();
            tensors.insert("lm_head.weight".into(), Stored::values(head, Dtype::F32));
            write_tensors(&model.join("model.safetensors"), &[("format", "pt")], &tensors)
                .expect("writes");
        };
        let file = |dir: &Path| std::fs::read(dir.join("model.safetensors")).expect("weights");
        let stored = |dir: &Path, tensor: &str| {
            let bytes = file(dir);
            SafeTensors::deserialize(&bytes)
                .expect("weights")
                .tensor(tensor)
                .expect(tensor)
                .data()
                .to_vec()
        };
        store(&floats[embedding]);
        let (out, again, back) = (bench.path("out"), bench.path("again"), bench.path("back"));
        let arguments = [
            "repair",
            "--model",
            text(&model),
            "--data",
            text(&data),
            "--method",
            "dapt",
            "--max-steps",
            "2",
        ];
        let more = [
            "--valid-size",
            "0",
            "--eval-steps",
            "0",
            "--batch-size",
            "2",
            "--out",
            text(&out),
            "-q",
        ];
        ok(&irepair(&[&arguments[..], &more].concat()));
        assert_eq!(stored(&out, "lm_head.weight"), stored(&out, embedding), "{name}");
        assert_ne!(stored(&out, embedding), stored(&model, embedding), "{name}");
        let patch = out.join("irepair/patch.safetensors");
        ok(&irepair(&["patch", "apply", text(&model), text(&patch), "--out", text(&again)]));
        ok(&irepair(&["patch", "revert", text(&out), text(&patch), "--out", text(&back)]));
        assert!(file(&again) == file(&out) && file(&back) == file(&model), "{name}");
        store(&(&floats[embedding] * 2.0).expect("doubled"));
        bad_model(
            &model,
            &[
                &format!("lm_head.weight differs from {embedding}"),
                "\"tie_word_embeddings\" to false",
            ],
        );
    }
}

/// Copied, they would be the unrepaired weights once more.
#[test]
fn pickled_weights_are_not_copied() {
    let bench = Bench::new();
    let (model, out) = (bench.model_of("gpt2"), bench.path("out"));
    let pickles = [
        "consolidated.00.pth",
        "model.bin",
        "model.ckpt",
        "original/consolidated.00.pt",
        "pytorch_model.fp16.bin",
    ];
    for dir in [&out, &model.join("original")] {
        std::fs::create_dir(dir).expect("dir");
    }
    for name in pickles.iter().chain(&["training_args.bin"]) {
        std::fs::write(model.join(name), "unrepaired").expect(name);
    }
    let left_out =
        copy_model(&Checkpoint::open(&model, "gpt2", None).expect("opens"), &out).expect("copies");
    assert_eq!(left_out, pickles);
    assert!(
        out.join("training_args.bin").is_file()
            && pickles.iter().all(|name| !out.join(name).exists())
    );
}
