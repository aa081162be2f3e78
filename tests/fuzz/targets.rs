//! What the fuzz targets do with bytes that nobody chose. Each gives them to the library as one
//! file of the kind that the target is named after. Whatever the bytes are, the library reads the
//! file or says in a few plain words why it can't.
//!
//! The test `inputs::fuzzed` runs the same targets on the cases in `corpus`.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::Result;
use irepair::checkpoint::Checkpoint;
use irepair::checkpoint::patch::PatchFile;
use irepair::data::{self, FileLine, KeyMap};
use irepair::eval::ledger::Ledger;
use irepair::model::Model;
use irepair::model::precision::WeightsDtype;
use irepair::report::folder::RunFolder;
use irepair::settings;
use irepair::tokens::Encoder;
use irepair::tokens::chat::{ChatTemplate, Ending};
use irepair::train::log;
use irepair::train::state::{self, Fingerprint};
use serde_json::{Value, json};

/// A target by its name.
pub type Target = fn(&[u8]);

/// All targets.
pub const TARGETS: &[(&str, Target)] = &[
    ("config", config),
    ("csv", csv),
    ("gz", gz),
    ("header", header),
    ("index", index),
    ("json", json_rows),
    ("jsonl", jsonl),
    ("ledger", ledger),
    ("log", run_log),
    ("parquet", parquet),
    ("patch", patch),
    ("record", record),
    ("settings", toml),
    ("state", run_state),
    ("template", template),
    ("tokenizer", tokenizer),
];

/// The longest error that a user should have to read.
const LONGEST: usize = 4096;
/// What an error never holds: words of Rust, not of a user.
const WORDS: [&str; 6] =
    ["Some(", "None)", "Number(", "String(\"", "FromUtf8Error", "a bug in irepair"];

/// A folder that is removed when the process ends.
static FOLDER: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

/// A tiny checkpoint of the tests.
fn golden(name: &str) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = here.ancestors().map(|dir| dir.join("tests/golden").join(name));
    found.into_iter().find(|dir| dir.is_dir()).expect("a golden model")
}

/// The error is told in a few plain words.
#[track_caller]
fn told<T: Debug>(done: Result<T>) -> Option<T> {
    match done {
        Ok(value) => Some(value),
        Err(error) => {
            let text = format!("{error:#}");
            let said = irepair::base::plain::message(&text);
            assert!(said.len() <= LONGEST, "{} bytes: {said:.500}", said.len());
            for word in WORDS {
                assert!(!said.contains(word), "{said}");
            }
            None
        }
    }
}

/// A file of the temporary folder with these bytes.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = FOLDER.path().join(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(&path, bytes).expect("writes");
    path
}

/// A copy of a golden model in which one file has these bytes.
fn model(golden_name: &str, changed: &str, bytes: &[u8]) -> PathBuf {
    let own = FOLDER.path().join(format!("{golden_name}-{changed}"));
    if !own.is_dir() {
        fs::create_dir_all(&own).expect("a folder");
        for name in ["config.json", "tokenizer.json", "model.safetensors"]
            .into_iter()
            .chain(["model.safetensors.index.json"])
            .chain(["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"])
        {
            let from = golden(golden_name).join(name);
            if from.is_file() {
                fs::copy(from, own.join(name)).expect("copies");
            }
        }
    }
    fs::write(own.join(changed), bytes).expect("writes");
    own
}

/// Opens a model's folder as every command does, up to its weights.
fn open(dir: &Path) -> Result<()> {
    let checkpoint = Checkpoint::open(dir, "model", None)?;
    let model = Model::from_config(&checkpoint.config)?;
    checkpoint.stores(&model, WeightsDtype::F32)?;
    // A model that is larger than its file was refused by now.
    let on = irepair::model::device::choose("cpu")?;
    checkpoint.load(&model, &on.device, WeightsDtype::F32)?;
    Ok(())
}

/// `config.json` beside weights of another form.
pub fn config(bytes: &[u8]) {
    told(open(&model("llama", "config.json", bytes)));
}

/// A file of weights.
pub fn header(bytes: &[u8]) {
    told(open(&model("gpt2", "model.safetensors", bytes)));
}

/// The list of a model's shards.
pub fn index(bytes: &[u8]) {
    told(open(&model("gpt2-odd", "model.safetensors.index.json", bytes)));
}

/// `tokenizer.json`: what it makes of a text lies within the vocabulary.
pub fn tokenizer(bytes: &[u8]) {
    const VOCABULARY: usize = 300;
    let path = file("tokenizer.json", bytes);
    let encoder = Encoder::from_file(&path, VOCABULARY);
    let Some(Opened(encoder)) = told(encoder.map(Opened)) else { return };
    for text in ["", " ", "Say hello", "x\u{301}\u{0}é 你好\r\n\t<s>"] {
        for whole in [false, true] {
            let Some(ids) = told(encoder.encode(text, whole)) else { continue };
            assert!(ids.iter().all(|id| (*id as usize) < VOCABULARY), "{ids:?}");
            told(encoder.decode(&ids));
        }
    }
}

/// A value whose contents are of no interest.
struct Opened<T>(T);

impl<T> Debug for Opened<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("opened")
    }
}

/// A chat template.
pub fn template(bytes: &[u8]) {
    let path = file("chat/chat_template.jinja", bytes);
    let folder = path.parent().expect("a folder");
    let Some(Opened(Some(chat))) = told(ChatTemplate::of(folder, &BTreeMap::new()).map(Opened))
    else {
        return;
    };
    let place = FileLine { file: Path::new("rows.jsonl").into(), line: 1 };
    let said = |role: &str, text: &str| json!({"role": role, "content": text});
    for ending in [Ending::Prompt, Ending::Message] {
        told(chat.render(&[said("user", "hi"), said("assistant", "a")], ending, &place));
    }
}

/// Rows as pairs, edits, prompts and texts.
fn rows(path: &Path) {
    let map = KeyMap::new();
    if let Some(pairs) = told(data::read_pairs(path, &map, None)) {
        assert!(!pairs.is_empty());
        assert!(pairs.iter().all(|pair| !pair.rejected.is_empty()), "an empty response");
    }
    told(data::read_edits(path, &map, Some(3)));
    told(data::read_prompts(path, &map, None));
    told(data::read_texts(path, &map, None));
}

pub fn jsonl(bytes: &[u8]) {
    rows(&file("rows.jsonl", bytes));
}

pub fn json_rows(bytes: &[u8]) {
    rows(&file("rows.json", bytes));
}

pub fn csv(bytes: &[u8]) {
    rows(&file("rows.csv", bytes));
}

pub fn parquet(bytes: &[u8]) {
    rows(&file("rows.parquet", bytes));
}

pub fn gz(bytes: &[u8]) {
    rows(&file("rows.jsonl.gz", bytes));
}

/// A patch, and what it makes of a model.
pub fn patch(bytes: &[u8]) {
    let path = file("patch.safetensors", bytes);
    let Some(Opened(patch)) = told(PatchFile::open(&path).map(Opened)) else { return };
    patch.summary();
    let base = Checkpoint::open(&golden("gpt2"), "base", None).expect("a golden model");
    for name in base.entries.keys() {
        told(patch.repaired(&base, name));
    }
}

/// The state of a run to resume.
pub fn run_state(bytes: &[u8]) {
    let dir = FOLDER.path().join("run");
    let path = state::path(&dir);
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(path, bytes).expect("writes");
    let on = irepair::model::device::choose("cpu").expect("the processor");
    let fingerprint = Fingerprint::new([("model", "m".to_owned())]);
    told(state::load::<Value>(&dir, &fingerprint, &on.device, &[]).map(Opened));
    state::progress::<Value>(&dir);
}

/// `steps.jsonl`.
pub fn run_log(bytes: &[u8]) {
    let path = file("log/steps.jsonl", bytes);
    if let Some(Opened((steps, _))) = told(log::read_log(&path).map(Opened)) {
        log::count_blocks(&steps);
    }
    for step in [0, 2] {
        told(log::open_log(path.parent().expect("a folder"), step, false, 0).map(drop));
    }
}

/// The ledger of an evaluation: what it has is there again when it is opened again.
pub fn ledger(bytes: &[u8]) {
    let path = file("ledger.jsonl", bytes);
    let settings = json!({"model": "m"});
    if let Some(Opened(ledger)) = told(Ledger::open(&path, &settings).map(Opened)) {
        let again = Ledger::open(&path, &settings).expect("was opened before");
        assert_eq!(ledger.done(), again.done());
    }
}

/// A file of settings. One that can be read can be written and read again.
pub fn toml(bytes: &[u8]) {
    let path = file("own.toml", bytes);
    if let Some((_, layer)) = told(settings::read_layer(Some(&path))) {
        assert!(settings::read_layer(Some(&path)).is_ok_and(|(_, again)| again == layer));
    }
    told(settings::read_tables(&path));
}

/// `run.json` of a finished run.
pub fn record(bytes: &[u8]) {
    let path = file("finished/irepair/run.json", bytes);
    let dir = path.ancestors().nth(2).expect("a folder");
    told(RunFolder::open(dir).map(Opened));
}
