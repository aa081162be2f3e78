//! A *command* of the program is one file or folder here, and its `run` tells what it does.

pub mod bench;
mod child;
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
pub mod tokens;
pub mod try_both;
pub mod tune;

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Device;
use serde_json::Value;

use crate::bail_input;
use crate::base::files;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::hub;
use crate::checkpoint::hub::OpenedModel;
use crate::cli::shared::ModelWords;
use crate::data;
use crate::data::demo;
use crate::data::{FileLine, Pair, Text};
use crate::eval::lm_eval::Prefix;
use crate::model::Model;
use crate::model::device;
use crate::model::generate::Ends;
use crate::model::memory;
use crate::model::memory::{Estimate, Passes, Recompute};
use crate::model::precision::Precision;
use crate::model::precision::WeightsDtype;
use crate::model::weights::{Kernels, Weights};
use crate::say;
use crate::settings::setting::MOST;
use crate::tokens::Encoder;

/// A model whose configuration, headers and tokenizer are read, but not its weights.
pub struct Loaded {
    pub source: OpenedModel,
    pub model: Model,
    pub encoder: Encoder,
    /// `generation_config.json`; null if there is none.
    generation: Value,
    pub device: Device,
    /// Why this device was chosen.
    pub device_why: String,
    /// The precision of large products.
    pub precision: Precision,
    /// The type in which matrices of weights are kept.
    pub weights_dtype: WeightsDtype,
}

/// The device and the number formats that a command computes with.
pub struct On<'a> {
    pub device: &'a str,
    pub dtype: Precision,
    pub weights_dtype: WeightsDtype,
    pub threads: Option<usize>,
}

impl ModelWords {
    /// Opens the model that the flags name. Errors as [`open`].
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

/// Opens a model: a folder, a hub model or the demo. Errors (bad input) if its configuration,
/// headers or tokenizer can't be used, or if there is no such device.
pub fn open(model: &str, revision: Option<&str>, on: &On) -> Result<Loaded> {
    device::set_threads(on.threads)?;
    let choice = device::choose(on.device)?;
    let (precision, why_not) = device::precision(on.dtype, &choice.device)?;
    if let Some(why) = why_not {
        say!("--dtype bf16: {why}; f32 is used");
    }
    let source = hub::open_model(model, revision)?;
    let checkpoint = &source.checkpoint;
    let model = Model::from_config(&checkpoint.config)
        .with_context(|| checkpoint.dir.display().to_string())?;
    checkpoint.stores(&model, on.weights_dtype)?;
    let usual = crate::model::architecture(&checkpoint.config)?.tokenizer;
    let vocabulary = model.sizes().vocabulary;
    let encoder = Encoder::of(&checkpoint.dir, &checkpoint.config, usual, vocabulary)?;
    let (device, device_why) = (choice.device, choice.why);
    let generation = checkpoint.dir.join("generation_config.json");
    let generation = match generation.exists() {
        true => files::read_json(&generation)?,
        false => Value::Null,
    };
    Ok(Loaded {
        source,
        model,
        encoder,
        generation,
        device,
        device_why,
        precision,
        weights_dtype: on.weights_dtype,
    })
}

/// The prompts of `--prompt`, or of a line on a terminal.
fn typed(prompts: &[String]) -> Vec<Text> {
    let place = |line| FileLine { file: Path::new("--prompt").into(), line };
    let prompts = prompts.iter().zip(1..);
    prompts.map(|(text, number)| Text::plain(text.clone(), place(number))).collect()
}

/// The pairs of `--data`, or of the demo.
fn pairs_of(
    model: &str,
    path: Option<&Path>,
    map: &[String],
    limit: Option<usize>,
) -> Result<Vec<Pair>> {
    let map = data::parse_map(map)?;
    match path {
        Some(path) => data::read_pairs(&hub::rows_path(path)?, &map, limit),
        None if model == "demo" => {
            let mut pairs = data::parse_pairs("demo pairs", demo::PAIRS)?;
            pairs.truncate(limit.unwrap_or(usize::MAX));
            if pairs.is_empty() {
                bail_input!("--limit 0 leaves no rows");
            }
            Ok(pairs)
        }
        None => bail_input!("--data is missing: give a file of pairs to measure {model} with"),
    }
}

/// Whether a model expects conversations: it has a chat template.
fn instructs(loaded: &Loaded) -> bool {
    loaded.encoder.has_chat()
}

/// Errors (bad input) if no file can be written at this path, which the flag gives.
pub fn writable(flag: &str, path: &Path) -> Result<()> {
    let folder = path.parent().filter(|d| !d.as_os_str().is_empty());
    if path.is_dir() || folder.is_some_and(|d| !d.is_dir()) {
        bail_input!("{flag} {}: can't write there", path.display());
    }
    files::writes_to(path).with_context(|| flag.to_owned()).map(drop)
}

/// Errors (bad input) if no file can be written at the path of `--out`, or if one is there and may
/// not be replaced.
pub fn replaceable(out: &Path, overwrite: bool) -> Result<()> {
    writable("--out", out)?;
    if out.exists() && !overwrite {
        bail_input!("{} exists; choose another --out or give --overwrite", out.display());
    }
    Ok(())
}

/// Errors (bad input) if the value of a flag is 0, or too large for a number of things.
fn in_counts(flags: &[(&str, usize)]) -> Result<()> {
    match flags.iter().find(|(_, value)| !(1..=MOST).contains(value)) {
        Some((flag, 0)) => bail_input!("{flag} 0: must be at least 1"),
        Some((flag, value)) => bail_input!("{flag} {value}: must be at most {MOST}"),
        None => Ok(()),
    }
}

/// Errors (bad input) if `--top-p` or `--temperature` is out of its range.
fn check_sampling(top_p: f64, temperature: f64) -> Result<()> {
    if !(top_p > 0.0 && top_p <= 1.0) {
        bail_input!("--top-p {top_p}: must be above 0 and at most 1");
    }
    if !(temperature >= 0.0 && temperature.is_finite()) {
        bail_input!("--temperature {temperature}: must be a finite number, 0 or more");
    }
    Ok(())
}

impl Loaded {
    /// `cpu`, `cuda:0`.
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

    /// Errors (bad input) if these passes over the model take more memory than there is. `advice`
    /// says what takes less. Call it before the weights are read.
    pub fn check_memory(&self, passes: &Passes, advice: &str) -> Result<()> {
        self.estimate(passes).check(&self.device, &self.advice(advice))
    }

    /// What these passes over the model will take on its device.
    pub fn estimate(&self, passes: &Passes) -> Estimate {
        let layers = Kernels::on(&self.device);
        memory::estimate(&self.model, layers, self.weights_dtype, passes)
    }

    /// What takes less memory: `advice`, and before it a narrower dtype for the weights, where the
    /// checkpoint stores them so.
    pub fn advice(&self, advice: &str) -> String {
        match self.stored() {
            dtype if dtype != WeightsDtype::F32 && self.weights_dtype == WeightsDtype::F32 => {
                format!(
                    "give --weights-dtype {dtype} (the checkpoint stores its matrices so, and \
                     results stay the same), {advice}"
                )
            }
            _ => advice.to_owned(),
        }
    }

    /// The dtype in which the checkpoint stores every matrix; f32 where it stores them in several.
    pub fn stored(&self) -> WeightsDtype {
        let narrow = [WeightsDtype::Bf16, WeightsDtype::F16].into_iter();
        let mut stored =
            narrow.filter(|dtype| self.checkpoint().stores(&self.model, *dtype).is_ok());
        stored.next().unwrap_or(WeightsDtype::F32)
    }

    /// The same of passes that are differentiated, and whether they compute blocks again.
    pub fn check_graphs(&self, recompute: Recompute, passes: Passes, advice: &str) -> Result<bool> {
        let of = |recompute| Passes { recompute, ..passes };
        let estimate = |recompute| self.estimate(&of(recompute));
        let decided = recompute.decide(&self.device, estimate)?.recompute;
        self.check_memory(&of(decided), advice)?;
        Ok(decided)
    }

    /// Reads the weights. Products are made in f32 until a precision is set.
    pub fn weights(&self) -> Result<Weights> {
        self.checkpoint().load(&self.model, &self.device, self.weights_dtype)
    }

    /// The token that begins a text. Errors (bad input) if the vocabulary has none.
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

    /// The token that lm-eval puts before a text that it measures: the tokenizer's `bos_token`, or
    /// else its `eos_token`. Errors (bad input) if it has neither.
    pub fn prefix(&self) -> Result<Prefix> {
        let names = ["bos_token", "eos_token"];
        let Some(text) = names.iter().find_map(|name| self.encoder.special(name)) else {
            bail_input!(
                "{}: lm-eval puts the tokenizer's bos_token or eos_token before a text, and it \
                 names neither",
                self.checkpoint().dir.join("tokenizer_config.json").display()
            );
        };
        let Some(id) = self.encoder.id_of(text) else {
            bail_input!(
                "{}: {text:?}, which lm-eval puts before a text, is no token of the model",
                self.checkpoint().dir.display()
            );
        };
        Prefix::new(id, &self.encoder)
    }

    /// The tokens that end a text, as transformers reads them; none if the model has none.
    pub fn ends(&self) -> Ends {
        let usable = |ids: &Value| -> Vec<u32> {
            let ids = ids.as_array().map_or(std::slice::from_ref(ids), Vec::as_slice);
            ids.iter().filter_map(|id| self.usable(id.as_u64()?)).collect()
        };
        let configs = [&self.generation, &self.checkpoint().config];
        let found = configs
            .into_iter()
            .map(|config| usable(&config["eos_token_id"]))
            .find(|ids| !ids.is_empty());
        found.unwrap_or_else(|| self.encoder.id_of("<|endoftext|>").into_iter().collect()).into()
    }

    /// The most tokens of a prompt that leave room for so many new ones. Errors (bad input) if none
    /// would be left.
    pub fn room_for_prompts(&self, new_tokens: usize) -> Result<usize> {
        let context = self.model.sizes().context;
        match context.checked_sub(new_tokens).filter(|room| *room > 0) {
            Some(room) => Ok(room),
            None => bail_input!(
                "--max-new-tokens {new_tokens}: {} has {context} positions, which leaves no room \
                 for a prompt; give at most {}",
                self.checkpoint().name,
                context.saturating_sub(1)
            ),
        }
    }

    /// A token id of `config.json`, if it is in the vocabulary. Some small models keep GPT-2's
    /// 50256 by accident.
    fn usable(&self, id: u64) -> Option<u32> {
        (id < self.model.sizes().vocabulary as u64).then_some(id as u32)
    }

    /// A name for folders: the last part of the model's name or path.
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
