//! `doctor`: what this build can do, and what of a model is understood.

use serde_json::json;

use crate::support::command::irepair;
use crate::support::files::{Folder, edit_json};
use crate::support::golden;

#[test]
fn what_of_a_model_is_understood() {
    let folder = Folder::new();
    let model = folder.model("gpt2");
    edit_json(model.join("config.json"), |config| {
        config["odd_key"] = json!(3);
        config["resid_pdrop"] = json!(0.1);
    });
    let doctor = || irepair("doctor").with("--model", &model);
    let found = doctor().and("--json").json();
    let has = |list: &str, key: &str| found[list].as_array().expect(list).contains(&json!(key));
    assert_eq!(found["architecture"], "gpt2");
    assert_eq!(found["settings_not_read"], json!(["odd_key"]), "{found}");
    assert!(has("settings_of_no_effect", "resid_pdrop"), "{found}");
    for key in ["n_layer", "n_head", "vocab_size", "activation_function", "eos_token_id"] {
        assert!(has("settings_read", key), "{key}: {found}");
    }
    let text = doctor().ok();
    for words in ["architecture         gpt2", "settings not read    odd_key", "F32 in 1 file"] {
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
    assert!(irepair("doctor --model demo").ok().contains("parameters           1402880"));
    // What is refused is refused by name.
    edit_json(model.join("config.json"), |config| config["add_cross_attention"] = json!(true));
    doctor().fails(3, &["add_cross_attention"]);
    irepair("doctor --model gpt2-lage").fails(3, &["did you mean \"gpt2-large\""]);
    irepair("doctor --revision main").fails(2, &["--model"]);
    // A configuration alone is understood before weights are there, as a folder or a file.
    let config = folder.path("alone/config.json");
    std::fs::create_dir_all(folder.path("alone")).expect("a folder");
    let entry = &golden::json("hub.json")["Phi-4-mini-instruct"]["config"];
    std::fs::write(&config, entry.to_string()).expect("written");
    for place in [folder.path("alone"), config.clone()] {
        let found = irepair("doctor --json").with("--model", &place).json();
        assert_eq!(found["parameters"], 3_836_021_760_u64);
        assert_eq!(found["positions"], 4096, "LongRoPE's short factors");
        assert_eq!(found["weights"], "none here");
    }
    // transformers reads nothing of it that is not read here.
    let gemma = &golden::json("hub.json")["gemma-3-270m"]["config"];
    std::fs::write(&config, gemma.to_string()).expect("written");
    let found = irepair("doctor --json").with("--model", &config).json();
    assert_eq!(found["settings_not_read"], json!([]), "{found}");
    let experts = json!({"model_type": "qwen3_moe"});
    std::fs::write(&config, experts.to_string()).expect("written");
    irepair("doctor").with("--model", &config).fails(3, &["qwen3_moe", "mixture of experts"]);
    // Without a model: the build.
    assert!(irepair("doctor").ok().contains("architectures"));
}
