//! A step changes its slice and nothing else, and the slice is the one that its selector names.

use std::collections::BTreeSet;

use irepair::model::weights::{Kernels, Place, TensorSpec, Weights, Who};
use irepair::model::{ARCHES, Model};
use irepair::slice::input::StepInput;
use irepair::slice::select::{Memory, Normalize, SELECTORS, Slicing};
use irepair::slice::sensitivity;
use irepair::slice::{Granularity, Slice};
use irepair::step;
use irepair::step::optim::{Optimizer, OptimizerKind};
use irepair::step::{Recipe, StepReport};
use irepair::tokens::{LossOn, Packed, PairBatch, TokenPair};

use crate::support::golden::{Golden, KERNELS, batch};
use crate::support::tensors::{all, all_close, close, flat, random_weights};

/// On every architecture's tiny model, each method changes its slice and nothing else.
#[test]
fn a_step_changes_only_what_the_slice_names() {
    for arch in ARCHES {
        let model = Model::from_config(&serde_json::from_str(arch.tiny).expect("config"))
            .expect(arch.model_type);
        let named = step::METHODS.iter().map(|m| (m.name.to_owned(), m.recipe()));
        // And every selector with two sublayers a slice, ranked by each normalization.
        let cut = SELECTORS.iter().filter(|s| s.ranks).flat_map(|select| {
            [Normalize::None, Normalize::Size, Normalize::Start, Normalize::Running].map(
                |normalize| {
                    let granularity = Granularity::Sublayer;
                    let slicing = Slicing { granularity, top_k: 2, normalize, blocks: Vec::new() };
                    let recipe = step::METHODS[0].recipe();
                    (format!("{} {slicing:?}", select.name), Recipe { select, slicing, ..recipe })
                },
            )
        });
        for (name, recipe) in named.chain(cut) {
            for kernels in KERNELS {
                let what = format!("{} {name} {kernels:?}", arch.model_type);
                let mut weights = random_weights(&model).with_kernels(kernels);
                let pair = |prompt: &[u32], chosen: &[u32], rejected: &[u32]| TokenPair {
                    prompt: prompt.to_vec(),
                    chosen: chosen.to_vec(),
                    rejected: rejected.to_vec(),
                };
                let pairs = [
                    pair(&[1, 2, 3], &[4, 5], &[4, 5, 6, 7, 8, 9, 10]),
                    pair(&[11, 12], &[3], &[13, 14, 15]),
                ];
                let pairs = batch(&pairs, LossOn::Response);
                let before: Vec<Vec<f32>> = all(&model, &weights, Who::Reference);
                let mut method = recipe.clone().build();
                let telling = pair(&[1], &[1; 10], &[2; 10]);
                method.objective.learn(&[telling], model.sizes().vocabulary).expect(&what);
                method.look(&model, &weights, &mut std::iter::once(pairs.clone())).expect(&what);
                // The training loop makes the trials. Any outcome will do here.
                if let Some(last) = recipe.trials(&model).pop() {
                    method.settle(last);
                }
                let mut optimizer = Optimizer::new(OptimizerKind::Rmsprop);
                let mut allowed = BTreeSet::new();
                let normal = &pairs.chosen.packed;
                let (model, pairs) = (&model, &pairs);
                for _ in 0..3 {
                    let input = StepInput { model, weights: &weights, pairs, normal: Some(normal) };
                    let report = method.step(std::slice::from_ref(&input)).expect(&what);
                    method.learn(&report.selection);
                    let slice = report.selection.slice;
                    allowed.extend(
                        model.specs().into_iter().filter(|s| slice.contains(s)).map(|s| s.name),
                    );
                    optimizer.step(&mut weights, &report.gradients, 1e-3, 1.0).expect(&what);
                }
                let reference = all(model, &weights, Who::Reference);
                assert_eq!(reference, before, "{what}: the reference moved");
                let after = all(model, &weights, Who::Patient);
                for ((spec, before), after) in model.specs().iter().zip(&before).zip(&after) {
                    let changed = before != after;
                    assert_eq!(changed, allowed.contains(&spec.name), "{what}: {}", spec.name);
                }
                if recipe.kl_weight != 0.0 {
                    let input = StepInput { model, weights: &weights, pairs, normal: Some(normal) };
                    let kl = method.validate(&input).expect(&what).kl.expect("kl");
                    assert!(kl > 1e-6, "{what}: KL {kl} after steps");
                }
            }
        }
    }
}

/// What the fast path leaves out changes nothing. A step on one block with our kernels has the
/// values and gradients of the composed form, which differentiates every tensor. Where the blocks
/// below are the reference's, its pass through them is shared: the KL is still that of two whole
/// passes, computed here from all logits.
#[test]
fn a_slice_alone_gives_what_everything_gives() {
    for name in [
        "gpt2", "gpt-neo", "gpt-neox", "llama", "qwen3", "gemma2", "gemma3", "olmo3", "granite",
        "phi3",
    ] {
        let golden = Golden::open(name);
        let (batch, normal) = (golden.batch(LossOn::Response), golden.normal());
        for block in 0..golden.model.sizes().blocks {
            // The block has moved, as in the midst of a repair, and not by a factor alone, which a
            // norm after it would undo. The blocks below are untouched.
            let moved = |kernels| {
                let mut weights = golden.weights(kernels);
                weights.keep_originals(true);
                let is_matrix =
                    |s: &&TensorSpec| s.place == Place::Block(block) && s.shape.len() == 2;
                for spec in golden.model.specs().iter().filter(is_matrix) {
                    let tensor = weights.touch(&spec.name).expect("tensor");
                    let tensor = tensor.affine(1.1, 0.02).expect("moved");
                    weights.restore(&spec.name, tensor).expect("restore");
                }
                weights
            };
            let [fast, plain] = KERNELS.map(moved);
            for objective in ["nll", "dpo"] {
                let what = format!("{name} block {block} {objective}");
                let step = |weights: &Weights,
                            select: &str,
                            granularity: Granularity,
                            blocks: Vec<usize>| {
                    let slicing = Slicing { blocks, granularity, ..Slicing::default() };
                    let recipe = Recipe {
                        select: irepair::slice::select::named(select).expect("a selector"),
                        objective: irepair::step::objective::named(objective)
                            .expect("an objective"),
                        weight: 0.7,
                        kl_weight: 0.5,
                        beta: None,
                        slicing,
                        online: false,
                    };
                    let mut method = recipe.clone().build();
                    method
                        .look(&golden.model, weights, &mut std::iter::once(batch.clone()))
                        .expect("prepare");
                    method.step(&[golden.input(weights, &batch, Some(&normal))]).expect("step")
                };
                let (whole, some) = (Granularity::Block, Granularity::Sublayer);
                let (alone, everything) =
                    (step(&fast, "fixed", whole, vec![block]), step(&plain, "all", whole, vec![]));
                close(alone.terms.loss, everything.terms.loss, 1e-5, &what);
                let nll = |report: &StepReport| report.terms.nll_good.expect("NLL");
                close(nll(&alone), nll(&everything), 1e-5, &what);
                let kl = alone.terms.kl.expect("KL");
                close(kl, everything.terms.kl.expect("KL"), 1e-5, &what);
                close(kl, whole_kl(&golden, &fast, &normal), 1e-5, &what);
                let specs = golden.model.specs();
                let in_block = specs.iter().filter(|s| s.place == Place::Block(block));
                let names: BTreeSet<&str> = in_block.map(|s| s.name.as_str()).collect();
                let got: BTreeSet<&str> = alone.gradients.keys().map(String::as_str).collect();
                assert_eq!(got, names, "{what}");
                // The more sensitive sublayer of the block and the less sensitive one. The graph
                // begins in the midst of the block, or before it.
                let parts =
                    ["max", "min"].map(|select| step(&fast, select, some, vec![block]).gradients);
                let count: usize = parts.iter().map(|part| part.len()).sum();
                assert_eq!(count, names.len(), "{what}");
                for (tensor, gradient) in alone.gradients.iter().chain(parts.iter().flatten()) {
                    let want = flat(&everything.gradients[tensor]);
                    all_close(&flat(gradient), &want, 2e-5, &format!("{what} {tensor}"));
                }
            }
        }
    }
}

/// Mean KL of the reference from the patient over all positions, in f64, from the logits of two
/// passes through the whole model.
fn whole_kl(golden: &Golden, weights: &Weights, normal: &Packed) -> f64 {
    let [reference, patient] = [Who::Reference, Who::Patient].map(|who| {
        let view = weights.frozen(who).expect("view");
        let h = golden.model.hidden(&view, normal).expect("hidden");
        golden.model.logits(&view, &h).expect("logits").to_vec2::<f32>().expect("values")
    });
    let log_p = |logits: &[f32]| -> Vec<f64> {
        let total: f64 = logits.iter().map(|z| f64::from(*z).exp()).sum();
        logits.iter().map(|z| f64::from(*z) - total.ln()).collect()
    };
    let of_row = |(p, q): (&Vec<f32>, &Vec<f32>)| -> f64 {
        log_p(p).iter().zip(log_p(q)).map(|(p, q)| p.exp() * (p - q)).sum()
    };
    reference.iter().zip(&patient).map(of_row).sum::<f64>() / reference.len() as f64
}

/// `--normalize running` divides each unit's score by the mean of its own in the steps before. In
/// the first step the score stands alone.
#[test]
fn a_running_mean_is_of_the_steps_before() {
    let golden = Golden::open("gpt2");
    let weights = golden.weights(Kernels::Cpu);
    let pairs = golden.pairs();
    let slicing = Slicing { normalize: Normalize::Running, ..Slicing::default() };
    let mut method = Recipe { slicing, ..step::METHODS[1].recipe() }.build();
    let mut before: Vec<Vec<f64>> = Vec::new();
    for pair in &pairs {
        let batch = PairBatch::new(&[pair], LossOn::Response);
        let scores =
            sensitivity::sensitivity(&golden.model, &weights, &batch.rejected).expect("norms").0;
        let mean =
            |block: usize| before.iter().map(|s| s[block]).sum::<f64>() / before.len() as f64;
        let ranked = |block: usize| {
            if before.is_empty() { scores[block] } else { scores[block] / mean(block) }
        };
        let want =
            sensitivity::pick(&(0..scores.len()).map(ranked).collect::<Vec<_>>(), |a, b| a > b)
                .expect("a block");
        let input = golden.input(&weights, &batch, None);
        let selection = method.select.select(std::slice::from_ref(&input)).expect("selection");
        assert_eq!(selection.slice, Slice::block(want), "after {} steps", before.len());
        assert_eq!(selection.scores, scores);
        method.learn(&selection);
        before.push(scores);
        // Saved and restored, it goes on the same.
        let saved = serde_json::to_string(&method.select.memory()).expect("JSON");
        let memory: Memory = serde_json::from_str(&saved).expect("a memory");
        assert_eq!(memory, method.select.memory());
        method.select.learner().expect("a learner").remember(memory);
    }
}
