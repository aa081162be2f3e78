//! A patch leads from the base to its repair and back, and nothing else is taken for one.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use irepair::base::tensors::{Stored, write_tensors};
use irepair::checkpoint::Checkpoint;
use irepair::checkpoint::patch::PatchFile;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

use crate::support::command::{CommandLine, irepair};
use crate::support::files::{Folder, bytes};
use crate::support::golden::{self, CHECKPOINTS};
use crate::support::repaired::record;

/// Two steps with everything else left out.
fn two_steps(model: &Path, out: &Path) -> CommandLine {
    irepair("repair --max-steps 2 --valid-size 0 --eval-steps 0 --batch-size 2 -q")
        .with("--model", model)
        .with("--data", golden::path("pairs.jsonl"))
        .with("--out", out)
}

/// `patch apply`, `patch revert` and `patch diff`.
fn patch(action: &str, folder: &Path, other: &Path) -> CommandLine {
    irepair("patch").arg(action).arg(folder).arg(other)
}

/// The patch of a repair leads to its bytes and back, for every golden checkpoint (shards, f16,
/// bf16), and `diff` makes the same patch.
#[test]
fn patches_lead_there_and_back() {
    for name in CHECKPOINTS {
        let folder = Folder::new();
        let model = golden::path(name);
        let [out, again, back, made] =
            ["out", "again", "back", "made.safetensors"].map(|name| folder.path(name));
        two_steps(&model, &out).and("--method irepair").ok();
        let file = out.join("irepair/patch.safetensors");
        patch("apply", &model, &file).with("--out", &again).ok();
        patch("revert", &out, &file).with("--out", &back).ok();
        patch("diff", &model, &out).with("--out", &made).ok();
        assert_eq!(bytes(&made), bytes(&file), "{name}");
        let files = model.read_dir().expect("dir").map(|e| e.expect("entry").file_name());
        for file in files.filter(|file| out.join(file).exists()) {
            assert_eq!(bytes(again.join(&file)), bytes(out.join(&file)), "{name}: {file:?}");
            assert_eq!(bytes(back.join(&file)), bytes(model.join(&file)), "{name}: {file:?}");
        }
        let shown = irepair("patch show --json").arg(&file).json();
        let most = shown["tensor_bytes"].as_u64().map(|b| b + 8192);
        assert!(shown["bytes"].as_u64() < most, "{name}: {shown}");
        // Refused, with nothing left behind: a model that is repaired already, the base where a
        // repaired model is wanted, a truncated patch, a doctored one.
        let never = folder.path("never");
        let refused = |line: CommandLine, word: &str| {
            line.with("--out", &never).fails(3, &[word]);
            assert!(!never.exists());
        };
        refused(patch("apply", &out, &file), "it is what the patch leads to");
        refused(patch("revert", &model, &file), "sha256");
        let whole = bytes(&file);
        let cut = folder.write("cut", &whole[..whole.len() - 9]);
        refused(patch("apply", &model, &cut), "not a usable patch");
        // Doctored: one bit of the data, or one of a norm's first digit. The norm stands in JSON
        // within JSON, and changes no weights.
        let norm = br#"\"norm\":"#;
        let digit = whole.windows(norm.len()).position(|w| w == norm).expect("a norm") + norm.len();
        for at in [whole.len() - 1, digit] {
            let mut doctored = whole.clone();
            doctored[at] ^= 1;
            let doctored = folder.write("doctored", &doctored);
            refused(patch("apply", &model, &doctored), "changed or damaged");
            refused(patch("revert", &out, &doctored), "changed or damaged");
            irepair("patch show").arg(&doctored).fails(3, &["changed or damaged"]);
        }
    }
}

/// A patch holds the rows (GPT-Neo: columns) of the changed neurons alone, and leads there and
/// back.
#[test]
fn a_patch_holds_the_neurons() {
    for (name, axis) in [("gpt2", 0), ("gpt-neo", 1)] {
        let folder = Folder::new();
        let prompt = "The old boat on the river";
        let rows = [
            json!({"prompt": prompt, "target": " drifted home."}),
            json!({"prompt": prompt, "target": " sank.", "kind": "specificity"}),
        ];
        let (model, out) = (golden::path(name), folder.path("out"));
        irepair("repair --method star --block-sparsity one --neurons 1/16 --max-steps 3")
            .and("--rounds 1 -q")
            .with("--model", &model)
            .with("--data", folder.write_rows("rows.jsonl", &rows))
            .with("--out", &out)
            .ok();
        let run = record(&out);
        assert_eq!((run.steps, run.changed.len(), run.data.pairs), (3, 1, 1), "{name}");
        assert_eq!(run.edits.expect("edits").neurons.values().collect::<Vec<_>>(), [&4], "{name}");
        let file = out.join("irepair/patch.safetensors");
        let opened = PatchFile::open(&file).expect("patch");
        let lines = opened.tensors[&run.changed[0].name].lines.clone().expect("some rows");
        assert_eq!((lines.axis, lines.indices.len()), (axis, 4), "{name}");
        let shown = irepair("patch show").arg(&file).ok();
        assert!(shown.contains(if axis == 0 { "4 rows: " } else { "4 columns: " }), "{shown}");
        let weights = |dir: &Path| bytes(dir.join("model.safetensors"));
        let (there, back) = (folder.path("there"), folder.path("back"));
        patch("apply", &model, &file).with("--out", &there).ok();
        assert_eq!(weights(&there), weights(&out), "{name}");
        patch("revert", &out, &file).with("--out", &back).ok();
        assert_eq!(weights(&back), weights(&model), "{name}");
    }
}

/// A tied head that is stored beside its embedding changes with it, there and back. One that
/// differs is refused.
#[test]
fn a_tied_head_that_is_stored_stays_its_embedding() {
    for (name, embedding) in
        [("gpt2", "transformer.wte.weight"), ("llama", "model.embed_tokens.weight")]
    {
        let folder = Folder::new();
        let model = folder.model(name);
        let floats = Checkpoint::open(&model, name, None).expect("opens").floats().expect("floats");
        let store = |head: &Tensor| {
            let stored = |(name, tensor): (&String, &Tensor)| {
                (name.clone(), Stored::values(tensor, Dtype::F32))
            };
            let mut tensors: BTreeMap<String, Stored> = floats.iter().map(stored).collect();
            tensors.insert("lm_head.weight".into(), Stored::values(head, Dtype::F32));
            write_tensors(&model.join("model.safetensors"), &[("format", "pt")], &tensors)
                .expect("writes");
        };
        let file = |dir: &Path| bytes(dir.join("model.safetensors"));
        let stored = |dir: &Path, tensor: &str| {
            let bytes = file(dir);
            let tensors = SafeTensors::deserialize(&bytes).expect("weights");
            tensors.tensor(tensor).expect(tensor).data().to_vec()
        };
        store(&floats[embedding]);
        let [out, again, back] = ["out", "again", "back"].map(|name| folder.path(name));
        two_steps(&model, &out).and("--method dapt").ok();
        assert_eq!(stored(&out, "lm_head.weight"), stored(&out, embedding), "{name}");
        assert_ne!(stored(&out, embedding), stored(&model, embedding), "{name}");
        let made = out.join("irepair/patch.safetensors");
        patch("apply", &model, &made).with("--out", &again).ok();
        patch("revert", &out, &made).with("--out", &back).ok();
        assert!(file(&again) == file(&out) && file(&back) == file(&model), "{name}");
        store(&(&floats[embedding] * 2.0).expect("doubled"));
        let differs = format!("lm_head.weight differs from {embedding}");
        irepair("sensitivity")
            .with("--model", &model)
            .with("--data", golden::path("pairs.jsonl"))
            .fails(3, &[&differs, "\"tie_word_embeddings\" to false"]);
    }
}
