//! The one integration-test binary: candle is linked once.

mod chat;
mod classifier;
mod cli;
mod compare;
mod eval;
mod exact;
mod golden;
mod hub;
mod kernels;
mod neuron;
mod parity;
mod repair;
mod report;
mod scorers;
mod server;
#[cfg(unix)]
mod terminal;
mod weights_dtype;
