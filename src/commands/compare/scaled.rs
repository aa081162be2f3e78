//! The curve of toxicity against KL along the *scale* of a change: parts and multiples of what each
//! run changed are evaluated as the runs are.

use std::path::Path;

use anyhow::Result;

use super::evaluation::{Evaluations, figures};
use crate::checkpoint::combine;
use crate::checkpoint::patch::PatchFile;
use crate::commands::child::{Countdown, several};
use crate::commands::eval::join::together;
use crate::report::comparison::{ComparedFigure, MethodRow};
use crate::report::pareto::ScaledPoint;
use crate::say;

/// A part or a multiple of a run's change.
struct Scaled<'a> {
    /// The place of the row, and of the run in it.
    at: (usize, usize),
    scale: f64,
    /// The folder of the run.
    run: &'a Path,
    /// The name of the evaluation.
    name: String,
}

impl Evaluations<'_> {
    /// Measures these scales of every finished run, and puts the points into their rows, that of
    /// the run itself among them. Gives a sentence for each point that is missing.
    pub fn along_the_scale(&self, scales: &[f64], rows: &mut [MethodRow]) -> Result<Vec<String>> {
        if scales.is_empty() {
            return Ok(Vec::new());
        }
        let mut all = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            for (run_at, run) in row.runs.iter().enumerate() {
                let Some(made) = run.made.as_ref().filter(|_| run.failed.is_none()) else {
                    continue;
                };
                all.extend(scales.iter().map(|&scale| Scaled {
                    at: (at, run_at),
                    scale,
                    run: &made.dir,
                    name: format!("{}-seed{}-scale{scale}", row.name, run.seed),
                }));
            }
        }
        let countdown = Countdown::of(all.len(), self.plan.machine.at_once);
        let measured = several(self.plan.machine.at_once, &all, |scaled| {
            Ok(self.scaled(&countdown, scaled)?.map_err(|why| {
                let gap = format!("no point of {}: {why}", scaled.name);
                say!("warning: {gap}");
                gap
            }))
        })?;
        let places: Vec<((usize, usize), f64)> = all.iter().map(|s| (s.at, s.scale)).collect();
        let mut gaps = Vec::new();
        for (((row, run), scale), measured) in places.into_iter().zip(measured) {
            match measured {
                Ok(figures) => rows[row].runs[run].scaled.extend(point(scale, &figures)),
                Err(gap) => gaps.push(gap),
            }
        }
        for run in rows.iter_mut().flat_map(|row| &mut row.runs).filter(|r| !r.scaled.is_empty()) {
            run.scaled.extend(point(1.0, &run.figures));
            run.scaled.sort_by(|a, b| a.scale.total_cmp(&b.scale));
        }
        Ok(gaps)
    }

    /// The figures of a scaled change, or why there are none.
    fn scaled(
        &self,
        countdown: &Countdown,
        scaled: &Scaled,
    ) -> Result<Result<Vec<ComparedFigure>, String>> {
        let file = scaled.run.join("irepair/patch.safetensors");
        let folder = tempfile::tempdir_in(self.plan.scratch())?;
        let model = folder.path().join("model");
        let made = || -> Result<()> {
            std::fs::create_dir(&model)?;
            let base = self.plan.open()?;
            let patch = [PatchFile::open(&file)?];
            let out = folder.path().join("patch.safetensors");
            combine::combine(base.checkpoint(), &patch, scaled.scale, &model, &out)
        };
        if let Err(why) = made() {
            countdown.pass();
            return Ok(Err(format!("{why:#}")));
        }
        let model = model.display().to_string();
        let done = self.evaluate(countdown, &scaled.name, &model, &self.plan.eval)?;
        Ok(match done {
            Ok(dir) => Ok(figures(&together(&[&dir])?, 0)),
            Err(why) => Err(why),
        })
    }
}

/// The point of weights with these figures. `None` if toxicity or KL has no value.
fn point(scale: f64, figures: &[ComparedFigure]) -> Option<ScaledPoint> {
    let value = |id: &str| figures.iter().find(|figure| figure.id == id)?.value;
    Some(ScaledPoint { scale, toxicity: value("toxicity")?, kl: value("kl")? })
}
