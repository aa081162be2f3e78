//! A *graft* puts a gradient of our own on a value that was computed without a graph.
//!
//! candle's backward pass computes and keeps the gradient of every operand of an operation, also of
//! frozen weights, masks and tables that nobody asks about; and it keeps every intermediate result
//! until then. A graft keeps its arguments and its value, and computes what is wanted alone.

use std::sync::{Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, MetalStorage, Result, Shape, Storage,
    Tensor, bail,
};

/// A value, and how its gradient goes on to the arguments.
struct Graft<B> {
    /// Until the value is on the graph.
    value: Mutex<Option<Tensor>>,
    back: B,
}

/// `value`, computed of `x` without a graph, on the graph of `x`; as it is where `x` is on none.
/// `back`: from x, the value and the value's gradient to that of x; `None`: it has none.
pub fn graft(
    x: &Tensor,
    value: Tensor,
    back: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Option<Tensor>> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !x.track_op() {
        return Ok(value);
    }
    x.apply_op1(Graft { value: Mutex::new(Some(value)), back })
}

/// The same of two arguments: `back` goes from both, the value and the value's gradient to theirs.
pub fn graft_both(
    x: &Tensor,
    other: &Tensor,
    value: Tensor,
    back: impl Fn(&Tensor, &Tensor, &Tensor, &Tensor) -> Result<[Option<Tensor>; 2]>
    + Send
    + Sync
    + 'static,
) -> Result<Tensor> {
    if !x.track_op() && !other.track_op() {
        return Ok(value);
    }
    x.apply_op2(other, Graft { value: Mutex::new(Some(value)), back })
}

/// The same of `x` and a residual stream that the value adds to: its gradient is the value's.
pub fn graft_onto(
    x: &Tensor,
    residual: &Tensor,
    value: Tensor,
    back: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<Option<Tensor>> + Send + Sync + 'static,
) -> Result<Tensor> {
    graft_both(x, residual, value, move |x, _, value, g| Ok([back(x, value, g)?, Some(g.clone())]))
}

impl<B> Graft<B> {
    /// A copy of the value, which the graph will own.
    fn take<S: BackendStorage + Kept>(&self) -> Result<(S, Shape)> {
        let value = self.value.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(value) = value else { bail!("a graft is put on one graph") };
        // A storage is copied from its beginning.
        let value = match value.is_contiguous() && value.layout().start_offset() == 0 {
            true => value,
            false => value.affine(1.0, 0.0)?,
        };
        let (storage, layout) = value.storage_and_layout();
        let Some(own) = S::of(&storage) else { bail!("a value on another device") };
        Ok((own.try_clone(layout)?, layout.shape().clone()))
    }
}

impl<B> CustomOp1 for Graft<B>
where
    B: Fn(&Tensor, &Tensor, &Tensor) -> Result<Option<Tensor>> + Send + Sync,
{
    fn name(&self) -> &'static str {
        "graft"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.take()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.take()
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        self.take()
    }

    fn bwd(&self, x: &Tensor, value: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        (self.back)(&x.detach(), &value.detach(), &grad.contiguous()?)
            .map(|gradient| gradient.filter(|_| x.track_op()))
    }
}

impl<B> CustomOp2 for Graft<B>
where
    B: Fn(&Tensor, &Tensor, &Tensor, &Tensor) -> Result<[Option<Tensor>; 2]> + Send + Sync,
{
    fn name(&self) -> &'static str {
        "graft-both"
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.take()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.take()
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        self.take()
    }

    fn bwd(
        &self,
        x: &Tensor,
        other: &Tensor,
        value: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let [by_x, by_other] = (self.back)(&x.detach(), &other.detach(), &value.detach(), &grad)?;
        Ok((by_x.filter(|_| x.track_op()), by_other.filter(|_| other.track_op())))
    }
}

/// A backend's part of candle's storage.
pub trait Kept: Sized {
    fn of(storage: &Storage) -> Option<&Self>;
}

impl Kept for CpuStorage {
    fn of(storage: &Storage) -> Option<&Self> {
        if let Storage::Cpu(s) = storage { Some(s) } else { None }
    }
}

impl Kept for CudaStorage {
    fn of(storage: &Storage) -> Option<&Self> {
        if let Storage::Cuda(s) = storage { Some(s) } else { None }
    }
}

impl Kept for MetalStorage {
    fn of(storage: &Storage) -> Option<&Self> {
        if let Storage::Metal(s) = storage { Some(s) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn only_what_is_on_the_graph_has_a_gradient() {
        let x = Var::new(&[1f32, 2.0, 3.0], &Device::Cpu).expect("a variable");
        let residual = Tensor::new(&[10f32, 20.0, 30.0], &Device::Cpu).expect("a constant");
        // A value that begins within its storage.
        let value = Tensor::new(&[0f32, 12.0, 24.0, 36.0], &Device::Cpu).expect("values");
        let value = value.narrow(0, 1, 3).expect("a part");
        let y = graft_onto(x.as_tensor(), &residual, value, |_, _, g| Ok(Some((g * 2.0)?)));
        let y = y.expect("on the graph");
        assert_eq!(y.to_vec1::<f32>().expect("values"), [12.0, 24.0, 36.0]);
        let found = y.sum_all().and_then(|sum| sum.backward()).expect("gradients");
        let gradient = found.get(&x).expect("of x").to_vec1::<f32>().expect("values");
        assert_eq!(gradient, [2.0; 3]);
        assert!(found.get(&residual).is_none());
    }

    #[test]
    fn without_a_graph_the_value_stays_as_it_is() {
        let x = Tensor::new(&[1f32], &Device::Cpu).expect("a constant");
        let y = graft(&x, x.clone(), |_, _, _| unreachable!("no gradient")).expect("a value");
        assert!(!y.track_op() && y.id() == x.id());
    }
}
