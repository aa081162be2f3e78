//! The curves of a run as a TensorBoard event file: records of `tensorflow.Event`, each framed by
//! its length and two masked CRC-32C (the TFRecord format).

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::train::log::Line;

/// An event file that grows by a record a line of the log.
pub struct EventFile {
    file: File,
}

impl EventFile {
    /// A new file in `dir`. `first` is the first step that will be written (again): TensorBoard
    /// drops what it has from there.
    pub fn create(dir: &Path, first: usize) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let path = dir.join(format!("events.out.tfevents.{now:020}.irepair"));
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        let mut events = Self { file };
        events.record(&text_field(3, "brain.Event:2"))?;
        // session_log { status: START }. TensorBoard takes the first one of a folder for the run's
        // beginning and drops nothing for it, so a fresh file has one, too.
        events.record(&[int_field(2, first as u64), bytes_field(7, &int_field(1, 1))].concat())?;
        Ok(events)
    }

    /// The numbers of a line of the log.
    pub fn write(&mut self, line: &Line) -> Result<()> {
        let (step, values) = match line {
            Line::Trial(line) => {
                let named = |loss| (format!("trial/{}", line.trial.join("+")), loss);
                (0, line.valid_loss.map(named).into_iter().collect())
            }
            Line::Round(line) => {
                let mut values = vec![("round/pairs".to_owned(), line.pairs as f64)];
                // No texts have no share.
                let shares = [
                    ("round/toxic_percent", line.toxic, line.texts),
                    ("round/greedy_toxic_percent", line.greedy_toxic, line.greedy),
                ];
                values.extend(shares.iter().filter(|(_, _, of)| *of > 0).map(
                    |(name, part, of)| ((*name).to_owned(), 100.0 * *part as f64 / *of as f64),
                ));
                (line.step, values)
            }
            Line::Step(line) => {
                let mut values = vec![("train/loss".to_owned(), line.loss)];
                let named = [
                    ("train/nll_good", line.nll_good),
                    ("train/nll_bad", line.nll_bad),
                    ("train/kl", line.kl),
                ];
                values.extend(
                    named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))),
                );
                values.push(("train/lr".into(), line.lr));
                values.push(("train/grad_norm".into(), line.grad_norm));
                values.extend(line.block.map(|block| ("train/block".to_owned(), block as f64)));
                let blocks = line.sensitivity.iter().enumerate();
                values
                    .extend(blocks.map(|(block, s)| (format!("sensitivity/block_{block:02}"), *s)));
                (line.step, values)
            }
            Line::Validation(line) => {
                let mut values = vec![("valid/loss".to_owned(), line.valid_loss)];
                values.extend(line.ppl.map(|ppl| ("valid/ppl".to_owned(), ppl)));
                (line.step, values)
            }
        };
        let summary: Vec<u8> = values
            .iter()
            .flat_map(|(tag, value)| {
                let value = [text_field(1, tag), float_field(2, *value as f32)].concat();
                bytes_field(1, &value)
            })
            .collect();
        self.record(&[int_field(2, step as u64), bytes_field(5, &summary)].concat())
    }

    fn record(&mut self, event: &[u8]) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        // wall_time, a double, is field 1.
        let event = [&[0x09][..], &now.to_le_bytes(), event].concat();
        let length = (event.len() as u64).to_le_bytes();
        let record = [&length[..], &masked_crc(&length), &event, &masked_crc(&event)].concat();
        self.file.write_all(&record).context("writing the event file")
    }
}

/// TFRecord's CRC: rotated and moved, so that a CRC of data with CRCs in it means something.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

fn int_field(number: u64, value: u64) -> Vec<u8> {
    [varint(number << 3), varint(value)].concat()
}

fn float_field(number: u64, value: f32) -> Vec<u8> {
    [varint(number << 3 | 5), value.to_le_bytes().to_vec()].concat()
}

fn bytes_field(number: u64, bytes: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(bytes.len() as u64), bytes.to_vec()].concat()
}

fn text_field(number: u64, text: &str) -> Vec<u8> {
    bytes_field(number, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file that tensorboard 2.21's `EventFileWriter(dir).close()` leaves begins with `48 00 00
    /// 00 00 00 00 00 fe 92 48 9d`: the length of its first record and that length's masked CRC.
    #[test]
    fn records_are_framed_as_tensorboard_frames_them() {
        assert_eq!(masked_crc(&72u64.to_le_bytes()), [0xfe, 0x92, 0x48, 0x9d]);
        assert_eq!(varint(300), [0xac, 0x02]);
    }
}
