//! A tile of the packed product in AMX's registers: two by two of sums, each 16 × 16, and two of
//! either operand.

/// Rows and columns of a tile.
pub(super) const SIDE: usize = 32;
/// Units of depth that an instruction takes.
pub(super) const DEEP: usize = 16;

/// What all eight registers are: 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

/// Eight registers have a shape, the others of the format none.
static SHAPE: Shape = Shape {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// The registers of this thread, in shape as long as this lives.
pub(super) struct Registers(());

impl Registers {
    /// # Safety
    /// The process must have been granted the registers.
    pub unsafe fn shaped() -> Self {
        // SAFETY: the shape is what the instruction reads.
        unsafe {
            std::arch::asm!(
                "ldtilecfg [{shape}]",
                shape = in(reg) &SHAPE,
                options(nostack, readonly, preserves_flags),
            )
        };
        Self(())
    }
}

impl Drop for Registers {
    /// Empty registers need not be saved when the thread is interrupted.
    fn drop(&mut self) {
        // SAFETY: there are registers, or this had not been made.
        unsafe { std::arch::asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// `out = a·b`, or `out += a·b` if the sums begin with what is there.
///
/// `a` lies in pieces of 16 units of depth: row after row, 16 units each. `b` lies unit after unit,
/// 32 columns each.
///
/// # Safety
/// The panels must be packed so, over a positive multiple of [`DEEP`] units, a whole tile of
/// outputs must exist and be nobody else's, and the [`Registers`] be in shape.
pub(super) unsafe fn tile(
    [a, b]: [*const u32; 2],
    units: usize,
    out: *mut f32,
    stride: usize,
    begins: bool,
) {
    // SAFETY: as the caller promises.
    unsafe {
        std::arch::asm!(
            "test {begins:e}, {begins:e}", "jz 2f",
            "tileloadd tmm0, [{o} + {os}*1]", "tileloadd tmm1, [{o} + {os}*1 + 64]",
            "tileloadd tmm2, [{below} + {os}*1]", "tileloadd tmm3, [{below} + {os}*1 + 64]",
            "jmp 3f",
            "2:", "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "3:",
            "tileloadd tmm6, [{b} + {bs}*1]", "tileloadd tmm4, [{a} + {r}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{a} + {r}*1 + 1024]", "tdpbf16ps tmm2, tmm5, tmm6",
            "tileloadd tmm7, [{b} + {bs}*1 + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7", "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 2048", "add {b}, 2048", "dec {n}", "jnz 3b",
            "tilestored [{o} + {os}*1], tmm0", "tilestored [{o} + {os}*1 + 64], tmm1",
            "tilestored [{below} + {os}*1], tmm2", "tilestored [{below} + {os}*1 + 64], tmm3",
            begins = in(reg) u32::from(begins),
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            n = inout(reg) units / DEEP => _,
            o = in(reg) out,
            below = in(reg) out.wrapping_add(16 * stride),
            os = in(reg) stride * size_of::<f32>(),
            r = in(reg) 64usize,
            bs = in(reg) 128usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _,
            out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    }
}
