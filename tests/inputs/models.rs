//! Model folders that are missing, in another format, or damaged.

use std::path::Path;

use crate::support::command::irepair;
use crate::support::files::{Folder, bytes};
use crate::support::golden;

/// A command on this model is refused.
#[track_caller]
fn bad_model(model: impl AsRef<Path>, words: &[&str]) {
    irepair("sensitivity")
        .with("--model", model.as_ref())
        .with("--data", golden::path("pairs.jsonl"))
        .fails(3, words);
}

#[test]
fn a_model_that_is_not_there() {
    bad_model("no/such/folder", &["no/such/folder"]);
    let tiny = golden::path("gpt2");
    irepair("sensitivity").with("--model", &tiny).fails(3, &["--data"]);
    irepair("repair").with("--model", &tiny).fails(3, &["--data"]);
    let folder = Folder::new();
    bad_model(folder.root(), &["config.json"]);
    let model = folder.model("gpt2");
    folder.remove("model/model.safetensors");
    bad_model(&model, &["model.safetensors"]);
    folder.write("model/pytorch_model.bin", "pickle");
    bad_model(&model, &["pytorch_model.bin", "convert"]);
    folder.remove("model/pytorch_model.bin");
    for (other, line) in [
        ("model.Q8_0.gguf", "GPT2LMHeadModel.from_pretrained(DIR, gguf_file="),
        ("pytorch_model.bin.index.json", "GPT2LMHeadModel.from_pretrained(DIR)"),
        ("pytorch_model-00001-of-00002.bin", "glob.glob(DIR + '/pytorch_model-*.bin')"),
        ("pytorch_model.fp16.bin", "GPT2LMHeadModel.from_pretrained(DIR, variant=\"fp16\")"),
        ("consolidated.00.pth", "convert_llama_weights_to_hf.py"),
        ("best.pth", "[DIR + '/best.pth']"),
        ("best.pt", "GPT2LMHeadModel.from_pretrained(None, config=c, state_dict=s)"),
        ("best.ckpt", "[DIR + '/best.ckpt']"),
    ] {
        folder.write(&format!("model/{other}"), "pickle");
        bad_model(&model, &[other, "not loaded; convert", line]);
        folder.remove(&format!("model/{other}"));
    }
    folder.write("model/pytorch_model.bin", "pickle");
    // A file of llama.cpp lies alone, without a config.json.
    let gguf = folder.write("small.gguf", "GGUF");
    bad_model(folder.root(), &["small.gguf", "convert", "gguf_file=\"small.gguf\""]);
    bad_model(gguf, &["small.gguf: a file", "convert", "gguf_file=\"small.gguf\""]);
    let pickle = folder.write("consolidated.00.pth", "pickle");
    bad_model(pickle, &["consolidated.00.pth: a file", "convert_llama_weights_to_hf.py"]);
    let pickle = folder.write("best.pt", "pickle");
    let class = "type(AutoModelForCausalLM.from_config(c)).from_pretrained(None";
    bad_model(pickle, &["best.pt: a file", class]);
    let index = r#"{"weight_map": {"a": "model-1.safetensors"}}"#;
    folder.write("model/model.safetensors.index.json", index);
    bad_model(&model, &["model-1.safetensors", "missing"]);
    let model = folder.model("gpt2");
    folder.remove("model/model.safetensors.index.json");
    folder.remove("model/tokenizer.json");
    bad_model(&model, &["tokenizer.json"]);
}

#[test]
fn damaged_weights() {
    let folder = Folder::new();
    let model = folder.model("gpt2");
    let whole = bytes(model.join("model.safetensors"));
    let broken = |bytes: &[u8], words: &[&str]| {
        folder.write("model/model.safetensors", bytes);
        bad_model(&model, words);
    };
    for cut in [0, 5, 100, whole.len() - 1] {
        broken(&whole[..cut], &["model.safetensors", "truncated"]);
    }
    broken(&[&whole[..], &[0]].concat(), &["header"]);
    let mut lying = whole.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    broken(&lying, &["the header says"]);
    let mut garbage = whole.clone();
    garbage[9..40].fill(b'x');
    broken(&garbage, &["broken header"]);
    // The last tensor's last value becomes NaN.
    let mut nan = whole.clone();
    let at = nan.len() - 4;
    nan[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    broken(&nan, &["NaN", "broken"]);
}
