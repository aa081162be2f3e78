//! Only an output of irepair is replaced, and only when told. A run goes on only from a state of
//! its own.

use irepair::checkpoint::{Checkpoint, copy_model};

use crate::support::command::{ends, irepair};
use crate::support::files::{Folder, bytes};
use crate::support::golden;
use crate::support::process::{kill, until};
use crate::support::repaired::{files, partial, quick, state, steps, steps_made};

/// A folder that appears at the output's place while the run works is not removed.
#[test]
fn a_folder_that_appears_during_the_run_stays() {
    let folder = Folder::new();
    let (whole, out) = (folder.path("whole"), folder.path("out"));
    // Many saves, so that there is time.
    let many = "-q --method dapt --save-steps 1 --max-steps 200";
    quick(&whole).and(many).ok();
    // With --overwrite an output would be replaced, but not a folder of someone else. Without it,
    // nothing is replaced.
    for (flags, words) in
        [("--overwrite", "is no output of irepair"), ("", "exists since this run began")]
    {
        let mut child = quick(&out).and(many).and(flags).start();
        until(&mut child, || steps_made(&partial(&out)) > 0);
        let precious = folder.write("out/precious", "mine");
        let error = ends(&child.wait_with_output().expect("ends"), 3);
        assert!(error.contains(words), "{error}");
        assert_eq!(bytes(precious), b"mine");
        folder.remove("out");
        if !flags.is_empty() {
            folder.remove("out.partial");
        }
    }
    quick(&out).and(many).and("--resume").ok();
    assert_eq!(steps(&out).len(), 200);
}

#[test]
fn only_an_output_is_replaced_and_only_when_told() {
    let folder = Folder::new();
    let out = folder.path("out");
    let precious = folder.write("out/precious", "mine");
    for more in ["-q", "-q --overwrite"] {
        quick(&out).and(more).fails(3, &[]);
        assert_eq!(bytes(&precious), b"mine");
    }
    folder.remove("out/precious");
    quick(&out).and("-q --overwrite").ok();
    let first = files(&out);
    // Without --overwrite nothing is replaced.
    quick(&out).and("-q --seed 3").fails(3, &[]);
    quick(&out).and("-q --seed 3 --overwrite").ok();
    assert_ne!(files(&out), first);
    // The base is never replaced by its own repair.
    irepair("repair --overwrite --batch-size 2 -q")
        .with("--model", &out)
        .with("--data", golden::path("pairs.jsonl"))
        .with("--out", &out)
        .fails(3, &["base"]);
    // Nothing is left beside the output, whatever went wrong.
    let beside = folder.root().read_dir().expect("dir").map(|e| e.expect("entry").file_name());
    assert_eq!(beside.collect::<Vec<_>>(), ["out"]);
}

#[test]
fn a_foreign_partial_folder_is_refused_and_an_old_one_is_emptied() {
    let folder = Folder::new();
    let out = folder.path("out");
    let mine = folder.write("out.partial/mine.txt", "mine");
    quick(&out).and("-q").fails(3, &[]);
    assert!(mine.exists());
    folder.remove("out.partial");
    // With its mark it is what a killed run left.
    let mut child = quick(&out).and("-q").start();
    until(&mut child, || partial(&out).join(".lock").metadata().is_ok_and(|lock| lock.len() > 0));
    kill(&mut child);
    folder.write("out.partial/stale.txt", "");
    quick(&out).and("-q --overwrite").ok();
    assert!(!out.join("stale.txt").exists() && !partial(&out).exists());
}

#[test]
fn a_state_of_another_run_is_refused_by_name() {
    let folder = Folder::new();
    let out = folder.path("out");
    quick(&out).and("-q --learning-rate 1e30 --max-grad-norm 0 --warmup-steps 0").fails(1, &[]);
    // A run that did not diverge goes on with nothing but its own settings.
    folder.remove("out.partial/irepair/state/diverged");
    quick(&out).and("-q --resume").fails(
        3,
        &["another --learning-rate (1e", " and of another --max-grad-norm (0.0, now 10.0)"],
    );
    folder.write("out.partial/irepair/state/diverged", "");
    let resumed = quick(&out).and("-q --resume");
    resumed.clone().with("--model", golden::path("gpt2-odd")).fails(3, &["another model"]);
    for (flags, word) in [
        ("--limit 60", "another data"),
        ("--seed 1", "another --seed (42, now 1)"),
        ("--optimizer adamw", "another --optimizer"),
        ("--loss-on all", "another --loss-on"),
        ("--boundary trl", "another --boundary"),
        ("--nll-weight 7", "another --nll-weight (not given, now 7.0)"),
        ("--method dapt+kl", "another --method (irepair+kl, now dapt+kl)"),
        (
            "--batch-size 5 --patience 2",
            "another --batch-size (4, now 5) and of another --patience",
        ),
        ("--gradient-accumulation-steps 2", "another --gradient-accumulation-steps"),
        ("--max-steps 13", "another --max-steps"),
        ("--eval-steps 3", "another --eval-steps"),
        ("--max-length 50", "another --max-length"),
        ("--scorer lexicon", "another --scorer"),
    ] {
        resumed.clone().and(flags).fails(3, &[word]);
    }
    // A state of another format version: the header is JSON in JSON, and of the same length.
    let state = state(&out);
    let whole = bytes(&state);
    let (old, new) = (br#"{\"format_version\":1,"#, br#"{\"format_version\":9,"#);
    let at = whole.windows(old.len()).position(|w| w == old).expect("the version");
    let mut other = whole.clone();
    other[at..at + new.len()].copy_from_slice(new);
    std::fs::write(&state, &other).expect("writes");
    resumed.fails(3, &["format version 9, this program reads 1"]);
    std::fs::write(&state, &whole[..whole.len() / 2]).expect("writes");
    resumed.fails(3, &["a broken state"]);
    std::fs::write(&state, whole).expect("writes");
    resumed.ok();
}

#[test]
fn an_output_that_cannot_be_written() {
    let folder = Folder::new();
    let file = folder.write("file", "");
    irepair("repair -q").with("--out", file.join("out")).fails(3, &["can't write"]);
    irepair("generate -q").with("--out", file.join("x.jsonl")).fails(3, &["can't write"]);
    let taken = folder.write("taken.jsonl", "mine");
    irepair("generate -q").with("--out", &taken).fails(3, &["exists", "--overwrite"]);
    assert_eq!(bytes(taken), b"mine");
}

/// Copied, pickled weights would be the unrepaired model once more.
#[test]
fn pickled_weights_are_not_copied() {
    let folder = Folder::new();
    let model = folder.model("gpt2");
    let pickles = [
        "consolidated.00.pth",
        "model.bin",
        "model.ckpt",
        "original/consolidated.00.pt",
        "pytorch_model.fp16.bin",
    ];
    for name in pickles.iter().chain(&["training_args.bin"]) {
        folder.write(&format!("model/{name}"), "unrepaired");
    }
    let out = folder.path("out");
    std::fs::create_dir(&out).expect("dir");
    let checkpoint = Checkpoint::open(&model, "gpt2", None).expect("opens");
    assert_eq!(copy_model(&checkpoint, &out).expect("copies"), pickles);
    assert!(out.join("training_args.bin").is_file());
    assert!(pickles.iter().all(|name| !out.join(name).exists()));
}
