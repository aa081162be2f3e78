//! Steps on the MLPs' output matrices. STAR solves for the size of each weight's change and lets the gradient choose its
//! sign; SGD follows the gradient.

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use faer::Mat;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::scope::{Scope, at_rows, scope};
use super::{Lap, Mode, NeuronMethod, Patient, Position, Recipe, Step, Watch, batch, said, single_tokens};
use crate::algebra::{Solution, least_norm};
use crate::loss;
use crate::model::Mlp;
use crate::model::layers::Orientation;
use crate::optim::gradient_norm;
use crate::tokens::{Batch, TokenEdit};
use crate::weights::{Harvest, Want, Who};

/// Where a step goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// −sign(g) ∘ |Δ|, where ZΔ ≈ S: neurons Z at the target positions, steers S.
    Star,
    /// −g
    Gradient,
}

/// STAR and SGD.
pub struct Descent {
    pub direction: Direction,
    pub recipe: Recipe,
}

/// Steps for the targets of one batch: what was settled before the first one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimization {
    scope: Scope,
    /// What the model said at each target position.
    said: Vec<u32>,
    /// Steps made.
    made: usize,
}

impl NeuronMethod for Descent {
    fn pass(&self, patient: &mut Patient, rows: &[TokenEdit], at: &mut Position, watch: &mut dyn Watch) -> Result<()> {
        let batches: Vec<Batch> = match self.recipe.mode {
            Mode::Batch => vec![batch(rows)],
            Mode::Iterative => single_tokens(rows).map(|row| batch(&[row])).collect(),
        };
        for batch in batches.iter().skip(at.done) {
            if at.optimization.is_none() {
                let said = said(patient.model, &patient.weights, batch)?;
                if said != batch.targets {
                    let scope = scope(patient, batch, self.recipe.blocks, self.recipe.neurons)?;
                    at.optimization = Some(Optimization { scope, said, made: 0 });
                    at.pass.tried += 1;
                }
            }
            self.optimize(patient, batch, at, watch)?;
            at.done += 1;
        }
        Ok(())
    }
}

impl Descent {
    /// The steps that the optimization under way, if there is one, has not made yet.
    fn optimize(&self, patient: &mut Patient, batch: &Batch, at: &mut Position, watch: &mut dyn Watch) -> Result<()> {
        let Some(Optimization { scope, said, made }) = at.optimization.clone() else { return Ok(()) };
        let steers = steers(patient, batch, &said)?;
        let mut lap = Lap::begin();
        for made in made..self.recipe.steps {
            let mut step = self.step(patient, batch, &scope, &steers)?;
            (step.seconds, step.operations) = lap.end();
            watch.step(step)?;
            at.optimization.iter_mut().for_each(|under_way| under_way.made = made + 1);
            watch.rest(patient, at)?;
        }
        at.optimization = None;
        Ok(())
    }

    fn step(&self, patient: &mut Patient, batch: &Batch, scope: &Scope, steers: &Mat<f64>) -> Result<Step> {
        let Patient { model, mlp, .. } = *patient;
        let (Harvest { mut gradients, mut tapped, .. }, loss) = {
            let matrices: Vec<String> = scope.keys().map(|&block| mlp.weight(block)).collect();
            let view = patient.weights.view(Who::Patient, |spec| {
                if matrices.contains(&spec.name) { Want::Gradient } else { Want::Nothing }
            })?;
            let view = match self.direction {
                Direction::Star => view.tapping(scope.keys().map(|&block| mlp.output(block))),
                Direction::Gradient => view,
            };
            let loss = loss::nll(model, &view, batch)?;
            let nats = f64::from(loss.to_scalar::<f32>()?);
            view.backward(loss)?;
            (view.harvest()?, nats)
        };
        let norm = gradient_norm(&gradients)?;
        if !loss.is_finite() || !norm.is_finite() {
            bail!("the NLL of the targets is {loss}, the norm of its gradient {norm}; lower --learning-rate");
        }
        let mut residual = 0f64;
        let blocks: Vec<(&usize, &Vec<usize>)> = scope.iter().collect();
        // Solutions take twice a matrix's memory: only as many at a time as there are threads.
        for part in blocks.chunks(rayon::current_num_threads()) {
            let mut moves = Vec::with_capacity(part.len());
            for &(&block, kept) in part {
                let gradient = gradients.remove(&mlp.weight(block)).context("no gradient of an output matrix")?;
                let neurons = match tapped.remove(&mlp.output(block)) {
                    Some(read) => Some(at_rows(&read.input, &batch.rows)?),
                    None => None,
                };
                moves.push((block, kept, gradient, neurons));
            }
            let moves: Vec<(usize, Tensor, f64)> = moves
                .into_par_iter()
                .map(|(block, kept, gradient, neurons)| match neurons {
                    Some(z) => {
                        let solution = solve(&z, kept, steers)?;
                        let size = sizes(&mlp, &solution, kept, gradient.device())?;
                        Ok((block, (gradient.sign()? * size)?, solution.residual))
                    }
                    None if kept.len() == mlp.neurons => Ok((block, gradient, 0.0)),
                    None => Ok((block, gradient.broadcast_mul(&mask(&mlp, kept, &gradient)?)?, 0.0)),
                })
                .collect::<Result<_>>()?;
            for (block, step, left) in moves {
                let name = mlp.weight(block);
                let moved = (patient.weights.tensor(Who::Patient, &name)? - (step * self.recipe.learning_rate)?)?;
                patient.weights.restore(&name, moved)?;
                residual = residual.max(left);
            }
        }
        Ok(Step {
            blocks: scope.keys().copied().collect(),
            loss,
            gradient_norm: norm,
            learning_rate: self.recipe.learning_rate,
            residual,
            tokens: batch.packed.ids.len(),
            seconds: 0.0,
            operations: 0,
        })
    }
}

/// S (n,C): the steer of each target position, away from what the model said there.
pub fn steers(patient: &Patient, batch: &Batch, said: &[u32]) -> Result<Mat<f64>> {
    let steers: Vec<Vec<f64>> = batch
        .targets
        .iter()
        .zip(said)
        .map(|(&right, &wrong)| patient.basis.steer(right, wrong))
        .collect::<Result<_>>()?;
    Ok(Mat::from_fn(steers.len(), patient.model.sizes().channels, |i, j| steers[i][j]))
}

/// Δ (kept, C): the least-norm solution of ZΔ ≈ S over the kept columns of Z (n,neurons).
pub fn solve(z: &Tensor, kept: &[usize], steers: &Mat<f64>) -> Result<Solution> {
    let all = z.to_vec2::<f32>()?;
    let z = Mat::from_fn(all.len(), kept.len(), |i, j| f64::from(all[i][kept[j]]));
    least_norm(z.as_ref(), steers.as_ref())
}

/// |Δ| as the output matrix lies; zero for the neurons that are not kept.
fn sizes(mlp: &Mlp, solution: &Solution, kept: &[usize], device: &Device) -> Result<Tensor> {
    let channels = solution.x.ncols();
    let (stride, step, shape) = match mlp.orientation {
        Orientation::InOut => (channels, 1, (mlp.neurons, channels)),
        Orientation::OutIn => (1, mlp.neurons, (channels, mlp.neurons)),
    };
    let mut values = vec![0f32; mlp.neurons * channels];
    for c in 0..channels {
        for (row, &neuron) in kept.iter().enumerate() {
            values[neuron * stride + c * step] = solution.x[(row, c)].abs() as f32;
        }
    }
    Ok(Tensor::from_vec(values, shape, device)?)
}

/// 1 for the kept neurons, 0 for the others, to be multiplied with the output matrix.
fn mask(mlp: &Mlp, kept: &[usize], like: &Tensor) -> Result<Tensor> {
    let mut values = vec![0f32; mlp.neurons];
    kept.iter().for_each(|&neuron| values[neuron] = 1.0);
    let shape = match mlp.orientation {
        Orientation::InOut => (mlp.neurons, 1),
        Orientation::OutIn => (1, mlp.neurons),
    };
    Ok(Tensor::from_vec(values, shape, like.device())?)
}
