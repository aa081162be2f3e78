//! `score` with a scorer that asks a server, against a stand-in of the server.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;

use serde_json::{Value, json};

use super::command::{CommandLine, ends, irepair, ok, stderr};
use super::files::{Folder, bytes, names, rows};
use super::server::Server;

pub const KEY: &str = "AIza-not-to-be-seen";

/// A folder with texts, the cache and what comes out.
pub struct Place(Folder);

impl Place {
    pub fn new(texts: &[&str]) -> Self {
        let folder = Folder::new();
        let texts: Vec<Value> = texts.iter().map(|text| json!({ "text": text })).collect();
        folder.write_rows("texts.jsonl", &texts);
        Self(folder)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    /// `irepair score` of the texts to a file of this name.
    pub fn line(&self, scorer: &str, out: &str, variables: &[(&str, &str)]) -> CommandLine {
        ["PERSPECTIVE_API_KEY", "PERSPECTIVE_ENDPOINT", "OPENAI_API_KEY", "OPENAI_BASE_URL"]
            .iter()
            .fold(irepair("score --json"), |line, name| line.env_remove(name))
            .with("--scorer", scorer)
            .arg(self.path("texts.jsonl"))
            .with("--out", self.path(out))
            .env("NO_PROXY", "127.0.0.1")
            .env("IREPAIR_CACHE", self.path("cache"))
            .env("IREPAIR_RETRY_MS", "1")
            .env("PERSPECTIVE_API_QPS", "1000")
            .envs(variables)
    }

    #[track_caller]
    pub fn run(&self, scorer: &str, out: &str, variables: &[(&str, &str)]) -> Output {
        let output = self.line(scorer, out, variables).run();
        self.no_key(&output);
        output
    }

    #[track_caller]
    pub fn perspective(&self, server: &Server, out: &str) -> Output {
        let variables = [("PERSPECTIVE_API_KEY", KEY), ("PERSPECTIVE_ENDPOINT", &*server.url)];
        self.run("perspective", out, &variables)
    }

    /// What a run says that ends with this exit code.
    #[track_caller]
    pub fn fails(&self, scorer: &str, variables: &[(&str, &str)], code: i32) -> String {
        ends(&self.run(scorer, "out.jsonl", variables), code)
    }

    /// The key is in nothing that was printed or written.
    #[track_caller]
    fn no_key(&self, output: &Output) {
        let seen = |bytes: &[u8]| bytes.windows(KEY.len()).any(|w| w == KEY.as_bytes());
        assert!(!seen(&output.stdout) && !seen(&output.stderr), "{}", stderr(output));
        for name in names(self.0.root()) {
            let path = self.0.path(&name);
            assert!(path.is_dir() || !seen(&bytes(&path)), "{}", name.display());
        }
    }

    /// The texts' scores, or why they failed.
    pub fn rows(&self, out: &str) -> BTreeMap<String, Result<f64, String>> {
        let row = |row: Value| {
            let text = row["text"].as_str().expect("text").to_owned();
            assert!(row.get("score").is_some() != row.get("failed").is_some(), "{row}");
            let failed = || row["failed"].as_str().expect("why").to_owned();
            (text, row["score"].as_f64().ok_or_else(failed))
        };
        rows(self.path(out)).into_iter().map(row).collect()
    }
}

/// `{"scored": …, "failed": …}` of a run that went well.
#[track_caller]
pub fn counts(output: &Output) -> (u64, u64) {
    let json: Value = serde_json::from_str(&ok(output)).expect("JSON");
    (json["scored"].as_u64().expect("scored"), json["failed"].as_u64().expect("failed"))
}
