//! `replay:FILE`: scores stored by an earlier run (its samples, or the answers that `perspective`
//! and `openai` keep) or by RealToxicityPrompts. They are found by the text itself.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::scorer::{Scored, Scorer};
use super::{openai, perspective};
use crate::{bail_input, data};

pub struct Replay {
    file: String,
    scores: HashMap<String, f64>,
    /// Why a text has no score, where its row says so.
    errors: HashMap<String, String>,
}

/// The score in a row: of ours, of RealToxicityPrompts, or of the stored answers of a server.
pub fn score_of(row: &Value) -> Option<f64> {
    let own = ["score", "toxicity"].iter().find_map(|key| row.get(key)?.as_f64());
    own.or_else(|| {
        let response = row.get("response")?;
        perspective::score_of(response).or_else(|| openai::score_of(response))
    })
}

/// The texts of a row with their scores.
fn texts(row: &Value) -> Vec<(String, f64)> {
    let mut found = Vec::new();
    for key in ["continuation", "text", "prompt"] {
        match row.get(key) {
            // If a row has a continuation, its score is that of the continuation.
            Some(Value::String(text)) if found.is_empty() => {
                found.extend(score_of(row).map(|score| (text.clone(), score)));
            }
            // In RealToxicityPrompts, prompt and continuation have a score each.
            Some(inner @ Value::Object(_)) => {
                if let (Some(text), Some(score)) =
                    (inner.get("text").and_then(Value::as_str), score_of(inner))
                {
                    found.push((text.to_owned(), score));
                }
            }
            _ => {}
        }
    }
    found
}

impl Replay {
    /// Reads the stored scores. Errors (bad input) if there are none, or if several scorers gave
    /// them.
    pub fn open(file: &str) -> Result<Self> {
        let (mut scores, mut errors) = (HashMap::new(), HashMap::new());
        let mut scorer: Option<String> = None;
        for row in data::read_rows(Path::new(file), None)? {
            if let Some(name) = row.value.get("scorer").and_then(Value::as_str) {
                match &scorer {
                    Some(first) if first != name => {
                        bail_input!(
                            "{}: a score of {name} after some of {first}; keep the rows of one \
                             scorer",
                            row.place
                        )
                    }
                    _ => scorer = Some(name.into()),
                }
            }
            let found = texts(&row.value);
            if let (true, Some(text), Some(error)) =
                (found.is_empty(), row.value["text"].as_str(), row.value["error"].as_str())
            {
                errors.insert(text.to_owned(), error.to_owned());
            }
            for (text, score) in found {
                if !(0.0..=1.0).contains(&score) {
                    bail_input!("{}: a score of {score} is not in 0..=1", row.place);
                }
                scores.insert(text, score);
            }
        }
        if scores.is_empty() {
            bail_input!(
                "{file}: no row has a text (\"text\", \"continuation\") and its \"score\" or \
                 \"toxicity\""
            );
        }
        Ok(Self { file: file.into(), scores, errors })
    }
}

impl Scorer for Replay {
    fn name(&self) -> String {
        let file =
            Path::new(&self.file).file_name().unwrap_or_default().to_string_lossy().into_owned();
        format!("replay:{file}")
    }

    fn about(&self) -> String {
        format!("{} stored scores", self.scores.len())
    }

    fn score(&self, texts: &[&str]) -> Result<Vec<Scored>> {
        let score = |text: &&str| match (self.scores.get(*text), self.errors.get(*text)) {
            (Some(score), _) => Scored::Score(*score),
            (None, Some(error)) => Scored::Refused(error.clone()),
            (None, None) => Scored::Failed(format!("{} has no score of this text", self.file)),
        };
        Ok(texts.iter().map(score).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn replay(rows: &str) -> Result<Replay> {
        let dir = tempfile::tempdir().expect("dir");
        let file = dir.path().join("rows.jsonl");
        std::fs::write(&file, rows).expect("writes");
        Replay::open(file.to_str().expect("utf-8"))
    }

    #[test]
    fn every_stored_form_is_read() {
        let rows = [
            json!({"text": "own", "score": 0.1}),
            json!({
                "prompt": {"text": "rtp prompt", "toxicity": 0.2},
                "continuation": {"text": "rtp rest", "toxicity": 0.3},
            }),
            json!({
                "request_id": "1", "text": "kept", "error": null,
                "response": {"languages": ["en"], "attributeScores": {"TOXICITY": {
                    "spanScores": [{"score": {"value": 0.9}}],
                    "summaryScore": {"value": 0.4, "type": "PROBABILITY"},
                }}},
            }),
            json!({
                "request_id": "2", "text": "moderated", "error": null,
                "response": {"category_scores": {"hate": 0.5, "violence": 0.9}},
            }),
            json!({
                "request_id": "3", "text": "refused", "response": null, "error": "400 no language",
            }),
        ];
        let replay = replay(&rows.map(|row| row.to_string()).join("\n")).expect("opens");
        let scores =
            replay.score(&["own", "rtp prompt", "rtp rest", "kept", "moderated"]).expect("scores");
        assert_eq!(scores, [0.1, 0.2, 0.3, 0.4, 0.5].map(Scored::Score));
        let failed = replay.score(&["refused", "unknown"]).expect("scores");
        assert_eq!(failed[0], Scored::Refused("400 no language".into()));
        assert!(
            matches!(&failed[1], Scored::Failed(why) if why.contains("no score of this text")),
            "{failed:?}"
        );
    }

    #[test]
    fn scores_of_several_scorers_are_refused() {
        let rows = r#"{"scorer": "openai:a", "text": "x", "score": 0.1}
{"scorer": "openai:b", "text": "x", "score": 0.2}"#;
        let error = replay(rows).err().expect("two scorers").to_string();
        assert!(
            error.contains("rows.jsonl:2: a score of openai:b after some of openai:a"),
            "{error}"
        );
    }
}
