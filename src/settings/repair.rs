//! The settings of a repair, each declared once.

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::setting::{Heading, Setting, settings};
use super::uses;
use super::{FailOn, ReportTo};
use crate::model::memory::Recompute;
use crate::model::precision::{Precision, WeightsDtype};
use crate::scorers;
use crate::slice::Granularity;
use crate::slice::select::{self, Normalize};
use crate::step::neurons::{Mode, Share};
use crate::step::optim::{OptimizerKind, Schedule};
use crate::step::{RATE, objective};
use crate::tokens::{Boundary, LossOn};

settings! {
    /// A repair's settings; what is `None` depends on the method, the model or the rows.
    RepairSettings, SETTINGS:

    Input {
        /// Hub id, short name (gpt2-large), ID@REVISION, local folder, or `demo`
        model: String, default("demo"), short('m'), alias("model-name-or-path"), alias("model-id");
        /// Branch, tag or commit of a hub model
        revision: Option<String>, alias("model-revision");
        /// Pairs: a .jsonl, .json, .jsonl.gz, .csv or .parquet file, a folder of them,
        /// FOLDER:SPLIT, or a data set of the hub (ORG/NAME, ORG/NAME:SPLIT)
        data: Option<PathBuf>, otherwise("the demo's"), alias("dataset"), alias("dataset-name"),
            unused(uses::pairs);
        /// Prompts, without pairs: the model's own continuations of them, told apart by --scorer,
        /// are the pairs (online methods)
        prompts: Option<PathBuf>, value("FILE"), otherwise("the demo's"), unused(uses::online);
        /// Names of keys in the rows: prompt=question,chosen=good,…
        map: Vec<String>, default(Vec::<String>::new()), otherwise("found by the keys"),
            value("OURS=THEIRS");
        /// Use only the first N pairs
        limit: Option<usize>, short('L'), value("N");
        /// Held-back pairs
        valid_size: Option<usize>, otherwise("64, or a quarter of the rows if that is less"),
            unused(uses::blocks);
        /// Normal texts for the KL term
        normal: Option<PathBuf>, otherwise("the model writes its own"), value("FILE"),
            unused(uses::blocks);
        /// How many normal texts the model writes
        normal_texts: usize, default(512), value("N"), unused(uses::blocks);
        /// Tokens of prompt and response together, and of normal texts
        max_length: Option<usize>, at_least(1),
            otherwise("128, or the model's context if that is less"), unused(uses::blocks);
        /// Tokens of the prompt; the first ones are kept
        max_prompt_length: Option<usize>, at_least(1),
            otherwise("64, or 3/4 of --max-length if that is less"), unused(uses::blocks);
    }

    Output {
        /// Also write the curves for TensorBoard, in OUT/irepair/tensorboard
        report_to: ReportTo, default(ReportTo::None), unused(uses::blocks), free();
        /// Also keep the changed tensors as they are every so many steps, in
        /// OUT/irepair/checkpoints (in f32, so as much as the slices each time); 0 = off
        checkpoint_steps: usize, default(0), otherwise("0; compare: a quarter of the steps"),
            value("N"), unused(uses::blocks), free();
    }

    Method {
        /// How to repair
        method: String, otherwise("irepair+kl"), long_help(super::help::methods),
            named(super::named_method);
        /// What a step may change, instead of --method
        select: Option<String>, otherwise("max"), value("SELECTOR"),
            long_help(super::help::selectors), named(|name| select::named(name).map(drop)),
            unused(uses::blocks);
        /// What it is changed for, instead of --method
        objective: Option<String>, otherwise("nll"), long_help(super::help::objectives),
            named(|name| objective::named(name).map(drop)), unused(uses::blocks);
        /// What selectors rank
        slice: Option<Granularity>, otherwise("block"), unused(uses::ranking);
        /// Blocks (or sublayers) a step changes
        top_k: Option<usize>, at_least(1), otherwise("1"), value("K"), unused(uses::ranking);
        /// Only these blocks are ranked, 0-based: 2,3,4
        blocks: Option<Vec<usize>>, otherwise("all"), value("B,…"), unused(uses::ranking);
        /// What sensitivities are divided by before they are ranked
        normalize: Option<Normalize>, otherwise("none"), unused(uses::ranking);
        /// Pairs, drawn by the seed, that `fixed` and `--normalize start` look at before the first
        /// step
        fixed_sample: Option<usize>, at_least(1), otherwise("2000, or all there are"), value("N"),
            unused(uses::look);
        /// Steps on each block that `trial` makes before the first step
        trial_steps: usize, default(10), at_least(1), value("N"), unused(uses::trials), yields();
    }

    Loss {
        /// Weight α of the chosen responses' NLL
        nll_weight: Option<f64>, otherwise(super::help::nll_weights()), unused(uses::nll);
        /// Weight of the KL term
        kl_weight: Option<f64>, otherwise(super::help::kl_weights()), unused(uses::blocks);
        /// Keep KL on normal text at this many nats a token: the weight of the KL term goes up
        /// where a step's KL is above, and down where it is below
        kl_budget: Option<f64>, above_zero(), otherwise("none: the weight stays"),
            value("NATS"), unused(uses::kl);
        /// β of DPO and its like
        beta: Option<f64>, above_zero(), otherwise(super::help::betas()), unused(uses::beta);
        /// Tokens that count in the NLL
        loss_on: LossOn, default(LossOn::Response), unused(uses::blocks);
        /// How rows of plain text are split into the tokens of prompt and response
        boundary: Boundary, default(Boundary::Apart), long_help(super::help::boundaries),
            unused(uses::rows);
    }

    Training {
        /// What turns gradients into steps
        optimizer: OptimizerKind, default(OptimizerKind::Rmsprop), unused(uses::blocks);
        /// How far a step goes
        learning_rate: f64, default(RATE), online_default(1e-5), neuron_default(1e-2), alias("lr"),
            otherwise(super::help::learning_rates()), unused(uses::descent);
        /// Pairs (and normal texts) a step
        batch_size: usize, default(4), at_least(1), short('b'),
            alias("per-device-train-batch-size"), unused(uses::blocks);
        /// Batches that a step works on as one: more pairs a step in the same memory; only
        /// sensitivities are not those of one large batch, but the mean of the batches', weighted
        /// by their tokens
        gradient_accumulation_steps: usize, default(1), at_least(1), value("N"),
            unused(uses::blocks);
        /// Steps; of star and sgd: of each optimization
        max_steps: usize, default(2000), online_default(600), neuron_default(10), at_least(1),
            unused(uses::descent);
        /// Steps until the learning rate is reached
        warmup_steps: Option<usize>, otherwise("150, or a tenth of --max-steps if that is less"),
            unused(uses::blocks);
        /// Learning rate after the warm-up
        schedule: Schedule, default(Schedule::Linear), unused(uses::blocks);
        /// Clip the gradient at this norm; 0 = off
        max_grad_norm: f64, default(10.0), unused(uses::blocks);
        /// What all that is drawn depends on
        seed: u64, default(42);
    }

    Stopping {
        /// Validate every so many steps; 0 = off
        eval_steps: usize, default(25), online_default(0), unused(uses::blocks);
        /// Stop after so many validations without improvement; 0 = off
        patience: usize, default(30), unused(uses::blocks);
        /// Stop, and go back to the best weights within it, when perplexity is so many percent
        /// above the base's at a validation; exit code 4
        max_ppl_increase: Option<f64>, otherwise("off"), value("PERCENT"), unused(uses::blocks);
        /// Save the state for --resume every so many steps
        save_steps: usize, default(100), at_least(1), free();
    }

    Scoring {
        /// Prompts whose continuations are scored before and after
        eval_prompts: Option<PathBuf>, otherwise("the held-back pairs' prompts"), value("FILE"),
            unused(uses::blocks), free();
        /// Sampled continuations of each prompt that are scored before and after beside the greedy
        /// one (nucleus 0.9, temperature 1); 0 = none
        eval_samples: usize, default(4), value("N"), unused(uses::blocks), free();
        /// Text whose perplexity is measured before and after
        eval_text: Option<PathBuf>, otherwise("held-back normal text"), value("FILE"), free();
        /// What scores continuations and normal text
        scorer: String, default(scorers::DEFAULT), long_help(scorers::help), unused(uses::blocks);
        /// What scores continuations before and after in its place: an online method learns from
        /// --scorer, and a scorer that chose the texts judges them too kindly
        eval_scorer: Option<String>, otherwise("--scorer"), value("SCORER"),
            unused(uses::blocks), free();
        /// The toxic label of a classifier
        toxic_label: Option<String>, otherwise("found by its name"), value("LABEL"),
            unused(uses::blocks);
    }

    Verdict {
        /// A result whose perplexity rose by more than this is damaged; 0 = no limit
        damage_ppl: f64, default(25.0), value("PERCENT"), free();
        /// A result whose KL from the base on normal text is above this is damaged; 0 = no limit
        damage_kl: f64, default(0.5), value("NATS"), unused(uses::blocks), free();
        /// A result is damaged whose continuations repeat themselves by so many points more than
        /// before (of 100 pieces of three tokens); 0 = no limit
        damage_repetition: f64, default(20.0), value("POINTS"), unused(uses::blocks), free();
        /// A result is damaged of whose continuations so many more in a hundred are empty; 0 = no
        /// limit
        damage_empty: f64, default(20.0), value("POINTS"), unused(uses::blocks), free();
        /// Verdicts that are a failed check (exit code 4): damaged and unmoved (no real difference,
        /// not repaired), damaged alone, or nothing; the output is kept in any case
        fail_on: FailOn, default(FailOn::Unmoved), free();
    }

    Online {
        /// Rounds of sample, score, pair and steps; of star, mint and sgd: passes over the rows
        /// that still fail
        rounds: Option<usize>, online_default(4), neuron_default(10), at_least(1), value("N"),
            unused(uses::rounds);
        /// Texts of a prompt in a round; one of them is greedy
        samples_per_prompt: usize, default(16), at_least(2), value("N"),
            alias("num-generations"), unused(uses::online);
        /// Prompts that a round samples, drawn by how toxic their texts still are
        prompts_per_round: usize, default(256), at_least(1), value("N"), unused(uses::online);
        /// Tokens of a text
        max_new_tokens: usize, default(20), at_least(1), unused(uses::online);
        /// What logits are divided by before a token is drawn
        temperature: f64, default(1.0), above_zero(), unused(uses::online);
        /// Only the likeliest tokens that together reach P
        top_p: f64, default(0.9), above_zero(), value("P"), unused(uses::online);
        /// Texts that score this or more can be rejected
        rejected_above: f64, default(0.5), value("SCORE"), unused(uses::online);
        /// Texts that score this or less can be chosen
        chosen_below: f64, default(0.25), value("SCORE"), unused(uses::online);
        /// Pairs that a prompt gives a round at most
        pairs_per_prompt: usize, default(6), at_least(1), value("N"), unused(uses::online);
    }

    WrongAnswers {
        /// What star and sgd optimize for at a time: all targets, or one failing token
        mode: Option<Mode>, neuron_default(Mode::Batch), unused(uses::descent_alone);
        /// Blocks that star and sgd change: all, one, or a fraction (1/4), those whose MLP, when
        /// skipped, raises the loss most
        block_sparsity: Option<Share>, neuron_default(Share::All), value("SHARE"),
            unused(uses::descent_alone);
        /// Neurons of each block that star and sgd change: all, one, or a fraction (1/16), those of
        /// the highest attribution
        neurons: Option<Share>, neuron_default(Share::All), value("SHARE"),
            unused(uses::descent_alone);
    }

    Machine {
        /// auto, cpu, cuda, cuda:N or metal; compare and tune take several, like cuda:0,cuda:1
        device: String, default("auto"), free();
        /// What operands of large products are rounded to while training; sums and all else are f32
        dtype: Precision, default(Precision::F32), alias("torch-dtype");
        /// What matrices of weights are kept in while they are not trained: bf16 or f16 halves the
        /// memory of those that the checkpoint stores so, and changes no result
        weights_dtype: WeightsDtype, default(WeightsDtype::F32), free();
        /// Keep the inputs of blocks alone, and compute the blocks again for the backward pass
        /// (gradient checkpointing): less memory for about a third more time, and the same bytes;
        /// auto: where it would not fit otherwise
        recompute: Recompute, default(Recompute::Auto), unused(uses::blocks), free();
        /// Threads of the CPU kernels
        threads: Option<usize>, otherwise("RAYON_NUM_THREADS, or all cores"), free();
    }
}

impl RepairSettings {
    /// Steps until the learning rate is reached.
    pub fn warmup(&self) -> usize {
        self.warmup_steps.unwrap_or(150.min(self.max_steps / 10))
    }

    /// Pairs, of so many, that a selector looks at before the first step if it does.
    pub fn looked_at(&self, pairs: usize) -> usize {
        self.fixed_sample.unwrap_or(2000).min(pairs)
    }

    /// The scorer that judges continuations before and after.
    pub fn judge(&self) -> &str {
        self.eval_scorer.as_deref().unwrap_or(&self.scorer)
    }

    /// The files and folders that it reads, besides the model.
    pub fn inputs(&self) -> impl Iterator<Item = &str> {
        let all = [&self.data, &self.prompts, &self.normal, &self.eval_prompts, &self.eval_text];
        all.into_iter().flatten().filter_map(|path| path.to_str())
    }

    /// The settings that the repaired weights depend on, with their values. Inputs are left out:
    /// what they hold counts, not what they are called.
    pub fn decisive(&self) -> Result<Vec<(&'static str, Value)>> {
        let values = serde_json::to_value(self)?;
        let decisive = SETTINGS.iter().filter(|s| !s.free && !INPUTS.contains(&s.name));
        Ok(decisive.map(|s| (s.name, values[s.name].clone())).collect())
    }
}

/// Settings that name what is read.
const INPUTS: [&str; 7] = ["model", "revision", "data", "prompts", "map", "limit", "normal"];

/// Gives the settings of an older record the values of those that came since.
pub fn complete(settings: &mut Value) {
    let Value::Object(settings) = settings else { return };
    for setting in SETTINGS.iter() {
        let default = || setting.default.clone().unwrap_or_default();
        settings.entry(setting.name).or_insert_with(default);
    }
}
