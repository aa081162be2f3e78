//! Reading `config.json`: typed look-ups whose errors name the setting.

use anyhow::Result;
use serde_json::Value;

use super::layers::Activation;
use crate::bail_input;

/// The settings of a `config.json`.
pub struct Settings<'a> {
    config: &'a Value,
}

impl<'a> Settings<'a> {
    pub fn new(config: &'a Value) -> Self {
        Self { config }
    }

    /// The value of a key, if it is there and not null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.config.get(key).filter(|v| !v.is_null())
    }

    /// A required text.
    pub fn text(&self, key: &str) -> Result<&'a str> {
        match self.get(key).and_then(Value::as_str) {
            Some(text) => Ok(text),
            None => bail_input!("config.json: {key:?} is missing or no text"),
        }
    }

    /// A required size.
    pub fn size(&self, key: &str) -> Result<usize> {
        match self.size_or_none(key)? {
            Some(size) => Ok(size),
            None => bail_input!("config.json: {key:?} is missing"),
        }
    }

    /// A size that may be absent or null.
    pub fn size_or_none(&self, key: &str) -> Result<Option<usize>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(size) if size > 0 && size < 1 << 31 => Ok(Some(size as usize)),
                _ => bail_input!("config.json: {key:?} is {value}, expected a size of 1 or more"),
            },
        }
    }

    /// A number of blocks: at least one, and no more than any model has, since their names are about to be listed.
    pub fn blocks(&self, key: &str) -> Result<usize> {
        match self.size(key)? {
            blocks @ 1..=10_000 => Ok(blocks),
            other => bail_input!("config.json: {key:?} is {other}, expected 1 to 10,000"),
        }
    }

    /// The ε of a norm.
    pub fn epsilon_or(&self, key: &str, default: f64) -> Result<f64> {
        match self.number_or(key, default)? {
            epsilon if epsilon >= 0.0 => Ok(epsilon),
            other => bail_input!("config.json: {key:?} is {other}, expected 0 or more"),
        }
    }

    /// A number with the default that transformers has for it.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(number),
                None => bail_input!("config.json: {key:?} is {value}, expected a number"),
            },
        }
    }

    /// A flag with the default that transformers has for it.
    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => bail_input!("config.json: {key:?} is {value}, expected true or false"),
        }
    }

    /// The activation function under this key, with transformers' default for it.
    pub fn activation_or(&self, key: &str, default: &str) -> Result<Activation> {
        let name = match self.get(key) {
            None => default,
            Some(_) => self.text(key)?,
        };
        match Activation::parse(name) {
            Some(activation) => Ok(activation),
            None => bail_input!("config.json: {key:?} {name:?} is not implemented (have: gelu_new, gelu, relu)"),
        }
    }

    /// `whole / parts`, which must be even.
    pub fn divide(&self, whole: usize, parts: usize, what: &str) -> Result<usize> {
        if parts == 0 || !whole.is_multiple_of(parts) {
            bail_input!("config.json: {whole} channels can't be divided into {parts} {what}");
        }
        Ok(whole / parts)
    }
}
