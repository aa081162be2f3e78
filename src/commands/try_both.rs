//! `try` shows what a model and its repaired form say to the same prompts, side by side.

use std::io::{BufRead, IsTerminal};
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Loaded, On, check_sampling, in_counts, instructs, open, typed};
use crate::base::error::Error;
use crate::base::plain::plain_line;
use crate::base::print;
use crate::checkpoint::hub::rows_path;
use crate::cli::Try;
use crate::data::{self, Text};
use crate::eval::scoring::{TextScore, score_texts};
use crate::eval::sources;
use crate::model::generate::{Generation, Job, Sampling, generate};
use crate::model::memory::Passes;
use crate::model::precision::Precision;
use crate::model::weights::{Weights, Who};
use crate::scorers::{self, Scorer, TOXIC};
use crate::{bail_input, print_line, say};

/// Prompts that are shown where none are given.
const SHOWN: usize = 3;

/// One of the two models, with its weights.
struct Side<'a> {
    name: &'a str,
    loaded: Loaded,
    weights: Weights,
}

/// What a model said, and the score of it.
struct Said {
    text: String,
    score: TextScore,
}

pub fn run(args: &Try) -> Result<()> {
    in_counts(&[
        ("--max-new-tokens", args.max_new_tokens),
        ("--limit", args.limit.unwrap_or(1)),
        ("--samples", args.samples + 1),
    ])?;
    check_sampling(args.top_p, args.temperature)?;
    let options = scorers::Options { toxic_label: args.writing.toxic_label.clone() };
    let scorer = scorers::open(&args.scorer, &options)?;
    let prompts = prompts(args)?;
    let sides = [Side::open(args, &args.base)?, Side::open(args, &args.repaired)?];
    let talks = prompts.is_empty() || args.prompt.is_empty() && args.prompts.is_none();
    let talks = talks && !args.output.json && std::io::stdin().is_terminal();
    if prompts.is_empty() && !talks {
        return Err(Error::Usage(format!(
            "give --prompt TEXT or --prompts FILE; {} has no held-back prompts of its own",
            args.repaired
        ))
        .into());
    }
    let trial = Trial { args, sides: &sides, scorer: scorer.as_ref() };
    trial.say_what_is_asked(&prompts);
    let mut shown = Vec::new();
    for (number, prompt) in prompts.iter().enumerate() {
        shown.push(trial.show(number, prompt)?);
    }
    if args.output.json {
        return print::json(&json!({ "base": args.base, "repaired": args.repaired,
                                    "scorer": scorer.name(), "prompts": shown }));
    }
    if talks {
        trial.talk(prompts.len())?;
    }
    Ok(())
}

/// The prompts that are given, or the first that the repair has held back.
fn prompts(args: &Try) -> Result<Vec<Text>> {
    if !args.prompt.is_empty() {
        return Ok(typed(&args.prompt));
    }
    if let Some(path) = &args.prompts {
        return data::read_prompts(&rows_path(path)?, &data::KeyMap::new(), args.limit);
    }
    let limit = Some(args.limit.unwrap_or(SHOWN));
    let own = Path::new(&args.repaired).join("irepair").join("prompts.jsonl");
    if own.is_file() {
        return data::read_prompts(&own, &data::KeyMap::new(), limit);
    }
    match args.base.as_str() {
        "demo" => sources::prompts(sources::DEMO, limit),
        _ => Ok(Vec::new()),
    }
}

impl<'a> Side<'a> {
    fn open(args: &Try, name: &'a str) -> Result<Self> {
        let on = On {
            device: &args.machine.device,
            dtype: Precision::F32,
            weights_dtype: args.machine.weights_dtype,
            threads: args.machine.threads,
        };
        let loaded = open(name, None, &on)?;
        let written = (args.samples.max(1), loaded.model.sizes().context);
        let passes =
            Passes { plain_rows: written.1, longest: written.1, written, ..Passes::default() };
        loaded.check_memory(&passes, "lower --samples, or take smaller models")?;
        let weights = loaded.weights()?;
        Ok(Self { name, loaded, weights })
    }

    /// The greedy continuation, and the sampled ones.
    fn says(&self, args: &Try, number: usize, prompt: &Text) -> Result<Vec<String>> {
        let Self { loaded, weights, .. } = self;
        let ids = loaded.encoder.prompt(prompt)?;
        let context = loaded.model.sizes().context;
        if ids.is_empty() || ids.len() >= context {
            bail_input!(
                "{}: a prompt of {} tokens; {} has room for 1 to {} before a new token",
                prompt.place,
                ids.len(),
                self.name,
                context - 1
            );
        }
        let view = weights.frozen(Who::Patient)?;
        let random =
            Sampling::Random { temperature: args.temperature, top_k: 0, top_p: args.top_p };
        let mut texts = Vec::new();
        for (sampling, samples) in [(Sampling::Greedy, 1), (random, args.samples as u64)] {
            let settings = Generation {
                sampling,
                max_new_tokens: args.max_new_tokens,
                ends: loaded.ends(),
                seed: args.writing.seed,
                at_a_time: usize::MAX,
            };
            let job = |sample| Job::new(ids.clone(), number as u64, sample);
            let jobs: Vec<Job> = (0..samples).map(job).collect();
            for ids in generate(&loaded.model, &view, &jobs, &settings)? {
                texts.push(loaded.encoder.decode(&ids)?);
            }
        }
        Ok(texts)
    }
}

/// Two models and what scores them.
struct Trial<'a> {
    args: &'a Try,
    sides: &'a [Side<'a>; 2],
    scorer: &'a dyn Scorer,
}

impl Trial<'_> {
    /// Says how prompts reach the models, where that is not plain.
    fn say_what_is_asked(&self, prompts: &[Text]) {
        let [base, _] = self.sides;
        if self.args.output.quiet || !instructs(&base.loaded) {
            return;
        }
        if self.args.plain {
            say!(
                "{} has a chat template; with --plain prompts are continued as they are",
                base.name
            );
        } else if prompts.iter().all(|prompt| prompt.messages.is_empty()) {
            say!("{} has a chat template: a prompt is what a user says (or --plain)", base.name);
        }
    }

    /// The prompt as an instruct model is asked: as what a user says.
    fn asked(&self, side: &Side, prompt: &Text) -> Text {
        let mut asked = prompt.clone();
        if asked.messages.is_empty() && !self.args.plain && instructs(&side.loaded) {
            asked.messages = vec![json!({ "role": "user", "content": prompt.text })];
        }
        asked
    }

    /// Shows what both models say to a prompt, and gives it for JSON.
    fn show(&self, number: usize, prompt: &Text) -> Result<Value> {
        let mut both = Vec::new();
        for side in self.sides {
            let texts = side.says(self.args, number, &self.asked(side, prompt))?;
            let scores = score_texts(self.scorer, &texts)?;
            let said = texts.into_iter().zip(scores).map(|(text, score)| Said { text, score });
            both.push(said.collect::<Vec<Said>>());
        }
        if !self.args.output.json {
            self.print(prompt, &both)?;
        }
        let of = |said: &[Said]| said.iter().enumerate().map(Said::json).collect::<Vec<_>>();
        Ok(json!({ "prompt": prompt.text, "base": of(&both[0]), "repaired": of(&both[1]) }))
    }

    fn print(&self, prompt: &Text, both: &[Vec<Said>]) -> Result<()> {
        let names = self.sides.each_ref().map(|side| side.name.to_owned());
        let width = columns();
        let asked = self.veiled_prompt(prompt)?.replace('\n', " ↵ ");
        print_line!("\n> {}", plain_line(&asked))?;
        print::text(beside("", &names, width))?;
        for (index, (base, repaired)) in both[0].iter().zip(&both[1]).enumerate() {
            let way = if index == 0 { "greedy" } else { "sampled" };
            print::text(beside(way, &[base.words(self.args), repaired.words(self.args)], width))?;
        }
        Ok(())
    }

    /// What a user types is shown as it is; a prompt of a file may be rude.
    fn veiled_prompt(&self, prompt: &Text) -> Result<String> {
        if self.args.show || !self.args.prompt.is_empty() || prompt.text.trim().is_empty() {
            return Ok(prompt.text.clone());
        }
        let score = score_texts(self.scorer, &[&prompt.text])?.pop();
        Ok(match score {
            Some(TextScore::Score(score)) if score < TOXIC => prompt.text.clone(),
            _ => veil(&prompt.text),
        })
    }

    /// Asks for prompts on the terminal until there is none.
    fn talk(&self, first: usize) -> Result<()> {
        print_line!("\nA prompt a line; an empty line, or Ctrl-D, ends it.")?;
        let mut lines = std::io::stdin().lock().lines();
        for number in first.. {
            print::bytes(b"prompt> ")?;
            let Some(Ok(line)) = lines.next() else { break };
            if line.trim().is_empty() {
                break;
            }
            for prompt in typed(&[line]) {
                if let Err(error) = self.show(number, &prompt) {
                    say!("{error:#}");
                }
            }
        }
        Ok(())
    }
}

impl Said {
    fn json((index, Self { text, score }): (usize, &Self)) -> Value {
        let score = match score {
            TextScore::Score(score) => Some(*score),
            TextScore::Empty | TextScore::Failed(_) | TextScore::Refused(_) => None,
        };
        json!({ "sampled": index > 0, "text": text, "score": score })
    }

    /// The score and the text; a text that is rude, or may be, is behind a veil unless it is asked
    /// for.
    fn words(&self, args: &Try) -> String {
        let plain = |text: &str| plain_line(&text.trim().replace('\n', " ↵ ")).into_owned();
        let (text, veiled) = (plain(&self.text), plain(&veil(&self.text)));
        match &self.score {
            TextScore::Empty => "(nothing)".into(),
            TextScore::Score(score) if *score < TOXIC || args.show => format!("{score:.2} {text}"),
            TextScore::Score(score) => format!("{score:.2} {veiled}"),
            TextScore::Failed(_) | TextScore::Refused(_) if args.show => {
                format!("no score: {text}")
            }
            TextScore::Failed(_) | TextScore::Refused(_) => format!("no score: {veiled}"),
        }
    }
}

/// The shape of a text without its words.
fn veil(text: &str) -> String {
    text.chars().map(|c| if c.is_alphanumeric() { '▒' } else { c }).collect()
}

/// Columns of the terminal; 80 where there is none.
fn columns() -> usize {
    let (_, columns) = console::Term::stdout().size_checked().unwrap_or((24, 80));
    usize::from(columns).clamp(40, 160)
}

/// Two texts in columns beside each other, under a word at the left.
fn beside(word: &str, texts: &[String; 2], width: usize) -> String {
    const NAME: usize = 9;
    let column = (width - NAME - 3) / 2;
    let [left, right] = texts.each_ref().map(|text| wrapped(text, column));
    let empty = String::new();
    let mut lines = String::new();
    for index in 0..left.len().max(right.len()) {
        let [left, right] = [&left, &right].map(|text| text.get(index).unwrap_or(&empty));
        let word = if index == 0 { word } else { "" };
        let pad = " ".repeat(column.saturating_sub(left.chars().count()));
        lines += format!("{word:<NAME$}{left}{pad} | {right}").trim_end();
        lines.push('\n');
    }
    lines
}

/// Lines of at most so many characters, broken at spaces where there are some.
fn wrapped(text: &str, column: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word: Vec<char> = word.chars().collect();
        while let Some(line) = lines.last_mut() {
            let used = line.chars().count();
            let space = usize::from(used > 0);
            if used + space + word.len() <= column {
                if space > 0 {
                    line.push(' ');
                }
                line.extend(word);
                break;
            }
            if used == 0 {
                line.extend(word.drain(..column));
            }
            lines.push(String::new());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_hold_every_word() {
        assert_eq!(wrapped("a bc def", 4), ["a bc", "def"]);
        assert_eq!(wrapped("abcdefghij k", 4), ["abcd", "efgh", "ij k"]);
        let texts = ["one two three".to_owned(), "four".to_owned()];
        let lines = beside("greedy", &texts, 31);
        assert_eq!(lines, "greedy   one two   | four\n         three     |\n");
    }

    #[test]
    fn a_veil_keeps_the_shape_alone() {
        assert_eq!(veil("Go to h3ll!"), "▒▒ ▒▒ ▒▒▒▒!");
    }
}
