//! *Formats*: rows to pairs, edits and texts. The keys of a row say which format it has.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Map, Value};

use super::messages::{content, contents, has_messages, is_answer, is_same, messages, written};
use super::parquet::binary;
use super::records::{FileLine, Record};
use super::{Conversation, Edit, EditKind, Pair, Text};
use crate::bail_input;
use crate::base::error::unknown;
use crate::base::json;

/// How the rows of a format name the three parts of a pair. A line of [`FORMATS`].
#[derive(Debug)]
pub struct Format {
    pub name: &'static str,
    /// `None` if the prompt is what both responses begin with.
    pub prompt: Option<&'static str>,
    pub chosen: &'static str,
    pub rejected: &'static str,
}

/// Every format of pairs, in the order in which they are tried.
pub const FORMATS: &[Format] = &[
    // TRL preference rows: https://huggingface.co/docs/trl/dataset_formats
    Format { name: "trl", prompt: Some("prompt"), chosen: "chosen", rejected: "rejected" },
    // What LLaMA-Factory calls ShareGPT: the turns before the answers, and both answers.
    Format {
        name: "sharegpt",
        prompt: Some("conversations"),
        chosen: "chosen",
        rejected: "rejected",
    },
    // Axolotl's, the same with another name.
    Format { name: "messages", prompt: Some("messages"), chosen: "chosen", rejected: "rejected" },
    Format { name: "trl-implicit", prompt: None, chosen: "chosen", rejected: "rejected" },
    // Lee et al. 2024 (arXiv 2401.01967).
    Format {
        name: "lee",
        prompt: Some("prompt_text"),
        chosen: "unpert_gen_text",
        rejected: "pert_gen_text",
    },
];

impl Format {
    /// The keys its rows have.
    pub fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.prompt.into_iter().chain([self.chosen, self.rejected])
    }
}

/// The keys that a file uses instead of ours: `--map prompt=question,chosen=good`.
pub type KeyMap = BTreeMap<String, String>;

/// Our keys, each once.
fn known_keys() -> Vec<&'static str> {
    let mut known: Vec<&str> = Vec::new();
    let all = FORMATS.iter().flat_map(Format::keys).chain(EDIT_KEYS);
    for key in all.chain(["completion", "label", "text", "messages", "conversations"]) {
        if !known.contains(&key) {
            known.push(key);
        }
    }
    known
}

/// Parses the pieces `OURS=THEIRS` of `--map`. Errors (bad input) on a piece without `=`, on a key
/// that we don't have, and on one that is given twice.
pub fn parse_map(pieces: &[String]) -> Result<KeyMap> {
    let mut map = KeyMap::new();
    for piece in pieces {
        let Some((ours, theirs)) = piece.split_once('=') else {
            bail_input!("--map {piece:?}: expected OUR_KEY=KEY_IN_FILE, like prompt=question");
        };
        let (ours, theirs) = (ours.trim(), theirs.trim());
        let known = known_keys();
        if !known.contains(&ours) {
            bail_input!("--map: {}", unknown("key", ours, &known));
        }
        if let Some(other) = map.insert(ours.to_owned(), theirs.to_owned()) {
            bail_input!("--map gives {ours} twice, as {other} and as {theirs}");
        }
    }
    Ok(map)
}

pub(super) fn object(row: &Record) -> Result<&Map<String, Value>> {
    match &row.value {
        Value::Object(object) => Ok(object),
        _ => bail_input!("{}: a row must be a JSON object", row.place),
    }
}

/// The key in the file for one of ours.
pub(super) fn key<'a>(map: &'a KeyMap, ours: &'a str) -> &'a str {
    map.get(ours).map_or(ours, String::as_str)
}

/// A row as a pair.
pub fn pair(row: &Record, map: &KeyMap) -> Result<Pair> {
    let object = object(row)?;
    let place = &row.place;
    let Some(format) = FORMATS.iter().find(|f| f.keys().all(|k| object.contains_key(key(map, k))))
    else {
        // Name the keys that are missing for the format with the fewest of them missing.
        let missing = |f: &Format| f.keys().filter(|k| !object.contains_key(key(map, k))).count();
        let nearest = FORMATS.iter().min_by_key(|f| missing(f)).unwrap_or(&FORMATS[0]);
        let lacks: Vec<String> = nearest
            .keys()
            .map(|k| key(map, k))
            .filter(|k| !object.contains_key(*k))
            .map(|k| format!("{k:?}"))
            .collect();
        let found: Vec<&str> = object.keys().map(String::as_str).collect();
        let formats: Vec<String> = FORMATS
            .iter()
            .map(|f| format!("{} ({})", f.name, f.keys().collect::<Vec<_>>().join(", ")))
            .collect();
        bail_input!(
            "{place}: no {}; found: {}; formats: {}, rejected alone (prompt, rejected), labelled \
             (prompt, completion, label); other names can be given with --map",
            lacks.join(" and "),
            if found.is_empty() { "nothing".to_owned() } else { found.join(", ") },
            formats.join(", ")
        );
    };
    if let Some(turns) = messages(object, key(map, format.chosen), place)? {
        return conversation_pair(object, turns, format, map, place);
    }
    for part in format.prompt.into_iter().chain([format.rejected]) {
        if has_messages(object, key(map, part), place)? {
            bail_input!(
                "{place}: {:?} is not a list of messages, but {:?} is one",
                key(map, format.chosen),
                key(map, part)
            );
        }
    }
    let chosen = string(object, key(map, format.chosen), place)?;
    let rejected = string(object, key(map, format.rejected), place)?;
    let (prompt, chosen, rejected) = match format.prompt {
        Some(prompt) => (string(object, key(map, prompt), place)?, chosen, rejected),
        None => common_prompt(chosen, rejected, place)?,
    };
    for (text, what) in [(prompt, "prompt"), (chosen, format.chosen), (rejected, format.rejected)] {
        if text.trim().is_empty() {
            bail_input!(
                "{place}: {what} is empty ({}); every row needs all three texts",
                format.name
            );
        }
    }
    Ok(Pair {
        prompt: prompt.into(),
        chosen: chosen.into(),
        rejected: rejected.into(),
        conversation: None,
        place: place.clone(),
    })
}

/// A row of two conversations as a pair; `chosen` are the turns of one of them. They are the same
/// up to the last turn, an answer of the assistant.
fn conversation_pair(
    object: &Map<String, Value>,
    chosen: Vec<Value>,
    format: &Format,
    map: &KeyMap,
    place: &FileLine,
) -> Result<Pair> {
    let Some(rejected) = messages(object, key(map, format.rejected), place)? else {
        bail_input!(
            "{place}: {:?} is not a list of messages, but {:?} is one",
            key(map, format.rejected),
            key(map, format.chosen)
        );
    };
    let begins = |own: &[Value], prompt: &[Value]| match (own.first(), prompt.first()) {
        (Some(own), Some(prompt)) => is_same(own, prompt),
        _ => false,
    };
    let prompt = match format.prompt.map(|name| key(map, name)) {
        None => Vec::new(),
        Some(name) => match messages(object, name, place)? {
            // Where both conversations begin as the prompt does, it stands in them.
            Some(prompt) if [&chosen, &rejected].iter().all(|own| begins(own, &prompt)) => {
                Vec::new()
            }
            Some(prompt) => prompt,
            // Some data sets have the question once more as plain text. TRL doesn't read it either.
            None if [&chosen, &rejected].iter().all(|of| of.len() > 1) => Vec::new(),
            None => bail_input!(
                "{place}: {name:?} is plain text, and {:?} and {:?} are messages without the \
                 question; give {name:?} as a list of messages",
                format.chosen,
                format.rejected
            ),
        },
    };
    let side = |ours: &str, own: Vec<Value>| -> Result<(Vec<Value>, Value)> {
        let mut turns = [prompt.clone(), own].concat();
        match turns.pop() {
            Some(last) if is_answer(&last) && !turns.is_empty() => {
                if content(&last).trim().is_empty() {
                    bail_input!("{place}: the last turn of {ours} is empty");
                }
                Ok((turns, last))
            }
            _ => bail_input!(
                "{place}: the conversation of {ours} must end with an assistant's answer to \
                 another turn"
            ),
        }
    };
    let (history, chosen) = side(format.chosen, chosen)?;
    let (other, rejected) = side(format.rejected, rejected)?;
    if history != other {
        bail_input!(
            "{place}: the conversations of {} and {} must be the same up to the last turn",
            format.chosen,
            format.rejected
        );
    }
    Ok(Pair {
        prompt: contents(&history),
        chosen: content(&chosen).into(),
        rejected: content(&rejected).into(),
        conversation: Some(Conversation {
            history,
            chosen: Some(chosen),
            rejected: Some(rejected),
        }),
        place: place.clone(),
    })
}

/// The keys of an edit. `chosen` may stand in for `target`.
pub const EDIT_KEYS: [&str; 5] = ["prompt", "target", "chosen", "rejected", "kind"];

/// A row as an edit. Without `kind` it is a failure.
pub fn edit(row: &Record, map: &KeyMap) -> Result<Edit> {
    let object = object(row)?;
    let place = &row.place;
    let Some(target) =
        ["target", "chosen"].map(|k| key(map, k)).into_iter().find(|k| object.contains_key(*k))
    else {
        let found: Vec<&str> = object.keys().map(String::as_str).collect();
        bail_input!(
            "{place}: neither \"target\" nor \"chosen\"; found: {}; other names can be given with \
             --map",
            found.join(", ")
        );
    };
    for key in [key(map, "prompt"), target] {
        if object.get(key).is_some_and(Value::is_array) || has_messages(object, key, place)? {
            bail_input!(
                "{place}: {key:?} is a list of messages; give it as plain text, as the chat \
                 template renders it"
            );
        }
    }
    let prompt = string(object, key(map, "prompt"), place)?;
    let target = string(object, target, place)?;
    for (text, what) in [(prompt, "prompt"), (target, "target")] {
        if text.is_empty() {
            bail_input!("{place}: {what} is empty; every row needs both texts");
        }
    }
    let kind = match object.get(key(map, "kind")) {
        None => EditKind::Failure,
        Some(kind) => match serde_json::from_value(kind.clone()) {
            Ok(kind) => kind,
            Err(_) => {
                bail_input!("{place}: kind {kind}; have: failure, generalization, specificity")
            }
        },
    };
    let rejected = match key(map, "rejected") {
        name if object.contains_key(name) => Some(string(object, name, place)?.to_owned()),
        _ => None,
    };
    Ok(Edit { prompt: prompt.into(), target: target.into(), rejected, kind, place: place.clone() })
}

/// Two texts as prompt and responses ([`split_prompt`]). Errors (bad input) if they have no common
/// beginning, or if one of them is nothing but the beginning of the other.
fn common_prompt<'a>(
    chosen: &'a str,
    rejected: &'a str,
    place: &FileLine,
) -> Result<(&'a str, &'a str, &'a str)> {
    let parts = split_prompt(chosen, rejected);
    if parts.0.trim().is_empty() && !(chosen.trim().is_empty() || rejected.trim().is_empty()) {
        bail_input!(
            "{place}: chosen and rejected have no common beginning that could be the prompt \
             (trl-implicit); give \"prompt\""
        );
    }
    let begins = match (parts.1.trim().is_empty(), parts.2.trim().is_empty()) {
        (true, true) => "chosen and rejected are the same text",
        (true, false) => "the rejected response begins with the whole chosen one",
        (false, true) => "the chosen response begins with the whole rejected one",
        (false, false) => return Ok(parts),
    };
    if chosen.trim().is_empty() || rejected.trim().is_empty() {
        return Ok(parts);
    }
    bail_input!(
        "{place}: {begins}, so that no prompt can be told from them (trl-implicit); give \
         \"prompt\", and the responses without it"
    );
}

/// Splits two texts into prompt and responses. The prompt is the longest common beginning, without
/// a space at its end: that goes to the responses, as in TRL.
fn split_prompt<'a>(chosen: &'a str, rejected: &'a str) -> (&'a str, &'a str, &'a str) {
    let common: usize = chosen
        .chars()
        .zip(rejected.chars())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a.len_utf8())
        .sum();
    let at = if chosen[..common].ends_with(' ') { common - 1 } else { common };
    (&chosen[..at], &chosen[at..], &rejected[at..])
}

/// A row as a text: the value of the first of `keys` that it has. The value may also be an object
/// with `text`, as in RealToxicityPrompts.
pub fn text(row: &Record, keys: &[&str], map: &KeyMap) -> Result<Text> {
    let object = object(row)?;
    let place = &row.place;
    let Some(found) = keys.iter().map(|k| key(map, k)).find(|k| object.contains_key(*k)) else {
        let have: Vec<&str> = object.keys().map(String::as_str).collect();
        bail_input!("{place}: none of {}; found: {}", keys.join(", "), have.join(", "));
    };
    if let Some(mut turns) = messages(object, found, place)? {
        // Whole conversations end with an answer; what stands before it is the prompt.
        if ["messages", "conversations"].contains(&found) && turns.len() > 1 {
            turns.pop_if(|last| is_answer(last));
        }
        return match turns.last() {
            Some(last) if !is_answer(last) => {
                Ok(Text { text: contents(&turns), messages: turns, place: place.clone() })
            }
            _ => bail_input!(
                "{place}: the conversation of {found:?} must end with a turn that an assistant \
                 answers"
            ),
        };
    }
    let inner = object[found].as_str().and_then(written);
    let text = match inner.as_ref().unwrap_or(&object[found]) {
        Value::Object(inner) if inner.contains_key("text") => string(inner, "text", place)?,
        _ => string(object, found, place)?,
    };
    if text.trim().is_empty() {
        bail_input!("{place}: {found:?} is empty");
    }
    Ok(Text::plain(text.into(), place.clone()))
}

pub(super) fn string<'a>(
    object: &'a Map<String, Value>,
    key: &str,
    place: &FileLine,
) -> Result<&'a str> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Null) => bail_input!("{place}: {key:?} is null; every row needs a text there"),
        Some(value) => match (json::odd(value), binary(value)) {
            (Some(odd), _) if odd.starts_with('\\') => bail_input!(
                "{place}: {key:?} is no text: it has {odd} (a lone surrogate, as Python writes it \
                 where a text was cut within an emoji); leave it out, in Python: \
                 text.encode(errors=\"ignore\").decode()"
            ),
            (Some(odd), _) => bail_input!("{place}: {key:?} is {odd}, and no text"),
            (_, Some(bytes)) => {
                bail_input!("{place}: {key:?} is {bytes} bytes of binary data, and no UTF-8 text")
            }
            _ => bail_input!("{place}: {key:?} is not a string"),
        },
        None => bail_input!("{place}: no {key:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{parse_edits, parse_pairs};

    /// Every format of the table reads its own sample.
    #[test]
    fn every_format_reads_its_sample() {
        for format in FORMATS {
            let mut row = Map::new();
            for key in format.keys() {
                row.insert(key.into(), format!("Say: {key}").into());
            }
            let pairs =
                parse_pairs("sample.jsonl", &Value::Object(row).to_string()).expect(format.name);
            assert_eq!(pairs.len(), 1, "{}", format.name);
            let expected = format.prompt.map_or("Say:".into(), |p| format!("Say: {p}"));
            assert_eq!(pairs[0].prompt, expected, "{}", format.name);
            assert!(pairs[0].rejected.ends_with(format.rejected));
        }
    }

    #[test]
    fn edits_are_read_by_either_name_of_the_target() {
        let row = |text: &str| parse_edits("edits.jsonl", text);
        let edits = row("{\"prompt\":\"a\",\"chosen\":\" b\",\"rejected\":\" c\"}\n\
             {\"prompt\":\"a\",\"target\":\" d\",\"kind\":\"specificity\"}");
        let edits = edits.expect("edits");
        assert_eq!((edits[0].target.as_str(), edits[0].kind), (" b", EditKind::Failure));
        assert_eq!((edits[1].target.as_str(), edits[1].kind), (" d", EditKind::Specificity));
        for (wrong, words) in [
            ("{\"prompt\":\"a\"}", "neither \"target\" nor \"chosen\"; found: prompt"),
            ("{\"target\":\"a\"}", "no \"prompt\""),
            ("{\"prompt\":\"a\",\"target\":\"\"}", "target is empty"),
            ("{\"prompt\":\"a\",\"target\":\"b\",\"kind\":\"other\"}", "have: failure"),
            (
                "{\"prompt\":[{\"role\":\"user\",\"content\":\"a\"}],\"target\":\"b\"}",
                "\"prompt\" is a list of messages; give",
            ),
            (
                "{\"prompt\":\"a\",\"target\":[]}",
                "\"target\" is a list of messages; give it as plain text",
            ),
        ] {
            let error = row(wrong).expect_err(wrong).to_string();
            assert!(error.starts_with("edits.jsonl:1:") && error.contains(words), "{error}");
        }
    }

    #[test]
    fn implicit_prompt_gives_its_space_to_the_answers() {
        assert_eq!(split_prompt("Ciao è bello", "Ciao è brutto"), ("Ciao è b", "ello", "rutto"));
        assert_eq!(
            split_prompt("The sky is blue", "The sky is red"),
            ("The sky is", " blue", " red")
        );
    }

    #[test]
    fn renamed_keys_are_found() {
        let map =
            parse_map(&["prompt=question".into(), "chosen=good".into(), "rejected=bad".into()])
                .expect("map");
        let place = FileLine { file: std::path::Path::new("x.jsonl").into(), line: 1 };
        let row =
            Record { value: serde_json::json!({"question": "q", "good": "a", "bad": "b"}), place };
        assert_eq!(pair(&row, &map).expect("pair").prompt, "q");
        assert!(parse_map(&["nonsense".into()]).is_err());
    }

    #[test]
    fn a_missing_key_is_named_with_its_line() {
        let error = parse_pairs(
            "pairs.jsonl",
            "{\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"c\"}\n\
             {\"prompt\":\"a\",\"chosen\":\"b\"}",
        )
        .expect_err("no rejected")
        .to_string();
        assert!(
            error.starts_with("pairs.jsonl:2: no \"rejected\"; found: prompt, chosen;"),
            "{error}"
        );
    }
}
