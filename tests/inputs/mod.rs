//! What is read: models, configurations, data, conversations, the hub. What can't be used is
//! refused with file, thing and remedy.

mod broken;
mod configurations;
mod conversations;
mod data;
mod folders;
mod fuzzed;
mod hostile;
mod hostile_hub;
mod hub;
mod hub_data;
mod models;
mod rows;
mod wrapped;
#[cfg(unix)]
mod not_files;
