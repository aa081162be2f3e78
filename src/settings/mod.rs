//! What the words mean: built-in defaults < preset < `--config FILE` < `IREPAIR_*` < flags, each known by one name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::bail_input;
use crate::base::error::{Error, unknown};
use crate::model::precision::Precision;
use crate::model::precision::WeightsDtype;
use crate::slice::Granularity;
use crate::slice::select;
use crate::slice::select::{First, Normalize, Slicing};
use crate::step;
use crate::step::Recipe;
use crate::step::neurons;
use crate::step::neurons::{Mode, Share};
use crate::step::optim::{OptimizerKind, Schedule};
use crate::tokens::{Lengths, LossOn};

/// Presets compiled into the program, by name.
const PRESETS: &[(&str, &str)] = &[
    ("demo", include_str!("../../configs/demo.toml")),
    ("trial-dpo", include_str!("../../configs/trial-dpo.toml")),
    ("trial-dpo-ul", include_str!("../../configs/trial-dpo-ul.toml")),
    ("quick", include_str!("../../configs/quick.toml")),
    ("paper-gpt2-large", include_str!("../../configs/paper-gpt2-large.toml")),
    ("paper-gpt2-xl", include_str!("../../configs/paper-gpt2-xl.toml")),
    ("paper-gpt-neo-1.3b", include_str!("../../configs/paper-gpt-neo-1.3b.toml")),
];

/// Everything that can be set of a repair; what is `None` comes from the layer below.
#[derive(Debug, Clone, Default, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RepairOptions {
    /// Hub id, short name (gpt2-large), ID@REVISION, local folder, or `demo`
    #[arg(short, long, env = "IREPAIR_MODEL", visible_aliases = ["model-name-or-path", "model-id"])]
    pub model: Option<String>,
    /// Branch, tag or commit of a hub model
    #[arg(long, env = "IREPAIR_REVISION", visible_alias = "model-revision")]
    pub revision: Option<String>,
    /// Pairs: a .jsonl, .json, .jsonl.gz, .csv or .parquet file, or a folder of them
    #[arg(long, env = "IREPAIR_DATA", visible_aliases = ["dataset", "dataset-name"])]
    pub data: Option<PathBuf>,
    /// How to repair
    #[arg(long, env = "IREPAIR_METHOD", long_help = method_help())]
    pub method: Option<String>,
    /// What a step may change, instead of --method
    #[arg(long, env = "IREPAIR_SELECT", value_name = "SELECTOR", long_help = select_help())]
    pub select: Option<String>,
    /// What it is changed for, instead of --method
    #[arg(long, env = "IREPAIR_OBJECTIVE", long_help = objective_help())]
    pub objective: Option<String>,
    /// What selectors rank [default: block]
    #[arg(long, env = "IREPAIR_SLICE", value_enum)]
    pub slice: Option<Granularity>,
    /// Blocks (or sublayers) a step changes [default: 1]
    #[arg(long, env = "IREPAIR_TOP_K", value_name = "K")]
    pub top_k: Option<usize>,
    /// Only these blocks are ranked, 0-based: 2,3,4 [default: all]
    #[arg(long, env = "IREPAIR_BLOCKS", value_delimiter = ',', value_name = "B,…")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<Vec<usize>>,
    /// What sensitivities are divided by before they are ranked [default: none]
    #[arg(long, env = "IREPAIR_NORMALIZE", value_enum)]
    pub normalize: Option<Normalize>,
    /// β of DPO and its like [default: 0.1; dpo-norm 5; ipo 0.5]
    #[arg(long, env = "IREPAIR_BETA", value_parser = finite)]
    pub beta: Option<f64>,
    /// Pairs, drawn by the seed, that `fixed` and `--normalize start` look at before the first step [default: 2000, or all
    /// there are]
    #[arg(long, env = "IREPAIR_FIXED_SAMPLE", value_name = "N")]
    pub fixed_sample: Option<usize>,
    /// Steps on each block that `trial` makes before the first step [default: 10]
    #[arg(long, env = "IREPAIR_TRIAL_STEPS", value_name = "N")]
    pub trial_steps: Option<usize>,
    /// What star and sgd optimize for at a time: all targets, or one failing token [default: batch]
    #[arg(long, env = "IREPAIR_MODE", value_enum)]
    pub mode: Option<Mode>,
    /// Blocks that star and sgd change: all, one, or a fraction (1/4), those whose MLP, when skipped, raises the loss most
    /// [default: all]
    #[arg(long, env = "IREPAIR_BLOCK_SPARSITY", value_name = "SHARE")]
    pub block_sparsity: Option<Share>,
    /// Neurons of each block that star and sgd change: all, one, or a fraction (1/16), those of the highest attribution
    /// [default: all]
    #[arg(long, env = "IREPAIR_NEURONS", value_name = "SHARE")]
    pub neurons: Option<Share>,
    /// Passes of star, mint and sgd over the rows that still fail [default: 10]
    #[arg(long, env = "IREPAIR_ROUNDS", value_name = "N")]
    pub rounds: Option<usize>,
    /// Normal texts for the KL term; without it the model writes its own
    #[arg(long, env = "IREPAIR_NORMAL", value_name = "FILE")]
    pub normal: Option<PathBuf>,
    /// How many normal texts the model writes [default: 512]
    #[arg(long, env = "IREPAIR_NORMAL_TEXTS", value_name = "N")]
    pub normal_texts: Option<usize>,
    /// Weight α of the chosen responses' NLL [default: 0.5; 1 for dapt]
    #[arg(long, env = "IREPAIR_NLL_WEIGHT", value_parser = finite)]
    pub nll_weight: Option<f64>,
    /// Weight of the KL term [default: 1 where the method has one; trial-dpo+kl 2, trial-dpo-ul+kl 10]
    #[arg(long, env = "IREPAIR_KL_WEIGHT", value_parser = finite)]
    pub kl_weight: Option<f64>,
    /// Tokens that count in the NLL [default: response]
    #[arg(long, env = "IREPAIR_LOSS_ON", value_enum)]
    pub loss_on: Option<LossOn>,
    /// [default: rmsprop]
    #[arg(long, env = "IREPAIR_OPTIMIZER", value_enum)]
    pub optimizer: Option<OptimizerKind>,
    /// [default: 0.0003; star and sgd 0.01]
    #[arg(long, env = "IREPAIR_LEARNING_RATE", visible_alias = "lr", value_parser = finite)]
    pub learning_rate: Option<f64>,
    /// Pairs (and normal texts) a step [default: 4]
    #[arg(short, long, env = "IREPAIR_BATCH_SIZE", visible_alias = "per-device-train-batch-size")]
    pub batch_size: Option<usize>,
    /// Batches that a step works on as one: more pairs a step in the same memory; only sensitivities are not those of
    /// one large batch, but the mean of the batches', weighted by their tokens [default: 1]
    #[arg(long, env = "IREPAIR_GRADIENT_ACCUMULATION_STEPS", value_name = "N")]
    pub gradient_accumulation_steps: Option<usize>,
    /// [default: 2000; star and sgd 10, of each optimization]
    #[arg(long, env = "IREPAIR_MAX_STEPS")]
    pub max_steps: Option<usize>,
    /// [default: 150, or a tenth of --max-steps if that is less]
    #[arg(long, env = "IREPAIR_WARMUP_STEPS")]
    pub warmup_steps: Option<usize>,
    /// Learning rate after the warm-up [default: linear]
    #[arg(long, env = "IREPAIR_SCHEDULE", value_enum)]
    pub schedule: Option<Schedule>,
    /// Clip the gradient at this norm; 0 = off [default: 10]
    #[arg(long, env = "IREPAIR_MAX_GRAD_NORM", value_parser = finite)]
    pub max_grad_norm: Option<f64>,
    /// Tokens of prompt and response together, and of normal texts [default: 128, or the model's context if that is less]
    #[arg(long, env = "IREPAIR_MAX_LENGTH")]
    pub max_length: Option<usize>,
    /// Tokens of the prompt; the first ones are kept [default: 64, or 3/4 of --max-length if that is less]
    #[arg(long, env = "IREPAIR_MAX_PROMPT_LENGTH")]
    pub max_prompt_length: Option<usize>,
    /// Held-back pairs [default: 64, or a quarter of the rows if that is less]
    #[arg(long, env = "IREPAIR_VALID_SIZE")]
    pub valid_size: Option<usize>,
    /// Validate every so many steps; 0 = off [default: 25]
    #[arg(long, env = "IREPAIR_EVAL_STEPS")]
    pub eval_steps: Option<usize>,
    /// Stop after so many validations without improvement; 0 = off [default: 30]
    #[arg(long, env = "IREPAIR_PATIENCE")]
    pub patience: Option<usize>,
    /// Stop, and go back to the best weights within it, when perplexity is so many percent above the base's at a
    /// validation; exit code 4
    #[arg(long, env = "IREPAIR_MAX_PPL_INCREASE", value_name = "PERCENT", value_parser = finite)]
    pub max_ppl_increase: Option<f64>,
    /// Save the state for --resume every so many steps [default: 100]
    #[arg(long, env = "IREPAIR_SAVE_STEPS")]
    pub save_steps: Option<usize>,
    /// Also keep the changed tensors as they are every so many steps, in OUT/irepair/checkpoints (in f32, so as much as the
    /// slices each time); 0 = off [default: 0; compare: a quarter of the steps]
    #[arg(long, env = "IREPAIR_CHECKPOINT_STEPS", value_name = "N")]
    pub checkpoint_steps: Option<usize>,
    /// [default: 42]
    #[arg(long, env = "IREPAIR_SEED")]
    pub seed: Option<u64>,
    /// Use only the first N pairs
    #[arg(short = 'L', long, env = "IREPAIR_LIMIT", value_name = "N")]
    pub limit: Option<usize>,
    /// auto, cpu, cuda, cuda:N or metal [default: auto]
    #[arg(long, env = "IREPAIR_DEVICE")]
    pub device: Option<String>,
    /// Of the operands of large products while training; sums and all else are f32 [default: f32]
    #[arg(long, env = "IREPAIR_DTYPE", value_enum, visible_alias = "torch-dtype")]
    pub dtype: Option<Precision>,
    /// What matrices of weights are kept in while they are not trained: bf16 or f16 halves the memory of those that the
    /// checkpoint stores so, and changes no result [default: f32]
    #[arg(long, env = "IREPAIR_WEIGHTS_DTYPE", value_enum)]
    pub weights_dtype: Option<WeightsDtype>,
    /// Also write the curves for TensorBoard, in OUT/irepair/tensorboard [default: none]
    #[arg(long, env = "IREPAIR_REPORT_TO", value_enum)]
    pub report_to: Option<ReportTo>,
    /// Prompts whose continuations are scored before and after [default: the held-back pairs' prompts]
    #[arg(long, env = "IREPAIR_EVAL_PROMPTS", value_name = "FILE")]
    pub eval_prompts: Option<PathBuf>,
    /// What scores continuations and normal text [default: words]
    #[arg(long, env = "IREPAIR_SCORER", long_help = crate::cli::scorer_help())]
    pub scorer: Option<String>,
    /// The toxic label of a classifier [default: found by its name]
    #[arg(long, value_name = "LABEL")]
    pub toxic_label: Option<String>,
    /// Text whose perplexity is measured before and after
    #[arg(long, env = "IREPAIR_EVAL_TEXT", value_name = "FILE")]
    pub eval_text: Option<PathBuf>,
    /// Names of keys in the rows: prompt=question,chosen=good,…
    #[arg(long, value_delimiter = ',', value_name = "OURS=THEIRS")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub map: Vec<String>,
}

/// Where the curves of a run go beside `steps.jsonl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ReportTo {
    None,
    Tensorboard,
}

/// A number, 0 or more: NaN and infinity are no settings (and JSON has no words for them).
fn finite(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err("expected a finite number, 0 or more".into()),
    }
}

fn method_help() -> String {
    let lines: Vec<String> = step::METHODS
        .iter()
        .map(|m| format!("{:<17} {} × {}: {}", m.name, m.select, m.objective, m.about))
        .collect();
    let neurons: Vec<String> =
        neurons::METHODS.iter().map(|m| format!("{:<17} {}", m.name, m.about)).collect();
    format!(
        "How to repair (selector × objective) [default: irepair+kl]; any other pair with --select, --objective and \
         --kl-weight\n\n{}\n\nOf a few neurons (rows with a prompt and a target):\n\n{}",
        lines.join("\n"),
        neurons.join("\n")
    )
}

fn select_help() -> String {
    let lines: Vec<String> =
        select::SELECTORS.iter().map(|s| format!("{:<16} {}", s.name, s.about)).collect();
    format!("What a step may change, instead of --method [default: max]\n\n{}", lines.join("\n"))
}

fn objective_help() -> String {
    let lines: Vec<String> =
        step::objective::OBJECTIVES.iter().map(|o| format!("{:<13} {}", o.name, o.about)).collect();
    format!("What it is changed for, instead of --method [default: nll]\n\n{}", lines.join("\n"))
}

/// A repair's settings, all decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RepairSettings {
    pub model: String,
    pub revision: Option<String>,
    /// `None`: the demo's pairs.
    pub data: Option<PathBuf>,
    /// A name, or `SELECTOR-OBJECTIVE` where the parts were given.
    pub method: String,
    pub select: Option<String>,
    pub objective: Option<String>,
    pub slice: Option<Granularity>,
    pub top_k: Option<usize>,
    pub blocks: Option<Vec<usize>>,
    pub normalize: Option<Normalize>,
    pub beta: Option<f64>,
    pub fixed_sample: Option<usize>,
    pub trial_steps: usize,
    pub mode: Option<Mode>,
    pub block_sparsity: Option<Share>,
    pub neurons: Option<Share>,
    pub rounds: Option<usize>,
    pub normal: Option<PathBuf>,
    pub normal_texts: usize,
    pub nll_weight: Option<f64>,
    pub kl_weight: Option<f64>,
    pub loss_on: LossOn,
    pub optimizer: OptimizerKind,
    pub learning_rate: f64,
    pub batch_size: usize,
    pub gradient_accumulation_steps: usize,
    pub max_steps: usize,
    pub warmup_steps: Option<usize>,
    pub schedule: Schedule,
    pub max_grad_norm: f64,
    pub max_length: Option<usize>,
    pub max_prompt_length: Option<usize>,
    pub valid_size: Option<usize>,
    pub eval_steps: usize,
    pub patience: usize,
    pub max_ppl_increase: Option<f64>,
    pub save_steps: usize,
    #[serde(default)]
    pub checkpoint_steps: usize,
    pub seed: u64,
    pub limit: Option<usize>,
    pub device: String,
    pub dtype: Precision,
    #[serde(default)]
    pub weights_dtype: WeightsDtype,
    pub report_to: ReportTo,
    pub eval_prompts: Option<PathBuf>,
    pub eval_text: Option<PathBuf>,
    pub scorer: String,
    pub toxic_label: Option<String>,
    #[serde(default)]
    pub map: Vec<String>,
}

impl Default for RepairSettings {
    fn default() -> Self {
        Self {
            model: "demo".into(),
            revision: None,
            data: None,
            method: String::new(),
            select: None,
            objective: None,
            slice: None,
            top_k: None,
            blocks: None,
            normalize: None,
            beta: None,
            fixed_sample: None,
            trial_steps: 10,
            mode: None,
            block_sparsity: None,
            neurons: None,
            rounds: None,
            normal: None,
            normal_texts: 512,
            nll_weight: None,
            kl_weight: None,
            loss_on: LossOn::Response,
            optimizer: OptimizerKind::Rmsprop,
            learning_rate: 3e-4,
            batch_size: 4,
            gradient_accumulation_steps: 1,
            max_steps: 2000,
            warmup_steps: None,
            schedule: Schedule::Linear,
            max_grad_norm: 10.0,
            max_length: None,
            max_prompt_length: None,
            valid_size: None,
            eval_steps: 25,
            patience: 30,
            max_ppl_increase: None,
            save_steps: 100,
            checkpoint_steps: 0,
            seed: 42,
            limit: None,
            device: "auto".into(),
            dtype: Precision::F32,
            weights_dtype: WeightsDtype::F32,
            report_to: ReportTo::None,
            eval_prompts: None,
            eval_text: None,
            scorer: crate::scorers::DEFAULT.into(),
            toxic_label: None,
            map: Vec::new(),
        }
    }
}

impl RepairSettings {
    /// Lays the layers over each other and checks the result.
    pub fn resolve(file: Option<&Path>, flags: &RepairOptions) -> Result<Self> {
        Self::resolve_layers(read_layer(file)?, layer(flags)?)
    }

    /// As [`resolve`](Self::resolve), from a file's layer (and its name) and the flags'.
    pub fn resolve_layers(
        (file_name, mut file_layer): (String, Layer),
        flags_value: Layer,
    ) -> Result<Self> {
        let mut layers = Vec::new();
        // A method is one thing with two ways to say it, and flags lie over the file.
        let parts = ["select", "objective"];
        if flags_value.contains_key("method") {
            file_layer.retain(|key, _| !parts.contains(&key.as_str()));
        } else if parts.iter().any(|part| flags_value.contains_key(*part)) {
            file_layer.remove("method");
        }
        let given = |key: &str| flags_value.get(key).or(file_layer.get(key));
        let on_demo = given("model").is_none_or(|m| m == "demo");
        if let Some(method) = given("method").and_then(Value::as_str).and_then(neurons::named) {
            refuse_others(method, flags_value.keys().chain(file_layer.keys()))?;
            let recipe = neurons::Recipe::default();
            layers.push(layer(&RepairOptions {
                learning_rate: Some(recipe.learning_rate),
                max_steps: Some(recipe.steps),
                ..RepairOptions::default()
            })?);
        } else if on_demo {
            layers.push(parse_toml::<RepairOptions>("preset demo", PRESETS[0].1)?);
        }
        // A preset's are left unused by a flag's method; a flag's own would be silently so.
        let tries = flags_value.contains_key("trial-steps");
        layers.push(file_layer);
        layers.push(flags_value);
        let mut settings: Self = overlay(&Self::default(), layers)
            .map_err(|e| Error::Input(format!("{file_name}: {e}")))?;
        if settings.data.is_none() && settings.model != "demo" {
            bail_input!(
                "--data is missing: give a file of pairs to repair {} with",
                settings.model
            );
        }
        settings.name_method()?;
        settings.check()?;
        if tries && select::named(&settings.recipe()?.select)?.first != First::Trials {
            let why = format!(
                "--method {} makes no trials, so --trial-steps contradicts it",
                settings.method
            );
            return Err(Error::Usage(why).into());
        }
        Ok(settings)
    }

    /// A method has one name: the given one, the default, or that of its parts.
    fn name_method(&mut self) -> Result<()> {
        if self.select.is_none() && self.objective.is_none() {
            if self.method.is_empty() {
                self.method = "irepair+kl".into();
            }
            return Ok(());
        }
        if !self.method.is_empty() {
            return Err(Error::Usage(format!(
                "--method {} is a selector and an objective already; give either --method or --select and --objective",
                self.method
            ))
            .into());
        }
        let (select, objective) =
            (self.select.as_deref().unwrap_or("max"), self.objective.as_deref().unwrap_or("nll"));
        let kl = if self.kl_weight.is_some_and(|w| w != 0.0) { "+kl" } else { "" };
        self.method = format!("{select}-{objective}{kl}");
        Ok(())
    }

    /// The neuron-level method, if it is one.
    pub fn neuron_method(&self) -> Option<&'static neurons::Entry> {
        neurons::named(&self.method)
    }

    /// The numbers of a neuron-level repair.
    pub fn neuron_recipe(&self) -> neurons::Recipe {
        let default = neurons::Recipe::default();
        neurons::Recipe {
            mode: self.mode.unwrap_or(default.mode),
            blocks: self.block_sparsity.unwrap_or(default.blocks),
            neurons: self.neurons.unwrap_or(default.neurons),
            steps: self.max_steps,
            learning_rate: self.learning_rate,
            rounds: self.rounds.unwrap_or(default.rounds),
        }
    }

    /// What the method is made of.
    pub fn recipe(&self) -> Result<Recipe> {
        let mut recipe = if self.select.is_some() || self.objective.is_some() {
            let select = self.select.clone().unwrap_or("max".into());
            let objective = self.objective.clone().unwrap_or("nll".into());
            let with_kl = self.kl_weight.is_some_and(|w| w != 0.0);
            Recipe {
                weight: step::default_weight(&select, &objective, with_kl),
                select,
                objective,
                kl_weight: 0.0,
                beta: None,
                slicing: Slicing::default(),
            }
        } else {
            step::named(&self.method)?.recipe()
        };
        recipe.weight = self.nll_weight.unwrap_or(recipe.weight);
        recipe.kl_weight = self.kl_weight.unwrap_or(recipe.kl_weight);
        recipe.beta = self.beta.or(recipe.beta);
        recipe.slicing = Slicing {
            granularity: self.slice.unwrap_or(recipe.slicing.granularity),
            top_k: self.top_k.unwrap_or(recipe.slicing.top_k),
            normalize: self.normalize.unwrap_or(recipe.slicing.normalize),
            blocks: self.blocks.clone().unwrap_or(recipe.slicing.blocks),
        };
        Ok(recipe)
    }

    /// What settings that were not given came to, by their names in the record, and `objective-weight`, which is none's;
    /// `lengths` and `held_back`: as the model and the rows allowed.
    pub fn resolved(&self, lengths: Lengths, held_back: usize) -> Result<BTreeMap<String, Value>> {
        let mut found = Map::new();
        let mut add = |name: &str, value: Value| drop(found.insert(name.to_owned(), value));
        if self.neuron_method().is_some() {
            let recipe = self.neuron_recipe();
            add("mode", json!(recipe.mode));
            add("block-sparsity", json!(recipe.blocks));
            add("neurons", json!(recipe.neurons));
            add("rounds", json!(recipe.rounds));
        } else {
            let recipe = self.recipe()?;
            let objective = step::objective::named(&recipe.objective)?;
            add("select", json!(recipe.select));
            add("objective", json!(recipe.objective));
            add(
                if objective.alpha { "nll-weight" } else { "objective-weight" },
                json!(recipe.weight),
            );
            add("kl-weight", json!(recipe.kl_weight));
            if let Some(beta) = recipe.beta.or(objective.beta) {
                add("beta", json!(beta));
            }
            if select::named(&recipe.select)?.ranks {
                add("slice", json!(recipe.slicing.granularity));
                add("top-k", json!(recipe.slicing.top_k));
                add("normalize", json!(recipe.slicing.normalize));
            }
            add("warmup-steps", json!(self.warmup()));
            add("valid-size", json!(held_back));
        }
        add("max-length", json!(lengths.total));
        add("max-prompt-length", json!(lengths.prompt));
        let given = serde_json::to_value(self).context("settings")?;
        Ok(found
            .into_iter()
            .filter(|(name, _)| given.get(name).is_none_or(Value::is_null))
            .collect())
    }

    fn check(&self) -> Result<()> {
        self.check_numbers()?;
        if self.neuron_method().is_some() {
            return Ok(());
        }
        let recipe = self.recipe()?;
        step::Method::new(&recipe)?;
        if recipe.weight == 0.0 && recipe.kl_weight == 0.0 {
            bail_input!(
                "every term of the loss has weight 0: there is nothing to change the model for"
            );
        }
        let by_parts = self.select.is_some() || self.objective.is_some();
        let contradicts = |flag: &str, why: &str| -> Result<()> {
            Err(Error::Usage(format!(
                "--method {} has {why}, so {flag} contradicts it",
                self.method
            ))
            .into())
        };
        if !by_parts
            && self.kl_weight.is_some_and(|w| w != 0.0)
            && step::named(&self.method)?.kl_weight == 0.0
        {
            return contradicts("--kl-weight", &format!("no KL term ({}+kl has)", self.method));
        }
        if !by_parts && step::named(&self.method)?.kl_weight != 0.0 && self.kl_weight == Some(0.0) {
            return contradicts("--kl-weight 0", "a KL term in its name and nature");
        }
        let of_neurons = [
            ("--mode", self.mode.is_some()),
            ("--block-sparsity", self.block_sparsity.is_some()),
            ("--neurons", self.neurons.is_some()),
            ("--rounds", self.rounds.is_some()),
        ];
        if let Some((flag, _)) = of_neurons.iter().find(|(_, given)| *given) {
            return contradicts(flag, "whole blocks to change, no neurons of a wrong answer");
        }
        let objective = step::objective::named(&recipe.objective)?;
        if objective.beta.is_none() && self.beta.is_some() {
            return contradicts("--beta", "no β in it");
        }
        if !objective.alpha && self.nll_weight.is_some() {
            return contradicts("--nll-weight", "no NLL in it");
        }
        let selector = select::named(&recipe.select)?;
        let looks_first =
            selector.first == First::Look || recipe.slicing.normalize == Normalize::Start;
        if !looks_first && self.fixed_sample.is_some() {
            return contradicts("--fixed-sample", "no look at a sample");
        }
        let ranks = selector.ranks;
        let slicing = [
            ("--slice", self.slice.is_some()),
            ("--top-k", self.top_k.is_some()),
            ("--blocks", self.blocks.is_some()),
            ("--normalize", self.normalize.is_some()),
        ];
        if let Some((flag, _)) = slicing.iter().find(|(_, given)| *given && !ranks) {
            return contradicts(flag, "no ranking of blocks");
        }
        if selector.first == First::Look && self.normalize == Some(Normalize::Start) {
            return contradicts(
                "--normalize start",
                "a block chosen at the start: all are equal there",
            );
        }
        if selector.first == First::Look && self.normalize == Some(Normalize::Running) {
            return contradicts(
                "--normalize running",
                "a block chosen at the start: there are no steps before",
            );
        }
        if selector.first == First::Trials && self.normalize.is_some() {
            return contradicts("--normalize", "trials, which rank by loss");
        }
        if self.max_ppl_increase.is_some() && self.eval_steps == 0 {
            return Err(Error::Usage(
                "--max-ppl-increase is checked at validations; --eval-steps 0 has none".into(),
            )
            .into());
        }
        if self.max_ppl_increase.is_some() && self.valid_size == Some(0) {
            let why = "--max-ppl-increase is checked at validations; --valid-size 0 leaves no pairs for them";
            return Err(Error::Usage(why.into()).into());
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<()> {
        let positive = [
            ("--batch-size", self.batch_size),
            ("--trial-steps", self.trial_steps),
            ("--rounds", self.rounds.unwrap_or(1)),
            ("--gradient-accumulation-steps", self.gradient_accumulation_steps),
            ("--top-k", self.top_k.unwrap_or(1)),
            ("--max-length", self.max_length.unwrap_or(1)),
            ("--max-prompt-length", self.max_prompt_length.unwrap_or(1)),
            ("--save-steps", self.save_steps),
            ("--max-steps", self.max_steps),
            ("--fixed-sample", self.fixed_sample.unwrap_or(1)),
        ];
        if let Some((flag, _)) = positive.iter().find(|(_, v)| *v == 0) {
            bail_input!("{flag} 0: must be at least 1");
        }
        let numbers = [
            ("--learning-rate", self.learning_rate),
            ("--nll-weight", self.nll_weight.unwrap_or(0.5)),
            ("--beta", self.beta.unwrap_or(1.0)),
            ("--max-grad-norm", self.max_grad_norm),
            ("--kl-weight", self.kl_weight.unwrap_or(1.0)),
        ];
        if let Some((flag, value)) = numbers.iter().find(|(_, v)| !v.is_finite() || *v < 0.0) {
            bail_input!("{flag} {value}: must be a finite number, 0 or more");
        }
        Ok(())
    }

    /// Pairs, of so many, that a selector looks at before the first step if it does.
    pub fn looked_at(&self, pairs: usize) -> usize {
        self.fixed_sample.unwrap_or(2000).min(pairs)
    }

    pub fn warmup(&self) -> usize {
        self.warmup_steps.unwrap_or(150.min(self.max_steps / 10))
    }
}

/// Settings by their names in kebab case.
pub type Layer = Map<String, Value>;

/// The layer of a file of settings or a preset, and a name for errors; empty without a file.
pub fn read_layer(file: Option<&Path>) -> Result<(String, Layer)> {
    file.map_or_else(|| Ok((String::new(), Layer::new())), read_file::<RepairOptions>)
}

/// Errors (usage) on a setting that a neuron-level method has no use for.
fn refuse_others<'a>(
    method: &neurons::Entry,
    mut keys: impl Iterator<Item = &'a String>,
) -> Result<()> {
    #[rustfmt::skip]
    const ALL: [&str; 13] = [
        "model", "revision", "data", "method", "rounds", "limit", "device", "dtype", "weights-dtype", "eval-text", "map", "seed",
        "save-steps",
    ];
    const DESCENT: [&str; 5] = ["mode", "block-sparsity", "neurons", "max-steps", "learning-rate"];
    let known = |key: &str| ALL.contains(&key) || (method.descends && DESCENT.contains(&key));
    if let Some(key) = keys.find(|key| !known(key)) {
        return Err(Error::Usage(format!(
            "--method {} changes neurons and has no use for such a setting, so --{key} contradicts it",
            method.name
        ))
        .into());
    }
    Ok(())
}

/// A layer of options as a map without what is not set.
pub fn layer<T: Serialize>(options: &T) -> Result<Layer> {
    match serde_json::to_value(options)? {
        Value::Object(map) => Ok(map.into_iter().filter(|(_, v)| !v.is_null()).collect()),
        _ => anyhow::bail!("options are no map"),
    }
}

fn overlay<T: Serialize + DeserializeOwned>(
    defaults: &T,
    layers: Vec<Map<String, Value>>,
) -> Result<T> {
    let mut all = match serde_json::to_value(defaults)? {
        Value::Object(map) => map,
        _ => anyhow::bail!("settings are no map"),
    };
    for layer in layers {
        all.extend(layer);
    }
    Ok(serde_json::from_value(Value::Object(all))?)
}

fn read_file<T: Serialize + DeserializeOwned + Default>(
    path: &Path,
) -> Result<(String, Map<String, Value>)> {
    let name = path.display().to_string();
    if !path.exists()
        && let Some((_, text)) = PRESETS.iter().find(|(preset, _)| Path::new(preset) == path)
    {
        return Ok((format!("preset {name}"), parse_toml::<T>(&format!("preset {name}"), text)?));
    }
    let text = std::fs::read_to_string(path).map_err(|e| {
        let presets: Vec<&str> = PRESETS.iter().map(|(preset, _)| *preset).collect();
        Error::Input(format!("--config {name}: {e}; {}", unknown("preset", &name, &presets)))
    })?;
    let layer = parse_toml::<T>(&name, &text)?;
    Ok((name, layer))
}

/// Names of all settings, in kebab case.
pub fn known_keys<T: Serialize + Default>() -> Result<Vec<String>> {
    Ok(match serde_json::to_value(T::default())? {
        // Left out where they are empty.
        Value::Object(map) => {
            map.keys().cloned().chain(["map", "blocks"].map(str::to_owned)).collect()
        }
        _ => Vec::new(),
    })
}

/// A TOML file with a table of settings for each of several repairs, by their names.
pub fn read_tables(path: &Path) -> Result<BTreeMap<String, Layer>> {
    let name = path.display().to_string();
    let text =
        std::fs::read_to_string(path).map_err(|e| Error::Input(format!("--runs {name}: {e}")))?;
    let all: toml::Table = toml::from_str(&text).map_err(|e| {
        let line =
            text[..e.span().map_or(0, |s| s.start).min(text.len())].matches('\n').count() + 1;
        Error::Input(format!("{name}:{line}: {}", e.message()))
    })?;
    let mut tables = BTreeMap::new();
    for (key, value) in all {
        let line = text
            .lines()
            .position(|l| l.trim_start_matches(['[', '"', ' ']).starts_with(&key))
            .map_or(1, |l| l + 1);
        if !key.chars().all(|c| c.is_ascii_alphanumeric() || "+-_.".contains(c))
            || key.starts_with('.')
        {
            bail_input!(
                "{name}:{line}: {key:?} names a folder, too: letters, digits, + - _ and . only"
            );
        }
        let toml::Value::Table(table) = value else {
            bail_input!(
                "{name}:{line}: {key} is no table; settings belong under a row's name: [{key}]"
            );
        };
        let of_key = |wanted: &str| {
            let own = text
                .lines()
                .enumerate()
                .skip(line)
                .take_while(|(_, l)| !l.trim_start().starts_with('['));
            line_of_key(own, wanted).unwrap_or(line)
        };
        let layer = layer_of::<RepairOptions>(table, |wanted| {
            format!("{name}:{}: [{key}]", of_key(wanted))
        })?;
        tables.insert(key, layer);
    }
    if tables.is_empty() {
        bail_input!("{name}: no tables; give the settings of each row under its name: [name]");
    }
    Ok(tables)
}

/// A TOML file as a layer. Keys in kebab or snake case; an unknown one is an error with its line and a suggestion.
fn parse_toml<T: Serialize + DeserializeOwned + Default>(
    name: &str,
    text: &str,
) -> Result<Map<String, Value>> {
    let line_of = |byte: usize| text[..byte.min(text.len())].matches('\n').count() + 1;
    let table: toml::Table = toml::from_str(text).map_err(|e| {
        Error::Input(format!(
            "{name}:{}: {}",
            line_of(e.span().map_or(0, |s| s.start)),
            e.message()
        ))
    })?;
    layer_of::<T>(table, |key| {
        format!("{name}:{}", line_of_key(text.lines().enumerate(), key).unwrap_or(1))
    })
}

/// The line, counted from 1, that sets this key.
fn line_of_key<'a>(mut lines: impl Iterator<Item = (usize, &'a str)>, key: &str) -> Option<usize> {
    lines
        .find(|(_, line)| {
            line.split('=').next().is_some_and(|k| k.trim().trim_matches(['"', '\'']) == key)
        })
        .map(|(at, _)| at + 1)
}

/// Settings as a layer; `place` says where a key stands.
fn layer_of<T: Serialize + DeserializeOwned + Default>(
    table: toml::Table,
    place: impl Fn(&str) -> String,
) -> Result<Layer> {
    let known = known_keys::<T>()?;
    let mut layer = Map::new();
    for (key, value) in table {
        let kebab = key.replace('_', "-");
        if !known.contains(&kebab) {
            let known: Vec<&str> = known.iter().map(String::as_str).collect();
            bail_input!("{}: {}", place(&key), unknown("key", &key, &known));
        }
        if value.as_float().is_some_and(|x| !x.is_finite()) {
            bail_input!("{}: {key} is {value}, expected a finite number", place(&key));
        }
        let value = serde_json::to_value(&value)?;
        // One key at a time, so that a value of the wrong type is named with its line.
        let alone: Map<String, Value> = [(kebab.clone(), value.clone())].into_iter().collect();
        serde_json::from_value::<T>(Value::Object(alone))
            .map_err(|e| Error::Input(format!("{}: {key}: {e}", place(&key))))?;
        if let Some(name) = value.as_str() {
            check_name(&kebab, name).map_err(|e| Error::Input(format!("{}: {e}", place(&key))))?;
        }
        if layer.insert(kebab, value).is_some() {
            bail_input!("{}: {key} is given twice, with - and with _", place(&key));
        }
    }
    Ok(layer)
}

/// Errors if the setting names a method or a part of one, and there is none of that name.
fn check_name(key: &str, name: &str) -> Result<()> {
    match key {
        "method" if neurons::named(name).is_none() => step::named(name).map(drop),
        "select" => select::named(name).map(drop),
        "objective" => step::objective::named(name).map(drop),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_lie_over_the_file_and_the_file_over_the_defaults() {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("a.toml");
        std::fs::write(&file, "learning_rate = 0.5\nbatch-size = 7\n").expect("write");
        let flags = RepairOptions {
            model: Some("m".into()),
            data: Some("d".into()),
            batch_size: Some(9),
            ..RepairOptions::default()
        };
        let settings = RepairSettings::resolve(Some(&file), &flags).expect("settings");
        assert_eq!(
            (settings.learning_rate, settings.batch_size, settings.max_steps),
            (0.5, 9, 2000)
        );
    }

    #[test]
    fn an_unknown_key_is_named_with_line_and_suggestion() {
        let error = parse_toml::<RepairOptions>("x.toml", "seed = 1\nlerning-rate = 2\n")
            .expect_err("unknown");
        assert!(error.to_string().starts_with(
            "x.toml:2: unknown key \"lerning-rate\"; did you mean \"learning-rate\"?"
        ));
        let error = parse_toml::<RepairOptions>("x.toml", "seed = \"one\"\n")
            .expect_err("type")
            .to_string();
        assert!(error.starts_with("x.toml:1: seed:"), "{error}");
        for (key, name, meant) in [
            ("method", "irepiar", "irepair"),
            ("select", "maxx", "max"),
            ("objective", "dpo_ul", "dpo-ul"),
        ] {
            let text = format!("seed = 1\n{key} = \"{name}\"\n");
            let error = parse_toml::<RepairOptions>("x.toml", &text).expect_err("unknown");
            assert_eq!(crate::base::error::exit_code(&error), 3, "{error}");
            let error = error.to_string();
            assert!(
                error.starts_with("x.toml:2: unknown ")
                    && error.contains(&format!("did you mean {meant:?}")),
                "{error}"
            );
        }
        parse_toml::<RepairOptions>("x.toml", "method = \"star\"\n")
            .expect("a neuron-level method");
    }

    #[test]
    fn a_key_is_found_by_all_of_its_name_and_in_quotes() {
        let line = |text: &str| {
            let error =
                parse_toml::<RepairOptions>("x.toml", text).expect_err("unknown").to_string();
            error.split(": ").next().map(str::to_owned)
        };
        assert_eq!(line("max-steps = 5\nseed = 1\nmax-step = 6\n").as_deref(), Some("x.toml:3"));
        assert_eq!(line("seed = 1\n  \"lerning-rate\" = 2\n").as_deref(), Some("x.toml:2"));
        assert_eq!(line("max_steps = 5\nseed = true\n").as_deref(), Some("x.toml:2"));
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("runs.toml");
        std::fs::write(&file, "[a]\nseed = 1\n\n[b]\nseed = 2\nsead = 3\n").expect("write");
        let error = read_tables(&file).expect_err("unknown").to_string();
        assert!(error.contains("runs.toml:6: [b]: unknown key \"sead\""), "{error}");
    }

    #[test]
    fn contradictions_are_usage_errors() {
        let flags = RepairOptions {
            method: Some("irepair".into()),
            kl_weight: Some(1.0),
            ..RepairOptions::default()
        };
        let error = RepairSettings::resolve(None, &flags).expect_err("contradiction");
        assert_eq!(crate::base::error::exit_code(&error), 2, "{error}");
        let flags = RepairOptions { method: Some("irepiar".into()), ..RepairOptions::default() };
        let error = RepairSettings::resolve(None, &flags).expect_err("unknown").to_string();
        assert!(error.contains("did you mean \"irepair\""), "{error}");
        let flags = RepairOptions { method: Some("DAPT".into()), ..RepairOptions::default() };
        let error = RepairSettings::resolve(None, &flags).expect_err("unknown").to_string();
        assert!(error.contains("did you mean \"dapt\""), "{error}");
        // Given with a method that makes none; a preset's gives way.
        let flags = RepairOptions { trial_steps: Some(3), ..RepairOptions::default() };
        let error = RepairSettings::resolve(None, &flags).expect_err("contradiction");
        assert!(
            crate::base::error::exit_code(&error) == 2
                && error.to_string().contains("--trial-steps"),
            "{error}"
        );
        let flags = RepairOptions { method: Some("dapt".into()), ..RepairOptions::default() };
        RepairSettings::resolve(Some(Path::new("trial-dpo")), &flags)
            .expect("a preset's trial steps are left unused");
        let error = parse_toml::<RepairOptions>("x.toml", "max-steps = 5\nmax_steps = 6\n")
            .expect_err("twice");
        assert!(error.to_string().starts_with("x.toml:2: max_steps is given twice"), "{error}");
    }

    #[test]
    fn every_preset_is_read() {
        for (name, text) in PRESETS {
            parse_toml::<RepairOptions>(name, text).expect(name);
        }
    }

    #[test]
    fn every_setting_of_a_preset_has_its_reason() {
        for (name, text) in PRESETS {
            let mut above = "";
            for line in text.lines().map(str::trim) {
                let is_setting = !line.is_empty() && !line.starts_with(['#', '[']);
                assert!(
                    !is_setting || line.contains('#') || above.starts_with('#'),
                    "{name}: no reason for {line}"
                );
                above = line;
            }
        }
    }
}
