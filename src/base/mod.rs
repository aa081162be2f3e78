//! The ground floor: used by all, uses nothing of ours.

pub mod environment;
pub mod error;
pub mod files;
pub mod interrupt;
pub mod memory;
pub mod profile;
pub mod progress;
pub mod random;
pub mod tensors;
