//! The matrix product over packed panels with AVX-512, in two precisions: f32, or operands rounded to bf16 (to nearest,
//! ties to even) with every sum in f32 (`vdpbf16ps`, twice the multiplications an instruction).
//!
//! A packed *unit* is 32 bits: one f32, or two bf16 that stand one above the other in the depth. `a` is packed into
//! panels of `HIGH` rows, `b` into panels of `WIDE` columns; a tile is HIGH broadcasts times three vectors, 24 sums in
//! registers, nothing added across lanes. Rounding happens while packing, and so does the widening of weights that lie
//! in bf16 or f16, so operands stay as they are in memory. An output does not depend on the tile it falls into, nor on how
//! many other rows there are.

#![cfg(target_arch = "x86_64")]

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::LazyLock;

use half::{bf16, f16};
use rayon::prelude::*;

use super::Shared;
use super::matmul::Cores;
use crate::model::precision::{INTEL, Precision, WeightsDtype};

/// Rows of `a` in a tile.
const HIGH: usize = 8;
/// Columns of `b` in a tile: three vectors.
const WIDE: usize = 48;
/// With fewer panels of `b` than this, or than threads, `b` is packed whole first and the jobs also divide the rows of `a`.
const FEW: usize = 8;
/// Panels of `a` that a job takes then.
const JOB: usize = 4;

/// How a product is cut to the caches of a processor.
struct Cut {
    /// Units of depth that a panel of `b` holds at most: its outputs are read and written once for each.
    deep: usize,
    /// Panels of `b` that are packed together and meet a panel of `a` one after another.
    group: usize,
    /// Whether the values packed next are prefetched meanwhile; with groups of one.
    ahead: bool,
}

/// On AMD a panel of `b` of 48 KiB is best (measured in 2026-11 on two EPYCs: depths of 128 and 384 are 5 to 15 % slower,
/// groups of 4 no faster). On Intel the second cache feeds the tile as fast as the first, so it pays to come back to the
/// outputs less often and to read `b` in longer runs, and prefetches cost what they save (one core of a Xeon, family 6,
/// model 207, 256 × 3072 × 768 with `b` from memory: cut as for AMD 139 GFLOP/s, 768 deep 144, in groups of 4 147). So the bits of a product of more than 256 depth differ between the two.
static CUT: LazyLock<Cut> = LazyLock::new(|| match *INTEL {
    true => Cut { deep: 1024, group: 4, ahead: false },
    false => Cut { deep: 256, group: 1, ahead: true },
});

/// Ranges of about the same length, at most the cut's, that make up `units`; one of them even if there are none.
fn blocks(units: usize) -> impl Iterator<Item = Range<usize>> {
    let deep = units.div_ceil(units.div_ceil(CUT.deep).max(1)).max(1);
    (0..units.max(1)).step_by(deep).map(move |from| from..(from + deep).min(units))
}

/// An operand: `across` counts rows of `a` or columns of `b`. One of the strides is 1.
#[derive(Clone, Copy)]
pub struct Operand {
    pub ptr: *const u8,
    pub dtype: WeightsDtype,
    pub across: usize,
    pub across_stride: usize,
    pub depth_stride: usize,
}
// SAFETY: only read, by jobs that end before the product returns.
unsafe impl Send for Operand {}
unsafe impl Sync for Operand {}

/// Where a product goes: `out = keep·out + scale·a·b`.
#[derive(Clone, Copy)]
pub struct Output {
    pub ptr: Shared,
    pub stride: usize,
    pub keep: f32,
    pub scale: f32,
}

thread_local! {
    /// Room for panels, kept from product to product: fresh pages would cost as much as the packing.
    static ROOM: RefCell<[Vec<u32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// Lends this thread's room `which` of at least `len` units (of any content, at the start of a cache line) to `work`.
fn with_room<R>(which: usize, len: usize, work: impl FnOnce(&mut [u32]) -> R) -> R {
    let mut room = ROOM.with_borrow_mut(|rooms| std::mem::take(&mut rooms[which]));
    if room.len() < len + LINE / 4 {
        room.resize(len + LINE / 4, 0);
    }
    let start = room.as_ptr().align_offset(LINE).min(LINE / 4);
    let result = work(&mut room[start..start + len]);
    ROOM.with_borrow_mut(|rooms| rooms[which] = room);
    result
}

/// `out = keep·out + scale·a·b` over `depth`.
///
/// # Safety
/// The operands must be readable and the output writable over these sizes, by no one else; one stride of each operand must
/// be 1, and [`available`] hold.
pub unsafe fn product(
    out: Output,
    a: Operand,
    b: Operand,
    depth: usize,
    precision: Precision,
    cores: Cores,
) {
    // Values of depth in a unit.
    let pair = if precision == Precision::Bf16 { 2 } else { 1 };
    let units = depth.div_ceil(pair);
    let (a_panels, b_panels) = (a.across.div_ceil(HIGH), b.across.div_ceil(WIDE));
    let each = |jobs: usize, work: &(dyn Fn(usize) + Sync)| match cores {
        Cores::All if jobs > 1 => (0..jobs).into_par_iter().for_each(work),
        _ => (0..jobs).for_each(work),
    };
    let pack =
        |from: Operand, width: usize, panels: Range<usize>, units: Range<usize>, to: *mut u32| {
            let source =
                Source { from, depth, first: panels.start * width, width, panels: panels.len() };
            // SAFETY: `to` has room for `units` rows of the panels, and this processor has the instructions.
            unsafe {
                match from.dtype {
                    WeightsDtype::F32 => source.pack::<f32>(precision, units, to),
                    WeightsDtype::Bf16 => source.pack::<bf16>(precision, units, to),
                    WeightsDtype::F16 => source.pack::<f16>(precision, units, to),
                }
            }
        };
    with_room(0, a_panels * HIGH * units, |room| {
        let a_packed = Units(room.as_mut_ptr());
        each(a_panels, &|panel| {
            pack(a, HIGH, panel..panel + 1, 0..units, a_packed.at(panel * HIGH * units))
        });
        // Some panels of b over `deep`, packed one after another, against some panels of a; meanwhile `next` comes nearer.
        let multiply = |panels: Range<usize>,
                        deep: &Range<usize>,
                        packed: *const u32,
                        rows: Range<usize>,
                        mut next: Option<Ahead>| {
            let keep = if deep.start == 0 { out.keep } else { 1.0 };
            let count = rows.len();
            for row in rows {
                if let Some(next) = &mut next {
                    next.fetch(count);
                }
                for panel in panels.clone() {
                    let (first_row, first_column) = (row * HIGH, panel * WIDE);
                    let tile = Tile {
                        a: a_packed.at(row * HIGH * units + deep.start * HIGH),
                        b: packed.wrapping_add((panel - panels.start) * WIDE * deep.len()),
                        units: deep.len(),
                        rows: HIGH.min(a.across - first_row),
                        columns: WIDE.min(b.across - first_column),
                    };
                    let place = out.ptr.at(first_row * out.stride + first_column);
                    // SAFETY: the tile's panels are packed, and its outputs exist and belong to this job.
                    unsafe { tile.run(precision, place, out.stride, keep, out.scale) };
                }
            }
        };
        let threads = match cores {
            Cores::All => rayon::current_num_threads(),
            Cores::One => 1,
        };
        if b_panels >= FEW.max(threads) || a_panels <= JOB {
            // Smaller groups where larger ones would leave cores without work.
            let share = if threads > 1 { b_panels / (4 * threads) } else { b_panels };
            let group = share.clamp(1, CUT.group);
            each(b_panels.div_ceil(group), &|job| {
                let panels = job * group..((job + 1) * group).min(b_panels);
                with_room(1, panels.len() * WIDE * units.min(CUT.deep), |room| {
                    for deep in blocks(units) {
                        pack(b, WIDE, panels.clone(), deep.clone(), room.as_mut_ptr());
                        let next = CUT.ahead.then(|| {
                            let (panel, from) = if deep.end < units {
                                (panels.start, deep.end)
                            } else {
                                (panels.end, 0)
                            };
                            Ahead::new(b, panel, depth, from * pair, deep.len() * pair)
                        });
                        multiply(panels.clone(), &deep, room.as_ptr(), 0..a_panels, next);
                    }
                });
            });
        } else {
            with_room(1, b_panels * WIDE * units, |room| {
                let b_packed = Units(room.as_mut_ptr());
                each(b_panels, &|panel| {
                    for deep in blocks(units) {
                        let to = b_packed.at(panel * WIDE * units + deep.start * WIDE);
                        pack(b, WIDE, panel..panel + 1, deep, to);
                    }
                });
                let chunks = a_panels.div_ceil(JOB);
                each(b_panels * chunks, &|job| {
                    let (panel, chunk) = (job / chunks, job % chunks);
                    let rows = chunk * JOB..((chunk + 1) * JOB).min(a_panels);
                    for deep in blocks(units) {
                        let packed = b_packed.at(panel * WIDE * units + deep.start * WIDE);
                        multiply(panel..panel + 1, &deep, packed, rows.clone(), None);
                    }
                });
            });
        }
    });
}

/// The part of an operand that is packed next, as runs of contiguous values to prefetch.
struct Ahead {
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
const LINE: usize = 64;

impl Ahead {
    /// Depth `first..first + deep` of a panel of `b`; nothing beyond the operand's edge.
    fn new(b: Operand, panel: usize, depth: usize, first: usize, deep: usize) -> Self {
        let wide = b.across.saturating_sub(panel * WIDE).min(WIDE);
        let deep = depth.saturating_sub(first).min(deep);
        // Never read through, so it may point anywhere.
        let bytes = b.dtype.bytes();
        let from =
            b.ptr.wrapping_add((panel * WIDE * b.across_stride + first * b.depth_stride) * bytes);
        let (runs, stride, length) = if b.across_stride == 1 {
            (deep, b.depth_stride, wide)
        } else {
            (wide, b.across_stride, deep)
        };
        let lines = (length * bytes).div_ceil(LINE);
        Self { from, runs, stride: stride * bytes, lines, left: runs * lines, line: 0 }
    }

    /// Prefetches one of `turns` shares.
    fn fetch(&mut self, turns: usize) {
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

/// Packed units that jobs writing to disjoint places may share.
#[derive(Clone, Copy)]
struct Units(*mut u32);
// SAFETY: every job writes only its own panels, and reads panels that are complete.
unsafe impl Send for Units {}
unsafe impl Sync for Units {}

impl Units {
    fn at(self, offset: usize) -> *mut u32 {
        // SAFETY: callers stay within the room the pointer was made of.
        unsafe { self.0.add(offset) }
    }
}

/// What panels are packed from, one after another: each is `width` places across of an operand, the first from `first`,
/// zeros beyond its edge.
struct Source {
    from: Operand,
    depth: usize,
    first: usize,
    width: usize,
    panels: usize,
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

impl Source {
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
        self.from.ptr.cast::<T>().wrapping_add(value)
    }

    /// # Safety
    /// The operand must hold values of T, `to` have room for `units.len() · width` units a panel, and the processor have
    /// the instructions.
    unsafe fn pack<T: Value>(&self, precision: Precision, units: Range<usize>, to: *mut u32) {
        // SAFETY: as the caller promises.
        unsafe {
            match precision {
                Precision::F32 => self.pack_f32::<T>(units, to),
                Precision::Bf16 => self.pack_bf16::<T>(units, to),
            }
        }
    }

    /// # Safety
    /// As [`Source::pack`].
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
    /// As [`Source::pack`].
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    unsafe fn pack_bf16<T: Value>(&self, units: Range<usize>, to: *mut u32) {
        // SAFETY: loads are masked to what exists, stores go to the panel.
        unsafe {
            let interleave = _mm512_set_epi16(
                31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                20, 4, 19, 3, 18, 2, 17, 1, 16, 0,
            );
            let pair = |upper: __m512, lower: __m512| -> __m512i {
                // SAFETY: both are 512 bits.
                std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(lower, upper))
            };
            let lanes = self.lanes(units.len(), to);
            if self.from.across_stride == 1 {
                for (row, unit) in units.clone().enumerate() {
                    for &Lanes { at, wide, present, to } in &lanes {
                        let upper = T::load(self.place(at, 2 * unit), present);
                        let lower = match 2 * unit + 1 < self.depth {
                            true => T::load(self.place(at, 2 * unit + 1), present),
                            false => _mm512_setzero_ps(),
                        };
                        let v = _mm512_permutexvar_epi16(interleave, pair(upper, lower));
                        store(to.add(row * self.width), wide, v);
                    }
                }
                return;
            }
            for Lanes { at, wide, present, to } in lanes {
                for unit in units.clone().step_by(16) {
                    let deep = (units.end - unit).min(16);
                    let values = (2 * deep).min(self.depth - 2 * unit);
                    let mut rows = [_mm512_setzero_si512(); 16];
                    for (x, row) in rows.iter_mut().enumerate().take(present) {
                        let first = T::load(self.place(at + x, 2 * unit), values.min(16));
                        let second = match values > 16 {
                            true => T::load(self.place(at + x, 2 * unit + 16), values - 16),
                            false => _mm512_setzero_ps(),
                        };
                        *row = pair(first, second);
                    }
                    self.spread(rows, wide, to.add((unit - units.start) * self.width), deep);
                }
            }
        }
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

/// A mask of the first `count` lanes.
fn mask(count: usize) -> __mmask16 {
    if count >= 16 { u16::MAX } else { (1 << count) - 1 }
}

/// What an operand's values are.
trait Value: Copy {
    /// Up to 16 values in f32, zeros after `count` of them.
    ///
    /// # Safety
    /// The first `count` values must be readable, and the processor must have AVX-512 F and BW.
    unsafe fn load(from: *const Self, count: usize) -> __m512;
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

/// A panel of `a` times a panel of `b`.
struct Tile {
    a: *const u32,
    b: *const u32,
    units: usize,
    rows: usize,
    columns: usize,
}

/// A tile over `units` of depth: 24 sums in registers, then `out = keep·out + scale·sums` straight from them; what is kept
/// nothing of is not read, for it may be NaN. The instruction decides the precision. Written in assembly because the
/// compiler keeps half of the sums on the stack.
macro_rules! tile {
    ($multiply:literal, $tile:expr, $out:expr, $stride:expr, $keep:expr, $scale:expr) => {
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
            "vmovups zmm0, [{b}]", "vmovups zmm1, [{b} + 64]", "vmovups zmm2, [{b} + 128]",
            "vpbroadcastd zmm3, [{a}]", "vpbroadcastd zmm4, [{a} + 4]",
            concat!($multiply, " zmm8, zmm0, zmm3"), concat!($multiply, " zmm9, zmm1, zmm3"),
            concat!($multiply, " zmm10, zmm2, zmm3"), "vpbroadcastd zmm5, [{a} + 8]",
            concat!($multiply, " zmm11, zmm0, zmm4"), concat!($multiply, " zmm12, zmm1, zmm4"),
            concat!($multiply, " zmm13, zmm2, zmm4"), "vpbroadcastd zmm6, [{a} + 12]",
            concat!($multiply, " zmm14, zmm0, zmm5"), concat!($multiply, " zmm15, zmm1, zmm5"),
            concat!($multiply, " zmm16, zmm2, zmm5"), "vpbroadcastd zmm3, [{a} + 16]",
            concat!($multiply, " zmm17, zmm0, zmm6"), concat!($multiply, " zmm18, zmm1, zmm6"),
            concat!($multiply, " zmm19, zmm2, zmm6"), "vpbroadcastd zmm4, [{a} + 20]",
            concat!($multiply, " zmm20, zmm0, zmm3"), concat!($multiply, " zmm21, zmm1, zmm3"),
            concat!($multiply, " zmm22, zmm2, zmm3"), "vpbroadcastd zmm5, [{a} + 24]",
            concat!($multiply, " zmm23, zmm0, zmm4"), concat!($multiply, " zmm24, zmm1, zmm4"),
            concat!($multiply, " zmm25, zmm2, zmm4"), "vpbroadcastd zmm6, [{a} + 28]",
            concat!($multiply, " zmm26, zmm0, zmm5"), concat!($multiply, " zmm27, zmm1, zmm5"),
            concat!($multiply, " zmm28, zmm2, zmm5"),
            concat!($multiply, " zmm29, zmm0, zmm6"), concat!($multiply, " zmm30, zmm1, zmm6"),
            concat!($multiply, " zmm31, zmm2, zmm6"),
            "add {a}, 32", "add {b}, 192",
            "dec {n}", "jnz 2b",
            "vbroadcastss zmm0, [{factors}]", "vbroadcastss zmm1, [{factors} + 4]",
            "cmp dword ptr [{factors} + 4], 0", "je 3f",
            "vmulps zmm8, zmm8, zmm0", "vfmadd231ps zmm8, zmm1, [{o}]", "vmovups [{o}], zmm8", "vmulps zmm9, zmm9, zmm0",
            "vfmadd231ps zmm9, zmm1, [{o} + 64]", "vmovups [{o} + 64], zmm9", "vmulps zmm10, zmm10, zmm0",
            "vfmadd231ps zmm10, zmm1, [{o} + 128]", "vmovups [{o} + 128], zmm10", "add {o}, {stride}",
            "vmulps zmm11, zmm11, zmm0", "vfmadd231ps zmm11, zmm1, [{o}]", "vmovups [{o}], zmm11", "vmulps zmm12, zmm12, zmm0",
            "vfmadd231ps zmm12, zmm1, [{o} + 64]", "vmovups [{o} + 64], zmm12", "vmulps zmm13, zmm13, zmm0",
            "vfmadd231ps zmm13, zmm1, [{o} + 128]", "vmovups [{o} + 128], zmm13", "add {o}, {stride}",
            "vmulps zmm14, zmm14, zmm0", "vfmadd231ps zmm14, zmm1, [{o}]", "vmovups [{o}], zmm14", "vmulps zmm15, zmm15, zmm0",
            "vfmadd231ps zmm15, zmm1, [{o} + 64]", "vmovups [{o} + 64], zmm15", "vmulps zmm16, zmm16, zmm0",
            "vfmadd231ps zmm16, zmm1, [{o} + 128]", "vmovups [{o} + 128], zmm16", "add {o}, {stride}",
            "vmulps zmm17, zmm17, zmm0", "vfmadd231ps zmm17, zmm1, [{o}]", "vmovups [{o}], zmm17", "vmulps zmm18, zmm18, zmm0",
            "vfmadd231ps zmm18, zmm1, [{o} + 64]", "vmovups [{o} + 64], zmm18", "vmulps zmm19, zmm19, zmm0",
            "vfmadd231ps zmm19, zmm1, [{o} + 128]", "vmovups [{o} + 128], zmm19", "add {o}, {stride}",
            "vmulps zmm20, zmm20, zmm0", "vfmadd231ps zmm20, zmm1, [{o}]", "vmovups [{o}], zmm20", "vmulps zmm21, zmm21, zmm0",
            "vfmadd231ps zmm21, zmm1, [{o} + 64]", "vmovups [{o} + 64], zmm21", "vmulps zmm22, zmm22, zmm0",
            "vfmadd231ps zmm22, zmm1, [{o} + 128]", "vmovups [{o} + 128], zmm22", "add {o}, {stride}",
            "vmulps zmm23, zmm23, zmm0", "vfmadd231ps zmm23, zmm1, [{o}]", "vmovups [{o}], zmm23", "vmulps zmm24, zmm24, zmm0",
            "vfmadd231ps zmm24, zmm1, [{o} + 64]", "vmovups [{o} + 64], zmm24", "vmulps zmm25, zmm25, zmm0",
            "vfmadd231ps zmm25, zmm1, [{o} + 128]", "vmovups [{o} + 128], zmm25", "add {o}, {stride}",
            "vmulps zmm26, zmm26, zmm0", "vfmadd231ps zmm26, zmm1, [{o}]", "vmovups [{o}], zmm26", "vmulps zmm27, zmm27, zmm0",
            "vfmadd231ps zmm27, zmm1, [{o} + 64]", "vmovups [{o} + 64], zmm27", "vmulps zmm28, zmm28, zmm0",
            "vfmadd231ps zmm28, zmm1, [{o} + 128]", "vmovups [{o} + 128], zmm28", "add {o}, {stride}",
            "vmulps zmm29, zmm29, zmm0", "vfmadd231ps zmm29, zmm1, [{o}]", "vmovups [{o}], zmm29", "vmulps zmm30, zmm30, zmm0",
            "vfmadd231ps zmm30, zmm1, [{o} + 64]", "vmovups [{o} + 64], zmm30", "vmulps zmm31, zmm31, zmm0",
            "vfmadd231ps zmm31, zmm1, [{o} + 128]", "vmovups [{o} + 128], zmm31",
            "jmp 4f",
            "3:",
            "vmulps zmm8, zmm8, zmm0", "vmovups [{o}], zmm8", "vmulps zmm9, zmm9, zmm0", "vmovups [{o} + 64], zmm9",
            "vmulps zmm10, zmm10, zmm0", "vmovups [{o} + 128], zmm10", "add {o}, {stride}",
            "vmulps zmm11, zmm11, zmm0", "vmovups [{o}], zmm11", "vmulps zmm12, zmm12, zmm0", "vmovups [{o} + 64], zmm12",
            "vmulps zmm13, zmm13, zmm0", "vmovups [{o} + 128], zmm13", "add {o}, {stride}",
            "vmulps zmm14, zmm14, zmm0", "vmovups [{o}], zmm14", "vmulps zmm15, zmm15, zmm0", "vmovups [{o} + 64], zmm15",
            "vmulps zmm16, zmm16, zmm0", "vmovups [{o} + 128], zmm16", "add {o}, {stride}",
            "vmulps zmm17, zmm17, zmm0", "vmovups [{o}], zmm17", "vmulps zmm18, zmm18, zmm0", "vmovups [{o} + 64], zmm18",
            "vmulps zmm19, zmm19, zmm0", "vmovups [{o} + 128], zmm19", "add {o}, {stride}",
            "vmulps zmm20, zmm20, zmm0", "vmovups [{o}], zmm20", "vmulps zmm21, zmm21, zmm0", "vmovups [{o} + 64], zmm21",
            "vmulps zmm22, zmm22, zmm0", "vmovups [{o} + 128], zmm22", "add {o}, {stride}",
            "vmulps zmm23, zmm23, zmm0", "vmovups [{o}], zmm23", "vmulps zmm24, zmm24, zmm0", "vmovups [{o} + 64], zmm24",
            "vmulps zmm25, zmm25, zmm0", "vmovups [{o} + 128], zmm25", "add {o}, {stride}",
            "vmulps zmm26, zmm26, zmm0", "vmovups [{o}], zmm26", "vmulps zmm27, zmm27, zmm0", "vmovups [{o} + 64], zmm27",
            "vmulps zmm28, zmm28, zmm0", "vmovups [{o} + 128], zmm28", "add {o}, {stride}",
            "vmulps zmm29, zmm29, zmm0", "vmovups [{o}], zmm29", "vmulps zmm30, zmm30, zmm0", "vmovups [{o} + 64], zmm30",
            "vmulps zmm31, zmm31, zmm0", "vmovups [{o} + 128], zmm31",
            // Without it every SSE instruction of the caller waits for the upper halves: some 600 cycles a tile on a Xeon.
            "4:", "vzeroupper",
            a = inout(reg) $tile.a => _,
            b = inout(reg) $tile.b => _,
            n = inout(reg) $tile.units => _,
            o = inout(reg) $out => _,
            stride = in(reg) $stride * size_of::<f32>(),
            factors = in(reg) [$scale, $keep].as_ptr(),
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _,
            out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _,
            out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _, out("zmm16") _, out("zmm17") _,
            out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
            out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm28") _, out("zmm29") _,
            out("zmm30") _, out("zmm31") _,
            options(nostack),
        )
    };
}

impl Tile {
    /// # Safety
    /// `units` of both panels must be packed, `rows` × `columns` outputs exist, and the processor have the instructions.
    unsafe fn run(
        &self,
        precision: Precision,
        out: *mut f32,
        stride: usize,
        keep: f32,
        scale: f32,
    ) {
        let whole = self.rows == HIGH && self.columns == WIDE;
        if self.units > 0 && whole {
            // SAFETY: as the caller promises.
            return unsafe { self.whole(precision, out, stride, keep, scale) };
        }
        let mut sums = [0f32; HIGH * WIDE];
        // SAFETY: the sums have room for a whole tile; the outputs are as the caller promises.
        unsafe {
            if self.units > 0 {
                self.whole(precision, sums.as_mut_ptr(), WIDE, 0.0, 1.0);
            }
            self.finish(&sums, out, stride, keep, scale)
        }
    }

    /// # Safety
    /// As [`Tile::run`], with outputs for a whole tile, over more than no depth.
    unsafe fn whole(
        &self,
        precision: Precision,
        out: *mut f32,
        stride: usize,
        keep: f32,
        scale: f32,
    ) {
        // Equal to 0 in every bit where nothing is kept.
        let keep = if keep == 0.0 { 0.0 } else { keep };
        // SAFETY: as the caller promises.
        unsafe {
            match precision {
                Precision::F32 => tile!("vfmadd231ps", self, out, stride, keep, scale),
                Precision::Bf16 => tile!("vdpbf16ps", self, out, stride, keep, scale),
            }
        }
    }

    /// # Safety
    /// As [`Tile::run`].
    #[target_feature(enable = "avx512f")]
    unsafe fn finish(
        &self,
        sums: &[f32; HIGH * WIDE],
        out: *mut f32,
        stride: usize,
        keep: f32,
        scale: f32,
    ) {
        let (keep_v, scale_v) = (_mm512_set1_ps(keep), _mm512_set1_ps(scale));
        for row in 0..self.rows {
            for at in (0..self.columns).step_by(16) {
                let lanes = mask(self.columns - at);
                // SAFETY: masked to the outputs that exist.
                unsafe {
                    let place = out.add(row * stride + at);
                    let v =
                        _mm512_mul_ps(scale_v, _mm512_loadu_ps(sums.as_ptr().add(row * WIDE + at)));
                    // Not read where nothing is kept: it may be NaN.
                    let v = match keep == 0.0 {
                        true => v,
                        false => _mm512_fmadd_ps(keep_v, _mm512_maskz_loadu_ps(lanes, place), v),
                    };
                    _mm512_mask_storeu_ps(place, lanes, v);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::precision::available;

    fn wave(len: usize, step: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * step).sin() + 0.1).collect()
    }

    fn rounded(values: &[f32], precision: Precision) -> Vec<f32> {
        match precision {
            Precision::F32 => values.to_vec(),
            Precision::Bf16 => values.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect(),
        }
    }

    /// Strides (across, depth) of an operand that is contiguous along the depth, or across.
    fn operand(data: &[f32], across: usize, depth: usize, along_depth: bool) -> Operand {
        let (across_stride, depth_stride) = if along_depth { (depth, 1) } else { (1, across) };
        Operand {
            ptr: data.as_ptr().cast(),
            dtype: WeightsDtype::F32,
            across,
            across_stride,
            depth_stride,
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn run(
        a: Operand,
        b: Operand,
        depth: usize,
        keep: f32,
        precision: Precision,
        cores: Cores,
    ) -> Vec<f32> {
        let mut out = vec![if keep == 0.0 { f32::NAN } else { 3.0 }; a.across * b.across];
        let place = Output { ptr: Shared(out.as_mut_ptr()), stride: b.across, keep, scale: 2.0 };
        // SAFETY: the buffers have these sizes.
        unsafe { product(place, a, b, depth, precision, cores) };
        out
    }

    #[test]
    fn equals_plain_sums_in_every_orientation_and_precision() {
        for precision in [Precision::F32, Precision::Bf16] {
            if !available(precision) {
                continue;
            }
            for (m, n, k) in [
                (1, 1, 1),
                (8, 48, 2),
                (9, 50, 33),
                (70, 100, 301),
                (3, 500, 47),
                (64, 5, 16),
                (17, 33, 600),
                (17, 900, 1100),
            ] {
                let (a, b) = (wave(m * k, 0.37), wave(n * k, 0.91));
                let (ra, rb) = (rounded(&a, precision), rounded(&b, precision));
                for (a_deep, b_deep, keep, cores) in [
                    (true, true, 0.0, Cores::All),
                    (true, false, 0.5, Cores::One),
                    (false, true, 1.0, Cores::All),
                    (false, false, 0.0, Cores::One),
                ] {
                    let out = run(
                        operand(&a, m, k, a_deep),
                        operand(&b, n, k, b_deep),
                        k,
                        keep,
                        precision,
                        cores,
                    );
                    let at =
                        |across, x, all, deep| if deep { across * k + x } else { x * all + across };
                    for i in 0..m {
                        for j in 0..n {
                            let sum: f64 = (0..k)
                                .map(|x| {
                                    f64::from(ra[at(i, x, m, a_deep)])
                                        * f64::from(rb[at(j, x, n, b_deep)])
                                })
                                .sum();
                            let want = f64::from(keep) * 3.0 + 2.0 * sum;
                            let got = f64::from(out[i * n + j]);
                            let near = 1e-5 * (k as f64).max(16.0);
                            assert!(
                                (got - want).abs() < near,
                                "{precision:?} {m}×{n}×{k} ({i},{j}): {got} {want}"
                            );
                        }
                    }
                }
            }
        }
    }

    /// A row's outputs are the same bits alone and among others, in whatever tile they fall.
    #[test]
    fn an_output_does_not_depend_on_its_neighbours() {
        for precision in [Precision::F32, Precision::Bf16] {
            if !available(precision) {
                continue;
            }
            let (m, n, k) = (45, 103, 700);
            let (a, b) = (wave(m * k, 0.37), wave(n * k, 0.91));
            let b_all = operand(&b, n, k, true);
            let all = run(operand(&a, m, k, true), b_all, k, 0.0, precision, Cores::All);
            for i in 0..m {
                let alone = run(
                    operand(&a[i * k..][..k], 1, k, true),
                    b_all,
                    k,
                    0.0,
                    precision,
                    Cores::One,
                );
                assert_eq!(alone, all[i * n..][..n]);
            }
        }
    }
}
