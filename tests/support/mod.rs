//! What tests share, each thing once. No test file uses another test file.

pub mod command;
pub mod comparison;
pub mod files;
pub mod golden;
pub mod page;
pub mod process;
pub mod repaired;
pub mod scoring;
pub mod server;
pub mod tensors;
pub mod tokenizer;
