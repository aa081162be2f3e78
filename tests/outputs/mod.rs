//! What a command leaves for people and programs: pages, tables, pictures, curves, and words on a
//! terminal.

mod comparison;
mod damaged;
mod neurons;
#[cfg(unix)]
mod next;
mod page;
#[cfg(unix)]
mod streams;
mod tables;
mod tasks;
#[cfg(unix)]
mod terminal;
mod watching;
