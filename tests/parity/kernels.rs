//! Every CPU kernel against the same layer composed of candle's operations, at sizes with several
//! tiles, jobs and chunks: values, gradients of the input, and what the ledger gets of the
//! parameters (gradients and norms). And against finite differences of its own values.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use irepair::base::random::{Purpose, Stream};
use irepair::model::layers;
use irepair::model::layers::{
    Activation, AttentionShape, Bias, Fused, Head, Logits, Orientation, RmsNorm, Rotary, Which,
};
use irepair::model::weights::{Harvest, Kernels, Sublayer, TensorSpec, View, Want, Weights, Who};
use irepair::tokens::Packed;

use crate::support::golden::{self, KERNELS};
use crate::support::tensors::{all_close, close, flat};

fn wave(shape: &[usize], step: f32) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|i| ((i as f32 * step).sin() + (i as f32 * step * 0.137).cos()) * 0.7)
        .collect();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("tensor")
}

struct Pass {
    output: Vec<f32>,
    inputs: Vec<Vec<f32>>,
    harvest: Harvest,
}

fn specs(params: &[(&str, &[usize])]) -> Vec<TensorSpec> {
    let spec = |(name, shape): &(&str, &[usize])| {
        TensorSpec::of_block(*name, shape, 0, Sublayer::Attention)
    };
    params.iter().map(spec).collect()
}

/// The value of a parameter, by its place in the list.
fn value(index: usize, shape: &[usize]) -> Tensor {
    wave(shape, 0.61 + index as f32 * 0.17)
}

/// The sum of the output times fixed weights, added up in f64.
fn weighed(y: &Tensor) -> f64 {
    let sum = |(y, w): (&f32, f32)| f64::from(*y) * f64::from(w);
    flat(y).iter().zip(flat(&wave(y.dims(), 0.29))).map(sum).sum()
}

/// The slope of the weighed output along a direction, by central differences, is the gradient's
/// part in it, within a share of the gradient's norm. The direction is ±1 in each value, and knows
/// nothing of the gradient.
#[track_caller]
fn is_slope(what: &str, gradient: &[f32], at: &mut dyn FnMut(&Tensor) -> f64, point: &Tensor) {
    let mut stream = Stream::new(11, Purpose::Bench, gradient.len() as u64, 0);
    let direction: Vec<f32> =
        gradient.iter().map(|_| if stream.unit() < 0.5 { -1.0 } else { 1.0 }).collect();
    let part: f64 =
        gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
    let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    let direction = Tensor::from_vec(direction, point.shape(), &Device::Cpu).expect("direction");
    let step = 4e-3;
    let mut moved = |by: f64| at(&(point + (&direction * by).expect("scaled")).expect("moved"));
    let slope = (moved(step) - moved(-step)) / (2.0 * step);
    assert!(
        (slope - part).abs() <= 4e-3 * norm,
        "{what}: slope {slope}, gradient's part {part}, norm {norm}"
    );
}

/// Compares a CPU kernel's gradients of all inputs and parameters with finite differences.
fn slopes(
    what: &str,
    params: &[(&str, &[usize])],
    inputs: &[Tensor],
    fast: &Pass,
    layer: &dyn Fn(&View, &[Tensor]) -> anyhow::Result<Tensor>,
) {
    let at = |replaced: Option<(usize, &Tensor)>, inputs: &[Tensor]| {
        let value = |(index, (name, shape)): (usize, &(&str, &[usize]))| match replaced {
            Some((place, tensor)) if place == index => ((*name).to_owned(), tensor.clone()),
            _ => ((*name).to_owned(), value(index, shape)),
        };
        let weights = Weights::new(specs(params), params.iter().enumerate().map(value).collect())
            .expect("weights");
        let view = weights.with_kernels(Kernels::Cpu);
        weighed(&layer(&view.frozen(Who::Patient).expect("view"), inputs).expect("forward"))
    };
    for (index, input) in inputs.iter().enumerate() {
        let mut moved = |tensor: &Tensor| {
            let mut inputs = inputs.to_vec();
            inputs[index] = tensor.clone();
            at(None, &inputs)
        };
        is_slope(&format!("{what}: input {index}"), &fast.inputs[index], &mut moved, input);
    }
    for (index, (name, shape)) in params.iter().enumerate() {
        // Under KL, no gradient of the head is asked for.
        let Some(gradient) = fast.harvest.gradients.get(*name).map(flat) else { continue };
        is_slope(
            &format!("{what}: {name}"),
            &gradient,
            &mut |t| at(Some((index, t)), inputs),
            &value(index, shape),
        );
    }
}

/// Runs `layer` on the inputs under one implementation. The loss weighs the output in a fixed way.
fn pass(
    kernels: Kernels,
    want: Want,
    params: &[(&str, &[usize])],
    inputs: &[Tensor],
    layer: &dyn Fn(&View, &[Tensor]) -> anyhow::Result<Tensor>,
) -> Pass {
    let device = golden::device(kernels);
    let here = |tensor: &Tensor| tensor.to_device(&device).expect("moved");
    let tensors: BTreeMap<String, Tensor> =
        params.iter().enumerate().map(|(i, (n, s))| ((*n).into(), here(&value(i, s)))).collect();
    let weights = Weights::new(specs(params), tensors).expect("weights").with_kernels(kernels);
    let view = weights.view(Who::Patient, |_| want).expect("view");
    let vars: Vec<Var> = inputs
        .iter()
        .map(|t| Var::from_tensor(&here(t).copy().expect("copy")).expect("var"))
        .collect();
    let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
    let y = layer(&view, &tensors).expect("forward");
    let loss = (&y * here(&wave(y.dims(), 0.29))).expect("weigh").sum_all().expect("loss");
    let store = loss.backward().expect("backward");
    let inputs = vars.iter().map(|v| flat(store.get(v).expect("gradient"))).collect();
    // Another view for the parameters: the kernels' ledger has those of the pass above already.
    let view = weights.view(Who::Patient, |_| want).expect("view");
    let y2 = layer(&view, &tensors).expect("forward");
    view.backward((&y2 * here(&wave(y2.dims(), 0.29))).expect("weigh").sum_all().expect("loss"))
        .expect("backward");
    Pass { output: flat(&y), inputs, harvest: view.harvest().expect("harvest") }
}

fn compare(
    what: &str,
    params: &[(&str, &[usize])],
    inputs: &[Tensor],
    layer: impl Fn(&View, &[Tensor]) -> anyhow::Result<Tensor>,
) {
    let [fast, plain] = KERNELS.map(|k| pass(k, Want::Gradient, params, inputs, &layer));
    all_close(&fast.output, &plain.output, 1e-5, &format!("{what}: output"));
    for (i, (f, p)) in fast.inputs.iter().zip(&plain.inputs).enumerate() {
        all_close(f, p, 1e-5, &format!("{what}: gradient of input {i}"));
    }
    let norms = pass(Kernels::Cpu, Want::Norm, params, inputs, &layer).harvest.squares;
    for (name, _) in params {
        let (f, p) = (flat(&fast.harvest.gradients[*name]), flat(&plain.harvest.gradients[*name]));
        all_close(&f, &p, 2e-5, &format!("{what}: gradient of {name}"));
        let square: f64 = p.iter().map(|x| f64::from(*x).powi(2)).sum();
        close(norms[*name], square, 2e-5, &format!("{what}: norm of {name}"));
    }
    slopes(what, params, inputs, &fast, &layer);
}

#[test]
fn linear() {
    // The last two take the Gram form of the norm, in one tile and in two.
    for (n, input, output) in
        [(3, 5, 7), (300, 48, 96), (150, 600, 64), (128, 512, 512), (200, 768, 1024)]
    {
        let x = wave(&[n, input], 0.37);
        for orientation in [Orientation::InOut, Orientation::OutIn] {
            let shape =
                if orientation == Orientation::InOut { [input, output] } else { [output, input] };
            let params: [(&str, &[usize]); 2] = [("l.weight", &shape), ("l.bias", &[output])];
            let what = format!("linear {n} × {input} → {output} {orientation:?}");
            compare(&what, &params, std::slice::from_ref(&x), |view, x| {
                layers::linear(view, "l", orientation, Bias::Yes, &x[0])
            });
            compare(&what, &params[..1], std::slice::from_ref(&x), |view, x| {
                layers::linear(view, "l", orientation, Bias::No, &x[0])
            });
            let residual = wave(&[n, output], 0.11);
            compare(&format!("{what} + residual"), &params, &[x.clone(), residual], |view, x| {
                layers::linear_residual(view, "l", orientation, Bias::Yes, &x[0], &x[1])
            });
        }
    }
}

#[test]
fn layer_norm() {
    for (n, c) in [(1, 4), (7, 33), (260, 96)] {
        let params: [(&str, &[usize]); 2] = [("n.weight", &[c]), ("n.bias", &[c])];
        compare(&format!("norm {n} × {c}"), &params, &[wave(&[n, c], 0.7)], |view, x| {
            layers::layer_norm(view, "n", 1e-5, &x[0])
        });
    }
}

#[test]
fn rms_norm_of_rows_and_of_heads() {
    for (n, heads, d) in [(1, 1, 4), (7, 1, 33), (260, 1, 96), (70, 3, 16)] {
        let params: [(&str, &[usize]); 1] = [("n.weight", &[d])];
        for offset in [0.0, 1.0] {
            let norm = RmsNorm { epsilon: 1e-5, offset };
            let what = format!("RMSNorm {n} × {heads}·{d} + {offset}");
            compare(&what, &params, &[wave(&[n, heads * d], 0.7)], |view, x| {
                norm.apply(view, "n", &x[0])
            });
        }
    }
}

#[test]
fn rotary_positions() {
    let packed = Packed::continuing([(&[1u32; 150][..], 0), (&[1; 3], 40), (&[1; 1], 300)]);
    let n = packed.ids.len();
    for (heads, d, turned) in [(1, 2, 2), (3, 8, 8), (2, 80, 80), (3, 8, 2), (2, 80, 20)] {
        let frequencies = (0..turned / 2).map(|i| 0.9f32.powi(i)).collect();
        let rotary = Rotary::of_part(frequencies, d, 1.2);
        // Values beside queries and keys are not turned.
        for which in [Which::ALL, Which::BY_HEAD, Which { turned: 3, of: 4 }] {
            let pass = layers::Pass::new(&packed);
            let what = format!("rotary {heads} × {turned} of {d} {which:?}");
            compare(&what, &[], &[wave(&[n, which.of * heads * d], 0.7)], |view, x| {
                layers::rotate(view, &rotary, which, &x[0], &pass)
            });
        }
    }
}

#[test]
fn activations() {
    for kind in [Activation::GeluTanh, Activation::GeluErf, Activation::Relu, Activation::Silu] {
        // Away from the kink of relu, where a difference is no slope.
        let x = flat(&wave(&[70, 300], 0.9))
            .into_iter()
            .map(|x| x + 0.05f32.copysign(x))
            .collect::<Vec<f32>>();
        let x = Tensor::from_vec(x, &[70, 300], &Device::Cpu).expect("tensor");
        let up = wave(&[70, 300], 0.4);
        compare(&format!("{kind:?}"), &[], std::slice::from_ref(&x), |view, x| {
            layers::activate(view, kind, &x[0])
        });
        let both = Tensor::cat(&[&x, &up], 1).expect("both");
        compare(&format!("gated {kind:?}"), &[], &[x, up], |view, x| {
            layers::activate_gated(view, kind, &x[0], &x[1])
        });
        compare(&format!("gated {kind:?} of one tensor"), &[], &[both], |view, x| {
            layers::activate_gated_fused(view, kind, &x[0])
        });
    }
}

#[test]
fn attention_global_windowed_and_grouped() {
    // Longer than a tile, a single token, and in between.
    let packed = Packed::new([&[1u32; 150][..], &[1; 1], &[1; 64], &[1; 9]]);
    let n = packed.ids.len();
    // Wide heads take another product.
    for (heads, kv_heads, head_dim) in [(4, 4, 8), (4, 2, 8), (3, 1, 8), (2, 1, 128), (2, 2, 160)] {
        for (window, cap) in [
            (None, None),
            (Some(1), None),
            (Some(7), Some(0.5)),
            (Some(100), None),
            (None, Some(2.0)),
        ] {
            let shape = AttentionShape {
                heads,
                kv_heads,
                head_dim,
                scale: (head_dim as f32).powf(-0.5),
                window,
                cap,
            };
            let (q, kv) = (heads * head_dim, kv_heads * head_dim);
            let pass = || layers::Pass::new(&packed);
            let what = format!(
                "attention {heads}/{kv_heads} of {head_dim}, window {window:?}, cap {cap:?}"
            );
            for fused in [Fused::ByKind, Fused::ByHead] {
                if fused == Fused::ByKind || heads == kv_heads {
                    let what = format!("{what} {fused:?}");
                    compare(&what, &[], &[wave(&[n, q + 2 * kv], 0.83)], |view, x| {
                        layers::attention_fused(view, shape, fused, &x[0], &pass())
                    });
                }
            }
            let apart = [wave(&[n, q], 0.83), wave(&[n, kv], 0.59), wave(&[n, kv], 0.31)];
            compare(&what, &[], &apart, |view, x| {
                layers::attention(view, shape, &x[0], &x[1], &x[2], &pass())
            });
        }
    }
}

const PLAIN: Head = Head { weight: "head", logits: Logits::PLAIN };

#[test]
fn head_log_probabilities_and_divergence() {
    // More positions than fit in one chunk of logits.
    let (n, c, v) = (700, 16, 9000);
    let rows: Vec<u32> = (0..n as u32).filter(|r| r % 5 != 1).collect();
    let targets: Vec<u32> = rows.iter().map(|r| (r * 7919) % v as u32).collect();
    let params: [(&str, &[usize]); 1] = [("head", &[v, c])];
    let (h, ref_h) = (wave(&[n, c], 0.57), wave(&[n, c], 0.43));
    // A few tokens weigh much, most nothing.
    let weights: Vec<f32> =
        (0..v).map(|i| if i % 40 == 3 { 0.8 + (i % 7) as f32 / 50.0 } else { 0.0 }).collect();
    let weights = Tensor::from_vec(weights, v, &Device::Cpu).expect("weights");
    let (scaled, capped) =
        (Logits { scale: 0.8, cap: None }, Logits { scale: 1.5, cap: Some(1.2) });
    // The head's norm is never asked for: it belongs to no block.
    let all = [Logits::PLAIN, scaled, capped];
    for (kind, logits) in
        ["log p", "KL", "absent"].into_iter().flat_map(|kind| all.map(|logits| (kind, logits)))
    {
        let (kl, head) = (kind == "KL", Head { weight: "head", logits });
        let what = &format!("{kind} of {logits:?}");
        let layer = |view: &View, x: &[Tensor]| -> anyhow::Result<Tensor> {
            if kind == "absent" {
                layers::absent_logp(view, head, &x[0], &rows, &weights)
            } else if kl {
                // The reference is another model: its own hidden states, the same head.
                layers::kl(view, view, head, &x[0], &ref_h.to_device(x[0].device())?, &rows)
            } else {
                layers::token_logp(view, head, &x[0], &rows, &targets)
            }
        };
        let want = if kl { Want::Nothing } else { Want::Gradient };
        let [fast, plain] =
            KERNELS.map(|k| pass(k, want, &params, std::slice::from_ref(&h), &layer));
        all_close(&fast.output, &plain.output, 2e-5, what);
        all_close(&fast.inputs[0], &plain.inputs[0], 2e-5, &format!("{what}: gradient of h"));
        slopes(what, &params, std::slice::from_ref(&h), &fast, &layer);
        if !kl {
            let (f, p) = (&fast.harvest.gradients["head"], &plain.harvest.gradients["head"]);
            all_close(&flat(f), &flat(p), 2e-5, "gradient of the head");
        }
    }
}

/// KL(reference ‖ patient) where the head itself is trained. Its gradient is the patient's alone.
#[test]
fn divergence_with_a_head_that_is_trained() {
    let (n, c, v) = (300, 16, 9000);
    let rows: Vec<u32> = (0..n as u32).filter(|r| r % 5 != 1).collect();
    let params: [(&str, &[usize]); 1] = [("head", &[v, c])];
    let (h, ref_h, moved) = (wave(&[n, c], 0.57), wave(&[n, c], 0.43), wave(&[v, c], 0.71));
    let run = |kernels: Kernels, h: &Tensor, head: &Tensor| {
        let device = golden::device(kernels);
        let here = |t: &Tensor| t.to_device(&device).expect("moved");
        let original = std::iter::once(("head".to_owned(), here(&value(0, params[0].1)))).collect();
        let mut weights =
            Weights::new(specs(&params), original).expect("weights").with_kernels(kernels);
        weights.keep_originals(true);
        weights.restore("head", here(head)).expect("the patient's own");
        let view = weights.view(Who::Patient, |_| Want::Gradient).expect("view");
        let reference = weights.frozen(Who::Reference).expect("view");
        let h = Var::from_tensor(&here(h).copy().expect("copy")).expect("var");
        let kl = layers::kl(&view, &reference, PLAIN, h.as_tensor(), &here(&ref_h), &rows)
            .expect("forward");
        let value = weighed(&kl.to_device(&Device::Cpu).expect("moved"));
        view.backward(
            (&kl * here(&wave(kl.dims(), 0.29))).expect("weigh").sum_all().expect("loss"),
        )
        .expect("backward");
        (value, flat(&view.harvest().expect("harvest").gradients["head"]))
    };
    let [(fast, gradient), (plain, expected)] = KERNELS.map(|kernels| run(kernels, &h, &moved));
    close(fast, plain, 2e-5, "KL");
    // The gradient is a difference of two near probabilities, so it is less exact.
    all_close(&gradient, &expected, 1e-4, "KL: gradient of the head");
    is_slope("KL: the head", &gradient, &mut |head| run(Kernels::Cpu, &h, head).0, &moved);
}

#[test]
fn embedding() {
    let packed = Packed::new([&[3u32, 1, 4, 1, 5][..], &[9, 2, 6]]);
    let params: [(&str, &[usize]); 2] = [("tokens", &[10, 12]), ("positions", &[8, 12])];
    compare("embedding", &params, &[], |view, _| {
        layers::embed(view, "tokens", Some("positions"), &packed)
    });
    compare("token embedding", &params[..1], &[], |view, _| {
        layers::embed(view, "tokens", None, &packed)
    });
}
