//! A *chat template* makes one text of a conversation's messages, with the marks that the model was
//! trained with. It comes with the tokenizer, in Jinja as transformers runs it.

mod tojson;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{LazyLock, OnceLock};

use anyhow::Result;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind, context};
use regex::Regex;
use serde_json::Value;

use crate::base::error;
use crate::base::files;
use crate::base::plain::shortened;
use crate::base::wall;
use crate::base::wall::Time;
use crate::data::FileLine;

/// Steps that a template may take, and 64 bytes each; long conversations need thousands.
const FUEL: u64 = 2_000_000;
/// The longest template in bytes; those of large models have some ten thousand.
const LONGEST: usize = 1 << 20;
/// Memory that a template may take for a byte of it, and of the conversation.
const OF_A_BYTE: u64 = 256;
/// The most characters of a date.
const LONGEST_DATE: usize = 1000;
/// What the template is called in the environment.
const NAME: &str = "chat";

/// What [`strftime_now`] has, and its values.
const FIELDS: &[(char, &str)] = &[
    ('%', "%"),
    ('A', "Thursday"),
    ('B', "January"),
    ('H', "00"),
    ('M', "00"),
    ('S', "00"),
    ('Y', "2026"),
    ('a', "Thu"),
    ('b', "Jan"),
    ('d', "01"),
    ('j', "001"),
    ('m', "01"),
    ('y', "26"),
];

/// The mark that transformers puts around what an assistant says: a scope of its own.
static GENERATION: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").expect("a regex"));

/// How a conversation's text ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With its last message.
    Message,
    /// With all that stands before an assistant's answer.
    Prompt,
}

/// A template that is ready, or why it is not.
type Compiled = std::result::Result<Environment<'static>, String>;

/// The chat template of a model.
pub struct ChatTemplate {
    file: String,
    source: String,
    /// Made when a conversation first asks for it: a broken template does no harm before.
    environment: OnceLock<Compiled>,
    /// `bos_token` and its like.
    tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// The template of a model folder, if it has one: `chat_template.jinja`, or `chat_template` in
    /// `tokenizer_config.json`. It is given the `special` tokens. Errors (bad input) if a file is
    /// broken.
    pub fn of(dir: &Path, special: &BTreeMap<String, String>) -> Result<Option<Self>> {
        let (own, config) = (dir.join("chat_template.jinja"), dir.join("tokenizer_config.json"));
        let tokens = special.clone();
        if own.is_file() {
            return Ok(Some(Self::new(files::read_text(&own)?, &own, tokens)));
        }
        if !config.is_file() {
            return Ok(None);
        }
        // Several templates have names; a conversation without tools takes the default.
        let named = |list: &Value| {
            let default = list.as_array()?.iter().find(|t| t["name"] == "default")?;
            Some(default["template"].as_str()?.to_owned())
        };
        let template = &files::read_json(&config)?["chat_template"];
        let source = template.as_str().map(str::to_owned).or_else(|| named(template));
        Ok(source.map(|source| Self::new(source, &config, tokens)))
    }

    fn new(source: String, file: &Path, tokens: BTreeMap<String, String>) -> Self {
        let (file, environment) = (file.display().to_string(), OnceLock::new());
        Self { file, source, environment, tokens }
    }

    /// The compiled template, or why it can't be compiled. Errors (bad input) if it is so broken
    /// that its compiler gives up, for a conversation that stands at `place`.
    fn environment(&self, place: &FileLine) -> Result<&Compiled> {
        if let Some(compiled) = self.environment.get() {
            return Ok(compiled);
        }
        let bytes = self.source.len();
        let name = format!("{place}: the chat template in {}", self.file);
        let memory = wall::allowance(bytes as u64, OF_A_BYTE);
        let compiled = match bytes > LONGEST {
            true => Err(format!("{bytes} bytes are too long for a template ({LONGEST} at most)")),
            false => wall::around(&name, memory, Time::Limited, || compiled(&self.source))?,
        };
        Ok(self.environment.get_or_init(|| compiled))
    }

    /// The text of a conversation that stands at `place`. Errors (bad input) if the template is
    /// broken, fails or does not come to an end.
    pub fn render(&self, messages: &[Value], ending: Ending, place: &FileLine) -> Result<String> {
        let failed = |why: String| {
            error::Error::Input(format!("{place}: the chat template in {}: {why}", self.file))
        };
        let environment = self.environment(place)?.as_ref().map_err(|why| failed(why.clone()))?;
        let variables = context! {
            messages => Serde(messages),
            add_generation_prompt => ending == Ending::Prompt,
            tools => (),
            documents => (),
            ..Serde(&self.tokens)
        };
        let length = |message: &Value| message["content"].as_str().map_or(0, str::len);
        let bytes = self.source.len() + messages.iter().map(length).sum::<usize>();
        let name = format!("{place}: the chat template in {}", self.file);
        let memory = wall::allowance(bytes as u64, OF_A_BYTE);
        let text = wall::around(&name, memory, Time::Limited, || {
            environment.get_template(NAME).and_then(|template| template.render(variables))
        })?;
        Ok(text.map_err(|e| match e.kind() {
            ErrorKind::OutOfFuel => failed("it does not come to an end".into()),
            _ => failed(why(&e)),
        })?)
    }
}

/// Compiles a template, as transformers does.
fn compiled(source: &str) -> Compiled {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    let mut environment = Environment::new();
    environment.set_syntax(syntax.map_err(|e| why(&e))?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("strftime_now", strftime_now);
    environment.add_function(
        "raise_exception",
        |why: String| -> std::result::Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, why))
        },
    );
    environment.add_filter("tojson", tojson::tojson);
    let source = GENERATION.replace_all(source, "{%$1 ${2}with $3%}").into_owned();
    environment.add_template_owned(NAME, source).map_err(|e| why(&e))?;
    Ok(environment)
}

/// Why a template fails, in words that can be read.
fn why(error: &Error) -> String {
    shortened(&error.to_string(), 1000).into_owned()
}

/// The date that templates write into a conversation. It is always the first moment of 2026, a
/// Thursday: a run that is repeated on another day must make the same bytes.
fn strftime_now(format: String) -> std::result::Result<String, Error> {
    let (mut text, mut rest) = (String::new(), format.chars());
    while let Some(c) = rest.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let field = rest.next();
        let Some((_, value)) = FIELDS.iter().find(|(name, _)| Some(*name) == field) else {
            let have: Vec<String> = FIELDS.iter().map(|(name, _)| format!("%{name}")).collect();
            let field = field.map_or_else(String::new, String::from);
            let why =
                format!("strftime_now: %{field} is not implemented (have: {})", have.join(" "));
            return Err(Error::new(ErrorKind::InvalidOperation, why));
        };
        text.push_str(value);
        if text.len() > LONGEST_DATE {
            let why = format!("strftime_now: a date of more than {LONGEST_DATE} characters");
            return Err(Error::new(ErrorKind::InvalidOperation, why));
        }
    }
    Ok(text)
}
