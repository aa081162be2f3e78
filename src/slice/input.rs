//! What one step works on.

use crate::model::Model;
use crate::model::weights::Weights;
use crate::tokens::{Packed, PairBatch};

/// What one step works on.
pub struct StepInput<'a> {
    pub model: &'a Model,
    pub weights: &'a Weights,
    pub pairs: &'a PairBatch,
    /// A random batch of normal text, where the objective has a KL term.
    pub normal: Option<&'a Packed>,
}

impl StepInput<'_> {
    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        let pairs = self.pairs.chosen.packed.ids.len() + self.pairs.rejected.packed.ids.len();
        pairs + self.normal.map_or(0, |n| n.ids.len())
    }
}

/// How much counts in all batches of a step together, so that their sums are the means of one large
/// batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Whole {
    pub pairs: usize,
    /// Responses of both kinds.
    pub responses: usize,
    /// Tokens of the chosen responses.
    pub chosen: usize,
    /// Tokens of the rejected ones.
    pub rejected: usize,
    /// Positions of the normal texts.
    pub normal: usize,
}

impl Whole {
    pub fn of(inputs: &[StepInput]) -> Self {
        let mut whole = Self::default();
        for input in inputs {
            whole.pairs += input.pairs.pairs;
            whole.responses += input.pairs.chosen.counts.len() + input.pairs.rejected.counts.len();
            whole.chosen += input.pairs.chosen.rows.len();
            whole.rejected += input.pairs.rejected.rows.len();
            whole.normal += input.normal.map_or(0, |n| n.ids.len());
        }
        whole
    }
}

/// The share of a batch in what all batches of a step have.
pub fn share(own: usize, whole: usize) -> f64 {
    own as f64 / whole.max(1) as f64
}
