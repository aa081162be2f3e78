//! Patches of one base, *combined*: a part or a multiple of a change, or the mean of several.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use super::patch::{self, PatchFile};
use super::{Checkpoint, copy_model};
use crate::bail_input;

/// Writes the patch from `base` to base + `by` · (the mean of the patches' changes). A tensor that
/// a patch lacks did not change in it. Values are computed in f64 and rounded once, to the dtype
/// they are stored in. `scratch` is an empty folder for the model that the result is checked
/// against. Errors (bad input) if the patches are not of this base, or if a value is not finite;
/// (a failed check) if nothing changes.
pub fn combine(
    base: &Checkpoint,
    patches: &[PatchFile],
    by: f64,
    scratch: &Path,
    out: &Path,
) -> Result<()> {
    patches.iter().try_for_each(|patch| patch.is_for(base))?;
    copy_model(base, scratch)?;
    let names: BTreeSet<&String> = patches.iter().flat_map(|patch| patch.tensors.keys()).collect();
    for name in names {
        let (dtype, _) = base.dtype_and_shape(name)?;
        let Some(stored) = Floats::of(dtype) else {
            bail_input!("tensor {name} is stored in {dtype:?}; have: F32, F16, BF16");
        };
        let bytes = base.bytes(name)?;
        let before = stored.values(&bytes);
        let mut change = vec![0f64; before.len()];
        for patch in patches.iter().filter(|patch| patch.tensors.contains_key(name)) {
            let after = stored.values(&patch.repaired(base, name)?);
            change
                .par_iter_mut()
                .zip(after.par_iter().zip(&before))
                .for_each(|(sum, (after, before))| *sum += after - before);
        }
        let many = patches.len() as f64;
        let values: Vec<f64> = before
            .par_iter()
            .zip(&change)
            .map(|(before, change)| before + change * by / many)
            .collect();
        let (bytes, finite) = stored.bytes(&values);
        if !finite {
            bail_input!("--by {by:?}: a value of {name} is beyond what {dtype:?} can hold");
        }
        base.put(name, &bytes, scratch)?;
    }
    patch::diff(base, &Checkpoint::open(scratch, "the result", None)?, out)
}

/// How values of floats are stored.
#[derive(Clone, Copy)]
pub enum Floats {
    F32,
    F16,
    Bf16,
}

impl Floats {
    /// `None`: not as floats.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// The values of these bytes.
    pub fn values(self, bytes: &[u8]) -> Vec<f64> {
        let (wide, narrow) = (bytes.as_chunks::<4>().0, bytes.as_chunks::<2>().0);
        match self {
            Self::F32 => wide.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
            Self::F16 => narrow.iter().map(|b| f16::from_le_bytes(*b).to_f64()).collect(),
            Self::Bf16 => narrow.iter().map(|b| bf16::from_le_bytes(*b).to_f64()).collect(),
        }
    }

    /// The values, rounded, and whether all of them are finite then.
    fn bytes(self, values: &[f64]) -> (Vec<u8>, bool) {
        match self {
            Self::F32 => rounded(values, |v| v as f32, f64::from, f32::to_le_bytes),
            Self::F16 => rounded(values, f16::from_f64, f16::to_f64, f16::to_le_bytes),
            Self::Bf16 => rounded(values, bf16::from_f64, bf16::to_f64, bf16::to_le_bytes),
        }
    }
}

/// The bytes of values that are rounded to a kind of float, and whether all are finite then.
fn rounded<T: Copy, const N: usize>(
    values: &[f64],
    round: impl Fn(f64) -> T,
    back: impl Fn(T) -> f64,
    bytes: impl Fn(T) -> [u8; N],
) -> (Vec<u8>, bool) {
    let rounded: Vec<T> = values.iter().map(|value| round(*value)).collect();
    let finite = rounded.iter().all(|value| back(*value).is_finite());
    (rounded.into_iter().flat_map(bytes).collect(), finite)
}
