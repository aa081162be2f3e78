//! One recipe a command, each readable in one screen.

pub mod bench;
pub mod doctor;
pub mod generate;
pub mod repair;
pub mod sensitivity;

use anyhow::Result;
use candle_core::Device;

use crate::checkpoint::Checkpoint;
use crate::hub::{self, Source};
use crate::model::Model;
use crate::tokens::Encoder;
use crate::weights::Weights;
use crate::{bail_input, device};

/// A model that is ready: what every command begins with.
pub struct Loaded {
    pub source: Source,
    pub model: Model,
    pub encoder: Encoder,
    pub device: Device,
    /// Why this device.
    pub device_why: String,
}

/// Opens a model folder: configuration, headers, tokenizer.
pub fn open(model: &str, revision: Option<&str>, device: &str, threads: Option<usize>) -> Result<Loaded> {
    device::set_threads(threads)?;
    let choice = device::choose(device)?;
    let source = hub::open_model(model, revision)?;
    let checkpoint = &source.checkpoint;
    let model = Model::from_config(&checkpoint.config)?;
    let tokenizer = checkpoint.dir.join("tokenizer.json");
    if !tokenizer.is_file() {
        bail_input!(
            "{}: no tokenizer.json; save the tokenizer beside the model with transformers",
            checkpoint.dir.display()
        );
    }
    let encoder = Encoder::from_file(&tokenizer, model.sizes().vocabulary)?;
    Ok(Loaded { source, model, encoder, device: choice.device, device_why: choice.why })
}

impl Loaded {
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.source.checkpoint
    }

    /// Reads the weights.
    pub fn weights(&self) -> Result<Weights> {
        self.checkpoint().load(&self.model, &self.device)
    }

    /// The token that begins and ends a text.
    pub fn end_of_text(&self) -> Result<u32> {
        let config = &self.checkpoint().config;
        let id = ["bos_token_id", "eos_token_id"].iter().find_map(|k| config.get(k).and_then(|v| v.as_u64()));
        match id.map(|id| id as u32).or_else(|| self.encoder.id_of("<|endoftext|>")) {
            Some(id) if (id as usize) < self.model.sizes().vocabulary => Ok(id),
            Some(id) => bail_input!("config.json: token id {id} is outside the vocabulary"),
            None => bail_input!("config.json: no \"bos_token_id\" to begin a text with"),
        }
    }

    /// The token that ends a text, if the model has one.
    pub fn end_token(&self) -> Option<u32> {
        let eos = self.checkpoint().config.get("eos_token_id").and_then(|v| v.as_u64());
        eos.map(|id| id as u32).or_else(|| self.encoder.id_of("<|endoftext|>"))
    }

    /// A name for folders: the last part of the model's.
    pub fn short_name(&self) -> String {
        let name = self.checkpoint().name.trim_end_matches('/');
        name.rsplit(['/', '\\']).next().unwrap_or("model").trim_start_matches('.').to_owned()
    }
}
