//! *Calibration*: how well a scorer agrees with stored scores of the same texts.

use serde::Serialize;

use super::scorer::TOXIC;

/// Agreement of a scorer with stored scores.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Calibration {
    pub texts: usize,
    /// Rank correlation. Equal scores have their mean rank.
    pub spearman: f64,
    /// The probability that a text with a toxic stored score (0.5 and above) scores higher than one
    /// without. Equal scores count half.
    pub auc: f64,
    /// Among the texts that the scorer calls toxic: the share with a toxic stored score.
    pub precision: f64,
    /// Among the texts with a toxic stored score: the share that the scorer calls toxic.
    pub recall: f64,
    /// The texts by the scorer's score, in ten equal ranges.
    pub bins: Vec<Bin>,
}

/// The texts that a scorer gives `from..to`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bin {
    pub from: f64,
    pub to: f64,
    pub texts: usize,
    /// The mean stored score.
    pub stored: Option<f64>,
    /// The share with a toxic stored score.
    pub toxic: Option<f64>,
}

/// The ranks of values, from 1. Equal values have their mean rank.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut begin = 0;
    while begin < order.len() {
        let same =
            order[begin..].iter().take_while(|i| values[**i] == values[order[begin]]).count();
        let rank = begin as f64 + (same as f64 + 1.0) / 2.0;
        order[begin..begin + same].iter().for_each(|i| ranks[*i] = rank);
        begin += same;
    }
    ranks
}

fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len() as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        let (x, y) = (x - mean_a, y - mean_b);
        ab += x * y;
        aa += x * x;
        bb += y * y;
    }
    ab / (aa * bb).sqrt()
}

/// Compares (score, stored score) of texts. `None` if the stored scores are all toxic or all not.
pub fn calibrate(pairs: &[(f64, f64)]) -> Option<Calibration> {
    let (scores, stored): (Vec<f64>, Vec<f64>) = pairs.iter().copied().unzip();
    let toxic = |stored: f64| stored >= TOXIC;
    let n_toxic = stored.iter().filter(|s| toxic(**s)).count();
    if n_toxic == 0 || n_toxic == pairs.len() {
        return None;
    }
    let rank = ranks(&scores);
    let sum: f64 = rank.iter().zip(&stored).filter(|(_, s)| toxic(**s)).map(|(r, _)| r).sum();
    let (n1, n0) = (n_toxic as f64, (pairs.len() - n_toxic) as f64);
    let called = scores.iter().filter(|s| **s >= TOXIC).count();
    let both =
        pairs.iter().filter(|(score, stored)| *score >= TOXIC && toxic(*stored)).count() as f64;
    let bins = (0..10).map(|tenth| {
        let own: Vec<f64> = pairs
            .iter()
            .filter(|(score, _)| ((score * 10.0) as usize).min(9) == tenth)
            .map(|(_, stored)| *stored)
            .collect();
        let share = |x: f64| (!own.is_empty()).then(|| x / own.len() as f64);
        Bin {
            from: tenth as f64 / 10.0,
            to: (tenth + 1) as f64 / 10.0,
            texts: own.len(),
            stored: share(own.iter().sum()),
            toxic: share(own.iter().filter(|s| toxic(**s)).count() as f64),
        }
    });
    Some(Calibration {
        texts: pairs.len(),
        spearman: pearson(&rank, &ranks(&stored)),
        auc: (sum - n1 * (n1 + 1.0) / 2.0) / (n1 * n0),
        precision: both / called.max(1) as f64,
        recall: both / n1,
        bins: bins.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected, on the same numbers: scipy 1.17 `spearmanr(scores, stored)[0]`, and scikit-learn
    /// 1.9 `roc_auc_score([x >= 0.5 for x in stored], scores)`.
    #[test]
    fn agreement_is_that_of_scipy_and_scikit_learn() {
        let scores = [0.1, 0.4, 0.35, 0.8, 0.8, 0.2, 0.55, 0.05];
        let stored = [0.2, 0.6, 0.1, 0.9, 0.4, 0.3, 0.7, 0.1];
        let pairs: Vec<(f64, f64)> = scores.into_iter().zip(stored).collect();
        let found = calibrate(&pairs).expect("both kinds");
        assert!((found.spearman - 0.7951807228915663).abs() < 1e-9, "{}", found.spearman);
        assert!((found.auc - 0.8333333333333334).abs() < 1e-9, "{}", found.auc);
        assert_eq!((found.precision, found.recall), (2.0 / 3.0, 2.0 / 3.0));
        assert_eq!(found.bins.iter().map(|b| b.texts).sum::<usize>(), 8);
        assert_eq!(calibrate(&[(0.1, 0.2), (0.9, 0.3)]), None);
    }
}
