//! Model folders as other programs leave them: names that torch, Lightning or peft put something
//! into, adapters, shards in folders and without an index. The names are those of
//! `scripts/make_golden_rows.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::json;

use crate::support::command::{CommandLine, irepair};
use crate::support::files::{Folder, bytes, edit_json};
use crate::support::golden;
use crate::support::repaired::quick;

fn sensitivity(model: impl AsRef<Path>) -> CommandLine {
    irepair("sensitivity --json")
        .with("--model", model.as_ref())
        .with("--data", golden::path("pairs.jsonl"))
}

/// Writes the weights of a model folder with other names.
fn rename(model: &Path, name: impl Fn(&str) -> String) {
    let file = model.join("model.safetensors");
    let whole = bytes(&file);
    let tensors = SafeTensors::deserialize(&whole).expect("tensors");
    let renamed: BTreeMap<String, _> =
        tensors.iter().map(|(old, view)| (name(old), view)).collect();
    std::fs::write(&file, safetensors::serialize(&renamed, None).expect("bytes")).expect("file");
}

fn names(model: &Path) -> Vec<String> {
    let whole = bytes(model.join("model.safetensors"));
    let tensors = SafeTensors::deserialize(&whole).expect("tensors");
    let mut names: Vec<String> = tensors.names().into_iter().map(str::to_owned).collect();
    names.sort();
    names
}

/// What wrappers make of the first tensor's name is what they put before every name.
#[test]
fn names_of_wrapped_models_are_read_and_kept() {
    let all = golden::json("rows/names.json");
    let want = sensitivity(golden::path("gpt2")).ok();
    for wrapper in
        ["base alone", "torch.compile", "DataParallel", "a merged adapter in its wrapper"]
    {
        let folder = Folder::new();
        let model = folder.model("gpt2");
        let (plain, own) = (&all["plain"], &all[wrapper]);
        let pairs = plain.as_array().expect("names").iter().zip(own.as_array().expect("names"));
        let mut before: Vec<(String, String)> = Vec::new();
        for (plain, own) in pairs {
            let (plain, own) = (plain.as_str().expect("text"), own.as_str().expect("text"));
            match own.strip_suffix(plain) {
                Some(put) => before.push((String::new(), put.to_owned())),
                None => before
                    .push((plain.strip_suffix(own).expect("a part").to_owned(), String::new())),
            }
        }
        before.dedup();
        let [(cut, put)] = before.as_slice() else { panic!("{wrapper}: {before:?}") };
        rename(&model, |name| format!("{put}{}", name.strip_prefix(cut.as_str()).unwrap_or(name)));
        assert_eq!(sensitivity(&model).ok(), want, "{wrapper}");
        let said = sensitivity(&model).warns();
        assert_eq!(said.contains("is read as"), wrapper != "base alone", "{wrapper}: {said}");
        let out = folder.path("out");
        let said = quick(&out).and("-q --max-steps 1").with("--model", &model).ok();
        assert_eq!(names(&out), names(&model), "{wrapper}");
        let loads = said.contains("loads in transformers as it is");
        assert_eq!(loads, wrapper == "base alone", "{wrapper}: {said}");
    }
}

#[test]
fn a_name_inside_which_a_block_was_compiled() {
    let all = golden::json("rows/names.json");
    let inner = all["a compiled block"].as_array().expect("names");
    assert!(inner.contains(&json!("transformer.h.0._orig_mod.ln_1.weight")), "{inner:?}");
    let folder = Folder::new();
    let model = folder.model("gpt2");
    rename(&model, |name| name.replace("transformer.h.0.", "transformer.h.0._orig_mod."));
    // The embedding has its usual name, and the block has not.
    assert_eq!(sensitivity(&model).ok(), sensitivity(golden::path("gpt2")).ok());
}

#[test]
fn names_that_nobody_can_tell_are_refused() {
    let folder = Folder::new();
    let model = folder.model("gpt2");
    let whole = bytes(model.join("model.safetensors"));
    let tensors = SafeTensors::deserialize(&whole).expect("tensors");
    let two: Vec<(String, _)> = ["student.", "teacher."]
        .iter()
        .flat_map(|of| tensors.iter().map(move |(name, view)| (format!("{of}{name}"), view)))
        .collect();
    folder.write("model/model.safetensors", safetensors::serialize(two, None).expect("bytes"));
    sensitivity(&model).fails(3, &["several models", "student., teacher."]);
    let adapter = golden::json("rows/names.json")["an adapter"].clone();
    let adapter: Vec<&str> =
        adapter.as_array().expect("names").iter().filter_map(|name| name.as_str()).collect();
    let view = tensors.tensor("transformer.ln_f.bias").expect("a tensor");
    let named: Vec<_> = adapter.iter().map(|name| (*name, view.clone())).collect();
    folder.write("model/model.safetensors", safetensors::serialize(named, None).expect("bytes"));
    sensitivity(&model).fails(3, &["an adapter of peft that is not merged", "merge_and_unload"]);
}

/// A folder that holds an adapter, with the lines of peft that make a model of it.
#[test]
fn an_adapter_is_named_with_the_lines_that_merge_it() {
    let folder = Folder::new();
    let config = json!({"base_model_name_or_path": "org/base", "peft_type": "LORA", "r": 4});
    folder.write("run/adapter/adapter_config.json", config.to_string());
    folder.write("run/adapter/adapter_model.safetensors", "weights");
    let adapter = folder.path("run/adapter");
    let words = [
        "a LoRA adapter (adapter_config.json) to org/base, and no model",
        "\nfrom peft import AutoPeftModelForCausalLM",
        "merge_and_unload().save_pretrained(\"OUT\"); AutoTokenizer.from_pretrained(\"org/base\")",
    ];
    sensitivity(&adapter).fails(3, &words);
    // The folder of a training run, in which the adapter lies.
    sensitivity(folder.path("run")).fails(3, &["no config.json", "it lies in", "run/adapter"]);
    // Beside a whole model it would be put on it by transformers.
    let model = folder.model("gpt2");
    folder.write("model/adapter_config.json", config.to_string());
    sensitivity(&model).fails(3, &[words[0], "remove the adapter's files"]);
    edit_json(adapter.join("adapter_config.json"), |config| {
        config["peft_type"] = "PREFIX_TUNING".into();
    });
    sensitivity(&adapter).fails(3, &["PREFIX_TUNING", "can't be merged"]);
}

/// The golden model of two shards, in a folder of its own.
fn shards(folder: &Folder, inside: &str) -> PathBuf {
    for entry in golden::path("gpt2-odd").read_dir().expect("folder").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("expected") || name == "methods.json" {
            continue;
        }
        let inside = if name.starts_with("model-") { inside } else { "" };
        folder.write(&format!("model/{inside}{name}"), bytes(entry.path()));
    }
    folder.path("model")
}

#[test]
fn shards_may_lie_in_folders() {
    let folder = Folder::new();
    let model = shards(&folder, "weights/");
    edit_json(model.join("model.safetensors.index.json"), |index| {
        for file in index["weight_map"].as_object_mut().expect("a map").values_mut() {
            *file = format!("weights/{}", file.as_str().expect("a name")).into();
        }
    });
    assert_eq!(sensitivity(&model).ok(), sensitivity(golden::path("gpt2-odd")).ok());
    let out = folder.path("out");
    quick(&out).and("-q --max-steps 1").with("--model", &model).ok();
    assert!(out.join("weights/model-00002-of-00002.safetensors").is_file());
    assert_ne!(
        sensitivity(&out).ok(),
        sensitivity(&model).ok(),
        "the output has the base's weights"
    );
    let base = folder.path("base");
    let patch = out.join("irepair/patch.safetensors");
    irepair("patch revert").arg(&out).arg(patch).with("--out", &base).ok();
    assert_eq!(sensitivity(&base).ok(), sensitivity(&model).ok());
    edit_json(model.join("model.safetensors.index.json"), |index| {
        index["weight_map"]["lm_head.weight"] = "../model-1.safetensors".into();
    });
    sensitivity(&model).fails(3, &["\"../model-1.safetensors\" is not a file of this folder"]);
    // All weights in a folder, and the configuration beside it.
    let other = Folder::new();
    let model = other.model("gpt2");
    other.write("model/best/model.safetensors", bytes(model.join("model.safetensors")));
    other.remove("model/model.safetensors");
    sensitivity(&model).fails(3, &["no model.safetensors", "it lies in", "best"]);
}

#[test]
fn shards_are_known_without_an_index() {
    let folder = Folder::new();
    let model = shards(&folder, "");
    let index = golden::json("gpt2-odd/model.safetensors.index.json");
    folder.remove("model/model.safetensors.index.json");
    assert_eq!(sensitivity(&model).ok(), sensitivity(golden::path("gpt2-odd")).ok());
    // Transformers needs an index, so an output has one.
    let out = folder.path("out");
    quick(&out).and("-q --max-steps 1").with("--model", &model).ok();
    assert_eq!(folder.json("out/model.safetensors.index.json")["weight_map"], index["weight_map"]);
    folder.remove("model/model-00001-of-00002.safetensors");
    sensitivity(&model).fails(3, &["no model.safetensors.index.json", "shard 1 of 2 is missing"]);
    let other = folder.model("qwen2");
    folder.remove("model/model-00002-of-00002.safetensors");
    std::fs::rename(other.join("model.safetensors"), other.join("model.fp16.safetensors"))
        .expect("renames");
    sensitivity(&other).fails(3, &["only model.fp16.safetensors", "mv model.fp16.safetensors"]);
}
