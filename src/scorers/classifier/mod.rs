//! `classifier:ID|DIR`: a *classifier* is a Hugging Face sequence-classification model. It runs in
//! candle on the CPU, in f32. The score is the probability of one label, the toxic one, as in the
//! pipeline `text-classification` of transformers.
//!
//! Texts of about the same length go through the model together, padded to the longest one. The
//! other texts of a batch change a score by no more than rounding.

mod architectures;
mod bert;
mod config;
mod deberta_v2;
mod distilbert;
mod labels;
mod modernbert;
mod network;
mod roberta;
mod vocabulary;

use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use rayon::prelude::*;

use super::scorer::{Options, Scored, Scorer};
use crate::base::error::Error;
use crate::checkpoint::hub;
use crate::tokens::Encoder;
use config::Config;
use labels::Labels;
use network::Network;

pub const ABOUT: &str = "a Hugging Face text-classification model, run on the CPU: \
                         unitary/toxic-bert, s-nlp/roberta_toxicity_classifier, \
                         unitary/unbiased-toxic-roberta, or a folder";

/// The most tokens in a batch, padding included, unless one text alone has more. It is small, so
/// that a few texts make a batch for each core: much of a pass is elementwise, and candle does that
/// on one core.
const BATCH_TOKENS: usize = 512;

pub struct Classifier {
    name: String,
    about: String,
    encoder: Encoder,
    network: Box<dyn Network>,
    labels: Labels,
    pad: u32,
}

impl Classifier {
    /// Opens a model of the hub or of a folder. Errors (bad input) if its architecture is not in
    /// the table, if its head gives no probabilities, if no label is known to be the toxic one, or
    /// if a file is missing or broken.
    pub fn open(model: &str, options: &Options) -> Result<Self> {
        let checkpoint = hub::open_classifier(model)?;
        let place = checkpoint.dir.join("config.json").display().to_string();
        let architecture = architectures::find(&checkpoint.config, &place)?;
        let config = Config::new(&checkpoint.config, (architecture.defaults)(), place)?;
        let labels = Labels::new(&config, options.toxic_label.as_deref())?;
        let longest = vocabulary::longest(&checkpoint.dir, (architecture.longest)(&config)?)?;
        let encoder = vocabulary::open(
            &checkpoint.dir,
            architecture.vocabulary,
            config.count("vocab_size")?,
        )?;

        let tensors = checkpoint
            .floats()?
            .into_iter()
            .map(|(name, tensor)| (todays_name(&name), tensor))
            .collect();
        let weights = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let network =
            (architecture.build)(&config, weights, labels.names.len()).map_err(|error| {
                if error.is::<Error>() {
                    return error;
                }
                Error::Input(format!(
                    "{}: its weights don't fit its config.json: {error:#}",
                    checkpoint.dir.display()
                ))
                .into()
            })?;

        let version = match &checkpoint.revision {
            Some(commit) => format!("{}@{commit}", checkpoint.name),
            None => format!("{}@{}", folder_name(&checkpoint.dir), &checkpoint.identity()?[..12]),
        };
        Ok(Self {
            name: format!("classifier:{version}#{}", labels.toxic()),
            about: format!(
                "{} {}: the probability of {:?} ({}); texts are cut after {longest} tokens",
                architecture.class,
                checkpoint.name,
                labels.toxic(),
                labels.activation.words(labels.names.len()),
            ),
            encoder: encoder.cut_to(longest)?,
            network,
            labels,
            pad: config.count_or_zero("pad_token_id")? as u32,
        })
    }

    /// The scores of texts, given as tokens, that go through the model together.
    fn batch(&self, texts: &[&[u32]]) -> Result<Vec<Scored>> {
        let longest = texts.iter().map(|ids| ids.len()).max().unwrap_or(0);
        let (mut ids, mut attend) = (Vec::new(), Vec::new());
        for text in texts {
            let padding = longest - text.len();
            ids.extend(text.iter().copied().chain(std::iter::repeat_n(self.pad, padding)));
            attend.extend(
                std::iter::repeat_n(1f32, text.len()).chain(std::iter::repeat_n(0f32, padding)),
            );
        }
        let shape = (texts.len(), longest);
        let ids = Tensor::from_vec(ids, shape, &Device::Cpu)?;
        let attend = Tensor::from_vec(attend, shape, &Device::Cpu)?;
        let logits = self.network.logits(&ids, &attend)?.to_vec2::<f32>()?;
        Ok(logits.iter().map(|logits| self.labels.score(logits)).collect())
    }
}

impl Scorer for Classifier {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn about(&self) -> String {
        self.about.clone()
    }

    fn score(&self, texts: &[&str]) -> Result<Vec<Scored>> {
        let tokens: Vec<Result<Vec<u32>>> =
            texts.par_iter().map(|text| self.encoder.encode(text, true)).collect();
        let mut scores = Vec::with_capacity(texts.len());
        let mut order: Vec<(usize, &[u32])> = Vec::with_capacity(texts.len());
        for (index, tokens) in tokens.iter().enumerate() {
            scores.push(Scored::Failed(match tokens {
                Ok(ids) if ids.is_empty() => "the text has no tokens".into(),
                Ok(_) => "the model gave it no score".into(),
                Err(error) => error.to_string(),
            }));
            order.extend(
                tokens
                    .as_ref()
                    .ok()
                    .filter(|ids| !ids.is_empty())
                    .map(|ids| (index, ids.as_slice())),
            );
        }
        order.sort_by_key(|(_, ids)| ids.len());
        let batches = batches(&order);
        let scores_of = |batch: &&[(usize, &[u32])]| {
            self.batch(&batch.iter().map(|(_, ids)| *ids).collect::<Vec<_>>())
        };
        // Long texts go one after another: attention takes memory by the square of their length.
        let (short, long): (Vec<_>, Vec<_>) =
            batches.iter().partition(|batch| tokens_of(batch) <= BATCH_TOKENS);
        let short_scores: Vec<_> = short.par_iter().map(scores_of).collect::<Result<_>>()?;
        let long_scores: Vec<_> = long.iter().map(scores_of).collect::<Result<_>>()?;
        for (batch, found) in short.iter().zip(short_scores).chain(long.iter().zip(long_scores)) {
            for ((index, _), score) in batch.iter().zip(found) {
                scores[*index] = score;
            }
        }
        Ok(scores)
    }
}

/// The number of tokens in a batch, padding included. Its texts are in order of their lengths.
fn tokens_of(batch: &[(usize, &[u32])]) -> usize {
    batch.len() * batch.last().map_or(0, |(_, ids)| ids.len())
}

/// Splits texts, which are in order of their lengths, into batches of at most [`BATCH_TOKENS`]. A
/// longer text is a batch of its own.
fn batches<'a, 'b>(order: &'b [(usize, &'a [u32])]) -> Vec<&'b [(usize, &'a [u32])]> {
    let mut batches = Vec::new();
    let mut start = 0;
    for end in 1..=order.len() {
        let full = order.get(start..=end).is_none_or(|more| tokens_of(more) > BATCH_TOKENS);
        if full {
            batches.push(&order[start..end]);
            start = end;
        }
    }
    batches
}

/// The name of a tensor today. Old checkpoints call the parameters of a norm `gamma` and `beta`.
fn todays_name(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((layer, "gamma")) => format!("{layer}.weight"),
        Some((layer, "beta")) => format!("{layer}.bias"),
        _ => name.to_owned(),
    }
}

fn folder_name(dir: &Path) -> String {
    let whole = dir.canonicalize().unwrap_or_else(|_| dir.into());
    whole.file_name().map_or_else(|| "folder".into(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_all_texts_and_no_more_tokens_than_they_may() {
        let long = vec![0u32; BATCH_TOKENS + 1];
        let lengths = [1, 2, 2, 100, 200, 250, 256, 256, 300, BATCH_TOKENS + 1];
        let order: Vec<(usize, &[u32])> =
            lengths.iter().enumerate().map(|(i, n)| (i, &long[..*n])).collect();
        let batches = batches(&order);
        assert_eq!(batches.concat(), order);
        let sizes: Vec<usize> = batches.iter().map(|b| b.len()).collect();
        assert_eq!(sizes, [5 - 1, 2, 2, 1, 1], "4 × 100, 2 × 250, 2 × 256, one each");
        assert!(super::batches(&[]).is_empty());
    }

    #[test]
    fn old_names_of_norms() {
        assert_eq!(
            todays_name("bert.embeddings.LayerNorm.gamma"),
            "bert.embeddings.LayerNorm.weight"
        );
        assert_eq!(todays_name("bert.embeddings.LayerNorm.beta"), "bert.embeddings.LayerNorm.bias");
        assert_eq!(todays_name("classifier.bias"), "classifier.bias");
    }
}
