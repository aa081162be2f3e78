//! irepair repairs data-driven errors inside a language model's weights and touches as little else
//! as possible.
//!
//! The error is shown by *pairs*: a prompt with a chosen and a rejected response. For every batch
//! of pairs the sensitivity of each transformer block to the rejected responses is measured (the L2
//! norm of the gradient of their NLL), a *slice* of the model is taken (the most sensitive block),
//! and one optimizer step is made on that slice alone: towards the chosen responses, held by a KL
//! term to what the model was on normal text (Imtiaz et al., *IRepair*, FSE 2025).
//!
//! The modules stand in the order of their arrows: a module uses only those above it, and a test
//! fails on any other.
//!
//! Letters used in every shape comment: `N` tokens of a packed batch (the rows of all sequences one
//! after another, nothing padded), `T` tokens of one sequence, `B` sequences, `C` channels, `H`
//! heads, `D` channels of a head, `V` vocabulary, `L` blocks, `n` counted positions. Every loss is
//! in nats.

// `base::print` prints, and nothing else does.
#![deny(clippy::print_stdout, clippy::print_stderr)]

// In the order of their arrows, not of the alphabet.
pub mod base;
pub mod data;
pub mod tokens;
pub mod model;
pub mod slice;
pub mod step;
pub mod checkpoint;
pub mod scorers;
pub mod eval;
pub mod train;
pub mod settings;
pub mod report;
pub mod guide;
pub mod cli;
pub mod commands;

/// Natural-log units of loss and divergence.
pub type Nats = f64;
