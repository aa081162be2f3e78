//! The *failures* of a comparison are rows with a prompt and a target, from which all methods
//! learn. Methods that learn from pairs get what the base says instead of the target as the
//! rejected response.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Value, json};

use crate::base::error::Error;
use crate::base::files::{hash_texts, write_whole};
use crate::commands::repair::failures;
use crate::commands::{Loaded, eval};
use crate::data::Edit;
use crate::eval::edits::Edits;
use crate::eval::task::Task;
use crate::settings::{Layer, RepairSettings};
use crate::{bail_input, data};

pub struct Failures {
    edits: Vec<Edit>,
    /// The file to which they are written as pairs.
    path: PathBuf,
}

impl Failures {
    /// Reads the failures of `--data` or of the demo, which `write` will write into the folder
    /// `dir`. Errors (bad input) if there are none.
    pub fn read(settings: &RepairSettings, dir: &Path) -> Result<Self> {
        Ok(Self { edits: failures(settings)?.0, path: dir.join("failures.jsonl") })
    }

    /// SHA-256 of their texts in order.
    pub fn hash(&self) -> String {
        let texts = |edit: &Edit| {
            [edit.prompt.clone(), edit.target.clone(), edit.rejected.clone().unwrap_or_default()]
        };
        let texts: Vec<String> = self.edits.iter().flat_map(texts).collect();
        hash_texts(texts.iter().map(String::as_str))
    }

    /// Changes the settings of a repair so that it learns from them and holds none of them back.
    pub fn set_as_data(&self, layer: &mut Layer, by_pairs: bool) {
        layer.insert("data".into(), self.path.display().to_string().into());
        layer.remove("map");
        if by_pairs {
            layer.entry("valid-size").or_insert(0.into());
        }
    }

    /// Writes the failures whose target the base does not say, unless an earlier command has
    /// written them, and gives their number. Errors (a failed check) if the base says every target.
    pub fn write(&self, base: &Loaded) -> Result<usize> {
        if self.path.is_file() {
            return Ok(data::read_rows(&self.path, None)?.len());
        }
        let weights = base.weights()?;
        let subject = eval::subject(base, &weights);
        let task = Edits::new(&self.edits, "failures", &base.encoder, base.model.sizes().context)?;
        let (mut lines, mut count) = (Vec::new(), 0);
        let units: Vec<_> =
            (0..task.units()).map(|unit| task.work(&subject, unit)).collect::<Result<_>>()?;
        for (edit, said) in self.edits.iter().zip(units.into_iter().flatten()) {
            if said["forced"] == Value::Bool(true) {
                continue;
            }
            let said = said["continuation"].as_str().unwrap_or_default();
            let rejected = edit.rejected.as_deref().unwrap_or(said);
            if rejected.trim().is_empty() {
                bail_input!(
                    "{}: the base says only blanks here, and methods that learn from pairs need \
                     more; give the row a \"rejected\"",
                    edit.place
                );
            }
            let row = json!({ "prompt": edit.prompt, "chosen": edit.target, "rejected": rejected });
            writeln!(lines, "{row}")?;
            count += 1;
        }
        if count == 0 {
            return Err(Error::Check(
                "the base already says every target: there is nothing to repair".into(),
            )
            .into());
        }
        write_whole(&self.path, &lines)?;
        Ok(count)
    }
}
