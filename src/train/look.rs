//! A selector's look at a sample of the pairs, before the first step.

use std::time::Instant;

use anyhow::Result;

use super::Trainer;
use super::log::Cost;
use crate::base::error::Error;
use crate::base::interrupt;
use crate::base::profile::operations;
use crate::base::progress::Progress;
use crate::base::random::{Purpose, Stream};
use crate::tokens::PairBatch;

impl Trainer<'_> {
    /// The selector looks at so many of the pairs at most. Errors if the user asks to stop.
    pub fn look_at(&mut self, sample: usize, quiet: bool) -> Result<()> {
        let regime = &self.regime;
        let pairs = drawn(&self.rows.pairs, sample, regime.seed);
        let (begun, counted, mut seen) = (Instant::now(), operations(), 0);
        let mut progress = Progress::new("looking at pairs", 0, pairs.len(), quiet);
        let chunks = pairs.chunks(regime.batch_size).take_while(|_| !interrupt::asked());
        let mut batches = chunks.map(|pairs| {
            let batch = PairBatch::new(pairs, regime.loss_on);
            seen += batch.rejected.packed.ids.len();
            progress.advance(pairs.len());
            batch
        });
        self.method.look(self.model, &self.weights, &mut batches)?;
        drop(batches);
        progress.finish();
        self.look = Cost::since(begun, counted, seen);
        if interrupt::asked() {
            return Err(Error::Interrupted("interrupted".into()).into());
        }
        Ok(())
    }
}

/// A seeded choice of rows, in their order.
pub fn drawn<T>(rows: &[T], size: usize, seed: u64) -> Vec<&T> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    Stream::new(seed, Purpose::Look, 0, 0).shuffle(&mut order);
    order.truncate(size);
    order.sort_unstable();
    order.into_iter().map(|index| &rows[index]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_drawn_by_the_seed_from_all_rows() {
        let rows: Vec<usize> = (0..100).collect();
        let of = |size, seed| drawn(&rows, size, seed).into_iter().copied().collect::<Vec<_>>();
        assert_eq!(of(100, 1), rows);
        let (one, other) = (of(10, 1), of(10, 2));
        assert!(one.len() == 10 && one.is_sorted() && one != other && one == of(10, 1));
        assert!(one.last() > Some(&50), "only the first rows: {one:?}");
    }
}
