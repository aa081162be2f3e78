//! What the tensors of a model are called *on disk*. Programs that wrap a model while it is trained
//! (torch.compile, DataParallel, peft, Lightning) may save it with their own words in the names.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::bail_input;

/// Parts of a name that wrappers put into it, wherever they stand.
const INNER: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// What wrappers put before all names, one before the other.
const OUTER: [&str; 2] = ["module.", "base_model.model."];
/// Parts of names that peft gives to what it has added to a model.
const ADDED: [&str; 4] = ["lora_A", "lora_B", "lora_embedding_A", "base_layer"];

/// The names on disk by the names without what wrappers put into them; empty if no wrapper did.
#[derive(Debug, Default)]
pub struct Wrapped {
    names: BTreeMap<String, String>,
    /// The name on disk of a tensor, and the same without what was put into it.
    pub example: Option<(String, String)>,
}

impl Wrapped {
    /// Finds out what was put into the names. `anchor` are the names that one tensor of the model
    /// may have, the most complete first. Errors (bad input) if two tensors would have one name, if
    /// the files hold several models, or an adapter of peft that is not merged.
    pub fn find(names: &[&str], anchor: &[&str], files: &str) -> Result<Self> {
        if let Some(name) = names.iter().find(|n| n.split('.').any(|part| ADDED.contains(&part))) {
            bail_input!(
                "{files}: tensor {name} belongs to an adapter of peft that is not merged; call \
                 model.merge_and_unload(), and save what it returns"
            );
        }
        let is_inner = |name: &&str| name.split('.').any(|part| INNER.contains(&part));
        if names.iter().any(|name| anchor.contains(name)) && !names.iter().any(is_inner) {
            return Ok(Self::default());
        }
        let mut plain: Vec<(String, &str)> =
            names.iter().map(|name| (unwrapped(name), *name)).collect();
        // Whatever else stands before the names of the whole model.
        let before = |name: &str| {
            let end = anchor.iter().find(|end| is_end(name, end))?;
            Some(name[..name.len() - end.len()].to_owned())
        };
        let mut outer: Vec<String> = plain.iter().filter_map(|(name, _)| before(name)).collect();
        outer.dedup();
        let outer = match outer.as_slice() {
            [] => return Ok(Self::default()),
            [outer] => outer.clone(),
            several => bail_input!(
                "{files}: several models, whose tensors begin with {}; save the one that is meant \
                 alone",
                several.join(", ")
            ),
        };
        let mut found = Self::default();
        for (name, disk) in &mut plain {
            if let Some(rest) = name.strip_prefix(&outer) {
                *name = rest.to_owned();
            }
            if name != disk && found.example.is_none() {
                found.example = Some(((*disk).to_owned(), name.clone()));
            }
            if let Some(other) = found.names.insert(name.clone(), (*disk).to_owned()) {
                bail_input!("{files}: {other} and {disk} are both tensor {name} of the model");
            }
        }
        Ok(found)
    }

    /// The name on disk of a tensor.
    pub fn on_disk(&self, name: &str) -> Option<&str> {
        self.names.get(name).map(String::as_str)
    }

    /// Whether a wrapper put something into the names.
    pub fn is_some(&self) -> bool {
        self.example.is_some()
    }
}

/// A name without what known wrappers put into it.
fn unwrapped(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').filter(|part| !INNER.contains(part)).collect();
    let name = parts.join(".");
    let mut rest = name.as_str();
    while let Some(inner) = OUTER.iter().find_map(|outer| rest.strip_prefix(outer)) {
        rest = inner;
    }
    rest.to_owned()
}

/// Whether a name is `end`, or ends with a dot and it.
fn is_end(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANCHOR: [&str; 2] = ["transformer.wte.weight", "wte.weight"];

    #[test]
    fn names_are_found_whatever_wraps_them() {
        for before in [
            "_orig_mod.",
            "module.",
            "module._orig_mod.",
            "_orig_mod.module.",
            "base_model.model.",
            "model.",
            "pretrained_model.",
            "_forward_module.model._orig_mod.",
        ] {
            for end in ANCHOR {
                let disk = [format!("{before}{end}"), format!("{before}lm_head.weight")];
                let names: Vec<&str> = disk.iter().map(String::as_str).collect();
                let found = Wrapped::find(&names, &ANCHOR, "model.safetensors").expect(before);
                assert_eq!(found.on_disk(end), Some(names[0]), "{before}");
                assert_eq!(found.on_disk("lm_head.weight"), Some(names[1]), "{before}");
            }
        }
        let inner = ["transformer.wte.weight", "transformer.h.0._orig_mod.ln_1.weight"];
        let found = Wrapped::find(&inner, &ANCHOR, "model.safetensors").expect("inner");
        assert_eq!(found.on_disk("transformer.h.0.ln_1.weight"), Some(inner[1]));
        let plain = Wrapped::find(&["wte.weight", "module.x"], &ANCHOR, "f").expect("plain");
        assert!(!plain.is_some() && plain.on_disk("wte.weight").is_none());
    }

    #[test]
    fn what_is_not_one_model_is_refused() {
        for (names, words) in [
            (vec!["a.wte.weight", "b.wte.weight"], "several models"),
            (vec!["module.wte.weight", "_orig_mod.wte.weight"], "are both tensor wte.weight"),
            (vec!["base_model.model.h.0.c.lora_A.weight"], "not merged"),
        ] {
            let error = Wrapped::find(&names, &ANCHOR, "f").expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
