//! A comparison as independent *tasks*, for job arrays: `--plan` writes down what there is to do,
//! `--task I` does a part of it, and `--merge` puts together what all of them have done. Task 0
//! measures the base; every other task makes one run and measures it.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::json;

use super::evaluation::Evaluations;
use super::make;
use super::part::{State, forget, remember};
use super::plan::ComparisonPlan;
use super::planned::PlannedRun;
use crate::bail_input;
use crate::base::print;
use crate::base::shell;
use crate::commands::child::Countdown;
use crate::report::comparison::{MethodRow, MethodRun};

/// Says what the tasks are.
pub fn tell(plan: &ComparisonPlan, json: bool) -> Result<()> {
    let titles: Vec<String> = titles(plan).collect();
    let states: Vec<State> = (0..titles.len()).map(|task| State::of(&plan.dir, task)).collect();
    if json {
        return print::json(&json!({
            "out": plan.dir, "tasks": titles.len(), "titles": titles, "states": states,
        }));
    }
    let mut text = String::new();
    for (index, (title, state)) in titles.iter().zip(states).enumerate() {
        let state = match state {
            State::Open => "",
            State::Failed => " (failed)",
            State::Done => " (done)",
        };
        let _ = writeln!(text, "task {index}: {title}{state}");
    }
    let last = titles.len() - 1;
    let _ = writeln!(
        text,
        "{} tasks are planned in {}\n\
         next: the same command with --task 0 to --task {last} in place of --plan, in any order \
         and on any machine that sees the folder; then with --merge",
        titles.len(),
        shell::path(&plan.dir)
    );
    print::text(text)
}

fn titles(plan: &ComparisonPlan) -> impl Iterator<Item = String> {
    let runs = plan.runs.iter().map(PlannedRun::title);
    std::iter::once("the base".to_owned()).chain(runs)
}

/// Errors (bad input) if tasks are not done, before a merge looks for what they leave.
pub fn all_done(plan: &ComparisonPlan) -> Result<()> {
    let titles: Vec<String> = titles(plan).collect();
    let open: Vec<usize> =
        (0..titles.len()).filter(|task| State::of(&plan.dir, *task) == State::Open).collect();
    let Some(first) = open.first() else { return Ok(()) };
    let numbers: Vec<String> = open.iter().map(usize::to_string).collect();
    bail_input!(
        "{}: {} of {} tasks were not done, or did not end: {}; give each again with --task N \
         (--task {first} is {})",
        plan.dir.display(),
        open.len(),
        titles.len(),
        numbers.join(", "),
        titles[*first]
    )
}

/// Does one task. What it has done before is left as it is; a run or an evaluation that was ended
/// goes on. Errors (bad input) if there is no such task; (a failure) if its run or evaluation
/// failed, which the merge is told, too.
pub fn run(plan: &ComparisonPlan, index: usize, quiet: bool) -> Result<()> {
    let tasks = plan.runs.len() + 1;
    if index >= tasks {
        bail_input!("--task {index}: this comparison has the tasks 0 to {}", tasks - 1);
    }
    State::Open.set(&plan.dir, index)?;
    let why = work(plan, index, quiet)?;
    let state = if why.is_some() { State::Failed } else { State::Done };
    state.set(&plan.dir, index)?;
    why.map_or(Ok(()), |why| Err(anyhow::anyhow!("{why}; the merge will say so")))
}

/// What a task does. Gives why something of it failed, if it did.
fn work(plan: &ComparisonPlan, index: usize, quiet: bool) -> Result<Option<String>> {
    let evaluations = Evaluations { plan, dir: &plan.dir, quiet };
    let Some(planned) = index.checked_sub(1).and_then(|at| plan.runs.get(at)) else {
        evaluations.finals(&mut [MethodRow::vanilla()])?;
        forget(&plan.dir, "sensitivity")?;
        let mut gaps = Vec::new();
        super::sensitivity(plan, quiet, &mut gaps)?;
        return Ok(gaps.into_iter().next());
    };
    forget(&plan.dir, &planned.file_name())?;
    let countdown = Countdown::of(1, 1);
    let run = match make(plan, planned, &countdown, quiet)? {
        Ok(record) => MethodRun::finished(planned.seed, &planned.dir(&plan.dir), &record),
        Err(why) => {
            remember(&plan.dir, &planned.file_name(), &why)?;
            return Ok(Some(why));
        }
    };
    let (name, method) = (planned.name.clone(), planned.method.clone());
    let gaps = evaluations.of_one(MethodRow { name, method, runs: vec![run] })?;
    Ok(gaps.into_iter().next())
}
