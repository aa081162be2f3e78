//! The filter `tojson` as transformers has it: Python's `json.dumps`, without escapes for HTML.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

/// How deep values may lie within each other; Python's recursion has an end, too.
const DEPTH: usize = 500;

/// `value|tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
pub fn tojson(state: &State, value: &Value, arguments: Kwargs) -> Result<String, Error> {
    let indent = match arguments.get::<Option<Value>>("indent")? {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => {
                let spaces = usize::try_from(indent)?;
                state.consume_fuel(spaces as u64)?;
                " ".repeat(spaces)
            }
        }),
    };
    let (item, key) = match arguments.get::<Option<Vec<String>>>("separators")?.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("separators are two: of items and of keys")),
    };
    let ascii = arguments.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sorted = arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    arguments.assert_all_used()?;
    let mut text = String::new();
    Style { indent, item, key, ascii, sorted }.write(state, value, 0, &mut text)?;
    Ok(text)
}

fn invalid(why: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {why}"))
}

struct Style {
    indent: Option<String>,
    /// Between items.
    item: String,
    /// Between a key and its value.
    key: String,
    ascii: bool,
    sorted: bool,
}

impl Style {
    fn write(
        &self,
        state: &State,
        value: &Value,
        depth: usize,
        out: &mut String,
    ) -> Result<(), Error> {
        if depth > DEPTH {
            return Err(invalid("values lie too deep within each other"));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Number if !value.is_integer() => {
                out.push_str(&float(f64::try_from(value.clone())?))
            }
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&value.to_string()),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<_> = value.try_iter()?.collect();
                self.items(state, ['[', ']'], &items, depth, out, |item, out| {
                    self.write(state, item, depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<_> = value.try_iter()?.collect();
                if self.sorted {
                    keys.sort();
                }
                self.items(state, ['{', '}'], &keys, depth, out, |key, out| {
                    self.string(&key.to_string(), out);
                    out.push_str(&self.key);
                    self.write(state, &value.get_item(key)?, depth + 1, out)
                })?;
            }
            other => return Err(invalid(&format!("{other} has no form in JSON"))),
        }
        Ok(())
    }

    fn items(
        &self,
        state: &State,
        [open, close]: [char; 2],
        items: &[Value],
        depth: usize,
        out: &mut String,
        write: impl Fn(&Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |depth: usize, out: &mut String| {
            if let Some(indent) = &self.indent {
                out.push('\n');
                out.push_str(&indent.repeat(depth));
            }
        };
        out.push(open);
        for (index, item) in items.iter().enumerate() {
            let before = out.len();
            if index > 0 {
                out.push_str(&self.item);
            }
            line(depth + 1, out);
            write(item, out)?;
            // A small list may hold the same list many times, and so on: its text has no end.
            state.consume_fuel(1 + (out.len() - before) as u64 / 64)?;
        }
        if !items.is_empty() {
            line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) {
        for c in serde_json::Value::from(text).to_string().chars() {
            if self.ascii && !c.is_ascii() {
                c.encode_utf16(&mut [0; 2])
                    .iter()
                    .for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
            } else {
                out.push(c);
            }
        }
    }
}

/// As Python writes it: with a point, or with an exponent of at least two digits.
fn float(x: f64) -> String {
    let scientific = format!("{x:e}");
    match scientific
        .split_once('e')
        .and_then(|(digits, exponent)| Some((digits, exponent.parse::<i32>().ok()?)))
    {
        Some((digits, exponent)) if !(-4..16).contains(&exponent) => {
            format!("{digits}e{exponent:+03}")
        }
        _ => format!("{x:?}"),
    }
}
