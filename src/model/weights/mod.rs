//! The *weights* are all named tensors of one model; a *view* says what one pass wants of each.
//!
//! There is one store for the patient and its frozen reference. They share every tensor until a
//! step first touches it: then the patient gets a copy and the reference keeps the original, so
//! **the reference costs the memory of the touched tensors, not of a second model**. A view costs
//! reference counts. A pass through it yields, beside the loss, a [`Harvest`]: norms or gradients
//! of the parameters that the view asked for, and nothing of the others.

mod spec;
mod store;
mod tape;
mod view;

pub use super::ledger::{Param, Want};
pub use spec::{Place, Sublayer, TensorSpec};
pub use store::{Kernels, Weights, Who};
pub use view::{Harvest, View, squared_norms};
