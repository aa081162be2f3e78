//! A *fused kernel* does in one launch what the composed layers do in several: where a GPU waits
//! for launches more than for arithmetic, that is what costs.
//!
//! The sources (`kernels/*.cu`) are in what CUDA C++ and plain C have in common. With the feature
//! `cuda` they are built for the GPU. The tests build them with the system's C compiler, with a
//! stand-in for a block of threads: so sizes, addresses and arithmetic are tested without a card,
//! and only the launch itself is not.
//!
//! Whatever is given here is checked where it comes in: a kernel sees whole tensors of the shapes
//! that it takes. Every sum has a fixed order, so that the same launch gives the same bytes.

pub mod activation;
pub mod head;
mod launch;
pub mod many;
pub mod norm;
pub mod rotary;
pub mod softmax;
#[cfg(all(test, unix))]
pub mod stand_in;

use std::sync::LazyLock;

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::base::environment::variable;

/// Whether layers are composed of candle's operations on NVIDIA's GPUs, too: with
/// `IREPAIR_PLAIN_LAYERS` in the environment.
static PLAIN: LazyLock<bool> = LazyLock::new(|| variable("IREPAIR_PLAIN_LAYERS").is_some());

/// Whether fused kernels run on this device: on NVIDIA's GPUs.
pub fn runs_on(device: &Device) -> bool {
    #[cfg(all(test, unix))]
    if stand_in::is_on(device) {
        return true;
    }
    cfg!(feature = "cuda") && device.is_cuda() && !*PLAIN
}

/// Errors unless x is f32 of this shape, without gaps, and on this device.
fn is(what: &str, x: &Tensor, shape: &[usize], device: &Device) -> Result<()> {
    if x.dims() != shape || x.dtype() != DType::F32 {
        bail!("{what}: {:?} of {:?}, expected {shape:?} of f32", x.dims(), x.dtype());
    }
    is_whole(what, x, device)
}

/// Errors unless x is without gaps and on this device.
fn is_whole(what: &str, x: &Tensor, device: &Device) -> Result<()> {
    if !x.is_contiguous() {
        bail!("{what}: a tensor with gaps");
    }
    if !x.device().same_device(device) {
        bail!("{what}: a tensor on another device");
    }
    Ok(())
}

/// A size as kernels take it. Errors above 2³² − 1.
fn size(count: usize) -> Result<u32> {
    u32::try_from(count).map_err(candle_core::Error::wrap)
}

/// A tensor that a launch will fill.
fn blank(shape: impl Into<candle_core::Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    let shape = shape.into();
    if device.is_cpu() {
        // What a kernel of the tests leaves out shall be seen.
        return Tensor::full(f32::NAN, shape, device)?.to_dtype(dtype);
    }
    // SAFETY: any bits are a number, and each kernel writes all values of what it fills.
    unsafe { Tensor::empty(shape, dtype, device) }
}
