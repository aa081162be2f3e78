//! *Layers* of settings: a preset or a file, variables, flags. The higher one wins.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use serde_json::{Map, Value};
use toml::de::{DeTable, DeValue};

use super::repair::SETTINGS;
use super::setting::Setting;
use crate::bail_input;
use crate::base::error::{Error, unknown};
use crate::base::files;

/// Settings by their names in kebab case.
pub type Layer = Map<String, Value>;

/// Presets compiled into the program, by name. Without a model, the demo's is in force.
pub const PRESETS: &[(&str, &str)] = &[
    ("demo", include_str!("../../configs/demo.toml")),
    ("trial-dpo", include_str!("../../configs/trial-dpo.toml")),
    ("trial-dpo-ul", include_str!("../../configs/trial-dpo-ul.toml")),
    ("quick", include_str!("../../configs/quick.toml")),
    ("paper-gpt2-large", include_str!("../../configs/paper-gpt2-large.toml")),
    ("paper-gpt2-xl", include_str!("../../configs/paper-gpt2-xl.toml")),
    ("paper-gpt-neo-1.3b", include_str!("../../configs/paper-gpt-neo-1.3b.toml")),
];

/// The layers of one repair.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// What the file is called in errors.
    pub file_name: String,
    pub file: Layer,
    pub variables: Layer,
    pub flags: Layer,
}

impl Layers {
    /// The words of the command line and of the environment over a file or a preset.
    pub fn new(file: Option<&Path>, words: &RepairWords) -> Result<Self> {
        let (file_name, file) = read_layer(file)?;
        let RepairWords { variables, flags } = words.clone();
        Ok(Self { file_name, file, variables, flags })
    }

    /// The layer of a file alone.
    pub fn of_file(file_name: String, file: Layer) -> Self {
        Self { file_name, file, ..Self::default() }
    }

    /// From the lowest to the highest.
    pub fn all(&self) -> [&Layer; 3] {
        [&self.file, &self.variables, &self.flags]
    }

    /// What the highest layer that has it gives for a setting.
    pub fn given(&self, name: &str) -> Option<&Value> {
        self.all().into_iter().rev().find_map(|layer| layer.get(name))
    }

    /// A method is one thing with two ways to say it: the higher layer's way is the one.
    pub fn one_way_to_say_a_method(&mut self) {
        const PARTS: [&str; 2] = ["select", "objective"];
        let mut layers = [&mut self.flags, &mut self.variables, &mut self.file];
        for at in 0..layers.len() {
            let (above, below) = layers.split_at_mut(at + 1);
            let named = above[at].contains_key("method");
            let by_parts = PARTS.iter().any(|part| above[at].contains_key(*part));
            for layer in below {
                layer.retain(|key, _| {
                    !(named && PARTS.contains(&key.as_str()) || by_parts && key == "method")
                });
            }
        }
    }

    /// The weight of the KL term is given, or a budget moves it: the higher layer decides. Errors
    /// (usage) if one layer says both.
    pub fn one_way_to_hold_kl(&mut self) -> Result<()> {
        const WAYS: [&str; 2] = ["kl-weight", "kl-budget"];
        let mut held = false;
        for layer in [&mut self.flags, &mut self.variables, &mut self.file] {
            let given = WAYS.map(|way| layer.contains_key(way));
            if given == [true; 2] {
                return Err(Error::Usage(
                    "--kl-budget moves the weight of the KL term, so --kl-weight contradicts it; \
                     give one of them"
                        .into(),
                )
                .into());
            }
            if held {
                layer.retain(|key, _| !WAYS.contains(&key.as_str()));
            }
            held |= given.contains(&true);
        }
        Ok(())
    }
}

/// The settings of a repair that the command line and the environment give.
#[derive(Debug, Clone, Default)]
pub struct RepairWords {
    pub variables: Layer,
    pub flags: Layer,
}

impl RepairWords {
    /// Both, the flags over the variables.
    pub fn together(&self) -> Layer {
        let mut all = self.variables.clone();
        all.extend(self.flags.clone());
        all
    }
}

impl Args for RepairWords {
    fn augment_args(command: Command) -> Command {
        command.args(SETTINGS.iter().map(Setting::arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for RepairWords {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut words = Self::default();
        for setting in SETTINGS.iter() {
            let layer = match matches.value_source(setting.name) {
                Some(ValueSource::CommandLine) => &mut words.flags,
                Some(ValueSource::EnvVariable) => &mut words.variables,
                _ => continue,
            };
            layer.extend(setting.found(matches).map(|value| (setting.name.to_owned(), value)));
        }
        Ok(words)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The declaration of a setting, by its name.
pub fn setting(name: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.name == name)
}

/// The layer of a preset.
pub fn preset(name: &str) -> Result<Layer> {
    match PRESETS.iter().find(|(preset, _)| *preset == name) {
        Some((_, text)) => parse_toml(&format!("preset {name}"), text),
        None => {
            let presets: Vec<&str> = PRESETS.iter().map(|(preset, _)| *preset).collect();
            Err(Error::Input(unknown("preset", name, &presets)).into())
        }
    }
}

/// The layer of a file or of a preset, and its name for errors; empty without one.
pub fn read_layer(file: Option<&Path>) -> Result<(String, Layer)> {
    let Some(path) = file else { return Ok((String::new(), Layer::new())) };
    let name = path.display().to_string();
    if !path.exists() && PRESETS.iter().any(|(preset, _)| Path::new(preset) == path) {
        return Ok((format!("preset {name}"), preset(&name)?));
    }
    if !path.exists() {
        let presets: Vec<&str> = PRESETS.iter().map(|(preset, _)| *preset).collect();
        bail_input!("--config {name}: no such file; {}", unknown("preset", &name, &presets));
    }
    let text = files::read_text_or_pipe(path).context("--config")?;
    let layer = parse_toml(&name, &text)?;
    Ok((name, layer))
}

/// A TOML file with a table of settings for each of several repairs, by their names.
pub fn read_tables(path: &Path) -> Result<BTreeMap<String, Layer>> {
    let name = path.display().to_string();
    let text = files::read_text_or_pipe(path).context("--runs")?;
    let file = Toml::read(&name, &text)?;
    let mut tables = BTreeMap::new();
    for (key, value) in file.spans.iter() {
        let (key, place) = (key.get_ref().to_string(), file.place(key.span().start));
        if !key.chars().all(|c| c.is_ascii_alphanumeric() || "+-_.".contains(c))
            || key.starts_with('.')
        {
            bail_input!("{place}: {key:?} names a folder, too: letters, digits, + - _ and . only");
        }
        let (DeValue::Table(spans), Some(toml::Value::Table(values))) =
            (value.get_ref(), file.values.get(&key))
        else {
            bail_input!("{place}: {key} is no table; settings belong under a row's name: [{key}]");
        };
        let place = |at: usize| format!("{}: [{key}]", file.place(at));
        tables.insert(key.clone(), layer_of(spans, values, place)?);
    }
    if tables.is_empty() {
        bail_input!("{name}: no tables; give the settings of each row under its name: [name]");
    }
    Ok(tables)
}

/// A TOML file as a layer. Keys in kebab or snake case; an unknown one is an error with its line
/// and a suggestion.
pub fn parse_toml(name: &str, text: &str) -> Result<Layer> {
    let file = Toml::read(name, text)?;
    layer_of(&file.spans, &file.values, |at| file.place(at))
}

/// A TOML file, and where its keys stand.
struct Toml<'t> {
    name: &'t str,
    text: &'t str,
    values: toml::Table,
    spans: DeTable<'t>,
}

impl<'t> Toml<'t> {
    fn read(name: &'t str, text: &'t str) -> Result<Self> {
        let broken = |e: toml::de::Error| {
            let at = e.span().map_or(0, |span| span.start);
            Error::Input(format!("{}: {}", place(name, text, at), e.message()))
        };
        let values = toml::from_str(text).map_err(broken)?;
        let spans = DeTable::parse(text).map_err(broken)?.into_inner();
        Ok(Self { name, text, values, spans })
    }

    fn place(&self, at: usize) -> String {
        place(self.name, self.text, at)
    }
}

/// `FILE:LINE` of a byte.
fn place(name: &str, text: &str, at: usize) -> String {
    let before = text.as_bytes().iter().take(at);
    format!("{name}:{}", before.filter(|byte| **byte == b'\n').count() + 1)
}

/// Settings as a layer; `place` says where a byte stands.
fn layer_of(
    spans: &DeTable,
    values: &toml::Table,
    place: impl Fn(usize) -> String,
) -> Result<Layer> {
    let mut layer = Layer::new();
    // In the order of the file, so that the first mistake is named first.
    let mut keys: Vec<_> = spans.keys().collect();
    keys.sort_by_key(|key| key.span().start);
    for key in keys {
        let (at, key) = (place(key.span().start), key.get_ref().as_ref());
        let Some(value) = values.get(key) else { continue };
        let kebab = key.replace('_', "-");
        let Some(setting) = setting(&kebab) else {
            let known: Vec<&str> = SETTINGS.iter().map(|setting| setting.name).collect();
            bail_input!("{at}: {}", unknown("key", key, &known));
        };
        if value.as_float().is_some_and(|x| !x.is_finite()) {
            bail_input!("{at}: {key} is {value}, expected a finite number");
        }
        let value = serde_json::to_value(value)?;
        setting.check(&value).map_err(|e| match value {
            // A name says itself what it is.
            Value::String(_) if setting.is_named() => Error::Input(format!("{at}: {e}")),
            _ => Error::Input(format!("{at}: {key}: {e}")),
        })?;
        if layer.insert(kebab, value).is_some() {
            bail_input!("{at}: {key} is given twice, with - and with _");
        }
    }
    Ok(layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_named_with_line_and_suggestion() {
        let error = parse_toml("x.toml", "seed = 1\nlerning-rate = 2\n").expect_err("unknown");
        let meant = "x.toml:2: unknown key \"lerning-rate\"; did you mean \"learning-rate\"?";
        assert!(error.to_string().starts_with(meant), "{error}");
        let error = parse_toml("x.toml", "seed = \"one\"\n").expect_err("type").to_string();
        assert!(error.starts_with("x.toml:1: seed:"), "{error}");
        for (key, name, meant) in [
            ("method", "irepiar", "irepair"),
            ("select", "maxx", "max"),
            ("objective", "dpo_ul", "dpo-ul"),
        ] {
            let text = format!("seed = 1\n{key} = \"{name}\"\n");
            let error = parse_toml("x.toml", &text).expect_err("unknown");
            assert_eq!(crate::base::error::exit_code(&error), 3, "{error}");
            let error = error.to_string();
            let suggests = error.contains(&format!("did you mean {meant:?}"));
            assert!(error.starts_with("x.toml:2: unknown ") && suggests, "{error}");
        }
        parse_toml("x.toml", "method = \"star\"\n").expect("a neuron-level method");
        let error = parse_toml("x.toml", "max-steps = 5\nmax_steps = 6\n").expect_err("twice");
        let twice = "x.toml:2: max_steps is given twice";
        assert!(error.to_string().starts_with(twice), "{error}");
    }

    #[test]
    fn a_key_is_found_by_all_of_its_name_and_in_quotes() {
        let line = |text: &str| {
            let error = parse_toml("x.toml", text).expect_err("unknown").to_string();
            error.split(": ").next().map(str::to_owned)
        };
        let first = line("max-steps = 5\nseed = 1\nmax-step = 6\n");
        assert_eq!(first.as_deref(), Some("x.toml:3"));
        assert_eq!(line("seed = 1\n  \"lerning-rate\" = 2\n").as_deref(), Some("x.toml:2"));
        assert_eq!(line("max_steps = 5\nseed = true\n").as_deref(), Some("x.toml:2"));
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("runs.toml");
        std::fs::write(&file, "[a]\nseed = 1\n\n[b]\nseed = 2\nsead = 3\n").expect("write");
        let error = read_tables(&file).expect_err("unknown").to_string();
        assert!(error.contains("runs.toml:6: [b]: unknown key \"sead\""), "{error}");
    }

    #[test]
    fn every_setting_of_a_preset_has_its_reason() {
        for (name, text) in PRESETS {
            preset(name).expect(name);
            let mut above = "";
            for line in text.lines().map(str::trim) {
                let is_setting = !line.is_empty() && !line.starts_with(['#', '[']);
                let reasoned = line.contains('#') || above.starts_with('#');
                assert!(!is_setting || reasoned, "{name}: no reason for {line}");
                above = line;
            }
        }
    }
}
