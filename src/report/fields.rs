//! Names and values of records, for people.

use serde::Serialize;
use serde_json::Value;

/// The names and values of the fields of a record.
pub fn fields(record: &impl Serialize) -> Vec<[String; 2]> {
    match serde_json::to_value(record) {
        Ok(Value::Object(fields)) => {
            fields.iter().map(|(name, value)| [name.replace('_', " "), show(value)]).collect()
        }
        _ => Vec::new(),
    }
}

/// A value in words: `not set` if it is `None` or an empty list.
pub fn show(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::Null) | Err(_) => "not set".into(),
        Ok(Value::Array(items)) if items.is_empty() => "not set".into(),
        Ok(Value::String(text)) => text,
        Ok(value) => value.to_string(),
    }
}
