//! The change of a patch as a *LoRA adapter* of peft: for every changed matrix of a linear layer
//! the product of two thin ones, the best of its rank (Eckart and Young 1936). What is no such
//! matrix (norms, biases, embeddings) stays out.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use candle_core::{Device, Tensor};
use faer::{Mat, Side};
use safetensors::Dtype;
use serde::Serialize;
use serde_json::{Value, json};

use super::Checkpoint;
use super::adapter::ADAPTER;
use super::combine::Floats;
use super::patch::PatchFile;
use crate::bail_input;
use crate::base::files::write_whole;
use crate::base::tensors::{Stored, write_tensors};
use crate::model::Model;
use crate::model::layers::Orientation;
use crate::model::weights::{Place, TensorSpec};

/// A change as an adapter.
pub struct Lora {
    pub rank: usize,
    pub matrices: Vec<Matrix>,
    pub left_out: Vec<LeftOut>,
    orientation: Orientation,
}

/// A matrix whose change the adapter carries.
#[derive(Debug, Clone, Serialize)]
pub struct Matrix {
    /// The tensor as the architecture calls it.
    #[serde(skip)]
    tensor: String,
    /// The layer as transformers calls it.
    pub module: String,
    pub rank: usize,
    /// ‖change‖₂.
    pub norm: f64,
    /// The norm of the part that the adapter carries.
    pub captured: f64,
    /// How it is stored.
    #[serde(skip)]
    orientation: Orientation,
    /// (out, rank)
    #[serde(skip)]
    b: Mat<f64>,
    /// (rank, in)
    #[serde(skip)]
    a: Mat<f64>,
}

/// A changed tensor that is no matrix of a linear layer.
#[derive(Debug, Clone, Serialize)]
pub struct LeftOut {
    pub tensor: String,
    pub norm: f64,
}

impl Lora {
    /// The adapter of this rank; a matrix that has a smaller one keeps its own. Errors (bad input)
    /// if the patch is not of this base, if it changes no matrix, or if no matrix has so high a
    /// rank.
    pub fn of(base: &Checkpoint, model: &Model, patch: &PatchFile, rank: usize) -> Result<Self> {
        patch.is_for(base)?;
        let orientation = model.mlp()?.orientation;
        let (mut matrices, mut left_out) = (Vec::new(), Vec::new());
        let specs = model.specs();
        let mut known: BTreeMap<&str, &TensorSpec> = BTreeMap::new();
        for spec in &specs {
            if let Some(name) = base.disk_name(&spec.name) {
                known.insert(name, spec);
            }
        }
        let linear = |name: &String| {
            let spec = known.get(name.as_str()).filter(|spec| spec.is_matrix())?;
            let fits = matches!(spec.place, Place::Block(_) | Place::Head);
            Some((*spec, spec.name.strip_suffix(".weight").filter(|_| fits)?))
        };
        let highest = patch.tensors.iter().filter(|(name, _)| linear(name).is_some());
        let highest = highest.filter_map(|(_, entry)| entry.shape.iter().min().copied()).max();
        let Some(highest) = highest else {
            bail_input!(
                "{}: changes no matrix of a linear layer, and an adapter carries nothing else",
                patch.path().display()
            );
        };
        if rank > highest {
            bail_input!("--rank {rank}: the changed matrices have rank {highest} at most");
        }
        for (name, entry) in &patch.tensors {
            let Some((spec, module)) = linear(name) else {
                left_out.push(LeftOut { tensor: name.clone(), norm: entry.norm });
                continue;
            };
            // The head is a linear layer in GPT-2, too, whose blocks have theirs turned.
            let orientation = match spec.place {
                Place::Head => Orientation::OutIn,
                _ => orientation,
            };
            let change = change(base, patch, name, orientation)?;
            let (b, a) = factors(&change, rank)
                .with_context(|| format!("the singular values of the change of {name}"))?;
            matrices.push(Matrix {
                tensor: spec.name.clone(),
                module: module.to_owned(),
                rank: b.ncols(),
                norm: change.norm_l2(),
                captured: (&b * &a).norm_l2(),
                orientation,
                b,
                a,
            });
        }
        Ok(Self { rank, matrices, left_out, orientation })
    }

    /// The part of the whole change's norm that the adapter carries, 0 to 1.
    pub fn captured(&self) -> f64 {
        let of = |parts: &mut dyn Iterator<Item = f64>| parts.map(|norm| norm * norm).sum::<f64>();
        let carried = of(&mut self.matrices.iter().map(|m| m.captured));
        let all = of(&mut self.matrices.iter().map(|m| m.norm))
            + of(&mut self.left_out.iter().map(|tensor| tensor.norm));
        (carried / all).sqrt()
    }

    /// What the adapter makes of each matrix of the base: names and values as the architecture has
    /// them.
    pub fn adapted<'a>(
        &'a self,
        base: impl Fn(&str) -> Result<Tensor> + 'a,
    ) -> impl Iterator<Item = Result<(&'a str, Tensor)>> + 'a {
        self.matrices.iter().map(move |matrix| {
            let before = base(&matrix.tensor)?;
            let product = &matrix.b * &matrix.a;
            let change = match matrix.orientation {
                Orientation::OutIn => rows(product.as_ref()),
                Orientation::InOut => rows(product.transpose()),
            };
            let change = Tensor::from_vec(change, before.shape(), before.device())?;
            Ok((matrix.tensor.as_str(), (before + change)?))
        })
    }

    /// Writes `adapter_config.json` and `adapter_model.safetensors` into a folder. `base` is what
    /// peft loads the model by, if it has a public name.
    pub fn write(&self, folder: &Path, base: Option<(&str, Option<&str>)>) -> Result<()> {
        let mut tensors = BTreeMap::new();
        for matrix in &self.matrices {
            for (side, values) in [("lora_A", &matrix.a), ("lora_B", &matrix.b)] {
                let shape = (values.nrows(), values.ncols());
                let values = Tensor::from_vec(rows(values.as_ref()), shape, &Device::Cpu)?;
                let name = format!("base_model.model.{}.{side}.weight", matrix.module);
                tensors.insert(name, Stored::values(&values, Dtype::F32));
            }
        }
        let weights = folder.join("adapter_model.safetensors");
        write_tensors(&weights, &[("format", "pt")], &tensors)?;
        let config = serde_json::to_string_pretty(&self.config(base))?;
        write_whole(&folder.join(ADAPTER), config.as_bytes())
    }

    /// `adapter_config.json`. The factor on the product is `lora_alpha / r`, so 1.
    fn config(&self, base: Option<(&str, Option<&str>)>) -> Value {
        let lower = self.matrices.iter().filter(|matrix| matrix.rank != self.rank);
        let ranks: BTreeMap<&str, usize> =
            lower.map(|matrix| (matrix.module.as_str(), matrix.rank)).collect();
        let modules: Vec<&str> = self.matrices.iter().map(|m| m.module.as_str()).collect();
        json!({
            "base_model_name_or_path": base.map(|(name, _)| name),
            "revision": base.and_then(|(_, revision)| revision),
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "inference_mode": true,
            "r": self.rank,
            "lora_alpha": self.rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": self.orientation == Orientation::InOut,
            "target_modules": modules,
            "rank_pattern": ranks,
            "alpha_pattern": ranks,
            "modules_to_save": null,
        })
    }
}

/// The change of a matrix as (out, in).
fn change(
    base: &Checkpoint,
    patch: &PatchFile,
    name: &str,
    orientation: Orientation,
) -> Result<Mat<f64>> {
    let (dtype, shape) = base.dtype_and_shape(name)?;
    let stored = Floats::of(dtype).with_context(|| format!("{name} is stored in {dtype:?}"))?;
    let before = stored.values(&base.bytes(name)?);
    let after = stored.values(&patch.repaired(base, name)?);
    let columns = shape[1];
    let at = |i: usize, j: usize| after[i * columns + j] - before[i * columns + j];
    Ok(match orientation {
        Orientation::OutIn => Mat::from_fn(shape[0], columns, at),
        Orientation::InOut => Mat::from_fn(columns, shape[0], |i, j| at(j, i)),
    })
}

/// B (out, r) and A (r, in) whose product is nearest to the matrix, and both of which have the
/// square roots of its singular values. They come from the eigenvectors of the Gram matrix of the
/// shorter side, for which double precision has digits enough.
fn factors(matrix: &Mat<f64>, rank: usize) -> Result<(Mat<f64>, Mat<f64>)> {
    let wide = matrix.nrows() <= matrix.ncols();
    let gram = match wide {
        true => matrix * matrix.transpose(),
        false => matrix.transpose() * matrix,
    };
    let found = gram.self_adjoint_eigen(Side::Lower).map_err(|error| anyhow!("{error:?}"))?;
    let (vectors, squares) = (found.U(), found.S().column_vector());
    let side = gram.nrows();
    // In rising order.
    let singular = |k: usize| squares[side - 1 - k].max(0.0).sqrt();
    let floor = singular(0) * 1e-7;
    let kept = (0..rank.min(side)).filter(|k| singular(*k) > floor).count().max(1);
    let shorter = Mat::from_fn(side, kept, |i, k| vectors[(i, side - 1 - k)]);
    let scaled = |m: Mat<f64>, power: f64| {
        let scale = |k: usize| if singular(k) > 0.0 { singular(k).powf(power) } else { 0.0 };
        Mat::from_fn(m.nrows(), m.ncols(), |i, k| m[(i, k)] * scale(k))
    };
    Ok(match wide {
        true => {
            let a = scaled(matrix.transpose() * &shorter, -0.5);
            (scaled(shorter, 0.5), a.transpose().to_owned())
        }
        false => {
            let b = scaled(matrix * &shorter, -0.5);
            (b, scaled(shorter, 0.5).transpose().to_owned())
        }
    })
}

/// A tensor of the patched model, in f32. Errors (bad input) if the base's is another one.
pub fn patched(base: &Checkpoint, patch: &PatchFile, name: &str) -> Result<Tensor> {
    let (dtype, shape) = base.dtype_and_shape(name)?;
    let stored = Floats::of(dtype).with_context(|| format!("{name} is stored in {dtype:?}"))?;
    let values = stored.values(&patch.repaired(base, name)?);
    let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// The values row by row.
fn rows(matrix: faer::MatRef<f64>) -> Vec<f32> {
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    let values = (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j)));
    values.map(|at| matrix[at] as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A matrix of rank 2, and a third direction of half the size of the second.
    fn matrix(rows: usize, columns: usize) -> Mat<f64> {
        let wave = |x: usize, k: usize| ((x * (k + 1)) as f64 * 0.7 + k as f64).sin();
        Mat::from_fn(rows, columns, |i, j| {
            (0..3).map(|k| wave(i, k) * wave(j, k + 3) / f64::from(1 << k)).sum()
        })
    }

    #[test]
    fn the_whole_rank_gives_the_matrix() {
        for (rows, columns) in [(5, 9), (9, 5), (6, 6)] {
            let m = matrix(rows, columns);
            let (b, a) = factors(&m, rows.min(columns)).expect("finite");
            assert_eq!((b.nrows(), b.ncols(), a.ncols()), (rows, 3, columns));
            assert!((&b * &a - &m).norm_l2() < 1e-6 * m.norm_l2(), "{rows}x{columns}");
        }
    }

    #[test]
    fn a_lower_rank_leaves_the_smallest_singular_values() {
        let m = matrix(7, 5);
        let values = m.singular_values().expect("finite");
        let (b, a) = factors(&m, 2).expect("finite");
        let left = (&b * &a - &m).norm_l2();
        assert!((left - values[2]).abs() < 1e-6 * values[0], "{left}, {values:?}");
    }
}
