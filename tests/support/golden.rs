//! The golden checkpoints, and the reference's numbers on them. `scripts/make_golden.py` made both;
//! its versions of torch and transformers stand in each `expected.json`.

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use irepair::checkpoint::Checkpoint;
use irepair::data;
use irepair::model::precision::WeightsDtype;
use irepair::model::weights::{Kernels, Weights};
use irepair::model::{Model, architecture};
use irepair::slice::input::StepInput;
use irepair::tokens::{Boundary, Encoder, Lengths, LossOn, Packed, PairBatch, TokenPair};
use serde_json::Value;

use super::files;
use super::tensors::flat;

pub const CHECKPOINTS: [&str; 18] = [
    "gpt2",
    "gpt2-odd",
    "gpt2-relu-bare",
    "gpt-neo",
    "gpt-neo-bf16",
    "gpt-neox",
    "gpt-neox-odd",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "smollm3",
    "olmo2",
    "olmo3",
    "granite",
    "phi3",
];
/// The checkpoints of `generate.json`.
pub const GENERATE: [&str; 14] = [
    "gpt2", "gpt-neo", "gpt-neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3",
    "smollm3", "olmo2", "olmo3", "granite", "phi3",
];
pub const KERNELS: [Kernels; 2] = [Kernels::Cpu, Kernels::Composed];
pub const LENGTHS: Lengths = Lengths { prompt: 64, total: 128 };

/// Where a test runs: our kernels on the CPU, and the composed form on the device that
/// `IREPAIR_DEVICE` names. So a GPU is held to the same numbers:
/// `IREPAIR_DEVICE=cuda cargo test --release --features cuda -- kernels:: parity:: exact::`
pub fn device(kernels: Kernels) -> Device {
    let named = std::env::var("IREPAIR_DEVICE").ok().filter(|_| kernels == Kernels::Composed);
    irepair::model::device::choose(named.as_deref().unwrap_or("cpu"))
        .expect("IREPAIR_DEVICE")
        .device
}

/// A golden file or folder.
pub fn path(name: &str) -> PathBuf {
    files::repository("tests/golden").join(name)
}

pub fn json(name: &str) -> Value {
    files::json(path(name))
}

pub fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

pub fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(number).collect()
}

/// Ids of tokens.
pub fn ids(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|id| id as u32).collect()
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
        let folder = path(name);
        let checkpoint = Checkpoint::open(&folder, name, None).expect("opens");
        let model = Model::from_config(&checkpoint.config).expect("config");
        let usual = architecture(&checkpoint.config).expect("known").tokenizer;
        let vocabulary = model.sizes().vocabulary;
        let encoder =
            Encoder::of(&folder, &checkpoint.config, usual, vocabulary).expect("tokenizer");
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
        flat(&self.tensors[name])
    }

    pub fn pairs(&self) -> Vec<TokenPair> {
        let pairs =
            data::read_pairs(&path("pairs.jsonl"), &data::KeyMap::new(), None).expect("pairs");
        self.encoder.pairs(&pairs, LENGTHS, Boundary::Apart).expect("tokens").0
    }

    /// Copies of the pairs, as many as in scripts/make_golden_methods.py. In the pairs alone no
    /// token is often enough to be a marker.
    pub fn copies(&self) -> Vec<TokenPair> {
        std::iter::repeat_n(self.pairs(), 20).flatten().collect()
    }

    pub fn batch(&self, loss_on: LossOn) -> PairBatch {
        batch(&self.pairs(), loss_on)
    }

    pub fn normal(&self) -> Packed {
        let texts =
            data::read_texts(&path("normal.jsonl"), &data::KeyMap::new(), None).expect("normal");
        let (ids, _) = self.encoder.texts(&texts, LENGTHS).expect("tokens");
        Packed::new(ids.iter().map(Vec::as_slice))
    }

    /// What a step on this model gets.
    pub fn input<'a>(
        &'a self,
        weights: &'a Weights,
        pairs: &'a PairBatch,
        normal: Option<&'a Packed>,
    ) -> StepInput<'a> {
        StepInput { model: &self.model, weights, pairs, normal }
    }
}

/// One batch of all these pairs.
pub fn batch(pairs: &[TokenPair], loss_on: LossOn) -> PairBatch {
    PairBatch::new(&pairs.iter().collect::<Vec<_>>(), loss_on)
}

/// Every golden checkpoint, with both implementations of the layers.
pub fn each(check: impl Fn(&Golden, Kernels)) {
    for name in CHECKPOINTS {
        let golden = Golden::open(name);
        for kernels in KERNELS {
            check(&golden, kernels);
        }
    }
}

/// What the block-level method of this name is made of.
pub fn recipe(name: &str) -> irepair::step::Recipe {
    match irepair::step::named(name).expect(name) {
        irepair::step::Named::Blocks(method) => method.recipe(),
        irepair::step::Named::Neurons(_) => panic!("{name} is no block-level method"),
    }
}
