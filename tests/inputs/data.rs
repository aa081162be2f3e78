//! Rows of data in every shape: what is bad is named with its line, and what is good gives the
//! same.

use std::io::Write;
use std::path::Path;

use crate::support::command::irepair;
use crate::support::files::Folder;
use crate::support::golden;

const GOOD: &str = r#"{"prompt": "Say hello", "chosen": " to everyone", "rejected": " to nobody"}"#;

/// `sensitivity` of the tiny model on this data is refused.
#[track_caller]
fn bad_data(data: impl AsRef<Path>, words: &[&str]) {
    irepair("sensitivity")
        .with("--model", golden::path("gpt2"))
        .with("--data", data.as_ref())
        .fails(3, words);
}

#[test]
fn bad_rows_are_named_with_their_line() {
    let folder = Folder::new();
    let mut rows = vec![GOOD; 20];
    rows[16] = "{\"prompt\": \"a\", ";
    let data = folder.write("broken.jsonl", rows.join("\n"));
    bad_data(data, &["broken.jsonl:17", "broken JSON"]);
    rows[16] = r#"{"prompt": "a", "chosen": "b"}"#;
    let data = folder.write("missing.jsonl", rows.join("\r\n"));
    bad_data(data, &["missing.jsonl:17", "rejected", "prompt, chosen"]);
    rows[16] = r#"{"prompt": "a", "chosen": "b", "rejected": "  "}"#;
    let data = folder.write("empty.jsonl", rows.join("\n"));
    bad_data(data, &["empty.jsonl:17", "rejected is empty"]);
    rows[16] = r#"{"prompt": "a", "chosen": 3, "rejected": "c"}"#;
    let data = folder.write("number.jsonl", rows.join("\n"));
    bad_data(data, &["number.jsonl:17", "not a string"]);
    rows[16] = "[1]";
    let data = folder.write("list.jsonl", rows.join("\n"));
    bad_data(data, &["list.jsonl:17", "object"]);
    let mut bytes = rows[..16].join("\n").into_bytes();
    bytes.extend(b"\n{\"prompt\": \"\xff\xfe\"}");
    bad_data(folder.write("latin.jsonl", bytes), &["latin.jsonl:17", "UTF-8"]);
    bad_data(folder.write("none.jsonl", ""), &["no rows"]);
    bad_data(folder.write("table.xlsx", GOOD), &["unknown kind"]);
    bad_data(folder.write("half.jsonl.gz", b"\x1f\x8b\x08\x00"), &["gzip"]);
    bad_data(folder.path("nowhere.jsonl"), &["nowhere.jsonl"]);
    std::fs::create_dir(folder.path("empty")).expect("dir");
    bad_data(folder.path("empty"), &["no data files"]);
}

#[test]
fn good_rows_in_every_shape_give_the_same_numbers() {
    let folder = Folder::new();
    let lines = format!("{GOOD}\n{GOOD}\n");
    let sensitivity = irepair("sensitivity --json").with("--model", golden::path("gpt2"));
    let numbers = |data: &Path| sensitivity.clone().with("--data", data).ok();
    let want = numbers(&folder.write("plain.jsonl", &lines));
    let same = |name: &str, bytes: &[u8]| {
        assert_eq!(numbers(&folder.write(name, bytes)), want, "{name}");
    };
    same("bom.jsonl", format!("\u{feff}{GOOD}\r\n\r\n{GOOD}\r\n").as_bytes());
    same("array.json", format!("[{GOOD},\n{GOOD}]").as_bytes());
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(lines.as_bytes()).expect("gzip");
    same("packed.jsonl.gz", &gz.finish().expect("gzip"));
    folder.write("folder/b.jsonl", GOOD);
    folder.write("folder/a.json", format!("[{GOOD}]"));
    folder.write("folder/README.md", "not data");
    assert_eq!(numbers(&folder.path("folder")), want, "folder");
    let lee = GOOD
        .replace("\"prompt\"", "\"prompt_text\"")
        .replace("\"chosen\"", "\"unpert_gen_text\"")
        .replace("\"rejected\"", "\"pert_gen_text\"");
    same("lees-keys.jsonl", format!("{lee}\n{lee}").as_bytes());
    let implicit = r#"{"chosen": "Say hello to everyone", "rejected": "Say hello to nobody"}"#;
    // The common beginning is "Say hello to": one word more of prompt.
    assert_ne!(numbers(&folder.write("implicit.jsonl", implicit)), want);
    let renamed = GOOD.replace("\"prompt\"", "\"question\"");
    let renamed = folder.write("renamed.jsonl", format!("{renamed}\n{renamed}"));
    let mapped = sensitivity.and("--map prompt=question").with("--data", renamed);
    assert_eq!(mapped.ok(), want, "--map");
    let error = irepair("sensitivity --map pormpt=question --data x.jsonl").fails(3, &["pormpt"]);
    assert_eq!(error.matches("chosen,").count(), 1, "each key once: {error}");
    let twice = irepair("sensitivity --map prompt=a,prompt=b --data x.jsonl");
    twice.fails(3, &["--map gives prompt twice, as a and as b"]);
}

#[test]
fn long_texts_are_cut_and_counted() {
    let folder = Folder::new();
    let words = "word ".repeat(200_000);
    let long = format!("{{\"prompt\": \"{words}\", \"chosen\": \" b\", \"rejected\": \" c\"}}");
    let line = irepair("sensitivity")
        .with("--model", golden::path("gpt2"))
        .with("--data", folder.write("long.jsonl", format!("{GOOD}\n{long}\n")));
    let said = line.clone().and("--max-prompt-length 32").warns();
    assert!(said.contains("1 prompts"), "{said}");
    // No room for a response.
    line.and("--max-prompt-length 64").fails(3, &["no room", "--max-prompt-length 64"]);
    irepair("generate")
        .with("--model", golden::path("gpt2"))
        .with("--prompts", folder.write("prompts.txt", "word ".repeat(300)))
        .with("--out", folder.path("out.jsonl"))
        .fails(3, &["prompts.txt:1", "--max-prompt-length"]);
}

/// Rows of CSV give what the same rows of JSON lines give.
#[test]
fn rows_of_csv() {
    let folder = Folder::new();
    let csv = "id,text\n1,\"thank you, \"\"friend\"\"\"\n2,you stupid idiot\n";
    irepair("score -q")
        .arg(folder.write("texts.csv", csv))
        .with("--out", folder.path("scored.jsonl"))
        .ok();
    let rows = folder.rows("scored.jsonl");
    assert_eq!(rows[0]["text"], "thank you, \"friend\"");
    assert!(rows[0]["score"].as_f64() < Some(0.5) && rows[1]["score"].as_f64() >= Some(0.5));
    // An open quote would take all rows behind it for one field.
    for (text, line) in [
        ("id,text\n1,\"open\n2,b\n3,c\n", 2),
        ("id,text\n1,a\n2,b\n3,\"c", 4),
        ("id,text\n1,\"a\n2,b\",\n", 2),
        ("id,\"text\n1,a\n", 1),
    ] {
        let open = folder.write("open.csv", text);
        let place = format!("open.csv:{line}: ");
        irepair("score").arg(open).with("--out", folder.path("x.jsonl")).fails(3, &[&place]);
    }
    for (name, text) in [("broken.csv", "id,text\n1,a,b\n"), ("broken.parquet", "PAR1 not")] {
        irepair("score")
            .arg(folder.write(name, text))
            .with("--out", folder.path("x.jsonl"))
            .fails(3, &[name]);
    }
}
