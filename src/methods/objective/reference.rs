//! What the frozen reference makes of normal texts: it never moves and the texts come again every epoch, so each is read
//! once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use candle_core::Tensor;

use crate::model::Model;
use crate::tokens::Packed;
use crate::weights::{Kernels, View};

/// Bytes of hidden states that are kept at most; texts beyond are read each time.
pub const MOST: usize = 256 << 20;

/// Final hidden states (T,C) of texts, by their ids.
#[derive(Default)]
pub struct Known {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    states: HashMap<Vec<u32>, Tensor>,
    bytes: usize,
}

impl Known {
    /// Final hidden states (N,C) of a batch: those known, or else read. `together` reads all of it.
    ///
    /// A run that was interrupted meets a text in another batch first. So texts are read together only where their rows
    /// do not depend on each other to the bit, and alone elsewhere; on other devices nothing is kept.
    pub fn hidden(
        &self,
        model: &Model,
        reference: &View,
        packed: &Packed,
        together: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Tensor> {
        if reference.kernels() == Kernels::Composed {
            return together();
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let texts: Vec<&[u32]> = packed.sequences.iter().map(|s| &packed.ids[s.rows.clone()]).collect();
        if reference.rows_stand_alone() && texts.iter().any(|ids| !kept.states.contains_key(*ids)) {
            let h = together()?;
            for (sequence, ids) in packed.sequences.iter().zip(texts) {
                kept.add(ids, &h.narrow(0, sequence.rows.start, sequence.rows.len())?)?;
            }
            return Ok(h);
        }
        let mut parts = Vec::with_capacity(texts.len());
        for ids in texts {
            let part = match kept.states.get(ids) {
                Some(part) => part.clone(),
                None => model.hidden(reference, &Packed::new([ids]))?,
            };
            kept.add(ids, &part)?;
            parts.push(part);
        }
        Ok(Tensor::cat(&parts, 0)?)
    }
}

impl Kept {
    fn add(&mut self, ids: &[u32], states: &Tensor) -> Result<()> {
        let bytes = states.elem_count() * states.dtype().size_in_bytes();
        if self.bytes + bytes <= MOST && !self.states.contains_key(ids) {
            self.bytes += bytes;
            // A copy: a part of a batch would keep all of it.
            self.states.insert(ids.to_vec(), states.copy()?);
        }
        Ok(())
    }
}
