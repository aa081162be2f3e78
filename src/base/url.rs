//! *URLs* as they may be shown.

/// A URL without the user name and password before its host, and without what stands behind a `?`.
/// Both may hold secrets.
pub fn without_secrets(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.into() };
    // A password may itself hold these signs, where somebody forgot to write them as `%…`.
    let host = rest.rfind('@').map_or(0, |at| at + 1);
    let shown = &rest[host..];
    let shown = shown.split(['?', '#']).next().unwrap_or_default();
    format!("{scheme}://{shown}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_names_passwords_and_queries_are_not_shown() {
        for (url, shown) in [
            ("https://me:secret@hub.org:8080/v1?key=secret", "https://hub.org:8080/v1"),
            ("http://me:sec/ret@hub.org", "http://hub.org"),
            ("http://me:se?cret@hub.org/a", "http://hub.org/a"),
            ("http://token@localhost", "http://localhost"),
            ("http://localhost/a#b", "http://localhost/a"),
            ("org/name", "org/name"),
        ] {
            assert_eq!(without_secrets(url), shown);
        }
    }
}
