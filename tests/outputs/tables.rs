//! Tables, curves and texts as files for other programs.

use crate::support::command::irepair;
use crate::support::files::{Folder, bytes, read};
use crate::support::golden;
use crate::support::repaired::demo;
use crate::support::tensors::close;

#[test]
fn sensitivity_writes_table_csv_and_picture() {
    let folder = Folder::new();
    let (csv, svg) = (folder.path("blocks.csv"), folder.path("blocks.svg"));
    let line = irepair("sensitivity")
        .with("--model", golden::path("gpt2"))
        .with("--data", golden::path("pairs.jsonl"))
        .with("--dump", &csv);
    let said = line.clone().with("--plot", &svg).ok();
    assert!(said.contains("error density"), "{said}");
    let text = read(&csv);
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("block,sensitivity,share,parameters,density"));
    let expected = golden::json("gpt2/expected.json");
    for (line, want) in lines.zip(golden::numbers(&expected["response"]["sensitivity_bad"])) {
        let fields: Vec<f64> = line.split(',').map(|f| f.parse().expect("number")).collect();
        close(fields[1], want, 1e-4, line);
        assert_eq!(fields[3], (12 * 16 * 16 + 13 * 16) as f64);
    }
    assert!(read(&svg).contains("</svg>"));
    line.and("--per-batch --batch-size 2").ok();
    let text = read(&csv);
    assert!(text.starts_with("batch,block,") && text.lines().count() == 1 + 2 * 3, "{text}");
}

#[test]
fn curves_go_to_tensorboard() {
    let folder = Folder::new();
    let out = folder.path("out");
    demo(&out).and("-q --report-to tensorboard --gradient-accumulation-steps 2").ok();
    let events = out.join("irepair/tensorboard");
    let file = events.read_dir().expect("folder").next().expect("a file").expect("entry").path();
    assert!(file.to_str().expect("utf-8").contains("events.out.tfevents."));
    let bytes = bytes(&file);
    let (mut at, mut records) = (0, 0);
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        at += 8 + 4 + length as usize + 4;
        records += 1;
    }
    let lines = folder.read("out/irepair/steps.jsonl").lines().count();
    // Beside the lines there are two records: the format's version, and the session's start.
    assert_eq!((at, records), (bytes.len(), lines + 2));
    for tag in ["train/loss", "train/kl", "valid/loss", "sensitivity/block_05"] {
        assert!(bytes.windows(tag.len()).any(|w| w == tag.as_bytes()), "{tag}");
    }
}

#[test]
fn generated_texts_do_not_depend_on_the_batch() {
    let folder = Folder::new();
    let texts = |name: &str, more: &str| {
        let out = folder.path(name);
        irepair("generate -q").and(more).with("--out", &out).ok();
        read(&out)
    };
    let some = |name: &str, more: &str| texts(name, &format!("--limit 12 --samples 2 {more}"));
    let all = some("a.jsonl", "");
    assert_eq!(all.lines().count(), 24);
    assert_eq!(some("b.jsonl", "--batch-size 5"), all);
    assert_eq!(some("c.jsonl", "--batch-size 1 --threads 1"), all);
    assert_ne!(some("d.jsonl", "--seed 1"), all);
    // Many texts: if a product depended on the batch in its last bit, one of them would change.
    let one_by_one = texts("g.jsonl", "--unconditional 150 --batch-size 1");
    assert_eq!(one_by_one, texts("h.jsonl", "--unconditional 150 --batch-size 32"));
    assert_eq!(some("e.jsonl", "--greedy"), some("f.jsonl", "--temperature 0"));
    let out = folder.path("normal.jsonl");
    let said = irepair("generate --unconditional 20 --scorer lexicon --keep-below 0.5")
        .with("--out", &out)
        .ok();
    assert!(said.contains("removed"), "{said}");
    let kept = read(&out);
    assert!(kept.lines().count() > 3);
    assert!(kept.lines().all(|l| l.contains("\"text\"") && l.contains("\"score\"")));
}

#[test]
fn bench_prints_the_references_keys() {
    let said = irepair("bench --config gpt2 --tokens 2 --batch 1 --iterations 1").json();
    let keys: Vec<&String> = said.as_object().expect("one JSON line").keys().collect();
    let expected = [
        "impl",
        "config",
        "method",
        "batch",
        "tokens",
        "threads",
        "median_s",
        "min_s",
        "peak_rss_mib",
        "gflop",
        "gflop_kaplan",
    ];
    assert_eq!(keys, expected);
}
