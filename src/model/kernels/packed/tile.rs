//! A tile of the packed product: a panel of `a` times a panel of `b`, its sums in registers.

use std::arch::x86_64::*;

use super::amx;
use super::engine::Engine;

/// A mask of the first `count` lanes.
pub(super) fn mask(count: usize) -> __mmask16 {
    if count >= 16 { u16::MAX } else { (1 << count) - 1 }
}

/// A panel of `a` times a panel of `b`.
pub(super) struct Tile {
    pub a: *const u32,
    pub b: *const u32,
    pub units: usize,
    pub rows: usize,
    pub columns: usize,
}

/// A tile over `units` of depth: 24 sums in registers, then `out = keep·out + scale·sums` straight
/// from them. What is kept nothing of is not read, for it may be NaN. The instruction decides the
/// precision. Written in assembly because the compiler keeps half of the sums on the stack.
macro_rules! tile {
    ($multiply:literal, $tile:expr, $out:expr, $stride:expr, $keep:expr, $scale:expr) => {
        std::arch::asm!(
            "vpxord zmm8, zmm8, zmm8", "vpxord zmm9, zmm9, zmm9", "vpxord zmm10, zmm10, zmm10",
            "vpxord zmm11, zmm11, zmm11", "vpxord zmm12, zmm12, zmm12",
            "vpxord zmm13, zmm13, zmm13", "vpxord zmm14, zmm14, zmm14",
            "vpxord zmm15, zmm15, zmm15", "vpxord zmm16, zmm16, zmm16",
            "vpxord zmm17, zmm17, zmm17", "vpxord zmm18, zmm18, zmm18",
            "vpxord zmm19, zmm19, zmm19", "vpxord zmm20, zmm20, zmm20",
            "vpxord zmm21, zmm21, zmm21", "vpxord zmm22, zmm22, zmm22",
            "vpxord zmm23, zmm23, zmm23", "vpxord zmm24, zmm24, zmm24",
            "vpxord zmm25, zmm25, zmm25", "vpxord zmm26, zmm26, zmm26",
            "vpxord zmm27, zmm27, zmm27", "vpxord zmm28, zmm28, zmm28",
            "vpxord zmm29, zmm29, zmm29", "vpxord zmm30, zmm30, zmm30",
            "vpxord zmm31, zmm31, zmm31",
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
            concat!($multiply, " zmm28, zmm2, zmm5"), concat!($multiply, " zmm29, zmm0, zmm6"),
            concat!($multiply, " zmm30, zmm1, zmm6"), concat!($multiply, " zmm31, zmm2, zmm6"),
            "add {a}, 32", "add {b}, 192", "dec {n}", "jnz 2b",
            "vbroadcastss zmm0, [{factors}]", "vbroadcastss zmm1, [{factors} + 4]",
            "cmp dword ptr [{factors} + 4], 0", "je 3f",
            "vmulps zmm8, zmm8, zmm0", "vfmadd231ps zmm8, zmm1, [{o}]", "vmovups [{o}], zmm8",
            "vmulps zmm9, zmm9, zmm0", "vfmadd231ps zmm9, zmm1, [{o} + 64]",
            "vmovups [{o} + 64], zmm9", "vmulps zmm10, zmm10, zmm0",
            "vfmadd231ps zmm10, zmm1, [{o} + 128]", "vmovups [{o} + 128], zmm10",
            "add {o}, {stride}",
            "vmulps zmm11, zmm11, zmm0", "vfmadd231ps zmm11, zmm1, [{o}]", "vmovups [{o}], zmm11",
            "vmulps zmm12, zmm12, zmm0", "vfmadd231ps zmm12, zmm1, [{o} + 64]",
            "vmovups [{o} + 64], zmm12", "vmulps zmm13, zmm13, zmm0",
            "vfmadd231ps zmm13, zmm1, [{o} + 128]", "vmovups [{o} + 128], zmm13",
            "add {o}, {stride}",
            "vmulps zmm14, zmm14, zmm0", "vfmadd231ps zmm14, zmm1, [{o}]", "vmovups [{o}], zmm14",
            "vmulps zmm15, zmm15, zmm0", "vfmadd231ps zmm15, zmm1, [{o} + 64]",
            "vmovups [{o} + 64], zmm15", "vmulps zmm16, zmm16, zmm0",
            "vfmadd231ps zmm16, zmm1, [{o} + 128]", "vmovups [{o} + 128], zmm16",
            "add {o}, {stride}",
            "vmulps zmm17, zmm17, zmm0", "vfmadd231ps zmm17, zmm1, [{o}]", "vmovups [{o}], zmm17",
            "vmulps zmm18, zmm18, zmm0", "vfmadd231ps zmm18, zmm1, [{o} + 64]",
            "vmovups [{o} + 64], zmm18", "vmulps zmm19, zmm19, zmm0",
            "vfmadd231ps zmm19, zmm1, [{o} + 128]", "vmovups [{o} + 128], zmm19",
            "add {o}, {stride}",
            "vmulps zmm20, zmm20, zmm0", "vfmadd231ps zmm20, zmm1, [{o}]", "vmovups [{o}], zmm20",
            "vmulps zmm21, zmm21, zmm0", "vfmadd231ps zmm21, zmm1, [{o} + 64]",
            "vmovups [{o} + 64], zmm21", "vmulps zmm22, zmm22, zmm0",
            "vfmadd231ps zmm22, zmm1, [{o} + 128]", "vmovups [{o} + 128], zmm22",
            "add {o}, {stride}",
            "vmulps zmm23, zmm23, zmm0", "vfmadd231ps zmm23, zmm1, [{o}]", "vmovups [{o}], zmm23",
            "vmulps zmm24, zmm24, zmm0", "vfmadd231ps zmm24, zmm1, [{o} + 64]",
            "vmovups [{o} + 64], zmm24", "vmulps zmm25, zmm25, zmm0",
            "vfmadd231ps zmm25, zmm1, [{o} + 128]", "vmovups [{o} + 128], zmm25",
            "add {o}, {stride}",
            "vmulps zmm26, zmm26, zmm0", "vfmadd231ps zmm26, zmm1, [{o}]", "vmovups [{o}], zmm26",
            "vmulps zmm27, zmm27, zmm0", "vfmadd231ps zmm27, zmm1, [{o} + 64]",
            "vmovups [{o} + 64], zmm27", "vmulps zmm28, zmm28, zmm0",
            "vfmadd231ps zmm28, zmm1, [{o} + 128]", "vmovups [{o} + 128], zmm28",
            "add {o}, {stride}",
            "vmulps zmm29, zmm29, zmm0", "vfmadd231ps zmm29, zmm1, [{o}]", "vmovups [{o}], zmm29",
            "vmulps zmm30, zmm30, zmm0", "vfmadd231ps zmm30, zmm1, [{o} + 64]",
            "vmovups [{o} + 64], zmm30", "vmulps zmm31, zmm31, zmm0",
            "vfmadd231ps zmm31, zmm1, [{o} + 128]", "vmovups [{o} + 128], zmm31", "jmp 4f",
            "3:",
            "vmulps zmm8, zmm8, zmm0", "vmovups [{o}], zmm8", "vmulps zmm9, zmm9, zmm0",
            "vmovups [{o} + 64], zmm9", "vmulps zmm10, zmm10, zmm0", "vmovups [{o} + 128], zmm10",
            "add {o}, {stride}",
            "vmulps zmm11, zmm11, zmm0", "vmovups [{o}], zmm11", "vmulps zmm12, zmm12, zmm0",
            "vmovups [{o} + 64], zmm12", "vmulps zmm13, zmm13, zmm0",
            "vmovups [{o} + 128], zmm13", "add {o}, {stride}",
            "vmulps zmm14, zmm14, zmm0", "vmovups [{o}], zmm14", "vmulps zmm15, zmm15, zmm0",
            "vmovups [{o} + 64], zmm15", "vmulps zmm16, zmm16, zmm0",
            "vmovups [{o} + 128], zmm16", "add {o}, {stride}",
            "vmulps zmm17, zmm17, zmm0", "vmovups [{o}], zmm17", "vmulps zmm18, zmm18, zmm0",
            "vmovups [{o} + 64], zmm18", "vmulps zmm19, zmm19, zmm0",
            "vmovups [{o} + 128], zmm19", "add {o}, {stride}",
            "vmulps zmm20, zmm20, zmm0", "vmovups [{o}], zmm20", "vmulps zmm21, zmm21, zmm0",
            "vmovups [{o} + 64], zmm21", "vmulps zmm22, zmm22, zmm0",
            "vmovups [{o} + 128], zmm22", "add {o}, {stride}",
            "vmulps zmm23, zmm23, zmm0", "vmovups [{o}], zmm23", "vmulps zmm24, zmm24, zmm0",
            "vmovups [{o} + 64], zmm24", "vmulps zmm25, zmm25, zmm0",
            "vmovups [{o} + 128], zmm25", "add {o}, {stride}",
            "vmulps zmm26, zmm26, zmm0", "vmovups [{o}], zmm26", "vmulps zmm27, zmm27, zmm0",
            "vmovups [{o} + 64], zmm27", "vmulps zmm28, zmm28, zmm0",
            "vmovups [{o} + 128], zmm28", "add {o}, {stride}",
            "vmulps zmm29, zmm29, zmm0", "vmovups [{o}], zmm29", "vmulps zmm30, zmm30, zmm0",
            "vmovups [{o} + 64], zmm30", "vmulps zmm31, zmm31, zmm0",
            "vmovups [{o} + 128], zmm31",
            // Without it every SSE instruction of the caller waits for the upper halves: some 600
            // cycles a tile on a Xeon.
            "4:", "vzeroupper",
            a = inout(reg) $tile.a => _,
            b = inout(reg) $tile.b => _,
            n = inout(reg) $tile.units => _,
            o = inout(reg) $out => _,
            stride = in(reg) $stride * size_of::<f32>(),
            factors = in(reg) [$scale, $keep].as_ptr(),
            out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _,
            out("zmm5") _, out("zmm6") _, out("zmm7") _, out("zmm8") _, out("zmm9") _,
            out("zmm10") _, out("zmm11") _, out("zmm12") _, out("zmm13") _, out("zmm14") _,
            out("zmm15") _, out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _,
            out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _, out("zmm24") _,
            out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm28") _, out("zmm29") _,
            out("zmm30") _, out("zmm31") _,
            options(nostack),
        )
    };
}

impl Tile {
    /// `out = keep·out + scale·a·b`. What is kept nothing of is not read, for it may be NaN.
    ///
    /// # Safety
    /// `units` of both panels must be packed for this engine. `rows` × `columns` outputs, at most a
    /// tile, must exist and be nobody else's. The processor must have the instructions, and this
    /// thread's engine be [ready](Engine::ready).
    pub unsafe fn run(&self, engine: Engine, out: *mut f32, stride: usize, factors: [f32; 2]) {
        let whole = self.rows == engine.high() && self.columns == engine.wide();
        if self.units > 0 && whole && engine.writes(factors) {
            // SAFETY: as the caller promises.
            return unsafe { self.whole(engine, out, stride, factors) };
        }
        let mut place = Place([0f32; amx::SIDE * amx::SIDE]);
        let sums = &mut place.0;
        let wide = engine.wide();
        // SAFETY: the sums have room for a whole tile; the outputs are as the caller promises.
        unsafe {
            if self.units > 0 && engine.begins(factors) {
                // What is kept is what the sums begin with, as in a whole tile.
                self.copy(out, stride, sums.as_mut_ptr(), wide);
                self.whole(engine, sums.as_mut_ptr(), wide, factors);
                self.copy(sums.as_ptr(), wide, out, stride);
                return;
            }
            if self.units > 0 {
                self.whole(engine, sums.as_mut_ptr(), wide, [0.0, 1.0]);
            }
            self.finish(sums.as_ptr(), wide, out, stride, factors)
        }
    }

    /// # Safety
    /// As [`Tile::run`], with outputs for a whole tile, over more than no depth, and with factors
    /// that the engine [writes](Engine::writes).
    unsafe fn whole(&self, engine: Engine, out: *mut f32, stride: usize, factors: [f32; 2]) {
        let [keep, scale] = factors;
        // Equal to 0 in every bit where nothing is kept.
        let keep = if keep == 0.0 { 0.0 } else { keep };
        // SAFETY: as the caller promises.
        unsafe {
            match engine {
                Engine::F32 => tile!("vfmadd231ps", self, out, stride, keep, scale),
                Engine::Bf16 => tile!("vdpbf16ps", self, out, stride, keep, scale),
                Engine::Amx => {
                    let begins = engine.begins(factors);
                    amx::tile([self.a, self.b], self.units, out, stride, begins)
                }
            }
        }
    }

    /// The tile's outputs from one place to another.
    ///
    /// # Safety
    /// They must exist in both, and be nobody else's in the second.
    #[target_feature(enable = "avx512f")]
    unsafe fn copy(&self, from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
        for row in 0..self.rows {
            for at in (0..self.columns).step_by(16) {
                let lanes = mask(self.columns - at);
                // SAFETY: masked to the outputs that exist.
                unsafe {
                    let v = _mm512_maskz_loadu_ps(lanes, from.add(row * from_stride + at));
                    _mm512_mask_storeu_ps(to.add(row * to_stride + at), lanes, v);
                }
            }
        }
    }

    /// # Safety
    /// As [`Tile::run`], and the sums must be those of a tile, `wide` a row.
    #[target_feature(enable = "avx512f")]
    unsafe fn finish(
        &self,
        sums: *const f32,
        wide: usize,
        out: *mut f32,
        stride: usize,
        [keep, scale]: [f32; 2],
    ) {
        let (keep_v, scale_v) = (_mm512_set1_ps(keep), _mm512_set1_ps(scale));
        for row in 0..self.rows {
            for at in (0..self.columns).step_by(16) {
                let lanes = mask(self.columns - at);
                // SAFETY: masked to the outputs that exist.
                unsafe {
                    let place = out.add(row * stride + at);
                    let v = _mm512_mul_ps(scale_v, _mm512_loadu_ps(sums.add(row * wide + at)));
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

/// Room for the sums of a tile, at the start of a cache line.
#[repr(align(64))]
struct Place([f32; amx::SIDE * amx::SIDE]);
