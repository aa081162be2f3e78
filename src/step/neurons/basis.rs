//! The *semantic basis*: what must be added to the last hidden state to raise one logit alone.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use faer::Mat;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use super::algebra::{inverse_gram, quantile};
use crate::base::environment;
use crate::base::error::Error;
use crate::base::files;
use crate::base::tensors;
use crate::base::tensors::{Content, Stored};
use crate::model::Model;
use crate::model::weights::{Weights, Who};

/// B = pinv(Wᵀ) = W(WᵀW)⁺ of the output head W (V,C); its rows are made when they are asked for.
pub struct Basis {
    head: Tensor,
    /// (WᵀW)⁺
    inverse: Mat<f64>,
}

const TENSOR: &str = "inverse_gram";

impl Basis {
    /// The basis of the model's head.
    pub fn compute(model: &Model, weights: &Weights) -> Result<Self> {
        let head = Self::head(model, weights)?;
        let inverse = inverse_gram(&head.flatten_all()?.to_vec1()?, head.dim(1)?)?;
        Ok(Self { head, inverse })
    }

    /// The same, kept by the head's hash: computed once for all models that share it.
    pub fn cached(model: &Model, weights: &Weights) -> Result<Self> {
        let cache = environment::cache("basis")?;
        std::fs::create_dir_all(&cache)
            .map_err(|e| Error::Input(format!("{}: {e} (IREPAIR_CACHE)", cache.display())))?;
        let head = Self::head(model, weights)?;
        let values: Vec<f32> = head.flatten_all()?.to_vec1()?;
        let channels = head.dim(1)?;
        let path = cache.join(format!("{}.safetensors", hash(&values)));
        let inverse = match read(&path, channels) {
            Some(inverse) => inverse,
            None => {
                let inverse = inverse_gram(&values, channels)?;
                write(&path, &inverse)?;
                inverse
            }
        };
        Ok(Self { head, inverse })
    }

    fn head(model: &Model, weights: &Weights) -> Result<Tensor> {
        Ok(weights.tensor(Who::Patient, model.head())?.to_device(&Device::Cpu)?)
    }

    /// `B[right] − B[wrong]`: (C).
    pub fn toward(&self, right: u32, wrong: u32) -> Result<Vec<f64>> {
        let row =
            |token: u32| -> Result<Vec<f32>> { Ok(self.head.get(token as usize)?.to_vec1()?) };
        let difference: Vec<f64> = row(right)?
            .iter()
            .zip(row(wrong)?)
            .map(|(r, w)| f64::from(*r) - f64::from(w))
            .collect();
        let column =
            |c: usize| difference.iter().enumerate().map(|(i, d)| d * self.inverse[(i, c)]).sum();
        Ok((0..difference.len()).map(column).collect())
    }

    /// The *steer* of a failing position: `B[right] − B[wrong]` divided by its interquartile range;
    /// zero where nothing is wrong.
    pub fn steer(&self, right: u32, wrong: u32) -> Result<Vec<f64>> {
        let mut steer = self.toward(right, wrong)?;
        let mut sorted = steer.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let range = quantile(&sorted, 0.75) - quantile(&sorted, 0.25) + 1e-8;
        steer.iter_mut().for_each(|x| *x /= range);
        Ok(steer)
    }
}

fn hash(values: &[f32]) -> String {
    let mut hash = Sha256::new();
    for part in values.chunks(1 << 16) {
        hash.update(part.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
    }
    crate::base::files::hex(&hash.finalize()[..16])
}

/// What was kept, if it is whole.
fn read(path: &Path, channels: usize) -> Option<Mat<f64>> {
    let bytes = files::read(path).ok()?;
    let file = SafeTensors::deserialize(&bytes).ok()?;
    let stored = file.tensor(TENSOR).ok()?;
    if stored.dtype() != Dtype::F64 || stored.shape() != [channels, channels] {
        return None;
    }
    let values: Vec<f64> =
        stored.data().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect();
    Some(Mat::from_fn(channels, channels, |i, j| values[i * channels + j]))
}

fn write(path: &Path, inverse: &Mat<f64>) -> Result<()> {
    let (rows, columns) = (inverse.nrows(), inverse.ncols());
    let bytes = (0..rows)
        .flat_map(|i| (0..columns).flat_map(move |j| inverse[(i, j)].to_le_bytes()))
        .collect();
    let stored =
        Stored { dtype: Dtype::F64, shape: vec![rows, columns], content: Content::Bytes(bytes) };
    tensors::write_tensors(path, &[], &[(TENSOR.to_owned(), stored)].into()).context("the basis")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_and_what_is_broken_does_not() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("b.safetensors");
        let inverse = Mat::from_fn(3, 3, |i, j| 1.0 / (1 + i + 5 * j) as f64);
        write(&path, &inverse).expect("writes");
        assert_eq!(read(&path, 3), Some(inverse));
        assert_eq!(read(&path, 4), None);
        let bytes = std::fs::read(&path).expect("reads");
        std::fs::write(&path, &bytes[..bytes.len() - 1]).expect("writes");
        assert_eq!(read(&path, 3), None);
    }
}
