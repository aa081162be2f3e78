//! In a *packed batch* the sequences lie one after another, and nothing is padded.
//!
//! It has N rows, one a token. Only attention and the positions know where a sequence begins;
//! padding, its masks and its waste do not exist.

use std::ops::Range;
use std::sync::Arc;

/// Which tokens of a pair count in the NLL.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum LossOn {
    /// The response's tokens.
    Response,
    /// Every token but the first (Lee et al.'s code).
    All,
}

/// Where a sequence lies in a packed batch. A *fork* is a sequence with two endings: first come the
/// rows of its beginning, then those of the first ending (`hidden`), then those of the second. The
/// second ending does not see the first, and its positions go on from the beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Its rows in the batch.
    pub rows: Range<usize>,
    /// The rows that those after them do not see, counted from the sequence's first row.
    pub hidden: Range<usize>,
}

impl Sequence {
    /// A sequence without a fork.
    pub fn plain(rows: Range<usize>) -> Self {
        Self { rows, hidden: 0..0 }
    }

    /// The rows that `row` sees: some of the beginning, and a run that ends with itself; with a
    /// window, only the last `window` of them. All are counted from the sequence's first row.
    pub fn seen(&self, row: usize, window: Option<usize>) -> [Range<usize>; 2] {
        let window = window.unwrap_or(usize::MAX);
        if self.hidden.is_empty() || row < self.hidden.end {
            return [0..0, (row + 1).saturating_sub(window)..row + 1];
        }
        let own = self.hidden.end.max((row + 1).saturating_sub(window))..row + 1;
        let left = window - own.len();
        [self.hidden.start.saturating_sub(left)..self.hidden.start, own]
    }
}

/// Token ids of several sequences, one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// (N)
    pub ids: Vec<u32>,
    /// Position of each token in its sequence: (N)
    pub positions: Vec<u32>,
    /// (B)
    pub sequences: Arc<[Sequence]>,
}

impl Packed {
    /// Sequences from position 0.
    pub fn new<'a>(sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        Self::continuing(sequences.into_iter().map(|ids| (ids, 0)))
    }

    /// New tokens of sequences whose first new token is at the given position (the earlier ones are
    /// in a cache).
    pub fn continuing<'a>(sequences: impl IntoIterator<Item = (&'a [u32], usize)>) -> Self {
        let (mut ids, mut positions, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for (sequence, past) in sequences {
            rows.push(Sequence::plain(ids.len()..ids.len() + sequence.len()));
            ids.extend_from_slice(sequence);
            positions.extend((past..past + sequence.len()).map(|p| p as u32));
        }
        Self { ids, positions, sequences: rows.into() }
    }

    /// Forks of (beginning, first ending, second ending): the beginning's rows are computed once
    /// for both.
    pub fn forks<'a>(forks: impl IntoIterator<Item = [&'a [u32]; 3]>) -> Self {
        let (mut ids, mut positions, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
        for [beginning, first, second] in forks {
            let start = ids.len();
            let split = beginning.len();
            [beginning, first, second].iter().for_each(|part| ids.extend_from_slice(part));
            positions.extend(
                (0..split + first.len()).chain(split..split + second.len()).map(|p| p as u32),
            );
            sequences.push(Sequence { rows: start..ids.len(), hidden: split..split + first.len() });
        }
        Self { ids, positions, sequences: sequences.into() }
    }

    /// One of the sequences alone.
    pub fn only(&self, index: usize) -> Self {
        let Sequence { rows, hidden } = self.sequences[index].clone();
        let sequence = Sequence { rows: 0..rows.len(), hidden };
        Self {
            ids: self.ids[rows.clone()].to_vec(),
            positions: self.positions[rows].to_vec(),
            sequences: [sequence].into(),
        }
    }

    /// All rows: `0..N`.
    pub fn all_rows(&self) -> Vec<u32> {
        (0..self.ids.len() as u32).collect()
    }
}

/// A packed batch with the predictions that count: row `rows[i]` predicts `targets[i]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub packed: Packed,
    pub rows: Vec<u32>,
    pub targets: Vec<u32>,
    /// Number of predictions of each sequence (of each ending of a fork), in order.
    pub counts: Vec<usize>,
}

impl Batch {
    /// (prompt, response) sequences; the first token of a sequence is never predicted.
    pub fn new<'a>(
        sequences: impl IntoIterator<Item = (&'a [u32], &'a [u32])>,
        loss_on: LossOn,
    ) -> Self {
        let (mut joined, mut rows, mut targets, mut counts) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut start = 0;
        for (prompt, response) in sequences {
            let ids = [prompt, response].concat();
            let first = match loss_on {
                LossOn::Response => prompt.len().max(1),
                LossOn::All => 1,
            };
            counts.push(ids.len().saturating_sub(first));
            rows.extend((first..ids.len()).map(|t| (start + t - 1) as u32));
            targets.extend_from_slice(ids.get(first..).unwrap_or(&[]));
            start += ids.len();
            joined.push(ids);
        }
        Self { packed: Packed::new(joined.iter().map(Vec::as_slice)), rows, targets, counts }
    }

    /// Texts in which every token but the first counts.
    pub fn texts(packed: Packed) -> Self {
        let rows: Vec<u32> = packed
            .sequences
            .iter()
            .flat_map(|s| s.rows.start as u32..s.rows.end.saturating_sub(1) as u32)
            .collect();
        let targets = rows.iter().map(|row| packed.ids[*row as usize + 1]).collect();
        let counts = packed.sequences.iter().map(|s| s.rows.len().saturating_sub(1)).collect();
        Self { packed, rows, targets, counts }
    }

    /// Pairs as forks, chosen first, with the predictions that both responses have apart.
    pub fn forks(pairs: &[&TokenPair], loss_on: LossOn) -> Self {
        let packed =
            Packed::forks(pairs.iter().map(|p| [p.prompt.as_slice(), &p.chosen, &p.rejected]));
        let (mut rows, mut targets, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for (pair, sequence) in pairs.iter().zip(packed.sequences.iter()) {
            for (response, skipped) in [(&pair.chosen, 0), (&pair.rejected, pair.chosen.len())] {
                let split = pair.prompt.len();
                let first = match loss_on {
                    LossOn::Response => split.max(1),
                    LossOn::All => 1,
                };
                // The row of token t of prompt and response: further on if the response is the
                // second ending.
                let row_of =
                    |t: usize| sequence.rows.start + if t < split { t } else { t + skipped };
                let ids = || pair.prompt.iter().chain(response.iter()).copied();
                let length = split + response.len();
                rows.extend((first..length).map(|t| row_of(t - 1) as u32));
                targets.extend(ids().skip(first));
                counts.push(length.saturating_sub(first));
            }
        }
        Self { packed, rows, targets, counts }
    }

    /// One of the forks alone.
    pub fn only_fork(&self, index: usize) -> Self {
        let start = self.packed.sequences[index].rows.start as u32;
        let first = self.counts[..2 * index].iter().sum::<usize>();
        let counts = self.counts[2 * index..2 * index + 2].to_vec();
        let counted = first..first + counts[0] + counts[1];
        Self {
            packed: self.packed.only(index),
            rows: self.rows[counted.clone()].iter().map(|row| row - start).collect(),
            targets: self.targets[counted].to_vec(),
            counts,
        }
    }
}

/// A pair in tokens.
#[derive(Debug, Clone)]
pub struct TokenPair {
    pub prompt: Vec<u32>,
    pub chosen: Vec<u32>,
    pub rejected: Vec<u32>,
}

/// A prompt and the target that should follow it, in tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenEdit {
    pub prompt: Vec<u32>,
    pub target: Vec<u32>,
}

/// Rows that a part of [`PairBatch::forks`] has at most, unless one pair has more.
pub const FORK_ROWS: usize = 256;

/// The chosen and the rejected responses of the same pairs.
#[derive(Debug, Clone)]
pub struct PairBatch {
    /// How many pairs, those that lack a response among them.
    pub pairs: usize,
    /// The chosen responses of the pairs that have one.
    pub chosen: Batch,
    /// The rejected responses of the pairs that have one.
    pub rejected: Batch,
    /// Prompts with a response to another prompt: of each response, chosen ones first, the next
    /// response that belongs to another prompt. None where all have one prompt.
    pub strangers: Batch,
    /// Both, forking from their prompts: counts alternate between chosen and rejected. They come in
    /// parts of few rows, so that a graph over one of them stays small.
    pub forks: Vec<Batch>,
}

impl PairBatch {
    pub fn new(pairs: &[&TokenPair], loss_on: LossOn) -> Self {
        let of = |response: fn(&TokenPair) -> &Vec<u32>| {
            let texts = pairs.iter().map(|p| (p.prompt.as_slice(), response(p).as_slice()));
            texts.filter(|(_, response)| !response.is_empty()).collect::<Vec<_>>()
        };
        let (chosen, rejected) = (of(|p| &p.chosen), of(|p| &p.rejected));
        let texts = [&chosen[..], &rejected[..]].concat();
        let strangers = texts.iter().enumerate().filter_map(|(at, (prompt, _))| {
            let others = texts.iter().cycle().skip(at + 1).take(texts.len());
            let mut others = others.filter(|(other, _)| other != prompt);
            others.next().map(|(_, response)| (*prompt, *response))
        });
        let strangers = Batch::new(strangers, loss_on);
        let rows = |p: &TokenPair| p.prompt.len() + p.chosen.len() + p.rejected.len();
        let mut parts: Vec<Vec<&TokenPair>> = Vec::new();
        let mut room = 0;
        for &pair in pairs {
            match parts.last_mut() {
                Some(part) if rows(pair) <= room => part.push(pair),
                _ => {
                    parts.push(vec![pair]);
                    room = FORK_ROWS;
                }
            }
            room = room.saturating_sub(rows(pair));
        }
        let forks = parts.iter().map(|part| Batch::forks(part, loss_on)).collect();
        let [chosen, rejected] = [chosen, rejected].map(|texts| Batch::new(texts, loss_on));
        Self { pairs: pairs.len(), chosen, rejected, strangers, forks }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions_point_at_the_row_before() {
        let batch =
            Batch::new([(&[5, 6][..], &[7, 8][..]), (&[9][..], &[10][..])], LossOn::Response);
        assert_eq!(batch.packed.ids, [5, 6, 7, 8, 9, 10]);
        assert_eq!(batch.packed.positions, [0, 1, 2, 3, 0, 1]);
        assert_eq!(*batch.packed.sequences, [Sequence::plain(0..4), Sequence::plain(4..6)]);
        assert_eq!(
            (batch.rows.as_slice(), batch.targets.as_slice()),
            (&[1, 2, 4][..], &[7, 8, 10][..])
        );
        assert_eq!(batch.counts, [2, 1]);
        let all = Batch::new([(&[5, 6][..], &[7, 8][..])], LossOn::All);
        assert_eq!((all.rows.as_slice(), all.targets.as_slice()), (&[0, 1, 2][..], &[6, 7, 8][..]));
        let unconditional = Batch::new([(&[][..], &[7, 8][..])], LossOn::Response);
        assert_eq!(unconditional.targets, [8], "the first token is never predicted");
    }
}
