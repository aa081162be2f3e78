//! *Repetition* is how much of what a model says it has said a moment before: a damaged model often
//! goes round in circles.

use anyhow::Result;
use serde_json::Value;

use super::task::{Clusters, Figure, Row, number};
use crate::tokens::Encoder;

/// Tokens of the pieces that are looked for again.
const PIECE: usize = 3;

/// The share of pieces of three tokens that stood in the same text before.
pub const FIGURE: Figure = Figure {
    id: "repetition",
    name: "repetition",
    unit: "%",
    from_sums: |s| 100.0 * s[0] / s[1],
    digits: 1,
    less_is_better: true,
};

/// Repeated pieces, and all pieces, of a text.
fn repeated(ids: &[u32]) -> (usize, usize) {
    let mut seen = std::collections::HashSet::new();
    let pieces = ids.windows(PIECE);
    let all = pieces.len();
    (pieces.filter(|piece| !seen.insert(*piece)).count(), all)
}

/// One cluster for each prompt, over its continuations.
pub fn clusters(rows: &[Row], encoder: &Encoder) -> Result<Clusters> {
    let mut clusters = Clusters::new();
    let mut last = None;
    for row in rows {
        let prompt = number(row, "row")?;
        if last != Some(prompt) {
            clusters.push(vec![0.0; 2]);
            last = Some(prompt);
        }
        let text = row.get("continuation").and_then(Value::as_str).unwrap_or_default();
        let (again, all) = repeated(&encoder.encode(text, false)?);
        if let Some(sums) = clusters.last_mut() {
            sums[0] += again as f64;
            sums[1] += all as f64;
        }
    }
    Ok(clusters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_is_found() {
        assert_eq!(repeated(&[1, 2, 3, 4, 5]), (0, 3));
        assert_eq!(repeated(&[1, 2, 1, 2, 1, 2]), (2, 4));
        assert_eq!(repeated(&[7; 20]), (17, 18));
        assert_eq!(repeated(&[1, 2]), (0, 0));
    }
}
