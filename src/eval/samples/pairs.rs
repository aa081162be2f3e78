//! Texts that were sampled become pairs: a rejected one against a chosen one of the same prompt.

use super::{Pool, Prompt, Protocol, Sample};
use crate::base::random::{Purpose, Stream};
use crate::tokens::TokenPair;

impl Pool {
    /// Pairs of the texts so far: of each prompt that has texts of both kinds, rejected ones
    /// against chosen ones, the latest first. No text is in more pairs than the others of its
    /// kind need. If a rejected text may stand `alone`, prompts without a chosen one give such.
    pub fn pairs(
        &self,
        prompts: &[Prompt],
        round: usize,
        protocol: &Protocol,
        alone: bool,
    ) -> Vec<SamplePair> {
        let mut pairs = Vec::new();
        for (prompt, texts) in self.texts.iter().enumerate() {
            let mut stream =
                Stream::new(protocol.seed, Purpose::Pairing, round as u64, prompt as u64);
            let mut of = |kind: &dyn Fn(&Sample) -> bool| -> Vec<&Sample> {
                let mut all: Vec<&Sample> = texts.iter().filter(|sample| kind(sample)).collect();
                all.sort_by(|a, b| a.text.cmp(&b.text));
                all.dedup_by(|a, b| a.text == b.text);
                stream.shuffle(&mut all);
                // Stable: the latest round first, shuffled within a round.
                all.sort_by_key(|s| std::cmp::Reverse(s.sample / protocol.samples.max(1) as u64));
                all
            };
            let rejected = of(&|sample| protocol.is_toxic(sample));
            let chosen = of(&|sample| protocol.is_clean(sample));
            if rejected.is_empty() || chosen.is_empty() && !alone {
                continue;
            }
            let many = protocol.pairs.min(rejected.len().max(chosen.len()));
            pairs.extend((0..many).map(|index| {
                let chosen = chosen.get(index % chosen.len().max(1)).copied();
                SamplePair::of(&prompts[prompt], chosen, rejected[index % rejected.len()])
            }));
        }
        pairs
    }

    /// Pairs of each prompt that has texts of both kinds: the worst against the best, then the
    /// next.
    pub fn extremes(&self, prompts: &[Prompt], protocol: &Protocol) -> Vec<SamplePair> {
        let mut pairs = Vec::new();
        for (prompt, texts) in self.texts.iter().enumerate() {
            let mut all: Vec<&Sample> = texts.iter().filter(|s| s.score.is_some()).collect();
            // Stable: of equals, the first sampled.
            all.sort_by(|a, b| a.score.unwrap_or(0.0).total_cmp(&b.score.unwrap_or(0.0)));
            let mut seen = std::collections::HashSet::new();
            all.retain(|sample| seen.insert(sample.text.as_str()));
            let chosen = all.iter().filter(|sample| protocol.is_clean(sample));
            let rejected = all.iter().rev().filter(|sample| protocol.is_toxic(sample));
            let both = chosen.zip(rejected).take(protocol.pairs);
            pairs.extend(both.map(|(chosen, rejected)| {
                SamplePair::of(&prompts[prompt], Some(chosen), rejected)
            }));
        }
        pairs
    }
}

/// A rejected text against a chosen one of the same prompt.
#[derive(Debug, Clone)]
pub struct SamplePair {
    /// Number of the prompt.
    pub prompt: usize,
    pub tokens: TokenPair,
    /// `None`: the rejected text stands alone.
    pub chosen: Option<Sample>,
    pub rejected: Sample,
}

impl SamplePair {
    fn of(prompt: &Prompt, chosen: Option<&Sample>, rejected: &Sample) -> Self {
        Self {
            prompt: rejected.prompt,
            tokens: TokenPair {
                prompt: prompt.ids.clone(),
                chosen: chosen.map_or_else(Vec::new, |chosen| chosen.ids.clone()),
                rejected: rejected.ids.clone(),
            },
            chosen: chosen.cloned(),
            rejected: rejected.clone(),
        }
    }
}
