//! One evaluation for all: the base, every run, and the weights that runs kept along their way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use candle_core::safetensors::load;

use super::child::{Child, Outcome, Pace, several};
use super::{Plan, interrupted};
use crate::base::files;
use crate::checkpoint;
use crate::checkpoint::Checkpoint;
use crate::commands::eval::results::{Results, together};
use crate::report::comparison::{Asked, Entry, Figure};
use crate::report::pareto::Point;
use crate::train::CHECKPOINTS;

pub struct Evaluations<'a> {
    pub plan: &'a Plan,
    pub dir: &'a Path,
    pub quiet: bool,
}

impl Evaluations<'_> {
    /// The base and every finished run; their figures go into the entries.
    pub fn finals(&self, entries: &mut [Entry]) -> Result<Asked> {
        let mut models = Vec::new();
        for entry in &*entries {
            for run in &entry.runs {
                if entry.is_base() {
                    models.push((entry.name.clone(), self.plan.base.model.clone()));
                } else if let Some(made) = &run.made {
                    models.push((
                        format!("{}-seed{}", entry.name, run.seed),
                        made.dir.display().to_string(),
                    ));
                }
            }
        }
        let pace = Pace::of(models.len(), self.plan.at_once);
        let done = several(self.plan.at_once, &models, |(name, model)| {
            self.evaluate(&pace, name, model, &self.plan.eval)
        })?;
        // The base comes first, and all differences are from it.
        if let Some(Err(why)) = done.first() {
            bail!(
                "the evaluation of {} failed: {why}; give the same command with --resume to go on",
                self.plan.base.name
            );
        }
        let dirs: Vec<&PathBuf> = done.iter().filter_map(|dir| dir.as_ref().ok()).collect();
        let results = together(&dirs)?;
        let asked = asked(&results);
        let evaluated = entries.iter_mut().flat_map(|e| {
            let base = e.is_base();
            e.runs.iter_mut().filter(move |r| base || r.made.is_some())
        });
        let mut model = 0;
        for (done, run) in done.iter().zip(evaluated) {
            match done {
                Ok(_) => {
                    run.figures = figures(&results, model);
                    run.points.extend(point(&asked, &run.figures, None));
                    model += 1;
                }
                Err(why) => run.failed = Some(format!("its evaluation: {why}")),
            }
        }
        Ok(asked)
    }

    /// What runs kept along their way: toxicity and the first perplexity. Returns which points are missing, and why.
    pub fn along_the_way(&self, asked: &Asked, entries: &mut [Entry]) -> Result<Vec<String>> {
        if asked.toxicity.is_none() {
            return Ok(Vec::new());
        }
        let kl = self.plan.eval.iter().position(|a| a == "--kl").unwrap_or(self.plan.eval.len());
        let mut states = Vec::new();
        for (at, entry) in entries.iter().enumerate() {
            for (run_at, run) in entry.runs.iter().enumerate() {
                let Some(made) = &run.made else { continue };
                for (step, path) in kept(&made.dir)? {
                    let name = format!("{}-seed{}-step{step}", entry.name, run.seed);
                    states.push(State { at: (at, run_at), step, path, name });
                }
            }
        }
        let pace = Pace::of(states.len(), self.plan.at_once);
        let points = several(self.plan.at_once, &states, |state| {
            let dir = self.dir.join("eval").join(&state.name);
            // Of these weights, unless another run goes by the name now.
            let (of, hash) = (dir.join("state.sha256"), files::hash_file(&state.path)?);
            let done = if dir.join("results.json").is_file()
                && std::fs::read_to_string(&of).is_ok_and(|old| old == hash)
            {
                pace.pass();
                Ok(dir)
            } else {
                match self.rebuild(&state.path) {
                    Ok(rebuilt) => {
                        let model = rebuilt.path().display().to_string();
                        let done =
                            self.evaluate(&pace, &state.name, &model, &self.plan.eval[..kl])?;
                        if let Ok(dir) = &done {
                            files::write_whole(&dir.join("state.sha256"), hash.as_bytes())?;
                        }
                        done
                    }
                    Err(why) => {
                        pace.pass();
                        Err(format!("{why:#}"))
                    }
                }
            };
            // One that fails is a point less.
            Ok(match done {
                Ok(dir) => Ok(point(asked, &figures(&together(&[&dir])?, 0), Some(state.step))),
                Err(why) => {
                    let gap = format!("no point of {}: {why}", state.name);
                    eprintln!("warning: {gap}");
                    Err(gap)
                }
            })
        })?;
        let mut gaps = Vec::new();
        for (state, point) in states.iter().zip(points).rev() {
            let (entry, run) = state.at;
            match point {
                // Before those of later steps, and of the end.
                Ok(point) => point
                    .into_iter()
                    .for_each(|point| entries[entry].runs[run].points.insert(0, point)),
                Err(gap) => gaps.insert(0, gap),
            }
        }
        Ok(gaps)
    }

    /// The folder of a finished evaluation of a model, or why there is none; made, or gone on with, if it is not there.
    fn evaluate(
        &self,
        pace: &Pace,
        name: &str,
        model: &str,
        asked: &[String],
    ) -> Result<Result<PathBuf, String>> {
        let out = self.dir.join("eval").join(name);
        if out.join("results.json").is_file() {
            // Of these weights, unless someone put other ones in the run's place.
            let hash = if model == self.plan.base.model {
                self.plan.base.sha256.clone()
            } else {
                Checkpoint::open(Path::new(model), model, None)?.hash()?
            };
            if Results::read(&out)?.models.first().is_some_and(|m| m.sha256 == hash) {
                pace.pass();
                return Ok(Ok(out));
            }
        }
        let out_text = out.display().to_string();
        let mut arguments =
            vec!["eval", "--model", model, "--out", &out_text, "--device", &self.plan.device];
        arguments.extend(["--weights-dtype", &self.plan.weights_dtype]);
        arguments.push(if out.join("work").is_dir() { "--resume" } else { "--overwrite" });
        arguments.extend(asked.iter().map(String::as_str));
        let what = format!("evaluation of {name}");
        match pace
            .run(&what, |title| Child::new(title, self.plan.threads, self.quiet).run(&arguments))?
        {
            Outcome::Done(_) => Ok(Ok(out)),
            Outcome::Failed(why) => Ok(Err(why)),
            Outcome::Interrupted => Err(interrupted(self.dir)),
        }
    }

    /// The base with kept tensors in place, as a folder that lasts as long as it is evaluated.
    fn rebuild(&self, kept: &Path) -> Result<tempfile::TempDir> {
        let loaded = self.plan.open()?;
        let mut weights = loaded.weights()?;
        for (name, tensor) in
            load(kept, &weights.device()).with_context(|| kept.display().to_string())?
        {
            weights.restore(&name, tensor)?;
        }
        loaded.checkpoint().round(&mut weights)?;
        let dir = tempfile::tempdir_in(self.dir)?;
        checkpoint::write(loaded.checkpoint(), &weights, dir.path())?;
        Ok(dir)
    }
}

/// Removes the evaluations of what a run of this name kept along its way.
pub fn forget_states(dir: &Path, run: &str) -> Result<()> {
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

/// Weights that a run kept along its way.
struct State {
    /// Its entry, and its run there.
    at: (usize, usize),
    step: usize,
    path: PathBuf,
    /// Of the evaluation.
    name: String,
}

/// The files that a run kept along its way, by their steps.
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

/// What the models were asked, and which figures lead.
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

/// Figures of a model, task by task.
fn figures(results: &Results, model: usize) -> Vec<Figure> {
    let mut all = Vec::new();
    for measurement in &results.measurements {
        for on in measurement.models.iter().filter(|on| on.model == model) {
            all.extend(on.figures.iter().map(|figure| Figure {
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

fn point(asked: &Asked, figures: &[Figure], step: Option<usize>) -> Option<Point> {
    let value = |wanted: &Figure| {
        figures.iter().find(|f| f.task == wanted.task && f.id == wanted.id)?.value
    };
    let toxicity = value(asked.toxicity.as_ref()?)?;
    let perplexity = value(&asked.perplexity.as_ref()?.0)?;
    Some(Point { step, toxicity, perplexity })
}
