//! A repair as a user runs it does what it says, and gives the same bytes whatever the way.

mod adapters;
mod blocks;
mod neurons;
mod online;
mod patches;
mod precision;
mod trials;
mod tuning;
mod unpaired;
mod verdict;
mod weights_dtype;
