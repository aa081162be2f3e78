//! *Messages* of a conversation, in each of the shapes in which files have them: lists of `role`
//! and `content`, ShareGPT's lists of `from` and `value`, one message alone, and all of these
//! written as text, which is what CSV makes of them.

use std::sync::{LazyLock, Once};

use anyhow::Result;
use regex::Regex;
use serde_json::{Map, Value};

use super::python;
use super::records::FileLine;
use crate::bail_input;
use crate::base::{error, json};
use crate::say;

/// What ShareGPT calls those who speak, and what chat templates call them.
const ROLES: &[(&str, &str)] = &[
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("chatgpt", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("model", "assistant"),
    ("assistant", "assistant"),
    ("system", "system"),
    ("observation", "tool"),
    ("tool", "tool"),
];

/// How a list of messages, or a message, begins that was written as text.
static WRITTEN: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#"^\s*(array\(\s*)?\[?\s*\{\s*["']\w+["']\s*:"#).expect("regex"));
/// A part of every message.
static PART: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r#"["'](role|from)["']\s*:\s*["']"#).expect("regex"));

/// A list or an object that was written as text, by `json.dumps` or as `repr` of Python writes it.
pub fn written(text: &str) -> Option<Value> {
    if !WRITTEN.is_match(text) {
        return None;
    }
    json::parse(text).ok().or_else(|| python::parse(text))
}

/// The messages in the value under `key`; `None` if it is none of their shapes. Errors (bad input)
/// if it is one, but lacks something or can't be read.
pub fn messages(
    object: &Map<String, Value>,
    key: &str,
    at: &FileLine,
) -> Result<Option<Vec<Value>>> {
    match object.get(key) {
        Some(Value::Array(list)) => list_of(list, key, at).map(Some),
        Some(message @ Value::Object(fields)) if is_message(fields) => {
            list_of(std::slice::from_ref(message), key, at).map(Some)
        }
        Some(Value::String(text)) if WRITTEN.is_match(text) && PART.is_match(text) => {
            match written(text) {
                Some(Value::Array(list)) if list.iter().all(is_any_message) => {
                    say_once(key, at);
                    list_of(&list, key, at).map(Some)
                }
                Some(Value::Object(fields)) if is_message(&fields) => {
                    say_once(key, at);
                    list_of(&[Value::Object(fields)], key, at).map(Some)
                }
                Some(_) => Ok(None),
                None => bail_input!(
                    "{at}: {key:?} looks like a list of messages that was written as text, but \
                     can't be read as one (it may be cut short); write the rows with to_json or \
                     to_parquet"
                ),
            }
        }
        _ => Ok(None),
    }
}

/// Whether a row has messages under this key.
pub fn has_messages(object: &Map<String, Value>, key: &str, at: &FileLine) -> Result<bool> {
    Ok(messages(object, key, at)?.is_some())
}

fn say_once(key: &str, at: &FileLine) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        say!("{at}: {key:?} is a list of messages written as text; it is read as a conversation");
    });
}

fn is_message(fields: &Map<String, Value>) -> bool {
    let has = |key: &str| fields.contains_key(key);
    has("role") && has("content") || has("from") && has("value")
}

fn is_any_message(value: &Value) -> bool {
    value.as_object().is_some_and(is_message)
}

fn list_of(list: &[Value], key: &str, at: &FileLine) -> Result<Vec<Value>> {
    let each = list.iter().enumerate();
    each.map(|(index, value)| message(value, index, key, at)).collect()
}

/// A message with `role` and `content`.
fn message(value: &Value, index: usize, key: &str, at: &FileLine) -> Result<Value> {
    let texts = |role: &str, content: &str| value[role].is_string() && value[content].is_string();
    if texts("role", "content") {
        return Ok(value.clone());
    }
    let Some(fields) = value.as_object().filter(|_| texts("from", "value")) else {
        let what = json::odd(&value["content"]).map_or(String::new(), |odd| format!(" ({odd})"));
        bail_input!(
            "{at}: message {index} of {key:?} needs \"role\" and \"content\", or \"from\" and \
             \"value\", all strings{what}"
        );
    };
    let from = value["from"].as_str().unwrap_or_default();
    let Some((_, role)) = ROLES.iter().find(|(name, _)| *name == from) else {
        let known: Vec<&str> = ROLES.iter().map(|(name, _)| *name).collect();
        bail_input!(
            "{at}: message {index} of {key:?}: {}; write it with \"role\" and \"content\" instead",
            error::unknown("speaker in \"from\"", from, &known)
        );
    };
    let mut message = Map::new();
    message.insert("role".into(), (*role).into());
    message.insert("content".into(), value["value"].clone());
    let others = fields.iter().filter(|(name, _)| !["from", "value"].contains(&name.as_str()));
    message.extend(others.map(|(name, value)| (name.clone(), value.clone())));
    Ok(message.into())
}

/// The text of a message.
pub fn content(message: &Value) -> &str {
    message["content"].as_str().unwrap_or_default()
}

/// The texts of messages, one below the other.
pub fn contents(messages: &[Value]) -> String {
    messages.iter().map(content).collect::<Vec<_>>().join("\n")
}

/// Whether two turns are the same, whatever else their messages have.
pub fn is_same(one: &Value, other: &Value) -> bool {
    ["role", "content"].iter().all(|part| one[part] == other[part])
}

/// Whether an assistant says this.
pub fn is_answer(message: &Value) -> bool {
    message["role"] == "assistant"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<Option<Vec<Value>>> {
        let place = FileLine { file: std::path::Path::new("rows.csv").into(), line: 2 };
        let object = Map::from_iter([("chosen".to_owned(), value)]);
        messages(&object, "chosen", &place)
    }

    #[test]
    fn every_shape_gives_the_same_messages() {
        let want = vec![
            json!({"role": "user", "content": "it's"}),
            json!({"role": "assistant", "content": "so"}),
        ];
        let shared = json!([{"from": "human", "value": "it's"}, {"from": "gpt", "value": "so"}]);
        for value in [
            json!(want),
            shared.clone(),
            json!(shared.to_string()),
            json!("[{'from': 'human', 'value': \"it's\"}\n {'from': 'gpt', 'value': 'so'}]"),
            json!(
                "array([{'content': \"it's\", 'role': 'user'},\n {'content': 'so', 'role': \
                   'assistant'}], dtype=object)"
            ),
        ] {
            assert_eq!(read(value.clone()).expect("reads"), Some(want.clone()), "{value}");
        }
        assert_eq!(read(shared[1].clone()).expect("reads"), Some(want[1..].to_vec()));
        for plain in ["[{", "[{'a': 'role'}]", "{\"role\": 1}", "[1, 2]", "a [{'role': 'user'}]"] {
            assert_eq!(read(plain.into()).expect(plain), None, "{plain}");
        }
    }

    #[test]
    fn what_is_cut_or_unknown_is_refused() {
        for (value, words) in [
            (json!("[{'role': 'user', 'content': 'a"), "cut short"),
            (json!("[{'role': 'user', 'content': 'a'} ... {'role': 'user', 'content': 'a'}]"), {
                "cut short"
            }),
            (json!([{"from": "humn", "value": "a"}]), "did you mean \"human\"?"),
            (json!([{"role": "user"}]), "message 0 of \"chosen\" needs \"role\" and \"content\""),
        ] {
            let error = read(value).expect_err(words).to_string();
            assert!(error.starts_with("rows.csv:2") && error.contains(words), "{error}");
        }
    }
}
