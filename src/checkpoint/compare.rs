//! What differs between two checkpoints.

use anyhow::{Result, bail};

use super::Checkpoint;
use super::header::Entry;
use super::mapped::Mapped;

/// A tensor that differs between two checkpoints.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Name on disk.
    pub name: String,
    /// ‖after − before‖₂ and ‖before‖₂ of the stored values.
    pub norm: f64,
    pub base_norm: f64,
    pub values: usize,
}

/// Every tensor whose bytes differ, and the norm of its change; a tied head that is stored changes with its embedding
/// and is not named. Errors if names, shapes or dtypes differ.
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
        if base.bytes(name)? == other.bytes(name)? {
            continue;
        }
        let read = |c: &Checkpoint, e: &Entry| {
            Mapped::open(&c.dir.join(&c.files[e.file]))?.values::<f32>(e)
        };
        let (before, after) = (read(base, entry)?, read(other, theirs)?);
        let norm =
            before.iter().zip(&after).map(|(b, a)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
        let base_norm = before.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>().sqrt();
        changes.push(Change { name: name.clone(), norm, base_norm, values: before.len() });
    }
    Ok(changes)
}
