//! What must hold exactly, or to rounding, whatever the way: packing, finite differences, what a
//! step may change, and what is saved.

mod any_input;
mod batches;
mod boundary;
mod dtypes;
mod gradients;
mod recompute;
mod slices;
