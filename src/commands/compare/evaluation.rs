//! The *evaluation* of a comparison measures the same on all models: on the base, on every run, and
//! on the weights that the runs kept on their way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_core::safetensors::load;

use super::interrupted;
use super::part::{self, Part};
use super::plan::ComparisonPlan;
use crate::base::files;
use crate::checkpoint;
use crate::checkpoint::Checkpoint;
use crate::commands::child::{Child, Countdown, Outcome, several};
use crate::commands::eval::folder::{is_begun, is_finished};
use crate::commands::eval::join::together;
use crate::commands::eval::results::{OnModel, Results};
use crate::report::comparison::{Asked, ComparedFigure, MethodRow};
use crate::report::pareto::Point;
use crate::say;
use crate::train::CHECKPOINTS;

/// Makes the evaluations of a plan, each in a folder of its own in `eval/`.
pub struct Evaluations<'a> {
    pub plan: &'a ComparisonPlan,
    pub dir: &'a Path,
    pub quiet: bool,
}

/// What an evaluation is called where it is told.
pub(super) fn evaluation_of(name: &str) -> String {
    format!("evaluation of {name}")
}

impl Evaluations<'_> {
    /// Evaluates the base and every finished run, and puts the figures into their rows. Gives what
    /// was asked, and a sentence for each model some of whose continuations have no score. Errors
    /// if the evaluation of the base fails. If another one fails, its run has failed.
    pub fn finals(&self, rows: &mut [MethodRow]) -> Result<(Asked, Vec<String>)> {
        let mut models = Vec::new();
        for row in &*rows {
            for run in &row.runs {
                if row.is_base() {
                    models.push((row.name.clone(), self.plan.base.model.clone()));
                } else if let Some(made) = &run.made {
                    let name = format!("{}-seed{}", row.name, run.seed);
                    models.push((name, made.dir.display().to_string()));
                }
            }
        }
        let countdown = Countdown::of(models.len(), self.plan.machine.at_once);
        let done = several(self.plan.machine.at_once, &models, |(name, model)| {
            self.evaluate(&countdown, name, model, &self.plan.eval)
        })?;
        // The base is the first model, and without it there are no differences.
        if let Some(Err(why)) = done.first() {
            bail!(
                "the evaluation of {} failed: {why}; give the same command with --resume to go on",
                self.plan.base.name
            );
        }
        let dirs: Vec<&PathBuf> = done.iter().filter_map(|dir| dir.as_ref().ok()).collect();
        let results = together(&dirs)?;
        let (asked, mut gaps) = (asked(&results), Vec::new());
        let evaluated = rows.iter_mut().flat_map(|row| {
            let base = row.is_base();
            row.runs.iter_mut().filter(move |run| base || run.made.is_some())
        });
        let mut model = 0;
        for ((done, run), (name, _)) in done.iter().zip(evaluated).zip(&models) {
            match done {
                Ok(_) => {
                    run.figures = figures(&results, model);
                    run.points.extend(point(&asked, &run.figures, None));
                    let on = results.measurements.iter().flat_map(|m| &m.models);
                    let words = on.filter(|on| on.model == model).filter_map(OnModel::not_counted);
                    gaps.extend(words.map(|words| format!("{name}: {words}")));
                    model += 1;
                }
                Err(why) => run.failed = Some(format!("its evaluation: {why}")),
            }
        }
        Ok((asked, gaps))
    }

    /// Measures toxicity and perplexities of the weights that the runs kept on their way, and puts
    /// the points into their rows. Gives a sentence for each point that is missing.
    pub fn along_the_way(&self, asked: &Asked, rows: &mut [MethodRow]) -> Result<Vec<String>> {
        if asked.toxicity.is_none() {
            return Ok(Vec::new());
        }
        let mut gaps = Vec::new();
        for (weights, done) in self.intermediates(rows)?.into_iter().rev() {
            let (row, run) = weights.at;
            match done {
                // The points of later steps and of the end are already there, and stand behind it.
                Ok(dir) => {
                    let figures = figures(&together(&[&dir])?, 0);
                    let point = point(asked, &figures, Some(weights.step));
                    point.into_iter().for_each(|point| rows[row].runs[run].points.insert(0, point));
                }
                Err(gap) => gaps.insert(0, gap),
            }
        }
        Ok(gaps)
    }

    /// Measures the weights that the runs kept on their way. Gives the folder of each evaluation,
    /// or a sentence that says why there is none.
    fn intermediates(
        &self,
        rows: &[MethodRow],
    ) -> Result<Vec<(IntermediateWeights, Result<PathBuf, String>)>> {
        let mut all = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            for (run_at, run) in row.runs.iter().enumerate() {
                let Some(made) = &run.made else { continue };
                for (step, path) in kept(&made.dir)? {
                    let name = format!("{}-seed{}-step{step}", row.name, run.seed);
                    all.push(IntermediateWeights { at: (at, run_at), step, path, name });
                }
            }
        }
        let countdown = Countdown::of(all.len(), self.plan.machine.at_once);
        let done = several(self.plan.machine.at_once, &all, |weights| {
            Ok(self.intermediate(&countdown, weights)?.map_err(|why| {
                let gap = format!("no point of {}: {why}", weights.name);
                say!("warning: {gap}");
                gap
            }))
        })?;
        Ok(all.into_iter().zip(done).collect())
    }

    /// The folder of a finished evaluation of these weights, or why there is none.
    fn intermediate(
        &self,
        countdown: &Countdown,
        weights: &IntermediateWeights,
    ) -> Result<Result<PathBuf, String>> {
        let dir = self.dir.join("eval").join(&weights.name);
        // The hash tells whether the evaluation is of these weights, or of an earlier run of this
        // name.
        let (sha256, hash) = (dir.join("state.sha256"), files::hash_file(&weights.path)?);
        let is_same = files::read_text(&sha256).is_ok_and(|old| old == hash);
        if is_finished(&dir) && is_same {
            countdown.pass();
            return Ok(Ok(dir));
        }
        let rebuilt = match self.rebuild(&weights.path) {
            Ok(rebuilt) => rebuilt,
            Err(why) => {
                countdown.pass();
                return Ok(Err(format!("{why:#}")));
            }
        };
        let model = rebuilt.path().display().to_string();
        // The trade-off needs no KL, which stands at the end of the arguments.
        let kl = self.plan.eval.iter().position(|a| a == "--kl").unwrap_or(self.plan.eval.len());
        let done = self.evaluate(countdown, &weights.name, &model, &self.plan.eval[..kl])?;
        if done.is_ok() {
            files::write_whole(&sha256, hash.as_bytes())?;
        }
        Ok(done)
    }

    /// The folder of a finished evaluation of a model, or why there is none. If it is not there,
    /// the evaluation is made or gone on with.
    pub(super) fn evaluate(
        &self,
        countdown: &Countdown,
        name: &str,
        model: &str,
        asked: &[String],
    ) -> Result<Result<PathBuf, String>> {
        let out = self.dir.join("eval").join(name);
        if is_finished(&out) {
            // The hash tells whether someone has put other weights in the run's place.
            let hash = if model == self.plan.base.model {
                self.plan.base.sha256.clone()
            } else {
                Checkpoint::open(Path::new(model), model, None)?.hash()?
            };
            if Results::read(&out)?.models.first().is_some_and(|m| m.sha256 == hash) {
                if matches!(self.plan.part, Part::Task(_)) {
                    part::forget(self.dir, &evaluation_of(name))?;
                }
                countdown.pass();
                return Ok(Ok(out));
            }
        }
        if self.plan.part == Part::Merge {
            return Ok(Err(part::missing(self.dir, &evaluation_of(name))?));
        }
        let out_text = out.display().to_string();
        let mut arguments = vec!["eval", "--model", model, "--out", &out_text];
        arguments.extend(["--weights-dtype", &self.plan.weights_dtype]);
        arguments.push(if is_begun(&out) { "--resume" } else { "--overwrite" });
        arguments.extend(asked.iter().map(String::as_str));
        let what = evaluation_of(name);
        if matches!(self.plan.part, Part::Task(_)) {
            part::forget(self.dir, &what)?;
        }
        let run = |title: &str| Child::new(title, &self.plan.machine, self.quiet).run(&arguments);
        match countdown.run(&what, run)? {
            Outcome::Done(_) => Ok(Ok(out)),
            Outcome::Failed(why) => {
                if matches!(self.plan.part, Part::Task(_)) {
                    part::remember(self.dir, &what, &why)?;
                }
                Ok(Err(why))
            }
            Outcome::Interrupted => Err(interrupted(self.dir)),
        }
    }

    /// Evaluates one run at its end, on its way and along its scale, apart from the others. Gives
    /// a sentence for each evaluation that failed.
    pub fn of_one(&self, row: MethodRow) -> Result<Vec<String>> {
        let Some(made) = row.runs.first().and_then(|run| run.made.as_ref()) else {
            return Ok(Vec::new());
        };
        let name = format!("{}-seed{}", row.name, row.runs[0].seed);
        let (model, countdown) = (made.dir.display().to_string(), Countdown::of(1, 1));
        let mut gaps = Vec::new();
        let mut rows = [row];
        if let Err(why) = self.evaluate(&countdown, &name, &model, &self.plan.eval)? {
            gaps.push(format!("the evaluation of {name}: {why}"));
            rows[0].runs[0].failed = Some(why);
        }
        // The merge asks for these whether or not the end could be measured.
        if self.plan.eval.iter().any(|argument| argument == "--toxicity") {
            let done = self.intermediates(&rows)?;
            gaps.extend(done.into_iter().filter_map(|(_, done)| done.err()));
        }
        gaps.extend(self.along_the_scale(&self.plan.scales, &mut rows)?);
        Ok(gaps)
    }

    /// A temporary model folder: the base with the tensors of this file in place.
    fn rebuild(&self, kept: &Path) -> Result<tempfile::TempDir> {
        let loaded = self.plan.open()?;
        let mut weights = loaded.weights()?;
        for (name, tensor) in
            load(kept, &weights.device()).with_context(|| kept.display().to_string())?
        {
            weights.restore(&name, tensor)?;
        }
        loaded.checkpoint().round(&mut weights)?;
        let dir = tempfile::tempdir_in(self.plan.scratch())?;
        checkpoint::write(loaded.checkpoint(), &weights, dir.path())?;
        Ok(dir)
    }
}

/// Removes the evaluations of the weights that an earlier run of this name kept on its way.
pub fn forget_intermediate(dir: &Path, run: &str) -> Result<()> {
    let evaluations = dir.join("eval");
    if !evaluations.is_dir() {
        return Ok(());
    }
    for entry in
        std::fs::read_dir(&evaluations).with_context(|| evaluations.display().to_string())?
    {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let step = name.strip_prefix(run).and_then(|rest| rest.strip_prefix("-step"));
        if step.is_some_and(|step| step.parse::<usize>().is_ok()) {
            std::fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Weights that a run kept on its way.
struct IntermediateWeights {
    /// The place of the row, and of the run in it.
    at: (usize, usize),
    step: usize,
    path: PathBuf,
    /// The name of the evaluation.
    name: String,
}

/// The files of weights that a run kept on its way, by their steps.
fn kept(run: &Path) -> Result<BTreeMap<usize, PathBuf>> {
    let dir = run.join("irepair").join(CHECKPOINTS);
    let mut files = BTreeMap::new();
    if !dir.is_dir() {
        return Ok(files);
    }
    for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(step) = stem.strip_prefix("step-").and_then(|s| s.parse().ok()) {
            files.insert(step, path);
        }
    }
    Ok(files)
}

/// What was measured on all models, and the base's figures for the trade-off.
fn asked(results: &Results) -> Asked {
    let figures = figures(results, 0);
    let first = |id: &str| figures.iter().find(|figure| figure.id == id).cloned();
    let text = |task: &str| {
        let measurement = results.measurements.iter().find(|m| m.task == task)?;
        Some(measurement.models.first()?.settings["of"].as_str()?.to_owned())
    };
    let perplexity = first("ppl").and_then(|figure| {
        let text = text(&figure.task)?;
        Some((figure, text))
    });
    let about = results.measurements.iter().filter_map(|m| Some(m.models.first()?.about.clone()));
    Asked { about: about.collect(), toxicity: first("toxicity"), perplexity }
}

/// The figures of a model, task by task.
pub(super) fn figures(results: &Results, model: usize) -> Vec<ComparedFigure> {
    let mut all = Vec::new();
    for measurement in &results.measurements {
        for on in measurement.models.iter().filter(|on| on.model == model) {
            all.extend(on.figures.iter().map(|figure| ComparedFigure {
                task: measurement.task.clone(),
                id: figure.id.clone(),
                name: measurement.label(figure),
                value: figure.value,
                low: figure.low,
                high: figure.high,
                real: figure.difference.as_ref().map(|d| d.real),
                digits: figure.digits,
                less_is_better: figure.less_is_better,
            }));
        }
    }
    all
}

/// The point of weights with these figures. `None` if toxicity or perplexity has no value.
fn point(asked: &Asked, figures: &[ComparedFigure], step: Option<usize>) -> Option<Point> {
    let value = |wanted: &ComparedFigure| figures.iter().find(|f| f.is(wanted))?.value;
    let toxicity = value(asked.toxicity.as_ref()?)?;
    let perplexity = value(&asked.perplexity.as_ref()?.0)?;
    Some(Point { step, toxicity, perplexity })
}
