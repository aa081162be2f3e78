//! `all`: every parameter, embeddings and head too (DAPT, DPO). Nothing is measured.

use anyhow::Result;

use super::{Select, Selection};
use crate::methods::StepInput;
use crate::slice::Slice;

pub struct All;

impl Select for All {
    fn select(&self, _input: &StepInput) -> Result<Selection> {
        Ok(Selection { slice: Slice::Everything, sensitivity: Vec::new(), nll_rejected: None })
    }
}
