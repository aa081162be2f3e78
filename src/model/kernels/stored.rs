//! Matrices of weights in the dtype that their checkpoint stores them in. Products, and all else that reads them, widen
//! their values to f32, which is exact: the results are those of weights that were widened when they were loaded.

use candle_core::{CpuStorage, Result, Storage, Tensor, bail};
use half::{bf16, f16};
use rayon::prelude::*;

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

impl Values<'_> {
    pub fn count(self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
            Self::F16(values) => values.len(),
        }
    }

    /// `put(place, value)` for the values from `first` on, as many as there are places.
    #[inline(always)]
    pub fn each(self, first: usize, places: &mut [f32], put: impl Fn(&mut f32, f32)) {
        match self {
            Self::F32(values) => {
                places.iter_mut().zip(&values[first..]).for_each(|(p, v)| put(p, *v))
            }
            Self::Bf16(values) => {
                places.iter_mut().zip(&values[first..]).for_each(|(p, v)| put(p, v.to_f32()))
            }
            Self::F16(values) => {
                places.iter_mut().zip(&values[first..]).for_each(|(p, v)| put(p, v.to_f32()))
            }
        }
    }

    /// All values in f32, on all cores.
    pub fn widened(self) -> Vec<f32> {
        const JOB: usize = 1 << 16;
        let mut wide = super::zeros(self.count());
        let jobs = wide.par_chunks_mut(JOB).enumerate();
        jobs.for_each(|(job, wide)| {
            super::vectorized(|| self.each(job * JOB, wide, |place, value| *place = value))
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
