//! A *patch* is what a repair changed: for every touched tensor, the bitwise difference (XOR) of
//! its stored values. So it leads from the base to the repaired model and back, exactly.
//!
//! The file is a safetensors file. If only some rows or columns of a matrix changed, only these are
//! stored. The bytes of a difference are grouped by their place in a value and deflated; the group
//! with sign and exponent comes first, because it hardly ever changes. Where that is not smaller,
//! the bytes are stored as they are. The metadata holds the hashes of both models, what each tensor
//! is, and a hash of all that and of the stored bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use rayon::prelude::*;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::deflate::{deflate, inflate};
pub use super::lines::RowsOrColumns;
use super::mapped::Mapped;
use super::{Change, Checkpoint};
use crate::bail_input;
use crate::base::error::Error;
use crate::base::files;
use crate::base::tensors;
use crate::base::tensors::{Aside, Stored};
use crate::checkpoint;

const FORMAT_VERSION: &str = "1";
/// Where a patch says the hash of what it holds; by this key it is known as one.
const CONTENT_HASH: &str = "content_sha256";

/// How a difference is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// XOR of the values' bytes.
    Xor,
    /// The same bytes, grouped by their place in a value and deflated (zlib).
    XorDeflated,
}

/// What a patch says about a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorPatch {
    pub dtype: safetensors::Dtype,
    pub shape: Vec<usize>,
    pub encoding: Encoding,
    /// Which rows or columns are stored, if all others are equal to those of the base. They are the
    /// neurons of a neuron-level repair.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lines: Option<RowsOrColumns>,
    /// ‖after − before‖₂.
    pub norm: f64,
    /// ‖before‖₂.
    pub base_norm: f64,
}

impl TensorPatch {
    /// Why it can't be a tensor of floats, if it can't.
    fn check(&self) -> std::result::Result<(), String> {
        use safetensors::Dtype::{BF16, F16, F32};
        if ![F32, F16, BF16].contains(&self.dtype) {
            return Err(format!("stored as {:?}; have: F32, F16, BF16", self.dtype));
        }
        let values = self.shape.iter().try_fold(4usize, |all, n| all.checked_mul(*n));
        if values.is_none() {
            return Err(format!("no tensor has the shape {:?}", self.shape));
        }
        let lines = self.lines.as_ref().is_none_or(|lines| {
            let last = lines.indices.last();
            lines.axis < 2
                && self.shape.len() == 2
                && lines.indices.windows(2).all(|pair| pair[0] < pair[1])
                && last.is_none_or(|last| *last < self.shape[lines.axis])
        });
        match lines && [self.norm, self.base_norm].iter().all(|n| n.is_finite() && *n >= 0.0) {
            true => Ok(()),
            false => Err("its rows, columns or norms can't be".into()),
        }
    }
}

/// A patch that was opened and checked.
pub struct PatchFile {
    path: PathBuf,
    bytes: Vec<u8>,
    /// The [`Checkpoint::hash`] of the base.
    pub base_sha256: String,
    pub repaired_sha256: String,
    /// Every changed tensor by its name on disk.
    pub tensors: BTreeMap<String, TensorPatch>,
}

/// What `patch show` tells.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    pub base_sha256: String,
    pub repaired_sha256: String,
    /// Size of the patch file.
    pub bytes: u64,
    /// Size of the changed tensors in the model.
    pub tensor_bytes: u64,
    pub changes: Vec<Change>,
    /// The changed rows or columns, for the matrices that changed in part.
    pub lines: BTreeMap<String, RowsOrColumns>,
}

/// Writes the patch that leads from `base` to `repaired`. Errors if their tensors differ in name,
/// shape or dtype, if all values are equal, or if their files are not laid out alike.
pub fn diff(base: &Checkpoint, repaired: &Checkpoint, path: &Path) -> Result<()> {
    let changes = checkpoint::compare(base, repaired)?;
    if !base.is_laid_out_like(repaired)? {
        bail_input!(
            "{} and {} hold the same tensors in files that are laid out otherwise (shards, order \
             or metadata), and a patch leads to the very bytes of a model; write the second one as \
             the first is written",
            base.dir.display(),
            repaired.dir.display()
        );
    }
    if changes.is_empty() {
        return Err(Error::Check(format!(
            "{} and {} are equal: there is no patch",
            base.name, repaired.name
        ))
        .into());
    }
    write(base, repaired, &changes, path)
}

/// Like [`diff`], where the changes are already known.
pub fn write(
    base: &Checkpoint,
    repaired: &Checkpoint,
    changes: &[Change],
    path: &Path,
) -> Result<()> {
    // A few at a time, and put aside: all differences together may be as large as the model.
    let writing = || format!("writing {}", path.display());
    let file = tempfile::tempfile_in(files::folder_of(&files::writes_to(path)?));
    let file = Arc::new(Mutex::new(file.with_context(writing)?));
    let (mut entries, mut stored) = (BTreeMap::new(), BTreeMap::new());
    let size = |change: &Change| {
        base.dtype_and_shape(&change.name)
            .map(|(dtype, shape)| shape.iter().product::<usize>() * dtype.bitsize() / 8)
    };
    let sizes = changes.iter().map(size).collect::<Result<Vec<usize>>>()?;
    for few in together(&sizes, TOGETHER * rayon::current_num_threads()) {
        let few = &changes[few];
        let encoded = few.par_iter().map(|change| encode(base, repaired, change));
        for (change, encoded) in few.iter().zip(encoded.collect::<Result<Vec<_>>>()?) {
            let (entry, bytes) = encoded;
            entries.insert(change.name.as_str(), entry);
            stored.insert(
                change.name.clone(),
                Stored::aside(Aside::put(&file, &bytes).with_context(writing)?),
            );
        }
    }
    let (base_sha256, repaired_sha256, entries) =
        (base.hash()?, repaired.hash()?, serde_json::to_string(&entries)?);
    let data = stored.iter().map(|(name, stored)| Ok((name.as_str(), stored.to_bytes()?)));
    let metadata = [
        (
            CONTENT_HASH,
            content_hash([&base_sha256, &repaired_sha256, &entries], data).with_context(writing)?,
        ),
        ("base_sha256", base_sha256),
        ("repaired_sha256", repaired_sha256),
        ("format_version", FORMAT_VERSION.into()),
        ("tensors", entries),
    ];
    let metadata: Vec<(&str, &str)> = metadata.iter().map(|(k, v)| (*k, v.as_str())).collect();
    tensors::write_tensors(path, &metadata, &stored)
}

/// Bytes of tensors that are encoded at a time for each thread, if no single one is larger.
const TOGETHER: usize = 32 << 20;

/// Runs of tensors of these sizes: as many as make at most so many bytes, and at least one.
fn together(sizes: &[usize], most: usize) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut bytes = 0;
    for (index, size) in sizes.iter().enumerate() {
        bytes += size;
        match runs.last_mut() {
            Some(run) if bytes <= most => run.end += 1,
            _ => {
                runs.push(index..index + 1);
                bytes = *size;
            }
        }
    }
    runs
}

/// What a patch says of a tensor, and what it stores of it.
fn encode(
    base: &Checkpoint,
    repaired: &Checkpoint,
    change: &Change,
) -> Result<(TensorPatch, Vec<u8>)> {
    let (dtype, shape) = base.dtype_and_shape(&change.name)?;
    let mut difference = base.bytes(&change.name)?;
    difference.iter_mut().zip(repaired.bytes(&change.name)?).for_each(|(a, b)| *a ^= b);
    let width = dtype.bitsize() / 8;
    let lines = RowsOrColumns::of(&difference, &shape, width);
    if let Some(places) = lines.as_ref().and_then(|lines| lines.places(&shape, width)) {
        difference = places.into_iter().flat_map(|place| difference[place].to_vec()).collect();
    }
    let deflated = deflate(&difference, width)?;
    let (encoding, bytes) = match deflated.len() < difference.len() {
        true => (Encoding::XorDeflated, deflated),
        false => (Encoding::Xor, difference),
    };
    let (norm, base_norm) = (change.norm, change.base_norm);
    Ok((TensorPatch { dtype, shape, encoding, lines, norm, base_norm }, bytes))
}

/// Whether a file says in its header that it is a patch, in whatever state the rest of it is.
pub fn is_patch(path: &Path) -> bool {
    Mapped::open(path).is_ok_and(|file| {
        let header = SafeTensors::read_metadata(file.whole());
        header.is_ok_and(|(_, metadata)| {
            let keys = metadata.metadata().as_ref();
            keys.is_some_and(|keys| keys.contains_key(CONTENT_HASH))
        })
    })
}

/// SHA-256 of texts of the metadata, then of the name and the stored bytes of each tensor. The
/// length of every part comes before it.
fn content_hash<'a>(
    texts: [&str; 3],
    data: impl Iterator<Item = Result<(&'a str, Cow<'a, [u8]>)>>,
) -> Result<String> {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    texts.into_iter().for_each(|text| part(text.as_bytes()));
    for named in data {
        let (name, bytes) = named?;
        part(name.as_bytes());
        part(&bytes);
    }
    Ok(files::hex(&hash.finalize()))
}

impl PatchFile {
    /// Opens and checks a patch. Errors (bad input) if the file is not a patch, is truncated, or
    /// was changed.
    pub fn open(path: &Path) -> Result<Self> {
        let broken =
            |why: String| Error::Input(format!("{}: not a usable patch: {why}", path.display()));
        let bytes = files::read(path)?;
        let (_, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|e| broken(e.to_string()))?;
        let stored = SafeTensors::deserialize(&bytes)
            .map_err(|e| broken(format!("{e}; it is truncated or was changed")))?;
        let metadata = metadata.metadata().clone().unwrap_or_default();
        let get = |key: &str| {
            metadata.get(key).cloned().ok_or_else(|| broken(format!("it has no {key:?}")))
        };
        let version = get("format_version")?;
        if version != FORMAT_VERSION {
            bail_input!(
                "{}: patch format {version}, this program reads {FORMAT_VERSION}; make it again: \
                 irepair patch diff BASE REPAIRED --out FILE",
                path.display()
            );
        }
        let (base_sha256, repaired_sha256, entries) =
            (get("base_sha256")?, get("repaired_sha256")?, get("tensors")?);
        let views = stored.tensors();
        let data: BTreeMap<&str, &[u8]> =
            views.iter().map(|(name, view)| (name.as_str(), view.data())).collect();
        let data = data.into_iter().map(|(name, bytes)| Ok((name, bytes.into())));
        let hash = content_hash([&base_sha256, &repaired_sha256, &entries], data)?;
        if hash != get(CONTENT_HASH)? {
            let why = "its content does not fit its hash; it was changed or damaged";
            return Err(broken(why.into()).into());
        }
        let tensors: BTreeMap<String, TensorPatch> =
            serde_json::from_str(&entries).map_err(|e| broken(e.to_string()))?;
        for (name, entry) in &tensors {
            entry.check().map_err(|why| broken(format!("tensor {name}: {why}")))?;
        }
        Ok(Self { path: path.into(), bytes, base_sha256, repaired_sha256, tensors })
    }

    /// What the patch changes, and how large it is.
    pub fn summary(&self) -> Summary {
        let values = |e: &TensorPatch| e.shape.iter().product::<usize>();
        let change = |(name, e): (&String, &TensorPatch)| Change {
            name: name.clone(),
            norm: e.norm,
            base_norm: e.base_norm,
            values: values(e),
        };
        Summary {
            base_sha256: self.base_sha256.clone(),
            repaired_sha256: self.repaired_sha256.clone(),
            bytes: self.bytes.len() as u64,
            tensor_bytes: self
                .tensors
                .values()
                .map(|e| (values(e) * e.dtype.bitsize() / 8) as u64)
                .sum(),
            changes: self.tensors.iter().map(change).collect(),
            lines: self
                .tensors
                .iter()
                .filter_map(|(name, e)| Some((name.clone(), e.lines.clone()?)))
                .collect(),
        }
    }

    /// The XOR difference of a tensor.
    fn difference(
        &self,
        tensors: &SafeTensors,
        name: &str,
        entry: &TensorPatch,
    ) -> Result<Vec<u8>> {
        let broken =
            |why: String| Error::Input(format!("{}: tensor {name}: {why}", self.path.display()));
        let stored = tensors.tensor(name).map_err(|e| broken(e.to_string()))?;
        let width = entry.dtype.bitsize() / 8;
        let whole = entry.shape.iter().product::<usize>() * width;
        let places = match &entry.lines {
            None => None,
            Some(lines) => {
                let fit = lines.places(&entry.shape, width);
                Some(fit.ok_or_else(|| {
                    broken(format!("a matrix of {:?} has no such rows or columns", entry.shape))
                })?)
            }
        };
        let length =
            places.as_ref().map_or(whole, |places| places.iter().map(ExactSizeIterator::len).sum());
        let bytes = match entry.encoding {
            Encoding::Xor => stored.data().to_vec(),
            Encoding::XorDeflated => {
                inflate(stored.data(), width, length).map_err(|e| broken(e.to_string()))?
            }
        };
        if bytes.len() != length {
            return Err(broken(format!("{} bytes for {length}", bytes.len())).into());
        }
        let Some(places) = places else { return Ok(bytes) };
        let mut difference = vec![0; whole];
        let mut rest = bytes.as_slice();
        for place in places {
            let (own, others) = rest.split_at(place.len());
            difference[place].copy_from_slice(own);
            rest = others;
        }
        Ok(difference)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Errors (bad input) if the patch was made for another base.
    pub fn is_for(&self, base: &Checkpoint) -> Result<()> {
        let found = base.hash()?;
        if self.base_sha256 != found {
            bail_input!(
                "{}: is made for a base with sha256 {}…, and the weights of {} have {}…",
                self.path.display(),
                self.base_sha256.get(..12).unwrap_or(&self.base_sha256),
                base.dir.display(),
                &found[..12]
            );
        }
        Ok(())
    }

    /// The stored bytes of a tensor in the repaired model. Errors (bad input) if the base's tensor
    /// is another one.
    pub fn repaired(&self, base: &Checkpoint, name: &str) -> Result<Vec<u8>> {
        let tensors =
            SafeTensors::deserialize(&self.bytes).context("a patch that was read before")?;
        let entry = self.tensors.get(name).with_context(|| format!("no tensor {name}"))?;
        self.changed(base, &tensors, name, entry)
    }

    /// The bytes that a tensor of one side has on the other side.
    fn changed(
        &self,
        from: &Checkpoint,
        tensors: &SafeTensors,
        name: &str,
        entry: &TensorPatch,
    ) -> Result<Vec<u8>> {
        let found = from.dtype_and_shape(name);
        let (dtype, shape) = found
            .map_err(|e| Error::Input(format!("{}: {e} in the model", self.path.display())))?;
        if (dtype, &shape) != (entry.dtype, &entry.shape) {
            bail_input!(
                "{}: tensor {name} is {dtype:?} {shape:?} in the model, {:?} {:?} in the patch",
                self.path.display(),
                entry.dtype,
                entry.shape
            );
        }
        let difference = self.difference(tensors, name, entry)?;
        let mut bytes = from.bytes(name)?;
        bytes.iter_mut().zip(difference).for_each(|(a, b)| *a ^= b);
        Ok(bytes)
    }

    /// Copies a model folder and applies the differences: the base becomes the repaired model, or
    /// the repaired model the base. Errors (bad input) if the model is not the one to start from,
    /// or (a failed check) if the result is not the other one.
    pub fn apply(&self, from: &Checkpoint, direction: Direction, out: &Path) -> Result<()> {
        let (want, result) = match direction {
            Direction::Apply => (&self.base_sha256, &self.repaired_sha256),
            Direction::Revert => (&self.repaired_sha256, &self.base_sha256),
        };
        let found = from.hash()?;
        if found != *want {
            let hint = if found == *result { " (it is what the patch leads to)" } else { "" };
            bail_input!(
                "{}: its weights have sha256 {}…, but {} is made for {}…{hint}",
                from.dir.display(),
                &found[..12],
                self.path.display(),
                want.get(..12).unwrap_or(want)
            );
        }
        checkpoint::copy_model(from, out)?;
        let tensors =
            SafeTensors::deserialize(&self.bytes).context("a patch that was read before")?;
        for (name, entry) in &self.tensors {
            let bytes = self.changed(from, &tensors, name, entry)?;
            from.put(name, &bytes, out)?;
        }
        let written = Checkpoint::open(out, "output", None)?.hash()?;
        if written != *result {
            return Err(Error::Check(format!(
                "{}: its differences don't lead to the model that it names; it was changed or \
                 damaged, and nothing is kept",
                self.path.display()
            ))
            .into());
        }
        Ok(())
    }
}

/// The direction in which a patch is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the base to the repaired model.
    Apply,
    /// From the repaired model to the base.
    Revert,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_encoded_in_runs_that_fit() {
        assert_eq!(together(&[3, 4, 5, 20, 1, 9, 1], 10), [0..2, 2..3, 3..4, 4..6, 6..7]);
        assert_eq!(together(&[], 10), Vec::<Range<usize>>::new());
    }

    /// What was put aside is read where it was put, in any order.
    #[test]
    fn bytes_put_aside_come_back() {
        let file = Arc::new(Mutex::new(tempfile::tempfile().expect("a file")));
        let put = |bytes: &[u8]| Stored::aside(Aside::put(&file, bytes).expect("written"));
        let (first, none, last) = (put(b"first"), put(b""), put(b"last one"));
        let read = |stored: &Stored| stored.to_bytes().expect("read").into_owned();
        assert_eq!(read(&last), b"last one");
        assert_eq!((read(&first), read(&none)), (b"first".to_vec(), Vec::new()));
    }
}
