//! *Conversion* advice: weights in other formats are never opened, but the error says what converts
//! them.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::header::SINGLE;
use crate::bail_input;

/// The class of transformers that loads a language model of any architecture.
pub const ANY_CLASS: &str = "AutoModelForCausalLM";

/// The files of weights in other formats that transformers looks for.
const OTHERS: [&str; 4] =
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack"];

/// Whether a file's name ends like one of pickled tensors. Such a file can run code when it is
/// opened.
fn is_pickle(file: &str) -> bool {
    [".bin", ".pth", ".pt", ".ckpt"].iter().any(|ending| file.ends_with(ending))
}

/// How transformers converts a file of weights to safetensors, mostly as a line of Python. `None`
/// if the name is not one of weights.
pub fn conversion(file: &str, class: &str) -> Option<String> {
    if OTHERS.contains(&file) {
        return Some(format!(
            "{class}.from_pretrained(DIR).save_pretrained(OUT, safe_serialization=True)"
        ));
    }
    if is_pickle(file) {
        return conversion_of_pickle(file, class);
    }
    // Newer versions of transformers save what they read from a GGUF file only if they no longer
    // know that it was one.
    file.ends_with(".gguf").then(|| {
        format!(
            "m = {class}.from_pretrained(DIR, gguf_file={file:?}); m.hf_quantizer = None; \
             vars(m.config).pop('quantization_config', None); m.save_pretrained(OUT); \
             AutoTokenizer.from_pretrained(DIR, gguf_file={file:?}).save_pretrained(OUT)"
        )
    })
}

/// [`conversion`] of a pickle that transformers does not find by itself. `None` for the files that
/// only a training run needs.
fn conversion_of_pickle(file: &str, class: &str) -> Option<String> {
    if ["optimizer.", "rng_state", "scaler.", "scheduler.", "training_args."]
        .iter()
        .any(|beginning| file.starts_with(beginning))
    {
        return None;
    }
    if file.starts_with("consolidated") && file.ends_with(".pth") {
        return Some(
            "python convert_llama_weights_to_hf.py --input_dir DIR --output_dir OUT (a script of \
             transformers 4, in models/llama)"
                .into(),
        );
    }
    let variant = file.strip_prefix("pytorch_model.").and_then(|rest| rest.strip_suffix(".bin"));
    // The number of a shard may follow: `fp16-00001-of-00002`.
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
    // `AutoModelForCausalLM` doesn't take tensors without a folder; the model's own class does.
    let class =
        if class == ANY_CLASS { format!("type({class}.from_config(c))") } else { class.to_owned() };
    Some(format!(
        "c = AutoConfig.from_pretrained(DIR); \
         s = {{k: v for f in {files} for k, v in torch.load(f, weights_only=True).items()}}; \
         {class}.from_pretrained(None, config=c, state_dict=s).save_pretrained(OUT){names}"
    ))
}

/// Errors (bad input) if the folder has weights in another format. The error says how to convert
/// them.
pub fn refuse_other_weights(dir: &Path, config: &Value) -> Result<()> {
    let class = config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or(ANY_CLASS);
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<String> =
        files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    files.sort_by_key(|file| (!OTHERS.contains(&file.as_str()), file.clone()));
    match files.iter().find_map(|file| Some((file, conversion(file, class)?))) {
        Some((file, line)) => bail_input!(
            "{}: no {SINGLE}, only {file}, which is not loaded; convert it with transformers: \
             {line}",
            dir.display()
        ),
        None => Ok(()),
    }
}

/// Whether a file holds the weights once more in another form. Such a file is not copied to the
/// output, because its weights are not repaired.
pub fn is_other_weights(name: &str) -> bool {
    let pickled = is_pickle(name) && name != "training_args.bin";
    let endings = [".safetensors", ".safetensors.index.json", ".onnx", ".gguf"];
    OTHERS.contains(&name)
        || name == "rust_model.ot"
        || pickled
        || endings.iter().any(|e| name.ends_with(e))
}
