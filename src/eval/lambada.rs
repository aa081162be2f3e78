//! *LAMBADA* asks for the last word of passages. As in lm-eval's task `lambada_openai`, a word is
//! right if each of its tokens is the likeliest one, and its perplexity is measured, too.

use anyhow::Result;
use serde_json::{Value, json};

use super::lm_eval::Prefix;
use super::task::{Figure, Row, Subject, Task, TaskKind, hash_ids, items, no_counts, number};
use crate::bail_input;
use crate::data::Text;
use crate::model::finite::finite;
use crate::model::weights::Who;
use crate::tokens::{Encoder, Packed};

const FIGURES: &[Figure] = &[
    Figure {
        id: "lambada_acc",
        name: "LAMBADA accuracy",
        unit: "",
        from_sums: |s| s[1] / s[2],
        digits: 4,
        less_is_better: false,
    },
    Figure {
        id: "lambada_ppl",
        name: "LAMBADA perplexity of the last word",
        unit: "",
        from_sums: |s| (-s[0] / s[2]).exp(),
        digits: 2,
        less_is_better: true,
    },
];

pub const KIND: TaskKind = TaskKind {
    task: "lambada_openai",
    all: FIGURES,
    figures: |_| FIGURES,
    clusters: |_, rows| {
        rows.iter()
            .map(|row| Ok(vec![number(row, "logp")?, number(row, "correct")?, 1.0]))
            .collect()
    },
    counts: no_counts,
};

/// Whether Python's `str.strip` removes it.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\x1c'..='\x1f')
}

/// Passages in a unit.
const UNIT: usize = 16;

/// The task of `eval --lambada`. Its figures are over all passages.
pub struct Lambada {
    /// Context and last word as token ids. The context is cut on the left, so that both fit into
    /// the context of the model.
    passages: Vec<(Vec<u32>, Vec<u32>)>,
    /// How many contexts were cut.
    cut: usize,
}

impl Lambada {
    /// Errors (bad input) on a passage of one word, and where context or last word has no tokens.
    pub fn new(
        passages: &[Text],
        encoder: &Encoder,
        prefix: &Prefix,
        context: usize,
    ) -> Result<Self> {
        let (mut found, mut cut_passages) = (Vec::with_capacity(passages.len()), 0);
        for passage in passages {
            let before = passage.text.rsplit_once(' ').map_or("", |(before, _)| before);
            if before.is_empty() {
                bail_input!("{}: a passage needs a context before its last word", passage.place);
            }
            // As in lm-eval, the word is what the tokens of the whole passage have behind as many
            // as the context alone has. Spaces at the end of the context go to the word.
            let whole = prefix.encode(encoder, &passage.text)?;
            let before = prefix.encode(encoder, before.trim_end_matches(is_space))?;
            let split = before.len();
            if split == 0 || split >= whole.len() {
                bail_input!("{}: the context or the last word has no tokens", passage.place);
            }
            let cut = whole.len().saturating_sub(context + 1).min(split - 1);
            cut_passages += usize::from(cut > 0);
            found.push((before[cut..].to_vec(), whole[split..].to_vec()));
        }
        Ok(Self { passages: found, cut: cut_passages })
    }
}

impl Task for Lambada {
    fn name(&self) -> String {
        KIND.task.into()
    }

    fn settings(&self) -> Value {
        let ids = self.passages.iter().flat_map(|(context, word)| context.iter().chain(word));
        json!({"task": KIND.task, "passages": self.passages.len(),
               "ids_sha256": hash_ids(ids.copied())})
    }

    fn about(&self) -> String {
        let cut = match self.cut {
            0 => String::new(),
            cut => format!(" ({cut} without their beginning, to fit the model)"),
        };
        format!(
            "lambada_openai: the last word of {} passages{cut}, all its tokens by argmax; \
             perplexity of the word",
            self.passages.len()
        )
    }

    fn units(&self) -> usize {
        self.passages.len().div_ceil(UNIT)
    }

    fn work(&self, subject: &Subject, unit: usize) -> Result<Vec<Row>> {
        let view = subject.weights.frozen(Who::Patient)?;
        let (first, passages) = items(&self.passages, UNIT, unit);
        // The last token predicts nothing, so it is no input.
        let inputs: Vec<Vec<u32>> = passages
            .iter()
            .map(|(context, word)| [context, &word[..word.len() - 1]].concat())
            .collect();
        let packed = Packed::new(inputs.iter().map(Vec::as_slice));
        let predicting = packed.sequences.iter().zip(passages);
        let rows: Vec<u32> = predicting
            .flat_map(|(sequence, (_, word))| sequence.rows.end - word.len()..sequence.rows.end)
            .map(|row| row as u32)
            .collect();
        let targets: Vec<u32> =
            passages.iter().flat_map(|(_, word)| word.iter().copied()).collect();
        let h = subject.model.hidden(&view, &packed)?;
        let best = subject.model.likeliest(&view, &h, &rows)?;
        let logp = subject.model.token_logp(&view, &h, &rows, &targets)?.to_vec1::<f32>()?;
        finite("the model's log-probabilities", &logp)?;
        let mut at = 0;
        let mut found = Vec::with_capacity(passages.len());
        for (index, (_, word)) in passages.iter().enumerate() {
            let own = at..at + word.len();
            at += word.len();
            let sum: f64 = logp[own.clone()].iter().map(|x| f64::from(*x)).sum();
            found.push(Row::from_iter([
                ("row".to_owned(), (first + index).into()),
                ("logp".to_owned(), sum.into()),
                ("correct".to_owned(), u8::from(best[own.clone()] == targets[own]).into()),
            ]));
        }
        Ok(found)
    }
}
