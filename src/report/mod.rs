//! A *report* is what a run leaves for people and for scripts: records, tables, the model card,
//! pictures and pages.

mod before_after;
mod changes;
pub mod compare_page;
pub mod comparison;
mod fields;
pub mod folder;
pub mod headline;
mod model_card;
pub mod neurons;
pub mod page;
pub mod pareto;
pub mod plot;
mod record;
pub mod run_page;
pub mod sheet;
pub mod table;
pub mod tuned;

pub use before_after::{before_after, not_measured};
pub use changes::{block_number, change_by_block};
pub use fields::{fields, show};
pub use headline::Headline;
pub use model_card::model_card;
pub use record::{DataRecord, EditsRecord, FORMAT_VERSION, RunRecord, Sample};
