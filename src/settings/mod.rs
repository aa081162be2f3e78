//! What the words mean: built-in defaults < preset < `--config FILE` < `IREPAIR_*` < flags.
//!
//! A [setting](setting::Setting) is declared once, in [`repair`]; a method is resolved once, here.

mod help;
mod layers;
pub mod repair;
pub mod setting;
mod uses;

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::bail_input;
use crate::base::error::Error;
use crate::base::memory::{OF_A_TEXT, check_room};
use crate::eval::verdict::Word;
use crate::slice::select::Slicing;
use crate::slice::select::{self, First, Normalize};
use crate::step::{self, Named, Recipe, neurons, objective};
use crate::tokens::Lengths;
pub use layers::{Layer, Layers, RepairWords, read_layer, read_tables, setting};
pub use repair::{RepairSettings, SETTINGS, complete};

/// Where the curves of a run go beside `steps.jsonl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ReportTo {
    None,
    Tensorboard,
}

/// Which verdicts on a repair are a failed check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum FailOn {
    /// And damaged.
    Unmoved,
    Damaged,
    Nothing,
}

impl FailOn {
    pub fn names(self, word: Word) -> bool {
        match word {
            Word::Repaired | Word::Partly => false,
            Word::NoRealDifference | Word::NotRepaired => self == Self::Unmoved,
            Word::Damaged => self != Self::Nothing,
        }
    }
}

/// A method of either family, with all its numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    Blocks(Recipe),
    Neurons(neurons::Recipe),
}

/// The settings of a repair, checked, with the method that they come to. After this no name is
/// looked up.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub settings: RepairSettings,
    pub method: Method,
}

impl Deref for Prepared {
    type Target = RepairSettings;

    fn deref(&self) -> &RepairSettings {
        &self.settings
    }
}

/// Errors if no method has this name.
fn named_method(name: &str) -> Result<()> {
    step::named(name).map(drop)
}

impl Prepared {
    /// Rounds of an online repair. Each has `max-steps` over `rounds` steps, rounded up, so fewer
    /// may be enough for all steps.
    pub fn online_rounds(&self) -> usize {
        let steps = self.max_steps.div_ceil(self.rounds.unwrap_or(1)).max(1);
        self.max_steps.div_ceil(steps)
    }

    /// Lays the layers over each other and checks the result.
    pub fn new(mut layers: Layers) -> Result<Self> {
        layers.one_way_to_say_a_method();
        layers.one_way_to_hold_kl()?;
        let said = Said::of(&layers)?;
        let mut all = Layer::new();
        for setting in SETTINGS.iter() {
            let own = match (&said, said.is_online(&layers)) {
                (_, true) => setting.online_default.as_ref(),
                (Said::Named(Named::Neurons(_)), _) => setting.neuron_default.as_ref(),
                _ => None,
            };
            let default = own.or(setting.default.as_ref());
            all.extend(default.map(|value| (setting.name.to_owned(), value.clone())));
        }
        let on_demo = layers.given("model").is_none_or(|model| model == "demo");
        let online = said.is_online(&layers);
        let own_rate = said.rate().filter(|_| !online);
        all.extend(own_rate.map(|rate| ("learning-rate".to_owned(), rate.into())));
        if on_demo && !said.is_of_neurons() && !online {
            let mut demo = layers::preset("demo")?;
            // It was found for the methods that have the common one.
            demo.retain(|name, _| name != "learning-rate" || own_rate == Some(step::RATE));
            // Half of a shorter run is its warm-up, too.
            let half = layers.given("max-steps").and_then(Value::as_u64).map(|steps| steps / 2);
            demo.extend(half.map(|half| ("warmup-steps".to_owned(), half.into())));
            all.extend(demo);
        }
        layers.all().into_iter().for_each(|layer| all.extend(layer.clone()));
        warm_up_within(&mut all, &layers)?;
        let with_kl = all.get("kl-weight").and_then(Value::as_f64).is_some_and(|w| w != 0.0)
            || all.contains_key("kl-budget");
        all.insert("method".into(), said.name(with_kl).into());
        for setting in SETTINGS.iter() {
            if let Some(value) = all.get(setting.name) {
                setting.in_range(value).map_err(Error::Input)?;
            }
        }
        let settings: RepairSettings = serde_json::from_value(Value::Object(all))
            .map_err(|e| Error::Input(format!("{}: {e}", layers.file_name)))?;
        let needed = if online { &settings.prompts } else { &settings.data };
        match needed {
            None if settings.model == "demo" => {}
            None if online => {
                bail_input!("--prompts is missing: give a file of prompts to sample from")
            }
            None => bail_input!(
                "--data is missing: give a file of pairs to repair {} with, or --prompts and a \
                 --scorer",
                settings.model
            ),
            Some(_) if layers.given("model").is_none() => {
                let flag = if online { "--prompts" } else { "--data" };
                let why = format!(
                    "{flag} without --model: give the model that is to be repaired (--model demo \
                     for the embedded one)"
                );
                return Err(Error::Usage(why).into());
            }
            Some(_) => {}
        }
        let method = said.method(&settings, online);
        let prepared = Self { settings, method };
        prepared.check_uses(&layers)?;
        prepared.check(matches!(said, Said::Named(_)))?;
        Ok(prepared)
    }

    /// The parts of a block-level method, if it is one.
    pub fn recipe(&self) -> Option<&Recipe> {
        match &self.method {
            Method::Blocks(recipe) => Some(recipe),
            Method::Neurons(_) => None,
        }
    }

    /// Errors (usage) on a setting that was given and that the method has no use for.
    fn check_uses(&self, layers: &Layers) -> Result<()> {
        for setting in SETTINGS.iter() {
            let above = [&layers.variables, &layers.flags];
            let given = above.iter().any(|layer| layer.contains_key(setting.name))
                || !setting.yields && layers.file.contains_key(setting.name);
            let why = setting.unused.and_then(|unused| unused(&self.method)).filter(|_| given);
            if let Some(why) = why {
                return Err(self.contradicts(setting.name, why));
            }
        }
        Ok(())
    }

    fn contradicts(&self, name: &str, why: &str) -> anyhow::Error {
        let method = &self.settings.method;
        Error::Usage(format!("--method {method} has {why}, so --{name} contradicts it")).into()
    }

    /// Errors (bad input, usage) on values that contradict each other. `named`: the method was
    /// named, not put together of parts.
    fn check(&self, named: bool) -> Result<()> {
        let Some(recipe) = self.recipe() else { return Ok(()) };
        if recipe.weight == 0.0 && recipe.kl_weight == 0.0 {
            bail_input!(
                "every term of the loss has weight 0: there is nothing to change the model for"
            );
        }
        let has_kl = self.settings.method.ends_with("+kl");
        match self.settings.kl_weight.filter(|_| named) {
            Some(weight) if weight != 0.0 && !has_kl => {
                let why = format!("no KL term ({}+kl has)", self.settings.method);
                return Err(self.contradicts("kl-weight", &why));
            }
            Some(0.0) if has_kl => {
                return Err(self.contradicts("kl-weight 0", "a KL term in its name and nature"));
            }
            _ => {}
        }
        let normalize = self.settings.normalize;
        match (recipe.select.first, normalize) {
            (First::Look, Some(Normalize::Start)) => {
                let why = "a block chosen at the start: all are equal there";
                return Err(self.contradicts("normalize start", why));
            }
            (First::Look, Some(Normalize::Running)) => {
                let why = "a block chosen at the start: there are no steps before";
                return Err(self.contradicts("normalize running", why));
            }
            (First::Trials, Some(_)) => {
                return Err(self.contradicts("normalize", "trials, which rank by loss"));
            }
            _ => {}
        }
        let Self { settings, .. } = self;
        if recipe.online {
            check_thresholds(settings.rejected_above, settings.chosen_below)?;
        }
        check_room("--normal-texts", settings.normal_texts, OF_A_TEXT)?;
        if recipe.online {
            let texts = settings.prompts_per_round.saturating_mul(settings.samples_per_prompt);
            check_room("--samples-per-prompt", texts, OF_A_TEXT)?;
        }
        if !(settings.top_p > 0.0 && settings.top_p <= 1.0) {
            bail_input!("--top-p {}: must be above 0 and at most 1", settings.top_p);
        }
        let guarded = self.settings.max_ppl_increase.is_some();
        if guarded && self.settings.eval_steps == 0 {
            let why = "--max-ppl-increase is checked at validations; --eval-steps 0 has none";
            return Err(Error::Usage(why.into()).into());
        }
        if guarded && self.settings.valid_size == Some(0) {
            let why = "--max-ppl-increase is checked at validations; --valid-size 0 leaves no \
                       pairs for them";
            return Err(Error::Usage(why.into()).into());
        }
        Ok(())
    }

    /// What settings that were not given came to, by their names in the record, and
    /// `objective-weight`, which is none's; `lengths` and `held_back`: as the model and the rows
    /// allowed.
    pub fn resolved(&self, lengths: Lengths, held_back: usize) -> Result<BTreeMap<String, Value>> {
        let mut found: Vec<(&str, Value)> = Vec::new();
        if let Some(recipe) = self.recipe() {
            found.push(("select", json!(recipe.select.name)));
            found.push(("objective", json!(recipe.objective.name)));
            let weight = if recipe.objective.alpha { "nll-weight" } else { "objective-weight" };
            found.push((weight, json!(recipe.weight)));
            found.push(("kl-weight", json!(recipe.kl_weight)));
            let beta = recipe.beta.or(recipe.objective.beta);
            found.extend(beta.map(|beta| ("beta", json!(beta))));
            if recipe.select.ranks {
                found.push(("slice", json!(recipe.slicing.granularity)));
                found.push(("top-k", json!(recipe.slicing.top_k)));
                found.push(("normalize", json!(recipe.slicing.normalize)));
            }
            found.push(("warmup-steps", json!(self.warmup())));
            found.push(("valid-size", json!(held_back)));
        }
        found.push(("max-length", json!(lengths.total)));
        found.push(("max-prompt-length", json!(lengths.prompt)));
        let given = serde_json::to_value(&self.settings).context("settings")?;
        let missing = |name: &str| given.get(name).is_none_or(Value::is_null);
        let found = found.into_iter().filter(|(name, _)| missing(name));
        Ok(found.map(|(name, value)| (name.to_owned(), value)).collect())
    }
}

/// How a method is said.
enum Said {
    Named(Named),
    Parts(&'static select::NamedSelector, &'static objective::NamedObjective),
}

impl Said {
    /// Errors (usage) if it is said in both ways, (bad input) if a name is none.
    fn of(layers: &Layers) -> Result<Self> {
        let given = |name: &str| layers.given(name).and_then(Value::as_str);
        match (given("method"), given("select"), given("objective")) {
            (None, None, None) => Ok(Self::Named(step::named(match layers.given("prompts") {
                Some(_) => "online-dpo+kl",
                None => "irepair+kl",
            })?)),
            (Some(method), None, None) => Ok(Self::Named(step::named(method)?)),
            (None, select, objective) => Ok(Self::Parts(
                select.map_or(Ok(&select::MAX), select::named)?,
                objective.map_or(Ok(&objective::NLL), objective::named)?,
            )),
            (Some(method), ..) => Err(Error::Usage(format!(
                "--method {method} is a selector and an objective already; give either --method or \
                 --select and --objective"
            ))
            .into()),
        }
    }

    /// The learning rate of a block-level method by its name, or of the one with these parts.
    fn rate(&self) -> Option<f64> {
        match self {
            Self::Named(Named::Blocks(method)) => Some(method.rate),
            Self::Named(Named::Neurons(_)) => None,
            Self::Parts(select, objective) => Some(step::rate(select, objective)),
        }
    }

    fn is_of_neurons(&self) -> bool {
        matches!(self, Self::Named(Named::Neurons(_)))
    }

    /// Whether its pairs are the model's own texts.
    fn is_online(&self, layers: &Layers) -> bool {
        match self {
            Self::Named(Named::Blocks(method)) => {
                method.online || layers.given("prompts").is_some()
            }
            Self::Named(Named::Neurons(_)) => false,
            Self::Parts(..) => layers.given("prompts").is_some(),
        }
    }

    /// The method's one name.
    fn name(&self, with_kl: bool) -> String {
        match self {
            Self::Named(Named::Blocks(method)) => method.name.into(),
            Self::Named(Named::Neurons(method)) => method.name.into(),
            Self::Parts(select, objective) => {
                let kl = if with_kl { "+kl" } else { "" };
                format!("{}-{}{kl}", select.name, objective.name)
            }
        }
    }

    /// The method with the numbers of these settings.
    fn method(&self, settings: &RepairSettings, online: bool) -> Method {
        let mut recipe = match self {
            Self::Named(Named::Neurons(method)) => {
                return Method::Neurons(neurons::Recipe {
                    method,
                    mode: settings.mode.unwrap_or(neurons::Mode::Batch),
                    blocks: settings.block_sparsity.unwrap_or(neurons::Share::All),
                    neurons: settings.neurons.unwrap_or(neurons::Share::All),
                    steps: settings.max_steps,
                    learning_rate: settings.learning_rate,
                    rounds: settings.rounds.unwrap_or(1),
                });
            }
            Self::Named(Named::Blocks(method)) => method.recipe(),
            Self::Parts(select, objective) => {
                let budget = settings.kl_budget.is_some();
                let with_kl = budget || settings.kl_weight.is_some_and(|weight| weight != 0.0);
                // A budget moves the weight from wherever it begins.
                let kl_weight = if budget { 1.0 } else { 0.0 };
                Recipe { kl_weight, ..Recipe::of(select, objective, with_kl) }
            }
        };
        recipe.weight = settings.nll_weight.unwrap_or(recipe.weight);
        recipe.kl_weight = settings.kl_weight.unwrap_or(recipe.kl_weight);
        recipe.beta = settings.beta.or(recipe.beta);
        recipe.online = online;
        recipe.slicing = Slicing {
            granularity: settings.slice.unwrap_or(recipe.slicing.granularity),
            top_k: settings.top_k.unwrap_or(recipe.slicing.top_k),
            normalize: settings.normalize.unwrap_or(recipe.slicing.normalize),
            blocks: settings.blocks.clone().unwrap_or(recipe.slicing.blocks),
        };
        Method::Blocks(recipe)
    }
}

/// A warm-up that is longer than the run would never reach the learning rate. Errors (bad input) if
/// it is said; the one of a lower layer gives way to a shorter run.
fn warm_up_within(all: &mut Layer, layers: &Layers) -> Result<()> {
    let number = |name: &str| all.get(name).and_then(Value::as_u64);
    let (Some(warmup), Some(steps)) = (number("warmup-steps"), number("max-steps")) else {
        return Ok(());
    };
    if warmup <= steps {
        return Ok(());
    }
    let height = |name: &str| layers.all().iter().rposition(|layer| layer.contains_key(name));
    let said = height("warmup-steps");
    if said.is_none() || said < height("max-steps") {
        all.remove("warmup-steps");
        return Ok(());
    }
    bail_input!(
        "--warmup-steps {warmup} is longer than the run of --max-steps {steps}: the learning rate \
         would never be reached; lower it, or leave it out for a tenth of the run"
    )
}

/// The settings of a repair from its words and a file or preset.
pub fn prepare(file: Option<&Path>, words: &RepairWords) -> Result<Prepared> {
    Prepared::new(Layers::new(file, words)?)
}

/// Errors (bad input) if no text could be rejected, or one could be both rejected and chosen.
pub fn check_thresholds(rejected_above: f64, chosen_below: f64) -> Result<()> {
    if rejected_above > 1.0 {
        bail_input!("--rejected-above {rejected_above}: scores are from 0 to 1");
    }
    if rejected_above <= chosen_below {
        bail_input!(
            "--rejected-above {rejected_above} is not above --chosen-below {chosen_below}: no text \
             can be both"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(given: Value) -> Layers {
        let flags = given.as_object().cloned().unwrap_or_default();
        Layers { flags, ..Layers::default() }
    }

    fn refused(given: Value) -> (u8, String) {
        let error = Prepared::new(flags(given)).expect_err("refused");
        (crate::base::error::exit_code(&error), error.to_string())
    }

    #[test]
    fn flags_lie_over_the_file_and_the_file_over_the_defaults() {
        let mut layers = flags(json!({ "model": "m", "data": "d", "batch-size": 9 }));
        layers.file =
            json!({ "learning-rate": 0.5, "batch-size": 7 }).as_object().cloned().expect("a layer");
        let settings = Prepared::new(layers).expect("settings").settings;
        let numbers = (settings.learning_rate, settings.batch_size, settings.max_steps);
        assert_eq!(numbers, (0.5, 9, 2000));
    }

    #[test]
    fn contradictions_are_usage_errors() {
        let (code, error) = refused(json!({ "method": "irepair", "kl-weight": 1.0 }));
        assert_eq!(code, 2, "{error}");
        let (_, error) = refused(json!({ "method": "irepiar" }));
        assert!(error.contains("did you mean \"irepair\""), "{error}");
        let (_, error) = refused(json!({ "method": "DAPT" }));
        assert!(error.contains("did you mean \"dapt\""), "{error}");
        // Given with a method that makes none; a preset's gives way.
        let (code, error) = refused(json!({ "trial-steps": 3 }));
        assert!(code == 2 && error.contains("--trial-steps"), "{error}");
        let mut layers = flags(json!({ "method": "dapt" }));
        layers.file = layers::preset("trial-dpo").expect("a preset");
        Prepared::new(layers).expect("a preset's trial steps are left unused");
    }

    #[test]
    fn the_higher_layer_says_the_method() {
        let mut layers = flags(json!({ "select": "max" }));
        layers.variables = json!({ "method": "dapt" }).as_object().cloned().expect("a layer");
        let prepared = Prepared::new(layers).expect("settings");
        assert_eq!(prepared.settings.method, "max-nll");
    }
}
