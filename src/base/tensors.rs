//! Files of tensors in the safetensors format: equal content gives equal bytes.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Result, bail};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use safetensors::Dtype;
use serde_json::Value;

use super::files::write_with;

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
            match &stored.content {
                Content::Values(tensor) => file.write_all(&to_bytes(tensor, stored.dtype)?)?,
                Content::Bytes(bytes) => file.write_all(bytes)?,
            }
        }
        Ok(())
    })
}

/// Values of a tensor as bytes in the dtype it is stored in.
pub fn to_bytes(tensor: &Tensor, dtype: Dtype) -> Result<Vec<u8>> {
    let values = tensor.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        other => bail!("can't write {other:?}"),
    })
}
