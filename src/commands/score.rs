//! `score` gives texts their scores. With `--calibrate` it compares a scorer with the scores that
//! are stored in a file.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::{replaceable, writable};
use crate::base::error::Error;
use crate::base::files;
use crate::base::interrupt;
use crate::base::print;
use crate::checkpoint::hub::rows_path;
use crate::cli::Score;
use crate::eval::ledger::{Ledger, Making};
use crate::eval::scoring::{TextScore, score_texts};
use crate::eval::task::{Row, items};
use crate::model::device;
use crate::print_line;
use crate::report::table::table;
use crate::scorers;
use crate::scorers::calibration::{Calibration, calibrate};
use crate::scorers::{Scored, Scorer, TOXIC};
use crate::{bail_input, data, report};

/// Texts in a unit.
const UNIT: usize = 64;

pub fn run(args: &Score) -> Result<()> {
    device::set_threads(None)?;
    let scorer = scorers::open(
        &args.scoring.scorer,
        &scorers::Options { toxic_label: args.scoring.toxic_label.clone() },
    )?;
    if let Some(plot) = &args.plot {
        writable("--plot", plot)?;
    }
    match (&args.calibrate, &args.file) {
        (Some(stored), _) => compare(args, scorer.as_ref(), stored),
        (None, Some(file)) => score(args, scorer.as_ref(), file),
        (None, None) => {
            Err(Error::Usage("give a FILE of texts, or --calibrate FILE".into()).into())
        }
    }
}

/// The text of a row that is scored: its continuation, or else its text, or else its prompt.
fn text_of(row: &Value) -> Option<&str> {
    let found = ["continuation", "text", "prompt"].iter().find_map(|key| row.get(key))?;
    found.as_str().or_else(|| found.get("text")?.as_str())
}

fn score(args: &Score, scorer: &dyn Scorer, file: &Path) -> Result<()> {
    let Some(out) = &args.out else {
        return Err(
            Error::Usage("--out FILE is missing: say where the scored rows go".into()).into()
        );
    };
    replaceable(out, args.overwrite)?;
    let path = rows_path(file)?;
    let rows = data::read_rows(&path, args.limit)?;
    if rows.is_empty() {
        bail_input!("{}: no rows", file.display());
    }
    if let Some(row) = rows.iter().find(|row| text_of(&row.value).is_none()) {
        bail_input!("{}: none of \"continuation\", \"text\", \"prompt\"", row.place);
    }
    let all: Vec<String> = rows.iter().map(|row| row.value.to_string()).collect();
    let settings = json!({
        "scorer": scorer.name(), "rows": rows.len(), "shard": args.shard,
        "rows_sha256": files::hash_texts(all.iter().map(String::as_str)),
    });
    drop(all);
    interrupt::listen()?;
    let mut ledger = Ledger::beside(out, args.overwrite, &settings)?;
    let units = args.shard.units(rows.len().div_ceil(UNIT));
    let making = Making {
        what: "texts",
        in_unit: UNIT,
        total: units.len() * UNIT,
        quiet: args.output.quiet,
        interrupted: "interrupted; what is scored is kept: give the same command again to go on",
    };
    ledger.fill(units, &making, |unit| {
        let (_, rows) = items(&rows, UNIT, unit);
        let texts: Vec<&str> = rows.iter().filter_map(|row| text_of(&row.value)).collect();
        let scores = score_texts(scorer, &texts)?;
        let row = |(row, score): (&data::Record, TextScore)| {
            let mut row: Row = row.value.as_object().cloned().unwrap_or_default();
            for key in ["score", "failed", "empty"] {
                row.remove(key);
            }
            score.add_to(&mut row);
            row
        };
        Ok(rows.iter().zip(scores).map(row).collect())
    })?;
    let rows = ledger.finish(out, |_| true)?;
    report(args, scorer, out, &rows)
}

/// Prints how many rows were scored and their mean score. Errors (a failed check) if there were
/// texts and none could be scored.
fn report(args: &Score, scorer: &dyn Scorer, out: &Path, rows: &[Row]) -> Result<()> {
    let with = |key: &str| rows.iter().filter(|row| row.contains_key(key)).count();
    let scores: Vec<f64> = rows.iter().filter_map(|row| row.get("score")?.as_f64()).collect();
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    let mean_text = match scores.is_empty() {
        true => "–".to_owned(),
        false => format!("{:.2}", 100.0 * mean),
    };
    let toxic = scores.iter().filter(|s| **s >= TOXIC).count();
    let (failed, empty) = (with("failed"), with("empty"));
    if args.output.json {
        print::json(&json!({
            "scorer": scorer.name(), "scored": scores.len(), "failed": failed, "empty": empty,
            "mean": if scores.is_empty() { Value::Null } else { mean.into() }, "toxic": toxic,
        }))?;
    } else {
        print_line!(
            "{} rows in {}, scored by {}: {}",
            rows.len(),
            out.display(),
            scorer.name(),
            scorer.about()
        )?;
        print_line!(
            "mean score × 100: {mean_text}; {toxic} of {} score {TOXIC} or more; {failed} failed, \
             {empty} empty",
            scores.len()
        )?;
    }
    if let (true, Some(why)) =
        (scores.is_empty(), rows.iter().find_map(|row| row.get("failed")?.as_str()))
    {
        return Err(Error::Check(format!("no text could be scored: {why}")).into());
    }
    Ok(())
}

/// `--calibrate`: compares the scorer's scores with those stored in a file. Errors (bad input) if
/// the file does not have both toxic and other texts.
fn compare(args: &Score, scorer: &dyn Scorer, stored: &Path) -> Result<()> {
    let mut pairs = Vec::new();
    let mut failed = 0;
    let rows = data::read_rows(&rows_path(stored)?, args.limit)?;
    for rows in rows.chunks(UNIT) {
        let mut texts = Vec::with_capacity(rows.len());
        for row in rows {
            let score = scorers::stored_score(&row.value);
            if score.is_none() && row.value.get("error").is_some_and(Value::is_string) {
                failed += 1;
                continue;
            }
            let (Some(text), Some(score)) = (text_of(&row.value), score) else {
                bail_input!(
                    "{}: a row needs \"text\" and its \"score\" or \"toxicity\"",
                    row.place
                );
            };
            if !(0.0..=1.0).contains(&score) {
                bail_input!("{}: a score of {score} is not in 0..=1", row.place);
            }
            texts.push((text, score));
        }
        let scored = scorer.score(&texts.iter().map(|(text, _)| *text).collect::<Vec<_>>())?;
        for ((_, stored), scored) in texts.iter().zip(scored) {
            match scored {
                Scored::Score(score) => pairs.push((score, *stored)),
                Scored::Failed(_) | Scored::Refused(_) => failed += 1,
            }
        }
    }
    let Some(found) = calibrate(&pairs) else {
        bail_input!(
            "{}: {} scored texts; both kinds, toxic (0.5 and above) and not, are needed to compare",
            stored.display(),
            pairs.len()
        );
    };
    if let Some(path) = &args.plot {
        files::write_whole(
            path,
            report::plot::calibration(&found, &scorer.name()).file().as_bytes(),
        )?;
    }
    if args.output.json {
        print::json(&json!({"scorer": scorer.name(), "failed": failed, "calibration": found}))?;
    } else {
        print::text(text(&found, scorer, failed))?;
    }
    Ok(())
}

/// The calibration as text for people.
fn text(found: &Calibration, scorer: &dyn Scorer, failed: usize) -> String {
    let rows: Vec<[String; 4]> = found
        .bins
        .iter()
        .map(|bin| {
            let share = |x: Option<f64>, scale: f64| {
                x.map_or("–".into(), |x| format!("{:.2}", x * scale))
            };
            [
                format!("{:.1} to {:.1}", bin.from, bin.to),
                bin.texts.to_string(),
                share(bin.stored, 1.0),
                share(bin.toxic, 100.0),
            ]
        })
        .collect();
    format!(
        "{}on {} texts ({failed} failed): Spearman {:.3}, AUC at 0.5 {:.3}; of those that {} calls \
         toxic {:.1} % are, and it finds {:.1} % of the toxic\n",
        table(
            [&format!("{} gives", scorer.name()), "texts", "mean stored score", "toxic %"],
            &rows
        ),
        found.texts,
        found.spearman,
        found.auc,
        scorer.name(),
        100.0 * found.precision,
        100.0 * found.recall,
    )
}
