//! A *config* is what a model's `config.json` says, read by typed look-ups whose errors name the
//! key.

use std::cell::RefCell;
use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::Value;

use super::layers::{Activation, Rotary};
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

    /// A required number above 0.
    fn positive(&self, key: &str) -> Result<f64> {
        match self.get(key).and_then(Value::as_f64) {
            Some(number) if number > 0.0 => Ok(number),
            _ => bail_input!("config.json: {key:?} is missing or no number above 0"),
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

    /// What is said of rotary positions: a `rope_scaling` that is not empty, or else
    /// `rope_parameters`, as transformers 5 takes them. Errors (bad input) on what has no meaning
    /// here: no object, or objects in it (one for each kind of layers).
    fn rope(&self) -> Result<Config<'a>> {
        for key in ["rope_scaling", "rope_parameters"] {
            match self.get(key) {
                None => (),
                Some(value @ Value::Object(found)) => {
                    if let Some((kind, _)) = found.iter().find(|(_, value)| value.is_object()) {
                        bail_input!(
                            "config.json: {key:?} has settings of its own for {kind:?}, which is \
                             not implemented (have: one kind of rotary positions for all layers)"
                        );
                    }
                    if !found.is_empty() {
                        return Ok(Config::new(value));
                    }
                }
                Some(other) => bail_input!("config.json: {key:?} is {other}, expected an object"),
            }
        }
        Ok(Config::new(&Value::Null))
    }

    /// Rotary positions of whole heads of `head_dim` channels. Errors (bad input) on those of a
    /// part.
    pub fn rotary(&self, head_dim: usize, context: usize) -> Result<Rotary> {
        let beside = Beside { theta: "rope_theta", part: "partial_rotary_factor", all: 1.0 };
        let rotary = self.rotary_beside(&beside, head_dim, context)?;
        if 2 * rotary.pairs() != head_dim {
            bail_input!(
                "config.json: rotary positions on a part of a head's {head_dim} channels are not \
                 implemented for this architecture"
            );
        }
        Ok(rotary)
    }

    /// Rotary positions of heads of `head_dim` channels, by `rope_scaling`, or `rope_parameters`
    /// where that is empty. What is not in them stands `beside` them. `context`: the longest
    /// sequence, taken for the one before scaling where none is named.
    pub fn rotary_beside(
        &self,
        beside: &Beside,
        head_dim: usize,
        context: usize,
    ) -> Result<Rotary> {
        let scaling = self.rope()?;
        let either = |key: &str, own: &str, default: f64| {
            scaling.number_or(key, self.number_or(own, default)?)
        };
        let part = either("partial_rotary_factor", beside.part, beside.all)?;
        let turned = (head_dim as f64 * part) as usize;
        if !(part > 0.0 && part <= 1.0) || turned == 0 || !turned.is_multiple_of(2) {
            bail_input!(
                "config.json: rotary positions turn pairs of channels, which {part} of a head's \
                 {head_dim} are not"
            );
        }
        let theta = either("rope_theta", beside.theta, 10000.0)?;
        if theta <= 0.0 {
            bail_input!("config.json: \"rope_theta\" is {theta}, expected a number above 0");
        }
        let plain = (0..turned / 2).map(|pair| theta.powf(-2.0 * pair as f64 / turned as f64));
        let kind = match scaling.get("rope_type").or_else(|| scaling.get("type")) {
            // transformers scales nothing then, which no one can have meant.
            None if scaling.get("factor").is_some() => None,
            kind => kind.map_or(Some("default"), Value::as_str),
        };
        let scaled: Vec<f64> = match kind {
            Some("default") => plain.collect(),
            Some("linear") => {
                let factor = scaling.positive("factor")?;
                plain.map(|frequency| frequency / factor).collect()
            }
            Some("llama3") => {
                let factor = scaling.positive("factor")?;
                let (low, high) =
                    (scaling.positive("low_freq_factor")?, scaling.positive("high_freq_factor")?);
                let original = "original_max_position_embeddings";
                // Beside the scaling it goes before the one in it, as in transformers.
                let places = [self, &scaling];
                let context = match places.into_iter().find(|c| c.get(original).is_some()) {
                    Some(place) => place.positive(original)?,
                    None => context as f64,
                };
                if low >= high {
                    bail_input!(
                        "config.json: \"low_freq_factor\" {low} is not below \
                         \"high_freq_factor\" {high}"
                    );
                }
                plain
                    .map(|frequency| {
                        // How many times the pair turns within the original context decides how
                        // much it is slowed.
                        let turns = context * frequency / std::f64::consts::TAU;
                        let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                        (1.0 - kept) * frequency / factor + kept * frequency
                    })
                    .collect()
            }
            _ => bail_input!(
                "config.json: rotary scaling {} is not implemented (have: default, linear, llama3)",
                kind.unwrap_or("of no name")
            ),
        };
        let frequencies = scaled.into_iter().map(|frequency| frequency as f32).collect();
        Ok(Rotary::of_part(frequencies, head_dim))
    }

    /// `whole / parts`, which must be even.
    pub fn divide(&self, whole: usize, parts: usize, what: &str) -> Result<usize> {
        if parts == 0 || !whole.is_multiple_of(parts) {
            bail_input!("config.json: {whole} channels can't be divided into {parts} {what}");
        }
        Ok(whole / parts)
    }
}

/// The keys beside `rope_scaling` that tell of rotary positions what it leaves out.
pub struct Beside {
    /// That of θ.
    pub theta: &'static str,
    /// That of the part of a head's channels that are turned.
    pub part: &'static str,
    /// The part where no one names it.
    pub all: f64,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As in transformers 5.24 (`_compute_llama3_parameters`): by it the second pair of channels is
    /// slowed or not.
    #[test]
    fn the_original_context_of_scaling_is_found() {
        let cosines = |inside: Option<u32>, beside: Option<u32>| {
            let scaling = json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
                                 "high_freq_factor": 4.0,
                                 "original_max_position_embeddings": inside});
            let config =
                json!({"rope_scaling": scaling, "original_max_position_embeddings": beside});
            Config::new(&config).rotary(8, 64).expect("rotary").turns(&[5]).cosines.clone()
        };
        assert_eq!(cosines(None, None), cosines(Some(64), None));
        assert_eq!(cosines(None, Some(32)), cosines(Some(32), None));
        assert_eq!(cosines(Some(16), Some(64)), cosines(Some(64), None));
        assert_ne!(cosines(Some(64), None), cosines(Some(32), None));
    }

    /// What is not empty goes first, whole: with it the `rope_theta` of the other is gone.
    #[test]
    fn rope_scaling_goes_before_rope_parameters() {
        let rotary = |config: &Value| {
            Config::new(config).rotary(8, 64).expect("rotary").turns(&[5]).cosines.clone()
        };
        let parameters = json!({"rope_type": "default", "rope_theta": 100.0});
        let linear = json!({"type": "linear", "factor": 2.0});
        let both = json!({"rope_parameters": parameters, "rope_scaling": linear});
        assert_eq!(rotary(&both), rotary(&json!({"rope_scaling": linear})));
        let empty = json!({"rope_parameters": parameters, "rope_scaling": {}});
        assert_eq!(rotary(&empty), rotary(&json!({"rope_theta": 100.0})));
    }
}
