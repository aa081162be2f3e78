//! Weight files mapped into memory.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::WithDType;
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::Dtype;

use super::header::Entry;

/// A weight file mapped into memory: values are converted on all cores straight from its pages, which are let go again.
pub struct Mapped(Mmap);

impl Mapped {
    pub fn open(path: &Path) -> Result<Self> {
        let place = || path.display().to_string();
        let file = File::open(path).with_context(place)?;
        // SAFETY: the map is read only while tensors are converted. A file cut short meanwhile would end the program; its
        // length was checked when its header was read.
        Ok(Self(unsafe { Mmap::map(&file) }.with_context(place)?))
    }

    /// A tensor's bytes.
    pub fn bytes(&self, entry: &Entry) -> Result<&[u8]> {
        let from = entry.offset as usize;
        self.0
            .get(from..from + entry.bytes as usize)
            .context("the file is shorter than its header says")
    }

    /// A tensor's values: memory grows by them alone.
    pub fn values<T: Kept>(&self, entry: &Entry) -> Result<Vec<T>> {
        const PIECE: usize = 1 << 18;
        let width = match entry.dtype {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            other => bail!("stored as {other:?}; have: F32, F16, BF16"),
        };
        let count: usize = entry.shape.iter().product();
        let (from, length) = (entry.offset as usize, entry.bytes as usize);
        let bytes = self.bytes(entry)?;
        if length != count * width {
            bail!("{length} bytes for {count} values");
        }
        let mut values = vec![T::zero(); count];
        values.par_chunks_mut(PIECE).zip(bytes.par_chunks(PIECE * width)).for_each(
            |(values, bytes)| {
                T::convert(bytes, entry.dtype, values);
            },
        );
        #[cfg(unix)]
        // SAFETY: the pages are unchanged file contents, which come back when they are read again.
        unsafe {
            // Only a hint: without it the pages stay counted as ours until the file is closed.
            self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, length).ok();
        }
        Ok(values)
    }
}

/// A type that values are kept in.
pub trait Kept: WithDType {
    /// Stored bytes into values, as many; the half types take their own dtype only.
    fn convert(bytes: &[u8], dtype: Dtype, values: &mut [Self]);
}

impl Kept for f32 {
    fn convert(bytes: &[u8], dtype: Dtype, values: &mut [Self]) {
        match dtype {
            Dtype::F16 => each(bytes, values, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => each(bytes, values, |b| bf16::from_le_bytes(b).to_f32()),
            _ => each(bytes, values, f32::from_le_bytes),
        }
    }
}

impl Kept for bf16 {
    fn convert(bytes: &[u8], _: Dtype, values: &mut [Self]) {
        each(bytes, values, bf16::from_le_bytes);
    }
}

impl Kept for f16 {
    fn convert(bytes: &[u8], _: Dtype, values: &mut [Self]) {
        each(bytes, values, f16::from_le_bytes);
    }
}

fn each<T, const N: usize>(bytes: &[u8], values: &mut [T], of: impl Fn([u8; N]) -> T) {
    values.iter_mut().zip(bytes.as_chunks::<N>().0).for_each(|(value, bytes)| *value = of(*bytes));
}
