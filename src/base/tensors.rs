//! Writes files of *tensors* in the safetensors format. Equal content gives equal bytes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, bail};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::Value;

use super::files::write_with;

/// A tensor that goes to disk.
pub struct Stored {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub content: Content,
}

/// What a [`Stored`] tensor holds.
pub enum Content {
    /// Values. Each tensor becomes bytes of its dtype only when it is written: to do so for all at
    /// once would take twice the memory.
    Values(Tensor),
    Bytes(Vec<u8>),
    /// Bytes that were put aside.
    Aside(Aside),
}

/// Bytes in a temporary file, for what is too much for memory.
pub struct Aside {
    file: Arc<Mutex<File>>,
    first: u64,
    len: usize,
}

impl Aside {
    /// Puts bytes at the end of the file.
    pub fn put(file: &Arc<Mutex<File>>, bytes: &[u8]) -> Result<Self> {
        let mut open = file.lock().unwrap_or_else(PoisonError::into_inner);
        let first = open.seek(SeekFrom::End(0))?;
        open.write_all(bytes)?;
        Ok(Self { file: file.clone(), first, len: bytes.len() })
    }

    /// Reads them again.
    fn read(&self) -> Result<Vec<u8>> {
        let mut open = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        open.seek(SeekFrom::Start(self.first))?;
        let mut bytes = vec![0; self.len];
        open.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

impl Stored {
    /// The values of a tensor, in a dtype.
    pub fn values(tensor: &Tensor, dtype: Dtype) -> Self {
        Self { dtype, shape: tensor.dims().to_vec(), content: Content::Values(tensor.clone()) }
    }

    /// Bytes that were put aside, and are no values of a tensor.
    pub fn aside(aside: Aside) -> Self {
        Self { dtype: Dtype::U8, shape: vec![aside.len], content: Content::Aside(aside) }
    }

    /// What goes to disk.
    pub fn to_bytes(&self) -> Result<Cow<'_, [u8]>> {
        Ok(match &self.content {
            Content::Values(tensor) => to_bytes(tensor, self.dtype)?.into(),
            Content::Bytes(bytes) => bytes.into(),
            Content::Aside(aside) => aside.read()?.into(),
        })
    }

    fn len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Writes a safetensors file, whole or not at all. The writer of the crate `safetensors` takes its
/// metadata in a hash map, whose order changes from run to run; the order here is always the same.
pub fn write_tensors(
    path: &Path,
    metadata: &[(&str, &str)],
    tensors: &BTreeMap<String, Stored>,
) -> Result<()> {
    let mut header = serde_json::Map::new();
    let metadata: serde_json::Map<_, _> =
        metadata.iter().map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect();
    header.insert("__metadata__".into(), metadata.into());
    let mut end = 0;
    for (name, t) in tensors {
        let offsets = [end, end + t.len()];
        header.insert(
            name.clone(),
            serde_json::json!({"dtype": t.dtype, "shape": t.shape, "data_offsets": offsets}),
        );
        end = offsets[1];
    }
    let mut header = serde_json::to_vec(&Value::Object(header))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    let length = (header.len() as u64).to_le_bytes();
    write_with(path, |file| {
        file.write_all(&length)?;
        file.write_all(&header)?;
        for stored in tensors.values() {
            file.write_all(&stored.to_bytes()?)?;
        }
        Ok(())
    })
}

/// The values of a tensor as bytes of a dtype. Errors if the dtype is not F32, F16 or BF16.
pub fn to_bytes(tensor: &Tensor, dtype: Dtype) -> Result<Vec<u8>> {
    let values = tensor.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        other => bail!("can't write {other:?}; have: F32, F16, BF16"),
    })
}
