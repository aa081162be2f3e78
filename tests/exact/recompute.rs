//! Blocks that are computed again for the backward pass give the gradients of one graph, to the
//! bit.

use candle_core::Tensor;
use irepair::model::weights::{Kernels, Who};
use irepair::step::StepReport;
use irepair::tokens::LossOn;

use crate::support::command::irepair;
use crate::support::files::{Folder, bytes};
use crate::support::golden::{self, Golden, each, recipe};
use crate::support::tensors::flat;

/// A few of each kind: one block or all of them, pairs in one graph or in two, with and without KL.
const METHODS: [&str; 6] = ["irepair+kl", "irepair-fixed", "dapt+kl", "dapt", "dpo+kl", "dpo"];

/// Two steps; the second with a reference that is no longer the patient.
fn steps(golden: &Golden, kernels: Kernels, name: &str, again: bool) -> Vec<StepReport> {
    let mut weights = golden.weights(kernels);
    weights.set_recompute(again);
    let (pairs, normal) = (golden.batch(LossOn::Response), golden.normal());
    let mut method = recipe(name).build();
    method.look(&golden.model, &weights, &mut std::iter::once(pairs.clone())).expect("look");
    let mut reports = Vec::new();
    for _ in 0..2 {
        let input = golden.input(&weights, &pairs, Some(&normal));
        let report = method.step(std::slice::from_ref(&input)).expect("step");
        for (name, gradient) in &report.gradients {
            let moved: Vec<f32> = flat(&weights.tensor(Who::Patient, name).expect("tensor"))
                .iter()
                .zip(flat(gradient))
                .map(|(w, g)| w - 0.05 * g)
                .collect();
            let like = weights.touch(name).expect("touched").clone();
            let moved = Tensor::from_vec(moved, like.shape(), like.device()).expect("values");
            weights.restore(name, moved).expect("restored");
        }
        reports.push(report);
    }
    reports
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    // 0 and −0 are one number.
    flat(tensor).into_iter().map(|x| (x + 0.0).to_bits()).collect()
}

/// ‖a − b‖ / ‖a‖
fn off(a: &Tensor, b: &Tensor) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f32>| {
        values.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
    };
    let (a, b) = (flat(a), flat(b));
    norm(&mut a.iter().zip(&b).map(|(a, b)| a - b)) / norm(&mut a.iter().copied())
}

#[test]
fn gradients_are_the_same_to_the_bit() {
    each(|golden, kernels| {
        for name in METHODS {
            let [kept, again] = [false, true].map(|again| steps(golden, kernels, name, again));
            // candle adds the gradient of an embedding row by row to that of a head that is tied to
            // it; where the two are in graphs of their own, the order of this sum is another.
            let to_the_bit =
                kernels == Kernels::Cpu || !["dapt+kl", "dapt", "dpo+kl", "dpo"].contains(&name);
            for (index, (kept, again)) in kept.iter().zip(&again).enumerate() {
                let what = format!("{} {kernels:?} {name}, step {index}", golden.name);
                assert_eq!(kept.selection.slice, again.selection.slice, "{what}");
                if to_the_bit || index == 0 {
                    assert_eq!(kept.selection.sensitivity, again.selection.sensitivity, "{what}");
                    assert_eq!(kept.terms, again.terms, "{what}");
                }
                let names =
                    |report: &StepReport| report.gradients.keys().cloned().collect::<Vec<_>>();
                assert_eq!(names(kept), names(again), "{what}");
                for (name, gradient) in &kept.gradients {
                    assert!(flat(gradient).iter().any(|x| *x != 0.0), "{what}: {name}");
                    let (kept, again) = (gradient, &again.gradients[name]);
                    match to_the_bit {
                        true => assert!(bits(kept) == bits(again), "{what}: {name}"),
                        false => assert!(off(kept, again) < 1e-5, "{what}: {name}"),
                    }
                }
            }
        }
    });
}

/// A pass keeps the inputs of the blocks, and the graph of one.
#[test]
#[cfg(target_os = "linux")]
fn the_peak_falls() {
    let peak = |recompute: &str| {
        let line = irepair("bench --config gpt2 --blocks 12 --batch 4 --tokens 64 --iterations 1")
            .and("--method irepair --recompute")
            .arg(recompute);
        line.json()["peak_rss_mib"].as_f64().expect("a peak")
    };
    let (kept, again) = (peak("never"), peak("always"));
    assert!(again < kept - 80.0, "{again} of {kept} MiB");
}

/// And so the same file is written, whether the user asks for it or memory does.
#[test]
fn a_repair_writes_the_same_bytes() {
    let folder = Folder::new();
    let model = golden::path("gemma3");
    let written = |name: &str, flags: &str| {
        let out = folder.path(name);
        irepair("repair -q --max-steps 4 --batch-size 2 --valid-size 2 --eval-steps 2")
            .and("--learning-rate 1e-3")
            .and(flags)
            .with("--model", &model)
            .with("--data", golden::path("pairs.jsonl"))
            .with("--normal", golden::path("normal.jsonl"))
            .with("--out", &out)
            .ok();
        bytes(out.join("model.safetensors"))
    };
    for method in ["--method dpo+kl", "--method trial-dpo+kl --trial-steps 2"] {
        let [kept, again] = ["never", "always"].map(|recompute| {
            written(recompute, &format!("{method} --overwrite --recompute {recompute}"))
        });
        assert!(kept == again, "{method}");
    }
    let sensitivity = |flags: &str| {
        irepair("sensitivity --json")
            .and(flags)
            .with("--model", &model)
            .with("--data", golden::path("pairs.jsonl"))
            .ok()
    };
    assert_eq!(sensitivity("--recompute never"), sensitivity("--recompute always"));
    // A method of neurons reads what its layers take in: it has no use for it.
    irepair("repair --method star --recompute always").fails(2, &["--recompute"]);
}
