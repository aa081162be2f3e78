//! A *fault* is an error whose kind a script can act on: it carries the exit code of the contract.
//!
//! Everything else is an [`anyhow::Error`] and exits with 1.

use std::fmt;

/// Exit code and message of an error that is not just "something went wrong while running" (1).
#[derive(Debug)]
pub enum Fault {
    /// 2: the command line contradicts itself.
    Usage(String),
    /// 3: the model, the data or the settings can't be used.
    Input(String),
    /// 4: a check failed: nothing changed, something else changed, a guard tripped.
    Check(String),
    /// 5: a file is not in the cache while offline, or the network failed.
    Hub(String),
    /// 130: interrupted by the user; the state is saved.
    Interrupted(String),
}

impl Fault {
    /// The process exit code of this kind of error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Fault::Usage(_) => 2,
            Fault::Input(_) => 3,
            Fault::Check(_) => 4,
            Fault::Hub(_) => 5,
            Fault::Interrupted(_) => 130,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Fault::Usage(m) | Fault::Input(m) | Fault::Check(m) | Fault::Hub(m) | Fault::Interrupted(m)) = self;
        f.write_str(m)
    }
}

impl std::error::Error for Fault {}

/// The exit code of an error: that of the first [`Fault`] in its chain, else 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(|e| e.downcast_ref::<Fault>()).map_or(1, Fault::exit_code)
}

/// Return early with [`Fault::Input`]: bad model, data or settings.
#[macro_export]
macro_rules! bail_input {
    ($($arg:tt)*) => { return Err($crate::fault::Fault::Input(format!($($arg)*)).into()) };
}
