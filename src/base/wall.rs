//! A *wall* stands around code that is not ours (Parquet, tokenizers, chat templates) while it
//! works on files that are not ours either. What it can't do becomes an error that names the file:
//! a panic, too much memory, values nested so deep that the stack ends, work without an end.
//!
//! A panic is caught. After the other three nothing can go on, so the program says the error and
//! ends with the exit code of bad input. Memory is counted by [`Counting`], the allocator of the
//! binary.

use std::alloc::{GlobalAlloc, Layout, System};
use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, Once, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::error::Error;
use super::memory;
use super::plain::{plain_line, shortened};

/// The exit code of [`Error::Input`].
const BAD_INPUT: i32 = 3;
/// The exit code of a failure while running.
const FAILED: i32 = 1;
/// The longest that code behind a wall may work on one thing.
const PATIENCE: Duration = Duration::from_secs(60);
/// What code behind a wall may take beside what grows with its input.
const ALWAYS: u64 = 256 << 20;

/// What is said of a file whose reader takes too much.
const TOO_MUCH: &str = "it takes more memory than its size allows for, or than there is; \
                        it is broken, or made to fill the memory";
const TOO_DEEP: &str = "it is nested too deep to be read";
const NO_END: &str = "working on it takes longer than a minute; it is broken, or made to";

thread_local! {
    /// The bytes that this thread may still take; `i64::MAX` where no wall stands.
    static LEFT: Cell<i64> = const { Cell::new(i64::MAX) };
    /// The file that is read behind the wall: its name's bytes, and their number.
    static FILE: Cell<([u8; 256], usize)> = const { Cell::new(([0; 256], 0)) };
}

/// The allocator of the binary: the system's, which counts what is taken behind a wall.
pub struct Counting;

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: as the caller promises.
        got(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: as the caller promises.
        got(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        take(size);
        give(layout.size());
        // SAFETY: as the caller promises.
        got(unsafe { System.realloc(old, layout, size) })
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        give(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(old, layout) }
    }
}

fn stands() -> bool {
    LEFT.get() != i64::MAX
}

fn take(bytes: usize) {
    if stands() {
        let left = LEFT.get().saturating_sub_unsigned(bytes as u64);
        if left < 0 {
            end(TOO_MUCH);
        }
        LEFT.set(left);
    }
}

fn give(bytes: usize) {
    if stands() {
        LEFT.set(LEFT.get().saturating_add_unsigned(bytes as u64).min(i64::MAX - 1));
    }
}

/// Memory that the system gave, or the end if it gave none.
fn got(memory: *mut u8) -> *mut u8 {
    if memory.is_null() {
        if stands() {
            end(TOO_MUCH);
        }
        raw_write(
            b"error: the system gives no more memory; close other programs, or do less at a \
                    time\n",
        );
        raw_exit(FAILED);
    }
    memory
}

/// Says why the file of this thread can't be read, and ends the process. Called where nothing may
/// be allocated or locked.
fn end(why: &str) -> ! {
    let (name, length) = FILE.get();
    for part in [b"error: ", &name[..length], b": ", why.as_bytes(), b"\n"] {
        raw_write(part);
    }
    raw_exit(BAD_INPUT)
}

#[cfg(unix)]
fn raw_write(bytes: &[u8]) {
    // SAFETY: the pointer and the length are those of a slice. If it can't be written, nobody is
    // there to read it.
    unsafe { libc::write(2, bytes.as_ptr().cast(), bytes.len()) };
}

#[cfg(unix)]
fn raw_exit(code: i32) -> ! {
    // SAFETY: ends the process without running anything else.
    unsafe { libc::_exit(code) }
}

#[cfg(not(unix))]
fn raw_write(bytes: &[u8]) {
    use std::io::Write;
    LEFT.set(i64::MAX);
    std::io::stderr().write_all(bytes).ok();
}

#[cfg(not(unix))]
fn raw_exit(code: i32) -> ! {
    std::process::exit(code)
}

/// The end of the stack behind a wall is told. Elsewhere the signal is left to who had it before.
#[cfg(unix)]
mod stack {
    use std::ptr::null_mut;
    use std::sync::OnceLock;

    const SIGNALS: [libc::c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];
    static BEFORE: OnceLock<[libc::sigaction; 2]> = OnceLock::new();

    extern "C" fn ended(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
        if super::stands() {
            super::end(super::TOO_DEEP);
        }
        let before = BEFORE.get().and_then(|all| all.get(usize::from(signal == libc::SIGBUS)));
        // SAFETY: this puts back a handler that was there. The instruction is tried again, and
        // signals again.
        unsafe {
            match before {
                Some(before) => libc::sigaction(signal, before, null_mut()),
                None => libc::_exit(super::BAD_INPUT),
            };
        }
    }

    /// From now on. Rust gives every thread a second stack for such handlers.
    pub fn listen() {
        BEFORE.get_or_init(|| {
            SIGNALS.map(|signal| {
                // SAFETY: the structs are plain numbers, and the handler only does what is allowed
                // in one.
                unsafe {
                    let mut before: libc::sigaction = std::mem::zeroed();
                    let mut own: libc::sigaction = std::mem::zeroed();
                    own.sa_sigaction = ended as *const () as usize;
                    own.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                    libc::sigaction(signal, &own, &mut before);
                    before
                }
            })
        });
    }
}

/// What is under way behind walls: until when it must be done, and its file.
static WORKS: Mutex<BTreeMap<u64, (Instant, String)>> = Mutex::new(BTreeMap::new());

/// Ends the process when something behind a wall takes too long.
fn watch() {
    loop {
        std::thread::sleep(PATIENCE / 60);
        let works = WORKS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, file)) = works.values().find(|(until, _)| *until < Instant::now()) {
            super::print::say(format_args!("error: {file}: {NO_END}"));
            std::process::exit(BAD_INPUT);
        }
    }
}

/// No word of a panic behind a wall: it becomes an error. Others are told as before.
fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !stands() {
                before(panic);
            }
        }));
        #[cfg(unix)]
        stack::listen();
    });
}

/// How long something behind a wall may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    /// A minute.
    Limited,
    /// As long as its file is large.
    Any,
}

/// What a reader may take for so many bytes of input, of which each may take up to `each`.
pub fn allowance(input: u64, each: u64) -> u64 {
    static MOST: OnceLock<u64> = OnceLock::new();
    let most = *MOST.get_or_init(|| {
        let set = memory::limit().ok().flatten().map(|mib| mib << 20);
        set.or_else(|| memory::available().map(|bytes| bytes / 4 * 3)).unwrap_or(u64::MAX)
    });
    ALWAYS.saturating_add(input.saturating_mul(each)).min(most.max(ALWAYS / 4))
}

/// What was under way before, put back when this ends in any way.
struct Standing {
    left: i64,
    file: ([u8; 256], usize),
    work: Option<u64>,
}

impl Drop for Standing {
    fn drop(&mut self) {
        LEFT.set(self.left);
        FILE.set(self.file);
        if let Some(work) = self.work {
            WORKS.lock().unwrap_or_else(PoisonError::into_inner).remove(&work);
        }
    }
}

impl Standing {
    fn new(file: &str, bytes: u64, time: Time) -> Self {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let name = plain_line(file);
        let work = (time == Time::Limited).then(|| {
            static WATCHER: Once = Once::new();
            WATCHER.call_once(|| drop(std::thread::spawn(watch)));
            let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let work = (Instant::now() + PATIENCE, name.clone().into_owned());
            WORKS.lock().unwrap_or_else(PoisonError::into_inner).insert(number, work);
            number
        });
        let standing = Self { left: LEFT.get(), file: FILE.get(), work };
        let mut short = [0; 256];
        let length = name.len().min(short.len());
        short[..length].copy_from_slice(&name.as_bytes()[..length]);
        FILE.set((short, length));
        LEFT.set(standing.left.min(i64::try_from(bytes).unwrap_or(i64::MAX - 1)));
        standing
    }
}

/// Does work on `file` behind a wall. The work may take so many bytes of memory. Errors (bad
/// input) if it panics.
pub fn around<T>(file: &str, bytes: u64, time: Time, work: impl FnOnce() -> T) -> Result<T> {
    prepare();
    let standing = Standing::new(file, bytes, time);
    let done = catch_unwind(AssertUnwindSafe(work));
    drop(standing);
    Ok(done.map_err(|panic| {
        let why = reason(panic.as_ref());
        Error::Input(format!("{file}: its reader gives up on it: {why}; it is broken"))
    })?)
}

/// Runs the whole program: a panic that no wall caught is a bug, and is told as an error.
pub fn whole(program: impl FnOnce() -> Result<()>) -> Result<()> {
    static PLACE: Mutex<String> = Mutex::new(String::new());
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        *PLACE.lock().unwrap_or_else(PoisonError::into_inner) = place;
    }));
    catch_unwind(AssertUnwindSafe(program)).unwrap_or_else(|panic| {
        let place = PLACE.lock().unwrap_or_else(PoisonError::into_inner);
        let why = reason(panic.as_ref());
        Err(anyhow::anyhow!("a bug in irepair: {why} ({place}); please report it"))
    })
}

/// The words of a panic, in one line.
pub fn reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
    shortened(text.lines().next().unwrap_or_default(), 200).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_that_names_the_file() {
        let error = around("x.parquet", 1 << 20, Time::Any, || [0u8; 3][std::hint::black_box(4)])
            .expect_err("panics")
            .to_string();
        assert!(error.starts_with("x.parquet: its reader gives up on it: index out"), "{error}");
        assert!(!stands());
        assert_eq!(around("x", 1 << 20, Time::Limited, || 7).expect("works"), 7);
        assert!(WORKS.lock().expect("works").is_empty());
    }

    #[test]
    fn an_allowance_grows_with_the_file() {
        assert!(allowance(0, 64) <= allowance(1 << 20, 64));
        assert!(allowance(u64::MAX, u64::MAX) > 0);
    }
}
