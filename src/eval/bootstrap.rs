//! The *bootstrap* says how far a figure would move with other prompts or another text of the same
//! kind: percentile intervals over resampled clusters (Efron & Tibshirani 1993). The difference of
//! two models is paired: the same clusters are drawn for both.

use crate::base::random::{Purpose, Stream};

/// The middle 95 % of the resampled figures.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

impl Interval {
    /// Whether 0 lies outside. A difference with such an interval is more than chance.
    pub fn excludes_zero(&self) -> bool {
        self.low > 0.0 || self.high < 0.0
    }
}

const RESAMPLES: u64 = 1000;

/// The sums over clusters. Empty if there are none.
pub fn sum<'a>(clusters: impl Iterator<Item = &'a Vec<f64>>) -> Vec<f64> {
    let mut total = Vec::new();
    for cluster in clusters {
        total.resize(cluster.len().max(total.len()), 0.0);
        total.iter_mut().zip(cluster).for_each(|(t, c)| *t += c);
    }
    total
}

/// The interval of a figure. `figure` computes its value from the numbers of `n` drawn clusters.
/// Which clusters are drawn depends on `n` and `seed` alone.
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

/// The figure and interval of no clusters at all. A shard without units has none.
const NO_FIGURE: (f64, Interval) = (f64::NAN, Interval { low: f64::NAN, high: f64::NAN });

/// A figure, which `from_sums` computes from the sums over all clusters, and its interval. NaN if
/// there are no clusters.
pub fn interval(clusters: &[Vec<f64>], from_sums: fn(&[f64]) -> f64, seed: u64) -> (f64, Interval) {
    if clusters.is_empty() {
        return NO_FIGURE;
    }
    let interval = resampled(clusters.len(), seed, |drawn| {
        from_sums(&sum(drawn.iter().map(|i| &clusters[*i])))
    });
    (from_sums(&sum(clusters.iter())), interval)
}

/// The difference of a figure from the base's figure on the same clusters, and its interval. NaN
/// if there are no clusters.
pub fn difference(
    clusters: &[Vec<f64>],
    base: &[Vec<f64>],
    from_sums: fn(&[f64]) -> f64,
    seed: u64,
) -> (f64, Interval) {
    if clusters.is_empty() {
        return NO_FIGURE;
    }
    let value = from_sums(&sum(clusters.iter())) - from_sums(&sum(base.iter()));
    let interval = resampled(clusters.len(), seed, |drawn| {
        let ours = sum(drawn.iter().map(|i| &clusters[*i]));
        let theirs = sum(drawn.iter().map(|i| &base[*i]));
        from_sums(&ours) - from_sums(&theirs)
    });
    (value, interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(sums: &[f64]) -> f64 {
        sums[0] / sums[1]
    }

    /// The interval of a mean is about ± 1.96 standard errors. The interval of a paired difference
    /// does not count the noise that both models share.
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
