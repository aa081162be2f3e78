//! The scorer `perspective`, against a stand-in of its server: answers are kept, what passes is
//! tried again, and what stays wrong is never a 0.

use std::collections::BTreeMap;
use std::sync::Mutex;

use serde_json::json;

use crate::support::command::{ends, irepair};
use crate::support::files::{bytes, rows};
use crate::support::process::{interrupt, until};
use crate::support::scoring::{KEY, Place, counts};
use crate::support::server::{Reply, Request, Server};

fn text_of(request: &Request) -> String {
    request.json()["comment"]["text"].as_str().expect("text").to_owned()
}

/// Perspective's answer. The score of the worst span is not the text's score.
fn toxicity(score: f64) -> Reply {
    Reply::json(&json!({
        "attributeScores": {"TOXICITY": {
            "spanScores": [{"begin": 0, "end": 1, "score": {"value": 0.99, "type": "PROBABILITY"}}],
            "summaryScore": {"value": score, "type": "PROBABILITY"},
        }},
        "languages": ["en"],
    }))
}

/// A stand-in of Perspective that answers to a text by the number of times that it was asked for
/// it, from 0.
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
    let scores = place.rows("first.jsonl");
    assert_eq!(scores["one"], Ok(1.0 / 3.0));
    assert_eq!((&scores["three"], &scores[&long]), (&Ok(0.2), &Ok(1.0 / 20_480.0)));
    let requests = server.requests();
    assert_eq!(requests.len(), 3, "each text once");
    // The key is not in the address.
    assert!(requests.iter().all(|r| r.path == "/v1alpha1/comments:analyze"));
    assert!(requests.iter().all(|r| r.header("x-goog-api-key") == Some(KEY)));
    let mut bodies = requests.iter().map(Request::json);
    let body = bodies.find(|body| body["comment"]["text"] == "one").expect("asked");
    let expected = json!({
        "comment": {"text": "one"},
        "languages": ["en"],
        "requestedAttributes": {"TOXICITY": {}},
        "doNotStore": true,
        "spanAnnotations": false,
    });
    assert_eq!(body, expected);

    // RealToxicityPrompts' stored form, with the whole text.
    let stored = place.path("cache/scores/perspective.jsonl");
    for row in rows(&stored) {
        let keys: Vec<&String> = row.as_object().expect("an object").keys().collect();
        assert_eq!(keys, ["request_id", "scorer", "text", "response", "error"]);
        assert!(row["error"].is_null() && row["scorer"] == "perspective:TOXICITY");
    }
    // printf one | sha256sum
    let id = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed";
    assert!(rows(&stored).iter().any(|row| row["request_id"] == id && row["text"] == "one"));

    assert_eq!(counts(&place.perspective(&server, "second.jsonl")), (4, 0));
    assert_eq!(place.rows("second.jsonl"), scores);
    assert_eq!(server.requests().len(), 3, "asked again");

    let replay = format!("replay:{}", stored.display());
    assert_eq!(counts(&place.run(&replay, "replayed.jsonl", &[])), (4, 0));
    assert_eq!(place.rows("replayed.jsonl"), scores);
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
    let message = "Attribute TOXICITY does not support request languages: xx";
    let foreign = json!({"error": {"code": 400, "message": message}}).to_string();
    let echo = json!({
        "attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.5}}},
        "key": KEY,
    });
    let server = stand_in(move |text, _| match text {
        "down" => Reply::new("500 Internal Server Error", "oh no"),
        "broken" => Reply::Broken(Vec::new()),
        "garbage" => Reply::new("200 OK", "<html>welcome to the hotel's network</html>"),
        "list" => Reply::json(&json!([])),
        "no score" => Reply::json(&json!({"attributeScores": {}})),
        "beyond" => toxicity(1.5),
        "foreign" => Reply::new("400 Bad Request", &foreign),
        "proxy" => Reply::new("400 Bad Request", "not here"),
        "teapot" => Reply::new("418 I'm a teapot", KEY),
        "echo" => Reply::json(&echo),
        _ => toxicity(0.25),
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
    let scores = place.rows("out.jsonl");
    let times = asked(&server);
    for (text, words, requests) in wrong {
        let why = scores[text].as_ref().expect_err(text);
        assert!(why.contains(words), "{text}: {why}");
        assert_eq!(times[text], requests, "{text}");
    }
    // What the service refused is known. The rest is asked again.
    assert_eq!(counts(&place.perspective(&server, "again.jsonl")), (1, 10));
    assert_eq!(place.rows("again.jsonl")["foreign"], scores["foreign"]);
    let again = asked(&server);
    assert_eq!(["foreign", "good", "garbage", "down"].map(|text| again[text]), [1, 1, 2, 12]);
    let stored = place.path("cache/scores/perspective.jsonl");
    assert_eq!(rows(&stored).len(), 2, "only answers are kept");
    // A replay tells the same of both.
    let replay = format!("replay:{}", stored.display());
    assert_eq!(counts(&place.run(&replay, "replayed.jsonl", &[])), (1, 10));
    let replayed = place.rows("replayed.jsonl");
    assert_eq!(replayed["foreign"], scores["foreign"]);
    assert_eq!(replayed["good"], scores["good"]);

    let nothing = Place::new(&["down", "foreign"]);
    let error = ends(&nothing.perspective(&server, "out.jsonl"), 4);
    assert!(error.contains("no text could be scored"), "{error}");
}

#[test]
fn a_server_that_takes_nobody_ends_the_run() {
    let message = "API key not valid. Please pass a valid API key.";
    let invalid = json!({
        "error": {"code": 400, "message": message, "details": [{"reason": "API_KEY_INVALID"}]},
    });
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
        assert_eq!(bytes(place.path("cache/scores/perspective.jsonl")), b"");
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
    let error = place.fails("perspective", &variables, 4);
    assert!(error.contains("wants no request for 7"), "{error}");
    assert_eq!(tired.requests().len(), 1);
}

#[test]
fn keys_quotas_and_addresses_that_cannot_be() {
    let place = Place::new(&["one"]);
    let key = ("PERSPECTIVE_API_KEY", KEY);
    let endpoint = ("PERSPECTIVE_ENDPOINT", "http://127.0.0.1:9");
    for (scorer, variables, words) in [
        ("perspective", vec![endpoint], ["PERSPECTIVE_API_KEY", "replay:FILE"]),
        (
            "perspective",
            vec![endpoint, ("PERSPECTIVE_API_KEY", " ")],
            ["PERSPECTIVE_API_KEY", "replay:FILE"],
        ),
        (
            "perspective",
            vec![endpoint, ("PERSPECTIVE_API_KEY", "a b")],
            ["PERSPECTIVE_API_KEY", "spaces"],
        ),
        (
            "perspective",
            vec![endpoint, key, ("PERSPECTIVE_API_QPS", "0")],
            ["PERSPECTIVE_API_QPS=0", "0.5"],
        ),
        (
            "perspective",
            vec![endpoint, key, ("PERSPECTIVE_API_QPS", "many")],
            ["PERSPECTIVE_API_QPS=many", "0.5"],
        ),
        (
            "perspective",
            vec![endpoint, key, ("IREPAIR_RETRY_MS", "1s")],
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
        let error = place.fails(scorer, &variables, 3);
        for word in words {
            assert!(error.contains(word), "{scorer} {variables:?}: {word:?} is not in: {error}");
        }
    }
    let blocked = place.path("a-file");
    std::fs::write(&blocked, "").expect("writes");
    let cache = ("IREPAIR_CACHE", blocked.to_str().expect("utf-8"));
    let error = place.fails("perspective", &[key, endpoint, cache], 3);
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
    // One request at a time, so that the first is answered before the second makes the rest wait.
    let variables = [
        ("PERSPECTIVE_API_QPS", "1"),
        ("PERSPECTIVE_API_KEY", KEY),
        ("PERSPECTIVE_ENDPOINT", &server.url),
    ];
    let mut child = place.line("perspective", "out.jsonl", &variables).start();
    until(&mut child, || server.requests().len() >= 2);
    let error = interrupt(child);
    assert!(error.contains("the answers so far are kept"), "{error}");
    assert_eq!(rows(place.path("cache/scores/perspective.jsonl")).len(), 1);
    assert!(!place.path("out.jsonl").exists());
}

/// Scores kept by `perspective` are what `--calibrate` compares with; what the service refused is
/// counted.
#[test]
fn kept_answers_calibrate_another_scorer() {
    let refusal = json!({"error": {"message": "no language"}}).to_string();
    let server = stand_in(move |text, _| match text {
        "?" => Reply::new("400 Bad Request", &refusal),
        _ => toxicity(if text.contains("idiot") { 0.9 } else { 0.1 }),
    });
    let place = Place::new(&["Thank you, friend.", "You stupid fucking idiot.", "?"]);
    assert_eq!(counts(&place.perspective(&server, "out.jsonl")), (2, 1));
    let json = irepair("score --scorer lexicon --json")
        .with("--calibrate", place.path("cache/scores/perspective.jsonl"))
        .json();
    assert_eq!((&json["failed"], &json["calibration"]["texts"]), (&json!(1), &json!(2)));
    assert_eq!(json["calibration"]["auc"], 1.0);
}
