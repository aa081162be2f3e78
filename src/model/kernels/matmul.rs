//! The matrix product: a thin, safe face on our packed kernel and on `gemm`, by shape and precision.

use std::ops::Range;
use std::slice::from_raw_parts;

use gemm::Parallelism;

use super::stored::Values;
use crate::base::profile;
use crate::model::precision::{self, Precision, WeightsDtype};

/// A matrix view: `rows × cols` with strides in values.
#[derive(Clone, Copy)]
pub struct Mat {
    ptr: *const u8,
    dtype: WeightsDtype,
    pub rows: usize,
    pub cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl Mat {
    /// A row-major matrix that is all of `data`.
    pub fn new(data: &[f32], rows: usize, cols: usize) -> Self {
        Self::of(Values::F32(data), rows, cols)
    }

    /// A row-major matrix that is all of `data`.
    pub fn of(data: Values, rows: usize, cols: usize) -> Self {
        assert_eq!(data.count(), rows * cols, "matrix of {rows} × {cols}");
        let (ptr, dtype) = match data {
            Values::F32(values) => (values.as_ptr().cast(), WeightsDtype::F32),
            Values::Bf16(values) => (values.as_ptr().cast(), WeightsDtype::Bf16),
            Values::F16(values) => (values.as_ptr().cast(), WeightsDtype::F16),
        };
        Self { ptr, dtype, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// # Safety
    /// `ptr` must be readable at `r·stride + c` for every row and column while the view is used.
    pub unsafe fn strided(ptr: *const f32, rows: usize, cols: usize, stride: usize) -> Self {
        Self {
            ptr: ptr.cast(),
            dtype: WeightsDtype::F32,
            rows,
            cols,
            row_stride: stride,
            col_stride: 1,
        }
    }

    /// The transpose, without a copy.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Some rows and columns of it.
    fn part(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        let offset = rows.start * self.row_stride + cols.start * self.col_stride;
        Self {
            ptr: self.ptr.wrapping_add(offset * self.dtype.bytes()),
            rows: rows.len(),
            cols: cols.len(),
            ..self
        }
    }

    /// The values of a matrix that lies without gaps.
    ///
    /// # Safety
    /// The data must be readable as long as what is returned is used.
    unsafe fn values<'a>(self) -> Values<'a> {
        let len = self.rows * self.cols;
        // SAFETY: as the caller promises; the pointer was made of values of this dtype.
        unsafe {
            match self.dtype {
                WeightsDtype::F32 => Values::F32(from_raw_parts(self.ptr.cast(), len)),
                WeightsDtype::Bf16 => Values::Bf16(from_raw_parts(self.ptr.cast(), len)),
                WeightsDtype::F16 => Values::F16(from_raw_parts(self.ptr.cast(), len)),
            }
        }
    }
}

/// Where the work runs: on all cores, or on the thread that calls (inside a job that is itself one of many).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Cores {
    All,
    One,
}

/// [`product`] on all cores, its operands in this precision; f32 where it is [`unavailable`](Precision::unavailable).
pub fn large_product(out: &mut [f32], a: Mat, b: Mat, keep: f32, scale: f32, precision: Precision) {
    assert_eq!(out.len(), a.rows * b.cols, "output of {} × {}", a.rows, b.cols);
    let _span = profile::product_span();
    #[cfg(target_arch = "x86_64")]
    if precision != Precision::F32 && precision.unavailable().is_none() {
        profile::count_product(a.rows, a.cols, b.cols, true);
        // SAFETY: `out` has room for every row, and is borrowed mutably.
        return unsafe {
            packed_product(out.as_mut_ptr(), b.cols, a, b, keep, scale, precision, Cores::All)
        };
    }
    product(out, a, b, keep, scale, Cores::All);
}

/// # Safety
/// As [`product_into`], and the precision must be available.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::too_many_arguments)]
unsafe fn packed_product(
    out: *mut f32,
    stride: usize,
    a: Mat,
    b: Mat,
    keep: f32,
    scale: f32,
    precision: Precision,
    cores: Cores,
) {
    use super::packed::{Operand, Output, product};
    assert_eq!(a.cols, b.rows, "inner sizes");
    assert!(
        [a, b].iter().all(|m| m.row_stride == 1 || m.col_stride == 1),
        "rows or columns are contiguous"
    );
    let out = Output { ptr: super::Shared(out), stride, keep, scale };
    let left = Operand {
        ptr: a.ptr,
        dtype: a.dtype,
        across: a.rows,
        across_stride: a.row_stride,
        depth_stride: a.col_stride,
    };
    let right = Operand {
        ptr: b.ptr,
        dtype: b.dtype,
        across: b.cols,
        across_stride: b.col_stride,
        depth_stride: b.row_stride,
    };
    // SAFETY: as the caller promises.
    unsafe { product(out, left, right, a.cols, precision, cores) }
}

/// `out = keep·out + scale·a·b`, `out` row-major (a.rows, b.cols).
pub fn product(out: &mut [f32], a: Mat, b: Mat, keep: f32, scale: f32, cores: Cores) {
    assert_eq!(out.len(), a.rows * b.cols, "output of {} × {}", a.rows, b.cols);
    // SAFETY: `out` has room for every row, and is borrowed mutably.
    unsafe { product_into(out.as_mut_ptr(), b.cols, a, b, keep, scale, cores) }
}

/// Lines of a matrix that are worked on at a time.
const STRIP: usize = 8192;

/// [`product`] into a place with its own row stride.
///
/// # Safety
/// `out` must be writable at `r·stride + c` for every row of `a` and column of `b`, and no one else may use it.
pub unsafe fn product_into(
    out: *mut f32,
    stride: usize,
    a: Mat,
    b: Mat,
    keep: f32,
    scale: f32,
    cores: Cores,
) {
    assert_eq!(a.cols, b.rows, "inner sizes");
    assert!(a.dtype == WeightsDtype::F32, "weights are on the right");
    let left = a.ptr.cast::<f32>();
    // Where `b` is contiguous along the depth, `gemm` would first copy it transposed, which at a few hundred rows of `a`
    // costs more than the multiplication; elsewhere, on a Xeon, it is as fast from 256 rows on and half as fast at 64.
    #[cfg(target_arch = "x86_64")]
    {
        // Small ones are not worth the packing.
        const SHORT: usize = 128;
        const NARROW: usize = 192;
        let deep = a.col_stride == 1 && b.row_stride == 1 && b.cols > 1;
        // A greater depth goes by strips, so that no copy of all of `a` lies beside it.
        let wide = b.cols >= NARROW && a.cols <= STRIP;
        if (deep || wide) && a.cols >= SHORT && precision::available(Precision::F32) {
            profile::count_product(a.rows, a.cols, b.cols, cores == Cores::All);
            // SAFETY: as the caller promises.
            return unsafe {
                packed_product(out, stride, a, b, keep, scale, Precision::F32, cores)
            };
        }
    }
    // By strips, so that of a vocabulary's weights in bf16 only a strip at a time lies beside them in f32.
    let by_depth = b.col_stride == 1;
    let lines = if by_depth { b.rows } else { b.cols };
    if lines > STRIP {
        for first in (0..lines).step_by(STRIP) {
            let strip = first..(first + STRIP).min(lines);
            // SAFETY: as the caller promises.
            unsafe {
                if by_depth {
                    let keep = if first == 0 { keep } else { 1.0 };
                    let (a, b) = (a.part(0..a.rows, strip.clone()), b.part(strip, 0..b.cols));
                    product_into(out, stride, a, b, keep, scale, cores);
                } else {
                    product_into(
                        out.add(first),
                        stride,
                        a,
                        b.part(0..b.rows, strip),
                        keep,
                        scale,
                        cores,
                    );
                }
            }
        }
        return;
    }
    let wide;
    let b = if b.dtype == WeightsDtype::F32 {
        b
    } else {
        // SAFETY: the view is readable.
        wide = unsafe { b.values() }.widened();
        Mat { ptr: wide.as_ptr().cast(), dtype: WeightsDtype::F32, ..b }
    };
    if a.rows == 1 && a.cols > 0 {
        // For one row `gemm` takes another path, which adds up in another order: a text written alone would differ in
        // its last bits from the same text in a batch. The row goes twice.
        // SAFETY: one row of `a` is readable; the two rows of `twice` are ours.
        unsafe {
            let row: Vec<f32> = (0..a.cols).map(|c| *left.add(c * a.col_stride)).collect();
            let doubled = [row.as_slice(), &row].concat();
            let mut twice = vec![0f32; 2 * b.cols];
            product_into(
                twice.as_mut_ptr(),
                b.cols,
                Mat::new(&doubled, 2, a.cols),
                b,
                0.0,
                scale,
                cores,
            );
            for (c, value) in twice[..b.cols].iter().enumerate() {
                let place = out.add(c);
                *place = if keep == 0.0 { *value } else { keep * *place + value };
            }
        }
        return;
    }
    profile::count_product(a.rows, a.cols, b.cols, cores == Cores::All);
    let parallelism = match cores {
        Cores::All => Parallelism::Rayon(0),
        Cores::One => Parallelism::None,
    };
    // SAFETY: the views are readable and the output writable, as the constructors and the caller promise.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out,
            1,
            stride as isize,
            keep != 0.0,
            left,
            a.col_stride as isize,
            a.row_stride as isize,
            b.ptr.cast(),
            b.col_stride as isize,
            b.row_stride as isize,
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

    /// What is widened on the way gives the bits of what was widened before, on every path: packed, by strips, one row.
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
