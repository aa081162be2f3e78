//! The *cache* keeps files of the hub as huggingface_hub does: `blobs` by their tags, `snapshots`
//! of links to them by commit, and `refs` from a branch to a commit.
//!
//! A server names commits, tags and files. Each becomes a part of a path only in a type that leads
//! nowhere else.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::client::{Client, Told, encoded};
use crate::base::error::Error;
use crate::base::files;

/// A commit: 40 hexadecimal digits, or 64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit(String);

impl Commit {
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        let is_hash = [40, 64].contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        is_hash.then(|| Self(text.to_lowercase()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The tag of what a file holds.
struct Tag(String);

impl Tag {
    fn new(text: &str) -> Option<Self> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let is_tag = (1..=128).contains(&text.len())
            && text.chars().all(plain)
            && !text.starts_with('.')
            && ![".lock", ".incomplete"].iter().any(|end| text.ends_with(end));
        is_tag.then(|| Self(text.into()))
    }

    /// The SHA-256 of the file, if the tag is one.
    fn sha256(&self) -> Option<&str> {
        (self.0.len() == 64 && self.0.bytes().all(|b| b.is_ascii_hexdigit())).then_some(&self.0)
    }
}

/// Whether this path of a repository stays inside its folder.
pub fn is_inside(path: &str) -> bool {
    path.split('/').all(files::is_plain)
}

/// The ids of the repositories of a kind in the cache, in order.
pub fn ids(cache: &Path, kind: &str) -> Vec<String> {
    let begin = format!("{kind}--");
    let id = |entry: std::fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        Some(name.strip_prefix(&begin)?.replacen("--", "/", 1))
    };
    let entries = std::fs::read_dir(cache).into_iter().flatten().flatten();
    let mut found: Vec<String> = entries.filter_map(id).collect();
    found.sort();
    found
}

/// What the cache has of one repository.
pub struct Kept(PathBuf);

impl Kept {
    /// `kind` is `models` or `datasets`.
    pub fn new(cache: &Path, kind: &str, id: &str) -> Self {
        Self(cache.join(format!("{kind}--{}", id.replace('/', "--"))))
    }

    /// The commit of a revision, which may be a commit itself.
    pub fn commit(&self, revision: &str) -> Option<Commit> {
        let path = self.0.join("refs").join(revision);
        let known = is_inside(revision).then(|| files::read_text(&path).ok()).flatten();
        Commit::new(known.as_deref().unwrap_or(revision))
    }

    /// The folder of a commit's files.
    pub fn snapshot(&self, commit: &Commit) -> PathBuf {
        self.0.join("snapshots").join(&commit.0)
    }

    /// Remembers which commit a revision is.
    pub fn remember(&self, revision: &str, commit: &Commit) -> Result<()> {
        if !is_inside(revision) || Commit::new(revision).is_some() {
            return Ok(());
        }
        let path = self.0.join("refs").join(revision);
        make_folder(path.parent())?;
        files::write_whole(&path, commit.0.as_bytes())
    }

    /// Downloads a file of a commit, unless the cache has it. Errors are words that don't name it.
    pub fn fetch(
        &self,
        client: &Client,
        commit: &Commit,
        name: &str,
        address: &str,
    ) -> Result<PathBuf> {
        let place = self.snapshot(commit).join(name);
        if place.exists() {
            return Ok(place);
        }
        let url = format!("{address}/{}", encoded(name, b"/"));
        let Told { commit: of, tag, bytes } = client.told(&url).map_err(refused)?;
        if let Some(of) = of
            && Commit::new(&of).as_ref() != Some(commit)
        {
            return Err(wrong(format!(
                "it belongs to commit {of:?}, the list of files to {}; run the command again",
                commit.0
            )));
        }
        let Some(tag) = Tag::new(&tag) else {
            return Err(wrong(format!("{tag:?} is no ETag that a file can be kept by")));
        };
        let blob = self.0.join("blobs").join(&tag.0);
        make_folder(blob.parent())?;
        make_folder(place.parent())?;
        let lock = File::create(beside(&blob, ".lock")).context("the cache")?;
        // Where files can't be locked, the user must take care that only one run downloads.
        let locked = lock.lock().is_ok();
        if !blob.exists() {
            download(client, &url, &blob, &tag, bytes, name)?;
        }
        // Another process may have made the link while this one waited, and have opened it.
        let linked = match place.exists() {
            true => Ok(()),
            false => link(&blob, &place, name).context("the cache"),
        };
        if locked {
            lock.unlock().ok();
        }
        linked?;
        Ok(place)
    }
}

fn download(
    client: &Client,
    url: &str,
    blob: &Path,
    tag: &Tag,
    bytes: u64,
    name: &str,
) -> Result<()> {
    let part = beside(blob, ".incomplete");
    let writing = || format!("the cache: {}", part.display());
    let mut file = File::options().append(true).create(true).open(&part).with_context(writing)?;
    if file.metadata().with_context(writing)?.len() > bytes {
        file.set_len(0).with_context(writing)?;
    }
    client.fetch(url, &mut file, bytes, name).map_err(refused)?;
    if let Some(sha256) = tag.sha256()
        && files::hash_file(&part)? != sha256.to_lowercase()
    {
        file.set_len(0).with_context(writing)?;
        return Err(wrong(format!("its bytes don't have the SHA-256 {sha256} that was promised")));
    }
    file.sync_all().with_context(writing)?;
    std::fs::rename(&part, blob).with_context(writing)
}

/// Puts a file into a snapshot: a link to its blob, relative, so that the cache can be moved.
fn link(blob: &Path, place: &Path, name: &str) -> std::io::Result<()> {
    if std::fs::symlink_metadata(place).is_ok() {
        // A link that leads nowhere.
        std::fs::remove_file(place)?;
    }
    #[cfg(unix)]
    {
        let up: PathBuf = std::iter::repeat_n("..", name.split('/').count() + 1).collect();
        let target = up.join("blobs").join(blob.file_name().unwrap_or_default());
        std::os::unix::fs::symlink(target, place)
    }
    #[cfg(not(unix))]
    {
        let _ = name;
        std::fs::copy(blob, place).map(drop)
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn make_folder(folder: Option<&Path>) -> Result<()> {
    let Some(folder) = folder else { return Ok(()) };
    std::fs::create_dir_all(folder)
        .map_err(|e| Error::Input(format!("{}: {e} (HF_HUB_CACHE)", folder.display())).into())
}

fn refused(why: super::client::Refusal) -> anyhow::Error {
    wrong(why.0)
}

fn wrong(why: String) -> anyhow::Error {
    Error::Hub(why).into()
}
