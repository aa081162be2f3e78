//! The CPU kernels one by one, at the shapes of gpt2 with 4 × 64 tokens. `cargo bench`, or `cargo bench -- product`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use irepair::model::kernels::matmul::{Cores, Mat, product};

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
        group.throughput(Throughput::Elements((2 * m * k * n) as u64));
        group.bench_function(format!("{name}: x·W"), |bench| {
            bench.iter(|| product(&mut out, Mat::new(&a, m, k), Mat::new(&b, k, n), 0.0, 1.0, Cores::All));
        });
        group.bench_function(format!("{name}: x·Wᵀ"), |bench| {
            bench.iter(|| product(&mut out, Mat::new(&a, m, k), Mat::new(&b, n, k).t(), 0.0, 1.0, Cores::All));
        });
        let mut weight = vec![0f32; k * n];
        group.bench_function(format!("{name}: xᵀ·g"), |bench| {
            bench.iter(|| product(&mut weight, Mat::new(&a, m, k).t(), Mat::new(&out, m, n), 0.0, 1.0, Cores::All));
        });
    }
    group.finish();
}

criterion_group!(benches, products);
criterion_main!(benches);
