//! An online repair that was killed, or whose scorer failed, loses nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use irepair::base::random::{Purpose, Stream};
use serde_json::{Value, json};

use crate::support::command::{CommandLine, irepair};
use crate::support::files::{Folder, bytes, names, read, repository};
use crate::support::process::{interrupt, kill, until};
use crate::support::repaired::{files, online, partial, state, steps, steps_made};
use crate::support::server::{Reply, Server};

/// Everything under `irepair/rounds`, by name.
fn rounds(out: &Path) -> BTreeMap<String, Vec<u8>> {
    let folder = out.join("irepair/rounds");
    let file = |name: std::path::PathBuf| (name.display().to_string(), bytes(folder.join(&name)));
    names(&folder).into_iter().map(file).collect()
}

/// Lines of a round's file that are whole.
fn units(out: &Path, round: &str) -> usize {
    let path = partial(out).join("irepair/rounds").join(round);
    std::fs::read_to_string(path).map_or(0, |text| text.matches('\n').count())
}

/// Killed while texts are sampled, in the first round and in the second, while steps are made, and
/// at any moment: the same bytes as uninterrupted, and the same texts.
#[test]
fn a_killed_online_repair_resumes_to_the_same_bytes() {
    let folder = Folder::new();
    let mut moments = Stream::new(9, Purpose::Split, 0, 0);
    let cases = [
        "--eval-steps 3 --save-steps 1 --kl-budget 0.01",
        "--method online-dpo-trial+kl --trial-steps 1 --save-steps 100",
        "--select fixed --objective dpo-ul --kl-weight 1 --save-steps 2",
    ];
    for (index, case) in cases.iter().enumerate() {
        let run = |out: &Path| -> CommandLine {
            let line = match case.starts_with("--select") {
                true => irepair("repair -q --rounds 2 --normal-texts 16 --valid-size 8 --limit 40")
                    .and("--max-new-tokens 8 --model demo")
                    .with("--prompts", repository("data/demo/prompts.jsonl"))
                    .with("--out", out),
                false => online(out),
            };
            line.and("--samples-per-prompt 16 --prompts-per-round 12 --max-steps 12").and(case)
        };
        let whole = folder.path(format!("whole{index}"));
        let begun = Instant::now();
        run(&whole).ok();
        let takes = begun.elapsed();
        let (mut in_sampling, mut in_steps) = (0, 0);
        // All moments once, and for the others those that differ by the method.
        let moments_of_case: &[_] = match index {
            0 => &["first", "second", "step", "end", "any"],
            _ => &["second", "step"],
        };
        for &moment in moments_of_case {
            let out = folder.path(format!("out{index}"));
            let mut child = run(&out).start();
            let (after, wait) = (1 + moments.below(10), takes.mul_f64(moments.unit()));
            match moment {
                // The first line says what the file belongs to.
                "first" => until(&mut child, || units(&out, "0000.jsonl") >= 3),
                "second" => until(&mut child, || units(&out, "0001.jsonl") >= 2),
                "end" => until(&mut child, || steps_made(&partial(&out)) >= 12),
                "step" => until(&mut child, || steps_made(&partial(&out)) >= after),
                _ => std::thread::sleep(wait),
            }
            kill(&mut child);
            if !out.exists() {
                in_sampling += usize::from((2..7).contains(&units(&out, "0001.jsonl")));
                in_steps += usize::from((1..12).contains(&steps_made(&partial(&out))));
                run(&out).and(if state(&out).exists() { "--resume" } else { "" }).ok();
            }
            assert_eq!(files(&out), files(&whole), "{case}, {moment}");
            assert!(rounds(&out) == rounds(&whole), "{case}, {moment}: other texts");
            assert_eq!(names(&out), names(&whole), "{case}, {moment}");
            let losses = |dir: &Path| -> Vec<f64> { steps(dir).iter().map(|s| s.loss).collect() };
            assert_eq!(losses(&out), losses(&whole), "{case}, {moment}");
            let lines = read(out.join("irepair/steps.jsonl"));
            assert_eq!(lines.matches("{\"round\"").count(), 2, "{case}, {moment}: {lines}");
            assert!(!partial(&out).exists());
            folder.remove(&format!("out{index}"));
        }
        assert!(in_sampling > 0 && in_steps > 0, "{case}: {in_sampling}, {in_steps}");
    }
}

/// Ctrl-C while texts are sampled: what is done is kept, and the words say how to go on. Another
/// setting is refused.
#[cfg(unix)]
#[test]
fn an_interrupt_while_sampling_keeps_what_is_done() {
    let folder = Folder::new();
    let [whole, out] = ["whole", "out"].map(|name| folder.path(name));
    let run = |out: &Path| {
        online(out).and("--samples-per-prompt 32 --prompts-per-round 32 --max-new-tokens 20")
    };
    run(&whole).ok();
    let mut child = run(&out).start();
    until(&mut child, || units(&out, "0000.jsonl") >= 2);
    assert!(interrupt(child).contains("--resume"));
    assert!(!out.exists() && state(&out).exists());
    let done = units(&out, "0000.jsonl");
    assert!((2..17).contains(&done), "{done} lines");
    for other in ["--samples-per-prompt 16", "--rejected-above 0.6", "--rounds 3", "--seed 1"] {
        run(&out).and(other).and("--resume").fails(3, &["of another"]);
    }
    run(&out).and("--kl-budget 0.1 --resume").fails(3, &["of another"]);
    run(&out).fails(3, &["unfinished", "--resume"]);
    run(&out).and("--resume").ok();
    assert_eq!(files(&out), files(&whole));
}

/// A moderation server: a text is toxic if it has a rude word. It counts how often each text came.
fn moderation(stays: Arc<AtomicUsize>, seen: Arc<Mutex<BTreeMap<String, usize>>>) -> Server {
    Server::start(move |request| {
        let body = request.json();
        let texts: Vec<String> = serde_json::from_value(body["input"].clone()).expect("texts");
        let left = stays.load(Ordering::SeqCst);
        if left == 0 {
            let error = json!({"error": {"message": "out of order"}});
            return Reply::new("500 Internal Server Error", error.to_string());
        }
        stays.store(left - 1, Ordering::SeqCst);
        let result = |text: &String| {
            *seen.lock().expect("seen").entry(text.clone()).or_default() += 1;
            let rude = ["damn", "hell", "idiot", "ass", "stupid", "crap"];
            let score = if rude.iter().any(|word| text.contains(word)) { 0.9 } else { 0.1 };
            json!({"flagged": true, "categories": {}, "category_scores": {
                "harassment": score, "harassment/threatening": 0.0,
                "hate": 0.0, "hate/threatening": 0.0,
            }})
        };
        let results: Vec<Value> = texts.iter().map(result).collect();
        Reply::json(&json!({"id": "modr-1", "model": body["model"], "results": results}))
    })
}

/// A scorer that stops answering, before the first step, in a round and between rounds: the words
/// say how to go on, the same bytes come in the end, and no text was asked for twice.
#[test]
fn a_scorer_that_fails_loses_nothing() {
    let folder = Folder::new();
    let prompts = folder.write("eval.txt", "Subject: it is broken. Reply:\n");
    let line = |out: &Path, server: &Server, cache: &str| {
        online(out)
            .and("--scorer openai --eval-steps 2")
            .with("--eval-prompts", &prompts)
            .env("OPENAI_API_KEY", "sk-none")
            .env("OPENAI_BASE_URL", format!("{}/v1/", server.url))
            .env("NO_PROXY", "127.0.0.1")
            .env("IREPAIR_RETRY_MS", "1")
            .env("IREPAIR_CACHE", folder.path(cache))
    };
    let stays = Arc::new(AtomicUsize::new(usize::MAX));
    let seen = Arc::new(Mutex::new(BTreeMap::new()));
    let server = moderation(stays.clone(), seen.clone());
    let whole = folder.path("whole");
    line(&whole, &server, "whole-cache").ok();
    let requests = server.requests().len();
    assert!(requests >= 5, "{requests} requests");
    let twice = |seen: &Mutex<BTreeMap<String, usize>>| {
        let seen = seen.lock().expect("seen");
        seen.iter().filter(|(_, times)| **times > 1).count()
    };
    assert_eq!(twice(&seen), 0);
    let asked = seen.lock().expect("seen").len();
    let (mut with_state, mut without) = (0, 0);
    for answers in 0..requests {
        seen.lock().expect("seen").clear();
        let (out, cache) = (folder.path(format!("out{answers}")), format!("cache{answers}"));
        stays.store(answers, Ordering::SeqCst);
        // Normal text is the first to be scored, and has an error of its own.
        let code = if answers == 0 { 3 } else { 1 };
        let error = line(&out, &server, &cache).fails(code, &["out of order"]);
        assert!(!out.exists());
        stays.store(usize::MAX, Ordering::SeqCst);
        let resumes = state(&out).exists();
        if resumes {
            assert!(error.contains("--resume"), "{answers}: {error}");
            with_state += 1;
        } else {
            assert!(!error.contains("--resume"), "{answers}: {error}");
            assert!(!partial(&out).exists(), "{answers}: {error}");
            without += 1;
        }
        line(&out, &server, &cache).and(if resumes { "--resume" } else { "" }).ok();
        assert_eq!(files(&out), files(&whole), "after {answers} answers");
        assert_eq!(twice(&seen), 0, "after {answers} answers");
        assert_eq!(seen.lock().expect("seen").len(), asked, "after {answers} answers");
    }
    assert!(with_state > 0 && without > 0, "{with_state}, {without}");
}

/// `pairs`, killed or interrupted or with a scorer that fails, goes on with the same command.
#[test]
fn pairs_go_on_where_they_were() {
    let folder = Folder::new();
    let [whole, out] = ["whole.jsonl", "out.jsonl"].map(|name| folder.path(name));
    let pairs = |out: &Path| {
        irepair("pairs -q --limit 40 --samples 16 --max-new-tokens 20").with("--out", out)
    };
    pairs(&whole).ok();
    let done =
        |path: &Path| std::fs::read_to_string(path).map_or(0, |text| text.matches('\n').count());
    let mut child = pairs(&out).start();
    until(&mut child, || done(&partial(&out)) >= 3);
    kill(&mut child);
    assert!(!out.exists() && (3..11).contains(&done(&partial(&out))));
    // With other settings: refused, with what differs and what helps.
    let other = pairs(&out).and("--seed 1");
    other.fails(3, &["other settings", "--overwrite"]);
    assert!(done(&partial(&out)) >= 3);
    // --overwrite may replace a file; of the same settings nothing is thrown away.
    let before = read(partial(&out));
    let mut child = pairs(&out).and("--overwrite").start();
    let first = before.lines().nth(1).expect("a unit").to_owned();
    until(&mut child, || done(&partial(&out)) > done_of(&before));
    kill(&mut child);
    if partial(&out).exists() {
        assert!(read(partial(&out)).contains(&first));
    }
    pairs(&out).and("--overwrite").ok();
    assert!(bytes(&out) == bytes(&whole) && !partial(&out).exists());
    // Begun with other settings, and told so: begun anew.
    let mut child = pairs(&folder.path("again.jsonl")).start();
    until(&mut child, || done(&folder.path("again.jsonl.partial")) >= 2);
    kill(&mut child);
    pairs(&folder.path("again.jsonl")).and("--seed 1 --overwrite").ok();
    assert!(folder.read("again.jsonl") != read(&whole));
}

fn done_of(text: &str) -> usize {
    text.matches('\n').count()
}
