//! `trial`: the unit whose trial steps lower the held-back objective most, chosen once before the first step.
//!
//! A gradient's norm says where the error can be moved, not at what price: the first block of a model has the largest one,
//! and moving it moves everything. A trial asks the objective itself, its KL term included: a few steps on each unit
//! alone, with the run's own optimizer and batches, then the objective on the held-back rows. The loop makes the trials
//! ([`crate::train`]); here is only what they are made of.

use anyhow::{Context, Result};

use super::{Extent, Select, Selection, Slicing};
use crate::model::Model;
use crate::slice::Slice;
use crate::slice::input::StepInput;

pub struct Trial {
    slicing: Slicing,
    chosen: Option<Slice>,
}

impl Trial {
    pub fn new(slicing: Slicing) -> Self {
        Self { slicing, chosen: None }
    }
}

impl Select for Trial {
    fn trials(&self, model: &Model) -> Vec<Slice> {
        match self.chosen {
            Some(_) => Vec::new(),
            None => {
                self.slicing.units(model).into_iter().map(|unit| Slice::Units(vec![unit])).collect()
            }
        }
    }

    fn top_k(&self) -> usize {
        self.slicing.top_k
    }

    fn settle(&mut self, slice: Slice) {
        self.chosen = Some(slice);
    }

    fn settled(&self) -> Option<&Slice> {
        self.chosen.as_ref()
    }

    fn select(&self, _inputs: &[StepInput]) -> Result<Selection> {
        let slice = self.chosen.clone().context("the trials were never made")?;
        Ok(Selection::unmeasured(slice))
    }

    fn extent(&self, model: &Model) -> Extent {
        Extent { parameters: self.slicing.largest(model), stays: true }
    }
}
