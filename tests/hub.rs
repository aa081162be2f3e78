//! Hub ids against a local HTTP stand-in of the hub: download, cache, revision, token, offline, errors.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use crate::golden;
use crate::server::{Reply, Request, Server};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves the files of one repository, `org/tiny` at `main`, `v2` and the commit.
struct Hub(Server);

#[derive(Clone, Copy, PartialEq)]
enum Behaviour {
    Open,
    Gated,
    Failing,
    NoSafetensors,
}

impl Hub {
    fn start(folder: &Path, behaviour: Behaviour) -> Self {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(folder).expect("folder") {
            let path = entry.expect("entry").path();
            let name = path.file_name().expect("name").to_string_lossy().into_owned();
            if !name.starts_with("expected") {
                files.insert(name, std::fs::read(path).expect("file"));
            }
        }
        if behaviour == Behaviour::NoSafetensors {
            files.remove("model.safetensors");
            files.insert("pytorch_model.bin".into(), b"pickle".to_vec());
        }
        Self(Server::start(move |request| serve(request, &files, behaviour)))
    }

    fn endpoint(&self) -> &str {
        &self.0.url
    }

    /// Paths and tokens.
    fn requests(&self) -> Vec<String> {
        let line =
            |r: &Request| format!("{} {}", r.path, r.header("authorization").unwrap_or_default());
        self.0.requests().iter().map(line).collect()
    }
}

fn serve(request: &Request, files: &BTreeMap<String, Vec<u8>>, behaviour: Behaviour) -> Reply {
    let refuse = match behaviour {
        Behaviour::Failing => Some("500 Internal Server Error"),
        Behaviour::Gated if request.header("authorization") != Some("Bearer hf_secret") => {
            Some("401 Unauthorized")
        }
        _ => None,
    };
    let path = request.path.as_str();
    let known = ["main", "v2", COMMIT];
    let info = known.iter().any(|r| path == format!("/api/models/org/tiny/revision/{r}"));
    let file = known.iter().find_map(|r| path.strip_prefix(&format!("/org/tiny/resolve/{r}/")));
    if let Some(status) = refuse {
        return Reply::new(status, "no");
    }
    if info {
        let names: Vec<_> = files.keys().map(|n| serde_json::json!({ "rfilename": n })).collect();
        return Reply::json(&serde_json::json!({"sha": COMMIT, "siblings": names}));
    }
    let Some(bytes) = file.and_then(|f| files.get(f)) else {
        return Reply::new("404 Not Found", "none");
    };
    let range = request.header("range").unwrap_or_default().trim_start_matches("bytes=");
    let (from, to) = range.split_once('-').unwrap_or(("0", ""));
    let from: usize = from.parse().unwrap_or(0);
    let to = to.parse::<usize>().map_or(bytes.len(), |t| t + 1).min(bytes.len());
    Reply::new("206 Partial Content", &bytes[from..to])
        .with("Content-Range", &format!("bytes {from}-{}/{}", to - 1, bytes.len()))
        .with(
            "ETag",
            &format!("\"{}-{}\"", file.unwrap_or_default().replace('.', "-"), bytes.len()),
        )
        .with("X-Repo-Commit", COMMIT)
}

fn sensitivity(model: &str, variables: &[(&str, &str)]) -> Output {
    let pairs = golden::dir().join("pairs.jsonl");
    run(
        &["sensitivity", "--model", model, "--json", "--data", pairs.to_str().expect("utf-8")],
        variables,
    )
}

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_irepair"));
    command.args(arguments);
    for name in [
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "HF_ENDPOINT",
        "HF_HUB_OFFLINE",
        "XDG_CACHE_HOME",
    ] {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied()).output().expect("runs")
}

#[track_caller]
fn ok(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn fails(output: &Output, code: i32, words: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn a_hub_model_is_downloaded_once_and_then_served_from_the_cache() {
    for name in ["gpt2", "gpt2-odd"] {
        let folder = golden::dir().join(name);
        let hub = Hub::start(&folder, Behaviour::Open);
        let home = tempfile::tempdir().expect("home");
        let home = home.path().to_str().expect("utf-8");
        let first =
            ok(&sensitivity("org/tiny", &[("HF_HOME", home), ("HF_ENDPOINT", hub.endpoint())]));
        let local = ok(&sensitivity(folder.to_str().expect("utf-8"), &[("HF_HOME", home)]));
        assert_eq!(first, local, "the numbers of the folder itself");
        let asked = hub.requests();
        let weights =
            |asked: &[String]| asked.iter().filter(|r| r.contains(".safetensors ")).count();
        assert!(weights(&asked) >= 2, "{asked:?}");
        ok(&sensitivity("org/tiny", &[("HF_HOME", home), ("HF_ENDPOINT", hub.endpoint())]));
        assert_eq!(weights(&hub.requests()), weights(&asked), "downloaded again");
        let layout = Path::new(home).join("hub/models--org--tiny");
        assert_eq!(std::fs::read_to_string(layout.join("refs/main")).expect("ref"), COMMIT);
        assert!(layout.join("snapshots").join(COMMIT).join("config.json").exists());
        // Offline: the same numbers and no request at all, by branch, and by commit.
        let seen = hub.requests().len();
        let offline = [("HF_HOME", home), ("HF_ENDPOINT", hub.endpoint()), ("HF_HUB_OFFLINE", "1")];
        assert_eq!(ok(&sensitivity("org/tiny", &offline)), local);
        assert_eq!(ok(&sensitivity(&format!("org/tiny@{COMMIT}"), &offline)), local);
        assert_eq!(hub.requests().len(), seen, "a socket was opened offline");
    }
}

#[test]
fn cache_revision_and_token_come_from_the_environment() {
    let hub = Hub::start(&golden::dir().join("gpt2"), Behaviour::Gated);
    let dir = tempfile::tempdir().expect("dir");
    let cache = dir.path().join("elsewhere");
    let cache = cache.to_str().expect("utf-8");
    let home = dir.path().to_str().expect("utf-8");
    let base = [("HF_HOME", home), ("HF_HUB_CACHE", cache), ("HF_ENDPOINT", hub.endpoint())];
    fails(&sensitivity("org/tiny", &base), 5, &["org/tiny@main", "HF_TOKEN"]);
    ok(&sensitivity("org/tiny@v2", &[&base[..], &[("HF_TOKEN", "hf_secret")]].concat()));
    assert!(hub.requests().iter().any(|r| r.contains("/revision/v2")), "{:?}", hub.requests());
    assert!(Path::new(cache).join("models--org--tiny/refs/v2").exists());
    let file = dir.path().join("my-token");
    std::fs::write(&file, "hf_secret\n").expect("token");
    ok(&sensitivity(
        "org/tiny",
        &[&base[..], &[("HF_TOKEN_PATH", file.to_str().expect("utf-8"))]].concat(),
    ));
}

#[test]
fn what_goes_wrong_is_said_with_exit_code_5() {
    let dir = tempfile::tempdir().expect("dir");
    let home = dir.path().to_str().expect("utf-8");
    let offline = sensitivity("org/tiny", &[("HF_HOME", home), ("HF_HUB_OFFLINE", "ON")]);
    fails(&offline, 5, &["org/tiny@main", "not in the cache", home]);
    let hub = Hub::start(&golden::dir().join("gpt2"), Behaviour::Open);
    let missing = sensitivity("org/other", &[("HF_HOME", home), ("HF_ENDPOINT", hub.endpoint())]);
    fails(&missing, 5, &["org/other", "404"]);
    let hub = Hub::start(&golden::dir().join("gpt2"), Behaviour::Failing);
    fails(
        &sensitivity("org/tiny", &[("HF_HOME", home), ("HF_ENDPOINT", hub.endpoint())]),
        5,
        &["500"],
    );
    let nobody =
        sensitivity("org/tiny", &[("HF_HOME", home), ("HF_ENDPOINT", "http://127.0.0.1:9")]);
    fails(&nobody, 5, &["org/tiny"]);
    let hub = Hub::start(&golden::dir().join("gpt2"), Behaviour::NoSafetensors);
    let pickle = sensitivity("org/tiny", &[("HF_HOME", home), ("HF_ENDPOINT", hub.endpoint())]);
    fails(&pickle, 3, &["pytorch_model.bin", "convert"]);
}

/// A classifier comes from the hub as models do, and its name says which commit.
#[test]
fn a_classifier_of_the_hub_bears_its_commit() {
    let hub = Hub::start(&golden::dir().join("classifiers/roberta"), Behaviour::Open);
    let dir = tempfile::tempdir().expect("dir");
    let home = dir.path().to_str().expect("utf-8");
    let (texts, out) = (dir.path().join("texts.txt"), dir.path().join("scored.jsonl"));
    std::fs::write(&texts, "Thank you.\n").expect("texts");
    let (texts, out) = (texts.to_str().expect("utf-8"), out.to_str().expect("utf-8"));
    let score = |scorer: &str, variables: &[(&str, &str)]| {
        run(&["score", texts, "--scorer", scorer, "--out", out, "--json", "--overwrite"], variables)
    };
    let offline = [("HF_HOME", home), ("HF_HUB_OFFLINE", "1")];
    fails(&score("classifier:org/tiny", &offline), 5, &["org/tiny@main", "not in the cache"]);
    let online =
        ok(&score("classifier:org/tiny", &[("HF_HOME", home), ("HF_ENDPOINT", hub.endpoint())]));
    assert!(online.contains(&format!("classifier:org/tiny@{COMMIT}#toxic")), "{online}");
    assert_eq!(ok(&score("classifier:org/tiny", &offline)), online);
    std::fs::remove_file(
        Path::new(home).join(format!("hub/models--org--tiny/snapshots/{COMMIT}/tokenizer.json")),
    )
    .expect("remove");
    fails(
        &score("classifier:org/tiny", &offline),
        5,
        &["tokenizer.json or vocab.txt or vocab.json of org/tiny@main"],
    );
    let hub = Hub::start(&golden::dir().join("classifiers/roberta"), Behaviour::NoSafetensors);
    let other = tempfile::tempdir().expect("dir");
    let variables =
        [("HF_HOME", other.path().to_str().expect("utf-8")), ("HF_ENDPOINT", hub.endpoint())];
    fails(
        &score("classifier:org/tiny", &variables),
        3,
        &["pytorch_model.bin", "convert", "org/tiny@refs/pr/N"],
    );
}
