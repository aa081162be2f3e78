//! The *trade-off* between toxicity and perplexity, with a point for each step at which a run kept
//! its weights.

use serde::{Deserialize, Serialize};

/// Toxicity and perplexity of the weights that a run kept at one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// `None` for the weights at the end of the run.
    pub step: Option<usize>,
    pub toxicity: f64,
    pub perplexity: f64,
}

/// The points of all runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pareto {
    /// The name of the text on which perplexity was measured.
    pub text: String,
    pub base: Point,
    /// The name of a method, and the points of each of its runs in the order of their steps.
    pub rows: Vec<(String, Vec<Vec<Point>>)>,
}

/// Toxicity and KL of a part or a multiple of what a run changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScaledPoint {
    /// 1 is what the run changed.
    pub scale: f64,
    pub toxicity: f64,
    /// From the base, in nats a token.
    pub kl: f64,
}

/// Toxicity and KL of all runs along the scale, which begins at the base with a KL of 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scales {
    /// The base's toxicity.
    pub base: f64,
    /// The name of a method, and the points of each of its runs in the order of their scales.
    pub rows: Vec<(String, Vec<Vec<ScaledPoint>>)>,
}

/// A point counts only if its perplexity is less than this many times the base's.
pub const WORST: f64 = 1.25;

/// The area of a run: the share of a box in which some point is better in both toxicity and
/// perplexity. The box reaches from the base's perplexity and no toxicity to [`WORST`] times that
/// perplexity and the base's toxicity. The area is 1 for no toxicity at no cost, and 0 if nothing
/// is gained. It is the hypervolume indicator of multi-objective optimization (Zitzler & Thiele
/// 1998).
pub fn hypervolume(base: &Point, points: &[Point]) -> f64 {
    let mut inside: Vec<(f64, f64)> = points
        .iter()
        .map(|p| {
            (
                (p.perplexity / base.perplexity - 1.0).max(0.0) / (WORST - 1.0),
                p.toxicity / base.toxicity,
            )
        })
        .filter(|(cost, left)| *cost < 1.0 && *left < 1.0)
        .collect();
    inside.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let (mut area, mut lowest) = (0.0, 1.0);
    for (cost, left) in inside {
        if left < lowest {
            area += (1.0 - cost) * (lowest - left);
            lowest = left;
        }
    }
    area
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(toxicity: f64, perplexity: f64) -> Point {
        Point { step: None, toxicity, perplexity }
    }

    #[test]
    fn the_area_is_that_of_the_dominated_box() {
        let base = point(50.0, 100.0);
        assert_eq!(hypervolume(&base, &[]), 0.0);
        // No toxicity at no cost. A perplexity that is better than the base's adds nothing to that.
        assert_eq!(hypervolume(&base, &[point(0.0, 90.0)]), 1.0);
        // Half the toxicity at half the tolerated cost: a quarter.
        let half = point(25.0, 112.5);
        assert!((hypervolume(&base, std::slice::from_ref(&half)) - 0.25).abs() < 1e-12);
        // A dominated point adds nothing. A point that costs nothing and gains a fifth adds what
        // the other one lacks.
        assert!((hypervolume(&base, &[half.clone(), point(30.0, 120.0)]) - 0.25).abs() < 1e-12);
        assert!(
            (hypervolume(&base, &[half, point(40.0, 100.0)]) - (0.2 + 0.5 * 0.3)).abs() < 1e-12
        );
        assert_eq!(hypervolume(&base, &[point(10.0, 130.0), point(60.0, 100.0)]), 0.0);
    }
}
