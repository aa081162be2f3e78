//! One recipe a command, each readable in one screen.

pub mod bench;
pub mod compare;
pub mod doctor;
pub mod eval;
pub mod generate;
pub mod guide;
pub mod manual;
pub mod pairs;
pub mod patch;
pub mod repair;
pub mod report;
pub mod score;
pub mod sensitivity;

use std::path::Path;

use anyhow::Result;
use candle_core::Device;
use serde_json::Value;

use crate::bail_input;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::hub;
use crate::checkpoint::hub::OpenedModel;
use crate::cli::shared::ModelWords;
use crate::model::Model;
use crate::model::device;
use crate::model::generate::Ends;
use crate::model::memory;
use crate::model::memory::Passes;
use crate::model::precision::Precision;
use crate::model::precision::WeightsDtype;
use crate::model::weights::Weights;
use crate::tokens::Encoder;
use crate::tokens::chat::ChatTemplate;

/// A model that is ready: what every command begins with.
pub struct Loaded {
    pub source: OpenedModel,
    pub model: Model,
    pub encoder: Encoder,
    pub device: Device,
    /// Why this device.
    pub device_why: String,
    /// Of the large products.
    pub precision: Precision,
    /// What matrices of weights are kept in.
    pub weights_dtype: WeightsDtype,
}

/// What a command computes on.
pub struct On<'a> {
    pub device: &'a str,
    pub dtype: Precision,
    pub weights_dtype: WeightsDtype,
    pub threads: Option<usize>,
}

impl ModelWords {
    /// Opens the model that the words name.
    pub fn open(&self) -> Result<Loaded> {
        let on = On {
            device: &self.device,
            dtype: self.dtype,
            weights_dtype: self.weights_dtype,
            threads: self.threads,
        };
        open(&self.model, self.revision.as_deref(), &on)
    }
}

/// Opens a model folder: configuration, headers, tokenizer.
pub fn open(model: &str, revision: Option<&str>, on: &On) -> Result<Loaded> {
    device::set_threads(on.threads)?;
    let choice = device::choose(on.device)?;
    let (precision, why_not) = device::precision(on.dtype, &choice.device);
    if let Some(why) = why_not {
        eprintln!("--dtype bf16: {why}; f32 is used");
    }
    let source = hub::open_model(model, revision)?;
    let checkpoint = &source.checkpoint;
    let model = Model::from_config(&checkpoint.config)?;
    checkpoint.stores(&model, on.weights_dtype)?;
    let tokenizer = checkpoint.dir.join("tokenizer.json");
    if !tokenizer.is_file() {
        bail_input!(
            "{}: no tokenizer.json; save the tokenizer beside the model with transformers",
            checkpoint.dir.display()
        );
    }
    let encoder = Encoder::from_file(&tokenizer, model.sizes().vocabulary)?
        .with_chat(ChatTemplate::of(&checkpoint.dir)?);
    let (device, device_why) = (choice.device, choice.why);
    Ok(Loaded {
        source,
        model,
        encoder,
        device,
        device_why,
        precision,
        weights_dtype: on.weights_dtype,
    })
}

/// Errors (bad input) if a file can't be at this place.
pub fn writable(flag: &str, path: &Path) -> Result<()> {
    let folder = path.parent().filter(|d| !d.as_os_str().is_empty());
    if path.is_dir() || folder.is_some_and(|d| !d.is_dir()) {
        bail_input!("{flag} {}: can't write there", path.display());
    }
    Ok(())
}

impl Loaded {
    /// `cpu`, `cuda:0`
    pub fn device_name(&self) -> String {
        match self.device.location() {
            candle_core::DeviceLocation::Cpu => "cpu".into(),
            candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
        }
    }

    pub fn checkpoint(&self) -> &Checkpoint {
        &self.source.checkpoint
    }

    /// Errors (bad input) if passes over this model take more memory than there is. To be asked before anything is read.
    pub fn check_memory(&self, passes: &Passes, advice: &str) -> Result<()> {
        if !self.device.is_cpu() {
            return Ok(());
        }
        memory::estimate(&self.model, self.weights_dtype, passes)
            .check(crate::base::memory::limit()?, advice)
    }

    /// Reads the weights; products are f32 until a precision is set.
    pub fn weights(&self) -> Result<Weights> {
        self.checkpoint().load(&self.model, &self.device, self.weights_dtype)
    }

    /// The token that begins and ends a text.
    pub fn end_of_text(&self) -> Result<u32> {
        let config = &self.checkpoint().config;
        let id = ["bos_token_id", "eos_token_id"]
            .iter()
            .find_map(|k| self.usable(config.get(k)?.as_u64()?));
        match id.or_else(|| self.encoder.id_of("<|endoftext|>")) {
            Some(id) => Ok(id),
            None => bail_input!(
                "config.json: no \"bos_token_id\" within the vocabulary to begin a text with"
            ),
        }
    }

    /// The tokens that end a text, if the model has any: those that transformers generates with.
    pub fn ends(&self) -> Ends {
        let generation =
            std::fs::read(self.checkpoint().dir.join("generation_config.json")).unwrap_or_default();
        let generation: Value = serde_json::from_slice(&generation).unwrap_or_default();
        let usable = |ids: &Value| -> Vec<u32> {
            let ids = ids.as_array().map_or(std::slice::from_ref(ids), Vec::as_slice);
            ids.iter().filter_map(|id| self.usable(id.as_u64()?)).collect()
        };
        let configs = [&generation, &self.checkpoint().config];
        let found = configs
            .into_iter()
            .map(|config| usable(&config["eos_token_id"]))
            .find(|ids| !ids.is_empty());
        found.unwrap_or_else(|| self.encoder.id_of("<|endoftext|>").into_iter().collect()).into()
    }

    /// A token id of `config.json`, if the vocabulary has it (small models keep GPT-2's 50256 by accident).
    fn usable(&self, id: u64) -> Option<u32> {
        (id < self.model.sizes().vocabulary as u64).then_some(id as u32)
    }

    /// A name for folders: the last part of the model's.
    pub fn short_name(&self) -> String {
        let dir = &self.checkpoint().dir;
        let name = if self.checkpoint().name == "demo" || self.checkpoint().revision.is_some() {
            self.checkpoint().name.clone()
        } else {
            std::fs::canonicalize(dir).unwrap_or_else(|_| dir.clone()).display().to_string()
        };
        name.rsplit(['/', '\\']).next().unwrap_or("model").trim_start_matches('.').to_owned()
    }
}
