//! A comparison done as tasks, apart and in any order, comes to what one command makes.

use serde_json::Value;

use crate::support::command::CommandLine;
use crate::support::comparison::Comparison;
use crate::support::files::{Folder, json, read};
use crate::support::process::{kill, until};

const ROWS: &str = "--methods irepair-min,one-block --seeds 1 --scales 0.5";

/// The record without what differs from machine to machine: times, memory, and where it lies.
fn told(comparison: &Comparison) -> String {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(map) => {
                for key in ["seconds", "step_seconds", "peak_rss_mib", "dir", "run_id"] {
                    map.remove(key);
                }
                map.values_mut().for_each(strip);
            }
            Value::Array(list) => list.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut record = comparison.record();
    // Its tables hold seconds and memory, too; they are made of the entries.
    record.as_object_mut().expect("record").remove("sheets");
    strip(&mut record);
    let root = comparison.folder().root().display().to_string();
    record.to_string().replace(&root, "ROOT")
}

fn task(line: &CommandLine, index: usize) -> CommandLine {
    line.clone().and(&format!("--task {index}"))
}

#[test]
fn tasks_apart_come_to_the_whole() {
    let (whole, parts) = (Comparison::new(), Comparison::new());
    whole.line().and(ROWS).ok();

    let line = parts.line().and(ROWS);
    task(&line, 0).fails(3, &["no plan is there", "--plan"]);
    line.clone().and("--merge").fails(3, &["no plan is there"]);
    let plan = line.clone().and("--plan --json").json();
    assert_eq!(plan["tasks"], 3, "{plan}");
    assert_eq!(plan["titles"][1], "irepair-min, seed 1", "{plan}");
    assert!(!parts.out().join("compare.json").exists());
    // Written down again, and told to people: nothing is lost.
    let text = line.clone().and("--plan").ok();
    assert!(text.contains("task 2: one-block, seed 1") && text.contains("next: "), "{text}");

    task(&line, 3).fails(3, &["--task 3", "tasks 0 to 2"]);
    // A task of another plan.
    parts.line().and(ROWS).and("--samples 3 --task 1").fails(3, &["is another", "choose another"]);
    let of_another = |rows: &str, says: &[&str]| {
        for part in ["--task 1", "--merge"] {
            parts
                .line()
                .and(rows)
                .and(part)
                .fails(3, &[&["the plan there is another"], says].concat());
        }
        assert!(!parts.out().join("runs/irepair-min-seed1").exists());
    };
    of_another(
        &ROWS.replace("--seeds 1", "--seeds 2"),
        &["its task 1 is irepair-min, seed 1, and here irepair-min, seed 2"],
    );
    of_another(&ROWS.replace("--seeds 1", "--seeds 1,2"), &["it has 3 tasks, and this command 5"]);
    of_another(
        &format!("{ROWS} --learning-rate 3e-6"),
        &["its task 1 (irepair-min, seed 1) has --learning-rate", "and here 3e-6", "--plan"],
    );
    of_another(&ROWS.replace("0.5", "0.25"), &["its --scales are [0.5], and here [0.25]"]);
    task(&line, 1).env("RAYON_NUM_THREADS", "1").ok();
    // Not all are done: nothing is made by the merge, and nothing is lost.
    line.clone().and("--merge").fails(3, &["2 of 3 tasks were not done", ": 0, 2;", "--task 0"]);
    let plan = line.clone().and("--plan --json").json();
    assert_eq!(plan["states"], serde_json::json!(["open", "done", "open"]), "{plan}");
    std::thread::scope(|scope| {
        // Side by side.
        for index in [0, 2] {
            let line = task(&line, index);
            scope.spawn(move || line.ok());
        }
    });
    let made = |name: &str| json(parts.out().join(name))["run_id"].clone();
    let run = "runs/irepair-min-seed1/irepair/run.json";
    let first = made(run);
    task(&line, 1).ok();
    assert_eq!(made(run), first, "a task that was done is left as it is");
    // On one thread, too, where nobody else could do the work.
    line.clone().and("--merge").env("RAYON_NUM_THREADS", "1").ok();
    assert_eq!(told(&parts), told(&whole));
    for name in ["table1.md", "scales.svg", "pareto.svg", "figure2.csv", "figure2.svg"] {
        let of = |comparison: &Comparison| {
            let text = read(comparison.out().join(name));
            text.replace(&comparison.folder().root().display().to_string(), "ROOT")
        };
        assert_eq!(of(&parts), of(&whole), "{name}");
    }
    assert!(!parts.out().join("scratch").exists() && !parts.out().join("scratch-1").exists());
}

/// What a failed task says is what the merge says.
#[test]
fn a_failed_task_is_a_failed_row() {
    let comparison = Comparison::new();
    let folder: &Folder = comparison.folder();
    folder.write("runs.toml", "[far]\nmethod = \"dapt\"\nlearning-rate = 1e30\n");
    let line = comparison.line().and("--methods irepair-min,far");
    line.clone().and("--plan").ok();
    for index in 0..2 {
        task(&line, index).ok();
    }
    let error = task(&line, 2).fails(1, &["the merge will say so"]);
    let text = line.clone().and("--plan").ok();
    assert!(text.contains("task 1: irepair-min, seed 42 (done)"), "{text}");
    line.clone().and("--merge").ok();
    let record = comparison.record();
    let entries = record["entries"].as_array().expect("entries");
    let failed = entries.iter().find(|entry| entry["name"] == "far").expect("the row");
    let why = failed["runs"][0]["failed"].as_str().expect("a reason");
    assert!(error.contains(why), "{why:?} is not in: {error}");
}

/// A task that is at work is left alone by a second process, and one that was killed goes on: its
/// run ends with it.
#[test]
#[cfg(target_os = "linux")]
fn a_task_has_one_process_and_goes_on_after_a_kill() {
    let comparison = Comparison::new();
    let line = comparison.line().and("--methods dapt --eval-steps 0 --checkpoint-steps 0");
    let line = line.and("--max-steps 120 --save-steps 5");
    line.clone().and("--plan").ok();
    let mut child = task(&line, 1).start();
    let log = comparison.out().join("runs/dapt-seed42.partial/irepair/steps.jsonl");
    until(&mut child, || std::fs::read_to_string(&log).is_ok_and(|text| text.lines().count() > 6));
    let scratch = comparison.out().join("scratch-1");
    assert!(scratch.is_dir(), "it has ended too early");
    task(&line, 1).fails(3, &["another task is working on", "scratch-1"]);
    assert!(scratch.is_dir(), "what the first one works in is gone");
    kill(&mut child);
    let begun = std::time::Instant::now();
    while !task(&line, 1).run().status.success() {
        assert!(begun.elapsed().as_secs() < 900, "its run did not end with it");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    task(&line, 0).ok();
    line.and("--merge").ok();
    assert!(comparison.record()["entries"][1]["runs"][0]["made"].is_object());
}
