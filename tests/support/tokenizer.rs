//! Folders of tokenizers, as `scripts/make_golden_tokenizers.py` describes them.

use irepair::model::ARCHES;
use irepair::tokens::Encoder;
use serde_json::Value;

use super::files::Folder;
use super::golden;

/// Writes the folder of a case.
pub fn folder(case: &Value) -> Folder {
    let folder = Folder::new();
    let name = format!("tokenizers/base-{}.json", case["base"].as_str().expect("a base"));
    let mut base = golden::json(&name);
    let model = base["model"].clone();
    folder.write("config.json", case["model"].to_string());
    if let Some(own) = case["tokenizer"].as_object() {
        own.iter().for_each(|(key, value)| base[key] = value.clone());
        folder.write("tokenizer.json", base.to_string());
    }
    let files = [
        ("config", "tokenizer_config.json"),
        ("map", "special_tokens_map.json"),
        ("added", "added_tokens.json"),
    ];
    for (key, file) in files.into_iter().filter(|(key, _)| !case[key].is_null()) {
        folder.write(file, case[key].to_string());
    }
    if case["vocabulary"] == true {
        write_vocabulary(&folder, &model);
    }
    folder
}

/// The files that vocabularies had before there was a `tokenizer.json`.
fn write_vocabulary(folder: &Folder, model: &Value) {
    let text = |part: &Value| part.as_str().expect("a piece").to_owned();
    if let Some(merges) = model["merges"].as_array() {
        folder.write("vocab.json", model["vocab"].to_string());
        let merges = merges.iter().map(|m| format!("{} {}\n", text(&m[0]), text(&m[1])));
        folder.write("merges.txt", format!("#version: 0.2\n{}", merges.collect::<String>()));
        return;
    }
    let vocab = model["vocab"].as_object().expect("a vocabulary");
    let mut tokens: Vec<(u64, &String)> =
        vocab.iter().map(|(token, id)| (id.as_u64().expect("an id"), token)).collect();
    tokens.sort();
    let lines = tokens.iter().map(|(_, token)| format!("{token}\n"));
    folder.write("vocab.txt", lines.collect::<String>());
}

/// The encoder of a folder of a model with this `config.json`.
pub fn open(folder: &Folder, model: &Value) -> anyhow::Result<Encoder> {
    let arch = ARCHES.iter().find(|arch| model["model_type"] == arch.model_type).expect("ours");
    Encoder::of(folder.root(), model, arch.tokenizer, 2000)
}
