//! Token and position embeddings of a packed batch.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use super::stored::read_stored;
use super::{par_rows, read, sum_of_squares, values, vectorized, zeros};
use crate::base::profile::{Part, span};
use crate::model::ledger::{Param, Want};

/// `h (N,C) = tokens[id] + positions[pos]`. It is applied to an *anchor*, a tensor of one value
/// that only carries the graph: so the backward pass comes by here, and gradients reach the ledger.
pub struct Embedding {
    pub tokens: Param,
    pub positions: Option<(Param, Vec<u32>)>,
    pub ids: Vec<u32>,
}

impl Embedding {
    fn tables(&self) -> impl Iterator<Item = (&Param, &[u32])> {
        let positions = self.positions.as_ref().map(|(p, at)| (p, at.as_slice()));
        std::iter::once((&self.tokens, self.ids.as_slice())).chain(positions)
    }
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, anchor: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let _span = span(Part::Embedding);
        values(anchor, layout)?;
        let (_, columns) = self.tokens.tensor.dims2()?;
        let mut h = zeros(self.ids.len() * columns);
        for (table, indices) in self.tables() {
            read_stored(&table.tensor, |table| {
                par_rows(&mut h, columns, |first, rows| {
                    vectorized!({
                        for (row, &index) in rows.chunks_exact_mut(columns).zip(&indices[first..]) {
                            table.each(index as usize * columns, row, |h, e| *h += e);
                        }
                    })
                })
            })?;
        }
        Ok((CpuStorage::F32(h), (self.ids.len(), columns).into()))
    }

    fn bwd(&self, _anchor: &Tensor, _h: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let _span = span(Part::Embedding);
        let (_, columns) = self.tokens.tensor.dims2()?;
        let grad = grad.contiguous()?;
        read(&grad, |g| {
            for (table, indices) in self.tables() {
                let scatter = |sum: &mut [f32]| {
                    for (g, &index) in g.chunks_exact(columns).zip(indices) {
                        let to = &mut sum[index as usize * columns..][..columns];
                        to.iter_mut().zip(g).for_each(|(s, g)| *s += g);
                    }
                };
                match table.want {
                    Want::Nothing => {}
                    Want::Gradient => table.add_gradient(|sum, _| scatter(sum)),
                    Want::Norm => {
                        let mut sum = zeros(table.tensor.elem_count());
                        scatter(&mut sum);
                        table.add_square(sum_of_squares(&sum))?;
                    }
                }
            }
            Ok::<(), candle_core::Error>(())
        })??;
        Ok(None)
    }
}
