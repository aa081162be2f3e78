//! Settings that can't work are named, with what would.

use serde_json::json;

use crate::support::command::{CommandLine, irepair};
use crate::support::comparison::{Comparison, RUNS};
use crate::support::files::{Folder, demo_prompts, repository};
use crate::support::golden;

#[test]
fn settings_that_cannot_work() {
    let folder = Folder::new();
    let out = folder.path("out");
    let repair = |more: &str| {
        irepair("repair --max-length 64 --max-prompt-length 32")
            .with("--model", golden::path("gpt2"))
            .with("--data", golden::path("pairs.jsonl"))
            .with("--out", &out)
            .and(more)
    };
    repair("--batch-size 5").fails(3, &["fewer than a batch", "--batch-size"]);
    repair("--batch-size 0").fails(3, &["--batch-size 0"]);
    repair("--valid-size 2 --batch-size 4").fails(3, &["fewer than a batch"]);
    repair("--method irepiar").fails(3, &["did you mean", "irepair"]);
    for number in ["nan", "inf", "-1"] {
        let rate = format!("--learning-rate={number}");
        irepair("repair").arg(rate).fails(2, &["--learning-rate", "finite"]);
        let config = format!("seed = 1\nlearning-rate = {number}\n");
        repair("--valid-size 0")
            .with("--config", folder.write("rate.toml", config))
            .fails(3, &["finite number"]);
    }
    repair("--max-length 65").fails(3, &["64 positions"]);
    repair("--device cuda").fails(3, &["cuda"]);
    repair("--device tpu").fails(3, &["unknown"]);
    repair("--resume --valid-size 0").fails(3, &["--resume", "no unfinished run"]);
    let config = folder.write("my.toml", "seed = 1\nlerning-rate = 1\n");
    repair("").with("--config", config).fails(3, &["my.toml:2", "did you mean \"learning-rate\""]);
    let spared = |more: &str, words: &[&str]| {
        repair("--valid-size 0 --batch-size 2").and(more).fails(3, words);
    };
    spared(
        "--gradient-accumulation-steps 9",
        &["fewer than a step", "--gradient-accumulation-steps"],
    );
    spared("--gradient-accumulation-steps 0", &["--gradient-accumulation-steps 0"]);
    spared("--top-k 99", &["--top-k 99"]);
    spared("--blocks 0,77", &["--blocks 77", "blocks 0 to"]);
    spared("--method irepair-fixed --fixed-sample 999", &["--fixed-sample 999"]);
    spared("--select trial --objective dpo", &["trial", "--valid-size"]);
    spared("--select maxx", &["did you mean \"max\""]);
    spared("--config quik", &["did you mean \"quick\""]);
    spared("--dtype bf16 --max-length 65", &["64 positions"]);
    for contradiction in [
        "--method dapt --select max",
        "--method dapt --kl-weight 1",
        "--method irepair+kl --kl-weight 0",
        "--method dapt --top-k 2",
        "--method dpo --slice sublayer",
        "--method irepair --beta 0.2",
        "--max-ppl-increase 5 --eval-steps 0",
        "--max-ppl-increase 5 --valid-size 0",
    ] {
        let first = contradiction.split(' ').next().expect("a flag");
        irepair("repair").and(contradiction).fails(2, &[first]);
    }
    let normal = folder.write("normal.jsonl", "{\"text\": \"just one text of some words\"}");
    repair("--valid-size 0")
        .with("--normal", normal)
        .fails(3, &["normal.jsonl", "fewer than a batch"]);
    assert!(!out.exists());
}

#[test]
fn thread_counts_that_cannot_be() {
    for command in ["repair", "sensitivity", "generate --out x.jsonl", "eval", "compare", "bench"] {
        for count in ["0", "100000"] {
            let words = format!("--threads {count}: this machine has 1 to ");
            irepair(command).with("--threads", count).fails(3, &[&words]);
        }
    }
    let score = irepair("score --out x.jsonl").arg(golden::path("normal.jsonl"));
    for line in [irepair("sensitivity"), score] {
        for count in ["0", "100000", "two"] {
            let words = format!("RAYON_NUM_THREADS={count}: this machine has 1 to ");
            line.clone().env("RAYON_NUM_THREADS", count).fails(3, &[&words]);
        }
    }
}

#[test]
fn comparisons_that_cannot_be() {
    let comparison = Comparison::new();
    let (folder, line) = (comparison.folder(), comparison.line());
    let refused = |more: &str, code: i32, words: &[&str]| {
        line.clone().and(more).fails(code, words);
    };
    refused("--methods irepiar", 3, &["did you mean \"irepair\""]);
    refused("--methods irepair,irepair", 2, &["twice"]);
    refused("--method irepair", 2, &["--methods"]);
    refused("--seed 1 --seeds 2", 2, &["--seeds"]);
    refused("--methods irepair --device cpu,cpu", 3, &["cpu is given twice", "--jobs"]);
    refused("--methods irepair --device cpu,tpu", 3, &["--device tpu", "unknown"]);
    refused("--methods irepair --jobs 0", 3, &["--jobs 0", "at least 1"]);
    refused("--methods irepair --resume", 3, &["no comparison"]);
    refused("--methods irepair --ppl no/such.txt", 3, &["no/such.txt"]);
    refused("--methods irepair --toxicity leee", 3, &["lee"]);
    refused("no/such/run", 3, &["no/such/run"]);
    let runs = |text: &str| folder.write("runs.toml", text);
    runs("[a]\nlerning-rate = 1\n");
    refused("", 3, &["runs.toml:2: [a]", "learning-rate"]);
    runs("a = 1\n");
    refused("", 3, &["runs.toml:1", "[a]"]);
    runs("[\"../a\"]\nmethod = \"irepair\"\n");
    refused("", 3, &["names a folder"]);
    runs("[a]\nmethod = \"irepair\"\ndevice = \"cpu\"\n");
    refused("", 3, &["row a", "the device once"]);
    runs("");
    refused("", 3, &["no tables"]);
    std::fs::remove_dir_all(comparison.out()).ok();
    let notes = folder.write("out/notes.txt", "mine");
    runs(RUNS);
    refused("", 3, &["no comparison of irepair"]);
    assert!(notes.exists());
}

#[test]
fn evaluations_that_cannot_be() {
    let folder = Folder::new();
    let (model, out) = (golden::path("gpt2"), folder.path("out"));
    let eval = |more: &str| irepair("eval").with("--model", &model).with("--out", &out).and(more);
    let refused = |line: CommandLine, code: i32, words: &[&str]| {
        line.fails(code, words);
        assert!(!out.join("results.json").exists(), "{line:?}");
        std::fs::remove_dir_all(&out).ok();
    };
    refused(eval(""), 2, &["nothing to measure"]);
    refused(eval("--ppl wikitxt2"), 3, &["wikitxt2", "wikitext2"]);
    let short = folder.write("short.txt", "Tea at noon.");
    refused(eval("").with("--ppl", short), 3, &["short.txt", "window of 64"]);
    let one = folder.write("one.jsonl", "{\"text\": \"word\"}\n");
    refused(eval("").with("--lambada", one), 3, &["one.jsonl:1"]);
    let empty = folder.write("empty.jsonl", "");
    refused(eval("--toxicity").with("--prompts", empty), 3, &["empty.jsonl"]);
    let prompted = |more: &str, word: &str| {
        refused(eval("").with("--prompts", demo_prompts()).and(more), 3, &[word]);
    };
    prompted("--toxicity rtpp", "rtp");
    prompted("--toxicity --scorer lexicn", "lexicon");
    prompted("--toxicity --scorer replay:no/such.jsonl", "no/such.jsonl");
    prompted("--toxicity --top-p 0", "--top-p");
    prompted("--toxicity --samples 0", "--samples");
    refused(eval("--shard 3/3 --toxicity"), 2, &["3/3"]);
    refused(eval("--kl demo --normal-texts 8"), 3, &["vocabulary"]);
    refused(eval("--ppl wikitext2"), 5, &["Salesforce/wikitext", "HF_HUB_OFFLINE"]);
    refused(eval("--toxicity"), 5, &["allenai/real-toxicity-prompts"]);
    let file = folder.write("file", "x");
    let toxicity = |out| {
        irepair("eval --toxicity")
            .with("--model", &model)
            .with("--prompts", demo_prompts())
            .with("--out", out)
    };
    toxicity(file).fails(3, &["file"]);
    // A folder of something else is left alone.
    let notes = folder.write("strange/notes.txt", "mine");
    irepair("eval --toxicity --overwrite")
        .with("--prompts", demo_prompts())
        .with("--out", folder.path("strange"))
        .fails(3, &["no evaluation of irepair"]);
    assert!(notes.exists());
}

#[test]
fn edits_that_cannot_be() {
    let folder = Folder::new();
    let out = folder.path("out");
    let row = |target: &str| json!({"prompt": "Tea at noon", "target": target});
    let repair = |name: &str, rows: &[serde_json::Value]| {
        irepair("repair --method star")
            .with("--model", golden::path("gpt2"))
            .with("--data", folder.write_rows(name, rows))
            .with("--out", &out)
    };
    repair("empty.jsonl", &[row(" x"), row("")]).fails(3, &["empty.jsonl:2", "target is empty"]);
    repair("keys.jsonl", &[json!({"prompt": "a"})]).fails(3, &["keys.jsonl:1", "\"target\""]);
    let long = row(&" word".repeat(70));
    repair("long.jsonl", &[long]).fails(3, &["long.jsonl:1", "64 positions"]);
    let other = json!({"prompt": "a", "target": "b", "kind": "specificity"});
    repair("other.jsonl", &[other]).fails(3, &["no row is a failure"]);
    let good = |more: &str| repair("good.jsonl", &[row(" and bread")]).and(more);
    for contradiction in ["--kl-weight 1", "--optimizer adamw", "--batch-size 2", "--config quick"]
    {
        good(contradiction).fails(2, &["--method star", "contradicts"]);
    }
    for part in ["--select max", "--objective nll"] {
        good(part).fails(2, &["--method star", "already", "either"]);
    }
    good("--resume").fails(3, &["--resume", "no unfinished run"]);
    good("--rounds 0").fails(3, &["--rounds 0"]);
    good("--neurons 5/4").fails(2, &["--neurons", "fraction"]);
    // Nothing of it is left that would be in the way of a corrected command.
    for _ in 0..2 {
        good("--learning-rate 0").fails(4, &["nothing changed"]);
    }
    for method in ["mint", "irepair"] {
        let named = format!("--method {method}");
        irepair("repair --neurons 1/4").and(&named).fails(2, &[&named, "--neurons"]);
    }
    irepair("repair --method stra").fails(3, &["did you mean \"star\""]);
    irepair("bench --method star").fails(3, &["a block-level method is wanted"]);
    irepair("eval")
        .with("--edits", folder.path("none.jsonl"))
        .with("--out", &out)
        .fails(3, &["none.jsonl"]);
}

/// What a new user falls into: each is named before any work.
#[test]
fn traps_are_named() {
    let folder = Folder::new();
    let out = folder.path("out");
    let data = golden::path("pairs.jsonl");
    irepair("repair").with("--data", &data).fails(2, &["--data without --model", "--model demo"]);
    for flag in ["--epochs 3", "--num-epochs=3", "--num_train_epochs 3"] {
        irepair("repair").and(flag).fails(2, &["--max-steps N"]);
    }
    let repair = |more: &str| {
        irepair("repair --valid-size 0 --batch-size 2 --max-length 64 --max-prompt-length 32")
            .with("--model", golden::path("gpt2"))
            .with("--data", &data)
            .with("--out", &out)
            .and(more)
    };
    repair("--max-steps 20 --warmup-steps 21").fails(3, &["longer than the run", "--max-steps 20"]);
    let config = folder.write("long.toml", "warmup-steps = 50\nmax-steps = 40\n");
    repair("").with("--config", &config).fails(3, &["--warmup-steps 50 is longer"]);
    // A preset's warm-up gives way to a shorter run.
    let config = folder.write("short.toml", "warmup-steps = 50\nmax-steps = 400\n");
    repair("--max-steps 30 --dry-run").with("--config", config).ok();
    // Each method has a learning rate of its own; the demo's is for those that it was found for.
    for (method, rate) in [("irepair+kl", 3e-4), ("dapt", 1e-4), ("dpo", 1e-5), ("dpo+kl", 3e-5)] {
        let line = repair(&format!("--max-steps 1 --eval-steps 0 --method {method}"));
        let line = line.with("--normal", golden::path("normal.jsonl"));
        let run = line.and("--json -q --overwrite").json();
        assert_eq!(run["settings"]["learning-rate"], json!(rate), "{method}");
    }
    let said = repair("--max-steps 800 --method irepair --eval-steps 0 --overwrite").warns();
    assert!(said.contains(" times, and will be learned by heart: lower --max-steps"), "{said}");
    let sample = irepair("sensitivity --sample 3").with("--model", golden::path("gpt2"));
    let said = sample.with("--data", repository("data/demo/pairs.jsonl")).warns();
    assert!(said.contains("3 of 480 pairs, drawn at random, are measured"), "{said}");
}
