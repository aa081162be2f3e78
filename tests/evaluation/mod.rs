//! What is measured: figures of an evaluation, and the scorers that it asks.

mod classifier;
mod denominators;
mod figures;
mod moderation;
mod perspective;
mod special_tokens;
