//! `generate`: continuations of prompts, or unconditional texts.

use anyhow::{Context, Result};
use serde_json::json;

use super::Loaded;
use crate::base::error::Error;
use crate::base::files;
use crate::base::interrupt;
use crate::base::progress::Progress;
use crate::cli::Generate;
use crate::data::demo;
use crate::eval::ledger::{Ledger, to_lines};
use crate::eval::task::Row;
use crate::model::generate::{Generation, Job, Sampling, generate};
use crate::model::memory::Passes;
use crate::model::weights::{View, Who};
use crate::scorers;
use crate::scorers::{Scored, Scorer};
use crate::{bail_input, data};

/// Texts a unit of work: what an interrupt can lose, and what shards are made of.
const UNIT: usize = 64;

pub fn run(args: &Generate) -> Result<()> {
    check(args)?;
    let scorer = args
        .scorer
        .as_deref()
        .map(|s| {
            scorers::open(s, &scorers::Options { toxic_label: args.writing.toxic_label.clone() })
        })
        .transpose()?;
    let loaded = args.model.open()?;
    let (prompts, jobs) = jobs(args, &loaded)?;
    let settings = Generation {
        sampling: if args.greedy {
            Sampling::Greedy
        } else {
            Sampling::Random { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p }
        },
        max_new_tokens: new_tokens(args),
        ends: loaded.ends(),
        seed: args.writing.seed,
    };
    let longest = jobs.iter().map(|j| j.ids.len()).max().unwrap_or(0);
    let passes = Passes {
        plain_rows: longest * args.batch_size,
        written: (args.batch_size, longest + settings.max_new_tokens),
        ..Passes::default()
    };
    loaded.check_memory(&passes, "lower --batch-size or --max-new-tokens")?;
    let mut weights = loaded.weights()?;
    weights.set_precision(loaded.precision);
    interrupt::listen()?;
    let view = weights.frozen(Who::Patient)?;
    let rows = write_all(args, &loaded, &view, &prompts, &jobs, &settings, scorer.as_deref())?;
    let count = |key: &str| rows.iter().filter(|row| row.contains_key(key)).count();
    let (removed, empty, failed) = (count("removed"), count("empty"), count("failed"));
    let kept = rows.iter().filter(|row| is_kept(row)).count();
    if args.output.json {
        println!("{}", json!({"kept": kept, "removed": removed, "empty": empty, "failed": failed}));
    } else {
        println!("{kept} texts in {}", args.out.display());
        if let (Some(limit), Some(scorer)) = (args.keep_below, &scorer) {
            let share = 100.0 * removed as f64 / rows.len().max(1) as f64;
            println!("{removed} ({share:.1} %) removed: {} gave {limit} or more", scorer.name());
        }
        if empty > 0 {
            println!("{empty} are empty: the model ended them at once");
        }
        if failed > 0 {
            println!("{failed} could not be scored");
        }
    }
    Ok(())
}

fn check(args: &Generate) -> Result<()> {
    for (flag, value) in [("--batch-size", args.batch_size), ("--samples", args.samples)] {
        if value == 0 {
            bail_input!("{flag} 0: must be at least 1");
        }
    }
    if !(args.top_p > 0.0 && args.top_p <= 1.0) {
        bail_input!("--top-p {}: must be above 0 and at most 1", args.top_p);
    }
    if !(args.temperature >= 0.0 && args.temperature.is_finite()) {
        bail_input!("--temperature {}: must be a finite number, 0 or more", args.temperature);
    }
    if args.out.exists() && !args.overwrite {
        bail_input!("{} exists; choose another --out or give --overwrite", args.out.display());
    }
    Ok(())
}

fn new_tokens(args: &Generate) -> usize {
    args.max_new_tokens.unwrap_or(if args.unconditional.is_some() { 64 } else { 20 })
}

/// The prompts' texts (none if unconditional), and one job a text.
fn jobs(args: &Generate, loaded: &Loaded) -> Result<(Vec<String>, Vec<Job>)> {
    if let Some(n) = args.unconditional {
        let begin = loaded.end_of_text()?;
        let jobs = (0..n as u64).map(|i| Job { ids: vec![begin], prompt: i, sample: 0 }).collect();
        return Ok((Vec::new(), jobs));
    }
    let prompts = match &args.prompts {
        Some(path) => data::read_prompts(path, &data::KeyMap::new(), args.limit)?,
        None if args.model.model == "demo" => {
            let mut prompts = data::parse_texts("demo prompts", demo::PROMPTS)?;
            prompts.truncate(args.limit.unwrap_or(usize::MAX));
            prompts
        }
        None => return Err(Error::Usage("give --prompts FILE or --unconditional N".into()).into()),
    };
    let context = loaded.model.sizes().context;
    let mut jobs = Vec::with_capacity(prompts.len() * args.samples);
    for (index, prompt) in prompts.iter().enumerate() {
        let mut ids = loaded.encoder.prompt(prompt)?;
        if let Some(limit) = args.max_prompt_length {
            ids.truncate(limit);
        }
        if ids.is_empty() || ids.len() >= context {
            bail_input!(
                "{}: a prompt of {} tokens; the model has room for 1 to {} before a new one; cut with --max-prompt-length",
                prompt.place,
                ids.len(),
                context - 1
            );
        }
        jobs.extend((0..args.samples as u64).map(|sample| Job {
            ids: ids.clone(),
            prompt: index as u64,
            sample,
        }));
    }
    Ok((prompts.into_iter().map(|p| p.text).collect(), jobs))
}

/// The rows of a batch of jobs: a text each; what scores too much is kept without its text, so that it can be counted.
fn rows(
    args: &Generate,
    prompts: &[String],
    jobs: &[Job],
    texts: Vec<String>,
    scorer: Option<&dyn Scorer>,
) -> Result<Vec<Row>> {
    let full: Vec<&str> =
        texts.iter().map(String::as_str).filter(|t| !t.trim().is_empty()).collect();
    let mut scores = match scorer {
        Some(scorer) => scorer.score(&full)?.into_iter(),
        None => Vec::new().into_iter(),
    };
    let mut rows = Vec::with_capacity(texts.len());
    for (job, text) in jobs.iter().zip(texts) {
        let empty = text.trim().is_empty();
        let mut row = Row::new();
        match prompts.get(job.prompt as usize) {
            Some(prompt) => {
                row.insert("prompt".into(), prompt.clone().into());
                row.insert("sample".into(), job.sample.into());
                row.insert("continuation".into(), text.into());
            }
            None => {
                row.insert("text".into(), text.into());
            }
        }
        if empty {
            row.insert("empty".into(), true.into());
        } else if scorer.is_some() {
            match scores.next().context("a scorer left a text out")? {
                Scored::Score(score) if args.keep_below.is_some_and(|limit| score >= limit) => {
                    row = Row::from_iter([("removed".to_owned(), score.into())]);
                }
                Scored::Score(score) => {
                    row.insert("score".into(), score.into());
                }
                Scored::Failed(why) => {
                    row.insert("failed".into(), why.into());
                }
            }
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Writes what is not written yet, and returns all rows.
fn write_all(
    args: &Generate,
    loaded: &Loaded,
    view: &View,
    prompts: &[String],
    jobs: &[Job],
    settings: &Generation,
    scorer: Option<&dyn Scorer>,
) -> Result<Vec<Row>> {
    let beside = files::partial(&args.out);
    if args.overwrite && args.out.exists() {
        std::fs::remove_file(&beside).ok();
    }
    let texts: Vec<u8> = jobs
        .iter()
        .flat_map(|job| job.ids.iter().chain([&u32::MAX]))
        .flat_map(|id| id.to_le_bytes())
        .collect();
    let key = json!({
        "model": loaded.checkpoint().hash()?, "sampling": settings.sampling, "new_tokens": settings.max_new_tokens,
        "seed": settings.seed, "texts": jobs.len(), "prompts_sha256": files::hash_bytes(&texts),
        "scorer": scorer.map(Scorer::name), "keep_below": args.keep_below, "shard": args.shard, "dtype": loaded.precision,
    });
    let mut ledger = Ledger::open(&beside, &key).map_err(|e| match e.downcast_ref::<Error>() {
        Some(_) => e,
        None => {
            Error::Input(format!("--out {}: can't write there: {e:#}", args.out.display())).into()
        }
    })?;
    let units = args.shard.units(jobs.len().div_ceil(UNIT));
    let mut progress =
        Progress::new("texts", ledger.len() * UNIT, units.len() * UNIT, args.output.quiet);
    for unit in units {
        if ledger.has(unit) {
            continue;
        }
        let jobs = &jobs[unit * UNIT..((unit + 1) * UNIT).min(jobs.len())];
        let mut texts = Vec::with_capacity(jobs.len());
        for jobs in jobs.chunks(args.batch_size) {
            for ids in generate(&loaded.model, view, jobs, settings)? {
                texts.push(loaded.encoder.decode(&ids)?);
            }
        }
        if interrupt::asked() {
            // A text cut short by the interrupt would be no text of this seed.
            let words =
                "interrupted; the texts so far are kept: give the same command again to go on";
            return Err(Error::Interrupted(words.into()).into());
        }
        ledger.add(unit, rows(args, prompts, jobs, texts, scorer)?)?;
        progress.advance(jobs.len());
    }
    progress.finish();
    let rows = ledger.rows();
    let kept: Vec<Row> = rows.iter().filter(|row| is_kept(row)).cloned().collect();
    files::write_whole(&args.out, &to_lines(&kept)?)?;
    std::fs::remove_file(&beside).ok();
    Ok(rows)
}

/// Whether a row goes into the file: not what scored too much, no empty text without a prompt, and nothing unscored where
/// the score decides.
fn is_kept(row: &Row) -> bool {
    let has = |key: &str| row.contains_key(key);
    !(has("removed") || has("empty") && has("text"))
}
