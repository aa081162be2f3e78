//! An *error* of a kind that a script can act on: it carries the exit code that the contract gives.
//!
//! All others are a plain [`anyhow::Error`], and the program exits with 1.

use std::fmt;

use super::plain::shortened;

/// An error with an exit code of its own. The text is the message.
#[derive(Debug)]
pub enum Error {
    /// 2: the command line contradicts itself.
    Usage(String),
    /// 3: the model, the data or the settings can't be used.
    Input(String),
    /// 4: a check failed: nothing changed, something else changed, a guard tripped.
    Check(String),
    /// 5: the network failed, or a file is not in the cache while offline.
    Hub(String),
    /// 130: the user interrupted the run; the state is saved.
    Interrupted(String),
    /// 141, as a shell calls the end by SIGPIPE: nobody reads the result any more. Nothing is said
    /// of it, because the reader wanted no more (`irepair guide | head -1`).
    Unread,
}

impl Error {
    /// The exit code of this kind of error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::Input(_) => 3,
            Error::Check(_) => 4,
            Error::Hub(_) => 5,
            Error::Interrupted(_) => 130,
            Error::Unread => 141,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::Usage(m)
            | Error::Input(m)
            | Error::Check(m)
            | Error::Hub(m)
            | Error::Interrupted(m) => m,
            Error::Unread => "nobody reads stdout any more",
        })
    }
}

impl std::error::Error for Error {}

/// The exit code of an error: that of the first [`Error`] in its chain, else 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(|e| e.downcast_ref::<Error>()).map_or(1, Error::exit_code)
}

/// The known name that is most like this one, if one is like it.
pub fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    // A name that is longer than any known one is like none of them.
    let lower = shortened(name, 100).to_lowercase();
    known
        .iter()
        .map(|k| (strsim::jaro_winkler(&lower, &k.to_lowercase()), *k))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, nearest)| nearest)
}

/// The message "unknown …" with the nearest known name, and all known names.
pub fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    let (near, name) = (nearest(name, known), shortened(name, 100));
    let known = known.join(", ");
    match near {
        Some(near) => format!("unknown {what} {name:?}; did you mean {near:?}? (have: {known})"),
        None => format!("unknown {what} {name:?} (have: {known})"),
    }
}

/// Returns early with [`Error::Input`]: bad model, data or settings.
#[macro_export]
macro_rules! bail_input {
    ($($arg:tt)*) => { return Err($crate::base::error::Error::Input(format!($($arg)*)).into()) };
}
