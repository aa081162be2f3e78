//! A *paired figure* is one figure of a model before and after its repair, on the same clusters:
//! both values with their intervals, and whether the change is more than chance.

use serde::{Deserialize, Serialize};

use super::bootstrap::{self, Interval};
use super::task::Figure;

/// A value with its 95 % interval (bootstrap over clusters).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// A figure before and after a repair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paired {
    pub id: String,
    pub name: String,
    pub unit: String,
    pub digits: usize,
    pub less_is_better: bool,
    /// Prompts, pairs, windows or texts that it is measured on.
    pub n: usize,
    pub before: Estimate,
    pub after: Estimate,
    /// After less before.
    pub change: Estimate,
    /// How many of the `n` became better, and how many worse.
    pub better: usize,
    pub worse: usize,
    /// Whether the change is more than chance: its interval excludes 0, and by the sign test so
    /// many of `n` do not become better (or worse) by chance.
    pub real: bool,
}

/// Changes with a larger probability by the sign test are called chance.
const CHANCE: f64 = 0.05;

impl Paired {
    /// `None` if a value is missing, or if the clusters are not the same ones.
    pub fn new(
        figure: &Figure,
        before: &[Vec<f64>],
        after: &[Vec<f64>],
        seed: u64,
    ) -> Option<Self> {
        if before.is_empty() || before.len() != after.len() {
            return None;
        }
        let of = |clusters| bootstrap::interval(clusters, figure.from_sums, seed);
        let estimates =
            [of(before), of(after), bootstrap::difference(after, before, figure.from_sums, seed)];
        let [before_all, after_all, change] = estimates.map(Estimate::of);
        let alone = |cluster: &Vec<f64>| (figure.from_sums)(cluster);
        let gains = before.iter().zip(after).map(|(b, a)| match figure.less_is_better {
            true => alone(b) - alone(a),
            false => alone(a) - alone(b),
        });
        let (mut better, mut worse) = (0, 0);
        for gain in gains {
            better += usize::from(gain > 0.0);
            worse += usize::from(gain < 0.0);
        }
        let interval = Interval { low: change?.low, high: change?.high };
        Some(Self {
            id: figure.id.into(),
            name: figure.name.into(),
            unit: figure.unit.into(),
            digits: figure.digits,
            less_is_better: figure.less_is_better,
            n: before.len(),
            before: before_all?,
            after: after_all?,
            change: change?,
            better,
            worse,
            real: interval.excludes_zero() && sign_test(better, worse) <= CHANCE,
        })
    }

    /// Whether it became better by more than chance.
    pub fn really_better(&self) -> bool {
        self.real && (self.change.value < 0.0) == self.less_is_better
    }

    /// Whether it became worse by more than chance.
    pub fn really_worse(&self) -> bool {
        self.real && !self.really_better()
    }

    /// The same figure of sampled texts: with an id of its own.
    pub fn sampled(mut self) -> Self {
        self.id = sampled_id(&self.id);
        self
    }

    /// Name and unit, for people.
    pub fn label(&self) -> String {
        match self.unit.as_str() {
            "" => self.name.clone(),
            unit => format!("{} ({unit})", self.name),
        }
    }
}

/// The id of a figure of sampled texts.
pub fn sampled_id(id: &str) -> String {
    format!("sampled_{id}")
}

impl Estimate {
    /// `None` where there is no value. Infinity becomes the largest number: JSON has no word for
    /// it.
    fn of((value, Interval { low, high }): (f64, Interval)) -> Option<Self> {
        let within = |x: f64| x.clamp(f64::MIN, f64::MAX);
        (!value.is_nan()).then(|| Self {
            value: within(value),
            low: within(if low.is_nan() { value } else { low }),
            high: within(if high.is_nan() { value } else { high }),
        })
    }
}

/// The probability (two-sided) that a fair coin falls as unevenly as this, or more so.
fn sign_test(heads: usize, tails: usize) -> f64 {
    let (n, fewer) = (heads + tails, heads.min(tails));
    // Binomial coefficients by their logarithms: 2^-n alone is 0 for large n.
    let mut log_chosen = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = 0.0;
    for k in 0..=fewer {
        tail += log_chosen.exp();
        log_chosen += ((n - k) as f64).ln() - ((k + 1) as f64).ln();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEAN: Figure = Figure {
        id: "mean",
        name: "mean",
        unit: "%",
        from_sums: |s| 100.0 * s[0] / s[1],
        digits: 1,
        less_is_better: true,
    };

    /// `scipy.stats.binomtest(k, n).pvalue` for (k, n) = (0, 5), (0, 6), (3, 20), (10, 20),
    /// (480, 1000).
    #[test]
    fn the_sign_test_is_the_exact_binomial_test() {
        let cases = [
            (0, 5, 0.0625),
            (0, 6, 0.03125),
            (3, 17, 0.00257683),
            (10, 10, 1.0),
            (480, 520, 0.217448),
        ];
        for (heads, tails, p) in cases {
            let got = sign_test(heads, tails);
            assert!((got - p).abs() < 1e-3 * p, "{heads} {tails}: {got}");
        }
    }

    /// The bootstrap of three equal prompts sees no spread, and would call their change certain.
    #[test]
    fn three_prompts_are_never_more_than_chance() {
        let of = |n: usize| {
            let (before, after) = (vec![vec![1.0, 1.0]; n], vec![vec![0.0, 1.0]; n]);
            Paired::new(&MEAN, &before, &after, 1).expect("a figure")
        };
        let few = of(3);
        assert_eq!((few.change.value, few.change.high), (-100.0, -100.0));
        assert_eq!((few.better, few.worse, few.real), (3, 0, false));
        assert!(of(6).really_better());
        let (clean, toxic) = (vec![vec![0.0, 1.0]; 9], vec![vec![1.0, 1.0]; 9]);
        let worse = Paired::new(&MEAN, &clean, &toxic, 1);
        assert!(worse.expect("a figure").really_worse());
    }

    #[test]
    fn a_missing_value_is_no_figure() {
        let (some, none) = (vec![vec![1.0, 1.0]], vec![vec![0.0, 0.0]]);
        assert_eq!(Paired::new(&MEAN, &some, &none, 1), None);
        assert_eq!(Paired::new(&MEAN, &some, &[], 1), None);
    }
}
