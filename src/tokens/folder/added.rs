//! *Added tokens* stand beside the vocabulary and match as a whole. Files outside `tokenizer.json`
//! name some, too: `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, Tokenizer};

use super::classes::Class;
use super::{Theirs, object};
use crate::bail_input;
use crate::base::plain::shortened;

/// The special tokens that have a name in transformers, in its order.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The tokens that a folder names.
pub struct Tokens {
    /// Special tokens by their names, in the order in which they are added.
    named: Vec<(String, AddedToken)>,
    /// Tokens without names, most of them special.
    extra: Vec<AddedToken>,
    /// Tokens by their ids, and whether `tokenizer.json` is still asked for its own.
    by_id: BTreeMap<u32, AddedToken>,
    asks: bool,
}

impl Tokens {
    /// A special token as text.
    pub fn text(&self, name: &str) -> Option<String> {
        let found = self.named.iter().find(|(key, _)| key == name);
        found.map(|(_, token)| token.content.clone())
    }

    /// All named special tokens as texts.
    pub fn special(&self) -> BTreeMap<String, String> {
        self.named.iter().map(|(key, token)| (key.clone(), token.content.clone())).collect()
    }

    /// The tokens to add, in order, to a tokenizer whose file has its `own` and that has those with
    /// these `contents` already.
    pub fn to_add(&self, own: &BTreeMap<u32, AddedToken>, contents: &[String]) -> Vec<AddedToken> {
        let mut by_id = self.by_id.clone();
        if self.asks {
            by_id.extend(own.iter().map(|(id, token)| (*id, token.clone())));
        }
        let mut tokens: Vec<AddedToken> = by_id.into_values().collect();
        let known: Vec<String> = tokens.iter().map(|token| token.content.clone()).collect();
        let is_there = |content: &String| known.contains(content) || contents.contains(content);
        let more = self.named.iter().map(|(_, token)| token).chain(&self.extra);
        // One that is given twice is what it is in the end.
        tokens.extend(more.filter(|token| !is_there(&token.content)).cloned());
        let is_named = |content: &str| self.named.iter().any(|(_, token)| token.content == content);
        let special = |token: AddedToken| {
            let special = token.special || is_named(&token.content);
            token.special(special)
        };
        tokens.into_iter().map(special).collect()
    }

    /// All special tokens, matching as they are written.
    pub fn plain_specials(&self) -> Vec<AddedToken> {
        let all = self.named.iter().map(|(_, token)| token).chain(&self.extra);
        all.map(|token| AddedToken::from(token.content.clone(), true)).collect()
    }
}

/// A token that is given as text or as an object with its properties; `special` is what it is where
/// it does not say.
fn token(value: &Value, special: bool) -> Option<AddedToken> {
    if let Some(text) = value.as_str() {
        return Some(AddedToken::from(text, special));
    }
    let flag = |key: &str| value.get(key).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(special);
    let token = AddedToken::from(value.get("content")?.as_str()?, special)
        .single_word(flag("single_word").unwrap_or(false))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false));
    Some(match flag("normalized") {
        Some(normalized) => token.normalized(normalized),
        None => token,
    })
}

/// The tokens of a folder. Errors (bad input) if a file is broken.
pub fn read(dir: &Path, settings: &Map<String, Value>, class: Option<&Class>) -> Result<Tokens> {
    let config = dir.join("tokenizer_config.json");
    let mut given: Map<String, Value> = Map::new();
    let take = |given: &mut Map<String, Value>, from: &Map<String, Value>| {
        // A null takes a token away that the class would have.
        let named = from.iter().filter(|(key, value)| {
            key.ends_with("_token") && (value.is_null() || token(value, true).is_some())
        });
        given.extend(named.map(|(key, value)| (key.clone(), value.clone())));
    };
    take(&mut given, settings);
    let mut extra = listed(settings, false);
    let mut by_id = BTreeMap::new();
    let asks = !settings.contains_key("added_tokens_decoder");
    let decoder = settings.get("added_tokens_decoder").and_then(Value::as_object);
    for (id, value) in decoder.into_iter().flatten() {
        let (Ok(id), Some(token)) = (id.parse::<u32>(), token(value, false)) else {
            bail_input!(
                "{}: \"added_tokens_decoder\": {} is no token with an id",
                config.display(),
                shortened(id, 100)
            );
        };
        by_id.insert(id, token);
    }
    if asks {
        // Tokens of added_tokens.json that are special.
        let mut special: Vec<String> = extra.iter().map(|token| token.content.clone()).collect();
        if let Some(map) = object(&dir.join("special_tokens_map.json"))? {
            take(&mut given, &map);
            let objects = map.values().filter_map(|value| value.get("content")?.as_str());
            special.extend(objects.map(str::to_owned));
            let more = listed(&map, true);
            // The older name of the list counts only where the newer file has none.
            let has = |key: &str| settings.contains_key(key);
            if map.contains_key("extra_special_tokens") {
                special.extend(more.iter().map(|token| token.content.clone()));
                extra.extend(more);
            } else if !has("extra_special_tokens") && !has("additional_special_tokens") {
                extra = more;
            }
        }
        special.extend(given.values().filter_map(Value::as_str).map(str::to_owned));
        let path = dir.join("added_tokens.json");
        for (content, id) in object(&path)?.into_iter().flatten() {
            let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
                bail_input!(
                    "{}: the id of {:?} is no number of a token",
                    path.display(),
                    shortened(&content, 100)
                );
            };
            let special = special.contains(&content);
            by_id.insert(id, AddedToken::from(content, special));
        }
    }
    let usual = class.map_or(&[][..], |class| class.special).iter();
    let mut values: Map<String, Value> =
        usual.map(|(key, text)| ((*key).into(), (*text).into())).collect();
    values.extend(given);
    let mut named: Vec<(String, AddedToken)> = values
        .iter()
        .filter_map(|(key, value)| Some((key.clone(), token(value, true)?.special(true))))
        .collect();
    let place = |key: &str| NAMED.iter().position(|name| *name == key).unwrap_or(NAMED.len());
    // Stable: what has no place of its own stays in the order of the files.
    named.sort_by_key(|(key, _)| place(key));
    Ok(Tokens { named, extra, by_id, asks })
}

/// Tokens that have no names of their own, by both names that their list has had. What is given as
/// text is special; `special` is what an object is that does not say.
fn listed(map: &Map<String, Value>, special: bool) -> Vec<AddedToken> {
    let found = ["extra_special_tokens", "additional_special_tokens"]
        .into_iter()
        .filter_map(|key| map.get(key))
        .find(|value| match value {
            Value::Array(list) => !list.is_empty(),
            Value::Object(list) => !list.is_empty(),
            _ => false,
        });
    let token = |value: &Value| token(value, special || value.is_string());
    match found {
        Some(Value::Array(list)) => list.iter().filter_map(token).collect(),
        Some(Value::Object(list)) => list.values().filter_map(token).collect(),
        _ => Vec::new(),
    }
}

/// Puts texts between these tokens; a post-processor that put them between others goes. Errors if
/// the vocabulary lacks one.
pub fn marks(tokenizer: &mut Tokenizer, [begin, end]: [Option<String>; 2]) -> Theirs<()> {
    let special = |name: &String| -> Theirs<(Value, Value)> {
        let id = tokenizer.token_to_id(name).ok_or_else(|| format!("no token {name:?}"))?;
        Ok((
            json!({"SpecialToken": {"id": name, "type_id": 0}}),
            json!({"id": name, "ids": [id], "tokens": [name]}),
        ))
    };
    let (mut single, mut tokens) = (Vec::new(), Map::new());
    let mut put = |single: &mut Vec<Value>, name: Option<String>| -> Theirs<()> {
        if let Some(name) = name {
            let (piece, token) = special(&name)?;
            single.push(piece);
            tokens.insert(name, token);
        }
        Ok(())
    };
    put(&mut single, begin)?;
    single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
    put(&mut single, end)?;
    let pair = [&single[..], &[json!({"Sequence": {"id": "B", "type_id": 1}})]].concat();
    let template = json!({
        "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens,
    });
    let template: PostProcessorWrapper = serde_json::from_value(template)?;
    tokenizer.with_post_processor(Some(template));
    Ok(())
}
