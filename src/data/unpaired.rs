//! Rows whose responses have no partner of the other kind: rejected ones alone (`prompt`,
//! `rejected`), and *labelled* ones (`prompt`, `completion`, `label`), as TRL's KTO has them.

use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::formats::{key, object, pair, string};
use super::messages::{has_messages, is_answer, messages};
use super::records::{FileLine, Record};
use super::{KeyMap, Pair};
use crate::bail_input;
use crate::base::json;

/// The keys of a labelled row.
pub const LABELLED: [&str; 3] = ["prompt", "completion", "label"];

/// What a labelled row may have instead of prompt and completion: one conversation with both.
const WHOLE: [&str; 2] = ["messages", "conversations"];

/// Whether a row is a labelled one.
pub fn is_labelled(row: &Record, map: &KeyMap) -> bool {
    let has = |ours: &str| row.value.get(key(map, ours)).is_some();
    let both = LABELLED.into_iter().all(has) || has("label") && WHOLE.into_iter().any(has);
    both && !has("chosen") && !has("rejected")
}

/// Prompt and completion of a row that has both in one conversation, if it has one.
fn whole(
    object: &Map<String, Value>,
    map: &KeyMap,
    place: &FileLine,
) -> Result<Option<[Value; 2]>> {
    if object.contains_key(key(map, "prompt")) {
        return Ok(None);
    }
    for name in WHOLE.map(|name| key(map, name)) {
        if let Some(mut turns) = messages(object, name, place)? {
            let Some(last) = turns.pop().filter(is_answer) else {
                bail_input!("{place}: the conversation of {name:?} must end with an answer");
            };
            return Ok(Some([turns.into(), json!([last])]));
        }
    }
    Ok(None)
}

/// A row as a pair, or as a rejected response without a chosen one.
pub fn pair_or_rejected(row: &Record, map: &KeyMap) -> Result<Pair> {
    let has = |ours: &str| row.value.get(key(map, ours)).is_some();
    // The pairs of Lee et al. have another name for each.
    if has("chosen") || !has("prompt") || !has("rejected") {
        return pair(row, map);
    }
    let (object, place) = (object(row)?, &row.place);
    for part in ["prompt", "rejected"] {
        if has_messages(object, key(map, part), place)? {
            bail_input!(
                "{place}: a conversation needs \"chosen\" and \"rejected\"; a rejected response \
                 alone is plain text"
            );
        }
    }
    let prompt = string(object, key(map, "prompt"), place)?;
    let rejected = string(object, key(map, "rejected"), place)?;
    for (text, what) in [(prompt, "prompt"), (rejected, "rejected")] {
        if text.trim().is_empty() {
            bail_input!("{place}: {what} is empty; every row needs both texts");
        }
    }
    Ok(Pair {
        prompt: prompt.into(),
        chosen: String::new(),
        rejected: rejected.into(),
        conversation: None,
        place: place.clone(),
    })
}

/// The completions of a prompt, by their label.
struct Labelled {
    prompt: Value,
    place: FileLine,
    good: Vec<Value>,
    bad: Vec<(Value, FileLine)>,
}

/// Labelled rows as pairs: of each prompt, every completion of one kind with one of the other, in
/// their order. Where a prompt has bad ones alone, they are rejected responses without a chosen
/// one. Errors (bad input) where it has good ones alone: nothing is skipped.
pub fn labelled(rows: &[Record], path: &Path, map: &KeyMap) -> Result<Vec<Pair>> {
    let mut prompts: Vec<Labelled> = Vec::new();
    let mut known = std::collections::HashMap::new();
    for row in rows {
        let (object, place) = (object(row)?, &row.place);
        let get = |ours: &str| -> Result<Value> {
            match object.get(key(map, ours)) {
                Some(value) => Ok(value.clone()),
                None => bail_input!("{place}: no {:?}, which the rows before have", key(map, ours)),
            }
        };
        let [prompt, completion] = match whole(object, map, place)? {
            Some(both) => both,
            None => [get("prompt")?, get("completion")?],
        };
        let label = get("label")?;
        let number = *known.entry(prompt.to_string()).or_insert(prompts.len());
        if number == prompts.len() {
            let (good, bad) = (Vec::new(), Vec::new());
            prompts.push(Labelled { prompt, place: place.clone(), good, bad });
        }
        match is_good(&label) {
            Some(true) => prompts[number].good.push(completion),
            Some(false) => prompts[number].bad.push((completion, place.clone())),
            None => {
                let label = json::odd(&label).map_or_else(|| label.to_string(), str::to_owned);
                bail_input!("{place}: label {label}: expected true or false")
            }
        }
    }
    if prompts.iter().all(|prompt| prompt.bad.is_empty()) {
        bail_input!(
            "{}: every label is true; a repair needs completions whose label is false",
            path.display()
        );
    }
    let mut pairs = Vec::new();
    for Labelled { prompt, place, good, bad } in prompts {
        if bad.is_empty() {
            bail_input!(
                "{place}: this prompt has completions with label true alone; remove them, or add \
                 one with label false"
            );
        }
        for at in 0..good.len().max(bad.len()) {
            let (rejected, place) = bad[at % bad.len()].clone();
            let mut row = json!({ "prompt": prompt, "rejected": rejected });
            if !good.is_empty() {
                row["chosen"] = good[at % good.len()].clone();
            }
            pairs.push(pair_or_rejected(&Record { value: row, place }, &KeyMap::new())?);
        }
    }
    Ok(pairs)
}

/// A label: of JSON, or as CSV writes it.
fn is_good(label: &Value) -> Option<bool> {
    match label {
        Value::Bool(good) => Some(*good),
        Value::Number(number) if number.as_u64() == Some(1) => Some(true),
        Value::Number(number) if number.as_u64() == Some(0) => Some(false),
        Value::String(word) => match word.to_lowercase().as_str() {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}
