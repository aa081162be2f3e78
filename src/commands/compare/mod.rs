//! `compare`: the same repair by several methods, evaluated with the same prompts, scorer and texts, as the paper's tables
//! and figures. Everything is a command of its own that runs in its own process: a run that fails or takes all memory
//! leaves the others alone, and every peak of memory is its own.

mod child;
mod evaluation;
mod failures;
mod plan;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::bail_input;
use crate::base::error::Error;
use crate::base::files::write_whole;
use crate::base::interrupt;
use crate::cli::Compare;
use crate::report::compare_page;
use crate::report::comparison::{Comparison, Entry, Made, RECORD, Run, Sensitivity};
use crate::report::folder::read_record;
use crate::report::{RunRecord, plot};
use child::{Child, Outcome, Pace, several};
use evaluation::Evaluations;
use plan::{Job, Plan};

pub fn run(args: &Compare) -> Result<()> {
    let plan = Plan::new(args)?;
    let finished =
        args.finished.iter().map(|dir| finished(&plan, dir)).collect::<Result<Vec<_>>>()?;
    same_data(&plan, &args.finished, &finished)?;
    let names = plan.names_of(&args.finished, &finished)?;
    plan.claim(args)?;
    interrupt::listen()?;
    let dir = &plan.dir;
    let failures =
        plan.failures.as_ref().map(|failures| failures.write(&plan.open()?)).transpose()?;
    let mut entries: Vec<Entry> = vec![Entry::vanilla()];
    let pace = Pace::of(plan.jobs.len(), plan.at_once);
    let made = several(plan.at_once, &plan.jobs, |job| make(&plan, job, &pace, args.output.quiet))?;
    for (job, made) in plan.jobs.iter().zip(made) {
        let run = match made {
            Ok(record) => Run::of(job.seed, &job.dir(dir), &record)?,
            Err(why) => Run::failed(job.seed, why),
        };
        add(&mut entries, &job.name, &job.method, run);
    }
    for ((path, record), name) in args.finished.iter().zip(finished).zip(names) {
        let run = Run::of(record.seed, path, &record)?;
        add(&mut entries, &name, &record.settings.method, run);
    }
    same_rows(&entries)?;
    let evaluations = Evaluations { plan: &plan, dir, quiet: args.output.quiet };
    let asked = evaluations.finals(&mut entries)?;
    let mut gaps = evaluations.along_the_way(&asked, &mut entries)?;
    let sensitivity = sensitivity(&plan, args.output.quiet, &mut gaps)?;
    let comparison = Comparison::new(
        plan.base.clone(),
        plan.seeds.clone(),
        failures,
        asked,
        entries,
        sensitivity,
    )?;
    let comparison = Comparison { gaps, ..comparison };
    write(&comparison, dir)?;
    if args.output.json {
        let mut printed = serde_json::to_value(&comparison)?;
        printed["out"] = dir.display().to_string().into();
        println!("{printed}");
    } else {
        print!("{}", comparison.text());
        println!("\nall of it: {0}/README.md, report: irepair report {0}", dir.display());
    }
    Ok(())
}

fn add(entries: &mut Vec<Entry>, name: &str, method: &str, run: Run) {
    match entries.iter_mut().find(|e| e.name == name) {
        Some(entry) => entry.runs.push(run),
        None => entries.push(Entry { name: name.into(), method: method.into(), runs: vec![run] }),
    }
}

/// The record of a job's run, made if it is not there yet; or why it failed.
fn make(plan: &Plan, job: &Job, pace: &Pace, quiet: bool) -> Result<Result<RunRecord, String>> {
    let dir = &plan.dir;
    let out = job.dir(dir);
    if out.join("irepair").join("run.json").is_file() {
        let record = finished(plan, &out)?;
        if let Some(key) = plan::difference(&record.settings, &job.settings)? {
            bail_input!(
                "{} was made with another {key}; choose another --out, or remove that folder to make it again",
                out.display()
            );
        }
        pace.pass();
        return Ok(Ok(record));
    }
    let config = dir.join("runs").join(format!("{}.toml", job.file_name()));
    let settings = toml::to_string(&job.layer).context("settings as TOML")?;
    if plan::has_state(&out) {
        // `repair --resume` may go on with another learning rate; here half of a run would be another than its row says.
        let begun =
            std::fs::read_to_string(&config).with_context(|| config.display().to_string())?;
        if begun != settings {
            bail_input!(
                "{} was begun with other settings than now; choose another --out, or remove {}.partial to begin it again",
                config.display(),
                out.display()
            );
        }
    } else {
        evaluation::forget_states(dir, &job.file_name())?;
    }
    write_whole(&config, settings.as_bytes())?;
    let (config, out_text) = (config.display().to_string(), out.display().to_string());
    let mut arguments = vec!["repair", "--config", &config, "--out", &out_text];
    arguments.push(if plan::has_state(&out) { "--resume" } else { "--overwrite" });
    match pace.run(&job.title(), |title| Child::new(title, plan.threads, quiet).run(&arguments))? {
        // A tripped guard leaves a run, too.
        Outcome::Done(_) | Outcome::Failed(_) if out.join("irepair").join("run.json").is_file() => {
            Ok(Ok(finished(plan, &out)?))
        }
        Outcome::Done(_) => Ok(Err("it left no run".into())),
        Outcome::Failed(why) => Ok(Err(why)),
        Outcome::Interrupted => Err(interrupted(dir)),
    }
}

/// What to do after an interrupt.
fn interrupted(dir: &Path) -> anyhow::Error {
    let text =
        format!("interrupted; give the same command with --resume to go on with {}", dir.display());
    Error::Interrupted(text).into()
}

/// A finished run. Errors (bad input) if it is not one of this comparison.
fn finished(plan: &Plan, dir: &Path) -> Result<RunRecord> {
    let path = dir.join("irepair").join("run.json");
    if !path.is_file() {
        bail_input!("{}: no finished run (no irepair/run.json in it)", dir.display());
    }
    let record = read_record(&path)?;
    let what = if record.base_sha256 != plan.base.files {
        "base model"
    } else if record.edits.is_none() && record.settings.scorer != plan.base.scorer {
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

/// Errors (bad input), before anything is made, if a finished run of pairs learned from another file than the others will.
fn same_data(plan: &Plan, dirs: &[PathBuf], records: &[RunRecord]) -> Result<()> {
    let of_pairs = || dirs.iter().zip(records).filter(|(_, record)| record.edits.is_none());
    let Some((first, record)) = of_pairs().next() else { return Ok(()) };
    if let Some((dir, _)) = of_pairs().find(|(_, r)| r.data.sha256 != record.data.sha256) {
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

/// Errors (bad input) if runs learned from different pairs, or from different targets.
fn same_rows(entries: &[Entry]) -> Result<()> {
    let made: Vec<&Made> =
        entries.iter().flat_map(|e| &e.runs).filter_map(|r| r.made.as_ref()).collect();
    for run in &made {
        let alike = |first: &&&Made| first.neurons.is_some() == run.neurons.is_some();
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

/// Figure 2: the sensitivity of the base's blocks over all pairs; a gap where it can't be measured.
fn sensitivity(plan: &Plan, quiet: bool, gaps: &mut Vec<String>) -> Result<Option<Sensitivity>> {
    let dir = &plan.dir;
    let dump = dir.join("figure2.csv").display().to_string();
    let mut arguments = plan.sensitivity.clone();
    arguments.extend(["--dump", &dump, "--json"].map(str::to_owned));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match Child::new("sensitivity", plan.threads, quiet).run(&arguments)? {
        Outcome::Done(text) => {
            Ok(Some(serde_json::from_str(&text).context("irepair sensitivity --json")?))
        }
        Outcome::Failed(why) => {
            // The tables do not need it.
            let gap = format!("no figure 2: the sensitivity of {}: {why}", plan.base.model);
            eprintln!("warning: {gap}");
            gaps.push(gap);
            for stale in ["figure2.csv", "figure2.svg"] {
                std::fs::remove_file(dir.join(stale)).ok();
            }
            Ok(None)
        }
        Outcome::Interrupted => Err(interrupted(dir)),
    }
}

/// The tables in every form, the figures, and last the record.
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
    if let Some(picture) = compare_page::sensitivity(comparison) {
        write_whole(&path("figure2.svg".into()), picture.file().as_bytes())?;
    }
    write_whole(&path("README.md".into()), comparison.markdown().as_bytes())?;
    write_whole(&path(RECORD.into()), serde_json::to_string_pretty(comparison)?.as_bytes())
}
