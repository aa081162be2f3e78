//! A *checkpoint* is a model folder in Hugging Face layout: `config.json`, `tokenizer.json`, and weights in one
//! `model.safetensors` or in shards with an index.
//!
//! Opening reads headers only (and a tied head that is stored all the same). Writing copies every file of the base byte
//! for byte and then puts the changed tensors at their places, so whatever was not touched is equal to the base by
//! construction; [`compare`] checks it all the same.

mod compare;
pub mod conversion;
mod header;
pub mod hub;
mod mapped;
mod output;
pub mod patch;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Once, OnceLock};

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::bail_input;
use crate::base::error::Error;
use crate::base::files::{hash_file, hex};
use crate::base::tensors::to_bytes;
use crate::model::precision::WeightsDtype;
use crate::model::weights::{Place, TensorSpec, Weights, Who};
use crate::model::{self, Model, Names};
pub use compare::{Change, compare};
use conversion::refuse_other_weights;
pub use header::Entry;
use header::{read_bytes, read_header, weight_files};
use mapped::{Kept, Mapped};
pub use output::{copy_model, write};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// An opened model folder.
#[derive(Debug)]
pub struct Checkpoint {
    pub dir: PathBuf,
    /// What the user called it, and the resolved commit if it came from a hub.
    pub name: String,
    pub revision: Option<String>,
    pub config: Value,
    /// File names of the weights, in order.
    pub files: Vec<String>,
    /// By name on disk, without the twin.
    pub entries: BTreeMap<String, Entry>,
    /// What the architecture calls its tensors; `None` for a classifier.
    names: Option<&'static Names>,
    /// The name on disk of an embedding that the head is tied to, and the place of the head, where it is stored all the
    /// same. The two are one tensor and go to disk together: transformers 5 ties them only while they are equal.
    twin: Option<(String, Entry)>,
    /// Of the weight files, once they are asked for: they take seconds at 3 GB.
    hashes: OnceLock<BTreeMap<String, String>>,
}

impl Checkpoint {
    /// Opens a folder: reads `config.json` and the headers of the weights, and compares a tied head that is stored with
    /// its embedding. Errors are bad input and name the file.
    pub fn open(dir: &Path, name: &str, revision: Option<String>) -> Result<Self> {
        let config_path = dir.join("config.json");
        if !config_path.is_file() {
            refuse_other_weights(dir, &Value::Null)?;
        }
        let text = std::fs::read_to_string(&config_path).map_err(|e| {
            Error::Input(format!(
                "{}: {e}; a model folder has a config.json",
                config_path.display()
            ))
        })?;
        let config = serde_json::from_str(&text)
            .map_err(|e| Error::Input(format!("{}: broken JSON: {e}", config_path.display())))?;
        let files = weight_files(dir, &config)?;
        let mut entries = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for (tensor, entry) in read_header(&dir.join(file), index)? {
                if entries.insert(tensor.clone(), entry).is_some() {
                    bail_input!("{}: tensor {tensor} is in two files", dir.display());
                }
            }
        }
        let (dir, name, hashes) = (dir.into(), name.into(), OnceLock::new());
        let names = model::architecture(&config).ok().map(|found| &found.names);
        let mut checkpoint =
            Self { dir, name, revision, config, files, entries, names, twin: None, hashes };
        checkpoint.find_twin()?;
        Ok(checkpoint)
    }

    /// Takes the twin out of the entries, if there is one. Errors (bad input) if it differs from the embedding:
    /// transformers 4 would tie them and transformers 5 would not, so that no one can tell which model is meant.
    fn find_twin(&mut self) -> Result<()> {
        // What is wrong with a configuration is said where its model is made; a classifier has none here.
        let Ok(model) = Model::from_config(&self.config) else { return Ok(()) };
        let heads = self.names.map_or(&[][..], |names| names.head);
        let tied = !heads.contains(&model.head());
        let Some(embedding) = self.disk_name(model.head()).filter(|_| tied).map(str::to_owned)
        else {
            return Ok(());
        };
        let Some((name, head)) = heads.iter().find_map(|name| self.entries.get_key_value(*name))
        else {
            return Ok(());
        };
        let own = &self.entries[&embedding];
        if (own.dtype, &own.shape) != (head.dtype, &head.shape) || !self.same_bytes(own, head)? {
            bail_input!(
                "{}: {name} differs from {embedding}, to which config.json ties it; set \
                 \"tie_word_embeddings\" to false there, or remove {name}",
                self.dir.join(&self.files[head.file]).display()
            );
        }
        let name = name.clone();
        self.twin = self.entries.remove(&name).map(|entry| (embedding, entry));
        Ok(())
    }

    /// Whether two tensors of this folder have the same bytes.
    fn same_bytes(&self, a: &Entry, b: &Entry) -> Result<bool> {
        let map = |entry: &Entry| Mapped::open(&self.dir.join(&self.files[entry.file]));
        Ok(map(a)?.bytes(a)? == map(b)?.bytes(b)?)
    }

    /// Every place that a tensor's bytes are stored in: with a twin, that of the embedding and that of the head.
    fn stored(&self, name: &str) -> impl Iterator<Item = &Entry> {
        let twin =
            self.twin.as_ref().filter(|(embedding, _)| embedding == name).map(|(_, entry)| entry);
        self.entries.get(name).into_iter().chain(twin)
    }

    /// The name on disk of a tensor that the architecture calls `name`: files may leave out what
    /// such names begin with.
    pub fn disk_name<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        let names = self.names.map_or_else(|| vec![name], |names| names.in_files(name));
        names.into_iter().find(|n| self.entries.contains_key(*n))
    }

    fn entry<'a>(&'a self, spec: &'a TensorSpec) -> Result<(&'a str, &'a Entry)> {
        let Some(name) = self.disk_name(&spec.name) else {
            bail_input!("{}: tensor {} is missing", self.weights_place(), spec.name);
        };
        let entry = &self.entries[name];
        if entry.shape != spec.shape {
            bail_input!(
                "{}: tensor {name} has shape {:?}, config.json asks for {:?}",
                self.dir.join(&self.files[entry.file]).display(),
                entry.shape,
                spec.shape
            );
        }
        Ok((name, entry))
    }

    fn weights_place(&self) -> String {
        self.dir.join(self.files.first().map_or(SINGLE, String::as_str)).display().to_string()
    }

    /// Errors (bad input) on a matrix of the model that is not stored in this dtype and would have to be rounded to it.
    pub fn stores(&self, model: &Model, dtype: WeightsDtype) -> Result<()> {
        let specs = model.specs();
        for spec in specs.iter().filter(|spec| dtype != WeightsDtype::F32 && spec.is_matrix()) {
            let (name, entry) = self.entry(spec)?;
            if entry.kept_in(dtype) == WeightsDtype::F32 {
                bail_input!(
                    "{}: tensor {name} is stored as {:?}; --weights-dtype {dtype} keeps what is stored so and rounds \
                     nothing: leave it at f32, or store the model in {dtype}",
                    self.dir.join(&self.files[entry.file]).display(),
                    entry.dtype
                );
            }
        }
        Ok(())
    }

    /// Says on stderr, once a process, the first tensor of a block that the model has no use for: such are ignored, as
    /// transformers does, but the block may not be what was trained.
    fn name_strangers(&self, specs: &[TensorSpec]) {
        let mut known: BTreeSet<&str> = BTreeSet::new();
        let mut blocks: BTreeSet<&str> = BTreeSet::new();
        for spec in specs {
            let Some(name) = self.disk_name(&spec.name) else { continue };
            known.insert(name);
            if let Place::Block(block) = spec.place {
                let index = format!(".{block}.");
                blocks.extend(name.find(index.as_str()).map(|at| &name[..at + index.len()]));
            }
        }
        let stranger = self.entries.iter().find(|(name, _)| {
            !known.contains(name.as_str())
                && blocks.iter().any(|block| name.starts_with(*block))
                && !self.names.is_some_and(|names| names.is_buffer(name))
        });
        static SAID: Once = Once::new();
        if let Some((name, entry)) = stranger {
            SAID.call_once(|| {
                eprintln!(
                    "warning: {}: tensor {name} is no part of the model that config.json describes (\"model_type\", \
                 \"attention_bias\", \"mlp_bias\") and is ignored",
                    self.dir.join(&self.files[entry.file]).display()
                )
            });
        }
    }

    /// All tensors of the model on `device`: matrices stored in `kept` as they are, all else in f32. Errors (bad input) on
    /// a missing tensor, a wrong shape, a dtype other than f32, f16, bf16, or a value that is not finite.
    pub fn load(&self, model: &Model, device: &Device, kept: WeightsDtype) -> Result<Weights> {
        let mut tensors = BTreeMap::new();
        let mut maps = self.maps();
        let specs = model.specs();
        self.name_strangers(&specs);
        for spec in &specs {
            let (name, entry) = self.entry(spec)?;
            let dtype = if spec.is_matrix() { entry.kept_in(kept) } else { WeightsDtype::F32 };
            let tensor = match dtype {
                WeightsDtype::F32 => self.tensor::<f32>(&mut maps, name, entry)?,
                WeightsDtype::Bf16 => self.tensor::<bf16>(&mut maps, name, entry)?,
                WeightsDtype::F16 => self.tensor::<f16>(&mut maps, name, entry)?,
            };
            tensors.insert(
                spec.name.clone(),
                if device.is_cpu() { tensor } else { tensor.to_device(device)? },
            );
        }
        Weights::new(specs, tensors)
    }

    /// All tensors of floats in f32 on the CPU, by name on disk; those of integers (`position_ids`) are left out, and a stored
    /// head that is tied to the embedding. Errors as [`Self::load`] does.
    pub fn floats(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut maps = self.maps();
        let of_integers = |entry: &Entry| {
            use Dtype::{BOOL, I8, I16, I32, I64, U8, U16, U32, U64};
            [BOOL, I8, I16, I32, I64, U8, U16, U32, U64].contains(&entry.dtype)
        };
        let floats = self.entries.iter().filter(|(_, entry)| !of_integers(entry));
        floats
            .map(|(name, entry)| Ok((name.clone(), self.tensor::<f32>(&mut maps, name, entry)?)))
            .collect()
    }

    /// A place for the map of each weight file, none opened yet.
    fn maps(&self) -> Vec<Option<Mapped>> {
        self.files.iter().map(|_| None).collect()
    }

    /// A tensor on the CPU; its file is mapped if it isn't yet.
    fn tensor<T: Kept>(
        &self,
        maps: &mut [Option<Mapped>],
        name: &str,
        entry: &Entry,
    ) -> Result<Tensor> {
        let path = self.dir.join(&self.files[entry.file]);
        let map = match &mut maps[entry.file] {
            Some(map) => map,
            place => place.insert(Mapped::open(&path)?),
        };
        let values = map
            .values::<T>(entry)
            .map_err(|e| Error::Input(format!("{}: tensor {name}: {e}", path.display())))?;
        let finite = values
            .par_chunks(1 << 16)
            .all(|part| part.iter().fold(true, |all, v| all & v.to_f64().is_finite()));
        if let Some(at) =
            (!finite).then(|| values.iter().position(|v| !v.to_f64().is_finite())).flatten()
        {
            bail_input!(
                "{}: tensor {name} has {} at value {at}; this checkpoint is broken",
                path.display(),
                values[at]
            );
        }
        Ok(Tensor::from_vec(values, entry.shape.as_slice(), &Device::Cpu)?)
    }

    /// SHA-256 of each weight file, by name.
    pub fn hashes(&self) -> Result<&BTreeMap<String, String>> {
        if let Some(hashes) = self.hashes.get() {
            return Ok(hashes);
        }
        let found = self
            .files
            .iter()
            .map(|f| Ok((f.clone(), hash_file(&self.dir.join(f))?)))
            .collect::<Result<_>>()?;
        Ok(self.hashes.get_or_init(|| found))
    }

    /// One hash for all the weights: the file's, or with shards the hash of their hashes in order.
    pub fn hash(&self) -> Result<String> {
        let hashes = self.hashes()?;
        if let [only] = self.files.as_slice() {
            return Ok(hashes[only].clone());
        }
        let mut hash = Sha256::new();
        for file in &self.files {
            hash.update(&hashes[file]);
        }
        Ok(hex(&hash.finalize()))
    }

    /// Dtype and shape of a tensor by its name on disk.
    pub fn dtype_and_shape(&self, name: &str) -> Result<(Dtype, Vec<usize>)> {
        let entry = self.entries.get(name).with_context(|| format!("no tensor {name}"))?;
        Ok((entry.dtype, entry.shape.clone()))
    }

    /// Puts a tensor's bytes, which must be as many, at every place that it is stored in, in a copy of this folder.
    pub fn put(&self, name: &str, bytes: &[u8], out: &Path) -> Result<()> {
        for entry in self.stored(name) {
            let path = out.join(&self.files[entry.file]);
            let writing = || format!("writing {}", path.display());
            let mut file = File::options().write(true).open(&path).with_context(writing)?;
            file.seek(SeekFrom::Start(entry.offset)).with_context(writing)?;
            file.write_all(bytes).and_then(|()| file.sync_all()).with_context(writing)?;
        }
        Ok(())
    }

    /// The bytes of a tensor on disk.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let entry = self.entries.get(name).with_context(|| format!("no tensor {name}"))?;
        let path = self.dir.join(&self.files[entry.file]);
        let mut file = File::open(&path).with_context(|| path.display().to_string())?;
        Ok(read_bytes(&mut file, entry)?)
    }
}

impl Checkpoint {
    /// Rounds the touched tensors to what their stored dtype can hold, so that what is measured is what is written.
    /// Errors (a failed check) if a value does not fit (f16 ends at 65,504) or is not finite.
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
}
