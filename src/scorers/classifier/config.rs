//! The *config* of a classifier: its `config.json`, and the defaults of transformers for what it
//! leaves out.

use anyhow::Result;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::bail_input;
use crate::base::error::Error;

/// More positions than any of these models has. The limit keeps a broken file from making us
/// reserve too much memory.
const MOST_POSITIONS: usize = 1 << 17;

pub struct Config {
    values: Map<String, Value>,
    /// The path of the file, for errors.
    pub place: String,
}

impl Config {
    /// The settings in `found`, over `defaults`. A setting that is `null` counts as left out.
    pub fn new(found: &Value, defaults: Value, place: String) -> Result<Self> {
        let (Value::Object(mut values), Some(found)) = (defaults, found.as_object()) else {
            bail_input!("{place}: not a JSON object");
        };
        values.extend(
            found.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())),
        );
        Ok(Self { values, place })
    }

    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// A whole number of 0 or more.
    pub fn count_or_zero(&self, key: &str) -> Result<usize> {
        let number = self.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        let Some(number) = number else {
            bail_input!("{}: {key} must be a whole number, but is {}", self.place, self.shown(key));
        };
        Ok(number as usize)
    }

    /// A whole number of 1 or more.
    pub fn count(&self, key: &str) -> Result<usize> {
        match self.count_or_zero(key)? {
            0 => bail_input!("{}: {key} must be 1 or more", self.place),
            count => Ok(count),
        }
    }

    pub fn number(&self, key: &str) -> Result<f64> {
        let Some(number) = self.get(key).and_then(Value::as_f64) else {
            bail_input!("{}: {key} must be a number, but is {}", self.place, self.shown(key));
        };
        Ok(number)
    }

    /// The numbers of channels and heads. Errors (bad input) if the first is not a multiple of the
    /// second.
    pub fn channels_and_heads(&self, channels: &str, heads: &str) -> Result<(usize, usize)> {
        let (c, h) = (self.count(channels)?, self.count(heads)?);
        if !c.is_multiple_of(h) {
            bail_input!("{}: {channels} {c} is not a multiple of {heads} {h}", self.place);
        }
        Ok((c, h))
    }

    /// The number of rows in the table of positions.
    pub fn positions(&self) -> Result<usize> {
        match self.count("max_position_embeddings")? {
            positions if positions > MOST_POSITIONS => {
                bail_input!(
                    "{}: max_position_embeddings {positions} is more than {MOST_POSITIONS}",
                    self.place
                )
            }
            positions => Ok(positions),
        }
    }

    /// Errors (bad input) if a setting is there and has another value than the only one that is
    /// implemented.
    pub fn only(&self, key: &str, value: impl Into<Value>) -> Result<()> {
        let value = value.into();
        match self.get(key) {
            Some(found) if *found != value => {
                bail_input!("{}: {key} {found} is not implemented; only {value} is", self.place)
            }
            _ => Ok(()),
        }
    }

    /// The settings as the type of a model of candle-transformers, with some of them `changed`.
    pub fn read<T: DeserializeOwned>(
        &self,
        changed: impl IntoIterator<Item = (&'static str, Value)>,
    ) -> Result<T> {
        let mut values = self.values.clone();
        values.extend(changed.into_iter().map(|(key, value)| (key.to_owned(), value)));
        Ok(serde_json::from_value(Value::Object(values))
            .map_err(|e| Error::Input(format!("{}: {e}", self.place)))?)
    }

    /// The name of an activation function for candle's BERT and DeBERTa.
    pub fn activation(&self, key: &str) -> Value {
        match self.get(key).and_then(Value::as_str) {
            Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh") => "geluapproximate".into(),
            _ => self.get(key).cloned().unwrap_or(Value::Null),
        }
    }

    fn shown(&self, key: &str) -> String {
        self.get(key).map_or_else(|| "missing".into(), Value::to_string)
    }
}
