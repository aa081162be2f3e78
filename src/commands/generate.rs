//! `generate` writes continuations of prompts, or texts without a prompt.

use anyhow::Result;
use serde_json::{Value, json};

use super::{Loaded, check_sampling, in_counts, instructs, replaceable, typed};
use crate::base::error::Error;
use crate::base::interrupt;
use crate::base::memory::{OF_A_TEXT, check_room};
use crate::base::plain::plain_line;
use crate::base::print;
use crate::checkpoint::hub::rows_path;
use crate::cli::Generate;
use crate::data::Text;
use crate::eval::ledger::{Ledger, Making};
use crate::eval::scoring::{TextScore, score_texts};
use crate::eval::sources;
use crate::eval::task::{Row, hash_ids, items};
use crate::model::finite::of_model;
use crate::model::generate::{Generation, Job, Sampling, generate};
use crate::model::memory::Passes;
use crate::model::weights::{View, Who};
use crate::print_line;
use crate::say;
use crate::scorers;
use crate::scorers::Scorer;
use crate::{bail_input, data};

/// Texts in a unit. An interrupt loses at most one unit, and shards consist of whole units.
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
    if args.unconditional.is_none() && instructs(&loaded) && !args.output.quiet {
        say_of_plain_prompts(args, &prompts);
    }
    let settings = Generation {
        sampling: if args.greedy {
            Sampling::Greedy
        } else {
            Sampling::Random { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p }
        },
        max_new_tokens: new_tokens(args),
        ends: loaded.ends(),
        seed: args.writing.seed,
        at_a_time: args.batch_size,
    };
    let longest = jobs.iter().map(|j| j.ids.len()).max().unwrap_or(0);
    let together = args.batch_size.min(jobs.len());
    let positions = loaded.model.sizes().context.min(longest + settings.max_new_tokens);
    let passes = Passes {
        plain_rows: longest * together,
        longest,
        written: (together, positions),
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
    let Some(out) = &args.out else { return on_terminal(args, &rows) };
    if args.output.json {
        print::json(&json!({"kept": kept, "removed": removed, "empty": empty, "failed": failed}))?;
    } else {
        print_line!("{kept} texts in {}", out.display())?;
        if let (Some(limit), Some(scorer)) = (args.keep_below, &scorer) {
            let share = 100.0 * removed as f64 / rows.len().max(1) as f64;
            let name = scorer.name();
            print_line!("{removed} ({share:.1} %) removed: {name} gave them {limit} or more")?;
        }
        if empty > 0 {
            print_line!("{empty} are empty because the model ended them at once")?;
        }
        if failed > 0 {
            print_line!("{failed} could not be scored")?;
        }
    }
    Ok(())
}

fn check(args: &Generate) -> Result<()> {
    in_counts(&[
        ("--batch-size", args.batch_size),
        ("--samples", args.samples),
        ("--unconditional", args.unconditional.unwrap_or(1)),
        ("--max-new-tokens", args.max_new_tokens.unwrap_or(1)),
        ("--max-prompt-length", args.max_prompt_length.unwrap_or(1)),
        ("--limit", args.limit.unwrap_or(1)),
    ])?;
    if let Some(limit) = args.keep_below.filter(|limit| !(*limit > 0.0 && limit.is_finite())) {
        bail_input!("--keep-below {limit}: must be a finite number above 0");
    }
    check_sampling(args.top_p, args.temperature)?;
    args.out.as_ref().map_or(Ok(()), |out| replaceable(out, args.overwrite))
}

fn new_tokens(args: &Generate) -> usize {
    args.max_new_tokens.unwrap_or(if args.unconditional.is_some() { 64 } else { 20 })
}

/// The prompts, of which there are none with `--unconditional`, and one job for each text.
fn jobs(args: &Generate, loaded: &Loaded) -> Result<(Vec<Text>, Vec<Job>)> {
    if let Some(n) = args.unconditional {
        let begin = loaded.end_of_text()?;
        check_room("--unconditional", n, OF_A_TEXT)?;
        let jobs = (0..n as u64).map(|i| Job::new(vec![begin], i, 0)).collect();
        return Ok((Vec::new(), jobs));
    }
    let prompts = match &args.prompts {
        _ if !args.prompt.is_empty() => typed(&args.prompt),
        Some(path) => data::read_prompts(&rows_path(path)?, &data::KeyMap::new(), args.limit)?,
        None if args.model.model == "demo" => sources::prompts(sources::DEMO, args.limit)?,
        None => {
            let why = "give --prompt TEXT, --prompts FILE or --unconditional N";
            return Err(Error::Usage(why.into()).into());
        }
    };
    let context = loaded.model.sizes().context;
    let texts = prompts.len().saturating_mul(args.samples);
    check_room("--samples", texts, OF_A_TEXT)?;
    let mut jobs = Vec::with_capacity(texts);
    let (mut cut, mut short) = (0, 0);
    for (index, prompt) in prompts.iter().enumerate() {
        let mut ids = loaded.encoder.prompt(prompt)?;
        if let Some(limit) = args.max_prompt_length {
            cut += usize::from(prompt.cut(&mut ids, limit));
        }
        short += usize::from(ids.len() + new_tokens(args) > context);
        if ids.is_empty() || ids.len() >= context {
            bail_input!(
                "{}: a prompt of {} tokens; the model has room for 1 to {} before a new token; cut \
                 prompts with --max-prompt-length",
                prompt.place,
                ids.len(),
                context - 1
            );
        }
        let job = |sample| Job::new(ids.clone(), index as u64, sample);
        jobs.extend((0..args.samples as u64).map(job));
    }
    if !args.output.quiet && cut > 0 {
        say!("{cut} of {} prompts were cut to --max-prompt-length", prompts.len());
    }
    if !args.output.quiet && short > 0 {
        say!(
            "{short} of {} prompts leave room for fewer than {} new tokens in {context} positions; \
             --max-prompt-length cuts prompts",
            prompts.len(),
            new_tokens(args)
        );
    }
    Ok((prompts, jobs))
}

/// A row for the text of each job. A text that scores too much leaves a row without the text, so
/// that it can be counted.
fn rows(
    args: &Generate,
    prompts: &[Text],
    jobs: &[Job],
    texts: Vec<String>,
    scorer: Option<&dyn Scorer>,
) -> Result<Vec<Row>> {
    let scores: Vec<Option<TextScore>> = match scorer {
        Some(scorer) => score_texts(scorer, &texts)?.into_iter().map(Some).collect(),
        None => {
            texts.iter().map(|text| text.trim().is_empty().then_some(TextScore::Empty)).collect()
        }
    };
    let mut rows = Vec::with_capacity(texts.len());
    for ((job, text), score) in jobs.iter().zip(texts).zip(scores) {
        let mut row = Row::new();
        match prompts.get(job.prompt as usize) {
            Some(prompt) => {
                row.insert("prompt".into(), prompt.text.clone().into());
                row.insert("sample".into(), job.sample.into());
                row.insert("continuation".into(), text.into());
            }
            None => {
                row.insert("text".into(), text.into());
            }
        }
        match score {
            Some(TextScore::Score(score))
                if args.keep_below.is_some_and(|limit| score >= limit) =>
            {
                row = Row::from_iter([("removed".to_owned(), score.into())]);
            }
            Some(score) => score.add_to(&mut row),
            None => {}
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Writes the texts that an interrupted command has not written yet, and gives all rows.
fn write_all(
    args: &Generate,
    loaded: &Loaded,
    view: &View,
    prompts: &[Text],
    jobs: &[Job],
    settings: &Generation,
    scorer: Option<&dyn Scorer>,
) -> Result<Vec<Row>> {
    // No token has this id, so it ends each prompt.
    let ids = jobs.iter().flat_map(|job| job.ids.iter().copied().chain([u32::MAX]));
    let key = json!({
        "model": loaded.checkpoint().identity()?, "sampling": settings.sampling,
        "new_tokens": settings.max_new_tokens, "seed": settings.seed, "texts": jobs.len(),
        "prompts_sha256": hash_ids(ids), "scorer": scorer.map(Scorer::name),
        "keep_below": args.keep_below, "shard": args.shard, "dtype": loaded.precision,
    });
    // What goes to the terminal is kept nowhere else.
    let scratch = tempfile::tempdir()?;
    let out = args.out.clone().unwrap_or_else(|| scratch.path().join("texts.jsonl"));
    let ledger = Ledger::beside(&out, args.overwrite, &key);
    let mut ledger = ledger.map_err(|e| match e.downcast_ref::<Error>() {
        Some(_) => e,
        None => Error::Input(format!("--out {}: can't write there: {e:#}", out.display())).into(),
    })?;
    let units = args.shard.units(jobs.len().div_ceil(UNIT));
    let making = Making {
        what: "texts",
        in_unit: UNIT,
        total: units.len() * UNIT,
        quiet: args.output.quiet,
        interrupted: match args.out {
            Some(_) => {
                "interrupted; the texts so far are kept: give the same command again to go on"
            }
            None => "interrupted; without --out nothing is kept",
        },
    };
    ledger.fill(units, &making, |unit| {
        let (_, jobs) = items(jobs, UNIT, unit);
        let name = &loaded.checkpoint().name;
        let made = generate(&loaded.model, view, jobs, settings).map_err(of_model(name))?;
        let both = jobs.iter().zip(made);
        let texts = both.map(|(job, ids)| loaded.encoder.decode_after(&job.ids, &ids));
        let texts = texts.collect::<Result<_>>()?;
        if interrupt::asked() {
            // A text that the interrupt cut short is not the text of this seed. The ledger throws
            // the unit away.
            return Ok(Vec::new());
        }
        rows(args, prompts, jobs, texts, scorer)
    })?;
    ledger.finish(&out, is_kept)
}

/// The texts for a terminal, or as JSON lines.
fn on_terminal(args: &Generate, rows: &[Row]) -> Result<()> {
    let (mut last, text) = (None, |row: &Row, key: &str| {
        row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    });
    for row in rows.iter().filter(|row| is_kept(row)) {
        if args.output.json {
            print::json(row)?;
            continue;
        }
        let prompt = row.get("prompt").map(|_| text(row, "prompt"));
        if prompt.is_some() && prompt != last {
            print_line!("> {}", prompt.as_deref().map(plain_line).unwrap_or_default())?;
        }
        let key = if prompt.is_some() { "continuation" } else { "text" };
        let score = row.get("score").and_then(Value::as_f64);
        let score = score.map_or(String::new(), |score| format!("{score:.2}  "));
        let said = text(row, key);
        let said = if said.trim().is_empty() { "(nothing)" } else { said.as_str() };
        print_line!("  {score}{}", plain_line(said))?;
        last = prompt;
    }
    Ok(())
}

/// A model with a chat template continues a plain prompt, but it was trained to answer.
fn say_of_plain_prompts(args: &Generate, prompts: &[Text]) {
    let plain = prompts.iter().filter(|prompt| prompt.messages.is_empty()).count();
    if plain > 0 {
        say!(
            "{} has a chat template, and {plain} of {} prompts are plain text: they are continued \
             as they are; for answers give rows with \"messages\", or take irepair try",
            args.model.model,
            prompts.len()
        );
    }
}

/// Whether a row goes into the output. Texts that scored too much do not, and neither do empty
/// texts without a prompt.
fn is_kept(row: &Row) -> bool {
    let has = |key: &str| row.contains_key(key);
    !(has("removed") || has("empty") && has("text"))
}
