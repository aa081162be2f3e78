//! A *tape* keeps what went into each block in place of the block's graph. The backward pass makes
//! the graph of one block at a time from it, the last block first (gradient checkpointing: Chen et
//! al. 2016, arXiv 1604.06174).
//!
//! The same operations run on the same values as in one graph over all blocks, so the gradients are
//! the same to the bit wherever the kernels are deterministic.

use std::cell::RefCell;

use anyhow::Result;
use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};

/// The way through one block: (N,C) → (N,C), with the weights of a view.
pub type Way<V> = Box<dyn Fn(&V, &Tensor) -> Result<Tensor>>;

/// A place where a graph was cut.
struct Cut<V> {
    /// What went in: the start of the graph above the cut before, the end of a graph below, or the
    /// lowest block's input, which needs no gradient.
    input: Tensor,
    /// What was done with it; `None`: nothing, it is where the graph below ends.
    way: Option<Way<V>>,
    /// What came out, and where the graph above begins.
    output: Var,
}

/// The cuts of the passes of one view, in their order.
pub struct Tape<V> {
    cuts: RefCell<Vec<Cut<V>>>,
}

impl<V> Default for Tape<V> {
    fn default() -> Self {
        Self { cuts: RefCell::default() }
    }
}

impl<V> Tape<V> {
    /// The block's output, from where the next graph begins. `plain` wants nothing, so that it
    /// builds no graph.
    pub fn record(&self, plain: &V, h: &Tensor, way: Way<V>) -> Result<Tensor> {
        let input = match h.track_op() && !h.is_variable() {
            true => self.cut(h.clone(), None, &h.detach())?,
            false => h.clone(),
        };
        let output = way(plain, &input.detach())?;
        self.cut(input, Some(way), &output)
    }

    fn cut(&self, input: Tensor, way: Option<Way<V>>, values: &Tensor) -> Result<Tensor> {
        let output = Var::from_tensor(values)?;
        let start = output.as_tensor().clone();
        self.cuts.borrow_mut().push(Cut { input, way, output });
        Ok(start)
    }

    /// From the gradients where the highest graph began down through every cut that they reach.
    /// Cuts of passes that are not in this backward pass stay.
    pub fn go_back(&self, view: &V, store: &mut GradStore) -> Result<()> {
        let mut others = Vec::new();
        // Taken one by one, so that what is done is freed; and not borrowed while blocks run.
        while let Some(Cut { input, way, output }) = { self.cuts.borrow_mut().pop() } {
            let Some(gradient) = store.remove(&output) else {
                others.push(Cut { input, way, output });
                continue;
            };
            drop(output);
            // candle tracks where a variable's gradient is from; this graph is not to be gone into.
            let gradient = gradient.detach();
            let end = match way {
                Some(way) => way(view, &input)?,
                None => input,
            };
            // The gradient of this sum by `end` is `gradient`, to the bit.
            let mut found = (end * gradient)?.sum_all()?.backward()?;
            for cut in self.cuts.borrow().iter() {
                if let Some(below) = found.remove(&cut.output) {
                    store.insert(&cut.output, below);
                }
            }
        }
        others.reverse();
        *self.cuts.borrow_mut() = others;
        Ok(())
    }
}
