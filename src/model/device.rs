//! Which device a command runs on, how many threads, and how much memory it has used.

use anyhow::Result;
use candle_core::Device;

use super::precision::Precision;
use crate::bail_input;
use crate::base::environment::variable;
use crate::base::error::Error;

/// A device and why it was taken.
pub struct Choice {
    pub device: Device,
    pub why: String,
}

/// `auto`, `cpu`, `cuda`, `cuda:N` or `metal`. A build with CUDA on a machine without a GPU says so
/// and takes the CPU, unless the GPU was asked for by name.
pub fn choose(name: &str) -> Result<Choice> {
    let cpu = |why: &str| Ok(Choice { device: Device::Cpu, why: why.into() });
    match name {
        "cpu" => cpu("asked for"),
        "auto" if cfg!(feature = "cuda") => match cuda(0) {
            Ok(device) => Ok(Choice { device, why: "first GPU".into() }),
            Err(e) => cpu(&format!("no usable GPU: {e}")),
        },
        "auto" if cfg!(feature = "metal") => match Device::new_metal(0) {
            Ok(device) => Ok(Choice { device, why: "Metal".into() }),
            Err(e) => cpu(&format!("no usable Metal device: {e}")),
        },
        "auto" => cpu("no CUDA in this build"),
        "metal" => match Device::new_metal(0) {
            Ok(device) if cfg!(feature = "metal") => Ok(Choice { device, why: "asked for".into() }),
            Ok(_) => {
                bail_input!("--device metal: this build has no Metal (build with --features metal)")
            }
            Err(e) => bail_input!("--device metal: {e}"),
        },
        _ => {
            if name.contains(',') {
                bail_input!("--device {name}: one device here (compare and tune take several)");
            }
            let Some(index) = cuda_index(name) else {
                bail_input!("--device {name}: unknown (have: auto, cpu, cuda, cuda:N, metal)");
            };
            if cfg!(not(feature = "cuda")) {
                bail_input!("--device {name}: this build has no CUDA (build with --features cuda)");
            }
            let device = cuda(index).map_err(|e| Error::Input(format!("--device {name}: {e}")))?;
            Ok(Choice { device, why: "asked for".into() })
        }
    }
}

/// The names in a list of devices, like `cuda:0,cuda:1`. Errors (bad input) if one can't be had, or
/// is given twice.
pub fn several(list: &str) -> Result<Vec<String>> {
    let names: Vec<String> = list.split(',').map(|name| name.trim().to_owned()).collect();
    for (index, name) in names.iter().enumerate() {
        if names[..index].contains(name) {
            bail_input!("--device {list}: {name} is given twice (--jobs runs several on one)");
        }
        choose(name)?;
    }
    Ok(names)
}

/// Bytes that a device other than the CPU can still give; `None` where it does not tell.
pub fn memory_left(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        use candle_core::cuda_backend::cudarc::driver::result;
        // What was just freed is kept for the next pass, and counts as taken: at most 1 GiB.
        return result::mem_get_info().ok().map(|(free, _)| free as u64);
    }
    let _ = device;
    None
}

fn cuda_index(name: &str) -> Option<usize> {
    match name.strip_prefix("cuda")? {
        "" => Some(0),
        rest => rest.strip_prefix(':')?.parse().ok(),
    }
}

/// A GPU, or why there is none, in one line. The CUDA bindings open NVIDIA's libraries themselves,
/// and panic where one is missing (the driver, cuBLAS, cuRAND).
fn cuda(index: usize) -> std::result::Result<Device, String> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let device = std::panic::catch_unwind(|| Device::new_cuda(index));
    std::panic::set_hook(hook);
    let why = match device {
        Ok(Ok(device)) => {
            keep_freed_gpu_memory(index);
            return Ok(device);
        }
        Ok(Err(e)) => e.to_string(),
        Err(panic) => match panic.downcast_ref::<String>() {
            // "Unable to dynamically load the "cuda" shared library - searched for …", followed by
            // seventeen file names.
            Some(text) => text.split(" - ").next().unwrap_or(text).to_string(),
            None => "the CUDA libraries can't be loaded".into(),
        },
    };
    // With RUST_BACKTRACE, candle's errors carry a backtrace in their text.
    Err(why.lines().next().unwrap_or_default().into())
}

/// Keeps up to 1 GiB of what a pass freed for the next one. Otherwise the driver gives it back to
/// the system whenever someone waits for a result, several times a step, and asks for it anew.
/// There is a bound because others may share the GPU: without one, ten repairs of an 8-block GPT-2
/// kept 134 GB. Where the bound can't be set, passes are slower, and that is all.
#[cfg(feature = "cuda")]
fn keep_freed_gpu_memory(index: usize) {
    use candle_core::cuda_backend::cudarc::driver::{result, sys};
    let mut kept: u64 = 1 << 30;
    // SAFETY: the device was just opened, its default pool lives as long as it does, and the
    // attribute is an u64.
    unsafe {
        let _ = result::device::get(index as i32).and_then(|device| {
            let pool = result::device::get_default_mem_pool(device)?;
            let value = std::ptr::from_mut(&mut kept).cast();
            result::mem_pool::set_attribute(
                pool,
                sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
                value,
            )
        });
    }
}

#[cfg(not(feature = "cuda"))]
fn keep_freed_gpu_memory(_: usize) {}

/// Keeps candle's own thread pool from starting. Its workers spin between the small additions of a
/// backward pass and take the cores from our kernels: without them an iteration of gpt2 takes 15 to
/// 20 % less time. Call it first in `main`, while there is one thread.
pub fn quiet_candle_pool() {
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        // SAFETY: no other thread exists yet that could read the environment.
        unsafe { std::env::set_var("CANDLE_NUM_THREADS", "1") };
    }
}

/// Keeps freed activations for the next layer instead of giving them back to the system: fresh
/// pages cost a fault each (5 % of an iteration of gpt2 at 4 × 64 tokens, a quarter at 4 × 512).
/// What is larger than 32 MiB goes back at once, since to keep it costs up to 8 % of peak memory.
/// Call it first in `main`.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: only sets numbers of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 25);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
        libc::mallopt(libc::M_TOP_PAD, 1 << 24);
    }
}

/// The precision that products run in on this device, and why it is not the one asked for. Errors
/// (bad input) on TF32 where there is no CUDA.
pub fn precision(asked: Precision, device: &Device) -> Result<(Precision, Option<&'static str>)> {
    if asked == Precision::Tf32 && !device.is_cuda() {
        bail_input!(
            "--dtype tf32: NVIDIA's GPUs alone multiply in TF32, and this device is none (have \
             here: f32, bf16)"
        );
    }
    Ok(match asked.unavailable().filter(|_| device.is_cpu()) {
        Some(why) => (Precision::F32, Some(why)),
        None => (asked, None),
    })
}

/// Sets the number of threads of all parallel work. Without a number, `RAYON_NUM_THREADS` or all
/// cores. Errors (bad input) if it is 0 or above the cores.
pub fn set_threads(threads: Option<usize>) -> Result<usize> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let asked = match (threads, variable("RAYON_NUM_THREADS")) {
        (Some(threads), _) => Some((format!("--threads {threads}"), threads)),
        (None, Some(text)) => {
            Some((format!("RAYON_NUM_THREADS={text}"), text.trim().parse().unwrap_or(0)))
        }
        (None, None) => None,
    };
    if let Some((said, threads)) = &asked
        && (*threads == 0 || *threads > cores)
    {
        bail_input!("{said}: this machine has 1 to {cores}");
    }
    let threads = asked.map_or(cores, |(_, threads)| threads);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    // The thread that walks through the model is one of the workers: otherwise each kernel would
    // wake another thread and wait for it, 20 to 50 µs a kernel. It must not be the only one: where
    // it waits for a thread that itself asks the pool (`compare`), nobody would answer. Threads of
    // tests end before the pool does, so they must not become workers.
    let pool = match std::thread::current().name() {
        Some("main") if threads > 1 => pool.use_current_thread(),
        _ => pool,
    };
    // A second call in one process (tests) finds the pool already made; its size stays.
    let _ = pool.build_global();
    Ok(rayon::current_num_threads())
}

/// Peak resident memory of this process in MiB; `None` on systems that don't tell it (Windows).
pub fn peak_rss_mib() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib / 1024)
    }
    #[cfg(not(target_os = "linux"))]
    peak_by_usage()
}

/// The same as the system's accounting has it. On Linux it is that of an ancestor that was larger,
/// so it is asked elsewhere alone.
#[cfg(all(unix, any(test, not(target_os = "linux"))))]
fn peak_by_usage() -> Option<u64> {
    let usage = crate::base::profile::usage();
    // Apple counts bytes, all others KiB.
    let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
    u64::try_from(usage.ru_maxrss).ok().map(|most| (most * unit) >> 20)
}

#[cfg(not(unix))]
fn peak_by_usage() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_by_usage_is_the_peak_of_the_kernel_or_more() {
        let peak = super::peak_rss_mib().expect("Linux tells it");
        let by_usage = super::peak_by_usage().expect("and so does every Unix");
        assert!(peak > 0 && by_usage + 1 >= peak, "{by_usage} of {peak} MiB");
    }
}
