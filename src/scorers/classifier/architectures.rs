//! The *architectures* that a classifier may have. Each is one file and one line of
//! [`ARCHITECTURES`].

use anyhow::Result;
use candle_nn::VarBuilder;
use serde_json::Value;

use super::config::Config;
use super::network::Network;
use super::vocabulary::Vocabulary;
use super::{bert, deberta_v2, distilbert, modernbert, roberta};
use crate::bail_input;

/// A line of [`ARCHITECTURES`].
pub struct Architecture {
    /// Its name in `architectures` of `config.json`.
    pub class: &'static str,
    /// Its name in `model_type` of `config.json`.
    model_type: &'static str,
    /// The values of settings that `config.json` leaves out, as in transformers.
    pub defaults: fn() -> Value,
    /// How many tokens it has positions for.
    pub longest: fn(&Config) -> Result<usize>,
    /// The files of its tokenizer where there is no `tokenizer.json`.
    pub vocabulary: Vocabulary,
    /// Builds it with the given number of labels. Errors if the weights don't fit the settings, or
    /// if a setting is not implemented.
    pub build: fn(&Config, VarBuilder, usize) -> Result<Box<dyn Network>>,
}

/// Every architecture.
pub const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        class: "BertForSequenceClassification",
        model_type: "bert",
        defaults: bert::defaults,
        longest: Config::positions,
        vocabulary: Vocabulary::WordPiece,
        build: bert::build,
    },
    Architecture {
        class: "RobertaForSequenceClassification",
        model_type: "roberta",
        defaults: roberta::defaults,
        longest: roberta::longest,
        vocabulary: Vocabulary::ByteLevel,
        build: roberta::build,
    },
    Architecture {
        class: "XLMRobertaForSequenceClassification",
        model_type: "xlm-roberta",
        defaults: roberta::defaults,
        longest: roberta::longest,
        vocabulary: Vocabulary::None,
        build: roberta::build,
    },
    Architecture {
        class: "DistilBertForSequenceClassification",
        model_type: "distilbert",
        defaults: distilbert::defaults,
        longest: Config::positions,
        vocabulary: Vocabulary::WordPiece,
        build: distilbert::build,
    },
    Architecture {
        class: "DebertaV2ForSequenceClassification",
        model_type: "deberta-v2",
        defaults: deberta_v2::defaults,
        longest: Config::positions,
        vocabulary: Vocabulary::None,
        build: deberta_v2::build,
    },
    Architecture {
        class: "ModernBertForSequenceClassification",
        model_type: "modernbert",
        defaults: modernbert::defaults,
        longest: Config::positions,
        vocabulary: Vocabulary::None,
        build: modernbert::build,
    },
];

/// The architecture that a `config.json` names: by its class or, if it has none, by its model type.
pub fn find(config: &Value, place: &str) -> Result<&'static Architecture> {
    let class = config.pointer("/architectures/0").and_then(Value::as_str);
    let model_type = config.get("model_type").and_then(Value::as_str);
    let found = ARCHITECTURES.iter().find(|a| match class {
        Some(class) => a.class == class,
        None => Some(a.model_type) == model_type,
    });
    let Some(found) = found else {
        let named = class.or(model_type).unwrap_or("nothing");
        let have: Vec<&str> = ARCHITECTURES.iter().map(|a| a.class).collect();
        bail_input!(
            "{place}: \"architectures\" names {named}, which is no classifier here; have: {}",
            have.join(", ")
        );
    };
    Ok(found)
}
