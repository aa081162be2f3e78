//! The *header* of a weight file says where each tensor lies. It is checked before it is believed.

use std::path::Path;

use anyhow::Result;
use safetensors::{Dtype, SafeTensorError, SafeTensors};

use crate::base::error::Error;
use crate::model::precision::WeightsDtype;

/// The file that holds all weights of a model.
pub const SINGLE: &str = "model.safetensors";
/// The file that says which file, or shard, holds which tensor.
pub const INDEX: &str = "model.safetensors.index.json";

/// Where a tensor lies on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Which of the weight files.
    pub file: usize,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Position of the first byte in the file.
    pub offset: u64,
    pub bytes: u64,
}

impl TensorInfo {
    /// The dtype that its values have in memory, if values stored in `dtype` keep that dtype.
    pub fn kept_in(&self, dtype: WeightsDtype) -> WeightsDtype {
        match (dtype, self.dtype) {
            (WeightsDtype::Bf16, Dtype::BF16) | (WeightsDtype::F16, Dtype::F16) => dtype,
            _ => WeightsDtype::F32,
        }
    }
}

/// Names and places of the tensors in the `index`-th weight file of a model, whose bytes are
/// `file`. Errors (bad input) if its header is broken, or if it has more or fewer bytes than the
/// header says.
pub fn read_header(file: &[u8], path: &Path, index: usize) -> Result<Vec<(String, TensorInfo)>> {
    let (length, metadata) = SafeTensors::read_metadata(file)
        .map_err(|e| Error::Input(format!("{}: {}", path.display(), reason(&e, file))))?;
    let place = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        let (from, to) = info.data_offsets;
        let (offset, bytes) = ((size_of::<u64>() + length + from) as u64, (to - from) as u64);
        let (dtype, shape) = (info.dtype, info.shape.clone());
        (name, TensorInfo { file: index, dtype, shape, offset, bytes })
    };
    Ok(metadata.tensors().into_iter().map(place).collect())
}

/// Why a file is refused.
fn reason(error: &SafeTensorError, file: &[u8]) -> String {
    use SafeTensorError::{
        HeaderTooLarge, HeaderTooSmall, InvalidHeaderLength, MetadataIncompleteBuffer,
    };
    let size = file.len();
    match (error, file.first_chunk()) {
        (HeaderTooSmall, _) => {
            format!("truncated: {size} bytes are not a safetensors file; download it again")
        }
        (HeaderTooLarge | InvalidHeaderLength, Some(length)) => format!(
            "the header says that it has {} bytes, the file has {size}; it is truncated or not a \
             safetensors file",
            u64::from_le_bytes(*length)
        ),
        (MetadataIncompleteBuffer, _) => format!(
            "the tensors in the header don't end where the file ends, after {size} bytes; it is \
             truncated or was changed: download it again"
        ),
        _ => format!("broken header: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with this header and so many bytes of data.
    fn file(header: &str, data: usize) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
    }

    #[test]
    fn a_header_that_lies_is_refused() {
        let tensor = |name: &str, values: u64, from: usize, to: usize| {
            format!(r#""{name}":{{"dtype":"F32","shape":[{values}],"data_offsets":[{from},{to}]}}"#)
        };
        let a = tensor("a", 2, 0, 8);
        let read = |file: &[u8]| read_header(file, Path::new("model.safetensors"), 0);
        let good = read(&file(&format!("{{{a}}}"), 8)).expect("good");
        assert_eq!((good[0].0.as_str(), good[0].1.bytes, good[0].1.file), ("a", 8, 0));
        let both = |b: String| format!("{{{a},{b}}}");
        for (file, words) in [
            (file(&both(tensor("b", 1, 4, 8)), 8), "offset for tensor `b`"),
            (file(&both(tensor("b", 1, 12, 16)), 16), "offset for tensor `b`"),
            (file(&both(tensor("b", 2, 8, 12)), 12), "invalid shape"),
            (file(&both(tensor("b", u64::MAX, 8, 12)), 12), "overflow"),
            (file(&format!("{{{a}}}"), 7), "after 69 bytes; it is truncated"),
            (file(&format!("{{{a}}}"), 9), "after 71 bytes; it is truncated or was changed"),
            (file("nonsense", 0), "broken header"),
            (u64::MAX.to_le_bytes().to_vec(), "the header says that it has 18446744073709551615"),
            (vec![0; 7], "truncated: 7 bytes"),
        ] {
            let error = read(&file).expect_err(words).to_string();
            assert!(error.starts_with("model.safetensors: "), "{error}");
            assert!(error.contains(words), "{words:?} is not in: {error}");
        }
    }
}
