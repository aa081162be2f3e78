//! Neuron-level repairs: wrong answers are put right, and what can't be is said.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde_json::{Value, json};

use crate::support::command::irepair;
use crate::support::files::{Folder, rows_of};
use crate::support::golden;
use crate::support::repaired::record;
use crate::support::tensors::close;

/// What `eval --edits` measures of the demo and of a model, by figure.
fn measured(folder: &Folder, model: &Path) -> BTreeMap<String, [f64; 2]> {
    let results = irepair("eval --model demo --edits --overwrite -q --json")
        .with("--model", model)
        .with("--out", folder.path("evaluated"))
        .json();
    assert_eq!(results["models"][0].get("changed"), None, "the demo is no repair");
    assert!(results["models"][1]["changed"]["neurons"].as_u64().expect("neurons") > 0);
    let models = results["measurements"][0]["models"].as_array().expect("models");
    let figures = |model: usize| models[model]["figures"].as_array().expect("figures").iter();
    let value = |figure: &Value| figure["value"].as_f64().expect("a value");
    let id = |figure: &Value| figure["id"].as_str().expect("id").to_owned();
    figures(0).zip(figures(1)).map(|(base, ours)| (id(base), [value(base), value(ours)])).collect()
}

/// The failures of the demo, repaired in either mode, and what that does elsewhere.
#[test]
fn star_repairs_what_the_demo_gets_wrong() {
    let folder = Folder::new();
    for more in ["--mode batch", "--mode iterative --neurons 1/4"] {
        let out = folder.path("out");
        irepair("repair --method star --overwrite -q").and(more).with("--out", &out).ok();
        let run = record(&out);
        let edits = run.edits.as_ref().expect("edits");
        assert_eq!((edits.failures, edits.skipped), (12, 0));
        assert!(edits.repaired as f64 >= 0.9 * edits.failures as f64, "{more}: {edits:?}");
        assert!(run.changed.iter().all(|c| c.name.ends_with(".mlp.c_proj.weight")), "{more}");
        assert_eq!(run.changed_parameters, 128 * edits.neurons.values().sum::<usize>());
        assert!(run.after["nll_chosen"] < run.before["nll_chosen"]);
        assert_eq!(run.sliced.len(), 6);
        let figures = measured(&folder, &out);
        let [before, after] = figures["edits_forced"];
        let what = "what eval finds is what repair found";
        close(after, 100.0 * edits.repaired as f64 / 12.0, 1e-9, what);
        assert_eq!((before, figures["edits_generated"]), (0.0, [0.0, after]));
        let [before, after] = figures["generalization_forced"];
        assert!(before == 0.0 && after > 50.0, "{more}: {figures:?}");
        let [before, after] = figures["specificity_generated"];
        assert!(before == 100.0 && after < 100.0, "{more}: {figures:?}");
    }
}

/// A gated MLP's neurons are what its last matrix takes in.
#[test]
fn llama_is_repaired_in_its_down_projections() {
    let folder = Folder::new();
    let out = folder.path("out");
    let repair = |target: &str| {
        let row = json!({"prompt": "Tea at noon", "target": target});
        irepair("repair --overwrite -q")
            .with("--model", golden::path("llama"))
            .with("--data", folder.write_rows("rows.jsonl", &[row]))
            .with("--out", &out)
    };
    for method in ["star", "sgd"] {
        repair(" and bread").and("--learning-rate 0.1 --rounds 30").with("--method", method).ok();
        let run = record(&out);
        let edits = run.edits.as_ref().expect("edits");
        assert!(run.changed.iter().all(|c| c.name.ends_with(".mlp.down_proj.weight")), "{method}");
        assert!(run.after["nll_chosen"] < run.before["nll_chosen"], "{method}");
        if method == "star" {
            assert_eq!((edits.failures, edits.repaired), (1, 1));
        }
    }
    // A token that is near enough for the few neurons that mint takes.
    repair("2").and("--method mint").ok();
    let run = record(&out);
    assert_eq!(run.edits.as_ref().map(|edits| (edits.failures, edits.repaired)), Some((1, 1)));
    assert!(run.changed.iter().all(|c| c.name.ends_with(".mlp.down_proj.weight")));
}

/// Families with norms after the MLP, factors, or fused gates.
#[test]
fn other_families_are_repaired_too() {
    let folder = Folder::new();
    let row = json!({"prompt": "Tea at noon", "target": " and bread"});
    let rows = folder.write_rows("rows.jsonl", &[row]);
    for model in ["smollm3", "olmo2", "olmo3", "granite", "phi3"] {
        for method in ["star", "sgd"] {
            let out = folder.path("out");
            irepair("repair --overwrite -q --learning-rate 0.1 --rounds 30")
                .with("--method", method)
                .with("--model", golden::path(model))
                .with("--data", &rows)
                .with("--out", &out)
                .ok();
            let run = record(&out);
            let edits = run.edits.as_ref().expect("edits");
            assert_eq!((edits.failures, edits.repaired), (1, 1), "{model} {method}");
        }
    }
}

/// A neuron that does not move keeps its bytes, a zero its sign: quantized models are full of −0.
/// Neurons behind a relu are often silent.
#[test]
fn zeros_keep_their_sign() {
    let folder = Folder::new();
    let model = folder.model("gpt2-relu-bare");
    let path = model.join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).expect("tensors");
    for block in 0..3 {
        let matrix = tensors.get_mut(&format!("h.{block}.mlp.c_proj.weight")).expect("a matrix");
        let negative = matrix.zeros_like().and_then(|zeros| zeros.neg()).expect("zeros");
        let every: Vec<u8> = (0..matrix.elem_count()).map(|i| u8::from(i % 3 == 0)).collect();
        let every = Tensor::from_vec(every, matrix.shape(), &Device::Cpu).expect("a mask");
        *matrix = every.where_cond(&negative, matrix).expect("some of them");
    }
    candle_core::safetensors::save(&tensors, &path).expect("saved");
    let row = json!({"prompt": "The old boat on the river", "target": " late."});
    for method in ["star", "sgd"] {
        irepair("repair --overwrite -q --fail-on nothing --learning-rate 0.1 --rounds 3")
            .with("--method", method)
            .with("--model", &model)
            .with("--data", folder.write_rows("rows.jsonl", std::slice::from_ref(&row)))
            .with("--out", folder.path("out"))
            .ok();
    }
}

/// Two rows want different tokens at one position. Half of what they ask can't be met. This is
/// said, and nothing is NaN.
#[test]
fn contradicting_rows_have_a_residual() {
    let folder = Folder::new();
    let rows = [" drifted", " sank"]
        .map(|target| json!({"prompt": "The old boat on the river", "chosen": target}));
    let out = folder.path("out");
    let said = irepair("repair --method star -q")
        .with("--model", golden::path("gpt2"))
        .with("--data", folder.write_rows("rows.jsonl", &rows))
        .with("--out", &out)
        .ok();
    let edits = record(&out).edits.expect("edits");
    assert!(edits.worst_residual > 0.3 && edits.worst_residual <= 1.0, "{edits:?}");
    assert!(edits.repaired < 2 && said.contains("can't be met in full"), "{said}");
}

#[test]
fn rows_that_are_right_are_skipped_and_counted() {
    let folder = Folder::new();
    let edits = rows_of(irepair::data::demo::EDITS);
    let row = |kind: &str| {
        let row = edits.iter().find(|row| row["kind"] == kind).expect(kind);
        json!({"prompt": row["prompt"], "target": row["chosen"]})
    };
    let (wrong, right) = (row("failure"), row("specificity"));
    let out = folder.path("out");
    let repair = |name: &str, rows: &[Value]| {
        irepair("repair --method sgd --max-steps 1 --rounds 1 --model demo")
            .with("--data", folder.write_rows(name, rows))
            .with("--out", &out)
    };
    let said = repair("both.jsonl", &[right.clone(), wrong]).warns();
    let words = "2 rows: 1 to repair, 1 skipped because the model already says their target";
    assert!(said.contains(words), "{said}");
    let edits = record(&out).edits.expect("edits");
    assert_eq!((edits.skipped, edits.failures), (1, 1));
    repair("only.jsonl", &[right]).and("--overwrite").fails(4, &["already says every target"]);
}
