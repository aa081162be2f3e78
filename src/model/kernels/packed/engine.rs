//! An *engine* is what multiplies packed units, with the sizes that are best for it.

use std::ops::Range;

use super::amx;
use crate::model::precision::{AMX, INTEL, Precision};

/// Rows of `a` in a tile of vectors.
const HIGH: usize = 8;
/// Columns of `b` in a tile of vectors: three of them.
const WIDE: usize = 48;

/// What multiplies packed units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    /// AVX-512 in f32.
    F32,
    /// AVX512-BF16.
    Bf16,
    /// AMX, in bf16.
    Amx,
}

/// How a product is cut to the caches of a processor.
pub(super) struct Cut {
    /// Units of depth that a panel of `b` holds at most: its outputs are read and written once for
    /// each.
    pub deep: usize,
    /// Panels of `b` that are packed together and meet a panel of `a` one after another.
    pub group: usize,
    /// Whether the values packed next are prefetched meanwhile; with groups of one.
    pub ahead: bool,
}

impl Engine {
    /// The fastest for this precision here.
    pub fn of(precision: Precision) -> Self {
        match precision {
            Precision::F32 | Precision::Tf32 => Self::F32,
            Precision::Bf16 if *AMX => Self::Amx,
            Precision::Bf16 => Self::Bf16,
        }
    }

    /// Rows of `a` in a tile.
    pub fn high(self) -> usize {
        match self {
            Self::F32 | Self::Bf16 => HIGH,
            Self::Amx => amx::SIDE,
        }
    }

    /// Columns of `b` in a tile.
    pub fn wide(self) -> usize {
        match self {
            Self::F32 | Self::Bf16 => WIDE,
            Self::Amx => amx::SIDE,
        }
    }

    /// Values of depth in so many units.
    pub fn values(self, units: usize) -> usize {
        if self == Self::F32 { units } else { 2 * units }
    }

    /// Units that must come together.
    fn step(self) -> usize {
        if self == Self::Amx { amx::DEEP } else { 1 }
    }

    /// Units of so much depth; values that are missing in the last ones are 0.
    pub fn units(self, depth: usize) -> usize {
        depth.div_ceil(self.values(1)).next_multiple_of(self.step())
    }

    /// How its products are cut here.
    ///
    /// On AMD a panel of `b` of 48 KiB is best (measured in 2026-11 on two EPYCs: depths of 128 and
    /// 384 are 5 to 15 % slower, groups of 4 no faster). On Intel the second cache feeds a tile of
    /// vectors as fast as the first, so it pays to come back to the outputs less often and to read
    /// `b` in longer runs, and prefetches cost what they save (one core of a Xeon, family 6, model
    /// 207, 256 × 3072 × 768 with `b` from memory: cut as for AMD 139 GFLOP/s, 768 deep 144, in
    /// groups of 4 147). So the bits of a product of more than 256 depth differ between the two.
    pub fn cut(self) -> Cut {
        match (self, *INTEL) {
            (Self::Amx, _) => Cut { deep: 512, group: 8, ahead: false },
            (_, true) => Cut { deep: 1024, group: 4, ahead: false },
            (_, false) => Cut { deep: 256, group: 1, ahead: true },
        }
    }

    /// Ranges of about the same length, at most the cut's, that make up `units`; one of them even
    /// if there are none.
    pub fn blocks(self, units: usize) -> impl Iterator<Item = Range<usize>> {
        let count = units.div_ceil(self.cut().deep).max(1);
        let deep = units.div_ceil(count).next_multiple_of(self.step()).max(1);
        (0..units.max(1)).step_by(deep).map(move |from| from..(from + deep).min(units))
    }

    /// Whether sums begin with the outputs instead of being added to them at the end.
    pub fn begins(self, [keep, scale]: [f32; 2]) -> bool {
        self == Self::Amx && keep == 1.0 && scale == 1.0
    }

    /// Whether a whole tile can be written with these factors.
    pub fn writes(self, factors: [f32; 2]) -> bool {
        self != Self::Amx || self.begins(factors) || factors == [0.0, 1.0]
    }

    /// Sets up this thread's tile registers, which last as long as what is returned. `None` for
    /// engines without such registers. The processor must have the engine.
    pub fn ready(self) -> Option<amx::Registers> {
        // SAFETY: the registers were granted, or the engine would be another.
        (self == Self::Amx).then(|| unsafe { amx::Registers::shaped() })
    }
}
