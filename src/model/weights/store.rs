//! The *weights* are all named tensors of one model; a *view* says what is wanted of each in one pass.
//!
//! There is one store for the patient and its frozen reference. They share every tensor until a step first touches
//! it: then the patient gets a copy and the reference keeps the original, so **the reference costs the memory of the
//! touched tensors, not of a second model**. A view costs reference counts. A pass through it yields, beside the loss,
//! a [`Harvest`]: norms or gradients of the parameters that the view asked for, and nothing of the others.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use candle_core::{D, DType, Device, Tensor, Var};

use super::precision::Precision;
use super::probes::{Tapped, Taps};
use crate::base::profile::{Phase, phase};

/// Where a tensor stands in the model: only [`Place::Block`] tensors can be in the slice of a block-level repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Token and position embeddings (and with a tied head, the head).
    Embedding,
    /// Block `0..L`: attention, MLP, both norms, weights and biases.
    Block(usize),
    /// The norm after the last block.
    FinalNorm,
    /// The output head, where it is not tied to the embedding.
    Head,
}

/// Whether a block's tensor belongs to its MLP, by its name in transformers: the second norm does.
pub fn of_mlp(name: &str) -> bool {
    [".mlp.", ".ln_2.", ".post_attention_layernorm."].iter().any(|part| name.contains(part))
}

/// What an architecture expects of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub shape: Vec<usize>,
    pub place: Place,
}

impl TensorSpec {
    /// Whether it may stay in the dtype it is stored in: vectors (norms, biases) are too small to gain by it.
    pub fn is_matrix(&self) -> bool {
        self.shape.len() == 2
    }
}

/// Which implementation of the layers runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernels {
    /// Our CPU kernels; gradients of parameters go to the [`Ledger`].
    Cpu,
    /// Composed of candle's own operations, on any device; the plain path that the kernels are tested against.
    Composed,
}

/// All tensors of a model (on one device; f32, but matrices that it does not train may be bf16 or f16) and which of them
/// the repair has changed so far.
#[derive(Debug)]
pub struct Weights {
    specs: BTreeMap<String, TensorSpec>,
    original: BTreeMap<String, Tensor>,
    touched: BTreeMap<String, Tensor>,
    kernels: Kernels,
    precision: Precision,
    keep_originals: bool,
}

/// Whose weights a view shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The model under repair.
    Patient,
    /// The model before repair, never trained.
    Reference,
}

/// What a pass must find out about a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// Nothing: no graph is built for it.
    Nothing,
    /// Σ g² over the parameter.
    Norm,
    /// The gradient.
    Gradient,
}

impl Weights {
    /// Takes the tensors an architecture asked for. Errors if one is missing, of another shape, or not f32 (a matrix: nor
    /// bf16 or f16).
    pub fn new(specs: Vec<TensorSpec>, tensors: BTreeMap<String, Tensor>) -> Result<Self> {
        for spec in &specs {
            let tensor =
                tensors.get(&spec.name).with_context(|| format!("no tensor {}", spec.name))?;
            let kept = match tensor.dtype() {
                DType::F32 => true,
                DType::BF16 | DType::F16 => spec.is_matrix(),
                _ => false,
            };
            if tensor.dims() != spec.shape || !kept {
                bail!(
                    "{}: expected f32 {:?}, got {:?} {:?}",
                    spec.name,
                    spec.shape,
                    tensor.dtype(),
                    tensor.dims()
                );
            }
        }
        let on_cpu = tensors.values().all(|t| t.device().is_cpu());
        Ok(Self {
            specs: specs.into_iter().map(|s| (s.name.clone(), s)).collect(),
            original: tensors,
            touched: BTreeMap::new(),
            kernels: if on_cpu { Kernels::Cpu } else { Kernels::Composed },
            precision: Precision::F32,
            keep_originals: true,
        })
    }

    /// Choose the implementation of the layers; [`Kernels::Cpu`] only where all tensors are on the CPU.
    pub fn with_kernels(mut self, kernels: Kernels) -> Self {
        if kernels == Kernels::Composed || self.device().is_cpu() {
            self.kernels = kernels;
        }
        self
    }

    /// Choose what the operands of the large products are rounded to. The weights themselves stay f32. Returns what they
    /// were rounded to before.
    pub fn set_precision(&mut self, precision: Precision) -> Precision {
        std::mem::replace(&mut self.precision, precision)
    }

    /// Whether a touched tensor's original is kept for the reference. Without an objective that asks the reference
    /// (no KL, no DPO) it need not be, and a step takes no memory for it.
    pub fn keep_originals(&mut self, keep: bool) {
        self.keep_originals = keep;
    }

    /// The device all tensors are on.
    pub fn device(&self) -> Device {
        self.original
            .values()
            .chain(self.touched.values())
            .next()
            .map_or(Device::Cpu, |t| t.device().clone())
    }

    /// The implementation of the layers in use.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// What the architecture said of each tensor, by name.
    pub fn specs(&self) -> impl Iterator<Item = &TensorSpec> {
        self.specs.values()
    }

    /// The tensor as the patient or the reference has it now, in f32.
    pub fn tensor(&self, who: Who, name: &str) -> Result<Tensor> {
        Ok(self.kept(who, name)?.to_dtype(DType::F32)?)
    }

    /// The tensor as it is kept.
    fn kept(&self, who: Who, name: &str) -> Result<&Tensor> {
        let touched = || self.touched.get(name);
        match who {
            Who::Patient => touched().or_else(|| self.original.get(name)),
            Who::Reference => self.original.get(name),
        }
        .with_context(|| format!("no tensor {name} for the {who:?}"))
    }

    /// Names and tensors changed by the repair so far, sorted.
    pub fn touched(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.touched.iter().map(|(n, t)| (n.as_str(), t))
    }

    /// The lowest place where patient and reference may differ; `None` while they are the same.
    pub fn lowest_touched(&self) -> Option<Place> {
        self.touched.keys().filter_map(|n| self.specs.get(n)).map(|s| s.place).min()
    }

    /// Before a step writes into it: gives the patient a tensor of its own, in f32.
    pub fn touch(&mut self, name: &str) -> Result<&Tensor> {
        if !self.touched.contains_key(name) {
            let original = if self.keep_originals {
                self.original.get(name).cloned()
            } else {
                self.original.remove(name)
            };
            let original = original.with_context(|| format!("no tensor {name}"))?;
            let own = match original.dtype() {
                DType::F32 if self.keep_originals => original.copy()?,
                _ => original.to_dtype(DType::F32)?,
            };
            self.touched.insert(name.to_owned(), own);
        }
        Ok(&self.touched[name])
    }

    /// Put back the values of a snapshot or a saved state; they become touched.
    pub fn restore(&mut self, name: &str, values: Tensor) -> Result<()> {
        let spec = self.specs.get(name).with_context(|| format!("no tensor {name}"))?;
        if values.dims() != spec.shape {
            bail!("{name}: {:?} does not fit {:?}", values.dims(), spec.shape);
        }
        self.touched.insert(name.to_owned(), values);
        Ok(())
    }

    /// Copies of all touched tensors as they are now.
    pub fn snapshot(&self) -> Result<BTreeMap<String, Tensor>> {
        self.touched.iter().map(|(n, t)| Ok((n.clone(), t.copy()?.detach()))).collect()
    }

    /// Make the touched tensors exactly these; the others are the original again.
    /// Errors if an original is needed that was not kept.
    pub fn reset_to(&mut self, touched: &BTreeMap<String, Tensor>) -> Result<()> {
        let lost = self
            .touched
            .keys()
            .find(|n| !touched.contains_key(*n) && !self.original.contains_key(*n));
        if let Some(name) = lost {
            bail!("the original of {name} was not kept");
        }
        self.touched = touched
            .iter()
            .map(|(n, t)| Ok((n.clone(), t.copy()?.detach())))
            .collect::<Result<_>>()?;
        Ok(())
    }

    /// A view that wants `want(spec)` of each tensor.
    pub fn view(&self, who: Who, want: impl Fn(&TensorSpec) -> Want) -> Result<View<'_>> {
        let wants: BTreeMap<&str, Want> = self
            .specs
            .values()
            .map(|s| (s.name.as_str(), want(s)))
            .filter(|(_, want)| *want != Want::Nothing)
            .collect();
        let mut vars = BTreeMap::new();
        if self.kernels == Kernels::Composed {
            for name in wants.keys() {
                vars.insert(*name, Var::from_tensor(&self.tensor(who, name)?)?);
            }
        }
        let places = wants.keys().map(|n| self.specs[*n].place).collect();
        let sublayers = wants.keys().map(|n| (self.specs[*n].place, of_mlp(n))).collect();
        Ok(View {
            weights: self,
            who,
            wants,
            vars,
            places,
            sublayers,
            ledger: Arc::new(Ledger::default()),
            collected: RefCell::default(),
            taps: Taps::default(),
            skipped: BTreeSet::new(),
        })
    }

    /// A view that builds no graph: for evaluation, generation and the reference.
    pub fn frozen(&self, who: Who) -> Result<View<'_>> {
        self.view(who, |_| Want::Nothing)
    }
}

/// The weights of one pass, with what is wanted of each.
pub struct View<'w> {
    weights: &'w Weights,
    who: Who,
    wants: BTreeMap<&'w str, Want>,
    vars: BTreeMap<&'w str, Var>,
    places: BTreeSet<Place>,
    /// The same, and whether it is the MLP of a block.
    sublayers: BTreeSet<(Place, bool)>,
    ledger: Arc<Ledger>,
    /// Sums of the gradients of `vars`.
    collected: RefCell<BTreeMap<&'w str, Tensor>>,
    taps: Taps,
    /// Linear layers that add nothing to their residual stream.
    skipped: BTreeSet<String>,
}

/// A tensor and what its pass must find out about it.
#[derive(Debug, Clone)]
pub struct Param {
    /// In f32; the kernels take a matrix as it is kept.
    pub tensor: Tensor,
    pub name: Arc<str>,
    pub want: Want,
    /// Of the products it takes part in.
    pub precision: Precision,
    ledger: Arc<Ledger>,
}

impl View<'_> {
    /// The same view that also reads the inputs of these linear layers, and their gradients.
    pub fn tapping(mut self, layers: impl IntoIterator<Item = String>) -> Self {
        self.taps = Taps::on(layers);
        self
    }

    /// The same view in which this linear layer adds nothing to its residual stream.
    pub fn skipping(mut self, layer: String) -> Self {
        self.skipped.insert(layer);
        self
    }

    /// The input of a linear layer as the layer must take it, where it is tapped.
    pub fn tap(&self, layer: &str, x: &Tensor) -> Result<Option<Tensor>> {
        self.taps.place(layer, x)
    }

    /// Whether a linear layer adds nothing.
    pub fn skips(&self, layer: &str) -> bool {
        self.skipped.contains(layer)
    }

    /// The implementation of the layers in use.
    pub fn kernels(&self) -> Kernels {
        self.weights.kernels
    }

    /// Whether what becomes of a text does not depend, to the bit, on the other texts of its batch: the packed products
    /// do not, and the products in mixed precision are all packed.
    pub fn rows_stand_alone(&self) -> bool {
        let precision = self.weights.precision;
        self.kernels() == Kernels::Cpu
            && precision != Precision::F32
            && precision.unavailable().is_none()
    }

    /// The parameter of this name.
    pub fn param(&self, name: &str) -> Result<Param> {
        let want = self.wants.get(name).copied().unwrap_or(Want::Nothing);
        let tensor = match self.vars.get(name) {
            Some(var) => var.as_tensor().clone(),
            None if self.kernels() == Kernels::Cpu => self.weights.kept(self.who, name)?.clone(),
            None => self.weights.tensor(self.who, name)?,
        };
        Ok(Param {
            tensor,
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

    /// Make `h`, the input of `place` (of a block: of its attention), the start of the graph if something is wanted there
    /// and it has none yet.
    ///
    /// The kernels give gradients of parameters to the ledger, so only an activation can carry the graph to them.
    pub fn enter(&self, place: Place, h: Tensor) -> Result<Tensor> {
        self.start((place, false), h)
    }

    /// The same of the residual stream before a block's second norm: where its MLP alone is wanted, its attention is passed
    /// without a graph.
    pub fn enter_mlp(&self, block: usize, h: Tensor) -> Result<Tensor> {
        self.start((Place::Block(block), true), h)
    }

    fn start(&self, sublayer: (Place, bool), h: Tensor) -> Result<Tensor> {
        if self.kernels() == Kernels::Cpu && self.sublayers.contains(&sublayer) && !h.track_op() {
            return Ok(Var::from_tensor(&h)?.into_inner());
        }
        Ok(h)
    }

    /// Run the backward pass of `loss` (a scalar) and free its graph. Several losses may follow each other: gradients
    /// add up. Errors if a wanted gradient did not arrive: that is a broken graph, never a zero.
    pub fn backward(&self, loss: Tensor) -> Result<()> {
        let missing = |name: &str| format!("no gradient reached {name}");
        self.ledger.lock().reached.clear();
        let _phase = phase(Phase::Backward);
        let mut store = loss.backward()?;
        self.taps.collect(&mut store)?;
        match self.weights.kernels {
            Kernels::Cpu => {
                let entries = self.ledger.lock();
                for name in self.wants.keys() {
                    entries.reached.get(*name).with_context(|| missing(name))?;
                }
            }
            Kernels::Composed => {
                for (name, var) in &self.vars {
                    let gradient = store.remove(var).with_context(|| missing(name))?;
                    let mut collected = self.collected.borrow_mut();
                    let sum = match collected.remove(*name) {
                        Some(before) => (before + gradient)?,
                        None => gradient,
                    };
                    collected.insert(name, sum);
                }
            }
        }
        Ok(())
    }

    /// What the backward passes brought in.
    pub fn harvest(self) -> Result<Harvest> {
        let mut harvest = Harvest {
            squares: BTreeMap::new(),
            gradients: BTreeMap::new(),
            tapped: self.taps.into_tapped(),
        };
        let mut entries = std::mem::take(&mut *self.ledger.lock());
        let mut collected = self.collected.into_inner();
        let mut normed = BTreeMap::new();
        for (&name, want) in &self.wants {
            let missing = || format!("no gradient reached {name}");
            let composed = collected.remove(name);
            match (want, composed) {
                (Want::Nothing, _) => {}
                (Want::Norm, Some(gradient)) => {
                    normed.insert(name.to_owned(), gradient);
                }
                (Want::Gradient, Some(gradient)) => {
                    harvest.gradients.insert(name.into(), gradient);
                }
                (Want::Norm, None) => {
                    harvest
                        .squares
                        .insert(name.into(), entries.squares.remove(name).with_context(missing)?);
                }
                (Want::Gradient, None) => {
                    let shape = self.weights.specs[name].shape.as_slice();
                    let values = entries.gradients.remove(name).with_context(missing)?;
                    harvest
                        .gradients
                        .insert(name.into(), Tensor::from_vec(values, shape, &Device::Cpu)?);
                }
            }
        }
        let squares = squared_norms(normed.values())?;
        harvest.squares.extend(normed.into_keys().zip(squares));
        Ok(harvest)
    }
}

/// Σ x² of each tensor, accumulated in f64 (a low-precision or f32 sum over millions of values is nonsense). From another
/// device all of them come in one copy: each would wait for all work before it.
pub fn squared_norms<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<Vec<f64>> {
    let (mut norms, mut elsewhere) = (Vec::new(), Vec::new());
    for tensor in tensors {
        if tensor.device().is_cpu() {
            let flat = tensor.to_dtype(DType::F32)?.flatten_all()?.contiguous()?;
            norms.push(crate::model::kernels::read(&flat, crate::model::kernels::sum_of_squares)?);
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
    /// The inputs of the tapped layers.
    pub tapped: BTreeMap<String, Tapped>,
}

/// Where the kernels put what a view wants of its parameters while the backward pass goes by.
#[derive(Debug, Default)]
pub struct Ledger {
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    squares: BTreeMap<String, f64>,
    gradients: BTreeMap<String, Vec<f32>>,
    /// Names that the backward pass under way has come by.
    reached: BTreeSet<String>,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        // A poisoned ledger belongs to a pass that has already failed.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Param {
    /// Record Σ g² of this parameter. Errors if it was recorded before: a norm of a sum is no sum of norms.
    pub fn add_square(&self, square: f64) -> candle_core::Result<()> {
        let mut entries = self.ledger.lock();
        entries.reached.insert(self.name.to_string());
        if entries.squares.insert(self.name.to_string(), square).is_some() {
            candle_core::bail!("{}: two norms in one pass", self.name);
        }
        Ok(())
    }

    /// Add to the gradient of this parameter: `add(gradient so far, keep)`, where `keep` is 0 for a fresh buffer.
    pub fn add_gradient(&self, add: impl FnOnce(&mut [f32], f32)) {
        let mut entries = self.ledger.lock();
        entries.reached.insert(self.name.to_string());
        match entries.gradients.get_mut(&*self.name) {
            Some(sum) => add(sum, 1.0),
            None => {
                let mut fresh = vec![0.0; self.tensor.elem_count()];
                add(&mut fresh, 0.0);
                entries.gradients.insert(self.name.to_string(), fresh);
            }
        }
    }
}
