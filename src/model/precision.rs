//! A *precision* is what products round their operands to. Beside it: what weights are kept in, and
//! what this processor is fast at.

use std::sync::LazyLock;

use candle_core::DType;
use serde::{Deserialize, Serialize};

use crate::base::environment::variable;

/// What weights are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum WeightsDtype {
    /// Widened when they are loaded.
    #[default]
    #[value(alias = "float32")]
    F32,
    /// Matrices stored in bf16 stay so.
    #[value(alias = "bfloat16")]
    Bf16,
    /// Matrices stored in f16 stay so.
    #[value(alias = "float16")]
    F16,
}

impl WeightsDtype {
    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        self.dtype().size_in_bytes()
    }

    /// candle's name for it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

impl std::fmt::Display for WeightsDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(self.dtype().as_str())
    }
}

/// What the operands of the large products are rounded to; sums, and everything else, are f32. On
/// a GPU a product of bf16 is rounded to bf16, too, as in PyTorch's autocast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Operands as they are.
    #[value(alias = "float32")]
    F32,
    /// Operands rounded to TF32 (ten bits of fraction in place of 23), on NVIDIA's GPUs alone.
    Tf32,
    /// Operands rounded to bf16 (mixed precision).
    #[value(alias = "bfloat16")]
    Bf16,
}

impl Precision {
    /// Why the CPU kernels have no fast product for it here; `None` if they have.
    pub fn unavailable(self) -> Option<&'static str> {
        #[cfg(target_arch = "x86_64")]
        let fast = available(self);
        #[cfg(not(target_arch = "x86_64"))]
        let fast = false;
        match self {
            Self::Tf32 => Some("NVIDIA's GPUs alone multiply in TF32"),
            Self::Bf16 if *PLAIN => Some("IREPAIR_PLAIN_PRODUCTS is set"),
            Self::Bf16 if !fast => Some("this processor has no AVX512-BF16"),
            // On a Xeon (family 6, 2026-11-26) a tile of the packed product makes 87 GFLOP/s a core
            // in bf16 and 170 in f32: the instruction takes two cycles on one port there.
            #[cfg(target_arch = "x86_64")]
            Self::Bf16 if *INTEL && !*SLOW && !*AMX => Some(
                "there is no AMX here, and Intel's AVX512-BF16 multiplies at half the rate of f32",
            ),
            _ => None,
        }
    }
}

/// Whether the processor is Intel's: what is fast differs.
#[cfg(target_arch = "x86_64")]
pub static INTEL: LazyLock<bool> = LazyLock::new(|| {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
});

/// Whether products of bf16 are to be AVX512-BF16's, also where AMX's or those of f32 are faster:
/// with `IREPAIR_SLOW_PRODUCTS` in the environment, for tests.
#[cfg(target_arch = "x86_64")]
static SLOW: LazyLock<bool> = LazyLock::new(|| variable("IREPAIR_SLOW_PRODUCTS").is_some());

/// Whether products of bf16 run on AMX: 16 × 16 sums an instruction, in registers that a process on
/// Linux has to ask for. Elsewhere they are not used.
#[cfg(target_arch = "x86_64")]
pub static AMX: LazyLock<bool> = LazyLock::new(|| {
    let tiles = || {
        // AMX-BF16 and AMX-TILE.
        const BITS: u32 = 1 << 22 | 1 << 24;
        let most = std::arch::x86_64::__cpuid(0).eax;
        most >= 7 && std::arch::x86_64::__cpuid_count(7, 0).edx & BITS == BITS
    };
    available(Precision::Bf16) && !*SLOW && tiles() && tiles_granted()
});

/// The instructions that multiply in bf16, where they are [available](Precision::unavailable).
pub fn bf16_by() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if *AMX {
        return "AMX";
    }
    "AVX512-BF16"
}

/// Asks Linux for the tile registers, for all threads.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn tiles_granted() -> bool {
    // ARCH_REQ_XCOMP_PERM for XFEATURE_XTILEDATA (Documentation/arch/x86/xstate.rst of Linux).
    // SAFETY: it changes nothing but what this process may use; an older Linux returns an
    // error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1023, 18) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn tiles_granted() -> bool {
    false
}

/// Whether products run as on a processor without AVX-512: with `IREPAIR_PLAIN_PRODUCTS` in the
/// environment.
pub static PLAIN: LazyLock<bool> = LazyLock::new(|| variable("IREPAIR_PLAIN_PRODUCTS").is_some());

/// Whether this processor can, and may, run the packed product in this precision.
#[cfg(target_arch = "x86_64")]
pub fn available(precision: Precision) -> bool {
    let f32 =
        !*PLAIN && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
    match precision {
        Precision::F32 => f32,
        Precision::Tf32 => false,
        Precision::Bf16 => f32 && is_x86_feature_detected!("avx512bf16"),
    }
}
