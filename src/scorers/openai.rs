//! `openai[:MODEL]`: the route `moderations` of OpenAI, or of any server that offers it.
//!
//! `OPENAI_BASE_URL` is the server (<https://api.openai.com/v1>). `OPENAI_API_KEY` is the key;
//! other servers may not need one. The score is the largest one of the categories harassment and
//! hate and their kinds. Every answer is kept in `scores/openai.jsonl` in the cache folder and used
//! again.

use anyhow::Result;
use serde_json::{Value, json};

use super::remote;
use super::remote::{Answer, Answers, Key, Pace, Service};
use super::scorer::{Scored, Scorer};
use crate::bail_input;
use crate::base::environment::variable;

pub const ABOUT: &str = "moderations of OpenAI or a server like it (OPENAI_API_KEY, \
                         OPENAI_BASE_URL): the largest of harassment and hate";

const BASE: &str = "https://api.openai.com/v1";
const MODEL: &str = "omni-moderation-latest";

/// The number of texts in a request.
const TOGETHER: usize = 32;

pub struct OpenAi {
    model: String,
    name: String,
    service: Service,
    answers: Answers,
}

/// The score of a text: the largest one of the categories harassment and hate and their kinds in
/// its result. Servers differ in their categories, so any of these will do, but without any there
/// is no score.
pub fn score_of(result: &Value) -> Option<f64> {
    let categories = result.get("category_scores")?.as_object()?;
    let toxic = categories
        .iter()
        .filter(|(name, _)| ["harassment", "hate"].iter().any(|kind| name.starts_with(kind)));
    toxic
        .map(|(_, score)| score.as_f64())
        .collect::<Option<Vec<f64>>>()?
        .into_iter()
        .reduce(f64::max)
}

impl OpenAi {
    /// Reads the environment. An empty `model` means the default. Errors (bad input) if OpenAI's
    /// own server is used without a key.
    pub fn open(model: &str) -> Result<Self> {
        let model = if model.is_empty() { MODEL } else { model };
        let base = variable("OPENAI_BASE_URL").unwrap_or_else(|| BASE.into());
        let host = remote::host("OPENAI_BASE_URL", &base)?;
        let own = host.ends_with("api.openai.com");
        let key = match variable("OPENAI_API_KEY") {
            Some(key) => Some(Key::new("OPENAI_API_KEY", "authorization", "Bearer ", &key)?),
            None if own => bail_input!(
                "--scorer openai needs a key in the variable OPENAI_API_KEY, or another server in \
                 OPENAI_BASE_URL"
            ),
            None => None,
        };
        // Another server may have another model of the same name.
        let name = if own { format!("openai:{model}") } else { format!("openai:{model}@{host}") };
        let url = format!("{}/moderations", base.trim_end_matches('/'));
        Ok(Self {
            model: model.into(),
            service: Service::new(format!("openai at {host}"), url, key, Pace::new(None)?),
            answers: Answers::open(&remote::path("openai")?, &name, score_of)?,
            name,
        })
    }

    /// One answer for each text. If the server refuses several texts together, it is asked for each
    /// one, because it may refuse only one of them.
    fn ask(&self, texts: &[&str]) -> Result<Vec<Answer>> {
        let each = |answer: Answer| vec![answer; texts.len()];
        Ok(match self.service.ask(&json!({"model": self.model, "input": texts}))? {
            Answer::Response(mut response) => match response.get_mut("results").map(Value::take) {
                Some(Value::Array(results)) if results.len() == texts.len() => {
                    results.into_iter().map(Answer::Response).collect()
                }
                _ => each(Answer::Failed(format!(
                    "the answer has no \"results\" for {} texts",
                    texts.len()
                ))),
            },
            Answer::Refused(_) if texts.len() > 1 => {
                let each_alone: Vec<Vec<Answer>> =
                    texts.iter().map(|text| self.ask(&[text])).collect::<Result<_>>()?;
                each_alone.concat()
            }
            answer => each(answer),
        })
    }
}

impl Scorer for OpenAi {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn about(&self) -> String {
        "the largest score of the categories harassment and hate; not on the scale of other scorers"
            .into()
    }

    fn score(&self, texts: &[&str]) -> Result<Vec<Scored>> {
        remote::score(texts, &self.answers, TOGETHER, 1, |part| self.ask(part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_score_is_the_largest_of_harassment_and_hate() {
        let of = |scores: Value| score_of(&json!({ "category_scores": scores }));
        assert_eq!(
            of(json!({"harassment": 0.2, "hate/threatening": 0.4, "violence": 0.9, "hate": 0.1})),
            Some(0.4)
        );
        assert_eq!(of(json!({"harassment/threatening": 0.3, "sexual": 0.9})), Some(0.3));
        assert_eq!(of(json!({"violence": 0.9, "illicit": null})), None);
        assert_eq!(of(json!({"hate": 0.1, "harassment": null})), None);
        assert_eq!(score_of(&json!({"flagged": true})), None);
    }
}
