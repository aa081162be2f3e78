//! Runs kernels on the CPU, for tests: built by the system's C compiler with a stand-in for a block
//! of threads (`kernels/stand_in.h`).

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{LazyLock, Mutex, PoisonError};

use candle_core::{Device, Result, Tensor, bail};

/// A library that stays open.
struct Library(usize);

static LIBRARY: LazyLock<std::result::Result<Library, String>> = LazyLock::new(open);
/// The stand-in is one block: its launches take turns.
static TURN: Mutex<()> = Mutex::new(());

thread_local! {
    /// Whether the composed layers of this thread take fused kernels.
    static ON: Cell<bool> = const { Cell::new(false) };
    /// Whether threads and blocks run in the other order.
    static BACKWARDS: Cell<bool> = const { Cell::new(false) };
    /// What this thread has launched.
    static LAUNCHED: RefCell<BTreeSet<&'static str>> = const { RefCell::new(BTreeSet::new()) };
}

fn sources() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/model/fused/kernels")
}

fn open() -> std::result::Result<Library, String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let library = folder.path().join("kernels.so");
    let given = std::env::var("CC").ok();
    let mut failed = String::new();
    for compiler in given.as_deref().into_iter().chain(["cc", "gcc", "clang"]) {
        let mut command = Command::new(compiler);
        command.args(["-x", "c", "-std=gnu11", "-O1", "-fPIC", "-shared"]);
        command.args(["-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations", "-o"]);
        command.arg(&library).arg(sources().join("fused.cu")).arg("-lm");
        match command.output() {
            Ok(output) if output.status.success() => return load(&library),
            Ok(output) => failed += &String::from_utf8_lossy(&output.stderr),
            Err(e) => failed += &format!("{compiler}: {e}\n"),
        }
    }
    Err(format!("no C compiler builds the kernels (CC says which one to take):\n{failed}"))
}

fn load(path: &std::path::Path) -> std::result::Result<Library, String> {
    let path = CString::new(path.to_str().unwrap_or_default()).map_err(|e| e.to_string())?;
    // SAFETY: the library is our own, and nothing runs when it is opened.
    let opened = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if !opened.is_null() {
        return Ok(Library(opened as usize));
    }
    // SAFETY: the text lives until the next call of this thread.
    let why = unsafe { CStr::from_ptr(libc::dlerror()) };
    Err(format!("the kernels can't be opened: {}", why.to_string_lossy()))
}

impl Library {
    fn symbol(&self, name: &str) -> Result<*mut c_void> {
        let Ok(wanted) = CString::new(name) else { bail!("{name}: no name of a kernel") };
        // SAFETY: the library is open.
        let found = unsafe { libc::dlsym(self.0 as *mut c_void, wanted.as_ptr()) };
        if found.is_null() {
            bail!("no kernel {name}");
        }
        Ok(found)
    }
}

/// Runs a kernel with so many blocks of threads, as a GPU would.
///
/// # Safety
///
/// `A` is laid out as the kernel's struct, and with these arguments and blocks the kernel stays
/// within what their addresses belong to.
pub unsafe fn run<A: Copy>(
    name: &'static str,
    blocks: usize,
    threads: u32,
    arguments: A,
) -> Result<()> {
    type Size = unsafe extern "C" fn() -> u32;
    type Kernel = unsafe extern "C" fn(*const c_void, u32, u32, i32) -> i32;
    let library = LIBRARY.as_ref().map_err(|why| candle_core::Error::msg(why).bt())?;
    // SAFETY: the header declares these functions for each kernel.
    let (kernel, size) = unsafe {
        let size = library.symbol(&format!("{name}_size"))?;
        (
            std::mem::transmute::<*mut c_void, Kernel>(library.symbol(name)?),
            std::mem::transmute::<*mut c_void, Size>(size)(),
        )
    };
    if size as usize != size_of::<A>() {
        bail!("{name}: {size} bytes of arguments, {} in Rust", size_of::<A>());
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    LAUNCHED.with_borrow_mut(|launched| launched.insert(name));
    let given = std::ptr::from_ref(&arguments).cast();
    let blocks = super::size(blocks)?;
    // SAFETY: the caller's promise; the stand-in is ours alone as long as it is our turn.
    match unsafe { kernel(given, blocks, threads, i32::from(BACKWARDS.get())) } {
        0 => Ok(()),
        1 => bail!("{name}: no memory for a block of threads"),
        2 => bail!("{name}: a block of {threads} threads"),
        3 => bail!("{name}: some threads of a block ended, and others wait for them"),
        other => bail!("{name}: {other}"),
    }
}

/// Whether the composed layers of this thread take fused kernels on the CPU.
pub fn is_on(device: &Device) -> bool {
    device.is_cpu() && ON.get()
}

/// Does `work` with fused kernels in place of the composed layers. Fails if it launches none.
pub fn fused<R>(work: impl FnOnce() -> R) -> R {
    LAUNCHED.take();
    ON.set(true);
    let done = work();
    ON.set(false);
    assert!(!LAUNCHED.take().is_empty(), "no fused kernel was launched");
    done
}

/// What `work` makes, after it has made the same bits with threads and blocks in both orders.
#[track_caller]
pub fn both_ways(work: impl Fn() -> Result<Vec<Tensor>>) -> Vec<Tensor> {
    let forwards = work().expect("launched");
    BACKWARDS.set(true);
    let backwards = work().expect("launched");
    BACKWARDS.set(false);
    for (forwards, backwards) in forwards.iter().zip(&backwards) {
        let [a, b] = [forwards, backwards].map(bits);
        assert!(a == b, "the order of threads and blocks decides the result");
    }
    forwards
}

fn bits(tensor: &Tensor) -> Vec<u64> {
    // An f32 loses nothing in f64.
    let wide = tensor.to_dtype(candle_core::DType::F64).and_then(|t| t.flatten_all());
    wide.and_then(|t| t.to_vec1::<f64>()).expect("values").into_iter().map(f64::to_bits).collect()
}

/// The names of the kernels of a source.
fn kernels(source: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(sources().join(source)).expect(source);
    let begins = text.lines().filter_map(|line| line.strip_prefix("KERNEL("));
    begins.filter_map(|rest| rest.split(',').next().map(str::to_owned)).collect()
}

/// The proof of a source's kernels. Fails if one of them was never launched in it.
pub fn proves(source: &str, proof: impl FnOnce()) {
    LAUNCHED.take();
    proof();
    let launched = LAUNCHED.take();
    let left: Vec<_> =
        kernels(source).into_iter().filter(|name| !launched.contains(&**name)).collect();
    assert!(left.is_empty(), "{source}: no proof of {left:?}");
}

/// Values between −2 and 2 that look like none in particular, by the seed.
pub fn some(shape: &[usize], seed: u64) -> Tensor {
    let mut stream =
        crate::base::random::Stream::new(seed, crate::base::random::Purpose::Bench, 0, 0);
    let count = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|_| 4.0 * stream.unit() as f32 - 2.0).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).expect("tensor")
}

/// Two tensors differ by at most `share` of the largest value.
#[track_caller]
pub fn close(what: &str, found: &Tensor, wanted: &Tensor, share: f64) {
    assert_eq!(found.dims(), wanted.dims(), "{what}");
    let flat = |t: &Tensor| {
        let wide = t.to_dtype(candle_core::DType::F64).and_then(|t| t.flatten_all());
        wide.and_then(|t| t.to_vec1::<f64>()).expect("values")
    };
    let (found, wanted) = (flat(found), flat(wanted));
    let most = wanted.iter().fold(1e-3, |most: f64, x| most.max(x.abs()));
    for (index, (found, wanted)) in found.iter().zip(&wanted).enumerate() {
        let apart = (found - wanted).abs();
        assert!(apart <= share * most, "{what}: value {index} is {found}, expected {wanted}");
    }
}

/// Every source is built, and a test of its own proves it.
#[test]
fn every_source_has_its_proof() {
    let all = std::fs::read_to_string(sources().join("fused.cu")).expect("fused.cu");
    let mut count = 0;
    for entry in std::fs::read_dir(sources()).expect("sources") {
        let name = entry.expect("entry").file_name().into_string().expect("utf-8");
        let Some(stem) = name.strip_suffix(".cu").filter(|stem| *stem != "fused") else { continue };
        assert!(all.contains(&format!("#include \"{name}\"")), "{name} is not in fused.cu");
        assert!(!kernels(&name).is_empty(), "{name} has no kernel");
        let beside = sources().with_file_name(format!("{stem}.rs"));
        let text = std::fs::read_to_string(&beside).expect("the file beside it");
        assert!(text.contains(&format!("proves(\"{name}\"")), "no test proves {name}");
        count += 1;
    }
    assert!(count > 0, "no sources");
}
