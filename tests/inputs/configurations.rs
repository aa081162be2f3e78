//! Configurations that don't fit the weights, or that name what is not implemented.

use irepair::model::Model;
use serde_json::{Value, json};

use crate::support::command::irepair;
use crate::support::files::{Folder, edit_json, read};
use crate::support::golden;

/// A command on the model of this folder is refused.
#[track_caller]
fn bad_model(folder: &Folder, words: &[&str]) {
    irepair("sensitivity")
        .with("--model", folder.path("model"))
        .with("--data", golden::path("pairs.jsonl"))
        .fails(3, words);
}

/// Python writes numbers into configurations that are no JSON.
#[test]
fn nan_is_refused_only_where_it_is_read() {
    let folder = Folder::new();
    let model = folder.model("gpt2");
    let line = || {
        irepair("sensitivity --json")
            .with("--model", &model)
            .with("--data", golden::path("pairs.jsonl"))
    };
    let want = line().ok();
    let with = |name: &str, entry: &str| {
        let text = read(golden::path("gpt2").join(name));
        folder.write(&format!("model/{name}"), text.replacen('{', &format!("{{{entry},"), 1));
    };
    with("config.json", "\"initializer_spread\": NaN");
    with("tokenizer_config.json", "\"odd\": [Infinity, -Infinity]");
    assert_eq!(line().ok(), want);
    let config = read(golden::path("gpt2").join("config.json"));
    let config = config.replace("\"layer_norm_epsilon\": 1e-05", "\"layer_norm_epsilon\": NaN");
    folder.write("model/config.json", config);
    line().fails(3, &["layer_norm_epsilon", "NaN", "expected a number"]);
}

#[test]
fn weights_and_configuration_that_disagree() {
    let folder = Folder::new();
    let model = folder.model("gpt2");
    let text = read(model.join("config.json"));
    let with = |key: &str, value: Value, words: &[&str]| {
        folder.write("model/config.json", &text);
        edit_json(model.join("config.json"), |config| config[key] = value);
        bad_model(&folder, words);
    };
    with("n_layer", 4.into(), &["transformer.h.3", "missing"]);
    with("n_inner", 40.into(), &["shape", "mlp.c_fc.weight"]);
    with("vocab_size", 100.into(), &["vocabulary", "tokenizer"]);
    with("n_head", 3.into(), &["3 heads"]);
    with("n_embd", "wide".into(), &["n_embd"]);
    with("model_type", "mamba".into(), &["mamba", "gpt2", "gpt_neo", "gpt_neox"]);
    with("activation_function", "snake".into(), &["snake"]);
    with("add_cross_attention", true.into(), &["add_cross_attention"]);
    folder.write("model/config.json", "{");
    bad_model(&folder, &["config.json", "broken JSON"]);
    folder.write("model/config.json", &text);
    let generation = read(model.join("generation_config.json"));
    folder.write("model/generation_config.json", "[");
    bad_model(&folder, &["generation_config.json", "broken JSON"]);
    folder.write("model/generation_config.json", generation);
    folder.write("model/tokenizer.json", "{}");
    bad_model(&folder, &["tokenizer.json"]);
}

/// They are ignored, as in transformers. But the model may not be the one that was trained, so it
/// is said.
#[test]
fn weights_that_the_configuration_does_not_ask_for_are_named() {
    for (key, tensor) in
        [("attention_bias", "self_attn.k_proj.bias"), ("mlp_bias", "mlp.down_proj.bias")]
    {
        let folder = Folder::new();
        let model = folder.model("llama");
        edit_json(model.join("config.json"), |config| config[key] = false.into());
        let said = irepair("sensitivity")
            .with("--model", &model)
            .with("--data", golden::path("pairs.jsonl"))
            .warns();
        let line = said.lines().find(|line| line.starts_with("warning: ")).expect("a warning");
        let no_part = format!("{tensor} is no part");
        for words in ["model.safetensors: ", &no_part, &format!("{key:?}"), "ignored"] {
            assert!(line.contains(words), "{words:?} is not in: {line}");
        }
        assert_eq!(said.matches("warning: ").count(), 1, "{said}");
    }
}

/// A golden model with other entries in its configuration is refused.
#[track_caller]
fn refuse(golden: &str, key: &str, value: Value, words: &[&str]) {
    let folder = Folder::new();
    let model = folder.model(golden);
    edit_json(model.join("config.json"), |config| config[key] = value);
    bad_model(&folder, &[&["config.json"], words].concat());
}

/// Configurations of models on the hub, copied by hand. `scripts/check_hub.py` counts their
/// parameters with transformers, and repairs models like them.
#[test]
fn configurations_of_the_hub_are_understood() {
    let entries = golden::json("hub.json");
    for (name, entry) in entries.as_object().expect("entries") {
        let model = Model::from_config(&entry["config"]).expect(name);
        assert_eq!(Some(model.parameters() as u64), entry["parameters"].as_u64(), "{name}");
    }
}

/// What models of the Llama and Qwen families may have, and irepair has not.
#[test]
fn configurations_that_are_not_implemented() {
    refuse("llama", "partial_rotary_factor", json!(0.5), &["part of a head"]);
    refuse("llama", "head_dim", json!(7), &["1 of a head's 7"]);
    let words = ["268435456", "\"head_dim\"", "at most 65536"];
    refuse("llama", "head_dim", json!(1 << 28), &words);
    let words = ["num_attention_heads", "4", "num_key_value_heads", "3"];
    refuse("qwen2", "num_key_value_heads", json!(3), &words);
    refuse("qwen2", "hidden_act", json!("mish"), &["hidden_act", "mish", "silu"]);
    let kinds = json!(["full_attention", "chunked_attention", "full_attention"]);
    refuse("qwen3", "layer_types", kinds, &["chunked_attention", "sliding_attention"]);
    let one = json!(["full_attention"]);
    refuse("qwen3", "layer_types", one, &["layer_types", "1", "3"]);
    for golden in ["llama", "mistral"] {
        let config = golden::json(&format!("{golden}/config.json"));
        let blocks = config["num_hidden_layers"].as_u64().expect("blocks");
        let kinds = json!(vec!["linear_attention"; blocks as usize]);
        refuse(golden, "layer_types", kinds, &["linear_attention", "full_attention"]);
    }
    let quantized = json!({"quant_method": "gptq", "bits": 4});
    refuse("llama", "quantization_config", quantized, &["quantized by gptq", "dequantize()"]);
    let words = ["mamba2", "llama, mistral, qwen2, qwen3, gemma2, gemma3_text"];
    refuse("llama", "model_type", json!("mamba2"), &words);
    for (model_type, words) in [
        ("mixtral", "mixture of experts"),
        ("qwen3_moe", "mixture of experts"),
        ("gpt_oss", "mixture of experts"),
        ("gemma3", "gemma3_text"),
        ("gemma4", "towers for images or sound"),
        ("llama4", "towers for images or sound"),
        ("qwen3_5", "DeltaNet"),
        ("qwen3_next", "recurrent"),
        ("granitemoehybrid", "recurrent"),
    ] {
        refuse("llama", "model_type", json!(model_type), &[model_type, "not opened", words]);
    }
    rotary_positions_that_are_not_implemented();
}

fn rotary_positions_that_are_not_implemented() {
    let dynamic = json!({"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0});
    let words = ["rotary scaling dynamic", "default, linear, llama3, yarn, longrope"];
    refuse("llama", "rope_parameters", dynamic, &words);
    refuse("mistral", "rope_theta", json!(0), &["\"rope_theta\" is 0"]);
    // A `rope_scaling` that is not empty goes before `rope_parameters`.
    let odd = json!({"rope_type": "proportional", "factor": 2.0});
    refuse("llama", "rope_scaling", odd, &["rotary scaling proportional"]);
    let scaling = |value: Value, words: &[&str]| refuse("mistral", "rope_scaling", value, words);
    scaling(json!({"type": "dynamic", "factor": 2.0}), &["rotary scaling dynamic"]);
    scaling(json!({"type": "linear"}), &["\"factor\""]);
    scaling(json!("linear"), &["\"rope_scaling\" is \"linear\"", "object"]);
    scaling(json!([2.0]), &["\"rope_scaling\" is [2.0]", "object"]);
    scaling(json!({"type": null, "factor": 2.0}), &["rotary scaling of no name"]);
    scaling(json!({"factor": 2.0}), &["rotary scaling of no name"]);
    let of_kinds =
        json!({"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}});
    let words = ["\"rope_parameters\"", "full_attention", "all layers"];
    refuse("qwen2", "rope_parameters", of_kinds, &words);
    let llama3 = json!({
        "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
        "original_max_position_embeddings": 32,
    });
    refuse("llama", "rope_parameters", llama3, &["low_freq_factor", "high_freq_factor"]);
}
