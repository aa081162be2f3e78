//! *Remote* scorers ask a server. They share a client that keeps a pace and tries again, and
//! answers that are kept on disk, so no text is sent twice and the scores outlive the service.
//!
//! After an error that may pass (429, 5xx, a broken connection, a time-out) a request is sent
//! again, up to [`ATTEMPTS`] times in all. The first pause is `IREPAIR_RETRY_MS` milliseconds
//! (1,000). Each next one is twice as long, and none is shorter than the server's `Retry-After`.

mod answers;
mod pace;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use serde_json::Value;
use ureq::http::Uri;

pub use answers::{Answers, path};
pub use pace::Pace;

use super::scorer::Scored;
use crate::bail_input;
use crate::base::error::Error;
use pace::{Turn, retry_after};

/// How often a request is sent before the program gives up on it.
const ATTEMPTS: u32 = 6;

/// The run ends after this many requests in a row without success.
const GIVEN_UP_IN_A_ROW: usize = 10;

/// The most time for one request, from looking up the name to the last byte of the answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// The most requests at the same time.
pub const AT_ONCE: usize = 16;

/// A server's answer to one text.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Response(Value),
    /// The server will never score this text, and why.
    Refused(String),
    /// The server did not score this text now, and why.
    Failed(String),
}

/// A secret, and the header that carries it.
pub struct Key {
    pub header: &'static str,
    /// What the header has before the secret.
    pub before: &'static str,
    pub secret: String,
}

impl Key {
    /// The key in a variable. Errors (bad input) if it can't be sent.
    pub fn new(
        variable: &str,
        header: &'static str,
        before: &'static str,
        secret: &str,
    ) -> Result<Self> {
        let secret = secret.trim().to_owned();
        if !secret.bytes().all(|b| b.is_ascii_graphic()) {
            bail_input!("{variable}: a key has no spaces and no letters beyond ASCII");
        }
        Ok(Self { header, before, secret })
    }
}

/// The host and port of a URL, without the secrets that it may have before and after them. Errors
/// (bad input) if the variable has no URL.
pub fn host(variable: &str, url: &str) -> Result<String> {
    let uri =
        url.parse::<Uri>().ok().filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")));
    match uri.as_ref().and_then(Uri::authority) {
        Some(authority) => Ok(authority.as_str().rsplit('@').next().unwrap_or_default().into()),
        None => bail_input!("{variable} is not a URL (http://… or https://…)"),
    }
}

/// One address of one server.
pub struct Service {
    /// Its name in errors: the scorer and the host.
    name: String,
    url: String,
    key: Option<Key>,
    pace: Pace,
    agent: ureq::Agent,
    given_up: AtomicUsize,
}

/// What a server sent.
struct Reply {
    status: u16,
    retry_after: Option<Duration>,
    body: Vec<u8>,
}

/// What a reply means.
enum Verdict {
    Final(Answer),
    /// The request may be sent again, and why it failed.
    Again(String),
}

impl Service {
    pub fn new(name: String, url: String, key: Option<Key>, pace: Pace) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // A redirect could send the key to another server.
            .max_redirects(0)
            .max_idle_connections_per_host(AT_ONCE)
            .timeout_global(Some(TIMEOUT))
            .user_agent(concat!("irepair/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Self { name, url, key, pace, agent, given_up: AtomicUsize::new(0) }
    }

    /// Sends a request until there is an answer, or gives up. Errors if no text can be scored any
    /// more.
    pub fn ask(&self, body: &Value) -> Result<Answer> {
        let body = body.to_string();
        let mut why = String::new();
        for failures in 0..ATTEMPTS {
            if failures > 0 {
                self.pace.pause(failures)?;
            }
            if let Turn::NotFor(time) = self.pace.turn()? {
                why = format!("it wants no request for {} s", time.as_secs());
                break;
            }
            match self.send(&body).map(|reply| self.judge(reply)) {
                Ok(verdict) => match verdict? {
                    Verdict::Final(answer) => {
                        self.given_up.store(0, Ordering::Relaxed);
                        return Ok(answer);
                    }
                    Verdict::Again(reason) => why = reason,
                },
                Err(error) => why = self.hide(&error.to_string()),
            }
        }
        if self.given_up.fetch_add(1, Ordering::Relaxed) + 1 >= GIVEN_UP_IN_A_ROW {
            return Err(self.fault(format!(
                "{GIVEN_UP_IN_A_ROW} requests in a row failed: {why}; the answers so far are kept: \
                 give the same command again later"
            )));
        }
        Ok(Answer::Failed(format!("{}: {why}", self.name)))
    }

    fn send(&self, body: &str) -> std::result::Result<Reply, ureq::Error> {
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header(key.header, format!("{}{}", key.before, key.secret));
        }
        let mut response = request.send(body)?;
        let header = response.headers().get("retry-after").and_then(|value| value.to_str().ok());
        Ok(Reply {
            status: response.status().as_u16(),
            retry_after: header.and_then(|value| retry_after(value, SystemTime::now())),
            body: response.body_mut().read_to_vec()?,
        })
    }

    fn judge(&self, reply: Reply) -> Result<Verdict> {
        let text = String::from_utf8_lossy(&reply.body);
        let json: Option<Value> = serde_json::from_str(&text).ok();
        let message = json
            .as_ref()
            .and_then(|json| json.pointer("/error/message")?.as_str())
            .unwrap_or(text.trim());
        let message: String = message.chars().take(200).collect();
        let why = self.hide(format!("{} {message}", reply.status).trim_end());
        Ok(match (reply.status, json) {
            (200, Some(_)) if self.secret().is_some_and(|secret| text.contains(secret)) => {
                Verdict::Final(Answer::Failed(format!("{}: the answer repeats the key", self.name)))
            }
            (200, Some(response)) => Verdict::Final(Answer::Response(response)),
            (200, None) => {
                Verdict::Final(Answer::Failed(format!("{}: the answer is not JSON", self.name)))
            }
            // This is how Google refuses a wrong or expired key.
            (400, _) if text.contains("API_KEY_INVALID") => {
                return Err(self.fault(format!("{why}; check the key")));
            }
            // Only a refusal by the service itself is about the text. A proxy has no such "error".
            (400, Some(json)) if json.get("error").is_some() => {
                Verdict::Final(Answer::Refused(why))
            }
            (401 | 403, _) => {
                return Err(self.fault(format!("{why}; check the key and what it may be used for")));
            }
            (300..400 | 404 | 405, _) => {
                return Err(self.fault(format!("{why}; check the address and the model")));
            }
            (408 | 425 | 429 | 500.., _) => {
                if let Some(time) = reply.retry_after {
                    self.pace.hold(time);
                }
                Verdict::Again(why)
            }
            _ => Verdict::Final(Answer::Failed(format!("{}: {why}", self.name))),
        })
    }

    fn fault(&self, words: String) -> anyhow::Error {
        Error::Hub(format!("{}: {words}", self.name)).into()
    }

    /// The key, if it is long enough for a real one. Local servers take words like EMPTY.
    fn secret(&self) -> Option<&str> {
        self.key.as_ref().map(|key| key.secret.as_str()).filter(|secret| secret.len() >= 8)
    }

    /// Words of the server with the key removed.
    fn hide(&self, words: &str) -> String {
        self.secret().map_or(words.into(), |secret| words.replace(secret, "***"))
    }
}

/// The results of texts. Those that are not kept from before are asked for, `together` texts in a
/// request and `at_once` requests at the same time. Each text is sent once. Errors if no text can
/// be scored any more.
pub fn score(
    texts: &[&str],
    answers: &Answers,
    together: usize,
    at_once: usize,
    ask: impl Fn(&[&str]) -> Result<Vec<Answer>> + Sync,
) -> Result<Vec<Scored>> {
    let mut known: HashMap<&str, Option<Scored>> = HashMap::new();
    let mut new = Vec::new();
    for text in texts {
        known.entry(text).or_insert_with(|| {
            let found = answers.get(text);
            if found.is_none() {
                new.push(*text);
            }
            found
        });
    }
    let parts: Vec<&[&str]> = new.chunks(together).collect();
    let known = Mutex::new(known);
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            for (text, answer) in part.iter().zip(ask(part)?) {
                let scored = match answer {
                    Answer::Response(response) => answers.add(text, Ok(&response))?,
                    Answer::Refused(why) => answers.add(text, Err(&why))?,
                    Answer::Failed(why) => Scored::Failed(why),
                };
                known.lock().unwrap_or_else(PoisonError::into_inner).insert(text, Some(scored));
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let start = |_| {
            // If one worker fails, the others get nothing more to do.
            scope.spawn(|| work().inspect_err(|_| next.store(parts.len(), Ordering::Relaxed)))
        };
        let workers: Vec<_> = (0..at_once.min(parts.len())).map(start).collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    let known = known.into_inner().unwrap_or_else(PoisonError::into_inner);
    let result = |text: &&str| match known.get(text) {
        Some(Some(scored)) => scored.clone(),
        _ => Scored::Failed("the server left it out".into()),
    };
    Ok(texts.iter().map(result).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_shown_without_secrets() {
        assert_eq!(
            host("X", "https://user:secret@host.org:8080/v1?key=secret").expect("url"),
            "host.org:8080"
        );
        assert_eq!(host("X", "http://localhost").expect("url"), "localhost");
        for wrong in ["", "host.org/v1", "ftp://host.org", "https://", "/v1"] {
            assert!(host("X", wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn keys_with_line_ends_are_trimmed_and_others_refused() {
        assert_eq!(Key::new("K", "h", "", " abc\n").expect("key").secret, "abc");
        for wrong in ["a b", "a\nb: c", "schlüssel"] {
            let error = Key::new("K", "h", "", wrong).err().expect(wrong).to_string();
            assert!(error.starts_with("K: ") && !error.contains(wrong), "{error}");
        }
    }
}
