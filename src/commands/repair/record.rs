//! The record of a repair, put together in one place for both families.

use std::time::Instant;

use anyhow::Result;

use super::done::Done;
use super::job::{Job, Kept};
use super::measure::Measured;
use super::output::Written;
use super::{Order, headline, rows};
use crate::eval::verdict::Verdict;
use crate::model::device;
use crate::report::{FORMAT_VERSION, RunRecord};
use crate::train::log::count_blocks;

/// A repair whose output is written.
pub struct Ended<'a> {
    pub done: &'a Done,
    pub before: Measured,
    pub after: Measured,
    pub written: Written,
    pub kept: Kept,
    pub begun: Instant,
    pub run_id: String,
}

impl Ended<'_> {
    pub fn record(self, order: &Order, job: &dyn Job) -> Result<RunRecord> {
        let Order { prepared, loaded, .. } = order;
        let Self { done, before, after, written, kept, begun, run_id } = self;
        let checkpoint = loaded.checkpoint();
        let lengths = rows::lengths(prepared, loaded)?;
        let headline = headline::headline(order, job, &before, &after, &kept)?;
        let verdict = Verdict::of(&headline.figures, &headline.continuations, &headline.limits);
        let in_tensors = written.changed.iter().map(|change| change.values).sum();
        Ok(RunRecord {
            format_version: FORMAT_VERSION,
            irepair: env!("CARGO_PKG_VERSION").into(),
            run_id,
            model: match checkpoint.revision {
                Some(_) => checkpoint.name.clone(),
                None => prepared.model.clone(),
            },
            base_revision: checkpoint.revision.clone(),
            base_sha256: checkpoint.hashes()?.clone(),
            settings: prepared.settings.clone(),
            resolved: prepared.resolved(lengths, job.held_back())?,
            seed: prepared.seed,
            data: job.data(),
            scorer: job.scorer(),
            verdict,
            before: before.figures,
            after: after.figures,
            headline: Some(headline),
            steps: done.steps.len(),
            step_seconds: done.cost.seconds,
            tokens: done.cost.tokens,
            operations: done.cost.operations,
            kept_step: done.kept_step,
            stopped: kept.stopped.unwrap_or_else(|| done.stopped.clone()),
            sliced: count_blocks(&done.steps),
            changed_settings: done.changed_settings.clone(),
            edits: kept.edits,
            changed_parameters: kept.changed_parameters.unwrap_or(in_tensors),
            changed: written.changed,
            parameters: loaded.model.parameters(),
            seconds: begun.elapsed().as_secs_f64(),
            peak_rss_mib: device::peak_rss_mib(),
            threads: rayon::current_num_threads(),
            device: loaded.device_name(),
            dtype: loaded.precision,
        })
    }
}
