//! Optimizers with state and step count *per tensor*, gradient clipping, and the learning-rate
//! schedule.
//!
//! A tensor that is not in a step's slice keeps its state untouched, as in PyTorch where a
//! parameter without a gradient is skipped.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::base::profile;
use crate::base::profile::{Part, Phase};
use crate::model::fused;
use crate::model::fused::many::Moved;
use crate::model::kernels::optim::{Average, Descend};
use crate::model::weights::{Weights, squared_norms};

/// Which optimizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// v ← 0.99 v + 0.01 g²; θ ← θ − lr·g/(√v + 1e-8).
    Rmsprop,
    /// AdamW: β 0.9 and 0.999, ε 1e-8, weight decay 0.01.
    Adamw,
}

const RMS_DECAY: f64 = 0.99;
const ADAM_FIRST: f64 = 0.9;
const ADAM_SECOND: f64 = 0.999;
const WEIGHT_DECAY: f64 = 0.01;
const EPSILON: f64 = 1e-8;

/// What an optimizer remembers of one tensor.
#[derive(Debug, Clone)]
pub struct TensorState {
    /// Steps this tensor took part in.
    pub steps: u64,
    /// Running average of the squared gradient.
    pub squares: Tensor,
    /// Running average of the gradient (AdamW).
    pub average: Option<Tensor>,
}

/// An optimizer and its state, by tensor name.
#[derive(Debug)]
pub struct Optimizer {
    pub kind: OptimizerKind,
    pub states: BTreeMap<String, TensorState>,
}

impl Optimizer {
    pub fn new(kind: OptimizerKind) -> Self {
        Self { kind, states: BTreeMap::new() }
    }

    /// One step on the tensors that have a gradient; `scale` multiplies every gradient first
    /// (clipping).
    pub fn step(
        &mut self,
        weights: &mut Weights,
        gradients: &BTreeMap<String, Tensor>,
        learning_rate: f64,
        scale: f64,
    ) -> Result<()> {
        let (_phase, _span) = (profile::phase(Phase::Optimizer), profile::span(Part::Update));
        let mut at_once = Vec::new();
        for (name, gradient) in gradients {
            let state = self.states.entry(name.clone()).or_insert(TensorState {
                steps: 0,
                squares: gradient.zeros_like()?,
                average: None,
            });
            if self.kind == OptimizerKind::Adamw && state.average.is_none() {
                state.average = Some(gradient.zeros_like()?);
            }
            state.steps += 1;
            let theta = weights.touch(name)?.clone();
            if fused::runs_on(theta.device()) {
                at_once.push(moved(self.kind, theta, gradient, state, learning_rate)?);
            } else if theta.device().is_cpu() {
                update_in_place(self.kind, &theta, gradient, state, learning_rate, scale)?;
            } else {
                let moved =
                    update_composed(self.kind, &theta, gradient, state, learning_rate, scale)?;
                weights.restore(name, moved)?;
            }
        }
        update_at_once(self.kind, &at_once, scale)
    }
}

/// Learning rates and corrections of this step: (rate, root, shrink) of [`Descend`].
fn rates(kind: OptimizerKind, steps: u64, learning_rate: f64) -> (f64, f64, f64) {
    match kind {
        OptimizerKind::Rmsprop => (learning_rate, 1.0, 1.0),
        OptimizerKind::Adamw => {
            let steps = steps as f64;
            let first = 1.0 - ADAM_FIRST.powf(steps);
            let second = 1.0 - ADAM_SECOND.powf(steps);
            (learning_rate / first, 1.0 / second.sqrt(), 1.0 - learning_rate * WEIGHT_DECAY)
        }
    }
}

fn update_in_place(
    kind: OptimizerKind,
    theta: &Tensor,
    gradient: &Tensor,
    state: &TensorState,
    learning_rate: f64,
    scale: f64,
) -> Result<()> {
    let gradient = gradient.contiguous()?;
    let scale = scale as f32;
    let (rate, root, shrink) = rates(kind, state.steps, learning_rate);
    let descend = |scale| Descend {
        rate: rate as f32,
        scale,
        root: root as f32,
        epsilon: EPSILON as f32,
        shrink: shrink as f32,
    };
    match &state.average {
        None => {
            state
                .squares
                .inplace_op2(&gradient, &Average { decay: RMS_DECAY, squared: true, scale })?;
            theta.inplace_op3(&gradient, &state.squares, &descend(scale))?;
        }
        Some(average) => {
            state
                .squares
                .inplace_op2(&gradient, &Average { decay: ADAM_SECOND, squared: true, scale })?;
            average
                .inplace_op2(&gradient, &Average { decay: ADAM_FIRST, squared: false, scale })?;
            theta.inplace_op3(average, &state.squares, &descend(1.0))?;
        }
    }
    Ok(())
}

/// A tensor as the fused kernel moves it.
fn moved(
    kind: OptimizerKind,
    theta: Tensor,
    gradient: &Tensor,
    state: &TensorState,
    learning_rate: f64,
) -> Result<Moved> {
    let (rate, root, shrink) = rates(kind, state.steps, learning_rate);
    let (squares, average) = (state.squares.clone(), state.average.clone());
    let (rate, root, shrink) = (rate as f32, root as f32, shrink as f32);
    Ok(Moved { theta, gradient: gradient.contiguous()?, squares, average, rate, root, shrink })
}

fn update_at_once(kind: OptimizerKind, moved: &[Moved], scale: f64) -> Result<()> {
    let Some(device) = moved.first().map(|first| first.theta.device()) else { return Ok(()) };
    let decay_squares = if kind == OptimizerKind::Rmsprop { RMS_DECAY } else { ADAM_SECOND };
    let (scale, epsilon) = (scale as f32, EPSILON as f32);
    let step = fused::many::Step { scale, epsilon, decay: ADAM_FIRST, decay_squares };
    Ok(fused::many::optimizer_step(moved, step, device)?)
}

fn update_composed(
    kind: OptimizerKind,
    theta: &Tensor,
    gradient: &Tensor,
    state: &mut TensorState,
    learning_rate: f64,
    scale: f64,
) -> Result<Tensor> {
    let gradient = (gradient * scale)?;
    let (rate, root, shrink) = rates(kind, state.steps, learning_rate);
    let mix = |old: &Tensor, new: &Tensor, keep: f64| (old * keep)? + (new * (1.0 - keep))?;
    let decay = if kind == OptimizerKind::Rmsprop { RMS_DECAY } else { ADAM_SECOND };
    state.squares = mix(&state.squares, &gradient.sqr()?, decay)?;
    let direction = match &mut state.average {
        None => gradient,
        Some(average) => {
            *average = mix(average, &gradient, ADAM_FIRST)?;
            average.clone()
        }
    };
    let below = ((state.squares.sqrt()? * root)? + EPSILON)?;
    Ok(((theta * shrink)? - ((direction * rate)? / below)?)?)
}

/// L2 norm over all gradients of a step.
pub fn gradient_norm(gradients: &BTreeMap<String, Tensor>) -> Result<f64> {
    let squares = squared_norms(gradients.values()).context("gradient norm")?;
    Ok(squares.iter().sum::<f64>().sqrt())
}

/// The factor that brings a norm down to `max_norm` (as PyTorch's `clip_grad_norm_`); 1 where it is
/// below, or with 0.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

/// How the learning rate goes on after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Down to 0 at the last step.
    Linear,
    /// As it is.
    Constant,
    /// Half a cosine down to 0 at the last step.
    Cosine,
}

impl Schedule {
    /// Factor on the learning rate at `step` (from 0): (step + 1)/(warmup + 1) in the warm-up, then
    /// the schedule.
    pub fn factor(self, step: usize, warmup: usize, max_steps: usize) -> f64 {
        if step < warmup {
            return (step + 1) as f64 / (warmup + 1) as f64;
        }
        let left =
            max_steps.saturating_sub(step) as f64 / max_steps.saturating_sub(warmup).max(1) as f64;
        match self {
            Schedule::Constant => 1.0,
            Schedule::Linear => left,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * (1.0 - left)).cos()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedule_warms_up_and_comes_down() {
        let f = |s: Schedule, step| s.factor(step, 4, 12);
        assert_eq!(f(Schedule::Linear, 0), 0.2);
        assert_eq!(f(Schedule::Linear, 4), 1.0);
        assert_eq!(f(Schedule::Linear, 8), 0.5);
        assert_eq!(f(Schedule::Constant, 11), 1.0);
        assert!((f(Schedule::Cosine, 8) - 0.5).abs() < 1e-12);
        assert_eq!(Schedule::Constant.factor(0, 0, 5), 1.0);
    }

    /// Enough values for several jobs, an odd number of them, gradients clipped: in place as
    /// composed.
    #[test]
    fn in_place_as_composed() {
        let values = |seed: u64, n: usize| {
            let mut stream =
                crate::base::random::Stream::new(seed, crate::base::random::Purpose::Bench, 0, 0);
            let values: Vec<f32> = (0..n).map(|_| stream.normal() as f32).collect();
            Tensor::from_vec(values, n, &candle_core::Device::Cpu).expect("tensor")
        };
        let flat = |t: &Tensor| t.to_vec1::<f32>().expect("values");
        for kind in [OptimizerKind::Rmsprop, OptimizerKind::Adamw] {
            let n = 100_001;
            let (mut plain, fast) = (values(1, n), values(1, n));
            let fresh = || TensorState {
                steps: 0,
                squares: plain.zeros_like().expect("zeros"),
                average: (kind == OptimizerKind::Adamw).then(|| plain.zeros_like().expect("zeros")),
            };
            let (mut of_plain, mut of_fast) = (fresh(), fresh());
            for step in 1..=4 {
                let gradient = values(step + 1, n);
                (of_plain.steps, of_fast.steps) = (step, step);
                plain = update_composed(kind, &plain, &gradient, &mut of_plain, 1e-2, 0.37)
                    .expect("composed");
                update_in_place(kind, &fast, &gradient, &of_fast, 1e-2, 0.37).expect("in place");
            }
            let squares = [&of_plain.squares, &of_fast.squares].map(flat);
            for (plain, fast) in [[flat(&plain), flat(&fast)], squares].map(|[a, b]| (a, b)) {
                let worst = plain.iter().zip(&fast).map(|(p, f)| (p - f).abs()).fold(0.0, f32::max);
                let largest = plain.iter().fold(0.0f32, |m, p| m.max(p.abs()));
                assert!(worst <= 2e-6 * largest, "{kind:?}: {worst} of {largest}");
            }
        }
    }

    /// Tensors of several sizes, over steps: in one launch as composed.
    #[cfg(unix)]
    #[test]
    fn at_once_as_composed() {
        use crate::model::fused::stand_in::{close, some};
        for kind in [OptimizerKind::Rmsprop, OptimizerKind::Adamw] {
            let fresh = |theta: &Tensor| TensorState {
                steps: 0,
                squares: theta.zeros_like().expect("zeros"),
                average: (kind == OptimizerKind::Adamw).then(|| theta.zeros_like().expect("zeros")),
            };
            let shapes: [&[usize]; 3] = [&[7], &[5, 33], &[3]];
            let mut plain = shapes.map(|shape| some(shape, 1));
            let fast = shapes.map(|shape| some(shape, 1));
            let (mut of_plain, mut of_fast) =
                (plain.each_ref().map(fresh), fast.each_ref().map(fresh));
            for step in 1..=4 {
                let gradients = shapes.map(|shape| some(shape, step + 1));
                let mut all = Vec::new();
                for (i, gradient) in gradients.iter().enumerate() {
                    (of_plain[i].steps, of_fast[i].steps) = (step, step);
                    let state = &mut of_plain[i];
                    plain[i] = update_composed(kind, &plain[i], gradient, state, 1e-2, 0.37)
                        .expect("composed");
                    let theta = fast[i].clone();
                    all.push(moved(kind, theta, gradient, &of_fast[i], 1e-2).expect("moved"));
                }
                update_at_once(kind, &all, 0.37).expect("at once");
            }
            for i in 0..shapes.len() {
                close(&format!("{kind:?}"), &fast[i], &plain[i], 2e-6);
                close(&format!("{kind:?}"), &of_fast[i].squares, &of_plain[i].squares, 2e-6);
            }
        }
    }

    #[test]
    fn clipping_only_shortens() {
        assert_eq!(clip_factor(3.0, 10.0), 1.0);
        assert_eq!(clip_factor(1e9, 0.0), 1.0);
        assert!((clip_factor(20.0, 10.0) - 0.5).abs() < 1e-6);
    }
}
