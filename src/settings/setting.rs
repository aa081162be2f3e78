//! A *setting* is stated once: its name, type, default, range, help, and which methods have a use
//! for it. The flag, the variable, the key in files, the checks and the record all come from that.

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, ValueEnum};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Method;

/// Under which heading `--help` shows a setting. The first two are in `-h`, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heading {
    Input,
    Output,
    Method,
    Loss,
    Training,
    Stopping,
    Scoring,
    Verdict,
    Online,
    WrongAnswers,
    Machine,
}

impl Heading {
    /// All of them, in their order.
    pub const ALL: [Self; 11] = [
        Self::Input,
        Self::Output,
        Self::Method,
        Self::Loss,
        Self::Training,
        Self::Stopping,
        Self::Scoring,
        Self::Verdict,
        Self::Online,
        Self::WrongAnswers,
        Self::Machine,
    ];

    pub const fn title(self) -> &'static str {
        match self {
            Self::Input => "Input",
            Self::Output => "Output",
            Self::Method => "Method",
            Self::Loss => "Loss",
            Self::Training => "Training",
            Self::Stopping => "Stopping and saving",
            Self::Scoring => "Scoring",
            Self::Verdict => "Verdict",
            Self::Online => "Online (from prompts)",
            Self::WrongAnswers => "Wrong answers",
            Self::Machine => "Machine",
        }
    }

    /// Whether `-h` leaves it to `--help`.
    const fn is_long(self) -> bool {
        !matches!(self, Self::Input | Self::Output)
    }
}

/// The most that a setting may be that counts something.
pub const MOST: usize = 1_000_000_000;

/// Why a method has no use for a setting; `None` if it has.
pub type Unused = fn(&Method) -> Option<&'static str>;

/// The declaration of a setting.
pub struct Setting {
    /// `batch-size`: the flag is `--batch-size`, the variable `IREPAIR_BATCH_SIZE`.
    pub name: &'static str,
    flag: &'static str,
    pub heading: Heading,
    help: &'static str,
    long_help: Option<fn() -> String>,
    short: Option<char>,
    aliases: Vec<&'static str>,
    value_name: Option<&'static str>,
    /// The default of every method.
    pub default: Option<Value>,
    /// The default of neuron-level methods, where that is another.
    pub neuron_default: Option<Value>,
    /// The default of methods that sample their own pairs, where that is another.
    pub online_default: Option<Value>,
    /// What stands in for a setting without a default of its own, for people.
    otherwise: Option<String>,
    least: Option<u64>,
    /// Whether 0 is out of range, too.
    positive: bool,
    /// Errors if no method, selector, … has this name.
    named: Option<fn(&str) -> anyhow::Result<()>>,
    pub unused: Option<Unused>,
    /// Whether a file's value gives way to a method that has no use for it.
    pub yields: bool,
    /// Whether the repaired weights do not depend on it.
    pub free: bool,
    form: Form,
}

/// How words of a type are read.
struct Form {
    read: fn(&str) -> Result<Value, String>,
    check: fn(&Value) -> Result<(), String>,
    possible: Vec<PossibleValue>,
    list: bool,
    counts: bool,
}

impl Setting {
    pub fn new<T: Words>(field: &'static str, help: &'static str, heading: Heading) -> Self {
        // Once for each of a few dozen settings; clap wants names that live as long as the program.
        let name = Box::leak(field.replace('_', "-").into_boxed_str());
        let check = |value: &Value| match serde_json::from_value::<T>(value.clone()) {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        let possible = T::possible();
        let form = Form { read: T::read, check, possible, list: T::LIST, counts: T::COUNTS };
        Self {
            name,
            flag: leak(format!("--{name}")),
            heading,
            help: help.trim(),
            long_help: None,
            short: None,
            aliases: Vec::new(),
            value_name: None,
            default: None,
            neuron_default: None,
            online_default: None,
            otherwise: None,
            least: None,
            positive: false,
            named: None,
            unused: None,
            yields: false,
            free: false,
            form,
        }
    }

    pub fn default(mut self, value: impl Serialize) -> Self {
        self.default = serde_json::to_value(value).ok();
        self
    }

    pub fn neuron_default(mut self, value: impl Serialize) -> Self {
        self.neuron_default = serde_json::to_value(value).ok();
        self
    }

    pub fn online_default(mut self, value: impl Serialize) -> Self {
        self.online_default = serde_json::to_value(value).ok();
        self
    }

    pub fn otherwise(mut self, text: impl Into<String>) -> Self {
        self.otherwise = Some(text.into());
        self
    }

    pub fn short(mut self, letter: char) -> Self {
        self.short = Some(letter);
        self
    }

    pub fn alias(mut self, name: &'static str) -> Self {
        self.aliases.push(name);
        self
    }

    pub fn value(mut self, name: &'static str) -> Self {
        self.value_name = Some(name);
        self
    }

    pub fn long_help(mut self, help: fn() -> String) -> Self {
        self.long_help = Some(help);
        self
    }

    pub fn at_least(mut self, least: u64) -> Self {
        self.least = Some(least);
        self
    }

    /// Not even 0.
    pub fn above_zero(mut self) -> Self {
        self.positive = true;
        self
    }

    pub fn named(mut self, check: fn(&str) -> anyhow::Result<()>) -> Self {
        self.named = Some(check);
        self
    }

    pub fn unused(mut self, why: Unused) -> Self {
        self.unused = Some(why);
        self
    }

    pub fn yields(mut self) -> Self {
        self.yields = true;
        self
    }

    pub fn free(mut self) -> Self {
        self.free = true;
        self
    }

    /// `IREPAIR_BATCH_SIZE`
    pub fn variable(&self) -> String {
        format!("IREPAIR_{}", self.name.replace('-', "_").to_uppercase())
    }

    /// `--batch-size`
    pub fn flag(&self) -> &'static str {
        self.flag
    }

    /// Errors if a value is of another type, or no such name.
    pub fn check(&self, value: &Value) -> Result<(), String> {
        (self.form.check)(value)?;
        match (self.named, value.as_str()) {
            (Some(named), Some(name)) => named(name).map_err(|error| error.to_string()),
            _ => Ok(()),
        }
    }

    /// Errors if a value is out of range.
    pub fn in_range(&self, value: &Value) -> Result<(), String> {
        match (self.least, value) {
            (Some(least), Value::Number(number))
                if number.as_f64().is_some_and(|number| number < least as f64) =>
            {
                Err(format!("--{} {number}: must be at least {least}", self.name))
            }
            (_, Value::Number(number)) if self.positive && number.as_f64() == Some(0.0) => {
                Err(format!("--{} {number}: must be above 0", self.name))
            }
            (_, Value::Number(number))
                if self.form.counts && number.as_u64().is_some_and(|n| n > MOST as u64) =>
            {
                Err(format!("--{} {number}: must be at most {MOST}", self.name))
            }
            (_, Value::Number(number)) if number.as_f64().is_some_and(|number| number < 0.0) => {
                Err(format!("--{} {number}: must be a finite number, 0 or more", self.name))
            }
            _ => Ok(()),
        }
    }

    /// Whether its values are names of a table.
    pub fn is_named(&self) -> bool {
        self.named.is_some()
    }

    /// What the command line or the environment gives for it.
    pub fn found(&self, matches: &ArgMatches) -> Option<Value> {
        if self.form.list {
            let all: Vec<Value> = matches.get_many::<Value>(self.name)?.cloned().collect();
            return Some(Value::Array(all));
        }
        matches.get_one::<Value>(self.name).cloned()
    }

    /// What is taken where nothing is given, for people.
    fn default_text(&self) -> Option<String> {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        if let Some(text) = &self.otherwise {
            return Some(text.clone());
        }
        let default = self.default.as_ref().map(text).filter(|text| !text.is_empty());
        let online = self.online_default.as_ref().map(|v| format!("online {}", text(v)));
        let neurons = self.neuron_default.as_ref().map(|v| format!("star and sgd {}", text(v)));
        let all: Vec<String> = default.into_iter().chain(online).chain(neurons).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// The flag, with the words that its declaration has for it.
    pub fn arg(&self) -> Arg {
        let default =
            self.default_text().map_or(String::new(), |text| format!("[default: {text}]"));
        let help = [self.help, &default].join(" ").trim().to_owned();
        let value_name = self.name.replace('-', "_").to_uppercase();
        let mut arg = Arg::new(self.name)
            .long(self.name)
            .help_heading(self.heading.title())
            .hide_short_help(self.heading.is_long())
            .env(leak(self.variable()))
            .value_name(self.value_name.unwrap_or_else(|| leak(value_name)))
            .visible_aliases(self.aliases.clone())
            .value_parser(self.parser())
            .action(if self.form.list { ArgAction::Append } else { ArgAction::Set });
        if self.form.list {
            arg = arg.value_delimiter(',');
        }
        if let Some(short) = self.short {
            arg = arg.short(short);
        }
        if let Some(long) = self.long_help {
            arg = arg.long_help([help.clone(), String::new(), long()].join("\n"));
        }
        arg.help(help)
    }

    fn parser(&self) -> ValueParser {
        let read = self.form.read;
        if self.form.possible.is_empty() {
            return ValueParser::from(move |words: &str| read(words));
        }
        let names = PossibleValuesParser::new(self.form.possible.clone());
        // A possible value can be read.
        ValueParser::from(names.map(move |words| read(&words).unwrap_or(Value::Null)))
    }
}

/// A text that lives as long as the program.
fn leak(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

/// A type that words of the command line are read as.
pub trait Words: Serialize + DeserializeOwned {
    /// Whether several are given, divided by commas.
    const LIST: bool = false;
    /// Whether it counts something.
    const COUNTS: bool = false;

    fn read(words: &str) -> Result<Value, String>;

    /// The words that are known, where not every word will do.
    fn possible() -> Vec<PossibleValue> {
        Vec::new()
    }
}

impl Words for String {
    fn read(words: &str) -> Result<Value, String> {
        Ok(words.into())
    }
}

impl Words for PathBuf {
    fn read(words: &str) -> Result<Value, String> {
        Ok(words.into())
    }
}

impl Words for f64 {
    /// NaN and infinity are no settings, and JSON has no words for them.
    fn read(words: &str) -> Result<Value, String> {
        match words.parse::<f64>() {
            Ok(number) if number.is_finite() && number >= 0.0 => Ok(number.into()),
            _ => Err("expected a finite number, 0 or more".into()),
        }
    }
}

impl<T: Words> Words for Option<T> {
    const LIST: bool = T::LIST;
    const COUNTS: bool = T::COUNTS;

    fn read(words: &str) -> Result<Value, String> {
        T::read(words)
    }

    fn possible() -> Vec<PossibleValue> {
        T::possible()
    }
}

impl<T: Words> Words for Vec<T> {
    const LIST: bool = true;

    fn read(words: &str) -> Result<Value, String> {
        T::read(words)
    }
}

/// Types that are parsed as Rust parses them.
macro_rules! parsed {
    ($($type:ty: $counts:literal),*) => { $(
        impl Words for $type {
            const COUNTS: bool = $counts;

            fn read(words: &str) -> Result<Value, String> {
                let value = words.parse::<$type>().map_err(|error| error.to_string())?;
                serde_json::to_value(value).map_err(|error| error.to_string())
            }
        }
    )* };
}

parsed!(usize: true, u64: false, crate::step::neurons::Share: false);

/// Types of which clap knows all values.
macro_rules! chosen {
    ($($type:ty),*) => { $(
        impl Words for $type {
            fn read(words: &str) -> Result<Value, String> {
                let value = <$type as ValueEnum>::from_str(words, true)?;
                serde_json::to_value(value).map_err(|error| error.to_string())
            }

            fn possible() -> Vec<PossibleValue> {
                let values = <$type as ValueEnum>::value_variants();
                values.iter().filter_map(ValueEnum::to_possible_value).collect()
            }
        }
    )* };
}

chosen!(
    crate::slice::Granularity,
    crate::slice::select::Normalize,
    crate::step::neurons::Mode,
    crate::tokens::LossOn,
    crate::tokens::Boundary,
    crate::step::optim::OptimizerKind,
    crate::step::optim::Schedule,
    crate::model::precision::Precision,
    crate::model::memory::Recompute,
    crate::model::precision::WeightsDtype,
    super::FailOn,
    super::ReportTo
);

/// Declares settings: a struct with a field for each, and the table that all else comes from.
macro_rules! settings {
    (
        $(#[$about:meta])* $name:ident, $table:ident:
        $( $heading:ident { $(
            $(#[doc = $help:literal])+
            $field:ident: $type:ty $(, $key:ident($($value:tt)*))* ;
        )* } )*
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case")]
        pub struct $name {
            $( $( $(#[doc = $help])+ pub $field: $type, )* )*
        }

        /// The declarations, in the order of their headings.
        pub static $table: std::sync::LazyLock<Vec<Setting>> = std::sync::LazyLock::new(|| vec![
            $( $(
                Setting::new::<$type>(
                    stringify!($field),
                    concat!($($help),+),
                    Heading::$heading,
                )
                $( .$key($($value)*) )*,
            )* )*
        ]);
    };
}
pub(super) use settings;
