//! A *pass* is one way of a packed batch through the blocks.

use std::cell::{OnceCell, RefCell};

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};

use super::cache::Cache;
use super::kernels::rotary::Rotary;
use super::padded::Padded;
use crate::tokens::Packed;

/// What a block needs beside its input: where the sequences are, and in generation the layer's
/// cache.
pub struct Pass<'a> {
    pub packed: &'a Packed,
    pub cache: Option<&'a Cache>,
    /// Made by the first composed layer that wants it, for all of them.
    padded: OnceCell<Padded>,
    /// Cosines and sines (N,1,1,P) of each kind of rotary positions, likewise.
    turns: RefCell<Vec<(*const Rotary, [Tensor; 2])>>,
}

impl<'a> Pass<'a> {
    /// Without caches.
    pub fn new(packed: &'a Packed) -> Self {
        Self { packed, cache: None, padded: OnceCell::new(), turns: RefCell::default() }
    }

    pub(super) fn padded(&self, device: &Device) -> Result<&Padded> {
        if self.padded.get().is_none() {
            // Set by no one else in between: a pass runs on one thread.
            let _ = self.padded.set(Padded::new(self.packed, device)?);
        }
        self.padded.get().context("the padded layout of a pass")
    }

    /// Those of a kind of rotary positions: (N,1,1,P) each.
    pub(super) fn turns(&self, rotary: &Rotary, device: &Device) -> Result<[Tensor; 2]> {
        let kind = std::ptr::from_ref(rotary);
        if let Some((_, made)) = self.turns.borrow().iter().find(|(of, _)| *of == kind) {
            return Ok(made.clone());
        }
        let (turns, pairs, positions) =
            (rotary.turns(&self.packed.positions), rotary.pairs(), &self.packed.positions);
        let table = |of: &[f32]| {
            let rows =
                positions.iter().flat_map(|at| &of[*at as usize * pairs..][..pairs]).copied();
            let shape = (positions.len(), 1, 1, pairs);
            Tensor::from_vec(rows.collect::<Vec<f32>>(), shape, device)
        };
        let made = [table(&turns.cosines)?, table(&turns.sines)?];
        self.turns.borrow_mut().push((kind, made.clone()));
        Ok(made)
    }
}
