//! *Data sets* of the hub by name: `ORG/NAME`, `ORG/NAME:SPLIT` or `ORG/NAME:CONFIG/SPLIT`. Their
//! rows come from the branch of Parquet files that the hub makes of every data set.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::cache::{Commit, Kept};
use super::{Files, Hub, Repository, files_under, is_hub_id, is_true};
use crate::bail_input;
use crate::base::error::Error;
use crate::data::{self, TRAIN};
use crate::say;

/// The branch of a data set that holds its rows as `CONFIG/SPLIT/0000.parquet`.
const BRANCH: &str = "refs/convert/parquet";
/// The variable of the library datasets that counts for data sets as `HF_HUB_OFFLINE` does.
pub const OFFLINE: &str = "HF_DATASETS_OFFLINE";
/// The configuration that is taken where several have the split.
const DEFAULT: &str = "default";
/// How a split's folder begins that holds only the first rows of a large one.
const PARTIAL: &str = "partial-";

/// The path where the rows lie that the user means: the given one, or, if nothing lies there and it
/// names a data set of the hub, the folder of its files in the cache. They are downloaded if the
/// cache lacks them. Errors (hub) if they can't be, or (bad input) if there is no such split.
pub fn rows_path(path: &Path) -> Result<PathBuf> {
    let text = path.to_string_lossy();
    let (id, wanted) = match text.split_once(':') {
        Some((id, wanted)) => (id, Some(wanted)),
        None => (&*text, None),
    };
    let here = path.exists() || data::folder_and_split(path).is_some();
    if here || !is_hub_id(id) || data::is_data(Path::new(id)) {
        return Ok(path.into());
    }
    Hub::from_env()?.split(id, wanted)
}

/// The commit of a data set whose rows lie at a path that [`rows_path`] gave.
pub fn commit_of(rows: &Path) -> Option<String> {
    let parts: Vec<_> = rows.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    let of_hub = |parts: &&[std::borrow::Cow<str>]| {
        parts[0].starts_with("datasets--") && parts[1] == "snapshots"
    };
    let commit = Commit::new(&parts.windows(3).find(of_hub)?[2])?;
    Some(commit.as_str().to_owned())
}

/// Where the files of a split lie in the branch: `CONFIG/SPLIT`.
type Place = String;

/// The place that the user means among those that there are.
fn choose(id: &str, names: &[String], wanted: Option<&str>) -> Result<Place> {
    let place = |name: &String| match name.split('/').collect::<Vec<_>>().as_slice() {
        [config, split, file] if file.ends_with(".parquet") => Some(format!("{config}/{split}")),
        _ => None,
    };
    let places: BTreeSet<Place> = names.iter().filter_map(place).collect();
    let parts = |place: &Place| -> (String, String) {
        let (config, split) = place.split_once('/').unwrap_or_default();
        (config.to_owned(), split.strip_prefix(PARTIAL).unwrap_or(split).to_owned())
    };
    let fits = |place: &Place| {
        let (config, split) = parts(place);
        match wanted {
            Some(wanted) => {
                wanted == split || wanted == format!("{config}/{split}") || wanted == place
            }
            None => split == TRAIN || places.len() == 1,
        }
    };
    let found: Vec<&Place> = places.iter().filter(|place| fits(place)).collect();
    let default = found.iter().find(|place| parts(place).0 == DEFAULT);
    let have = || places.iter().map(|p| format!("{id}:{p}")).collect::<Vec<_>>().join(", ");
    let place = match (found.as_slice(), default) {
        ([only], _) | (_, Some(only)) => (*only).clone(),
        ([], None) => {
            let split = wanted.unwrap_or(TRAIN);
            bail_input!("the data set {id} has no split {split:?}; it has: {}", have())
        }
        _ => bail_input!("the data set {id} has several of that name; give one of: {}", have()),
    };
    if wanted.is_none() && places.len() > 1 {
        say!("{id}: the split {place} is read; it has: {}", have());
    }
    if place.contains(&format!("/{PARTIAL}")) {
        say!("warning: {id}: the hub has only the first rows of {place} as Parquet");
    }
    Ok(place)
}

impl Hub {
    /// The folder in the cache that holds the files of a split.
    fn split(&self, id: &str, wanted: Option<&str>) -> Result<PathBuf> {
        let repo = Repository { kind: "datasets", id, revision: BRANCH };
        let kept = Kept::new(&self.cache, repo.kind, id);
        if self.offline || is_true(OFFLINE) {
            let set = if self.offline { "HF_HUB_OFFLINE" } else { OFFLINE };
            let snapshot = kept.commit(BRANCH).map(|commit| kept.snapshot(&commit));
            let names = snapshot.as_deref().map_or(Vec::new(), |dir| files_under(dir, ""));
            let missing = |what: &str| {
                Error::Hub(format!(
                    "{what} of the data set {id} is not in the cache (looked in {}), and \
                     {set} is set; unset it, or give a file or a folder{}",
                    snapshot.as_deref().unwrap_or(&self.cache).display(),
                    self.in_cache(repo.kind, id)
                ))
            };
            let place = match choose(id, &names, wanted) {
                Ok(place) => place,
                Err(_) => {
                    let split = format!("the split {:?}", wanted.unwrap_or(TRAIN));
                    return Err(missing(&split).into());
                }
            };
            let dir = snapshot.as_deref().unwrap_or(&self.cache).join(&place);
            return match is_whole(&names, &place) {
                true => Ok(dir),
                false => Err(missing(&format!("a part of {place}")).into()),
            };
        }
        let client = self.client()?;
        let Files { commit, names } = self.list(&client, &repo).map_err(|error| {
            error.context(format!(
                "the data set {id}: neither a file or folder here, nor Parquet files of it on the \
                 hub; of a data set without them download the files: \
                 hf download --repo-type dataset {id} --local-dir DIR, then give DIR"
            ))
        })?;
        let place = choose(id, &names, wanted)?;
        let begin = format!("{place}/");
        // The last first: where the first is in the cache, all are.
        for name in names.iter().rev().filter(|name| name.starts_with(&begin)) {
            self.fetch(&client, &repo, &commit, name)?;
        }
        kept.remember(BRANCH, &commit)?;
        say!("data: {id}:{place} at commit {}", commit.as_str());
        Ok(kept.snapshot(&commit).join(place))
    }
}

/// Whether the files of a split are there from the first on: the hub numbers them from 0.
fn is_whole(names: &[String], place: &str) -> bool {
    let begin = format!("{place}/");
    let numbers: BTreeSet<usize> = names
        .iter()
        .filter_map(|name| name.strip_prefix(&begin)?.strip_suffix(".parquet")?.parse().ok())
        .collect();
    !numbers.is_empty() && numbers.iter().copied().eq(0..numbers.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_split_that_is_meant() {
        let names = |places: &[&str]| -> Vec<String> {
            places.iter().map(|place| format!("{place}/0000.parquet")).collect()
        };
        let one = names(&["default/train", "default/test"]);
        let two = names(&["en/train", "de/train", "de/partial-test"]);
        for (names, wanted, place) in [
            (&one, None, "default/train"),
            (&one, Some("test"), "default/test"),
            (&two, Some("de/train"), "de/train"),
            (&two, Some("test"), "de/partial-test"),
            (&names(&["default/all"]), None, "default/all"),
            (&names(&["de/train", "default/train"]), None, "default/train"),
        ] {
            assert_eq!(choose("org/rows", names, wanted).expect(place), place);
        }
        for (names, wanted, words) in [
            (&two, None, "several of that name; give one of: org/rows:de/partial-test, org"),
            (&one, Some("valid"), "no split \"valid\"; it has: org/rows:default/test, org/rows"),
            (&names(&["d/train_sft", "d/train_prefs"]), None, "no split \"train\""),
        ] {
            let error = choose("org/rows", names, wanted).expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!(
            is_whole(&names(&["a/b"]), "a/b") && !is_whole(&["a/b/0001.parquet".into()], "a/b")
        );
    }
}
