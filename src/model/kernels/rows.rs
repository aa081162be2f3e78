//! `a·bᵀ` for two row-major matrices with AVX-512: every output is a dot product of two contiguous rows.
//!
//! This is the product of a backward pass through an (in, out) weight, of the output head, and of every (out, in)
//! weight. A general product must first copy `b` transposed into panels, which at a few hundred rows of `a` costs more
//! than the multiplication itself; here nothing is copied. An output's value does not depend on the tile it falls
//! into, nor on how many other rows there are.

#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::*;

use rayon::prelude::*;

use super::Shared;
use super::matmul::Cores;

/// Rows of `b` in a tile, and rows of `a`: 24 accumulators of the 32 registers.
const B_ROWS: usize = 6;
const A_ROWS: usize = 4;
/// Rows of `b` that stay in the first-level cache while all rows of `a` go by …
const HELD: usize = 12;
/// … over this many columns.
const DEPTH: usize = 768;
/// Rows of `b` a parallel job takes.
const JOB: usize = 48;

/// Whether this processor can run [`product`].
pub fn available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq")
}

/// A row-major operand: first value, number of rows, distance between rows.
#[derive(Clone, Copy)]
pub struct Operand {
    pub ptr: *const f32,
    pub rows: usize,
    pub stride: usize,
}
// SAFETY: only read, by jobs that end before the product returns.
unsafe impl Send for Operand {}
unsafe impl Sync for Operand {}

/// `out = keep·out + scale·a·bᵀ`, `out` (a.rows, b.rows) with its own row stride, both operands `depth` columns wide.
///
/// # Safety
/// The operands must be readable and the output writable over these sizes, by no one else; [`available`] must hold.
#[allow(clippy::too_many_arguments)]
pub unsafe fn product(
    out: *mut f32,
    out_stride: usize,
    a: Operand,
    b: Operand,
    depth: usize,
    keep: f32,
    scale: f32,
    cores: Cores,
) {
    let out = Shared(out);
    let job = |first: usize| {
        let last = (first + JOB).min(b.rows);
        // SAFETY: this job alone writes columns first..last.
        unsafe { strip(out, out_stride, a, b, first..last, depth, keep, scale) }
    };
    let jobs = b.rows.div_ceil(JOB);
    match cores {
        Cores::All if jobs > 1 => (0..jobs).into_par_iter().for_each(|j| job(j * JOB)),
        _ => (0..jobs).for_each(|j| job(j * JOB)),
    }
}

#[allow(clippy::too_many_arguments)]
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn strip(
    out: Shared,
    out_stride: usize,
    a: Operand,
    b: Operand,
    columns: std::ops::Range<usize>,
    depth: usize,
    keep: f32,
    scale: f32,
) {
    let mut from = 0;
    while from < depth || from == 0 {
        let width = DEPTH.min(depth - from);
        let keep = if from == 0 { keep } else { 1.0 };
        let mut j = columns.start;
        while j < columns.end {
            let held = HELD.min(columns.end - j);
            let mut i = 0;
            while i < a.rows {
                let na = A_ROWS.min(a.rows - i);
                let mut x = 0;
                while x < held {
                    let nb = B_ROWS.min(held - x);
                    // SAFETY: rows i..i+na of a, j+x..j+x+nb of b, and their outputs exist.
                    unsafe {
                        let at = a.ptr.add(i * a.stride + from);
                        let bt = b.ptr.add((j + x) * b.stride + from);
                        let ot = out.at(i * out_stride + j + x);
                        let t = Tile { a: at, a_stride: a.stride, b: bt, b_stride: b.stride, width, keep, scale };
                        t.any(na, nb, ot, out_stride);
                    }
                    x += nb;
                }
                i += na;
            }
            j += held;
        }
        from += width.max(1);
    }
}

#[derive(Clone, Copy)]
struct Tile {
    a: *const f32,
    a_stride: usize,
    b: *const f32,
    b_stride: usize,
    width: usize,
    keep: f32,
    scale: f32,
}

impl Tile {
    /// # Safety
    /// The row must exist.
    unsafe fn row(self, y: usize) -> Self {
        // SAFETY: as the caller promises.
        Self { a: unsafe { self.a.add(y * self.a_stride) }, ..self }
    }

    /// # Safety
    /// The row of b must exist.
    unsafe fn column(self, x: usize) -> Self {
        // SAFETY: as the caller promises.
        Self { b: unsafe { self.b.add(x * self.b_stride) }, ..self }
    }

    /// A whole tile, or the edge of the matrix in smaller ones.
    ///
    /// # Safety
    /// As [`Tile::run`].
    #[target_feature(enable = "avx512f,avx512dq")]
    #[inline]
    unsafe fn any(self, na: usize, nb: usize, out: *mut f32, out_stride: usize) {
        // SAFETY: parts of what the caller promises.
        unsafe {
            match (na, nb) {
                (A_ROWS, B_ROWS) => self.whole(out, out_stride),
                (4, 4) => self.run::<4, 4>(out, out_stride),
                (3, 6) => self.run::<3, 6>(out, out_stride),
                (2, 6) => self.run::<2, 6>(out, out_stride),
                (1, 6) => self.run::<1, 6>(out, out_stride),
                _ => {
                    for y in 0..na {
                        for x in 0..nb {
                            self.row(y).column(x).run::<1, 1>(out.add(y * out_stride + x), out_stride);
                        }
                    }
                }
            }
        }
    }

    /// A tile of 4 × 6. The loop is written out because the compiler, given the same loop in intrinsics, keeps half of
    /// the 24 sums on the stack (measured: 190 GFLOP/s where this reaches the rate of the multipliers).
    ///
    /// # Safety
    /// As [`Tile::run`] of 4 × 6.
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn whole(self, out: *mut f32, out_stride: usize) {
        let mut sums = [[_mm512_setzero_ps(); B_ROWS]; A_ROWS];
        let steps = self.width / 16;
        if steps > 0 {
            let (a_bytes, b_bytes) = (4 * self.a_stride, 4 * self.b_stride);
            // SAFETY: `steps` vectors of 4 rows of a and 6 rows of b are read, and the 24 sums are written.
            unsafe {
                std::arch::asm!(
                    "vpxord zmm8, zmm8, zmm8", "vpxord zmm9, zmm9, zmm9", "vpxord zmm10, zmm10, zmm10",
                    "vpxord zmm11, zmm11, zmm11", "vpxord zmm12, zmm12, zmm12", "vpxord zmm13, zmm13, zmm13",
                    "vpxord zmm14, zmm14, zmm14", "vpxord zmm15, zmm15, zmm15", "vpxord zmm16, zmm16, zmm16",
                    "vpxord zmm17, zmm17, zmm17", "vpxord zmm18, zmm18, zmm18", "vpxord zmm19, zmm19, zmm19",
                    "vpxord zmm20, zmm20, zmm20", "vpxord zmm21, zmm21, zmm21", "vpxord zmm22, zmm22, zmm22",
                    "vpxord zmm23, zmm23, zmm23", "vpxord zmm24, zmm24, zmm24", "vpxord zmm25, zmm25, zmm25",
                    "vpxord zmm26, zmm26, zmm26", "vpxord zmm27, zmm27, zmm27", "vpxord zmm28, zmm28, zmm28",
                    "vpxord zmm29, zmm29, zmm29", "vpxord zmm30, zmm30, zmm30", "vpxord zmm31, zmm31, zmm31",
                    "2:",
                    "vmovups zmm0, [{b}]", "vmovups zmm1, [{b} + {sb}]", "vmovups zmm2, [{b} + 2*{sb}]",
                    "vmovups zmm3, [{b3}]", "vmovups zmm4, [{b3} + {sb}]", "vmovups zmm5, [{b3} + 2*{sb}]",
                    "vmovups zmm6, [{a}]", "vmovups zmm7, [{a} + {sa}]",
                    "vfmadd231ps zmm8, zmm6, zmm0", "vfmadd231ps zmm9, zmm6, zmm1", "vfmadd231ps zmm10, zmm6, zmm2",
                    "vfmadd231ps zmm11, zmm6, zmm3", "vfmadd231ps zmm12, zmm6, zmm4", "vfmadd231ps zmm13, zmm6, zmm5",
                    "vmovups zmm6, [{a} + 2*{sa}]",
                    "vfmadd231ps zmm14, zmm7, zmm0", "vfmadd231ps zmm15, zmm7, zmm1", "vfmadd231ps zmm16, zmm7, zmm2",
                    "vfmadd231ps zmm17, zmm7, zmm3", "vfmadd231ps zmm18, zmm7, zmm4", "vfmadd231ps zmm19, zmm7, zmm5",
                    "vmovups zmm7, [{a3}]",
                    "vfmadd231ps zmm20, zmm6, zmm0", "vfmadd231ps zmm21, zmm6, zmm1", "vfmadd231ps zmm22, zmm6, zmm2",
                    "vfmadd231ps zmm23, zmm6, zmm3", "vfmadd231ps zmm24, zmm6, zmm4", "vfmadd231ps zmm25, zmm6, zmm5",
                    "vfmadd231ps zmm26, zmm7, zmm0", "vfmadd231ps zmm27, zmm7, zmm1", "vfmadd231ps zmm28, zmm7, zmm2",
                    "vfmadd231ps zmm29, zmm7, zmm3", "vfmadd231ps zmm30, zmm7, zmm4", "vfmadd231ps zmm31, zmm7, zmm5",
                    "add {a}, 64", "add {a3}, 64", "add {b}, 64", "add {b3}, 64",
                    "dec {n}", "jnz 2b",
                    "vmovups [{s}], zmm8", "vmovups [{s} + 64], zmm9", "vmovups [{s} + 128], zmm10",
                    "vmovups [{s} + 192], zmm11", "vmovups [{s} + 256], zmm12", "vmovups [{s} + 320], zmm13",
                    "vmovups [{s} + 384], zmm14", "vmovups [{s} + 448], zmm15", "vmovups [{s} + 512], zmm16",
                    "vmovups [{s} + 576], zmm17", "vmovups [{s} + 640], zmm18", "vmovups [{s} + 704], zmm19",
                    "vmovups [{s} + 768], zmm20", "vmovups [{s} + 832], zmm21", "vmovups [{s} + 896], zmm22",
                    "vmovups [{s} + 960], zmm23", "vmovups [{s} + 1024], zmm24", "vmovups [{s} + 1088], zmm25",
                    "vmovups [{s} + 1152], zmm26", "vmovups [{s} + 1216], zmm27", "vmovups [{s} + 1280], zmm28",
                    "vmovups [{s} + 1344], zmm29", "vmovups [{s} + 1408], zmm30", "vmovups [{s} + 1472], zmm31",
                    a = inout(reg) self.a => _,
                    a3 = inout(reg) self.a.add(3 * self.a_stride) => _,
                    b = inout(reg) self.b => _,
                    b3 = inout(reg) self.b.add(3 * self.b_stride) => _,
                    sa = in(reg) a_bytes,
                    sb = in(reg) b_bytes,
                    n = inout(reg) steps => _,
                    s = in(reg) sums.as_mut_ptr(),
                    out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
                    out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
                    out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _, out("zmm16") _, out("zmm17") _,
                    out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
                    out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm28") _, out("zmm29") _,
                    out("zmm30") _, out("zmm31") _,
                    options(nostack),
                );
            }
        }
        // SAFETY: as the caller promises.
        unsafe { self.finish(sums, out, out_stride) }
    }

    /// # Safety
    /// M rows of a, N rows of b and their M × N outputs must exist.
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn run<const M: usize, const N: usize>(self, out: *mut f32, out_stride: usize) {
        // SAFETY: loads stay within `width` columns (the last ones masked) of the rows that the caller promises.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); N]; M];
            let whole = self.width / 16 * 16;
            let mut k = 0;
            while k < whole {
                let mut bv = [_mm512_setzero_ps(); N];
                for (x, v) in bv.iter_mut().enumerate() {
                    *v = _mm512_loadu_ps(self.b.add(x * self.b_stride + k));
                }
                for (y, sums) in sums.iter_mut().enumerate() {
                    let av = _mm512_loadu_ps(self.a.add(y * self.a_stride + k));
                    for (sum, b) in sums.iter_mut().zip(&bv) {
                        *sum = _mm512_fmadd_ps(av, *b, *sum);
                    }
                }
                k += 16;
            }
            self.finish(sums, out, out_stride);
        }
    }

    /// The columns after the last whole vector, and the outputs.
    ///
    /// # Safety
    /// As [`Tile::run`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512dq")]
    unsafe fn finish<const M: usize, const N: usize>(
        self,
        mut sums: [[__m512; N]; M],
        out: *mut f32,
        out_stride: usize,
    ) {
        let k = self.width / 16 * 16;
        // SAFETY: loads are masked to `width` columns, and the outputs exist.
        unsafe {
            if k < self.width {
                let mask: __mmask16 = (1u16 << (self.width - k)) - 1;
                for (y, sums) in sums.iter_mut().enumerate() {
                    let av = _mm512_maskz_loadu_ps(mask, self.a.add(y * self.a_stride + k));
                    for (x, sum) in sums.iter_mut().enumerate() {
                        let b = _mm512_maskz_loadu_ps(mask, self.b.add(x * self.b_stride + k));
                        *sum = _mm512_fmadd_ps(av, b, *sum);
                    }
                }
            }
            for (y, sums) in sums.iter().enumerate() {
                for (x, value) in totals(sums).iter().enumerate() {
                    let place = out.add(y * out_stride + x);
                    // A fresh output may hold anything, NaN too: 0·NaN is not 0.
                    let before = if self.keep == 0.0 { 0.0 } else { self.keep * *place };
                    *place = before + self.scale * value;
                }
            }
        }
    }
}

/// The 16 lanes of each vector added up, always in the same order: halves, quarters, pairs. Six vectors go through
/// the additions together.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn totals<const N: usize>(v: &[__m512; N]) -> [f32; N] {
    let mut out = [0f32; N];
    let half = |v: __m512| _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
    if N == 6 {
        // Halves of x and of y → quarters of both in one register; then pairs of four, then their sums.
        let quarters = |x: __m256, y: __m256| {
            _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(x, y), _mm256_permute2f128_ps::<0x31>(x, y))
        };
        let pairs = |x: __m256, y: __m256| {
            _mm256_add_ps(_mm256_shuffle_ps::<0b01_00_01_00>(x, y), _mm256_shuffle_ps::<0b11_10_11_10>(x, y))
        };
        let (q01, q23, q45) =
            (quarters(half(v[0]), half(v[1])), quarters(half(v[2]), half(v[3])), quarters(half(v[4]), half(v[5])));
        let (p0123, p45) = (pairs(q01, q23), pairs(q45, q45));
        let sums = _mm256_add_ps(
            _mm256_shuffle_ps::<0b10_00_10_00>(p0123, p45),
            _mm256_shuffle_ps::<0b11_01_11_01>(p0123, p45),
        );
        let mut lanes = [0f32; 8];
        // SAFETY: eight lanes into eight places.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sums) };
        // The lower 128 bits hold 0, 2, 4, 4, the upper 1, 3, 5, 5.
        for (out, lane) in out.iter_mut().zip([0, 4, 1, 5, 2, 6]) {
            *out = lanes[lane];
        }
        return out;
    }
    for (out, v) in out.iter_mut().zip(v) {
        let h = half(*v);
        let q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps::<1>(h));
        let p = _mm_add_ps(q, _mm_shuffle_ps::<0b11_10_11_10>(q, q));
        let s = _mm_add_ss(p, _mm_shuffle_ps::<0b01_01_01_01>(p, p));
        *out = _mm_cvtss_f32(s);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(len: usize, step: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * step).sin() + 0.1).collect()
    }

    fn run(a: &[f32], b: &[f32], m: usize, n: usize, k: usize, keep: f32, cores: Cores) -> Vec<f32> {
        let mut out = vec![if keep == 0.0 { f32::NAN } else { 3.0 }; m * n];
        let a = Operand { ptr: a.as_ptr(), rows: m, stride: k };
        let b = Operand { ptr: b.as_ptr(), rows: n, stride: k };
        // SAFETY: the buffers have these sizes.
        unsafe { product(out.as_mut_ptr(), n, a, b, k, keep, 2.0, cores) };
        out
    }

    #[test]
    fn equals_plain_dot_products() {
        if !available() {
            return;
        }
        for (m, n, k) in [(1, 1, 1), (4, 6, 16), (5, 7, 33), (13, 100, 1030), (3, 50, 2500), (64, 5, 15)] {
            let (a, b) = (wave(m * k, 0.37), wave(n * k, 0.91));
            for (keep, cores) in [(0.0, Cores::All), (0.5, Cores::One)] {
                let out = run(&a, &b, m, n, k, keep, cores);
                for i in 0..m {
                    for j in 0..n {
                        let dot: f64 = (0..k).map(|x| f64::from(a[i * k + x]) * f64::from(b[j * k + x])).sum();
                        let want = f64::from(keep) * 3.0 + 2.0 * dot;
                        let got = f64::from(out[i * n + j]);
                        assert!((got - want).abs() < 1e-5 * k as f64, "{m}×{n}×{k} ({i},{j}): {got} {want}");
                    }
                }
            }
        }
    }

    /// A row's outputs are the same bits alone and among others, in whatever tile they fall.
    #[test]
    fn an_output_does_not_depend_on_its_neighbours() {
        if !available() {
            return;
        }
        let (m, n, k) = (9, 53, 1100);
        let (a, b) = (wave(m * k, 0.37), wave(n * k, 0.91));
        let all = run(&a, &b, m, n, k, 0.0, Cores::All);
        for i in 0..m {
            let alone = run(&a[i * k..][..k], &b, 1, n, k, 0.0, Cores::One);
            assert_eq!(alone, all[i * n..][..n]);
        }
        for j in 0..n {
            let alone = run(&a, &b[j * k..][..k], m, 1, k, 0.0, Cores::One);
            assert_eq!(alone, all.iter().skip(j).step_by(n).copied().collect::<Vec<_>>());
        }
    }
}
