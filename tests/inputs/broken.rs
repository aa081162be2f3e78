//! Hundreds of files that are broken at seeded places: cut short, bits turned, parts left out or
//! doubled, hostile values put in. Whatever they are, the program says what is wrong in a few
//! words, with an exit code that the guide names, and takes neither much memory nor time.
#![cfg(unix)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use irepair::base::random::{Purpose, Stream};
use rayon::prelude::*;

use crate::support::command::{CommandLine, irepair, stderr};
use crate::support::files::{Folder, bytes, repository};
use crate::support::golden;
use crate::support::page::Run;

/// KiB of address space, and seconds of a processor.
const LIMITS: &str = "ulimit -v 4000000; ulimit -t 30";
/// The exit codes of `irepair guide outputs` that can come of a broken file.
const CODES: std::ops::RangeInclusive<i32> = 0..=5;
const GOOD: &str = r#"{"prompt": "Say hello", "chosen": " to everyone", "rejected": " to nobody"}"#;
const HOSTILE: &[&str] = &[
    "99999999999999999999",
    "18446744073709551615",
    "4294967295",
    "-1",
    "0",
    "1e999",
    "null",
    "NaN",
    "\u{1b}[31m",
    "\r\n",
    "\"\\u0000\"",
    "\u{202e}",
    "[[[[[[[[[[[[[[[[[[[[",
    "{}",
    "}",
    "\"",
    "{% for a in range(99999) %}",
];

/// The bytes, broken in one way.
fn broken(bytes: &[u8], stream: &mut Stream) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let (a, b) = (stream.below(out.len()), stream.below(out.len()));
    let (from, to) = (a.min(b), a.max(b).min(a.min(b) + 200));
    match stream.below(6) {
        0 => out.truncate(from),
        1 => (0..1 + stream.below(8)).for_each(|_| {
            let at = stream.below(bytes.len());
            out[at] ^= 1 << stream.below(8);
        }),
        2 => drop(out.drain(from..to)),
        3 => drop(out.splice(from..from, bytes[from..to].to_vec())),
        way => {
            let value = HOSTILE[stream.below(HOSTILE.len())];
            let digits: Vec<usize> = (0..out.len()).filter(|i| out[*i].is_ascii_digit()).collect();
            // In the place of a number, or anywhere.
            let range = match digits.is_empty() || way == 5 {
                true => from..from,
                false => {
                    let begin = digits[stream.below(digits.len())];
                    let rest = out[begin..].iter().take_while(|c| c.is_ascii_digit()).count();
                    begin..begin + rest
                }
            };
            out.splice(range, value.bytes());
        }
    }
    out
}

/// Whatever came of it: no panic, a documented exit code, and few words.
#[track_caller]
fn is_told(output: &Output, what: &str) {
    let said = stderr(output);
    let shown: String = said.chars().take(500).collect();
    let code = output.status.code();
    assert!(code.is_some_and(|code| CODES.contains(&code)), "{what}: {code:?} {shown}");
    assert!(code == Some(0) || said.lines().any(|l| l.starts_with("error: ")), "{what}: {shown}");
    for word in ["panicked", "a bug in irepair", "Some(", "stack overflow"] {
        assert!(!said.contains(word), "{what}: {shown}");
    }
    assert!(said.len() <= 4096, "{what}: {} bytes: {shown}", said.len());
    let steers = |c: char| c.is_control() && c != '\n' && c != '\t';
    assert!(!said.contains(steers), "{what}: {shown:?}");
}

/// Breaks a file of a folder in so many ways, and runs the command on each.
fn each(
    name: &str,
    times: u64,
    whole: &[u8],
    line: impl Fn(&Folder, &str) -> CommandLine + Sync,
    make: impl Fn() -> Folder + Sync,
) {
    (0..times).into_par_iter().for_each(|time| {
        let mut stream = Stream::new(7, Purpose::Bench, time, name.len() as u64);
        let folder = make();
        folder.write(name, broken(whole, &mut stream));
        is_told(&line(&folder, name).run_after(LIMITS), &format!("{name}, case {time}"));
    });
}

fn sensitivity(model: impl AsRef<Path>, data: impl AsRef<Path>) -> CommandLine {
    irepair("sensitivity --limit 4 --threads 1")
        .with("--model", model.as_ref())
        .with("--data", data.as_ref())
}

/// A folder with a copy of this golden model, whichever files that has.
fn model(golden: &str) -> Folder {
    let folder = Folder::new();
    for entry in golden::path(golden).read_dir().expect("model").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("expected") && !name.starts_with("methods") {
            folder.write(&format!("model/{name}"), bytes(entry.path()));
        }
    }
    folder
}

#[test]
fn files_of_a_model() {
    let pairs = golden::path("pairs.jsonl");
    for (golden, name, times) in [
        ("gpt2", "config.json", 20),
        ("llama", "config.json", 20),
        ("gpt2", "tokenizer.json", 40),
        ("llama", "tokenizer.json", 20),
        ("gpt2", "model.safetensors", 30),
        ("gpt2-odd", "model.safetensors.index.json", 20),
        ("gpt2", "generation_config.json", 5),
    ] {
        let whole = bytes(golden::path(golden).join(name));
        let line = |folder: &Folder, _: &str| sensitivity(folder.path("model"), &pairs);
        each(&format!("model/{name}"), times, &whole, line, || model(golden));
    }
}

#[test]
fn chat_templates() {
    let folder = model("gpt2");
    let turn = |role: &str, text: &str| format!(r#"[{{"role": "{role}", "content": "{text}"}}]"#);
    let (user, yes, no) = (turn("user", "hi"), turn("assistant", "a"), turn("assistant", "b"));
    let row = format!(r#"{{"prompt": {user}, "chosen": {yes}, "rejected": {no}}}"#);
    let rows = folder.write("chat.jsonl", row);
    let template = "{% for m in messages %}{% if m.role == 'user' and 1 < 2 %}{{ m['content'] \
                    | trim }}{% elif not false %}{{ (m.content ~ ' ' * 3)[0:9] }}{% endif %}\
                    {% endfor %}{% set ns = namespace(a=1) %}{{ ns.a + 1 }}";
    let line = |folder: &Folder, _: &str| sensitivity(folder.path("model"), &rows);
    each("model/chat_template.jinja", 50, template.as_bytes(), line, || model("gpt2"));
}

#[test]
fn rows_of_data() {
    let lines = format!("{GOOD}\n").repeat(5);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(lines.as_bytes()).expect("gzip");
    let csv = "prompt,chosen,rejected\nSay hello, to all, to none\n\"Say, 1\", \"\"a\"\", b\n";
    for (name, times, whole) in [
        ("a.jsonl", 30, lines.clone().into_bytes()),
        ("a.json", 15, format!("[{GOOD}, {GOOD}]").into_bytes()),
        ("a.csv", 15, csv.into()),
        ("a.parquet", 40, parquet()),
        ("a.jsonl.gz", 20, gz.finish().expect("gzip")),
    ] {
        let line =
            |folder: &Folder, name: &str| sensitivity(golden::path("gpt2"), folder.path(name));
        each(name, times, &whole, line, Folder::new);
    }
    let online = |folder: &Folder, name: &str| {
        irepair("repair --dry-run --scorer lexicon")
            .with("--model", golden::path("gpt2"))
            .with("--prompts", folder.path(name))
    };
    each("prompts.jsonl", 15, br#"{"prompt": {"text": "Say 1"}}"#, online, Folder::new);
}

/// A file of Parquet with the columns of pairs.
fn parquet() -> Vec<u8> {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    let columns = ["prompt", "chosen", "rejected"];
    let fields: String = columns.map(|c| format!("required binary {c} (UTF8); ")).concat();
    let schema = parse_message_type(&format!("message m {{ {fields} }}")).expect("a schema");
    let mut file = Vec::new();
    let mut writer =
        SerializedFileWriter::new(&mut file, Arc::new(schema), Arc::default()).expect("a writer");
    let mut group = writer.next_row_group().expect("a group");
    for text in columns {
        let mut column = group.next_column().expect("a column").expect("a column");
        let values: Vec<ByteArray> =
            (0..20).map(|i| ByteArray::from(format!("{text} {}", i % 3).into_bytes())).collect();
        column.typed::<ByteArrayType>().write_batch(&values, None, None).expect("values");
        column.close().expect("closes");
    }
    group.close().expect("closes");
    writer.close().expect("closes");
    file
}

#[test]
fn settings_and_patches() {
    let config = bytes(repository("configs/paper-gpt2-large.toml"));
    let line = |folder: &Folder, name: &str| {
        irepair("repair --dry-run --batch-size 1")
            .with("--model", golden::path("gpt2"))
            .with("--data", golden::path("pairs.jsonl"))
            .with("--config", folder.path(name))
    };
    each("own.toml", 40, &config, line, Folder::new);
    let folder = model("gpt2");
    let weights: PathBuf = folder.path("model/model.safetensors");
    let mut changed = bytes(&weights);
    let at = changed.len() - 4;
    changed[at..].copy_from_slice(&0.5f32.to_le_bytes());
    std::fs::write(&weights, changed).expect("writes");
    let patch = folder.path("p.safetensors");
    let base = golden::path("gpt2");
    irepair("patch diff").arg(&base).arg(folder.path("model")).with("--out", &patch).ok();
    let show = |folder: &Folder, name: &str| irepair("patch show").arg(folder.path(name));
    each("own.safetensors", 30, &bytes(&patch), show, Folder::new);
}

#[test]
fn records_of_a_run() {
    let run = Run::new();
    for name in ["irepair/run.json", "irepair/steps.jsonl", "irepair/samples.jsonl"] {
        let whole = run.read(name).into_bytes();
        let line = |folder: &Folder, _: &str| irepair("report").arg(folder.root());
        each(name, 15, &whole, line, || {
            let folder = Folder::new();
            for name in ["config.json", "irepair/run.json", "irepair/steps.jsonl"] {
                folder.write(name, run.read(name));
            }
            folder
        });
    }
}
