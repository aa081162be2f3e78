//! What a `config.json` says of rotary positions, as transformers reads it
//! (`modeling_rope_utils.py`): plain ones, and those scaled for longer texts.

use std::f64::consts::TAU;

use anyhow::Result;
use serde_json::{Value, json};

use super::config::Config;
use super::layers::Rotary;
use crate::bail_input;

/// How an architecture speaks of rotary positions.
#[derive(Clone, Copy)]
pub struct Rope {
    /// The key of θ beside the object of rotary settings, and θ where no one names it.
    pub theta: (&'static str, f64),
    /// The same of the part of a head's channels that are turned; `None` for whole heads alone.
    pub part: Option<(&'static str, f64)>,
    /// The context before scaling where it is not named beside that object; `None` takes the one
    /// in it, or else the context.
    pub original: Option<usize>,
    /// Names of scalings that mean others.
    pub renamed: &'static [(&'static str, &'static str)],
}

impl Rope {
    /// As Llama.
    pub const USUAL: Self =
        Self { theta: ("rope_theta", 10000.0), part: None, original: None, renamed: &[] };
}

const PART: &str = "partial_rotary_factor";
const ORIGINAL: &str = "original_max_position_embeddings";
const FULL: &str = "full_attention";
/// What an object of rotary settings can have settings for.
const KINDS: [&str; 2] = [FULL, "sliding_attention"];

/// Rotary positions, and the longest sequence they are right for.
pub type Positions = (Rotary, usize);

/// The channels of a head, and the longest sequence of a model.
#[derive(Clone, Copy)]
pub struct Extent {
    pub head_dim: usize,
    pub context: usize,
}

impl Rope {
    /// Positions that all layers have: by a `rope_scaling` that is not empty, or else by
    /// `rope_parameters`, as transformers 5 takes them. Errors (bad input) on what has no meaning
    /// here.
    pub fn of_all(&self, config: &Config, extent: Extent) -> Result<Positions> {
        let mut found = Config::new(&Value::Null);
        for key in ["rope_scaling", "rope_parameters"] {
            match config.get(key) {
                None => (),
                Some(value @ Value::Object(entries)) => {
                    if let Some((kind, _)) = entries.iter().find(|(_, value)| value.is_object()) {
                        bail_input!(
                            "config.json: {key:?} has settings of its own for {kind:?}, which is \
                             not implemented for this architecture (have: one kind of rotary \
                             positions for all layers)"
                        );
                    }
                    if !entries.is_empty() {
                        found = Config::new(value);
                        break;
                    }
                }
                Some(other) => bail_input!("config.json: {key:?} is {other}, expected an object"),
            }
        }
        let theta = config.number_or(self.theta.0, self.theta.1)?;
        let original = match config.get(ORIGINAL) {
            Some(_) => Some(config.positive(ORIGINAL)?),
            None => self.original.map(|size| size as f64),
        };
        Scaling { rope: self, beside: config, found: &found, theta, original, extent }.positions()
    }

    /// Positions of the layers of one kind, by `rope_parameters` with an object for each kind and,
    /// where attention is full, by `rope_scaling`. `theta`: where the object says nothing.
    pub fn of_kind(
        &self,
        config: &Config,
        extent: Extent,
        kind: &str,
        theta: f64,
    ) -> Result<Positions> {
        let key = "rope_parameters";
        let own = match config.get(key) {
            None => None,
            Some(Value::Object(entries)) => {
                if let Some(other) = entries.keys().find(|name| !KINDS.contains(&name.as_str())) {
                    bail_input!(
                        "config.json: {key:?} has {other:?} where this architecture has an object \
                         for each kind of layers ({})",
                        KINDS.join(", ")
                    );
                }
                entries.get(kind).filter(|own| !own.is_null())
            }
            Some(other) => bail_input!("config.json: {key:?} is {other}, expected an object"),
        };
        let mut own = match own {
            None => json!({"rope_type": "default"}),
            Some(own @ Value::Object(_)) => own.clone(),
            Some(other) => {
                bail_input!("config.json: {kind:?} in {key:?} is {other}, expected an object")
            }
        };
        // transformers looks for it beside the kinds, where it can't stand.
        own.as_object_mut().and_then(|own| own.remove("truncate"));
        let scaling = config.get("rope_scaling").filter(|_| kind == FULL);
        match scaling {
            None => (),
            Some(Value::Object(entries)) => {
                if entries.contains_key("type") && !entries.contains_key("rope_type") {
                    bail_input!(
                        "config.json: \"rope_scaling\" says \"type\", which transformers does not \
                         read in this architecture; say \"rope_type\""
                    );
                }
                for (name, value) in entries {
                    own[name] = value.clone();
                }
            }
            Some(other) => {
                bail_input!("config.json: \"rope_scaling\" is {other}, expected an object")
            }
        }
        let found = &Config::new(&own);
        Scaling { rope: self, beside: config, found, theta, original: None, extent }.positions()
    }
}

/// What is known of one kind of positions.
struct Scaling<'a> {
    rope: &'a Rope,
    beside: &'a Config<'a>,
    /// The object of rotary settings.
    found: &'a Config<'a>,
    /// θ where the object says nothing.
    theta: f64,
    /// The context before scaling, whatever the object says.
    original: Option<f64>,
    extent: Extent,
}

impl Scaling<'_> {
    fn positions(&self) -> Result<Positions> {
        let Extent { head_dim, context } = self.extent;
        let turned = self.turned()?;
        let theta = self.found.number_or("rope_theta", self.theta)?;
        if theta <= 0.0 {
            bail_input!("config.json: \"rope_theta\" is {theta}, expected a number above 0");
        }
        let plain: Vec<f64> =
            (0..turned / 2).map(|pair| theta.powf(-2.0 * pair as f64 / turned as f64)).collect();
        let kind = match self.found.get("rope_type").or_else(|| self.found.get("type")) {
            // transformers scales nothing then, which no one can have meant.
            None if self.found.get("factor").is_some() => None,
            kind => kind.map_or(Some("default"), Value::as_str),
        };
        let renamed = |kind| self.rope.renamed.iter().find(|(name, _)| Some(*name) == kind);
        let kind = renamed(kind).map_or(kind, |(_, meant)| Some(meant));
        let (mut longest, mut grows) = (context, 1.0);
        let scaled: Vec<f64> = match kind {
            Some("default") => plain,
            Some("linear") => {
                let factor = self.found.positive("factor")?;
                plain.into_iter().map(|frequency| frequency / factor).collect()
            }
            Some("llama3") => self.llama3(plain)?,
            Some("yarn") => {
                grows = self.yarn_factor()?;
                self.yarn(plain, theta)?
            }
            Some("longrope") => {
                let original = self.original()?;
                // The frequencies of longer texts are others.
                longest = context.min(original as usize);
                grows = self.long_factor(original)?;
                let key = "short_factor";
                let factors = self.found.positives(key)?;
                if factors.len() != plain.len() {
                    bail_input!(
                        "config.json: {key:?} has {} factors for {} pairs of channels",
                        factors.len(),
                        plain.len()
                    );
                }
                plain.iter().zip(factors).map(|(frequency, factor)| frequency / factor).collect()
            }
            _ => bail_input!(
                "config.json: rotary scaling {} is not implemented (have: default, linear, \
                 llama3, yarn, longrope)",
                kind.unwrap_or("of no name")
            ),
        };
        let frequencies = scaled.into_iter().map(|frequency| frequency as f32).collect();
        Ok((Rotary::of_part(frequencies, head_dim, grows as f32), longest))
    }

    /// The channels of a head that are turned.
    fn turned(&self) -> Result<usize> {
        let head_dim = self.extent.head_dim;
        let (key, all) = self.rope.part.unwrap_or((PART, 1.0));
        let part = self.found.number_or(PART, self.beside.number_or(key, all)?)?;
        let turned = (head_dim as f64 * part) as usize;
        if !(part > 0.0 && part <= 1.0) || turned == 0 || !turned.is_multiple_of(2) {
            bail_input!(
                "config.json: rotary positions turn pairs of channels, which {part} of a head's \
                 {head_dim} are not"
            );
        }
        if self.rope.part.is_none() && turned != head_dim {
            bail_input!(
                "config.json: rotary positions on a part of a head's {head_dim} channels are not \
                 implemented for this architecture"
            );
        }
        Ok(turned)
    }

    /// The context before scaling.
    fn original(&self) -> Result<f64> {
        let (named, context) = (self.original, self.extent.context as f64);
        named.map_or_else(|| self.found.positive_or(ORIGINAL, context), Ok)
    }

    /// How many times a pair turns within the original context decides how much it is slowed.
    fn llama3(&self, plain: Vec<f64>) -> Result<Vec<f64>> {
        let factor = self.found.positive("factor")?;
        let (low, high) =
            (self.found.positive("low_freq_factor")?, self.found.positive("high_freq_factor")?);
        let context = self.original()?;
        if low >= high {
            bail_input!(
                "config.json: \"low_freq_factor\" {low} is not below \"high_freq_factor\" {high}"
            );
        }
        let scaled = |frequency: f64| {
            let turns = context * frequency / TAU;
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 - kept) * frequency / factor + kept * frequency
        };
        Ok(plain.into_iter().map(scaled).collect())
    }

    /// YaRN (Peng et al. 2023): pairs that turn often are left, those that turn seldom are slowed,
    /// and those in between by their place.
    fn yarn(&self, plain: Vec<f64>, theta: f64) -> Result<Vec<f64>> {
        let factor = self.found.positive("factor")?;
        let (fast, slow) =
            (self.found.number_or("beta_fast", 32.0)?, self.found.number_or("beta_slow", 1.0)?);
        // 0 is as good as absent to Python.
        let or = |number: f64, default: f64| if number == 0.0 { default } else { number };
        let (fast, slow) = (or(fast, 32.0), or(slow, 1.0));
        if fast < 0.0 || slow < 0.0 || theta == 1.0 {
            bail_input!(
                "config.json: YaRN with \"beta_fast\" {fast}, \"beta_slow\" {slow} and \
                 \"rope_theta\" {theta} has no meaning"
            );
        }
        let (original, channels) = (self.original()?, 2.0 * plain.len() as f64);
        let place = |turns: f64| channels * (original / (turns * TAU)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (place(fast), place(slow));
        if self.found.flag_or("truncate", true)? {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(channels - 1.0));
        if low == high {
            high += 0.001;
        }
        let scaled = |(pair, frequency): (usize, f64)| {
            let slowed = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            frequency / factor * slowed + frequency * (1.0 - slowed)
        };
        Ok(plain.into_iter().enumerate().map(scaled).collect())
    }

    /// What cosines and sines are multiplied by under YaRN.
    fn yarn_factor(&self) -> Result<f64> {
        if self.found.get("attention_factor").is_some() {
            return self.found.number_or("attention_factor", 1.0);
        }
        let factor = self.found.positive("factor")?;
        let grown = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
        let [scale, of_all] =
            [self.found.number_or("mscale", 0.0)?, self.found.number_or("mscale_all_dim", 0.0)?];
        Ok(if scale != 0.0 && of_all != 0.0 { grown(scale) / grown(of_all) } else { grown(1.0) })
    }

    /// The same under LongRoPE.
    fn long_factor(&self, original: f64) -> Result<f64> {
        if self.found.get("attention_factor").is_some() {
            return self.found.number_or("attention_factor", 1.0);
        }
        let factor = self.found.positive_or("factor", self.extent.context as f64 / original)?;
        Ok(if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cosines(config: &Value) -> Vec<f32> {
        let extent = Extent { head_dim: 8, context: 64 };
        let (rotary, _) = Rope::USUAL.of_all(&Config::new(config), extent).expect("rotary");
        rotary.turns(&[5]).cosines.clone()
    }

    /// As in transformers 5.24 (`_compute_llama3_parameters`): by it the second pair of channels is
    /// slowed or not.
    #[test]
    fn the_original_context_of_scaling_is_found() {
        let cosines = |inside: Option<u32>, beside: Option<u32>| {
            let scaling = json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
                                 "high_freq_factor": 4.0,
                                 "original_max_position_embeddings": inside});
            cosines(&json!({"rope_scaling": scaling, "original_max_position_embeddings": beside}))
        };
        assert_eq!(cosines(None, None), cosines(Some(64), None));
        assert_eq!(cosines(None, Some(32)), cosines(Some(32), None));
        assert_eq!(cosines(Some(16), Some(64)), cosines(Some(64), None));
        assert_ne!(cosines(Some(64), None), cosines(Some(32), None));
    }

    /// What is not empty goes first, whole: with it the `rope_theta` of the other is gone.
    #[test]
    fn rope_scaling_goes_before_rope_parameters() {
        let parameters = json!({"rope_type": "default", "rope_theta": 100.0});
        let linear = json!({"type": "linear", "factor": 2.0});
        let both = json!({"rope_parameters": parameters, "rope_scaling": linear});
        assert_eq!(cosines(&both), cosines(&json!({"rope_scaling": linear})));
        let empty = json!({"rope_parameters": parameters, "rope_scaling": {}});
        assert_eq!(cosines(&empty), cosines(&json!({"rope_theta": 100.0})));
    }
}
