//! What holds of any weights, settings and logs, not only of those that a test names.

use std::collections::BTreeMap;
use std::path::Path;

use irepair::base::tensors::{Content, Stored, write_tensors};
use irepair::checkpoint::Checkpoint;
use irepair::checkpoint::patch::{Direction, PatchFile, diff};
use irepair::settings::{Layer, read_layer};
use irepair::train::log::{Line, StepLine, read_steps, write_line};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use safetensors::Dtype;
use serde_json::{Value, json};

use crate::support::files::{Folder, bytes};

/// A tensor: its dtype, its shape, and what its bytes are drawn from.
type Drawn = (Dtype, Vec<usize>, u64);

fn tensors() -> impl Strategy<Value = Vec<Drawn>> {
    let dtype = select(vec![Dtype::F32, Dtype::F16, Dtype::BF16]);
    vec((dtype, vec(1..7usize, 0..4), any::<u64>()), 1..5)
}

/// Finite numbers of every size and sign, zeros among them.
fn contents((dtype, shape, seed): &Drawn) -> Vec<u8> {
    let mut state = *seed | 1;
    let mut next = || {
        // xorshift64* (Vigna 2016).
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32
    };
    let count: usize = shape.iter().product();
    let one = |bits: u64| -> Vec<u8> {
        // An exponent of ones is no finite number: one bit of it is taken away.
        let (bits, exponent, lowest, width) = match dtype {
            Dtype::F32 => (bits & 0xFFFF_FFFF, 0x7F80_0000, 1 << 23, 4),
            Dtype::BF16 => (bits & 0xFFFF, 0x7F80, 1 << 7, 2),
            _ => (bits & 0xFFFF, 0x7C00, 1 << 10, 2),
        };
        let bits = if bits & exponent == exponent { bits & !lowest } else { bits };
        bits.to_le_bytes()[..width].to_vec()
    };
    (0..count).flat_map(|_| one(next())).collect()
}

/// Writes a folder with these tensors, as one that a model's files lie in.
fn folder(dir: &Path, drawn: &[Drawn], contents: &[Vec<u8>]) -> Checkpoint {
    std::fs::create_dir_all(dir).expect("a folder");
    std::fs::write(dir.join("config.json"), r#"{"model_type": "any"}"#).expect("writes");
    let tensor = |(index, (dtype, shape, _)): (usize, &Drawn)| {
        let content = Content::Bytes(contents[index].clone());
        (format!("tensor.{index}"), Stored { dtype: *dtype, shape: shape.clone(), content })
    };
    let tensors: BTreeMap<String, Stored> = drawn.iter().enumerate().map(tensor).collect();
    write_tensors(&dir.join("model.safetensors"), &[("format", "pt")], &tensors).expect("writes");
    Checkpoint::open(dir, "any", None).expect("opens")
}

fn weights(dir: &Path) -> Vec<u8> {
    bytes(dir.join("model.safetensors"))
}

/// A setting, and a number of its kind.
fn number_of_a_setting() -> impl Strategy<Value = (String, Value)> {
    let whole = select(vec!["seed", "max-steps", "batch-size", "save-steps"]);
    let any = select(vec!["learning-rate", "kl-weight", "beta", "nll-weight", "max-grad-norm"]);
    prop_oneof![
        (whole, 1..u32::MAX).prop_map(|(name, number)| (name.to_owned(), number.into())),
        (any, 1e-12f64..1e12).prop_map(|(name, number)| (name.to_owned(), json!(number))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 64,
        ..Default::default()
    })]

    /// Weights that are written and opened have the same bytes, and the same numbers.
    #[test]
    fn saved_weights_are_loaded_as_they_were(drawn in tensors()) {
        let own = Folder::new();
        let written: Vec<Vec<u8>> = drawn.iter().map(contents).collect();
        let opened = folder(own.root(), &drawn, &written);
        let floats = opened.floats().expect("floats");
        for (index, (dtype, shape, _)) in drawn.iter().enumerate() {
            let name = format!("tensor.{index}");
            prop_assert_eq!(&opened.bytes(&name).expect("bytes"), &written[index]);
            prop_assert_eq!(opened.dtype_and_shape(&name).expect("known"), (*dtype, shape.clone()));
            let again = Stored::values(&floats[&name], *dtype);
            prop_assert_eq!(&again.to_bytes().expect("bytes")[..], &written[index][..]);
        }
    }

    /// A patch leads from any weights to any others of the same form, and back.
    #[test]
    fn a_patch_leads_there_and_back(
        drawn in tensors(),
        other in vec(any::<u64>(), 4),
        which in any::<Index>(),
    ) {
        let own = Folder::new();
        let [base, repaired, there, back] =
            ["base", "repaired", "there", "back"].map(|name| own.path(name));
        let before: Vec<Vec<u8>> = drawn.iter().map(contents).collect();
        let mut after = before.clone();
        let changed = which.index(drawn.len());
        for (index, seed) in other.iter().enumerate().take(changed + 1) {
            let (dtype, shape, _) = &drawn[index];
            after[index] = contents(&(*dtype, shape.clone(), *seed));
        }
        let (from, to) = (folder(&base, &drawn, &before), folder(&repaired, &drawn, &after));
        let file = own.path("p.safetensors");
        match diff(&from, &to, &file) {
            Err(error) => {
                prop_assert_eq!(before, after, "{}", error);
                return Ok(());
            }
            Ok(()) => prop_assert_ne!(before, after),
        }
        let patch = PatchFile::open(&file).expect("a patch");
        for empty in [&there, &back] {
            std::fs::create_dir(empty).expect("dir");
        }
        patch.apply(&from, Direction::Apply, &there).expect("applies");
        prop_assert!(weights(&there) == weights(&repaired));
        let there = Checkpoint::open(&there, "there", None).expect("opens");
        patch.apply(&there, Direction::Revert, &back).expect("reverts");
        prop_assert!(weights(&back) == weights(&base));
    }

    /// A file of settings that is written and read holds the same settings.
    #[test]
    fn saved_settings_are_read_as_they_were(given in vec(number_of_a_setting(), 0..6)) {
        let own = Folder::new();
        let layer: Layer = given.into_iter().collect();
        let path = own.write("own.toml", toml::to_string(&layer).expect("TOML"));
        let (_, read) = read_layer(Some(&path)).expect("settings");
        prop_assert_eq!(read, layer);
    }

    /// A line of a log is read as it was written, every digit of it.
    #[test]
    fn a_log_is_read_as_it_was_written(
        numbers in vec((any::<u32>(), -1e30f64..1e30, 0.0f64..1e9), 1..5),
    ) {
        let own = Folder::new();
        let path = own.path("steps.jsonl");
        let mut file = std::fs::File::create(&path).expect("a file");
        let mut written = Vec::new();
        for (at, (block, loss, seconds)) in numbers.iter().enumerate() {
            let line = StepLine {
                step: at + 1,
                block: (block % 3 > 0).then_some(*block as usize % 100),
                slice: Vec::new(),
                sensitivity: vec![loss.abs(); at],
                loss: *loss,
                nll_good: Some(loss / 3.0),
                nll_bad: (block % 2 > 0).then_some(loss / 7.0),
                kl: None,
                kl_weight: None,
                lr: 1.0 / seconds.max(1e-9),
                grad_norm: seconds.sqrt(),
                seconds: *seconds,
                tokens: *block as usize,
                operations: u64::from(*block) << 20,
            };
            write_line(&mut file, &Line::Step(line.clone())).expect("writes");
            written.push(line);
        }
        prop_assert_eq!(read_steps(&path).expect("steps"), written);
    }
}
