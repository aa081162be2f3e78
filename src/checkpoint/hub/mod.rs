//! The *hub*: from what the user calls a model (`demo`, a local folder, or a hub id with an
//! optional revision) to a folder.
//!
//! The cache folder, the token, the endpoint and offline mode are read here from the environment,
//! exactly as `huggingface_hub` does. The crate hf-hub does not download, because it can't be told
//! a time-out, takes a token along to other servers, and believes what a server says of paths and
//! lengths.

mod cache;
mod client;
mod dataset;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Checkpoint;
use super::adapter::{ADAPTER, how_to_merge};
use super::conversion::{ANY_CLASS, conversion};
use super::files::{shard, shards};
use super::header::{INDEX, SINGLE};
use crate::bail_input;
use crate::base::environment::{path_variable, user_cache, variable};
use crate::base::error::{Error, nearest};
use crate::base::files;
use crate::base::url::without_secrets;
use crate::data::demo;
use cache::{Commit, Kept, ids, is_inside};
use client::{Client, Token, encoded};
pub use dataset::{commit_of, rows_path};

/// Short names of the paper's models.
const SHORT_NAMES: &[(&str, &str)] = &[
    ("gpt2", "openai-community/gpt2"),
    ("gpt2-medium", "openai-community/gpt2-medium"),
    ("gpt2-large", "openai-community/gpt2-large"),
    ("gpt2-xl", "openai-community/gpt2-xl"),
    ("distilgpt2", "distilbert/distilgpt2"),
    ("gpt-neo-125m", "EleutherAI/gpt-neo-125m"),
    ("gpt-neo-1.3B", "EleutherAI/gpt-neo-1.3B"),
    ("gpt-neo-2.7B", "EleutherAI/gpt-neo-2.7B"),
];

/// The files of which a tokenizer needs one.
const TOKENIZERS: [&str; 3] = ["tokenizer.json", "vocab.txt", "vocab.json"];

/// A model that was opened. The demo lives in a temporary folder, which lasts as long as this does.
pub struct OpenedModel {
    pub checkpoint: Checkpoint,
    _unpacked: Option<tempfile::TempDir>,
}

/// Opens the model that the user means.
pub fn open_model(model: &str, revision: Option<&str>) -> Result<OpenedModel> {
    if model == "demo" {
        let dir = demo::unpack()?;
        return Ok(OpenedModel {
            checkpoint: Checkpoint::open(dir.path(), "demo", None)?,
            _unpacked: Some(dir),
        });
    }
    let (dir, name, commit) = find(model, revision)?;
    Ok(OpenedModel { checkpoint: Checkpoint::open(&dir, &name, commit)?, _unpacked: None })
}

/// Opens the classification model that the user means.
pub fn open_classifier(model: &str) -> Result<Checkpoint> {
    let (dir, name, commit) = find(model, None)?;
    Checkpoint::open(&dir, &name, commit)
}

/// The folder and the name of the model that the user means, and its commit if it is from the hub.
fn find(model: &str, revision: Option<&str>) -> Result<(PathBuf, String, Option<String>)> {
    let path = Path::new(model);
    if path.is_dir() {
        if let Some(revision) = revision {
            return Err(Error::Usage(format!(
                "--revision {revision} with the local folder {model}"
            ))
            .into());
        }
        return Ok((path.into(), model.into(), None));
    }
    if let Some(file) = path.file_name().filter(|_| path.is_file()) {
        let line = conversion(&file.to_string_lossy(), ANY_CLASS);
        let advice =
            line.map_or(String::new(), |line| format!("; convert it with transformers: {line}"));
        bail_input!(
            "{model}: a file; a model is a folder with config.json, tokenizer.json and \
             safetensors{advice}"
        );
    }
    let (id, in_name) = match model.split_once('@') {
        Some((id, revision)) => (id, Some(revision)),
        None => (model, None),
    };
    let id = SHORT_NAMES.iter().find(|(short, _)| *short == id).map_or(id, |(_, full)| full);
    if !is_hub_id(id) {
        let short = SHORT_NAMES.iter().map(|(short, _)| *short);
        let known: Vec<&str> = short.chain(["demo"]).collect();
        let near = nearest(id, &known).map_or(String::new(), |n| format!("; did you mean {n:?}?"));
        bail_input!(
            "{}: no such folder, and no hub id (ORG/NAME, ORG/NAME@REVISION, or {}){near}",
            without_secrets(model),
            known.join(", ")
        );
    }
    let hub = Hub::from_env()?;
    let dir = hub.model(id, revision.or(in_name).unwrap_or("main"))?;
    let commit = dir.file_name().map(|n| n.to_string_lossy().into_owned());
    Ok((dir, id.into(), commit))
}

fn is_hub_id(id: &str) -> bool {
    let part = |p: &str| {
        !p.is_empty()
            && !p.starts_with(['.', '-'])
            && p.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
    };
    matches!(id.split('/').collect::<Vec<_>>().as_slice(), [org, name] if part(org) && part(name))
}

/// Where the hub is, and where its files are kept.
#[derive(Clone)]
pub struct Hub {
    /// The folder of the downloaded files.
    pub cache: PathBuf,
    /// Its address as it may be shown.
    pub endpoint: String,
    pub offline: bool,
    /// Its address, with the user name and password that it may have.
    address: String,
    token: Option<Token>,
}

/// A repository at a revision.
struct Repository<'a> {
    /// `models` or `datasets`.
    kind: &'static str,
    id: &'a str,
    revision: &'a str,
}

/// What the hub says of a repository.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// The files of a commit of a repository.
struct Files {
    commit: Commit,
    names: Vec<String>,
}

fn is_true(name: &str) -> bool {
    variable(name).is_some_and(|v| matches!(v.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

impl Hub {
    /// Reads `HF_HOME HF_HUB_CACHE HF_TOKEN HF_TOKEN_PATH HF_ENDPOINT HF_HUB_OFFLINE` and
    /// `TRANSFORMERS_OFFLINE`.
    pub fn from_env() -> Result<Self> {
        let home = path_variable("HF_HOME")
            .or_else(|| Some(user_cache()?.join("huggingface")))
            .context("no folder for the cache of the hub: set HF_HOME or HOME")?;
        let cache = path_variable("HF_HUB_CACHE").unwrap_or_else(|| home.join("hub"));
        let token = match variable("HF_TOKEN") {
            Some(token) => Some(token),
            None => {
                let path = path_variable("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token"));
                files::read_if_there(&path)?.map(|bytes| String::from_utf8_lossy(&bytes).into())
            }
        };
        let token = token.map(|token| Token::new(&token)).transpose()?.flatten();
        let address = variable("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let address = address.trim().trim_end_matches('/').to_owned();
        let offline = is_true("HF_HUB_OFFLINE") || is_true("TRANSFORMERS_OFFLINE");
        Ok(Self { cache, endpoint: without_secrets(&address), offline, address, token })
    }

    /// Whether a token will be sent. Its value is never shown.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// A file of a data set, and its commit: the first file with the first of the `endings` that
    /// any file has. It comes from the cache while offline, and is otherwise downloaded into the
    /// cache.
    pub fn dataset_file(
        &self,
        id: &str,
        revision: &str,
        endings: &[&str],
    ) -> Result<(PathBuf, String)> {
        let repo = Repository { kind: "datasets", id, revision };
        let kept = Kept::new(&self.cache, repo.kind, id);
        let pick = |names: &[String]| {
            endings
                .iter()
                .find_map(|ending| names.iter().find(|name| name.ends_with(ending)).cloned())
        };
        if self.offline || is_true(dataset::OFFLINE) {
            let set = if self.offline { "HF_HUB_OFFLINE" } else { dataset::OFFLINE };
            let commit = kept.commit(revision);
            let snapshot = commit.as_ref().map(|commit| kept.snapshot(commit));
            let names = snapshot.as_deref().map_or(Vec::new(), |dir| files_under(dir, ""));
            return match (pick(&names), snapshot, commit) {
                (Some(name), Some(dir), Some(commit)) => {
                    Ok((dir.join(name), commit.as_str().into()))
                }
                (_, snapshot, _) => Err(Error::Hub(format!(
                    "the data set {id}@{revision} ({}) is not in the cache (looked in {}), and \
                     {set} is set; unset it, or give a file",
                    endings.join(" or "),
                    snapshot.unwrap_or(self.cache.clone()).display()
                ))
                .into()),
            };
        }
        let client = self.client()?;
        let Files { commit, names } = self.list(&client, &repo)?;
        let Some(name) = pick(&names) else {
            bail_input!(
                "the data set {id}@{revision} has no file *{} (it has: {})",
                endings[0],
                names.join(", ")
            );
        };
        let path = self.fetch(&client, &repo, &commit, &name)?;
        kept.remember(revision, &commit)?;
        Ok((path, commit.as_str().into()))
    }

    /// The snapshot folder that the cache has for this revision, if any.
    fn cached(&self, id: &str, revision: &str) -> Option<PathBuf> {
        let kept = Kept::new(&self.cache, "models", id);
        Some(kept.snapshot(&kept.commit(revision)?)).filter(|snapshot| snapshot.is_dir())
    }

    /// The folder with the files of a model, downloaded into the cache if needed. While offline, no
    /// socket is opened. Then the cache must have `config.json`, a file of the tokenizer, and the
    /// weights.
    pub fn model(&self, id: &str, revision: &str) -> Result<PathBuf> {
        if !self.offline {
            return self.download(id, revision);
        }
        let Some(snapshot) = self.cached(id, revision) else {
            return Err(Error::Hub(format!(
                "{id}@{revision} is not in the cache {}, and HF_HUB_OFFLINE is set; unset it, or \
                 give a local folder{}",
                self.cache.display(),
                self.in_cache("models", id)
            ))
            .into());
        };
        let names = files_under(&snapshot, "");
        let has = |file: &str| snapshot.join(file).exists();
        for (there, name) in [
            (has("config.json") || has(ADAPTER), "config.json"),
            (
                TOKENIZERS.iter().any(|file| has(file)) || has(ADAPTER),
                TOKENIZERS.join(" or ").as_str(),
            ),
            (has_weights(&names) || has(ADAPTER), SINGLE),
        ] {
            if !there {
                return Err(Error::Hub(format!(
                    "{name} of {id}@{revision} is not in the cache (looked in {}), and \
                     HF_HUB_OFFLINE is set",
                    snapshot.display()
                ))
                .into());
            }
        }
        Ok(snapshot)
    }

    /// Words about what repositories of a kind the cache has, and which of them may be meant.
    fn in_cache(&self, kind: &str, id: &str) -> String {
        const MOST: usize = 10;
        let ids = ids(&self.cache, kind);
        let known: Vec<&str> = ids.iter().map(String::as_str).collect();
        let near = nearest(id, &known).map_or(String::new(), |n| format!("; did you mean {n:?}?"));
        match known.split_at_checked(MOST) {
            _ if known.is_empty() => format!("; no {kind} are in it"),
            Some((first, rest)) if !rest.is_empty() => {
                format!("{near}; in it: {} and {} more", first.join(", "), rest.len())
            }
            _ => format!("{near}; in it: {}", known.join(", ")),
        }
    }

    fn client(&self) -> Result<Client> {
        Client::new(&self.address, self.token.clone())
    }

    /// The files of a repository. Errors (hub) if one of them would lie outside its folder.
    fn list(&self, client: &Client, repo: &Repository) -> Result<Files> {
        let Repository { kind, id, revision } = repo;
        let url = format!("{}/api/{kind}/{id}/revision/{}", self.address, encoded(revision, b""));
        let failed = |why: &str| self.failed(repo, "the list of files", why);
        let text = client.text(&url).map_err(|why| failed(&why.0))?;
        let listing: Listing =
            serde_json::from_str(&text).map_err(|e| failed(&format!("not such a list: {e}")))?;
        let Some(commit) = Commit::new(&listing.sha) else {
            return Err(failed(&format!("\"sha\" is {:?}, and no commit", listing.sha)));
        };
        let names: Vec<String> = listing.siblings.into_iter().map(|s| s.rfilename).collect();
        if let Some(name) = names.iter().find(|name| !is_inside(name)) {
            return Err(failed(&format!("its file {name:?} would lie outside the folder")));
        }
        Ok(Files { commit, names })
    }

    fn download(&self, id: &str, revision: &str) -> Result<PathBuf> {
        let repo = Repository { kind: "models", id, revision };
        let client = self.client()?;
        let Files { commit, names } = self.list(&client, &repo)?;
        let has = |name: &str| names.iter().any(|own| own == name);
        if has(ADAPTER) {
            let config = files::read_json(&self.fetch(&client, &repo, &commit, ADAPTER)?)?;
            let base = config["base_model_name_or_path"].as_str().unwrap_or("BASE");
            bail_input!(
                "{id}@{revision} is an adapter of peft ({ADAPTER}) to {base}, and no model; merge \
                 it:\n{}",
                how_to_merge(id, base)
            );
        }
        if !has_weights(&names) {
            bail_input!(
                "{id}@{revision} has no {SINGLE} (it has: {}); convert its weights with \
                 transformers first ({}), or give a revision that has it: {id}@refs/pr/N",
                names.join(", "),
                how_to_convert(id, &names.iter().map(String::as_str).collect::<Vec<_>>())
            );
        }
        let fetch = |name: &str| self.fetch(&client, &repo, &commit, name);
        for name in names.iter().filter(|name| is_small(name)) {
            fetch(name)?;
        }
        let weights = match (has(SINGLE), has(INDEX)) {
            (true, _) => vec![SINGLE.to_owned()],
            (false, true) => shards(&fetch(INDEX)?)?,
            _ => names.iter().filter(|name| shard(name).is_some()).cloned().collect(),
        };
        for name in &weights {
            fetch(name)?;
        }
        let kept = Kept::new(&self.cache, repo.kind, id);
        kept.remember(revision, &commit)?;
        Ok(kept.snapshot(&commit))
    }

    fn fetch(
        &self,
        client: &Client,
        repo: &Repository,
        commit: &Commit,
        name: &str,
    ) -> Result<PathBuf> {
        let Repository { kind, id, revision } = repo;
        let prefix = if *kind == "models" { "" } else { "datasets/" };
        let address = format!("{}/{prefix}{id}/resolve/{}", self.address, encoded(revision, b""));
        let kept = Kept::new(&self.cache, kind, id);
        kept.fetch(client, commit, name, &address).map_err(|e| match e.downcast_ref() {
            Some(Error::Hub(why)) => self.failed(repo, name, why),
            _ => e,
        })
    }

    fn failed(&self, repo: &Repository, what: &str, why: &str) -> anyhow::Error {
        let Repository { kind, id, revision } = repo;
        let known: Vec<&str> = SHORT_NAMES.iter().map(|(_, full)| *full).collect();
        let near = nearest(id, &known).filter(|near| *kind == "models" && near != id);
        let advice = if why.contains("401") || why.contains("403") {
            // The hub answers so where there is no such repository, too.
            let near = near.map_or(String::new(), |near| format!(", or did you mean {near}?"));
            format!("; it may be private or gated: set HF_TOKEN{near}")
        } else if why.contains("404") {
            let near = near.map_or(String::new(), |near| format!(" (did you mean {near}?)"));
            format!("; check the id and the revision{near}")
        } else if why.contains("timeout") {
            "; give it more time with HF_HUB_DOWNLOAD_TIMEOUT and HF_HUB_ETAG_TIMEOUT (seconds)"
                .into()
        } else if why.contains("status code") {
            String::new()
        } else if *kind == "models" && self.cached(id, revision).is_some() {
            "; what is in the cache is used with HF_HUB_OFFLINE=1".into()
        } else {
            let unreached = ["lookup", "resolve", "connect", "Connection", "unreachable"];
            let network = match unreached.iter().any(|word| why.contains(word)) {
                true => {
                    "; is there a network? Without one give a folder or a file instead of a name, \
                     or fill the cache where there is one and set HF_HUB_CACHE and HF_HUB_OFFLINE=1"
                }
                false => "",
            };
            let cache = self.cache.display();
            format!("{network}; it is not in the cache {cache} either{}", self.in_cache(kind, id))
        };
        // A library may name the address that it was given.
        let why = why.replace(&self.address, &self.endpoint);
        Error::Hub(format!(
            "could not download {what} of {id}@{revision} from {}: {why}{advice}",
            self.endpoint
        ))
        .into()
    }
}

/// The names of all files in a folder and its folders, in order.
fn files_under(dir: &Path, prefix: &str) -> Vec<String> {
    let mut entries: Vec<_> = std::fs::read_dir(dir).into_iter().flatten().flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    let mut names = Vec::new();
    for entry in entries {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            names.extend(files_under(&entry.path(), &format!("{name}/")));
        } else {
            names.push(name);
        }
    }
    names
}

/// Whether one of these files holds weights that can be read: all, or shards.
fn has_weights(names: &[String]) -> bool {
    names.iter().any(|name| [SINGLE, INDEX].contains(&name.as_str()) || shard(name).is_some())
}

/// Whether a file of a hub repository belongs to the model folder and is none of its weights.
fn is_small(name: &str) -> bool {
    if name.contains('/') || name.starts_with('.') {
        return false;
    }
    [".json", ".txt", ".model", ".jinja", ".md"].iter().any(|e| name.ends_with(e))
        || name.starts_with("LICENSE")
}

/// How to convert the weights of a repository without safetensors. If there is only GGUF,
/// transformers must be told the file.
fn how_to_convert(id: &str, names: &[&str]) -> String {
    let (gguf, others): (Vec<&str>, Vec<&str>) =
        names.iter().copied().partition(|name| name.ends_with(".gguf"));
    let others = others.iter().any(|name| conversion(name, ANY_CLASS).is_some());
    match gguf.first().filter(|_| !others).and_then(|name| conversion(name, ANY_CLASS)) {
        Some(line) => line.replace("DIR", &format!("{id:?}")),
        None => "from_pretrained, then save_pretrained".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_of_gguf_alone_is_told_the_file() {
        let names = ["README.md", "config.json", "small.Q4.gguf", "small.Q8.gguf"];
        let told = how_to_convert("org/tiny", &names);
        assert!(
            told.contains("from_pretrained(\"org/tiny\", gguf_file=\"small.Q4.gguf\")"),
            "{told}"
        );
        assert!(!told.contains("DIR"), "{told}");
        let both = [&names[..], &["pytorch_model.bin"]].concat();
        assert_eq!(how_to_convert("org/tiny", &both), "from_pretrained, then save_pretrained");
    }
}
