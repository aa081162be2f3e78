//! A neuron-level repair: rows with a prompt and a target, repaired together in one model.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::journal::{Journal, Reached};
use super::output::{Output, changed_most};
use super::{device_name, parameters, recorded_name};
use crate::bail_input;
use crate::base::error::Error;
use crate::base::files;
use crate::base::interrupt;
use crate::checkpoint::patch;
use crate::checkpoint::patch::PatchFile;
use crate::checkpoint::{Change, Checkpoint};
use crate::cli::Repair;
use crate::commands::Loaded;
use crate::data;
use crate::data::demo;
use crate::data::{Edit, EditKind};
use crate::eval::Measures;
use crate::eval::perplexity::perplexity;
use crate::model::device;
use crate::model::layers::Orientation;
use crate::model::loss;
use crate::model::memory;
use crate::model::memory::{Estimate, Part, Passes, mib};
use crate::model::precision::Precision;
use crate::model::weights::Who;
use crate::report::neurons::{NEURONS, NeuronsRecord};
use crate::report::table::table;
use crate::report::{DataRecord, EditsRecord, RunRecord, before_after};
use crate::settings::RepairSettings;
use crate::step::neurons;
use crate::step::neurons::basis::Basis;
use crate::step::neurons::change::{Changed, changed};
use crate::step::neurons::{Mode, Patient};
use crate::tokens::TokenEdit;
use crate::train::log::{count_blocks, read_steps};
use crate::train::state::Fingerprint;

const ADVICE: &str =
    "take fewer rows (--limit), --mode iterative, --block-sparsity 1/4, or a smaller model";

pub fn run(
    args: &Repair,
    settings: RepairSettings,
    method: &'static neurons::Entry,
    loaded: &Loaded,
    begun: Instant,
) -> Result<()> {
    let say = |text: String| {
        if !args.output.quiet {
            eprintln!("{text}");
        }
    };
    let mlp = loaded.model.mlp()?;
    let recipe = settings.neuron_recipe();
    let Rows { failures: rows, sha256, of_other_kinds } = read(&settings, loaded)?;
    let text = super::rows::perplexity_text(&settings, loaded)?;
    let path = Output::path(args, &settings, &loaded.short_name())?;
    let plan = Plan::new(&settings, method, loaded, &rows, &path);
    if args.dry_run {
        Output::free(args, &path, &loaded.checkpoint().dir)?;
        Output::to_resume(args, &path)?;
        Output::not_begun(args, &path)?;
        print!(
            "{}",
            if args.output.json { serde_json::to_string(&plan)? + "\n" } else { plan.text() }
        );
        return plan.memory.judge(&loaded.device, ADVICE);
    }
    if loaded.device.is_cpu() {
        plan.memory.check(crate::base::memory::limit()?, ADVICE)?;
    }
    let weights = loaded.weights()?;
    let out = Output::claim(args, &settings, &loaded.short_name(), &loaded.checkpoint().dir)?;
    interrupt::listen()?;
    let basis = Basis::cached(&loaded.model, &weights)?;
    let mut patient = Patient { model: &loaded.model, weights, mlp, basis };

    let failing = neurons::failing(&patient, &rows)?;
    let skipped = rows.len() - failing.len();
    let failures: Vec<TokenEdit> = failing.iter().map(|&index| rows[index].clone()).collect();
    say(format!(
        "{} rows: {} to repair, {skipped} skipped because the model already says their target{}",
        rows.len(),
        failures.len(),
        if of_other_kinds > 0 {
            format!("; {of_other_kinds} rows of other kinds left to eval --edits")
        } else {
            String::new()
        }
    ));
    if failures.is_empty() {
        return Err(Error::Check(
            "the model already says every target: there is nothing to repair".into(),
        )
        .into());
    }
    let before = measure(&patient, &failures, &text)?;

    let fingerprint = Fingerprint::new([
        ("model", loaded.checkpoint().hash()?),
        ("data", sha256.clone()),
        ("method", format!("{} {recipe:?}", method.name)),
        ("--seed", settings.seed.to_string()),
        ("--dtype", format!("{:?}", loaded.precision)),
    ]);
    let mut journal = Journal::open(args, &settings, &out, fingerprint, &mut patient)?;
    if args.resume {
        say(format!("going on from step {}", journal.reached().steps));
    }
    let mut at = journal.reached().position.clone();
    let built = (method.build)(recipe.clone());
    patient.weights.set_precision(loaded.precision);
    neurons::repair(built.as_ref(), &mut patient, &failures, recipe.rounds, &mut at, &mut journal)?;
    let Reached { worst_residual, seconds: repair_seconds, .. } = journal.finish(&patient, &at)?;
    let steps = read_steps(&out.dir.join("steps.jsonl"))?;
    // What is reported is measured as users will run it.
    patient.weights.set_precision(Precision::F32);
    super::rounded(loaded, &mut patient.weights, &out)?;
    let after = measure(&patient, &failures, &text)?;
    let left = neurons::failing(&patient, &failures)?.len();
    if interrupt::asked() {
        return Err(out.interrupted(steps.len()));
    }
    let changed = changed(&patient)?;
    if changed.is_empty() {
        out.forget()?;
        return Err(Error::Check(format!(
            "nothing changed ({} tokens were given up in {repair_seconds:.2} s, their changes undone), so {} was not made",
            at.pass.given_up,
            out.path.display()
        ))
        .into());
    }
    let base_hashes = loaded.checkpoint().hashes()?.clone();

    out.write(loaded.checkpoint(), &patient.weights)?;
    let written = Checkpoint::open(&out.partial, "output", None)?;
    let sliced = count_blocks(&steps);
    let changes =
        out.verify(loaded.checkpoint(), &written, &loaded.model, &patient.weights, &sliced)?;
    let patch_path = out.dir.join("patch.safetensors");
    patch::write(loaded.checkpoint(), &written, &changes, &patch_path).context("the patch")?;
    verify(loaded, &changes, &patch_path, &patient, &changed)?;
    let neurons = serde_json::to_string(&NeuronsRecord::new(&patient, &loaded.encoder, &changed)?)?;
    files::write_whole(&out.dir.join(NEURONS), neurons.as_bytes())?;
    let channels = loaded.model.sizes().channels;
    let run = RunRecord {
        format_version: 1,
        irepair: env!("CARGO_PKG_VERSION").into(),
        model: recorded_name(&settings, loaded),
        base_revision: loaded.checkpoint().revision.clone(),
        base_sha256: base_hashes,
        seed: settings.seed,
        resolved: settings.resolved(super::rows::lengths(&settings, loaded)?, 0)?,
        data: record(&settings, loaded, sha256, failures.len(), text.len()),
        settings,
        scorer: "none".into(),
        before,
        after,
        steps: steps.len(),
        kept_step: steps.len(),
        step_seconds: steps.iter().map(|s| s.seconds).sum(),
        tokens: steps.iter().map(|s| s.tokens).sum(),
        operations: steps.iter().map(|s| s.operations).sum(),
        stopped: if left == 0 {
            "every target is said".into()
        } else {
            format!("{left} targets are still not said")
        },
        sliced,
        edits: Some(EditsRecord {
            skipped,
            failures: failures.len(),
            repaired: failures.len() - left,
            rounds: at.rounds,
            tried: at.tried,
            given_up: at.pass.given_up,
            worst_residual,
            repair_seconds,
            neurons: changed.iter().map(|(&block, neurons)| (block, neurons.len())).collect(),
        }),
        changed: changes,
        changed_parameters: changed.values().map(|neurons| neurons.len() * channels).sum(),
        parameters: parameters(&loaded.model),
        seconds: begun.elapsed().as_secs_f64(),
        peak_rss_mib: device::peak_rss_mib(),
        threads: rayon::current_num_threads(),
        device: device_name(loaded),
        dtype: loaded.precision,
    };
    out.finish(&run, loaded.checkpoint())?;
    if args.output.json {
        println!("{}", serde_json::to_string(&run)?);
    } else {
        print!("{}", summary(&run, &out.path));
    }
    Ok(())
}

/// What was read.
struct Rows {
    failures: Vec<TokenEdit>,
    /// Of prompts and targets.
    sha256: String,
    /// How many rows are no failures.
    of_other_kinds: usize,
}

/// The failures among the rows of `--data`, or of the demo, and how many rows are none.
pub fn failures(settings: &RepairSettings) -> Result<(Vec<Edit>, usize)> {
    let edits: Vec<Edit> = match &settings.data {
        Some(path) => data::read_edits(path, &data::parse_map(&settings.map)?, None)?,
        None => data::parse_edits("demo edits", demo::EDITS)?,
    };
    let all = edits.len();
    let mut failures: Vec<Edit> =
        edits.into_iter().filter(|edit| edit.kind == EditKind::Failure).collect();
    let of_other_kinds = all - failures.len();
    failures.truncate(settings.limit.unwrap_or(usize::MAX));
    if failures.is_empty() {
        bail_input!("no row is a failure: there is nothing to repair");
    }
    Ok((failures, of_other_kinds))
}

fn read(settings: &RepairSettings, loaded: &Loaded) -> Result<Rows> {
    let (failures, of_other_kinds) = failures(settings)?;
    let sha256 =
        files::hash_texts(failures.iter().flat_map(|e| [e.prompt.as_str(), e.target.as_str()]));
    Ok(Rows {
        failures: loaded.encoder.edits(&failures, loaded.model.sizes().context)?,
        sha256,
        of_other_kinds,
    })
}

/// NLL of the targets and perplexity of the text.
fn measure(patient: &Patient, failures: &[TokenEdit], text: &[u32]) -> Result<Measures> {
    let view = patient.weights.frozen(Who::Patient)?;
    let (mut nats, mut count) = (0f64, 0usize);
    for rows in failures.chunks(8) {
        let batch = neurons::batch(rows);
        nats += f64::from(loss::nll(patient.model, &view, &batch)?.to_scalar::<f32>()?)
            * batch.rows.len() as f64;
        count += batch.rows.len();
    }
    let ppl = match text {
        [] => None,
        text => Some(perplexity(patient.model, &view, text)?.value),
    };
    Ok(Measures { nll_chosen: Some(nats / count as f64), ppl, ..Measures::default() })
}

/// Errors (a failed check) if anything but rows of the changed neurons differs on disk.
fn verify(
    loaded: &Loaded,
    changes: &[Change],
    patch: &Path,
    patient: &Patient,
    changed: &Changed,
) -> Result<()> {
    let patch = PatchFile::open(patch)?;
    let axis = match patient.mlp.orientation {
        Orientation::InOut => 0,
        Orientation::OutIn => 1,
    };
    for change in changes {
        let lines = patch.tensors.get(&change.name).and_then(|entry| entry.lines.clone());
        let expected = changed.iter().find(|(block, _)| {
            loaded.checkpoint().disk_name(&patient.mlp.weight(**block))
                == Some(change.name.as_str())
        });
        let as_expected = expected.is_some_and(|(_, neurons)| match &lines {
            Some(lines) if lines.axis == axis => {
                lines.indices.iter().eq(neurons.iter().map(|(neuron, _)| neuron))
            }
            // All neurons, or fewer lines of the other axis.
            _ => true,
        });
        if !as_expected {
            return Err(Error::Check(format!(
                "{}: other rows changed than those of the neurons",
                change.name
            ))
            .into());
        }
    }
    Ok(())
}

fn record(
    settings: &RepairSettings,
    loaded: &Loaded,
    sha256: String,
    failures: usize,
    perplexity_tokens: usize,
) -> DataRecord {
    DataRecord {
        sha256,
        pairs: failures,
        held_back: 0,
        normal: 0,
        normal_held_back: 0,
        normal_removed_as_toxic: None,
        cut_prompts: 0,
        cut_responses: 0,
        cut_texts: 0,
        perplexity_of: super::rows::perplexity_name(settings),
        perplexity_window: crate::eval::perplexity::window(&loaded.model),
        perplexity_tokens,
    }
}

/// A neuron-level repair that has not begun.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    model: String,
    blocks: usize,
    neurons: usize,
    parameters: usize,
    method: String,
    mode: Option<Mode>,
    rows: usize,
    target_tokens: usize,
    memory: Estimate,
    memory_mib: u64,
    available_mib: Option<u64>,
    out: String,
}

impl Plan {
    fn new(
        settings: &RepairSettings,
        method: &neurons::Entry,
        loaded: &Loaded,
        rows: &[TokenEdit],
        out: &Path,
    ) -> Self {
        let (sizes, recipe) = (loaded.model.sizes(), settings.neuron_recipe());
        let width = loaded.model.mlp().map_or(0, |mlp| mlp.neurons);
        let length = |row: &TokenEdit| row.prompt.len() + row.target.len();
        let longest = rows.iter().map(length).max().unwrap_or(0);
        let together = method.descends && recipe.mode == Mode::Batch;
        let (graph_rows, positions) = if together {
            (rows.iter().map(length).sum(), rows.iter().map(|row| row.target.len()).sum())
        } else {
            (longest, 1)
        };
        let matrix = width * sizes.channels;
        let passes = Passes {
            slice: matrix * recipe.blocks.of(sizes.blocks),
            slice_stays: true,
            keeps_originals: true,
            graph_rows,
            plain_rows: crate::eval::perplexity::window(&loaded.model).max(1024),
            ..Passes::default()
        };
        let mut memory = memory::estimate(&loaded.model, loaded.weights_dtype, &passes);
        // Neurons, steers and solutions in double precision, of as many blocks at a time as there are threads.
        let system = 2 * matrix + positions * (2 * width + 3 * sizes.channels + positions);
        let at_a_time = rayon::current_num_threads().min(sizes.blocks);
        memory
            .parts
            .push(Part { name: "linear systems".into(), bytes: (system * at_a_time * 8) as u64 });
        Self {
            model: settings.model.clone(),
            blocks: sizes.blocks,
            neurons: width * sizes.blocks,
            parameters: parameters(&loaded.model),
            method: settings.method.clone(),
            mode: method.descends.then_some(recipe.mode),
            rows: rows.len(),
            target_tokens: rows.iter().map(|row| row.target.len()).sum(),
            memory_mib: mib(memory.total()),
            available_mib: loaded
                .device
                .is_cpu()
                .then(crate::base::memory::available)
                .flatten()
                .map(|bytes| bytes >> 20),
            memory,
            out: out.display().to_string(),
        }
    }

    /// For people.
    fn text(&self) -> String {
        let mut text = format!(
            "model   {}: {} blocks, {} neurons, {} parameters\nmethod  {}\nrows    {} with {} target tokens\nout     {}\n\n",
            self.model,
            self.blocks,
            self.neurons,
            self.parameters,
            self.method,
            self.rows,
            self.target_tokens,
            self.out
        );
        let rows: Vec<[String; 2]> =
            self.memory.parts.iter().map(|p| [p.name.clone(), mib(p.bytes).to_string()]).collect();
        text += &table(["memory", "MiB"], &rows);
        let available =
            self.available_mib.map_or(String::new(), |mib| format!("; {mib} are available"));
        let _ = writeln!(text, "{} MiB at most{available}", self.memory_mib);
        text
    }
}

/// What happened, for people.
fn summary(run: &RunRecord, out: &Path) -> String {
    let mut text = table(["", "before", "after", "change"], &before_after(run));
    let Some(edits) = &run.edits else { return text };
    let _ = writeln!(
        text,
        "targets said now: {} of {} that the model got wrong ({} it already said)",
        edits.repaired, edits.failures, edits.skipped
    );
    let neurons =
        |block: Option<usize>| block.and_then(|b| edits.neurons.get(&b)).copied().unwrap_or(0);
    text += &changed_most(run, ["neurons", "of its output matrix"], neurons);
    let _ = writeln!(
        text,
        "{} neurons, {:.2} % of the parameters; all else is byte-equal to the base",
        edits.neurons.values().sum::<usize>(),
        100.0 * run.changed_parameters as f64 / run.parameters.max(1) as f64
    );
    if edits.worst_residual > 0.01 {
        let _ = writeln!(
            text,
            "the systems can't be met in full: up to {:.0} % of what the targets ask is left (too few neurons for as many \
             tokens, or prompts that look alike)",
            100.0 * edits.worst_residual
        );
    }
    if edits.given_up > 0 {
        let _ = writeln!(text, "{} tokens were given up, their changes undone", edits.given_up);
    }
    let _ = writeln!(
        text,
        "{} steps in {} rounds ({}); {:.1} s, {:.2} a failure{}",
        run.steps,
        edits.rounds,
        run.stopped,
        edits.repair_seconds,
        edits.repair_seconds / edits.failures.max(1) as f64,
        run.fallback()
    );
    let _ = writeln!(
        text,
        "undo: irepair patch revert {0} {0}/irepair/patch.safetensors --out base",
        out.display()
    );
    let _ = writeln!(
        text,
        "repaired: {} loads in transformers as it is; details in {0}/irepair/run.json",
        out.display()
    );
    let _ = writeln!(
        text,
        "next: irepair eval --model {} --model {} --edits FILE",
        run.model,
        out.display()
    );
    text
}
