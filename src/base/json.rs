//! *JSON as Python writes it.* Python's json module also writes `NaN`, `Infinity`, and halves of
//! characters (`\ud83d` alone), and reads them again; none of them is JSON. A file that has them
//! where nothing is read from is still a good file. So they become *odd* values, which are neither
//! text nor number: whoever looks for one of those finds none, and can say what there is.

use std::fmt::Write as _;

use serde_json::{Error, Value};

/// The key of an odd value: an object with what was found.
const ODD: &str = "no JSON value";

/// The value of a JSON text, as Python may have written it. Errors are those of JSON.
pub fn parse(text: &str) -> Result<Value, Error> {
    let error = match serde_json::from_str(text) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    match with_odd_values(text) {
        Some(text) => serde_json::from_str(&text),
        None => Err(error),
    }
}

/// What an odd value was: `NaN`, or half of a character.
pub fn odd(value: &Value) -> Option<&str> {
    let object = value.as_object().filter(|object| object.len() == 1)?;
    object.get(ODD)?.as_str()
}

/// The text with each odd value written as an object; `None` where there is none.
fn with_odd_values(text: &str) -> Option<String> {
    let mut written = String::with_capacity(text.len() + 64);
    let (mut rest, mut changed) = (text, false);
    let put = |written: &mut String, what: &str| {
        let _ = write!(written, "{{{ODD:?}: {}}}", Value::from(what));
    };
    while let Some(first) = rest.chars().next() {
        let number = ["NaN", "Infinity", "-Infinity"].into_iter().find(|n| rest.starts_with(n));
        if let Some(number) = number {
            put(&mut written, number);
            changed = true;
            rest = &rest[number.len()..];
        } else if first == '"' {
            let (whole, half) = string(rest)?;
            rest = &rest[whole.len()..];
            let is_key = rest.trim_start().starts_with(':');
            changed |= half.is_some();
            match half {
                // A key that is no text is none of ours; what it is called does not matter.
                Some(half) if is_key => {
                    written.push_str(&whole.replace(half, "\u{fffd}"));
                }
                Some(half) => put(&mut written, &format!("{half}, half of a character")),
                None => written.push_str(whole),
            }
        } else {
            written.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    changed.then_some(written)
}

/// The string that a text begins with, with its quotes, and the first half of a character in it
/// that has no other half. `None` if it does not end.
fn string(text: &str) -> Option<(&str, Option<&str>)> {
    let code = |at: usize| -> Option<u32> {
        let escape = text.get(at..at + 6)?;
        u32::from_str_radix(escape.strip_prefix("\\u")?, 16).ok()
    };
    let (mut at, mut half) = (1, None);
    loop {
        match text.as_bytes().get(at)? {
            b'"' => return Some((&text[..=at], half)),
            b'\\' => match code(at) {
                Some(0xd800..=0xdbff) if matches!(code(at + 6), Some(0xdc00..=0xdfff)) => at += 12,
                Some(0xd800..=0xdfff) => {
                    half = half.or(text.get(at..at + 6));
                    at += 6;
                }
                _ => at += 2,
            },
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_json_is_neither_text_nor_number() {
        let text = r#"{"a": NaN, "b": [-Infinity, Infinity, "NaN \" \\"], "c": "x\ud83d y",
                       "d": "\ud83d\ude00", "e": "\ude00", "f": "\\ud83d", "g": "é"}"#;
        let value = parse(text).expect("parses");
        assert_eq!(odd(&value["a"]), Some("NaN"));
        assert_eq!(odd(&value["b"][0]), Some("-Infinity"));
        assert_eq!(odd(&value["b"][1]), Some("Infinity"));
        assert_eq!(value["b"][2], "NaN \" \\");
        assert_eq!(odd(&value["c"]), Some("\\ud83d, half of a character"));
        assert_eq!(value["d"], "\u{1f600}");
        assert_eq!(odd(&value["e"]), Some("\\ude00, half of a character"));
        assert_eq!((&value["f"], &value["g"]), (&"\\ud83d".into(), &"é".into()));
        assert_eq!(odd(&value), None);
    }

    #[test]
    fn what_is_broken_stays_so() {
        assert!(parse("{\"k\\ud83d\": 1, \"a\": NaN}").expect("a key")["a"].is_object());
        for text in ["{\"a\": nan}", "{\"\\ud83d: 1}", "[NaN", "\"\\ud83d", "\"a", "{\"a\": N}"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
