//! irepair repairs data-driven errors inside a language model's weights and touches as little else as possible.
//!
//! The error is shown by *pairs*: a prompt with a chosen and a rejected response. For every batch of pairs the
//! sensitivity of each transformer block to the rejected responses is measured (the L2 norm of the gradient of their
//! NLL), a *slice* of the model is taken (the most sensitive block), and one optimizer step is made on that slice alone:
//! towards the chosen responses, held by a KL term to what the model was on normal text (Imtiaz et al., *IRepair*,
//! FSE 2025).
//!
//! The modules stand in the order of the data flow, and a module uses only what stands to its left:
//!
//! **[data] → [tokens] → [model] → [sensitivity] → [slice](mod@slice) → [methods] (the step) → [checkpoint] → [eval] → [report]**
//!
//! [taps] read inside the model and [algebra] solves what a few neurons are asked for; [weights] and [loss] are what the model and the step are made of; [train] is the loop, and [state] what it goes on from; [commands] joins all of it.
//!
//! Letters used in every shape comment: `N` tokens of a packed batch (the rows of all sequences one after another,
//! nothing padded), `T` tokens of one sequence, `B` sequences, `C` channels, `H` heads, `D` channels of a head,
//! `V` vocabulary, `L` blocks, `n` counted positions. Every loss is in nats.

pub mod algebra;
pub mod calibration;
pub mod chat;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod config;
pub mod cost;
pub mod data;
pub mod demo;
pub mod device;
pub mod environment;
pub mod eval;
pub mod fault;
pub mod generate;
pub mod hub;
pub mod loss;
pub mod memory;
pub mod methods;
pub mod model;
pub mod normal;
pub mod optim;
pub mod patch;
pub mod profile;
pub mod random;
pub mod report;
pub mod scorers;
pub mod sensitivity;
pub mod slice;
pub mod state;
pub mod stop;
pub mod taps;
pub mod tokens;
pub mod train;
pub mod weights;

/// Natural-log units of loss and divergence.
pub type Nats = f64;
