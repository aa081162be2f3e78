//! A *checkpoint* is a model folder in Hugging Face layout: `config.json`, `tokenizer.json`, and
//! weights in one `model.safetensors` or in shards with an index.
//!
//! Opening a checkpoint reads headers only, and the head if it is stored although it is tied to the
//! embedding. Writing one copies every file of the base byte for byte and then overwrites the
//! changed tensors in place. So everything else stays equal to the base; [`compare`] still checks
//! it.

mod adapter;
pub mod combine;
mod compare;
pub mod conversion;
mod deflate;
mod files;
mod header;
pub mod hub;
mod lines;
pub mod lora;
mod mapped;
mod names;
mod output;
pub mod patch;

use std::collections::{BTreeMap, BTreeSet};
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
use crate::base::files::{hash_file, hash_told, hex, read_json};
use crate::base::plain::plain_line;
use crate::base::progress::{Progress, is_watched};
use crate::model::precision::WeightsDtype;
use crate::model::weights::{Place, TensorSpec, Weights};
use crate::model::{self, Model, Names};
use crate::say;
use adapter::{ADAPTER, refuse_adapter};
pub use compare::{Change, compare};
use conversion::refuse_other_weights;
use files::{inner, weight_files};
pub use header::TensorInfo;
use header::{SINGLE, read_header};
use mapped::{FromStored, Mapped};
use names::Wrapped;
pub use output::{copy_model, write};

/// An opened model folder.
#[derive(Debug)]
pub struct Checkpoint {
    pub dir: PathBuf,
    /// What the user called it.
    pub name: String,
    /// The commit, if it came from a hub.
    pub revision: Option<String>,
    pub config: Value,
    /// File names of the weights, in order.
    pub files: Vec<String>,
    /// Every tensor by its name on disk, without the twin.
    pub entries: BTreeMap<String, TensorInfo>,
    /// What the architecture calls its tensors; `None` for a classifier.
    names: Option<&'static Names>,
    /// What wrappers put into the names on disk.
    wrapped: Wrapped,
    /// A head that is stored although it is tied to the embedding: the name of the embedding on
    /// disk, and where the head lies. The two are one tensor and are always written together,
    /// because transformers 5 ties them only while they are equal.
    twin: Option<(String, TensorInfo)>,
    /// The hash of each weight file. It is computed when first asked for: that takes seconds at
    /// 3 GB.
    hashes: OnceLock<BTreeMap<String, String>>,
}

impl Checkpoint {
    /// Opens a folder: reads `config.json` and the headers of the weights. A head that is stored
    /// although it is tied is compared with its embedding. Errors (bad input) name the file.
    pub fn open(dir: &Path, name: &str, revision: Option<String>) -> Result<Self> {
        refuse_adapter(dir)?;
        let config_path = dir.join("config.json");
        if !config_path.is_file() {
            refuse_other_weights(dir, &Value::Null)?;
            bail_input!(
                "{}: no config.json; a model folder has one{}",
                dir.display(),
                inner(dir, &["config.json", ADAPTER])
            );
        }
        let config = read_json(&config_path)?;
        let files = weight_files(dir, &config)?;
        let mut entries = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            let path = dir.join(file);
            let map = Mapped::open(&path)?;
            for (tensor, entry) in read_header(map.whole(), &path, index)? {
                if entries.insert(tensor.clone(), entry).is_some() {
                    bail_input!("{}: tensor {tensor} is in two files", dir.display());
                }
            }
        }
        let (dir, name, hashes) = (dir.into(), name.into(), OnceLock::new());
        let names = model::architecture(&config).ok().map(|found| &found.names);
        let (wrapped, twin) = (Wrapped::default(), None);
        let mut checkpoint =
            Self { dir, name, revision, config, files, entries, names, wrapped, twin, hashes };
        checkpoint.find_wrapped()?;
        checkpoint.find_twin()?;
        Ok(checkpoint)
    }

    /// Finds out what wrappers put into the names of the tensors, and says it once in a process.
    fn find_wrapped(&mut self) -> Result<()> {
        let (Some(names), Ok(model)) = (self.names, Model::from_config(&self.config)) else {
            return Ok(());
        };
        let Some(first) = model.specs().into_iter().next() else { return Ok(()) };
        let on_disk: Vec<&str> = self.entries.keys().map(String::as_str).collect();
        let wrapped = Wrapped::find(&on_disk, &names.in_files(&first.name), &self.weights_place())?;
        static SAID: Once = Once::new();
        if let Some((disk, plain)) = &wrapped.example {
            SAID.call_once(|| {
                say!(
                    "warning: {}: {} is read as {plain}; an output keeps the names as they are, \
                     and transformers finds a model under such names only after they are changed",
                    self.weights_place(),
                    plain_line(disk)
                );
            });
        }
        self.wrapped = wrapped;
        Ok(())
    }

    /// Whether transformers finds the tensors under the names that they have on disk.
    pub fn has_usual_names(&self) -> bool {
        !self.wrapped.is_some()
    }

    /// Takes the twin out of the entries, if there is one. Errors (bad input) if it differs from
    /// the embedding: transformers 4 would tie them and transformers 5 would not, so nobody can say
    /// which model is meant.
    fn find_twin(&mut self) -> Result<()> {
        // A classifier has no such model. A broken configuration gets its error where the model is
        // made.
        let Ok(model) = Model::from_config(&self.config) else { return Ok(()) };
        let heads = self.names.map_or(&[][..], |names| names.head);
        let tied = !heads.contains(&model.head());
        let Some(embedding) = self.disk_name(model.head()).filter(|_| tied).map(str::to_owned)
        else {
            return Ok(());
        };
        let found = heads.iter().find_map(|name| self.on_disk(name));
        let Some((name, head)) = found.and_then(|name| self.entries.get_key_value(name)) else {
            return Ok(());
        };
        let own = &self.entries[&embedding];
        if (own.dtype, &own.shape) != (head.dtype, &head.shape) || !self.same_bytes(own, head)? {
            bail_input!(
                "{}: {name} differs from {embedding}, but config.json ties them; set \
                 \"tie_word_embeddings\" to false there, or remove {name}",
                self.path(head).display()
            );
        }
        let name = name.clone();
        self.twin = self.entries.remove(&name).map(|entry| (embedding, entry));
        Ok(())
    }

    /// Whether two tensors of this folder have the same bytes.
    fn same_bytes(&self, a: &TensorInfo, b: &TensorInfo) -> Result<bool> {
        Ok(self.map(a)?.bytes(a)? == self.map(b)?.bytes(b)?)
    }

    /// The file that a tensor lies in.
    fn path(&self, tensor: &TensorInfo) -> PathBuf {
        self.dir.join(&self.files[tensor.file])
    }

    /// The file that a tensor lies in, mapped into memory.
    fn map(&self, tensor: &TensorInfo) -> Result<Mapped> {
        let path = self.path(tensor);
        Mapped::open(&path).with_context(|| path.display().to_string())
    }

    /// Every place where a tensor is stored. An embedding with a twin has two.
    fn stored(&self, name: &str) -> impl Iterator<Item = &TensorInfo> {
        let twin =
            self.twin.as_ref().filter(|(embedding, _)| embedding == name).map(|(_, entry)| entry);
        self.entries.get(name).into_iter().chain(twin)
    }

    /// The name on disk of a tensor that the architecture calls `name`: files may leave out what
    /// such names begin with.
    pub fn disk_name<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        let names = self.names.map_or_else(|| vec![name], |names| names.in_files(name));
        names.into_iter().find_map(|name| self.on_disk(name))
    }

    /// The name on disk of a tensor whose name is one that files usually have.
    fn on_disk<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        match self.wrapped.is_some() {
            true => self.wrapped.on_disk(name),
            false => self.entries.contains_key(name).then_some(name),
        }
    }

    fn entry<'a>(&'a self, spec: &'a TensorSpec) -> Result<(&'a str, &'a TensorInfo)> {
        let Some(name) = self.disk_name(&spec.name) else {
            let why = match spec.place {
                Place::Head => "; AutoModel saves a model without it, AutoModelForCausalLM with it",
                _ => "",
            };
            bail_input!("{}: tensor {} is missing{why}", self.weights_place(), spec.name);
        };
        let entry = &self.entries[name];
        if entry.shape != spec.shape {
            bail_input!(
                "{}: tensor {name} has shape {:?}, config.json asks for {:?}",
                self.path(entry).display(),
                entry.shape,
                spec.shape
            );
        }
        Ok((name, entry))
    }

    fn weights_place(&self) -> String {
        self.dir.join(self.files.first().map_or(SINGLE, String::as_str)).display().to_string()
    }

    /// Errors (bad input) if a matrix of the model is not stored in this dtype, so that it would
    /// have to be rounded.
    pub fn stores(&self, model: &Model, dtype: WeightsDtype) -> Result<()> {
        let specs = model.specs();
        for spec in specs.iter().filter(|spec| dtype != WeightsDtype::F32 && spec.is_matrix()) {
            let (name, entry) = self.entry(spec)?;
            if entry.kept_in(dtype) == WeightsDtype::F32 {
                bail_input!(
                    "{}: tensor {name} is stored as {:?}, but --weights-dtype {dtype} rounds \
                     nothing: leave it at f32, or store the model in {dtype}",
                    self.path(entry).display(),
                    entry.dtype
                );
            }
        }
        Ok(())
    }

    /// Warns on stderr, once in a process, about the first tensor of a block that is no part of the
    /// model. Such tensors are ignored, as in transformers, but the block may not be what was
    /// trained.
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
                say!(
                    "warning: {}: tensor {name} is no part of the model that config.json describes \
                     (\"model_type\", \"attention_bias\", \"mlp_bias\") and is ignored",
                    self.path(entry).display(),
                    name = plain_line(name)
                )
            });
        }
    }

    /// All tensors of the model, on `device`. Matrices stored in `kept` keep this dtype, all other
    /// tensors become f32. Errors (bad input) on a missing tensor, a wrong shape, a dtype other
    /// than f32, f16 and bf16, or a value that is not finite.
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

    /// All tensors of floats, in f32 on the CPU, by name on disk. Tensors of integers
    /// (`position_ids`) and the twin are left out. Errors are those of [`Self::load`].
    pub fn floats(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut maps = self.maps();
        let is_integer = |entry: &TensorInfo| {
            use Dtype::{BOOL, I8, I16, I32, I64, U8, U16, U32, U64};
            [BOOL, I8, I16, I32, I64, U8, U16, U32, U64].contains(&entry.dtype)
        };
        let floats = self.entries.iter().filter(|(_, entry)| !is_integer(entry));
        floats
            .map(|(name, entry)| Ok((name.clone(), self.tensor::<f32>(&mut maps, name, entry)?)))
            .collect()
    }

    /// Room for the map of each weight file. None is opened yet.
    fn maps(&self) -> Vec<Option<Mapped>> {
        self.files.iter().map(|_| None).collect()
    }

    /// A tensor on the CPU. Its file is mapped if it is not mapped yet.
    fn tensor<T: FromStored>(
        &self,
        maps: &mut [Option<Mapped>],
        name: &str,
        entry: &TensorInfo,
    ) -> Result<Tensor> {
        let path = self.path(entry);
        let map = match &mut maps[entry.file] {
            Some(map) => map,
            place => place.insert(self.map(entry)?),
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

    /// SHA-256 of each weight file, by its name.
    pub fn hashes(&self) -> Result<&BTreeMap<String, String>> {
        if let Some(hashes) = self.hashes.get() {
            return Ok(hashes);
        }
        /// What is read in a second or two shows no progress.
        const SOON: u64 = 2 << 30;
        let paths = || self.files.iter().map(|file| (file, self.dir.join(file)));
        let size = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        let bytes: u64 = paths().map(|(_, path)| size(&path)).sum();
        let mut progress =
            Progress::new("hashing, MiB", 0, (bytes >> 20) as usize, bytes < SOON || !is_watched());
        let (mut read, mut shown) = (0, 0);
        let mut told = |n: usize| {
            read += n;
            progress.advance((read >> 20) - shown);
            shown = read >> 20;
        };
        let found = paths()
            .map(|(file, path)| Ok((file.clone(), hash_told(&path, &mut told)?)))
            .collect::<Result<_>>()?;
        progress.finish();
        Ok(self.hashes.get_or_init(|| found))
    }

    /// One hash for all weights: that of the only file, or the hash of the hashes of all shards in
    /// order.
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

    /// One hash for all that decides what the model says: its weights, and the small files beside
    /// them. What is kept of a model (a state, a cache, a ledger) is known by it.
    pub fn identity(&self) -> Result<String> {
        let mut hash = Sha256::new();
        hash.update(self.hash()?);
        for name in files::BESIDE_WEIGHTS {
            let path = self.dir.join(name);
            if path.is_file() {
                hash.update(name);
                hash.update(hash_file(&path)?);
            }
        }
        Ok(hex(&hash.finalize()))
    }

    /// Dtype and shape of a tensor by its name on disk.
    pub fn dtype_and_shape(&self, name: &str) -> Result<(Dtype, Vec<usize>)> {
        let entry = self.entries.get(name).with_context(|| format!("no tensor {name}"))?;
        Ok((entry.dtype, entry.shape.clone()))
    }

    /// The bytes of a tensor on disk.
    pub fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let entry = self.entries.get(name).with_context(|| format!("no tensor {name}"))?;
        Ok(self.map(entry)?.bytes(entry)?.to_vec())
    }
}
