//! A *comparison* holds runs of one repair by several methods beside each other: its record
//! `compare.json`, and the tables and texts that are made of it.

mod record;
mod short;
mod tables;
mod text;

pub use record::{
    Asked, BaseRecord, BlockRecord, ComparedFigure, Comparison, FinishedRun, MethodRow, MethodRun,
    RECORD, SensitivityRecord, VANILLA,
};
pub use short::TERMS;
