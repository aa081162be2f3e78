//! Weight files *mapped* into memory: values are converted straight from the pages of the file.

use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::WithDType;
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::Dtype;

use super::header::TensorInfo;
use crate::base::files;

/// Bytes of two tensors that are compared at a time; a multiple of every width.
const AT_ONCE: usize = 8 << 20;

/// A weight file mapped into memory. Only the pages that are looked at are read.
pub struct Mapped(Mmap);

impl Mapped {
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = files::open(path)?;
        files::refuse_pointer(path, &mut file)?;
        // SAFETY: the map is only read. If another program cuts the file short while it is mapped,
        // this process is killed, as with every program that maps its weights.
        Ok(Self(unsafe { Mmap::map(&file) }?))
    }

    /// All bytes of the file.
    pub fn whole(&self) -> &[u8] {
        &self.0
    }

    /// The bytes of a tensor.
    pub fn bytes(&self, tensor: &TensorInfo) -> Result<&[u8]> {
        let from = tensor.offset as usize;
        self.0
            .get(from..from + tensor.bytes as usize)
            .context("the file is shorter than its header says")
    }

    /// The values of a tensor. All cores convert them, and the pages of the file are let go again,
    /// so memory grows by the values alone.
    pub fn values<T: FromStored>(&self, tensor: &TensorInfo) -> Result<Vec<T>> {
        const PIECE: usize = 1 << 18;
        let width = width(tensor.dtype)?;
        let count: usize = tensor.shape.iter().product();
        let (from, length) = (tensor.offset as usize, tensor.bytes as usize);
        let bytes = self.bytes(tensor)?;
        if length != count * width {
            bail!("{length} bytes for {count} values");
        }
        let mut values = vec![T::zero(); count];
        values.par_chunks_mut(PIECE).zip(bytes.par_chunks(PIECE * width)).for_each(
            |(values, bytes)| {
                T::convert(bytes, tensor.dtype, values);
            },
        );
        self.let_go(from, length);
        Ok(values)
    }

    /// Gives back the pages of `length` bytes from `from` on.
    fn let_go(&self, from: usize, length: usize) {
        #[cfg(unix)]
        // SAFETY: the pages hold the file as it is on disk. If they are used again, they are read
        // again.
        unsafe {
            // If the system refuses, the pages count as ours until the file is closed: no harm.
            self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, length).ok();
        }
        #[cfg(not(unix))]
        let _ = (from, length);
    }

    /// Goes through a tensor here and through one of the same dtype and shape in another file, some
    /// MiB at a time, so that memory does not grow by the tensors. Ends where `see` says so, and
    /// gives false then.
    pub fn side_by_side(
        &self,
        own: &TensorInfo,
        other: &Self,
        theirs: &TensorInfo,
        mut see: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<bool> {
        let (all, others) = (self.bytes(own)?, other.bytes(theirs)?);
        let mut from = 0;
        for (bytes, other_bytes) in all.chunks(AT_ONCE).zip(others.chunks(AT_ONCE)) {
            let goes_on = see(bytes, other_bytes);
            self.let_go(own.offset as usize + from, bytes.len());
            other.let_go(theirs.offset as usize + from, other_bytes.len());
            if !goes_on {
                return Ok(false);
            }
            from += bytes.len();
        }
        Ok(true)
    }
}

/// Bytes of a stored value. Errors on a dtype that we can't read.
pub fn width(dtype: Dtype) -> Result<usize> {
    match dtype {
        Dtype::F32 => Ok(4),
        Dtype::F16 | Dtype::BF16 => Ok(2),
        other => bail!("stored as {other:?}; have: F32, F16, BF16"),
    }
}

/// A type that stored values can be kept in.
pub trait FromStored: WithDType {
    /// Fills `values` from as many stored ones. `bf16` and `f16` take their own dtype only.
    fn convert(bytes: &[u8], dtype: Dtype, values: &mut [Self]);
}

impl FromStored for f32 {
    fn convert(bytes: &[u8], dtype: Dtype, values: &mut [Self]) {
        match dtype {
            Dtype::F16 => each(bytes, values, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => each(bytes, values, |b| bf16::from_le_bytes(b).to_f32()),
            _ => each(bytes, values, f32::from_le_bytes),
        }
    }
}

impl FromStored for bf16 {
    fn convert(bytes: &[u8], _: Dtype, values: &mut [Self]) {
        each(bytes, values, bf16::from_le_bytes);
    }
}

impl FromStored for f16 {
    fn convert(bytes: &[u8], _: Dtype, values: &mut [Self]) {
        each(bytes, values, f16::from_le_bytes);
    }
}

fn each<T, const N: usize>(bytes: &[u8], values: &mut [T], decode: impl Fn([u8; N]) -> T) {
    values
        .iter_mut()
        .zip(bytes.as_chunks::<N>().0)
        .for_each(|(value, bytes)| *value = decode(*bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_tensors_are_gone_through_to_their_ends() {
        let dir = tempfile::tempdir().expect("a folder");
        let length = 2 * AT_ONCE + 12;
        let open = |name: &str, offset: usize, last: u8| {
            let mut bytes = vec![0u8; offset + length];
            *bytes.last_mut().expect("bytes") = last;
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).expect("written");
            let tensor = TensorInfo {
                file: 0,
                dtype: Dtype::F32,
                shape: vec![length / 4],
                offset: offset as u64,
                bytes: length as u64,
            };
            (Mapped::open(&path).expect("a map"), tensor)
        };
        let ((a, own), (b, theirs)) = (open("a", 8, 1), open("b", 16, 1));
        let mut seen = 0;
        let all = a.side_by_side(&own, &b, &theirs, |x, y| {
            seen += x.len();
            x == y
        });
        assert!(all.expect("read") && seen == length);
        // Only the last byte of the last piece differs.
        let (c, other) = open("c", 8, 2);
        assert!(!a.side_by_side(&own, &c, &other, |x, y| x == y).expect("read"));
    }
}
