//! What a repair step costs, by Kaplan et al. 2020: a forward pass takes 2 operations a parameter
//! and token and 2·T·C a block and token in attention, a backward pass as much again for the
//! activations that it goes through and as much for the parameters that it differentiates. Here
//! with what each method really does: no backward pass below the slice, a reference that shares the
//! blocks below it, the head at the positions that count alone, and norms of gradients in their
//! cheaper form.

use super::Recipe;
use crate::model::Model;
use crate::model::kernels::linear::outer_operations;
use crate::model::weights::Place;

/// The work of one step.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// Tokens of the chosen and rejected sequences and the normal texts.
    pub tokens: [usize; 3],
    /// Positions of them that count.
    pub counted: [usize; 3],
    /// Sequences of each kind.
    pub sequences: usize,
    /// The lowest block of the slice; `None`: the whole model.
    pub block: Option<usize>,
    /// The lowest block that this or an earlier step touched: below it the reference is the
    /// patient.
    pub touched: usize,
    /// Parameters in the slice.
    pub parameters: usize,
}

/// Floating-point operations of one step of a method on one batch; a slice is whole blocks side by
/// side.
pub fn operations(model: &Model, recipe: &Recipe, work: &Work) -> f64 {
    let sizes = model.sizes();
    let (c, blocks) = (sizes.channels as f64, sizes.blocks as f64);
    let matrices: Vec<_> = model.specs().into_iter().filter(|s| s.shape.len() == 2).collect();
    let in_blocks = || matrices.iter().filter(|s| matches!(s.place, Place::Block(_)));
    let block_parameters =
        in_blocks().map(|s| s.shape.iter().product::<usize>()).sum::<usize>() as f64 / blocks;
    let head = 2.0 * sizes.vocabulary as f64 * c;
    let from = work.block.unwrap_or(0) as f64;
    let of = |kind: usize| (work.tokens[kind] as f64, work.counted[kind] as f64);
    let attention = |n: f64| 2.0 * n / work.sequences.max(1) as f64 * c;
    // Over so many blocks and the head.
    let forward = |(n, counted): (f64, f64), blocks: f64| {
        n * blocks * (2.0 * block_parameters + attention(n)) + counted * head
    };
    let backward = |(n, counted): (f64, f64)| {
        let activations =
            n * (blocks - from) * (2.0 * block_parameters + 2.0 * attention(n)) + counted * head;
        let sliced = match work.block {
            Some(_) => 2.0 * n * work.parameters as f64,
            // The head's logits are computed again.
            None => 2.0 * n * blocks * block_parameters + 2.0 * counted * head,
        };
        activations + sliced
    };
    let mut total = 0.0;
    let (chosen, rejected, normal) = (of(0), of(1), of(2));
    for _ in 0..recipe.select.looks {
        let norms: usize =
            in_blocks().map(|s| outer_operations(work.tokens[1], s.shape[0], s.shape[1])).sum();
        let activations =
            rejected.0 * blocks * (2.0 * block_parameters + 2.0 * attention(rejected.0));
        total += forward(rejected, blocks) + activations + rejected.1 * head + norms as f64;
    }
    let pairs = recipe.objective;
    let read = |(n, counted): (f64, f64)| (n, counted * pairs.heads as f64);
    // What `npo` does not read has no tokens here, but where rows have both responses.
    let reads_chosen = pairs.chosen || !pairs.rejected;
    if reads_chosen {
        total += forward(read(chosen), blocks) + backward(read(chosen));
    }
    if pairs.contrasts {
        total += forward(read(rejected), blocks) + backward(read(rejected));
    }
    if pairs.reference {
        let apart = blocks - work.touched as f64;
        total += forward(rejected, apart);
        total += if reads_chosen { forward(chosen, apart) } else { 0.0 };
    }
    if recipe.kl_weight != 0.0 {
        // Once below what was touched, twice above it; the reference's logits are computed again
        // with the head's gradient.
        total += forward(normal, blocks)
            + forward(normal, blocks - work.touched as f64)
            + backward(normal);
        if work.block.is_none() {
            total += normal.1 * head;
        }
    }
    total
}
