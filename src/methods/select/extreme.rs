//! `max` and `min`: the block most, or least, sensitive to the rejected responses of the batch at hand, on the current
//! model (IRepair, and its ablation).

use anyhow::Result;

use super::{Select, Selection};
use crate::methods::StepInput;
use crate::sensitivity::{pick, sensitivity};
use crate::slice::Slice;

/// The block whose sensitivity `better` prefers.
pub struct Extreme {
    better: fn(f64, f64) -> bool,
}

pub const MAX: Extreme = Extreme { better: |a, b| a > b };
pub const MIN: Extreme = Extreme { better: |a, b| a < b };

impl Select for Extreme {
    fn select(&self, input: &StepInput) -> Result<Selection> {
        let (sensitivity, nll) = sensitivity(input.model, input.weights, &input.pairs.rejected)?;
        let block = pick(&sensitivity, self.better)?;
        Ok(Selection { slice: Slice::Block(block), sensitivity, nll_rejected: Some(nll) })
    }
}
