//! A block-level repair: pairs to learn from, steps on slices.

use std::collections::HashSet;

use anyhow::{Context, Result};

use super::again::fingerprint;
use super::done::Done;
use super::job::{Job, Kept, MeasuredOn};
use super::measure::Measured;
use super::output::{Output, Written};
use super::plan::{Own, PairsPlan};
use super::rows::{self, Rows};
use super::time::Phase;
use super::{Order, beside, normal, phases, plan};
use crate::bail_input;
use crate::base::error::Error;
use crate::base::memory::{OF_A_TEXT, check_room};
use crate::base::progress::Progress;
use crate::commands::eval::subject;
use crate::eval::divergence::{Base, Divergence};
use crate::eval::nll::{Nll, Responses};
use crate::eval::perplexity::{Paper, perplexity};
use crate::eval::samples::{Pool, Writer};
use crate::eval::task::{Task, hash_ids};
use crate::eval::toxicity::{Prompt, Toxicity};
use crate::eval::{self, Figures};
use crate::model::memory::Estimate;
use crate::model::precision::Precision;
use crate::model::weights::{Weights, Who};
use crate::report::DataRecord;
use crate::scorers::{self, Scorer};
use crate::settings::ReportTo;
use crate::slice::select::First;
use crate::step::Recipe;
use crate::step::optim::Optimizer;
use crate::tokens::TokenPair;
use crate::train::budget::Budget;
use crate::train::events::EventFile;
use crate::train::log::{Cost, read_log};
use crate::train::online::{Online, held_back};
use crate::train::{End, Guard, Regime, Trainer};

pub struct Blocks<'a> {
    order: Order<'a>,
    recipe: &'a Recipe,
    scorer: Box<dyn Scorer>,
    /// The scorer of the figures before and after, if it is another one.
    judge: Option<Box<dyn Scorer>>,
    rows: Rows,
}

impl<'a> Blocks<'a> {
    /// Reads the rows. Errors (bad input) before anything is made.
    pub fn read(order: Order<'a>, recipe: &'a Recipe) -> Result<Self> {
        let Order { prepared, loaded, .. } = order;
        recipe.slicing.check(&loaded.model)?;
        let options = scorers::Options { toxic_label: prepared.toxic_label.clone() };
        let scorer = scorers::open(&prepared.scorer, &options)?;
        let other = prepared.eval_scorer.as_ref().filter(|judge| **judge != prepared.scorer);
        let judge = other.map(|judge| scorers::open(judge, &options)).transpose();
        let judge = judge.context("--eval-scorer")?;
        let read = if recipe.online { rows::read_prompts } else { rows::read_pairs };
        let rows = read(prepared, recipe, loaded)?;
        rows::check(prepared, recipe, &rows, &loaded.model)?;
        let texts = rows.prompts.len().saturating_mul(prepared.eval_samples);
        check_room("--eval-samples", texts, OF_A_TEXT)?;
        Ok(Self { order, recipe, scorer, judge, rows })
    }
}

impl Job for Blocks<'_> {
    fn memory(&self) -> Result<Estimate> {
        plan::estimate(&self.order, self.recipe, &self.rows)
    }

    fn advice(&self) -> &'static str {
        "lower --batch-size (and raise --gradient-accumulation-steps), --max-length or \
         --normal-texts, take a block-level method, or a smaller model"
    }

    fn plan(&self) -> Result<Own> {
        Ok(Own::Pairs(Box::new(PairsPlan::new(&self.order, self.recipe, &self.rows))))
    }

    fn phases(&self, weights: &mut Weights) -> Result<Vec<Phase>> {
        phases::phases(&self.order, self.recipe, &self.rows, self.scorer.as_ref(), weights)
    }

    fn begin(&mut self, weights: &Weights, out: &Output) -> Result<()> {
        let prepared = self.order.prepared;
        if prepared.normal.is_none() && self.recipe.needs_normal() {
            self.write_normal(weights, out)?;
        }
        if self.recipe.online && self.rows.validates(prepared, self.recipe) {
            let pairs = self.held_back_pairs(weights, out);
            self.rows.train.valid_pairs = pairs.map_err(Output::before_the_first_step)?;
        }
        self.order.say(self.rows.summary());
        if let Some(words) = self.rows.seen_too_often(prepared) {
            self.order.say(words);
        }
        Ok(())
    }

    fn tasks(&self) -> Result<Vec<Box<dyn Task + '_>>> {
        let Order { prepared, loaded, .. } = self.order;
        let Rows { train, prompts, protocol, text, record, .. } = &self.rows;
        let mut tasks: Vec<Box<dyn Task>> = Vec::new();
        if !prompts.is_empty() {
            let prompt =
                |ids: &Vec<u32>| Ok(Prompt { text: loaded.encoder.decode(ids)?, ids: ids.clone() });
            let prompts: Vec<Prompt> = prompts.iter().map(prompt).collect::<Result<_>>()?;
            let scorer = self.judge();
            // A greedy text is the model at its most certain; a user sees sampled ones.
            if prepared.eval_samples > 0 {
                let protocol = protocol.sampled(prepared.eval_samples);
                tasks.push(Box::new(Toxicity { protocol, prompts: prompts.clone(), scorer }));
            }
            tasks.insert(0, Box::new(Toxicity { protocol: protocol.clone(), prompts, scorer }));
        }
        if !train.valid_pairs.is_empty() {
            let of = |responses, response: fn(&TokenPair) -> &Vec<u32>| {
                let pairs = train.valid_pairs.iter().filter(|p| !response(p).is_empty());
                let sequences = pairs.map(|p| (p.prompt.clone(), response(p).clone())).collect();
                Nll { responses, sequences, loss_on: prepared.loss_on }
            };
            let sides =
                [of(Responses::Chosen, |p| &p.chosen), of(Responses::Rejected, |p| &p.rejected)];
            for side in sides.into_iter().filter(|side| !side.sequences.is_empty()) {
                tasks.push(Box::new(side));
            }
        }
        if !text.is_empty() {
            tasks.push(Box::new(Paper::of(&record.perplexity_of, text, &loaded.model)));
        }
        if !train.valid_normal.is_empty() {
            tasks.push(Box::new(Divergence {
                base: Base::Reference,
                texts: train.valid_normal.clone(),
                texts_name: "held back".into(),
            }));
        }
        Ok(tasks)
    }

    fn repair(&mut self, weights: Weights, before: &Figures, out: &Output) -> Result<Done> {
        let Order { prepared, loaded, args } = self.order;
        let guard = self.guard(&weights, before)?;
        let online = self.online();
        let mut trainer = self.trainer(weights, out)?;
        trainer.guard = guard;
        trainer.online = online;
        if args.resume {
            trainer.resume()?;
            let after = match trainer.trials.len() {
                tried if trainer.step == 0 && tried > 0 => format!(", after {tried} trials"),
                _ => String::new(),
            };
            self.order.say(format!("going on from step {}{after}", trainer.step));
        }
        if prepared.report_to == ReportTo::Tensorboard {
            // Trials are not made again, so what stands at step 0 stays with them.
            let anew = trainer.step == 0 && trainer.trials.is_empty();
            let first = if anew { 0 } else { trainer.step + 1 };
            trainer.curves = Some(EventFile::create(&out.dir.join("tensorboard"), first)?);
        }
        let total = prepared.max_steps;
        let mut progress = Progress::new("repair", trainer.step, total, args.output.quiet);
        trainer.weights.set_precision(loaded.precision);
        let end = trainer.run(&mut progress);
        // What is reported is measured as users will run it.
        trainer.weights.set_precision(Precision::F32);
        progress.finish();
        let step = trainer.step;
        let end = end.or_else(|error| {
            // Nothing to learn from is no work that could go on.
            if matches!(error.downcast_ref(), Some(Error::Check(_))) {
                out.forget()?;
            }
            Err(out.while_measuring(out.explain(error), step))
        })?;
        if end == End::Interrupted {
            return Err(out.interrupted(trainer.step));
        }
        if matches!(end, End::Guarded(_)) && trainer.best.is_none() {
            out.forget()?;
            return Err(Error::Check(
                "the guard tripped at the first validation: perplexity rose beyond \
                 --max-ppl-increase, and nothing is left to keep; lower --learning-rate, or \
                 validate more often (--eval-steps)"
                    .into(),
            )
            .into());
        }
        // Finished work is safe before anything else is tried.
        trainer.save()?;
        let kept_step = trainer.best.take().map_or(trainer.step, |b| b.step);
        let (steps, mut cost) = read_log(&out.dir.join("steps.jsonl"))?;
        cost += trainer.look;
        steps.iter().for_each(|step| cost += step.cost());
        Ok(Done {
            // The optimizer goes: measuring and writing need room of their own.
            changed_settings: trainer.changed,
            weights: trainer.weights,
            steps,
            cost,
            kept_step,
            stopped: {
                let why = match end {
                    End::Patience => "the validation loss no longer improved".into(),
                    End::Guarded(ppl) => format!("the guard: perplexity {ppl:.3}"),
                    End::Clean => "no sampled text was toxic any more".into(),
                    _ => "all steps made".to_owned(),
                };
                match trainer.scaled {
                    Some(factor) => {
                        format!("{why}; the change scaled by {factor:.3} to keep --kl-budget")
                    }
                    None => why,
                }
            },
            guarded: match end {
                End::Guarded(ppl) => Some(ppl),
                _ => None,
            },
        })
    }

    fn unchanged(&self) -> String {
        "the output equals the base; try more steps or a higher --learning-rate".into()
    }

    fn keep(
        &self,
        _done: &Done,
        _written: &Written,
        before: &Measured,
        after: &Measured,
        out: &Output,
    ) -> Result<Kept> {
        let Rows { prompts, protocol, .. } = &self.rows;
        beside::write_prompts(self.order.loaded, prompts, protocol, &out.dir)?;
        for sampled in [false, true] {
            let rows = (before.continuations(sampled), after.continuations(sampled));
            let path = out.dir.join(if sampled { "sampled.jsonl" } else { "samples.jsonl" });
            beside::write_samples(self.order.loaded, prompts, protocol, rows, &path)?;
        }
        Ok(Kept::default())
    }

    fn data(&self) -> DataRecord {
        DataRecord { perplexity_tokens: self.rows.text.len(), ..self.rows.record.clone() }
    }

    fn measured_on(&self) -> Result<MeasuredOn> {
        let Order { prepared, loaded, .. } = self.order;
        let Rows { prompts, train, sampled, record, .. } = &self.rows;
        let longest = rows::lengths(prepared, loaded)?.prompt;
        let learned: HashSet<&[u32]> = (train.pairs.iter().map(|pair| &pair.prompt))
            .chain(sampled.iter().map(|prompt| &prompt.ids))
            .map(Vec::as_slice)
            .collect();
        let cut = |ids: &Vec<u32>| ids.len().min(longest);
        let known = |ids: &&Vec<u32>| learned.contains(&ids[..cut(ids)]);
        let learned_from = prompts.iter().filter(known).count();
        let among = match learned_from {
            0 => String::new(),
            n => format!(" ({n} of them were learned from)"),
        };
        let mut parts = Vec::new();
        if !prompts.is_empty() {
            let n = prompts.len();
            parts.push(match (&prepared.eval_prompts, prepared.model.as_str()) {
                (Some(path), _) => {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    format!("{n} prompts of {name}{among}")
                }
                (None, "demo") => format!("the demo's {n} held-back prompts{among}"),
                (None, _) => format!("{n} held-back prompts"),
            });
        }
        for (n, what) in [
            (train.valid_pairs.len(), "held-back pairs"),
            (record.normal_held_back, "held-back normal texts"),
        ] {
            if n > 0 {
                parts.push(format!("{n} {what}"));
            }
        }
        Ok(MeasuredOn { rows: parts.join(", "), learned_from })
    }

    fn held_back(&self) -> usize {
        self.rows.record.held_back
    }

    fn scorer(&self) -> String {
        let judge = self.judge();
        let own = self.recipe.online && self.judge.is_none();
        let own = if own { " (the repair learned from it)" } else { "" };
        format!("{}: {}{own}", judge.name(), judge.about())
    }
}

impl<'a> Blocks<'a> {
    /// What scores continuations before and after.
    fn judge(&self) -> &dyn Scorer {
        self.judge.as_deref().unwrap_or(self.scorer.as_ref())
    }

    /// The model writes its own normal texts, and they are kept with the run.
    fn write_normal(&mut self, weights: &Weights, out: &Output) -> Result<()> {
        let Order { prepared, loaded, args } = self.order;
        let number = prepared.normal_texts;
        self.order
            .say(format!("normal text: the model writes {number} texts (or give --normal FILE)"));
        let scorer = self.scorer.as_ref();
        let found = normal::write(prepared, loaded, weights, scorer, args.output.quiet)?;
        if found.cached {
            self.order.say("normal text: kept from an earlier run".into());
        }
        let kept = found.texts.len();
        if 2 * kept < number {
            self.order.say(format!(
                "only {kept} of {number} normal texts are left ({} toxic, {} empty): so few hold \
                 the model to little; give --normal FILE, or raise --normal-texts",
                found.removed,
                number - kept - found.removed
            ));
        }
        self.rows.record.normal_removed_as_toxic = Some(found.removed);
        let own = out.dir.join("normal.jsonl");
        eval::normal::write(&own, &found.texts)?;
        self.rows.take_normal(prepared, self.recipe, loaded, &own)
    }

    /// The guard that the settings ask for: a limit on the perplexity of the text's first tokens.
    fn guard(&self, weights: &Weights, before: &Figures) -> Result<Option<Guard>> {
        /// Enough for a steady figure, few enough for every validation.
        const TOKENS: usize = 16_384;
        let Order { prepared, loaded, .. } = self.order;
        let Some(percent) = prepared.max_ppl_increase else { return Ok(None) };
        if !before.contains_key("ppl") {
            bail_input!("{}", rows::NO_TEXT);
        }
        let text = &self.rows.text[..self.rows.text.len().min(TOKENS)];
        let view = weights.frozen(Who::Reference)?;
        let base = perplexity(&loaded.model, &view, text)?.value;
        if !base.is_finite() {
            bail_input!(
                "--max-ppl-increase: the base's own perplexity is {base}, and nothing is above \
                 that; give another text"
            );
        }
        Ok(Some(Guard { text: text.to_vec(), limit: base * (1.0 + percent / 100.0) }))
    }

    /// The loop, set up as the settings say.
    fn trainer(&self, mut weights: Weights, out: &Output) -> Result<Trainer<'a>> {
        let Order { prepared, loaded, args } = self.order;
        let rows = self.rows.train.clone();
        let mut method = self.recipe.clone().build();
        // What is sampled is learned from later.
        if !self.recipe.online {
            let vocabulary = loaded.model.sizes().vocabulary;
            if let Some(artefact) = method.objective.learn(&rows.pairs, vocabulary)? {
                artefact.write(&loaded.encoder, &out.dir)?;
            }
        }
        let looks = self.recipe.first() == First::Look;
        let sample = match self.recipe.online {
            // Those of the first round.
            true => prepared.fixed_sample.unwrap_or(2000),
            false => prepared.looked_at(rows.pairs.len()),
        };
        let validates = self.rows.validates(prepared, self.recipe);
        // Going back to the best weights may mean going back to an original, too.
        let measures_kl = !rows.valid_normal.is_empty();
        weights.keep_originals(self.recipe.needs_reference() || validates || measures_kl);
        let base_sha256 = loaded.checkpoint().hash()?;
        let guarded = prepared.max_ppl_increase.map(|_| self.rows.text.iter().copied());
        let parts = [
            ("data", self.data_hash()),
            ("method", format!("{:?}", self.recipe)),
            ("pairs looked at", if looks { sample.to_string() } else { "none".into() }),
            ("text of the guard", guarded.map_or("none".into(), hash_ids)),
        ];
        let fingerprint = fingerprint(&self.order, parts)?;
        let kl_weight = self.recipe.kl_weight;
        let mut trainer = Trainer {
            model: &loaded.model,
            weights,
            method,
            optimizer: Optimizer::new(prepared.optimizer),
            regime: self.regime(),
            rows,
            step: 0,
            to_validate: false,
            validated_at: None,
            best: None,
            stale: 0,
            look: Cost::default(),
            trials: Vec::new(),
            guard: None,
            tripped: None,
            online: None,
            budget: prepared.kl_budget.map(|nats| Budget { nats, first_weight: kl_weight }),
            scaled: None,
            curves: None,
            dir: out.dir.clone(),
            base_sha256,
            fingerprint,
            changed: Vec::new(),
        };
        // A state holds what was seen, and what is sampled is looked at later.
        if looks && !args.resume && !self.recipe.online {
            trainer.look_at(sample, args.output.quiet).map_err(Output::before_the_first_step)?;
        }
        Ok(trainer)
    }

    /// Hash of the rows: for an online method of its prompts and of how they are sampled.
    fn data_hash(&self) -> String {
        let rows = self.rows.train.hash();
        if !self.recipe.online {
            return rows;
        }
        let (protocol, settings) = (rows::sampling(self.order.prepared), self.order.prepared);
        let rounds = (settings.rounds, settings.prompts_per_round, settings.max_steps);
        let how = format!("{protocol:?} {rounds:?} {}", self.scorer.name());
        let sha256 = self.rows.record.sha256.as_str();
        crate::base::files::hash_texts([rows.as_str(), sha256, &how].into_iter())
    }

    /// Where the pairs of an online method come from.
    fn online(&self) -> Option<Online<'_>> {
        let Order { prepared, loaded, args } = self.order;
        self.recipe.online.then(|| Online {
            encoder: &loaded.encoder,
            ends: loaded.ends(),
            scorer: self.scorer.as_ref(),
            prompts: &self.rows.sampled,
            protocol: rows::sampling(self.order.prepared),
            rounds: prepared.online_rounds(),
            prompts_per_round: prepared.prompts_per_round,
            quiet: args.output.quiet,
            looked_at: prepared.fixed_sample.unwrap_or(2000),
            pool: Pool::default(),
            round: None,
        })
    }

    /// Pairs of the held-back prompts' texts, for trials and validations. Errors (a failed check)
    /// if trials have nothing to look at.
    fn held_back_pairs(&self, weights: &Weights, out: &Output) -> Result<Vec<TokenPair>> {
        let Order { prepared, loaded, args } = self.order;
        let writer = Writer {
            subject: subject(loaded, weights),
            scorer: self.scorer.as_ref(),
            protocol: rows::sampling(prepared),
            quiet: args.output.quiet,
            again: "no step was made yet: give the same command again",
        };
        let dir = out.dir.join("rounds");
        std::fs::create_dir_all(&dir)?;
        let (path, alone) = (dir.join("held-back.jsonl"), self.recipe.needs_no_chosen());
        let pairs = held_back(&writer, &self.rows.held_prompts, &path, alone)?;
        let (for_what, or) = match (self.recipe.first(), prepared.max_ppl_increase) {
            (First::Trials, _) => ("to judge trials by", "take --select all"),
            (_, Some(_)) => ("to validate on, as --max-ppl-increase asks", "leave that out"),
            _ => return Ok(pairs),
        };
        let why = format!(
            "no held-back prompt has texts of both kinds, toxic and clean, {for_what}; give more \
             prompts (--valid-size), or {or}"
        );
        (!pairs.is_empty()).then_some(pairs).ok_or_else(|| Error::Check(why).into())
    }

    fn regime(&self) -> Regime {
        let settings = self.order.prepared;
        Regime {
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
        }
    }
}
