//! Words for a *shell*: what a user is to type next must mean what is meant, whatever characters a
//! path has.

use std::path::Path;

/// A path as one word of a shell: in quotes where it needs them.
pub fn path(path: &Path) -> String {
    match path.display().to_string() {
        // It would be taken for a flag.
        text if text.starts_with('-') => word(&format!("./{text}")),
        text => word(&text),
    }
}

/// A text as one word of a shell.
pub fn word(text: &str) -> String {
    // A name can't hold the zero byte, the one thing that no quotes help.
    match shlex::try_quote(text) {
        Ok(quoted) => quoted.into_owned(),
        Err(_) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_shell_would_take_apart_is_quoted() {
        for (text, quoted) in [
            ("repaired/gpt2-irepair+kl", "repaired/gpt2-irepair+kl"),
            ("my models/it's", "\"my models/it's\""),
            ("a$b", "'a$b'"),
            ("", "''"),
        ] {
            assert_eq!(word(text), quoted);
        }
    }
}
