//! Causal attention composed of candle's operations: for devices that our kernels don't run on, and
//! for the tests of those kernels.
//!
//! The sequences of a packed batch (N rows) lie side by side in a *padded* tensor of B × T rows, T
//! the length of the longest. So a layer takes as many operations for one sequence as for a
//! hundred: on a GPU a small batch costs what its launches cost. What a shorter sequence lacks is
//! filled with the batch's first row. No query sees it, and nobody reads what it puts out.

use std::cell::RefCell;
use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, Device, Layout, MetalStorage, Shape, Tensor, bail,
};

use super::composed::{Kept, masked_softmax};
use super::kernels::attention::AttentionShape;
use crate::tokens::{Packed, Sequence};

/// How the rows of a packed batch and those of the padded tensor belong together.
pub struct Padded {
    sequences: Arc<[Sequence]>,
    /// T
    queries: usize,
    /// `None` where all sequences are of one length: nothing moves.
    moves: Option<Moves>,
    /// (B,1,T,S), one for each window that a layer has had.
    masks: RefCell<Vec<(Option<usize>, Tensor)>>,
}

struct Moves {
    /// The packed row at each padded one, 0 where there is none: (B·T)
    taken: Tensor,
    /// 1 where there is one, else 0: (B·T,1)
    real: Tensor,
    /// The padded row of each packed one: (N)
    places: Tensor,
}

impl Padded {
    pub fn new(packed: &Packed, device: &Device) -> Result<Self> {
        let sequences = packed.sequences.clone();
        let queries = sequences.iter().map(|s| s.rows.len()).max().unwrap_or(0);
        let padded = sequences.len() * queries;
        let moves = if padded == packed.ids.len() {
            None
        } else {
            let (mut taken, mut real, mut places) =
                (vec![0u32; padded], vec![0f32; padded], Vec::new());
            for (index, sequence) in sequences.iter().enumerate() {
                for (i, row) in sequence.rows.clone().enumerate() {
                    let place = index * queries + i;
                    (taken[place], real[place]) = (row as u32, 1.0);
                    places.push(place as u32);
                }
            }
            let rows = places.len();
            Some(Moves {
                taken: Tensor::from_vec(taken, padded, device)?,
                real: Tensor::from_vec(real, (padded, 1), device)?,
                places: Tensor::from_vec(places, rows, device)?,
            })
        };
        Ok(Self { sequences, queries, moves, masks: RefCell::new(Vec::new()) })
    }

    /// (N, heads·D) → (B, heads, T, D)
    fn spread(&self, x: &Tensor, heads: usize, head_dim: usize) -> Result<Tensor> {
        let x = match &self.moves {
            // The filling has no gradient: nobody reads what comes of it.
            Some(Moves { taken, places, .. }) => x.contiguous()?.apply_op1(Select {
                rows: taken.clone(),
                back: places.clone(),
                real: None,
            })?,
            None => x.clone(),
        };
        let shape = (self.sequences.len(), self.queries, heads, head_dim);
        Ok(x.reshape(shape)?.transpose(1, 2)?.contiguous()?)
    }

    /// (B, heads, T, D) → (N, heads·D)
    fn gathered(&self, y: &Tensor) -> Result<Tensor> {
        let (b, h, t, d) = y.dims4()?;
        let y = y.transpose(1, 2)?.reshape((b * t, h * d))?;
        Ok(match &self.moves {
            Some(Moves { taken, real, places }) => {
                let (rows, back) = (places.clone(), taken.clone());
                y.apply_op1(Select { rows, back, real: Some(real.clone()) })?
            }
            None => y,
        })
    }

    /// 0 where a query sees a key, −∞ where not: (B,1,T,S). The same for all layers of a pass with
    /// the same window. `columns[b][p]` is where position p of sequence b stands among the S keys.
    fn mask(
        &self,
        window: Option<usize>,
        columns: &[Vec<u32>],
        keys: usize,
        device: &Device,
    ) -> Result<Tensor> {
        if let Some((_, mask)) = self.masks.borrow().iter().find(|(of, _)| *of == window) {
            return Ok(mask.clone());
        }
        let (b, t) = (self.sequences.len(), self.queries);
        let mut values = vec![f32::NEG_INFINITY; b * t * keys];
        for ((sequence, columns), values) in
            self.sequences.iter().zip(columns).zip(values.chunks_exact_mut(t * keys))
        {
            let past = columns.len() - sequence.rows.len();
            for (i, row) in values.chunks_exact_mut(keys).enumerate() {
                if i >= sequence.rows.len() {
                    // A softmax over nothing is not a number.
                    row.fill(0.0);
                }
                for position in sequence.seen(past + i, window).into_iter().flatten() {
                    if let Some(column) = columns.get(position) {
                        row[*column as usize] = 0.0;
                    }
                }
            }
        }
        let mask = Tensor::from_vec(values, (b, 1, t, keys), device)?;
        self.masks.borrow_mut().push((window, mask.clone()));
        Ok(mask)
    }
}

/// Keys and values of a batch so far, and where each sequence's positions stand in them.
#[derive(Debug)]
pub struct CachedBatch {
    /// (B, Hkv, S, D)
    keys: Tensor,
    values: Tensor,
    /// For each sequence, the column of each position.
    columns: Vec<Vec<u32>>,
}

impl CachedBatch {
    /// So many sequences more, of which nothing is cached. Columns that the others don't use are
    /// given up.
    pub fn add(&mut self, sequences: usize) -> candle_core::Result<()> {
        let (b, heads, seen, d) = self.keys.dims4()?;
        let longest = self.columns.iter().map(Vec::len).max().unwrap_or(0);
        if longest < seen {
            let mut taken = Vec::with_capacity(b * longest);
            for columns in &mut self.columns {
                taken.extend_from_slice(columns);
                // Nobody sees what is beyond a sequence's end.
                taken.resize(taken.len() + longest - columns.len(), 0);
                *columns = (0..columns.len() as u32).collect();
            }
            let taken = Tensor::from_vec(taken, (b, 1, longest, 1), self.keys.device())?;
            let taken = taken.broadcast_as((b, heads, longest, d))?.contiguous()?;
            self.keys = self.keys.contiguous()?.gather(&taken, 2)?;
            self.values = self.values.contiguous()?.gather(&taken, 2)?;
        }
        let empty = (sequences, heads, longest, d);
        let empty = Tensor::zeros(empty, self.keys.dtype(), self.keys.device())?;
        self.keys = Tensor::cat(&[&self.keys, &empty], 0)?;
        self.values = Tensor::cat(&[&self.values, &empty], 0)?;
        self.columns.resize(b + sequences, Vec::new());
        Ok(())
    }

    /// For each of `of` (at least one) what is cached of the sequence of that number.
    pub fn spread(&mut self, of: &[usize]) -> candle_core::Result<()> {
        self.columns = of.iter().map(|i| self.columns[*i].clone()).collect();
        let of: Vec<u32> = of.iter().map(|i| *i as u32).collect();
        let of = Tensor::new(of, self.keys.device())?;
        self.keys = self.keys.index_select(&of, 0)?;
        self.values = self.values.index_select(&of, 0)?;
        Ok(())
    }
}

/// Causal attention of queries (N, H·D), keys and values (N, Hkv·D) → (N, H·D). With a cache the
/// rows go on from what it holds, and are added to it.
pub fn attention(
    shape: AttentionShape,
    [q, k, v]: [&Tensor; 3],
    padded: &Padded,
    cache: Option<&mut Option<CachedBatch>>,
) -> Result<Tensor> {
    let (h, hk, d) = (shape.heads, shape.kv_heads, shape.head_dim);
    let (q, mut k, mut v) =
        (padded.spread(q, h, d)?, padded.spread(k, hk, d)?, padded.spread(v, hk, d)?);
    let lengths = || padded.sequences.iter().map(|s| s.rows.len() as u32);
    let mut columns: Vec<Vec<u32>> = lengths().map(|n| (0..n).collect()).collect();
    if let Some(cache) = cache {
        if let Some(past) = cache.take() {
            let from = past.keys.dim(2)? as u32;
            (k, v) = (Tensor::cat(&[&past.keys, &k], 2)?, Tensor::cat(&[&past.values, &v], 2)?);
            let new = lengths();
            columns = past.columns;
            columns.iter_mut().zip(new).for_each(|(columns, n)| columns.extend(from..from + n));
        }
        let (keys, values, columns) = (k.clone(), v.clone(), columns.clone());
        *cache = Some(CachedBatch { keys, values, columns });
    }
    let (b, seen) = (k.dim(0)?, k.dim(2)?);
    let share = |x: Tensor| -> Result<Tensor> {
        if h == hk {
            return Ok(x);
        }
        Ok(x.unsqueeze(2)?.broadcast_as((b, hk, h / hk, seen, d))?.reshape((b, h, seen, d))?)
    };
    let (k, v) = (share(k)?, share(v)?);
    let mask = padded.mask(shape.window, &columns, seen, q.device()).context("mask")?;
    let (scale, cap) = (f64::from(shape.scale), shape.cap.map(f64::from));
    let p = masked_softmax(&q.matmul(&k.t()?)?, scale, cap, &mask)?;
    padded.gathered(&p.matmul(&v)?)
}

/// A selection of rows, and the one that undoes it. candle's own gradient of a selection adds one
/// row after another, which a GPU does one at a time.
struct Select {
    rows: Tensor,
    back: Tensor,
    /// Factor on each row of the gradient: 0 for a row that was not selected.
    real: Option<Tensor>,
}

impl CustomOp1 for Select {
    fn name(&self) -> &'static str {
        "select-rows"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        select(x, layout, &self.rows)
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        select(x, layout, &self.rows)
    }

    fn metal_fwd(
        &self,
        x: &MetalStorage,
        layout: &Layout,
    ) -> candle_core::Result<(MetalStorage, Shape)> {
        select(x, layout, &self.rows)
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let back = grad.contiguous()?.index_select(&self.back, 0)?;
        Ok(Some(match &self.real {
            Some(real) => back.broadcast_mul(real)?,
            None => back,
        }))
    }
}

/// The rows of x (n,C) that `rows` (m) names: (m,C).
fn select<S: BackendStorage + Kept>(
    x: &S,
    layout: &Layout,
    rows: &Tensor,
) -> candle_core::Result<(S, Shape)> {
    let (count, columns) = (rows.elem_count(), layout.shape().dims2()?.1);
    let (storage, ids_layout) = rows.storage_and_layout();
    let Some(ids) = S::of(&storage) else {
        bail!("rows and their numbers are on different devices")
    };
    Ok((x.index_select(ids, layout, ids_layout, 0)?, (count, columns).into()))
}
