//! A hub that can't be trusted, against a stand-in on this machine: it names paths outside the
//! cache, sends the request on to another server, sends less or more than it promised, or says
//! nothing.

use serde_json::json;

use crate::support::command::{CommandLine, irepair};
use crate::support::files::{Folder, bytes, names, read};
use crate::support::golden;
use crate::support::server::{Reply, Request, Server};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The files of a small model, as the hub names them.
const FILES: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

fn file(name: &str) -> Vec<u8> {
    bytes(golden::path("gpt2").join(name))
}

/// What an honest hub answers.
fn honest(request: &Request) -> Reply {
    if request.path.starts_with("/api/") {
        let files = FILES.map(|name| json!({ "rfilename": name }));
        return Reply::json(&json!({ "sha": COMMIT, "siblings": files }));
    }
    let name = request.path.rsplit('/').next().expect("a name");
    sent(request, &file(name), &format!("\"{}\"", name.replace('.', "-")))
}

/// The bytes that a request asks for.
fn sent(request: &Request, all: &[u8], tag: &str) -> Reply {
    let (from, to) = range(request);
    let to = to.map_or(all.len(), |to| to + 1);
    Reply::new("206 Partial Content", &all[from..to])
        .with("Content-Range", &format!("bytes {from}-{}/{}", to - 1, all.len()))
        .with("ETag", tag)
        .with("X-Repo-Commit", COMMIT)
}

/// The range that a request asks for: where it begins, and where it ends, if it says so.
fn range(request: &Request) -> (usize, Option<usize>) {
    let range = request.header("range").unwrap_or("bytes=0-").trim_start_matches("bytes=");
    let (from, to) = range.split_once('-').expect("a range");
    (from.parse().expect("a number"), to.parse().ok())
}

/// Whether a request is for the bytes of this file, and not only for what it is.
fn wants(request: &Request, name: &str) -> bool {
    request.path.ends_with(name) && range(request).1.is_none()
}

/// A command that asks this hub, and whose cache lies deep in the folder.
fn ask(folder: &Folder, endpoint: &str) -> CommandLine {
    irepair("sensitivity --json --model org/tiny")
        .with("--data", golden::path("pairs.jsonl"))
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("HF_HUB_CACHE")
        .env("HF_HOME", folder.path("a/b/home"))
        .env("HF_ENDPOINT", endpoint)
        .env("HF_TOKEN", "hf_secret")
}

/// Nothing is written outside the cache, whatever the hub says that its commits, tags and files are
/// called.
#[test]
fn a_hub_can_not_choose_a_path() {
    let outside = Folder::new();
    let absolute = outside.path("evil").display().to_string();
    for evil in ["../../../../evil", "..", "", &absolute, "0123", "main"] {
        for what in ["sha", "file", "tag", "commit"] {
            // These two are names that may be.
            if matches!((what, evil), ("tag", "0123" | "main") | ("file", "0123" | "main")) {
                continue;
            }
            let (folder, evil) = (Folder::new(), evil.to_owned());
            let shown = format!("{evil:?}");
            let hub = Server::start(move |request| {
                if request.path.starts_with("/api/") && matches!(what, "sha" | "file") {
                    let sha = if what == "sha" { &evil } else { COMMIT };
                    let mut files = FILES.map(|name| json!({ "rfilename": name })).to_vec();
                    if what == "file" {
                        files.push(json!({ "rfilename": format!("{evil}/x.json") }));
                    }
                    return Reply::json(&json!({ "sha": sha, "siblings": files }));
                }
                let tag = if what == "tag" { format!("\"{evil}\"") } else { "\"a\"".into() };
                match honest(request) {
                    answer @ Reply::Answer { .. } if request.path.starts_with("/api/") => answer,
                    _ if what == "commit" => Reply::new("206 Partial Content", "x")
                        .with("Content-Range", "bytes 0-0/1")
                        .with("ETag", "\"a\"")
                        .with("X-Repo-Commit", &evil),
                    _ => sent(request, &file("config.json"), &tag),
                }
            });
            let said = ask(&folder, &hub.url).fails(5, &["of org/tiny@main from http://"]);
            assert!(what == "file" || said.contains(&shown), "{what} {shown}: {said}");
            let written = names(folder.root());
            assert!(written.iter().all(|path| !path.ends_with("evil")), "{written:?}");
            assert!(
                written.iter().all(|path| {
                    "a/b/home/hub/models--org--tiny".starts_with(path.to_str().expect("utf-8"))
                        || path.starts_with("a/b/home/hub/models--org--tiny")
                }),
                "{what} {shown}: {written:?}"
            );
            assert_eq!(outside.count(), 0, "{what} {shown}");
        }
    }
}

/// The token is the hub's alone: another host, or another port, gets the request without it.
#[test]
fn a_redirect_takes_no_token_along() {
    let other = Server::start(|request| match request.path.as_str() {
        path if path.starts_with("/api/") => honest(request),
        _ => sent(request, &file("model.safetensors"), "\"other\""),
    });
    for host in ["127.0.0.1", "localhost"] {
        for all in [true, false] {
            let address = other.url.replace("127.0.0.1", host);
            let before = other.requests().len();
            let hub = Server::start(move |request| {
                if all || request.path.ends_with(".safetensors") {
                    return Reply::new("302 Found", "")
                        .with("Location", &format!("{address}{}", request.path))
                        .with("X-Linked-ETag", "\"weights\"")
                        .with("X-Repo-Commit", COMMIT);
                }
                honest(request)
            });
            let folder = Folder::new();
            let line = ask(&folder, &hub.url);
            // Where all comes from the other server, it has only weights to give.
            if all {
                drop(line.run())
            } else {
                drop(line.ok())
            }
            let asked = other.requests();
            assert!(asked.len() > before, "{host}");
            for request in &asked[before..] {
                assert_eq!(request.header("authorization"), None, "{host} {}", request.path);
            }
            let own = hub.requests();
            assert!(own.iter().all(|r| r.header("authorization") == Some("Bearer hf_secret")));
        }
    }
}

/// An address on the same server is the hub itself, as with renamed repositories.
#[test]
fn the_hub_itself_gets_the_token_after_a_redirect() {
    let hub = Server::start(|request| match request.path.strip_prefix("/old") {
        None if request.path.ends_with(".json") && !request.path.contains("/new") => {
            Reply::new("307 Temporary Redirect", "")
                .with("Location", &format!("/new{}", request.path))
        }
        _ => honest(request),
    });
    ask(&Folder::new(), &hub.url).ok();
    let asked = hub.requests();
    assert!(asked.iter().any(|r| r.path.starts_with("/new")), "{asked:?}");
    assert!(asked.iter().all(|r| r.header("authorization") == Some("Bearer hf_secret")));
}

/// Redirects in a circle, and to what is no web address.
#[test]
fn redirects_that_lead_nowhere_end() {
    for (location, words) in
        [("/a", "more than 10 redirects"), ("file:///etc/passwd", "no address")]
    {
        let hub = Server::start(move |_| Reply::new("302 Found", "").with("Location", location));
        ask(&Folder::new(), &hub.url).fails(5, &["the list of files of org/tiny@main", words]);
    }
}

/// What came too short is not kept as a whole file: it goes on where it ended.
#[test]
fn a_short_answer_is_no_file() {
    let folder = Folder::new();
    let short = |request: &Request| {
        let all = file("config.json");
        let (from, _) = range(request);
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\nContent-Length: 7\r\nETag: \"c\"\r\n\
             Content-Range: bytes {from}-{}/{}\r\nX-Repo-Commit: {COMMIT}\r\n\r\n",
            from + 6,
            all.len()
        );
        Reply::Broken([head.as_bytes(), &all[from..from + 7]].concat())
    };
    let hub =
        Server::start(
            move |request| {
                if wants(request, "config.json") { short(request) } else { honest(request) }
            },
        );
    ask(&folder, &hub.url).fails(5, &["config.json of org/tiny@main", "ended after 21 of "]);
    let snapshot = folder.path(format!("a/b/home/hub/models--org--tiny/snapshots/{COMMIT}"));
    assert!(!snapshot.join("config.json").exists());
    let hub = Server::start(honest);
    ask(&folder, &hub.url).ok();
    assert_eq!(read(snapshot.join("config.json")).into_bytes(), file("config.json"));
    let resumed = hub.requests().into_iter().find(|r| wants(r, "config.json")).expect("asked");
    assert_eq!(range(&resumed).0, 21, "what came before was thrown away");
}

#[test]
fn a_long_answer_and_wrong_bytes_are_no_file() {
    let folder = Folder::new();
    let hub = Server::start(|request| {
        let longer = [file("config.json"), b"{}".to_vec()].concat();
        match wants(request, "config.json") {
            true => sent(request, &longer, "\"c\""),
            false => honest(request),
        }
    });
    ask(&folder, &hub.url).fails(5, &["config.json of org/tiny@main", "more than the "]);
    let sha256 = "0123456789abcdef".repeat(4);
    let hub = Server::start(move |request| match honest(request) {
        answer if request.path.ends_with("config.json") => answer.with("X-Linked-ETag", &sha256),
        answer => answer,
    });
    ask(&folder, &hub.url).fails(5, &["config.json of org/tiny@main", "SHA-256 0123456789abcdef"]);
    let kept = names(folder.root());
    assert!(!kept.iter().any(|path| path.ends_with(format!("{COMMIT}/config.json"))), "{kept:?}");
}

/// A hub that takes the connection and says nothing, or stops in the middle.
#[test]
fn a_hub_that_says_nothing_ends_the_command() {
    for at in ["/api/", "first", "bytes"] {
        let hub = Server::start(move |request| {
            let head = "HTTP/1.1 206 Partial Content\r\nContent-Length: 99\r\n\r\n{";
            match at {
                "/api/" if request.path.starts_with(at) => Reply::Held(Vec::new()),
                "first" if wants(request, "config.json") => Reply::Held(Vec::new()),
                "bytes" if wants(request, "config.json") => Reply::Held(head.into()),
                _ => honest(request),
            }
        });
        // The other tests leave a busy machine the usual time.
        let line = ask(&Folder::new(), &hub.url)
            .env("HF_HUB_DOWNLOAD_TIMEOUT", "1")
            .env("HF_HUB_ETAG_TIMEOUT", "1");
        let said = line.fails(5, &["org/tiny@main", "timeout"]);
        assert!(said.contains("HF_HUB_DOWNLOAD_TIMEOUT"), "{said}");
    }
    let line = irepair("sensitivity --model org/tiny").env_remove("HF_HUB_OFFLINE");
    for name in ["HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"] {
        for value in ["soon", "0", "-1", "nan", "inf"] {
            line.clone()
                .with("--data", golden::path("pairs.jsonl"))
                .env(name, value)
                .fails(3, &[&format!("{name}={value}"), "seconds"]);
        }
    }
}

/// A user name and a password in the address are sent, and shown to nobody.
#[test]
fn what_is_secret_in_an_address_is_not_shown() {
    let hub = Server::start(|_| Reply::new("500 Internal Server Error", "no"));
    let endpoint = hub.url.replace("http://", "http://me:pa55word@");
    let said = ask(&Folder::new(), &endpoint).env_remove("HF_TOKEN").fails(5, &[&hub.url]);
    assert!(!said.contains("pa55word"), "{said}");
    let sent = hub.requests();
    assert!(sent[0].header("authorization").is_some_and(|h| h.starts_with("Basic ")));
    let doctor = irepair("doctor").env("HF_ENDPOINT", &endpoint).ok();
    assert!(doctor.contains(&hub.url) && !doctor.contains("pa55word"), "{doctor}");
    for wrong in ["http://me:pa55word@", "me:pa55word@hub.org", "http://me:pa55 word@hub.org:x"] {
        let said = ask(&Folder::new(), wrong).fails(3, &["HF_ENDPOINT"]);
        assert!(!said.contains("pa55"), "{said}");
    }
    let said = irepair("sensitivity --model https://me:pa55word@hub.org/org/name")
        .with("--data", golden::path("pairs.jsonl"))
        .fails(3, &["no such folder"]);
    assert!(!said.contains("pa55word"), "{said}");
}
