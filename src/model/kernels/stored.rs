//! Matrices of weights in the dtype that their checkpoint stores them in. Whatever reads them
//! widens their values to f32, which is exact: the results are those of weights that were widened
//! when they were loaded.

use candle_core::{CpuStorage, Result, Storage, Tensor, bail};
use half::{bf16, f16};
use rayon::prelude::*;

use super::vectorized;
use crate::model::precision::WeightsDtype;

/// The values of a matrix, where they lie.
#[derive(Clone, Copy)]
pub enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

impl<'a> From<&'a [f32]> for Values<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self::F32(values)
    }
}

impl<'a> Values<'a> {
    pub fn dtype(self) -> WeightsDtype {
        match self {
            Self::F32(_) => WeightsDtype::F32,
            Self::Bf16(_) => WeightsDtype::Bf16,
            Self::F16(_) => WeightsDtype::F16,
        }
    }

    /// Those from number `first` on. Panics if there are fewer.
    pub fn after(self, first: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[first..]),
            Self::Bf16(values) => Self::Bf16(&values[first..]),
            Self::F16(values) => Self::F16(&values[first..]),
        }
    }

    /// The first `count`. Panics if there are fewer.
    pub fn first(self, count: usize) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[..count]),
            Self::Bf16(values) => Self::Bf16(&values[..count]),
            Self::F16(values) => Self::F16(&values[..count]),
        }
    }

    /// Where the first one lies.
    pub fn as_ptr(self) -> *const u8 {
        match self {
            Self::F32(values) => values.as_ptr().cast(),
            Self::Bf16(values) => values.as_ptr().cast(),
            Self::F16(values) => values.as_ptr().cast(),
        }
    }

    pub fn count(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::F16(values) => values.len(),
        }
    }

    /// `put(place, value)` for the values from `first` on. Panics if there are fewer than places.
    #[inline(always)]
    pub fn each(self, first: usize, places: &mut [f32], put: impl Fn(&mut f32, f32)) {
        match self.after(first).first(places.len()) {
            Self::F32(values) => places.iter_mut().zip(values).for_each(|(p, v)| put(p, *v)),
            Self::Bf16(values) => {
                places.iter_mut().zip(values).for_each(|(p, v)| put(p, v.to_f32()))
            }
            Self::F16(values) => {
                places.iter_mut().zip(values).for_each(|(p, v)| put(p, v.to_f32()))
            }
        }
    }

    /// All values in f32, on all cores.
    pub fn widened(self) -> Vec<f32> {
        const JOB: usize = 1 << 16;
        let mut wide = super::zeros(self.count());
        let jobs = wide.par_chunks_mut(JOB).enumerate();
        jobs.for_each(|(job, wide)| {
            vectorized!(self.each(job * JOB, wide, |place, value| *place = value))
        });
        wide
    }
}

/// Read a contiguous matrix on the CPU in place.
pub fn read_stored<R>(tensor: &Tensor, work: impl FnOnce(Values) -> R) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("CPU kernel called on another device") };
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("kernel wants a contiguous tensor, got {layout:?}")
    };
    Ok(work(match storage {
        CpuStorage::F32(values) => Values::F32(&values[start..end]),
        CpuStorage::BF16(values) => Values::Bf16(&values[start..end]),
        CpuStorage::F16(values) => Values::F16(&values[start..end]),
        _ => bail!("kernel wants weights in f32, bf16 or f16, got {:?}", tensor.dtype()),
    }))
}
