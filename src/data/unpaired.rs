//! Rows whose responses have no partner of the other kind: rejected ones alone (`prompt`,
//! `rejected`), and *labelled* ones (`prompt`, `completion`, `label`), as TRL's KTO has them.

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::formats::{key, object, pair, string};
use super::messages::{content, contents, has_messages, is_answer, messages};
use super::records::{FileLine, Record};
use super::{Conversation, KeyMap, Pair};
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
    alone(row, Side::Rejected, map)
}

/// Which response a row has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Chosen,
    Rejected,
}

/// A row of a prompt and one response, both plain text or both messages.
fn alone(row: &Record, side: Side, map: &KeyMap) -> Result<Pair> {
    let (object, place) = (object(row)?, &row.place);
    let ours = match side {
        Side::Chosen => "chosen",
        Side::Rejected => "rejected",
    };
    let (prompt_key, own_key) = (key(map, "prompt"), key(map, ours));
    let pair = |prompt: &str, response: &str, conversation| {
        let [chosen, rejected] = match side {
            Side::Chosen => [response, ""],
            Side::Rejected => ["", response],
        }
        .map(str::to_owned);
        Pair { prompt: prompt.into(), chosen, rejected, conversation, place: place.clone() }
    };
    let Some(own) = messages(object, own_key, place)? else {
        if has_messages(object, prompt_key, place)? {
            bail_input!(
                "{place}: {prompt_key:?} is a list of messages, but {own_key:?} is not one"
            );
        }
        let (prompt, response) =
            (string(object, prompt_key, place)?, string(object, own_key, place)?);
        for (text, what) in [(prompt, "prompt"), (response, ours)] {
            if text.trim().is_empty() {
                bail_input!("{place}: {what} is empty; every row needs both texts");
            }
        }
        return Ok(pair(prompt, response, None));
    };
    let Some(mut history) = messages(object, prompt_key, place)? else {
        bail_input!("{place}: {own_key:?} is a list of messages, but {prompt_key:?} is not one");
    };
    history.extend(own);
    let Some(answer) = history.pop_if(|last| is_answer(last)).filter(|_| !history.is_empty())
    else {
        bail_input!(
            "{place}: the conversation of {own_key:?} must end with an assistant's answer to \
             another turn"
        );
    };
    let response = content(&answer).to_owned();
    if response.trim().is_empty() {
        bail_input!("{place}: the last turn of {own_key:?} is empty");
    }
    let prompt = contents(&history);
    let (chosen, rejected) = match side {
        Side::Chosen => (Some(answer), None),
        Side::Rejected => (None, Some(answer)),
    };
    Ok(pair(&prompt, &response, Some(Conversation { history, chosen, rejected })))
}

/// The completions of a prompt, by their label.
struct Labelled {
    prompt: Value,
    good: Vec<(Value, FileLine)>,
    bad: Vec<(Value, FileLine)>,
}

/// Labelled rows as pairs: of each prompt, every completion of one kind with one of the other, in
/// their order. Where a prompt has completions of one kind alone, they stand alone.
pub fn labelled(rows: &[Record], map: &KeyMap) -> Result<Vec<Pair>> {
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
            prompts.push(Labelled { prompt, good, bad });
        }
        match is_good(&label) {
            Some(true) => prompts[number].good.push((completion, place.clone())),
            Some(false) => prompts[number].bad.push((completion, place.clone())),
            None => {
                let label = json::odd(&label).map_or_else(|| label.to_string(), str::to_owned);
                bail_input!("{place}: label {label}: expected true or false")
            }
        }
    }
    let mut pairs = Vec::new();
    for Labelled { prompt, good, bad } in prompts {
        for at in 0..good.len().max(bad.len()) {
            let of = |all: &[(Value, FileLine)]| match all.len() {
                0 => None,
                n => Some(all[at % n].clone()),
            };
            let (row, place, side) = match (of(&good), of(&bad)) {
                (None, None) => continue,
                (Some((chosen, _)), Some((rejected, place))) => {
                    let row = json!({ "prompt": prompt, "chosen": chosen, "rejected": rejected });
                    (row, place, None)
                }
                (Some((chosen, place)), None) => {
                    (json!({ "prompt": prompt, "chosen": chosen }), place, Some(Side::Chosen))
                }
                (None, Some((rejected, place))) => {
                    (json!({ "prompt": prompt, "rejected": rejected }), place, Some(Side::Rejected))
                }
            };
            let (row, names) = (Record { value: row, place }, KeyMap::new());
            pairs.push(match side {
                None => pair(&row, &names)?,
                Some(side) => alone(&row, side, &names)?,
            });
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
