//! What the command line says: help, plans, errors that name thing and remedy, and exit codes.

mod coming_from;
mod doctor;
mod help;
mod plans;
mod settings;
mod side_by_side;
mod tokens;
