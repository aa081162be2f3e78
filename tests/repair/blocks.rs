//! Block-level repairs: the numbers of the reference, the demo, and the record.

use std::path::Path;

use irepair::checkpoint::{Checkpoint, compare};
use irepair::report::RunRecord;

use crate::support::command::{CommandLine, irepair};
use crate::support::files::{Folder, bytes, edit_json};
use crate::support::golden::{self, CHECKPOINTS, number, numbers};
use crate::support::repaired::{demo, files, quick, record, steps};
use crate::support::tensors::close;

/// The command of the parity check, on every golden checkpoint.
#[test]
fn five_steps_give_the_references_numbers() {
    for name in CHECKPOINTS {
        let folder = Folder::new();
        let (model, out) = (golden::path(name), folder.path("out"));
        irepair("repair --method irepair+kl --learning_rate 1e-3 --warmup-steps 0 -q")
            .and("--schedule constant --max-grad-norm 0 --batch-size 4 --max-steps 5")
            .and("--valid-size 0 --eval-steps 0")
            .with("--model", &model)
            .with("--data", golden::path("pairs.jsonl"))
            .with("--normal", golden::path("normal.jsonl"))
            .with("--out", &out)
            .ok();
        let expected = golden::json(&format!("{name}/expected.json"));
        let steps = steps(&out);
        assert_eq!(steps.len(), 5);
        let wanted = expected["irepair_kl"]["steps"].as_array().expect("steps");
        for (step, want) in steps.iter().zip(wanted) {
            let what = format!("{name} step {}", step.step);
            assert_eq!(step.block.map(|b| b as u64), want["block"].as_u64(), "{what}");
            close(step.loss, number(&want["loss"]), 1e-4, &what);
            close(step.grad_norm, number(&want["grad_norm"]), 1e-4, &what);
            for (got, want) in step.sensitivity.iter().zip(numbers(&want["sensitivity"])) {
                close(*got, want, 1e-4, &what);
            }
        }
        // Only sliced blocks differ from the base, and the record says so.
        let run = record(&out);
        let open = |dir: &Path| Checkpoint::open(dir, name, None).expect("opens");
        let changes = compare(&open(&model), &open(&out)).expect("compares");
        assert_eq!(changes, run.changed, "{name}");
        let sliced: Vec<String> =
            run.sliced.keys().flat_map(|b| [format!("h.{b}."), format!("layers.{b}.")]).collect();
        assert!(!changes.is_empty());
        for change in &changes {
            assert!(sliced.iter().any(|s| change.name.contains(s)), "{name}: {}", change.name);
        }
        for file in ["config.json", "tokenizer.json", "generation_config.json"] {
            assert_eq!(bytes(model.join(file)), bytes(out.join(file)));
        }
        assert!(!out.join("irepair/state").exists());
    }
}

#[test]
fn the_demo_is_repaired_and_the_same_seed_gives_the_same_bytes() {
    let folder = Folder::new();
    let [one, two, other] = ["one", "two", "other"].map(|name| folder.path(name));
    let said = demo(&one).ok();
    for words in [
        "before",
        "toxic, greedy (%)",
        "toxic, sampled (%)",
        "perplexity",
        "byte-equal",
        "next: irepair try demo ",
    ] {
        assert!(said.contains(words), "{words:?} is not in:\n{said}");
    }
    demo(&two).and("-q --threads 1").ok();
    demo(&other).and("-q --seed 7").ok();
    // The line that says what to do next can be run as it stands.
    let next = said.lines().find_map(|l| l.strip_prefix("next: irepair ")).expect("a next line");
    let shown = next.split(' ').fold(irepair(""), CommandLine::arg).ok();
    assert_eq!(shown.matches("\n> ").count(), 3, "{shown}");
    assert_eq!(files(&one), files(&two), "the number of threads changed the bytes");
    let weights = |dir: &Path| files(dir)[Path::new("model.safetensors")].clone();
    assert_ne!(weights(&one), weights(&other));
    let run = record(&one);
    assert_eq!((run.format_version, run.steps, run.seed, run.model.as_str()), (1, 12, 42, "demo"));
    for measures in [&run.before, &run.after] {
        for id in ["toxicity", "toxic_fraction", "nll_chosen", "nll_rejected", "ppl"] {
            assert!(measures.contains_key(id), "{id}: {measures:?}");
        }
        assert!(measures["ppl"] > 1.0);
    }
    assert_ne!(run.after["nll_chosen"], run.before["nll_chosen"]);
    let card = folder.read("one/README.md");
    assert!(
        card.starts_with("---\n") && card.contains("| toxic continuations, greedy (%) |"),
        "{card}"
    );
    // A repaired model is a model like any other.
    let json = irepair("sensitivity --json")
        .with("--model", &one)
        .with("--data", golden::path("pairs.jsonl"))
        .json();
    assert_eq!(json["blocks"].as_array().expect("blocks").len(), 6);
}

#[test]
fn few_normal_texts_and_odd_tokens_of_the_config() {
    let folder = Folder::new();
    // The golden config says eos 50256, outside its vocabulary of 320. One pair is held back; no
    // normal text can be.
    let model = folder.path("model");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        folder.write(&format!("model/{name}"), bytes(golden::path("gpt2-relu-bare").join(name)));
    }
    edit_json(model.join("config.json"), |config| {
        config["eos_token_id"] = 50256.into();
        config["bos_token_id"] = 50256.into();
    });
    folder.write("model/extra/notes.txt", "kept");
    folder.write("model/pytorch_model.bin", "unrepaired");
    let out = folder.path("out");
    let said = irepair("repair --batch-size 3 --valid-size 1 --eval-steps 2 --max-steps 4")
        .with("--model", &model)
        .with("--data", golden::path("pairs.jsonl"))
        .with("--normal", golden::path("normal.jsonl"))
        .with("--out", &out)
        .warns();
    assert!(said.contains("pytorch_model.bin"));
    assert!(out.join("extra/notes.txt").exists() && !out.join("pytorch_model.bin").exists());
}

#[test]
fn json_holds_the_record() {
    let folder = Folder::new();
    let out = folder.path("out");
    let said = quick(&out).and("-q --json --method irepair").ok();
    let run: RunRecord = serde_json::from_str(&said).expect("json alone on stdout");
    assert_eq!(run.settings.method, "irepair");
    assert_eq!(run.data.normal, 0);
    assert!(steps(&out).iter().all(|s| s.kl.is_none()));
}
