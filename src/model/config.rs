//! A *config* is what a model's `config.json` says, read by typed look-ups whose errors name the
//! key.

use std::cell::RefCell;
use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::Value;

use super::layers::Activation;
use crate::bail_input;

/// The most blocks of a model.
pub const MOST_BLOCKS: usize = 10_000;

/// A `config.json`, or an object in it.
pub struct Config<'a> {
    json: &'a Value,
    /// The keys that were looked up.
    asked: RefCell<BTreeSet<String>>,
}

impl<'a> Config<'a> {
    pub fn new(json: &'a Value) -> Self {
        Self { json, asked: RefCell::default() }
    }

    /// The value of a key, if it is there and not null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.json.get(key).filter(|v| !v.is_null())
    }

    /// The keys that were looked up so far, there or not.
    pub fn asked(self) -> BTreeSet<String> {
        self.asked.into_inner()
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

    /// A size with the default that transformers has where it is absent; null means none.
    pub fn size_or_null(&self, key: &str, default: usize) -> Result<Option<usize>> {
        self.asked.borrow_mut().insert(key.to_owned());
        if self.json.get(key).is_none() { Ok(Some(default)) } else { self.size_or_none(key) }
    }

    /// A number of blocks: at least one, and no more than any model has, since their names are
    /// about to be listed.
    pub fn blocks(&self, key: &str) -> Result<usize> {
        match self.size(key)? {
            blocks @ 1..=MOST_BLOCKS => Ok(blocks),
            other => bail_input!("config.json: {key:?} is {other}, expected 1 to {MOST_BLOCKS}"),
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

    /// A number above 0 with the default that transformers has where it is absent.
    pub fn positive_or(&self, key: &str, default: f64) -> Result<f64> {
        if self.get(key).is_none() { Ok(default) } else { self.positive(key) }
    }

    /// The same where null means none.
    pub fn positive_or_null(&self, key: &str, default: Option<f64>) -> Result<Option<f64>> {
        self.asked.borrow_mut().insert(key.to_owned());
        match self.json.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(_) => self.positive(key).map(Some),
        }
    }

    /// A required number above 0.
    pub fn positive(&self, key: &str) -> Result<f64> {
        match self.get(key).and_then(Value::as_f64) {
            Some(number) if number > 0.0 => Ok(number),
            _ => bail_input!("config.json: {key:?} is missing or no number above 0"),
        }
    }

    /// A required list of numbers above 0.
    pub fn positives(&self, key: &str) -> Result<Vec<f64>> {
        let number = |value: &Value| value.as_f64().filter(|number| *number > 0.0);
        let list = self.get(key).and_then(Value::as_array);
        match list.and_then(|list| list.iter().map(number).collect()) {
            Some(numbers) => Ok(numbers),
            None => bail_input!("config.json: {key:?} is missing or no list of numbers above 0"),
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
            None => bail_input!(
                "config.json: {key:?} {name:?} is not implemented \
                 (have: gelu_new, gelu, relu, silu)"
            ),
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
