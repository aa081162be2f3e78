//! Seeded *random streams*, one for each purpose. Drawing more for one purpose never changes
//! another.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

/// What random numbers are drawn for.
#[derive(Debug, Clone, Copy)]
pub enum Purpose {
    /// The order of the pairs in an epoch.
    Pairs,
    /// The order of the normal texts in an epoch.
    Normal,
    /// Which rows are held back.
    Split,
    /// Which pairs a selector looks at before the first step.
    Look,
    /// Tokens of a generated text.
    Sample,
    /// Which clusters a bootstrap sample has.
    Bootstrap,
    /// The weights and token ids of `bench`.
    Bench,
    /// Which prompts are sampled.
    Prompts,
    /// Which of a prompt's texts make pairs.
    Pairing,
}

/// The stream of one (seed, purpose, a, b). What `a` and `b` count depends on the purpose: epochs,
/// or prompts and their samples.
pub struct Stream(ChaCha8Rng);

impl Stream {
    pub fn new(seed: u64, purpose: Purpose, a: u64, b: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(format!("irepair {seed} {purpose:?} {a} {b}"));
        Self(ChaCha8Rng::from_seed(hash.finalize().into()))
    }

    /// Uniform in [0, 1), with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `0..n`, without bias. `n` must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        let n = n.max(1) as u64;
        // Numbers from the largest multiple of n on would favour small results: they are drawn
        // again.
        let limit = u64::MAX - u64::MAX % n;
        loop {
            let x = self.0.next_u64();
            if x < limit {
                return (x % n) as usize;
            }
        }
    }

    /// Standard normal, by the method of Box and Muller.
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.unit(), self.unit());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// Shuffles by the method of Fisher and Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// The `batch`-th batch of `size` indices below `n`. The batches go through one shuffled epoch
/// after another; an epoch has every index once. The result depends on the arguments alone, so a
/// resumed run draws the same batches.
pub fn batch_indices(
    seed: u64,
    purpose: Purpose,
    n: usize,
    size: usize,
    batch: usize,
) -> Vec<usize> {
    let mut order: Vec<usize> = Vec::new();
    let mut epoch_of_order = None;
    (batch * size..(batch + 1) * size)
        .map(|at| {
            let epoch = at / n;
            if epoch_of_order != Some(epoch) {
                order = (0..n).collect();
                Stream::new(seed, purpose, epoch as u64, 0).shuffle(&mut order);
                epoch_of_order = Some(epoch);
            }
            order[at % n]
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_holds_every_row_once_and_epochs_differ() {
        let epoch = |e: usize| -> Vec<usize> {
            (e * 5..e * 5 + 5).flat_map(|b| batch_indices(7, Purpose::Pairs, 20, 4, b)).collect()
        };
        let (first, second) = (epoch(0), epoch(1));
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..20).collect::<Vec<_>>());
        assert_ne!(first, sorted, "not shuffled");
        assert_ne!(first, second);
        assert_ne!(
            first,
            (0..5).flat_map(|b| batch_indices(8, Purpose::Pairs, 20, 4, b)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let mut stream = Stream::new(1, Purpose::Bench, 0, 0);
        let n = 20_000;
        let normals: Vec<f64> = (0..n).map(|_| stream.normal()).collect();
        let mean = normals.iter().sum::<f64>() / n as f64;
        let variance = normals.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
        assert!((0..1000).all(|_| stream.below(3) < 3));
    }
}
