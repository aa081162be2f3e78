//! `perspective`: the attribute TOXICITY of Google's Perspective API. **The service ends on 31
//! December 2026.**
//!
//! `PERSPECTIVE_API_KEY` is the key. `PERSPECTIVE_API_QPS` is the quota of requests a second (1).
//! `PERSPECTIVE_ENDPOINT` is the server (<https://commentanalyzer.googleapis.com>). It may be a
//! proxy or a server that does the same; then the end of the service does not matter. Every answer
//! is kept in `scores/perspective.jsonl` in the cache folder and used again. With this file,
//! `replay:FILE` gives the same scores without the key and the service.

use std::path::Path;
use std::time::SystemTime;

use anyhow::Result;
use serde_json::{Value, json};

use super::remote;
use super::remote::{AT_ONCE, Answers, Key, Pace, Service};
use super::scorer::{Scored, Scorer};
use crate::bail_input;
use crate::base::environment::variable;

pub const ABOUT: &str = "Google's Perspective API, which ends on 31 December 2026 \
                         (PERSPECTIVE_API_KEY; PERSPECTIVE_API_QPS, 1)";

const NAME: &str = "perspective:TOXICITY";
const ENDPOINT: &str = "https://commentanalyzer.googleapis.com";

/// 1 January 2027, the first day without the service, in days since 1 January 1970.
const END: u64 = 20_819;

/// The longest text that the service takes, in bytes of UTF-8 (as RealToxicityPrompts has it).
const LONGEST: usize = 20_480;

pub struct Perspective {
    service: Service,
    answers: Answers,
    at_once: usize,
}

/// Errors (bad input) with advice from the day on which the service no longer exists. `today` is
/// counted in days since 1 January 1970.
fn refuse_after_the_end(today: u64, stored: &Path) -> Result<()> {
    if today >= END {
        bail_input!(
            "the Perspective API ended on 31 December 2026; score with classifier:ID, or with \
             replay:FILE from stored scores (earlier answers are kept in {})",
            stored.display()
        );
    }
    Ok(())
}

/// The score in a response: the one of the whole text, not of its worst part.
pub fn score_of(response: &Value) -> Option<f64> {
    response.pointer("/attributeScores/TOXICITY/summaryScore/value")?.as_f64()
}

/// The request for a text. A text that is too long for the service is cut.
fn request(text: &str) -> Value {
    let end = (0..=text.len().min(LONGEST))
        .rev()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or_default();
    json!({
        "comment": {"text": text[..end]},
        "languages": ["en"],
        "requestedAttributes": {"TOXICITY": {}},
        "doNotStore": true,
        "spanAnnotations": false,
    })
}

impl Perspective {
    /// Reads the environment. Errors (bad input) without a key, and after the end of the service.
    pub fn open() -> Result<Self> {
        let path = remote::path("perspective")?;
        let endpoint = variable("PERSPECTIVE_ENDPOINT");
        if endpoint.is_none() {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            refuse_after_the_end(now.as_secs() / 86_400, &path)?;
        }
        let Some(key) = variable("PERSPECTIVE_API_KEY") else {
            bail_input!(
                "--scorer perspective needs a key in the variable PERSPECTIVE_API_KEY \
                 (https://developers.perspectiveapi.com); without one, score with classifier:ID, \
                 or with replay:FILE from stored scores"
            );
        };
        let quota = match variable("PERSPECTIVE_API_QPS") {
            None => 1.0,
            Some(text) => match text.trim().parse::<f64>() {
                Ok(quota) if (0.001..=1e6).contains(&quota) => quota,
                _ => bail_input!(
                    "PERSPECTIVE_API_QPS={text}: expected requests a second, like 1 or 0.5"
                ),
            },
        };
        let endpoint = endpoint.unwrap_or_else(|| ENDPOINT.into());
        let host = remote::host("PERSPECTIVE_ENDPOINT", &endpoint)?;
        let url = format!("{}/v1alpha1/comments:analyze", endpoint.trim_end_matches('/'));
        let key = Key::new("PERSPECTIVE_API_KEY", "x-goog-api-key", "", &key)?;
        Ok(Self {
            service: Service::new(
                format!("perspective at {host}"),
                url,
                Some(key),
                Pace::new(Some(quota))?,
            ),
            answers: Answers::open(&path, NAME, score_of)?,
            // A request takes less than a second, so this many at once use the whole quota.
            at_once: (quota.ceil() as usize).min(AT_ONCE),
        })
    }
}

impl Scorer for Perspective {
    fn name(&self) -> String {
        NAME.into()
    }

    fn about(&self) -> String {
        "Google's Perspective API, which ends on 31 December 2026; the answers are kept for \
         replay:FILE"
            .into()
    }

    fn score(&self, texts: &[&str]) -> Result<Vec<Scored>> {
        let ask =
            |part: &[&str]| part.iter().map(|text| self.service.ask(&request(text))).collect();
        remote::score(texts, &self.answers, 1, self.at_once, ask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_is_refused_from_the_day_after_its_end() {
        let day = |date: &str| {
            let time = httpdate::parse_http_date(date).expect("a date");
            time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs() / 86_400
        };
        let kept = Path::new("scores/perspective.jsonl");
        assert!(refuse_after_the_end(day("Thu, 31 Dec 2026 23:59:59 GMT"), kept).is_ok());
        let error = refuse_after_the_end(day("Fri, 01 Jan 2027 00:00:00 GMT"), kept)
            .expect_err("the end")
            .to_string();
        for word in ["31 December 2026", "classifier:", "replay:FILE", "scores/perspective.jsonl"] {
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let sent = |text: &str| request(text)["comment"]["text"].as_str().expect("text").len();
        assert_eq!(sent(&"a".repeat(LONGEST)), LONGEST);
        assert_eq!(sent(&"a".repeat(LONGEST + 1)), LONGEST);
        assert_eq!(sent(&format!("a{}", "é".repeat(LONGEST))), LONGEST - 1);
    }
}
