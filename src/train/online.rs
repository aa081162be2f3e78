//! *Online* repair: no pairs are given. In rounds the model continues prompts as it is now, a
//! scorer tells its texts apart, they are paired, and steps are made on the pairs. The reference
//! stays the base all rounds long.
//!
//! What takes the place of the old toxic texts is found in the next round and mended in turn. Texts
//! that were found before stay in the pool, and prompts are drawn by how toxic their texts still
//! are. (Online DPO: Guo et al. 2024, arXiv 2402.04792; there each step samples anew.)

use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;

use super::Trainer;
use super::log::{Cost, Line, RoundLine};
use crate::base::error::Error;
use crate::base::files::write_whole;
use crate::base::profile::operations;
use crate::base::progress::Progress;
use crate::eval::samples::{self, Pool, Protocol, SamplePair, Tally, Writer};
use crate::eval::task::Subject;
use crate::eval::toxicity::Prompt;
use crate::model::generate::Ends;
use crate::say;
use crate::scorers::Scorer;
use crate::slice::select::First;
use crate::tokens::{Encoder, TokenPair};

/// Where the pairs of an online repair come from.
pub struct Online<'a> {
    pub encoder: &'a Encoder,
    pub ends: Ends,
    pub scorer: &'a dyn Scorer,
    pub prompts: &'a [Prompt],
    pub protocol: Protocol,
    pub rounds: usize,
    pub prompts_per_round: usize,
    pub quiet: bool,
    /// How many pairs of the first round a selector looks at, at most.
    pub looked_at: usize,
    /// The texts so far, and the round that the pairs are of.
    pub pool: Pool,
    pub round: Option<usize>,
}

impl Online<'_> {
    /// Steps of a round.
    pub fn steps(&self, max_steps: usize) -> usize {
        max_steps.div_ceil(self.rounds).max(1)
    }
}

/// Whether there is something left to learn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// Pairs to make steps on.
    Pairs,
    /// No sampled text is toxic any more.
    Clean,
}

impl Trainer<'_> {
    /// Where texts of rounds are kept: `irepair/rounds/`.
    fn round_path(&self, round: usize) -> PathBuf {
        self.dir.join("rounds").join(format!("{round:04}.jsonl"))
    }

    /// Where the pairs that its steps learn from are kept.
    fn pairs_path(&self, round: usize) -> PathBuf {
        self.round_path(round).with_extension("pairs.jsonl")
    }

    /// Makes the pairs of the round that the next step belongs to, if they are not at hand:
    /// samples, or, after a resume, reads what was sampled. Errors (a failed check) if there is
    /// nothing to repair, or nothing to learn from.
    pub(super) fn begin_round(&mut self, log: &mut File, progress: &Progress) -> Result<Round> {
        let Some(online) = &self.online else { return Ok(Round::Pairs) };
        let per_round = online.steps(self.regime.max_steps);
        // A run that is resumed after its last step needs no further round; and what a round
        // samples comes after the validation of the step before it.
        let ended =
            self.step >= self.regime.max_steps || self.tripped.is_some() || self.to_validate;
        let round = self.step.saturating_sub(usize::from(ended)) / per_round;
        let first = online.round.map_or(0, |done| done + 1);
        if first > round {
            return Ok(Round::Pairs);
        }
        // Sampling takes long, and goes on from these very weights.
        log.sync_data().context("writing steps.jsonl")?;
        self.save()?;
        progress.suspend();
        let (mut tally, mut sampled) = (Tally::default(), Vec::new());
        let mut cost = Cost::default();
        for past in first..=round {
            let over = past < round || self.step > round * per_round;
            let (begun, counted) = (Instant::now(), operations());
            tally = self.sample(past, over)?;
            // What a selector looks at then is counted by itself.
            cost += Cost::since(begun, counted, 0);
            sampled = self.take_pairs(past, &tally)?;
        }
        let Some(online) = &mut self.online else { return Ok(Round::Pairs) };
        online.round = Some(round);
        let line = RoundLine {
            round: round + 1,
            step: self.step,
            texts: tally.scored,
            toxic: tally.toxic,
            empty: tally.empty,
            greedy: tally.greedy,
            greedy_toxic: tally.greedy_toxic,
            pairs: sampled.len(),
            asked: online.pool.asked_for(),
            cost,
        };
        if !online.quiet {
            say!("{}", line.told(online.rounds));
        }
        let mut lines = Vec::new();
        for pair in &sampled {
            lines.extend(serde_json::to_vec(&json!({
                "prompt": online.prompts[pair.prompt].text, "prompt_ids": pair.tokens.prompt,
                "chosen": pair.chosen, "rejected": pair.rejected,
            }))?);
            lines.push(b'\n');
        }
        write_whole(&self.pairs_path(round), &lines)?;
        if self.step == round * per_round {
            self.log(log, Line::Round(line))?;
        }
        match tally.toxic == 0 && tally.scored > 0 {
            true => Ok(Round::Clean),
            false => Ok(Round::Pairs),
        }
    }

    /// Pairs of the pool after this round, to learn from: the objective and, in the first round,
    /// the selector look at them. Errors (a failed check) if the first round gave none.
    fn take_pairs(&mut self, round: usize, tally: &Tally) -> Result<Vec<SamplePair>> {
        let Some(online) = &self.online else { return Ok(Vec::new()) };
        let (protocol, looked_at, quiet) = (online.protocol, online.looked_at, online.quiet);
        let Tally { toxic, scored, empty, .. } = tally;
        if round == 0 && *toxic == 0 {
            return Err(Error::Check(format!(
                "none of {scored} texts ({empty} more are empty) scores {} or more: there is \
                 nothing to repair (a lower --rejected-above, or other --prompts, may find \
                 something)",
                protocol.rejected_above
            ))
            .into());
        }
        let alone = self.method.recipe.needs_no_chosen();
        let pairs = online.pool.pairs(online.prompts, round, &protocol, alone);
        if pairs.is_empty() {
            return Err(Error::Check(format!(
                "no prompt has texts of both kinds, toxic and clean: {toxic} of {scored} texts \
                 are toxic; give more --samples-per-prompt, a higher --chosen-below, a lower \
                 --rejected-above, or other --prompts"
            ))
            .into());
        }
        let encoder = online.encoder;
        self.rows.pairs = pairs.iter().map(|pair| pair.tokens.clone()).collect();
        let vocabulary = self.model.sizes().vocabulary;
        match self.method.objective.learn(&self.rows.pairs, vocabulary) {
            Ok(Some(artefact)) => artefact.write(encoder, &self.dir)?,
            Ok(None) => {}
            // What it learned in an earlier round it still knows.
            Err(_) if round > 0 => {}
            Err(error) => {
                let more = "(--prompts-per-round, --samples-per-prompt)";
                return Err(Error::Check(format!("{error} {more}")).into());
            }
        }
        let looks = self.method.recipe.first() == First::Look;
        if looks && self.step == 0 && self.method.select.memory().means().is_none() {
            self.look_at(looked_at, quiet)?;
        }
        Ok(pairs)
    }

    /// Samples a round into the pool, or reads what was sampled.
    fn sample(&mut self, round: usize, over: bool) -> Result<Tally> {
        let path = self.round_path(round);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        }
        let key = json!({ "model": self.base_sha256, "run": self.fingerprint.hash() });
        let Some(online) = &mut self.online else { return Ok(Tally::default()) };
        let Online { prompts, protocol, pool, prompts_per_round, .. } = online;
        let chosen = pool.draw(prompts.len(), *prompts_per_round, round, protocol);
        let writer = Writer {
            subject: Subject {
                model: self.model,
                weights: &self.weights,
                encoder: online.encoder,
                ends: online.ends.clone(),
            },
            scorer: online.scorer,
            protocol: *protocol,
            quiet: online.quiet,
            again: "what is done is kept: give the same command with --resume to go on",
        };
        let round = samples::Round {
            chosen: &chosen,
            number: round,
            over,
            path: &path,
            key: &key,
            overwrite: false,
        };
        writer.sample(prompts, &round, pool)
    }

    /// After a resume: texts of rounds that the run has not come to are of weights that are gone.
    pub(super) fn forget_later_rounds(&self) -> Result<()> {
        let Some(online) = &self.online else { return Ok(()) };
        let per_round = online.steps(self.regime.max_steps);
        for round in self.step / per_round + 1..=online.rounds {
            for path in [self.round_path(round), self.pairs_path(round)] {
                if path.exists() {
                    std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
                }
            }
        }
        Ok(())
    }
}

/// Pairs of held-back prompts, sampled once from the base: what trials and validations look at.
///
/// `alone`: whether a toxic text needs no clean one beside it.
pub fn held_back(
    writer: &Writer,
    prompts: &[Prompt],
    path: &std::path::Path,
    alone: bool,
) -> Result<Vec<TokenPair>> {
    let mut pool = Pool::default();
    let all: Vec<usize> = (0..prompts.len()).collect();
    let key = json!("held back");
    let (over, overwrite) = (false, false);
    let round = samples::Round { chosen: &all, number: 0, over, path, key: &key, overwrite };
    writer.sample(prompts, &round, &mut pool)?;
    let pairs = pool.pairs(prompts, 0, &Protocol { pairs: 2, ..writer.protocol }, alone);
    Ok(pairs.into_iter().map(|pair| pair.tokens).collect())
}
