//! Rotary positions (Su et al. 2021): in every head the channels i and i + D/2 are turned by the angle φ = position · f_i:
//! y_i = x_i cos φ − x_{i+D/2} sin φ, y_{i+D/2} = x_{i+D/2} cos φ + x_i sin φ. The gradient is turned back: by −φ.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::{par_rows, read, values, vectorized, zeros};
use crate::base::profile::{Part, span};

/// The angles of one model.
#[derive(Debug)]
pub struct Rotary {
    /// Radians a position, of each pair of channels: (D/2)
    frequencies: Vec<f32>,
    turns: Mutex<Arc<Turns>>,
}

/// Cosines and sines of the angles at the first positions: (positions, D/2) each.
#[derive(Debug, Default)]
pub struct Turns {
    pub cosines: Vec<f32>,
    pub sines: Vec<f32>,
}

impl Rotary {
    pub fn new(frequencies: Vec<f32>) -> Self {
        Self { frequencies, turns: Mutex::default() }
    }

    /// D/2
    pub fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// The turns at these positions and all before them; kept, and made anew by doubling.
    pub fn turns(&self, positions: &[u32]) -> Arc<Turns> {
        let wanted = positions.iter().max().map_or(0, |last| *last as usize + 1);
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.cosines.len() < wanted * self.pairs() {
            let angles: Vec<f32> = (0..wanted.next_power_of_two())
                .flat_map(|position| self.frequencies.iter().map(move |f| position as f32 * f))
                .collect();
            let [cosines, sines] = [f32::cos as fn(f32) -> f32, f32::sin]
                .map(|of| angles.iter().map(|angle| of(*angle)).collect());
            *turns = Arc::new(Turns { cosines, sines });
        }
        turns.clone()
    }
}

/// Turns the heads of x: (N, heads·D) → (N, heads·D).
pub struct Rotate {
    pub turns: Arc<Turns>,
    /// D/2
    pub pairs: usize,
    /// (N)
    pub positions: Vec<u32>,
}

impl Rotate {
    /// `way` is 1, or −1 to turn back.
    fn turn(&self, x: &[f32], way: f32) -> Vec<f32> {
        let (pairs, width) = (self.pairs, x.len() / self.positions.len());
        let mut y = zeros(x.len());
        par_rows(&mut y, width, |first, rows| {
            vectorized(|| {
                for (row, y) in (first..).zip(rows.chunks_exact_mut(width)) {
                    let at = self.positions[row] as usize * pairs;
                    let (cosines, sines) =
                        (&self.turns.cosines[at..][..pairs], &self.turns.sines[at..][..pairs]);
                    let heads = x[row * width..][..width].chunks_exact(2 * pairs);
                    for (x, y) in heads.zip(y.chunks_exact_mut(2 * pairs)) {
                        let ((x1, x2), (y1, y2)) = (x.split_at(pairs), y.split_at_mut(pairs));
                        for j in 0..pairs {
                            y1[j] = x1[j] * cosines[j] - x2[j] * (way * sines[j]);
                            y2[j] = x2[j] * cosines[j] + x1[j] * (way * sines[j]);
                        }
                    }
                }
            })
        });
        y
    }
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span(Part::Attention);
        Ok((CpuStorage::F32(self.turn(values(x, layout)?, 1.0)), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _span = span(Part::Attention);
        let gx = read(&grad.contiguous()?, |g| self.turn(g, -1.0))?;
        Ok(Some(Tensor::from_vec(gx, x.shape(), x.device())?))
    }
}
