//! A neuron-level *method* changes what some neurons (MLP hidden units) add to the residual stream,
//! until a prompt's *target* is what the model says: wrong answers call for a change of a few rows,
//! where a behaviour calls for a block's.
//!
//! A target token *fails* if it is not the likeliest one after the prompt and the true tokens
//! before it. STAR and MINT: Gu et al., arXiv 2503.12899 and 2312.05356.

pub mod algebra;
pub mod basis;
pub mod change;
pub mod descent;
pub mod mint;
pub mod scope;

use std::time::Instant;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::base::profile::operations;
use crate::model::weights::{Weights, Who};
use crate::model::{Mlp, Model};
use crate::tokens::{Batch, LossOn, TokenEdit};
use basis::Basis;
use descent::{Descent, Direction, Optimization};
use mint::Mint;
pub use scope::Share;

/// The model under repair.
pub struct Patient<'a> {
    pub model: &'a Model,
    pub weights: Weights,
    pub mlp: Mlp,
    pub basis: Basis,
}

/// How many targets one optimization is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// All target positions of all rows together.
    Batch,
    /// One failing token at a time.
    Iterative,
}

/// What a neuron-level repair is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    pub method: &'static NamedMethod,
    pub mode: Mode,
    /// Which blocks: those whose MLP, when skipped, raises the loss most.
    pub blocks: Share,
    /// Which neurons of each block: those of the highest attribution.
    pub neurons: Share,
    /// Steps of one optimization.
    pub steps: usize,
    pub learning_rate: f64,
    /// Passes over the rows; a later repair can undo an earlier one.
    pub rounds: usize,
}

impl Recipe {
    /// The method, ready for its first pass.
    pub fn build(self) -> Box<dyn NeuronMethod> {
        (self.method.build)(self)
    }
}

/// One change of the weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub blocks: Vec<usize>,
    /// NLL of the targets before it, in nats a token.
    pub loss: f64,
    /// Over the matrices that may change; 0 where no gradient was taken of them.
    pub gradient_norm: f64,
    pub learning_rate: f64,
    /// The worst ‖ZΔ − S‖ / ‖S‖ of the blocks' systems; 0 without one.
    pub residual: f64,
    /// Tokens of the batch.
    pub tokens: usize,
    pub seconds: f64,
    /// Floating-point operations of its products, where they are counted.
    pub operations: u64,
}

/// What one pass over the rows came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pass {
    /// Optimizations, or tokens that were tried.
    pub tried: usize,
    /// Tokens that were given up, their changes undone.
    pub given_up: usize,
}

/// How far a repair has come: beside the weights, all that the rest of it depends on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Rounds that are over.
    pub rounds: usize,
    /// What those rounds tried.
    pub tried: usize,
    pub stage: Stage,
    /// The round under way, or the last one.
    pub pass: Pass,
    /// Optimizations or target tokens that this round is done with.
    pub done: usize,
    /// What is under way.
    pub optimization: Option<Optimization>,
}

/// Where among the rounds a repair is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    #[default]
    Between,
    Within,
    Over,
}

/// Sees how a repair goes on; an error ends it.
pub trait Watch {
    fn step(&mut self, step: Step) -> Result<()>;

    /// The weights and the position are such that the repair can go on from them.
    fn rest(&mut self, patient: &Patient, at: &Position) -> Result<()>;
}

/// How neurons are changed.
pub trait NeuronMethod {
    /// Goes over the rows, of which some fail, once, or on with that from its position. Target
    /// tokens that don't fail are left alone.
    fn pass(
        &self,
        patient: &mut Patient,
        rows: &[TokenEdit],
        at: &mut Position,
        watch: &mut dyn Watch,
    ) -> Result<()>;
}

/// A line of [`METHODS`].
pub struct NamedMethod {
    pub name: &'static str,
    pub about: &'static str,
    /// Whether it takes gradient steps: has a mode, shares of blocks and neurons, steps, a rate.
    pub descends: bool,
    build: fn(Recipe) -> Box<dyn NeuronMethod>,
}

impl std::fmt::Debug for NamedMethod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for NamedMethod {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// Every neuron-level method.
pub static METHODS: &[NamedMethod] = &[
    NamedMethod {
        name: "star",
        descends: true,
        about: "sizes of changes solved for, signs by the gradient",
        build: |recipe| Box::new(Descent { direction: Direction::Star, recipe }),
    },
    NamedMethod {
        name: "mint",
        descends: false,
        about: "a few neurons a wrong token, chosen greedily",
        build: |_| Box::new(Mint),
    },
    NamedMethod {
        name: "sgd",
        descends: true,
        about: "baseline: plain gradient descent on the MLPs' output matrices",
        build: |recipe| Box::new(Descent { direction: Direction::Gradient, recipe }),
    },
];

/// Rounds over the rows until none fails, none can be helped, or there were enough of them.
pub fn repair(
    method: &dyn NeuronMethod,
    patient: &mut Patient,
    rows: &[TokenEdit],
    rounds: usize,
    at: &mut Position,
    watch: &mut dyn Watch,
) -> Result<()> {
    while at.stage != Stage::Over {
        if at.stage == Stage::Between {
            if at.rounds == rounds || failing(patient.model, &patient.weights, rows)?.is_empty() {
                at.stage = Stage::Over;
                break;
            }
            *at = Position {
                rounds: at.rounds,
                tried: at.tried,
                stage: Stage::Within,
                ..Position::default()
            };
        }
        method.pass(patient, rows, at, watch)?;
        at.rounds += 1;
        at.tried += at.pass.tried;
        at.stage = if at.pass.tried == at.pass.given_up { Stage::Over } else { Stage::Between };
    }
    Ok(())
}

/// The rows as a batch of which the targets count.
pub fn batch(rows: &[TokenEdit]) -> Batch {
    Batch::new(rows.iter().map(|r| (r.prompt.as_slice(), r.target.as_slice())), LossOn::Response)
}

/// What the model says at each target position of a batch.
pub fn said(model: &Model, weights: &Weights, batch: &Batch) -> Result<Vec<u32>> {
    let view = weights.frozen(Who::Patient)?;
    let h = model.hidden(&view, &batch.packed)?;
    model.likeliest(&view, &h, &batch.rows)
}

/// Numbers of the rows of whose target a token fails.
pub fn failing(model: &Model, weights: &Weights, rows: &[TokenEdit]) -> Result<Vec<usize>> {
    let mut failing = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let batch = batch(std::slice::from_ref(row));
        if said(model, weights, &batch)? != batch.targets {
            failing.push(index);
        }
    }
    Ok(failing)
}

/// Each target token as a row of its own: the prompt grown by the true tokens before it.
fn single_tokens(rows: &[TokenEdit]) -> impl Iterator<Item = TokenEdit> {
    rows.iter().flat_map(|row| {
        row.target.iter().enumerate().map(|(j, token)| TokenEdit {
            prompt: [&row.prompt, &row.target[..j]].concat(),
            target: vec![*token],
        })
    })
}

/// Time and operations since a step ended.
struct Lap {
    begun: Instant,
    counted: u64,
}

impl Lap {
    fn begin() -> Self {
        Self { begun: Instant::now(), counted: operations() }
    }

    /// Seconds and operations; begins anew.
    fn end(&mut self) -> (f64, u64) {
        let last = std::mem::replace(self, Self::begin());
        (last.begun.elapsed().as_secs_f64(), self.counted - last.counted)
    }
}
