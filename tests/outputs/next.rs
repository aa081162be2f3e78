//! The last lines of a repair: what they tell to type works as it stands, wherever the output lies.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::command::{irepair, ok};
use crate::support::files::{Folder, bytes};
use crate::support::golden;
use crate::support::repaired::quick;

/// What a shell makes of a line, in this folder and with irepair to be found.
fn shell(line: &str, folder: &Path) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_irepair")).parent().expect("a folder");
    let path = std::env::var("PATH").expect("PATH");
    Command::new("sh")
        .args(["-c", line])
        .current_dir(folder)
        .env("PATH", format!("{}:{path}", program.display()))
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .expect("sh")
}

fn line<'a>(said: &'a str, what: &str) -> &'a str {
    said.lines()
        .find_map(|line| line.strip_prefix(what))
        .unwrap_or_else(|| panic!("{what}: {said}"))
}

/// Every path that a line names is there, but those that it will write.
#[track_caller]
fn names_what_is_there(line: &str, folder: &Path) {
    let words = ok(&shell(&format!("printf '%s\\n' {line}"), folder));
    let mut words = words.lines().peekable();
    while let Some(word) = words.next() {
        if word == "--out" {
            words.next();
        } else if word.contains('/') {
            assert!(folder.join(word).exists(), "{word:?} of {line:?} is not there");
        }
    }
}

#[test]
fn paths_with_spaces_and_quotes_can_be_typed() {
    let folder = Folder::new();
    let out = folder.path("it's my $HOME/a repair");
    std::fs::create_dir_all(out.parent().expect("a folder")).expect("dir");
    let said = quick(&out).and("-q --max-steps 1").ok();
    let (undo, next) = (line(&said, "undo: "), line(&said, "next: "));
    ok(&shell(undo, folder.root()));
    let reverted = bytes(folder.path("base/model.safetensors"));
    assert_eq!(reverted, bytes(golden::path("gpt2/model.safetensors")));
    names_what_is_there(next, folder.root());
}

/// No prompts are kept where they are conversations, so that none can be named.
#[test]
fn conversations_leave_no_prompts_to_be_named() {
    let folder = Folder::new();
    let model = folder.model("qwen2");
    folder.write("model/chat_template.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}");
    let turn = |role: &str, text: String| json!({"role": role, "content": text});
    let row = |i: usize| {
        json!({"prompt": [turn("user", format!("Tea at {i}?"))],
               "chosen": [turn("assistant", "Yes.".into())],
               "rejected": [turn("assistant", "Never.".into())]})
    };
    let rows: Vec<Value> = (0..8).map(row).collect();
    let out = folder.path("out");
    let said = irepair("repair -q --method irepair --max-steps 1 --batch-size 2")
        .with("--model", model)
        .with("--data", folder.write_rows("chat.jsonl", &rows))
        .with("--out", &out)
        .ok();
    assert!(!out.join("irepair/prompts.jsonl").exists());
    names_what_is_there(line(&said, "next: "), folder.root());
    names_what_is_there(line(&said, "undo: "), folder.root());
}
