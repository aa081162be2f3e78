//! Steps on the MLPs' output matrices. STAR solves for the size of each weight's change and lets
//! the gradient choose its sign; SGD follows the gradient.

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use faer::Mat;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::algebra::{Solution, least_norm};
use super::scope::{Scope, at_rows, scope};
use super::{
    Lap, Mode, NeuronMethod, Patient, Position, Recipe, Step, Watch, batch, said, single_tokens,
};
use crate::model::Mlp;
use crate::model::layers::Orientation;
use crate::model::loss;
use crate::model::weights::{Harvest, Want, Who};
use crate::step::optim::gradient_norm;
use crate::tokens::{Batch, TokenEdit};

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
    fn pass(
        &self,
        patient: &mut Patient,
        rows: &[TokenEdit],
        at: &mut Position,
        watch: &mut dyn Watch,
    ) -> Result<()> {
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
    fn optimize(
        &self,
        patient: &mut Patient,
        batch: &Batch,
        at: &mut Position,
        watch: &mut dyn Watch,
    ) -> Result<()> {
        let Some(Optimization { scope, said, made }) = at.optimization.clone() else {
            return Ok(());
        };
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

    fn step(
        &self,
        patient: &mut Patient,
        batch: &Batch,
        scope: &Scope,
        steers: &Mat<f64>,
    ) -> Result<Step> {
        let Patient { model, mlp, .. } = *patient;
        let (Harvest { mut gradients, mut readings, .. }, loss) = {
            let matrices: Vec<String> = scope.keys().map(|&block| mlp.weight(block)).collect();
            let view = patient.weights.view(Who::Patient, |spec| {
                if matrices.contains(&spec.name) { Want::Gradient } else { Want::Nothing }
            })?;
            let view = match self.direction {
                Direction::Star => view.probing(scope.keys().map(|&block| mlp.output(block))),
                Direction::Gradient => view,
            };
            let loss = loss::nll(model, &view, batch)?;
            let nats = f64::from(loss.to_scalar::<f32>()?);
            view.backward(loss)?;
            (view.harvest()?, nats)
        };
        let norm = gradient_norm(&gradients)?;
        if !loss.is_finite() || !norm.is_finite() {
            bail!(
                "the NLL of the targets is {loss}, the norm of its gradient {norm}; lower \
                 --learning-rate"
            );
        }
        let mut residual = 0f64;
        let blocks: Vec<(&usize, &Vec<usize>)> = scope.iter().collect();
        // Solutions take twice a matrix's memory: only as many at a time as there are threads.
        for part in blocks.chunks(rayon::current_num_threads()) {
            let mut moves = Vec::with_capacity(part.len());
            for &(&block, kept) in part {
                let gradient = gradients
                    .remove(&mlp.weight(block))
                    .context("no gradient of an output matrix")?;
                let neurons = match readings.remove(&mlp.output(block)) {
                    Some(read) => Some(at_rows(&read.input, &batch.rows)?),
                    None => None,
                };
                moves.push((block, kept, gradient, neurons));
            }
            let weights = &patient.weights;
            let solved: Vec<_> = moves
                .into_par_iter()
                .map(|(block, kept, gradient, neurons)| {
                    let solution = neurons.map(|z| solve(&z, kept, steers)).transpose()?;
                    Ok((block, kept, gradient, solution))
                })
                .collect::<Result<_>>()?;
            let rate = self.recipe.learning_rate;
            type Solved<'a> = (usize, &'a Vec<usize>, Tensor, Option<Solution>);
            let move_one = |(block, kept, gradient, solution): Solved<'_>| {
                let name = mlp.weight(block);
                let w = weights.tensor(Who::Patient, &name)?;
                let moved = moved(&mlp, &w, &gradient, kept, solution.as_ref(), rate)?;
                Ok((name, moved, solution.map_or(0.0, |solution| solution.residual)))
            };
            // On a GPU each thread has a stream of its own, and nothing orders them.
            let moved: Vec<(String, Tensor, f64)> = match weights.device().is_cpu() {
                true => solved.into_par_iter().map(move_one).collect::<Result<_>>()?,
                false => solved.into_iter().map(move_one).collect::<Result<_>>()?,
            };
            for (name, moved, left) in moved {
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

/// An output matrix after a step: its kept neurons moved against the gradient, by its size or, with
/// a solution, by |Δ|.
fn moved(
    mlp: &Mlp,
    w: &Tensor,
    gradient: &Tensor,
    kept: &[usize],
    solution: Option<&Solution>,
    learning_rate: f64,
) -> Result<Tensor> {
    if w.device().is_cpu() {
        moved_in_place(mlp, w, gradient, kept, solution, learning_rate)
    } else {
        moved_composed(mlp, w, gradient, kept, solution, learning_rate)
    }
}

/// [`moved`] where the matrix stays on its device: only |Δ|, or which neurons are kept, goes there.
fn moved_composed(
    mlp: &Mlp,
    w: &Tensor,
    gradient: &Tensor,
    kept: &[usize],
    solution: Option<&Solution>,
    learning_rate: f64,
) -> Result<Tensor> {
    let channels = w.elem_count() / mlp.neurons;
    // (neurons, channels), or (neurons, 1) where a neuron's channels have one size; 0 where it
    // isn't kept.
    let width = if solution.is_some() { channels } else { 1 };
    let solution = solution.map(Solution::x);
    let mut sizes = vec![0f32; mlp.neurons * width];
    for (row, &neuron) in kept.iter().enumerate() {
        for (c, size) in sizes[neuron * width..][..width].iter_mut().enumerate() {
            *size = solution.as_ref().map_or(1.0, |x| x[(row, c)].abs() as f32);
        }
    }
    let sizes = Tensor::from_vec(sizes, (mlp.neurons, width), w.device())?;
    let sizes = match mlp.orientation {
        Orientation::InOut => sizes,
        Orientation::OutIn => sizes.t()?,
    };
    let against = if solution.is_some() { gradient.sign()? } else { gradient.clone() };
    let step = (against.broadcast_mul(&sizes)? * learning_rate)?;
    // A weight of −0 would become 0.
    Ok(step.ne(0f32)?.where_cond(&(w - &step)?, w)?)
}

/// [`moved`] on the CPU, in one pass and one allocation: over a few tokens a step costs little more
/// than this.
fn moved_in_place(
    mlp: &Mlp,
    w: &Tensor,
    gradient: &Tensor,
    kept: &[usize],
    solution: Option<&Solution>,
    learning_rate: f64,
) -> Result<Tensor> {
    let mut values = w.flatten_all()?.to_vec1::<f32>()?;
    let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
    let channels = values.len() / mlp.neurons;
    let mut step = |at: usize, size: Option<f64>| {
        let against = match size {
            // No side is down where the gradient is zero.
            Some(_) if gradient[at] == 0.0 => 0.0,
            Some(size) => (size.abs() as f32).copysign(gradient[at]),
            None => gradient[at],
        };
        // A weight of −0 would become 0.
        if against != 0.0 {
            values[at] -= against * learning_rate as f32;
        }
    };
    // The inner loop goes along the matrix and the solution as they lie.
    match mlp.orientation {
        Orientation::InOut => {
            let size = solution.map(Solution::transposed);
            for (row, &neuron) in kept.iter().enumerate() {
                (0..channels)
                    .for_each(|c| step(neuron * channels + c, size.as_ref().map(|x| x[(c, row)])));
            }
        }
        Orientation::OutIn => {
            let size = solution.map(Solution::x);
            for c in 0..channels {
                for (row, &neuron) in kept.iter().enumerate() {
                    step(c * mlp.neurons + neuron, size.as_ref().map(|x| x[(row, c)]));
                }
            }
        }
    }
    Ok(Tensor::from_vec(values, w.shape(), w.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// The step of other devices is the CPU's, whatever way the matrix lies, with and without a
    /// solution; a neuron that isn't kept and a weight without a gradient stay.
    #[test]
    fn both_forms_of_a_step_are_one() {
        let (neurons, channels, kept) = (6, 4, [1usize, 2, 5]);
        let device = match std::env::var("IREPAIR_DEVICE") {
            Ok(named) => crate::model::device::choose(&named).expect("IREPAIR_DEVICE").device,
            Err(_) => Device::Cpu,
        };
        let values = |salt: usize| -> Vec<f32> {
            (0..neurons * channels)
                .map(|i| ((i * 37 + salt * 11) % 23) as f32 / 23.0 - 0.5)
                .collect()
        };
        let z = Mat::from_fn(2, kept.len(), |i, j| {
            (i as f64 - 0.4) * (j as f64 + 0.3) + (i * j) as f64
        });
        let steers = Mat::from_fn(2, channels, |i, j| ((3 * i + j) % 4) as f64 - 1.3);
        let solution = least_norm(z.as_ref(), steers.as_ref()).expect("solution");
        for orientation in [Orientation::InOut, Orientation::OutIn] {
            let mlp = Mlp { neurons, orientation, output: |_| String::new() };
            let shape = match orientation {
                Orientation::InOut => (neurons, channels),
                Orientation::OutIn => (channels, neurons),
            };
            let (mut weights, mut gradient) = (values(1), values(2));
            // A neuron that is kept, whichever way the matrix lies.
            (weights[channels + 1], gradient[channels + 1]) = (-0.0, 0.0);
            (weights[2], gradient[2]) = (-0.0, -0.0);
            let w = Tensor::from_vec(weights, shape, &Device::Cpu).expect("w");
            let gradient = Tensor::from_vec(gradient, shape, &Device::Cpu).expect("gradient");
            for solution in [None, Some(&solution)] {
                let plain =
                    moved_in_place(&mlp, &w, &gradient, &kept, solution, 0.1).expect("a step");
                let there = |t: &Tensor| t.to_device(&device).expect("a copy");
                let composed =
                    moved_composed(&mlp, &there(&w), &there(&gradient), &kept, solution, 0.1)
                        .expect("a step");
                let flat =
                    |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("values");
                let (plain, composed, before) = (flat(&plain), flat(&composed), flat(&w));
                assert!(
                    plain.iter().zip(&composed).all(|(a, b)| (a - b).abs() < 1e-6),
                    "{plain:?} {composed:?}"
                );
                for after in [&plain, &composed] {
                    let mut both = after.iter().zip(&before);
                    assert!(both.all(|(a, b)| a != b || a.to_bits() == b.to_bits()), "{after:?}");
                }
                let moved = plain.iter().zip(&before).filter(|(a, b)| a != b).count();
                assert!(moved > 0 && moved < kept.len() * channels, "{moved}");
                assert!(
                    composed
                        .iter()
                        .zip(&plain)
                        .zip(&before)
                        .all(|((c, p), b)| (c == b) == (p == b))
                );
            }
        }
    }
}
