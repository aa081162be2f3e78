//! The *output* folder: a copy of the base with the changed tensors put in place.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::Checkpoint;
use super::conversion::is_other_weights;
use super::files::BESIDE_WEIGHTS;
use super::header::{INDEX, SINGLE, read_header};
use super::mapped::{FromStored, Mapped};
use crate::bail_input;
use crate::base::error::Error;
use crate::base::files;
use crate::base::tensors::to_bytes;
use crate::model::weights::{Weights, Who};
use crate::say;

impl Checkpoint {
    /// Rounds the touched tensors to what their stored dtype can hold, so that what is measured is
    /// what is written. Errors (a failed check) if a value does not fit (f16 ends at 65,504) or is
    /// not finite.
    pub fn round(&self, weights: &mut Weights) -> Result<()> {
        let names: Vec<String> = weights.touched().map(|(n, _)| n.to_owned()).collect();
        for name in names {
            let disk = self
                .disk_name(&name)
                .with_context(|| format!("{name} is not in the base"))?
                .to_owned();
            let dtype = self.entries[&disk].dtype;
            let tensor = weights.tensor(Who::Patient, &name)?;
            let bytes = to_bytes(&tensor, dtype)?;
            let mut values = vec![0f32; tensor.elem_count()];
            f32::convert(&bytes, dtype, &mut values);
            if let Some(value) = values.iter().find(|v| !v.is_finite()) {
                return Err(Error::Check(format!(
                    "{disk} would be written with {value} in it ({dtype:?}); lower --learning-rate"
                ))
                .into());
            }
            if dtype != Dtype::F32 {
                let rounded = Tensor::from_vec(values, tensor.dims(), &Device::Cpu)?
                    .to_device(&weights.device())?;
                weights.restore(&name, rounded)?;
            }
        }
        Ok(())
    }

    /// Overwrites a tensor in a copy of this folder, at every place where it is stored. The bytes
    /// must be as many as before.
    pub fn put(&self, name: &str, bytes: &[u8], copy: &Path) -> Result<()> {
        for entry in self.stored(name) {
            let path = copy.join(&self.files[entry.file]);
            let writing = || format!("writing {}", path.display());
            let mut file = File::options().write(true).open(&path).with_context(writing)?;
            file.seek(SeekFrom::Start(entry.offset)).with_context(writing)?;
            file.write_all(bytes).and_then(|()| file.sync_all()).with_context(writing)?;
        }
        Ok(())
    }
}

/// Copies the folder of the base into `out`, which must exist, and puts the touched tensors of the
/// patient in place. Returns the names of the files left out: they hold the unrepaired weights in
/// another form.
pub fn write(base: &Checkpoint, weights: &Weights, out: &Path) -> Result<Vec<String>> {
    let left_out = copy_model(base, out)?;
    for (name, tensor) in weights.touched() {
        let disk = base.disk_name(name).with_context(|| format!("{name} is not in the base"))?;
        let bytes = to_bytes(tensor, base.entries[disk].dtype)?;
        base.put(disk, &bytes, out)?;
    }
    Ok(left_out)
}

/// Copies the folder of a model into `out`, which must exist. Returns the names of the files left
/// out: they hold the weights in another form.
pub fn copy_model(base: &Checkpoint, out: &Path) -> Result<Vec<String>> {
    base.stays_whole(out)?;
    let mut left_out = Vec::new();
    copy_folder(base, &base.dir, out, Path::new(""), &mut left_out)?;
    if base.files != [SINGLE] && !base.dir.join(INDEX).is_file() {
        // Transformers finds shards by their index alone.
        let index = serde_json::to_string_pretty(&base.index()?)?;
        files::write_whole(&out.join(INDEX), index.as_bytes())?;
    }
    left_out.sort();
    Ok(left_out)
}

impl Checkpoint {
    /// The index of its shards.
    fn index(&self) -> Result<Value> {
        let (mut shards, mut bytes) = (Map::new(), 0);
        for (index, file) in self.files.iter().enumerate() {
            let path = self.dir.join(file);
            for (name, entry) in read_header(Mapped::open(&path)?.whole(), &path, index)? {
                bytes += entry.bytes;
                shards.insert(name, file.clone().into());
            }
        }
        Ok(json!({ "metadata": { "total_size": bytes }, "weight_map": shards }))
    }

    /// Errors (bad input) if `out` is this folder or lies in it: a copy of it would then be a copy
    /// of itself, and would spoil it.
    pub fn stays_whole(&self, out: &Path) -> Result<()> {
        let Ok(dir) = self.dir.canonicalize() else { return Ok(()) };
        // What is not there yet has the place that its nearest folder has.
        let out = std::path::absolute(out).unwrap_or_else(|_| out.to_owned());
        let mut folders = out.ancestors();
        if folders.find_map(|f| f.canonicalize().ok()).is_some_and(|f| f.starts_with(&dir)) {
            bail_input!(
                "--out {} is the base itself ({}) or lies in it; choose another",
                out.display(),
                self.dir.display()
            );
        }
        Ok(())
    }

    /// Why an entry of this folder is not copied: it is a link that leads out of the folder, or no
    /// file. A model that is published must not bear what its folder only points to. Links to the
    /// blobs of the hub's cache are how it keeps files. Weights, configuration and tokenizer are
    /// followed wherever they lie: they were read as those of the model. `inside` is the entry's
    /// path in the folder.
    fn not_copied(&self, path: &Path, inside: &str) -> Result<Option<&'static str>> {
        let named = || path.display().to_string();
        let is_link = std::fs::symlink_metadata(path).with_context(named)?.is_symlink();
        let Ok(metadata) = std::fs::metadata(path) else {
            return Ok(Some("a link that leads nowhere"));
        };
        if !metadata.is_file() && (is_link || !metadata.is_dir()) {
            return Ok(Some(if metadata.is_dir() { "a link to a folder" } else { "no file" }));
        }
        let is_read = self.files.iter().any(|file| file == inside)
            || inside == INDEX
            || BESIDE_WEIGHTS.contains(&inside);
        if !is_link || is_read {
            return Ok(None);
        }
        let target = path.canonicalize().with_context(named)?;
        let inside = self.dir.canonicalize().is_ok_and(|dir| target.starts_with(dir));
        Ok((!inside && !is_blob(&target)).then_some("a link that leads out of the model folder"))
    }
}

/// Whether a path is that of a blob in the hub's cache: `models--ORG--NAME/blobs/TAG`.
fn is_blob(path: &Path) -> bool {
    let mut parts = path.components().rev().skip(1).map(|p| p.as_os_str().to_string_lossy());
    parts.next().is_some_and(|blobs| blobs == "blobs")
        && parts.next().is_some_and(|repository| repository.starts_with("models--"))
}

/// Copies a folder of the base. Hidden files (`.git`, the cache of a downloader), the model card of
/// the base, and the records of an earlier repair are no part of the model.
fn copy_folder(
    base: &Checkpoint,
    from: &Path,
    out: &Path,
    inside: &Path,
    left_out: &mut Vec<String>,
) -> Result<()> {
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let place = inside.join(&name);
        let at_top = inside.as_os_str().is_empty();
        if name.starts_with('.') || (at_top && (name == "README.md" || name == "irepair")) {
            continue;
        }
        // As an index names it, on every system.
        let parts: Vec<_> = place.iter().map(|part| part.to_string_lossy()).collect();
        let inside = parts.join("/");
        if let Some(why) = base.not_copied(&entry.path(), &inside)? {
            say!("warning: {} is not copied: {why}", entry.path().display());
            continue;
        }
        if entry.path().is_dir() {
            let folder = out.join(&place);
            std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            copy_folder(base, &entry.path(), out, &place, left_out)?;
        } else if base.files.contains(&inside) || (inside == INDEX && base.files != [SINGLE]) {
            copy(&entry.path(), &out.join(&place))?;
        } else if is_other_weights(&name) {
            left_out.push(place.display().to_string());
        } else {
            copy(&entry.path(), &out.join(&place))?;
        }
    }
    Ok(())
}

/// Copies the bytes of a file. The copy is the user's own: it has the permissions of a new file,
/// also where the base is read-only, as in the cache of the hub.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let copying = || format!("copying {} to {}", from.display(), to.display());
    let (mut source, mut copy) = (files::open(from)?, File::create(to).with_context(copying)?);
    std::io::copy(&mut source, &mut copy).with_context(copying)?;
    // The copy must be safe on disk: the state that could make it again is removed at the end.
    copy.sync_all().with_context(copying)
}
