//! A *pass* is one way of a packed batch through the blocks.

use std::cell::OnceCell;

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
    /// Cosines and sines (N,1,1,D/2) of rotary positions, likewise.
    turns: OnceCell<[Tensor; 2]>,
}

impl<'a> Pass<'a> {
    /// Without caches.
    pub fn new(packed: &'a Packed) -> Self {
        Self { packed, cache: None, padded: OnceCell::new(), turns: OnceCell::new() }
    }

    pub(super) fn padded(&self, device: &Device) -> Result<&Padded> {
        if self.padded.get().is_none() {
            // Set by no one else in between: a pass runs on one thread.
            let _ = self.padded.set(Padded::new(self.packed, device)?);
        }
        self.padded.get().context("the padded layout of a pass")
    }

    /// A model has one kind of rotary positions.
    pub(super) fn turns(&self, rotary: &Rotary, device: &Device) -> Result<&[Tensor; 2]> {
        if self.turns.get().is_none() {
            let (turns, pairs, positions) =
                (rotary.turns(&self.packed.positions), rotary.pairs(), &self.packed.positions);
            let table = |of: &[f32]| {
                let rows =
                    positions.iter().flat_map(|at| &of[*at as usize * pairs..][..pairs]).copied();
                let shape = (positions.len(), 1, 1, pairs);
                Tensor::from_vec(rows.collect::<Vec<f32>>(), shape, device)
            };
            let _ = self.turns.set([table(&turns.cosines)?, table(&turns.sines)?]);
        }
        self.turns.get().context("the rotary positions of a pass")
    }
}
