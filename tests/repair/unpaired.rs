//! Rows whose responses have no partner: rejected ones alone, and labelled ones.

use serde_json::{Value, json};

use crate::support::command::{CommandLine, irepair, ok, stderr};
use crate::support::files::{Folder, repository, rows};
use crate::support::golden;
use crate::support::repaired::{few_prompts, files, partial, record, steps};

/// A repair of the demo into this folder, in batches of four and without samples.
fn demo_in(folder: &Folder, out: &str) -> CommandLine {
    irepair("repair -q --batch-size 4 --model demo --eval-samples 0")
        .with("--eval-prompts", few_prompts())
        .with("--out", folder.path(out))
}

/// Rows with a rejected response alone are for `npo`: it makes them less likely. Every other
/// objective refuses them and names it.
#[test]
fn rejected_responses_alone_are_for_npo() {
    let folder = Folder::new();
    let pairs = rows(repository("data/demo/pairs.jsonl"));
    let alone: Vec<Value> = pairs
        .iter()
        .take(64)
        .map(|row| json!({"prompt": row["prompt"], "rejected": row["rejected"]}))
        .collect();
    let data = folder.write_rows("rejected.jsonl", &alone);
    let mut mixed = alone.clone();
    mixed[3] = pairs[3].clone();
    let mixed = folder.write_rows("mixed.jsonl", &mixed);
    let repair = |out: &str| {
        let sizes = "--max-steps 8 --normal-texts 16 --valid-size 16 --eval-steps 4";
        demo_in(&folder, out).and(sizes)
    };
    let npo = |out: &str| repair(out).and("--objective npo --learning-rate 1e-4 --kl-weight 1");
    npo("one").with("--data", &data).ok();
    npo("two").with("--data", &data).ok();
    assert_eq!(files(&folder.path("one")), files(&folder.path("two")));
    let run = record(&folder.path("one"));
    assert_eq!((run.data.pairs, run.data.held_back), (48, 16));
    assert!(run.after["nll_rejected"] > run.before["nll_rejected"]);
    assert!(!run.after.contains_key("nll_chosen"), "there is no chosen response");
    let made = steps(&folder.path("one"));
    // At the base every log-ratio is 0: (2/β)·ln 2.
    assert!((made[0].loss - 20.0 * 2f64.ln()).abs() < 1e-3, "{}", made[0].loss);
    assert!(made.iter().all(|step| step.nll_good.is_none()));
    npo("mixed").with("--data", &mixed).ok();
    assert!(record(&folder.path("mixed")).after.contains_key("nll_rejected"));
    // The page of such a run can be drawn, and the sensitivity looks at rejected ones alone.
    irepair("report -q").arg(folder.path("one")).ok();
    irepair("sensitivity -q").with("--data", &data).ok();
    for method in [
        "--method irepair+kl",
        "--method dapt",
        "--method dpo+kl",
        "--objective dpo-ul --kl-weight 1",
        "--objective unlikelihood",
        "--objective ipo",
    ] {
        let words = ["rejected.jsonl:1", "without a chosen one", "--objective npo, or"];
        repair("no").and(method).with("--data", &data).fails(3, &words);
    }
    let words = ["without a chosen one", "--select max-over-chosen", "max or min"];
    npo("no").and("--select max-over-chosen").with("--data", &data).fails(3, &words);
    repair("no").with("--data", &mixed).fails(3, &["mixed.jsonl:1", "--objective npo"]);
    for (row, word) in [
        (json!({"prompt": "a", "rejected": ""}), "rejected is empty"),
        (json!({"prompt": " ", "rejected": "b"}), "prompt is empty"),
        (json!({"prompt": 1, "rejected": "b"}), "\"prompt\" is not a string"),
        (json!({"prompt": "a", "chosen": "", "rejected": "b"}), "chosen is empty"),
        (json!({"prompt": "a", "good": "", "bad": "b"}), "rejected alone (prompt, rejected)"),
        (
            json!({"prompt": "a", "rejected": [{"role": "assistant", "content": "b"}]}),
            "\"prompt\" is not one",
        ),
        (
            json!({"prompt": [{"role": "user", "content": "a"}],
                   "rejected": [{"role": "user", "content": "b"}]}),
            "must end with an assistant's answer",
        ),
    ] {
        let bad = folder.write_rows("bad.jsonl", &[row]);
        npo("no").with("--data", &bad).fails(3, &["bad.jsonl:1", word]);
    }
    assert!(!partial(&folder.path("no")).exists());
}

/// Labelled rows: of each prompt every completion of one kind with one of the other. It is the same
/// repair as of the pairs themselves.
#[test]
fn labelled_rows_are_pairs() {
    let folder = Folder::new();
    let pairs = rows(repository("data/demo/pairs.jsonl"));
    let mut seen = std::collections::BTreeSet::new();
    let pairs: Vec<Value> =
        pairs.into_iter().filter(|row| seen.insert(row["prompt"].to_string())).take(24).collect();
    let data = folder.write_rows("pairs.jsonl", &pairs);
    let labelled: Vec<Value> = pairs
        .iter()
        .flat_map(|row| {
            [(&row["chosen"], true), (&row["rejected"], false)].map(|(text, label)| {
                json!({"prompt": row["prompt"], "completion": text, "label": label})
            })
        })
        .collect();
    let both = folder.write_rows("labelled.jsonl", &labelled);
    let as_csv: Vec<[String; 3]> = labelled
        .iter()
        .map(|row| {
            let text = |key: &str| row[key].as_str().expect("text").to_owned();
            [text("prompt"), text("completion"), row["label"].to_string()]
        })
        .collect();
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(["question", "completion", "label"]).expect("writes");
    as_csv.iter().for_each(|row| writer.write_record(row).expect("writes"));
    let table = folder.write("labelled.csv", writer.into_inner().expect("bytes"));
    let repair = |out: &str| {
        irepair("repair -q --method dpo --max-steps 3 --batch-size 4 --valid-size 8")
            .and("--eval-steps 0")
            .with("--model", golden::path("gpt2"))
            .with("--out", folder.path(out))
    };
    repair("pairs").with("--data", &data).ok();
    repair("labelled").with("--data", &both).ok();
    repair("table").with("--data", &table).and("--map prompt=question").ok();
    assert_eq!(files(&folder.path("labelled")), files(&folder.path("pairs")));
    assert_eq!(files(&folder.path("table")), files(&folder.path("pairs")));
    // Two bad ones and one good one are two pairs.
    let three = ["ok.", "no!", "go away!"].map(|text| {
        json!({"prompt": "Is it broken?", "completion": format!(" {text}"), "label": text == "ok."})
    });
    let rows = [&labelled[..], &three[..]].concat();
    let more = folder.write_rows("more.jsonl", &rows);
    repair("more").with("--data", &more).ok();
    let data = record(&folder.path("more")).data;
    assert_eq!(data.pairs + data.held_back, 26);
    // Labels of one kind alone.
    let of = |label: bool| -> Vec<Value> {
        labelled.iter().filter(|row| row["label"] == label).cloned().collect()
    };
    let good = folder.write_rows("good.jsonl", &of(true));
    let words = ["good.jsonl:1", "without a rejected one", "--objective dpo", "nll, or"];
    repair("no").with("--data", &good).fails(3, &words);
    let bad = folder.write_rows("bad.jsonl", &of(false));
    repair("no").with("--data", &bad).fails(3, &["bad.jsonl:1", "--objective npo, or"]);
    irepair("repair -q --objective npo --max-steps 2 --batch-size 4 --valid-size 4")
        .with("--model", golden::path("gpt2"))
        .with("--data", &bad)
        .with("--out", folder.path("bad"))
        .ok();
    let lonely = [
        &of(false)[..],
        &of(true)[..1],
        &[json!({"prompt": "Alone", "completion": " yes", "label": true})],
    ]
    .concat();
    let lonely = folder.write_rows("lonely.jsonl", &lonely);
    repair("no").with("--data", &lonely).fails(3, &["lonely.jsonl:2", "without a chosen one"]);
    for (label, word) in [(json!("maybe"), "\"maybe\""), (json!(2), "2"), (json!(null), "null")] {
        let row = json!({"prompt": "a", "completion": " b", "label": label});
        let odd = folder.write_rows("odd.jsonl", &[row]);
        let words = ["odd.jsonl:1", word, "expected true or false"];
        repair("no").with("--data", &odd).fails(3, &words);
    }
    let short = [labelled[0].clone(), json!({"prompt": "a", "completion": " b"})];
    let short = folder.write_rows("short.jsonl", &short);
    repair("no").with("--data", &short).fails(3, &["short.jsonl:2", "\"label\""]);
}

/// KTO: a response needs no partner of the other kind, in plain rows and in conversations. What
/// looks at rejected responses refuses rows without one, and names what does not.
#[test]
fn kto_takes_rows_of_either_label() {
    let folder = Folder::new();
    let pairs = rows(repository("data/demo/pairs.jsonl"));
    let labelled = |index: usize, good: bool| {
        let side = if good { "chosen" } else { "rejected" };
        let row = &pairs[index];
        json!({"prompt": row["prompt"], "completion": row[side], "label": good})
    };
    let mixed: Vec<Value> = (0..64).map(|index| labelled(index, index % 3 == 0)).collect();
    let data = folder.write_rows("mixed.jsonl", &mixed);
    let repair = |out: &str| {
        irepair("repair -q --model demo --max-steps 8 --batch-size 4 --valid-size 16")
            .with("--eval-prompts", few_prompts())
            .and("--eval-steps 4 --normal-texts 16 --eval-samples 0 --fail-on nothing")
            .with("--out", folder.path(out))
    };
    let kto = |out: &str| repair(out).and("--select all --objective kto --learning-rate 1e-4");
    for out in ["one", "two"] {
        kto(out).and("--kl-weight 1").with("--data", &data).ok();
    }
    assert_eq!(files(&folder.path("one")), files(&folder.path("two")));
    let run = record(&folder.path("one"));
    assert!(run.after["nll_chosen"] < run.before["nll_chosen"]);
    assert!(run.after["nll_rejected"] > run.before["nll_rejected"]);
    // At the base no response is likelier than under the reference: 1 − σ(0).
    assert!((steps(&folder.path("one"))[0].loss - 0.5).abs() < 1e-4);
    let good: Vec<Value> = (0..32).map(|index| labelled(index, true)).collect();
    let good = folder.write_rows("good.jsonl", &good);
    // It weighs one kind against the other.
    let words = ["good.jsonl:1", "rejected one, as in every row", "--objective nll, or"];
    kto("no").with("--data", &good).fails(3, &words);
    let bad: Vec<Value> = (0..32).map(|index| labelled(index, false)).collect();
    let bad = folder.write_rows("bad.jsonl", &bad);
    let words = ["bad.jsonl:1", "chosen one, as in every row", "--objective npo, or"];
    kto("no").with("--data", &bad).fails(3, &words);
    repair("dapt").and("--method dapt").with("--data", &good).ok();
    let words = ["without a rejected one", "--select max needs", "--select trial or all"];
    repair("no").and("--method irepair").with("--data", &good).fails(3, &words);
    repair("no").and("--select fixed --objective kto").with("--data", &data).fails(3, &words[..1]);
    let words = ["good.jsonl", "no row has a rejected response"];
    irepair("sensitivity --model demo").with("--data", &good).fails(3, &words);
    let found = irepair("sensitivity --model demo").with("--data", &data).ok();
    assert!(found.contains("block"), "{found}");
    // Conversations, each with one answer of one kind.
    let talk = |index: usize, good: bool| {
        let row = labelled(index, good);
        json!({"prompt": [{"role": "user", "content": row["prompt"]}], "label": good,
               "completion": [{"role": "assistant", "content": row["completion"]}]})
    };
    let talks: Vec<Value> = (0..24).map(|index| talk(index, index % 2 == 0)).collect();
    let data = folder.write_rows("talks.jsonl", &talks);
    let model = folder.model("gpt2");
    folder.write("model/chat_template.jinja", "{% for m in messages %}{{ m.content }}{% endfor %}");
    irepair("repair -q --select all --objective kto --max-steps 2 --batch-size 4 --valid-size 4")
        .with("--model", &model)
        .with("--data", &data)
        .and("--fail-on nothing")
        .with("--out", folder.path("talks"))
        .ok();
    assert_eq!(steps(&folder.path("talks")).len(), 2);
}

/// A pair whose responses are one text is said, and refused where all are; a method that reads one
/// of them does not care.
#[test]
fn pairs_of_one_text_tell_nothing_apart() {
    let folder = Folder::new();
    let pairs = rows(repository("data/demo/pairs.jsonl"));
    let alike = |count: usize| -> Vec<Value> {
        let mut all = pairs[..24].to_vec();
        for row in &mut all[2..][..count] {
            row["rejected"] = row["chosen"].clone();
        }
        all
    };
    let some = folder.write_rows("some.jsonl", &alike(3));
    let all: Vec<Value> = alike(22)[2..].to_vec();
    let all = folder.write_rows("all.jsonl", &all);
    let repair =
        |out: &str| demo_in(&folder, out).and("--max-steps 1 --normal-texts 8 --valid-size 4");
    for method in ["--method irepair+kl", "--method dpo+kl", "--objective kto"] {
        let words = ["all.jsonl:1", "the same text, as in every row", "--map"];
        repair("no").and(method).with("--data", &all).fails(3, &words);
    }
    let output = repair("some").and("--method dpo+kl").with("--data", &some).run();
    ok(&output);
    assert!(stderr(&output).contains("some.jsonl:3"), "{}", stderr(&output));
    assert!(stderr(&output).contains("as in 3 of 24 rows"), "{}", stderr(&output));
    repair("dapt").and("--method dapt").with("--data", &all).ok();
}
