//! Gradients are slopes, objectives are their formulas, and a missing gradient is an error.

use candle_core::{DType, Device, Var};
use irepair::model::weights::{Kernels, Place, Want, Weights, Who, squared_norms};
use irepair::model::{ARCHES, Model, loss};
use irepair::slice::select::Slicing;
use irepair::slice::sensitivity;
use irepair::step;
use irepair::step::Recipe;
use irepair::step::objective::marker_tokens::marker_tokens;
use irepair::tokens::{Batch, LossOn};

use crate::support::golden::{Golden, KERNELS};
use crate::support::tensors::{close, flat, random_weights, scalar};

/// Along its own gradient, every tensor's loss changes by the gradient's norm (central
/// differences).
#[test]
fn gradients_equal_finite_differences() {
    for name in [
        "gpt2-odd", "gpt-neo", "gpt-neox", "llama", "qwen3", "gemma2", "gemma3", "olmo2",
        "granite", "phi3",
    ] {
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
                let norm = squared_norms([&gradient].into_iter()).expect("norm")[0].sqrt();
                let original = weights.touch(&tensor).expect("tensor").copy().expect("copy");
                let mut at = |step: f64| {
                    let moved =
                        (&original + (&gradient * (step / norm)).expect("scaled")).expect("moved");
                    weights.restore(&tensor, moved).expect("restore");
                    let view = weights.frozen(Who::Patient).expect("view");
                    scalar(&loss::nll(&golden.model, &view, &batch).expect("nll"))
                };
                let mut central = |step: f64| (at(step) - at(-step)) / (2.0 * step);
                // Soft caps bend the loss: Richardson's extrapolation takes the third order away.
                let slope = (4.0 * central(1e-2) - central(2e-2)) / 3.0;
                weights.restore(&tensor, original).expect("restore");
                close(slope, norm, 5e-3, &format!("{name} {kernels:?} {tensor}"));
            }
        }
    }
}

/// Every objective is its formula, computed here from the log-probabilities of the sequences apart.
/// Its gradient is the slope of that value along itself (central differences). The model is away
/// from the reference, so that margins are not 0.
#[test]
fn objectives_are_their_formulas_and_gradients_their_slopes() {
    let golden = Golden::open("gpt2");
    let pairs = golden.pairs();
    let batch = golden.batch(LossOn::Response);
    let mut weights = golden.weights(Kernels::Cpu);
    weights.keep_originals(true);
    for spec in golden.model.specs().iter().filter(|s| s.shape.len() == 2) {
        let moved = (weights.touch(&spec.name).expect("tensor") * 1.1).expect("moved");
        weights.restore(&spec.name, moved).expect("restore");
    }
    // For each sequence, the log-probability of each counted token.
    let logps = |who, batch: &Batch| -> Vec<Vec<f64>> {
        let view = weights.frozen(who).expect("view");
        let h = golden.model.hidden(&view, &batch.packed).expect("hidden");
        let all = golden.model.token_logp(&view, &h, &batch.rows, &batch.targets).expect("logp");
        let mut all = flat(&all).into_iter().map(f64::from);
        batch.counts.iter().map(|n| all.by_ref().take(*n).collect()).collect()
    };
    let all = |who| [&batch.chosen, &batch.rejected, &batch.strangers].map(|of| logps(who, of));
    let ([good, bad, strange], [ref_good, ref_bad, ref_strange]) =
        (all(Who::Patient), all(Who::Reference));
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
    let nll = -mean(&good.concat());
    // What marks a response here comes from copies of the few pairs, its probability from all
    // logits.
    let vocabulary = golden.model.sizes().vocabulary;
    let copies = golden.copies();
    let markers = marker_tokens(&copies, vocabulary);
    assert!(!markers.is_empty());
    let unlikely = |batch: &Batch| -> f64 {
        let view = weights.frozen(Who::Patient).expect("view");
        let h = golden.model.hidden(&view, &batch.packed).expect("hidden");
        let logits =
            golden.model.logits(&view, &h).expect("logits").to_vec2::<f32>().expect("values");
        let comes = |row: &u32| {
            let logits = &logits[*row as usize];
            let p = |token: usize| f64::from(logits[token]).exp();
            let all: f64 = (0..vocabulary).map(p).sum();
            markers.iter().map(|t| t.weight * p(t.token as usize)).sum::<f64>() / all
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
            "hinge",
            mean(&margins(&sum).iter().map(|m| (1.0 - 0.05 * m).max(0.0)).collect::<Vec<_>>()),
        ),
        (
            "npo",
            // −(2/β)·log σ(−β·m), as Zhang et al. have it.
            mean(
                &(0..bad.len())
                    .map(|i| 0.1 * (sum(&bad[i]) - sum(&ref_bad[i])))
                    .map(|m| -2.0 / 0.1 * (1.0 / (1.0 + m.exp())).ln())
                    .collect::<Vec<_>>(),
            ),
        ),
        ("kto", {
            let ratio = |own: &[f64], base: &[f64]| sum(own) - sum(base);
            let ratios = |own: &[Vec<f64>], base: &[Vec<f64>]| -> Vec<f64> {
                own.iter().zip(base).map(|(own, base)| ratio(own, base)).collect()
            };
            let z = mean(&ratios(&strange, &ref_strange)).max(0.0);
            let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
            let chosen = ratios(&good, &ref_good).into_iter().map(|r| 1.0 - sigmoid(0.1 * (r - z)));
            let rejected = ratios(&bad, &ref_bad).into_iter().map(|r| 1.0 - sigmoid(0.1 * (z - r)));
            mean(&chosen.chain(rejected).collect::<Vec<_>>())
        }),
        (
            "unlikelihood",
            nll - mean(&bad.concat().iter().map(|l| (-l.exp()).ln_1p()).collect::<Vec<_>>()),
        ),
    ];
    let names: Vec<&str> = step::objective::OBJECTIVES.iter().map(|o| o.name).collect();
    assert_eq!(names, formulas.map(|f| f.0), "every objective has its formula here");
    for (name, value) in formulas {
        let objective = step::objective::named(name).expect(name);
        let recipe = Recipe {
            select: irepair::slice::select::named("all").expect("a selector"),
            objective,
            weight: 1.0,
            kl_weight: 0.0,
            beta: None,
            slicing: Slicing::default(),
            online: false,
        };
        let mut method = recipe.clone().build();
        method.objective.learn(&copies, vocabulary).expect(name);
        let report = method.step(&[golden.input(&weights, &batch, None)]).expect(name);
        close(report.terms.loss, value, 1e-5, name);
        let loss = |weights: &Weights| {
            method.validate(&golden.input(weights, &batch, None)).expect(name).loss
        };
        close(loss(&weights), value, 1e-5, name);
        for tensor in ["transformer.h.0.mlp.c_fc.weight", "transformer.h.1.attn.c_attn.weight"] {
            let gradient = &report.gradients[tensor];
            let norm = squared_norms([gradient].into_iter()).expect("norm")[0].sqrt();
            let original =
                weights.tensor(Who::Patient, tensor).expect("tensor").copy().expect("copy");
            let step = 1e-2;
            let mut at = |sign: f64| {
                let moved = (&original + (gradient * (sign * step / norm)).expect("scaled"))
                    .expect("moved");
                weights.restore(tensor, moved).expect("restore");
                loss(&weights)
            };
            let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
            weights.restore(tensor, original).expect("restore");
            close(slope, norm, 5e-3, &format!("{name} {tensor}"));
        }
    }
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
        let unrelated = Var::zeros((), DType::F32, &Device::Cpu).expect("var");
        let error = view
            .backward(unrelated.as_tensor().affine(2.0, 1.0).expect("loss"))
            .expect_err("nothing reached");
        assert!(error.to_string().contains("no gradient reached"), "{error}");
    }
}
