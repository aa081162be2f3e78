//! The *labels* of a classifier: their names, which of them is the toxic one, and how a logit
//! becomes a probability.

use anyhow::Result;
use serde_json::Value;

use super::config::Config;
use crate::bail_input;
use crate::base::plain::shortened;
use crate::scorers::scorer::Scored;

/// The names that the toxic label may have, in the order in which they are looked for.
const TOXIC_LABELS: [&str; 6] = ["toxicity", "toxic", "hate", "offensive", "unsafe", "LABEL_1"];

/// How logits become probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Each label has a probability of its own.
    Sigmoid,
    /// The labels exclude each other.
    Softmax,
}

impl Activation {
    /// Words for this activation over a number of labels.
    pub fn words(self, labels: usize) -> String {
        match (self, labels) {
            (_, 1) => "sigmoid of its only label".into(),
            (Self::Sigmoid, _) => format!("sigmoid, one of {labels} independent labels"),
            (Self::Softmax, _) => format!("softmax over {labels} labels"),
        }
    }
}

#[derive(Debug)]
pub struct Labels {
    pub names: Vec<String>,
    pub activation: Activation,
    /// The index of the toxic label in `names`.
    toxic: usize,
}

impl Labels {
    /// Reads `id2label` and `problem_type`, by the rules of transformers' pipeline. `wanted` names
    /// the toxic label. Errors (bad input) if the model is a regression, or has no toxic label.
    pub fn new(config: &Config, wanted: Option<&str>) -> Result<Self> {
        let names = names(config)?;
        let activation = match config.get("problem_type").and_then(Value::as_str) {
            Some("regression") => bail_input!(
                "{}: problem_type is regression: this model gives no probabilities; choose a \
                 classifier",
                config.place
            ),
            Some("multi_label_classification") => Activation::Sigmoid,
            None | Some("single_label_classification") if names.len() == 1 => Activation::Sigmoid,
            None | Some("single_label_classification") => Activation::Softmax,
            Some(other) => bail_input!(
                "{}: unknown problem_type {other:?}; have: single_label_classification, \
                 multi_label_classification",
                config.place
            ),
        };
        let position = |label: &str| names.iter().position(|name| name.eq_ignore_ascii_case(label));
        let toxic = match wanted {
            Some(wanted) => position(wanted),
            None => TOXIC_LABELS.iter().find_map(|name| position(name)),
        };
        let Some(toxic) = toxic else {
            let why = match wanted {
                Some(wanted) => format!("no label {wanted:?}"),
                None => format!("no label that is known to be toxic ({})", TOXIC_LABELS.join(", ")),
            };
            bail_input!(
                "{}: {why}; give --toxic-label, one of: {}",
                config.place,
                names.join(", ")
            );
        };
        Ok(Self { names, activation, toxic })
    }

    /// The name of the toxic label.
    pub fn toxic(&self) -> &str {
        &self.names[self.toxic]
    }

    /// The probability of the toxic label.
    pub fn score(&self, logits: &[f32]) -> Scored {
        let logit = f64::from(logits[self.toxic]);
        let score = match self.activation {
            Activation::Sigmoid => 1.0 / (1.0 + (-logit).exp()),
            Activation::Softmax => {
                1.0 / logits.iter().map(|other| (f64::from(*other) - logit).exp()).sum::<f64>()
            }
        };
        if score.is_nan() {
            return Scored::Failed("the model gives no number for this text".into());
        }
        Scored::Score(score)
    }
}

/// The names of the labels in the order of their ids: LABEL_0, LABEL_1, … if `config.json` has
/// none.
fn names(config: &Config) -> Result<Vec<String>> {
    let Some(named) = config.get("id2label") else {
        let count =
            if config.get("num_labels").is_some() { config.count("num_labels")? } else { 2 };
        return Ok((0..count).map(|id| format!("LABEL_{id}")).collect());
    };
    let named = named.as_object().filter(|labels| !labels.is_empty());
    let labels = named.and_then(|named| {
        (0..named.len())
            .map(|id| named.get(&id.to_string())?.as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
    });
    let Some(labels) = labels else {
        bail_input!(
            "{}: id2label must name the labels 0, 1, …; it is {}",
            config.place,
            shortened(&config.get("id2label").map(ToString::to_string).unwrap_or_default(), 200)
        );
    };
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn labels(config: Value, wanted: Option<&str>) -> Result<Labels> {
        Labels::new(&Config::new(&config, json!({}), "config.json".into()).expect("config"), wanted)
    }

    #[test]
    fn activations_follow_the_pipeline() {
        let two = json!({"0": "neutral", "1": "toxic"});
        let cases = [
            (json!({"id2label": two}), Activation::Softmax),
            (
                json!({"id2label": two, "problem_type": "single_label_classification"}),
                Activation::Softmax,
            ),
            (
                json!({"id2label": two, "problem_type": "multi_label_classification"}),
                Activation::Sigmoid,
            ),
            (json!({"id2label": {"0": "toxic"}}), Activation::Sigmoid),
            (
                json!({"id2label": {"0": "toxic"}, "problem_type": "single_label_classification"}),
                Activation::Sigmoid,
            ),
        ];
        for (config, expected) in cases {
            assert_eq!(
                labels(config.clone(), None).expect("labels").activation,
                expected,
                "{config}"
            );
        }
    }

    #[test]
    fn the_toxic_label_is_found_by_name() {
        let toxic = |names: Value, wanted| {
            labels(json!({"id2label": names}), wanted).map(|l| l.toxic().to_owned())
        };
        let bias = json!({"0": "toxicity", "1": "severe_toxicity", "2": "male", "3": "toxic"});
        assert_eq!(toxic(bias.clone(), None).expect("found"), "toxicity");
        assert_eq!(toxic(bias, Some("MALE")).expect("found"), "male");
        assert_eq!(toxic(json!({"0": "nothate", "1": "Hate"}), None).expect("found"), "Hate");
        assert_eq!(labels(json!({}), None).expect("unnamed").toxic(), "LABEL_1");
        let error = toxic(json!({"0": "joy", "1": "anger"}), None).expect_err("none").to_string();
        assert!(error.contains("joy, anger") && error.contains("--toxic-label"), "{error}");
        let error =
            toxic(json!({"0": "joy", "1": "toxic"}), Some("rude")).expect_err("none").to_string();
        assert!(error.contains("\"rude\"") && error.contains("joy, toxic"), "{error}");
    }

    #[test]
    fn logits_become_probabilities() {
        let score = |labels: &Labels, logits: &[f32]| match labels.score(logits) {
            Scored::Score(score) => score,
            Scored::Failed(why) | Scored::Refused(why) => panic!("{why}"),
        };
        let two =
            labels(json!({"id2label": {"0": "neutral", "1": "toxic"}}), None).expect("labels");
        assert!((score(&two, &[0.0, 1.0]) - 1.0 / (1.0 + (-1f64).exp())).abs() < 1e-12);
        assert_eq!(score(&two, &[1000.0, -1000.0]), 0.0, "no overflow");
        assert_eq!(score(&two, &[-1000.0, 1000.0]), 1.0);
        let several = labels(
            json!({
                "id2label": {"0": "toxic", "1": "threat"},
                "problem_type": "multi_label_classification",
            }),
            None,
        );
        assert_eq!(
            score(&several.expect("labels"), &[0.0, 9.0]),
            0.5,
            "the other label does not count"
        );
        assert!(matches!(two.score(&[f32::NAN, 0.0]), Scored::Failed(_)));
    }
}
