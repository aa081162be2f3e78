//! `irepair/neurons.json`: which neurons a repair changed, and the tokens that the most changed ones promote.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::step::neurons::change::{Changed, Promoted, Repaired, promoted};
use crate::tokens::Encoder;

/// Its name in `irepair/`.
pub const NEURONS: &str = "neurons.json";
/// Neurons whose tokens are told.
const MOST: usize = 20;
/// Tokens of each.
const TOKENS: usize = 5;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NeuronsRecord {
    pub blocks: usize,
    /// Of a block.
    pub neurons: usize,
    /// By block: number and ‖change‖ of the output row of each changed neuron.
    pub changed: Changed,
    /// The most changed ones, that first which changed most.
    pub most: Vec<Promoted<String>>,
}

impl NeuronsRecord {
    pub fn new(repaired: &Repaired, encoder: &Encoder, changed: &Changed) -> Result<Self> {
        let words =
            |ids: &[u32]| ids.iter().map(|id| encoder.token(*id)).collect::<Result<Vec<String>>>();
        let in_words = |Promoted { block, neuron, norm, base_norm, before, after }| {
            Ok(Promoted {
                block,
                neuron,
                norm,
                base_norm,
                before: words(&before)?,
                after: words(&after)?,
            })
        };
        Ok(Self {
            blocks: repaired.model.sizes().blocks,
            neurons: repaired.mlp.neurons,
            changed: changed.clone(),
            most: promoted(repaired, changed, MOST, TOKENS)?
                .into_iter()
                .map(in_words)
                .collect::<Result<_>>()?,
        })
    }
}
