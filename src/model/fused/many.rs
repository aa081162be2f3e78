//! What is done to many tensors in one launch. Tensors are cut into pieces, one for each block of
//! threads; a table on the device says where they lie.

use candle_core::{DType, Device, Result, Tensor, bail};

use super::launch::{Address, Grid, launch, reading, writing};
use super::{blank, is};

/// Values of a piece.
const PIECE: usize = 1 << 15;
const THREADS: u32 = 256;
/// Tensors that are moved in one launch: each is a lock within the lock of the one before.
const AT_ONCE: usize = 64;

/// The pieces of so many values: (first, count).
fn pieces(values: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..values).step_by(PIECE).map(move |first| (first, PIECE.min(values - first)))
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Sums {
    pieces: Address,
    sums: Address,
}

/// Σ x² of each f32 tensor, in f64: one launch and one copy for all. Errors if one has gaps or is
/// on another device.
pub fn sums_of_squares(tensors: &[&Tensor], device: &Device) -> Result<Vec<f64>> {
    let sums = sums_by_piece(tensors, device)?.to_vec1::<f64>()?;
    let mut left = sums.as_slice();
    let of_each = |tensor: &&Tensor| {
        let (own, others) = left.split_at(pieces(tensor.elem_count()).count());
        left = others;
        own.iter().sum()
    };
    Ok(tensors.iter().map(of_each).collect())
}

/// Σ x² of an f32 tensor in f64, as a scalar on its device.
pub fn sum_of_squares(x: &Tensor) -> Result<Tensor> {
    let sums = sums_by_piece(&[x], x.device())?;
    // One piece is its own sum, and takes no launch.
    if sums.elem_count() == 1 { sums.squeeze(0) } else { sums.sum_all() }
}

/// One sum for each piece of each tensor, in their order.
fn sums_by_piece(tensors: &[&Tensor], device: &Device) -> Result<Tensor> {
    for tensor in tensors {
        is("sum of squares", tensor, tensor.dims(), device)?;
    }
    let locked: Vec<Option<&Tensor>> = tensors.iter().copied().map(Some).collect();
    let mut sums = None;
    reading(device, &locked, |addresses| {
        let mut table = Vec::new();
        for (tensor, address) in tensors.iter().zip(addresses) {
            for (first, count) in pieces(tensor.elem_count()) {
                table.extend([address.after(first).word(), count as i64]);
            }
        }
        sums = Some(sums_of_pieces(table, device)?);
        Ok(())
    })?;
    sums.map_or_else(|| bail!("sums of squares: nothing was launched"), Ok)
}

/// One sum for each piece, in f64. `table`: addresses and counts of tensors that are locked.
fn sums_of_pieces(table: Vec<i64>, device: &Device) -> Result<Tensor> {
    let count = table.len() / 2;
    let table = Tensor::from_vec(table, (count, 2), device)?;
    let sums = blank(count, DType::F64, device)?;
    let grid = Grid { blocks: count, threads: THREADS };
    // SAFETY: a block for each piece of the table, within a tensor that the caller has locked.
    unsafe {
        launch(
            "sums_of_squares",
            device,
            grid,
            [Some(&table)],
            [Some(&sums)],
            |[pieces], [sums]| Sums { pieces, sums },
        )?;
    }
    Ok(sums)
}

/// A tensor that an optimizer moves, with its state: f32 in one shape.
pub struct Moved {
    pub theta: Tensor,
    pub gradient: Tensor,
    /// Running average of the squared gradient.
    pub squares: Tensor,
    /// That of the gradient (AdamW).
    pub average: Option<Tensor>,
    /// Learning rate, with AdamW's correction of the average in it.
    pub rate: f32,
    /// 1/√ of AdamW's correction of the squares; 1 for RMSProp.
    pub root: f32,
    /// 1 − lr·weight_decay.
    pub shrink: f32,
}

/// The numbers of an optimizer, the same for all tensors.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// On every gradient (clipping).
    pub scale: f32,
    pub epsilon: f32,
    /// What the average of gradients keeps of itself in a step, and that of their squares.
    pub decay: f64,
    pub decay_squares: f64,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct OptimizerStep {
    pieces: Address,
    scale: f32,
    epsilon: f32,
    keep: f32,
    take: f32,
    keep_squares: f32,
    take_squares: f32,
}

/// Words of a piece in the table.
const WORDS: usize = 7;

impl Moved {
    fn check(&self, device: &Device) -> Result<()> {
        let all = [&self.theta, &self.gradient, &self.squares].into_iter().chain(&self.average);
        for tensor in all {
            is("optimizer", tensor, self.theta.dims(), device)?;
        }
        Ok(())
    }

    /// Adds its pieces to the table, as `struct moved_piece` lies in memory.
    fn add(&self, table: &mut Vec<i64>, gradient: Address, written: &[Address]) {
        let Some([theta, squares, average]) = written.first_chunk() else { return };
        let pair =
            |low: f32, high: u32| (u64::from(low.to_bits()) | u64::from(high) << 32).cast_signed();
        let at = |address: Address, first: usize| match address {
            Address::NONE => address.word(),
            _ => address.after(first).word(),
        };
        for (first, count) in pieces(self.theta.elem_count()) {
            let [theta, gradient, squares, average] =
                [*theta, gradient, *squares, *average].map(|address| at(address, first));
            let words: [i64; WORDS] = [
                theta,
                gradient,
                squares,
                average,
                count as i64,
                pair(self.rate, self.root.to_bits()),
                pair(self.shrink, 0),
            ];
            table.extend(words);
        }
    }
}

/// One step of RMSProp (tensors without an average) or AdamW, in place:
/// `s ← k·s + (1 − k)·g²`, `m ← k·m + (1 − k)·g`,
/// `θ ← shrink·θ − rate·m / (√s·root + ε)`; RMSProp's m is g.
///
/// Errors unless each tensor's parts are f32 of one shape, without gaps, on this device.
pub fn optimizer_step(moved: &[Moved], step: Step, device: &Device) -> Result<()> {
    for tensor in moved {
        tensor.check(device)?;
    }
    moved.chunks(AT_ONCE).try_for_each(|moved| step_at_once(moved, step, device))
}

fn step_at_once(moved: &[Moved], step: Step, device: &Device) -> Result<()> {
    let written: Vec<Option<&Tensor>> =
        moved.iter().flat_map(|t| [Some(&t.theta), Some(&t.squares), t.average.as_ref()]).collect();
    let read: Vec<Option<&Tensor>> = moved.iter().map(|t| Some(&t.gradient)).collect();
    writing(&written, &|written| {
        reading(device, &read, |gradients| {
            let mut table = Vec::new();
            for ((tensor, gradient), written) in
                moved.iter().zip(gradients).zip(written.chunks_exact(3))
            {
                tensor.add(&mut table, *gradient, written);
            }
            step_pieces(table, step, device)
        })
    })
}

/// `table`: pieces of tensors that are locked.
fn step_pieces(table: Vec<i64>, step: Step, device: &Device) -> Result<()> {
    let blocks = table.len() / WORDS;
    let table = Tensor::from_vec(table, (blocks, WORDS), device)?;
    let Step { scale, epsilon, decay, decay_squares } = step;
    // From the exact decay, since 1 − 0.999 in f32 is off by 1e-5 of itself.
    let [(keep, take), (keep_squares, take_squares)] =
        [decay, decay_squares].map(|decay| (decay as f32, (1.0 - decay) as f32));
    let grid = Grid { blocks, threads: THREADS };
    // SAFETY: a block for each piece of the table, within tensors that the caller has locked.
    unsafe {
        launch("optimizer_step", device, grid, [Some(&table)], [], |[pieces], []| OptimizerStep {
            pieces,
            scale,
            epsilon,
            keep,
            take,
            keep_squares,
            take_squares,
        })
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::super::stand_in::{both_ways, close, proves, some};
    use super::*;

    const SIZES: [usize; 7] = [1, 3, 300, PIECE, 5, PIECE + 17, 33];
    const STEP: Step = Step { scale: 0.37, epsilon: 1e-8, decay: 0.9, decay_squares: 0.999 };

    fn tensors(adam: bool) -> Vec<Moved> {
        let some = |n: usize, seed| some(&[n], seed);
        let moved = |(n, i): (usize, u64)| Moved {
            theta: some(n, i),
            gradient: some(n, i + 100),
            squares: some(n, i + 200).sqr().expect("squares"),
            average: adam.then(|| some(n, i + 300)),
            rate: 0.01 * (i + 1) as f32,
            root: 1.0 + i as f32,
            shrink: 1.0 - 0.001 * i as f32,
        };
        SIZES.into_iter().zip(0..).map(moved).collect()
    }

    /// (θ, s, m) after the step, in f64.
    fn plain(moved: &Moved) -> Result<[Tensor; 3]> {
        let wide = |t: &Tensor| t.to_dtype(DType::F64);
        let mix = |old: &Tensor, new: &Tensor, keep: f64| (old * keep)? + (new * (1.0 - keep))?;
        let g = (wide(&moved.gradient)? * f64::from(STEP.scale))?;
        let squares = mix(&wide(&moved.squares)?, &g.sqr()?, STEP.decay_squares)?;
        let average = match &moved.average {
            Some(average) => mix(&wide(average)?, &g, STEP.decay)?,
            None => g,
        };
        let below = ((squares.sqrt()? * f64::from(moved.root))? + f64::from(STEP.epsilon))?;
        let by = ((&average * f64::from(moved.rate))? / below)?;
        let theta = ((wide(&moved.theta)? * f64::from(moved.shrink))? - by)?;
        Ok([theta, squares, average])
    }

    #[test]
    fn many_tensors_as_one_by_one() {
        proves("many.cu", || {
            let all: Vec<Tensor> =
                SIZES.iter().zip(1..).map(|(n, seed)| some(&[*n], seed)).collect();
            let all: Vec<&Tensor> = all.iter().collect();
            let found = both_ways(|| {
                let sums = sums_of_squares(&all, &Device::Cpu)?;
                let alone: Result<Vec<Tensor>> = all.iter().map(|x| sum_of_squares(x)).collect();
                Ok(vec![Tensor::new(sums, &Device::Cpu)?, Tensor::stack(&alone?, 0)?])
            });
            let wanted: Vec<Tensor> = all
                .iter()
                .map(|t| t.to_dtype(DType::F64)?.sqr()?.sum_all())
                .collect::<Result<_>>()
                .expect("sums");
            let wanted = Tensor::stack(&wanted, 0).expect("sums");
            found.iter().for_each(|found| close("squares", found, &wanted, 1e-13));
            for adam in [false, true] {
                let found = both_ways(|| {
                    let moved = tensors(adam);
                    optimizer_step(&moved, STEP, &Device::Cpu)?;
                    let parts = moved.into_iter().flat_map(|t| {
                        [Some(t.theta), Some(t.squares), t.average].into_iter().flatten()
                    });
                    Ok(parts.collect())
                });
                let wanted = tensors(adam);
                let wanted = wanted.iter().flat_map(|t| {
                    let parts = plain(t).expect("plain").into_iter();
                    parts.take(if adam { 3 } else { 2 })
                });
                for (found, wanted) in found.iter().zip(wanted) {
                    close("optimizer", found, &wanted, 1e-5);
                }
            }
        });
    }

    /// More tensors than are locked at once, and none.
    #[test]
    fn any_number_of_tensors() {
        let moved: Vec<Moved> = (0..AT_ONCE + 3).map(|_| tensors(true).swap_remove(1)).collect();
        optimizer_step(&moved, STEP, &Device::Cpu).expect("moved");
        let wanted = moved[0].theta.to_vec1::<f32>().expect("values");
        assert!(moved.iter().all(|t| t.theta.to_vec1::<f32>().expect("values") == wanted));
        optimizer_step(&[], STEP, &Device::Cpu).expect("nothing");
        assert!(sums_of_squares(&[], &Device::Cpu).expect("none").is_empty());
    }
}
