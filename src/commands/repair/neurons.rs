//! A neuron-level repair: rows with a prompt and a target, repaired together in one model.

use anyhow::Result;

use super::again::fingerprint;
use super::done::Done;
use super::job::{Job, Kept, MeasuredOn};
use super::journal::{Journal, Reached};
use super::measure::Measured;
use super::output::{Output, Written};
use super::plan::{EditsPlan, Own};
use super::{Order, rows};
use crate::bail_input;
use crate::base::error::Error;
use crate::base::files;
use crate::checkpoint::hub::rows_path;
use crate::data::{self, Edit, EditKind, demo};
use crate::eval::Figures;
use crate::eval::nll::{Nll, Responses};
use crate::eval::perplexity::{Paper, window};
use crate::eval::task::Task;
use crate::model::Mlp;
use crate::model::layers::Orientation;
use crate::model::memory::{Estimate, Part, Passes};
use crate::model::precision::Precision;
use crate::model::weights::Weights;
use crate::report::neurons::{NEURONS, NeuronsRecord};
use crate::report::{DataRecord, EditsRecord};
use crate::settings::RepairSettings;
use crate::step::neurons::basis::Basis;
use crate::step::neurons::change::{Changed, Repaired, changed};
use crate::step::neurons::{self, Mode, Patient, Position, Recipe};
use crate::tokens::{LossOn, TokenEdit};
use crate::train::log::{Cost, read_steps};

pub struct Neurons<'a> {
    order: Order<'a>,
    recipe: &'a Recipe,
    mlp: Mlp,
    /// The failures of the file; once begun, those that the model fails.
    rows: Vec<TokenEdit>,
    /// Hash of prompts and targets.
    sha256: String,
    /// How many rows are no failures.
    of_other_kinds: usize,
    /// Rows whose target the model says already.
    skipped: usize,
    text: Vec<u32>,
    basis: Option<Basis>,
    /// How far it came, once it is over.
    position: Position,
    reached: Reached,
}

impl<'a> Neurons<'a> {
    /// Reads the rows. Errors (bad input) before anything is made.
    pub fn read(order: Order<'a>, recipe: &'a Recipe) -> Result<Self> {
        let Order { prepared, loaded, .. } = order;
        let mlp = loaded.model.mlp()?;
        let (failures, of_other_kinds) = failures(prepared)?;
        let texts = failures.iter().flat_map(|e| [e.prompt.as_str(), e.target.as_str()]);
        Ok(Self {
            mlp,
            sha256: files::hash_texts(texts),
            rows: loaded.encoder.edits(&failures, loaded.model.sizes().context)?,
            of_other_kinds,
            skipped: 0,
            text: rows::perplexity_text(prepared, loaded)?,
            basis: None,
            position: Position::default(),
            reached: Reached::default(),
            order,
            recipe,
        })
    }

    fn repaired<'w>(&'w self, weights: &'w Weights) -> Repaired<'w> {
        Repaired { model: &self.order.loaded.model, weights, mlp: self.mlp }
    }

    fn longest(&self) -> usize {
        self.rows.iter().map(|row| row.prompt.len() + row.target.len()).max().unwrap_or(0)
    }
}

/// The failures among the rows of `--data`, or of the demo, and how many rows are none.
pub fn failures(settings: &RepairSettings) -> Result<(Vec<Edit>, usize)> {
    let edits: Vec<Edit> = match &settings.data {
        Some(path) => data::read_edits(&rows_path(path)?, &data::parse_map(&settings.map)?, None)?,
        None => data::parse_edits("demo edits", demo::EDITS)?,
    };
    let all = edits.len();
    let failure = |edit: &Edit| edit.kind == EditKind::Failure;
    let mut failures: Vec<Edit> = edits.into_iter().filter(failure).collect();
    let of_other_kinds = all - failures.len();
    failures.truncate(settings.limit.unwrap_or(usize::MAX));
    if failures.is_empty() {
        bail_input!("no row is a failure: there is nothing to repair");
    }
    Ok((failures, of_other_kinds))
}

impl Job for Neurons<'_> {
    fn memory(&self) -> Result<Estimate> {
        let Order { loaded, .. } = self.order;
        let sizes = loaded.model.sizes();
        let width = self.mlp.neurons;
        let length = |row: &TokenEdit| row.prompt.len() + row.target.len();
        let together = self.recipe.method.descends && self.recipe.mode == Mode::Batch;
        let (graph_rows, positions) = match together {
            true => {
                let targets = self.rows.iter().map(|row| row.target.len());
                (self.rows.iter().map(length).sum(), targets.sum())
            }
            false => (self.longest(), 1),
        };
        let matrix = width * sizes.channels;
        let passes = Passes {
            slice: matrix * self.recipe.blocks.of(sizes.blocks),
            slice_stays: true,
            keeps_originals: true,
            graph_rows,
            longest: self.longest(),
            plain_rows: window(&loaded.model).max(1024),
            ..Passes::default()
        };
        let mut memory = loaded.estimate(&passes);
        // Neurons, steers and solutions in double precision, of as many blocks at a time as there
        // are threads.
        let system = 2 * matrix + positions * (2 * width + 3 * sizes.channels + positions);
        let at_a_time = rayon::current_num_threads().min(sizes.blocks);
        let bytes = (system * at_a_time * 8) as u64;
        memory.parts.push(Part { name: "linear systems".into(), bytes });
        Ok(memory)
    }

    fn advice(&self) -> &'static str {
        "take fewer rows (--limit), --mode iterative, --block-sparsity 1/4, or a smaller model"
    }

    fn plan(&self) -> Result<Own> {
        Ok(Own::Edits(EditsPlan {
            neurons: self.mlp.neurons * self.order.loaded.model.sizes().blocks,
            mode: self.recipe.method.descends.then_some(self.recipe.mode),
            rows: self.rows.len(),
            target_tokens: self.rows.iter().map(|row| row.target.len()).sum(),
        }))
    }

    fn begin(&mut self, weights: &Weights, _out: &Output) -> Result<()> {
        let model = &self.order.loaded.model;
        self.basis = Some(Basis::cached(model, weights)?);
        let all = self.rows.len();
        let failing = neurons::failing(model, weights, &self.rows)?;
        self.skipped = all - failing.len();
        self.rows = failing.iter().map(|&index| self.rows[index].clone()).collect();
        let others = match self.of_other_kinds {
            0 => String::new(),
            n => format!("; {n} rows of other kinds left to eval --edits"),
        };
        self.order.say(format!(
            "{all} rows: {} to repair, {} skipped because the model already says their \
             target{others}",
            self.rows.len(),
            self.skipped,
        ));
        if self.rows.is_empty() {
            let why = "the model already says every target: there is nothing to repair";
            return Err(Error::Check(why.into()).into());
        }
        Ok(())
    }

    fn tasks(&self) -> Result<Vec<Box<dyn Task + '_>>> {
        let Order { prepared, loaded, .. } = self.order;
        let sequences = self.rows.iter().map(|row| (row.prompt.clone(), row.target.clone()));
        let targets = Nll {
            responses: Responses::Chosen,
            sequences: sequences.collect(),
            loss_on: LossOn::Response,
        };
        let mut tasks: Vec<Box<dyn Task>> = vec![Box::new(targets)];
        if !self.text.is_empty() {
            let name = rows::perplexity_name(prepared);
            tasks.push(Box::new(Paper::of(&name, &self.text, &loaded.model)));
        }
        Ok(tasks)
    }

    fn repair(&mut self, weights: Weights, _before: &Figures, out: &Output) -> Result<Done> {
        let Order { prepared, loaded, args } = self.order;
        let Some(basis) = self.basis.take() else {
            anyhow::bail!("a repair that was not begun");
        };
        let mut patient = Patient { model: &loaded.model, weights, mlp: self.mlp, basis };
        let parts = [("data", self.sha256.clone()), ("method", format!("{:?}", self.recipe))];
        let fingerprint = fingerprint(&self.order, parts)?;
        let mut journal =
            Journal::open(args, prepared, self.recipe, out, fingerprint, &mut patient)?;
        if args.resume {
            self.order.say(format!("going on from step {}", journal.reached().steps));
        }
        let mut at = journal.reached().position.clone();
        let method = self.recipe.clone().build();
        let rounds = self.recipe.rounds;
        patient.weights.set_precision(loaded.precision);
        neurons::repair(method.as_ref(), &mut patient, &self.rows, rounds, &mut at, &mut journal)?;
        self.reached = journal.finish(&patient, &at)?;
        self.position = at;
        let steps = read_steps(&out.dir.join("steps.jsonl"))?;
        // What is reported is measured as users will run it.
        patient.weights.set_precision(Precision::F32);
        let mut cost = Cost::default();
        steps.iter().for_each(|step| cost += step.cost());
        Ok(Done {
            weights: patient.weights,
            kept_step: steps.len(),
            cost,
            steps,
            stopped: String::new(),
            guarded: None,
            changed_settings: Vec::new(),
        })
    }

    fn unchanged(&self) -> String {
        format!(
            "{} tokens were given up in {:.2} s, their changes undone",
            self.position.pass.given_up, self.reached.seconds
        )
    }

    fn keep(
        &self,
        done: &Done,
        written: &Written,
        _before: &Measured,
        _after: &Measured,
        out: &Output,
    ) -> Result<Kept> {
        let Order { loaded, .. } = self.order;
        let repaired = self.repaired(&done.weights);
        let changed = changed(&repaired)?;
        self.verify(written, &changed)?;
        let record = NeuronsRecord::new(&repaired, &loaded.encoder, &changed)?;
        files::write_whole(&out.dir.join(NEURONS), serde_json::to_string(&record)?.as_bytes())?;
        let left = neurons::failing(&loaded.model, &done.weights, &self.rows)?.len();
        let channels = loaded.model.sizes().channels;
        Ok(Kept {
            stopped: Some(match left {
                0 => "every target is said".into(),
                left => format!("{left} targets are still not said"),
            }),
            changed_parameters: Some(changed.values().map(|n| n.len() * channels).sum()),
            edits: Some(EditsRecord {
                skipped: self.skipped,
                failures: self.rows.len(),
                repaired: self.rows.len() - left,
                rounds: self.position.rounds,
                tried: self.position.tried,
                given_up: self.position.pass.given_up,
                worst_residual: self.reached.worst_residual,
                repair_seconds: self.reached.seconds,
                neurons: changed.iter().map(|(&block, neurons)| (block, neurons.len())).collect(),
            }),
        })
    }

    fn measured_on(&self) -> Result<MeasuredOn> {
        let rows = format!("the {} targets that were not said", self.rows.len());
        Ok(MeasuredOn { rows, learned_from: self.rows.len() })
    }

    fn data(&self) -> DataRecord {
        DataRecord {
            sha256: self.sha256.clone(),
            pairs: self.rows.len(),
            perplexity_of: rows::perplexity_name(self.order.prepared),
            perplexity_window: window(&self.order.loaded.model),
            perplexity_tokens: self.text.len(),
            ..DataRecord::default()
        }
    }
}

impl Neurons<'_> {
    /// Errors (a failed check) if anything but rows of the changed neurons differs on disk.
    fn verify(&self, written: &Written, changed: &Changed) -> Result<()> {
        let axis = match self.mlp.orientation {
            Orientation::InOut => 0,
            Orientation::OutIn => 1,
        };
        let checkpoint = self.order.loaded.checkpoint();
        for change in &written.changed {
            let lines = written.patch.tensors.get(&change.name).and_then(|t| t.lines.clone());
            let expected = changed.iter().find(|(block, _)| {
                let weight = self.mlp.weight(**block);
                checkpoint.disk_name(&weight) == Some(change.name.as_str())
            });
            let as_expected = expected.is_some_and(|(_, neurons)| match &lines {
                Some(lines) if lines.axis == axis => {
                    lines.indices.iter().eq(neurons.iter().map(|(neuron, _)| neuron))
                }
                // All neurons, or fewer lines of the other axis.
                _ => true,
            });
            if !as_expected {
                let why = format!("{}: other rows changed than those of the neurons", change.name);
                return Err(Error::Check(why).into());
            }
        }
        Ok(())
    }
}
