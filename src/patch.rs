//! A *patch* is what a repair changed: for every touched tensor the bitwise difference (XOR) of its stored values, so that
//! it leads from the base to the repaired model and back, exactly.
//!
//! The file is a safetensors file. A difference is stored as bytes: grouped by their place in a value (first bytes
//! first: sign and exponent hardly ever change) and deflated, or as it is where that is smaller. Its metadata names the
//! hashes of both models, and what each tensor is.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;
use rayon::prelude::*;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use crate::bail_input;
use crate::checkpoint::{self, Change, Checkpoint, Stored};
use crate::fault::Fault;

const FORMAT_VERSION: &str = "2";

/// How a difference is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// XOR of the values' bytes.
    Xor,
    /// The same, bytes grouped by their place in a value, deflated (zlib).
    XorDeflated,
}

/// What a patch says of a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub dtype: safetensors::Dtype,
    pub shape: Vec<usize>,
    pub encoding: Encoding,
    /// ‖after − before‖₂ and ‖before‖₂.
    pub norm: f64,
    pub base_norm: f64,
}

/// A patch that was opened and checked.
pub struct PatchFile {
    path: PathBuf,
    bytes: Vec<u8>,
    /// Of the base's weights: [`Checkpoint::hash`].
    pub base_sha256: String,
    pub repaired_sha256: String,
    /// By name on disk.
    pub tensors: BTreeMap<String, Entry>,
}

/// What `patch show` tells.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub base_sha256: String,
    pub repaired_sha256: String,
    /// Of the patch file.
    pub bytes: u64,
    /// Of the changed tensors as they are stored in the model.
    pub tensor_bytes: u64,
    pub changes: Vec<Change>,
}

/// Writes the patch that leads from `base` to `repaired`. Errors if their tensors differ in name, shape or dtype, or not
/// at all in value.
pub fn diff(base: &Checkpoint, repaired: &Checkpoint, path: &Path) -> Result<()> {
    let changes = checkpoint::compare(base, repaired)?;
    if changes.is_empty() {
        return Err(Fault::Check(format!("{} and {} are equal: there is no patch", base.name, repaired.name)).into());
    }
    write(base, repaired, &changes, path)
}

/// [`diff`] where the changes are known already.
pub fn write(base: &Checkpoint, repaired: &Checkpoint, changes: &[Change], path: &Path) -> Result<()> {
    let encoded: Vec<(String, Entry, Vec<u8>)> = changes
        .par_iter()
        .map(|change| {
            let (dtype, shape) = base.dtype_and_shape(&change.name)?;
            let mut difference = base.bytes(&change.name)?;
            difference.iter_mut().zip(repaired.bytes(&change.name)?).for_each(|(a, b)| *a ^= b);
            let deflated = deflate(&difference, dtype.bitsize() / 8)?;
            let (encoding, bytes) = match deflated.len() < difference.len() {
                true => (Encoding::XorDeflated, deflated),
                false => (Encoding::Xor, difference),
            };
            let entry = Entry { dtype, shape, encoding, norm: change.norm, base_norm: change.base_norm };
            Ok((change.name.clone(), entry, bytes))
        })
        .collect::<Result<_>>()?;
    let entries: BTreeMap<&str, &Entry> = encoded.iter().map(|(name, entry, _)| (name.as_str(), entry)).collect();
    let metadata = [
        ("base_sha256", base.hash()?),
        ("repaired_sha256", repaired.hash()?),
        ("format_version", FORMAT_VERSION.into()),
        ("tensors", serde_json::to_string(&entries)?),
    ];
    let metadata: Vec<(&str, &str)> = metadata.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let tensors = encoded.into_iter().map(|(name, _, bytes)| (name, Stored::bytes(bytes))).collect();
    checkpoint::write_tensors(path, &metadata, &tensors)
}

impl PatchFile {
    /// Errors (bad input) on what is no patch, or a truncated one.
    pub fn open(path: &Path) -> Result<Self> {
        let broken = |why: String| Fault::Input(format!("{}: no usable patch: {why}", path.display()));
        let bytes = std::fs::read(path).map_err(|e| Fault::Input(format!("{}: {e}", path.display())))?;
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| broken(e.to_string()))?;
        SafeTensors::deserialize(&bytes).map_err(|e| broken(format!("{e}; it is truncated or was changed")))?;
        let metadata = metadata.metadata().clone().unwrap_or_default();
        let get = |key: &str| metadata.get(key).cloned().ok_or_else(|| broken(format!("it has no {key:?}")));
        let version = get("format_version")?;
        if version != FORMAT_VERSION {
            bail_input!("{}: patch format {version}, this program reads {FORMAT_VERSION}", path.display());
        }
        let tensors = serde_json::from_str(&get("tensors")?).map_err(|e| broken(e.to_string()))?;
        let (base_sha256, repaired_sha256) = (get("base_sha256")?, get("repaired_sha256")?);
        Ok(Self { path: path.into(), bytes, base_sha256, repaired_sha256, tensors })
    }

    /// What it changes, and how large it is.
    pub fn summary(&self) -> Summary {
        let values = |e: &Entry| e.shape.iter().product::<usize>();
        let change = |(name, e): (&String, &Entry)| Change {
            name: name.clone(),
            norm: e.norm,
            base_norm: e.base_norm,
            values: values(e),
        };
        Summary {
            base_sha256: self.base_sha256.clone(),
            repaired_sha256: self.repaired_sha256.clone(),
            bytes: self.bytes.len() as u64,
            tensor_bytes: self.tensors.values().map(|e| (values(e) * e.dtype.bitsize() / 8) as u64).sum(),
            changes: self.tensors.iter().map(change).collect(),
        }
    }

    /// The XOR difference of a tensor.
    fn difference(&self, tensors: &SafeTensors, name: &str, entry: &Entry) -> Result<Vec<u8>> {
        let broken = |why: String| Fault::Input(format!("{}: tensor {name}: {why}", self.path.display()));
        let stored = tensors.tensor(name).map_err(|e| broken(e.to_string()))?;
        let width = entry.dtype.bitsize() / 8;
        let length = entry.shape.iter().product::<usize>() * width;
        let bytes = match entry.encoding {
            Encoding::Xor => stored.data().to_vec(),
            Encoding::XorDeflated => inflate(stored.data(), width, length).map_err(|e| broken(e.to_string()))?,
        };
        if bytes.len() != length {
            return Err(broken(format!("{} bytes for {length}", bytes.len())).into());
        }
        Ok(bytes)
    }

    /// Copies a model folder and applies the differences: from the base they give the repaired model, from the repaired
    /// one the base. Errors (bad input) if the model is neither, or (a failed check) if the result is not the other.
    pub fn apply(&self, from: &Checkpoint, direction: Direction, out: &Path) -> Result<()> {
        let (want, result) = match direction {
            Direction::Apply => (&self.base_sha256, &self.repaired_sha256),
            Direction::Revert => (&self.repaired_sha256, &self.base_sha256),
        };
        let found = from.hash()?;
        if found != *want {
            let hint = if found == *result { " (it is what the patch leads to)" } else { "" };
            bail_input!(
                "{}: its weights have sha256 {}…, {} is made for {}…{hint}",
                from.dir.display(),
                &found[..12],
                self.path.display(),
                want.get(..12).unwrap_or(want)
            );
        }
        checkpoint::copy_model(from, out)?;
        let tensors = SafeTensors::deserialize(&self.bytes).context("a patch that was read before")?;
        for (name, entry) in &self.tensors {
            let (dtype, shape) = from.dtype_and_shape(name)?;
            if (dtype, &shape) != (entry.dtype, &entry.shape) {
                bail_input!("{}: tensor {name} is {dtype:?} {shape:?} in the model", self.path.display());
            }
            let difference = self.difference(&tensors, name, entry)?;
            let (file, offset) = from.place(name)?;
            let path = out.join(file);
            let writing = || format!("writing {}", path.display());
            let mut bytes = from.bytes(name)?;
            bytes.iter_mut().zip(difference).for_each(|(a, b)| *a ^= b);
            let mut file = std::fs::File::options().write(true).open(&path).with_context(writing)?;
            file.seek(SeekFrom::Start(offset)).with_context(writing)?;
            file.write_all(&bytes).and_then(|()| file.sync_all()).with_context(writing)?;
        }
        let written = Checkpoint::open(out, "output", None)?.hash()?;
        if written != *result {
            return Err(Fault::Check(format!(
                "{}: its differences don't lead to the model that it names; it was changed or damaged, and nothing is kept",
                self.path.display()
            ))
            .into());
        }
        Ok(())
    }
}

/// Which way a patch is walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the base to the repaired model.
    Apply,
    /// Back.
    Revert,
}

/// First bytes of all values, then second ones, …, deflated.
fn deflate(bytes: &[u8], width: usize) -> Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(4));
    for place in (0..width).rev() {
        let group: Vec<u8> = bytes.iter().skip(place).step_by(width).copied().collect();
        encoder.write_all(&group)?;
    }
    Ok(encoder.finish()?)
}

/// [`deflate`] undone; never more than `length` bytes.
fn inflate(deflated: &[u8], width: usize, length: usize) -> Result<Vec<u8>> {
    let mut grouped = Vec::with_capacity(length);
    ZlibDecoder::new(deflated).take(length as u64 + 1).read_to_end(&mut grouped)?;
    anyhow::ensure!(grouped.len() == length, "{} bytes for {length}", grouped.len());
    let values = length / width;
    let mut bytes = vec![0; length];
    for (group, place) in (0..width).rev().enumerate() {
        for value in 0..values {
            bytes[value * width + place] = grouped[group * values + value];
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deflating_is_undone_exactly_and_a_bomb_is_refused() {
        let bytes: Vec<u8> = (0..4000u32).flat_map(|i| (i * i % 1000).to_le_bytes()).collect();
        let deflated = deflate(&bytes, 4).expect("deflates");
        assert!(deflated.len() < bytes.len() / 2);
        assert_eq!(inflate(&deflated, 4, bytes.len()).expect("inflates"), bytes);
        assert!(inflate(&deflated, 4, bytes.len() - 4).is_err());
        assert!(inflate(&deflated[..deflated.len() / 2], 4, bytes.len()).is_err());
    }
}
