//! Files: of the repository, and in temporary folders that a test fills, spoils and reads.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::golden;

/// A path of this repository.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The prompts of the demo.
pub fn demo_prompts() -> PathBuf {
    repository("data/demo/prompts.jsonl")
}

/// A temporary folder, and files in it by their names.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("dir"))
    }

    pub fn root(&self) -> &Path {
        self.0.path()
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file, and makes its folder where there is none.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("dir");
        std::fs::write(&path, bytes).expect(name);
        path
    }

    /// Writes JSON lines.
    pub fn write_rows(&self, name: &str, rows: &[Value]) -> PathBuf {
        self.write(name, rows.iter().map(|row| format!("{row}\n")).collect::<String>())
    }

    /// Twelve of the demo's prompts: measuring on all of them takes seconds.
    pub fn few_prompts(&self) -> PathBuf {
        let prompts = read(demo_prompts());
        let few: Vec<&str> = prompts.lines().take(12).collect();
        self.write("few.jsonl", few.join("\n"))
    }

    pub fn read(&self, name: &str) -> String {
        read(self.path(name))
    }

    pub fn json(&self, name: &str) -> Value {
        json(self.path(name))
    }

    pub fn rows(&self, name: &str) -> Vec<Value> {
        rows(self.path(name))
    }

    pub fn remove(&self, name: &str) {
        let path = self.path(name);
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
            .expect(name);
    }

    /// How many files and folders lie in it.
    pub fn count(&self) -> usize {
        self.0.path().read_dir().expect("folder").count()
    }

    /// A copy of this golden model, to break.
    pub fn model(&self, golden: &str) -> PathBuf {
        for name in [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ] {
            self.write(&format!("model/{name}"), bytes(golden::path(golden).join(name)));
        }
        self.path("model")
    }
}

pub fn bytes(path: impl AsRef<Path>) -> Vec<u8> {
    let path = path.as_ref();
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn read(path: impl AsRef<Path>) -> String {
    String::from_utf8(bytes(path)).expect("utf-8")
}

pub fn json(path: impl AsRef<Path>) -> Value {
    serde_json::from_slice(&bytes(path)).expect("JSON")
}

/// The rows of JSON lines.
pub fn rows(path: impl AsRef<Path>) -> Vec<Value> {
    rows_of(&read(path))
}

pub fn rows_of(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).expect("a row of JSON")).collect()
}

/// Changes a file of JSON.
pub fn edit_json(path: impl AsRef<Path>, change: impl FnOnce(&mut Value)) {
    let mut value = json(&path);
    change(&mut value);
    std::fs::write(path, value.to_string()).expect("writes");
}

/// Everything in a folder, by its name there.
pub fn names(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(inner) = open.pop() {
        for entry in inner.read_dir().expect("folder").flatten() {
            let path = entry.path();
            found.push(path.strip_prefix(folder).expect("in it").to_owned());
            if path.is_dir() {
                open.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Copies a folder to where there is none.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("dir");
    for name in names(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        match from.is_dir() {
            true => std::fs::create_dir_all(to).expect("dir"),
            false => drop(std::fs::copy(from, to).expect("copies")),
        }
    }
}
