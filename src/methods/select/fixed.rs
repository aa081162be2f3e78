//! `fixed`: the block with the largest *mean* sensitivity over a sample of pairs, chosen once before the first step
//! (IRepair's ablation: selection without its being dynamic).

use anyhow::{Context, Result};

use super::{Select, Selection};
use crate::methods::StepInput;
use crate::model::Model;
use crate::sensitivity::{pick, sensitivity};
use crate::slice::Slice;
use crate::tokens::PairBatch;
use crate::weights::Weights;

#[derive(Default)]
pub struct Fixed {
    block: Option<usize>,
}

impl Select for Fixed {
    fn prepare(&mut self, model: &Model, weights: &Weights, sample: &mut dyn Iterator<Item = PairBatch>) -> Result<()> {
        let mut sum = vec![0f64; model.sizes().blocks];
        for batch in sample {
            let (found, _) = sensitivity(model, weights, &batch.rejected)?;
            sum.iter_mut().zip(found).for_each(|(s, f)| *s += f);
        }
        self.block = Some(pick(&sum, |a, b| a > b)?);
        Ok(())
    }

    fn select(&self, _input: &StepInput) -> Result<Selection> {
        let block = self.block.context("the fixed block was never chosen")?;
        Ok(Selection { slice: Slice::Block(block), sensitivity: Vec::new(), nll_rejected: None })
    }
}
