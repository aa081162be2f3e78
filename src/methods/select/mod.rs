//! *Selectors* say which part of the model a step may change. One file and one line of [`SELECTORS`] each.

mod extreme;

use anyhow::Result;

use super::StepInput;
use crate::slice::Slice;

/// What a selector found.
#[derive(Debug, Clone)]
pub struct Selection {
    pub slice: Slice,
    /// Every block's sensitivity, where the selector measured it.
    pub sensitivity: Vec<f64>,
    /// NLL of the rejected responses in nats a token, which measuring brings along.
    pub nll_rejected: Option<f64>,
}

/// Which part of the model a step may change.
pub trait Select: Send + Sync {
    fn name(&self) -> &'static str;
    fn select(&self, input: &StepInput) -> Result<Selection>;
}

/// Every selector.
pub const SELECTORS: &[&dyn Select] = &[&extreme::MAX];
