//! The numbers are those of programs that we did not write: transformers, the reference
//! (`scripts/irepair_ref.py`), torch, and candle's own operations. The scripts that made the golden
//! numbers are in `tests/README.md`.

mod boundary;
mod generation;
mod kernels;
mod neurons;
mod optimizers;
mod reference;
mod steps;
mod tokenizers;
