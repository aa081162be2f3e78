//! Packing: parts of an operand become panels of units, rounded or widened on the way.

use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

use half::{bf16, f16};

use super::amx;
use super::engine::Engine;
use super::tile::mask;
use crate::model::kernels::matrix::Mat;
use crate::model::precision::WeightsDtype;

/// An operand: `across` counts rows of `a` or columns of `b`. One of the strides is 1.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    first: *const u8,
    dtype: WeightsDtype,
    pub across: usize,
    /// Whether it is `a`.
    pub left: bool,
    across_stride: usize,
    depth_stride: usize,
    borrowed: PhantomData<&'a [u8]>,
}
// SAFETY: it only reads what it borrows.
unsafe impl Send for Operand<'_> {}
unsafe impl Sync for Operand<'_> {}

impl<'a> Operand<'a> {
    /// The rows of `a`. Panics if neither they nor the columns lie in one piece.
    pub fn left(a: Mat<'a>) -> Self {
        let (across_stride, depth_stride) = (a.row_stride(), a.col_stride());
        assert!(across_stride == 1 || depth_stride == 1, "rows or columns are contiguous");
        let (first, dtype) = (a.data().as_ptr(), a.data().dtype());
        let (across, left) = (a.rows(), true);
        Self { first, dtype, across, left, across_stride, depth_stride, borrowed: PhantomData }
    }

    /// The columns of `b`. Panics if neither they nor the rows lie in one piece.
    pub fn right(b: Mat<'a>) -> Self {
        Self { left: false, ..Self::left(b.t()) }
    }
}

/// The part of an operand that is packed next, as runs of contiguous values to prefetch.
pub(super) struct Ahead {
    from: *const u8,
    runs: usize,
    /// Bytes from run to run.
    stride: usize,
    /// Cache lines a run.
    lines: usize,
    /// Lines that are left to prefetch.
    left: usize,
    /// The line of the first run that is next.
    line: usize,
}

/// Bytes of a cache line.
pub(super) const LINE: usize = 64;

impl Ahead {
    /// Depth `first..first + deep` of a panel of `b`; nothing beyond the operand's edge.
    pub fn new(
        b: Operand,
        [panel, panel_wide]: [usize; 2],
        depth: usize,
        first: usize,
        deep: usize,
    ) -> Self {
        let across = panel * panel_wide;
        let wide = b.across.saturating_sub(across).min(panel_wide);
        let deep = depth.saturating_sub(first).min(deep);
        // Never read through, so it may point anywhere.
        let bytes = b.dtype.bytes();
        let from =
            b.first.wrapping_add((across * b.across_stride + first * b.depth_stride) * bytes);
        let (runs, stride, length) = if b.across_stride == 1 {
            (deep, b.depth_stride, wide)
        } else {
            (wide, b.across_stride, deep)
        };
        let lines = (length * bytes).div_ceil(LINE);
        Self { from, runs, stride: stride * bytes, lines, left: runs * lines, line: 0 }
    }

    /// Prefetches one of `turns` shares.
    pub fn fetch(&mut self, turns: usize) {
        let share = (self.runs * self.lines).div_ceil(turns).min(self.left);
        self.left -= share;
        for _ in 0..share {
            // SAFETY: a prefetch never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(self.from.wrapping_add(self.line * LINE).cast()) };
            self.line += 1;
            if self.line == self.lines {
                (self.from, self.line) = (self.from.wrapping_add(self.stride), 0);
            }
        }
    }
}

/// What panels are packed from, one after another. Each is `width` places across of an operand, the
/// first from `first`, zeros beyond its edge.
pub(super) struct Source<'a> {
    pub from: Operand<'a>,
    pub depth: usize,
    pub first: usize,
    pub width: usize,
    pub panels: usize,
}

/// Up to 16 places across of a panel.
struct Lanes {
    /// The first, counted from the source's first.
    at: usize,
    /// Those of the panel, and how many of them the operand has.
    wide: __mmask16,
    present: usize,
    /// Where they go.
    to: *mut u32,
}

impl Source<'_> {
    /// The lanes of all panels from left to right; a panel takes `units` rows of room.
    fn lanes(&self, units: usize, to: *mut u32) -> Vec<Lanes> {
        let in_panel = |panel: usize| {
            (0..self.width).step_by(16).map(move |column| {
                let (at, wide) = (panel * self.width + column, self.width - column);
                let present = self.from.across.saturating_sub(self.first + at).min(16).min(wide);
                let to = to.wrapping_add(panel * self.width * units + column);
                Lanes { at, wide: mask(wide), present, to }
            })
        };
        (0..self.panels).flat_map(in_panel).collect()
    }

    /// A place that may lie beyond the operand's edge: to be read only where values are present.
    fn place<T>(&self, across: usize, depth: usize) -> *const T {
        let value =
            (self.first + across) * self.from.across_stride + depth * self.from.depth_stride;
        self.from.first.cast::<T>().wrapping_add(value)
    }

    /// # Safety
    /// The operand must be `depth` deep and `units` be among the [engine's](Engine::units) of it,
    /// `to` have room for `units.len() · width` units a panel that nobody else uses, and the
    /// processor have the instructions.
    pub unsafe fn pack(&self, engine: Engine, units: Range<usize>, to: *mut u32) {
        // SAFETY: as the caller promises.
        unsafe {
            match self.from.dtype {
                WeightsDtype::F32 => self.pack_values::<f32>(engine, units, to),
                WeightsDtype::Bf16 => self.pack_values::<bf16>(engine, units, to),
                WeightsDtype::F16 => self.pack_values::<f16>(engine, units, to),
            }
        }
    }

    /// # Safety
    /// As [`Source::pack`], and the operand must hold values of T.
    unsafe fn pack_values<T: Value>(&self, engine: Engine, units: Range<usize>, to: *mut u32) {
        // SAFETY: as the caller promises.
        unsafe {
            match engine {
                Engine::F32 => self.pack_f32::<T>(units, to),
                Engine::Amx if self.from.left => self.pack_rows::<T>(units, to),
                Engine::Bf16 | Engine::Amx => self.pack_bf16::<T>(units, to),
            }
        }
    }

    /// # Safety
    /// As [`Source::pack_values`].
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn pack_f32<T: Value>(&self, units: Range<usize>, to: *mut u32) {
        // SAFETY: loads are masked to what exists, stores go to the panel.
        unsafe {
            let lanes = self.lanes(units.len(), to);
            if self.from.across_stride == 1 {
                for (row, unit) in units.clone().enumerate() {
                    for &Lanes { at, wide, present, to } in &lanes {
                        let v = T::load(self.place(at, unit), present);
                        store(to.add(row * self.width), wide, _mm512_castps_si512(v));
                    }
                }
                return;
            }
            for Lanes { at, wide, present, to } in lanes {
                for unit in units.clone().step_by(16) {
                    let deep = (units.end - unit).min(16);
                    let mut rows = [_mm512_setzero_si512(); 16];
                    for (x, row) in rows.iter_mut().enumerate().take(present) {
                        *row = _mm512_castps_si512(T::load(self.place(at + x, unit), deep));
                    }
                    self.spread(rows, wide, to.add((unit - units.start) * self.width), deep);
                }
            }
        }
    }

    /// # Safety
    /// As [`Source::pack_values`].
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn pack_bf16<T: Value>(&self, units: Range<usize>, to: *mut u32) {
        // SAFETY: loads are masked to what exists, stores go to the panel.
        unsafe {
            let lanes = self.lanes(units.len(), to);
            if self.from.across_stride == 1 {
                // The rows of a matrix lie pages apart, which the processor does not foresee.
                const AHEAD: usize = 16;
                for (row, unit) in units.clone().enumerate() {
                    for &Lanes { at, wide, present, to } in &lanes {
                        let [one, other]: [*const T; 2] = [
                            self.place(at, 2 * unit + AHEAD),
                            self.place(at, 2 * unit + 1 + AHEAD),
                        ];
                        _mm_prefetch::<_MM_HINT_T0>(one.cast());
                        _mm_prefetch::<_MM_HINT_T0>(other.cast());
                        store(to.add(row * self.width), wide, self.unit::<T>(at, unit, present));
                    }
                }
                return;
            }
            for Lanes { at, wide, present, to } in lanes {
                for unit in units.clone().step_by(16) {
                    let deep = (units.end - unit).min(16);
                    let mut rows = [_mm512_setzero_si512(); 16];
                    for (x, row) in rows.iter_mut().enumerate().take(present) {
                        *row = self.run::<T>(at + x, unit, deep);
                    }
                    self.spread(rows, wide, to.add((unit - units.start) * self.width), deep);
                }
            }
        }
    }

    /// Panels of `a` for AMX: pieces of 16 units of depth, in each row after row.
    ///
    /// # Safety
    /// As [`Source::pack_values`], with a multiple of 16 units.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn pack_rows<T: Value>(&self, units: Range<usize>, to: *mut u32) {
        // SAFETY: loads are masked to what exists, stores go to the panel.
        unsafe {
            for Lanes { at, present, to, .. } in self.lanes(units.len(), to) {
                // The lanes' own place in the panel is a column there.
                let column = at % self.width;
                let to = to.sub(column).add(column * amx::DEEP);
                for (piece, unit) in units.clone().step_by(amx::DEEP).enumerate() {
                    let mut rows = [_mm512_setzero_si512(); 16];
                    if self.from.depth_stride == 1 {
                        for (x, row) in rows.iter_mut().enumerate().take(present) {
                            *row = self.run::<T>(at + x, unit, amx::DEEP);
                        }
                    } else {
                        for (deep, row) in rows.iter_mut().enumerate() {
                            *row = self.unit::<T>(at, unit + deep, present);
                        }
                        rows = transposed(rows);
                    }
                    let to = to.add(piece * self.width * amx::DEEP);
                    for (x, row) in rows.into_iter().enumerate() {
                        store(to.add(x * amx::DEEP), u16::MAX, row);
                    }
                }
            }
        }
    }

    /// A unit of bf16 at `present` places across that lie side by side, 0 beyond the depth.
    ///
    /// # Safety
    /// As [`Source::pack_values`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn unit<T: Value>(&self, at: usize, unit: usize, present: usize) -> __m512i {
        let interleave = _mm512_set_epi16(
            31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20,
            4, 19, 3, 18, 2, 17, 1, 16, 0,
        );
        let first = if 2 * unit < self.depth { present } else { 0 };
        let second = if 2 * unit + 1 < self.depth { present } else { 0 };
        let places = [(self.place(at, 2 * unit), first), (self.place(at, 2 * unit + 1), second)];
        // SAFETY: masked to what is present, and not beyond the depth.
        _mm512_permutexvar_epi16(interleave, unsafe { T::rounded(places) })
    }

    /// Up to 16 units of bf16 at one place across, which lie one after another; 0 beyond the depth.
    ///
    /// # Safety
    /// As [`Source::pack_values`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn run<T: Value>(&self, across: usize, unit: usize, deep: usize) -> __m512i {
        let values = self.depth.saturating_sub(2 * unit).min(2 * deep);
        let place: *const T = self.place(across, 2 * unit);
        let places = [(place, values.min(16)), (place.wrapping_add(16), values.saturating_sub(16))];
        // SAFETY: masked to what exists.
        unsafe { T::rounded(places) }
    }

    /// Sixteen places across, each with sixteen units of depth, into `deep` rows of the panel.
    ///
    /// # Safety
    /// The panel must have these rows.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn spread(&self, rows: [__m512i; 16], wide: __mmask16, to: *mut u32, deep: usize) {
        for (unit, v) in transposed(rows).into_iter().enumerate().take(deep) {
            // SAFETY: as the caller promises.
            unsafe { store(to.add(unit * self.width), wide, v) };
        }
    }
}

/// What an operand's values are.
trait Value: Copy {
    /// Up to 16 values in f32, zeros after `count` of them.
    ///
    /// # Safety
    /// The first `count` values must be readable, and the processor must have AVX-512 F and BW.
    unsafe fn load(from: *const Self, count: usize) -> __m512;

    /// Twice up to 16 values in bf16, the first ones in the lower half, zeros after so many each.
    ///
    /// # Safety
    /// So many must be readable, and the processor must have AVX-512 F, BW and BF16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn rounded([(lower, low), (upper, up)]: [(*const Self, usize); 2]) -> __m512i {
        // SAFETY: as the caller promises; both types are 512 bits.
        unsafe {
            let rounded = _mm512_cvtne2ps_pbh(Self::load(upper, up), Self::load(lower, low));
            std::mem::transmute::<__m512bh, __m512i>(rounded)
        }
    }
}

impl Value for f32 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn load(from: *const Self, count: usize) -> __m512 {
        // SAFETY: masked to `count` values.
        unsafe {
            if count >= 16 {
                _mm512_loadu_ps(from)
            } else {
                _mm512_maskz_loadu_ps(mask(count), from)
            }
        }
    }
}

impl Value for bf16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn load(from: *const Self, count: usize) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe {
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(load_halves(
                from.cast(),
                count,
            ))))
        }
    }

    /// As they are.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn rounded([(lower, low), (upper, up)]: [(*const Self, usize); 2]) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe {
            let lower = _mm512_castsi256_si512(load_halves(lower.cast(), low));
            _mm512_inserti64x4::<1>(lower, load_halves(upper.cast(), up))
        }
    }
}

impl Value for f16 {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn load(from: *const Self, count: usize) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe { _mm512_cvtph_ps(load_halves(from.cast(), count)) }
    }
}

/// # Safety
/// The first `count` values must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn load_halves(from: *const i16, count: usize) -> __m256i {
    // SAFETY: masked to `count` values. (A masked load of 256 bits would want AVX512-VL.)
    unsafe {
        if count >= 16 {
            _mm256_loadu_si256(from.cast())
        } else {
            _mm512_castsi512_si256(_mm512_maskz_loadu_epi16(mask(count).into(), from))
        }
    }
}

/// # Safety
/// The places of `wide` must be writable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(to: *mut u32, wide: __mmask16, v: __m512i) {
    // SAFETY: masked to `wide`.
    unsafe { _mm512_mask_storeu_epi32(to.cast(), wide, v) }
}

/// The transpose of a 16 × 16 matrix of units, a row a vector.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(r: [__m512i; 16]) -> [__m512i; 16] {
    // Pairs of rows, then fours, then 128-bit quarters of fours.
    let mut t = [_mm512_setzero_si512(); 16];
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    // q[4g + c]: column c of each quarter (so c, c+4, c+8, c+12) of rows 4g..4g+4.
    let mut q = [_mm512_setzero_si512(); 16];
    for g in 0..4 {
        q[4 * g] = _mm512_unpacklo_epi64(t[4 * g], t[4 * g + 2]);
        q[4 * g + 1] = _mm512_unpackhi_epi64(t[4 * g], t[4 * g + 2]);
        q[4 * g + 2] = _mm512_unpacklo_epi64(t[4 * g + 1], t[4 * g + 3]);
        q[4 * g + 3] = _mm512_unpackhi_epi64(t[4 * g + 1], t[4 * g + 3]);
    }
    let mut out = [_mm512_setzero_si512(); 16];
    for c in 0..4 {
        let low01 = _mm512_shuffle_i32x4::<0b10_00_10_00>(q[c], q[4 + c]);
        let high01 = _mm512_shuffle_i32x4::<0b11_01_11_01>(q[c], q[4 + c]);
        let low23 = _mm512_shuffle_i32x4::<0b10_00_10_00>(q[8 + c], q[12 + c]);
        let high23 = _mm512_shuffle_i32x4::<0b11_01_11_01>(q[8 + c], q[12 + c]);
        out[c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(low01, low23);
        out[8 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(low01, low23);
        out[4 + c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(high01, high23);
        out[12 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(high01, high23);
    }
    out
}
