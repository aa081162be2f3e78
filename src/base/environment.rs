//! What the *environment* says: the user's variables, and the folder that keeps things.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// The value of a variable. An empty one counts as not set.
pub fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// The path that a variable holds. An empty one counts as not set.
pub fn path_variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The user's cache folder, on every system where `huggingface_hub` has it: `XDG_CACHE_HOME`, else
/// `.cache` in the home folder. The crates for such folders choose others on macOS and Windows.
pub fn user_cache() -> Option<PathBuf> {
    let home = || env::home_dir().filter(|home| !home.as_os_str().is_empty());
    path_variable("XDG_CACHE_HOME").or_else(|| Some(home()?.join(".cache")))
}

/// The folder that keeps things of this kind: in `IREPAIR_CACHE`, else in `irepair` in the user's
/// cache folder.
pub fn cache(kind: &str) -> Result<PathBuf> {
    let cache = path_variable("IREPAIR_CACHE")
        .or_else(|| Some(user_cache()?.join("irepair")))
        .with_context(|| format!("no folder to keep {kind} in: set IREPAIR_CACHE or HOME"))?;
    Ok(cache.join(kind))
}
