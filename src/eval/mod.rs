//! Evaluation: what a model says, and what it cost elsewhere. The same measurements before and after a
//! repair, in `eval`, and in a comparison.

pub mod bootstrap;
pub mod divergence;
pub mod edits;
pub mod lambada;
pub mod ledger;
pub mod nll;
pub mod normal;
pub mod perplexity;
pub mod samples;
pub mod sources;
pub mod task;
pub mod toxicity;

use std::collections::BTreeMap;

/// Values of figures, by their ids.
pub type Figures = BTreeMap<String, f64>;
