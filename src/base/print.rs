//! *Printing* is done here alone, so that no stream can end a run by a panic.
//!
//! What a command prints on stdout is its result: if that can't be written, the command fails. What
//! it says on stderr is for people who may have left: if that can't be written, it goes on.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use anyhow::{Context, Result};
use serde::Serialize;

use super::error::Error;
use super::plain::{message, plain};

/// Prints text for people on stdout, without what would steer their terminal. Errors if stdout is
/// full, or if nobody reads it any more.
pub fn text(text: impl Display) -> Result<()> {
    bytes(plain(&text.to_string()).as_bytes())
}

/// Prints a value as a line of JSON on stdout. Errors as [`text`].
pub fn json(value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    bytes(&line)
}

/// Prints bytes on stdout. Errors as [`text`].
pub fn bytes(bytes: &[u8]) -> Result<()> {
    whole(std::io::stdout().lock().write_all(bytes))
}

/// What came of writing to stdout, once nothing waits in its buffer any more.
pub fn whole(written: std::io::Result<()>) -> Result<()> {
    match written.and_then(|()| std::io::stdout().flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Err(Error::Unread.into()),
        written => written.context("can't write to stdout"),
    }
}

/// Prints a line on stdout. Errors as [`text`].
pub fn line(line: impl Display) -> Result<()> {
    text(format_args!("{line}\n"))
}

/// Says a line on stderr, if somebody hears it: without what would steer a terminal, and cut if it
/// is too long to be read.
pub fn say(line: impl Display) {
    heard(format_args!("{}\n", message(&line.to_string())));
}

/// Says text on stderr as it is, if somebody hears it.
pub fn heard(text: impl Display) {
    // In one piece, so that lines of several threads don't mix.
    std::io::stderr().lock().write_all(text.to_string().as_bytes()).ok();
}

/// Prints a line on stdout, from a format.
#[macro_export]
macro_rules! print_line {
    ($($arg:tt)*) => { $crate::base::print::line(format_args!($($arg)*)) };
}

/// Says a line on stderr, from a format.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::base::print::say(format_args!($($arg)*)) };
}
