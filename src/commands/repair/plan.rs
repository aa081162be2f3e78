//! What a repair will do and take, before anything large is read: `--dry-run`, and the check of
//! memory.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::Order;
use super::normal;
use super::rows::{self, Rows};
use super::time::{self, Phase};
use crate::base::memory::available;
use crate::eval::toxicity::{self, Prompt};
use crate::model::memory::{Estimate, Passes, mib};
use crate::report::DataRecord;
use crate::report::table::table;
use crate::slice::select::First;
use crate::step::Recipe;
use crate::step::neurons::Mode;
use crate::step::optim::OptimizerKind;
use crate::tokens::{FORK_ROWS, TokenPair};

/// A repair that has not begun.
#[derive(Debug, Serialize)]
pub struct Plan {
    pub model: String,
    pub blocks: usize,
    pub parameters: usize,
    pub method: String,
    #[serde(flatten)]
    pub own: Own,
    pub memory: Estimate,
    pub memory_mib: u64,
    pub available_mib: Option<u64>,
    /// What each part takes; empty where only the work can tell, or where memory does not do.
    pub time: Vec<Phase>,
    pub out: String,
    /// What is there already.
    pub in_the_way: Option<String>,
}

/// What the plan of a family has of its own.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Own {
    Pairs(Box<PairsPlan>),
    Edits(EditsPlan),
}

/// Pairs to learn from.
#[derive(Debug, Serialize)]
pub struct PairsPlan {
    data: DataRecord,
    /// Shortest and longest prompt, chosen and rejected response of the pairs to learn from, in
    /// tokens.
    prompt_tokens: [usize; 2],
    chosen_tokens: [usize; 2],
    rejected_tokens: [usize; 2],
    steps: usize,
    batch_size: usize,
    gradient_accumulation_steps: usize,
    /// How often each pair is seen, where they are there already.
    #[serde(skip_serializing_if = "Option::is_none")]
    epochs: Option<f64>,
    /// Normal texts that the model writes first.
    normal_written: usize,
    /// Pairs that the selector looks at before the first step.
    looked_at: usize,
    /// Steps that it tries before the first one, on all slices together.
    trial_steps: usize,
    /// An online repair makes its pairs itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    rounds: Option<Rounds>,
}

/// What an online repair samples.
#[derive(Debug, Serialize)]
struct Rounds {
    rounds: usize,
    prompts_per_round: usize,
    samples_per_prompt: usize,
}

/// Wrong answers to repair.
#[derive(Debug, Serialize)]
pub struct EditsPlan {
    pub neurons: usize,
    pub mode: Option<Mode>,
    pub rows: usize,
    pub target_tokens: usize,
}

impl PairsPlan {
    /// Normal text that the model would write itself is taken at its greatest length.
    pub fn new(order: &Order, recipe: &Recipe, rows: &Rows) -> Self {
        let Order { prepared: settings, loaded, .. } = order;
        let pairs = &rows.train.pairs;
        let span = |length: fn(&TokenPair) -> usize| {
            let lengths = || pairs.iter().map(length);
            [lengths().min().unwrap_or(0), lengths().max().unwrap_or(0)]
        };
        let step = settings.batch_size * settings.gradient_accumulation_steps;
        let writes = recipe.needs_normal() && settings.normal.is_none();
        let looks = recipe.first() == First::Look;
        Self {
            data: rows.record.clone(),
            prompt_tokens: span(|p| p.prompt.len()),
            chosen_tokens: span(|p| p.chosen.len()),
            rejected_tokens: span(|p| p.rejected.len()),
            steps: settings.max_steps,
            batch_size: settings.batch_size,
            gradient_accumulation_steps: settings.gradient_accumulation_steps,
            epochs: (!recipe.online)
                .then(|| (settings.max_steps * step) as f64 / pairs.len().max(1) as f64),
            normal_written: if writes { settings.normal_texts } else { 0 },
            looked_at: if looks { settings.looked_at(pairs.len()) } else { 0 },
            trial_steps: recipe.trials(&loaded.model).len() * settings.trial_steps,
            rounds: recipe.online.then(|| Rounds {
                rounds: settings.online_rounds(),
                prompts_per_round: settings.prompts_per_round.min(rows.sampled.len()),
                samples_per_prompt: settings.samples_per_prompt,
            }),
        }
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let span = |[shortest, longest]: [usize; 2]| format!("{shortest} to {longest}");
        let cut = &self.data;
        let normal = match cut.normal {
            0 => String::new(),
            n => format!(
                "; {n} normal texts, {} held back, {} cut",
                cut.normal_held_back, cut.cut_texts
            ),
        };
        let mut first = Vec::new();
        if self.normal_written > 0 {
            first.push(format!("the model writes {} normal texts", self.normal_written));
        }
        if self.looked_at > 0 {
            first.push(format!("the selector looks at {} pairs", self.looked_at));
        }
        if self.trial_steps > 0 {
            first.push(format!("{} trial steps are made", self.trial_steps));
        }
        let tokens = format!(
            "prompts {}, chosen {}, rejected {}; cut to length: {} prompts, {} responses",
            span(self.prompt_tokens),
            span(self.chosen_tokens),
            span(self.rejected_tokens),
            cut.cut_prompts,
            cut.cut_responses
        );
        let steps = format!(
            "{} of {} pairs",
            self.steps,
            self.batch_size * self.gradient_accumulation_steps
        );
        let mut lines = match &self.rounds {
            Some(Rounds { rounds, prompts_per_round, samples_per_prompt }) => {
                let (from, held_back) = (cut.prompts, cut.held_back);
                let texts = rounds * prompts_per_round * samples_per_prompt;
                vec![
                    ("prompts", format!("{from} to sample from, {held_back} held back{normal}")),
                    (
                        "rounds",
                        format!(
                            "{rounds} of {prompts_per_round} prompts, {samples_per_prompt} texts \
                             each: {texts} texts, scored and paired"
                        ),
                    ),
                    ("steps", steps),
                ]
            }
            None => vec![
                (
                    "pairs",
                    format!("{} to learn from, {} held back{normal}", cut.pairs, cut.held_back),
                ),
                ("tokens", tokens),
                ("steps", format!("{steps}: each is seen {:.1} times", self.epochs.unwrap_or(0.0))),
            ],
        };
        if !first.is_empty() {
            lines.push(("before", first.join(", ")));
        }
        lines
    }
}

/// A pair of texts after this prompt, as long as they can be.
pub fn at_most(prompt: &Prompt, tokens: usize) -> TokenPair {
    let text = vec![0; tokens];
    TokenPair { prompt: prompt.ids.clone(), chosen: text.clone(), rejected: text }
}

/// Memory of the whole repair at its peak.
pub fn estimate(order: &Order, recipe: &Recipe, rows: &Rows) -> Result<Estimate> {
    let Order { prepared: settings, loaded, .. } = order;
    let model = &loaded.model;
    let extent = recipe.select.build(recipe.slicing.clone()).extent(model);
    let validates = rows.validates(settings, recipe);
    let lengths = rows::lengths(settings, loaded)?;
    let writes = recipe.needs_normal() && settings.normal.is_none();
    let normal: Vec<usize> = match writes {
        true => vec![normal::WRITTEN_TOKENS.min(lengths.total - 1) + 1; settings.normal_texts],
        false if recipe.needs_normal() => {
            // Where none could be held back, the same ones serve twice.
            let held_back = rows.train.valid_normal.iter().take(rows.record.normal_held_back);
            rows.train.normal.iter().chain(held_back).map(Vec::len).collect()
        }
        false => Vec::new(),
    };
    // Batches are drawn at random, so no batch has more rows than the longest sequences together.
    let longest = |mut lengths: Vec<usize>, n: usize| {
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.iter().take(n).sum::<usize>()
    };
    let of = |pairs: &[TokenPair], length: fn(&TokenPair) -> usize, n| {
        longest(pairs.iter().map(length).collect(), n)
    };
    let b = settings.batch_size;
    // Pairs that are sampled later are taken at their greatest length.
    let pairs = &match recipe.online {
        true => {
            rows.sampled.iter().map(|prompt| at_most(prompt, settings.max_new_tokens)).collect()
        }
        false => rows.train.pairs.clone(),
    };
    let response = |p: &TokenPair| p.prompt.len() + p.chosen.len().max(p.rejected.len());
    let normal_rows = longest(normal.clone(), b);
    let compares = recipe.kl_weight != 0.0;
    let compared_rows = if compares { normal.iter().sum::<usize>() } else { 0 };
    // Objectives that look at both responses fork: so many rows at a time, or one pair if it has
    // more.
    let contrasts = recipe.objective.contrasts;
    let fork = |p: &TokenPair| p.prompt.len() + p.chosen.len() + p.rejected.len();
    let forked =
        if contrasts { of(pairs, fork, b).min(FORK_ROWS).max(of(pairs, fork, 1)) } else { 0 };
    let longest_text =
        of(pairs, if contrasts { fork } else { response }, 1).max(longest(normal.clone(), 1));
    let graph_rows = of(pairs, response, b).max(normal_rows).max(forked);
    let validated = 8;
    let plain_rows = of(&rows.train.valid_pairs, response, validated)
        .max(rows.text.len().min(1024))
        .max(longest(normal, validated));
    let prompt = rows.prompts.iter().map(Vec::len).max().unwrap_or(0);
    let prompt = rows.protocol.prompt_tokens.map_or(prompt, |cut| prompt.min(cut));
    let scored = if prompt == 0 { 0 } else { prompt + rows.protocol.new_tokens };
    let written = if writes { normal::WRITTEN_TOKENS + 1 } else { 0 };
    // A round continues its prompts and those that are held back.
    let of_rounds = rows.sampled.iter().chain(&rows.held_prompts).map(|prompt| prompt.ids.len());
    let sampled = of_rounds.max().map_or(0, |longest| longest + settings.max_new_tokens);
    let passes = |recompute| Passes {
        slice: extent.parameters,
        slice_stays: extent.stays,
        optimizer_values: match settings.optimizer {
            OptimizerKind::Rmsprop => 1,
            OptimizerKind::Adamw => 2,
        },
        keeps_originals: recipe.needs_reference() || validates,
        keeps_best: validates,
        holds_budget: settings.kl_budget.is_some(),
        graph_rows,
        plain_rows,
        compares,
        longest: longest_text,
        compared_rows,
        recompute,
        written: (toxicity::BATCH, scored.max(written).max(sampled)),
    };
    let estimate = |recompute| loaded.estimate(&passes(recompute));
    settings.recompute.decide(&loaded.device, estimate)
}

impl Plan {
    pub fn new(
        order: &Order,
        own: Own,
        memory: Estimate,
        out: &Path,
        in_the_way: Option<String>,
    ) -> Self {
        let loaded = order.loaded;
        Self {
            model: order.prepared.model.clone(),
            blocks: loaded.model.sizes().blocks,
            parameters: loaded.model.parameters(),
            method: order.prepared.settings.method.clone(),
            own,
            memory_mib: mib(memory.total()),
            available_mib: loaded
                .device
                .is_cpu()
                .then(available)
                .flatten()
                .map(|bytes| bytes >> 20),
            memory,
            time: Vec::new(),
            out: out.display().to_string(),
            in_the_way,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let neurons = match &self.own {
            Own::Edits(edits) => format!("{} neurons, ", edits.neurons),
            Own::Pairs(_) => String::new(),
        };
        let model = format!(
            "{}: {} blocks, {neurons}{} parameters",
            self.model, self.blocks, self.parameters
        );
        let mut lines = vec![("model", model), ("method", self.method.clone())];
        lines.extend(match &self.own {
            Own::Pairs(pairs) => pairs.lines(),
            Own::Edits(edits) => {
                let rows = format!("{} with {} target tokens", edits.rows, edits.target_tokens);
                vec![("rows", rows)]
            }
        });
        lines.extend(time::line(&self.time).map(|words| ("time", words)));
        lines.push(("out", self.out.clone()));
        lines.extend(self.in_the_way.clone().map(|words| ("", words)));
        let mut text = String::new();
        for (name, value) in lines {
            let _ = writeln!(text, "{name:<7} {value}");
        }
        let parts = self.memory.parts.iter();
        let rows: Vec<[String; 2]> =
            parts.map(|p| [p.name.clone(), mib(p.bytes).to_string()]).collect();
        let _ = write!(text, "\n{}", table(["memory", "MiB"], &rows));
        let _ = write!(text, "{} MiB at most", self.memory_mib);
        if self.memory.each_further_block > 0 {
            let each = mib(self.memory.each_further_block);
            let _ = write!(text, ", and {each} for every further block that is sliced");
        }
        if self.memory.recompute {
            text += ", with the blocks computed again for the backward pass";
        }
        let _ = match self.available_mib {
            Some(available) => writeln!(text, "; {available} are available"),
            None => writeln!(text),
        };
        text
    }
}
