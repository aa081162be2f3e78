//! How rows are put together changes nothing: packing, forks, accumulated batches, samples.

use std::collections::BTreeSet;

use candle_core::Tensor;
use irepair::model::generate::{Generation, Job, Sampling, generate};
use irepair::model::loss;
use irepair::model::precision::Precision;
use irepair::model::weights::{Kernels, Want, Weights, Who};
use irepair::slice::input::StepInput;
use irepair::slice::select::Slicing;
use irepair::slice::sensitivity;
use irepair::step;
use irepair::step::optim::{Optimizer, OptimizerKind, gradient_norm};
use irepair::step::{Method, Recipe};
use irepair::tokens::{Batch, LossOn, Packed, PairBatch, TokenPair};

use crate::support::golden::{CHECKPOINTS, Golden, KERNELS, batch};
use crate::support::tensors::{all_close, close, flat, scalar};

/// A packed batch of rows of different length is the rows alone: the mean NLL weighs them by their
/// counted tokens.
#[test]
fn packed_equals_one_by_one() {
    for name in CHECKPOINTS {
        let golden = Golden::open(name);
        let pairs = golden.pairs();
        for kernels in KERNELS {
            let weights = golden.weights(kernels);
            let view = weights.frozen(Who::Patient).expect("view");
            let nll = |pairs: &[TokenPair]| {
                let batch = batch(pairs, LossOn::Response).chosen;
                let mean = scalar(&loss::nll(&golden.model, &view, &batch).expect("nll"));
                (mean, batch.rows.len() as f64)
            };
            let (together, count) = nll(&pairs);
            let alone: f64 = pairs.chunks(1).map(nll).map(|(mean, n)| mean * n / count).sum();
            close(together, alone, 1e-6, name);
        }
    }
}

/// What the reference made of a normal text in one batch serves in every other: the same KL and
/// gradients, to the bit.
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
        for recipe in ["dapt+kl", "irepair+kl"].map(crate::support::golden::recipe) {
            let mut weights = golden.weights(Kernels::Cpu);
            weights.set_precision(precision);
            weights.keep_originals(true);
            let step = |method: &Method, weights: &Weights, normal: &Packed| {
                method.step(&[golden.input(weights, &pairs, Some(normal))]).expect("step")
            };
            let fresh = || recipe.clone().build();
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
                assert_eq!(flat(&again.gradients[tensor]), flat(gradient), "{what} {tensor}");
            }
        }
    }
}

/// Chosen and rejected responses that fork from one prompt are the two sequences apart: the same
/// log-probabilities, and the same gradients of all tensors, in windowed layers too.
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
            let batch = batch(&pairs, loss_on);
            // Σ logp(chosen) − 2·Σ logp(rejected), so that mixing the two up shows.
            let run = |apart: bool| {
                let view = weights.view(Who::Patient, |_| Want::Gradient).expect("view");
                let logp = |view: &_, batch: &Batch| {
                    let h = golden.model.hidden(view, &batch.packed).expect("hidden");
                    golden.model.token_logp(view, &h, &batch.rows, &batch.targets).expect("logp")
                };
                let factors = |counts: &[usize], of: [f32; 2]| {
                    let each = counts.iter().zip(of.iter().cycle());
                    let all: Vec<f32> = each.flat_map(|(n, f)| vec![*f; *n]).collect();
                    Tensor::new(all, &weights.device()).expect("factors")
                };
                let mut logps = Vec::new();
                let parts = match apart {
                    true => vec![(&batch.chosen, [1.0, 1.0]), (&batch.rejected, [-2.0, -2.0])],
                    false => batch.forks.iter().map(|part| (part, [1.0, -2.0])).collect(),
                };
                for (batch, of) in parts {
                    let logp = logp(&view, batch);
                    logps.push(flat(&logp));
                    let loss = (logp * factors(&batch.counts, of)).expect("weighed");
                    view.backward(loss.sum_all().expect("sum")).expect("backward");
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
                let (got, what) = (flat(&fork_gradients[&tensor]), format!("{what} {tensor}"));
                all_close(&got, &flat(&gradient), 1e-4, &what);
            }
        }
    }
}

/// A step on batches of unequal length is the step on one batch of all their rows: each counts by
/// its tokens, its pairs, its positions. Sensitivities are the mean of the batches'.
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
    // One pair and one text, then all others.
    let part = |rows: std::ops::Range<usize>| {
        let texts = Packed::new(texts[rows.clone()].iter().copied());
        (batch(&pairs[rows], LossOn::Response), texts)
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
        of.iter().map(|(pairs, normal)| golden.input(weights, pairs, Some(normal))).collect()
    }
    // KTO estimates a KL on each batch.
    for objective in step::objective::OBJECTIVES.iter().filter(|o| o.name != "kto") {
        let name = objective.name;
        let recipe = Recipe {
            select: irepair::slice::select::named("all").expect("a selector"),
            objective,
            weight: 0.5,
            kl_weight: 2.0,
            beta: None,
            slicing: Slicing::default(),
            online: false,
        };
        let step = |of: &[(PairBatch, Packed)]| {
            let mut method = recipe.clone().build();
            method.objective.learn(&golden.copies(), golden.model.sizes().vocabulary).expect(name);
            method.step(&inputs(&golden, &weights, of)).expect(name)
        };
        let (together, want) = (step(&parts), step(&whole));
        close(together.terms.loss, want.terms.loss, 1e-5, name);
        match (together.terms.nll_good, want.terms.nll_good) {
            (Some(got), Some(want)) => close(got, want, 1e-5, name),
            (got, want) => assert_eq!(got, want, "{name}"),
        }
        close(together.terms.kl.expect("kl"), want.terms.kl.expect("kl"), 1e-5, name);
        assert_eq!(together.gradients.len(), want.gradients.len());
        for (tensor, gradient) in &together.gradients {
            let (want, what) = (flat(&want.gradients[tensor]), format!("{name} {tensor}"));
            all_close(&flat(gradient), &want, 1e-4, &what);
        }
        let norm = |of: &step::StepReport| gradient_norm(&of.gradients).expect("norm");
        close(norm(&together), norm(&want), 1e-5, name);
    }
    for select in ["max", "max-over-chosen", "max-over-normal"] {
        let recipe = Recipe {
            select: irepair::slice::select::named(select).expect("a selector"),
            ..step::METHODS[0].recipe()
        };
        let selection = |of: &[(PairBatch, Packed)]| {
            let method = recipe.clone().build();
            method.select.select(&inputs(&golden, &weights, of)).expect(select)
        };
        let (together, want) = (selection(&parts), selection(&whole));
        close(together.nll_rejected.expect("nll"), want.nll_rejected.expect("nll"), 1e-5, select);
        let counts = parts.each_ref().map(|(pairs, _)| pairs.rejected.rows.len() as f64);
        let apart = [selection(&parts[..1]), selection(&parts[1..])].map(|s| s.sensitivity);
        for (block, got) in together.sensitivity.iter().enumerate() {
            let mean = (apart[0][block] * counts[0] + apart[1][block] * counts[1])
                / (counts[0] + counts[1]);
            close(*got, mean, 1e-9, select);
            let least = want.sensitivity[block] * (1.0 - 1e-5);
            assert!(*got >= least, "{select}: norms add up to no less");
        }
    }
}

/// What `fixed` sees is the mean over the pairs: a last batch that is short weighs less.
#[test]
fn a_short_batch_weighs_by_its_pairs() {
    let golden = Golden::open("gpt2");
    let weights = golden.weights(Kernels::Cpu);
    let mut pairs = golden.pairs();
    let mut fifth = pairs[0].clone();
    fifth.prompt.clear();
    pairs.push(fifth);
    assert_eq!(pairs.len(), 5);
    let batches: Vec<PairBatch> =
        pairs.chunks(4).map(|part| batch(part, LossOn::Response)).collect();
    let alone = |batch: &PairBatch| {
        sensitivity::sensitivity(&golden.model, &weights, &batch.rejected).expect("norms").0
    };
    let (four, one) = (alone(&batches[0]), alone(&batches[1]));
    let mut method = crate::support::golden::recipe("irepair-fixed").build();
    method.look(&golden.model, &weights, &mut batches.into_iter()).expect("a look");
    let means = method.select.memory().means().expect("means");
    for ((four, one), mean) in four.iter().zip(&one).zip(means) {
        assert!((four / one - 1.0).abs() > 1e-3, "nothing to tell apart");
        close(mean, (4.0 * four + one) / 5.0, 1e-12, "mean");
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
        .flat_map(|(i, p)| (0..3).map(move |sample| Job::new(p.prompt.clone(), i as u64, sample)))
        .collect();
    let sampling = Sampling::Random { temperature: 1.0, top_k: 0, top_p: 0.9 };
    let weights = golden.weights(KERNELS[0]);
    let view = weights.frozen(Who::Patient).expect("view");
    let write =
        |jobs: &[Job], all: &Generation| generate(&golden.model, &view, jobs, all).expect("texts");
    let endless = Generation {
        sampling,
        max_new_tokens: 16,
        ends: [].into(),
        seed: 3,
        at_a_time: usize::MAX,
    };
    // Texts that end at different places: what some of them say there is taken for an end.
    let whole = write(&jobs, &endless);
    let ends = [whole[0][2], whole[4][5], whole[5][9], whole[7][12]];
    let all = Generation { ends: ends.into(), ..endless };
    let together = write(&jobs, &all);
    assert!(together.iter().collect::<BTreeSet<_>>().len() > 8, "samples are all alike");
    assert!(together.iter().map(Vec::len).collect::<BTreeSet<_>>().len() > 3, "all end together");
    for kernels in KERNELS {
        let weights = golden.weights(kernels);
        let view = weights.frozen(Who::Patient).expect("view");
        for at_a_time in [1, 2, 5, 8] {
            let some = Generation { at_a_time, ..all.clone() };
            let refilled = generate(&golden.model, &view, &jobs, &some).expect("texts");
            assert_eq!(refilled, together, "{at_a_time} at a time {kernels:?}");
        }
    }
    let mut mixed = jobs.clone();
    mixed.iter_mut().step_by(3).for_each(|job| job.greedy = true);
    let likeliest = write(&jobs, &Generation { sampling: Sampling::Greedy, ..all.clone() });
    for (index, text) in write(&mixed, &all).iter().enumerate() {
        let of = if index % 3 == 0 { &likeliest } else { &together };
        assert_eq!(text, &of[index], "text {index}");
    }
    for size in [1, 5] {
        let mut apart = Vec::new();
        for jobs in jobs.chunks(size) {
            apart.extend(write(jobs, &all));
        }
        assert_eq!(apart, together, "batches of {size}");
    }
}
