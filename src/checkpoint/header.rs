//! The headers of weight files: where each tensor lies. Nothing in them is believed before it is checked.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::Result;
use safetensors::Dtype;
use serde_json::Value;

use super::conversion::refuse_other_weights;
use super::{INDEX, SINGLE};
use crate::bail_input;
use crate::base::error::Error;
use crate::model::precision::WeightsDtype;

/// The longest header that the safetensors format allows.
const MAX_HEADER: u64 = 100_000_000;

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
    pub fn kept_in(&self, dtype: WeightsDtype) -> WeightsDtype {
        match (dtype, self.dtype) {
            (WeightsDtype::Bf16, Dtype::BF16) | (WeightsDtype::F16, Dtype::F16) => dtype,
            _ => WeightsDtype::F32,
        }
    }
}

/// File names of the weights of a folder.
pub fn weight_files(dir: &Path, config: &Value) -> Result<Vec<String>> {
    let index = dir.join(INDEX);
    if dir.join(SINGLE).is_file() {
        return Ok(vec![SINGLE.into()]);
    }
    if !index.is_file() {
        refuse_other_weights(dir, config)?;
        bail_input!("{}: no {SINGLE} and no {INDEX}; a model folder has weights", dir.display());
    }
    let text = std::fs::read_to_string(&index)
        .map_err(|e| Error::Input(format!("{}: {e}", index.display())))?;
    let value: Value = serde_json::from_str(&text)
        .map_err(|e| Error::Input(format!("{}: broken JSON: {e}", index.display())))?;
    let Some(map) = value.get("weight_map").and_then(Value::as_object) else {
        bail_input!("{}: no \"weight_map\"", index.display());
    };
    let mut files: Vec<String> =
        map.values().filter_map(|v| v.as_str().map(str::to_owned)).collect();
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
pub fn read_header(path: &Path, index: usize) -> Result<Vec<(String, Entry)>> {
    let broken = |why: String| Error::Input(format!("{}: {why}", path.display()));
    let mut file = File::open(path).map_err(|e| broken(e.to_string()))?;
    let size = file.metadata().map_err(|e| broken(e.to_string()))?.len();
    let mut length = [0u8; 8];
    file.read_exact(&mut length).map_err(|_| {
        broken(format!("truncated: {size} bytes are no safetensors file; download it again"))
    })?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || length + 8 > size {
        return Err(broken(format!(
            "the header says it has {length} bytes, the file has {size}; it is truncated or no safetensors file"
        ))
        .into());
    }
    let mut header = vec![0; length as usize + 8];
    file.seek(SeekFrom::Start(0))
        .and_then(|_| file.read_exact(&mut header))
        .map_err(|e| broken(e.to_string()))?;
    let metadata: safetensors::tensor::Metadata =
        serde_json::from_slice(&header[8..]).map_err(|e| broken(format!("broken header: {e}")))?;
    let mut tensors: Vec<_> = metadata.tensors().into_iter().collect();
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let mut end = 0;
    let mut entries = Vec::with_capacity(tensors.len());
    for (name, info) in tensors {
        let values = info.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
        let bits = values.and_then(|n| n.checked_mul(info.dtype.bitsize()));
        if info.data_offsets.0 != end
            || bits != info.data_offsets.1.checked_sub(end).and_then(|n| n.checked_mul(8))
        {
            return Err(
                broken(format!("broken header: tensor {name} does not fit its place")).into()
            );
        }
        let bytes = (info.data_offsets.1 - end) as u64;
        let offset = 8 + length + end as u64;
        entries.push((
            name,
            Entry { file: index, dtype: info.dtype, shape: info.shape.clone(), offset, bytes },
        ));
        end = info.data_offsets.1;
    }
    let expected = 8 + length + end as u64;
    if expected != size {
        return Err(broken(format!(
            "the header describes {expected} bytes, the file has {size}; it is {}",
            if size < expected {
                "truncated: download it again"
            } else {
                "not what its header says"
            }
        ))
        .into());
    }
    Ok(entries)
}

pub fn read_bytes(file: &mut File, entry: &Entry) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; entry.bytes as usize];
    file.seek(SeekFrom::Start(entry.offset))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}
