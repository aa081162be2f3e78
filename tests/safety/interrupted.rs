//! What was done before Ctrl-C or a kill stays, and the same command goes on with it.

use std::path::{Path, PathBuf};

use irepair::base::files::hex;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::command::{CommandLine, irepair};
use crate::support::comparison::Comparison;
use crate::support::files::{Folder, bytes, copy, demo_prompts, json, read, repository, rows};
use crate::support::golden;
use crate::support::process::{end_by, interrupt, kill, until};
use crate::support::repaired::{demo, files, partial, state, steps_made};

#[cfg(unix)]
#[test]
fn ctrl_c_saves_the_state_and_resume_finishes() {
    let folder = Folder::new();
    let (whole, out) = (folder.path("whole"), folder.path("stopped"));
    demo(&whole).and("-q").ok();
    let mut child = demo(&out).start();
    until(&mut child, || steps_made(&partial(&out)) >= 4);
    let error = interrupt(child);
    assert!(error.contains("--resume"), "{error}");
    assert!(!out.exists());
    // A new run does not replace an unfinished one.
    demo(&out).and("-q").fails(3, &[]);
    demo(&out).and("-q --resume --seed 1").fails(3, &["another"]);
    // A page of what is there so far does not end up in the finished output.
    irepair("report").arg(partial(&out)).ok();
    // SIGTERM, as a scheduler sends it, is the same.
    let from = steps_made(&partial(&out));
    let mut child = demo(&out).and("--resume").start();
    until(&mut child, || steps_made(&partial(&out)) > from);
    end_by(child, "-TERM");
    // Two at once would write over each other's state.
    let resumed = demo(&out).and("-q --resume");
    let lock = std::fs::File::open(partial(&out).join(".lock")).expect("lock");
    lock.lock().expect("locked");
    resumed.fails(3, &["another repair is working"]);
    drop(lock);
    resumed.ok();
    assert_eq!(files(&out), files(&whole));
    assert!(!out.join("irepair/report.html").exists());
}

/// Ctrl-C in the middle of a validation is heeded there; the whole of it is made after `--resume`.
#[cfg(unix)]
#[test]
fn a_validation_that_is_interrupted_is_made_again() {
    let folder = Folder::new();
    let run = |out: &Path| {
        irepair("repair -q --max-steps 4 --eval-steps 1 --batch-size 2 --valid-size 400")
            .and("--method dpo+kl --normal-texts 16 --eval-samples 0 --fail-on nothing")
            .with("--model", golden::path("gpt2"))
            .with("--data", repository("data/demo/pairs.jsonl"))
            .with("--out", out)
    };
    let (whole, out) = (folder.path("whole"), folder.path("stopped"));
    run(&whole).ok();
    let mut child = run(&out).start();
    let log = partial(&out).join("irepair/steps.jsonl");
    // Fifty batches are read between the line of a step and that of its validation.
    let in_validation = || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().last().is_some_and(|l| l.contains("\"step\":2,") && l.contains("grad_norm"))
    };
    until(&mut child, in_validation);
    interrupt(child);
    let state = bytes(state(&out));
    let begin = String::from_utf8_lossy(&state[..2000]).into_owned();
    assert!(begin.contains("to_validate\\\":true"), "{begin}");
    run(&out).and("--resume").ok();
    assert_eq!(files(&out), files(&whole));
}

/// Units of an interrupted evaluation are not made again, and the end is the same.
#[test]
fn an_interrupted_evaluation_goes_on() {
    let folder = Folder::new();
    let (whole, out) = (folder.path("whole"), folder.path("out"));
    let run = |out: &Path| {
        irepair("eval --toxicity --limit 150 --max-new-tokens 4 -q")
            .with("--prompts", demo_prompts())
            .with("--out", out)
    };
    run(&whole).ok();
    // As a kill leaves it: the first unit done, the second half written.
    let ledger = out.join("work/0-toxicity.jsonl");
    let lines = || std::fs::read_to_string(&ledger).map_or(0, |text| text.lines().count());
    let mut child = run(&out).start();
    until(&mut child, || lines() >= 2);
    kill(&mut child);
    let text = read(&ledger);
    let mut done = text.lines();
    let head = done.next().expect("the settings");
    let mut unit: Value = serde_json::from_str(done.next().expect("a unit")).expect("JSON");
    assert_eq!((&unit["unit"], unit["rows"].as_array().map(Vec::len)), (&0.into(), Some(64)));
    unit["rows"][0]["score"] = 0.125.into();
    let text = unit["rows"].to_string();
    unit["sha256"] = hex(&Sha256::digest(text)).into();
    let cut = "{\"unit\":1,\"rows\":[{\"row\":64,";
    std::fs::write(&ledger, format!("{head}\n{unit}\n{cut}")).expect("writes");
    run(&out).fails(3, &["--resume"]);
    let damaged = folder.path("damaged");
    copy(&out, &damaged);
    run(&out).and("--resume").ok();
    let [all, resumed] = [&whole, &out].map(|dir| rows(dir.join("0-toxicity.jsonl")));
    assert_eq!(resumed[0]["score"], 0.125, "a done unit was made again");
    assert_eq!(resumed[1..], all[1..]);
    // A unit with other bytes than were written is made again.
    unit["rows"][1]["score"] = 0.25.into();
    let ledger = damaged.join("work/0-toxicity.jsonl");
    std::fs::write(&ledger, format!("{head}\n{unit}\n")).expect("writes");
    run(&damaged).and("--resume").ok();
    assert_eq!(rows(damaged.join("0-toxicity.jsonl")), all);
    run(&out).fails(3, &["--overwrite"]);
    run(&out).and("--resume").fails(3, &["no unfinished evaluation"]);
}

/// Starts a command, interrupts it when three lines stand in its ledger, and gives what it said.
fn interrupted(line: &CommandLine, ledger: &Path) -> String {
    let mut child = line.start();
    let done = || std::fs::read_to_string(ledger).unwrap_or_default().lines().count();
    until(&mut child, || done() >= 3);
    let error = interrupt(child);
    assert!(done() >= 3);
    error
}

#[test]
fn ctrl_c_keeps_what_is_done() {
    let folder = Folder::new();
    let (whole, out) = (folder.path("whole"), folder.path("out"));
    let run = |out: &Path| {
        irepair("eval --toxicity rtp --samples 8 -q")
            .with("--prompts", demo_prompts())
            .with("--out", out)
    };
    let error = interrupted(&run(&out), &out.join("work/0-toxicity.jsonl"));
    assert!(error.contains("--resume"), "{error}");
    run(&out).and("--resume").ok();
    run(&whole).ok();
    let [resumed, all] = [&out, &whole].map(|dir| rows(dir.join("0-toxicity.jsonl")));
    assert_eq!(resumed, all);
}

/// Texts that are written already stay where the command is interrupted, and the same command goes
/// on with them.
#[test]
fn interrupted_texts_go_on() {
    let folder = Folder::new();
    let (out, whole) = (folder.path("out.jsonl"), folder.path("whole.jsonl"));
    let write = |out: &Path| {
        irepair("generate --unconditional 1500 --max-new-tokens 12 --scorer words")
            .and("--keep-below 0.5 -q")
            .with("--out", out)
    };
    let error = interrupted(&write(&out), &partial(&out));
    assert!(error.contains("the same command"), "{error}");
    assert!(!out.exists());
    let text = write(&out).ok();
    assert!(text.contains("removed"), "{text}");
    write(&whole).ok();
    assert!(bytes(out) == bytes(whole));
}

#[test]
fn an_interrupted_comparison_goes_on() {
    let comparison = Comparison::new();
    let rows = "--methods irepair,dapt --save-steps 1 --max-steps 16";
    // Two at a time, here, on two devices, though both names mean the CPU where there is no GPU;
    // one after the other below, where nobody interrupts.
    let at_once = comparison.line().and(rows).and("--device cpu,auto");
    let mut child = at_once.start();
    let states: [PathBuf; 2] = ["irepair", "dapt"].map(|method| {
        let state = "irepair/state/state.safetensors";
        comparison.out().join(format!("runs/{method}-seed42.partial/{state}"))
    });
    until(&mut child, || states.iter().all(|s| s.exists()));
    let error = interrupt(child);
    assert!(error.contains("--resume"), "{error}");
    assert!(states.iter().all(|s| s.exists()), "the runs under way saved their states");
    // Half a run with one learning rate and half with another would be neither.
    let resumed = at_once.and("--resume");
    resumed.clone().and("--learning-rate 1e-5").fails(3, &["begun with other settings"]);
    // A kill while weights on the way are evaluated leaves a whole model behind.
    comparison.folder().write("out/scratch/.tmp1/model.safetensors", "left");
    // So does one while a file is written, in any folder.
    let half = comparison.folder().write("out/runs/.irepair-0a1b2c", "half a fi");
    resumed.ok();
    assert!(!comparison.out().join("scratch").exists() && !half.exists());
    let mut devices = ["irepair", "dapt"].map(|method| {
        let run = json(comparison.out().join(format!("runs/{method}-seed42/irepair/run.json")));
        run["settings"]["device"].clone()
    });
    devices.sort_by_key(Value::to_string);
    assert_eq!(devices, ["auto", "cpu"]);
    // The bytes of a run that nobody interrupted.
    let whole = Comparison::new();
    whole.line().and(rows).ok();
    for method in ["irepair", "dapt"] {
        let weights = format!("runs/{method}-seed42/model.safetensors");
        let [found, expected] = [&comparison, &whole].map(|c| bytes(c.out().join(&weights)));
        assert!(found == expected, "{method}");
    }
    let figures = |comparison: &Comparison| -> Vec<(Value, Value)> {
        let record = comparison.record();
        let entries = record["entries"].as_array().expect("entries").iter();
        let runs = entries.flat_map(|e| e["runs"].as_array().expect("runs"));
        runs.map(|run| (run["figures"].clone(), run["points"].clone())).collect()
    };
    assert_eq!(figures(&comparison), figures(&whole));
}
