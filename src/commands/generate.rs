//! `generate`: continuations of prompts, or unconditional texts.

use std::io::{BufWriter, Write};

use anyhow::{Context, Result};
use serde_json::json;

use super::Loaded;
use crate::cli::Generate;
use crate::fault::Fault;
use crate::generate::{Generation, Job, Sampling, generate};
use crate::memory::Passes;
use crate::report::progress::Progress;
use crate::scorers::{self, Scorer};
use crate::weights::Who;
use crate::{bail_input, data, demo, stop};

pub fn run(args: &Generate) -> Result<()> {
    check(args)?;
    let scorer = args.scorer.as_deref().map(scorers::named).transpose()?;
    let loaded = args.model.open()?;
    let (prompts, jobs) = jobs(args, &loaded)?;
    let settings = Generation {
        sampling: if args.greedy {
            Sampling::Greedy
        } else {
            Sampling::Random { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p }
        },
        max_new_tokens: new_tokens(args),
        end: loaded.end_token(),
        seed: args.seed,
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
    stop::listen()?;
    let written = write_all(args, &loaded, &weights.frozen(Who::Patient)?, &prompts, &jobs, &settings, scorer)?;
    let share = 100.0 * written.removed as f64 / (written.kept + written.removed).max(1) as f64;
    if args.output.json {
        println!("{}", json!({"kept": written.kept, "removed": written.removed, "empty": written.empty}));
    } else {
        println!("{} texts in {}", written.kept, args.out.display());
        if let (Some(limit), Some(scorer)) = (args.keep_below, scorer) {
            println!("{} ({share:.1} %) removed: {} gave {limit} or more", written.removed, scorer.name());
        }
        if written.empty > 0 {
            println!("{} are empty: the model ended them at once", written.empty);
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
        None => return Err(Fault::Usage("give --prompts FILE or --unconditional N".into()).into()),
    };
    let context = loaded.model.sizes().context;
    let mut jobs = Vec::with_capacity(prompts.len() * args.samples);
    for (index, prompt) in prompts.iter().enumerate() {
        let mut ids = loaded.encoder.encode(&prompt.text, true)?;
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
        jobs.extend((0..args.samples as u64).map(|sample| Job { ids: ids.clone(), prompt: index as u64, sample }));
    }
    Ok((prompts.into_iter().map(|p| p.text).collect(), jobs))
}

struct Written {
    kept: usize,
    removed: usize,
    empty: usize,
}

fn write_all(
    args: &Generate,
    loaded: &Loaded,
    view: &crate::weights::View,
    prompts: &[String],
    jobs: &[Job],
    settings: &Generation,
    scorer: Option<&dyn Scorer>,
) -> Result<Written> {
    let dir = args.out.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let file = tempfile::NamedTempFile::new_in(dir)
        .map_err(|e| Fault::Input(format!("--out {}: can't write there: {e}", args.out.display())))?;
    let mut out = BufWriter::new(file);
    let mut written = Written { kept: 0, removed: 0, empty: 0 };
    let mut progress = Progress::new("texts", 0, jobs.len(), args.output.quiet);
    for batch in jobs.chunks(args.batch_size) {
        let texts: Vec<String> = generate(&loaded.model, view, batch, settings)?
            .iter()
            .map(|ids| loaded.encoder.decode(ids))
            .collect::<Result<_>>()?;
        if stop::asked() {
            // A text cut short by the interrupt would be no text of this seed.
            break;
        }
        let scores = match scorer {
            Some(scorer) => Some(scorer.score(&texts.iter().map(String::as_str).collect::<Vec<_>>())?),
            None => None,
        };
        for (i, (job, text)) in batch.iter().zip(&texts).enumerate() {
            let score = scores.as_ref().map(|s| s[i]);
            if args.keep_below.zip(score).is_some_and(|(limit, score)| score >= limit) {
                written.removed += 1;
                continue;
            }
            if text.trim().is_empty() {
                written.empty += 1;
                if prompts.is_empty() {
                    continue;
                }
            }
            let mut row = match prompts.get(job.prompt as usize) {
                Some(prompt) => json!({"prompt": prompt, "sample": job.sample, "continuation": text}),
                None => json!({ "text": text }),
            };
            if let Some(score) = score {
                row["score"] = score.into();
            }
            writeln!(out, "{row}").with_context(|| args.out.display().to_string())?;
            written.kept += 1;
        }
        progress.advance(batch.len());
    }
    progress.finish();
    let file = out.into_inner().map_err(|e| e.into_error()).context("writing the texts")?;
    file.as_file().sync_all()?;
    file.persist(&args.out).with_context(|| args.out.display().to_string())?;
    if stop::asked() {
        let n = written.kept;
        return Err(Fault::Interrupted(format!("interrupted: {n} texts are in {}", args.out.display())).into());
    }
    Ok(written)
}
