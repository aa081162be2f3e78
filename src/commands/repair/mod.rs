//! `repair`: the main job.

mod journal;
mod neurons;
mod output;
mod plan;
mod rows;

use std::time::Instant;

use anyhow::{Context, Result};

use super::{Loaded, On, open};
use crate::base::error::Error;
use crate::base::interrupt;
use crate::base::profile::operations;
use crate::base::progress::Progress;
use crate::base::random::{Purpose, Stream};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::patch;
use crate::cli::Repair;
use crate::eval::perplexity::perplexity;
use crate::eval::{Measures, Yardstick};
use crate::model::Model;
use crate::model::device;
use crate::model::precision::Precision;
use crate::model::weights::{Weights, Who};
use crate::report::{DataRecord, RunRecord};
use crate::scorers;
use crate::settings::RepairSettings;
use crate::settings::ReportTo;
use crate::step::Method;
use crate::step::optim::Optimizer;
use crate::tokens::{PairBatch, TokenPair};
use crate::train::events::EventFile;
use crate::train::log::Cost;
use crate::train::log::{count_blocks, read_log};
use crate::train::state::Fingerprint;
use crate::train::{Diverged, End, Guard, Regime, Trainer};
use crate::{bail_input, checkpoint, report};
pub use neurons::failures;
use output::Output;
pub use rows::read_data;

pub fn run(args: &Repair) -> Result<()> {
    let begun = Instant::now();
    let settings = RepairSettings::resolve(args.config.as_deref(), &args.options)?;
    let RepairSettings { device, dtype, weights_dtype, .. } = &settings;
    let on = On { device, dtype: *dtype, weights_dtype: *weights_dtype, threads: args.threads };
    let loaded = open(&settings.model, settings.revision.as_deref(), &on)?;
    let say = |text: String| {
        if !args.output.quiet {
            eprintln!("{text}");
        }
    };
    say(format!("device: {} ({})", device_name(&loaded), loaded.device_why));
    if let Some(method) = settings.neuron_method() {
        return neurons::run(args, settings, method, &loaded, begun);
    }
    // All that can be wrong with the input is found before anything is made.
    settings.recipe()?.slicing.check(&loaded.model)?;
    let scorer = scorers::open(
        &settings.scorer,
        &scorers::Options { toxic_label: settings.toxic_label.clone() },
    )?;
    let mut rows = rows::read_pairs(&settings, &loaded)?;
    rows::check(&settings, &rows, &loaded.model)?;
    if args.dry_run {
        let path = Output::path(args, &settings, &loaded.short_name())?;
        Output::free(args, &path, &loaded.checkpoint().dir)?;
        Output::to_resume(args, &path)?;
        Output::not_begun(args, &path)?;
        let plan = plan::plan(&settings, &loaded, &rows, &path)?;
        print!(
            "{}",
            if args.output.json { serde_json::to_string(&plan)? + "\n" } else { plan.text() }
        );
        return plan.memory.judge(&loaded.device, plan::ADVICE);
    }
    if loaded.device.is_cpu() {
        plan::estimate(&settings, &loaded, &rows)?
            .check(crate::base::memory::limit()?, plan::ADVICE)?;
    }
    let mut weights = loaded.weights()?;
    let out = Output::claim(args, &settings, &loaded.short_name(), &loaded.checkpoint().dir)?;
    interrupt::listen()?;
    rows::write_own_normal(
        &settings,
        &loaded,
        &weights,
        scorer.as_ref(),
        &mut rows,
        &out.dir,
        args.output.quiet,
    )?;
    say(rows.summary());

    let yardstick = Yardstick {
        scorer: scorer.as_ref(),
        encoder: &loaded.encoder,
        pairs: &rows.train.valid_pairs.clone(),
        loss_on: settings.loss_on,
        prompts: &rows.prompts,
        protocol: &rows.protocol,
        text: &rows.text,
        normal: &rows.train.valid_normal.clone(),
        ends: loaded.ends(),
    };
    let (before, said_before) = yardstick.measure(&loaded.model, &weights, Who::Patient)?;
    if interrupt::asked() {
        return Err(Error::Interrupted(
            "interrupted before the first step; nothing is lost".into(),
        )
        .into());
    }

    let base_sha256 = loaded.checkpoint().hashes()?.clone();
    let base_hash = loaded.checkpoint().hash()?;
    let guard = guard(&settings, &loaded.model, &weights, &before, &rows.text)?;
    let mut trainer =
        trainer(&settings, &loaded, &mut weights, rows.train, &out, &base_hash, args.resume)?;
    trainer.guard = guard;
    if args.resume {
        trainer.resume()?;
        let after = match trainer.trials.len() {
            tried if trainer.step == 0 && tried > 0 => format!(", after {tried} trials"),
            _ => String::new(),
        };
        say(format!("going on from step {}{after}", trainer.step));
    }
    if settings.report_to == ReportTo::Tensorboard {
        // Trials are not made again, so what stands at step 0 stays with them.
        let anew = trainer.step == 0 && trainer.trials.is_empty();
        let first = if anew { 0 } else { trainer.step + 1 };
        trainer.curves = Some(EventFile::create(&out.dir.join("tensorboard"), first)?);
    }
    let mut progress = Progress::new("repair", trainer.step, settings.max_steps, args.output.quiet);
    trainer.weights.set_precision(loaded.precision);
    let end = trainer.run(&mut progress);
    // What is reported is measured as users will run it.
    trainer.weights.set_precision(Precision::F32);
    progress.finish();
    let end = end.map_err(|e| out.explain(e))?;
    if end == End::Interrupted {
        return Err(out.interrupted(trainer.step));
    }
    if matches!(end, End::Guarded(_)) && trainer.best.is_none() {
        out.forget()?;
        return Err(Error::Check(
            "the guard tripped at the first validation: perplexity rose beyond --max-ppl-increase, and nothing is left to \
             keep; lower --learning-rate, or validate more often (--eval-steps)"
                .into(),
        )
        .into());
    }
    // Finished work is safe before anything else is tried, and what is measured is what will be on disk.
    trainer.save()?;
    // Measuring and writing need room of their own.
    let kept_step = trainer.best.take().map_or(trainer.step, |b| b.step);
    trainer.optimizer.states.clear();
    rounded(&loaded, &mut trainer.weights, &out)?;
    let (after, said_after) = yardstick.measure(&loaded.model, &trainer.weights, Who::Patient)?;
    if interrupt::asked() {
        return Err(out.interrupted(trainer.step));
    }

    let (steps, mut cost) = read_log(&out.dir.join("steps.jsonl"))?;
    cost += trainer.look;
    steps.iter().for_each(|step| cost += step.cost());
    let mut run = RunRecord {
        format_version: report::FORMAT_VERSION,
        irepair: env!("CARGO_PKG_VERSION").into(),
        model: recorded_name(&settings, &loaded),
        base_revision: loaded.checkpoint().revision.clone(),
        base_sha256,
        seed: settings.seed,
        resolved: settings.resolved(rows::lengths(&settings, &loaded)?, rows.record.held_back)?,
        settings,
        data: DataRecord { perplexity_tokens: rows.text.len(), ..rows.record },
        scorer: format!("{}: {}", yardstick.scorer.name(), yardstick.scorer.about()),
        before,
        after,
        steps: steps.len(),
        step_seconds: cost.seconds,
        tokens: cost.tokens,
        operations: cost.operations,
        kept_step,
        stopped: match end {
            End::Patience => "the validation loss no longer improved".into(),
            End::Guarded(ppl) => format!("the guard: perplexity {ppl:.3}"),
            _ => "all steps made".into(),
        },
        sliced: count_blocks(&steps),
        edits: None,
        changed: Vec::new(),
        changed_parameters: 0,
        parameters: parameters(&loaded.model),
        seconds: 0.0,
        peak_rss_mib: None,
        threads: rayon::current_num_threads(),
        device: device_name(&loaded),
        dtype: loaded.precision,
    };
    let left_out = out.write(loaded.checkpoint(), &trainer.weights)?;
    let written = Checkpoint::open(&out.partial, "output", None)?;
    run.changed =
        out.verify(loaded.checkpoint(), &written, &loaded.model, &trainer.weights, &run.sliced)?;
    let patch_path = out.dir.join("patch.safetensors");
    patch::write(loaded.checkpoint(), &written, &run.changed, &patch_path).context("the patch")?;
    rows::write_prompts(&loaded, &rows.prompts, &rows.protocol, &out.dir)?;
    rows::write_samples(&loaded, &rows.prompts, &rows.protocol, said_before, said_after, &out.dir)?;
    run.changed_parameters = run.changed.iter().map(|c| c.values).sum();
    run.seconds = begun.elapsed().as_secs_f64();
    run.peak_rss_mib = device::peak_rss_mib();
    out.finish(&run, loaded.checkpoint())?;
    if !left_out.is_empty() {
        say(format!(
            "not copied, being the unrepaired weights in another form or what training goes on from: {}",
            left_out.join(", ")
        ));
    }
    if args.output.json {
        println!("{}", serde_json::to_string(&run)?);
    } else {
        print!("{}", output::summary(&run, &out.path, &loaded.model));
    }
    if let End::Guarded(ppl) = end {
        return Err(Error::Check(format!(
            "the guard tripped: perplexity {ppl:.3} is more than --max-ppl-increase above the base's; the weights of step {} \
             are kept in {}",
            run.kept_step,
            out.path.display()
        ))
        .into());
    }
    Ok(())
}

/// The guard that the settings ask for: a limit on the perplexity of the text's first tokens.
fn guard(
    settings: &RepairSettings,
    model: &Model,
    weights: &Weights,
    before: &Measures,
    text: &[u32],
) -> Result<Option<Guard>> {
    /// Enough for a steady figure, few enough for every validation.
    const TOKENS: usize = 16_384;
    let Some(percent) = settings.max_ppl_increase else { return Ok(None) };
    if before.ppl.is_none() {
        bail_input!("{}", rows::NO_TEXT);
    }
    let text = &text[..text.len().min(TOKENS)];
    let view = weights.frozen(Who::Reference)?;
    let base = perplexity(model, &view, text)?.value;
    if !base.is_finite() {
        bail_input!(
            "--max-ppl-increase: the base's own perplexity is {base}, and nothing is above that; give another text"
        );
    }
    Ok(Some(Guard { text: text.to_vec(), limit: base * (1.0 + percent / 100.0) }))
}

fn device_name(loaded: &Loaded) -> String {
    match loaded.device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".into(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

/// The model's name in the record.
fn recorded_name(settings: &RepairSettings, loaded: &Loaded) -> String {
    match loaded.checkpoint().revision {
        Some(_) => loaded.checkpoint().name.clone(),
        None => settings.model.clone(),
    }
}

fn parameters(model: &Model) -> usize {
    model.specs().iter().map(|s| s.shape.iter().product::<usize>()).sum()
}

/// Rounds what is written to the dtypes it is stored in. After a failed check nothing is left in the way of a corrected
/// command.
fn rounded(loaded: &Loaded, weights: &mut Weights, out: &Output) -> Result<()> {
    loaded.checkpoint().round(weights).or_else(|error| {
        if matches!(error.downcast_ref(), Some(Error::Check(_))) {
            out.forget()?;
        }
        Err(error)
    })
}

/// The loop, set up as the settings say; takes the weights.
fn trainer<'a>(
    settings: &RepairSettings,
    loaded: &'a Loaded,
    weights: &mut Weights,
    rows: crate::train::Rows,
    out: &Output,
    base_hash: &str,
    resume: bool,
) -> Result<Trainer<'a>> {
    let mut method = Method::new(&settings.recipe()?)?;
    let telltales = method.objective.learn(&rows.pairs, loaded.model.sizes().vocabulary)?;
    rows::write_telltales(loaded, &telltales, &out.dir)?;
    let looks = method.select.looks_first();
    let sample = settings.looked_at(rows.pairs.len());
    // A state holds what was seen.
    let look = match looks && !resume {
        true => look(
            &mut method,
            settings,
            loaded,
            weights,
            &drawn(&rows.pairs, sample, settings.seed),
        )?,
        false => Cost::default(),
    };
    if interrupt::asked() {
        return Err(Error::Interrupted(
            "interrupted before the first step; nothing is lost".into(),
        )
        .into());
    }
    let validates = (settings.eval_steps > 0 || !method.select.trials(&loaded.model).is_empty())
        && !rows.valid_pairs.is_empty();
    // Going back to the best weights may mean going back to an original, too.
    let measures_kl = !rows.valid_normal.is_empty();
    weights.keep_originals(method.needs_reference() || validates || measures_kl);
    let regime = Regime {
        batch_size: settings.batch_size,
        accumulation: settings.gradient_accumulation_steps,
        trial_steps: settings.trial_steps,
        max_steps: settings.max_steps,
        learning_rate: settings.learning_rate,
        warmup: settings.warmup(),
        schedule: settings.schedule,
        max_grad_norm: settings.max_grad_norm,
        eval_steps: settings.eval_steps,
        patience: settings.patience,
        save_steps: settings.save_steps,
        checkpoint_steps: settings.checkpoint_steps,
        loss_on: settings.loss_on,
        seed: settings.seed,
    };
    let fingerprint = Fingerprint::new([
        ("model", base_hash.into()),
        // Which pairs are held back depends on it, so it comes before the data.
        ("--seed", settings.seed.to_string()),
        ("data", rows.hash()),
        ("method", format!("{:?}", settings.recipe()?)),
        ("--fixed-sample", if looks { sample.to_string() } else { "none".into() }),
        ("--optimizer", format!("{:?}", settings.optimizer)),
        ("--loss-on", format!("{:?}", settings.loss_on)),
        ("--batch-size", settings.batch_size.to_string()),
        ("--gradient-accumulation-steps", settings.gradient_accumulation_steps.to_string()),
        ("--dtype", format!("{:?}", loaded.precision)),
    ]);
    let empty = Weights::new(Vec::new(), Default::default())?;
    Ok(Trainer {
        model: &loaded.model,
        weights: std::mem::replace(weights, empty),
        method,
        optimizer: Optimizer::new(settings.optimizer),
        regime,
        rows,
        step: 0,
        best: None,
        stale: 0,
        look,
        trials: Vec::new(),
        guard: None,
        tripped: None,
        curves: None,
        dir: out.dir.clone(),
        base_sha256: base_hash.into(),
        fingerprint,
    })
}

/// A seeded choice of rows, in their order.
fn drawn<T>(rows: &[T], size: usize, seed: u64) -> Vec<&T> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    Stream::new(seed, Purpose::Look, 0, 0).shuffle(&mut order);
    order.truncate(size);
    order.sort_unstable();
    order.into_iter().map(|index| &rows[index]).collect()
}

/// The selector's look at the pairs, and what it took.
fn look(
    method: &mut Method,
    settings: &RepairSettings,
    loaded: &Loaded,
    weights: &Weights,
    pairs: &[&TokenPair],
) -> Result<Cost> {
    let (begun, counted, mut seen) = (Instant::now(), operations(), 0);
    let mut batches =
        pairs.chunks(settings.batch_size).take_while(|_| !interrupt::asked()).map(|pairs| {
            let batch = PairBatch::new(pairs, settings.loss_on);
            seen += batch.rejected.packed.ids.len();
            batch
        });
    method.select.prepare(&loaded.model, weights, &mut batches)?;
    drop(batches);
    Ok(Cost::since(begun, counted, seen))
}

impl Output {
    /// What the user can do after an error in the loop.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        if error.downcast_ref::<Diverged>().is_some() {
            let advice = format!(
                "the last good state is kept in {}; go on with --resume and a lower --learning-rate",
                self.dir.display()
            );
            return error.context(advice);
        }
        error
    }

    fn interrupted(&self, step: usize) -> anyhow::Error {
        Error::Interrupted(format!(
            "interrupted after step {step}; the state is saved in {}: give the same command with --resume to go on",
            self.dir.display()
        ))
        .into()
    }
}

impl Output {
    /// Copies the base and puts the changed tensors in place. Returns what was not copied.
    fn write(&self, base: &Checkpoint, weights: &Weights) -> Result<Vec<String>> {
        let left_out = checkpoint::write(base, weights, &self.partial)?;
        Ok(left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_drawn_by_the_seed_from_all_rows() {
        let rows: Vec<usize> = (0..100).collect();
        let of = |size, seed| drawn(&rows, size, seed).into_iter().copied().collect::<Vec<_>>();
        assert_eq!(of(100, 1), rows);
        let (one, other) = (of(10, 1), of(10, 2));
        assert!(one.len() == 10 && one.is_sorted() && one != other && one == of(10, 1));
        assert!(one.last() > Some(&50), "only the first rows: {one:?}");
    }
}
