//! Hub ids, against a stand-in of the hub on this machine: download, cache, revision, token,
//! offline, errors.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use crate::support::command::{CommandLine, irepair};
use crate::support::files::{Folder, bytes, edit_json, names, read};
use crate::support::golden;
use crate::support::server::{Reply, Request, Server};

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
        for inside in names(folder) {
            let path = folder.join(&inside);
            let name = inside.to_string_lossy().into_owned();
            if path.is_file() && !name.starts_with("expected") {
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
        let names: Vec<_> = files.keys().map(|n| json!({ "rfilename": n })).collect();
        return Reply::json(&json!({"sha": COMMIT, "siblings": names}));
    }
    let Some(bytes) = file.and_then(|f| files.get(f)) else {
        return Reply::new("404 Not Found", "none");
    };
    let tag = file.unwrap_or_default().replace(['.', '/'], "-");
    Reply::hub_file(request, bytes, &tag, COMMIT)
}

/// A command that knows nothing of the hub but what these variables say.
fn with_hub(line: CommandLine, variables: &[(&str, &str)]) -> CommandLine {
    [
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_TOKEN",
        "HF_TOKEN_PATH",
        "HF_ENDPOINT",
        "HF_HUB_OFFLINE",
        "XDG_CACHE_HOME",
    ]
    .iter()
    .fold(line, |line, name| line.env_remove(name))
    .envs(variables)
}

fn sensitivity(model: impl AsRef<Path>, variables: &[(&str, &str)]) -> CommandLine {
    let line = irepair("sensitivity --json")
        .with("--model", model.as_ref())
        .with("--data", golden::path("pairs.jsonl"));
    with_hub(line, variables)
}

#[test]
fn a_hub_model_is_downloaded_once_and_then_served_from_the_cache() {
    for name in ["gpt2", "gpt2-odd"] {
        let model = golden::path(name);
        let hub = Hub::start(&model, Behaviour::Open);
        let folder = Folder::new();
        let home = ("HF_HOME", folder.root().to_str().expect("utf-8"));
        let online = sensitivity("org/tiny", &[home, ("HF_ENDPOINT", hub.endpoint())]);
        let first = online.ok();
        let local = sensitivity(&model, &[home]).ok();
        assert_eq!(first, local, "the numbers of the folder itself");
        let asked = hub.requests();
        let weights =
            |asked: &[String]| asked.iter().filter(|r| r.contains(".safetensors ")).count();
        assert!(weights(&asked) >= 2, "{asked:?}");
        online.ok();
        assert_eq!(weights(&hub.requests()), weights(&asked), "downloaded again");
        let layout = folder.path("hub/models--org--tiny");
        assert_eq!(read(layout.join("refs/main")), COMMIT);
        assert!(layout.join("snapshots").join(COMMIT).join("config.json").exists());
        // Offline: the same numbers and no request at all, by branch, and by commit.
        let seen = hub.requests().len();
        let offline = [home, ("HF_ENDPOINT", hub.endpoint()), ("HF_HUB_OFFLINE", "1")];
        assert_eq!(sensitivity("org/tiny", &offline).ok(), local);
        assert_eq!(sensitivity(format!("org/tiny@{COMMIT}"), &offline).ok(), local);
        assert_eq!(hub.requests().len(), seen, "a socket was opened offline");
    }
}

#[test]
fn cache_revision_and_token_come_from_the_environment() {
    let hub = Hub::start(&golden::path("gpt2"), Behaviour::Gated);
    let folder = Folder::new();
    let cache = folder.path("elsewhere");
    let base = [
        ("HF_HOME", folder.root().to_str().expect("utf-8")),
        ("HF_HUB_CACHE", cache.to_str().expect("utf-8")),
        ("HF_ENDPOINT", hub.endpoint()),
    ];
    sensitivity("org/tiny", &base).fails(5, &["org/tiny@main", "HF_TOKEN"]);
    sensitivity("org/tiny@v2", &base).env("HF_TOKEN", "hf_secret").ok();
    assert!(hub.requests().iter().any(|r| r.contains("/revision/v2")), "{:?}", hub.requests());
    assert!(cache.join("models--org--tiny/refs/v2").exists());
    let token = folder.write("my-token", "hf_secret\n");
    sensitivity("org/tiny", &base).env("HF_TOKEN_PATH", token).ok();
}

#[test]
fn what_goes_wrong_is_said_with_exit_code_5() {
    let folder = Folder::new();
    let home = folder.root().to_str().expect("utf-8");
    let of = |model: &str, endpoint: &str| {
        sensitivity(model, &[("HF_HOME", home), ("HF_ENDPOINT", endpoint)])
    };
    sensitivity("org/tiny", &[("HF_HOME", home), ("HF_HUB_OFFLINE", "ON")])
        .fails(5, &["org/tiny@main", "not in the cache", home]);
    let hub = Hub::start(&golden::path("gpt2"), Behaviour::Open);
    of("org/other", hub.endpoint()).fails(5, &["org/other", "404"]);
    let hub = Hub::start(&golden::path("gpt2"), Behaviour::Failing);
    of("org/tiny", hub.endpoint()).fails(5, &["500"]);
    of("org/tiny", "http://127.0.0.1:9").fails(5, &["org/tiny"]);
    let hub = Hub::start(&golden::path("gpt2"), Behaviour::NoSafetensors);
    of("org/tiny", hub.endpoint()).fails(3, &["pytorch_model.bin", "convert"]);
}

/// A classifier comes from the hub as models do, and its name says which commit.
#[test]
fn a_classifier_of_the_hub_bears_its_commit() {
    let hub = Hub::start(&golden::path("classifiers/roberta"), Behaviour::Open);
    let folder = Folder::new();
    let home = ("HF_HOME", folder.root().to_str().expect("utf-8"));
    let texts = folder.write("texts.txt", "Thank you.\n");
    let score = |variables: &[(&str, &str)]| {
        let line = irepair("score --scorer classifier:org/tiny --json --overwrite")
            .arg(&texts)
            .with("--out", folder.path("scored.jsonl"));
        with_hub(line, variables)
    };
    let offline = score(&[home, ("HF_HUB_OFFLINE", "1")]);
    offline.fails(5, &["org/tiny@main", "not in the cache"]);
    let online = score(&[home, ("HF_ENDPOINT", hub.endpoint())]).ok();
    assert!(online.contains(&format!("classifier:org/tiny@{COMMIT}#toxic")), "{online}");
    assert_eq!(offline.ok(), online);
    folder.remove(&format!("hub/models--org--tiny/snapshots/{COMMIT}/tokenizer.json"));
    offline.fails(5, &["tokenizer.json or vocab.txt or vocab.json of org/tiny@main"]);
    let hub = Hub::start(&golden::path("classifiers/roberta"), Behaviour::NoSafetensors);
    let other = Folder::new();
    let home = ("HF_HOME", other.root().to_str().expect("utf-8"));
    score(&[home, ("HF_ENDPOINT", hub.endpoint())])
        .fails(3, &["pytorch_model.bin", "convert", "org/tiny@refs/pr/N"]);
}

/// Shards of the hub that lie in a folder, and shards without an index.
#[test]
fn shards_of_the_hub_wherever_they_lie() {
    let want = sensitivity(golden::path("gpt2-odd"), &[]).env("HF_HOME", "none").ok();
    for (inside, has_index) in [("weights/", true), ("", false)] {
        let folder = Folder::new();
        let index = "model.safetensors.index.json";
        for name in [
            "config.json",
            "tokenizer.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            index,
        ] {
            let place = if name.starts_with("model-") { inside } else { "" };
            let file = bytes(golden::path("gpt2-odd").join(name));
            folder.write(&format!("repo/{place}{name}"), file);
        }
        match has_index {
            true => edit_json(folder.path("repo").join(index), |index| {
                for file in index["weight_map"].as_object_mut().expect("a map").values_mut() {
                    *file = format!("weights/{}", file.as_str().expect("a name")).into();
                }
            }),
            false => folder.remove(&format!("repo/{index}")),
        }
        let hub = Hub::start(&folder.path("repo"), Behaviour::Open);
        let home = ("HF_HOME", folder.root().to_str().expect("utf-8"));
        let online = [home, ("HF_ENDPOINT", hub.endpoint())];
        assert_eq!(sensitivity("org/tiny", &online).ok(), want, "{inside}");
        let offline = [home, ("HF_HUB_OFFLINE", "1")];
        assert_eq!(sensitivity("org/tiny", &offline).ok(), want, "{inside}");
    }
}

#[test]
fn an_id_with_a_typo_and_what_the_cache_has() {
    let folder = Folder::new();
    let home = ("HF_HOME", folder.root().to_str().expect("utf-8"));
    sensitivity("gpt2-larg", &[home]).fails(3, &["no hub id", "did you mean \"gpt2-large\"?"]);
    sensitivity("dmo", &[home]).fails(3, &["did you mean \"demo\"?"]);
    let hub = Hub::start(&golden::path("gpt2"), Behaviour::Open);
    let online = [home, ("HF_ENDPOINT", hub.endpoint())];
    sensitivity("openai-community/gpt2-lrge", &online)
        .fails(5, &["404", "did you mean openai-community/gpt2-large?"]);
    let offline = [home, ("HF_HUB_OFFLINE", "1")];
    sensitivity("org/tniy", &offline).fails(5, &["HF_HUB_OFFLINE", "no models are in it"]);
    sensitivity("org/tiny", &online).ok();
    sensitivity("org/tniy", &offline)
        .fails(5, &["HF_HUB_OFFLINE", "did you mean \"org/tiny\"?", "in it: org/tiny"]);
    // No network, and a cache that has it.
    sensitivity("org/other", &[home, ("HF_ENDPOINT", "http://127.0.0.1:9")])
        .fails(5, &["it is not in the cache", "either", "in it: org/tiny"]);
    sensitivity("org/tiny", &[home, ("HF_ENDPOINT", "http://127.0.0.1:9")])
        .fails(5, &["what is in the cache is used with HF_HUB_OFFLINE=1"]);
}

#[test]
fn an_adapter_of_the_hub_is_named() {
    let folder = Folder::new();
    folder.write("repo/adapter_config.json", "{\"base_model_name_or_path\": \"org/base\"}");
    folder.write("repo/adapter_model.safetensors", "weights");
    let hub = Hub::start(&folder.path("repo"), Behaviour::Open);
    let home = ("HF_HOME", folder.root().to_str().expect("utf-8"));
    sensitivity("org/tiny", &[home, ("HF_ENDPOINT", hub.endpoint())]).fails(
        3,
        &[
            "org/tiny@main is an adapter of peft (adapter_config.json) to org/base",
            "AutoPeftModelForCausalLM.from_pretrained(\"org/",
        ],
    );
}
