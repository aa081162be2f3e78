//! Rows in other people's files: as pandas, pyarrow, datasets and Python's json write them
//! (`scripts/make_golden_rows.py`), in the shapes of TRL, of UltraFeedback and of ShareGPT.

use std::path::Path;

use irepair::data::{self, KeyMap, Pair};
use serde_json::{Value, json};

use crate::support::command::irepair;
use crate::support::files::Folder;
use crate::support::golden;

fn pairs(path: &Path) -> Vec<Pair> {
    data::read_pairs(path, &KeyMap::new(), None)
        .unwrap_or_else(|error| panic!("{}: {error:#}", path.display()))
}

/// A pair as TRL's extraction of prompts gives it.
fn as_trl(pair: &Pair) -> Value {
    match &pair.conversation {
        Some(of) => {
            json!({"prompt": of.history, "chosen": [of.chosen], "rejected": [of.rejected]})
        }
        None => json!({"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}),
    }
}

#[test]
fn every_file_gives_the_rows_that_trl_takes_from_it() {
    let expected = golden::json("rows/expected.json");
    let files = expected["files"].as_object().expect("files");
    assert!(files.len() > 20, "{}", files.len());
    for (name, rows) in files {
        let found: Vec<Value> =
            pairs(&golden::path("rows").join(name)).iter().map(as_trl).collect();
        assert_eq!(&Value::from(found), rows, "{name}");
    }
}

/// The same rows give the same numbers, whichever file they stand in.
#[test]
fn codecs_of_parquet_change_no_number() {
    let numbers = |name: &str| {
        irepair("sensitivity --json")
            .with("--model", golden::path("gpt2"))
            .with("--data", golden::path("rows").join(name))
            .ok()
    };
    let want = numbers("trl.jsonl");
    for name in ["zstd.parquet", "gzip.parquet", "brotli.parquet", "lz4.parquet", "binary.parquet"]
    {
        assert_eq!(numbers(name), want, "{name}");
    }
}

fn turn(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

#[test]
fn other_shapes_of_conversations_are_the_same_pair() {
    let folder = Folder::new();
    let (ask, yes, no) =
        (turn("user", "Tea?"), turn("assistant", "Yes."), turn("assistant", "No."));
    let want = json!({"prompt": [ask], "chosen": [yes], "rejected": [no]});
    for (what, row) in [
        ("a prompt that the conversations hold, too", {
            json!({"prompt": [ask], "chosen": [ask, yes], "rejected": [ask, no]})
        }),
        ("Axolotl's name", json!({"messages": [ask], "chosen": yes, "rejected": no})),
        ("both of them whole, and one once more", {
            json!({"messages": [ask, yes], "chosen": [ask, yes], "rejected": [ask, no]})
        }),
        ("a question that is not the conversations'", {
            json!({"prompt": "Coffee?", "chosen": [ask, yes], "rejected": [ask, no]})
        }),
    ] {
        let path = folder.write_rows("rows.jsonl", &[row]);
        assert_eq!(as_trl(&pairs(&path)[0]), want, "{what}");
    }
    let labelled =
        |answer: &Value, label: bool| json!({"conversations": [ask, answer], "label": label});
    let path = folder.write_rows("labelled.jsonl", &[labelled(&yes, true), labelled(&no, false)]);
    assert_eq!(as_trl(&pairs(&path)[0]), want, "one conversation with its label");
}

#[test]
fn prompts_are_read_from_whole_conversations_and_from_text() {
    let folder = Folder::new();
    let read = |name: &str, text: &str| -> Vec<String> {
        let path = folder.write(name, text);
        let prompts = data::read_prompts(&path, &KeyMap::new(), None).expect(name);
        prompts.into_iter().map(|prompt| prompt.text).collect()
    };
    let shared = json!({"conversations": [{"from": "human", "value": "Tea?"},
                                          {"from": "gpt", "value": "Yes."}]});
    assert_eq!(read("sharegpt.jsonl", &shared.to_string()), ["Tea?"]);
    // RealToxicityPrompts after pandas.
    let csv = "prompt\n\"{'text': \"\"It's\"\", 'toxicity': nan}\"\n";
    assert_eq!(read("rtp.csv", csv), ["It's"]);
    // What only looks so stays what it is.
    for text in ["{'a': 1}", "[1]", "{'text'"] {
        let row = json!({"prompt": text}).to_string();
        assert_eq!(read("plain.jsonl", &row), [text]);
    }
}

#[track_caller]
fn refused(name: &str, text: &str, words: &[&str]) {
    let folder = Folder::new();
    irepair("sensitivity")
        .with("--model", golden::path("gpt2"))
        .with("--data", folder.write(name, text))
        .fails(3, words);
}

#[test]
fn what_is_no_text_is_named() {
    let row = |key: &str, value: &str| {
        let mut parts = [("prompt", "\"a\""), ("chosen", "\"b\""), ("rejected", "\"c\"")];
        parts.iter_mut().filter(|(name, _)| *name == key).for_each(|part| part.1 = value);
        let parts = parts.map(|(name, value)| format!("\"{name}\": {value}"));
        format!("{{{}}}", parts.join(", "))
    };
    let half = &["rows.jsonl:1", "\"prompt\" is no text", "\\ud83d, half of a character"];
    refused("rows.jsonl", &row("prompt", "\"a \\ud83d b\""), half);
    refused("rows.jsonl", &row("chosen", "NaN"), &["rows.jsonl:1", "\"chosen\" is NaN"]);
    refused("rows.jsonl", &row("rejected", "null"), &["rows.jsonl:1", "\"rejected\" is null"]);
    let label = "{\"prompt\": \"a\", \"completion\": \"b\", \"label\": NaN}";
    refused("rows.jsonl", label, &["rows.jsonl:1", "label NaN: expected true or false"]);
    let columns = "{\"prompt\": {\"0\": \"a\"}, \"chosen\": {\"0\": \"b\"}}";
    refused("rows.json", columns, &["found one object (prompt, chosen)", "orient=\"records\""]);
    refused("rows.jsonl", &row("rejected", "nan"), &["rows.jsonl:1", "broken JSON"]);
    let list = "\"[{'role': 'user', 'content': 'Tea?'\"";
    refused("rows.jsonl", &row("chosen", list), &["rows.jsonl:1", "\"chosen\" looks like a list"]);
    let asked = "[{\"from\": \"narrator\", \"value\": \"a\"}]";
    refused("rows.jsonl", &row("chosen", asked), &["rows.jsonl:1", "\"narrator\"", "human"]);
    let answers = "{\"prompt\": \"Tea?\", \"chosen\": [{\"role\": \"assistant\", \"content\": \
                   \"a\"}], \"rejected\": [{\"role\": \"assistant\", \"content\": \"b\"}]}";
    refused("rows.jsonl", answers, &["rows.jsonl:1", "\"prompt\" is plain text", "list of"]);
}

#[test]
fn a_prompt_that_can_not_be_told_is_not_called_empty() {
    let row = |chosen: &str, rejected: &str| json!({"chosen": chosen, "rejected": rejected});
    for (row, words) in [
        (row("Q: a\nA: b", "Q: a\nA: b, c"), "the rejected response begins with the whole chosen"),
        (row("Q: a\nA: b c", "Q: a\nA: b"), "the chosen response begins with the whole rejected"),
        (row("Q: a", "Q: a"), "chosen and rejected are the same text"),
        (row("yes", "no"), "no common beginning"),
    ] {
        refused("rows.jsonl", &row.to_string(), &["rows.jsonl:1", words, "give \"prompt\""]);
    }
    refused("rows.jsonl", &row("", "Q: a").to_string(), &["rows.jsonl:1", "is empty"]);
}

/// Bytes that are no text are named where they are wanted, and do no harm elsewhere.
#[test]
fn binary_columns_of_no_use_do_no_harm() {
    let path = golden::path("rows/binary.parquet");
    assert_eq!(pairs(&path).len(), 8);
    irepair("sensitivity --map prompt=raw")
        .with("--model", golden::path("gpt2"))
        .with("--data", path)
        .fails(3, &["binary.parquet:1", "\"raw\" is 3 bytes of binary data, and no UTF-8 text"]);
}
