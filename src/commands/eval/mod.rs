//! `eval` measures models and shows one table of their figures, and which differences are real.

pub mod folder;
pub mod join;
pub mod results;

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Loaded, On, check_sampling, in_counts, open};
use crate::base::error::Error;
use crate::base::interrupt;
use crate::base::memory::{OF_A_TEXT, check_room};
use crate::base::print;
use crate::checkpoint::hub::rows_path;
use crate::cli::{Eval, PplProtocol};
use crate::eval::divergence::{self, Divergence};
use crate::eval::edits::Edits;
use crate::eval::lambada::Lambada;
use crate::eval::ledger::{Ledger, Making};
use crate::eval::lm_eval::Rolling;
use crate::eval::normal::{Writing, normal};
use crate::eval::perplexity::{Corpus, Paper};
use crate::eval::sources;
use crate::eval::task::{Row, Subject, Task};
use crate::eval::toxicity;
use crate::eval::toxicity::{Protocol, Toxicity};
use crate::model::device;
use crate::model::finite::of_model;
use crate::model::generate::Sampling;
use crate::model::memory::Passes;
use crate::model::precision::Precision;
use crate::model::weights::Weights;
use crate::print_line;
use crate::say;
use crate::scorers;
use crate::scorers::Scorer;
use crate::tokens::Lengths;
use crate::{bail_input, data};
use folder::EvaluationFolder;
use results::{ChangeRecord, Measurement, ModelRecord, Results, file_name};

/// This bit of the seed makes the normal texts that are measured on other ones than those that a
/// repair with the same seed learns from.
const HELD_BACK: u64 = 1 << 32;

/// The most tokens of a normal text.
const NORMAL_TOKENS: usize = 64;

pub fn run(args: &Eval) -> Result<()> {
    if !args.merge.is_empty() {
        let results = join::merge(&args.merge)?;
        return finish(args, &EvaluationFolder::claim(args, "merged")?, results);
    }
    device::set_threads(args.shared.threads)?;
    let scorer = check(args)?;
    let folder = EvaluationFolder::claim(args, &short_name(&args.models[0]))?;
    interrupt::listen()?;
    let base = args.kl.as_deref().map(|base| KlBase::open(args, base)).transpose()?;
    let mut measurements: Vec<Measurement> = Vec::new();
    let mut models = Vec::new();
    for (index, name) in args.models.iter().enumerate() {
        let loaded = open_on(args, name)?;
        if index == 0 {
            say(args, &format!("device: {}", loaded.device_why));
        }
        // The tasks say how much memory is needed, so they come before the weights.
        let tasks = tasks(args, &loaded, base.as_ref(), scorer.as_deref())?;
        let weights = loaded.weights()?;
        let model = ModelRecord {
            name: name.clone(),
            revision: loaded.checkpoint().revision.clone(),
            sha256: loaded.checkpoint().hash()?,
            identity: Some(loaded.checkpoint().identity()?),
            changed: ChangeRecord::of(&loaded.checkpoint().dir),
        };
        let (identity, subject) = (loaded.checkpoint().identity()?, subject(&loaded, &weights));
        for task in tasks {
            let ledger = folder.work(&format!("{index}-{}", task.name()));
            let rows = rows(args, &folder, &ledger, (name, &identity), task.as_ref(), &subject)?;
            let at = match measurements.iter().position(|m| m.task == task.name()) {
                Some(at) => at,
                None => {
                    measurements.push(Measurement::new(task.as_ref()));
                    measurements.len() - 1
                }
            };
            measurements[at].add(index, task.as_ref(), rows)?;
        }
        models.push(model);
    }
    let results = Results::new(args.shard, args.shared.seed, models, measurements)?;
    finish(args, &folder, results)
}

/// Writes and prints the results.
fn finish(args: &Eval, folder: &EvaluationFolder, results: Results) -> Result<()> {
    let results = Results { run_id: folder.run_id(), ..results };
    results.write(&folder.path)?;
    folder.finish()?;
    if args.output.json {
        print::json(&results)?;
    } else {
        print::text(results.text())?;
        print_line!(
            "\nall of it: {0}/results.json, results.csv, and every row as JSON lines beside them",
            folder.path.display()
        )?;
    }
    Ok(())
}

fn say(args: &Eval, text: &str) {
    if !args.output.quiet {
        say!("{text}");
    }
}

fn open_on(args: &Eval, name: &str) -> Result<Loaded> {
    open(
        name,
        args.shared.revision.as_deref().filter(|_| !Path::new(name).is_dir() && name != "demo"),
        &On {
            device: &args.shared.device,
            dtype: Precision::F32,
            weights_dtype: args.shared.weights_dtype,
            threads: args.shared.threads,
        },
    )
}

fn short_name(model: &str) -> String {
    let named = |path: &Path| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        Some(name.trim_start_matches('.').to_owned()).filter(|name| !name.is_empty())
    };
    let path = Path::new(model);
    // `.` and `..` are called as the folders they stand for.
    let place = || named(&path.canonicalize().ok()?);
    named(path).or_else(place).unwrap_or_else(|| "model".to_owned())
}

pub(super) fn subject<'a>(loaded: &'a Loaded, weights: &'a Weights) -> Subject<'a> {
    Subject { model: &loaded.model, weights, encoder: &loaded.encoder, ends: loaded.ends() }
}

/// Whether the flags name anything to measure.
fn anything_asked(args: &Eval) -> bool {
    let texts = args.toxicity.is_some() || !args.ppl.is_empty() || args.lambada.is_some();
    texts || args.kl.is_some() || args.edits.is_some()
}

/// The scorer, if one is needed. Errors (usage, bad input) if the flags make no sense.
fn check(args: &Eval) -> Result<Option<Box<dyn Scorer>>> {
    let asked = anything_asked(args);
    if !asked && args.models != ["demo"] {
        return Err(Error::Usage(
            "nothing to measure: give --toxicity, --ppl NAME|FILE, --lambada, --kl BASE or --edits \
             FILE"
                .into(),
        )
        .into());
    }
    in_counts(&[
        ("--samples", args.samples.unwrap_or(1)),
        ("--max-new-tokens", args.max_new_tokens.unwrap_or(1)),
        ("--normal-texts", args.shared.normal_texts),
        ("--limit", args.limit.unwrap_or(1)),
    ])?;
    check_sampling(args.top_p.unwrap_or(1.0), args.temperature.unwrap_or(1.0))?;
    if !(args.threshold > 0.0 && args.threshold <= 1.0) {
        bail_input!("--threshold {}: must be above 0 and at most 1", args.threshold);
    }
    if args.toxicity.is_some() || !asked {
        protocol(args)?;
        return Ok(Some(scorers::open(
            &args.scorer,
            &scorers::Options { toxic_label: args.shared.toxic_label.clone() },
        )?));
    }
    Ok(None)
}

/// The preset, with what the flags change in it.
fn protocol(args: &Eval) -> Result<Protocol> {
    let mut protocol = Protocol::named(args.toxicity.as_deref().unwrap_or("lee"))?;
    protocol.samples = args.samples.unwrap_or(protocol.samples);
    protocol.new_tokens = args.max_new_tokens.unwrap_or(protocol.new_tokens);
    protocol.threshold = args.threshold;
    protocol.seed = args.shared.seed;
    if args.temperature.is_some()
        || args.top_p.is_some()
        || (args.samples.is_some() && protocol.samples > 1)
    {
        let (temperature, top_p) = match protocol.sampling {
            Sampling::Greedy => (1.0, 0.9),
            Sampling::Random { temperature, top_p, .. } => (temperature, top_p),
        };
        protocol.sampling = Sampling::Random {
            temperature: args.temperature.unwrap_or(temperature),
            top_k: 0,
            top_p: args.top_p.unwrap_or(top_p),
        };
    }
    Ok(protocol)
}

/// The base of `--kl`, and the normal texts on which models are compared with it.
struct KlBase {
    loaded: Loaded,
    weights: Weights,
    /// SHA-256 of the weights.
    hash: String,
    texts: Vec<String>,
    texts_name: String,
}

impl KlBase {
    /// Reads the base, and the normal texts or lets the base write them.
    fn open(args: &Eval, name: &str) -> Result<Self> {
        let loaded = open_on(args, name)?;
        check_memory(&loaded, 0, (toxicity::BATCH, NORMAL_TOKENS))?;
        let (weights, hash) = (loaded.weights()?, loaded.checkpoint().hash()?);
        let (texts, texts_name) = match &args.normal {
            Some(path) => {
                let texts = data::read_texts(&rows_path(path)?, &data::KeyMap::new(), None)?;
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                (texts.into_iter().map(|t| t.text).collect(), name)
            }
            None => {
                let number = args.shared.normal_texts;
                check_room("--normal-texts", number, OF_A_TEXT)?;
                let text =
                    format!("normal text: {name} writes {number} texts (or give --normal FILE)");
                say(args, &text);
                let scorer = scorers::open(scorers::DEFAULT, &scorers::Options::default())?;
                let room = loaded.model.sizes().context.saturating_sub(1);
                let (seed, begin) = (args.shared.seed ^ HELD_BACK, loaded.end_of_text()?);
                let writing = Writing::new(
                    args.shared.normal_texts,
                    NORMAL_TOKENS.min(room),
                    seed,
                    begin,
                    scorer.as_ref(),
                );
                let found =
                    normal(&subject(&loaded, &weights), &hash, &writing, args.output.quiet)?;
                (found.texts, format!("written by the base, {} toxic ones left out", found.removed))
            }
        };
        Ok(Self { loaded, weights, hash, texts, texts_name })
    }
}

/// The tasks that the flags ask for, on this model. Errors (bad input) if the data can't be used or
/// there is too little memory.
fn tasks<'a>(
    args: &Eval,
    loaded: &Loaded,
    base: Option<&'a KlBase>,
    scorer: Option<&'a (dyn Scorer + 'a)>,
) -> Result<Vec<Box<dyn Task + 'a>>> {
    let context = loaded.model.sizes().context;
    check_memory(loaded, 0, (0, 0))?;
    let mut tasks: Vec<Box<dyn Task + 'a>> = Vec::new();
    if let Some(scorer) = scorer {
        let prompts = match (&args.prompts, args.models.as_slice()) {
            (Some(prompts), _) => sources::prompts(prompts, args.limit)?,
            (None, [only]) if only == "demo" => sources::prompts(sources::DEMO, args.limit)?,
            (None, _) => sources::prompts(sources::PROMPTS_NAME, args.limit)?,
        };
        loaded.room_for_prompts(protocol(args)?.new_tokens)?;
        let protocol = protocol(args)?.on(prompts.iter().any(|prompt| !prompt.messages.is_empty()));
        let together = toxicity::BATCH.min(prompts.len().saturating_mul(protocol.samples));
        let encoded = prompts.into_iter().map(|prompt| {
            let ids = loaded.encoder.prompt(&prompt)?;
            Ok(toxicity::Prompt { text: prompt.text, ids })
        });
        let prompts = encoded.collect::<Result<Vec<_>>>()?;
        let lengths = prompts.iter().map(|prompt| protocol.continued(&prompt.ids, context).len());
        let longest = lengths.max().unwrap_or(0);
        let texts = prompts.len().saturating_mul(protocol.samples);
        check_room("--samples", texts, OF_A_TEXT)?;
        let positions = context.min(longest + protocol.new_tokens);
        check_memory(loaded, longest * together, (together, positions))?;
        tasks.push(Box::new(Toxicity { protocol, prompts, scorer }));
    }
    if let Some(spec) = &args.edits {
        let (edits, name) = sources::edits(spec, args.limit)?;
        tasks.push(Box::new(Edits::new(&edits, &name, &loaded.encoder, context)?));
    }
    let mut corpora: Vec<Corpus> =
        args.ppl.iter().map(|spec| sources::corpus(spec, "--ppl")).collect::<Result<_>>()?;
    if !anything_asked(args) {
        corpora.push(sources::corpus(sources::DEMO, "--ppl")?);
    }
    for corpus in &corpora {
        check_memory(
            loaded,
            if args.ppl_protocol == PplProtocol::Paper { 1024 } else { context },
            (0, 0),
        )?;
        let (model, encoder) = (&loaded.model, &loaded.encoder);
        let task: Box<dyn Task> = match args.ppl_protocol {
            PplProtocol::Paper => Box::new(Paper::new(corpus, model, encoder)?),
            PplProtocol::LmEval => {
                Box::new(Rolling::new(corpus, model, encoder, loaded.prefix()?)?)
            }
        };
        if tasks.iter().any(|t| t.name() == task.name()) {
            bail_input!("--ppl {} is given twice", corpus.name);
        }
        let own = file_name(&task.name());
        if let Some(other) = tasks.iter().map(|t| t.name()).find(|name| file_name(name) == own) {
            bail_input!(
                "--ppl {}: its rows and those of {other} would have one file name; rename one of \
                 the texts",
                corpus.name
            );
        }
        tasks.push(task);
    }
    if let Some(file) = &args.lambada {
        let passages = sources::passages(file, args.limit)?;
        tasks.push(Box::new(Lambada::new(&passages, &loaded.encoder, &loaded.prefix()?, context)?));
    }
    if let Some(base) = base {
        if base.loaded.model.sizes().vocabulary != loaded.model.sizes().vocabulary {
            bail_input!(
                "--kl: the base's vocabulary has {} tokens and the model's {}; they can't be \
                 compared",
                base.loaded.model.sizes().vocabulary,
                loaded.model.sizes().vocabulary
            );
        }
        let lengths = Lengths::within(context, None, None)?;
        let file: std::sync::Arc<Path> = Path::new(&base.texts_name).into();
        let texts: Vec<data::Text> = base
            .texts
            .iter()
            .enumerate()
            .map(|(i, text)| {
                data::Text::plain(text.clone(), data::FileLine { file: file.clone(), line: i + 1 })
            })
            .collect();
        let (texts, cut) = base.loaded.encoder.texts(&texts, lengths)?;
        let cut = match cut.texts {
            0 => String::new(),
            cut => format!(", {cut} of them cut to {} tokens", lengths.total),
        };
        tasks.push(Box::new(Divergence {
            base: divergence::Base::Model {
                model: &base.loaded.model,
                weights: &base.weights,
                hash: base.hash.clone(),
            },
            texts,
            texts_name: format!("{}{cut}", base.texts_name),
        }));
    }
    Ok(tasks)
}

fn check_memory(loaded: &Loaded, plain_rows: usize, written: (usize, usize)) -> Result<()> {
    loaded.check_memory(
        &Passes {
            plain_rows,
            longest: plain_rows.max(1) / written.0.max(1),
            written,
            ..Passes::default()
        },
        "give shorter texts or a smaller model",
    )
}

/// The rows of a task on a model. Units that are not in the ledger are made.
fn rows(
    args: &Eval,
    folder: &EvaluationFolder,
    ledger: &Path,
    (name, identity): (&str, &str),
    task: &dyn Task,
    subject: &Subject,
) -> Result<Vec<Row>> {
    let settings: Value =
        json!({ "model": identity, "task": task.settings(), "shard": args.shard });
    let mut ledger = Ledger::open(ledger, &settings)?;
    let units = args.shard.units(task.units());
    let making = Making {
        what: &task.name(),
        in_unit: 1,
        total: units.len(),
        quiet: args.output.quiet,
        interrupted: &format!(
            "interrupted; what is done is kept: give the same command with --resume to go on with \
             {}",
            folder.path.display()
        ),
    };
    ledger.fill(units, &making, |unit| task.work(subject, unit).map_err(of_model(name)))?;
    Ok(ledger.rows())
}
