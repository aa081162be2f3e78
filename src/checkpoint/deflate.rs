//! How the bytes of a patch's differences are deflated: grouped by their place in a value.

use std::io::{Read, Write};

use anyhow::Result;
use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;

/// Groups the bytes of values and deflates them: first the last byte of every value, then the one
/// before it, and so on.
pub(super) fn deflate(bytes: &[u8], width: usize) -> Result<Vec<u8>> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(4));
    for place in (0..width).rev() {
        let group: Vec<u8> = bytes.iter().skip(place).step_by(width).copied().collect();
        encoder.write_all(&group)?;
    }
    Ok(encoder.finish()?)
}

/// Undoes [`deflate`]. Errors if the result has not exactly `length` bytes.
pub(super) fn inflate(deflated: &[u8], width: usize, length: usize) -> Result<Vec<u8>> {
    let mut grouped = Vec::with_capacity(length);
    ZlibDecoder::new(deflated).take(length as u64 + 1).read_to_end(&mut grouped)?;
    anyhow::ensure!(grouped.len() == length, "{} bytes for {length}", grouped.len());
    let values = length / width;
    let mut bytes = vec![0; length];
    for (group, place) in (0..width).rev().enumerate() {
        for value in 0..values {
            bytes[value * width + place] = grouped[group * values + value];
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deflating_is_undone_exactly_and_a_bomb_is_refused() {
        let bytes: Vec<u8> = (0..4000u32).flat_map(|i| (i * i % 1000).to_le_bytes()).collect();
        let deflated = deflate(&bytes, 4).expect("deflates");
        assert!(deflated.len() < bytes.len() / 2);
        assert_eq!(inflate(&deflated, 4, bytes.len()).expect("inflates"), bytes);
        assert!(inflate(&deflated, 4, bytes.len() - 4).is_err());
        assert!(inflate(&deflated[..deflated.len() / 2], 4, bytes.len()).is_err());
    }
}
