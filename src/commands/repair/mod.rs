//! `repair`: the main job, for both families of methods.

mod again;
mod beside;
mod blocks;
mod done;
mod headline;
mod job;
mod journal;
mod measure;
mod neurons;
mod normal;
mod output;
mod phases;
mod plan;
mod record;
mod rows;
mod summary;
mod time;

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use super::{Loaded, On, open};
use crate::base::error::Error;
use crate::base::interrupt;
use crate::base::print;
use crate::cli::Repair;
use crate::model::memory::Recompute;
use crate::report::RunRecord;
use crate::say;
use crate::settings::{Method, Prepared, prepare};
use job::Job;
use measure::measure;
pub use neurons::failures;
use output::Output;
use record::Ended;
pub use rows::read_data;

pub fn run(args: &Repair) -> Result<()> {
    let begun = Instant::now();
    let prepared = prepare(args.config.as_deref(), &args.words)?;
    let loaded = opened(&prepared)?;
    let order = Order { args, prepared: &prepared, loaded: &loaded };
    order.say(format!("device: {} ({})", loaded.device_name(), loaded.device_why));

    // All that can be wrong with the input is found before anything is made.
    let path = Output::path(&order)?;
    loaded.checkpoint().stays_whole(&path)?;
    let mut job = order.job()?;
    if args.dry_run {
        return order.dry_run(job.as_ref(), &path);
    }
    if let Some(run) = again::finished(&order, job.as_ref(), &path)? {
        order.say(format!("{} is finished; --overwrite makes it again", path.display()));
        order.show(&run, &path)?;
        return order.check(&run, &path);
    }
    let needed = job.memory()?;
    needed.check(&loaded.device, &loaded.advice(job.advice()))?;
    if needed.recompute && prepared.recompute == Recompute::Auto {
        order.say(
            "blocks are computed again for the backward pass: their graphs would not fit into \
             memory (--recompute)"
                .into(),
        );
    }
    let mut weights = loaded.weights()?;
    weights.set_recompute(needed.recompute);
    let out = Output::claim(&order)?;
    interrupt::listen()?;
    job.begin(&weights, &out)?;
    let quiet = args.output.quiet;
    if !(quiet || args.resume)
        && let Some(time) = time::line(&job.phases(&mut weights)?)
    {
        order.say(format!("time: {time}"));
    }
    let before = measure(job.tasks()?, &loaded, &weights, ("measuring before", quiet))
        .map_err(Output::before_the_first_step)?;
    let mut done = job.repair(weights, &before.figures, &out)?;

    // What is measured is what will be on disk.
    out.round(loaded.checkpoint(), &mut done.weights)?;
    let after = measure(job.tasks()?, &loaded, &done.weights, ("measuring after", quiet))
        .map_err(|error| out.after_the_steps(error, done.steps.len()))?;
    let written = out.write(loaded.checkpoint(), &loaded.model, &done, &job.unchanged())?;
    let kept = job.keep(&done, &written, &before, &after, &out)?;
    let ended = Ended { done: &done, before, after, written, kept, begun, run_id: out.run_id() };
    let run = ended.record(&order, job.as_ref())?;
    out.finish(&run, loaded.checkpoint())?;
    order.show(&run, &path)?;
    done.check(&path)?;
    order.check(&run, &path)
}

fn opened(prepared: &Prepared) -> Result<Loaded> {
    let on = On {
        device: &prepared.device,
        dtype: prepared.dtype,
        weights_dtype: prepared.weights_dtype,
        threads: prepared.threads,
    };
    open(&prepared.model, prepared.revision.as_deref(), &on)
}

/// What the user asked for, and the model it is asked of.
#[derive(Clone, Copy)]
struct Order<'a> {
    args: &'a Repair,
    prepared: &'a Prepared,
    loaded: &'a Loaded,
}

impl<'a> Order<'a> {
    fn say(&self, text: String) {
        if !self.args.output.quiet {
            say!("{text}");
        }
    }

    /// The work, as the method's family does it; reads the rows.
    fn job(self) -> Result<Box<dyn Job + 'a>> {
        Ok(match &self.prepared.method {
            Method::Blocks(recipe) => Box::new(blocks::Blocks::read(self, recipe)?),
            Method::Neurons(recipe) => Box::new(neurons::Neurons::read(self, recipe)?),
        })
    }

    /// Says what would be done, and how much memory and time it takes.
    fn dry_run(&self, job: &dyn Job, path: &Path) -> Result<()> {
        let mut plan =
            plan::Plan::new(self, job.plan()?, job.memory()?, path, output::in_the_way(path));
        if plan.memory.check(&self.loaded.device, &self.loaded.advice(job.advice())).is_ok() {
            let mut weights = self.loaded.weights()?;
            weights.set_recompute(plan.memory.recompute);
            plan.time = job.phases(&mut weights)?;
        }
        match self.args.output.json {
            true => print::json(&plan)?,
            false => print::text(plan.text())?,
        }
        plan.memory.check(&self.loaded.device, &self.loaded.advice(job.advice()))
    }

    /// Errors (a failed check) if the verdict is one that `--fail-on` names: the output is kept all
    /// the same.
    fn check(&self, run: &RunRecord, out: &Path) -> Result<()> {
        let Some(verdict) = &run.verdict else { return Ok(()) };
        if !self.prepared.fail_on.names(verdict.word) {
            return Ok(());
        }
        Err(Error::Check(format!(
            "{}; the output is kept in {}, and its record and card say so (--fail-on)",
            verdict.line(),
            out.display()
        ))
        .into())
    }

    fn show(&self, run: &RunRecord, out: &Path) -> Result<()> {
        match self.args.output.json {
            true => print::json(run)?,
            false => print::text(summary::summary(run, out, &self.loaded.model))?,
        }
        Ok(())
    }
}
