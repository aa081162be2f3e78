//! What must hold exactly, or to rounding: packing, finite differences, what a step may change, saving.

use std::collections::BTreeSet;

use irepair::checkpoint;
use irepair::model::generate::{Generation, Job, Sampling, generate};
use irepair::model::loss;
use irepair::model::precision::Precision;
use irepair::model::weights::{Kernels, Place, Want, Weights, Who};
use irepair::model::{ARCHES, Model};
use irepair::slice::input::StepInput;
use irepair::slice::select::{Memory, Normalize, SELECTORS, Slicing};
use irepair::slice::sensitivity;
use irepair::slice::{Granularity, Slice};
use irepair::step;
use irepair::step::objective::telltale::telltales;
use irepair::step::optim::{Optimizer, OptimizerKind};
use irepair::step::{Method, Recipe};
use irepair::tokens::{Batch, LossOn, Packed, PairBatch, TokenPair};

use crate::golden::{CHECKPOINTS, GENERATE, Golden, KERNELS, all_close, close, json, numbers};

/// A packed batch of rows of different length is the rows alone: the mean NLL weighs them by their counted tokens.
#[test]
fn packed_equals_one_by_one() {
    for name in CHECKPOINTS {
        let golden = Golden::open(name);
        let pairs = golden.pairs();
        for kernels in KERNELS {
            let weights = golden.weights(kernels);
            let view = weights.frozen(Who::Patient).expect("view");
            let nll = |pairs: &[&irepair::tokens::TokenPair]| {
                let batch = PairBatch::new(pairs, LossOn::Response).chosen;
                let mean = loss::nll(&golden.model, &view, &batch)
                    .expect("nll")
                    .to_scalar::<f32>()
                    .expect("scalar");
                (f64::from(mean), batch.rows.len() as f64)
            };
            let (together, count) = nll(&pairs.iter().collect::<Vec<_>>());
            let alone: f64 =
                pairs.iter().map(|p| nll(&[p])).map(|(mean, n)| mean * n / count).sum();
            close(together, alone, 1e-6, name);
        }
    }
}

/// What the reference made of a normal text in one batch serves in every other: the same KL and gradients, to the bit.
#[test]
fn a_text_of_the_reference_is_read_once() {
    let precisions = [Precision::F32, Precision::Bf16];
    for (name, precision) in CHECKPOINTS.into_iter().flat_map(|name| precisions.map(|p| (name, p)))
    {
        let what = format!("{name} {precision:?}");
        let golden = Golden::open(name);
        let (pairs, normal) = (golden.batch(LossOn::Response), golden.normal());
        let texts: Vec<&[u32]> =
            normal.sequences.iter().map(|s| &normal.ids[s.rows.clone()]).collect();
        for recipe in
            ["dapt+kl", "irepair+kl"].map(|name| step::named(name).expect("named").recipe())
        {
            let mut weights = golden.weights(Kernels::Cpu);
            weights.set_precision(precision);
            weights.keep_originals(true);
            let step = |method: &Method, weights: &Weights, normal: &Packed| {
                let input = StepInput {
                    model: &golden.model,
                    weights,
                    pairs: &pairs,
                    normal: Some(normal),
                };
                method.step(std::slice::from_ref(&input)).expect("step")
            };
            let fresh = || Method::new(&recipe).expect("method");
            // The reference differs from the patient, so that its states matter.
            let moved = step(&fresh(), &weights, &normal).gradients;
            Optimizer::new(OptimizerKind::Rmsprop)
                .step(&mut weights, &moved, 1e-2, 1.0)
                .expect("moved");
            let told = fresh();
            for texts in [&texts[1..], &texts[..1]] {
                step(&told, &weights, &Packed::new(texts.iter().copied()));
            }
            let (again, new) = (step(&told, &weights, &normal), step(&fresh(), &weights, &normal));
            assert!(new.terms.kl.expect("KL") > 0.0, "{what}");
            assert_eq!(again.terms, new.terms, "{what}");
            for (tensor, gradient) in &new.gradients {
                let values = |g: &candle_core::Tensor| {
                    g.flatten_all().and_then(|g| g.to_vec1::<f32>()).expect("values")
                };
                assert_eq!(values(&again.gradients[tensor]), values(gradient), "{what} {tensor}");
            }
        }
    }
}

/// Chosen and rejected responses that fork from one prompt are the two sequences apart: the same log-probabilities, and
/// the same gradients of all tensors, in windowed layers too.
#[test]
fn forks_equal_their_endings_apart() {
    for name in CHECKPOINTS {
        let golden = Golden::open(name);
        let mut pairs = golden.pairs();
        // Also a pair without a prompt.
        let mut bare = pairs[0].clone();
        bare.prompt.clear();
        pairs.push(bare);
        for (kernels, loss_on) in KERNELS.into_iter().zip([LossOn::Response, LossOn::All]) {
            let what = format!("{name} {kernels:?}");
            let weights = golden.weights(kernels);
            let batch = PairBatch::new(&pairs.iter().collect::<Vec<_>>(), loss_on);
            // Σ logp(chosen) − 2·Σ logp(rejected), so that mixing the two up shows.
            let run = |apart: bool| {
                let view = weights.view(Who::Patient, |_| Want::Gradient).expect("view");
                let logp = |view: &_, batch: &Batch| {
                    let h = golden.model.hidden(view, &batch.packed).expect("hidden");
                    golden.model.token_logp(view, &h, &batch.rows, &batch.targets).expect("logp")
                };
                let factors = |counts: &[usize], of: [f32; 2]| {
                    let all: Vec<f32> = counts
                        .iter()
                        .zip(of.iter().cycle())
                        .flat_map(|(n, f)| vec![*f; *n])
                        .collect();
                    candle_core::Tensor::new(all, &weights.device()).expect("factors")
                };
                let mut logps = Vec::new();
                let parts = match apart {
                    true => vec![(&batch.chosen, [1.0, 1.0]), (&batch.rejected, [-2.0, -2.0])],
                    false => batch.forks.iter().map(|part| (part, [1.0, -2.0])).collect(),
                };
                for (batch, of) in parts {
                    let logp = logp(&view, batch);
                    logps.push(logp.to_vec1::<f32>().expect("values"));
                    let loss = (logp * factors(&batch.counts, of))
                        .expect("weighed")
                        .sum_all()
                        .expect("sum");
                    view.backward(loss).expect("backward");
                }
                (logps, view.harvest().expect("harvest").gradients)
            };
            let ((apart, gradients), (forked, fork_gradients)) = (run(true), run(false));
            let mut in_turn = Vec::new();
            let mut starts = [0, 0];
            for (chosen, rejected) in batch.chosen.counts.iter().zip(&batch.rejected.counts) {
                for (which, count) in [chosen, rejected].into_iter().enumerate() {
                    in_turn.extend_from_slice(&apart[which][starts[which]..][..*count]);
                    starts[which] += count;
                }
            }
            all_close(&forked.concat(), &in_turn, 1e-5, &what);
            for (tensor, gradient) in gradients {
                let flat = |t: &candle_core::Tensor| {
                    t.flatten_all().expect("flat").to_vec1::<f32>().expect("values")
                };
                all_close(
                    &flat(&fork_gradients[&tensor]),
                    &flat(&gradient),
                    1e-4,
                    &format!("{what} {tensor}"),
                );
            }
        }
    }
}

/// Operands rounded to bf16: on the scale of its rounding (2⁻⁸), NLL and sensitivities are those of f32, the same block is
/// the most sensitive, and rounding does happen.
#[test]
fn mixed_precision_is_near_f32() {
    for name in CHECKPOINTS {
        let golden = Golden::open(name);
        let batch = golden.batch(LossOn::Response).rejected;
        for kernels in KERNELS {
            if kernels == irepair::model::weights::Kernels::Cpu
                && Precision::Bf16.unavailable().is_some()
            {
                continue;
            }
            let what = format!("{name} {kernels:?}");
            let mut weights = golden.weights(kernels);
            let (exact, nll) =
                sensitivity::sensitivity(&golden.model, &weights, &batch).expect("f32");
            weights.set_precision(Precision::Bf16);
            let (mixed, mixed_nll) =
                sensitivity::sensitivity(&golden.model, &weights, &batch).expect("bf16");
            close(mixed_nll, nll, 0.01, &what);
            assert_ne!(mixed, exact, "{what}: nothing was rounded");
            for (mixed, exact) in mixed.iter().zip(&exact) {
                close(*mixed, *exact, 0.05, &what);
            }
            let largest = |of: &[f64]| sensitivity::pick(of, |a, b| a > b).expect("a block");
            assert_eq!(largest(&mixed), largest(&exact), "{what}");
        }
    }
}

/// A step on batches of unequal length is the step on one batch of all their rows: each counts by its tokens, its pairs,
/// its positions. Sensitivities are the mean of the batches'.
#[test]
fn accumulated_batches_are_one_step() {
    let golden = Golden::open("gpt2");
    let pairs = golden.pairs();
    let normal = golden.normal();
    let texts: Vec<&[u32]> = normal.sequences.iter().map(|s| &normal.ids[s.rows.clone()]).collect();
    let mut weights = golden.weights(Kernels::Cpu);
    weights.keep_originals(true);
    // Away from the reference, so that there is a KL.
    let moved =
        (weights.touch("transformer.h.0.mlp.c_fc.weight").expect("tensor") * 1.1).expect("moved");
    weights.restore("transformer.h.0.mlp.c_fc.weight", moved).expect("restore");
    let batch =
        |pairs: &[TokenPair]| PairBatch::new(&pairs.iter().collect::<Vec<_>>(), LossOn::Response);
    // One pair and one text, then all others.
    let part = |rows: std::ops::Range<usize>| {
        (batch(&pairs[rows.clone()]), Packed::new(texts[rows].iter().copied()))
    };
    let all = pairs.len().min(texts.len());
    let (parts, whole) = ([part(0..1), part(1..all)], [part(0..all)]);
    let counts =
        parts.each_ref().map(|(pairs, normal)| [pairs.chosen.rows.len(), normal.ids.len()]);
    assert!(
        counts[0].iter().zip(counts[1]).all(|(one, others)| one * (all - 1) != others),
        "of even shares: {counts:?}"
    );
    fn inputs<'a>(
        golden: &'a Golden,
        weights: &'a Weights,
        of: &'a [(PairBatch, Packed)],
    ) -> Vec<StepInput<'a>> {
        let input = |(pairs, normal): &'a (PairBatch, Packed)| StepInput {
            model: &golden.model,
            weights,
            pairs,
            normal: Some(normal),
        };
        of.iter().map(input).collect()
    }
    let flat =
        |t: &candle_core::Tensor| t.flatten_all().expect("flat").to_vec1::<f32>().expect("values");
    for objective in step::objective::OBJECTIVES {
        let name = objective.name;
        let recipe = Recipe {
            select: "all".into(),
            objective: name.into(),
            weight: 0.5,
            kl_weight: 2.0,
            beta: None,
            slicing: Slicing::default(),
        };
        let step = |of: &[(PairBatch, Packed)]| {
            let mut method = Method::new(&recipe).expect(name);
            method.objective.learn(&golden.copies(), golden.model.sizes().vocabulary).expect(name);
            method.step(&inputs(&golden, &weights, of)).expect(name)
        };
        let (together, want) = (step(&parts), step(&whole));
        close(together.terms.loss, want.terms.loss, 1e-5, name);
        close(together.terms.nll_good.expect("nll"), want.terms.nll_good.expect("nll"), 1e-5, name);
        close(together.terms.kl.expect("kl"), want.terms.kl.expect("kl"), 1e-5, name);
        assert_eq!(together.gradients.len(), want.gradients.len());
        for (tensor, gradient) in &together.gradients {
            all_close(
                &flat(gradient),
                &flat(&want.gradients[tensor]),
                1e-4,
                &format!("{name} {tensor}"),
            );
        }
        let norm = |of: &step::StepReport| {
            irepair::step::optim::gradient_norm(&of.gradients).expect("norm")
        };
        close(norm(&together), norm(&want), 1e-5, name);
    }
    for select in ["max", "max-over-chosen", "max-over-normal"] {
        let recipe = Recipe { select: select.into(), ..step::METHODS[0].recipe() };
        let selection = |of: &[(PairBatch, Packed)]| {
            Method::new(&recipe)
                .expect(select)
                .select
                .select(&inputs(&golden, &weights, of))
                .expect(select)
        };
        let (together, want) = (selection(&parts), selection(&whole));
        close(together.nll_rejected.expect("nll"), want.nll_rejected.expect("nll"), 1e-5, select);
        let counts = parts.each_ref().map(|(pairs, _)| pairs.rejected.rows.len() as f64);
        let apart = [selection(&parts[..1]), selection(&parts[1..])].map(|s| s.sensitivity);
        for (block, got) in together.sensitivity.iter().enumerate() {
            let mean = (apart[0][block] * counts[0] + apart[1][block] * counts[1])
                / (counts[0] + counts[1]);
            close(*got, mean, 1e-9, select);
            assert!(
                *got >= want.sensitivity[block] * (1.0 - 1e-5),
                "{select}: norms add up to no less"
            );
        }
    }
}

/// The look of `fixed` is the mean over the pairs: a last batch that is short weighs less.
#[test]
fn a_short_batch_weighs_by_its_pairs() {
    let golden = Golden::open("gpt2");
    let weights = golden.weights(Kernels::Cpu);
    let mut pairs = golden.pairs();
    let mut fifth = pairs[0].clone();
    fifth.prompt.clear();
    pairs.push(fifth);
    assert_eq!(pairs.len(), 5);
    let batches: Vec<PairBatch> = pairs
        .chunks(4)
        .map(|part| PairBatch::new(&part.iter().collect::<Vec<_>>(), LossOn::Response))
        .collect();
    let alone = |batch: &PairBatch| {
        sensitivity::sensitivity(&golden.model, &weights, &batch.rejected).expect("norms").0
    };
    let (four, one) = (alone(&batches[0]), alone(&batches[1]));
    let mut method =
        Method::new(&step::named("irepair-fixed").expect("named").recipe()).expect("method");
    method.select.prepare(&golden.model, &weights, &mut batches.into_iter()).expect("a look");
    let means = method.select.memory().means().expect("means");
    for ((four, one), mean) in four.iter().zip(&one).zip(means) {
        assert!((four / one - 1.0).abs() > 1e-3, "nothing to tell apart");
        close(mean, (4.0 * four + one) / 5.0, 1e-12, "mean");
    }
}

/// `--normalize running`: each unit's score over the mean of its own in the steps before; in the first step it alone.
#[test]
fn a_running_mean_is_of_the_steps_before() {
    let golden = Golden::open("gpt2");
    let weights = golden.weights(Kernels::Cpu);
    let pairs = golden.pairs();
    let slicing = Slicing { normalize: Normalize::Running, ..Slicing::default() };
    let mut method = Method::new(&Recipe { slicing, ..step::METHODS[1].recipe() }).expect("method");
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
        let input =
            StepInput { model: &golden.model, weights: &weights, pairs: &batch, normal: None };
        let selection = method.select.select(std::slice::from_ref(&input)).expect("selection");
        assert_eq!(selection.slice, Slice::block(want), "after {} steps", before.len());
        assert_eq!(selection.scores, scores);
        method.select.learn(&selection);
        before.push(scores);
        // Saved and restored, it goes on the same.
        let saved = serde_json::to_string(&method.select.memory()).expect("JSON");
        let memory: Memory = serde_json::from_str(&saved).expect("a memory");
        assert_eq!(memory, method.select.memory());
        method.select.remember(memory);
    }
}

/// Along its own gradient, every tensor's loss changes by the gradient's norm (central differences).
#[test]
fn gradients_equal_finite_differences() {
    for name in ["gpt2-odd", "gpt-neo", "llama", "qwen3"] {
        let golden = Golden::open(name);
        let batch = golden.batch(LossOn::Response).rejected;
        for kernels in KERNELS {
            let mut weights = golden.weights(kernels);
            let view = weights.view(Who::Patient, |_| Want::Gradient).expect("view");
            let loss = loss::nll(&golden.model, &view, &batch).expect("nll");
            view.backward(loss).expect("backward");
            let gradients = view.harvest().expect("harvest").gradients;
            assert_eq!(gradients.len(), golden.model.specs().len(), "a gradient for every tensor");
            for (tensor, gradient) in gradients {
                let norm = irepair::model::weights::squared_norms([&gradient].into_iter())
                    .expect("norm")[0]
                    .sqrt();
                let original = weights.touch(&tensor).expect("tensor").copy().expect("copy");
                let step = 1e-2;
                let mut at = |sign: f64| {
                    let moved = (&original + (&gradient * (sign * step / norm)).expect("scaled"))
                        .expect("moved");
                    weights.restore(&tensor, moved).expect("restore");
                    let view = weights.frozen(Who::Patient).expect("view");
                    let loss = loss::nll(&golden.model, &view, &batch).expect("nll");
                    f64::from(loss.to_scalar::<f32>().expect("scalar"))
                };
                let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
                weights.restore(&tensor, original).expect("restore");
                close(slope, norm, 5e-3, &format!("{name} {kernels:?} {tensor}"));
            }
        }
    }
}

/// Every objective is its formula, computed here from the log-probabilities of the sequences apart, and its gradient is the
/// slope of that value along itself (central differences): away from the reference, where margins are not 0.
#[test]
fn objectives_are_their_formulas_and_gradients_their_slopes() {
    let golden = Golden::open("gpt2");
    let pairs = golden.pairs();
    let batch = PairBatch::new(&pairs.iter().collect::<Vec<_>>(), LossOn::Response);
    let mut weights = golden.weights(irepair::model::weights::Kernels::Cpu);
    weights.keep_originals(true);
    for spec in golden.model.specs().iter().filter(|s| s.shape.len() == 2) {
        let moved = (weights.touch(&spec.name).expect("tensor") * 1.1).expect("moved");
        weights.restore(&spec.name, moved).expect("restore");
    }
    // By sequence: the log-probability of each counted token.
    let logps = |who, batch: &Batch| -> Vec<Vec<f64>> {
        let view = weights.frozen(who).expect("view");
        let h = golden.model.hidden(&view, &batch.packed).expect("hidden");
        let all = golden.model.token_logp(&view, &h, &batch.rows, &batch.targets).expect("logp");
        let mut all = all.to_vec1::<f32>().expect("values").into_iter().map(f64::from);
        batch.counts.iter().map(|n| all.by_ref().take(*n).collect()).collect()
    };
    let of = |who| [logps(who, &batch.chosen), logps(who, &batch.rejected)];
    let ([good, bad], [ref_good, ref_bad]) = (of(Who::Patient), of(Who::Reference));
    let sum = |x: &[f64]| x.iter().sum::<f64>();
    let mean = |x: &[f64]| sum(x) / x.len() as f64;
    let margins = |of: &dyn Fn(&[f64]) -> f64| -> Vec<f64> {
        (0..good.len())
            .map(|i| of(&good[i]) - of(&bad[i]) - (of(&ref_good[i]) - of(&ref_bad[i])))
            .collect()
    };
    let log_loss = |beta: f64, margins: Vec<f64>| {
        mean(&margins.iter().map(|m| (-beta * m).exp().ln_1p()).collect::<Vec<_>>())
    };
    let flat = |rows: &[Vec<f64>]| rows.concat();
    let nll = -mean(&flat(&good));
    // What is telltale here comes from copies of the few pairs; its probability from all logits.
    let vocabulary = golden.model.sizes().vocabulary;
    let copies = golden.copies();
    let telltales = telltales(&copies, vocabulary);
    assert!(!telltales.is_empty());
    let unlikely = |batch: &Batch| -> f64 {
        let view = weights.frozen(Who::Patient).expect("view");
        let h = golden.model.hidden(&view, &batch.packed).expect("hidden");
        let logits =
            golden.model.logits(&view, &h).expect("logits").to_vec2::<f32>().expect("values");
        let comes = |row: &u32| {
            let logits = &logits[*row as usize];
            let p = |token: usize| f64::from(logits[token]).exp();
            let all: f64 = (0..vocabulary).map(p).sum();
            telltales.iter().map(|t| t.weight * p(t.token as usize)).sum::<f64>() / all
        };
        batch.rows.iter().map(|row| -(-comes(row)).ln_1p()).sum()
    };
    let unlikelihood = (unlikely(&batch.chosen) + unlikely(&batch.rejected)) / pairs.len() as f64;
    let formulas = [
        ("nll", nll),
        ("dpo", log_loss(0.1, margins(&sum))),
        ("dpo-ul", log_loss(0.1, margins(&sum)) + unlikelihood),
        ("dpo-norm", log_loss(5.0, margins(&mean))),
        ("ipo", mean(&margins(&mean).iter().map(|m| (m - 1.0).powi(2)).collect::<Vec<_>>())),
        (
            "unlikelihood",
            nll - mean(&flat(&bad).iter().map(|l| (-l.exp()).ln_1p()).collect::<Vec<_>>()),
        ),
    ];
    let names: Vec<&str> = step::objective::OBJECTIVES.iter().map(|o| o.name).collect();
    assert_eq!(names, formulas.map(|f| f.0), "every objective has its formula here");
    for (name, value) in formulas {
        let recipe = Recipe {
            select: "all".into(),
            objective: name.into(),
            weight: 1.0,
            kl_weight: 0.0,
            beta: None,
            slicing: Slicing::default(),
        };
        let mut method = Method::new(&recipe).expect(name);
        method.objective.learn(&copies, vocabulary).expect(name);
        fn input<'a>(
            golden: &'a Golden,
            weights: &'a Weights,
            pairs: &'a PairBatch,
        ) -> StepInput<'a> {
            StepInput { model: &golden.model, weights, pairs, normal: None }
        }
        let report = method.step(&[input(&golden, &weights, &batch)]).expect(name);
        close(report.terms.loss, value, 1e-5, name);
        close(
            method.validate(&input(&golden, &weights, &batch)).expect(name).loss,
            value,
            1e-5,
            name,
        );
        for tensor in ["transformer.h.0.mlp.c_fc.weight", "transformer.h.1.attn.c_attn.weight"] {
            let gradient = &report.gradients[tensor];
            let norm = irepair::model::weights::squared_norms([gradient].into_iter())
                .expect("norm")[0]
                .sqrt();
            let original =
                weights.tensor(Who::Patient, tensor).expect("tensor").copy().expect("copy");
            let step = 1e-2;
            let mut at = |sign: f64| {
                let moved = (&original + (gradient * (sign * step / norm)).expect("scaled"))
                    .expect("moved");
                weights.restore(tensor, moved).expect("restore");
                method.validate(&input(&golden, &weights, &batch)).expect(name).loss
            };
            let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
            weights.restore(tensor, original).expect("restore");
            close(slope, norm, 5e-3, &format!("{name} {tensor}"));
        }
    }
}

/// Every architecture's tiny model: sensitivities are finite and positive, and each method changes only its slice.
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
                    (
                        format!("{} {slicing:?}", select.name),
                        Recipe { select: select.name.into(), slicing, ..recipe },
                    )
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
                let pairs = PairBatch::new(&pairs.iter().collect::<Vec<_>>(), LossOn::Response);
                let before: Vec<Vec<f32>> = all(&model, &weights, Who::Reference);
                let mut method = Method::new(&recipe).expect(&what);
                let telling = pair(&[1], &[1; 10], &[2; 10]);
                method.objective.learn(&[telling], model.sizes().vocabulary).expect(&what);
                method
                    .select
                    .prepare(&model, &weights, &mut std::iter::once(pairs.clone()))
                    .expect(&what);
                // The loop makes the trials; any outcome will do here.
                if let Some(last) = method.select.trials(&model).pop() {
                    method.select.settle(last);
                }
                let mut optimizer = Optimizer::new(OptimizerKind::Rmsprop);
                let mut allowed = BTreeSet::new();
                let normal = pairs.chosen.packed.clone();
                for _ in 0..3 {
                    let input = StepInput {
                        model: &model,
                        weights: &weights,
                        pairs: &pairs,
                        normal: Some(&normal),
                    };
                    let report = method.step(std::slice::from_ref(&input)).expect(&what);
                    method.select.learn(&report.selection);
                    let slice = report.selection.slice;
                    allowed.extend(
                        model.specs().into_iter().filter(|s| slice.contains(s)).map(|s| s.name),
                    );
                    optimizer.step(&mut weights, &report.gradients, 1e-3, 1.0).expect(&what);
                }
                assert_eq!(
                    all(&model, &weights, Who::Reference),
                    before,
                    "{what}: the reference moved"
                );
                let after = all(&model, &weights, Who::Patient);
                for ((spec, before), after) in model.specs().iter().zip(&before).zip(&after) {
                    let changed = before != after;
                    assert_eq!(changed, allowed.contains(&spec.name), "{what}: {}", spec.name);
                }
                if recipe.kl_weight != 0.0 {
                    let input = StepInput {
                        model: &model,
                        weights: &weights,
                        pairs: &pairs,
                        normal: Some(&normal),
                    };
                    let kl = method.validate(&input).expect(&what).kl.expect("kl");
                    assert!(kl > 1e-6, "{what}: KL {kl} after steps");
                }
            }
        }
    }
}

fn random_weights(model: &Model) -> Weights {
    let mut stream =
        irepair::base::random::Stream::new(5, irepair::base::random::Purpose::Bench, 0, 0);
    let tensors = model
        .specs()
        .into_iter()
        .map(|spec| {
            let values: Vec<f32> =
                (0..spec.shape.iter().product()).map(|_| stream.normal() as f32 * 0.3).collect();
            let tensor = candle_core::Tensor::from_vec(
                values,
                spec.shape.as_slice(),
                &candle_core::Device::Cpu,
            );
            (spec.name, tensor.expect("tensor"))
        })
        .collect();
    Weights::new(model.specs(), tensors).expect("weights")
}

fn all(model: &Model, weights: &Weights, who: Who) -> Vec<Vec<f32>> {
    let values = |name: &str| {
        weights.tensor(who, name)?.flatten_all()?.to_vec1::<f32>().map_err(anyhow::Error::from)
    };
    model.specs().iter().map(|s| values(&s.name).expect("values")).collect()
}

/// The fast sensitivities (norms without gradients) equal the plain ones.
#[test]
fn norms_without_gradients_equal_norms_of_gradients() {
    for arch in ARCHES {
        let model = Model::from_config(&serde_json::from_str(arch.tiny).expect("config"))
            .expect(arch.model_type);
        // The Gram form of larger layers is in `kernels::linear`.
        for length in [3u32, 60] {
            let ids: Vec<u32> = (0..length * 4).map(|i| (i * 37) % 300).collect();
            let batch = Batch::new(ids.chunks(length as usize).map(|s| (&s[..0], s)), LossOn::All);
            let [fast, plain] = KERNELS.map(|k| {
                let weights = random_weights(&model).with_kernels(k);
                sensitivity::sensitivity(&model, &weights, &batch).expect("sensitivity")
            });
            close(fast.1, plain.1, 1e-5, arch.model_type);
            for (f, p) in fast.0.iter().zip(&plain.0) {
                close(*f, *p, 1e-5, arch.model_type);
            }
        }
    }
}

#[test]
fn a_missing_gradient_is_an_error() {
    let golden = Golden::open("gpt2");
    for kernels in KERNELS {
        let weights = golden.weights(kernels);
        let mut view = weights.view(Who::Patient, |s| {
            if s.place == Place::Block(1) { Want::Norm } else { Want::Nothing }
        });
        let view = view.as_mut().expect("view");
        let unrelated =
            candle_core::Var::zeros((), candle_core::DType::F32, &candle_core::Device::Cpu)
                .expect("var");
        let error = view
            .backward(unrelated.as_tensor().affine(2.0, 1.0).expect("loss"))
            .expect_err("nothing reached");
        assert!(error.to_string().contains("no gradient reached"), "{error}");
    }
}

/// Open → save unchanged: every file equal, whatever its layout and dtype.
#[test]
fn saving_unchanged_gives_equal_bytes() {
    for name in CHECKPOINTS {
        let golden = Golden::open(name);
        let weights = golden.weights(KERNELS[0]);
        let out = tempfile::tempdir().expect("dir");
        checkpoint::write(&golden.checkpoint, &weights, out.path()).expect("writes");
        for file in &golden.checkpoint.files {
            let (a, b) = (golden.checkpoint.dir.join(file), out.path().join(file));
            assert_eq!(
                std::fs::read(a).expect("base"),
                std::fs::read(b).expect("output"),
                "{name}/{file}"
            );
        }
        // Written again from the loaded values: f32, f16 and bf16 come back to the bit.
        let mut weights = weights;
        for spec in golden.model.specs() {
            weights.touch(&spec.name).expect("touch");
        }
        checkpoint::write(&golden.checkpoint, &weights, out.path()).expect("writes");
        let written = checkpoint::Checkpoint::open(out.path(), name, None).expect("opens");
        assert_eq!(
            checkpoint::compare(&golden.checkpoint, &written).expect("compares"),
            [],
            "{name}"
        );
    }
}

/// Greedy continuations equal transformers' `generate`, batched or one by one, with our cache.
#[test]
fn greedy_generation_equals_transformers() {
    let expected = json("generate.json");
    for name in GENERATE {
        let golden = Golden::open(name);
        let ids = |value: &serde_json::Value| -> Vec<u32> {
            numbers(value).iter().map(|x| *x as u32).collect()
        };
        let rows = expected[name].as_array().expect("rows");
        let jobs: Vec<Job> =
            rows.iter().map(|r| Job { ids: ids(&r["prompt_ids"]), prompt: 0, sample: 0 }).collect();
        let want: Vec<Vec<u32>> = rows.iter().map(|r| ids(&r["new_ids"])).collect();
        let settings =
            Generation { sampling: Sampling::Greedy, max_new_tokens: 20, ends: [].into(), seed: 0 };
        for kernels in KERNELS {
            let weights = golden.weights(kernels);
            let view = weights.frozen(Who::Patient).expect("view");
            // Every prompt twice, so that each is read once and continued twice.
            let texts = generate(&golden.model, &view, &[&jobs[..], &jobs[..]].concat(), &settings)
                .expect("texts");
            assert_eq!(texts, [&want[..], &want[..]].concat(), "{name} {kernels:?}");
            for (job, want) in jobs.chunks(1).zip(&want) {
                assert_eq!(
                    &generate(&golden.model, &view, job, &settings).expect("text")[0],
                    want,
                    "{name} alone"
                );
            }
        }
    }
}

/// The logits along the greedy texts, too: tiny models repeat tokens, and ids alone test little.
#[test]
fn cached_logits_equal_transformers() {
    use irepair::model::Caches;
    use irepair::tokens::Packed;
    let expected = json("generate.json");
    for name in GENERATE {
        let golden = Golden::open(name);
        let of_each =
            |kernels| expected[name].as_array().expect("rows").iter().map(move |r| (kernels, r));
        for (kernels, row) in KERNELS.into_iter().flat_map(of_each) {
            let weights = golden.weights(kernels);
            let view = weights.frozen(Who::Patient).expect("view");
            let ids =
                |key: &str| -> Vec<u32> { numbers(&row[key]).iter().map(|x| *x as u32).collect() };
            let (prompt, new) = (ids("prompt_ids"), ids("new_ids"));
            let caches = Caches::new(golden.model.sizes().blocks, 1);
            let mut packed = Packed::new([prompt.as_slice()]);
            let mut got = Vec::new();
            for (i, id) in new.iter().enumerate() {
                let logits = golden.model.next_logits(&view, &packed, &caches).expect("logits");
                got.push(logits.to_vec2::<f32>().expect("values")[0][*id as usize]);
                packed = Packed::continuing([(&[*id][..], prompt.len() + i)]);
            }
            let want: Vec<f32> = numbers(&row["top_logits"]).iter().map(|x| *x as f32).collect();
            all_close(&got, &want, 1e-5, &format!("{name} {kernels:?}"));
        }
    }
}

/// The sampled texts of a batch are those of each prompt alone.
#[test]
fn batches_do_not_change_sampled_texts() {
    let golden = Golden::open("gpt-neo");
    let jobs: Vec<Job> = golden
        .pairs()
        .into_iter()
        .enumerate()
        .flat_map(|(i, p)| {
            (0..3).map(move |sample| Job { ids: p.prompt.clone(), prompt: i as u64, sample })
        })
        .collect();
    let sampling = Sampling::Random { temperature: 1.0, top_k: 0, top_p: 0.9 };
    let settings = Generation { sampling, max_new_tokens: 16, ends: [5, 7].into(), seed: 3 };
    let weights = golden.weights(KERNELS[0]);
    let view = weights.frozen(Who::Patient).expect("view");
    let together = generate(&golden.model, &view, &jobs, &settings).expect("texts");
    assert!(together.iter().collect::<BTreeSet<_>>().len() > 8, "samples are all alike");
    for size in [1, 5] {
        let mut apart = Vec::new();
        for jobs in jobs.chunks(size) {
            apart.extend(generate(&golden.model, &view, jobs, &settings).expect("texts"));
        }
        assert_eq!(apart, together, "batches of {size}");
    }
}

/// RMSProp and AdamW against torch.optim, with steps in which the parameter has no gradient.
#[test]
fn optimizers_equal_torch() {
    use candle_core::{Device, Tensor};
    use irepair::model::weights::TensorSpec;
    let expected = json("optim.json");
    for (kind, key) in [(OptimizerKind::Rmsprop, "rmsprop"), (OptimizerKind::Adamw, "adamw")] {
        let vector = |value: &serde_json::Value| {
            let values: Vec<f32> = numbers(value).iter().map(|x| *x as f32).collect();
            Tensor::from_vec(values, 5, &Device::Cpu).expect("tensor")
        };
        let spec = TensorSpec::outside("p", &[5], Place::Head);
        let mut weights =
            Weights::new(vec![spec], [("p".to_owned(), vector(&expected["initial"]))].into())
                .expect("weights");
        let mut optimizer = Optimizer::new(kind);
        let lr = expected["lr"].as_f64().expect("lr");
        let gradients = expected["gradients"].as_array().expect("gradients");
        for (gradient, after) in
            gradients.iter().zip(expected[key]["after"].as_array().expect("after"))
        {
            if !gradient.is_null() {
                let gradients = [("p".to_owned(), vector(gradient))].into();
                optimizer.step(&mut weights, &gradients, lr, 1.0).expect("step");
            }
            let got =
                weights.tensor(Who::Patient, "p").expect("p").to_vec1::<f32>().expect("values");
            let want: Vec<f32> = numbers(after).iter().map(|x| *x as f32).collect();
            all_close(&got, &want, 1e-6, key);
        }
    }
}

/// What the fast path leaves out changes nothing. A step on one block with our kernels has the values and gradients of the
/// composed form that differentiates every tensor; and where the blocks below are the reference's, so that it is shared there,
/// the KL is that of two whole passes, computed here from all logits.
#[test]
fn a_slice_alone_gives_what_everything_gives() {
    for name in ["gpt2", "gpt-neo", "llama", "qwen3"] {
        let golden = Golden::open(name);
        let (batch, normal) = (golden.batch(LossOn::Response), golden.normal());
        for block in 0..golden.model.sizes().blocks {
            // The block has moved, as in the midst of a repair; those below are untouched.
            let moved = |kernels| {
                let mut weights = golden.weights(kernels);
                weights.keep_originals(true);
                for spec in golden
                    .model
                    .specs()
                    .iter()
                    .filter(|s| s.place == Place::Block(block) && s.shape.len() == 2)
                {
                    let tensor = (weights.touch(&spec.name).expect("tensor") * 1.1).expect("moved");
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
                        select: select.into(),
                        objective: objective.into(),
                        weight: 0.7,
                        kl_weight: 0.5,
                        beta: None,
                        slicing,
                    };
                    let mut method = Method::new(&recipe).expect("method");
                    method
                        .select
                        .prepare(&golden.model, weights, &mut std::iter::once(batch.clone()))
                        .expect("prepare");
                    let input = StepInput {
                        model: &golden.model,
                        weights,
                        pairs: &batch,
                        normal: Some(&normal),
                    };
                    method.step(&[input]).expect("step")
                };
                let (whole, some) = (Granularity::Block, Granularity::Sublayer);
                let (alone, everything) =
                    (step(&fast, "fixed", whole, vec![block]), step(&plain, "all", whole, vec![]));
                close(alone.terms.loss, everything.terms.loss, 1e-5, &what);
                close(
                    alone.terms.nll_good.expect("NLL"),
                    everything.terms.nll_good.expect("NLL"),
                    1e-5,
                    &what,
                );
                let kl = alone.terms.kl.expect("KL");
                close(kl, everything.terms.kl.expect("KL"), 1e-5, &what);
                close(kl, whole_kl(&golden, &fast, &normal), 1e-5, &what);
                let specs = golden.model.specs();
                let names: BTreeSet<&str> = specs
                    .iter()
                    .filter(|s| s.place == Place::Block(block))
                    .map(|s| s.name.as_str())
                    .collect();
                assert_eq!(
                    alone.gradients.keys().map(String::as_str).collect::<BTreeSet<_>>(),
                    names,
                    "{what}"
                );
                // The more sensitive sublayer of the block and the less: the graph begins in the midst of it, or before it.
                let parts =
                    ["max", "min"].map(|select| step(&fast, select, some, vec![block]).gradients);
                assert_eq!(
                    parts.iter().map(|part| part.len()).sum::<usize>(),
                    names.len(),
                    "{what}"
                );
                for (tensor, gradient) in alone.gradients.iter().chain(parts.iter().flatten()) {
                    let values = |t: &candle_core::Tensor| {
                        t.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("values")
                    };
                    let want = values(&everything.gradients[tensor]);
                    all_close(&values(gradient), &want, 2e-5, &format!("{what} {tensor}"));
                }
            }
        }
    }
}

/// Mean KL of the reference from the patient over all positions, from the logits of two passes through the whole model, in f64.
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
