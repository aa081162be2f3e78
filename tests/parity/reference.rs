//! Logits, losses, sensitivities and gradients of both implementations of the layers: those of
//! transformers and of the reference, at relative 1e-4.

use irepair::model::loss;
use irepair::model::weights::{Place, TensorSpec, Want, Who};
use irepair::slice::sensitivity::sensitivity;
use irepair::step::Recipe;
use irepair::tokens::{LossOn, Packed};

use crate::support::golden::{each, ids, json, number, numbers};
use crate::support::tensors::{all_close, close, flat, scalar};

#[test]
fn logits_equal_transformers() {
    each(|golden, kernels| {
        let weights = golden.weights(kernels);
        let ids = ids(&golden.expected["row0_ids"]);
        let view = weights.frozen(Who::Patient).expect("view");
        let h = golden.model.hidden(&view, &Packed::new([ids.as_slice()])).expect("hidden");
        let got = flat(&golden.model.logits(&view, &h).expect("logits"));
        // Absolute 1e-4 of logits up to 9. A wrong gelu differs by 1e-3 here, and by nothing in the
        // loss.
        let what = format!("{} {kernels:?}", golden.name);
        all_close(&got, &golden.tensor_of("logits_row0"), 1e-5, &what);
    });
}

#[test]
fn nll_and_sensitivity_equal_the_reference() {
    each(|golden, kernels| {
        let weights = golden.weights(kernels);
        for (loss_on, key) in [(LossOn::Response, "response"), (LossOn::All, "all")] {
            let what = format!("{} {kernels:?} {key}", golden.name);
            let expected = &golden.expected[key];
            let batch = golden.batch(loss_on);
            let view = weights.frozen(Who::Patient).expect("view");
            let good = scalar(&loss::nll(&golden.model, &view, &batch.chosen).expect("nll"));
            close(good, number(&expected["nll_good"]), 1e-5, &what);
            let (got, bad) =
                sensitivity(&golden.model, &weights, &batch.rejected).expect("sensitivity");
            close(bad, number(&expected["nll_bad"]), 1e-5, &what);
            let wanted = numbers(&expected["sensitivity_bad_f64"]);
            for (block, (got, want)) in got.iter().zip(wanted).enumerate() {
                close(*got, want, 1e-5, &format!("{what} block {block}"));
            }
        }
    });
}

/// The gradient of every block parameter, and none for anything else.
#[test]
fn every_gradient_equals_the_reference() {
    each(|golden, kernels| {
        let weights = golden.weights(kernels);
        let batch = golden.batch(LossOn::Response).rejected;
        let in_block = |place| matches!(place, Place::Block(_));
        let view = weights
            .view(Who::Patient, |s| if in_block(s.place) { Want::Gradient } else { Want::Nothing })
            .expect("view");
        let loss = loss::nll(&golden.model, &view, &batch).expect("nll");
        view.backward(loss).expect("backward");
        let gradients = view.harvest().expect("harvest").gradients;
        let specs = golden.model.specs().into_iter().filter(|s| in_block(s.place));
        let names: Vec<String> = specs.map(|s| s.name).collect();
        assert_eq!(gradients.len(), names.len());
        for name in names {
            let got = flat(&gradients[&name]);
            assert!(got.iter().any(|g| *g != 0.0), "{name}: all zero");
            let what = format!("{} {kernels:?} {name}", golden.name);
            all_close(&got, &golden.tensor("grad", &name), 1e-4, &what);
        }
    });
}

/// Gradients of every tensor, embeddings and head among them, where all is trained and the patient
/// is not the reference: their norm, and their product with a wave.
#[test]
fn gradients_of_everything_equal_the_reference() {
    each(|golden, kernels| {
        let found = json(&format!("{}/methods.json", golden.name));
        let mut weights = golden.weights(kernels);
        weights.keep_originals(true);
        for spec in golden.model.specs().iter().filter(|s| s.shape.len() == 2) {
            let moved = (weights.touch(&spec.name).expect("tensor") * 1.1).expect("moved");
            weights.restore(&spec.name, moved).expect("restore");
        }
        let (pairs, normal) = (golden.batch(LossOn::Response), golden.normal());
        let method = |recipe: &Recipe| recipe.clone().build();
        let named = |name: &str| crate::support::golden::recipe(name);
        let mut unlikelihood = method(&Recipe {
            select: irepair::slice::select::named("all").expect("a selector"),
            ..named("trial-dpo-ul+kl")
        });
        let vocabulary = golden.model.sizes().vocabulary;
        unlikelihood.objective.learn(&golden.copies(), vocabulary).expect("marker tokens");
        let kto = irepair::step::objective::named("kto").expect("an objective");
        let methods = [
            ("dapt", method(&named("dapt"))),
            ("dapt_kl", method(&named("dapt+kl"))),
            ("dpo", method(&named("dpo"))),
            ("dpo_kl", method(&named("dpo+kl"))),
            ("kto", method(&Recipe { objective: kto, ..named("dpo") })),
            ("dpo_ul_kl", unlikelihood),
        ];
        for (key, method) in methods {
            let what = format!("{} {kernels:?} {key}", golden.name);
            let input = golden.input(&weights, &pairs, Some(&normal));
            let report = method.step(&[input]).expect(&what);
            let expected = found[key]["gradients"].as_object().expect("gradients");
            let largest = expected.values().map(|of| numbers(of)[0]).fold(0.0, f64::max);
            assert!(
                expected.len() >= golden.model.specs().len() - golden.model.sizes().blocks,
                "{what}: every tensor"
            );
            for (tensor, want) in expected {
                let on_disk = |s: &TensorSpec| golden.checkpoint.disk_name(&s.name) == Some(tensor);
                let spec = golden.model.specs().into_iter().find(on_disk).expect(tensor);
                let gradient = flat(&report.gradients[&spec.name]).into_iter().map(f64::from);
                let (square, along) =
                    gradient.enumerate().fold((0.0, 0.0), |(square, along), (i, g)| {
                        (square + g * g, along + g * (0.37 * i as f64).sin())
                    });
                let want = numbers(want);
                let worst = (f64::sqrt(square) - want[0]).abs().max((along - want[1]).abs());
                // What is nearly nothing beside the others is their rounding.
                let of = want[0].max(1e-3 * largest);
                assert!(worst < 1e-4 * of, "{what} {tensor}: off by {worst:e} of {of:e}");
            }
        }
    });
}
