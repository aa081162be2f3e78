//! An *interrupt* is a Ctrl-C or SIGTERM. The first one asks the program to save and stop; the
//! second one ends it at once.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use crate::say;

static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on the first signal only sets [`asked`], and the second one exits with 130.
pub fn listen() -> Result<()> {
    ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::SeqCst) {
            std::process::exit(130);
        }
        say!("\nstopping after this step (again to stop at once) …");
    })
    .context("can't handle Ctrl-C")
}

/// Whether the user has asked to stop.
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}
