//! A repair that was killed, at whatever moment, goes on to the same bytes.

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use irepair::base::random::{Purpose, Stream};
use irepair::report::EditsRecord;
use serde_json::json;

use crate::support::command::{CommandLine, ends, irepair};
use crate::support::files::{Folder, bytes, names, read, rows};
use crate::support::process::{has_ended, interrupt, kill, until};
use crate::support::repaired::{demo, files, partial, quick, record, state, steps, steps_made};

/// Twenty-four kills. A third falls at moments drawn over the whole of a run: its start, the normal
/// text, the steps, the last measurement, the writing of the output. A third falls after steps that
/// are drawn. A third falls in the middle of a save: the run is stopped again and again until a
/// temporary file shows that it is in one.
#[cfg(unix)]
#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let folder = Folder::new();
    let (mut in_a_save, mut with_state) = (0, 0);
    let mut moments = Stream::new(20, Purpose::Split, 0, 0);
    for (method, kills) in [
        ("irepair+kl", 8),
        ("dapt", 8),
        ("dpo --optimizer adamw --gradient-accumulation-steps 2", 8),
    ] {
        let name = method.split(' ').next().expect("a name");
        let whole = folder.path(format!("whole-{name}"));
        // More than one epoch of 48 pairs. Nothing is kept from run to run: normal text is written
        // anew.
        let run = |out: &Path, round: usize| {
            quick(out)
                .and("-q --save-steps 1 --max-steps 30 --method")
                .and(method)
                .env("IREPAIR_CACHE", folder.path(format!("cache-{name}-{round}")))
        };
        let begun = Instant::now();
        run(&whole, kills).ok();
        let takes = begun.elapsed();
        let made = |out: &Path| -> Vec<(usize, f64, Option<usize>)> {
            steps(out).iter().map(|s| (s.step, s.loss, s.block)).collect()
        };
        for round in 0..kills {
            let out = folder.path(format!("killed-{name}-{round}"));
            let (moment, after) = (takes.mul_f64(moments.unit()), 1 + moments.below(25));
            let what = format!("{method}, round {round}: {moment:?} of {takes:?}, step {after}");
            let mut child = run(&out, round).start();
            match round % 3 {
                0 => std::thread::sleep(moment),
                _ => until(&mut child, || steps_made(&partial(&out)) >= after),
            }
            if round % 3 == 2 {
                stop_in_a_save(&mut child, &out);
            }
            kill(&mut child);
            in_a_save += usize::from(is_in_a_save(&out));
            if !out.exists() {
                let has_state = state(&out).exists();
                with_state += usize::from(has_state);
                run(&out, round).and(if has_state { "--resume" } else { "" }).ok();
            }
            assert_eq!(files(&out), files(&whole), "{what}");
            assert_eq!(made(&out), made(&whole), "{what}");
            assert!(!partial(&out).exists(), "{what}: something is left");
            assert_eq!(names(&out), names(&whole), "{what}");
        }
    }
    assert!(in_a_save >= 3, "only {in_a_save} kills fell into a save");
    assert!(with_state >= 9, "only {with_state} kills left a state");
}

/// A temporary file lies beside the state.
#[cfg(unix)]
fn is_in_a_save(out: &Path) -> bool {
    let state = state(out);
    let entries = state.parent().expect("folder").read_dir().into_iter().flatten().flatten();
    entries.filter(|e| e.file_name() != "state.safetensors").count() > 0
}

/// Stops the process again and again, until it is in a save or has ended.
#[cfg(unix)]
fn stop_in_a_save(child: &mut Child, out: &Path) {
    let signal = |child: &Child, signal| {
        // SAFETY: a signal to a process that was started here and is not waited for yet.
        unsafe { libc::kill(child.id() as libc::pid_t, signal) };
    };
    while !has_ended(child) {
        signal(child, libc::SIGSTOP);
        if is_in_a_save(out) {
            break;
        }
        signal(child, libc::SIGCONT);
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// No room for a state: the run says so and ends, the last good state stays, and the run goes on
/// from it.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_last_good_state() {
    let folder = Folder::new();
    let (whole, out) = (folder.path("whole"), folder.path("full"));
    let repair = |out| demo(out).and("-q --method dapt --save-steps 2");
    repair(&whole).ok();
    let mut child = repair(&out).start();
    until(&mut child, || steps_made(&partial(&out)) >= 5);
    kill(&mut child);
    // A limit on the size of files acts as a full disk does, for this process alone. In 8 MiB the
    // base fits, and a state does not.
    let resumed = repair(&out).and("--resume");
    let error = ends(&resumed.run_after("trap '' XFSZ; ulimit -f 16384"), 1);
    assert!(error.contains("state.safetensors"), "{error}");
    assert!(!out.exists());
    resumed.ok();
    let weights = |dir: &Path| files(dir)[Path::new("model.safetensors")].clone();
    assert_eq!(weights(&out), weights(&whole));
}

#[test]
fn a_run_that_ended_by_patience_resumes_as_ended() {
    let folder = Folder::new();
    let (whole, out) = (folder.path("whole"), folder.path("out"));
    // A learning rate at which validation soon gets worse.
    let repair = |out| {
        demo(out)
            .and("-q --eval-steps 1 --patience 2 --max-steps 40 --learning-rate 0.02")
            .and("--warmup-steps 0 --save-steps 1")
    };
    repair(&whole).ok();
    let made = steps(&whole).len();
    assert!(made < 40, "it did not end early");
    let mut child = repair(&out).start();
    // In the evaluation after the last step.
    until(&mut child, || steps_made(&partial(&out)) >= made);
    std::thread::sleep(Duration::from_millis(50));
    kill(&mut child);
    if !out.exists() {
        repair(&out).and("--resume").ok();
    }
    assert_eq!(files(&out), files(&whole));
    assert_eq!(steps(&out).len(), made);
}

/// What selectors find before the first step, and what they learn in later ones, is in the state: a
/// kill loses neither.
#[test]
fn what_a_selector_knows_survives_a_kill() {
    let folder = Folder::new();
    let trial = "--method trial-dpo-ul+kl --trial-steps 2 --save-steps 100";
    for (name, method) in [
        ("trial", trial),
        ("trials", trial),
        ("fixed", "--method irepair-fixed+kl --save-steps 100"),
        ("start", "--select max --normalize start --save-steps 100"),
        ("running", "--select max --normalize running --save-steps 3"),
    ] {
        let (whole, out) = (folder.path(format!("whole-{name}")), folder.path(name));
        let few = folder.few_prompts();
        let repair = |out| demo(out).and("-q").and(method).with("--eval-prompts", &few);
        repair(&whole).ok();
        let mut child = repair(&out).start();
        // Waits for the first state (after a trial, a look, or steps), or for the one after all
        // trials.
        let log = partial(&out).join("irepair/steps.jsonl");
        until(&mut child, || match name {
            "trials" => std::fs::read_to_string(&log).is_ok_and(|log| log.contains("{\"step\"")),
            _ => state(&out).exists(),
        });
        kill(&mut child);
        assert!(state(&out).exists(), "{name}");
        let trials = |dir: &Path| -> Vec<String> {
            let log = read(dir.join("irepair/steps.jsonl"));
            log.lines().filter(|line| line.starts_with("{\"trial\"")).map(str::to_owned).collect()
        };
        // The kill came so early that the state is not one of the end.
        let step = steps(&partial(&out)).len();
        assert!(step < 12, "{name}: all steps were made before there was a state");
        let made = trials(&partial(&out));
        assert_eq!(made.is_empty(), !name.starts_with("trial"));
        repair(&out).and("--resume").ok();
        // The lines hold the seconds that the trials took, so equal lines were not made again. The
        // log may be one trial ahead of the state.
        let sure = if name == "trial" { made.len().saturating_sub(1).max(1) } else { made.len() };
        assert_eq!(trials(&out)[..sure], made[..sure], "{name}");
        assert_eq!(trials(&out).len(), trials(&whole).len(), "{name}");
        assert_eq!(files(&out), files(&whole), "{name}");
        assert_eq!(record(&out).tokens, record(&whole).tokens, "{name}");
        if name == "trials" {
            // The tokens that it works against lie beside the result. They are words of the
            // rejected responses.
            let found = rows(out.join("irepair/marker_tokens.jsonl"));
            for t in &found {
                let often = t["rejected"].as_u64() >= Some(10);
                assert!(often && t["weight"].as_f64() > Some(0.8), "{t}");
            }
            let said =
                |t: &serde_json::Value| t["token"].as_str().expect("a token").trim() == "damn";
            assert!(found.iter().any(said), "{found:?}");
        }
    }
}

/// Neuron-level repairs, killed in any step, or interrupted: `--resume` ends in the bytes and the
/// log of a repair that went through.
#[cfg(unix)]
#[test]
fn a_repair_that_was_cut_short_goes_on_to_the_same_bytes() {
    let folder = Folder::new();
    let cases =
        ["--method star --mode iterative --block-sparsity 1/2 --neurons 1/4", "--method mint"];
    for (index, case) in cases.iter().enumerate() {
        let run = |out: &Path| -> CommandLine {
            irepair("repair --rounds 2 --save-steps 1 -q").and(case).with("--out", out)
        };
        let whole = folder.path(format!("whole{index}"));
        run(&whole).ok();
        let numbers = |dir: &Path| -> Vec<(usize, Option<usize>, f64, usize)> {
            steps(dir).iter().map(|s| (s.step, s.block, s.loss, s.slice.len())).collect()
        };
        let all = numbers(&whole);
        for (part, by_signal) in [(2, true), (5, false)] {
            let what = format!("{case} cut short at {part}/7 of {} steps", all.len());
            let out = folder.path(format!("out{index}-{part}"));
            let mut child = run(&out).start();
            until(&mut child, || {
                steps_made(&partial(&out)) > all.len() * part / 7 && state(&out).exists()
            });
            if by_signal {
                assert!(interrupt(child).contains("--resume"), "{what}");
            } else {
                kill(&mut child);
            }
            assert!(!out.exists(), "{what}");
            let resumed = run(&out).and("--resume");
            if by_signal {
                let row = json!({"prompt": "Tea at noon", "target": " and bread"});
                let data = folder.write_rows("other.jsonl", &[row]);
                let on_other = resumed.clone().and("--model demo").with("--data", &data);
                on_other.fails(3, &["of another"]);
                for other in ["--rounds 3", "--seed 1"] {
                    resumed.clone().and(other).fails(3, &["of another"]);
                }
                if *case != "--method mint" {
                    resumed.clone().and("--learning-rate 0.02").fails(3, &["of another"]);
                }
            }
            resumed.ok();
            for file in ["model.safetensors", "irepair/patch.safetensors"] {
                assert!(bytes(out.join(file)) == bytes(whole.join(file)), "{what}: {file}");
            }
            assert_eq!(numbers(&out), all, "{what}");
            let edits = |dir: &Path| EditsRecord {
                repair_seconds: 0.0,
                ..record(dir).edits.expect("edits")
            };
            assert_eq!(edits(&out), edits(&whole), "{what}");
        }
    }
}
