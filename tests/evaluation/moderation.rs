//! The scorer `openai`, against a stand-in of a moderation server.

use serde_json::{Value, json};

use crate::support::command::ends;
use crate::support::scoring::{KEY, Place, counts};
use crate::support::server::{Reply, Server};

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
            _ => json!({
                "flagged": true,
                "categories": {"hate": true},
                "category_scores": {
                    "harassment": 0.01,
                    "harassment/threatening": 0.02,
                    "hate": 0.005,
                    "hate/threatening": score(text),
                    "self-harm": 0.97,
                    "sexual": 0.98,
                    "violence": 0.99,
                },
            }),
        };
        if texts.contains(&"too long") {
            let error = json!({"error": {"message": "input is too long"}});
            return Reply::new("400 Bad Request", error.to_string());
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
    // Known answers: nothing is asked. Another model's answers are its own, and a server of one's
    // own may want no key.
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
    let error = place.fails("openai", &[base], 4);
    assert!(error.contains("no \"results\" for 2 texts"), "{error}");
}
