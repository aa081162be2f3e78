//! `all`: every parameter, embeddings and head too (DAPT, DPO). Nothing is measured.

use anyhow::Result;

use super::{Extent, Select, Selection};
use crate::model::Model;
use crate::slice::Slice;
use crate::slice::input::StepInput;

pub struct All;

impl Select for All {
    fn select(&self, _inputs: &[StepInput]) -> Result<Selection> {
        Ok(Selection::unmeasured(Slice::Everything))
    }

    fn extent(&self, model: &Model) -> Extent {
        let parameters = model.specs().iter().map(|s| s.shape.iter().product::<usize>()).sum();
        Extent { parameters, stays: true }
    }
}
