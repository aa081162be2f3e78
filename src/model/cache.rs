//! A *cache* holds the keys and values of the positions that generation has passed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;

use super::kernels::attention;
use super::padded::CachedBatch;

/// The cache of one layer. A pass fills the part that its implementation of the layers reads.
#[derive(Debug, Default)]
pub struct Cache {
    pub(super) kernel: Arc<Mutex<attention::Cache>>,
    padded: Mutex<Option<CachedBatch>>,
}

/// A poisoned cache belongs to a pass that has already failed.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cache {
    /// The part of the composed layers.
    pub(super) fn padded(&self) -> MutexGuard<'_, Option<CachedBatch>> {
        locked(&self.padded)
    }
}

/// The caches of all layers, for a batch of sequences.
#[derive(Debug)]
pub struct Caches {
    layers: Vec<Cache>,
}

impl Caches {
    /// Empty caches of so many blocks for this many sequences.
    pub fn new(blocks: usize, sequences: usize) -> Self {
        let caches = Self { layers: (0..blocks).map(|_| Cache::default()).collect() };
        caches.layers.iter().for_each(|layer| locked(&layer.kernel).add(sequences));
        caches
    }

    /// Room for so many sequences more, of which nothing is cached.
    pub fn add(&self, sequences: usize) -> Result<()> {
        if sequences > 0 {
            for layer in &self.layers {
                locked(&layer.kernel).add(sequences);
                locked(&layer.padded).as_mut().map_or(Ok(()), |batch| batch.add(sequences))?;
            }
        }
        Ok(())
    }

    /// That of a block.
    pub fn of(&self, block: usize) -> &Cache {
        &self.layers[block]
    }

    /// For each of `of` what is cached of the sequence of that number: copies of one, where it is
    /// named again.
    pub fn spread(&self, of: &[usize]) -> Result<()> {
        for layer in &self.layers {
            locked(&layer.kernel).spread(of);
            locked(&layer.padded).as_mut().map_or(Ok(()), |batch| batch.spread(of))?;
        }
        Ok(())
    }

    /// Keep only the sequences for which `keep` says so (finished ones leave).
    pub fn retain(&self, keep: &[bool]) -> Result<()> {
        let kept: Vec<usize> = (0..).zip(keep).filter(|(_, k)| **k).map(|(i, _)| i).collect();
        for layer in &self.layers {
            locked(&layer.kernel).spread(&kept);
            let mut padded = locked(&layer.padded);
            match kept.is_empty() {
                true => *padded = None,
                false => padded.as_mut().map_or(Ok(()), |batch| batch.spread(&kept))?,
            }
        }
        Ok(())
    }
}
