//! Which *files* a path means: one file, or those of a folder in the order of their names. Of a
//! data set that was cloned from the hub these are the files of one split.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::bail_input;
use crate::base::error::Error;
use crate::base::plain::shortened;
use crate::say;

pub(super) const EXTENSIONS: [&str; 7] =
    [".jsonl", ".json", ".jsonl.gz", ".json.gz", ".csv", ".parquet", ".txt"];

/// Files of a data set that hold no rows, whatever their names end with.
const ABOUT: [&str; 5] =
    ["config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"];

/// What texts for people are called, without their ending, that lie beside the rows.
const TEXTS: [&str; 6] = ["changelog", "citation", "license", "notice", "readme", "requirements"];

/// What files of a split are called, as the library datasets knows them.
const SPLITS: &[(&str, &[&str])] = &[
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// The split that is read where none is named.
pub const TRAIN: &str = "train";

/// Whether a file's name ends like one of data, and is not hidden.
pub fn is_data(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    !name.starts_with('.') && EXTENSIONS.iter().any(|e| name.ends_with(e))
}

/// The files that a path means: `FILE`, `FOLDER` or `FOLDER:SPLIT`. Errors (bad input) if there are
/// none, or if several splits are there and none is called `train`.
pub fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_dir() {
        return files_in(path, None);
    }
    if let Some((folder, split)) = folder_and_split(path) {
        return files_in(folder, Some(split));
    }
    match std::fs::metadata(path) {
        Ok(_) => Ok(vec![path.into()]),
        Err(e) => bail_input!(
            "{}: {e}; a file, a folder, or a data set of the hub (ORG/NAME, ORG/NAME:SPLIT)",
            path.display()
        ),
    }
}

/// `FOLDER:SPLIT`, if there is such a folder and nothing is called so as a whole.
pub fn folder_and_split(path: &Path) -> Option<(&Path, &str)> {
    let (folder, split) = path.to_str()?.rsplit_once(':')?;
    let found = !path.exists() && Path::new(folder).is_dir() && !split.is_empty();
    found.then_some((Path::new(folder), split))
}

fn files_in(folder: &Path, split: Option<&str>) -> Result<Vec<PathBuf>> {
    refuse_saved(folder)?;
    let own = entries(folder, is_rows)?;
    let inner = folder.join("data");
    let files = match own.is_empty() {
        false => own,
        true if inner.is_dir() => {
            refuse_saved(&inner)?;
            entries(&inner, is_rows)?
        }
        true => Vec::new(),
    };
    let files = match files.is_empty() {
        false => files,
        true => [of_split_folders(folder)?, of_split_folders(&inner)?].concat(),
    };
    if files.is_empty() {
        bail_input!(
            "{}: no data files in this folder (looked for {}){}",
            folder.display(),
            EXTENSIONS.join(" "),
            others(folder)?
        );
    }
    one_split(folder, files, split)
}

/// What lies in a folder and `is_wanted`, in the order of the names.
fn entries(folder: &Path, is_wanted: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let wrong = |e: std::io::Error| Error::Input(format!("{}: {e}", folder.display()));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(wrong)? {
        found.push(entry.map_err(wrong)?.path());
    }
    found.retain(|path| is_wanted(path));
    found.sort();
    Ok(found)
}

fn is_rows(path: &Path) -> bool {
    let (name, stem) = (name(path), path.file_stem().unwrap_or_default().to_string_lossy());
    let about = ABOUT.contains(&name.as_str()) || TEXTS.contains(&stem.to_lowercase().as_str());
    path.is_file() && is_data(path) && !about
}

fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let hidden = |path: &Path| name(path).starts_with('.');
    entries(folder, |path| path.is_dir() && !hidden(path))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The files of folders that are called like splits: `train/0.jsonl`.
fn of_split_folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    if !folder.is_dir() {
        return Ok(files);
    }
    for inner in folders(folder)? {
        if keyword(&name(&inner)).is_some() {
            refuse_saved(&inner)?;
            files.extend(entries(&inner, is_rows)?);
        }
    }
    Ok(files)
}

/// Words about the folders in a folder that do have data files.
fn others(folder: &Path) -> Result<String> {
    let mut found = Vec::new();
    for inner in folders(folder)? {
        if entries(&inner, is_rows).is_ok_and(|files| !files.is_empty()) {
            found.push(inner.display().to_string());
        }
    }
    Ok(match found.is_empty() {
        true => String::new(),
        false => format!("; give one of {}", shortened(&found.join(", "), 400)),
    })
}

/// Errors (bad input) if the folder was written by `save_to_disk`, or holds Arrow files alone.
fn refuse_saved(folder: &Path) -> Result<()> {
    let has = |name: &str| folder.join(name).is_file();
    let arrow = entries(folder, |path| path.is_file() && name(path).ends_with(".arrow"))?;
    let display = folder.display();
    if has("dataset_dict.json") {
        bail_input!(
            "{display}: splits as save_to_disk writes them, in Arrow files, which are not read; \
             in Python: import datasets; \
             datasets.load_from_disk({:?})[\"train\"].to_parquet(\"train.parquet\")",
            folder.display().to_string()
        );
    }
    if has("state.json") && !arrow.is_empty() {
        bail_input!(
            "{display}: a data set as save_to_disk writes it, in Arrow files, which are not read; \
             in Python: import datasets; \
             datasets.load_from_disk({:?}).to_parquet(\"rows.parquet\")",
            folder.display().to_string()
        );
    }
    match arrow.first() {
        Some(file) if entries(folder, is_rows)?.is_empty() => {
            bail_input!("{}", how_to_convert_arrow(file))
        }
        _ => Ok(()),
    }
}

/// What is said of an Arrow file.
pub fn how_to_convert_arrow(file: &Path) -> String {
    format!(
        "{}: an Arrow file, which is not read; in Python: import datasets; \
         datasets.Dataset.from_file({:?}).to_parquet(\"rows.parquet\")",
        file.display(),
        file.display().to_string()
    )
}

/// The files of one split: the named one, or `train` where there are several. What was taken is
/// said.
fn one_split(folder: &Path, files: Vec<PathBuf>, wanted: Option<&str>) -> Result<Vec<PathBuf>> {
    let named = |file: &PathBuf| split_of(file.strip_prefix(folder).unwrap_or(file));
    let any = files.iter().any(|file| named(file).is_some());
    // Beside files of a split, the others are those to learn from.
    let of = |file: &PathBuf| named(file).or_else(|| any.then(|| TRAIN.to_owned()));
    let splits: BTreeSet<String> = files.iter().filter_map(of).collect();
    let have = || splits.iter().cloned().collect::<Vec<_>>().join(", ");
    let folder = folder.display();
    let split = match wanted {
        Some(split) if splits.contains(split) => split,
        Some(split) if splits.is_empty() => {
            bail_input!("{folder}: no split {split:?}: no file's name has one")
        }
        Some(split) => bail_input!("{folder}: no split {split:?} (it has: {})", have()),
        None if splits.len() < 2 => return Ok(files),
        None if splits.contains(TRAIN) => {
            say!(
                "{folder}: only the split {TRAIN} is read (it has: {}); {folder}:SPLIT names \
                 another",
                have()
            );
            TRAIN
        }
        None => bail_input!(
            "{folder}: several splits, none of them called {TRAIN}; give {folder}:SPLIT (it has: \
             {})",
            have()
        ),
    };
    Ok(files.into_iter().filter(|file| of(file).as_deref() == Some(split)).collect())
}

/// The split that a file of a data set belongs to, by its path there. In `data/` any name may stand
/// before the number of a shard; elsewhere a split is known by a word in a name.
fn split_of(inside: &Path) -> Option<String> {
    let file = name(inside);
    let in_data = inside.parent().is_some_and(|parent| parent == Path::new("data"));
    let shard = file.split_once("-of-").and_then(|(begin, _)| begin.rsplit_once('-'));
    if let Some((split, _)) = shard.filter(|(_, number)| in_data && is_number(number)) {
        return Some(split.to_owned());
    }
    let parts = inside.components().rev().map(|part| part.as_os_str().to_string_lossy());
    parts.into_iter().find_map(|part| keyword(&part)).map(str::to_owned)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// The split that a name has a word of: `valid` of `my-valid-01.jsonl` means validation.
fn keyword(name: &str) -> Option<&'static str> {
    let lower = name.to_lowercase();
    let words = lower.split(|c: char| "-._ ".contains(c) || c.is_ascii_digit());
    words.into_iter().find_map(|word| {
        SPLITS.iter().find(|(_, words)| words.contains(&word)).map(|(split, _)| *split)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_are_known_by_names() {
        for (path, split) in [
            ("data/train-00000-of-00002.parquet", Some("train")),
            ("data/train_prefs-00000-of-00001.parquet", Some("train_prefs")),
            ("data/test.parquet", Some("test")),
            ("my-valid-01.jsonl", Some("validation")),
            ("training.csv", Some("train")),
            ("dev/0.jsonl", Some("validation")),
            ("toxic-00000-of-00002.jsonl", None),
            ("contest.jsonl", None),
            ("pairs.jsonl", None),
        ] {
            assert_eq!(split_of(Path::new(path)).as_deref(), split, "{path}");
        }
    }
}
