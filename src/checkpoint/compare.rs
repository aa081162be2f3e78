//! *Changes*: what differs between two checkpoints.

use anyhow::{Result, bail};

use super::Checkpoint;
use super::mapped::{FromStored, Mapped, width};
use crate::base::error::Error;

/// A tensor that differs between two checkpoints.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Name on disk.
    pub name: String,
    /// ‖after − before‖₂ of the stored values.
    pub norm: f64,
    /// ‖before‖₂ of the stored values.
    pub base_norm: f64,
    pub values: usize,
}

impl Checkpoint {
    /// Whether the weight files have the same names and the same headers.
    pub fn is_laid_out_like(&self, other: &Self) -> Result<bool> {
        if self.files != other.files {
            return Ok(false);
        }
        for file in &self.files {
            let [own, theirs] =
                [self, other].map(|checkpoint| Mapped::open(&checkpoint.dir.join(file)));
            if header_of(own?.whole()) != header_of(theirs?.whole()) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The header of a weight file, with its length before it.
fn header_of(file: &[u8]) -> &[u8] {
    let length = file.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
    file.get(..8 + length as usize).unwrap_or(file)
}

/// Every tensor whose bytes differ, with the norm of its change. A head that is stored although it
/// is tied changes with its embedding and is not named. Errors if names, shapes or dtypes differ.
pub fn compare(base: &Checkpoint, other: &Checkpoint) -> Result<Vec<Change>> {
    if !base.entries.keys().eq(other.entries.keys()) || base.twin.is_some() != other.twin.is_some()
    {
        bail!("{} and {} don't hold the same tensors", base.dir.display(), other.dir.display());
    }
    let mut changes = Vec::new();
    for (name, entry) in &base.entries {
        let theirs = &other.entries[name];
        if (entry.dtype, &entry.shape) != (theirs.dtype, &theirs.shape) {
            bail!(
                "{name}: stored as {:?} {:?} and {:?} {:?}",
                entry.dtype,
                entry.shape,
                theirs.dtype,
                theirs.shape
            );
        }
        let (base_file, other_file) = (base.map(entry)?, other.map(theirs)?);
        if base_file.side_by_side(entry, &other_file, theirs, |a, b| a == b)? {
            continue;
        }
        let wrong = |error| Error::Input(format!("{}: tensor {name}: {error}", base.dir.display()));
        let width = width(entry.dtype).map_err(wrong)?;
        // In f64: the difference of two large values may be beyond f32.
        let (mut change, mut whole, mut values) = (0f64, 0f64, 0);
        base_file.side_by_side(entry, &other_file, theirs, |before, after| {
            let [before, after] = [before, after].map(|bytes| {
                let mut values = vec![0f32; bytes.len() / width];
                f32::convert(bytes, entry.dtype, &mut values);
                values
            });
            for (b, a) in before.iter().zip(&after) {
                change += (f64::from(*a) - f64::from(*b)).powi(2);
                whole += f64::from(*b).powi(2);
            }
            values += before.len();
            true
        })?;
        let (norm, base_norm) = (change.sqrt(), whole.sqrt());
        if !norm.is_finite() || !base_norm.is_finite() {
            let side = if base_norm.is_finite() { other } else { base };
            return Err(Error::Input(format!(
                "{}: tensor {name} holds values that are not finite",
                side.dir.display()
            ))
            .into());
        }
        changes.push(Change { name: name.clone(), norm, base_norm, values });
    }
    Ok(changes)
}
