//! What the frozen reference makes of a batch. It never moves, so it shares the patient's way as
//! far as that is untouched, and what it makes of a text that comes again every epoch is kept.
//!
//! A run that was interrupted meets a text in another batch first. So on the CPU texts are read
//! together only where their rows do not depend on each other to the bit, and alone elsewhere; on
//! other devices nothing is kept.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use candle_core::Tensor;

use crate::model::Model;
use crate::model::memory::KEPT_STATES;
use crate::model::weights::{Kernels, Place, View, Weights, Who};
use crate::tokens::Packed;

/// The reference, and how far the patient goes the same way.
pub struct Reference<'w> {
    pub model: &'w Model,
    pub view: View<'w>,
    /// Blocks below the lowest tensor that was changed or that the patient's pass wants something
    /// of; `None`: not even the embedding.
    shared: Option<usize>,
}

impl<'w> Reference<'w> {
    /// Beside the patient's pass.
    pub fn beside(model: &'w Model, weights: &'w Weights, patient: &View) -> Result<Self> {
        let wanted = patient.lowest_wanted();
        let shared = match weights.lowest_touched().map_or(wanted, |touched| touched.min(wanted)) {
            Place::Embedding => None,
            Place::Block(block) => Some(block),
            Place::FinalNorm | Place::Head => Some(model.sizes().blocks),
        };
        Ok(Self { model, view: weights.frozen(Who::Reference)?, shared })
    }

    /// Whether texts must be read alone for what they become to be the same in every batch.
    fn alone(&self) -> bool {
        self.view.kernels() == Kernels::Cpu && !self.view.rows_stand_alone()
    }

    /// Hidden states (N,C) after the shared blocks, if there are any: the beginning of the
    /// patient's way, too.
    pub fn begin(&self, packed: &Packed) -> Result<Option<Tensor>> {
        let Some(shared) = self.shared else { return Ok(None) };
        let way = |packed: &Packed| {
            self.model.blocks(&self.view, packed, self.model.embed(&self.view, packed)?, 0..shared)
        };
        if shared == 0 || !self.alone() {
            return Ok(Some(way(packed)?));
        }
        let parts = (0..packed.sequences.len()).map(|index| way(&packed.only(index)));
        Ok(Some(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?))
    }

    /// Final hidden states (N,C) of a view from where [`begin`](Self::begin) ended.
    pub fn go_on(&self, view: &View, packed: &Packed, begun: Option<&Tensor>) -> Result<Tensor> {
        let h = match begun {
            Some(h) => h.clone(),
            None => self.model.embed(view, packed)?,
        };
        let blocks = self.shared.unwrap_or(0)..self.model.sizes().blocks;
        self.model.finish(view, self.model.blocks(view, packed, h, blocks)?)
    }

    /// The reference's own final hidden states (T,C) of one sequence of a batch.
    pub fn finish_one(
        &self,
        packed: &Packed,
        index: usize,
        begun: Option<&Tensor>,
    ) -> Result<Tensor> {
        let rows = &packed.sequences[index].rows;
        let begun = begun.map(|h| h.narrow(0, rows.start, rows.len())?.contiguous()).transpose()?;
        self.go_on(&self.view, &packed.only(index), begun.as_ref())
    }
}

/// Final hidden states (T,C) of texts under the reference, by their ids.
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
    /// Final hidden states (N,C) of a batch that the reference has begun: those known, or else
    /// read.
    pub fn hidden(
        &self,
        reference: &Reference,
        packed: &Packed,
        begun: Option<&Tensor>,
    ) -> Result<Tensor> {
        let together = || reference.go_on(&reference.view, packed, begun);
        if reference.view.kernels() == Kernels::Composed {
            return together();
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let texts: Vec<&[u32]> =
            packed.sequences.iter().map(|s| &packed.ids[s.rows.clone()]).collect();
        if !reference.alone() && texts.iter().any(|ids| !kept.states.contains_key(*ids)) {
            let h = together()?;
            for (sequence, ids) in packed.sequences.iter().zip(texts) {
                kept.add(ids, &h.narrow(0, sequence.rows.start, sequence.rows.len())?)?;
            }
            return Ok(h);
        }
        let mut parts = Vec::with_capacity(texts.len());
        for (index, ids) in texts.into_iter().enumerate() {
            let part = match kept.states.get(ids) {
                Some(part) => part.clone(),
                None => reference.finish_one(packed, index, begun)?,
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
        if self.bytes + bytes <= KEPT_STATES && !self.states.contains_key(ids) {
            self.bytes += bytes;
            // A copy: a part of a batch would keep all of it.
            self.states.insert(ids.to_vec(), states.copy()?);
        }
        Ok(())
    }
}
