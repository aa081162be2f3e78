//! The ground floor: every room uses it, and it uses no other room.

pub mod claim;
pub mod environment;
pub mod error;
pub mod files;
pub mod interrupt;
pub mod json;
pub mod memory;
pub mod plain;
pub mod print;
pub mod profile;
pub mod progress;
pub mod random;
pub mod shell;
pub mod tensors;
pub mod url;
pub mod wall;
