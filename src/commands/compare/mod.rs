//! `compare` makes the same repair by several methods, evaluates all of them with the same prompts,
//! scorer and texts, and draws the tables and figures of the paper. Every repair and every
//! evaluation runs in a process of its own. So a run that fails or takes all memory leaves the
//! others alone, and the peak memory of each is measured.

mod arguments;
mod evaluation;
mod failures;
mod part;
mod plan;
mod planned;
mod scaled;
mod tasks;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::bail_input;
use crate::base::error::Error;
use crate::base::files;
use crate::base::files::write_whole;
use crate::base::interrupt;
use crate::base::print;
use crate::base::shell;
use crate::cli::Compare;
use crate::commands::child;
use crate::commands::child::{Child, Countdown, Outcome, several};
use crate::print_line;
use crate::report::compare_page;
use crate::report::comparison::{
    Comparison, FinishedRun, MethodRow, MethodRun, RECORD, SensitivityRecord,
};
use crate::report::{RunRecord, plot};
use crate::say;
use evaluation::Evaluations;
use part::Part;
use plan::ComparisonPlan;
use planned::PlannedRun;

pub fn run(args: &Compare) -> Result<()> {
    let plan = ComparisonPlan::new(args)?;
    let finished =
        args.finished.iter().map(|dir| finished(&plan, dir)).collect::<Result<Vec<_>>>()?;
    same_data(&plan, &args.finished, &finished)?;
    let names = plan.names_of(&args.finished, &finished)?;
    // Before what is there is replaced.
    plan.claim(args, || plan.runs.iter().try_for_each(|run| made_before(&plan, run).map(drop)))?;
    interrupt::listen()?;
    let quiet = args.output.quiet;
    let failures =
        plan.failures.as_ref().map(|failures| failures.write(&plan.open()?)).transpose()?;
    match plan.part {
        Part::Plan => {
            plan.remove_scratch();
            return tasks::tell(&plan, args.output.json);
        }
        Part::Task(index) => {
            let done = tasks::run(&plan, index, quiet);
            plan.remove_scratch();
            return done;
        }
        Part::Merge => tasks::all_done(&plan)?,
        Part::Whole => {}
    }
    let dir = &plan.dir;
    let mut rows: Vec<MethodRow> = vec![MethodRow::vanilla()];
    let countdown = Countdown::of(plan.runs.len(), plan.machine.at_once);
    let made =
        several(plan.machine.at_once, &plan.runs, |run| make(&plan, run, &countdown, quiet))?;
    for (planned, made) in plan.runs.iter().zip(made) {
        let run = match made {
            Ok(record) => MethodRun::finished(planned.seed, &planned.dir(dir), &record),
            Err(why) => MethodRun::failed(planned.seed, why),
        };
        add(&mut rows, &planned.name, &planned.method, run);
    }
    for ((path, record), name) in args.finished.iter().zip(finished).zip(names) {
        let run = MethodRun::finished(record.seed, path, &record);
        add(&mut rows, &name, &record.settings.method, run);
    }
    same_pairs(&rows)?;
    let evaluations = Evaluations { plan: &plan, dir, quiet };
    let (asked, mut gaps) = evaluations.finals(&mut rows)?;
    gaps.extend(evaluations.along_the_way(&asked, &mut rows)?);
    gaps.extend(evaluations.along_the_scale(&plan.scales, &mut rows)?);
    let sensitivity = sensitivity(&plan, quiet, &mut gaps)?;
    let (base, seeds) = (plan.base.clone(), plan.seeds.clone());
    let mut runs = rows[1..].iter().flat_map(|row| &row.runs);
    let nothing_made = runs.all(|run| run.made.is_none());
    let comparison = Comparison::new(base, seeds, failures, asked, rows, sensitivity)?;
    let comparison = Comparison { gaps, ..comparison };
    write(&comparison, dir)?;
    plan.remove_scratch();
    if args.output.json {
        let mut printed = serde_json::to_value(&comparison)?;
        printed["out"] = dir.display().to_string().into();
        print::json(&printed)?;
    } else {
        print::text(comparison.text())?;
        print_line!(
            "\nall of it: {}/README.md, report: irepair report {}",
            dir.display(),
            shell::path(dir)
        )?;
    }
    if nothing_made {
        anyhow::bail!("no run came to its end: the table says why");
    }
    Ok(())
}

/// Adds a run to the row with this name, or begins the row.
fn add(rows: &mut Vec<MethodRow>, name: &str, method: &str, run: MethodRun) {
    match rows.iter_mut().find(|row| row.name == name) {
        Some(row) => row.runs.push(run),
        None => rows.push(MethodRow { name: name.into(), method: method.into(), runs: vec![run] }),
    }
}

/// The record of a planned run that is there already. Errors (bad input) if it is another run.
fn made_before(plan: &ComparisonPlan, planned: &PlannedRun) -> Result<Option<RunRecord>> {
    let out = planned.dir(&plan.dir);
    if !out.join("irepair").join("run.json").is_file() {
        return Ok(None);
    }
    let record = finished(plan, &out)?;
    if let Some(key) = planned::difference(&record.settings, &planned.settings)? {
        bail_input!(
            "{} was made with another {key}; choose another --out, or remove that folder to make \
             it again",
            out.display()
        );
    }
    Ok(Some(record))
}

/// The record of a planned run, or why the run failed. The run is made if it is not there yet.
fn make(
    plan: &ComparisonPlan,
    planned: &PlannedRun,
    countdown: &Countdown,
    quiet: bool,
) -> Result<Result<RunRecord, String>> {
    let dir = &plan.dir;
    let out = planned.dir(dir);
    if let Some(record) = made_before(plan, planned)? {
        countdown.pass();
        return Ok(Ok(record));
    }
    if plan.part == Part::Merge {
        return Ok(Err(part::missing(dir, &planned.file_name())?));
    }
    let config = dir.join("runs").join(format!("{}.toml", planned.file_name()));
    let settings = toml::to_string(&planned.layer).context("settings as TOML")?;
    if child::has_state(&out) {
        // `repair --resume` may go on with another learning rate. Here half of the run would then
        // have other settings than its row says.
        let begun = files::read_text(&config)?;
        if begun != settings {
            bail_input!(
                "{} was begun with other settings than now; choose another --out, or remove \
                 {}.partial to begin it again",
                config.display(),
                out.display()
            );
        }
    } else {
        evaluation::forget_intermediate(dir, &planned.file_name())?;
    }
    write_whole(&config, settings.as_bytes())?;
    let run = |title: &str| Child::new(title, &plan.machine, quiet).repair(&config, &out);
    match countdown.run(&planned.title(), run)? {
        // A run that its guard has ended is finished, too.
        Outcome::Done(_) | Outcome::Failed(_) if out.join("irepair").join("run.json").is_file() => {
            Ok(Ok(finished(plan, &out)?))
        }
        Outcome::Done(_) => Ok(Err("it left no run".into())),
        Outcome::Failed(why) => Ok(Err(why)),
        Outcome::Interrupted => Err(interrupted(dir)),
    }
}

/// The error after an interrupt, which says how to go on.
fn interrupted(dir: &Path) -> anyhow::Error {
    let text =
        format!("interrupted; give the same command with --resume to go on with {}", dir.display());
    Error::Interrupted(text).into()
}

/// The record of a finished run. Errors (bad input) if its base, scorer or toxic label is not that
/// of the comparison.
fn finished(plan: &ComparisonPlan, dir: &Path) -> Result<RunRecord> {
    let path = dir.join("irepair").join("run.json");
    if !path.is_file() {
        bail_input!("{}: no finished run (no irepair/run.json in it)", dir.display());
    }
    let record = RunRecord::read(&path)?;
    let what = if record.base_sha256 != plan.base.files {
        "base model"
    } else if record.edits.is_none() && record.settings.judge() != plan.base.scorer {
        "scorer"
    } else if record.edits.is_none() && record.settings.toxic_label != plan.base.toxic_label {
        "toxic label"
    } else {
        return Ok(record);
    };
    bail_input!(
        "{}: its {what} is not this comparison's, so it can't stand beside the others",
        dir.display()
    )
}

/// Errors (bad input) before anything is made, if a finished block-level run learned from other
/// pairs than the others did or will.
fn same_data(plan: &ComparisonPlan, dirs: &[PathBuf], records: &[RunRecord]) -> Result<()> {
    let learns_from_pairs = |r: &RunRecord| r.edits.is_none() && r.data.prompts == 0;
    let by_pairs = || dirs.iter().zip(records).filter(|(_, record)| learns_from_pairs(record));
    let Some((first, record)) = by_pairs().next() else { return Ok(()) };
    if let Some((dir, _)) = by_pairs().find(|(_, r)| r.data.sha256 != record.data.sha256) {
        bail_input!(
            "{} learned from other data than {}, so they can't stand beside each other",
            dir.display(),
            first.display()
        );
    }
    match &plan.data_sha256 {
        Some(hash) if *hash != record.data.sha256 => {
            bail_input!(
                "{} learned from other data than --data, so it can't stand beside the others",
                first.display()
            )
        }
        _ => Ok(()),
    }
}

/// Errors (bad input) if block-level runs learned from different pairs or sampled from different
/// prompts, or neuron-level runs learned from different targets.
fn same_pairs(rows: &[MethodRow]) -> Result<()> {
    let made: Vec<&FinishedRun> =
        rows.iter().flat_map(|row| &row.runs).filter_map(|run| run.made.as_ref()).collect();
    for run in &made {
        let kind = |run: &FinishedRun| (run.neurons.is_some(), run.prompts > 0);
        let alike = |first: &&&FinishedRun| kind(first) == kind(run);
        if let Some(first) =
            made.iter().find(alike).filter(|first| first.data_sha256 != run.data_sha256)
        {
            bail_input!(
                "{} learned from other data than {}, so they can't stand beside each other",
                run.dir.display(),
                first.dir.display()
            );
        }
    }
    Ok(())
}

/// Figure 2 of the paper: the sensitivity of the base's blocks over all pairs. If it can't be
/// measured, this is a gap.
fn sensitivity(
    plan: &ComparisonPlan,
    quiet: bool,
    gaps: &mut Vec<String>,
) -> Result<Option<SensitivityRecord>> {
    let dir = &plan.dir;
    let kept = dir.join("sensitivity.json");
    if plan.part == Part::Merge {
        if let Ok(text) = files::read_text(&kept) {
            return Ok(Some(serde_json::from_str(&text).context("irepair sensitivity --json")?));
        }
        gaps.push(part::missing(dir, "sensitivity")?);
        return Ok(None);
    }
    let dump = dir.join("figure2.csv").display().to_string();
    let mut arguments = plan.sensitivity.clone();
    arguments.extend(["--dump", &dump, "--json"].map(str::to_owned));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match Child::new("sensitivity", &plan.machine, quiet).run(&arguments)? {
        Outcome::Done(text) => {
            if matches!(plan.part, Part::Task(_)) {
                write_whole(&kept, text.as_bytes())?;
            }
            Ok(Some(serde_json::from_str(&text).context("irepair sensitivity --json")?))
        }
        Outcome::Failed(why) => {
            // The tables do not need the sensitivities, so the comparison goes on.
            let gap = format!("no figure 2: the sensitivity of {}: {why}", plan.base.model);
            if matches!(plan.part, Part::Task(_)) {
                part::remember(dir, "sensitivity", &gap)?;
            }
            say!("warning: {gap}");
            gaps.push(gap);
            for stale in ["figure2.csv", "figure2.svg"] {
                std::fs::remove_file(dir.join(stale)).ok();
            }
            Ok(None)
        }
        Outcome::Interrupted => Err(interrupted(dir)),
    }
}

/// Writes the tables in every form, the figures, and at last the record, which says that all is
/// there.
fn write(comparison: &Comparison, dir: &Path) -> Result<()> {
    let path = |name: String| -> PathBuf { dir.join(name) };
    for sheet in &comparison.sheets {
        write_whole(&path(format!("{}.csv", sheet.id)), &sheet.csv()?)?;
        write_whole(&path(format!("{}.tex", sheet.id)), sheet.latex().as_bytes())?;
        write_whole(&path(format!("{}.md", sheet.id)), sheet.markdown().as_bytes())?;
    }
    if let Some(pareto) = &comparison.pareto {
        let title = format!("Toxicity against perplexity: {}", comparison.base.name);
        write_whole(&path("pareto.svg".into()), plot::pareto(&title, pareto).file().as_bytes())?;
    }
    if let Some(picture) = compare_page::scales(comparison) {
        write_whole(&path("scales.svg".into()), picture.file().as_bytes())?;
    }
    if let Some(picture) = compare_page::sensitivity(comparison) {
        write_whole(&path("figure2.svg".into()), picture.file().as_bytes())?;
    }
    write_whole(&path("README.md".into()), comparison.markdown().as_bytes())?;
    write_whole(&path(RECORD.into()), serde_json::to_string_pretty(comparison)?.as_bytes())
}
