//! A *state* is everything that the rest of a run depends on, in one file that is replaced as a
//! whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use safetensors::{Dtype, SafeTensors};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::bail_input;
use crate::base::error::Error;
use crate::base::files;
use crate::base::files::{hash_texts, hex};
use crate::base::tensors::{Stored, write_tensors};

const FORMAT_VERSION: u32 = 1;

/// What a state belongs to, part by part: another model, other data or other words on the command
/// line are another run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint(Vec<(String, String)>);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header<P> {
    format_version: u32,
    fingerprint: Fingerprint,
    progress: P,
}

impl Fingerprint {
    /// Parts by what a user calls them: `model`, `--seed`.
    pub fn new(parts: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Self(parts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// A hash of all parts but those that may change after a divergence.
    pub fn hash(&self) -> String {
        let parts = self.0.iter().filter(|(name, _)| !MAY_BE_TAMED.contains(&name.as_str()));
        hash_texts(parts.flat_map(|(name, value)| [name.as_str(), value.as_str()]))
    }

    /// The parts in which the saved one is another.
    fn differences(&self, saved: &Self, step: usize) -> Vec<ChangedSetting> {
        let part = |name: &str| saved.0.iter().find(|(n, _)| n == name).map(|(_, value)| value);
        let others = self.0.iter().filter(|(name, value)| part(name) != Some(value));
        let change = |(setting, after): &(String, String)| ChangedSetting {
            step,
            setting: setting.clone(),
            before: part(setting).cloned().unwrap_or_default(),
            after: after.clone(),
        };
        others.map(change).collect()
    }
}

/// A setting that is another one from a step on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangedSetting {
    /// Steps that were made before.
    pub step: usize,
    pub setting: String,
    pub before: String,
    pub after: String,
}

/// What may be another setting after a divergence: what it is overcome by.
pub const MAY_BE_TAMED: [&str; 4] =
    ["--learning-rate", "--max-grad-norm", "--warmup-steps", "--schedule"];

/// What differs, in words: settings with their values, and what follows from them only where
/// nothing else is the reason.
fn named(changes: &[&ChangedSetting]) -> String {
    let words = |change: &&ChangedSetting| match change.setting.starts_with("--") {
        true => format!("{} ({}, now {})", change.setting, change.before, change.after),
        false => change.setting.clone(),
    };
    let told = changes.iter().filter(|c| c.setting.starts_with("--") || c.setting == "model");
    let mut told: Vec<String> = told.map(words).collect();
    if told.is_empty() {
        told.extend(changes.first().map(words));
    }
    told.join(" and of another ")
}

/// The state's file in `irepair/` of an unfinished output.
pub fn path(dir: &Path) -> PathBuf {
    dir.join("state").join("state.safetensors")
}

/// The mark of a state that was kept when its run diverged.
pub fn diverged(dir: &Path) -> PathBuf {
    dir.join("state").join("diverged")
}

/// Saves a state; the one before stays until this one is whole.
pub fn save(
    dir: &Path,
    fingerprint: &Fingerprint,
    progress: &impl Serialize,
    tensors: &BTreeMap<String, Stored>,
) -> Result<()> {
    let path = path(dir);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    let header =
        Header { format_version: FORMAT_VERSION, fingerprint: fingerprint.clone(), progress };
    let header = serde_json::to_string(&header)?;
    let mut content = Content::new(&header);
    for (name, tensor) in tensors {
        content.add(name, &tensor.shape, &tensor.to_bytes()?);
    }
    write_tensors(&path, &[("state", &header), ("content_sha256", &content.hash())], tensors)
}

/// The hash of all that a state says: a bit that flips on a disk must not become a wrong model.
struct Content(Sha256);

impl Content {
    fn new(header: &str) -> Self {
        let mut content = Self(Sha256::new());
        content.part(header.as_bytes());
        content
    }

    fn part(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// A tensor; they come in the order of their names.
    fn add(&mut self, name: &str, shape: &[usize], bytes: &[u8]) {
        self.part(name.as_bytes());
        self.part(format!("{shape:?}").as_bytes());
        self.part(bytes);
    }

    fn hash(self) -> String {
        hex(&self.0.finalize())
    }
}

/// A saved state.
pub struct Saved<P> {
    pub progress: P,
    pub tensors: BTreeMap<String, Tensor>,
    /// Settings that were other ones when it was saved, and may be.
    pub changed: Vec<ChangedSetting>,
}

/// A saved state and its tensors; `may_change` are the settings that need not be as they were.
/// Errors (bad input) if there is none, or name what of it does not fit.
pub fn load<P: DeserializeOwned>(
    dir: &Path,
    fingerprint: &Fingerprint,
    device: &Device,
    may_change: &[&str],
) -> Result<Saved<P>> {
    let path = path(dir);
    let Some(bytes) = files::read_if_there(&path)? else {
        bail_input!("--resume: no state to go on from ({}); run without --resume", path.display());
    };
    let text = metadata(&bytes, "state").map_err(|e| broken(dir, &format!("{e:#}")))?;
    let value: Value = serde_json::from_str(&text).map_err(|e| broken(dir, &e.to_string()))?;
    let version = &value["format_version"];
    if *version != FORMAT_VERSION {
        bail_input!(
            "{}: format version {version}, this program reads {FORMAT_VERSION}",
            path.display()
        );
    }
    // First of all: the progress of another kind of method has another form.
    let saved =
        Fingerprint::deserialize(&value["fingerprint"]).map_err(|e| broken(dir, &e.to_string()))?;
    let step = value["progress"]["step"].as_u64().unwrap_or(0) as usize;
    let changed = fingerprint.differences(&saved, step);
    let refused: Vec<&ChangedSetting> =
        changed.iter().filter(|change| !may_change.contains(&change.setting.as_str())).collect();
    if !refused.is_empty() {
        bail_input!(
            "--resume: the saved state is of another {}; run with the same, or start again with \
             --overwrite",
            named(&refused)
        );
    }
    let header: Header<P> =
        serde_json::from_value(value).map_err(|e| broken(dir, &e.to_string()))?;
    let stored = SafeTensors::deserialize(&bytes).map_err(|e| broken(dir, &e.to_string()))?;
    let mut views = stored.tensors();
    views.sort_by(|a, b| a.0.cmp(&b.0));
    let mut content = Content::new(&text);
    for (name, view) in &views {
        content.add(name, view.shape(), view.data());
    }
    let expected =
        metadata(&bytes, "content_sha256").map_err(|e| broken(dir, &format!("{e:#}")))?;
    if content.hash() != expected {
        let why = "its bytes are not those that were saved; start again with --overwrite";
        return Err(broken(dir, why).into());
    }
    let mut tensors = BTreeMap::new();
    for (name, view) in views {
        if view.dtype() != Dtype::F32 {
            return Err(broken(dir, &format!("{name} is {}, expected F32", view.dtype())).into());
        }
        let values: Vec<f32> =
            view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        tensors
            .insert(name, Tensor::from_vec(values, view.shape(), &Device::Cpu)?.to_device(device)?);
    }
    Ok(Saved { progress: header.progress, tensors, changed })
}

/// How far the saved state has come, if there is one that can be read.
pub fn progress<P: DeserializeOwned>(dir: &Path) -> Option<P> {
    let bytes = files::read(&path(dir)).ok()?;
    serde_json::from_str::<Header<P>>(&metadata(&bytes, "state").ok()?)
        .ok()
        .map(|header| header.progress)
}

/// What the metadata of a file of tensors says under a key.
fn metadata(bytes: &[u8], key: &str) -> Result<String> {
    let (_, metadata) = SafeTensors::read_metadata(bytes)?;
    let found = metadata.metadata().as_ref().and_then(|m| m.get(key)).cloned();
    found.with_context(|| format!("no {key:?} in it"))
}

/// A file that is no state.
pub fn broken(dir: &Path, why: &str) -> Error {
    Error::Input(format!("{}: a broken state: {why}", path(dir).display()))
}
