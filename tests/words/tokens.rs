//! `tokens`: what becomes of a row, and which of its tokens count.

use serde_json::{Value, json};

use crate::support::command::irepair;
use crate::support::files::Folder;
use crate::support::golden::{self, ids};

#[test]
fn rows_are_shown_as_the_model_sees_them() {
    let tokens = |more: &str| {
        irepair("tokens")
            .with("--model", golden::path("gpt2"))
            .with("--data", golden::path("pairs.jsonl"))
            .and(more)
    };
    let rows: Vec<Value> = tokens("--json -q")
        .ok()
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let encoder = golden::Golden::open("gpt2").encoder;
    let pairs = golden::Golden::open("gpt2").pairs();
    assert_eq!(rows.len(), pairs.len());
    for (row, pair) in rows.iter().zip(&pairs) {
        assert_eq!(ids(&row["prompt_ids"]), pair.prompt);
        for (side, response) in [("chosen", &pair.chosen), ("rejected", &pair.rejected)] {
            assert_eq!(&ids(&row[format!("{side}_ids")]), response);
            let mask = [vec![0; pair.prompt.len()], vec![1; response.len()]].concat();
            assert_eq!(row[format!("{side}_mask")], json!(mask), "{side}");
        }
    }
    // For people: by the names that the vocabulary has.
    let shown = tokens("--limit 1").ok();
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines[0].ends_with("pairs.jsonl:1") && lines.len() == 4, "{shown}");
    for (line, ids) in lines[1..].iter().zip([&pairs[0].prompt, &pairs[0].chosen]) {
        let names: Vec<String> = ids.iter().map(|id| encoder.name_of(*id)).collect();
        assert!(line.contains(&format!("{} tokens", ids.len())), "{line}");
        assert!(line.ends_with(&names.join(" ")), "{line}");
    }
    // What is cut is counted, and with --loss-on all the prompt counts, too.
    let cut = tokens("--max-length 6 --max-prompt-length 3").warns();
    assert!(cut.contains("prompts to 3 tokens"), "{cut}");
    let all = tokens("--loss-on all --json -q --limit 1").json();
    assert_eq!(all["chosen_mask"][1], 1, "{all}");
    assert_eq!(all["chosen_mask"][0], 0, "nothing comes before the first");
    // Without --data the demo has its own rows, and no other model has.
    assert!(irepair("tokens --limit 1").ok().contains("demo pairs:1"));
    irepair("tokens").with("--model", golden::path("gpt2")).fails(3, &["--data is missing"]);
    irepair("tokens --map pormpt=question").fails(3, &["pormpt", "did you mean \"prompt\""]);
    let folder = Folder::new();
    let broken = folder.write("broken.jsonl", "{\"prompt\": 1}");
    irepair("tokens").with("--data", broken).fails(3, &["broken.jsonl:1"]);
}

/// A row that has one response shows that alone.
#[test]
fn a_response_without_a_partner_stands_alone() {
    let folder = Folder::new();
    let row = |label: bool| {
        let prompt = format!("So {label}");
        json!({"prompt": prompt, "completion": " it is.", "label": label})
    };
    let data = folder.write_rows("labelled.jsonl", &[row(true), row(false)]);
    let shown = irepair("tokens -q").with("--data", data).ok();
    assert_eq!(shown.matches("  chosen ").count(), 1, "{shown}");
    assert_eq!(shown.matches("  rejected ").count(), 1, "{shown}");
}
