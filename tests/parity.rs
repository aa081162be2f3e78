//! Both implementations of the layers against transformers and the reference, at relative 1e-4.

use irepair::loss;
use irepair::methods::{self, Method, StepInput};
use irepair::optim::{Optimizer, OptimizerKind, gradient_norm};
use irepair::sensitivity::sensitivity;
use irepair::slice::Slice;
use irepair::tokens::{LossOn, Packed};
use irepair::weights::{Kernels, Place, Want, Who};

use crate::golden::{CHECKPOINTS, Golden, KERNELS, all_close, close, numbers};

fn each(check: impl Fn(&Golden, Kernels)) {
    for name in CHECKPOINTS {
        let golden = Golden::open(name);
        for kernels in KERNELS {
            check(&golden, kernels);
        }
    }
}

#[test]
fn logits_equal_transformers() {
    each(|golden, kernels| {
        let weights = golden.weights(kernels);
        let ids: Vec<u32> = numbers(&golden.expected["row0_ids"]).iter().map(|x| *x as u32).collect();
        let view = weights.frozen(Who::Patient).expect("view");
        let h = golden.model.hidden(&view, &Packed::new([ids.as_slice()])).expect("hidden");
        let logits = golden.model.logits(&view, &h).expect("logits").flatten_all().expect("flat");
        let got = logits.to_vec1::<f32>().expect("values");
        // Absolute 1e-4 of logits up to 9: a wrong gelu differs by 1e-3 here and by nothing in the loss.
        all_close(&got, &golden.tensor_of("logits_row0"), 1e-5, &format!("{} {kernels:?}", golden.name));
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
            let good = loss::nll(&golden.model, &view, &batch.chosen).expect("nll").to_scalar::<f32>().expect("scalar");
            close(good.into(), expected["nll_good"].as_f64().expect("number"), 1e-5, &what);
            let (got, bad) = sensitivity(&golden.model, &weights, &batch.rejected).expect("sensitivity");
            close(bad, expected["nll_bad"].as_f64().expect("number"), 1e-5, &what);
            for (block, (got, want)) in got.iter().zip(numbers(&expected["sensitivity_bad_f64"])).enumerate() {
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
        let names: Vec<_> = golden.model.specs().into_iter().filter(|s| in_block(s.place)).map(|s| s.name).collect();
        assert_eq!(gradients.len(), names.len());
        for name in names {
            let got = gradients[&name].flatten_all().expect("flat").to_vec1::<f32>().expect("values");
            assert!(got.iter().any(|g| *g != 0.0), "{name}: all zero");
            all_close(&got, &golden.tensor("grad", &name), 1e-4, &format!("{} {kernels:?} {name}", golden.name));
        }
    });
}

fn method(name: &str) -> Method {
    Method::new(&methods::named(name).expect(name).recipe()).expect(name)
}

/// Six steps of IRepair and IRepair+KL: chosen blocks, sensitivities, losses, gradient norms, final weights.
#[test]
fn six_steps_equal_the_reference() {
    each(|golden, kernels| {
        for (key, name, kl) in [("irepair", "irepair", 0.0), ("irepair_kl", "irepair+kl", 1.0)] {
            let what = format!("{} {kernels:?} {key}", golden.name);
            let mut weights = golden.weights(kernels);
            let (pairs, normal) = (golden.batch(LossOn::Response), golden.normal());
            let method = method(name);
            let mut optimizer = Optimizer::new(OptimizerKind::Rmsprop);
            for (index, expected) in golden.expected[key]["steps"].as_array().expect("steps").iter().enumerate() {
                let what = format!("{what} step {index}");
                let number = |key: &str| expected[key].as_f64().expect("number");
                let input = StepInput { model: &golden.model, weights: &weights, pairs: &pairs, normal: Some(&normal) };
                let report = method.step(std::slice::from_ref(&input)).expect("step");
                assert_eq!(report.selection.slice, Slice::block(number("block") as usize), "{what}");
                for (got, want) in report.selection.sensitivity.iter().zip(numbers(&expected["sensitivity"])) {
                    close(*got, want, 1e-4, &what);
                }
                close(report.terms.loss, number("loss"), 1e-4, &what);
                close(report.terms.nll_good.expect("nll"), number("nll_good"), 1e-4, &what);
                close(gradient_norm(&report.gradients).expect("norm"), number("grad_norm"), 1e-4, &what);
                if kl != 0.0 {
                    let got = report.terms.kl.expect("kl");
                    assert!((got - number("kl")).abs() < 1e-4 * number("kl") + 1e-6, "{what}: kl {got}");
                }
                optimizer.step(&mut weights, &report.gradients, 1e-3, 1.0).expect("update");
            }
            let input = StepInput { model: &golden.model, weights: &weights, pairs: &pairs, normal: Some(&normal) };
            let end = method.validate(&input).expect("end");
            let expected = &golden.expected[key]["end"];
            close(end.nll_good.expect("nll"), expected["nll_good"].as_f64().expect("number"), 1e-4, &what);
            if kl != 0.0 {
                close(end.kl.expect("kl"), expected["kl"].as_f64().expect("number"), 1e-4, &what);
                assert!(end.kl.expect("kl") > 0.0);
            }
            let mut moved = 0;
            for spec in golden.model.specs() {
                if !matches!(spec.place, Place::Block(_)) {
                    continue;
                }
                let mut got: Vec<f32> = values(&weights.tensor(Who::Patient, &spec.name).expect("tensor"));
                let mut want = golden.tensor(key, &spec.name);
                if spec.name.ends_with("c_attn.bias") {
                    // Softmax does not see the key's bias: its gradient is rounding noise, which RMSProp blows up.
                    let c = golden.model.sizes().channels;
                    got.drain(c..2 * c);
                    want.drain(c..2 * c);
                }
                let before = values(&weights.tensor(Who::Reference, &spec.name).expect("tensor"));
                moved += usize::from(got != before);
                let worst = got.iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0f32, f32::max);
                // A block's first step is 1e-2 here.
                assert!(worst < 1e-4, "{what} {}: off by {worst:e}", spec.name);
            }
            let of_a_block = golden.model.specs().iter().filter(|s| s.place == Place::Block(0)).count();
            assert!(moved >= of_a_block, "{what}: only {moved} tensors moved");
        }
    });
}

/// Six steps of the baselines that train everything.
#[test]
fn baselines_equal_the_reference() {
    each(|golden, kernels| {
        for (key, name) in [("dapt", "dapt"), ("dapt_kl", "dapt+kl"), ("dpo", "dpo")] {
            let what = format!("{} {kernels:?} {key}", golden.name);
            let mut weights = golden.weights(kernels);
            let (pairs, normal) = (golden.batch(LossOn::Response), golden.normal());
            let method = method(name);
            let mut optimizer = Optimizer::new(OptimizerKind::Rmsprop);
            for want in numbers(&golden.expected[key]["losses"]) {
                let input = StepInput { model: &golden.model, weights: &weights, pairs: &pairs, normal: Some(&normal) };
                let report = method.step(std::slice::from_ref(&input)).expect("step");
                close(report.terms.loss, want, 1e-4, &what);
                assert_eq!(report.gradients.len(), golden.model.specs().len(), "{what}: every tensor");
                optimizer.step(&mut weights, &report.gradients, 1e-4, 1.0).expect("update");
            }
            let view = weights.frozen(Who::Patient).expect("view");
            for (batch, key_nll) in [(&pairs.chosen, "nll_good"), (&pairs.rejected, "nll_bad")] {
                let nll = loss::nll(&golden.model, &view, batch).expect("nll").to_scalar::<f32>().expect("scalar");
                close(nll.into(), golden.expected[key][key_nll].as_f64().expect("number"), 1e-4, &what);
            }
        }
    });
}

fn values(tensor: &candle_core::Tensor) -> Vec<f32> {
    tensor.flatten_all().expect("flat").to_vec1().expect("values")
}
