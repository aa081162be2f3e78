//! How long each part of a block-level repair takes.

use std::time::Instant;

use anyhow::Result;

use super::Order;
use super::normal::WRITTEN_TOKENS;
use super::plan::at_most;
use super::rows::Rows;
use super::time::{Pace, Phase};
use crate::model::Model;
use crate::model::precision::Precision;
use crate::model::weights::Weights;
use crate::scorers::Scorer;
use crate::settings::Prepared;
use crate::slice::input::StepInput;
use crate::slice::select::First;
use crate::step::cost::{Work, operations};
use crate::step::{Recipe, objective};
use crate::tokens::{Packed, PairBatch, TokenPair};

/// What is still to be done, part by part. The normal texts are still to be written where there are
/// none yet.
pub fn phases(
    order: &Order,
    recipe: &Recipe,
    rows: &Rows,
    scorer: &dyn Scorer,
    weights: &mut Weights,
) -> Result<Vec<Phase>> {
    let Order { prepared, loaded, .. } = order;
    let model = &loaded.model;
    let pace = Pace::of(loaded, weights, scorer)?;
    let mut phases = Vec::new();
    let writes = prepared.normal.is_none() && recipe.needs_normal() && rows.train.normal.is_empty();
    if writes {
        phases.push(pace.normal(prepared.normal_texts));
    }
    let held_back = match writes {
        true => rows.normal_to_hold_back(prepared, recipe, prepared.normal_texts) * WRITTEN_TOKENS,
        false => rows.train.valid_normal.iter().map(Vec::len).sum(),
    };
    let responses = |p: &TokenPair| 2 * p.prompt.len() + p.chosen.len() + p.rejected.len();
    let held_pairs: usize = rows.train.valid_pairs.iter().map(responses).sum();
    // Continuations, greedy and sampled; the text; the pairs; the KL, of which each side reads.
    let texts = rows.prompts.len() * (1 + prepared.eval_samples);
    let read = rows.text.len() + held_pairs + 2 * held_back;
    let measured = pace.texts(texts, rows.protocol.new_tokens) + pace.read(read);
    if measured > 0.0 {
        phases.push(Phase::new("measuring before and after", 2.0 * measured));
    }

    weights.set_precision(loaded.precision);
    let step = step_seconds(prepared, recipe, rows, model, weights);
    weights.set_precision(Precision::F32);
    let step = step?;
    // A validation reads the pairs and as much normal text for each batch of them, with the
    // reference where there is one.
    let sides = if recipe.needs_reference() { 2.0 } else { 1.0 };
    let validation = sides * pace.read(held_pairs + held_back);
    if recipe.first() == First::Look {
        let looked_at = prepared.looked_at(rows.train.pairs.len());
        // Forward and backward.
        let tokens: usize = rows.train.pairs.iter().take(looked_at).map(responses).sum();
        phases.push(Phase::new("looking at pairs", 3.0 * pace.read(tokens / 2)));
    }
    let trials = recipe.trials(model).len();
    if trials > 0 {
        let each = prepared.trial_steps as f64 * step + validation;
        phases.push(Phase::new(format!("{trials} trials"), trials as f64 * each));
    }
    if recipe.online {
        let rounds = prepared.online_rounds();
        let prompts = prepared.prompts_per_round.min(rows.sampled.len());
        let texts = rounds * prompts * prepared.samples_per_prompt;
        let what = format!("{texts} sampled texts");
        phases.push(Phase::new(what, pace.texts(texts, prepared.max_new_tokens)));
    }
    let steps = prepared.max_steps;
    phases.push(Phase::new(format!("{steps} steps"), steps as f64 * step));
    if rows.validates(prepared, recipe) && prepared.eval_steps > 0 {
        let times = steps.div_ceil(prepared.eval_steps) + 1;
        phases.push(Phase::new(format!("{times} validations"), times as f64 * validation));
    }
    Ok(phases)
}

/// Seconds of a step on a batch of the rows, with the KL term that it will have once something
/// differs from the reference.
fn step_seconds(
    settings: &Prepared,
    recipe: &Recipe,
    rows: &Rows,
    model: &Model,
    weights: &Weights,
) -> Result<f64> {
    let batch = settings.batch_size;
    let spread = |at: usize, all: usize| at * all / batch.max(1);
    let pairs: Vec<TokenPair> = match recipe.online {
        true => (0..batch)
            .map(|at| &rows.sampled[spread(at, rows.sampled.len())])
            .map(|prompt| at_most(prompt, settings.max_new_tokens))
            .collect(),
        false => {
            let pairs = &rows.train.pairs;
            (0..batch).map(|at| pairs[spread(at, pairs.len())].clone()).collect()
        }
    };
    let pairs = PairBatch::new(&pairs.iter().collect::<Vec<_>>(), settings.loss_on);
    let texts: Vec<Vec<u32>> = match rows.train.normal.len() {
        0 => vec![vec![0; WRITTEN_TOKENS]; batch],
        all => (0..batch).map(|at| rows.train.normal[spread(at, all)].clone()).collect(),
    };
    let normal = Packed::new(texts.iter().map(Vec::as_slice));
    let mut recipe = recipe.clone();
    if recipe.online && recipe.objective.learns {
        // What it learns from is not sampled yet, and makes no difference to its time.
        recipe.objective = &objective::DPO;
    }
    let mut method = recipe.clone().build();
    if !recipe.online {
        method.objective.learn(&rows.train.pairs, model.sizes().vocabulary)?;
    }
    let slices = recipe.slicing.single(model);
    let slice = &slices[slices.len() / 2];
    let input = || StepInput { model, weights, pairs: &pairs, normal: Some(&normal) };
    let step = || -> Result<f64> {
        let begun = Instant::now();
        match recipe.first() {
            First::Nothing => drop(method.step(&[input()])?),
            // Which slice it will be is not known yet.
            First::Look | First::Trials => {
                drop(objective::gradients(&method, &[input()], slice)?);
            }
        }
        Ok(begun.elapsed().as_secs_f64())
    };
    let first = step()?;
    // What is done once only should not count; a long step is measured once.
    let seconds = if first < 2.0 { step()?.min(first) } else { first };
    let middle = recipe.select.ranks.then_some(model.sizes().blocks / 2);
    let work = Work {
        tokens: [pairs.chosen.packed.ids.len(), pairs.rejected.packed.ids.len(), normal.ids.len()],
        counted: [pairs.chosen.rows.len(), pairs.rejected.rows.len(), normal.ids.len()],
        sequences: batch,
        block: middle,
        touched: middle.unwrap_or(0),
        parameters: middle.map_or(0, |block| model.block_parameters()[block]),
    };
    let without = operations(model, &Recipe { kl_weight: 0.0, ..recipe.clone() }, &work);
    let with = operations(model, &recipe, &work);
    Ok(seconds * with / without.max(1.0) * settings.gradient_accumulation_steps as f64)
}
