//! What a patch changes, as a LoRA adapter. `scripts/check_peft.py` opens such adapters with peft.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::json;

use crate::support::command::{CommandLine, irepair};
use crate::support::files::{Folder, bytes, json, read};
use crate::support::golden;
use crate::support::tensors::{close, flat};

fn repaired(name: &str, folder: &Folder, method: &str) -> std::path::PathBuf {
    let out = folder.path("out");
    irepair("repair --max-steps 3 --valid-size 0 --eval-steps 0 --batch-size 2 -q")
        .and(method)
        .with("--model", golden::path(name))
        .with("--data", golden::path("pairs.jsonl"))
        .with("--out", &out)
        .ok();
    out
}

fn export(patch: &Path, out: &Path) -> CommandLine {
    irepair("patch export --peft --overwrite").arg(patch).with("--out", out)
}

fn tensors(path: &Path) -> std::collections::HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).expect("tensors")
}

fn all(model: &Path) -> BTreeMap<String, Tensor> {
    let files = model.read_dir().expect("dir").map(|entry| entry.expect("entry").path());
    let weights = files.filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
    weights.flat_map(|path| tensors(&path)).collect()
}

/// At the whole rank, base and product are the repaired matrices; in GPT-2's blocks they lie the
/// other way.
#[test]
fn base_and_product_are_the_patched_matrices() {
    for (name, turned, method) in [
        ("gpt2", true, "irepair"),
        // Its head is a matrix of its own.
        ("gpt2-odd", true, "dpo"),
        ("llama", false, "irepair"),
        ("gpt-neox", false, "irepair"),
        ("phi3", false, "irepair"),
        // Its matrices are kept as they are stored.
        ("gpt-neo-bf16", false, "irepair"),
    ] {
        let folder = Folder::new();
        let out = repaired(name, &folder, &format!("--method {method}"));
        let shown = irepair("patch show --json").arg(out.join("irepair/patch.safetensors")).json();
        let (before, after) = (all(&golden::path(name)), all(&out));
        let matrix = |change: &&serde_json::Value| {
            before[change["name"].as_str().expect("a name")].dims().len() == 2
        };
        let changes = shown["changes"].as_array().expect("changes");
        let rank = changes.iter().filter(matrix).map(|change| {
            let dims = before[change["name"].as_str().expect("a name")].dims();
            dims[0].min(dims[1])
        });
        let rank = rank.max().expect("a matrix");
        let adapter = folder.path("adapter");
        let told =
            export(&out, &adapter).and(&format!("--rank {rank} --json --normal-texts 4")).json();
        let config = json(adapter.join("adapter_config.json"));
        assert_eq!(config["fan_in_fan_out"], turned, "{name}");
        assert_eq!(config["r"], config["lora_alpha"], "{name}");
        let weights = tensors(&adapter.join("adapter_model.safetensors"));
        let modules = config["target_modules"].as_array().expect("modules");
        assert_eq!(weights.len(), 2 * modules.len(), "{name}");
        let mut carried = 0.0;
        for module in modules.iter().map(|module| module.as_str().expect("a name")) {
            let side = |side: &str| &weights[&format!("base_model.model.{module}.{side}.weight")];
            let (a, b) = (side("lora_A"), side("lora_B"));
            let own = config["rank_pattern"].get(module).unwrap_or(&config["r"]);
            assert_eq!(json!(a.dims()[0]), *own, "{name} {module}");
            let mut product = b.matmul(a).expect("product");
            if turned && module != "lm_head" {
                product = product.t().expect("turned");
            }
            let tensor = format!("{module}.weight");
            let tensor = [tensor.as_str(), tensor.split_once('.').expect("a prefix").1]
                .into_iter()
                .find(|name| before.contains_key(*name))
                .expect(module);
            let of = |tensors: &BTreeMap<String, Tensor>| {
                flat(&tensors[tensor].to_dtype(DType::F32).expect("f32"))
            };
            let change =
                of(&after).into_iter().zip(of(&before)).map(|(after, before)| after - before);
            let (mut off, mut norm) = (0f64, 0f64);
            for (got, want) in flat(&product).into_iter().zip(change) {
                off += f64::from(got - want).powi(2);
                norm += f64::from(want).powi(2);
            }
            assert!(off.sqrt() < 1e-5 * norm.sqrt(), "{name} {module}: {off:e} of {norm:e}");
            carried += norm;
        }
        let whole: f64 = changes.iter().map(|c| c["norm"].as_f64().expect("norm").powi(2)).sum();
        close(told["captured"].as_f64().expect("share"), (carried / whole).sqrt(), 1e-5, name);
        let left_out = told["left_out"].as_array().expect("list").len();
        assert_eq!(modules.len() + left_out, changes.len(), "{name}");
        assert!(told["kl_from_patched"].as_f64().is_some_and(|kl| kl.abs() < 0.05), "{told}");
    }
}

/// A lower rank carries less and says so; the same command gives the same bytes.
#[test]
fn a_lower_rank_says_what_is_missing() {
    let folder = Folder::new();
    let out = repaired("llama", &folder, "--method dapt");
    let [one, two, again] = ["one", "two", "again"].map(|name| folder.path(name));
    let of = |rank: usize, to: &Path| {
        export(&out, to).and(&format!("--rank {rank} --json --normal-texts 4")).json()
    };
    let share = |told: &serde_json::Value| told["captured"].as_f64().expect("share");
    let (low, high) = (of(1, &one), of(4, &two));
    assert!(share(&low) < share(&high) && share(&high) < 1.0, "{low} {high}");
    // All parameters changed: norms and the embedding among them.
    assert!(!low["left_out"].as_array().expect("list").is_empty());
    of(4, &again);
    for name in ["adapter_config.json", "adapter_model.safetensors", "README.md"] {
        assert_eq!(bytes(two.join(name)), bytes(again.join(name)), "{name}");
    }
    let text = export(&out, &two).and("--rank 4").ok();
    for words in ["captured", "left out", "of the change's norm", "KL between"] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
    assert!(read(two.join("README.md")).contains("library_name: peft"));
}

#[test]
fn what_is_no_adapter_is_refused() {
    let folder = Folder::new();
    let out = repaired("llama", &folder, "--method irepair");
    let adapter = folder.path("adapter");
    export(&out, &adapter).and("--rank 4000").fails(3, &["--rank 4000", "have rank"]);
    export(&out, &adapter).and("--rank 0").fails(2, &["--rank"]);
    irepair("patch export --out x").arg(&out).fails(2, &["--peft"]);
    for (limit, texts, advice) in [("0", 0, "lower --rank"), ("40", 4, "give --normal-texts 0")] {
        export(&out, &adapter)
            .and(&format!("--rank 2 --normal-texts {texts}"))
            .env("IREPAIR_MEMORY_LIMIT", limit)
            .fails(3, &["too little memory", advice]);
    }
    // A patch of another base, and of none that is known.
    let patch = folder.write("alone.safetensors", bytes(out.join("irepair/patch.safetensors")));
    export(&patch, &adapter).and("--rank 2").fails(3, &["give --base MODEL"]);
    let other = golden::path("mistral");
    export(&patch, &adapter)
        .and("--rank 2")
        .with("--base", &other)
        .fails(3, &["is made for a base"]);
    assert!(!adapter.exists());
    let base = golden::path("llama");
    export(&patch, &adapter).and("--rank 2 --normal-texts 0").with("--base", &base).ok();
    // Neither is what is still needed.
    for line in [
        export(&out, &out).and("--rank 2"),
        irepair("patch apply --overwrite").arg(&base).arg(&out).with("--out", &out),
    ] {
        line.fails(3, &["holds the patch itself"]);
    }
    assert!(out.join("irepair/run.json").is_file());
    // What irepair did not make is not replaced.
    let mine = folder.write("mine/notes.txt", "mine");
    let mine = mine.parent().expect("a folder");
    export(&out, mine).and("--rank 2").fails(3, &["no output of irepair"]);
}
