//! Data sets of the hub by name, against a stand-in of the hub on this machine: the branch of
//! Parquet files, splits, the cache, offline, errors.

use std::collections::BTreeMap;

use serde_json::json;

use crate::support::command::{CommandLine, irepair};
use crate::support::files::{Folder, bytes};
use crate::support::golden;
use crate::support::repaired::record;
use crate::support::server::{Reply, Request, Server};

const COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";
const BRANCH: &str = "refs%2Fconvert%2Fparquet";

/// Serves the Parquet branch of `org/rows`; the file called `broken` can't be had.
fn hub(files: BTreeMap<&'static str, Vec<u8>>, broken: &'static str) -> Server {
    Server::start(move |request: &Request| {
        let path = request.path.as_str();
        if path == format!("/api/datasets/org/rows/revision/{BRANCH}") {
            let names: Vec<_> = files.keys().map(|n| json!({ "rfilename": n })).collect();
            return Reply::json(&json!({"sha": COMMIT, "siblings": names}));
        }
        let name = path.strip_prefix(&format!("/datasets/org/rows/resolve/{BRANCH}/"));
        match name.filter(|name| *name != broken).and_then(|name| files.get(name)) {
            Some(bytes) => {
                let tag = name.unwrap_or_default().replace(['.', '/'], "-");
                Reply::hub_file(request, bytes, &tag, COMMIT)
            }
            None => Reply::new("404 Not Found", "none"),
        }
    })
}

fn parquet(name: &str) -> Vec<u8> {
    bytes(golden::path("rows").join(name))
}

/// Two shards of training rows, and other rows to test on.
fn files() -> BTreeMap<&'static str, Vec<u8>> {
    BTreeMap::from([
        (".gitattributes", Vec::new()),
        ("default/train/0000.parquet", parquet("zstd.parquet")),
        ("default/train/0001.parquet", parquet("binary.parquet")),
        ("default/test/0000.parquet", parquet("gzip.parquet")),
    ])
}

fn with_hub(line: CommandLine, home: &Folder, endpoint: &str) -> CommandLine {
    let line = ["HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"]
        .iter()
        .fold(line, |line, name| line.env_remove(name));
    line.env("HF_HOME", home.root()).env("HF_ENDPOINT", endpoint)
}

fn sensitivity(data: &str) -> CommandLine {
    irepair("sensitivity --json").with("--model", golden::path("gpt2")).with("--data", data)
}

fn numbers(names: &[&str]) -> String {
    let folder = Folder::new();
    for (index, name) in names.iter().enumerate() {
        folder.write(&format!("rows/{index}.parquet"), parquet(name));
    }
    sensitivity(&folder.path("rows").display().to_string()).ok()
}

#[test]
fn a_split_is_downloaded_once_and_then_served_from_the_cache() {
    let (hub, home) = (hub(files(), ""), Folder::new());
    let on = |data: &str| with_hub(sensitivity(data), &home, &hub.url);
    let want = numbers(&["zstd.parquet", "binary.parquet"]);
    assert_eq!(on("org/rows").ok(), want, "train, where none is named");
    let said = on("org/rows").warns();
    assert!(said.contains("the split default/train is read; it has: org/rows:default/"), "{said}");
    assert!(said.contains(&format!("data: org/rows:default/train at commit {COMMIT}")), "{said}");
    assert_eq!(on("org/rows:train").ok(), want);
    assert_eq!(on("org/rows:default/train").ok(), want);
    // Offline no request is made.
    let seen = hub.requests().len();
    assert_eq!(on("org/rows:train").env("HF_HUB_OFFLINE", "1").ok(), want);
    let cache = home.path("hub").display().to_string();
    let words = ["the split \"test\" of the data set org/rows is not in the cache", cache.as_str()];
    on("org/rows:test").env("HF_HUB_OFFLINE", "1").fails(5, &words);
    on("org/rows:test").env("HF_DATASETS_OFFLINE", "1").fails(5, &["HF_DATASETS_OFFLINE is set"]);
    assert_eq!(hub.requests().len(), seen, "a socket was opened offline");
    assert_eq!(on("org/rows:test").ok(), numbers(&["gzip.parquet"]));
    // A repair writes down what it learned from.
    let repaired = home.path("repaired");
    let line = irepair("repair -q --method dapt --max-steps 1 --batch-size 1 --valid-size 0");
    let line = line.with("--model", golden::path("gpt2")).and("--data org/rows --eval-steps 0");
    let line = line.and("--fail-on nothing").with("--out", &repaired);
    with_hub(line, &home, &hub.url).ok();
    assert_eq!(record(&repaired).data.commit.as_deref(), Some(COMMIT));
    let layout = home.path("hub/datasets--org--rows");
    assert!(layout.join("refs/refs/convert/parquet").is_file());
    assert!(layout.join(format!("snapshots/{COMMIT}/default/test/0000.parquet")).is_file());
}

#[test]
fn what_can_not_be_had_is_said() {
    let (whole, home) = (hub(files(), ""), Folder::new());
    let on = |data: &str| with_hub(sensitivity(data), &home, &whole.url);
    on("org/rows:valid").fails(3, &["org/rows has no split \"valid\"", "org/rows:default/test"]);
    on("org/other").fails(5, &["org/other", "404", "neither a file or folder here", "hf download"]);
    let offline = on("org/rows").env("HF_HUB_OFFLINE", "1");
    offline.fails(5, &["\"train\" of the data set org/rows", "looked in", "HF_HUB_OFFLINE"]);
    on("rows/that/are/not.jsonl").fails(3, &["not.jsonl", "ORG/NAME:SPLIT"]);
    // The second file of the split came, the first did not: offline they are no split.
    let broken = hub(files(), "default/train/0000.parquet");
    let begun = Folder::new();
    with_hub(sensitivity("org/rows"), &begun, &broken.url).fails(5, &["0000.parquet", "404"]);
    with_hub(sensitivity("org/rows"), &begun, &broken.url)
        .env("HF_HUB_OFFLINE", "1")
        .fails(5, &["org/rows", "is not in the cache"]);
    let refs = begun.path("hub/datasets--org--rows/refs/refs/convert");
    std::fs::create_dir_all(&refs).expect("folder");
    std::fs::write(refs.join("parquet"), COMMIT).expect("a ref");
    with_hub(sensitivity("org/rows"), &begun, &broken.url)
        .env("HF_HUB_OFFLINE", "1")
        .fails(5, &["a part of default/train of the data set org/rows is not in the cache"]);
}

/// Every command that reads rows takes such names.
#[test]
fn prompts_and_normal_texts_come_from_the_hub() {
    let (hub, home) = (hub(files(), ""), Folder::new());
    let model = golden::path("gpt2");
    let out = |name: &str| home.path(name);
    let line = irepair("generate -q --greedy --max-new-tokens 2 --prompts org/rows:test")
        .with("--model", &model)
        .with("--out", out("texts.jsonl"));
    with_hub(line, &home, &hub.url).ok();
    assert_eq!(home.rows("texts.jsonl").len(), 8);
    let line = irepair("repair -q --max-steps 1 --batch-size 2 --data org/rows --normal org/rows")
        .and("--eval-prompts org/rows:test")
        .with("--model", &model)
        .with("--out", out("repaired"));
    with_hub(line, &home, &hub.url).ok();
    assert_eq!(home.rows("repaired/irepair/samples.jsonl").len(), 8);
}
