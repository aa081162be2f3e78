//! Rotary positions.

use candle_core::{DType, Result, Tensor, bail};

use super::launch::{Address, Grid, launch};
use super::{blank, is, size};

/// What turns in a row.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// D
    pub head_dim: usize,
    /// P: the channels i and i + P of a head turn together, up to 2P.
    pub pairs: usize,
    /// How many of every `of` heads side by side turn: the first.
    pub turned: usize,
    pub of: usize,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Arguments {
    x: Address,
    cosines: Address,
    sines: Address,
    y: Address,
    count: u64,
    width: u32,
    head_dim: u32,
    pairs: u32,
    turned: u32,
    of: u32,
    way: f32,
}

/// Heads of x turned by the angles whose cosines and sines (N,1,1,P) are given, or back with a
/// `way` of −1: (N, heads·D) → (N, heads·D).
pub fn turn(
    x: &Tensor,
    cosines: &Tensor,
    sines: &Tensor,
    heads: Heads,
    way: f32,
) -> Result<Tensor> {
    let ((rows, width), device) = (x.dims2()?, x.device());
    let Heads { head_dim, pairs, turned, of } = heads;
    if head_dim == 0 || of == 0 || !width.is_multiple_of(head_dim) || 2 * pairs > head_dim {
        bail!("rotary positions: rows of {width} are no heads of {heads:?}");
    }
    is("rotary positions", x, &[rows, width], device)?;
    for angles in [cosines, sines] {
        is("rotary positions", angles, &[rows, 1, 1, pairs], device)?;
    }
    let y = blank((rows, width), DType::F32, device)?;
    let (count, reads) = (rows * width, [x, cosines, sines].map(Some));
    let [width, head_dim, pairs, turned, of] = [width, head_dim, pairs, turned, of].map(size);
    let (width, head_dim, pairs, turned, of) = (width?, head_dim?, pairs?, turned?, of?);
    let (grid, count) = (Grid::of_values(count), count as u64);
    // SAFETY: the shapes are checked, and y is new.
    unsafe {
        launch("rotary", device, grid, reads, [Some(&y)], |[x, cosines, sines], [y]| Arguments {
            x,
            cosines,
            sines,
            y,
            count,
            width,
            head_dim,
            pairs,
            turned,
            of,
            way,
        })?;
    }
    Ok(y)
}

#[cfg(all(test, unix))]
mod tests {
    use candle_core::Device;

    use super::super::stand_in::{both_ways, close, proves, some};
    use super::*;

    fn plain(x: &[f32], row: usize, angles: &[f32], heads: Heads) -> Vec<f32> {
        let mut y = x.to_vec();
        for (index, head) in y.chunks_exact_mut(heads.head_dim).enumerate() {
            for i in 0..heads.pairs {
                if index % heads.of >= heads.turned {
                    continue;
                }
                let (sine, cosine) = angles[row * heads.pairs + i].sin_cos();
                let (a, b) = (head[i], head[i + heads.pairs]);
                head[i] = a * cosine - b * sine;
                head[i + heads.pairs] = b * cosine + a * sine;
            }
        }
        y
    }

    #[test]
    fn heads_turn_and_turn_back() {
        proves("rotary.cu", || {
            for (rows, count, heads) in [
                (1, 1, Heads { head_dim: 2, pairs: 1, turned: 1, of: 1 }),
                (17, 3, Heads { head_dim: 8, pairs: 4, turned: 1, of: 1 }),
                (3, 5, Heads { head_dim: 33, pairs: 10, turned: 1, of: 1 }),
                (3, 6, Heads { head_dim: 50, pairs: 20, turned: 2, of: 3 }),
            ] {
                let width = count * heads.head_dim;
                let (x, angles) = (some(&[rows, width], 1), some(&[rows, 1, 1, heads.pairs], 2));
                let (cosines, sines) = (angles.cos().expect("cos"), angles.sin().expect("sin"));
                let found = both_ways(|| {
                    let y = turn(&x, &cosines, &sines, heads, 1.0)?;
                    let back = turn(&y, &cosines, &sines, heads, -1.0)?;
                    Ok(vec![y, back])
                });
                let flat =
                    |t: &Tensor| t.flatten_all().and_then(|t| t.to_vec1::<f32>()).expect("f32");
                let angles = flat(&angles);
                let lines = flat(&x);
                let lines = lines.chunks_exact(width).enumerate();
                let wanted: Vec<f32> =
                    lines.flat_map(|(row, x)| plain(x, row, &angles, heads)).collect();
                let wanted = Tensor::from_vec(wanted, (rows, width), &Device::Cpu).expect("wanted");
                close(&format!("{heads:?}"), &found[0], &wanted, 1e-6);
                close(&format!("{heads:?} back"), &found[1], &x, 1e-6);
            }
        });
    }

    #[test]
    fn rows_that_are_no_heads_are_refused() {
        let heads = Heads { head_dim: 4, pairs: 3, turned: 1, of: 1 };
        let angles = some(&[2, 1, 1, 3], 1);
        assert!(turn(&some(&[2, 8], 2), &angles, &angles, heads, 1.0).is_err());
    }
}
