//! The matrix product over packed panels, in two precisions: f32, or operands rounded to bf16 (to
//! nearest, ties to even) with every sum in f32. An *engine* is what multiplies: AVX-512 in f32,
//! AVX512-BF16 (`vdpbf16ps`, twice the multiplications an instruction), or AMX (`tdpbf16ps`).
//!
//! A packed *unit* is 32 bits: one f32, or two bf16 that stand one above the other in the depth.
//! `a` is packed into panels of so many rows as a tile is high, `b` into panels of so many columns
//! as it is wide. A tile of vectors is 8 broadcasts times three vectors, 24 sums in registers; one
//! of AMX is two by two of its registers. Nothing is added across lanes. Rounding happens while
//! packing, and so does the widening of weights that lie in bf16 or f16, so operands stay as they
//! are in memory. An output does not depend on the tile it falls into, nor on how many other rows
//! there are.

#![cfg(target_arch = "x86_64")]

mod amx;
mod engine;
mod pack;
mod tile;

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::matrix::{Cores, Mat, MatMut};
use crate::model::precision::{Precision, available};
use engine::Engine;
use pack::{Ahead, LINE, Operand, Source};
use tile::Tile;

/// With fewer panels of `b` than this, or than threads, `b` is packed whole first and the jobs also
/// divide the rows of `a`.
const FEW: usize = 8;
/// Panels of `a` that a job takes then.
const JOB: usize = 4;

thread_local! {
    /// Room for panels, kept from product to product: fresh pages would cost as much as the
    /// packing.
    static ROOM: RefCell<[Vec<u32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// Lends this thread's room `which` for `panels` of `width` × `units` (of any content, at the start
/// of a cache line) to `work`.
fn with_room<R>(
    which: usize,
    [panels, width, units]: [usize; 3],
    work: impl FnOnce(Room) -> R,
) -> R {
    let len = panels.checked_mul(width).and_then(|across| across.checked_mul(units));
    let len = len.expect("panels that can be counted");
    let mut room = ROOM.with_borrow_mut(|rooms| std::mem::take(&mut rooms[which]));
    if room.len() < len + LINE / 4 {
        room.resize(len + LINE / 4, 0);
    }
    let start = room.as_ptr().align_offset(LINE).min(LINE / 4);
    let place = &mut room[start..start + len];
    let result = work(Room { first: place.as_mut_ptr(), len, borrowed: PhantomData });
    ROOM.with_borrow_mut(|rooms| rooms[which] = room);
    result
}

/// Packed units that jobs share. Each writes only panels of its own, and reads complete ones.
#[derive(Clone, Copy)]
struct Room<'a> {
    first: *mut u32,
    len: usize,
    borrowed: PhantomData<&'a mut [u32]>,
}
// SAFETY: a pointer into it is used in unsafe code alone, which says who writes where.
unsafe impl Send for Room<'_> {}
unsafe impl Sync for Room<'_> {}

impl Room<'_> {
    /// Where `len` units from `offset` on are. Panics if there are fewer.
    fn at(self, offset: usize, len: usize) -> *mut u32 {
        let end = offset.checked_add(len);
        assert!(end.is_some_and(|end| end <= self.len), "{offset} + {len} of {} units", self.len);
        self.first.wrapping_add(offset)
    }
}

/// The output, of which each job writes other tiles.
#[derive(Clone, Copy)]
struct Target {
    first: *mut f32,
    stride: usize,
    rows: usize,
    cols: usize,
}
// SAFETY: as with a room.
unsafe impl Send for Target {}
unsafe impl Sync for Target {}

impl Target {
    /// Where a tile begins. Panics if there is no such place.
    fn at(self, row: usize, col: usize) -> *mut f32 {
        assert!(row < self.rows && col < self.cols, "({row}, {col}) of the output");
        self.first.wrapping_add(row * self.stride + col)
    }
}

/// `out = keep·out + scale·a·b`. What is kept nothing of is not read. Panics if sizes don't fit, if
/// an operand has neither its rows nor its columns in one piece, or if this processor lacks the
/// instructions (see [`available`]).
pub fn product(
    out: MatMut,
    a: Mat,
    b: Mat,
    keep: f32,
    scale: f32,
    precision: Precision,
    cores: Cores,
) {
    assert!(available(precision), "packed products in {precision:?} on this processor");
    product_by(Engine::of(precision), out, a, b, [keep, scale], cores)
}

/// [`product`] by this engine, which the processor must have.
fn product_by(
    engine: Engine,
    mut out: MatMut,
    a: Mat,
    b: Mat,
    [keep, scale]: [f32; 2],
    cores: Cores,
) {
    assert_eq!(a.cols(), b.rows(), "inner sizes");
    assert_eq!((out.rows(), out.cols()), (a.rows(), b.cols()), "sizes of the output");
    let depth = a.cols();
    let (a, b) = (Operand::left(a), Operand::right(b));
    let (stride, rows, cols) = (out.stride(), out.rows(), out.cols());
    let out = Target { first: out.as_mut_ptr(), stride, rows, cols };
    let (high, wide, cut, units) =
        (engine.high(), engine.wide(), engine.cut(), engine.units(depth));
    let (a_panels, b_panels) = (a.across.div_ceil(high), b.across.div_ceil(wide));
    let each = |jobs: usize, work: &(dyn Fn(usize) + Sync)| match cores {
        Cores::All if jobs > 1 => (0..jobs).into_par_iter().for_each(work),
        _ => (0..jobs).for_each(work),
    };
    // Panels from offset `to` of a room on.
    let pack = |from: Operand, panels: Range<usize>, units: Range<usize>, room: Room, to: usize| {
        let width = if from.left { high } else { wide };
        let to = room.at(to, panels.len() * width * units.len());
        let source =
            Source { from, depth, first: panels.start * width, width, panels: panels.len() };
        // SAFETY: `to` has room for `units` rows of the panels, which this job alone writes, and
        // this processor has the instructions.
        unsafe { source.pack(engine, units, to) }
    };
    with_room(0, [a_panels, high, units], |a_packed| {
        each(a_panels, &|panel| {
            pack(a, panel..panel + 1, 0..units, a_packed, panel * high * units)
        });
        // Some panels of b over `deep`, packed one after another from offset `first` of a room on,
        // against some panels of a; meanwhile `next` comes nearer.
        let multiply = |panels: Range<usize>,
                        deep: &Range<usize>,
                        (packed, first): (Room, usize),
                        rows: Range<usize>,
                        mut next: Option<Ahead>| {
            let keep = if deep.start == 0 { keep } else { 1.0 };
            let count = rows.len();
            let _ready = engine.ready();
            for row in rows {
                if let Some(next) = &mut next {
                    next.fetch(count);
                }
                for panel in panels.clone() {
                    let (first_row, first_column) = (row * high, panel * wide);
                    let from = first + (panel - panels.start) * wide * deep.len();
                    let tile = Tile {
                        a: a_packed.at((row * units + deep.start) * high, high * deep.len()),
                        b: packed.at(from, wide * deep.len()),
                        units: deep.len(),
                        rows: high.min(a.across - first_row),
                        columns: wide.min(b.across - first_column),
                    };
                    let place = out.at(first_row, first_column);
                    // SAFETY: the tile's panels are packed, and its outputs exist and belong to
                    // this job.
                    unsafe { tile.run(engine, place, out.stride, [keep, scale]) };
                }
            }
        };
        let threads = match cores {
            Cores::All => rayon::current_num_threads(),
            Cores::One => 1,
        };
        if b_panels >= FEW.max(threads) || a_panels <= JOB {
            // Smaller groups where larger ones would leave cores without work.
            let share = if threads > 1 { b_panels / (4 * threads) } else { b_panels };
            let group = share.clamp(1, cut.group);
            each(b_panels.div_ceil(group), &|job| {
                let panels = job * group..((job + 1) * group).min(b_panels);
                with_room(1, [panels.len(), wide, units.min(cut.deep)], |room| {
                    for deep in engine.blocks(units) {
                        pack(b, panels.clone(), deep.clone(), room, 0);
                        let next = cut.ahead.then(|| {
                            let (panel, from) = if deep.end < units {
                                (panels.start, deep.end)
                            } else {
                                (panels.end, 0)
                            };
                            Ahead::new(
                                b,
                                [panel, wide],
                                depth,
                                engine.values(from),
                                engine.values(deep.len()),
                            )
                        });
                        multiply(panels.clone(), &deep, (room, 0), 0..a_panels, next);
                    }
                });
            });
        } else {
            with_room(1, [b_panels, wide, units], |b_packed| {
                let place = |panel: usize, deep: &Range<usize>| (panel * units + deep.start) * wide;
                each(b_panels, &|panel| {
                    for deep in engine.blocks(units) {
                        let to = place(panel, &deep);
                        pack(b, panel..panel + 1, deep, b_packed, to);
                    }
                });
                let chunks = a_panels.div_ceil(JOB);
                each(b_panels * chunks, &|job| {
                    let (panel, chunk) = (job / chunks, job % chunks);
                    let rows = chunk * JOB..((chunk + 1) * JOB).min(a_panels);
                    for deep in engine.blocks(units) {
                        let packed = (b_packed, place(panel, &deep));
                        multiply(panel..panel + 1, &deep, packed, rows.clone(), None);
                    }
                });
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::precision::AMX;

    /// The engines of this processor.
    fn engines() -> impl Iterator<Item = Engine> {
        let here = |engine: &Engine| match engine {
            Engine::F32 => available(Precision::F32),
            Engine::Bf16 => available(Precision::Bf16),
            Engine::Amx => *AMX,
        };
        [Engine::F32, Engine::Bf16, Engine::Amx].into_iter().filter(here)
    }

    fn wave(len: usize, step: f32) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * step).sin() + 0.1).collect()
    }

    fn rounded(values: &[f32], engine: Engine) -> Vec<f32> {
        match engine {
            Engine::F32 => values.to_vec(),
            _ => values.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect(),
        }
    }

    /// An operand (across, depth) whose values are contiguous along the depth, or across.
    fn operand(data: &[f32], across: usize, depth: usize, along_depth: bool) -> Mat<'_> {
        if along_depth { Mat::new(data, across, depth) } else { Mat::new(data, depth, across).t() }
    }

    fn run(engine: Engine, a: Mat, b: Mat, factors: [f32; 2], cores: Cores) -> Vec<f32> {
        let (rows, cols) = (a.rows(), b.rows());
        let mut out = vec![if factors[0] == 0.0 { f32::NAN } else { 3.0 }; rows * cols];
        product_by(engine, MatMut::new(&mut out, rows, cols), a, b.t(), factors, cores);
        out
    }

    #[test]
    fn an_offset_beyond_its_memory_is_refused() {
        use std::panic::{AssertUnwindSafe, catch_unwind};
        let refused = |work: &mut dyn FnMut()| {
            assert!(catch_unwind(AssertUnwindSafe(work)).is_err());
        };
        with_room(1, [2, 3, 4], |room| {
            assert_eq!(room.at(20, 4).addr(), room.at(0, 0).addr() + 80);
            refused(&mut || _ = room.at(20, 5));
            refused(&mut || _ = room.at(usize::MAX, 2));
        });
        refused(&mut || with_room(1, [usize::MAX / 4, 48, 3], |_| ()));
        let mut data = [0f32; 12];
        let mut whole = MatMut::new(&mut data, 3, 4);
        let out = Target { first: whole.as_mut_ptr(), stride: 4, rows: 3, cols: 3 };
        assert_eq!(out.at(2, 2).addr(), out.at(0, 0).addr() + 40);
        refused(&mut || _ = out.at(3, 0));
        refused(&mut || _ = out.at(0, 3));
        let data = [0f32; 12];
        // Where the instructions are missing, nothing runs.
        if !available(Precision::F32) {
            let (a, b) = (Mat::new(&data, 3, 4), Mat::new(&data, 4, 3));
            let mut out = [0f32; 9];
            refused(&mut || {
                let out = MatMut::new(&mut out, 3, 3);
                product(out, a, b, 0.0, 1.0, Precision::F32, Cores::One)
            });
        }
    }

    #[test]
    fn equals_plain_sums_in_every_orientation_and_precision() {
        for engine in engines() {
            for (m, n, k) in [
                (1, 1, 1),
                (8, 48, 2),
                (9, 50, 33),
                (70, 100, 301),
                (3, 500, 47),
                (64, 5, 16),
                (17, 33, 600),
                (17, 900, 1100),
            ] {
                let (a, b) = (wave(m * k, 0.37), wave(n * k, 0.91));
                let (ra, rb) = (rounded(&a, engine), rounded(&b, engine));
                for (a_deep, b_deep, [keep, scale], cores) in [
                    (true, true, [0.0, 2.0], Cores::All),
                    (true, false, [0.5, 2.0], Cores::One),
                    (false, true, [1.0, 2.0], Cores::All),
                    (false, false, [0.0, 1.0], Cores::One),
                    (true, true, [1.0, 1.0], Cores::One),
                ] {
                    let out = run(
                        engine,
                        operand(&a, m, k, a_deep),
                        operand(&b, n, k, b_deep),
                        [keep, scale],
                        cores,
                    );
                    let at =
                        |across, x, all, deep| if deep { across * k + x } else { x * all + across };
                    for i in 0..m {
                        for j in 0..n {
                            let sum: f64 = (0..k)
                                .map(|x| {
                                    f64::from(ra[at(i, x, m, a_deep)])
                                        * f64::from(rb[at(j, x, n, b_deep)])
                                })
                                .sum();
                            let want = f64::from(keep) * 3.0 + f64::from(scale) * sum;
                            let got = f64::from(out[i * n + j]);
                            let near = 1e-5 * (k as f64).max(16.0);
                            assert!(
                                (got - want).abs() < near,
                                "{engine:?} {m}×{n}×{k} ({i},{j}): {got} {want}"
                            );
                        }
                    }
                }
            }
        }
    }

    /// Weights that lie in bf16 give the bits of the same weights in f32.
    #[test]
    fn weights_as_they_are_stored_give_the_same_bits() {
        use crate::model::kernels::stored::Values;
        let (m, n, k) = (33, 70, 85);
        let (a, b) = (wave(m * k, 0.37), wave(n * k, 0.91));
        let stored: Vec<_> = b.iter().map(|v| half::bf16::from_f32(*v)).collect();
        let wide: Vec<f32> = stored.iter().map(|v| v.to_f32()).collect();
        let a = operand(&a, m, k, true);
        for engine in engines() {
            for (rows, columns, turned) in [(n, k, false), (k, n, true)] {
                let of = |values: Values| {
                    let b = Mat::of(values, rows, columns);
                    let b = if turned { b.t() } else { b };
                    run(engine, a, b, [0.0, 1.0], Cores::One)
                };
                assert_eq!(of(Values::Bf16(&stored)), of(Values::F32(&wide)), "{engine:?}");
            }
        }
    }

    /// A row's outputs are the same bits alone and among others, in whatever tile they fall.
    #[test]
    fn an_output_does_not_depend_on_its_neighbours() {
        for engine in engines() {
            let (m, n, k) = (45, 103, 1200);
            let (a, b) = (wave(m * k, 0.37), wave(n * k, 0.91));
            let b_all = operand(&b, n, k, true);
            for factors in [[0.0, 1.0], [1.0, 1.0], [0.5, 2.0]] {
                let all = run(engine, operand(&a, m, k, true), b_all, factors, Cores::All);
                for i in 0..m {
                    let row = operand(&a[i * k..][..k], 1, k, true);
                    let alone = run(engine, row, b_all, factors, Cores::One);
                    assert_eq!(alone, all[i * n..][..n]);
                }
            }
        }
    }
}
