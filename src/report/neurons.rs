//! The record `irepair/neurons.json` says which neurons a repair changed, and which tokens the most
//! changed ones promote.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::step::neurons::change::{Changed, Promoted, Repaired, promoted};
use crate::tokens::Encoder;

/// The name of the file in `irepair/`.
pub const NEURONS: &str = "neurons.json";
/// For how many neurons the record has the promoted tokens.
const MOST: usize = 20;
/// How many tokens it has for each of them.
const TOKENS: usize = 5;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NeuronsRecord {
    pub blocks: usize,
    /// Neurons of one block.
    pub neurons: usize,
    /// Number of each changed neuron and ‖change‖ of its output row, by block.
    pub changed: Changed,
    /// The neurons that changed most, in descending order of their change.
    pub most: Vec<Promoted<String>>,
}

impl NeuronsRecord {
    /// Looks up the tokens that the most changed neurons promote before and after the repair.
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
