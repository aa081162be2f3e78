//! Ctrl-C and SIGTERM: the first asks the loop to save and stop, the second ends the program at once.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

static ASKED: AtomicBool = AtomicBool::new(false);

/// `irepair … | head` ends quietly when `head` does, like any other program; Rust would panic at the next line printed.
pub fn end_with_the_pipe() {
    #[cfg(unix)]
    // SAFETY: sets a signal's default action, before any thread exists.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// From now on a signal only asks; [`asked`] tells. A second one exits with 130.
pub fn listen() -> Result<()> {
    ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        eprintln!("\nstopping after this step (again to stop at once) …");
    })
    .context("no handler for Ctrl-C")
}

/// Whether the user asked to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
