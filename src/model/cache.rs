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
        let layer = || Cache {
            kernel: Arc::new(Mutex::new(attention::Cache::new(sequences))),
            padded: Mutex::default(),
        };
        Self { layers: (0..blocks).map(|_| layer()).collect() }
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
        for layer in &self.layers {
            locked(&layer.kernel).retain(keep);
            locked(&layer.padded).as_mut().map_or(Ok(()), |batch| batch.retain(keep))?;
        }
        Ok(())
    }
}
