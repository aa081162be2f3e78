//! STAR, MINT and SGD: the numbers of their statement in PyTorch (`scripts/neuron_ref.py`).
//! `scripts/make_golden_neuron.py` wrote them down.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Device, Tensor};
use irepair::model::layers::Orientation;
use irepair::model::loss;
use irepair::model::weights::{Kernels, View, Want, Who};
use irepair::step::neurons;
use irepair::step::neurons::basis::Basis;
use irepair::step::neurons::change::changed;
use irepair::step::neurons::scope::{at_rows, attribution, block_order, scope};
use irepair::step::neurons::{Mode, Patient, Position, Recipe, Share, Stage, Step, Watch, descent};
use irepair::tokens::TokenEdit;
use serde_json::Value;

use crate::support::golden::{self, Golden, KERNELS, ids, numbers};
use crate::support::tensors::{all_close, close, flat, scalar};

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
        let path = golden::path(name).join("neuron.safetensors");
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
        flat(&self.tensors[name])
    }

    /// Every block's output matrix as (neurons, C) is the expected one.
    fn same_weights(&self, patient: &Patient, key: &str, what: &str) {
        for block in 0..patient.model.sizes().blocks {
            let got = flat(&matrix(patient, Who::Patient, block));
            let want = self.tensor(&format!("{key}.{block}"));
            all_close(&got, &want, 1e-4, &format!("{what} block {block}"));
        }
        let outside = patient
            .weights
            .touched()
            .filter(|(name, _)| !name.ends_with(".mlp.c_proj.weight"))
            .count();
        assert_eq!(outside, 0, "{what}: another tensor was touched");
    }
}

/// What a repair does: its steps, and after each target token the sums over columns and rows of
/// every block's change.
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
        // Within an optimization, its token is not done yet.
        let token = at.done - usize::from(at.optimization.is_none());
        let mut sums = Vec::new();
        for block in 0..patient.model.sizes().blocks {
            let matrix = |who| matrix(patient, who, block).to_dtype(DType::F64);
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

/// After every target token, whether it failed or not, the sums of all blocks' changes are the
/// expected ones.
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

/// The values of a matrix, row after row.
fn rows_of(m: &faer::Mat<f64>) -> Vec<f32> {
    (0..m.nrows()).flat_map(|i| (0..m.ncols()).map(move |j| m[(i, j)] as f32)).collect()
}

fn each(check: impl Fn(&Neurons, Kernels, &str)) {
    for name in NAMES {
        let neurons = Neurons::open(name);
        for kernels in KERNELS {
            check(&neurons, kernels, &format!("{name} {kernels:?}"));
        }
    }
}

/// The neuron-level method of this name.
fn named(name: &str) -> &'static neurons::NamedMethod {
    neurons::METHODS.iter().find(|method| method.name == name).expect(name)
}

/// What the method is made of, with the numbers of the golden runs.
fn recipe(name: &str) -> Recipe {
    Recipe {
        method: named(name),
        mode: Mode::Batch,
        blocks: Share::All,
        neurons: Share::All,
        steps: 10,
        learning_rate: 1e-2,
        rounds: 10,
    }
}

fn repaired<'a>(patient: &'a neurons::Patient) -> neurons::change::Repaired<'a> {
    let neurons::Patient { model, weights, mlp, .. } = patient;
    neurons::change::Repaired { model, weights, mlp: *mlp }
}

#[test]
fn basis_steers_attribution_and_choices_equal_the_statement() {
    each(|neurons, kernels, what| {
        let patient = neurons.patient(kernels);
        let (v, c) = (patient.model.sizes().vocabulary, patient.model.sizes().channels);
        let rows = neurons.rows("rows");
        let said = |row: &TokenEdit| {
            let batch = neurons::batch(std::slice::from_ref(row));
            neurons::said(patient.model, &patient.weights, &batch).expect("said")
        };
        let said: Vec<Vec<u32>> = rows.iter().map(said).collect();
        let expected = neurons.expected["argmax"].as_array().expect("rows").iter();
        assert_eq!(said, expected.map(ids).collect::<Vec<_>>(), "{what}");
        assert_eq!(
            neurons::failing(patient.model, &patient.weights, &rows).expect("failing"),
            [0, 2, 3],
            "{what}"
        );

        // Row y of the basis, as a difference from row 0.
        let basis = neurons.tensor("basis");
        for token in [1, 7, v as u32 - 1] {
            let row = patient.basis.toward(token, 0).expect("row");
            let got: Vec<f32> = row.into_iter().map(|x| x as f32).collect();
            let want: Vec<f32> = (0..c).map(|i| basis[token as usize * c + i] - basis[i]).collect();
            all_close(&got, &want, 1e-4, &format!("{what} basis"));
        }
        let batch = neurons::batch(&neurons.failing());
        let said = neurons::said(patient.model, &patient.weights, &batch).expect("said");
        let steers = descent::steers(&patient, &batch, &said).expect("steers");
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

        // Δ of every block, from all neurons and from the kept ones. There are more positions than
        // channels.
        assert!(batch.rows.len() > c);
        let view = patient.weights.frozen(Who::Patient).expect("view");
        let view = view.probing((0..blocks).map(|b| patient.mlp.output(b)));
        patient.model.hidden(&view, &batch.packed).expect("hidden");
        let readings = view.harvest().expect("harvest").readings;
        for block in 0..blocks {
            let read = &readings[&patient.mlp.output(block)];
            assert!(read.gradient.is_none(), "nothing was differentiated");
            let z = at_rows(&read.input, &batch.rows).expect("rows");
            let all: Vec<usize> = (0..patient.mlp.neurons).collect();
            let found = descent::solve(&z, &all, &steers).expect("solves");
            let want = neurons.tensor(&format!("delta.{block}"));
            all_close(&rows_of(&found.x()), &want, 1e-3, &format!("{what} Δ of block {block}"));
            if let Some(kept) = kept.get(&block) {
                let found = descent::solve(&z, kept, &steers).expect("solves");
                let whole = neurons.tensor(&format!("delta_sparse.{block}"));
                let want: Vec<f32> =
                    kept.iter().flat_map(|&i| whole[i * c..(i + 1) * c].to_vec()).collect();
                let got = rows_of(&found.transposed().transpose().to_owned());
                all_close(&got, &want, 1e-3, &format!("{what} sparse Δ of block {block}"));
                let short = "four neurons can't give 21 positions what they want";
                assert!(found.residual > 0.0, "{short}");
            }
        }
    });
}

/// Losses of all steps and the weights after them, in every mode. Where a method goes token by
/// token, the weights after each token.
#[test]
fn steps_equal_the_statement() {
    let recipe = |mode, blocks, neurons| Recipe { mode, blocks, neurons, ..recipe("star") };
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
            let recipe = Recipe { method: named(method), ..recipe.clone() };
            let method = recipe.clone().build();
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
            let changed = changed(&repaired(&patient)).expect("changed");
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
        let mint = recipe("mint").build();
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
            let recipe = Recipe { mode: Mode::Iterative, ..recipe(entry.name) };
            let method = recipe.build();
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
            assert!(changed(&repaired(&patient)).expect("changed").is_empty());
        }
    });
}

/// A layer's input is multiplied by its matrix, and its bias is added. So the gradient by the
/// input, summed over rows, is the matrix times the gradient by the bias.
#[test]
fn a_probed_gradient_is_the_derivative() {
    each(|neurons, kernels, what| {
        let patient = neurons.patient(kernels);
        let batch = neurons::batch(&neurons.failing());
        let layer = patient.mlp.output(0);
        let loss = |view: &View| loss::nll(patient.model, view, &batch).expect("loss");
        let view = patient.weights.frozen(Who::Patient).expect("view").probing([layer.clone()]);
        let probed_loss = loss(&view);
        let value = scalar(&probed_loss);
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
        assert_eq!(scalar(&plain_loss), value, "{what}: a probe changes nothing");
        view.backward(plain_loss).expect("backward");
        let by_bias = view.harvest().expect("harvest").gradients.remove(&bias).expect("gradient");
        let w = matrix(&patient, Who::Patient, 0);
        let want = w.matmul(&by_bias.unsqueeze(1).expect("column")).expect("product");
        all_close(&flat(&gradient.sum(0).expect("sum")), &flat(&want), 1e-4, what);
    });
}
