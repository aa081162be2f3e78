//! The rows of a repair: pairs, normal texts, and what is held back of both.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::Loaded;
use crate::base::files;
use crate::checkpoint::hub::{commit_of, rows_path};
use crate::commands::pairs_of;
use crate::data::demo;
use crate::data::split::split;
use crate::eval::toxicity::{self, Prompt, Protocol};
use crate::eval::{samples, sources};
use crate::model::Model;
use crate::report::DataRecord;
use crate::settings::{Prepared, RepairSettings};
use crate::slice::select::{First, SELECTORS};
use crate::step::Recipe;
use crate::step::objective::{NamedObjective, OBJECTIVES};
use crate::tokens::Lengths;
use crate::{bail_input, data, say, train};

/// What is said of a guard that has nothing to measure.
pub const NO_TEXT: &str = "--max-ppl-increase needs a text to measure perplexity on: give \
 --eval-text FILE, or --normal FILE";

/// Everything a repair reads.
#[derive(Default)]
pub struct Rows {
    pub train: train::Rows,
    /// Held-back prompts to continue before and after.
    pub prompts: Vec<Vec<u32>>,
    /// How many of them are longer than what is continued.
    cut_to_measure: usize,
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
    /// With what they are measured on, and the normal texts of a file.
    fn measured(
        mut self,
        settings: &Prepared,
        recipe: &Recipe,
        loaded: &Loaded,
        conversations: bool,
    ) -> Result<Self> {
        self.protocol = toxicity::LEE.on(conversations);
        let context = loaded.model.sizes().context;
        let is_cut = |ids: &&Vec<u32>| self.protocol.continued(ids, context).len() < ids.len();
        self.cut_to_measure = self.prompts.iter().filter(is_cut).count();
        self.text = perplexity_text(settings, loaded)?;
        self.record.perplexity_of = perplexity_name(settings);
        self.record.perplexity_window = loaded.model.sizes().context.min(1024);
        if let Some(path) = &settings.normal {
            self.take_normal(settings, recipe, loaded, path)?;
        }
        Ok(self)
    }

    /// What is said of pairs that are seen so often that they are learned by heart.
    pub fn seen_too_often(&self, settings: &Prepared) -> Option<String> {
        const OFTEN: usize = 50;
        let (pairs, each) =
            (self.train.pairs.len(), settings.batch_size * settings.gradient_accumulation_steps);
        let times = settings.max_steps.saturating_mul(each) / pairs.max(1);
        (pairs > 0 && times > OFTEN).then(|| {
            format!(
                "each of {pairs} pairs is seen {times} times, and will be learned by heart: lower \
                 --max-steps ({} are {OFTEN} times), or give more pairs",
                OFTEN * pairs / each.max(1)
            )
        })
    }

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
        if self.cut_to_measure > 0 {
            let of = self.prompts.len();
            text += &format!("; {} of {of} prompts are cut to be measured on", self.cut_to_measure);
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

/// Pairs that were read.
pub struct Read {
    pub pairs: Vec<data::Pair>,
    /// SHA-256 over their texts.
    pub sha256: String,
    /// The commit of a data set of the hub.
    commit: Option<String>,
}

/// The pairs that the settings name.
pub fn read_data(settings: &RepairSettings) -> Result<Read> {
    let path = settings.data.as_deref().map(rows_path).transpose()?;
    let commit = path.as_deref().and_then(commit_of);
    let pairs = pairs_of(&settings.model, path.as_deref(), &settings.map, settings.limit)?;
    let texts = pairs.iter().flat_map(|p| [&p.prompt, &p.chosen, &p.rejected].map(String::as_str));
    let sha256 = files::hash_texts(texts);
    Ok(Read { pairs, sha256, commit })
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

/// Errors (bad input) if a row lacks a response that the method needs.
fn check_partners(pairs: &[data::Pair], recipe: &Recipe) -> Result<()> {
    let Recipe { objective, select, .. } = recipe;
    type Lacks = fn(&data::Pair) -> bool;
    type Needs = fn(&NamedObjective) -> bool;
    let kinds: [(Lacks, &str, Needs, bool); 2] = [
        (
            |pair| pair.chosen.is_empty(),
            "a rejected response without a chosen one",
            |objective| objective.chosen,
            select.chosen,
        ),
        (
            |pair| pair.rejected.is_empty(),
            "a chosen response without a rejected one",
            |objective| objective.rejected,
            select.rejected(),
        ),
    ];
    for (lacks, what, needs, selector_needs) in kinds {
        let Some(pair) = pairs.iter().find(|pair| lacks(pair)) else { continue };
        let place = &pair.place;
        let of_chosen = pair.chosen.is_empty();
        let all_lack = pairs.iter().all(lacks);
        let needs =
            |objective: &NamedObjective| needs(objective) || all_lack && objective.both_kinds;
        if needs(objective) {
            let able: Vec<&str> =
                OBJECTIVES.iter().filter(|o| !needs(o)).map(|objective| objective.name).collect();
            bail_input!(
                "{place}: {what}{}, which --objective {} has no use for; take --objective {}, or \
                 give pairs",
                if all_lack { ", as in every row" } else { "" },
                objective.name,
                able.join(" or ")
            );
        }
        if selector_needs {
            let able =
                SELECTORS.iter().filter(|s| !if of_chosen { s.chosen } else { s.rejected() });
            let able: Vec<&str> = able.map(|selector| selector.name).collect();
            bail_input!(
                "{place}: {what}, which --select {} needs; take --select {}, or give pairs",
                select.name,
                able.join(" or ")
            );
        }
    }
    Ok(())
}

/// Says how many pairs are the same text twice: they tell nothing apart. Errors (bad input) if all
/// are, and the method reads both responses.
fn check_contrast(pairs: &[data::Pair], recipe: &Recipe) -> Result<()> {
    let Recipe { objective, select, .. } = recipe;
    let reads_chosen = objective.chosen || objective.both_kinds || select.chosen;
    let reads_rejected = objective.rejected || objective.both_kinds || select.rejected();
    let alike = |pair: &&data::Pair| {
        let turns = pair.conversation.as_ref();
        pair.chosen == pair.rejected && turns.is_none_or(|turns| turns.chosen == turns.rejected)
    };
    let Some(first) = pairs.iter().find(alike).filter(|_| reads_chosen && reads_rejected) else {
        return Ok(());
    };
    let (place, count) = (&first.place, pairs.iter().filter(alike).count());
    if count == pairs.len() {
        bail_input!(
            "{place}: chosen and rejected are the same text, as in every row: nothing is told \
             apart; name the keys that hold them: --map chosen=KEY,rejected=KEY"
        );
    }
    say!(
        "warning: {place}: chosen and rejected are the same text, as in {count} of {} rows: \
         nothing is told apart there",
        pairs.len()
    );
    Ok(())
}

/// Reads and splits the pairs, and the normal texts of a file: a method without use for them is
/// measured on them.
pub fn read_pairs(settings: &Prepared, recipe: &Recipe, loaded: &Loaded) -> Result<Rows> {
    let lengths = lengths(settings, loaded)?;
    let Read { pairs, sha256, commit } = read_data(settings)?;
    check_partners(&pairs, recipe)?;
    check_contrast(&pairs, recipe)?;
    let (tokens, cut) = loaded.encoder.pairs(&pairs, lengths, settings.boundary)?;
    let mut conversations = pairs.iter().any(|pair| pair.conversation.is_some());
    let held_back = settings.valid_size.unwrap_or(64.min(tokens.len() / 4));
    let all = tokens.len();
    // A prompt is known by its text, and by its tokens: of different texts they may be the same
    // after a cut, and of the same text they may differ by where the responses begin.
    let (pairs, valid_pairs) = split(tokens, held_back, settings.seed, 0, |index, pair| {
        let text = match &pairs[index].conversation {
            Some(conversation) => json!(conversation.history).to_string(),
            None => pairs[index].prompt.clone(),
        };
        let own = |is_empty: bool| if is_empty { index } else { 0 };
        let by_text = (own(text.is_empty()), Vec::new(), text);
        [by_text, (own(pair.prompt.is_empty()), pair.prompt.clone(), String::new())]
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
    let prompts = match eval_prompts(settings, loaded)? {
        Some((prompts, are_conversations)) => {
            conversations = are_conversations;
            prompts
        }
        None => valid_pairs.iter().map(|p| p.prompt.clone()).collect(),
    };
    let record = DataRecord {
        sha256,
        commit,
        pairs: pairs.len(),
        held_back,
        cut_prompts: cut.prompts,
        cut_responses: cut.responses,
        ..Default::default()
    };
    let train = train::Rows { pairs, valid_pairs, ..Default::default() };
    Rows { train, prompts, record, ..Default::default() }.measured(
        settings,
        recipe,
        loaded,
        conversations,
    )
}

/// Reads and splits the prompts of an online method, and the normal texts of a file.
pub fn read_prompts(settings: &Prepared, recipe: &Recipe, loaded: &Loaded) -> Result<Rows> {
    let lengths = lengths(settings, loaded)?;
    let mut commit = None;
    let mut texts = match &settings.prompts {
        Some(path) => {
            let map = data::parse_map(&settings.map)?;
            let path = rows_path(path)?;
            commit = commit_of(&path);
            data::read_prompts(&path, &map, settings.limit)?
        }
        None => {
            let pairs = data::parse_pairs("demo pairs", demo::PAIRS)?;
            pairs.into_iter().map(|pair| data::Text::plain(pair.prompt, pair.place)).collect()
        }
    };
    texts.truncate(settings.limit.unwrap_or(usize::MAX));
    let longest = lengths.prompt.min(loaded.room_for_prompts(settings.max_new_tokens)?);
    let (mut cut, mut conversations) = (0, false);
    let mut prompts = Vec::with_capacity(texts.len());
    for text in &texts {
        let mut ids = loaded.encoder.prompt(text)?;
        cut += usize::from(text.cut(&mut ids, longest));
        conversations |= !text.messages.is_empty();
        prompts.push(Prompt { text: text.text.clone(), ids });
    }
    let all = prompts.len();
    let held_back = settings.valid_size.unwrap_or(64.min(all / 4));
    let (sampled, held_prompts) =
        split(prompts, held_back, settings.seed, 0, |_, prompt| [prompt.ids.clone()]);
    if sampled.is_empty() {
        bail_input!("{all} prompts less {held_back} held back leave none; lower --valid-size");
    }
    let prompts = match eval_prompts(settings, loaded)? {
        Some((prompts, are_conversations)) => {
            conversations = are_conversations;
            prompts
        }
        None => held_prompts.iter().map(|prompt| prompt.ids.clone()).collect(),
    };
    let record = DataRecord {
        sha256: files::hash_texts(texts.iter().map(|text| text.text.as_str())),
        commit,
        prompts: sampled.len(),
        held_back: held_prompts.len(),
        cut_prompts: cut,
        ..Default::default()
    };
    Rows { prompts, record, sampled, held_prompts, ..Default::default() }.measured(
        settings,
        recipe,
        loaded,
        conversations,
    )
}

/// The prompts of `--eval-prompts` or the demo, and whether they are conversations.
fn eval_prompts(
    settings: &RepairSettings,
    loaded: &Loaded,
) -> Result<Option<(Vec<Vec<u32>>, bool)>> {
    let prompts = match &settings.eval_prompts {
        Some(path) => data::read_prompts(&rows_path(path)?, &data::KeyMap::new(), None)?,
        None if settings.model == "demo" => data::parse_texts("demo prompts", demo::PROMPTS)?,
        None => return Ok(None),
    };
    let conversations = prompts.iter().any(|prompt| !prompt.messages.is_empty());
    let prompts = prompts.iter().map(|prompt| loaded.encoder.prompt(prompt));
    Ok(Some((prompts.collect::<Result<_>>()?, conversations)))
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

/// A corpus as one text: `.txt` and `.raw` whole as they are, the `text` of rows joined with two
/// newlines.
fn read_corpus(path: &Path) -> Result<String> {
    if sources::is_rows(path) {
        let texts = data::read_texts(path, &data::KeyMap::new(), None)?;
        return Ok(texts.into_iter().map(|t| t.text).collect::<Vec<_>>().join("\n\n"));
    }
    files::read_text(path).context("--eval-text")
}

/// How an online method samples.
pub fn sampling(settings: &RepairSettings) -> samples::Protocol {
    samples::Protocol {
        samples: settings.samples_per_prompt,
        new_tokens: settings.max_new_tokens,
        temperature: settings.temperature,
        top_p: settings.top_p,
        rejected_above: settings.rejected_above,
        chosen_below: settings.chosen_below,
        pairs: settings.pairs_per_prompt,
        seed: settings.seed,
    }
}
