//! *Generation* samples texts with a key/value cache. Each text has a seeded stream of random
//! numbers of its own, so that batches change nothing.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Result;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Model;
use super::cache::Caches;
use super::finite::finite;
use super::weights::View;
use crate::base::interrupt;
use crate::base::random::{Purpose, Stream};
use crate::tokens::Packed;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Sampling {
    /// The most likely token.
    Greedy,
    /// From softmax(logits / temperature), cut to the `top_k` likeliest (0 = all), then to the
    /// smallest set whose probability reaches `top_p`.
    Random { temperature: f64, top_k: usize, top_p: f64 },
}

/// One text to write: `sample` of prompt number `prompt` has its own stream.
#[derive(Debug, Clone)]
pub struct Job {
    pub ids: Vec<u32>,
    pub prompt: u64,
    pub sample: u64,
    /// Takes the most likely tokens, however the other texts are sampled.
    pub greedy: bool,
}

impl Job {
    /// One that is sampled as the others.
    pub fn new(ids: Vec<u32>, prompt: u64, sample: u64) -> Self {
        Self { ids, prompt, sample, greedy: false }
    }
}

/// Tokens that end a text.
pub type Ends = Arc<[u32]>;

/// What all texts have in common.
#[derive(Debug, Clone)]
pub struct Generation {
    pub sampling: Sampling,
    pub max_new_tokens: usize,
    /// A text ends with one of these (which is not part of it).
    pub ends: Ends,
    pub seed: u64,
    /// Texts that are written at a time, at least 1: where some end, others begin.
    pub at_a_time: usize,
}

/// A text that is being written.
struct Running {
    index: usize,
    stream: Stream,
    sampling: Sampling,
    /// Tokens of the prompt and of the text so far.
    length: usize,
    last: u32,
}

impl Running {
    fn new(index: usize, job: &Job, settings: &Generation) -> Self {
        Self {
            index,
            stream: Stream::new(settings.seed, Purpose::Sample, job.prompt, job.sample),
            sampling: if job.greedy { Sampling::Greedy } else { settings.sampling },
            length: job.ids.len(),
            last: 0,
        }
    }
}

/// Texts that begin together.
struct Beginning<'a> {
    texts: Vec<Running>,
    /// Their different prompts.
    prompts: Vec<&'a [u32]>,
    /// For each text, which prompt it continues.
    of: Vec<usize>,
}

impl<'a> Beginning<'a> {
    fn new(first: usize, jobs: &'a [Job], settings: &Generation) -> Self {
        let (mut prompts, mut numbers) = (Vec::new(), HashMap::new());
        let of = jobs.iter().map(|job| {
            *numbers.entry(job.ids.as_slice()).or_insert_with(|| {
                prompts.push(job.ids.as_slice());
                prompts.len() - 1
            })
        });
        let of = of.collect();
        let texts = (first..).zip(jobs).map(|(index, job)| Running::new(index, job, settings));
        Self { texts: texts.collect(), prompts, of }
    }
}

/// The new tokens of texts, in order. A prompt of several texts that begin together is read once.
/// When asked to stop ([`interrupt::asked`]), it returns what there is so far.
pub fn generate(
    model: &Model,
    view: &View,
    jobs: &[Job],
    settings: &Generation,
) -> Result<Vec<Vec<u32>>> {
    let mut texts: Vec<Vec<u32>> = vec![Vec::new(); jobs.len()];
    if settings.max_new_tokens == 0 {
        return Ok(texts);
    }
    let at_a_time = settings.at_a_time.max(1);
    let context = model.sizes().context;
    let caches = Caches::new(model.sizes().blocks, 0);
    let mut running: Vec<Running> = Vec::new();
    let mut begun = 0;
    while begun < jobs.len() || !running.is_empty() {
        // A pass over few new prompts costs a device as much as one over many.
        let free = at_a_time - running.len();
        let room = if free >= at_a_time.div_ceil(4) { free.min(jobs.len() - begun) } else { 0 };
        let new = Beginning::new(begun, &jobs[begun..begun + room], settings);
        begun += room;
        caches.add(new.prompts.len())?;
        let last: Vec<[u32; 1]> = running.iter().map(|text| [text.last]).collect();
        let old = last.iter().zip(&running).map(|(id, text)| (id.as_slice(), text.length - 1));
        let packed = Packed::continuing(old.chain(new.prompts.iter().map(|ids| (*ids, 0))));
        let logits = model.next_logits(view, &packed, &caches)?;
        let mut rows = logits.to_vec2::<f32>()?;
        rows.iter().try_for_each(|row| finite("the model's logits", row))?;
        if new.prompts.len() < new.texts.len() {
            let old = running.len();
            let of: Vec<usize> = (0..old).chain(new.of.iter().map(|prompt| old + prompt)).collect();
            caches.spread(&of)?;
            rows = of.iter().map(|row| rows[*row].clone()).collect();
        }
        running.extend(new.texts);
        running.par_iter_mut().zip(rows).for_each(|(text, mut logits)| {
            text.last = next(&mut logits, text.sampling, &mut text.stream);
        });
        let goes_on: Vec<bool> = running
            .iter_mut()
            .map(|text| {
                if settings.ends.contains(&text.last) {
                    return false;
                }
                texts[text.index].push(text.last);
                text.length += 1;
                // The token at the last position is written, but nothing can follow it.
                text.length < context && texts[text.index].len() < settings.max_new_tokens
            })
            .collect();
        if goes_on.iter().any(|g| !g) {
            caches.retain(&goes_on)?;
            let mut flags = goes_on.iter();
            running.retain(|_| flags.next().copied().unwrap_or(false));
        }
        if interrupt::asked() {
            break;
        }
    }
    Ok(texts)
}

/// Chooses a token; the first of equals.
fn next(logits: &mut [f32], sampling: Sampling, stream: &mut Stream) -> u32 {
    let best = || {
        let mut best = 0;
        for (i, x) in logits.iter().enumerate() {
            if *x > logits[best] {
                best = i;
            }
        }
        best as u32
    };
    let (temperature, top_k, top_p) = match sampling {
        Sampling::Greedy => return best(),
        Sampling::Random { temperature, .. } if temperature <= 0.0 => return best(),
        Sampling::Random { temperature, top_k, top_p } => (temperature, top_k, top_p),
    };
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> =
        logits.iter().map(|x| (f64::from(x - top) / temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    // Likeliest first, ties by id. Sorted only as far down as the cut can reach.
    let mut order: Vec<u32> = (0..weights.len() as u32).collect();
    let likelier =
        |a: &u32, b: &u32| weights[*b as usize].total_cmp(&weights[*a as usize]).then(a.cmp(b));
    let keep = if top_k == 0 { order.len() } else { top_k.min(order.len()) };
    let mut sorted = 0;
    let mut kept: Vec<u32> = Vec::new();
    let mut mass = 0.0;
    // The nucleus is a part of what top-k leaves, as in transformers.
    let mut whole = total;
    if keep < order.len() {
        order.select_nth_unstable_by(keep - 1, likelier);
        order.truncate(keep);
        order.sort_unstable_by(likelier);
        sorted = keep;
        whole = order.iter().map(|i| weights[*i as usize]).sum();
    }
    while kept.len() < keep && (kept.is_empty() || mass < top_p * whole) {
        if kept.len() == sorted {
            let more = (sorted.max(64) * 4).min(order.len());
            if more < order.len() {
                order[sorted..].select_nth_unstable_by(more - sorted - 1, likelier);
            }
            order[sorted..more].sort_unstable_by(likelier);
            sorted = more;
        }
        let id = order[kept.len()];
        mass += weights[id as usize];
        kept.push(id);
    }
    let mut at = stream.unit() * mass;
    for id in &kept {
        at -= weights[*id as usize];
        if at < 0.0 {
            return *id;
        }
    }
    kept.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(logits: &[f32], sampling: Sampling) -> Vec<f64> {
        let n = 20_000;
        let mut counts = vec![0f64; logits.len()];
        let mut stream = Stream::new(3, Purpose::Sample, 0, 0);
        for _ in 0..n {
            counts[next(&mut logits.to_vec(), sampling, &mut stream) as usize] +=
                1.0 / f64::from(n);
        }
        counts
    }

    #[test]
    fn samples_follow_the_distribution() {
        let p: [f32; 4] = [0.1, 0.5, 0.15, 0.25];
        let logits = p.map(f32::ln);
        let all = draws(&logits, Sampling::Random { temperature: 1.0, top_k: 0, top_p: 1.0 });
        assert!(
            all.iter().zip(p).all(|(got, want)| (got - f64::from(want)).abs() < 0.015),
            "{all:?}"
        );
        // 0.5 + 0.25 < 0.8 ≤ 0.5 + 0.25 + 0.15: three tokens, renormalized.
        let nucleus = draws(&logits, Sampling::Random { temperature: 1.0, top_k: 0, top_p: 0.8 });
        assert_eq!(nucleus[0], 0.0);
        assert!((nucleus[1] - 0.5 / 0.9).abs() < 0.015, "{nucleus:?}");
        let top2 = draws(&logits, Sampling::Random { temperature: 1.0, top_k: 2, top_p: 1.0 });
        assert!(
            top2[0] == 0.0 && top2[2] == 0.0 && (top2[3] - 1.0 / 3.0).abs() < 0.015,
            "{top2:?}"
        );
        let cold = draws(&logits, Sampling::Random { temperature: 0.5, top_k: 0, top_p: 1.0 });
        assert!((cold[1] - 0.25 / 0.345).abs() < 0.015, "{cold:?}");
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let mut stream = Stream::new(3, Purpose::Sample, 0, 0);
        assert_eq!(next(&mut [0.0, 2.0, 2.0], Sampling::Greedy, &mut stream), 1);
    }
}
