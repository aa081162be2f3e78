//! A *view* is the weights of one pass, with what is wanted of each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::{D, DType, Device, Tensor, Var};

use super::spec::{Place, Sublayer, TensorSpec};
use super::store::{Kernels, Weights, Who};
use super::tape::{Tape, Way};
use crate::base::profile::{Phase, phase};
use crate::model::fused;
use crate::model::kernels;
use crate::model::ledger::{Ledger, Param, Want};
use crate::model::precision::Precision;
use crate::model::probes::{Probes, Reading};

/// The weights of one pass, with what is wanted of each.
pub struct View<'w> {
    weights: &'w Weights,
    who: Who,
    wants: BTreeMap<&'w str, Want>,
    /// Where something is wanted.
    places: BTreeSet<Place>,
    sublayers: BTreeSet<(usize, Sublayer)>,
    ledger: Arc<Ledger>,
    probes: Probes,
    tape: Tape<View<'w>>,
    /// Linear layers that add nothing to their residual stream.
    skipped: BTreeSet<String>,
}

impl Weights {
    /// A view that wants `want(spec)` of each tensor.
    pub fn view(&self, who: Who, want: impl Fn(&TensorSpec) -> Want) -> Result<View<'_>> {
        let wants: BTreeMap<&str, Want> = self
            .specs
            .values()
            .map(|s| (s.name.as_str(), want(s)))
            .filter(|(_, want)| *want != Want::Nothing)
            .collect();
        let places = wants.keys().map(|n| self.specs[*n].place).collect();
        let sublayer = |spec: &TensorSpec| match (spec.place, spec.sublayer) {
            (Place::Block(block), Some(sublayer)) => Some((block, sublayer)),
            _ => None,
        };
        let sublayers = wants.keys().filter_map(|n| sublayer(&self.specs[*n])).collect();
        Ok(View {
            weights: self,
            who,
            wants,
            places,
            sublayers,
            ledger: Arc::new(Ledger::default()),
            probes: Probes::default(),
            tape: Tape::default(),
            skipped: BTreeSet::new(),
        })
    }

    /// A view that builds no graph: for evaluation, generation and the reference.
    pub fn frozen(&self, who: Who) -> Result<View<'_>> {
        self.view(who, |_| Want::Nothing)
    }
}

impl<'w> View<'w> {
    /// The same view that also reads the inputs of these linear layers, and their gradients.
    pub fn probing(mut self, layers: impl IntoIterator<Item = String>) -> Self {
        self.probes = Probes::on(layers);
        self
    }

    /// The same view in which this linear layer adds nothing to its residual stream.
    pub fn skipping(mut self, layer: String) -> Self {
        self.skipped.insert(layer);
        self
    }

    /// The input of a linear layer as the layer must take it, where there is a probe on it.
    pub fn probe(&self, layer: &str, x: &Tensor) -> Result<Option<Tensor>> {
        self.probes.place(layer, x)
    }

    /// Whether a linear layer adds nothing.
    pub fn skips(&self, layer: &str) -> bool {
        self.skipped.contains(layer)
    }

    /// The implementation of the layers in use.
    pub fn kernels(&self) -> Kernels {
        self.weights.kernels
    }

    /// Whether what becomes of a text does not depend, to the bit, on the other texts of its batch:
    /// the packed products do not, and the products in mixed precision are all packed.
    pub fn rows_stand_alone(&self) -> bool {
        let precision = self.weights.precision;
        self.kernels() == Kernels::Cpu
            && precision != Precision::F32
            && precision.unavailable().is_none()
    }

    /// The parameter of this name.
    pub fn param(&self, name: &str) -> Result<Param> {
        let want = self.wants.get(name).copied().unwrap_or(Want::Nothing);
        Ok(Param {
            tensor: self.weights.kept(self.who, name)?.clone(),
            name: name.into(),
            want,
            precision: self.weights.precision,
            ledger: self.ledger.clone(),
        })
    }

    /// The lowest place that something is wanted of; the head, if nothing is.
    pub fn lowest_wanted(&self) -> Place {
        self.places.first().copied().unwrap_or(Place::Head)
    }

    /// Whether anything is wanted of the tensors at this place.
    pub fn wants(&self, place: Place) -> bool {
        self.places.contains(&place)
    }

    /// `h` as the final norm or the head must take it: the start of the graph, if something is
    /// wanted there and it has none yet.
    ///
    /// Gradients of parameters go to the ledger, so only an activation can carry the graph to them.
    pub fn enter(&self, place: Place, h: &Tensor) -> Result<Tensor> {
        self.start(self.wants(place), h)
    }

    /// The same of a sublayer of a block and the input of its norm. Where one sublayer is wanted,
    /// the other is passed without a graph, if it comes before it or beside it.
    pub fn enter_sublayer(&self, block: usize, sublayer: Sublayer, h: &Tensor) -> Result<Tensor> {
        self.start(self.sublayers.contains(&(block, sublayer)), h)
    }

    fn start(&self, wanted: bool, h: &Tensor) -> Result<Tensor> {
        if wanted && !h.track_op() {
            return Ok(Var::from_tensor(h)?.into_inner());
        }
        Ok(h.clone())
    }

    /// Whether a block over `h` keeps its input alone, and its graph is made on the way back: if
    /// the weights are told so and the graph goes through the block. With probes it does not: they
    /// read one pass.
    pub fn recomputes(&self, block: usize, h: &Tensor) -> bool {
        let asked = self.weights.recompute && self.probes.none() && self.skipped.is_empty();
        asked && (h.track_op() || self.wants(Place::Block(block)))
    }

    /// What a block makes of `h`, without its graph.
    pub fn keep_input(&self, h: &Tensor, way: Way<View<'w>>) -> Result<Tensor> {
        self.tape.record(&self.weights.frozen(self.who)?, h, way)
    }

    /// Run the backward pass of `loss` (a scalar) and free its graph. Several losses may follow
    /// each other: gradients add up. Errors if a wanted gradient did not arrive: that is a broken
    /// graph, never a zero.
    pub fn backward(&self, loss: Tensor) -> Result<()> {
        let missing = |name: &str| format!("no gradient reached {name}");
        self.ledger.lock().reached.clear();
        let _phase = phase(Phase::Backward);
        let mut store = loss.backward()?;
        self.probes.collect(&mut store)?;
        self.tape.go_back(self, &mut store)?;
        let reached = &self.ledger.lock().reached;
        for &name in self.wants.keys() {
            reached.get(name).with_context(|| missing(name))?;
        }
        Ok(())
    }

    /// What the backward passes brought in.
    pub fn harvest(self) -> Result<Harvest> {
        let mut harvest = Harvest {
            squares: BTreeMap::new(),
            gradients: BTreeMap::new(),
            readings: self.probes.into_readings(),
        };
        let mut findings = std::mem::take(&mut *self.ledger.lock());
        let there = std::mem::take(&mut findings.squares_there);
        if !there.is_empty() {
            // In one copy: each would wait for all work before it.
            let squares: Vec<&Tensor> = there.values().collect();
            let squares = Tensor::stack(&squares, 0)?.to_vec1::<f64>()?;
            findings.squares.extend(there.into_keys().zip(squares));
        }
        for (&name, want) in &self.wants {
            let missing = || format!("no gradient reached {name}");
            if *want == Want::Norm {
                let square = findings.squares.remove(name).with_context(missing)?;
                harvest.squares.insert(name.into(), square);
            } else if let Some(gradient) = findings.gradients_there.remove(name) {
                harvest.gradients.insert(name.into(), gradient);
            } else {
                let shape = self.weights.specs[name].shape.as_slice();
                let values = findings.gradients.remove(name).with_context(missing)?;
                let gradient = Tensor::from_vec(values, shape, &Device::Cpu)?;
                harvest.gradients.insert(name.into(), gradient);
            }
        }
        Ok(harvest)
    }
}

/// Σ x² of each tensor, accumulated in f64 (a low-precision or f32 sum over millions of values is
/// nonsense). From another device all of them come in one copy: each would wait for all work before
/// it.
pub fn squared_norms<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<Vec<f64>> {
    let tensors: Vec<&Tensor> = tensors.collect();
    if let Some(device) = tensors.first().map(|t| t.device()).filter(|d| fused::runs_on(d)) {
        let whole: candle_core::Result<Vec<Tensor>> =
            tensors.iter().map(|t| t.to_dtype(DType::F32)?.contiguous()).collect();
        return Ok(fused::many::sums_of_squares(&whole?.iter().collect::<Vec<_>>(), device)?);
    }
    let (mut norms, mut elsewhere) = (Vec::new(), Vec::new());
    for tensor in tensors {
        if tensor.device().is_cpu() {
            let flat = tensor.to_dtype(DType::F32)?.flatten_all()?.contiguous()?;
            norms.push(kernels::read(&flat, kernels::sum_of_squares)?);
        } else {
            // Row by row first: a GPU gives one sum to one of its processors.
            elsewhere.push(tensor.to_dtype(DType::F64)?.sqr()?.sum(D::Minus1)?.sum_all()?);
        }
    }
    Ok(if elsewhere.is_empty() { norms } else { Tensor::stack(&elsewhere, 0)?.to_vec1()? })
}

/// What a backward pass brought in, by tensor name.
#[derive(Debug)]
pub struct Harvest {
    /// Σ g² of the parameters wanted as [`Want::Norm`].
    pub squares: BTreeMap<String, f64>,
    /// The gradients of the parameters wanted as [`Want::Gradient`].
    pub gradients: BTreeMap<String, Tensor>,
    /// What the probes read, by layer.
    pub readings: BTreeMap<String, Reading>,
}
