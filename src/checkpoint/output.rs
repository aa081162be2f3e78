//! The output folder: a copy of the base with the changed tensors put in place.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};

use super::conversion::is_other_weights;
use super::{Checkpoint, INDEX, SINGLE};
use crate::base::tensors::to_bytes;
use crate::model::weights::Weights;

/// Copies the base's folder into `out` (which must exist) and puts the patient's touched tensors in place. Returns the
/// names of files left out because they hold the unrepaired weights in another form.
pub fn write(base: &Checkpoint, weights: &Weights, out: &Path) -> Result<Vec<String>> {
    let left_out = copy_model(base, out)?;
    for (name, tensor) in weights.touched() {
        let disk = base.disk_name(name).with_context(|| format!("{name} is not in the base"))?;
        let bytes = to_bytes(tensor, base.entries[disk].dtype)?;
        base.put(disk, &bytes, out)?;
    }
    Ok(left_out)
}

/// Copies a model's folder into `out`, which must exist. Returns the names of files left out because they hold the
/// weights in another form.
pub fn copy_model(base: &Checkpoint, out: &Path) -> Result<Vec<String>> {
    let mut left_out = Vec::new();
    copy_folder(base, &base.dir, out, Path::new(""), &mut left_out)?;
    left_out.sort();
    Ok(left_out)
}

/// Copies a folder of the base. Hidden files (`.git`, a downloader's cache), the base's model card, and an earlier
/// repair's records are not part of the model.
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
        // Follows links: a hub cache's files are links to its blobs.
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
    // The base may be read-only (a hub cache); the copy is the user's own.
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
    // On disk before anyone relies on it: the state that could make it again is removed at the end.
    File::options()
        .write(true)
        .open(to)?
        .sync_all()
        .with_context(|| format!("writing {}", to.display()))?;
    Ok(())
}
