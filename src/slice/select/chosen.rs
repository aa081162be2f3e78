//! `trial`: the unit whose trial steps lower the held-back objective most, chosen once before the
//! first step.
//!
//! A gradient's norm says where the error can be moved, not at what price: the first block of a
//! model has the largest one, and moving it moves everything. A trial asks the objective itself,
//! its KL term included: a few steps on each unit alone, with the run's own optimizer and batches,
//! then the objective on the held-back rows. `train::trials` makes them; here is what they come to.

use anyhow::{Context, Result};

use super::super::input::StepInput;
use super::{Extent, Select, Selection, Slicing};
use crate::model::Model;
use crate::slice::Slice;

/// The slice that trials chose, the same in every step.
pub struct Chosen {
    slicing: Slicing,
    slice: Option<Slice>,
}

impl Chosen {
    /// Before the trials.
    pub fn untried(slicing: Slicing) -> Self {
        Self { slicing, slice: None }
    }

    /// After them.
    pub fn new(slicing: Slicing, slice: Slice) -> Self {
        Self { slicing, slice: Some(slice) }
    }
}

impl Select for Chosen {
    fn select(&self, _inputs: &[StepInput]) -> Result<Selection> {
        let slice = self.slice.clone().context("the trials were never made")?;
        Ok(Selection::unmeasured(slice))
    }

    fn extent(&self, model: &Model) -> Extent {
        Extent { parameters: self.slicing.largest(model), stays: true }
    }
}
