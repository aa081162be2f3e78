//! *Changes*: what differs between two checkpoints.

use anyhow::{Result, bail};

use super::Checkpoint;
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
        if base_file.bytes(entry)? == other_file.bytes(theirs)? {
            continue;
        }
        let wrong = |error| Error::Input(format!("{}: tensor {name}: {error}", base.dir.display()));
        let before = base_file.values::<f32>(entry).map_err(wrong)?;
        let after = other_file.values::<f32>(theirs).map_err(wrong)?;
        // In f64: the difference of two large values may be beyond f32.
        let change = |(b, a): (&f32, &f32)| f64::from(*a) - f64::from(*b);
        let norm = before.iter().zip(&after).map(change).map(|d| d * d).sum::<f64>().sqrt();
        let base_norm = before.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>().sqrt();
        if !norm.is_finite() || !base_norm.is_finite() {
            let side = if base_norm.is_finite() { other } else { base };
            return Err(Error::Input(format!(
                "{}: tensor {name} holds values that are not finite",
                side.dir.display()
            ))
            .into());
        }
        changes.push(Change { name: name.clone(), norm, base_norm, values: before.len() });
    }
    Ok(changes)
}
