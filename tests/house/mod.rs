//! The house is in order: modules use only what stands before them, files and lines are short, and
//! every link of the documents leads somewhere.

mod arrows;
mod findings;
mod links;
mod proofs;
mod source;
mod supply;
