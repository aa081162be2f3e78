//! *Selectors* say which part of the model a step may change. One file and one line of [`SELECTORS`] each.

mod all;
mod extreme;
mod fixed;

use anyhow::Result;

use super::StepInput;
use crate::fault::Fault;
use crate::model::Model;
use crate::slice::Slice;
use crate::tokens::PairBatch;
use crate::weights::Weights;

/// What a selector found.
#[derive(Debug, Clone)]
pub struct Selection {
    pub slice: Slice,
    /// Every block's sensitivity, where the selector measured it.
    pub sensitivity: Vec<f64>,
    /// NLL of the rejected responses in nats a token, which measuring brings along.
    pub nll_rejected: Option<f64>,
}

/// Which part of the model a step may change.
pub trait Select: Send + Sync {
    /// Once, before the first step: a look at a sample of the pairs under the untouched model.
    fn prepare(
        &mut self,
        _model: &Model,
        _weights: &Weights,
        _sample: &mut dyn Iterator<Item = PairBatch>,
    ) -> Result<()> {
        Ok(())
    }

    fn select(&self, input: &StepInput) -> Result<Selection>;
}

/// A line of [`SELECTORS`].
pub struct Entry {
    pub name: &'static str,
    pub about: &'static str,
    build: fn() -> Box<dyn Select>,
}

/// Every selector.
#[rustfmt::skip]
pub const SELECTORS: &[Entry] = &[
    Entry { name: "max", about: "the block most sensitive to the batch's rejected responses", build: || Box::new(extreme::MAX) },
    Entry { name: "min", about: "the least sensitive one", build: || Box::new(extreme::MIN) },
    Entry { name: "fixed", about: "the most sensitive one on average before the first step", build: || Box::new(fixed::Fixed::default()) },
    Entry { name: "all", about: "the whole model", build: || Box::new(all::All) },
];

/// The selector of this name. Errors (bad input) with the nearest name.
pub fn named(name: &str) -> Result<Box<dyn Select>> {
    match SELECTORS.iter().find(|s| s.name == name) {
        Some(entry) => Ok((entry.build)()),
        None => {
            let names: Vec<&str> = SELECTORS.iter().map(|s| s.name).collect();
            Err(Fault::Input(crate::config::unknown("selector", name, &names)).into())
        }
    }
}
