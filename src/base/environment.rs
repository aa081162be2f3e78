//! What the *environment* says: variables of the user, and the folder where things are kept.

use std::path::PathBuf;

use anyhow::{Context, Result};

/// A variable's value; empty counts as not set.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.trim().is_empty())
}

/// Where things of this kind are kept: in `IREPAIR_CACHE`, or in `irepair` in the user's cache folder.
pub fn cache(kind: &str) -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = set("IREPAIR_CACHE")
        .or_else(|| {
            Some(
                set("XDG_CACHE_HOME")
                    .or_else(|| Some(set("HOME")?.join(".cache")))?
                    .join("irepair"),
            )
        })
        .with_context(|| format!("neither IREPAIR_CACHE nor HOME says where to keep {kind}"))?;
    Ok(cache.join(kind))
}
