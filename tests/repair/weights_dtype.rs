//! Weights kept as they are stored (`--weights-dtype`) give the same bits as weights that are
//! widened when they are loaded.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use irepair::base::tensors::{Stored, write_tensors};
use irepair::checkpoint::Checkpoint;
use irepair::model::Model;
use irepair::model::precision::{Precision, WeightsDtype};
use irepair::model::weights::{TensorSpec, Weights, Who};
use irepair::slice::input::StepInput;
use irepair::slice::sensitivity::sensitivity;
use irepair::step::optim::{Optimizer, OptimizerKind};
use irepair::tokens::{LossOn, Packed, TokenPair};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::support::command::irepair;
use crate::support::files::{Folder, bytes};
use crate::support::golden::{self, KERNELS, batch};
use crate::support::tensors::{flat, random};

/// Random weights of a model, stored in this dtype; vectors in f32.
fn stored(config: &Value, dtype: Dtype) -> (Folder, Checkpoint, Model) {
    let model = Model::from_config(config).expect("config");
    let store = |(spec, tensor): (TensorSpec, Tensor)| {
        let dtype = if spec.shape.len() == 2 { dtype } else { Dtype::F32 };
        (spec.name, Stored::values(&tensor, dtype))
    };
    let tensors: BTreeMap<String, Stored> = random(&model, 0.1).into_iter().map(store).collect();
    let folder = Folder::new();
    folder.write("config.json", config.to_string());
    write_tensors(&folder.path("model.safetensors"), &[("format", "pt")], &tensors)
        .expect("writes");
    let checkpoint = Checkpoint::open(folder.root(), "random", None).expect("opens");
    (folder, checkpoint, model)
}

/// Models whose products are deep enough to be packed, in both orientations, with and without a
/// head of their own.
fn models() -> [Value; 2] {
    let llama = json!({
        "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 160,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 272,
        "max_position_embeddings": 64, "vocab_size": 301,
    });
    let gpt2 = json!({
        "model_type": "gpt2", "n_layer": 2, "n_head": 4, "n_embd": 160, "n_positions": 64,
        "vocab_size": 301,
    });
    [llama, gpt2]
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    flat(tensor).iter().map(|v| v.to_bits()).collect()
}

/// Logits, sensitivities, and all weights after three steps with KL.
fn run(model: &Model, weights: &mut Weights) -> (Vec<u32>, Vec<f64>, Vec<Vec<u32>>) {
    let ids = |from: u32, count: u32| (0..count).map(|i| (from + i * 37) % 301).collect::<Vec<_>>();
    let pair =
        |i| TokenPair { prompt: ids(i, 5), chosen: ids(i + 7, 20), rejected: ids(i + 100, 30) };
    let pairs = [pair(1), pair(50)];
    let pairs = batch(&pairs, LossOn::All);
    let normal = Packed::new([ids(3, 40).as_slice(), &ids(9, 1)]);
    let logits = |weights: &Weights, who| {
        let view = weights.frozen(who).expect("view");
        let h = model.hidden(&view, &normal).expect("hidden");
        bits(&model.logits(&view, &h).expect("logits"))
    };
    let (sensitivities, _) = sensitivity(model, weights, &pairs.rejected).expect("sensitivity");
    let mut found = logits(weights, Who::Patient);
    let method = crate::support::golden::recipe("irepair+kl").build();
    let mut optimizer = Optimizer::new(OptimizerKind::Rmsprop);
    for _ in 0..3 {
        let input = StepInput { model, weights, pairs: &pairs, normal: Some(&normal) };
        let report = method.step(&[input]).expect("a step");
        optimizer.step(weights, &report.gradients, 1e-3, 1.0).expect("a step");
    }
    for who in [Who::Reference, Who::Patient] {
        found.extend(logits(weights, who));
    }
    let tensor = |name: &str| bits(&weights.tensor(Who::Patient, name).expect("tensor"));
    (found, sensitivities, model.specs().iter().map(|s| tensor(&s.name)).collect())
}

#[test]
fn kept_weights_compute_the_same_bits() {
    for config in models() {
        for (dtype, kept) in [(Dtype::BF16, WeightsDtype::Bf16), (Dtype::F16, WeightsDtype::F16)] {
            let (_dir, checkpoint, model) = stored(&config, dtype);
            for kernels in KERNELS {
                for precision in [Precision::F32, Precision::Bf16] {
                    // candle has no bf16 product on the CPU.
                    if precision == Precision::Bf16
                        && (kernels == KERNELS[1] || precision.unavailable().is_some())
                    {
                        continue;
                    }
                    let [plain, narrow] = [WeightsDtype::F32, kept].map(|kept| {
                        let weights = checkpoint.load(&model, &Device::Cpu, kept).expect("loads");
                        let mut weights = weights.with_kernels(kernels);
                        weights.set_precision(precision);
                        run(&model, &mut weights)
                    });
                    assert!(plain == narrow, "{config} {kept} {kernels:?} {precision:?}");
                }
            }
        }
    }
}

/// The same file comes out of a repair, and the plan counts half the weights.
#[test]
fn a_repair_writes_the_same_bytes() {
    let folder = Folder::new();
    for (model, kept) in [("gpt-neo-bf16", "bf16"), ("qwen3", "f16")] {
        let out = |kept: &str| folder.path(format!("{model}-{kept}"));
        let repair = |kept: &str| {
            irepair("repair -q --max-steps 4 --batch-size 2 --valid-size 2 --eval-steps 2")
                .and("--learning-rate 1e-3")
                .with("--model", golden::path(model))
                .with("--data", golden::path("pairs.jsonl"))
                .with("--normal", golden::path("normal.jsonl"))
                .with("--weights-dtype", kept)
                .with("--out", out(kept))
        };
        let [plain, narrow] = ["f32", kept].map(|kept| {
            repair(kept).ok();
            bytes(out(kept).join("model.safetensors"))
        });
        assert_eq!(plain, narrow, "{model}");
        let [plain, narrow] = ["f32", kept].map(|kept| {
            let plan = repair(kept).and("--dry-run --json --overwrite").json();
            let parts = plan["memory"]["parts"].as_array().expect("parts").clone();
            let weights = parts.iter().find(|part| part["name"] == "weights").expect("weights");
            weights["bytes"].as_u64().expect("bytes")
        });
        // Where memory is too little, it is what the refusal names first.
        let advice = format!("--weights-dtype {kept} (the checkpoint stores its matrices so");
        let too_little = repair("f32").and("--overwrite").env("IREPAIR_MEMORY_LIMIT", "1");
        too_little.fails(3, &[&advice]);
        let half = narrow > plain / 2 && narrow < plain * 11 / 20;
        assert!(half, "{model}: {narrow} of {plain} bytes");
    }
}

#[test]
fn what_would_be_rounded_is_refused() {
    for (model, kept, found) in [("llama", "bf16", "F32"), ("gpt-neo-bf16", "f16", "BF16")] {
        let words = ["model.safetensors", "weight", found, "--weights-dtype", kept, "f32"];
        for command in ["sensitivity --data x", "repair --data x", "generate --out x"] {
            irepair(command)
                .with("--model", golden::path(model))
                .with("--weights-dtype", kept)
                .fails(3, &words);
        }
    }
}
