//! The scorers that ask a server, on the real binary against a stand-in of the server.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

use serde_json::{Value, json};

use crate::server::{Reply, Request, Server};

const KEY: &str = "AIza-not-to-be-seen";

/// A folder with texts, the cache and what comes out.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(texts: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let rows: String =
            texts.iter().map(|text| format!("{}\n", json!({ "text": text }))).collect();
        std::fs::write(dir.path().join("texts.jsonl"), rows).expect("writes");
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `irepair score` of the texts to a file of this name.
    fn command(&self, scorer: &str, out: &str, variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_irepair"));
        command.args(["score", "--scorer", scorer, "--json"]).arg(self.path("texts.jsonl"));
        command.arg("--out").arg(self.path(out));
        for name in
            ["PERSPECTIVE_API_KEY", "PERSPECTIVE_ENDPOINT", "OPENAI_API_KEY", "OPENAI_BASE_URL"]
        {
            command.env_remove(name);
        }
        command.env("NO_PROXY", "127.0.0.1").env("IREPAIR_CACHE", self.path("cache"));
        command.env("IREPAIR_RETRY_MS", "1").env("PERSPECTIVE_API_QPS", "1000");
        command.envs(variables.iter().copied());
        command
    }

    fn run(&self, scorer: &str, out: &str, variables: &[(&str, &str)]) -> Output {
        let output = self.command(scorer, out, variables).output().expect("runs");
        self.no_key(&output);
        output
    }

    fn perspective(&self, server: &Server, out: &str) -> Output {
        self.run(
            "perspective",
            out,
            &[("PERSPECTIVE_API_KEY", KEY), ("PERSPECTIVE_ENDPOINT", &server.url)],
        )
    }

    /// The key is in nothing that was printed or written.
    #[track_caller]
    fn no_key(&self, output: &Output) {
        let seen = |bytes: &[u8]| bytes.windows(KEY.len()).any(|w| w == KEY.as_bytes());
        assert!(
            !seen(&output.stdout) && !seen(&output.stderr),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let mut folders = vec![self.dir.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("folder") {
                let path = entry.expect("entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    assert!(!seen(&std::fs::read(&path).expect("file")), "{}", path.display());
                }
            }
        }
    }

    /// The texts' scores, or why they failed.
    fn rows(&self, out: &str) -> BTreeMap<String, Result<f64, String>> {
        let row = |row: Value| {
            let text = row["text"].as_str().expect("text").to_owned();
            assert!(row.get("score").is_some() != row.get("failed").is_some(), "{row}");
            let failed = || row["failed"].as_str().expect("why").to_owned();
            (text, row["score"].as_f64().ok_or_else(failed))
        };
        lines(&self.path(out)).into_iter().map(row).collect()
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).expect("file");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// What was printed, and the exit code is this.
#[track_caller]
fn ends(output: &Output, code: i32) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    if code == 0 {
        String::from_utf8_lossy(&output.stdout).into_owned()
    } else {
        error.into_owned()
    }
}

/// `{"scored": …, "failed": …}` of a run that went well.
#[track_caller]
fn counts(output: &Output) -> (u64, u64) {
    let json: Value = serde_json::from_str(&ends(output, 0)).expect("JSON");
    (json["scored"].as_u64().expect("scored"), json["failed"].as_u64().expect("failed"))
}

fn text_of(request: &Request) -> String {
    request.json()["comment"]["text"].as_str().expect("text").to_owned()
}

/// Perspective's answer: the worst span is not the score.
fn toxicity(score: f64) -> Reply {
    Reply::json(&json!({
        "attributeScores": {"TOXICITY": {
            "spanScores": [{"begin": 0, "end": 1, "score": {"value": 0.99, "type": "PROBABILITY"}}],
            "summaryScore": {"value": score, "type": "PROBABILITY"},
        }},
        "languages": ["en"],
    }))
}

/// A stand-in of Perspective that answers to a text by the number of times that it was asked for it, from 0.
fn stand_in(answer: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Server {
    let asked: Mutex<BTreeMap<String, usize>> = Mutex::default();
    Server::start(move |request| {
        let text = text_of(request);
        let mut asked = asked.lock().expect("counts");
        let times = asked.entry(text.clone()).or_default();
        *times += 1;
        answer(&text, *times - 1)
    })
}

/// How often each text was asked.
fn asked(server: &Server) -> BTreeMap<String, usize> {
    let mut asked = BTreeMap::new();
    for request in server.requests() {
        *asked.entry(text_of(&request)).or_default() += 1;
    }
    asked
}

#[test]
fn perspective_asks_a_text_once_and_its_answers_replay() {
    let server = stand_in(|text, _| toxicity(1.0 / text.len() as f64));
    let long = "é".repeat(20_000);
    let place = Place::new(&["one", "three", "one", &long]);
    assert_eq!(counts(&place.perspective(&server, "first.jsonl")), (4, 0));
    let rows = place.rows("first.jsonl");
    assert_eq!(
        (&rows["one"], &rows["three"], &rows[&long]),
        (&Ok(1.0 / 3.0), &Ok(0.2), &Ok(1.0 / 20_480.0))
    );
    let requests = server.requests();
    assert_eq!(requests.len(), 3, "each text once");
    assert!(
        requests.iter().all(|r| r.path == "/v1alpha1/comments:analyze"),
        "the key is not in the address"
    );
    assert!(requests.iter().all(|r| r.header("x-goog-api-key") == Some(KEY)));
    let body = requests
        .iter()
        .map(Request::json)
        .find(|body| body["comment"]["text"] == "one")
        .expect("asked");
    let expected = json!({
        "comment": {"text": "one"}, "languages": ["en"], "requestedAttributes": {"TOXICITY": {}},
        "doNotStore": true, "spanAnnotations": false,
    });
    assert_eq!(body, expected);

    // RealToxicityPrompts' stored form, with the whole text.
    let stored = place.path("cache/scores/perspective.jsonl");
    for row in lines(&stored) {
        let keys: Vec<&str> =
            row.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(keys, ["request_id", "scorer", "text", "response", "error"]);
        assert!(row["error"].is_null() && row["scorer"] == "perspective:TOXICITY");
    }
    // printf one | sha256sum
    let id = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
    assert!(lines(&stored).iter().any(|row| row["request_id"] == id && row["text"] == "one"));

    assert_eq!(counts(&place.perspective(&server, "second.jsonl")), (4, 0));
    assert_eq!(place.rows("second.jsonl"), rows);
    assert_eq!(server.requests().len(), 3, "asked again");

    let replay = format!("replay:{}", stored.display());
    assert_eq!(counts(&place.run(&replay, "replayed.jsonl", &[])), (4, 0));
    assert_eq!(place.rows("replayed.jsonl"), rows);
}

#[test]
fn what_passes_is_tried_again() {
    let server = stand_in(|text, times| match (text, times) {
        ("limited", 0) => Reply::new("429 Too Many Requests", "slow down").with("Retry-After", "0"),
        ("limited", 1) => Reply::new("429 Too Many Requests", "")
            .with("Retry-After", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("busy", 0..=4) => Reply::new("503 Service Unavailable", "{}"),
        ("silent", 0) => Reply::Broken(Vec::new()),
        ("half a head", 0) => Reply::Broken(b"HTTP/1.1 200 OK\r\nContent-".to_vec()),
        ("half a body", 0) => {
            Reply::Broken(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"attribute".to_vec())
        }
        _ => toxicity(0.25),
    });
    let texts = ["limited", "busy", "silent", "half a head", "half a body", "good"];
    let place = Place::new(&texts);
    assert_eq!(counts(&place.perspective(&server, "out.jsonl")), (6, 0));
    assert!(place.rows("out.jsonl").values().all(|score| *score == Ok(0.25)));
    let times = asked(&server);
    assert_eq!(texts.map(|text| times[text]), [3, 6, 2, 2, 2, 1]);
}

#[test]
fn what_stays_wrong_fails_and_is_never_a_0() {
    let server = stand_in(|text, _| {
        match text {
        "down" => Reply::new("500 Internal Server Error", "oh no"),
        "broken" => Reply::Broken(Vec::new()),
        "garbage" => Reply::new("200 OK", "<html>welcome to the hotel's network</html>"),
        "list" => Reply::json(&json!([])),
        "no score" => Reply::json(&json!({"attributeScores": {}})),
        "beyond" => toxicity(1.5),
        "foreign" => Reply::new(
            "400 Bad Request",
            json!({"error": {"code": 400, "message": "Attribute TOXICITY does not support request languages: xx"}})
                .to_string(),
        ),
        "proxy" => Reply::new("400 Bad Request", "not here"),
        "teapot" => Reply::new("418 I'm a teapot", KEY),
        "echo" => Reply::json(&json!({"attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.5}}}, "key": KEY})),
        _ => toxicity(0.25),
    }
    });
    let wrong = [
        ("down", "500 oh no", 6),
        ("broken", "perspective at 127.0.0.1", 6),
        ("garbage", "not JSON", 1),
        ("list", "no score", 1),
        ("no score", "no score", 1),
        ("beyond", "1.5 is not in 0..=1", 1),
        ("foreign", "400 Attribute TOXICITY does not support", 1),
        ("proxy", "400 not here", 1),
        ("teapot", "418 ***", 1),
        ("echo", "repeats the key", 1),
    ];
    let texts: Vec<&str> = wrong.iter().map(|(text, ..)| *text).chain(["good"]).collect();
    let place = Place::new(&texts);
    assert_eq!(counts(&place.perspective(&server, "out.jsonl")), (1, 10));
    let rows = place.rows("out.jsonl");
    let times = asked(&server);
    for (text, words, requests) in wrong {
        let why = rows[text].as_ref().expect_err(text);
        assert!(why.contains(words), "{text}: {why}");
        assert_eq!(times[text], requests, "{text}");
    }
    // What the service refused is known; the rest is asked again.
    assert_eq!(counts(&place.perspective(&server, "again.jsonl")), (1, 10));
    assert_eq!(place.rows("again.jsonl")["foreign"], rows["foreign"]);
    let again = asked(&server);
    assert_eq!(["foreign", "good", "garbage", "down"].map(|text| again[text]), [1, 1, 2, 12]);
    let stored = place.path("cache/scores/perspective.jsonl");
    assert_eq!(lines(&stored).len(), 2, "only answers are kept");
    // A replay tells the same of both.
    let replay = format!("replay:{}", stored.display());
    assert_eq!(counts(&place.run(&replay, "replayed.jsonl", &[])), (1, 10));
    let replayed = place.rows("replayed.jsonl");
    assert_eq!((&replayed["foreign"], &replayed["good"]), (&rows["foreign"], &rows["good"]));

    let nothing = Place::new(&["down", "foreign"]);
    let error = ends(&nothing.perspective(&server, "out.jsonl"), 4);
    assert!(error.contains("no text could be scored"), "{error}");
}

#[test]
fn a_server_that_takes_nobody_ends_the_run() {
    let invalid = json!({"error": {"code": 400, "message": "API key not valid. Please pass a valid API key.",
                                   "details": [{"reason": "API_KEY_INVALID"}]}});
    for (status, body, advice) in [
        ("401 Unauthorized", format!("who is {KEY}?"), "check the key"),
        ("403 Forbidden", "disabled".into(), "check the key"),
        ("400 Bad Request", invalid.to_string(), "check the key"),
        ("404 Not Found", "nothing".into(), "check the address"),
        ("302 Found", String::new(), "check the address"),
    ] {
        let server = stand_in(move |_, _| Reply::new(status, &body).with("Location", "/elsewhere"));
        let place = Place::new(&["one"]);
        let error = ends(&place.perspective(&server, "out.jsonl"), 5);
        assert!(error.contains(&status[..3]) && error.contains(advice), "{error}");
        assert!(!place.path("out.jsonl").exists(), "{status}");
        assert_eq!(
            std::fs::read(place.path("cache/scores/perspective.jsonl")).expect("the file"),
            b""
        );
        assert_eq!(server.requests().len(), 1, "{status}");
    }
}

#[test]
fn a_service_that_is_down_ends_the_run_and_what_was_answered_is_kept() {
    let texts: Vec<String> = (0..80).map(|i| format!("text {i}")).collect();
    let place = Place::new(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    // The first 64 are a unit of their own.
    let down = stand_in(|text, _| match text[5..].parse::<usize>() {
        Ok(0..64) => toxicity(0.25),
        _ => Reply::new("502 Bad Gateway", "down"),
    });
    let error = ends(&place.perspective(&down, "out.jsonl"), 5);
    assert!(error.contains("10 requests in a row") && error.contains("502 down"), "{error}");
    let up = stand_in(|_, _| toxicity(0.5));
    assert_eq!(counts(&place.perspective(&up, "out.jsonl")), (80, 0));
    assert_eq!(up.requests().len(), 16);
    // A server that wants a long rest gets it.
    let place = Place::new(&["one", "two"]);
    let tired =
        stand_in(|_, _| Reply::new("429 Too Many Requests", "").with("Retry-After", "7200"));
    let variables = [
        ("PERSPECTIVE_API_QPS", "1"),
        ("PERSPECTIVE_API_KEY", KEY),
        ("PERSPECTIVE_ENDPOINT", &tired.url),
    ];
    let error = ends(&place.run("perspective", "out.jsonl", &variables), 4);
    assert!(error.contains("wants no request for 7"), "{error}");
    assert_eq!(tired.requests().len(), 1);
}

#[test]
fn keys_quotas_and_addresses_that_cannot_be() {
    let place = Place::new(&["one"]);
    let key = ("PERSPECTIVE_API_KEY", KEY);
    let stand_in = ("PERSPECTIVE_ENDPOINT", "http://127.0.0.1:9");
    for (scorer, variables, words) in [
        ("perspective", vec![stand_in], ["PERSPECTIVE_API_KEY", "replay:FILE"]),
        (
            "perspective",
            vec![stand_in, ("PERSPECTIVE_API_KEY", " ")],
            ["PERSPECTIVE_API_KEY", "replay:FILE"],
        ),
        (
            "perspective",
            vec![stand_in, ("PERSPECTIVE_API_KEY", "a b")],
            ["PERSPECTIVE_API_KEY", "spaces"],
        ),
        (
            "perspective",
            vec![stand_in, key, ("PERSPECTIVE_API_QPS", "0")],
            ["PERSPECTIVE_API_QPS=0", "0.5"],
        ),
        (
            "perspective",
            vec![stand_in, key, ("PERSPECTIVE_API_QPS", "many")],
            ["PERSPECTIVE_API_QPS=many", "0.5"],
        ),
        (
            "perspective",
            vec![stand_in, key, ("IREPAIR_RETRY_MS", "1s")],
            ["IREPAIR_RETRY_MS=1s", "milliseconds"],
        ),
        (
            "perspective",
            vec![key, ("PERSPECTIVE_ENDPOINT", "localhost")],
            ["PERSPECTIVE_ENDPOINT", "http://"],
        ),
        ("perspective:TOXICITY", vec![], ["takes nothing", "perspective"]),
        ("openai", vec![], ["OPENAI_API_KEY", "OPENAI_BASE_URL"]),
        (
            "openai:omni",
            vec![("OPENAI_BASE_URL", "https://eu.api.openai.com/v1")],
            ["OPENAI_API_KEY", "needs"],
        ),
        ("openai", vec![("OPENAI_BASE_URL", "here")], ["OPENAI_BASE_URL", "http://"]),
    ] {
        let error = ends(&place.run(scorer, "out.jsonl", &variables), 3);
        for word in words {
            assert!(error.contains(word), "{scorer} {variables:?}: {word:?} is not in: {error}");
        }
    }
    let blocked = place.path("a-file");
    std::fs::write(&blocked, "").expect("writes");
    let cache = ("IREPAIR_CACHE", blocked.to_str().expect("utf-8"));
    let error = ends(&place.run("perspective", "out.jsonl", &[key, stand_in, cache]), 3);
    assert!(error.contains("IREPAIR_CACHE"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_wish_to_stop_ends_the_waiting() {
    let server = stand_in(|text, _| match text {
        "late" => Reply::new("429 Too Many Requests", "").with("Retry-After", "250"),
        _ => toxicity(0.25),
    });
    let place = Place::new(&["early", "late"]);
    // One request at a time, so that the first is answered before the second holds all back.
    let variables = [
        ("PERSPECTIVE_API_QPS", "1"),
        ("PERSPECTIVE_API_KEY", KEY),
        ("PERSPECTIVE_ENDPOINT", &server.url),
    ];
    let mut command = place.command("perspective", "out.jsonl", &variables);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    while server.requests().len() < 2 && child.try_wait().expect("wait").is_none() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(
        Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status()
            .expect("kill")
            .success()
    );
    let error = ends(&child.wait_with_output().expect("ends"), 130);
    assert!(error.contains("the answers so far are kept"), "{error}");
    assert_eq!(lines(&place.path("cache/scores/perspective.jsonl")).len(), 1);
    assert!(!place.path("out.jsonl").exists());
}

/// A moderation server: the text "0.3 rest" gets 0.3 in a category of its kind.
fn moderation() -> Server {
    Server::start(|request| {
        let body = request.json();
        let texts: Vec<&str> =
            body["input"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
        let score =
            |text: &str| text.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
        let result = |text: &&str| match *text {
            "older server" => json!({"flagged": false, "category_scores": {"violence": 0.9}}),
            _ => json!({"flagged": true, "categories": {"hate": true}, "category_scores": {
                "harassment": 0.01, "harassment/threatening": 0.02, "hate": 0.005, "hate/threatening": score(text),
                "self-harm": 0.97, "sexual": 0.98, "violence": 0.99,
            }}),
        };
        if texts.contains(&"too long") {
            return Reply::new(
                "400 Bad Request",
                json!({"error": {"message": "input is too long"}}).to_string(),
            );
        }
        let mut results: Vec<Value> = texts.iter().map(result).collect();
        if texts.contains(&"left out") {
            results.pop();
        }
        Reply::json(&json!({"id": "modr-1", "model": body["model"], "results": results}))
    })
}

#[test]
fn openai_takes_the_largest_of_harassment_and_hate_in_batches() {
    let server = moderation();
    let texts: Vec<String> = (0..70).map(|i| format!("0.{:02} of {i}", i + 10)).collect();
    let place = Place::new(&texts.iter().map(String::as_str).collect::<Vec<_>>());
    let base = format!("{}/v1/", server.url);
    let variables = [("OPENAI_BASE_URL", base.as_str()), ("OPENAI_API_KEY", KEY)];
    let output = place.run("openai", "out.jsonl", &variables);
    assert_eq!(counts(&output), (70, 0));
    let host = server.url.trim_start_matches("http://");
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(said["scorer"], format!("openai:omni-moderation-latest@{host}"));
    let rows = place.rows("out.jsonl");
    for text in &texts {
        assert_eq!(rows[text], Ok(text[..4].parse().expect("a number")), "{text}");
    }
    let requests = server.requests();
    let sizes: Vec<usize> =
        requests.iter().map(|r| r.json()["input"].as_array().expect("a list").len()).collect();
    // Units of 64 texts, requests of 32.
    assert_eq!(sizes, [32, 32, 6]);
    for request in &requests {
        assert_eq!(request.path, "/v1/moderations");
        assert_eq!(request.header("authorization"), Some(format!("Bearer {KEY}").as_str()));
        assert_eq!(request.json()["model"], "omni-moderation-latest");
    }
    // Known answers: nothing is asked; another model's are its own, and a server of one's own may want no key.
    assert_eq!(counts(&place.run("openai", "again.jsonl", &variables)), (70, 0));
    assert_eq!((place.rows("again.jsonl"), server.requests().len()), (rows.clone(), 3));
    let stored = place.path("cache/scores/openai.jsonl");
    let replay = format!("replay:{}", stored.display());
    assert_eq!(counts(&place.run(&replay, "replayed.jsonl", &[])), (70, 0));
    assert_eq!(place.rows("replayed.jsonl"), rows);
    assert_eq!(counts(&place.run("openai:local", "local.jsonl", &variables[..1])), (70, 0));
    let requests = server.requests();
    assert_eq!((requests.len(), &requests[5].json()["model"]), (6, &json!("local")));
    assert_eq!(requests[5].header("authorization"), None);
    let error = ends(&place.run(&replay, "mixed.jsonl", &[]), 3);
    assert!(error.contains("openai:local@") && error.contains("one scorer"), "{error}");
}

#[test]
fn openai_fails_the_texts_that_have_no_score_and_no_others() {
    let server = moderation();
    let base = ("OPENAI_BASE_URL", server.url.as_str());
    let place = Place::new(&["0.3 fine", "older server", "too long", "0.4 fine"]);
    assert_eq!(counts(&place.run("openai", "out.jsonl", &[base])), (2, 2));
    let rows = place.rows("out.jsonl");
    assert_eq!((&rows["0.3 fine"], &rows["0.4 fine"]), (&Ok(0.3), &Ok(0.4)));
    assert_eq!(rows["older server"], Err("the answer has no score".into()));
    assert_eq!(rows["too long"], Err("400 input is too long".into()));
    assert_eq!(server.requests().len(), 5, "together, then one by one");

    let place = Place::new(&["0.3 fine", "left out"]);
    let error = ends(&place.run("openai", "out.jsonl", &[base]), 4);
    assert!(error.contains("no \"results\" for 2 texts"), "{error}");
}

/// Scores kept by `perspective` are what `--calibrate` compares with; what the service refused is counted.
#[test]
fn kept_answers_calibrate_another_scorer() {
    let server = stand_in(|text, _| match text {
        "?" => {
            Reply::new("400 Bad Request", json!({"error": {"message": "no language"}}).to_string())
        }
        _ => toxicity(if text.contains("idiot") { 0.9 } else { 0.1 }),
    });
    let place = Place::new(&["Thank you, friend.", "You stupid fucking idiot.", "?"]);
    assert_eq!(counts(&place.perspective(&server, "out.jsonl")), (2, 1));
    let mut command = Command::new(env!("CARGO_BIN_EXE_irepair"));
    command.args(["score", "--scorer", "lexicon", "--json", "--calibrate"]);
    let output = command.arg(place.path("cache/scores/perspective.jsonl")).output().expect("runs");
    let json: Value = serde_json::from_str(&ends(&output, 0)).expect("JSON");
    assert_eq!((&json["failed"], &json["calibration"]["texts"]), (&json!(1), &json!(2)));
    assert_eq!(json["calibration"]["auc"], 1.0);
}
