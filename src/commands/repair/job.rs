//! What a family of methods does its own way: everything else of a repair is the same for both.

use anyhow::Result;

use super::done::Done;
use super::measure::Measured;
use super::output::{Output, Written};
use super::plan::Own;
use super::time::Phase;
use crate::eval::Figures;
use crate::eval::task::Task;
use crate::model::memory::Estimate;
use crate::model::weights::Weights;
use crate::report::{DataRecord, EditsRecord};

/// A repair by one family of methods.
pub trait Job {
    /// Memory of the whole repair at its peak.
    fn memory(&self) -> Result<Estimate>;

    /// What takes less memory.
    fn advice(&self) -> &'static str;

    /// What `--dry-run` says beside the model, the method and the memory.
    fn plan(&self) -> Result<Own>;

    /// How long what is still to be done takes, part by part; timed on the model itself. Nothing
    /// where only the work can tell.
    fn phases(&self, _weights: &mut Weights) -> Result<Vec<Phase>> {
        Ok(Vec::new())
    }

    /// What comes before anything is measured: normal texts, failing rows.
    fn begin(&mut self, weights: &Weights, out: &Output) -> Result<()>;

    /// What is measured before and after.
    fn tasks(&self) -> Result<Vec<Box<dyn Task + '_>>>;

    /// The repair itself; takes the weights and gives them back repaired.
    fn repair(&mut self, weights: Weights, before: &Figures, out: &Output) -> Result<Done>;

    /// What is said where nothing changed.
    fn unchanged(&self) -> String;

    /// Leaves its own files in the output, and says what its record has of its own. Errors (a
    /// failed check) if what was written is not what it made.
    fn keep(
        &self,
        done: &Done,
        written: &Written,
        before: &Measured,
        after: &Measured,
        out: &Output,
    ) -> Result<Kept>;

    /// The rows that were read.
    fn data(&self) -> DataRecord;

    /// Which rows are measured on.
    fn measured_on(&self) -> Result<MeasuredOn>;

    /// Held-back pairs, as the record resolves `valid-size`.
    fn held_back(&self) -> usize {
        0
    }

    /// What scored the continuations.
    fn scorer(&self) -> String {
        "none".into()
    }
}

/// Which rows were measured on.
pub struct MeasuredOn {
    /// For people.
    pub rows: String,
    /// How many of the prompts stand among the pairs learned from, too.
    pub learned_from: usize,
}

/// What a family's record has of its own.
#[derive(Default)]
pub struct Kept {
    pub edits: Option<EditsRecord>,
    /// Why it stopped, where only the end tells.
    pub stopped: Option<String>,
    /// Where fewer parameters changed than the changed tensors have.
    pub changed_parameters: Option<usize>,
}
