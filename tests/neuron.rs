//! STAR, MINT and SGD against their statement in PyTorch (`scripts/neuron_ref.py`; numbers by
//! `scripts/make_golden_neuron.py`), and `repair` and `eval` of edits as a user runs them.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use irepair::checkpoint::patch::PatchFile;
use irepair::model::layers::Orientation;
use irepair::model::weights::{Kernels, Want, Who};
use irepair::report::{EditsRecord, RunRecord};
use irepair::step::neurons;
use irepair::step::neurons::basis::Basis;
use irepair::step::neurons::change::changed;
use irepair::step::neurons::scope::{attribution, block_order, scope};
use irepair::step::neurons::{Mode, Patient, Position, Recipe, Share, Stage, Step, Watch, descent};
use irepair::tokens::TokenEdit;
use irepair::train::log::read_steps;
use serde_json::{Value, json};

use crate::cli::refused;
use crate::golden::{self, Golden, KERNELS, all_close, close, numbers};
use crate::repair::{command, interrupt, irepair, ok};

const NAMES: [&str; 2] = ["gpt2", "gpt-neo"];
const HALF: Share = Share::Part(1, 2);
const SIXTEENTH: Share = Share::Part(1, 16);

struct Neurons {
    golden: Golden,
    expected: Value,
    tensors: HashMap<String, Tensor>,
}

impl Neurons {
    fn open(name: &'static str) -> Self {
        let path = golden::dir().join(name).join("neuron.safetensors");
        Self {
            golden: Golden::open(name),
            expected: golden::json(&format!("{name}/neuron.json")),
            tensors: candle_core::safetensors::load(path, &Device::Cpu).expect("tensors"),
        }
    }

    fn patient(&self, kernels: Kernels) -> Patient<'_> {
        let weights = self.golden.weights(kernels);
        let basis = Basis::compute(&self.golden.model, &weights).expect("basis");
        Patient {
            model: &self.golden.model,
            weights,
            mlp: self.golden.model.mlp().expect("two matrices"),
            basis,
        }
    }

    fn rows(&self, key: &str) -> Vec<TokenEdit> {
        let ids = |v: &Value| numbers(v).iter().map(|x| *x as u32).collect::<Vec<u32>>();
        let rows = self.expected[key].as_array().expect("rows").iter();
        rows.map(|r| TokenEdit { prompt: ids(&r["prompt"]), target: ids(&r["target"]) }).collect()
    }

    /// The rows whose target the model does not say: all but the second.
    fn failing(&self) -> Vec<TokenEdit> {
        let mut rows = self.rows("rows");
        rows.remove(1);
        rows
    }

    fn tensor(&self, name: &str) -> Vec<f32> {
        self.tensors[name].flatten_all().expect(name).to_vec1().expect(name)
    }

    /// Every block's output matrix as (neurons, C) is the expected one.
    fn same_weights(&self, patient: &Patient, key: &str, what: &str) {
        for block in 0..patient.model.sizes().blocks {
            let got: Vec<f32> = matrix(patient, Who::Patient, block)
                .flatten_all()
                .and_then(|w| w.to_vec1())
                .expect("values");
            all_close(
                &got,
                &self.tensor(&format!("{key}.{block}")),
                1e-4,
                &format!("{what} block {block}"),
            );
        }
        let blocks = 0..patient.model.sizes().blocks;
        let matrices: Vec<String> = blocks.map(|block| patient.mlp.weight(block)).collect();
        let touched = patient.weights.touched();
        let outside = touched.filter(|(name, _)| !matrices.iter().any(|m| m == name)).count();
        assert_eq!(outside, 0, "{what}: another tensor was touched");
    }
}

/// What a repair does: its steps, and after each target token the sums over columns and rows of every block's change.
#[derive(Default)]
struct Seen {
    steps: Vec<Step>,
    after: BTreeMap<usize, Vec<f32>>,
}

impl Watch for Seen {
    fn step(&mut self, step: Step) -> anyhow::Result<()> {
        self.steps.push(step);
        Ok(())
    }

    fn rest(&mut self, patient: &Patient, at: &Position) -> anyhow::Result<()> {
        // Within an optimization its token is not done.
        let token = at.done - usize::from(at.optimization.is_none());
        let mut sums = Vec::new();
        for block in 0..patient.model.sizes().blocks {
            let matrix = |who| matrix(patient, who, block).to_dtype(candle_core::DType::F64);
            let change = (matrix(Who::Patient)? - matrix(Who::Reference)?)?;
            for sum in [change.sum(0)?, change.sum(1)?] {
                sums.extend(sum.to_vec1::<f64>()?.into_iter().map(|x| x as f32));
            }
        }
        self.after.insert(token, sums);
        Ok(())
    }
}

/// A block's output matrix as (neurons, C).
fn matrix(patient: &Patient, who: Who, block: usize) -> Tensor {
    let w = patient.weights.tensor(who, &patient.mlp.weight(block)).expect("tensor");
    match patient.mlp.orientation {
        Orientation::InOut => w,
        Orientation::OutIn => w.t().and_then(|w| w.contiguous()).expect("transposes"),
    }
}

/// After every target token, whether it failed or not, the sums of all blocks' changes are the expected ones.
fn same_after_each_token(neurons: &Neurons, key: &str, seen: &Seen, what: &str) {
    let expected = &neurons.tensors[&format!("{key}.after")];
    let (tokens, _) = expected.dims2().expect("a row a token");
    assert!(
        seen.after.keys().all(|token| *token < tokens) && seen.after.len() > tokens / 2,
        "{what}"
    );
    for token in 0..tokens {
        let want: Vec<f32> = expected.get(token).and_then(|row| row.to_vec1()).expect("sums");
        match seen.after.range(..=token).next_back() {
            Some((_, got)) => all_close(got, &want, 1e-3, &format!("{what} after token {token}")),
            None => assert!(
                want.iter().all(|x| *x == 0.0),
                "{what}: nothing had changed after token {token}"
            ),
        }
    }
}

fn each(check: impl Fn(&Neurons, Kernels, &str)) {
    for name in NAMES {
        let neurons = Neurons::open(name);
        for kernels in KERNELS {
            check(&neurons, kernels, &format!("{name} {kernels:?}"));
        }
    }
}

#[test]
fn basis_steers_attribution_and_choices_equal_the_statement() {
    each(|neurons, kernels, what| {
        let patient = neurons.patient(kernels);
        let (v, c) = (patient.model.sizes().vocabulary, patient.model.sizes().channels);
        let rows = neurons.rows("rows");
        let said: Vec<Vec<f64>> = rows
            .iter()
            .map(|row| {
                let said = neurons::said(
                    patient.model,
                    &patient.weights,
                    &neurons::batch(std::slice::from_ref(row)),
                );
                said.expect("said").into_iter().map(f64::from).collect()
            })
            .collect();
        let expected: Vec<Vec<f64>> =
            neurons.expected["argmax"].as_array().expect("rows").iter().map(numbers).collect();
        assert_eq!(said, expected, "{what}");
        assert_eq!(neurons::failing(&patient, &rows).expect("failing"), [0, 2, 3], "{what}");

        // Row y of the basis, as a difference from row 0.
        let basis = neurons.tensor("basis");
        for token in [1, 7, v as u32 - 1] {
            let got: Vec<f32> = patient
                .basis
                .toward(token, 0)
                .expect("row")
                .into_iter()
                .map(|x| x as f32)
                .collect();
            let want: Vec<f32> = (0..c).map(|i| basis[token as usize * c + i] - basis[i]).collect();
            all_close(&got, &want, 1e-4, &format!("{what} basis"));
        }
        let batch = neurons::batch(&neurons.failing());
        let said = neurons::said(patient.model, &patient.weights, &batch).expect("said");
        let steers = descent::steers(&patient, &batch, &said).expect("steers");
        let rows_of = |m: &faer::Mat<f64>| -> Vec<f32> {
            (0..m.nrows()).flat_map(|i| (0..m.ncols()).map(move |j| m[(i, j)] as f32)).collect()
        };
        all_close(&rows_of(&steers), &neurons.tensor("steers"), 1e-4, &format!("{what} steers"));

        let blocks = patient.model.sizes().blocks;
        let scores = attribution(&patient, &batch, 0..blocks).expect("attribution");
        let got: Vec<f32> = scores.concat().into_iter().map(|x| x as f32).collect();
        all_close(&got, &neurons.tensor("attribution"), 1e-4, &format!("{what} attribution"));
        let order = block_order(&patient, &batch).expect("order");
        let expected = numbers(&neurons.expected["block_order"]);
        assert_eq!(order.iter().map(|(b, _)| *b as f64).collect::<Vec<_>>(), expected, "{what}");
        let losses = numbers(&neurons.expected["skip_losses"]);
        order.iter().for_each(|&(block, loss)| {
            close(loss, losses[block], 1e-4, &format!("{what} skipped {block}"))
        });
        let kept = scope(&patient, &batch, HALF, SIXTEENTH).expect("scope");
        let expected: BTreeMap<usize, Vec<usize>> =
            serde_json::from_value(neurons.expected["scope"].clone()).expect("scope");
        assert_eq!(kept, expected, "{what}");

        // Δ of every block, from all neurons and from the kept ones. There are more positions than channels.
        assert!(batch.rows.len() > c);
        let view = patient.weights.frozen(Who::Patient).expect("view");
        let view = view.probing((0..blocks).map(|b| patient.mlp.output(b)));
        patient.model.hidden(&view, &batch.packed).expect("hidden");
        let readings = view.harvest().expect("harvest").readings;
        for block in 0..blocks {
            let read = &readings[&patient.mlp.output(block)];
            assert!(read.gradient.is_none(), "nothing was differentiated");
            let z = irepair::step::neurons::scope::at_rows(&read.input, &batch.rows).expect("rows");
            let all: Vec<usize> = (0..patient.mlp.neurons).collect();
            let found = descent::solve(&z, &all, &steers).expect("solves");
            let want = neurons.tensor(&format!("delta.{block}"));
            all_close(&rows_of(&found.x()), &want, 1e-3, &format!("{what} Δ of block {block}"));
            if let Some(kept) = kept.get(&block) {
                let found = descent::solve(&z, kept, &steers).expect("solves");
                let whole = neurons.tensor(&format!("delta_sparse.{block}"));
                let want: Vec<f32> =
                    kept.iter().flat_map(|&i| whole[i * c..(i + 1) * c].to_vec()).collect();
                all_close(
                    &rows_of(&found.transposed().transpose().to_owned()),
                    &want,
                    1e-3,
                    &format!("{what} sparse Δ of block {block}"),
                );
                assert!(
                    found.residual > 0.0,
                    "four neurons can't give 21 positions what they want"
                );
            }
        }
    });
}

/// Losses of all steps and the weights after them, in every mode; where it goes token by token, after each token.
#[test]
fn steps_equal_the_statement() {
    let recipe = |mode, blocks, neurons| Recipe { mode, blocks, neurons, ..Recipe::default() };
    let by_token =
        |blocks, neurons| Recipe { steps: 3, ..recipe(Mode::Iterative, blocks, neurons) };
    let variants = [
        ("batch", "star", recipe(Mode::Batch, Share::All, Share::All)),
        ("iterative", "star", by_token(Share::All, Share::All)),
        ("sparse", "star", recipe(Mode::Batch, HALF, SIXTEENTH)),
        ("one", "star", by_token(Share::One, Share::Part(1, 4))),
        ("sgd", "sgd", recipe(Mode::Batch, Share::All, Share::All)),
        ("sgd_sparse", "sgd", recipe(Mode::Iterative, HALF, SIXTEENTH)),
    ];
    each(|neurons, kernels, what| {
        for (key, method, recipe) in &variants {
            let what = format!("{what} {key}");
            let mut patient = neurons.patient(kernels);
            let method = (neurons::named(method).expect("a method").build)(recipe.clone());
            let mut seen = Seen::default();
            let rows = neurons.failing();
            let mut at = Position::default();
            neurons::repair(method.as_ref(), &mut patient, &rows, 1, &mut at, &mut seen)
                .expect("repairs");
            assert_eq!(at.pass.given_up, 0);
            let losses = numbers(&neurons.expected[key]["losses"]);
            assert_eq!(seen.steps.len(), losses.len(), "{what}");
            seen.steps
                .iter()
                .zip(losses)
                .for_each(|(step, want)| close(step.loss, want, 1e-4, &what));
            neurons.same_weights(&patient, key, &what);
            if recipe.mode == Mode::Iterative {
                same_after_each_token(neurons, key, &seen, &what);
            }
            let changed = changed(&patient).expect("changed");
            if *key == "sparse" {
                let kept: BTreeMap<usize, Vec<usize>> =
                    serde_json::from_value(neurons.expected["scope"].clone()).expect("scope");
                let numbers = |neurons: Vec<(usize, f32)>| {
                    neurons.into_iter().map(|(neuron, _)| neuron).collect()
                };
                let changed: BTreeMap<usize, Vec<usize>> =
                    changed.into_iter().map(|(b, n)| (b, numbers(n))).collect();
                assert_eq!(changed, kept, "{what}: other neurons than the kept ones");
            }
        }
    });
}

#[test]
fn mint_moves_the_neurons_of_the_statement() {
    each(|neurons, kernels, what| {
        let mut patient = neurons.patient(kernels);
        let mint = (neurons::named("mint").expect("mint").build)(Recipe::default());
        let (mut seen, mut at) = (Seen::default(), Position::default());
        mint.pass(&mut patient, &neurons.rows("mint_rows"), &mut at, &mut seen).expect("pass");
        let blocks: Vec<usize> = seen.steps.iter().flat_map(|step| step.blocks.clone()).collect();
        let expected = neurons.expected["mint"].as_array().expect("tokens");
        let given_up = expected.iter().filter(|token| token["repaired"] == false).count();
        assert_eq!((at.pass.tried, at.pass.given_up), (expected.len(), given_up), "{what}");
        let moved: Vec<usize> = expected
            .iter()
            .flat_map(|token| token["edits"].as_array().expect("edits"))
            .map(|edit| numbers(edit)[0] as usize)
            .collect();
        assert_eq!(blocks, moved, "{what}");
        neurons.same_weights(&patient, "mint", what);
        same_after_each_token(neurons, "mint", &seen, what);
    });
}

/// A target that the model says already costs nothing and changes nothing.
#[test]
fn what_is_right_is_left_alone() {
    each(|neurons, kernels, what| {
        let right = [neurons.rows("rows").remove(1)];
        for entry in neurons::METHODS {
            let mut patient = neurons.patient(kernels);
            let method = (entry.build)(Recipe { mode: Mode::Iterative, ..Recipe::default() });
            let (mut seen, mut at) = (Seen::default(), Position::default());
            neurons::repair(method.as_ref(), &mut patient, &right, 3, &mut at, &mut seen)
                .expect("repairs");
            assert_eq!(
                (at.rounds, at.tried, at.stage),
                (0, 0, Stage::Over),
                "{what} {}",
                entry.name
            );
            method.pass(&mut patient, &right, &mut at, &mut seen).expect("passes");
            assert_eq!((at.pass.tried, seen.steps.len()), (0, 0), "{what} {}", entry.name);
            assert!(changed(&patient).expect("changed").is_empty());
        }
    });
}

/// The sum over rows of the gradient by a layer's input is its matrix times the gradient by its bias.
#[test]
fn a_probed_gradient_is_the_derivative() {
    each(|neurons, kernels, what| {
        let patient = neurons.patient(kernels);
        let batch = neurons::batch(&neurons.failing());
        let layer = patient.mlp.output(0);
        let loss = |view: &irepair::model::weights::View| {
            irepair::model::loss::nll(patient.model, view, &batch).expect("loss")
        };
        let view = patient.weights.frozen(Who::Patient).expect("view").probing([layer.clone()]);
        let probed_loss = loss(&view);
        let value = probed_loss.to_scalar::<f32>().expect("scalar");
        view.backward(probed_loss).expect("backward");
        let read = view.harvest().expect("harvest").readings.remove(&layer).expect("a reading");
        let gradient = read.gradient.expect("a gradient");
        assert_eq!(gradient.dims(), read.input.dims());
        let bias = format!("{layer}.bias");
        let view = patient
            .weights
            .view(Who::Patient, |s| if s.name == bias { Want::Gradient } else { Want::Nothing })
            .expect("view");
        let plain_loss = loss(&view);
        assert_eq!(
            plain_loss.to_scalar::<f32>().expect("scalar"),
            value,
            "{what}: a probe changes nothing"
        );
        view.backward(plain_loss).expect("backward");
        let by_bias = view.harvest().expect("harvest").gradients.remove(&bias).expect("gradient");
        let w = matrix(&patient, Who::Patient, 0);
        let want = w
            .matmul(&by_bias.unsqueeze(1).expect("column"))
            .and_then(|x| x.flatten_all()?.to_vec1::<f32>());
        let got = gradient.sum(0).and_then(|x| x.to_vec1::<f32>()).expect("sum");
        all_close(&got, &want.expect("product"), 1e-4, what);
    });
}

/// A temporary folder and names in it.
struct Bench(tempfile::TempDir);

impl Bench {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("dir"))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("utf-8").to_owned()
    }

    fn file(&self, name: &str, rows: &[Value]) -> String {
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        std::fs::write(self.path(name), text).expect("writes");
        self.path(name)
    }
}

fn golden_model(name: &str) -> String {
    golden::dir().join(name).to_str().expect("utf-8").to_owned()
}

fn record(out: &str) -> RunRecord {
    let bytes = std::fs::read(format!("{out}/irepair/run.json")).expect("run.json");
    serde_json::from_slice(&bytes).expect("read strictly")
}

fn weights_of(dir: &str) -> Vec<u8> {
    std::fs::read(format!("{dir}/model.safetensors")).expect("weights")
}

/// What `eval --edits` measures of the demo and of a model, by figure.
fn measured(bench: &Bench, model: &str) -> BTreeMap<String, [f64; 2]> {
    let out = bench.path("evaluated");
    let said = ok(&irepair(&[
        "eval",
        "--model",
        "demo",
        "--model",
        model,
        "--edits",
        "--out",
        &out,
        "--overwrite",
        "-q",
        "--json",
    ]));
    let results: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(results["models"][0].get("changed"), None, "the demo is no repair");
    assert!(results["models"][1]["changed"]["neurons"].as_u64().expect("neurons") > 0);
    let models = results["measurements"][0]["models"].as_array().expect("models");
    let figures = |model: usize| models[model]["figures"].as_array().expect("figures").iter();
    let value = |figure: &Value| figure["value"].as_f64().expect("a value");
    figures(0)
        .zip(figures(1))
        .map(|(base, ours)| {
            (base["name"].as_str().expect("name").to_owned(), [value(base), value(ours)])
        })
        .collect()
}

/// The failures of the demo, repaired in either mode, and what that does elsewhere.
#[test]
fn star_repairs_what_the_demo_gets_wrong() {
    let bench = Bench::new();
    for more in [&["--mode", "batch"][..], &["--mode", "iterative", "--neurons", "1/4"]] {
        let out = bench.path("out");
        ok(&irepair(
            &[&["repair", "--method", "star", "--out", &out, "--overwrite", "-q"][..], more]
                .concat(),
        ));
        let run = record(&out);
        let edits = run.edits.as_ref().expect("edits");
        assert_eq!((edits.failures, edits.skipped), (12, 0));
        assert!(edits.repaired as f64 >= 0.9 * edits.failures as f64, "{more:?}: {edits:?}");
        assert!(run.changed.iter().all(|c| c.name.ends_with(".mlp.c_proj.weight")), "{more:?}");
        assert_eq!(run.changed_parameters, 128 * edits.neurons.values().sum::<usize>());
        assert!(run.after.nll_chosen < run.before.nll_chosen);
        assert_eq!(run.sliced.len(), 6);
        let figures = measured(&bench, &out);
        let [before, after] = figures["targets said, teacher forcing (%)"];
        close(
            after,
            100.0 * edits.repaired as f64 / 12.0,
            1e-9,
            "what eval finds is what repair found",
        );
        assert_eq!((before, figures["targets said, generated (%)"]), (0.0, [0.0, after]));
        let [before, after] = figures["generalization, teacher forcing (%)"];
        assert!(before == 0.0 && after > 50.0, "{more:?}: {figures:?}");
        let [before, after] = figures["specificity, generated (%)"];
        assert!(before == 100.0 && after < 100.0, "{more:?}: {figures:?}");
    }
}

/// Killed in any step, or interrupted: `--resume` ends in the bytes and the log of a repair that went through.
#[cfg(unix)]
#[test]
fn a_repair_that_was_cut_short_goes_on_to_the_same_bytes() {
    let bench = Bench::new();
    let cases: [&[&str]; 4] = [
        &["--method", "star", "--neurons", "1/4"],
        &["--method", "star", "--mode", "iterative", "--block-sparsity", "1/2", "--neurons", "1/4"],
        &["--method", "sgd", "--mode", "iterative"],
        &["--method", "mint"],
    ];
    for (index, case) in cases.iter().enumerate() {
        let run = |out: &str, more: &[&str]| -> Vec<String> {
            let arguments = ["repair", "--rounds", "2", "--save-steps", "1", "--out", out, "-q"];
            arguments.iter().chain(*case).chain(more).map(|word| (*word).to_owned()).collect()
        };
        let words = |run: &[String]| irepair(&run.iter().map(String::as_str).collect::<Vec<_>>());
        let whole = bench.path(&format!("whole{index}"));
        ok(&words(&run(&whole, &[])));
        let steps_of = |dir: &str| read_steps(format!("{dir}/irepair/steps.jsonl").as_ref());
        let numbers = |dir: &str| -> Vec<(usize, Option<usize>, f64, usize)> {
            let steps = steps_of(dir).expect("steps");
            steps.iter().map(|s| (s.step, s.block, s.loss, s.slice.len())).collect()
        };
        let all = numbers(&whole);
        for (part, by_signal) in [(1, false), (3, true), (5, false)] {
            let what = format!("{case:?} cut short at {part}/7 of {} steps", all.len());
            let out = bench.path(&format!("out{index}-{part}"));
            let (partial, arguments) = (format!("{out}.partial"), run(&out, &[]));
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let mut child =
                command(&arguments).stderr(std::process::Stdio::piped()).spawn().expect("starts");
            let state = format!("{partial}/irepair/state/state.safetensors");
            let enough = || {
                steps_of(&partial).map_or(0, |s| s.len()) > all.len() * part / 7
                    && std::path::Path::new(&state).exists()
            };
            while !enough() && child.try_wait().expect("runs").is_none() {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            if by_signal {
                assert!(interrupt(child).contains("--resume"), "{what}");
            } else {
                child.kill().expect("kill");
                child.wait().expect("ends");
            }
            assert!(!std::path::Path::new(&out).exists(), "{what}");
            if by_signal {
                let data = bench.file(
                    "other.jsonl",
                    &[json!({"prompt": "Tea at noon", "target": " and bread"})],
                );
                for other in [
                    ["--rounds", "3"],
                    ["--seed", "1"],
                    ["--data", &data],
                    ["--learning-rate", "0.02"],
                ] {
                    if case[1] != "mint" || other[0] != "--learning-rate" {
                        let output = words(&run(&out, &[&["--resume"], &other[..]].concat()));
                        let error = String::from_utf8_lossy(&output.stderr);
                        assert_eq!(output.status.code(), Some(3), "{other:?}: {error}");
                        assert!(error.contains("of another"), "{other:?}: {error}");
                    }
                }
            }
            ok(&words(&run(&out, &["--resume"])));
            for file in ["model.safetensors", "irepair/patch.safetensors"] {
                let bytes = |dir: &str| std::fs::read(format!("{dir}/{file}")).expect(file);
                assert!(bytes(&out) == bytes(&whole), "{what}: {file}");
            }
            assert_eq!(numbers(&out), all, "{what}");
            let edits = |dir: &str| EditsRecord {
                repair_seconds: 0.0,
                ..record(dir).edits.expect("edits")
            };
            assert_eq!(edits(&out), edits(&whole), "{what}");
        }
    }
}

/// A gated MLP's neurons are what its last matrix takes in.
#[test]
fn llama_is_repaired_in_its_down_projections() {
    let bench = Bench::new();
    let (model, out) = (golden_model("llama"), bench.path("out"));
    let rows =
        bench.file("rows.jsonl", &[json!({"prompt": "Tea at noon", "target": " and bread"})]);
    for method in ["star", "sgd"] {
        let arguments =
            ["repair", "--model", &model, "--data", &rows, "--method", method, "--out", &out];
        ok(&irepair(
            &[&arguments[..], &["--learning-rate", "0.1", "--rounds", "30", "--overwrite", "-q"]]
                .concat(),
        ));
        let run = record(&out);
        let edits = run.edits.as_ref().expect("edits");
        assert!(run.changed.iter().all(|c| c.name.ends_with(".mlp.down_proj.weight")), "{method}");
        assert!(run.after.nll_chosen < run.before.nll_chosen, "{method}");
        if method == "star" {
            assert_eq!((edits.failures, edits.repaired), (1, 1));
        }
    }
    // A token that is near enough for the few neurons that mint takes.
    let rows = bench.file("near.jsonl", &[json!({"prompt": "Tea at noon", "target": "2"})]);
    ok(&irepair(&[
        "repair",
        "--model",
        &model,
        "--data",
        &rows,
        "--method",
        "mint",
        "--out",
        &out,
        "--overwrite",
        "-q",
    ]));
    let run = record(&out);
    assert_eq!(run.edits.as_ref().map(|edits| (edits.failures, edits.repaired)), Some((1, 1)));
    assert!(run.changed.iter().all(|c| c.name.ends_with(".mlp.down_proj.weight")));
}

/// A patch holds the rows (GPT-Neo: columns) of the changed neurons alone, and leads there and back.
#[test]
fn a_patch_holds_the_neurons() {
    for (name, axis) in [("gpt2", 0), ("gpt-neo", 1)] {
        let bench = Bench::new();
        let rows = [
            json!({"prompt": "The old boat on the river", "target": " drifted home."}),
            json!({"prompt": "The old boat on the river", "target": " sank.", "kind": "specificity"}),
        ];
        let (model, data, out) =
            (golden_model(name), bench.file("rows.jsonl", &rows), bench.path("out"));
        ok(&irepair(&[
            "repair",
            "--model",
            &model,
            "--data",
            &data,
            "--method",
            "star",
            "--block-sparsity",
            "one",
            "--neurons",
            "1/16",
            "--max-steps",
            "3",
            "--rounds",
            "1",
            "--out",
            &out,
            "-q",
        ]));
        let run = record(&out);
        assert_eq!((run.steps, run.changed.len(), run.data.pairs), (3, 1, 1), "{name}");
        assert_eq!(run.edits.expect("edits").neurons.values().collect::<Vec<_>>(), [&4], "{name}");
        let path = format!("{out}/irepair/patch.safetensors");
        let patch = PatchFile::open(path.as_ref()).expect("patch");
        let lines = patch.tensors[&run.changed[0].name].lines.clone().expect("some rows");
        assert_eq!((lines.axis, lines.indices.len()), (axis, 4), "{name}");
        let shown = ok(&irepair(&["patch", "show", &path]));
        assert!(shown.contains(if axis == 0 { "4 rows: " } else { "4 columns: " }), "{shown}");
        let (there, back) = (bench.path("there"), bench.path("back"));
        ok(&irepair(&["patch", "apply", &model, &path, "--out", &there]));
        assert_eq!(weights_of(&there), weights_of(&out), "{name}");
        ok(&irepair(&["patch", "revert", &out, &path, "--out", &back]));
        assert_eq!(weights_of(&back), weights_of(&model), "{name}");
    }
}

/// Two wishes for one position: half of what they ask is left, said, and nothing is NaN.
#[test]
fn contradicting_rows_have_a_residual() {
    let bench = Bench::new();
    let rows = [" drifted", " sank"]
        .map(|target| json!({"prompt": "The old boat on the river", "chosen": target}));
    let (model, data, out) =
        (golden_model("gpt2"), bench.file("rows.jsonl", &rows), bench.path("out"));
    let said = ok(&irepair(&[
        "repair", "--model", &model, "--data", &data, "--method", "star", "--out", &out, "-q",
    ]));
    let edits = record(&out).edits.expect("edits");
    assert!(edits.worst_residual > 0.3 && edits.worst_residual <= 1.0, "{edits:?}");
    assert!(edits.repaired < 2 && said.contains("can't be met in full"), "{said}");
}

#[test]
fn rows_that_are_right_are_skipped_and_counted() {
    let bench = Bench::new();
    let edits: Vec<Value> = irepair::data::demo::EDITS
        .lines()
        .map(|line| serde_json::from_str(line).expect("a row"))
        .collect();
    let row = |kind: &str| {
        let row = edits.iter().find(|row| row["kind"] == kind).expect(kind);
        json!({"prompt": row["prompt"], "target": row["chosen"]})
    };
    let (wrong, right) = (row("failure"), row("specificity"));
    let (both, only) =
        (bench.file("both.jsonl", &[right.clone(), wrong]), bench.file("only.jsonl", &[right]));
    let out = bench.path("out");
    let repair = |data| {
        [
            "repair",
            "--data",
            data,
            "--method",
            "sgd",
            "--max-steps",
            "1",
            "--rounds",
            "1",
            "--out",
            &out,
        ]
    };
    let output = irepair(&repair(&both));
    ok(&output);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("2 rows: 1 to repair, 1 skipped because the model already says their target"),
        "{said}"
    );
    let edits = record(&out).edits.expect("edits");
    assert_eq!((edits.skipped, edits.failures), (1, 1));
    refused(&[&repair(&only)[..], &["--overwrite"]].concat(), 4, &["already says every target"]);
}

#[test]
fn a_dry_run_says_what_it_takes_and_writes_nothing() {
    let bench = Bench::new();
    let out = bench.path("out");
    let plan = ["repair", "--method", "star", "--dry-run", "--json", "-q", "--out", &out];
    let plan: Value = serde_json::from_str(&ok(&irepair(&plan))).expect("JSON");
    assert_eq!((plan["rows"].as_u64(), plan["neurons"].as_u64()), (Some(12), Some(6 * 512)));
    let parts = plan["memory"]["parts"].as_array().expect("parts");
    assert!(parts.iter().any(|part| part["name"] == "linear systems"), "{parts:?}");
    assert!(!std::path::Path::new(&out).exists());
    let mut little = command(&["repair", "--method", "star", "--out", &out]);
    let output = little.env("IREPAIR_MEMORY_LIMIT", "10").output().expect("runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(3) && error.contains("linear systems"), "{error}");
}

#[test]
fn edits_that_cannot_be() {
    let bench = Bench::new();
    let (model, out) = (golden_model("gpt2"), bench.path("out"));
    let row = |target: &str| json!({"prompt": "Tea at noon", "target": target});
    let good = bench.file("good.jsonl", &[row(" and bread")]);
    let repair = |data: &str, more: &[&str], code: i32, words: &[&str]| {
        let arguments =
            ["repair", "--model", &model, "--data", data, "--out", &out, "--method", "star"];
        refused(&[&arguments[..], more].concat(), code, words);
    };
    repair(
        &bench.file("empty.jsonl", &[row(" x"), row("")]),
        &[],
        3,
        &["empty.jsonl:2", "target is empty"],
    );
    repair(
        &bench.file("keys.jsonl", &[json!({"prompt": "a"})]),
        &[],
        3,
        &["keys.jsonl:1", "\"target\""],
    );
    repair(
        &bench.file("long.jsonl", &[row(&" word".repeat(70))]),
        &[],
        3,
        &["long.jsonl:1", "64 positions"],
    );
    let other = json!({"prompt": "a", "target": "b", "kind": "specificity"});
    repair(&bench.file("other.jsonl", &[other]), &[], 3, &["no row is a failure"]);
    for (flag, value) in [
        ("--kl-weight", "1"),
        ("--select", "max"),
        ("--objective", "nll"),
        ("--optimizer", "adamw"),
        ("--batch-size", "2"),
        ("--config", "quick"),
    ] {
        repair(&good, &[flag, value], 2, &["--method star", "contradicts"]);
    }
    repair(&good, &["--resume"], 3, &["--resume", "no unfinished run"]);
    repair(&good, &["--rounds", "0"], 3, &["--rounds 0"]);
    repair(&good, &["--neurons", "5/4"], 2, &["--neurons", "fraction"]);
    // Nothing of it is left that would be in the way of a corrected command.
    for _ in 0..2 {
        repair(&good, &["--learning-rate", "0"], 4, &["nothing changed"]);
    }
    refused(
        &["repair", "--method", "mint", "--neurons", "1/4"],
        2,
        &["--method mint", "--neurons"],
    );
    refused(
        &["repair", "--method", "irepair", "--neurons", "1/4"],
        2,
        &["--method irepair", "--neurons"],
    );
    refused(&["repair", "--method", "stra"], 3, &["did you mean \"star\""]);
    refused(&["bench", "--method", "star"], 3, &["a block-level method is wanted"]);
    refused(&["eval", "--edits", &bench.path("none.jsonl"), "--out", &out], 3, &["none.jsonl"]);
}
