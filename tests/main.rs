//! The one integration-test binary: candle is linked once.

mod golden;
mod parity;
