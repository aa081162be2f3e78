//! Weights in other formats: never opened; what converts them is said.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::SINGLE;
use crate::bail_input;

/// What transformers loads a language model of any architecture with.
pub const ANY_CLASS: &str = "AutoModelForCausalLM";

/// Weights in another format under the names that transformers looks for.
const OTHERS: [&str; 4] =
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack"];

/// Whether a file's ending is that of pickled tensors. They can run code, and are never opened.
fn is_pickle(file: &str) -> bool {
    [".bin", ".pth", ".pt", ".ckpt"].iter().any(|ending| file.ends_with(ending))
}

/// What of transformers writes safetensors of a file of weights in another format, mostly a line of Python, if its name
/// says that it is one.
pub fn conversion(file: &str, class: &str) -> Option<String> {
    if OTHERS.contains(&file) {
        return Some(format!(
            "{class}.from_pretrained(DIR).save_pretrained(OUT, safe_serialization=True)"
        ));
    }
    if is_pickle(file) {
        return conversion_of_pickle(file, class);
    }
    // Newer versions of transformers don't save what they read of a GGUF file unless they forget where it is from.
    file.ends_with(".gguf").then(|| {
        format!(
            "m = {class}.from_pretrained(DIR, gguf_file={file:?}); m.hf_quantizer = None; \
             vars(m.config).pop('quantization_config', None); m.save_pretrained(OUT); \
             AutoTokenizer.from_pretrained(DIR, gguf_file={file:?}).save_pretrained(OUT)"
        )
    })
}

/// [`conversion`] of what transformers does not find by itself; none of what only training goes on from.
fn conversion_of_pickle(file: &str, class: &str) -> Option<String> {
    if ["optimizer.", "rng_state", "scaler.", "scheduler.", "training_args."]
        .iter()
        .any(|of| file.starts_with(of))
    {
        return None;
    }
    if file.starts_with("consolidated") && file.ends_with(".pth") {
        return Some(
            "python convert_llama_weights_to_hf.py --input_dir DIR --output_dir OUT (a script of transformers 4, in \
             models/llama)"
                .into(),
        );
    }
    let variant = file.strip_prefix("pytorch_model.").and_then(|rest| rest.strip_suffix(".bin"));
    // With its shards' numbers behind it: `fp16-00001-of-00002`.
    if let Some(variant) = variant.and_then(|rest| rest.split("-0").next()) {
        return Some(format!(
            "{class}.from_pretrained(DIR, variant={variant:?}).save_pretrained(OUT)"
        ));
    }
    let (files, names) = match file.starts_with("pytorch_model-") {
        true => ("glob.glob(DIR + '/pytorch_model-*.bin')".to_owned(), ""),
        false => (
            format!("[DIR + '/{file}']"),
            " (if its tensors have the names that transformers gives them)",
        ),
    };
    // Only a class of its own takes tensors without a folder.
    let class =
        if class == ANY_CLASS { format!("type({class}.from_config(c))") } else { class.to_owned() };
    Some(format!(
        "c = AutoConfig.from_pretrained(DIR); \
         s = {{k: v for f in {files} for k, v in torch.load(f, weights_only=True).items()}}; \
         {class}.from_pretrained(None, config=c, state_dict=s).save_pretrained(OUT){names}"
    ))
}

/// Errors (bad input) if the folder has weights in another format, and says how to convert them.
pub fn refuse_other_weights(dir: &Path, config: &Value) -> Result<()> {
    let class = config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or(ANY_CLASS);
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<String> =
        files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    files.sort_by_key(|file| (!OTHERS.contains(&file.as_str()), file.clone()));
    match files.iter().find_map(|file| Some((file, conversion(file, class)?))) {
        Some((file, line)) => bail_input!(
            "{}: no {SINGLE}, only {file}, which is not loaded; convert it with transformers: {line}",
            dir.display()
        ),
        None => Ok(()),
    }
}

/// Whether a file holds the weights once more in another form: not copied, it would be the unrepaired ones.
pub fn is_other_weights(name: &str) -> bool {
    let pickled = is_pickle(name) && name != "training_args.bin";
    let endings = [".safetensors", ".safetensors.index.json", ".onnx", ".gguf"];
    OTHERS.contains(&name)
        || name == "rust_model.ot"
        || pickled
        || endings.iter().any(|e| name.ends_with(e))
}
