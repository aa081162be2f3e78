//! The same command a second time: what is finished is shown, not made again and not replaced.

use crate::support::command::irepair;
use crate::support::files::{Folder, bytes, edit_json, names};
use crate::support::golden;
use crate::support::repaired::{files, quick, record};

#[test]
fn a_finished_run_is_shown_and_another_one_is_named() {
    let folder = Folder::new();
    let out = folder.path("out");
    let line = quick(&out);
    let first = line.ok();
    let made = (files(&out), record(&out).run_id);
    for more in ["", "--resume", "--threads 1 --save-steps 7 --report-to tensorboard"] {
        let output = line.clone().and(more).run();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && said.contains("is finished"), "{more}: {said}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), first, "{more}");
    }
    assert_eq!(line.clone().and("--json -q").json()["run_id"], made.1);
    for (more, words) in [
        ("--seed 3", "--seed 42 (now 3)"),
        ("--max-steps 13 --patience 2", "--max-steps 12 (now 13), "),
        ("--limit 60", "other rows"),
        ("--eval-samples 3", "--eval-samples 1 (now 3)"),
        ("--resume --damage-kl 2", "--damage-kl 0.5 (now 2.0)"),
    ] {
        let remedies = "choose another --out, or replace it with --overwrite";
        line.clone().and("-q").and(more).fails(3, &["is finished, with other", words, remedies]);
    }
    line.clone().with("--model", golden::path("gpt2-odd")).fails(3, &["another --model"]);
    assert_eq!((files(&out), record(&out).run_id), made, "something was made again");
    // A plan minds nothing that is there.
    let plan = line.clone().and("--dry-run --seed 3").ok();
    assert!(plan.contains("it is there already"), "{plan}");
    line.and("-q --overwrite").ok();
    assert_eq!(files(&out), made.0);
    assert_ne!(record(&out).run_id, made.1);
}

/// The record of an older version lacks the settings that came since, and is read all the same.
#[test]
fn a_record_of_before_is_read() {
    let folder = Folder::new();
    let out = folder.path("out");
    quick(&out).and("-q").ok();
    edit_json(out.join("irepair/run.json"), |run| {
        let run = run.as_object_mut().expect("a record");
        run.remove("verdict");
        run.remove("headline");
        let settings = run["settings"].as_object_mut().expect("settings");
        for name in ["eval-samples", "damage-ppl", "fail-on"] {
            assert!(settings.remove(name).is_some(), "{name}");
        }
    });
    irepair("report -q").arg(&out).ok();
    let said = quick(&out).and("-q").and("--eval-samples 4").ok();
    assert!(said.starts_with("no verdict"), "{said}");
}

#[test]
fn an_evaluation_without_a_name_has_a_folder_of_its_own() {
    let folder = Folder::new();
    let line = irepair("eval -q --ppl-protocol paper")
        .with("--model", golden::path("gpt2"))
        .with("--ppl", golden::path("eval/corpus.txt"));
    let run = |more: &str| {
        let mut command = line.clone().and(more).command();
        let output = command.current_dir(folder.root()).output().expect("runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run("");
    let first = bytes(folder.path("evaluated/gpt2/results.json"));
    run("");
    run("");
    for name in ["gpt2", "gpt2-2", "gpt2-3"] {
        assert!(folder.path("evaluated").join(name).join("results.json").is_file(), "{name}");
    }
    assert_eq!(bytes(folder.path("evaluated/gpt2/results.json")), first);
    run("--overwrite");
    assert_ne!(bytes(folder.path("evaluated/gpt2/results.json")), first);
}

#[test]
fn a_patch_replaces_only_what_irepair_made() {
    let folder = Folder::new();
    let (model, out) = (golden::path("gpt2"), folder.path("out"));
    quick(&out).and("-q").ok();
    let apply =
        |to: &str| irepair("patch apply").arg(&model).arg(&out).with("--out", folder.path(to));
    // The patch is found in the folder of the repaired model.
    apply("again").ok();
    let made = names(&folder.path("again"));
    apply("again").fails(3, &["exists", "--overwrite"]);
    apply("again").and("--overwrite").ok();
    assert_eq!(names(&folder.path("again")), made);
    assert_eq!(bytes(folder.path("again/model.safetensors")), bytes(out.join("model.safetensors")));
    let mine = folder.write("mine/notes.txt", "mine");
    apply("mine").and("--overwrite").fails(3, &["no output of irepair"]);
    assert_eq!(bytes(mine), b"mine");
    // What the patch was applied to is not replaced by what it leads to.
    irepair("patch revert --overwrite")
        .arg(folder.path("again"))
        .arg(&out)
        .with("--out", folder.path("again"))
        .fails(3, &["again"]);
    let shown = irepair("patch show --json").arg(&out).json();
    assert!(shown["changes"].as_array().is_some_and(|changes| !changes.is_empty()), "{shown}");
}
