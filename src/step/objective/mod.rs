//! *Objectives* say what the slice is changed for; the KL term that holds the model to what it was
//! can go with any of them. One file and one line of [`OBJECTIVES`] each.

mod dpo;
mod dpo_ul;
mod kto;
pub mod marker_tokens;
mod nll;
mod npo;
pub mod reference;
mod unlikelihood;

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Tensor;
use serde_json::{Map, Value};

use super::Method;
use crate::base::error::{Error, unknown};
use crate::base::files::write_whole;
use crate::model::loss;
use crate::model::weights::{View, Want, Who};
use crate::slice::Slice;
use crate::slice::input::{StepInput, Whole, share};
use crate::tokens::{Encoder, TokenPair};
use dpo::{Curve, Dpo};
use dpo_ul::DpoUl;
use reference::Reference;

/// Gradients of a step, by tensor name: exactly the tensors of its slice.
pub type Gradients = BTreeMap<String, Tensor>;

/// The values of an objective's terms, in nats a token (DPO: nats).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Terms {
    /// weight · objective + kl_weight · KL.
    pub loss: f64,
    /// NLL of the chosen responses.
    pub nll_good: Option<f64>,
    /// KL(reference ‖ patient) on the normal batch.
    pub kl: Option<f64>,
}

impl Terms {
    /// Adds the KL term, a scalar in nats a token, with this weight.
    fn hold(&mut self, kl: &Tensor, weight: f64) -> Result<()> {
        let nats = f64::from(kl.to_scalar::<f32>()?);
        self.kl = Some(nats);
        self.loss += weight * nats;
        Ok(())
    }

    /// Adds another batch's share.
    fn add(&mut self, other: &Terms) {
        self.loss += other.loss;
        for (sum, value) in [(&mut self.nll_good, other.nll_good), (&mut self.kl, other.kl)] {
            if let Some(value) = value {
                *sum = Some(sum.unwrap_or(0.0) + value);
            }
        }
    }
}

/// One batch's share of an objective.
pub struct Evaluated {
    /// The objective's value.
    pub value: f64,
    /// NLL of the chosen responses in nats a token, if it looks at them.
    pub nll_good: Option<f64>,
}

/// What an objective gives its graphs to.
pub type Take<'a> = dyn FnMut(Tensor) -> Result<()> + 'a;

/// What a slice is changed for.
pub trait Objective: Send + Sync {
    /// Once, before anything else: a look at the pairs to learn from, in a vocabulary of so many
    /// tokens. Returns what it leaves beside the result, if it does. Errors (bad input) if there is
    /// nothing to learn from them.
    fn learn(&mut self, _pairs: &[TokenPair], _vocabulary: usize) -> Result<Option<Artefact>> {
        Ok(None)
    }

    /// Gives `take` scalars on the view's graph whose gradients add up, over the batches of the
    /// whole step, to the objective's: one, or several where that keeps less of the graph at a
    /// time.
    fn evaluate(
        &self,
        input: &StepInput,
        whole: &Whole,
        view: &View,
        take: &mut Take,
    ) -> Result<Evaluated>;
}

/// What an objective leaves beside the result: a file of JSON lines, each about one token.
#[derive(Debug, Clone, PartialEq)]
pub struct Artefact {
    pub file: &'static str,
    /// The token, and what is said of it.
    pub rows: Vec<(u32, Map<String, Value>)>,
}

impl Artefact {
    /// Writes it to its file in this folder.
    pub fn write(&self, encoder: &Encoder, dir: &Path) -> Result<()> {
        let mut lines = Vec::new();
        for (id, facts) in &self.rows {
            let mut line = Map::new();
            line.insert("token".into(), encoder.decode(&[*id])?.into());
            line.insert("id".into(), (*id).into());
            line.extend(facts.clone());
            writeln!(lines, "{}", Value::Object(line))?;
        }
        write_whole(&dir.join(self.file), &lines)
    }
}

/// A line of [`OBJECTIVES`].
pub struct NamedObjective {
    pub name: &'static str,
    pub about: &'static str,
    /// Whether it looks at the rejected responses, too.
    pub contrasts: bool,
    /// Whether every row needs a chosen response.
    pub chosen: bool,
    /// Whether every row needs a rejected one.
    pub rejected: bool,
    /// Whether it needs responses of both kinds, be it in rows of their own.
    pub both_kinds: bool,
    /// Whether its weight is α, that of the NLL.
    pub alpha: bool,
    /// Whether it asks the frozen reference.
    pub reference: bool,
    /// Whether it learns from the pairs before the first step.
    pub learns: bool,
    /// How often the head is asked at a counted token.
    pub heads: usize,
    /// β where nothing else is said; `None`: the objective has none.
    pub beta: Option<f64>,
    /// Made with β.
    build: fn(f64) -> Box<dyn Objective>,
}

impl fmt::Debug for NamedObjective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for NamedObjective {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// An objective that contrasts chosen with rejected responses, against the reference.
const fn preference(
    name: &'static str,
    about: &'static str,
    beta: f64,
    build: fn(f64) -> Box<dyn Objective>,
) -> NamedObjective {
    NamedObjective {
        name,
        about,
        contrasts: true,
        chosen: true,
        rejected: true,
        both_kinds: false,
        alpha: false,
        reference: true,
        learns: false,
        heads: 1,
        beta: Some(beta),
        build,
    }
}

/// NLL of the chosen responses (IRepair, DAPT).
pub static NLL: NamedObjective = NamedObjective {
    contrasts: false,
    rejected: false,
    alpha: true,
    reference: false,
    beta: None,
    ..preference("nll", "NLL of the chosen responses", 0.0, |_| Box::new(nll::Nll))
};
/// Direct preference optimization; β as Lee et al. have it.
pub static DPO: NamedObjective =
    preference("dpo", "chosen over rejected, against the reference", 0.1, |beta| {
        Box::new(Dpo::new(beta, false, Curve::Sigmoid))
    });
/// DPO and unlikelihood of marker tokens.
pub static DPO_UL: NamedObjective = NamedObjective {
    heads: 2,
    learns: true,
    ..preference(
        "dpo-ul",
        "dpo, and unlikelihood of the tokens that tell rejected from chosen",
        0.1,
        |beta| Box::new(DpoUl::new(beta)),
    )
};
/// Length-normalized DPO; β as Lambert et al. have it.
static DPO_NORM: NamedObjective =
    preference("dpo-norm", "the same with log-probabilities per token", 5.0, |beta| {
        Box::new(Dpo::new(beta, true, Curve::Sigmoid))
    });
static IPO: NamedObjective = preference(
    "ipo",
    "chosen over rejected by 1/(2β) nats a token, no more and no less",
    0.5,
    |beta| Box::new(Dpo::new(beta, true, Curve::Square)),
);
static HINGE: NamedObjective = preference(
    "hinge",
    "chosen over rejected by 1/β nats, all pairs alike until they are (SLiC)",
    0.05,
    |beta| Box::new(Dpo::new(beta, false, Curve::Hinge)),
);
static NPO: NamedObjective = NamedObjective {
    chosen: false,
    ..preference(
        "npo",
        "rejected less likely than under the reference; rows need no chosen response",
        0.1,
        |beta| Box::new(npo::Npo::new(beta)),
    )
};
static KTO: NamedObjective = NamedObjective {
    chosen: false,
    rejected: false,
    both_kinds: true,
    ..preference(
        "kto",
        "chosen and rejected, each for itself, against the reference; a row needs one of both",
        0.1,
        |beta| Box::new(kto::Kto::new(beta)),
    )
};
static UNLIKELIHOOD: NamedObjective = NamedObjective {
    reference: false,
    beta: None,
    ..preference(
        "unlikelihood",
        "NLL of the chosen tokens and unlikelihood of the rejected",
        0.0,
        |_| Box::new(unlikelihood::Unlikelihood),
    )
};

/// Every objective.
pub static OBJECTIVES: &[&NamedObjective] =
    &[&NLL, &DPO, &DPO_UL, &DPO_NORM, &IPO, &HINGE, &NPO, &KTO, &UNLIKELIHOOD];

/// The objective of this name. Errors (bad input) with the nearest name.
pub fn named(name: &str) -> Result<&'static NamedObjective> {
    OBJECTIVES.iter().copied().find(|o| o.name == name).ok_or_else(|| {
        let names: Vec<&str> = OBJECTIVES.iter().map(|o| o.name).collect();
        Error::Input(unknown("objective", name, &names)).into()
    })
}

impl NamedObjective {
    /// The objective, with this β or its own.
    pub fn build(&self, beta: Option<f64>) -> Box<dyn Objective> {
        (self.build)(beta.or(self.beta).unwrap_or_default())
    }
}

/// Value and gradients of weight·objective + kl_weight·KL by the slice.
pub fn gradients(
    method: &Method,
    inputs: &[StepInput],
    slice: &Slice,
) -> Result<(Terms, Gradients)> {
    let first = inputs.first().context("a step of no batches")?;
    let whole = Whole::of(inputs);
    let view = first.weights.view(Who::Patient, |spec| slice.want(spec))?;
    // One graph at a time: the objective's activations are freed before the KL term's exist.
    let mut sum = Terms::default();
    for input in inputs {
        let mut terms = objective_term(method, input, &whole, &view, &mut |graph| match method
            .recipe
            .weight
        {
            0.0 => Ok(()),
            weight => view.backward((graph * weight)?),
        })?;
        if method.recipe.kl_weight != 0.0
            && method.recipe.weight != 0.0
            && input.weights.lowest_touched().is_none()
        {
            // Patient and reference are one: no divergence, and no slope. Asked for, its rounding
            // would be the whole gradient of what the objective does not reach (rows of an
            // embedding), and RMSProp makes full steps of the smallest.
            terms.kl = Some(0.0);
        } else if method.recipe.kl_weight != 0.0 {
            let kl = kl_term(method, input, &whole, &view)?;
            // Read after the backward pass was asked for: a GPU has it at hand when it has the
            // value.
            let nats = kl.detach();
            view.backward((kl * method.recipe.kl_weight)?)?;
            terms.hold(&nats, method.recipe.kl_weight)?;
        }
        sum.add(&terms);
    }
    Ok((sum, view.harvest()?.gradients))
}

/// Value of weight·objective + kl_weight·KL, without a graph.
pub fn value(method: &Method, input: &StepInput) -> Result<Terms> {
    let view = input.weights.view(Who::Patient, |_| Want::Nothing)?;
    let whole = Whole::of(std::slice::from_ref(input));
    let mut terms = objective_term(method, input, &whole, &view, &mut |_| Ok(()))?;
    if method.recipe.kl_weight != 0.0 {
        terms.hold(&kl_term(method, input, &whole, &view)?, method.recipe.kl_weight)?;
    }
    Ok(terms)
}

fn objective_term(
    method: &Method,
    input: &StepInput,
    whole: &Whole,
    view: &View,
    take: &mut Take,
) -> Result<Terms> {
    let Evaluated { value, nll_good } = method.objective.evaluate(input, whole, view, take)?;
    Ok(Terms { loss: method.recipe.weight * value, nll_good, kl: None })
}

/// The batch's share of the KL term in nats a token, a scalar on the view's graph.
fn kl_term(method: &Method, input: &StepInput, whole: &Whole, view: &View) -> Result<Tensor> {
    let packed = input.normal.context("a KL term needs normal text")?;
    let reference = Reference::beside(input.model, input.weights, view)?;
    let begun = reference.begin(packed)?;
    // Reference first: it needs no graph, so its activations are freed before the patient's are
    // made.
    let ref_h = method.reference.hidden(&reference, packed, begun.as_ref())?;
    let h = reference.go_on(view, packed, begun.as_ref())?;
    let kl = loss::kl_of(input.model, view, &reference.view, &h, &ref_h, packed)?;
    Ok((kl * share(packed.ids.len(), whole.normal))?)
}
