//! Settings of a repair that other commands have, too: as they are declared there.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::base::error::Error;
use crate::model::memory::Recompute;
use crate::model::precision::{Precision, WeightsDtype};
use crate::settings::setting;
use crate::settings::setting::Setting;
use crate::tokens::{Boundary, LossOn};

/// The declarations of the settings with these fields.
fn declared(fields: &'static [&str]) -> impl Iterator<Item = &'static Setting> {
    fields.iter().filter_map(|field| setting(&field.replace('_', "-")))
}

/// What the words give for these fields, or the defaults.
fn read<T: DeserializeOwned>(
    fields: &'static [&str],
    matches: &ArgMatches,
) -> Result<T, clap::Error> {
    let value = |setting: &Setting| {
        let given = setting.found(matches).or_else(|| setting.default.clone());
        (setting.name.to_owned(), given.unwrap_or_default())
    };
    let values: Map<String, Value> = declared(fields).map(value).collect();
    serde_json::from_value(Value::Object(values))
        .map_err(|error| clap::Error::raw(ErrorKind::InvalidValue, error))
}

/// A struct of declared settings, each under its field's name.
macro_rules! shared {
    ($(#[$about:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct $name {
            $(pub $field: $type,)*
        }

        impl $name {
            const FIELDS: &[&str] = &[$(stringify!($field)),*];
        }

        impl Args for $name {
            fn augment_args(command: Command) -> Command {
                command.args(declared(Self::FIELDS).map(Setting::arg))
            }

            fn augment_args_for_update(command: Command) -> Command {
                Self::augment_args(command)
            }
        }

        impl FromArgMatches for $name {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                read(Self::FIELDS, matches)
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }
    };
}

shared! {
    /// Which model, and on what.
    ModelWords {
        model: String,
        revision: Option<String>,
        device: String,
        dtype: Precision,
        weights_dtype: WeightsDtype,
        threads: Option<usize>,
    }
}

shared! {
    /// On what a command runs.
    MachineWords {
        device: String,
        weights_dtype: WeightsDtype,
        threads: Option<usize>,
    }
}

/// A model where a second one would be a mistake: elsewhere the last of several is the one.
#[derive(Debug, Clone)]
pub struct OneModel(ModelWords);

impl std::ops::Deref for OneModel {
    type Target = ModelWords;

    fn deref(&self) -> &ModelWords {
        &self.0
    }
}

impl Args for OneModel {
    fn augment_args(command: Command) -> Command {
        let several = |arg: clap::Arg| arg.action(clap::ArgAction::Append);
        ModelWords::augment_args(command).mut_arg("model", several)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for OneModel {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        if matches.get_many::<Value>("model").is_some_and(|models| models.len() > 1) {
            let why = "this command takes one --model; to see two side by side: irepair try BASE \
                       REPAIRED\n";
            return Err(clap::Error::raw(ErrorKind::ArgumentConflict, why));
        }
        Ok(Self(ModelWords::from_arg_matches(matches)?))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

shared! {
    /// Which pairs, and how they are read.
    PairWords {
        data: Option<PathBuf>,
        map: Vec<String>,
        limit: Option<usize>,
        max_length: Option<usize>,
        max_prompt_length: Option<usize>,
        loss_on: LossOn,
        boundary: Boundary,
    }
}

shared! {
    /// Pairs at a time.
    BatchWords {
        batch_size: usize,
        recompute: Recompute,
    }
}

shared! {
    /// A model of which no weights are read.
    NamedModel {
        model: String,
        revision: Option<String>,
    }
}

shared! {
    /// Models that are measured: revision, and on what.
    MeasureWords {
        revision: Option<String>,
        toxic_label: Option<String>,
        normal_texts: usize,
        seed: u64,
        device: String,
        weights_dtype: WeightsDtype,
        threads: Option<usize>,
    }
}

shared! {
    /// What is drawn, and what scorers are told.
    WritingWords {
        seed: u64,
        toxic_label: Option<String>,
    }
}

shared! {
    /// How texts are sampled, scored and paired.
    PairingWords {
        max_prompt_length: Option<usize>,
        samples_per_prompt: usize,
        max_new_tokens: usize,
        temperature: f64,
        top_p: f64,
        rejected_above: f64,
        chosen_below: f64,
        pairs_per_prompt: usize,
        scorer: String,
        toxic_label: Option<String>,
        seed: u64,
    }
}

shared! {
    /// Which scorer.
    ScorerWords {
        scorer: String,
        toxic_label: Option<String>,
    }
}

/// Errors (bad input) if a number is out of the range that its declaration gives.
pub fn in_range(name: &str, value: impl Into<Value>) -> anyhow::Result<()> {
    let value = value.into();
    let checked = setting(name).map_or(Ok(()), |setting| setting.in_range(&value));
    Ok(checked.map_err(Error::Input)?)
}
