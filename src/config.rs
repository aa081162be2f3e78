//! What the words mean.
/// "unknown …" with the nearest known name.
pub fn unknown(what: &str, name: &str, known: &[&str]) -> String {
    let nearest = known
        .iter()
        .map(|k| (strsim::jaro_winkler(name, k), k))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((_, nearest)) => {
            format!("unknown {what} {name:?}; did you mean {nearest:?}? (have: {})", known.join(", "))
        }
        None => format!("unknown {what} {name:?} (have: {})", known.join(", ")),
    }
}
