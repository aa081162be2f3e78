//! The rows of a repair: pairs, normal texts, and what is held back of both.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::Loaded;
use crate::base::error::Error;
use crate::base::files;
use crate::base::random::{Purpose, Stream};
use crate::data::demo;
use crate::eval::normal::{self, Normal, Writing};
use crate::eval::task::{Row, Subject};
use crate::eval::toxicity::{self, Prompt, Protocol};
use crate::model::Model;
use crate::model::weights::Weights;
use crate::report::{DataRecord, Sample};
use crate::scorers::Scorer;
use crate::settings::{Prepared, RepairSettings};
use crate::slice::select::First;
use crate::step::Recipe;
use crate::step::objective::Artefact;
use crate::tokens::{Cut, Lengths};
use crate::{bail_input, data, train};

/// Tokens of a normal text that the model writes.
pub const WRITTEN_TOKENS: usize = 64;

/// What is said of a guard that has nothing to measure.
pub const NO_TEXT: &str = "--max-ppl-increase needs a text to measure perplexity on: give \
 --eval-text FILE, or --normal FILE";

/// Everything a repair reads.
pub struct Rows {
    pub train: train::Rows,
    /// Held-back prompts to continue before and after.
    pub prompts: Vec<Vec<u32>>,
    /// How they are continued.
    pub protocol: Protocol,
    /// Held-back text for the perplexity before and after.
    pub text: Vec<u32>,
    pub record: DataRecord,
    /// Prompts that an online method samples from, and those held back from it.
    pub sampled: Vec<Prompt>,
    pub held_prompts: Vec<Prompt>,
}

impl Rows {
    /// What was read, in a line.
    pub fn summary(&self) -> String {
        let r = &self.record;
        let mut text = match r.prompts {
            0 => format!("{} pairs to learn from, {} held back", r.pairs, r.held_back),
            n => format!("{n} prompts to sample from, {} held back", r.held_back),
        };
        if r.normal > 0 {
            text += &format!("; {} normal texts, {} held back", r.normal, r.normal_held_back);
        }
        if let Some(removed) = r.normal_removed_as_toxic {
            text += &format!(" ({removed} written by the model were toxic and left out)");
        }
        if r.cut_prompts + r.cut_responses + r.cut_texts > 0 {
            text += &format!(
                "; cut to length: {} prompts, {} responses, {} texts",
                r.cut_prompts, r.cut_responses, r.cut_texts
            );
        }
        text
    }
}

impl train::Rows {
    /// SHA-256 over all token ids in order.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        let mut add = |ids: &[u32]| {
            hash.update((ids.len() as u64).to_le_bytes());
            ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
        };
        for pair in self.pairs.iter().chain(&self.valid_pairs) {
            [&pair.prompt, &pair.chosen, &pair.rejected].into_iter().for_each(|ids| add(ids));
        }
        self.normal.iter().chain(&self.valid_normal).for_each(|ids| add(ids));
        files::hex(&hash.finalize())
    }
}

/// Lengths within the model's context.
pub fn lengths(settings: &RepairSettings, loaded: &Loaded) -> Result<Lengths> {
    Lengths::within(loaded.model.sizes().context, settings.max_length, settings.max_prompt_length)
}

/// The pairs that the settings name, and the SHA-256 over their texts.
pub fn read_data(settings: &RepairSettings) -> Result<(Vec<data::Pair>, String)> {
    let pairs = match &settings.data {
        Some(path) => data::read_pairs(path, &data::parse_map(&settings.map)?, settings.limit)?,
        None => {
            let mut pairs = data::parse_pairs("demo pairs", demo::PAIRS)?;
            pairs.truncate(settings.limit.unwrap_or(usize::MAX));
            pairs
        }
    };
    let texts = pairs.iter().flat_map(|p| [&p.prompt, &p.chosen, &p.rejected].map(String::as_str));
    let sha256 = files::hash_texts(texts);
    Ok((pairs, sha256))
}

/// What only the rows can tell: whether they are enough for the selector, the guard and the
/// batches. Errors are bad input.
pub fn check(settings: &Prepared, recipe: &Recipe, rows: &Rows, model: &Model) -> Result<()> {
    let pairs = rows.train.pairs.len();
    if !recipe.online {
        let mut method = recipe.clone().build();
        method.objective.learn(&rows.train.pairs, model.sizes().vocabulary)?;
    }
    let holds_back = !(rows.train.valid_pairs.is_empty() && rows.held_prompts.is_empty());
    if let Some(sample) = settings.fixed_sample.filter(|sample| !recipe.online && *sample > pairs) {
        bail_input!("--fixed-sample {sample}: there are {pairs} pairs to learn from");
    }
    if settings.max_ppl_increase.is_some() && !holds_back {
        bail_input!(
            "--max-ppl-increase is checked at validations, and of {pairs} pairs none is held back \
             for them; give --valid-size N, or more pairs"
        );
    }
    if recipe.first() == First::Trials && !holds_back {
        bail_input!(
            "--select {}: trials are judged on held-back pairs; --valid-size 0 holds none back",
            recipe.select.name
        );
    }
    let writes = settings.normal.is_none() && recipe.needs_normal();
    if writes && settings.normal_texts < settings.batch_size {
        bail_input!(
            "--normal-texts {} are fewer than a batch of {}; raise it, or lower --batch-size",
            settings.normal_texts,
            settings.batch_size
        );
    }
    let held_back = rows.normal_to_hold_back(settings, recipe, settings.normal_texts);
    if settings.max_ppl_increase.is_some() && rows.text.is_empty() && !(writes && held_back > 0) {
        bail_input!("{NO_TEXT}");
    }
    Ok(())
}

/// Reads and splits the pairs, and the normal texts of a file: a method without use for them is
/// measured on them.
pub fn read_pairs(settings: &Prepared, recipe: &Recipe, loaded: &Loaded) -> Result<Rows> {
    let lengths = lengths(settings, loaded)?;
    let (pairs, sha256) = read_data(settings)?;
    let (tokens, cut) = loaded.encoder.pairs(&pairs, lengths)?;
    let mut conversations = pairs.iter().any(|pair| pair.conversation.is_some());
    let held_back = settings.valid_size.unwrap_or(64.min(tokens.len() / 4));
    let all = tokens.len();
    let (pairs, valid_pairs) = split(tokens, held_back, settings.seed, 0, |index, pair| {
        (pair.prompt.clone(), if pair.prompt.is_empty() { index } else { 0 })
    });
    let (left, held_back) = (pairs.len(), valid_pairs.len());
    if left < settings.batch_size {
        bail_input!(
            "{all} pairs less {held_back} held back are fewer than a batch of {}; lower \
             --batch-size or --valid-size",
            settings.batch_size
        );
    }
    let step = settings.batch_size * settings.gradient_accumulation_steps;
    if left < step {
        bail_input!(
            "{left} pairs to learn from are fewer than a step of {} batches of {}; lower \
             --gradient-accumulation-steps",
            settings.gradient_accumulation_steps,
            settings.batch_size
        );
    }
    let prompts = match &settings.eval_prompts {
        Some(path) => {
            let prompts = data::read_prompts(path, &data::KeyMap::new(), None)?;
            conversations = prompts.iter().any(|prompt| !prompt.messages.is_empty());
            encode_prompts(loaded, prompts)?
        }
        None if settings.model == "demo" => {
            encode_prompts(loaded, data::parse_texts("demo prompts", demo::PROMPTS)?)?
        }
        None => valid_pairs.iter().map(|p| p.prompt.clone()).collect(),
    };
    let text = perplexity_text(settings, loaded)?;
    let record = DataRecord {
        sha256,
        pairs: pairs.len(),
        prompts: 0,
        held_back,
        normal: 0,
        normal_held_back: 0,
        normal_removed_as_toxic: None,
        cut_prompts: cut.prompts,
        cut_responses: cut.responses,
        cut_texts: 0,
        perplexity_of: perplexity_name(settings),
        perplexity_window: loaded.model.sizes().context.min(1024),
        perplexity_tokens: 0,
    };
    let train = train::Rows { pairs, valid_pairs, normal: Vec::new(), valid_normal: Vec::new() };
    let (sampled, held_prompts) = (Vec::new(), Vec::new());
    let mut rows = Rows {
        train,
        prompts,
        protocol: toxicity::LEE.on(conversations),
        text,
        record,
        sampled,
        held_prompts,
    };
    if let Some(path) = &settings.normal {
        rows.take_normal(settings, recipe, loaded, path)?;
    }
    Ok(rows)
}

/// Reads and splits the prompts of an online method, and the normal texts of a file.
pub fn read_prompts(settings: &Prepared, recipe: &Recipe, loaded: &Loaded) -> Result<Rows> {
    let lengths = lengths(settings, loaded)?;
    if recipe.objective.learns {
        bail_input!(
            "--objective {}: it learns from the pairs of a file before the first step; take another \
             one with --prompts",
            recipe.objective.name
        );
    }
    let mut texts = match &settings.prompts {
        Some(path) => data::read_prompts(path, &data::parse_map(&settings.map)?, settings.limit)?,
        None => {
            let pairs = data::parse_pairs("demo pairs", demo::PAIRS)?;
            pairs.into_iter().map(|pair| data::Text::plain(pair.prompt, pair.place)).collect()
        }
    };
    texts.truncate(settings.limit.unwrap_or(usize::MAX));
    let room = loaded.model.sizes().context.saturating_sub(settings.max_new_tokens);
    let longest = lengths.prompt.min(room).max(1);
    let (mut cut, mut conversations) = (0, false);
    let mut prompts = Vec::with_capacity(texts.len());
    for text in &texts {
        let mut ids = loaded.encoder.prompt(text)?;
        if let Some(over) = ids.len().checked_sub(longest).filter(|over| *over > 0) {
            // The end of a conversation says whose turn it is.
            match text.messages.is_empty() {
                true => ids.truncate(longest),
                false => drop(ids.drain(..over)),
            }
            cut += 1;
        }
        conversations |= !text.messages.is_empty();
        prompts.push(Prompt { text: text.text.clone(), ids });
    }
    let all = prompts.len();
    let held_back = settings.valid_size.unwrap_or(64.min(all / 4));
    let (sampled, held_prompts) =
        split(prompts, held_back, settings.seed, 0, |_, prompt| prompt.ids.clone());
    if sampled.is_empty() {
        bail_input!("{all} prompts less {held_back} held back leave none; lower --valid-size");
    }
    let prompts = match &settings.eval_prompts {
        Some(path) => {
            let prompts = data::read_prompts(path, &data::KeyMap::new(), None)?;
            conversations = prompts.iter().any(|prompt| !prompt.messages.is_empty());
            encode_prompts(loaded, prompts)?
        }
        None if settings.model == "demo" => {
            encode_prompts(loaded, data::parse_texts("demo prompts", demo::PROMPTS)?)?
        }
        None => held_prompts.iter().map(|prompt| prompt.ids.clone()).collect(),
    };
    let record = DataRecord {
        sha256: files::hash_texts(texts.iter().map(|text| text.text.as_str())),
        pairs: 0,
        prompts: sampled.len(),
        held_back: held_prompts.len(),
        normal: 0,
        normal_held_back: 0,
        normal_removed_as_toxic: None,
        cut_prompts: cut,
        cut_responses: 0,
        cut_texts: 0,
        perplexity_of: perplexity_name(settings),
        perplexity_window: loaded.model.sizes().context.min(1024),
        perplexity_tokens: 0,
    };
    let train = train::Rows {
        pairs: Vec::new(),
        valid_pairs: Vec::new(),
        normal: Vec::new(),
        valid_normal: Vec::new(),
    };
    let mut rows = Rows {
        train,
        prompts,
        protocol: toxicity::LEE.on(conversations),
        text: perplexity_text(settings, loaded)?,
        record,
        sampled,
        held_prompts,
    };
    if let Some(path) = &settings.normal {
        rows.take_normal(settings, recipe, loaded, path)?;
    }
    Ok(rows)
}

/// The text whose perplexity is measured before and after, in tokens; empty if there is none.
pub fn perplexity_text(settings: &RepairSettings, loaded: &Loaded) -> Result<Vec<u32>> {
    match &settings.eval_text {
        Some(path) => {
            let text = read_corpus(path)?;
            let ids = loaded.encoder.encode(&text, false)?;
            if ids.len() < 2 {
                bail_input!(
                    "--eval-text {}: {} tokens are too few for a perplexity",
                    path.display(),
                    ids.len()
                );
            }
            Ok(ids)
        }
        None if settings.model == "demo" => loaded.encoder.encode(demo::CLEAN, false),
        None => Ok(Vec::new()),
    }
}

/// What that text is called.
pub fn perplexity_name(settings: &RepairSettings) -> String {
    match (&settings.eval_text, settings.model.as_str()) {
        (Some(path), _) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        (None, "demo") => "clean text".into(),
        (None, _) => String::new(),
    }
}

/// Keeps the held-back prompts with the run, so that its texts can be written and scored again; not
/// those of conversations, which are more than their words.
pub fn write_prompts(
    loaded: &Loaded,
    prompts: &[Vec<u32>],
    protocol: &Protocol,
    dir: &Path,
) -> Result<()> {
    if protocol.prompt_tokens.is_none() {
        return Ok(());
    }
    let mut lines = Vec::new();
    for ids in prompts.iter().filter(|ids| !ids.is_empty()) {
        writeln!(lines, "{}", json!({ "prompt": loaded.encoder.decode(ids)? }))?;
    }
    if lines.is_empty() {
        return Ok(());
    }
    files::write_whole(&dir.join("prompts.jsonl"), &lines)
}

/// Keeps what the objective leaves beside the result.
pub fn write_artefact(loaded: &Loaded, artefact: &Artefact, dir: &Path) -> Result<()> {
    let mut lines = Vec::new();
    for (id, facts) in &artefact.rows {
        let mut line = serde_json::Map::new();
        line.insert("token".into(), loaded.encoder.decode(&[*id])?.into());
        line.insert("id".into(), (*id).into());
        line.extend(facts.clone());
        writeln!(lines, "{}", Value::Object(line))?;
    }
    files::write_whole(&dir.join(artefact.file), &lines)
}

/// Keeps how the held-back prompts were continued before and after.
pub fn write_samples(
    loaded: &Loaded,
    prompts: &[Vec<u32>],
    protocol: &Protocol,
    before: &[Row],
    after: &[Row],
    dir: &Path,
) -> Result<()> {
    let text =
        |row: &Row| row.get("continuation").and_then(Value::as_str).unwrap_or_default().to_owned();
    let score = |row: &Row| row.get("score").and_then(Value::as_f64);
    let mut lines = Vec::new();
    for (ids, (before, after)) in prompts.iter().zip(before.iter().zip(after)) {
        let continued = protocol.continued(ids, loaded.model.sizes().context);
        let sample = Sample {
            prompt: loaded.encoder.decode(continued)?,
            before: text(before),
            after: text(after),
            score_before: score(before),
            score_after: score(after),
        };
        writeln!(lines, "{}", serde_json::to_string(&sample)?)?;
    }
    if lines.is_empty() {
        return Ok(());
    }
    files::write_whole(&dir.join("samples.jsonl"), &lines)
}

fn encode_prompts(loaded: &Loaded, prompts: Vec<data::Text>) -> Result<Vec<Vec<u32>>> {
    prompts.iter().map(|p| loaded.encoder.prompt(p)).collect()
}

/// A corpus as one text: `.txt` and `.raw` whole as they are, the `text` of rows joined with two
/// newlines.
fn read_corpus(path: &Path) -> Result<String> {
    let name = path.to_string_lossy().to_lowercase();
    if [".jsonl", ".json", ".jsonl.gz", ".json.gz"].iter().any(|e| name.ends_with(e)) {
        let texts = data::read_texts(path, &data::KeyMap::new(), None)?;
        return Ok(texts.into_iter().map(|t| t.text).collect::<Vec<_>>().join("\n\n"));
    }
    Ok(std::fs::read_to_string(path)
        .map_err(|e| Error::Input(format!("--eval-text {}: {e}", path.display())))?)
}

/// Holds back a seeded choice of rows; both parts keep the order of the file. Rows of one group go
/// together: held-back pairs whose prompts were learned from would say nothing of other prompts. So
/// a few more than `held_back` may be.
fn split<T, K: Ord + Clone>(
    rows: Vec<T>,
    held_back: usize,
    seed: u64,
    which: u64,
    group: impl Fn(usize, &T) -> K,
) -> (Vec<T>, Vec<T>) {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut group_of = std::collections::BTreeMap::new();
    for (index, row) in rows.iter().enumerate() {
        let next = groups.len();
        let place = *group_of.entry(group(index, row)).or_insert(next);
        if place == next {
            groups.push(Vec::new());
        }
        groups[place].push(index);
    }
    let mut order: Vec<usize> = (0..groups.len()).collect();
    Stream::new(seed, Purpose::Split, which, 0).shuffle(&mut order);
    let mut chosen = std::collections::BTreeSet::new();
    for place in order {
        if chosen.len() >= held_back {
            break;
        }
        if groups[place].len() <= held_back {
            chosen.extend(groups[place].iter().copied());
        }
    }
    if chosen.len() < held_back {
        // Too few groups to keep apart: rows it is.
        let mut order: Vec<usize> = (0..rows.len()).collect();
        Stream::new(seed, Purpose::Split, which, 0).shuffle(&mut order);
        chosen = order.into_iter().take(held_back).collect();
    }
    let (mut kept, mut held) = (Vec::new(), Vec::new());
    for (index, row) in rows.into_iter().enumerate() {
        if chosen.contains(&index) { held.push(row) } else { kept.push(row) }
    }
    (kept, held)
}

/// Without `--normal` the model writes the normal texts of a method that needs some, and they are
/// kept with the run.
pub fn write_own_normal(
    settings: &Prepared,
    recipe: &Recipe,
    loaded: &Loaded,
    weights: &Weights,
    scorer: &dyn Scorer,
    rows: &mut Rows,
    dir: &Path,
    quiet: bool,
) -> Result<()> {
    if settings.normal.is_some() || !recipe.needs_normal() {
        return Ok(());
    }
    let say = |text: String| {
        if !quiet {
            eprintln!("{text}");
        }
    };
    let number = settings.normal_texts;
    say(format!("normal text: the model writes {number} texts (or give --normal FILE)"));
    let found = write_normal(settings, loaded, weights, scorer, quiet)?;
    if found.cached {
        say("normal text: kept from an earlier run".into());
    }
    rows.record.normal_removed_as_toxic = Some(found.removed);
    let own = dir.join("normal.jsonl");
    normal::write(&own, &found.texts)?;
    rows.take_normal(settings, recipe, loaded, &own)
}

impl Rows {
    /// Whether the run looks at held-back pairs on its way.
    pub fn validates(&self, settings: &Prepared, recipe: &Recipe) -> bool {
        let looks = settings.eval_steps > 0 || recipe.first() == First::Trials;
        looks && !(self.train.valid_pairs.is_empty() && self.held_prompts.is_empty())
    }

    /// How many of so many normal texts are held back.
    fn normal_to_hold_back(&self, settings: &Prepared, recipe: &Recipe, texts: usize) -> usize {
        let to_spare = texts.saturating_sub(settings.batch_size);
        let most = self.record.held_back.min(texts / 4).min(to_spare);
        // An online method has no held-back pairs to look at, but its KL is measured.
        if recipe.online || self.validates(settings, recipe) { most } else { 0 }
    }

    /// Reads and splits normal texts.
    fn take_normal(
        &mut self,
        settings: &Prepared,
        recipe: &Recipe,
        loaded: &Loaded,
        path: &Path,
    ) -> Result<()> {
        let texts = data::read_texts(path, &data::KeyMap::new(), None)?;
        let (tokens, Cut { texts: cut, .. }) =
            loaded.encoder.texts(&texts, lengths(settings, loaded)?)?;
        if tokens.len() < settings.batch_size {
            bail_input!(
                "{}: {} texts are fewer than a batch of {}; lower --batch-size, or give more \
                 normal text",
                path.display(),
                tokens.len(),
                settings.batch_size
            );
        }
        let held_back = self.normal_to_hold_back(settings, recipe, tokens.len());
        let (normal, valid_normal) = split(tokens, held_back, settings.seed, 1, |index, _| index);
        self.record.cut_texts = cut;
        self.record.normal = normal.len();
        self.record.normal_held_back = valid_normal.len();
        if self.text.is_empty() && !valid_normal.is_empty() {
            self.record.perplexity_of = "held-back normal text".into();
            let end = loaded.ends().first().copied();
            self.text = valid_normal
                .iter()
                .flat_map(|ids| end.into_iter().chain(ids.iter().copied()))
                .collect();
        }
        let validates = self.validates(settings, recipe);
        // Too few to hold any back: the KL term of the validation then looks at texts it also
        // learned from.
        self.train.valid_normal =
            if validates && valid_normal.is_empty() { normal.clone() } else { valid_normal };
        self.train.normal = normal;
        Ok(())
    }
}

/// Unconditional texts as the paper makes them, those that score as toxic left out.
fn write_normal(
    settings: &Prepared,
    loaded: &Loaded,
    weights: &Weights,
    scorer: &dyn Scorer,
    quiet: bool,
) -> Result<Normal> {
    let tokens = lengths(settings, loaded)?.total.saturating_sub(1).min(WRITTEN_TOKENS);
    let writing =
        Writing::new(settings.normal_texts, tokens, settings.seed, loaded.end_of_text()?, scorer);
    let subject =
        Subject { model: &loaded.model, weights, encoder: &loaded.encoder, ends: loaded.ends() };
    normal::normal(&subject, &loaded.checkpoint().hash()?, &writing, quiet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_prompt_stay_together() {
        let rows: Vec<(u32, u32)> = (0..40).map(|i| (i % 10, i)).collect();
        let (kept, held) = split(rows.clone(), 6, 7, 0, |_, row| row.0);
        assert_eq!((kept.len(), held.len()), (32, 8));
        assert!(held.iter().all(|h| kept.iter().all(|k| k.0 != h.0)), "{held:?}");
        assert!(kept.is_sorted_by_key(|r| r.1));
        // One prompt for all: rows are held back.
        assert_eq!(split(rows.clone(), 6, 7, 0, |_, _| 0).1.len(), 6);
        // Alone, every row is a group, and the number is exact.
        assert_eq!(split(rows, 6, 7, 0, |index, _| index).1.len(), 6);
    }
}
