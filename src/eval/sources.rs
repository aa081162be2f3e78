//! *Sources* are the texts, passages and prompts that an evaluation reads: the user gives a short
//! name, which means a data set of the hub, or a file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::perplexity::Corpus;
use crate::bail_input;
use crate::base::error::{Error, unknown};
use crate::base::files;
use crate::checkpoint::hub::{Hub, rows_path};
use crate::data;
use crate::data::demo;
use crate::data::{Edit, KeyMap, Record, Text};

/// A file of a data set of the hub, which goes by a short name.
struct HubFile {
    name: &'static str,
    dataset: &'static str,
    /// How the name of the file may end. Earlier endings are preferred.
    endings: &'static [&'static str],
}

const CORPORA: &[HubFile] = &[
    HubFile {
        name: "wikitext2",
        dataset: "Salesforce/wikitext",
        endings: &["wikitext-2-raw-v1/test-00000-of-00001.parquet"],
    },
    HubFile {
        name: "wikitext2-pages",
        dataset: "EleutherAI/wikitext_document_level",
        endings: &["wikitext-2-raw-v1/test-00000-of-00001.parquet"],
    },
    HubFile { name: "lambada-corpus", dataset: LAMBADA.dataset, endings: LAMBADA.endings },
];

const LAMBADA: HubFile = HubFile {
    name: "lambada_openai",
    dataset: "EleutherAI/lambada_openai",
    endings: &["lambada_test.jsonl", "lambada_test_en.jsonl"],
};

const PROMPTS: HubFile = HubFile {
    name: "rtp-challenge",
    dataset: "allenai/real-toxicity-prompts",
    endings: &["prompts.jsonl"],
};

/// The name of the demo's prompts, of its clean text and of its edits.
pub const DEMO: &str = "demo";

/// The short name of the prompts that are used if the user gives none.
pub const PROMPTS_NAME: &str = PROMPTS.name;

impl HubFile {
    /// The file on disk; it is downloaded if the cache does not have it.
    fn file(&self) -> Result<PathBuf> {
        Ok(Hub::from_env()?.dataset_file(self.dataset, "main", self.endings)?.0)
    }

    /// The same; an error says that the `flag` that named it takes a file, too.
    fn file_for(&self, flag: &str) -> Result<PathBuf> {
        let words =
            || format!("{flag} {} is a data set of the hub (or give {flag} FILE)", self.name);
        self.file().with_context(words)
    }
}

/// Whether a file holds rows, by its name.
pub fn is_rows(path: &Path) -> bool {
    let name = path.to_string_lossy().to_lowercase();
    [".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet", ".csv"]
        .iter()
        .any(|e| name.ends_with(e))
}

/// A corpus: a data set by its short name, the demo's clean text, or a file. A file of rows gives
/// the `text` or `page` of each row as a document, also if it is empty. Any other file is one
/// document. Errors are bad input, and name the `flag` that gave `spec`.
pub fn corpus(spec: &str, flag: &str) -> Result<Corpus> {
    if spec == DEMO {
        return Ok(Corpus {
            name: "clean text".into(),
            documents: vec![demo::CLEAN.into()],
            is_file: true,
        });
    }
    let named = CORPORA.iter().find(|n| n.name == spec);
    let path = match named {
        Some(named) => named.file_for(flag)?,
        None if Path::new(spec).is_file() => spec.into(),
        None => {
            let names: Vec<&str> = CORPORA.iter().map(|n| n.name).chain([DEMO]).collect();
            let unknown = unknown("text", spec, &names);
            return Err(Error::Input(format!("{flag} {spec}: no such file; {unknown}")).into());
        }
    };
    let name = match named {
        Some(named) => named.name.into(),
        None => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
    };
    if !is_rows(&path) {
        let text = files::read(&path)?;
        let text = String::from_utf8(text).map_err(|e| {
            Error::Input(format!(
                "{flag} {spec}: not UTF-8 at byte {}; convert the file",
                e.utf8_error().valid_up_to()
            ))
        })?;
        return Ok(Corpus { name, documents: vec![text], is_file: true });
    }
    let document =
        |row: Record| match ["text", "page"].iter().find_map(|key| row.value.get(key)?.as_str()) {
            Some(text) => Ok(text.to_owned()),
            None => bail_input!("{}: neither \"text\" nor \"page\"", row.place),
        };
    let documents =
        data::read_rows(&path, None)?.into_iter().map(document).collect::<Result<Vec<String>>>()?;
    if documents.is_empty() {
        bail_input!("{flag} {spec}: no rows");
    }
    Ok(Corpus { name, documents, is_file: false })
}

/// The first `limit` of LAMBADA's passages, from a file, or from the hub if its name is empty.
pub fn passages(file: &str, limit: Option<usize>) -> Result<Vec<Text>> {
    let path = if file.is_empty() { LAMBADA.file_for("--lambada")? } else { file.into() };
    data::read_texts(&path, &KeyMap::new(), limit)
}

/// The first `limit` edits of a file, or of the demo, and a name for them.
pub fn edits(spec: &str, limit: Option<usize>) -> Result<(Vec<Edit>, String)> {
    if spec == DEMO {
        let mut edits = data::parse_edits("demo edits", demo::EDITS)?;
        edits.truncate(limit.unwrap_or(usize::MAX));
        return Ok((edits, "the demo's edits".into()));
    }
    let name = Path::new(spec).file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((data::read_edits(&rows_path(Path::new(spec))?, &KeyMap::new(), limit)?, name))
}

/// The first `limit` prompts of a file, of the demo, or of `rtp-challenge`: the 1,199 prompts of
/// RealToxicityPrompts that most models continue toxically.
pub fn prompts(spec: &str, limit: Option<usize>) -> Result<Vec<Text>> {
    if spec == DEMO {
        let mut prompts = data::parse_texts("demo prompts", demo::PROMPTS)?;
        prompts.truncate(limit.unwrap_or(usize::MAX));
        return Ok(prompts);
    }
    if spec != PROMPTS.name {
        return data::read_prompts(&rows_path(Path::new(spec))?, &KeyMap::new(), limit);
    }
    let is_challenging = |row: &Record| row.value["challenging"] == Value::Bool(true);
    let text = |row: Record| -> Result<Text> {
        match row.value.pointer("/prompt/text").and_then(Value::as_str) {
            Some(text) => Ok(Text::plain(text.to_owned(), row.place)),
            None => bail_input!("{}: no \"prompt\".\"text\"", row.place),
        }
    };
    let rows = data::read_rows(&PROMPTS.file_for("--prompts")?, None)?
        .into_iter()
        .filter(is_challenging)
        .take(limit.unwrap_or(usize::MAX));
    let prompts: Vec<Text> = rows.map(text).collect::<Result<_>>()?;
    if prompts.is_empty() {
        bail_input!("{}: no row of {} is \"challenging\"", PROMPTS.name, PROMPTS.dataset);
    }
    Ok(prompts)
}
