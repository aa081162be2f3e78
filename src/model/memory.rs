//! An *estimate* says how much memory a command will take, from headers and lengths alone.
//!
//! It is counted part by part as the code allocates, for the CPU kernels and for the layers that
//! are composed of candle's operations (GPUs). `bench --profile` prints the sum beside what the
//! process really took.

use anyhow::Result;
use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::Model;
use super::composed;
use super::device::memory_left;
use super::kernels::attention::AttentionShape;
use super::kernels::head;
use super::precision::WeightsDtype;
use super::weights::{Kernels, TensorSpec};
use crate::bail_input;
use crate::base::memory::{available, limit};

/// Bytes of an f32.
const F32: u64 = 4;
/// Bytes of the reference's hidden states that are kept at most; texts beyond are read each time.
pub const KEPT_STATES: usize = 256 << 20;
/// The program, its threads' stacks, the tokenizer.
const PROGRAM: u64 = 40 << 20;

/// Whether passes keep the inputs of blocks alone, and make the blocks' graphs again on the way
/// back (gradient checkpointing).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Recompute {
    /// Where keeping the graphs of all blocks would take more memory than there is.
    #[default]
    Auto,
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
}

impl Recompute {
    /// The estimate with the graphs kept, or else without. Errors (bad input) if a memory limit is
    /// no number.
    pub fn decide(self, device: &Device, estimate: impl Fn(bool) -> Estimate) -> Result<Estimate> {
        let kept = estimate(self == Self::Always);
        limit()?;
        if self != Self::Auto || kept.check(device, "").is_ok() {
            return Ok(kept);
        }
        let recomputed = estimate(true);
        Ok(if recomputed.total() < kept.total() { recomputed } else { kept })
    }
}

impl std::fmt::Display for Recompute {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        })
    }
}

/// A part of an estimate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub name: String,
    pub bytes: u64,
}

/// What a command takes at its peak.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    pub parts: Vec<Part>,
    /// What every sliced block takes beyond the first.
    pub each_further_block: u64,
    /// Whether the blocks' graphs are made again on the way back.
    #[serde(default)]
    pub recompute: bool,
}

impl Estimate {
    pub fn total(&self) -> u64 {
        self.parts.iter().map(|p| p.bytes).sum()
    }

    /// Errors (bad input) if less is available on the device, before anything large is read.
    /// `advice` says what to lower.
    pub fn check(&self, device: &Device, advice: &str) -> Result<()> {
        let (limit, whose) = match limit()? {
            Some(mib) => (Some(mib << 20), "allowed by IREPAIR_MEMORY_LIMIT"),
            None if device.is_cpu() => {
                (available(), "available (IREPAIR_MEMORY_LIMIT=MIB overrides)")
            }
            None => {
                (memory_left(device), "left on the device (IREPAIR_MEMORY_LIMIT=MIB overrides)")
            }
        };
        if let Some(limit) = limit.filter(|limit| *limit < self.total()) {
            let parts: Vec<String> =
                self.parts.iter().map(|p| format!("{} {}", p.name, mib(p.bytes))).collect();
            bail_input!(
                "too little memory: about {} MiB are needed ({}), {} are {whose}; {advice}",
                mib(self.total()),
                parts.join(", "),
                mib(limit)
            );
        }
        Ok(())
    }
}

/// MiB, rounded up.
pub fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// What the passes of a command look like.
#[derive(Debug, Clone, Copy, Default)]
pub struct Passes {
    /// Parameters that one step changes at most; 0 without training.
    pub slice: usize,
    /// Whether the slice is always the same (all parameters, a fixed block).
    pub slice_stays: bool,
    /// Values that the optimizer keeps of each parameter.
    pub optimizer_values: usize,
    /// Whether the original of a changed tensor is kept.
    pub keeps_originals: bool,
    /// Whether the best weights so far are kept.
    pub keeps_best: bool,
    /// Whether the whole change is made smaller at the end, to keep a budget of KL.
    pub holds_budget: bool,
    /// Rows of the largest batch that is differentiated; 0 without gradients.
    pub graph_rows: usize,
    /// Rows of the largest batch that is not.
    pub plain_rows: usize,
    /// Whether a batch is compared with the reference (KL).
    pub compares: bool,
    /// Tokens of the longest sequence: composed layers lay all of a batch beside it.
    pub longest: usize,
    /// Positions of all texts that it is compared on; what the reference makes of them is kept.
    pub compared_rows: usize,
    /// Whether a pass keeps the inputs of blocks alone and makes one block's graph at a time.
    pub recompute: bool,
    /// Sequences and positions of a batch that is written with a cache; 0 without generation.
    pub written: (usize, usize),
}

/// What a pass keeps of each row, in values.
struct Rows {
    /// What one block keeps, with a graph.
    block: usize,
    /// What one block takes at its widest, beside what it keeps.
    passing: usize,
    /// What the head takes, all rows together.
    head: usize,
}

impl Rows {
    /// As the CPU kernels do.
    fn of_kernels(model: &Model, passes: &Passes) -> Self {
        let rows = passes.graph_rows.max(passes.plain_rows);
        let logits = head::chunk_values(rows, model.sizes().vocabulary);
        Self {
            block: model.activations(),
            passing: 2 * model.activations(),
            head: logits * if passes.compares { 2 } else { 1 },
        }
    }

    /// As the composed layers do. Beside what the kernels keep: queries, keys and values as they
    /// lie in the packed batch, in the padded one and by heads; what attention puts out in both;
    /// keys and values once for each head; products and softmax of every query with every key.
    fn of_composed(model: &Model, passes: &Passes) -> Self {
        let AttentionShape { heads, kv_heads, head_dim, .. } = model.attention();
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let shared = if heads == kv_heads { 0 } else { 2 * q };
        let scores = heads * passes.longest;
        let block = model.activations() + 3 * (q + 2 * kv) + 2 * q + shared + 2 * scores;
        let rows = passes.graph_rows.max(passes.plain_rows);
        let vocabulary = model.sizes().vocabulary;
        let logits = composed::head::chunk_rows(rows, vocabulary) * vocabulary;
        Self {
            block,
            passing: 2 * model.activations() + 3 * scores,
            // Logits, their softmax and exponentials, and slopes; the reference's, too.
            head: logits * if passes.compares { 8 } else { 5 },
        }
    }
}

/// The estimate for passes over a model whose matrices are kept in this dtype, with these layers.
pub fn estimate(model: &Model, layers: Kernels, kept: WeightsDtype, passes: &Passes) -> Estimate {
    let sizes = model.sizes();
    let values = |n: usize| n as u64 * F32;
    let size = |spec: &TensorSpec| spec.shape.iter().product::<usize>();
    let bytes = |spec: &TensorSpec| {
        size(spec) as u64 * if spec.is_matrix() { kept.bytes() as u64 } else { F32 }
    };
    let weights = model.specs().iter().map(bytes).sum();
    let (c, v, l) = (sizes.channels, sizes.vocabulary, sizes.blocks);
    let rows = match layers {
        Kernels::Cpu => Rows::of_kernels(model, passes),
        Kernels::Composed => Rows::of_composed(model, passes),
    };
    // Composed layers widen a matrix for each product, and an update makes its tensors anew.
    let largest = model.specs().iter().map(size).max().unwrap_or(0);
    let (widened, anew) = match layers {
        Kernels::Cpu => (0, 0),
        Kernels::Composed if kept == WeightsDtype::F32 => (0, 4 * largest.min(passes.slice)),
        Kernels::Composed => (largest, 4 * largest.min(passes.slice)),
    };
    let best = if passes.keeps_best { F32 } else { 0 };
    // What is trained is f32, beside the original or in its place.
    let own = F32 - if passes.keeps_originals { 0 } else { kept.bytes() as u64 };
    let changed = passes.slice as u64 * (own + best);
    // One block's activations in a pass without a graph: its input, output and the widest between.
    let passing = |n: usize| values(n * (rows.block + 4 * c));
    let graph = if passes.graph_rows == 0 {
        passing(passes.plain_rows)
    } else {
        // Every layer's output stays until the backward pass has gone by; of gradients there are a
        // few at a time.
        let blocks = match passes.recompute {
            true => l * c + rows.block,
            false => l * rows.block,
        };
        let kept = values(passes.graph_rows * (blocks + 4 * c));
        (kept + values(passes.graph_rows * rows.passing)).max(passing(passes.plain_rows))
    };
    let (sequences, positions) = passes.written;
    // Keys and values grow by doubling; the logits of one step lie beside them.
    let cache =
        values(sequences * positions.next_power_of_two() * model.cached() * l + sequences * v);
    let always = [
        ("program", PROGRAM),
        ("weights", weights),
        ("changed tensors", changed),
        ("optimizer", values(passes.slice * passes.optimizer_values)),
        ("reference", values(passes.compared_rows * c).min(KEPT_STATES as u64)),
    ];
    // Five things never happen at the same time: the passes of a step, its update, generation, the
    // copy of a new best while the old one is still there, and a change that is made smaller: as it
    // was, as it will be, and the copy that takes its place.
    let gradients = values(passes.slice);
    let logits = values(rows.head + widened);
    let step = vec![("gradients", gradients), ("activations", graph), ("logits", logits)];
    let update = vec![("gradients", gradients), ("one tensor", values(anew))];
    let new_best = vec![("new best", passes.slice as u64 * best)];
    let copies = if passes.holds_budget { 3 * passes.slice } else { 0 };
    let scaled = vec![("change made smaller", values(copies))];
    let generation = vec![("keys and values", cache)];
    let sum = |parts: &Vec<(&str, u64)>| parts.iter().map(|p| p.1).sum::<u64>();
    let largest = [generation, new_best, scaled, update, step]
        .into_iter()
        .max_by_key(sum)
        .unwrap_or_default();
    let parts = always.into_iter().chain(largest).filter(|p| p.1 > 0);
    let each_further = if passes.slice_stays {
        0
    } else {
        changed + values(passes.slice * passes.optimizer_values)
    };
    Estimate {
        parts: parts.map(|(name, bytes)| Part { name: name.into(), bytes }).collect(),
        each_further_block: each_further,
        recompute: passes.recompute,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::shapes;

    /// As it was measured: 759 MiB in place of 537, of a model of 117.
    #[test]
    fn a_budget_of_kl_takes_copies_of_the_change() {
        let model = shapes::model("gpt2", Some(2)).expect("a shape");
        let slice = model.parameters();
        let total = |holds_budget| {
            let passes = Passes { slice, slice_stays: true, holds_budget, ..Passes::default() };
            estimate(&model, Kernels::Cpu, WeightsDtype::F32, &passes).total()
        };
        // Two copies more than the gradients, which are gone by then.
        let more = total(true) - total(false);
        let copies = more as f64 / (slice as u64 * F32) as f64;
        assert!((1.5..=2.0).contains(&copies), "{copies}");
    }

    #[test]
    fn composed_layers_are_counted_with_their_scores() {
        let model = shapes::model("gpt2", Some(2)).expect("a shape");
        let passes = |longest| Passes { graph_rows: 512, longest, ..Passes::default() };
        let total =
            |layers, passes: &Passes| estimate(&model, layers, WeightsDtype::F32, passes).total();
        let [short, long] = [64, 512].map(passes);
        assert_eq!(total(Kernels::Cpu, &short), total(Kernels::Cpu, &long));
        assert!(total(Kernels::Composed, &short) > total(Kernels::Cpu, &short));
        // Products and softmax of every query with every key, in each head of two blocks.
        let more = total(Kernels::Composed, &long) - total(Kernels::Composed, &short);
        let scores = 2 * 2 * 12 * 512 * (512 - 64) * F32;
        assert!(more >= scores, "{more} of {scores}");
    }
}
