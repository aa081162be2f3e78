//! A *kernel* is a layer on the CPU: plain functions over `f32` slices, and a custom operation of
//! candle's that is made of them.
//!
//! candle's own CPU path runs elementwise work on one thread, composes norms and softmax of many
//! passes, and computes gradients for operands that are frozen. These operations do the same
//! arithmetic in one pass, on all cores, vectorized by run-time dispatch (`vectorized!`). They
//! return a gradient for the activations only. What is wanted of a parameter (nothing, its norm,
//! its gradient) goes to the [`Ledger`](crate::model::ledger::Ledger) of its view.

pub mod activation;
pub mod attention;
pub mod embedding;
pub mod head;
pub mod linear;
pub mod matmul;
pub mod matrix;
pub mod norm;
pub mod optim;
mod packed;
pub mod rotary;
pub mod stored;

use candle_core::{CpuStorage, Layout, Result, Tensor, bail};
use rayon::prelude::*;

/// Evaluates an expression compiled for the widest vectors this processor has (AVX-512, AVX2, or
/// plain). A macro, because a closure that the compiler does not inline is compiled for none of
/// them, and where a function is called from three places, the compiler inlines it in none.
macro_rules! vectorized {
    ($work:expr) => {
        $crate::model::kernels::widest(
            #[inline(always)]
            || $work,
        )
    };
}
pub(crate) use vectorized;

/// What the macro `vectorized!` stands for. `work` must be inlined always.
#[inline(always)]
pub fn widest<R>(work: impl FnOnce() -> R) -> R {
    struct Run<F>(F);
    impl<R, F: FnOnce() -> R> pulp::NullaryFnOnce for Run<F> {
        type Output = R;
        #[inline(always)]
        fn call(self) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Run(work))
}

/// The values of a contiguous f32 storage.
pub fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(data) = storage else {
        bail!("kernel wants f32, got {:?}", storage_dtype(storage))
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => bail!("kernel wants a contiguous tensor, got {layout:?}"),
    }
}

fn storage_dtype(storage: &CpuStorage) -> candle_core::DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

/// Reads a contiguous f32 CPU tensor in place.
pub fn read<R>(tensor: &Tensor, work: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(storage) => Ok(work(values(storage, layout)?)),
        _ => bail!("CPU kernel called on another device"),
    }
}

/// A zero-filled buffer of `len` values.
pub fn zeros(len: usize) -> Vec<f32> {
    vec![0.0; len]
}

/// Rows that a parallel job takes, so that it is worth its dispatch (about 16 Ki values).
fn rows_per_job(columns: usize) -> usize {
    (16384 / columns.max(1)).max(1)
}

/// As [`par_rows`], over two outputs of the same size.
pub fn par_rows_of_both(
    [out, other]: [&mut [f32]; 2],
    columns: usize,
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync + Send,
) {
    assert_eq!(out.len(), other.len(), "two outputs of one size");
    let step = rows_per_job(columns);
    if out.len() <= step * columns {
        return work(0, out, other);
    }
    let jobs = out.par_chunks_mut(step * columns).zip(other.par_chunks_mut(step * columns));
    jobs.enumerate().for_each(|(job, (rows, others))| work(job * step, rows, others));
}

/// `work(first_row, rows of out)` over jobs of whole rows of `out` (rows, columns), on all cores.
pub fn par_rows(out: &mut [f32], columns: usize, work: impl Fn(usize, &mut [f32]) + Sync + Send) {
    let step = rows_per_job(columns);
    if out.len() <= step * columns {
        return work(0, out);
    }
    out.par_chunks_mut(step * columns).enumerate().for_each(|(job, rows)| work(job * step, rows));
}

/// e^x for x ≤ 88, vectorizable. Its relative error is below 2e-7; it is 0 below −87.3, where an
/// f32 would be denormal.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // x = k·ln 2 + r with |r| ≤ ln2/2. e^r by its Taylor polynomial of degree 7; 2^k goes into the
    // exponent bits.
    //
    // 1.5 · 2²³: adding and taking it away rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.0);
    // Its lowest bits are k. A conversion, which saturates, would not be vectorized.
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let k = rounded - ROUND;
    let r = (clamped - k * 0.693_359_4) + k * 2.121_944_4e-4;
    let p = 1.0 / 5040.0;
    let p = p * r + 1.0 / 720.0;
    let p = p * r + 1.0 / 120.0;
    let p = p * r + 1.0 / 24.0;
    let p = p * r + 1.0 / 6.0;
    let p = p * r + 0.5;
    let p = p * r + 1.0;
    let p = p * r + 1.0;
    let scale = f32::from_bits(rounded.to_bits().wrapping_sub(ROUND.to_bits() - 127) << 23);
    if x < -87.3 { 0.0 } else { p * scale }
}

/// tanh x, vectorizable: a quotient of odd and even polynomials (that of Eigen) on −7.9..=7.9,
/// beyond which an f32 is ±1. Its relative error is below 5e-7, near 0, too.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    const MOST: f32 = 7.905_311;
    let x = x.clamp(-MOST, MOST);
    let x2 = x * x;
    let p = -2.760_768_5e-16;
    let p = p * x2 + 2.000_188e-13;
    let p = p * x2 - 8.604_672e-11;
    let p = p * x2 + 5.122_297e-8;
    let p = p * x2 + 1.485_722_4e-5;
    let p = p * x2 + 6.372_619_3e-4;
    let p = p * x2 + 4.893_525e-3;
    let q = 1.198_258_4e-6;
    let q = q * x2 + 1.185_347_1e-4;
    let q = q * x2 + 2.268_434_6e-3;
    let q = q * x2 + 4.893_525e-3;
    x * p / q
}

/// Sum in 16 lanes: the order is fixed, so the result does not depend on the processor.
#[inline(always)]
pub fn sum(values: &[f32]) -> f32 {
    fold(values, |x| x)
}

/// Dot product in 16 lanes of fixed order.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    let (a16, a_rest) = a.as_chunks::<16>();
    let (b16, b_rest) = b.as_chunks::<16>();
    for (x, y) in a16.iter().zip(b16) {
        for i in 0..16 {
            lanes[i] += x[i] * y[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    lanes.iter().sum::<f32>() + rest
}

/// Sum of `f(x)` in 16 lanes of fixed order.
#[inline(always)]
pub fn fold(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; 16];
    let (chunks, rest) = values.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] += f(chunk[i]);
        }
    }
    let rest: f32 = rest.iter().map(|&x| f(x)).sum();
    lanes.iter().sum::<f32>() + rest
}

/// The largest value (−∞ of none).
#[inline(always)]
pub fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = values.as_chunks::<16>();
    for chunk in chunks {
        for i in 0..16 {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
}

/// Σ x² in f64, on all cores. Jobs have a fixed size, so that the result does not depend on the
/// number of threads.
pub fn sum_of_squares(values: &[f32]) -> f64 {
    const JOB: usize = 1 << 16;
    let parts: Vec<f64> = values
        .par_chunks(JOB)
        .map(|chunk| {
            vectorized!({
                let mut lanes = [0f64; 8];
                let (chunks, rest) = chunk.as_chunks::<8>();
                for c in chunks {
                    for i in 0..8 {
                        lanes[i] += f64::from(c[i]) * f64::from(c[i]);
                    }
                }
                lanes.iter().sum::<f64>()
                    + rest.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>()
            })
        })
        .collect();
    parts.iter().sum()
}

/// Column sums of `g` (rows, columns), added to `out` (columns): the gradient of a bias.
pub fn add_column_sums(g: &[f32], columns: usize, out: &mut [f32]) {
    // A job reads its columns of all rows, one row after another: so the order of the sum is fixed.
    let step = 256.min(columns);
    out.par_chunks_mut(step).enumerate().for_each(|(job, out)| {
        let first = job * step;
        vectorized!({
            for row in g.chunks_exact(columns) {
                for (o, x) in out.iter_mut().zip(&row[first..]) {
                    *o += x;
                }
            }
        })
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_over_its_whole_range() {
        let worst = (-8700..=8800)
            .map(|i| i as f32 / 100.0)
            .map(|x| (f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs())
            .fold(0.0, f64::max);
        assert!(worst < 2e-7 * 2.0, "relative error {worst:e}");
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn tanh_is_close_over_its_whole_range() {
        let worst = (-1000..=1000)
            .flat_map(|i| [i as f32 / 100.0, i as f32 / 1e5])
            .filter(|x| *x != 0.0)
            .map(|x| (f64::from(tanh(x)) / f64::from(x).tanh() - 1.0).abs())
            .fold(0.0, f64::max);
        assert!(worst < 5e-7, "relative error {worst:e}");
        assert_eq!(tanh(0.0), 0.0);
        assert!((tanh(f32::INFINITY) - 1.0).abs() < 2e-7);
    }

    #[test]
    fn nan_stays_nan() {
        assert!(exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
    }

    #[test]
    fn sums_equal_the_plain_ones() {
        let x: Vec<f32> = (0..1003).map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0).collect();
        let plain: f64 = x.iter().map(|&v| f64::from(v)).sum();
        assert!((f64::from(sum(&x)) - plain).abs() < 1e-3);
        let squares: f64 = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
        assert!((sum_of_squares(&x) / squares - 1.0).abs() < 1e-12);
        assert!((f64::from(dot(&x, &x)) / squares - 1.0).abs() < 1e-5);
        assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    }
}
