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

/// The values of every tensor of a model, by name.
fn values(dir: &Path) -> BTreeMap<String, Vec<f32>> {
    let floats = Checkpoint::open(dir, "model", None).expect("opens").floats().expect("floats");
    floats
        .into_iter()
        .map(|(name, tensor)| (name, crate::support::tensors::flat(&tensor)))
        .collect()
}

/// A part of a change is base + λ·(repaired − base), and a mean is that of the changes: to the bit,
/// rounded once. The result is a patch like any other.
#[test]
fn patches_are_scaled_and_averaged_exactly() {
    let folder = Folder::new();
    let model = golden::path("gpt2");
    let [one, two, three] = ["one", "two", "three"].map(|name| folder.path(name));
    two_steps(&model, &one).and("--method irepair --blocks 0").ok();
    two_steps(&model, &two).and("--method irepair --blocks 1").ok();
    two_steps(&model, &three).and("--method dapt --seed 7").ok();
    let file = |dir: &Path| dir.join("irepair/patch.safetensors");
    let base = values(&model);
    let repaired = [&one, &two, &three].map(|dir| values(dir));
    // By hand: in f64, and rounded once.
    let by_hand = |of: &[usize], factor: f64| -> BTreeMap<String, Vec<f32>> {
        let value = |name: &String, at: usize, before: f32| {
            let before = f64::from(before);
            let changes = of.iter().map(|i| f64::from(repaired[*i][name][at]) - before);
            (before + changes.sum::<f64>() * factor / of.len() as f64) as f32
        };
        let tensor = |(name, values): (&String, &Vec<f32>)| {
            let values = values.iter().enumerate().map(|(at, v)| value(name, at, *v));
            (name.clone(), values.collect())
        };
        base.iter().map(tensor).collect()
    };
    let made = |action: &str, out: &Path| irepair("patch").and(action).with("--out", out);
    let cases: [(&str, &[usize], f64); 5] = [
        ("0.8", &[0], 0.8),
        ("-1", &[0], -1.0),
        ("1.5", &[2], 1.5),
        ("1", &[2], 1.0),
        ("mean", &[0, 1, 2], 1.0),
    ];
    for (by, of, factor) in cases {
        let patch_file = folder.path(format!("{by}.safetensors"));
        let [there, back] = ["there", "back"].map(|name| folder.path(format!("{name}{by}")));
        let sources = of.iter().map(|i| file([&one, &two, &three][*i]));
        let line = match by {
            "mean" => sources.fold(made("mean", &patch_file), |line, p| line.arg(p)),
            _ => {
                sources.fold(made(&format!("scale --by={by}"), &patch_file), |line, p| line.arg(p))
            }
        };
        line.ok();
        patch("apply", &model, &patch_file).with("--out", &there).ok();
        let expected = by_hand(of, factor);
        for (name, found) in values(&there) {
            assert!(found == expected[&name], "{by}: {name}");
        }
        patch("revert", &there, &patch_file).with("--out", &back).ok();
        let weights = |dir: &Path| bytes(dir.join("model.safetensors"));
        assert!(weights(&back) == weights(&model), "{by}");
        // What changed, and by how much, is told of the new patch.
        let shown = irepair("patch show --json").arg(&patch_file).json();
        let source = irepair("patch show --json").arg(file([&one, &two, &three][of[0]])).json();
        if of.len() == 1 {
            let norm =
                |shown: &serde_json::Value| shown["changes"][0]["norm"].as_f64().expect("a norm");
            let ratio = norm(&shown) / norm(&source);
            assert!((ratio - factor.abs()).abs() < 1e-3, "{by}: {ratio}");
        }
        assert_eq!(shown["base_sha256"], source["base_sha256"]);
        // Without its repaired model around it a patch needs its base, and gives the same bytes.
        let alone = folder.write("alone.safetensors", bytes(file([&one, &two, &three][of[0]])));
        let again = folder.path("again.safetensors");
        if of.len() == 1 {
            let line = made(&format!("scale --by={by}"), &again).arg(&alone);
            line.fails(3, &["alone.safetensors", "--base"]);
            line.and("--overwrite").with("--base", &model).ok();
            assert!(bytes(&again) == bytes(&patch_file), "{by}");
            folder.remove("again.safetensors");
        }
    }
    let whole = folder.path("1.safetensors");
    assert!(bytes(&whole) == bytes(file(&three)), "the whole change is the same patch");
}

/// In 16 bits, too, a value is rounded once.
#[test]
fn a_scaled_patch_of_a_model_in_bf16_is_rounded_once() {
    let folder = Folder::new();
    let model = golden::path("gpt-neo-bf16");
    let [out, there, made] = ["out", "there", "p.safetensors"].map(|name| folder.path(name));
    two_steps(&model, &out).and("--method dapt --learning-rate 0.01").ok();
    irepair("patch scale --by 0.3")
        .arg(out.join("irepair/patch.safetensors"))
        .with("--out", &made)
        .ok();
    patch("apply", &model, &made).with("--out", &there).ok();
    let (base, repaired, found) = (values(&model), values(&out), values(&there));
    let mut changed = 0;
    for (name, before) in &base {
        for (at, before) in before.iter().enumerate() {
            let (low, high) = (f64::from(*before), f64::from(repaired[name][at]));
            let expected = half::bf16::from_f64(low + (high - low) * 0.3).to_f32();
            assert_eq!(found[name][at], expected, "{name} {at}");
            changed += usize::from(expected != *before);
        }
    }
    assert!(changed > 1000, "{changed} values");
}

/// What can't be put together is refused, and nothing is left behind.
#[test]
fn patches_that_do_not_go_together_are_refused() {
    let folder = Folder::new();
    let (gpt2, llama) = (golden::path("gpt2"), golden::path("llama"));
    let [one, other, never] = ["one", "other", "never.safetensors"].map(|name| folder.path(name));
    two_steps(&gpt2, &one).and("--method irepair").ok();
    two_steps(&llama, &other).and("--method irepair").ok();
    let file = |dir: &Path| dir.join("irepair/patch.safetensors");
    let left = folder.count();
    let scale = |by: &str| irepair("patch scale").arg(file(&one)).and(by).with("--out", &never);
    for (by, code, word) in [
        ("--by 0", 3, "--by 0"),
        ("--by -0.0", 3, "--by 0"),
        ("--by NaN", 3, "finite"),
        ("--by inf", 3, "finite"),
        ("--by 1e60", 3, "beyond"),
        ("--by 1e-300", 4, "equal"),
        ("--by x", 2, "--by"),
        ("", 2, "--by"),
    ] {
        scale(by).fails(code, &[word]);
    }
    let mean = || irepair("patch mean").arg(file(&one)).with("--out", &never);
    mean().arg(file(&other)).fails(3, &["different bases", "one", "other"]);
    mean().fails(2, &["2 patches or more"]);
    mean().arg(folder.path("none")).fails(3, &["none"]);
    mean().arg(one.join("config.json")).fails(3, &["not a usable patch"]);
    scale("--by 0.5").with("--base", &llama).fails(3, &["is made for a base with sha256"]);
    scale("--by 0.5").with("--base", &one).fails(3, &["is made for a base with sha256"]);
    // The same tensors under another header: no patch could lead to these bytes.
    let rewritten = folder.model("gpt2");
    let weights = rewritten.join("model.safetensors");
    let mut tensors =
        candle_core::safetensors::load(&weights, &candle_core::Device::Cpu).expect("tensors");
    let name = tensors.keys().find(|name| name.ends_with("ln_f.bias")).expect("a bias").clone();
    let bias = tensors.get_mut(&name).expect("a bias");
    *bias = (&*bias + 1.0).expect("a sum");
    candle_core::safetensors::save(&tensors, &weights).expect("saves");
    irepair("patch diff").arg(&gpt2).arg(&rewritten).with("--out", &never).fails(3, &["laid out"]);
    folder.remove("model");
    // The demo is a base like any other.
    let [demo, half] = ["demo", "half.safetensors"].map(|name| folder.path(name));
    irepair("repair -q --method dpo --max-steps 1 --eval-steps 0 --limit 24 --valid-size 4")
        .with("--out", &demo)
        .ok();
    let alone = folder.write("alone.safetensors", bytes(file(&demo)));
    let line = irepair("patch scale --by 0.5 --base demo").arg(&alone);
    line.with("--out", &half).ok();
    irepair("patch diff demo").arg(&demo).with("--out", &half).and("--overwrite").ok();
    assert!(bytes(&half) == bytes(&alone));
    ["demo", "half.safetensors", "alone.safetensors"].iter().for_each(|name| folder.remove(name));
    // A mean of opposites is the base.
    let opposite = folder.path("opposite.safetensors");
    irepair("patch scale --by -1").arg(file(&one)).with("--out", &opposite).ok();
    let both = mean().arg(&opposite).run();
    assert!(matches!(both.status.code(), Some(0 | 4)), "{both:?}");
    folder.remove("opposite.safetensors");
    if never.exists() {
        folder.remove("never.safetensors");
    }
    assert_eq!(folder.count(), left, "something is left behind");
    // A file that exists is replaced only when that is said.
    folder.write("never.safetensors", "mine");
    scale("--by 0.5").fails(3, &["exists", "--overwrite"]);
    mean().arg(file(&one)).fails(3, &["exists", "--overwrite"]);
    assert_eq!(folder.read("never.safetensors"), "mine");
    folder.write("never.safetensors", bytes(file(&one)));
    scale("--by 0.5 --overwrite").ok();
    assert!(bytes(&never) != bytes(file(&one)));
    // Nothing but a patch is replaced by one: not a model, not rows.
    let weights = folder.model("gpt2").join("model.safetensors");
    let before = bytes(&weights);
    let rows = folder.write("rows.jsonl", "{}");
    let diff = irepair("patch diff --overwrite").arg(&gpt2).arg(&one);
    diff.clone().with("--out", &weights).fails(3, &["no patch", "choose another"]);
    scale("--by 0.5 --overwrite").with("--out", &rows).fails(3, &["rows.jsonl", "no patch"]);
    assert!(bytes(&weights) == before && bytes(&rows) == b"{}");
    folder.remove("model");
    // The base is taken back from the repaired model, and nothing is put into that.
    let within = one.join("half.safetensors");
    scale("--by 0.5").with("--out", &within).fails(3, &["the repaired model from which", "--base"]);
    scale("--by 0.5").with("--out", &within).with("--base", &gpt2).ok();
    std::fs::remove_file(&within).expect("removes");
    // Without --out it has a name of its own, and a repaired model stands for its patch.
    for (action, sources, name) in
        [("scale --by 0.5", 1, "scaled-0.5.safetensors"), ("mean", 2, "mean.safetensors")]
    {
        let mut line = irepair(&format!("patch {action}")).command();
        line.args(std::iter::repeat_n(&one, sources)).current_dir(folder.root());
        let done = line.output().expect("runs");
        assert!(done.status.success() && folder.path(name).is_file(), "{done:?}");
        assert_eq!(line.output().expect("runs").status.code(), Some(3), "replaced {name}");
    }
    for action in ["scale", "mean"] {
        let help = irepair("patch").arg(action).arg("--help").ok();
        assert!(help.contains("Example") && help.contains(&format!("irepair patch {action}")));
    }
}
