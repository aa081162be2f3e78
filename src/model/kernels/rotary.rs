//! Rotary positions (Su et al. 2021): of every head some channels, the first 2P, are turned by
//! pairs. The channels i and i + P turn by the angle φ = position · f_i: y_i = x_i cos φ − x_{i+P}
//! sin φ, y_{i+P} = x_{i+P} cos φ + x_i sin φ. The gradient is turned back: by −φ.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use super::{par_rows, read, values, vectorized, zeros};
use crate::base::profile::{Part, span};

/// The angles of one model.
#[derive(Debug)]
pub struct Rotary {
    /// Radians a position, of each pair of channels: (P)
    frequencies: Vec<f32>,
    /// D
    head_dim: usize,
    /// On cosines and sines: what YaRN and LongRoPE do to the attention's temperature.
    factor: f32,
    turns: Mutex<Arc<Turns>>,
}

/// Cosines and sines of the angles at the first positions, times the factor: (positions, P) each.
#[derive(Debug, Default)]
pub struct Turns {
    pub cosines: Vec<f32>,
    pub sines: Vec<f32>,
}

impl Rotary {
    /// All channels of a head turn.
    pub fn new(frequencies: Vec<f32>) -> Self {
        let head_dim = 2 * frequencies.len();
        Self::of_part(frequencies, head_dim, 1.0)
    }

    /// The first channels of heads of `head_dim` turn, two for each frequency, and grow by
    /// `factor`. Panics if there are fewer.
    pub fn of_part(frequencies: Vec<f32>, head_dim: usize, factor: f32) -> Self {
        assert!(2 * frequencies.len() <= head_dim, "more pairs than {head_dim} channels");
        Self { frequencies, head_dim, factor, turns: Mutex::default() }
    }

    /// P
    pub fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// D
    pub fn head_dim(&self) -> usize {
        self.head_dim
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
                .map(|of| angles.iter().map(|angle| of(*angle) * self.factor).collect());
            *turns = Arc::new(Turns { cosines, sines });
        }
        turns.clone()
    }
}

/// Which heads of a row are turned: of every `of` side by side the first `turned`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Which {
    pub turned: usize,
    pub of: usize,
}

impl Which {
    /// Queries alone, or keys.
    pub const ALL: Self = Self { turned: 1, of: 1 };
    /// Query, key and value of each head side by side: values have no position.
    pub const BY_HEAD: Self = Self { turned: 2, of: 3 };
}

/// Turns heads of x: (N, heads·D) → (N, heads·D).
pub struct Rotate {
    pub turns: Arc<Turns>,
    /// P
    pub pairs: usize,
    /// D
    pub head_dim: usize,
    pub which: Which,
    /// (N)
    pub positions: Vec<u32>,
}

impl Rotate {
    /// `way` is 1, or −1 to turn back. Errors if x is not rows of whole heads.
    fn turn(&self, x: &[f32], way: f32) -> Result<Vec<f32>> {
        let (pairs, rows) = (self.pairs, self.positions.len());
        let width = x.len().checked_div(rows).unwrap_or(0);
        if rows * width != x.len() || !width.is_multiple_of(self.which.of * self.head_dim) {
            bail!("rotary positions: {} values in {rows} rows of heads", x.len());
        }
        let mut y = zeros(x.len());
        if x.is_empty() {
            return Ok(y);
        }
        par_rows(&mut y, width, |first, rows| {
            vectorized!({
                for (row, y) in (first..).zip(rows.chunks_exact_mut(width)) {
                    let at = self.positions[row] as usize * pairs;
                    let (cosines, sines) =
                        (&self.turns.cosines[at..][..pairs], &self.turns.sines[at..][..pairs]);
                    let heads = x[row * width..][..width].chunks_exact(self.head_dim);
                    for (i, (x, y)) in heads.zip(y.chunks_exact_mut(self.head_dim)).enumerate() {
                        if i % self.which.of >= self.which.turned {
                            y.copy_from_slice(x);
                            continue;
                        }
                        let ((x, x_rest), (y, y_rest)) =
                            (x.split_at(2 * pairs), y.split_at_mut(2 * pairs));
                        y_rest.copy_from_slice(x_rest);
                        let ((x1, x2), (y1, y2)) = (x.split_at(pairs), y.split_at_mut(pairs));
                        for j in 0..pairs {
                            y1[j] = x1[j] * cosines[j] - x2[j] * (way * sines[j]);
                            y2[j] = x2[j] * cosines[j] + x1[j] * (way * sines[j]);
                        }
                    }
                }
            })
        });
        Ok(y)
    }
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span(Part::Attention);
        Ok((CpuStorage::F32(self.turn(values(x, layout)?, 1.0)?), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _span = span(Part::Attention);
        let gx = read(&grad.contiguous()?, |g| self.turn(g, -1.0))??;
        Ok(Some(Tensor::from_vec(gx, x.shape(), x.device())?))
    }
}
