//! An *interrupt* is a Ctrl-C or SIGTERM. The first one asks the program to save and stop; the
//! second one ends it at once.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Lets `irepair … | head` end quietly when `head` ends. Without this, Rust panics at the next line
/// that is printed.
pub fn end_with_the_pipe() {
    #[cfg(unix)]
    // SAFETY: this only sets the default action of a signal, before any thread exists.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// From now on the first signal only sets [`asked`], and the second one exits with 130.
pub fn listen() -> Result<()> {
    ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("\nstopping after this step (again to stop at once) …");
    })
    .context("can't handle Ctrl-C")
}

/// Whether the user has asked to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
