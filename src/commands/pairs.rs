//! `pairs`: preference pairs of a model's own texts, told apart by a scorer.

use anyhow::Result;
use serde_json::{Value, json};

use super::eval::subject;
use super::{Loaded, replaceable};
use crate::base::error::Error;
use crate::base::print;
use crate::base::{files, interrupt};
use crate::checkpoint::hub::rows_path;
use crate::cli::Pairs;
use crate::cli::shared::in_range;
use crate::data::demo;
use crate::data::{self, Text};
use crate::eval::samples::{Pool, Protocol, Round, Sample, SamplePair, Writer};
use crate::eval::toxicity::Prompt;
use crate::model::finite::of_model;
use crate::model::memory::Passes;
use crate::print_line;
use crate::say;
use crate::settings::check_thresholds;
use crate::tokens::Lengths;
use crate::{bail_input, scorers};

pub fn run(args: &Pairs) -> Result<()> {
    let words = &args.writing;
    for (name, value) in [
        ("samples-per-prompt", Value::from(words.samples_per_prompt)),
        ("max-new-tokens", words.max_new_tokens.into()),
        ("pairs-per-prompt", words.pairs_per_prompt.into()),
        ("temperature", words.temperature.into()),
        ("top-p", words.top_p.into()),
    ] {
        in_range(name, value)?;
    }
    check_thresholds(words.rejected_above, words.chosen_below)?;
    replaceable(&args.out, args.overwrite)?;
    if words.top_p > 1.0 {
        bail_input!("--top-p {}: must be above 0 and at most 1", words.top_p);
    }
    let read_from = args.prompts.as_ref().and_then(|path| path.canonicalize().ok());
    if read_from.is_some_and(|path| args.out.canonicalize().is_ok_and(|out| out == path)) {
        bail_input!("--out {} is the file of prompts itself; choose another", args.out.display());
    }
    let options = scorers::Options { toxic_label: words.toxic_label.clone() };
    let scorer = scorers::open(&words.scorer, &options)?;
    let loaded = args.model.open()?;
    let (texts, prompts) = read(args, &loaded)?;
    let longest = prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0);
    let passes = Passes {
        plain_rows: longest * 64,
        longest,
        written: (64, longest + words.max_new_tokens),
        ..Passes::default()
    };
    loaded.check_memory(&passes, "lower --max-prompt-length or --max-new-tokens")?;
    let mut weights = loaded.weights()?;
    weights.set_precision(loaded.precision);
    interrupt::listen()?;
    let writer = Writer {
        subject: subject(&loaded, &weights),
        scorer: scorer.as_ref(),
        protocol: Protocol {
            samples: words.samples_per_prompt,
            new_tokens: words.max_new_tokens,
            temperature: words.temperature,
            top_p: words.top_p,
            rejected_above: words.rejected_above,
            chosen_below: words.chosen_below,
            pairs: words.pairs_per_prompt,
            seed: words.seed,
        },
        quiet: args.output.quiet,
        again: "what is done is kept: give the same command again to go on",
    };
    let key = json!({ "model": loaded.checkpoint().identity()?, "dtype": loaded.precision,
                      "prompts_sha256": files::hash_texts(texts.iter().map(|t| t.text.as_str())) });
    let beside = files::partial(&args.out);
    let mut pool = Pool::default();
    let all: Vec<usize> = (0..prompts.len()).collect();
    let round = Round {
        chosen: &all,
        number: 0,
        over: false,
        path: &beside,
        key: &key,
        overwrite: args.overwrite,
    };
    let tally = writer.sample(&prompts, &round, &mut pool);
    let tally = tally.map_err(of_model(&loaded.checkpoint().name))?;
    let pairs = pool.extremes(&prompts, &writer.protocol);
    if pairs.is_empty() {
        std::fs::remove_file(&beside).ok();
        return Err(Error::Check(format!(
            "no prompt has texts of both kinds: {} of {} texts are toxic ({}), {} more are empty; \
             give more --samples-per-prompt, other thresholds, or other prompts",
            tally.toxic,
            tally.scored,
            tally.percent(),
            tally.empty
        ))
        .into());
    }
    let mut lines = Vec::new();
    for pair in &pairs {
        let row = row(&loaded, &texts[pair.prompt], pair)?;
        lines.extend(serde_json::to_vec(&row)?);
        lines.push(b'\n');
    }
    files::write_whole(&args.out, &lines)?;
    std::fs::remove_file(&beside).ok();
    if args.output.json {
        print::json(
            &json!({ "pairs": pairs.len(), "prompts": prompts.len(), "texts": tally.scored,
                    "toxic": tally.toxic, "empty": tally.empty, "asked": pool.asked,
                    "out": args.out }),
        )?;
        return Ok(());
    }
    print_line!(
        "{} pairs in {}: {} texts after {} prompts, {} toxic (greedy {}), {} empty",
        pairs.len(),
        args.out.display(),
        tally.scored,
        prompts.len(),
        tally.percent(),
        tally.greedy_percent(),
        tally.empty
    )?;
    print_line!("scored by {}: {}; asked for {} texts", scorer.name(), scorer.about(), pool.asked)?;
    Ok(())
}

/// The prompts, as they stand in the file and in tokens.
/// What is longer than the model continues is cut in both.
fn read(args: &Pairs, loaded: &Loaded) -> Result<(Vec<Text>, Vec<Prompt>)> {
    let mut texts = match &args.prompts {
        Some(path) => data::read_prompts(&rows_path(path)?, &data::KeyMap::new(), args.limit)?,
        None if args.model.model == "demo" => {
            let pairs = data::parse_pairs("demo pairs", demo::PAIRS)?.into_iter();
            let texts = pairs.map(|pair| Text::plain(pair.prompt, pair.place));
            texts.take(args.limit.unwrap_or(usize::MAX)).collect()
        }
        None => return Err(Error::Usage("give --prompts FILE".into()).into()),
    };
    let context = loaded.model.sizes().context;
    let lengths = Lengths::within(context, None, args.writing.max_prompt_length)?;
    let longest = lengths.prompt.min(loaded.room_for_prompts(args.writing.max_new_tokens)?);
    let (mut prompts, mut cut) = (Vec::with_capacity(texts.len()), 0);
    for text in &mut texts {
        let mut ids = loaded.encoder.prompt(text)?;
        if text.cut(&mut ids, longest) {
            cut += 1;
            if text.messages.is_empty() {
                text.text = loaded.encoder.decode(&ids)?;
            }
        }
        prompts.push(Prompt { text: text.text.clone(), ids });
    }
    if prompts.is_empty() {
        bail_input!("--limit 0 leaves no prompt");
    }
    if cut > 0 && !args.output.quiet {
        say!("{cut} of {} prompts were cut to {longest} tokens", prompts.len());
    }
    Ok((texts, prompts))
}

/// A pair as TRL has it, with its scores.
fn row(loaded: &Loaded, prompt: &Text, pair: &SamplePair) -> Result<Value> {
    let answer = |sample: &Sample| match prompt.messages.is_empty() {
        true => Ok(json!(sample.text)),
        // The chat template writes the space before an answer.
        false => loaded
            .encoder
            .decode(&sample.ids)
            .map(|text| json!([{ "role": "assistant", "content": text }])),
    };
    let before = match prompt.messages.is_empty() {
        true => json!(prompt.text),
        false => json!(prompt.messages),
    };
    let chosen = pair.chosen.as_ref();
    Ok(json!({
        "prompt": before, "chosen": chosen.map(answer).transpose()?,
        "rejected": answer(&pair.rejected)?, "chosen_score": chosen.map(|sample| sample.score),
        "rejected_score": pair.rejected.score,
    }))
}
