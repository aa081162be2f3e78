//! The CPU kernels one by one, at the shapes of gpt2 with 4 × 64 tokens: `cargo bench`, or some of
//! them: `cargo bench -- product`.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use irepair::model::kernels::linear::{direct_square, gram_square};
use irepair::model::kernels::matmul::{Mat, large_product};
use irepair::model::layers;
use irepair::model::layers::{
    Activation, AttentionShape, Bias, Fused, Head, Logits, Orientation, Pass, RmsNorm, Rotary,
    Which,
};
use irepair::model::precision::Precision;
use irepair::model::weights::{Kernels, Sublayer, TensorSpec, View, Want, Weights, Who};
use irepair::step::optim::{Optimizer, OptimizerKind};
use irepair::tokens::Packed;

fn wave(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 1000) as f32 / 1000.0 - 0.5).collect()
}

/// Elements a second are floating-point operations a second here.
fn products(c: &mut Criterion) {
    let mut group = c.benchmark_group("product");
    group.sample_size(10);
    for (name, m, k, n) in [
        ("c_attn forward", 256, 768, 2304),
        ("c_fc forward", 256, 768, 3072),
        ("mlp c_proj forward", 256, 3072, 768),
        ("head forward", 80, 768, 50257),
        ("head backward", 80, 50257, 768),
    ] {
        let (a, b) = (wave(m * k), wave(k * n));
        let mut out = vec![0f32; m * n];
        let mut weight = vec![0f32; k * n];
        group.throughput(Throughput::Elements((2 * m * k * n) as u64));
        for precision in [Precision::F32, Precision::Bf16] {
            let (x, w, w_t) = (Mat::new(&a, m, k), Mat::new(&b, k, n), Mat::new(&b, n, k).t());
            group.bench_function(format!("{name}: x·W {precision:?}"), |bench| {
                bench.iter(|| large_product(&mut out, x, w, 0.0, 1.0, precision));
            });
            group.bench_function(format!("{name}: x·Wᵀ {precision:?}"), |bench| {
                bench.iter(|| large_product(&mut out, x, w_t, 0.0, 1.0, precision));
            });
            let g = vec![0.5f32; m * n];
            group.bench_function(format!("{name}: xᵀ·g {precision:?}"), |bench| {
                bench.iter(|| {
                    large_product(&mut weight, x.t(), Mat::new(&g, m, n), 0.0, 1.0, precision)
                });
            });
        }
    }
    group.finish();
}

/// The two forms of a gradient's norm, at gpt2's MLP.
fn norms(c: &mut Criterion) {
    let (n, input, output) = (256, 768, 3072);
    let (x, g) = (wave(n * input), wave(n * output));
    let mut group = c.benchmark_group("norm of a gradient");
    group.sample_size(10);
    group.bench_function("gram", |b| {
        b.iter(|| gram_square(&x, &g, n, input, output, Precision::F32))
    });
    group.bench_function("direct", |b| {
        b.iter(|| direct_square(&x, &g, n, input, output, Precision::F32))
    });
    group.finish();
}

fn tensor(shape: &[usize]) -> Tensor {
    Tensor::from_vec(wave(shape.iter().product()), shape, &Device::Cpu).expect("tensor")
}

fn store(params: &[(&str, &[usize])], kernels: Kernels) -> Weights {
    let specs =
        params.iter().map(|(n, s)| TensorSpec::of_block(*n, s, 0, Sublayer::Attention)).collect();
    let tensors: BTreeMap<String, Tensor> =
        params.iter().map(|(n, s)| ((*n).into(), tensor(s))).collect();
    Weights::new(specs, tensors).expect("weights").with_kernels(kernels)
}

/// Forward and backward of every layer, our kernel against candle's operations composed.
fn layer_passes(c: &mut Criterion) {
    const C: usize = 768;
    let packed = Packed::new([&[1u32; 64][..]; 4]);
    const HEAD: Head = Head { weight: "head", logits: Logits::PLAIN };
    let shape = AttentionShape {
        heads: 12,
        kv_heads: 12,
        head_dim: 64,
        scale: 0.125,
        window: None,
        cap: None,
    };
    let grouped = AttentionShape { kv_heads: 3, ..shape };
    let local = AttentionShape { window: Some(16), ..shape };
    let targets: Vec<u32> = (0..256).map(|i| i * 190).collect();
    let pass = || Pass::new(&packed);
    type Layer<'a> = Box<dyn Fn(&View, &Tensor) -> anyhow::Result<Tensor> + 'a>;
    type Case<'a> = (&'static str, Vec<(&'static str, &'static [usize])>, usize, Layer<'a>);
    let (ref_h, up) = (tensor(&[256, C]), tensor(&[256, 3072]));
    let rotary = Rotary::new((0..32).map(|i| 10_000f32.powf(i as f32 / -32.0)).collect());
    let cases: Vec<Case> = vec![
        (
            "linear",
            vec![("l.weight", &[C, 3072]), ("l.bias", &[3072])],
            C,
            Box::new(|v, x| layers::linear(v, "l", Orientation::InOut, Bias::Yes, x)),
        ),
        (
            "linear onto a residual stream",
            vec![("l.weight", &[C, C]), ("l.bias", &[C])],
            C,
            Box::new(|v, x| layers::linear_residual(v, "l", Orientation::InOut, Bias::Yes, x, x)),
        ),
        (
            "layer norm",
            vec![("n.weight", &[C]), ("n.bias", &[C])],
            C,
            Box::new(|v, x| layers::layer_norm(v, "n", 1e-5, x)),
        ),
        (
            "RMSNorm",
            vec![("n.weight", &[C])],
            C,
            Box::new(|v, x| RmsNorm { epsilon: 1e-5, offset: 0.0 }.apply(v, "n", x)),
        ),
        ("rotary", vec![], C, Box::new(|v, x| layers::rotate(v, &rotary, Which::ALL, x, &pass()))),
        (
            "SwiGLU",
            vec![],
            3072,
            Box::new(|v, x| layers::activate_gated(v, Activation::Silu, x, &up)),
        ),
        ("gelu_new", vec![], 3072, Box::new(|v, x| layers::activate(v, Activation::GeluTanh, x))),
        ("gelu", vec![], 3072, Box::new(|v, x| layers::activate(v, Activation::GeluErf, x))),
        (
            "attention",
            vec![],
            3 * C,
            Box::new(|v, x| layers::attention_fused(v, shape, Fused::ByKind, x, &pass())),
        ),
        (
            "grouped attention",
            vec![],
            C + 2 * C / 4,
            Box::new(|v, x| layers::attention_fused(v, grouped, Fused::ByKind, x, &pass())),
        ),
        (
            "windowed attention",
            vec![],
            3 * C,
            Box::new(|v, x| layers::attention_fused(v, local, Fused::ByKind, x, &pass())),
        ),
        (
            "log p of tokens",
            vec![("head", &[50257, C])],
            C,
            Box::new(|v, x| layers::token_logp(v, HEAD, x, &packed.all_rows(), &targets)),
        ),
        (
            "KL",
            vec![("head", &[50257, C])],
            C,
            Box::new(|v, x| layers::kl(v, v, HEAD, x, &ref_h, &packed.all_rows())),
        ),
    ];
    for (name, params, width, layer) in &cases {
        let mut group = c.benchmark_group(*name);
        group.sample_size(10);
        for kernels in [Kernels::Cpu, Kernels::Composed] {
            let weights = store(params, kernels);
            let x = Var::from_tensor(&tensor(&[256, *width])).expect("var");
            group.bench_function(format!("{kernels:?}"), |b| {
                b.iter(|| {
                    let view = weights.frozen(Who::Patient).expect("view");
                    let y = layer(&view, &x).expect("forward");
                    y.sum_all().expect("loss").backward().expect("backward")
                });
            });
        }
        group.finish();
    }
    let mut group = c.benchmark_group("embedding");
    group.sample_size(10);
    for kernels in [Kernels::Cpu, Kernels::Composed] {
        let weights = store(&[("tokens", &[50257, C]), ("positions", &[1024, C])], kernels);
        group.bench_function(format!("{kernels:?}"), |b| {
            b.iter(|| {
                let view = weights.view(Who::Patient, |_| Want::Gradient).expect("view");
                let h =
                    layers::embed(&view, "tokens", Some("positions"), &packed).expect("forward");
                view.backward(h.sum_all().expect("loss")).expect("backward");
            });
        });
    }
    group.finish();
}

/// One block of gpt2: 7 million parameters.
fn optimizers(c: &mut Criterion) {
    let mut group = c.benchmark_group("optimizer");
    group.sample_size(10);
    for kind in [OptimizerKind::Rmsprop, OptimizerKind::Adamw] {
        let mut weights = store(&[("w", &[7_087_872])], Kernels::Cpu);
        let gradients = [("w".to_owned(), tensor(&[7_087_872]))].into();
        let mut optimizer = Optimizer::new(kind);
        group.bench_function(format!("{kind:?}"), |b| {
            b.iter(|| optimizer.step(&mut weights, &gradients, 1e-5, 1.0).expect("step"));
        });
    }
    group.finish();
}

/// What every layer above wants of its parameters is nothing; here the linear layer's norm and
/// gradient, too.
fn wants(c: &mut Criterion) {
    let mut group = c.benchmark_group("linear layer that wants");
    group.sample_size(10);
    let x = Var::from_tensor(&tensor(&[256, 768])).expect("var");
    let weights = store(&[("l.weight", &[768, 3072]), ("l.bias", &[3072])], Kernels::Cpu);
    for want in [Want::Nothing, Want::Norm, Want::Gradient] {
        group.bench_function(format!("{want:?}"), |b| {
            b.iter(|| {
                let view = weights.view(Who::Patient, |_| want).expect("view");
                let y =
                    layers::linear(&view, "l", Orientation::InOut, Bias::Yes, &x).expect("forward");
                view.backward(y.sum_all().expect("loss")).expect("backward");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, products, norms, layer_passes, wants, optimizers);
criterion_main!(benches);
