//! `max`: the block most sensitive to the rejected responses of the batch at hand, on the current model (IRepair).

use anyhow::Result;

use super::{Select, Selection};
use crate::methods::StepInput;
use crate::sensitivity::{pick, sensitivity};
use crate::slice::Slice;

/// The block whose sensitivity `better` prefers.
pub struct Extreme {
    name: &'static str,
    better: fn(f64, f64) -> bool,
}

pub const MAX: Extreme = Extreme { name: "max", better: |a, b| a > b };

impl Select for Extreme {
    fn name(&self) -> &'static str {
        self.name
    }

    fn select(&self, input: &StepInput) -> Result<Selection> {
        let (sensitivity, nll) = sensitivity(input.model, input.weights, &input.pairs.rejected)?;
        let block = pick(&sensitivity, self.better)?;
        Ok(Selection { slice: Slice::Block(block), sensitivity, nll_rejected: Some(nll) })
    }
}
