//! Tokens that tell a rejected response from a chosen one, found by counting: nobody lists them,
//! and a language that no word list knows has them, too.

use candle_core::{Device, Result, Tensor};

use crate::tokens::TokenPair;

/// How surely a token must come from a rejected response, were both kinds as long.
const SURE: f64 = 0.9;
/// How often it must be in them: what is rarer tells of a prompt, not of the error.
const LEAST: usize = 10;

/// A token and how it is spread over the responses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MarkerToken {
    pub token: u32,
    /// Occurrences in the chosen and in the rejected responses.
    pub chosen: usize,
    pub rejected: usize,
    /// 2P − 1, where P is the probability that an occurrence comes from a rejected response: in
    /// (0.8, 1).
    pub weight: f64,
}

/// The marker tokens of these pairs, likeliest in rejected responses first, in a vocabulary of so
/// many. Frequencies are smoothed by half an occurrence a token.
pub fn marker_tokens(pairs: &[TokenPair], vocabulary: usize) -> Vec<MarkerToken> {
    let mut counts = vec![[0usize; 2]; vocabulary];
    for pair in pairs {
        for (kind, response) in [&pair.chosen, &pair.rejected].into_iter().enumerate() {
            for &token in response {
                if let Some(counts) = counts.get_mut(token as usize) {
                    counts[kind] += 1;
                }
            }
        }
    }
    let all = |kind: usize| {
        counts.iter().map(|c| c[kind]).sum::<usize>() as f64 + 0.5 * vocabulary as f64
    };
    let all = [all(0), all(1)];
    let tells = |(token, &[chosen, rejected]): (usize, &[usize; 2])| {
        let share = |count: usize, kind: usize| (count as f64 + 0.5) / all[kind];
        let sure = share(rejected, 1) / (share(rejected, 1) + share(chosen, 0));
        let weight = 2.0 * sure - 1.0;
        (sure >= SURE && rejected >= LEAST).then_some(MarkerToken {
            token: token as u32,
            chosen,
            rejected,
            weight,
        })
    };
    let mut found: Vec<MarkerToken> = counts.iter().enumerate().filter_map(tells).collect();
    found.sort_by_key(|t| std::cmp::Reverse(t.rejected));
    found
}

/// The weight of each token of the vocabulary (V), 0 where it tells nothing.
pub fn weights(found: &[MarkerToken], vocabulary: usize, device: &Device) -> Result<Tensor> {
    let mut weights = vec![0f32; vocabulary];
    for marker in found {
        weights[marker.token as usize] = marker.weight as f32;
    }
    Tensor::from_vec(weights, vocabulary, device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(chosen: &[u32], rejected: &[u32]) -> TokenPair {
        TokenPair { prompt: vec![0], chosen: chosen.to_vec(), rejected: rejected.to_vec() }
    }

    #[test]
    fn what_is_frequent_in_rejected_responses_alone_tells() {
        // 3: in rejected ones alone. 4: in both. 5: in rejected ones alone, but rare. 6: mostly,
        // not surely.
        let mut pairs = vec![pair(&[1, 4, 6], &[2, 3, 4, 6]); 6];
        pairs.extend(vec![pair(&[1, 4, 1], &[2, 3, 4, 6]); 6]);
        pairs.push(pair(&[1, 4, 6], &[5, 5, 5, 4]));
        let found = marker_tokens(&pairs, 8);
        let tokens: Vec<u32> = found.iter().map(|t| t.token).collect();
        assert_eq!(tokens, [2, 3]);
        assert_eq!((found[1].chosen, found[1].rejected), (0, 12));
        // By hand: (12.5 / (52 + 4)) against (0.5 / (39 + 4)).
        let (rejected, chosen) = (12.5 / 56.0, 0.5 / 43.0);
        assert!((found[1].weight - (rejected - chosen) / (rejected + chosen)).abs() < 1e-12);
        let weights =
            weights(&found, 8, &Device::Cpu).and_then(|w| w.to_vec1::<f32>()).expect("weights");
        assert_eq!([weights[0], weights[4], weights[5], weights[6]], [0.0; 4]);
        assert!((f64::from(weights[3]) - found[1].weight).abs() < 1e-7);
    }
}
