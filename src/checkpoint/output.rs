//! The *output* folder: a copy of the base with the changed tensors put in place.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use safetensors::Dtype;

use super::Checkpoint;
use super::conversion::is_other_weights;
use super::header::{INDEX, SINGLE};
use super::mapped::FromStored;
use crate::base::error::Error;
use crate::base::tensors::to_bytes;
use crate::model::weights::{Weights, Who};

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
    let mut left_out = Vec::new();
    copy_folder(base, &base.dir, out, Path::new(""), &mut left_out)?;
    left_out.sort();
    Ok(left_out)
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
        // This follows links: the files in the cache of the hub are links to its blobs.
        let metadata =
            std::fs::metadata(entry.path()).with_context(|| entry.path().display().to_string())?;
        if name.starts_with('.') || (at_top && (name == "README.md" || name == "irepair")) {
            continue;
        }
        if metadata.is_dir() {
            let folder = out.join(&place);
            std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            copy_folder(base, &entry.path(), out, &place, left_out)?;
        } else if at_top
            && (base.files.contains(&name) || (name == INDEX && base.files != [SINGLE]))
        {
            copy(&entry.path(), &out.join(&name))?;
        } else if is_other_weights(&name) {
            left_out.push(place.display().to_string());
        } else {
            copy(&entry.path(), &out.join(&place))?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to)
        .with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    // The base may be read-only, as in the cache of the hub, but the copy is the user's own.
    let mut permissions = std::fs::metadata(to)?.permissions();
    if permissions.readonly() {
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            permissions.set_mode(permissions.mode() | 0o200);
        }
        #[cfg(not(unix))]
        permissions.set_readonly(false);
        std::fs::set_permissions(to, permissions)?;
    }
    // The copy must be safe on disk: the state that could make it again is removed at the end.
    File::options()
        .write(true)
        .open(to)?
        .sync_all()
        .with_context(|| format!("writing {}", to.display()))?;
    Ok(())
}
