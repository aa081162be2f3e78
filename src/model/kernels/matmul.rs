//! The matrix product: one face for our packed kernel and for `gemm`, by shape and precision.

use gemm::Parallelism;

pub use super::matrix::{Cores, Mat, MatMut};
#[cfg(target_arch = "x86_64")]
use super::packed;
use super::stored::Values;
use crate::base::profile;
use crate::model::precision::{self, Precision};

/// [`product`] on all cores, its operands in this precision; in f32 where that is
/// [`unavailable`](Precision::unavailable).
pub fn large_product(out: &mut [f32], a: Mat, b: Mat, keep: f32, scale: f32, precision: Precision) {
    let _span = profile::product_span();
    #[cfg(target_arch = "x86_64")]
    if precision != Precision::F32 && precision.unavailable().is_none() {
        profile::count_product(a.rows(), a.cols(), b.cols(), true);
        let out = MatMut::new(out, a.rows(), b.cols());
        return packed::product(out, a, b, keep, scale, precision, Cores::All);
    }
    product(out, a, b, keep, scale, Cores::All);
}

/// `out = keep·out + scale·a·b`, `out` row-major (rows of a, columns of b). What is kept nothing of
/// is not read: it may be NaN. Panics if sizes don't fit, or if `a` is not f32.
pub fn product(out: &mut [f32], a: Mat, b: Mat, keep: f32, scale: f32, cores: Cores) {
    product_into(MatMut::new(out, a.rows(), b.cols()), a, b, keep, scale, cores)
}

/// Lines of a matrix that are worked on at a time.
const STRIP: usize = 8192;

/// [`product`] into a part of a larger matrix.
pub fn product_into(mut out: MatMut, a: Mat, b: Mat, keep: f32, scale: f32, cores: Cores) {
    assert_eq!(a.cols(), b.rows(), "inner sizes");
    assert_eq!((out.rows(), out.cols()), (a.rows(), b.cols()), "sizes of the output");
    let Values::F32(left) = a.data() else { panic!("weights are on the right") };
    // Where `b` is contiguous along the depth, `gemm` would first copy it transposed. At a few
    // hundred rows of `a` that costs more than the multiplication. Elsewhere, on a Xeon, it is as
    // fast from 256 rows on and half as fast at 64.
    #[cfg(target_arch = "x86_64")]
    {
        // Small ones are not worth the packing.
        const SHORT: usize = 128;
        const NARROW: usize = 192;
        let deep = a.col_stride() == 1 && b.row_stride() == 1 && b.cols() > 1;
        // A greater depth goes by strips, so that no copy of all of `a` lies beside it.
        let wide = b.cols() >= NARROW && a.cols() <= STRIP;
        if (deep || wide) && a.cols() >= SHORT && precision::available(Precision::F32) {
            profile::count_product(a.rows(), a.cols(), b.cols(), cores == Cores::All);
            return packed::product(out, a, b, keep, scale, Precision::F32, cores);
        }
    }
    // By strips: so only a strip of a vocabulary's weights in bf16 lies beside them in f32.
    let by_depth = b.col_stride() == 1;
    let lines = if by_depth { b.rows() } else { b.cols() };
    if lines > STRIP {
        for first in (0..lines).step_by(STRIP) {
            let strip = first..(first + STRIP).min(lines);
            if by_depth {
                let keep = if first == 0 { keep } else { 1.0 };
                let (a, b) = (a.part(0..a.rows(), strip.clone()), b.part(strip, 0..b.cols()));
                product_into(out.part(0..a.rows(), 0..b.cols()), a, b, keep, scale, cores);
            } else {
                let (out, b) = (out.part(0..a.rows(), strip.clone()), b.part(0..b.rows(), strip));
                product_into(out, a, b, keep, scale, cores);
            }
        }
        return;
    }
    let wide;
    let (b, right) = match b.data() {
        Values::F32(values) => (b, values),
        _ => {
            wide = b.widened();
            (b.with_data(&wide), wide.as_slice())
        }
    };
    if a.rows() == 1 && a.cols() > 0 {
        // For one row `gemm` takes another path, which adds up in another order: a text written
        // alone would differ in its last bits from the same text in a batch. The row goes twice.
        let row: Vec<f32> = (0..a.cols()).map(|c| left[c * a.col_stride()]).collect();
        let doubled = [row.as_slice(), &row].concat();
        let mut twice = vec![0f32; 2 * b.cols()];
        product(&mut twice, Mat::new(&doubled, 2, a.cols()), b, 0.0, scale, cores);
        for (place, value) in out.row(0).iter_mut().zip(&twice) {
            *place = if keep == 0.0 { *value } else { keep * *place + value };
        }
        return;
    }
    profile::count_product(a.rows(), a.cols(), b.cols(), cores == Cores::All);
    let parallelism = match cores {
        Cores::All => Parallelism::Rayon(0),
        Cores::One => Parallelism::None,
    };
    // SAFETY: the views lie within the memory that they borrow, the output for itself, and the
    // sizes fit each other.
    unsafe {
        gemm::gemm(
            a.rows(),
            b.cols(),
            a.cols(),
            out.as_mut_ptr(),
            1,
            out.stride() as isize,
            keep != 0.0,
            left.as_ptr(),
            a.col_stride() as isize,
            a.row_stride() as isize,
            right.as_ptr(),
            b.col_stride() as isize,
            b.row_stride() as isize,
            keep,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn product_equals_three_loops_in_every_orientation() {
        let (m, k, n) = (5, 7, 6);
        let a: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
        let b: Vec<f32> = (0..k * n).map(|i| (i as f32 * 0.73).cos()).collect();
        let mut want = vec![0f32; m * n];
        for i in 0..m {
            for j in 0..n {
                want[i * n + j] =
                    1.0 + (0..k).map(|x| 2.0 * a[i * k + x] * b[x * n + j]).sum::<f32>();
            }
        }
        let transposed: Vec<f32> = (0..n * k).map(|i| b[(i % k) * n + i / k]).collect();
        for b in [Mat::new(&b, k, n), Mat::new(&transposed, n, k).t()] {
            for cores in [Cores::All, Cores::One] {
                let mut out = vec![0.5f32; m * n];
                product(&mut out, Mat::new(&a, m, k), b, 2.0, 2.0, cores);
                for (x, y) in out.iter().zip(&want) {
                    assert!((x - y).abs() < 1e-5, "{x} {y}");
                }
            }
        }
    }

    /// Whatever does not fit is refused before anything is read or written.
    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        use std::panic::{AssertUnwindSafe, catch_unwind};
        let (data, half) = ([1f32; 12], [half::f16::ONE; 12]);
        let refused = |len: usize, a: Mat, b: Mat| {
            let mut out = vec![0f32; len];
            let product = || product(&mut out, a, b, 0.0, 1.0, Cores::One);
            catch_unwind(AssertUnwindSafe(product)).is_err()
        };
        let (a, b) = (Mat::new(&data, 3, 4), Mat::new(&data, 4, 3));
        assert!(!refused(9, a, b));
        assert!(refused(8, a, b) && refused(10, a, b), "another output");
        assert!(refused(12, a, a), "other inner sizes");
        assert!(refused(9, Mat::of(Values::F16(&half), 3, 4), b), "weights on the left");
        let mut out = [0f32; 12];
        let narrow = || {
            let mut out = MatMut::new(&mut out, 3, 4);
            product_into(out.part(0..3, 0..2), a, b, 0.0, 1.0, Cores::One)
        };
        assert!(catch_unwind(AssertUnwindSafe(narrow)).is_err(), "a part too narrow");
    }

    /// What is widened on the way gives the bits of what was widened before, on every path:
    /// packed, by strips, one row.
    #[test]
    fn stored_weights_give_the_bits_of_widened_ones() {
        for (m, k, n) in [
            (2, 7, 6),
            (4, 200, 7),
            (1, 200, 7),
            (3, 9000, 5),
            (1, 9000, 5),
            (2, 7, 9000),
            (3, 200, 200),
            (3, 9000, 200),
        ] {
            let a: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..k * n).map(|i| (i as f32 * 0.73).cos()).collect();
            let (bf16s, f16s): (Vec<_>, Vec<_>) =
                b.iter().map(|x| (half::bf16::from_f32(*x), half::f16::from_f32(*x))).unzip();
            for stored in [Values::Bf16(&bf16s), Values::F16(&f16s)] {
                let wide = stored.widened();
                for transposed in [false, true] {
                    let of = |values: Values| {
                        let b = if transposed {
                            Mat::of(values, n, k).t()
                        } else {
                            Mat::of(values, k, n)
                        };
                        let mut out = vec![0.5f32; m * n];
                        product(&mut out, Mat::new(&a, m, k), b, 2.0, 1.5, Cores::All);
                        out
                    };
                    assert_eq!(of(stored), of(Values::F32(&wide)), "{m} × {k} × {n}");
                }
            }
            let mut sums = vec![0f32; m * n];
            product(&mut sums, Mat::new(&a, m, k), Mat::new(&b, k, n), 0.0, 1.0, Cores::All);
            for (at, sum) in sums.iter().enumerate() {
                let terms =
                    (0..k).map(|x| f64::from(a[at / n * k + x]) * f64::from(b[x * n + at % n]));
                let want: f64 = terms.sum();
                assert!((f64::from(*sum) - want).abs() < 1e-6 * k as f64, "{sum} {want}");
            }
        }
    }
}
