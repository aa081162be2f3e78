//! Runs that are damaged, unfinished or of another kind: the page says so, and draws the rest.

use serde_json::json;

use crate::support::command::irepair;
use crate::support::files::Folder;
use crate::support::page::{REPAIRED, Run};

#[test]
fn what_cannot_be_read_is_said_and_the_rest_is_drawn() {
    let run = Run::new();
    let whole = run.report().0;
    let log = run.read("irepair/steps.jsonl");
    let mut lines: Vec<&str> = log.lines().collect();
    // Lines 1, 6 and 11 are validations; 4 and 5 are steps 3 and 4.
    assert!(lines[3].contains("\"step\":3,") && lines[4].contains("\"step\":4,"), "{log}");
    lines[3] = "{\"step\":3,\"blo";
    lines[4] = "\u{0}\u{0}";
    run.write("irepair/steps.jsonl", lines.join("\n"));
    let samples = run.read("irepair/samples.jsonl");
    run.write("irepair/samples.jsonl", [b"\xff\n", samples.as_bytes()].concat());
    let (page, said) = run.report();
    for gap in [
        "steps.jsonl can't be read at line 4–5",
        "2 of 12 steps are missing: 3–4",
        "samples.jsonl can't be read at line 1",
    ] {
        page.says(gap);
        assert!(said.contains(gap), "{said}");
    }
    assert_eq!(page.texts("svg > title"), whole.texts("svg > title"));
    assert_eq!(page.texts("#samples .text"), whole.texts("#samples .text"));
    // Without a log there is still the record.
    run.remove("irepair/steps.jsonl");
    let (page, said) = run.report();
    assert!(said.contains("steps.jsonl is missing"), "{said}");
    page.says("No step can be read.");
    assert_eq!(page.texts(".tile"), whole.texts(".tile"));
}

/// A number of a step that can't be is named, and no axis reaches to it.
#[test]
fn steps_that_the_run_has_not_made_are_left_out() {
    let run = Run::new();
    let whole = run.report().0;
    let log = run.read("irepair/steps.jsonl");
    assert_eq!(log.matches("\"step\":12,").count(), 2, "the last step and its validation: {log}");
    let first = log.lines().find(|line| line.starts_with("{\"step\":1,")).expect("the first step");
    let wild = log.replace("\"step\":12,", "\"step\":900000050,");
    let before = first.replace("\"step\":1,", "\"step\":0,");
    run.write("irepair/steps.jsonl", format!("{wild}{before}\n"));
    let (page, said) = run.report();
    for gap in [
        "steps.jsonl has steps that a run of 12 steps can't have: 0, 900000050",
        "steps.jsonl has validations that a run of 12 steps can't have: 900000050",
        "1 of 12 steps are missing: 12",
    ] {
        page.says(gap);
        assert!(said.contains(gap), "{said}");
    }
    assert!(page.texts("svg desc").iter().all(|about| !about.contains("900000050")));
    assert_eq!(page.texts("svg > title"), whole.texts("svg > title"));
}

#[test]
fn folders_that_are_no_run_are_refused() {
    let run = Run::new();
    run.edit(|record| record["format_version"] = 2.into());
    run.refused(&["run.json", "format version 2", "reads 1"]);
    run.write("irepair/run.json", "{\"format_version\": 1, ");
    run.refused(&["run.json", "broken"]);
    run.write("irepair/run.json", json!({"format_version": 1, "steps": 3}).to_string());
    run.refused(&["run.json", "missing field"]);
    let (page, named) = (run.path("x.html"), run.path("irepair"));
    let run = Run::new();
    run.write("compare.json", "{}");
    run.refused(&["compare.json", "format version"]);
    let begun = Folder::new();
    begun.write("plan.json", "{}");
    let words = "an unfinished comparison; go on with";
    irepair("report").arg(begun.root()).fails(3, &[words]);
    for dir in [named, run.path("nowhere")] {
        irepair("report").arg(&dir).with("--out", &page).fails(3, &["no run of irepair"]);
    }
    let nowhere = run.path("no/such/folder.html");
    irepair("report").arg(&*REPAIRED).with("--out", nowhere).fails(3, &[]);
}

#[test]
fn what_was_not_measured_is_said() {
    let run = Run::new();
    run.edit(|record| {
        for when in ["before", "after"] {
            let measures = record[when].as_object_mut().expect("measures");
            for name in ["toxicity", "toxic_fraction", "ppl"] {
                measures.remove(name);
            }
        }
        record["data"]["perplexity_of"] = "".into();
        // As a record of before headlines: its figures are tiles.
        record.as_object_mut().expect("a record").remove("headline");
    });
    run.remove("irepair/samples.jsonl");
    let (page, said) = run.report();
    assert_eq!(said, "");
    page.says("Not measured: toxic continuations, toxicity, perplexity. ");
    page.says("This run kept no samples.");
    assert_eq!(page.count(".tile"), 4);
}

/// A run that was killed before its end has no record yet.
#[test]
fn an_unfinished_run_is_drawn_as_far_as_it_came() {
    let run = Run::new();
    run.remove("irepair/run.json");
    run.remove("irepair/samples.jsonl");
    run.remove("config.json");
    let (page, said) = run.report();
    assert_eq!(said, "");
    page.says("12 steps are made");
    assert_eq!((page.count("#settings"), page.count(".tile")), (0, 0));
    assert_eq!(page.count("#sensitivity svg"), 1);
    assert_eq!(page.count("#blocks table.numbers tbody tr"), 6);
    // The folder that the user asked for does not exist yet.
    let folder = Folder::new();
    std::fs::rename(run.root(), folder.path("out.partial")).expect("renamed");
    irepair("report").arg(folder.path("out")).fails(3, &["out.partial"]);
}
