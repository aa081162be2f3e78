//! A *checkpoint* is a model folder in Hugging Face layout: `config.json`, `tokenizer.json`, and weights in one
//! `model.safetensors` or in shards with an index.
//!
//! Opening reads headers only (and a tied head that is stored all the same). Writing copies every file of the base byte
//! for byte and then puts the changed tensors at their places, so whatever was not touched is equal to the base by
//! construction; [`compare`] checks it all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Once, OnceLock};

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor, WithDType};
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::Dtype;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::bail_input;
use crate::fault::Fault;
use crate::model::Model;
use crate::model::kernels::stored::WeightsDtype;
use crate::weights::{Place, TensorSpec, Weights, Who};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// What transformers loads a language model of any architecture with.
pub const ANY_CLASS: &str = "AutoModelForCausalLM";
/// The longest header that the safetensors format allows.
const MAX_HEADER: u64 = 100_000_000;

/// What an output head of its own is called, in every architecture.
const HEAD: &str = "lm_head.weight";

/// Masks and frequencies that older versions of transformers stored in blocks: they are no parameters.
const BUFFERS: [&str; 5] = [
    ".attn.bias",
    ".attn.masked_bias",
    ".attn.attention.bias",
    ".attn.attention.masked_bias",
    ".self_attn.rotary_emb.inv_freq",
];

/// Where a tensor lies on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Which of the weight files.
    pub file: usize,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Position of the first byte in the file.
    pub offset: u64,
    pub bytes: u64,
}

impl Entry {
    /// What its values are kept in where those stored in `dtype` are kept so.
    fn kept_in(&self, dtype: WeightsDtype) -> WeightsDtype {
        match (dtype, self.dtype) {
            (WeightsDtype::Bf16, Dtype::BF16) | (WeightsDtype::F16, Dtype::F16) => dtype,
            _ => WeightsDtype::F32,
        }
    }
}

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
        let text = std::fs::read_to_string(&config_path)
            .map_err(|e| Fault::Input(format!("{}: {e}; a model folder has a config.json", config_path.display())))?;
        let config = serde_json::from_str(&text)
            .map_err(|e| Fault::Input(format!("{}: broken JSON: {e}", config_path.display())))?;
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
        let mut checkpoint = Self { dir, name, revision, config, files, entries, twin: None, hashes };
        checkpoint.find_twin()?;
        Ok(checkpoint)
    }

    /// Takes the twin out of the entries, if there is one. Errors (bad input) if it differs from the embedding:
    /// transformers 4 would tie them and transformers 5 would not, so that no one can tell which model is meant.
    fn find_twin(&mut self) -> Result<()> {
        // What is wrong with a configuration is said where its model is made; a classifier has none here.
        let Ok(model) = Model::from_config(&self.config) else { return Ok(()) };
        let tied = model.head() != HEAD;
        let Some(embedding) = self.disk_name(model.head()).filter(|_| tied).map(str::to_owned) else { return Ok(()) };
        let Some(head) = self.entries.get(HEAD) else { return Ok(()) };
        let own = &self.entries[&embedding];
        if (own.dtype, &own.shape) != (head.dtype, &head.shape) || !self.same_bytes(own, head)? {
            bail_input!(
                "{}: {HEAD} differs from {embedding}, to which config.json ties it; set \"tie_word_embeddings\" to \
                 false there, or remove {HEAD}",
                self.dir.join(&self.files[head.file]).display()
            );
        }
        self.twin = self.entries.remove(HEAD).map(|entry| (embedding, entry));
        Ok(())
    }

    /// Whether two tensors of this folder have the same bytes.
    fn same_bytes(&self, a: &Entry, b: &Entry) -> Result<bool> {
        let map = |entry: &Entry| Mapped::open(&self.dir.join(&self.files[entry.file]));
        Ok(map(a)?.bytes(a)? == map(b)?.bytes(b)?)
    }

    /// Every place that a tensor's bytes are stored in: with a twin, that of the embedding and that of the head.
    fn stored(&self, name: &str) -> impl Iterator<Item = &Entry> {
        let twin = self.twin.as_ref().filter(|(embedding, _)| embedding == name).map(|(_, entry)| entry);
        self.entries.get(name).into_iter().chain(twin)
    }

    /// The name on disk of a tensor that transformers calls `name`: files have it with or without `transformer.`.
    pub fn disk_name<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        let bare = name.strip_prefix("transformer.").unwrap_or(name);
        [name, bare].into_iter().find(|n| self.entries.contains_key(*n))
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
                && !BUFFERS.iter().any(|buffer| name.ends_with(*buffer))
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
            tensors.insert(spec.name.clone(), if device.is_cpu() { tensor } else { tensor.to_device(device)? });
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
        floats.map(|(name, entry)| Ok((name.clone(), self.tensor::<f32>(&mut maps, name, entry)?))).collect()
    }

    /// A place for the map of each weight file, none opened yet.
    fn maps(&self) -> Vec<Option<Mapped>> {
        self.files.iter().map(|_| None).collect()
    }

    /// A tensor on the CPU; its file is mapped if it isn't yet.
    fn tensor<T: Kept>(&self, maps: &mut [Option<Mapped>], name: &str, entry: &Entry) -> Result<Tensor> {
        let path = self.dir.join(&self.files[entry.file]);
        let map = match &mut maps[entry.file] {
            Some(map) => map,
            place => place.insert(Mapped::open(&path)?),
        };
        let values =
            map.values::<T>(entry).map_err(|e| Fault::Input(format!("{}: tensor {name}: {e}", path.display())))?;
        let finite =
            values.par_chunks(1 << 16).all(|part| part.iter().fold(true, |all, v| all & v.to_f64().is_finite()));
        if let Some(at) = (!finite).then(|| values.iter().position(|v| !v.to_f64().is_finite())).flatten() {
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
        let found = self.files.iter().map(|f| Ok((f.clone(), hash_file(&self.dir.join(f))?))).collect::<Result<_>>()?;
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

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of bytes.
pub fn hash_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of texts in order, a zero byte after each.
pub fn hash_texts<'a>(texts: impl Iterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for text in texts {
        hash.update(text.as_bytes());
        hash.update(b"\0");
    }
    hex(&hash.finalize())
}

/// SHA-256 of a file.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut reader = BufReader::with_capacity(1 << 20, File::open(path).with_context(|| path.display().to_string())?);
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = reader.read(&mut buffer).with_context(|| path.display().to_string())?;
        if n == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}

/// Weights in another format under the names that transformers looks for.
const OTHERS: [&str; 4] = ["pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack"];

/// Whether a file's ending is that of pickled tensors. They can run code, and are never opened.
fn is_pickle(file: &str) -> bool {
    [".bin", ".pth", ".pt", ".ckpt"].iter().any(|ending| file.ends_with(ending))
}

/// What of transformers writes safetensors of a file of weights in another format, mostly a line of Python, if its name
/// says that it is one.
pub fn conversion(file: &str, class: &str) -> Option<String> {
    if OTHERS.contains(&file) {
        return Some(format!("{class}.from_pretrained(DIR).save_pretrained(OUT, safe_serialization=True)"));
    }
    if is_pickle(file) {
        return conversion_of_pickle(file, class);
    }
    // Newer versions of transformers don't save what they read of a GGUF file unless they forget where it is from.
    file.ends_with(".gguf").then(|| {
        format!(
            "m = {class}.from_pretrained(DIR, gguf_file={file:?}); m.hf_quantizer = None; \
             vars(m.config).pop('quantization_config', None); m.save_pretrained(OUT); \
             AutoTokenizer.from_pretrained(DIR, gguf_file={file:?}).save_pretrained(OUT)"
        )
    })
}

/// [`conversion`] of what transformers does not find by itself; none of what only training goes on from.
fn conversion_of_pickle(file: &str, class: &str) -> Option<String> {
    if ["optimizer.", "rng_state", "scaler.", "scheduler.", "training_args."].iter().any(|of| file.starts_with(of)) {
        return None;
    }
    if file.starts_with("consolidated") && file.ends_with(".pth") {
        return Some(
            "python convert_llama_weights_to_hf.py --input_dir DIR --output_dir OUT (a script of transformers 4, in \
             models/llama)"
                .into(),
        );
    }
    let variant = file.strip_prefix("pytorch_model.").and_then(|rest| rest.strip_suffix(".bin"));
    // With its shards' numbers behind it: `fp16-00001-of-00002`.
    if let Some(variant) = variant.and_then(|rest| rest.split("-0").next()) {
        return Some(format!("{class}.from_pretrained(DIR, variant={variant:?}).save_pretrained(OUT)"));
    }
    let (files, names) = match file.starts_with("pytorch_model-") {
        true => ("glob.glob(DIR + '/pytorch_model-*.bin')".to_owned(), ""),
        false => (format!("[DIR + '/{file}']"), " (if its tensors have the names that transformers gives them)"),
    };
    // Only a class of its own takes tensors without a folder.
    let class = if class == ANY_CLASS { format!("type({class}.from_config(c))") } else { class.to_owned() };
    Some(format!(
        "c = AutoConfig.from_pretrained(DIR); \
         s = {{k: v for f in {files} for k, v in torch.load(f, weights_only=True).items()}}; \
         {class}.from_pretrained(None, config=c, state_dict=s).save_pretrained(OUT){names}"
    ))
}

/// Errors (bad input) if the folder has weights in another format, and says how to convert them.
fn refuse_other_weights(dir: &Path, config: &Value) -> Result<()> {
    let class = config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or(ANY_CLASS);
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut files: Vec<String> = files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    files.sort_by_key(|file| (!OTHERS.contains(&file.as_str()), file.clone()));
    match files.iter().find_map(|file| Some((file, conversion(file, class)?))) {
        Some((file, line)) => bail_input!(
            "{}: no {SINGLE}, only {file}, which is not loaded; convert it with transformers: {line}",
            dir.display()
        ),
        None => Ok(()),
    }
}

/// File names of the weights of a folder.
fn weight_files(dir: &Path, config: &Value) -> Result<Vec<String>> {
    let index = dir.join(INDEX);
    if dir.join(SINGLE).is_file() {
        return Ok(vec![SINGLE.into()]);
    }
    if !index.is_file() {
        refuse_other_weights(dir, config)?;
        bail_input!("{}: no {SINGLE} and no {INDEX}; a model folder has weights", dir.display());
    }
    let text = std::fs::read_to_string(&index).map_err(|e| Fault::Input(format!("{}: {e}", index.display())))?;
    let value: Value =
        serde_json::from_str(&text).map_err(|e| Fault::Input(format!("{}: broken JSON: {e}", index.display())))?;
    let Some(map) = value.get("weight_map").and_then(Value::as_object) else {
        bail_input!("{}: no \"weight_map\"", index.display());
    };
    let mut files: Vec<String> = map.values().filter_map(|v| v.as_str().map(str::to_owned)).collect();
    files.sort();
    files.dedup();
    for file in &files {
        if file.contains(['/', '\\']) || file.starts_with('.') {
            bail_input!("{}: {file:?} is not a file of this folder", index.display());
        }
        if !dir.join(file).is_file() {
            bail_input!("{}: shard {file} is missing", dir.display());
        }
    }
    if files.is_empty() {
        bail_input!("{}: an empty \"weight_map\"", index.display());
    }
    Ok(files)
}

/// Names and entries of one safetensors file; its header is not believed before it is checked against the file's size.
fn read_header(path: &Path, index: usize) -> Result<Vec<(String, Entry)>> {
    let broken = |why: String| Fault::Input(format!("{}: {why}", path.display()));
    let mut file = File::open(path).map_err(|e| broken(e.to_string()))?;
    let size = file.metadata().map_err(|e| broken(e.to_string()))?.len();
    let mut length = [0u8; 8];
    file.read_exact(&mut length)
        .map_err(|_| broken(format!("truncated: {size} bytes are no safetensors file; download it again")))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length + 8 > size {
        return Err(broken(format!(
            "the header says it has {length} bytes, the file has {size}; it is truncated or no safetensors file"
        ))
        .into());
    }
    let mut header = vec![0; length as usize + 8];
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_exact(&mut header)).map_err(|e| broken(e.to_string()))?;
    let metadata: safetensors::tensor::Metadata =
        serde_json::from_slice(&header[8..]).map_err(|e| broken(format!("broken header: {e}")))?;
    let mut tensors: Vec<_> = metadata.tensors().into_iter().collect();
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut end = 0;
    let mut entries = Vec::with_capacity(tensors.len());
    for (name, info) in tensors {
        let values = info.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let bits = values.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        if info.data_offsets.0 != end || bits != info.data_offsets.1.checked_sub(end).and_then(|n| n.checked_mul(8)) {
            return Err(broken(format!("broken header: tensor {name} does not fit its place")).into());
        }
        let bytes = (info.data_offsets.1 - end) as u64;
        let offset = 8 + length + end as u64;
        entries.push((name, Entry { file: index, dtype: info.dtype, shape: info.shape.clone(), offset, bytes }));
        end = info.data_offsets.1;
    }
    let expected = 8 + length + end as u64;
    if expected != size {
        return Err(broken(format!(
            "the header describes {expected} bytes, the file has {size}; it is {}",
            if size < expected { "truncated: download it again" } else { "not what its header says" }
        ))
        .into());
    }
    Ok(entries)
}

fn read_bytes(file: &mut File, entry: &Entry) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; entry.bytes as usize];
    file.seek(SeekFrom::Start(entry.offset))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A weight file mapped into memory: values are converted on all cores straight from its pages, which are let go again.
struct Mapped(Mmap);

impl Mapped {
    fn open(path: &Path) -> Result<Self> {
        let place = || path.display().to_string();
        let file = File::open(path).with_context(place)?;
        // SAFETY: the map is read only while tensors are converted. A file cut short meanwhile would end the program; its
        // length was checked when its header was read.
        Ok(Self(unsafe { Mmap::map(&file) }.with_context(place)?))
    }

    /// A tensor's bytes.
    fn bytes(&self, entry: &Entry) -> Result<&[u8]> {
        let from = entry.offset as usize;
        self.0.get(from..from + entry.bytes as usize).context("the file is shorter than its header says")
    }

    /// A tensor's values: memory grows by them alone.
    fn values<T: Kept>(&self, entry: &Entry) -> Result<Vec<T>> {
        const PIECE: usize = 1 << 18;
        let width = match entry.dtype {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
            other => bail!("stored as {other:?}; have: F32, F16, BF16"),
        };
        let count: usize = entry.shape.iter().product();
        let (from, length) = (entry.offset as usize, entry.bytes as usize);
        let bytes = self.bytes(entry)?;
        if length != count * width {
            bail!("{length} bytes for {count} values");
        }
        let mut values = vec![T::zero(); count];
        values.par_chunks_mut(PIECE).zip(bytes.par_chunks(PIECE * width)).for_each(|(values, bytes)| {
            T::convert(bytes, entry.dtype, values);
        });
        #[cfg(unix)]
        // SAFETY: the pages are unchanged file contents, which come back when they are read again.
        unsafe {
            // Only a hint: without it the pages stay counted as ours until the file is closed.
            self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, length).ok();
        }
        Ok(values)
    }
}

/// A type that values are kept in.
trait Kept: WithDType {
    /// Stored bytes into values, as many; the half types take their own dtype only.
    fn convert(bytes: &[u8], dtype: Dtype, values: &mut [Self]);
}

impl Kept for f32 {
    fn convert(bytes: &[u8], dtype: Dtype, values: &mut [Self]) {
        match dtype {
            Dtype::F16 => each(bytes, values, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => each(bytes, values, |b| bf16::from_le_bytes(b).to_f32()),
            _ => each(bytes, values, f32::from_le_bytes),
        }
    }
}

impl Kept for bf16 {
    fn convert(bytes: &[u8], _: Dtype, values: &mut [Self]) {
        each(bytes, values, bf16::from_le_bytes);
    }
}

impl Kept for f16 {
    fn convert(bytes: &[u8], _: Dtype, values: &mut [Self]) {
        each(bytes, values, f16::from_le_bytes);
    }
}

fn each<T, const N: usize>(bytes: &[u8], values: &mut [T], of: impl Fn([u8; N]) -> T) {
    values.iter_mut().zip(bytes.as_chunks::<N>().0).for_each(|(value, bytes)| *value = of(*bytes));
}

/// Values of a tensor as bytes in the dtype it is stored in.
fn to_bytes(tensor: &Tensor, dtype: Dtype) -> Result<Vec<u8>> {
    let values = tensor.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        other => bail!("can't write {other:?}"),
    })
}

/// Whether a file holds the weights once more in another form: not copied, it would be the unrepaired ones.
fn is_other_weights(name: &str) -> bool {
    let pickled = is_pickle(name) && name != "training_args.bin";
    let endings = [".safetensors", ".safetensors.index.json", ".onnx", ".gguf"];
    OTHERS.contains(&name) || name == "rust_model.ot" || pickled || endings.iter().any(|e| name.ends_with(e))
}

impl Checkpoint {
    /// Rounds the touched tensors to what their stored dtype can hold, so that what is measured is what is written.
    /// Errors (a failed check) if a value does not fit (f16 ends at 65,504) or is not finite.
    pub fn round(&self, weights: &mut Weights) -> Result<()> {
        let names: Vec<String> = weights.touched().map(|(n, _)| n.to_owned()).collect();
        for name in names {
            let disk = self.disk_name(&name).with_context(|| format!("{name} is not in the base"))?.to_owned();
            let dtype = self.entries[&disk].dtype;
            let tensor = weights.tensor(Who::Patient, &name)?;
            let bytes = to_bytes(&tensor, dtype)?;
            let mut values = vec![0f32; tensor.elem_count()];
            f32::convert(&bytes, dtype, &mut values);
            if let Some(value) = values.iter().find(|v| !v.is_finite()) {
                return Err(Fault::Check(format!(
                    "{disk} would be written with {value} in it ({dtype:?}); lower --learning-rate"
                ))
                .into());
            }
            if dtype != Dtype::F32 {
                let rounded = Tensor::from_vec(values, tensor.dims(), &Device::Cpu)?.to_device(&weights.device())?;
                weights.restore(&name, rounded)?;
            }
        }
        Ok(())
    }
}

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
fn copy_folder(base: &Checkpoint, from: &Path, out: &Path, inside: &Path, left_out: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let place = inside.join(&name);
        let at_top = inside.as_os_str().is_empty();
        // Follows links: a hub cache's files are links to its blobs.
        let metadata = std::fs::metadata(entry.path()).with_context(|| entry.path().display().to_string())?;
        if name.starts_with('.') || (at_top && (name == "README.md" || name == "irepair")) {
            continue;
        }
        if metadata.is_dir() {
            let folder = out.join(&place);
            std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            copy_folder(base, &entry.path(), out, &place, left_out)?;
        } else if at_top && (base.files.contains(&name) || (name == INDEX && base.files != [SINGLE])) {
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
    std::fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
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
    File::options().write(true).open(to)?.sync_all().with_context(|| format!("writing {}", to.display()))?;
    Ok(())
}

/// `path` gets `bytes` whole or stays as it was: written beside, then renamed.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| Ok(file.write_all(bytes)?))
}

fn write_with(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let writing = || format!("writing {}", path.display());
    let mut file = tempfile::NamedTempFile::new_in(dir).with_context(writing)?;
    write(file.as_file_mut()).with_context(writing)?;
    file.as_file().sync_all().with_context(writing)?;
    // Temporary files are private; results are for everyone whom the umask lets read them.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let everyone = std::fs::Permissions::from_mode(0o644);
        file.as_file().set_permissions(everyone).with_context(writing)?;
    }
    file.persist(path).with_context(writing)?;
    Ok(())
}

/// A tensor as it goes to disk.
pub struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub content: Content,
}

/// What a [`Stored`] tensor holds.
pub enum Content {
    /// Values, turned into bytes of the dtype when their turn comes: all of them at once would double the memory.
    Values(Tensor),
    Bytes(Vec<u8>),
}

impl Stored {
    /// A tensor's values in a dtype.
    pub fn values(tensor: &Tensor, dtype: Dtype) -> Self {
        Self { dtype, shape: tensor.dims().to_vec(), content: Content::Values(tensor.clone()) }
    }

    /// Bytes of no other meaning to safetensors.
    pub fn bytes(bytes: Vec<u8>) -> Self {
        Self { dtype: Dtype::U8, shape: vec![bytes.len()], content: Content::Bytes(bytes) }
    }

    fn len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Writes a safetensors file whole or not at all. The crate's own writer takes its metadata in a hash map, whose order
/// changes from run to run; here equal content gives equal bytes.
pub fn write_tensors(path: &Path, metadata: &[(&str, &str)], tensors: &BTreeMap<String, Stored>) -> Result<()> {
    let mut header = serde_json::Map::new();
    let metadata: serde_json::Map<_, _> = metadata.iter().map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect();
    header.insert("__metadata__".into(), metadata.into());
    let mut end = 0;
    for (name, t) in tensors {
        let offsets = [end, end + t.len()];
        header.insert(name.clone(), serde_json::json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": offsets}));
        end = offsets[1];
    }
    let mut header = serde_json::to_vec(&Value::Object(header))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = (header.len() as u64).to_le_bytes();
    write_with(path, |file| {
        file.write_all(&length)?;
        file.write_all(&header)?;
        for stored in tensors.values() {
            match &stored.content {
                Content::Values(tensor) => file.write_all(&to_bytes(tensor, stored.dtype)?)?,
                Content::Bytes(bytes) => file.write_all(bytes)?,
            }
        }
        Ok(())
    })
}

/// A tensor that differs between two checkpoints.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Name on disk.
    pub name: String,
    /// ‖after − before‖₂ and ‖before‖₂ of the stored values.
    pub norm: f64,
    pub base_norm: f64,
    pub values: usize,
}

/// Every tensor whose bytes differ, and the norm of its change; a tied head that is stored changes with its embedding
/// and is not named. Errors if names, shapes or dtypes differ.
pub fn compare(base: &Checkpoint, other: &Checkpoint) -> Result<Vec<Change>> {
    if !base.entries.keys().eq(other.entries.keys()) || base.twin.is_some() != other.twin.is_some() {
        bail!("{} and {} don't hold the same tensors", base.dir.display(), other.dir.display());
    }
    let mut changes = Vec::new();
    for (name, entry) in &base.entries {
        let theirs = &other.entries[name];
        if (entry.dtype, &entry.shape) != (theirs.dtype, &theirs.shape) {
            bail!("{name}: stored as {:?} {:?} and {:?} {:?}", entry.dtype, entry.shape, theirs.dtype, theirs.shape);
        }
        if base.bytes(name)? == other.bytes(name)? {
            continue;
        }
        let read = |c: &Checkpoint, e: &Entry| Mapped::open(&c.dir.join(&c.files[e.file]))?.values::<f32>(e);
        let (before, after) = (read(base, entry)?, read(other, theirs)?);
        let norm = before.iter().zip(&after).map(|(b, a)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
        let base_norm = before.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>().sqrt();
        changes.push(Change { name: name.clone(), norm, base_norm, values: before.len() });
    }
    Ok(changes)
}
