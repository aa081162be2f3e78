//! A file is wanted, and something else is given: pipes that nobody writes to, devices without an
//! end, folders. Nothing of it is read.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::command::{CommandLine, irepair};
use crate::support::files::{Folder, bytes};
use crate::support::golden;
use crate::support::repaired::quick;

/// A pipe that nobody writes to.
fn pipe(folder: &Folder, name: &str) -> PathBuf {
    let path = folder.path(name);
    assert!(Command::new("mkfifo").arg(&path).status().expect("runs").success());
    path
}

/// A name that leads to a device without an end.
fn endless(folder: &Folder, name: &str) -> PathBuf {
    let path = folder.path(name);
    std::os::unix::fs::symlink("/dev/zero", &path).expect("link");
    path
}

#[test]
fn pipes_devices_and_folders_are_no_input() {
    let model = golden::path("gpt2");
    let folder = Folder::new();
    let data = golden::path("pairs.jsonl");
    let sensitivity = || irepair("sensitivity").with("--model", &model).with("--data", &data);
    let prompts = |flag: &str| irepair("generate").with("--model", &model).arg(flag);
    let eval = |flag: &str| irepair("eval").with("--model", &model).arg(flag);
    let out = folder.path("out");
    let lines: Vec<(&str, CommandLine)> = vec![
        (".jsonl", irepair("sensitivity").with("--model", &model).arg("--data")),
        (".csv", quick(&out).arg("--data")),
        (".toml", quick(&out).arg("--config")),
        (".txt", quick(&out).arg("--normal")),
        (".txt", quick(&out).arg("--eval-text")),
        (".jsonl", quick(&out).arg("--eval-prompts")),
        (".toml", irepair("compare").with("--model", &model).with("--data", &data).arg("--runs")),
        (".jsonl", prompts("--prompts").with("--out", folder.path("x.jsonl"))),
        (".txt", eval("--ppl")),
        (".jsonl", eval("--lambada")),
        (".jsonl", irepair("score --scorer words").with("--out", folder.path("y.jsonl"))),
        (".jsonl", irepair("score --scorer words --calibrate")),
        (".safetensors", irepair("patch show")),
        (".safetensors", irepair("patch apply").arg(&model)),
        ("", sensitivity().arg("--model")),
    ];
    for (index, (ending, line)) in lines.into_iter().enumerate() {
        let name = |what: &str| format!("{what}-{index}{ending}");
        // The flag of an argument without one, and what stands behind it.
        let needs_out = index == 7 || index == 13;
        for path in [pipe(&folder, &name("pipe")), endless(&folder, &name("endless"))] {
            let file = path.file_name().expect("name").to_str().expect("utf-8").to_owned();
            let mut line = match index {
                7 => irepair("generate").with("--model", &model).with("--prompts", &path),
                _ => line.clone().arg(&path),
            };
            if needs_out {
                line = line.with("--out", folder.path(format!("out-{index}")));
            }
            line.fails(3, &[&file]);
        }
    }
}

/// The files of a model folder, too.
#[test]
fn pipes_and_devices_are_no_part_of_a_model() {
    for file in
        ["config.json", "model.safetensors", "tokenizer.json", "model.safetensors.index.json"]
    {
        for make in [pipe, endless] {
            let folder = Folder::new();
            let model = folder.model("gpt2");
            std::fs::remove_file(model.join(file)).ok();
            if file.ends_with("index.json") {
                std::fs::remove_file(model.join("model.safetensors")).expect("there");
            }
            make(&folder, &format!("model/{file}"));
            let line = irepair("sensitivity").with("--model", &model);
            line.with("--data", golden::path("pairs.jsonl")).fails(3, &["model"]);
        }
    }
}

/// What the shell makes of `<(…)`, and the standard input, are read as settings.
#[test]
fn settings_may_come_from_a_pipe_that_is_open() {
    let line = quick("out").and("--dry-run --json --config /dev/stdin");
    let run = |settings: &[u8]| {
        let mut child = line.command();
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().expect("starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        // A program that has read enough closes the pipe.
        std::io::Write::write_all(&mut stdin, settings).ok();
        drop(stdin);
        child.wait_with_output().expect("ends")
    };
    let good = run(b"method = \"irepair\"\n");
    let plan: serde_json::Value = serde_json::from_slice(&good.stdout).expect("JSON");
    assert_eq!(plan["method"], "irepair");
    let long = run(&b"# more and more\n".repeat(1 << 17));
    assert_eq!(long.status.code(), Some(3), "{long:?}");
    assert!(String::from_utf8_lossy(&long.stderr).contains("more than 1 MiB"), "{long:?}");
}

/// A file that is longer than the memory is refused before it is read. This one has a hole in it,
/// and takes no room on disk.
#[test]
fn a_file_beyond_the_memory_is_not_read() {
    let folder = Folder::new();
    let path = folder.write("long.jsonl", bytes(golden::path("pairs.jsonl")));
    let file = std::fs::File::options().write(true).open(&path).expect("opens");
    file.set_len(1 << 40).expect("a hole");
    irepair("sensitivity")
        .with("--model", golden::path("gpt2"))
        .with("--data", &path)
        .fails(3, &["long.jsonl", "1048576 MiB", "MiB of memory are left"]);
}
