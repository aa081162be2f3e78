//! The one integration-test binary: candle is linked once. A group is a folder, named after what
//! its tests protect.

mod evaluation;
mod exact;
mod house;
mod inputs;
mod outputs;
mod parity;
mod repair;
mod safety;
mod support;
mod words;
