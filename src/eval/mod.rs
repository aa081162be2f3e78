//! *Evaluation* measures what a model says, and what a repair has cost elsewhere. The commands
//! `repair`, `eval` and `compare` all measure with the tasks of this folder.

pub mod bootstrap;
pub mod divergence;
pub mod edits;
pub mod kinds;
pub mod lambada;
pub mod ledger;
pub mod lm_eval;
pub mod nll;
pub mod normal;
pub mod paired;
pub mod perplexity;
pub mod repetition;
pub mod samples;
pub mod scoring;
pub mod sources;
pub mod task;
pub mod toxicity;
pub mod verdict;
mod wikitext;

use std::collections::BTreeMap;

/// Values of figures by their ids, such as `ppl` and `kl`.
pub type Figures = BTreeMap<String, f64>;
