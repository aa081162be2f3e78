//! *Answers* of a server are kept on disk, one JSON line each, in the form that RealToxicityPrompts
//! stores: `request_id` (SHA-256 of the text), `response`, `error`. Text and scorer are added, so
//! that `replay:FILE` can use them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::bail_input;
use crate::base::environment;
use crate::base::error::Error;
use crate::base::files::hash_bytes;
use crate::scorers::scorer::Scored;

/// Finds the score in a response.
pub type ScoreOf = fn(&Value) -> Option<f64>;

/// The score of a response. A response without a score in 0..=1 has failed.
pub fn scored(response: &Value, score_of: ScoreOf) -> Scored {
    match score_of(response) {
        Some(score) if (0.0..=1.0).contains(&score) => Scored::Score(score),
        Some(score) => Scored::Failed(format!("the answer's score {score} is not in 0..=1")),
        None => Scored::Failed("the answer has no score".into()),
    }
}

pub struct Answers {
    path: PathBuf,
    scorer: String,
    score_of: ScoreOf,
    kept: Mutex<AnswerFile>,
}

struct AnswerFile {
    file: File,
    /// The results by `request_id`.
    scores: HashMap<String, Scored>,
}

/// The path of the file that keeps the answers of a service.
pub fn path(service: &str) -> Result<PathBuf> {
    Ok(environment::cache("scores")?.join(format!("{service}.jsonl")))
}

impl Answers {
    /// Opens the file, or begins it. Only answers to this scorer count. Errors (bad input) if the
    /// file can't be read or written.
    pub fn open(path: &Path, scorer: &str, score_of: ScoreOf) -> Result<Self> {
        let cannot =
            |e: std::io::Error| Error::Input(format!("{}: {e} (IREPAIR_CACHE)", path.display()));
        std::fs::create_dir_all(path.parent().unwrap_or(path)).map_err(cannot)?;
        let file =
            File::options().read(true).append(true).create(true).open(path).map_err(cannot)?;
        // Other runs may append at the same time. Where files can't be locked, the user must take
        // care that only one runs.
        let locked = file.lock().is_ok();
        let scores = read(&file, path, scorer, score_of);
        if locked {
            file.unlock().map_err(cannot)?;
        }
        Ok(Self {
            path: path.into(),
            scorer: scorer.into(),
            score_of,
            kept: Mutex::new(AnswerFile { file, scores: scores? }),
        })
    }

    /// The result that this text had before.
    pub fn get(&self, text: &str) -> Option<Scored> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.scores.get(&hash_bytes(text.as_bytes())).cloned()
    }

    /// Keeps a response, or the reason why there will never be one. A response without a score is
    /// not kept.
    pub fn add(&self, text: &str, answer: std::result::Result<&Value, &str>) -> Result<Scored> {
        let result = match answer {
            Ok(response) => scored(response, self.score_of),
            Err(error) => Scored::Refused(error.into()),
        };
        if let (Ok(_), Scored::Failed(_)) = (answer, &result) {
            return Ok(result);
        }
        let id = hash_bytes(text.as_bytes());
        let row = json!({
            "request_id": id, "scorer": self.scorer, "text": text,
            "response": answer.ok(), "error": answer.err(),
        });
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let locked = kept.file.lock().is_ok();
        kept.file
            .write_all(format!("{row}\n").as_bytes())
            .with_context(|| format!("writing {}", self.path.display()))?;
        if locked {
            kept.file.unlock().with_context(|| self.path.display().to_string())?;
        }
        kept.scores.insert(id, result.clone());
        Ok(result)
    }
}

/// The results in a file. Half a line, which an interrupted run left at the end, is cut off. Errors
/// name the line that can't be read.
fn read(
    file: &File,
    path: &Path,
    scorer: &str,
    score_of: ScoreOf,
) -> Result<HashMap<String, Scored>> {
    let mut scores = HashMap::new();
    let mut reader = BufReader::new(file);
    let (mut line, mut number, mut whole) = (Vec::new(), 0, 0);
    while reader.read_until(b'\n', &mut line).with_context(|| path.display().to_string())? > 0 {
        number += 1;
        if line.last() != Some(&b'\n') {
            file.set_len(whole).with_context(|| path.display().to_string())?;
            break;
        }
        whole += line.len() as u64;
        let row: Value = match serde_json::from_slice(&line) {
            Ok(row) => row,
            Err(e) => bail_input!(
                "{}:{number}: {e}; delete this line of the stored answers",
                path.display()
            ),
        };
        line.clear();
        let Some(text) = row["text"].as_str().filter(|_| row["scorer"] == scorer) else { continue };
        let score = match row["error"].as_str() {
            Some(error) => Scored::Refused(error.into()),
            None => scored(&row["response"], score_of),
        };
        scores.insert(hash_bytes(text.as_bytes()), score);
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score_of(response: &Value) -> Option<f64> {
        response["s"].as_f64()
    }

    #[test]
    fn answers_are_kept_by_text_and_scorer() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("deep/answers.jsonl");
        let answers = Answers::open(&path, "a", score_of).expect("opens");
        assert_eq!(answers.get("one"), None);
        assert_eq!(answers.add("one", Ok(&json!({"s": 0.25}))).expect("adds"), Scored::Score(0.25));
        let refused = Scored::Refused("400: no language".into());
        assert_eq!(answers.add("two", Err("400: no language")).expect("adds"), refused);
        // Not kept: these say nothing about the text.
        for wrong in [json!({}), json!({"s": 1.5}), json!({"s": null})] {
            assert!(
                matches!(answers.add("three", Ok(&wrong)).expect("adds"), Scored::Failed(_)),
                "{wrong}"
            );
        }
        drop(answers);
        let mut file = File::options().append(true).open(&path).expect("opens");
        file.write_all(b"{\"request_id\": \"half").expect("writes");
        let again = Answers::open(&path, "a", score_of).expect("opens again");
        assert_eq!(
            (again.get("one"), again.get("two")),
            (Some(Scored::Score(0.25)), Some(refused))
        );
        assert_eq!(again.get("three"), None);
        again.add("four", Ok(&json!({"s": 1}))).expect("adds");
        let other = Answers::open(&path, "b", score_of).expect("no half line");
        assert_eq!(other.get("one"), None);
        assert_eq!(std::fs::read_to_string(&path).expect("file").lines().count(), 3);
        std::fs::write(&path, "{}\nnonsense\n").expect("writes");
        let error = Answers::open(&path, "a", score_of).err().expect("a broken line").to_string();
        assert!(error.contains("answers.jsonl:2: "), "{error}");
    }
}
