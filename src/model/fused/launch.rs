//! A *launch* is a kernel with its grid and its arguments, which hold the addresses of tensors.

use std::cell::{Cell, RefCell};

use candle_core::{
    CpuStorage, CudaStorage, Device, InplaceOp1, Layout, Result, Storage, Tensor, bail,
};

/// Where values lie in the memory of a device; 0 is nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Address(u64);

impl Address {
    pub const NONE: Self = Self(0);

    /// So many f32 further.
    pub fn after(self, values: usize) -> Self {
        Self(self.0 + 4 * values as u64)
    }

    /// As tables hold it.
    pub fn word(self) -> i64 {
        self.0.cast_signed()
    }
}

/// How many blocks of how many threads.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    pub blocks: usize,
    /// A multiple of 32, at most 1024.
    pub threads: u32,
}

impl Grid {
    /// A thread a value.
    pub fn of_values(count: usize) -> Self {
        Self { blocks: count.div_ceil(256), threads: 256 }
    }

    /// A block a row, with threads for its columns, at most `most` (whole warps).
    pub fn of_rows(rows: usize, columns: usize, most: u32) -> Self {
        let threads = columns.next_multiple_of(32).clamp(32, most as usize);
        Self { blocks: rows, threads: threads as u32 }
    }
}

/// Runs a kernel with the arguments that `arguments` makes of the addresses of what it reads and of
/// what it writes. Meanwhile no one else writes the former or sees the latter. Errors where no
/// fused kernel runs, on a tensor with gaps, and if the driver refuses.
///
/// # Safety
///
/// `A` is laid out as the kernel's struct, and with these arguments and this grid the kernel stays
/// within those tensors. No two of `writes` share values with each other or with `reads`.
pub unsafe fn launch<A: Copy, const R: usize, const W: usize>(
    name: &'static str,
    device: &Device,
    grid: Grid,
    reads: [Option<&Tensor>; R],
    writes: [Option<&Tensor>; W],
    arguments: impl FnOnce([Address; R], [Address; W]) -> A,
) -> Result<()> {
    let arguments = Cell::new(Some(arguments));
    writing(&writes, &|written| {
        reading(device, &reads, |read| {
            let (Ok(read), Ok(written), Some(arguments)) =
                (read.try_into(), written.try_into(), arguments.take())
            else {
                bail!("{name}: launched twice")
            };
            // SAFETY: the caller's promise; the tensors are locked until it has been launched.
            unsafe { run(name, device, grid, arguments(read, written)) }
        })
    })
}

/// # Safety
///
/// As of [`launch`].
unsafe fn run<A: Copy>(
    name: &'static str,
    device: &Device,
    grid: Grid,
    arguments: A,
) -> Result<()> {
    if grid.blocks == 0 {
        return Ok(());
    }
    if grid.threads == 0 || grid.threads > 1024 || !grid.threads.is_multiple_of(32) {
        bail!("{name}: a block of {} threads is not whole warps", grid.threads);
    }
    match device {
        #[cfg(feature = "cuda")]
        // SAFETY: the caller's promise.
        Device::Cuda(device) => unsafe { gpu::run(name, device, grid, arguments) },
        #[cfg(all(test, unix))]
        // SAFETY: the caller's promise.
        Device::Cpu => unsafe { super::stand_in::run(name, grid.blocks, grid.threads, arguments) },
        _ => {
            let _ = (grid, arguments);
            bail!("{name}: fused kernels run on NVIDIA's GPUs alone")
        }
    }
}

/// Locks tensors for writing, and does `work` with their addresses.
pub fn writing(tensors: &[Option<&Tensor>], work: &dyn Fn(&[Address]) -> Result<()>) -> Result<()> {
    Writing { rest: tensors, found: &RefCell::default(), work }.go_on()
}

/// candle lends a storage for writing to an operation in place. So each tensor's operation runs
/// that of the next one, and the last runs the work.
struct Writing<'a> {
    rest: &'a [Option<&'a Tensor>],
    found: &'a RefCell<Vec<Address>>,
    work: &'a dyn Fn(&[Address]) -> Result<()>,
}

impl Writing<'_> {
    fn go_on(&self) -> Result<()> {
        let Some((first, rest)) = self.rest.split_first() else {
            let found = self.found.take();
            return (self.work)(&found);
        };
        let next = Self { rest, ..*self };
        match first {
            Some(tensor) => tensor.inplace_op1(&next),
            None => next.at(Address::NONE),
        }
    }

    fn at(&self, address: Address) -> Result<()> {
        self.found.borrow_mut().push(address);
        self.go_on()
    }
}

impl InplaceOp1 for Writing<'_> {
    fn name(&self) -> &'static str {
        "fused-kernel"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let start = start(layout)?;
        self.at(match storage {
            CpuStorage::F32(values) => Address(values[start..].as_mut_ptr() as u64),
            CpuStorage::F64(values) => Address(values[start..].as_mut_ptr() as u64),
            _ => bail!("a fused kernel writes f32 and f64"),
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        gpu::writing(storage, start(layout)?, |address| self.at(address))
    }
}

/// Locks tensors for reading, and does `work` with their addresses.
pub fn reading(
    device: &Device,
    tensors: &[Option<&Tensor>],
    work: impl FnOnce(&[Address]) -> Result<()>,
) -> Result<()> {
    let locked: Vec<_> = tensors.iter().map(|t| t.map(|t| t.storage_and_layout())).collect();
    let mut held = Vec::new();
    let mut found = Vec::with_capacity(locked.len());
    for tensor in &locked {
        let Some((storage, layout)) = tensor else {
            found.push(Address::NONE);
            continue;
        };
        let start = start(layout)?;
        found.push(match &**storage {
            Storage::Cpu(CpuStorage::F32(values)) if device.is_cpu() => {
                Address(values[start..].as_ptr() as u64)
            }
            Storage::Cpu(CpuStorage::U32(values)) if device.is_cpu() => {
                Address(values[start..].as_ptr() as u64)
            }
            Storage::Cpu(CpuStorage::I64(values)) if device.is_cpu() => {
                Address(values[start..].as_ptr() as u64)
            }
            Storage::Cuda(storage) if device.is_cuda() => on_gpu(storage, start, &mut held)?,
            _ => bail!("a fused kernel reads f32, u32 and i64 on its device"),
        });
    }
    work(&found)
}

/// The place of the first value of a tensor without gaps.
fn start(layout: &Layout) -> Result<usize> {
    match layout.contiguous_offsets() {
        Some((start, _)) => Ok(start),
        None => bail!("a fused kernel takes tensors without gaps"),
    }
}

#[cfg(feature = "cuda")]
use gpu::reading as on_gpu;

#[cfg(not(feature = "cuda"))]
fn on_gpu(_: &CudaStorage, _: usize, _: &mut Vec<()>) -> Result<Address> {
    bail!("this build has no CUDA")
}

#[cfg(feature = "cuda")]
mod gpu {
    use candle_core::cuda_backend::cudarc::driver::{
        CudaSlice, DevicePtrMut, DeviceRepr, LaunchConfig, PushKernelArg, SyncOnDrop,
    };
    use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
    use candle_core::{CudaDevice, CudaStorage, Result, bail};

    use super::{Address, Grid};

    /// What the build made of `kernels/fused.cu`.
    const PTX: &str = include_str!(concat!(env!("OUT_DIR"), "/fused.ptx"));

    /// The arguments of a kernel as one value.
    #[repr(transparent)]
    struct ByValue<A>(A);

    // SAFETY: a copy of its bytes is what a kernel takes; what they mean is the caller's promise.
    unsafe impl<A: Copy> DeviceRepr for ByValue<A> {}

    /// # Safety
    ///
    /// As of [`launch`](super::launch).
    pub unsafe fn run<A: Copy>(
        name: &str,
        device: &CudaDevice,
        grid: Grid,
        arguments: A,
    ) -> Result<()> {
        let kernel = device.get_or_load_custom_func(name, "irepair_fused", PTX)?;
        let config = LaunchConfig {
            grid_dim: (super::super::size(grid.blocks)?, 1, 1),
            block_dim: (grid.threads, 1, 1),
            shared_mem_bytes: 0,
        };
        let arguments = ByValue(arguments);
        let mut launch = kernel.builder();
        launch.arg(&arguments);
        // SAFETY: the caller's promise.
        unsafe { launch.launch(config) }.w()?;
        Ok(())
    }

    /// Does `work` with the address of a value that it may write.
    pub fn writing(
        storage: &mut CudaStorage,
        start: usize,
        work: impl FnOnce(Address) -> Result<()>,
    ) -> Result<()> {
        let stream = storage.device.cuda_stream();
        match &mut storage.slice {
            CudaStorageSlice::F32(values) => {
                let (begin, _until_launched) = values.device_ptr_mut(&stream);
                work(Address(begin).after(start))
            }
            CudaStorageSlice::F64(values) => {
                let (begin, _until_launched) = values.device_ptr_mut(&stream);
                work(Address(begin).after(2 * start))
            }
            _ => bail!("a fused kernel writes f32 and f64"),
        }
    }
    /// The address of a value that is only read, until `held` is let go.
    pub fn reading<'a>(
        storage: &'a CudaStorage,
        start: usize,
        held: &mut Vec<SyncOnDrop<'a>>,
    ) -> Result<Address> {
        fn begin<'a, T>(values: &'a CudaSlice<T>, held: &mut Vec<SyncOnDrop<'a>>) -> Address {
            let (begin, until_launched) = values.as_view().view_ptr(values.stream());
            held.push(until_launched);
            Address(begin)
        }
        Ok(match &storage.slice {
            CudaStorageSlice::F32(values) => begin(values, held).after(start),
            CudaStorageSlice::U32(values) => begin(values, held).after(start),
            CudaStorageSlice::I64(values) => begin(values, held).after(2 * start),
            _ => bail!("a fused kernel reads f32, u32 and i64"),
        })
    }
}
