//! The golden checkpoints and the reference's numbers on them, made by `scripts/make_golden.py` (its versions of torch
//! and transformers stand in each `expected.json`).

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use irepair::checkpoint::Checkpoint;
use irepair::data;
use irepair::model::Model;
use irepair::model::precision::WeightsDtype;
use irepair::model::weights::{Kernels, Weights};
use irepair::tokens::{Encoder, Lengths, LossOn, Packed, PairBatch, TokenPair};
use serde_json::Value;

pub const CHECKPOINTS: [&str; 9] = [
    "gpt2",
    "gpt2-odd",
    "gpt2-relu-bare",
    "gpt-neo",
    "gpt-neo-bf16",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
];
/// Those of `generate.json`.
pub const GENERATE: [&str; 6] = ["gpt2", "gpt-neo", "llama", "mistral", "qwen2", "qwen3"];
pub const KERNELS: [Kernels; 2] = [Kernels::Cpu, Kernels::Composed];
pub const LENGTHS: Lengths = Lengths { prompt: 64, total: 128 };

/// Where these run: our kernels on the CPU; the composed form on the device that `IREPAIR_DEVICE` names, so that
/// `IREPAIR_DEVICE=cuda cargo test --features cuda -- kernels:: parity:: exact:: neurons::` holds a GPU to the same numbers.
pub fn device(kernels: Kernels) -> Device {
    let named = std::env::var("IREPAIR_DEVICE").ok().filter(|_| kernels == Kernels::Composed);
    irepair::model::device::choose(named.as_deref().unwrap_or("cpu"))
        .expect("IREPAIR_DEVICE")
        .device
}

pub fn dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

pub fn json(path: &str) -> Value {
    serde_json::from_slice(&std::fs::read(dir().join(path)).expect(path)).expect(path)
}

pub fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
}

pub struct Golden {
    pub name: &'static str,
    pub checkpoint: Checkpoint,
    pub model: Model,
    pub encoder: Encoder,
    pub expected: Value,
    tensors: std::collections::HashMap<String, Tensor>,
}

impl Golden {
    pub fn open(name: &'static str) -> Self {
        let folder = dir().join(name);
        let checkpoint = Checkpoint::open(&folder, name, None).expect("opens");
        let model = Model::from_config(&checkpoint.config).expect("config");
        let encoder = Encoder::from_file(&folder.join("tokenizer.json"), model.sizes().vocabulary)
            .expect("tokenizer");
        let tensors =
            candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu)
                .expect("tensors");
        Self {
            name,
            checkpoint,
            model,
            encoder,
            expected: json(&format!("{name}/expected.json")),
            tensors,
        }
    }

    pub fn weights(&self, kernels: Kernels) -> Weights {
        self.checkpoint
            .load(&self.model, &device(kernels), WeightsDtype::F32)
            .expect("loads")
            .with_kernels(kernels)
    }

    /// An expected tensor; `name` as transformers calls it, found under its name on disk.
    pub fn tensor(&self, kind: &str, name: &str) -> Vec<f32> {
        let disk = self.checkpoint.disk_name(name).expect(name);
        self.tensor_of(&format!("{kind}.{disk}"))
    }

    pub fn tensor_of(&self, name: &str) -> Vec<f32> {
        self.tensors[name].flatten_all().expect(name).to_vec1().expect(name)
    }

    pub fn pairs(&self) -> Vec<TokenPair> {
        let pairs = data::read_pairs(&dir().join("pairs.jsonl"), &data::KeyMap::new(), None)
            .expect("pairs");
        self.encoder.pairs(&pairs, LENGTHS).expect("tokens").0
    }

    /// Copies of the pairs, which are too few for any token to be telltale: as many as in scripts/make_golden_methods.py.
    pub fn copies(&self) -> Vec<TokenPair> {
        std::iter::repeat_n(self.pairs(), 20).flatten().collect()
    }

    pub fn batch(&self, loss_on: LossOn) -> PairBatch {
        PairBatch::new(&self.pairs().iter().collect::<Vec<_>>(), loss_on)
    }

    pub fn normal(&self) -> Packed {
        let texts = data::read_texts(&dir().join("normal.jsonl"), &data::KeyMap::new(), None)
            .expect("normal");
        let (ids, _) = self.encoder.texts(&texts, LENGTHS).expect("tokens");
        Packed::new(ids.iter().map(Vec::as_slice))
    }
}

/// Relative agreement of two numbers.
#[track_caller]
pub fn close(got: f64, want: f64, tolerance: f64, what: &str) {
    let error = (got - want).abs() / want.abs().max(1e-30);
    assert!(
        error <= tolerance,
        "{what}: got {got}, expected {want} (relative {error:.2e} > {tolerance:.0e})"
    );
}

/// Agreement of two tensors, relative to the largest value of the expected one.
#[track_caller]
pub fn all_close(got: &[f32], want: &[f32], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}: sizes");
    let largest = want.iter().fold(0f64, |m, x| m.max(f64::from(x.abs())));
    let worst = got.iter().zip(want).map(|(g, w)| f64::from((g - w).abs())).fold(0f64, f64::max);
    let finite = got.iter().all(|x| x.is_finite());
    assert!(finite && worst <= tolerance * largest, "{what}: off by {worst:.3e} of {largest:.3e}");
}
