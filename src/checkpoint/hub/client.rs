//! The *client* asks the hub. It sends the token to the hub alone, never to a server that the hub
//! sends it on to, and it waits for no server for ever.

use std::fs::File;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use ureq::http::{Response, StatusCode, Uri};
use ureq::{Agent, Body};

use crate::bail_input;
use crate::base::environment::variable;
use crate::base::progress::{Progress, is_watched};

/// How often a request is sent on to another address.
const REDIRECTS: usize = 10;

/// How often the bytes of a file are asked for, each time from where the last answer ended.
const ATTEMPTS: u32 = 3;

/// The fewest bytes a second that count as an answer that goes on.
const SLOWEST: u64 = 256;

pub struct Client {
    agent: Agent,
    /// For lists and for what a file is: `HF_HUB_ETAG_TIMEOUT`.
    ask: Duration,
    /// For the next bytes of a file: `HF_HUB_DOWNLOAD_TIMEOUT`.
    wait: Duration,
    origin: Origin,
    token: Option<Token>,
}

/// The user's token. It is sent to the hub, and never shown.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The token in a text, if there is one. Errors (bad input) if it can't be sent.
    pub fn new(text: &str) -> Result<Option<Self>> {
        let text = text.trim();
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            bail_input!("HF_TOKEN: a token has no spaces and no letters beyond ASCII");
        }
        Ok(Some(text).filter(|text| !text.is_empty()).map(|text| Self(text.into())))
    }

    fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

/// Scheme, host and port: what a token is for.
#[derive(PartialEq)]
struct Origin(String, String, u16);

impl Origin {
    fn of(uri: &Uri) -> Option<Self> {
        let scheme = uri.scheme_str()?.to_lowercase();
        let port = uri.port_u16().or(match scheme.as_str() {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        })?;
        Some(Self(scheme, uri.host()?.to_lowercase(), port))
    }
}

/// What the hub says of a file before it sends it. Nothing of it was checked yet.
pub struct Told {
    pub commit: Option<String>,
    pub tag: String,
    pub bytes: u64,
}

/// Why the hub gives no answer.
pub struct Refusal(pub String);

impl<E: std::fmt::Display> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

type Answer<T> = std::result::Result<T, Refusal>;

/// The seconds in a variable of huggingface_hub.
fn seconds(name: &str) -> Result<Duration> {
    let Some(text) = variable(name) else { return Ok(Duration::from_secs(10)) };
    match text.trim().parse::<f64>().ok().map(Duration::try_from_secs_f64) {
        Some(Ok(time)) if !time.is_zero() => Ok(time),
        _ => bail_input!("{name}={text}: expected a number of seconds above 0"),
    }
}

impl Client {
    /// `endpoint` is the address of the hub.
    pub fn new(endpoint: &str, token: Option<Token>) -> Result<Self> {
        let (ask, wait) = (seconds("HF_HUB_ETAG_TIMEOUT")?, seconds("HF_HUB_DOWNLOAD_TIMEOUT")?);
        let origin = endpoint.parse().ok().as_ref().and_then(Origin::of);
        let Some(origin) = origin else {
            bail_input!("HF_ENDPOINT is not a URL (http://… or https://…)");
        };
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // They are followed here, so that the token stays with the hub.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("irepair/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Ok(Self { agent, ask, wait, origin, token })
    }

    /// One request and its answer, without going on to another address. `whole`: all of the answer
    /// must come within the time.
    fn get(&self, uri: &Uri, range: Option<u64>, whole: bool) -> Answer<Response<Body>> {
        let mut request = self.agent.get(uri.to_string());
        if let Some(from) = range {
            let to = if whole { "0" } else { "" };
            request = request.header("Range", format!("bytes={from}-{to}"));
        }
        if let Some(token) =
            self.token.as_ref().filter(|_| Origin::of(uri).as_ref() == Some(&self.origin))
        {
            request = request.header("Authorization", token.header());
        }
        let config = request.config();
        let config = if whole {
            config.timeout_global(Some(self.ask))
        } else {
            config
                .timeout_resolve(Some(self.wait))
                .timeout_connect(Some(self.wait))
                .timeout_send_request(Some(self.wait))
                .timeout_recv_response(Some(self.wait))
                .timeout_per_read(Some(self.wait))
        };
        let answer = config.build().call()?;
        match answer.status().as_u16() {
            200..=399 => Ok(answer),
            code => Err(Refusal(format!("status code {code}"))),
        }
    }

    /// Where an answer sends the request on to, if it does.
    fn next(from: &Uri, answer: &Response<Body>) -> Answer<Option<Uri>> {
        if !answer.status().is_redirection() || answer.status() == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let location = header(answer, "location").ok_or("a redirect without an address")?;
        let uri: Uri = location.parse().map_err(|_| "a redirect to what is no address")?;
        if uri.host().is_some() {
            return match uri.scheme_str() {
                Some("http" | "https") => Ok(Some(uri)),
                _ => Err(Refusal("a redirect to what is no address".into())),
            };
        }
        let mut parts = from.clone().into_parts();
        parts.path_and_query = uri.into_parts().path_and_query;
        Ok(Some(Uri::from_parts(parts)?))
    }

    /// The answer of the last address that a request is sent on to. `stop` may end it before.
    fn follow(
        &self,
        url: &str,
        range: Option<u64>,
        whole: bool,
        mut stop: impl FnMut(&Response<Body>) -> bool,
    ) -> Answer<Response<Body>> {
        let mut uri: Uri = url.parse().map_err(|_| "its address can't be written as a URL")?;
        for _ in 0..=REDIRECTS {
            let answer = self.get(&uri, range, whole)?;
            match Self::next(&uri, &answer)? {
                Some(next) if !stop(&answer) => uri = next,
                _ => return Ok(answer),
            }
        }
        Err(Refusal(format!("more than {REDIRECTS} redirects")))
    }

    /// The text at an address.
    pub fn text(&self, url: &str) -> Answer<String> {
        Ok(self.follow(url, None, true, |_| false)?.body_mut().read_to_string()?)
    }

    /// What the hub says of a file.
    pub fn told(&self, url: &str) -> Answer<Told> {
        let (mut commit, mut tag, mut bytes) = (None, None, None);
        // The hub itself names the commit and the file; the server that has the bytes does not.
        let mut look = |answer: &Response<Body>| {
            commit = commit.take().or_else(|| header(answer, "x-repo-commit"));
            tag = tag.take().or_else(|| header(answer, "x-linked-etag"));
            bytes = bytes.take().or_else(|| header(answer, "x-linked-size"));
            tag.is_some() && bytes.is_some()
        };
        let last = self.follow(url, Some(0), true, &mut look)?;
        look(&last);
        let tag = tag.or_else(|| header(&last, "etag")).ok_or("the header ETag is missing")?;
        let whole = || header(&last, "content-range")?.rsplit('/').next().map(str::to_owned);
        let length = || header(&last, "content-length").filter(|_| last.status() == 200);
        let bytes = bytes.or_else(whole).or_else(length).ok_or("no header says how long it is")?;
        let bytes = bytes.trim().parse().map_err(|_| "its length is no number")?;
        let tag = tag.trim().trim_start_matches("W/").replace('"', "");
        Ok(Told { commit, tag, bytes })
    }

    /// Appends what is missing of a file of so many bytes. What came stays when the rest does not.
    pub fn fetch(&self, url: &str, file: &mut File, bytes: u64, name: &str) -> Answer<()> {
        let mut attempt = 1;
        loop {
            match self.append(url, file, bytes, name) {
                Err(why) if attempt < ATTEMPTS && file.metadata()?.len() <= bytes => {
                    attempt += 1;
                    // A server that is being restarted needs a moment.
                    std::thread::sleep(Duration::from_millis(300));
                    drop(why);
                }
                ended => return ended,
            }
        }
    }

    fn append(&self, url: &str, file: &mut File, bytes: u64, name: &str) -> Answer<()> {
        let mut from = file.metadata()?.len();
        if from == bytes {
            return Ok(());
        }
        let mut answer = self.follow(url, Some(from), false, |_| false)?;
        if answer.status() != StatusCode::PARTIAL_CONTENT && from > 0 {
            // It sends the file from its beginning.
            file.set_len(0)?;
            from = 0;
        }
        let mut progress =
            Progress::new(name, (from >> 20) as usize, (bytes >> 20) as usize, !is_watched());
        let mut body = answer.body_mut().with_config().limit(u64::MAX).reader();
        let (mut buffer, mut done) = (vec![0; 1 << 16], from);
        let (mut since, mut before) = (Instant::now(), from);
        loop {
            let n = body.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            if done + n as u64 > bytes {
                // Nobody can say which of its bytes are right.
                file.set_len(0)?;
                return Err(Refusal(format!(
                    "more than the {bytes} bytes that were promised came"
                )));
            }
            file.write_all(&buffer[..n])?;
            let mib = (done + n as u64) >> 20;
            progress.advance((mib - (done >> 20)) as usize);
            done += n as u64;
            if since.elapsed() >= self.wait {
                if ((done - before) as f64) < SLOWEST as f64 * since.elapsed().as_secs_f64() {
                    return Err(Refusal(format!(
                        "less than {SLOWEST} bytes a second came, {done} of {bytes} in all"
                    )));
                }
                (since, before) = (Instant::now(), done);
            }
        }
        progress.finish();
        if done < bytes {
            return Err(Refusal(format!("it ended after {done} of {bytes} bytes")));
        }
        Ok(())
    }
}

fn header(answer: &Response<Body>, name: &str) -> Option<String> {
    answer.headers().get(name)?.to_str().ok().map(str::to_owned)
}

/// A part of a URL, with every byte written as `%…` that has a meaning there.
pub fn encoded(text: &str, kept: &[u8]) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b) || kept.contains(&b);
    let byte = |b: u8| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") };
    text.bytes().map(byte).collect()
}
