//! Stdout and stderr that are full, closed, or read no more.

use std::fs::File;
use std::process::{Output, Stdio};

use crate::support::command::{CommandLine, ends, irepair, stderr};
use crate::support::files::Folder;
use crate::support::golden;
use crate::support::repaired::quick;

fn full() -> File {
    File::options().write(true).open("/dev/full").expect("a full device")
}

/// A pipe that nobody reads.
fn unread() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

fn with_stdout(line: &CommandLine, stdout: impl Into<Stdio>) -> Output {
    line.command().stdout(stdout).stderr(Stdio::piped()).output().expect("runs")
}

/// Commands that print on stdout, each in its own way.
fn printers() -> Vec<CommandLine> {
    let sensitivity = irepair("sensitivity -q")
        .with("--model", golden::path("gpt2"))
        .with("--data", golden::path("pairs.jsonl"));
    vec![
        irepair("guide"),
        irepair("guide methods"),
        irepair("completions bash"),
        irepair("man"),
        irepair("--help"),
        irepair("repair --help"),
        irepair("--version"),
        irepair("doctor"),
        irepair("doctor --json"),
        sensitivity.clone(),
        sensitivity.and("--json"),
    ]
}

#[test]
fn a_full_stdout_is_an_error() {
    for line in printers() {
        let said = ends(&with_stdout(&line, full()), 1);
        assert!(said.contains("error: can't write to stdout: No space left"), "{line:?}: {said}");
    }
}

/// The convention of shells for a program that ends by SIGPIPE.
#[test]
fn a_reader_who_left_ends_it_quietly() {
    for line in printers() {
        let output = with_stdout(&line, unread());
        assert_eq!(output.status.code(), Some(141), "{line:?}: {}", stderr(&output));
        assert_eq!(stderr(&output), "", "{line:?}");
    }
}

/// A run goes on to its end, whether or not somebody hears what it says.
#[test]
fn a_stderr_that_is_full_or_read_no_more_ends_nothing() {
    for stderr in [full().into(), unread()] {
        let folder = Folder::new();
        let out = folder.path("out");
        let mut command = quick(&out).command();
        let output = command.stdout(Stdio::piped()).stderr(stderr).output().expect("runs");
        assert!(output.status.success(), "{:?}", output.status);
        assert!(out.join("irepair/run.json").is_file());
    }
    // Also an error has its exit code.
    for stderr in [full().into(), unread()] {
        let status = irepair("patch show nowhere").command().stderr(stderr).status();
        assert_eq!(status.expect("runs").code(), Some(3));
    }
    for stderr in [full().into(), unread()] {
        let status = irepair("repair --no-such-flag").command().stderr(stderr).status();
        assert_eq!(status.expect("runs").code(), Some(2));
    }
}

/// The shell's `>&-` and `2>&-`.
#[test]
fn closed_streams_end_nothing() {
    let folder = Folder::new();
    let out = folder.path("out");
    assert!(quick(&out).run_after("exec >&- 2>&-").status.success());
    assert!(out.join("irepair/run.json").is_file());
}
