//! Percentile bootstrap over clusters (Efron & Tibshirani 1993): how far a figure would move with other prompts or
//! another text of the same kind. Paired differences draw the same clusters for both models.

use crate::base::random::{Purpose, Stream};

/// The middle 95 % of the resampled figures.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

impl Interval {
    /// Whether 0 lies outside: a difference that is more than chance.
    pub fn excludes_zero(&self) -> bool {
        self.low > 0.0 || self.high < 0.0
    }
}

const RESAMPLES: u64 = 1000;

fn sum<'a>(clusters: impl Iterator<Item = &'a Vec<f64>>) -> Vec<f64> {
    let mut total = Vec::new();
    for cluster in clusters {
        total.resize(cluster.len().max(total.len()), 0.0);
        total.iter_mut().zip(cluster).for_each(|(t, c)| *t += c);
    }
    total
}

/// Figures of resampled clusters: the same draws for the same number of clusters and seed.
fn resampled(n: usize, seed: u64, mut figure: impl FnMut(&[usize]) -> f64) -> Interval {
    let mut drawn = vec![0; n];
    let mut values: Vec<f64> = (0..RESAMPLES)
        .map(|resample| {
            let mut stream = Stream::new(seed, Purpose::Bootstrap, resample, 0);
            drawn.iter_mut().for_each(|d| *d = stream.below(n));
            figure(&drawn)
        })
        .filter(|value| value.is_finite())
        .collect();
    values.sort_by(f64::total_cmp);
    let at = |share: f64| {
        values.get((share * (values.len().max(1) - 1) as f64).round() as usize).copied()
    };
    Interval { low: at(0.025).unwrap_or(f64::NAN), high: at(0.975).unwrap_or(f64::NAN) }
}

/// Of nothing, as a part without units has it: no figure.
const NONE: (f64, Interval) = (f64::NAN, Interval { low: f64::NAN, high: f64::NAN });

/// A figure of all clusters' sums, and its interval.
pub fn interval(clusters: &[Vec<f64>], of: fn(&[f64]) -> f64, seed: u64) -> (f64, Interval) {
    if clusters.is_empty() {
        return NONE;
    }
    let value = of(&sum(clusters.iter()));
    (value, resampled(clusters.len(), seed, |drawn| of(&sum(drawn.iter().map(|i| &clusters[*i])))))
}

/// The difference of a figure from the base's on the same clusters, and its interval.
pub fn difference(
    clusters: &[Vec<f64>],
    base: &[Vec<f64>],
    of: fn(&[f64]) -> f64,
    seed: u64,
) -> (f64, Interval) {
    if clusters.is_empty() {
        return NONE;
    }
    let value = of(&sum(clusters.iter())) - of(&sum(base.iter()));
    let interval = resampled(clusters.len(), seed, |drawn| {
        let ours = sum(drawn.iter().map(|i| &clusters[*i]));
        let theirs = sum(drawn.iter().map(|i| &base[*i]));
        of(&ours) - of(&theirs)
    });
    (value, interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(sums: &[f64]) -> f64 {
        sums[0] / sums[1]
    }

    /// The interval of a mean is about ± 1.96 standard errors; that of a paired difference knows what both share.
    #[test]
    fn intervals_are_those_of_the_normal_distribution() {
        let mut stream = Stream::new(1, Purpose::Bench, 0, 0);
        let noise: Vec<f64> = (0..400).map(|_| stream.normal()).collect();
        let clusters: Vec<Vec<f64>> = noise.iter().map(|x| vec![5.0 + x, 1.0]).collect();
        let (value, interval) = interval(&clusters, mean, 7);
        let error = 1.96 / 20.0;
        assert!((value - 5.0).abs() < 2.0 * error);
        assert!((interval.high - value - error).abs() < 0.2 * error, "{interval:?} of {value}");
        assert!((value - interval.low - error).abs() < 0.2 * error, "{interval:?} of {value}");
        let base: Vec<Vec<f64>> = noise.iter().map(|x| vec![4.99 + x, 1.0]).collect();
        let (value, interval) = difference(&clusters, &base, mean, 7);
        assert!((value - 0.01).abs() < 1e-9 && interval.excludes_zero(), "{interval:?}");
    }
}
