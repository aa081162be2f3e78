//! `tune` searches the settings of a repair that matter, on development prompts: every try is a
//! `repair` in a process of its own. It keeps all tries, shows the front of toxicity against KL as
//! it grows, and writes the chosen settings as a file for `repair --config`.

mod search;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::bail_input;
use crate::base::claim::{self, Claim};
use crate::base::error::Error;
use crate::base::files;
use crate::base::files::write_whole;
use crate::base::interrupt;
use crate::base::print;
use crate::base::shell;
use crate::cli::{Budget, MOST_TRIES, Tune};
use crate::commands::child::{self, Child, Machine, Outcome, several};
use crate::commands::repair::read_data;
use crate::commands::{Loaded, On, open};
use crate::eval::Figures;
use crate::print_line;
use crate::report::RunRecord;
use crate::report::tuned::{RECORD, Try, Tuned};
use crate::say;
use crate::scorers;
use crate::settings::{Layer, Layers, Method, Prepared, read_layer};
use search::{Came, Choice, Space};

/// What the folder of a search is marked for.
const KIND: &str = "search";
/// The file with what was searched, and from where.
const PLAN: &str = "plan.json";
/// The file with the chosen settings.
const CHOSEN: &str = "chosen.toml";
/// The selectors that are tried where none is given: the whole model, the most sensitive block, and
/// the block whose trial steps help most.
const SELECT: &[&str] = &["all", "max", "trial"];

pub fn run(args: &Tune) -> Result<()> {
    let mut search = Search::new(args)?;
    search.claim(args.resume)?;
    interrupt::listen()?;
    while search.goes_on() {
        search.make_round()?;
        search.tell();
    }
    let tuned = search.tuned();
    search.write(&tuned)?;
    match args.output.json {
        true => print::json(&tuned)?,
        false => print::text(tuned.sheet().text())?,
    }
    search.end(&tuned, args.output.json)
}

/// How a try failed.
struct Failed {
    why: String,
    /// What it took all the same.
    seconds: f64,
}

struct Search {
    dir: PathBuf,
    /// What the user gave.
    given: Layer,
    space: Space,
    budget: Budget,
    max_kl: f64,
    quiet: bool,
    machine: Machine,
    base: String,
    /// What all tries must have in common.
    plan: Value,
    tries: Vec<Try>,
    /// What the search goes by, of each try.
    known: Vec<(Choice, Option<Came>)>,
    before: Figures,
}

impl Search {
    /// Reads what is given, and says what is searched. Errors (bad input, usage) before anything is
    /// made.
    fn new(args: &Tune) -> Result<Self> {
        if !(args.max_kl > 0.0 && args.max_kl.is_finite()) {
            bail_input!("--max-kl {}: must be a number above 0", args.max_kl);
        }
        let (file_name, mut given) = read_layer(args.config.as_deref())?;
        given.extend(args.words.together());
        let has = |name: &str| given.contains_key(name);
        let by_name = has("method");
        let select = if by_name || has("select") { &[][..] } else { SELECT };
        if !by_name && !has("objective") && !select.is_empty() {
            given.insert("objective".into(), "dpo".into());
        }
        let holds = given.contains_key("kl-weight") || given.contains_key("kl-budget");
        let rate = given.contains_key("learning-rate");
        let resolve = |layer: Layer| Prepared::new(Layers::of_file(file_name.clone(), layer));
        // A first try without a KL budget, which a named method may have no use for.
        let mut first = given.clone();
        first.extend(select.first().map(|name| ("select".to_owned(), json!(name))));
        let prepared = resolve(first.clone())?;
        let Method::Blocks(recipe) = &prepared.method else {
            return Err(Error::Usage(format!(
                "--method {} repairs neurons; tune searches block-level methods",
                prepared.settings.method
            ))
            .into());
        };
        let with_kl = !by_name || recipe.kl_weight != 0.0;
        let space = Space {
            learning_rate: (!rate).then_some(prepared.learning_rate),
            kl_budget: (!holds && with_kl).then_some(args.max_kl),
            select,
        };
        if space.is_empty() {
            return Err(Error::Usage(
                "everything that tune searches is given; leave out --learning-rate, --kl-weight \
                 and --kl-budget, or --method and --select"
                    .into(),
            )
            .into());
        }
        let by_budget = space.kl_budget.is_some() || prepared.kl_budget.is_some();
        let on_the_way = recipe.online || prepared.eval_steps > 0;
        if !(by_budget || recipe.needs_normal() && on_the_way) {
            return Err(Error::Usage(
                "--max-kl goes by the KL from the base, which these repairs would not measure; \
                 give a method with a KL term (dapt+kl, dpo+kl, irepair+kl, …) and no \
                 --eval-steps 0"
                    .into(),
            )
            .into());
        }
        first.extend(space.next(&[], args.max_kl).layer());
        resolve(first)?;
        let machine = Machine::new(&prepared.device, args.jobs, prepared.threads)?;
        let loaded = opened(&prepared)?;
        let base = loaded.short_name();
        let dir = args.out.clone().unwrap_or_else(|| Path::new("tuned").join(&base));
        loaded.checkpoint().stays_whole(&dir)?;
        // Threads and devices change no choice; how many tries are made at a time does. Each
        // process gets its device and its threads as arguments.
        given.retain(|key, _| !["device", "threads"].contains(&key.as_str()));
        let learned_from = match prepared.recipe().is_some_and(|recipe| recipe.online) {
            true => None,
            false => Some(read_data(&prepared)?.sha256),
        };
        let options = scorers::Options { toxic_label: prepared.toxic_label.clone() };
        let plan = json!({
            "format_version": 2, "identity": loaded.checkpoint().identity()?, "given": given,
            "max_kl": args.max_kl, "jobs": machine.at_once, "data": learned_from,
            "inputs": files::hashes(prepared.inputs())?,
            "judge": scorers::open(prepared.judge(), &options)?.name(),
        });
        Ok(Self {
            dir,
            machine,
            given,
            space,
            budget: args.budget,
            max_kl: args.max_kl,
            quiet: args.output.quiet,
            base,
            plan,
            tries: Vec::new(),
            known: Vec::new(),
            before: Figures::new(),
        })
    }

    /// Makes the folder of the search, or goes on with it. Errors (bad input) if it holds another
    /// search or something else.
    fn claim(&self, resume: bool) -> Result<()> {
        let (dir, path) = (&self.dir, self.dir.join(PLAN));
        if path.exists() {
            let (true, Ok(text)) = (claim::is_ours(dir, KIND), files::read(&path)) else {
                bail_input!("{} is no search of irepair; choose another --out", dir.display());
            };
            if !resume {
                bail_input!(
                    "{} exists; go on with --resume, or choose another --out",
                    dir.display()
                );
            }
            let found: Value = serde_json::from_slice(&text)
                .map_err(|e| Error::Input(format!("{}: {e}", path.display())))?;
            if let Some(what) = differing(&found, &self.plan) {
                bail_input!(
                    "{}: that search was begun with another {what}; give the same, or choose \
                     another --out",
                    dir.display()
                );
            }
        } else if resume && !claim::is_ours(dir, KIND) {
            bail_input!("--resume: there is no search in {}", dir.display());
        }
        // A mark without a plan: killed between the two. It is held until the process ends.
        std::mem::forget(Claim::take(dir, KIND)?);
        std::fs::create_dir_all(dir.join("runs"))
            .with_context(|| format!("--out {}", dir.display()))?;
        files::sweep(dir).with_context(|| dir.display().to_string())?;
        write_whole(&path, serde_json::to_string_pretty(&self.plan)?.as_bytes())
    }

    /// Whether the budget allows for another try.
    fn goes_on(&self) -> bool {
        // What fails at every setting so far fails for a reason that no setting mends.
        let hopeless = self.tries.len() >= search::FIRST && self.tries.iter().all(Try::has_failed);
        if hopeless || self.tries.len() >= MOST_TRIES {
            return false;
        }
        match self.budget {
            Budget::Runs(runs) => self.tries.len() < runs,
            Budget::Time(time) => {
                // A round takes as long as its longest try.
                let longest = |round: &[Try]| round.iter().map(|t| t.seconds).fold(0.0, f64::max);
                let spent: f64 = self.tries.chunks(self.machine.at_once).map(longest).sum();
                Duration::from_secs_f64(spent) < time
            }
        }
    }

    /// The folder of the try with this number.
    fn out(&self, number: usize) -> PathBuf {
        self.dir.join("runs").join(format!("{number:04}"))
    }

    /// Makes as many tries as run at a time. Each is chosen as if those before it in the round had
    /// failed, so the order in which they end changes nothing.
    fn make_round(&mut self) -> Result<()> {
        let left = match self.budget {
            Budget::Runs(runs) => runs - self.tries.len(),
            Budget::Time(_) => self.machine.at_once,
        };
        let mut known = self.known.clone();
        let mut round: Vec<(usize, Choice)> = Vec::new();
        for _ in 0..self.machine.at_once.min(left) {
            let number = known.len() + 1;
            let choice = match self.begun_with(number)? {
                Some(choice) => choice,
                None => self.space.next(&known, self.max_kl),
            };
            known.push((choice.clone(), None));
            round.push((number, choice));
        }
        let done =
            several(self.machine.at_once, &round, |(number, choice)| self.make(*number, choice))?;
        for ((number, choice), done) in round.into_iter().zip(done) {
            self.take(number, choice, done)?;
        }
        Ok(())
    }

    /// What a try that is there, or was interrupted, was begun with. It may be another choice than
    /// today's: one before it that had failed may not fail again.
    fn begun_with(&self, number: usize) -> Result<Option<Choice>> {
        let out = self.out(number);
        if !out.join("irepair/run.json").is_file() && !child::has_state(&out) {
            return Ok(None);
        }
        let (_, layer) = read_layer(Some(&self.config(number)))?;
        Ok(Some(self.space.choice(&layer)))
    }

    /// The file with the settings of the try with this number.
    fn config(&self, number: usize) -> PathBuf {
        self.dir.join("runs").join(format!("{number:04}.toml"))
    }

    /// Takes what a try came to into the search.
    fn take(&mut self, number: usize, choice: Choice, done: Option<Failed>) -> Result<()> {
        let mut made = Try { number, settings: choice.layer(), ..Try::default() };
        let mut came = None;
        match done {
            Some(Failed { why, seconds }) => {
                made.failed = Some(why);
                made.seconds = seconds;
            }
            None => {
                let record = RunRecord::read(&self.out(number).join("irepair/run.json"))?;
                if self.before.is_empty() {
                    self.before = record.before.clone();
                }
                made.seconds = record.seconds;
                made.stopped = record.stopped.clone();
                made.figures = record.after.clone();
                came = came_of(&record);
                if came.is_none() {
                    made.failed = Some("its toxicity or KL was not measured".into());
                }
            }
        }
        self.tries.push(made);
        self.known.push((choice, came));
        Ok(())
    }

    /// Makes a try in a process of its own, if it is not there yet. Returns how it failed, if it
    /// did.
    fn make(&self, number: usize, choice: &Choice) -> Result<Option<Failed>> {
        let out = self.out(number);
        if out.join("irepair/run.json").is_file() {
            return Ok(None);
        }
        let mut layer = self.given.clone();
        layer.extend(choice.layer());
        // The choice goes by greedy texts.
        layer.entry("eval-samples").or_insert(0.into());
        // That a try is no repair is a result, too.
        layer.insert("fail-on".into(), "nothing".into());
        let config = self.config(number);
        let settings = toml::to_string(&layer).context("settings as TOML")?;
        write_whole(&config, settings.as_bytes())?;
        let total = match self.budget {
            Budget::Runs(runs) => runs,
            Budget::Time(_) => number,
        };
        let title = format!("try {number} of {total}");
        let begun = Instant::now();
        let failed = |why| Failed { why, seconds: begun.elapsed().as_secs_f64() };
        match Child::new(&title, &self.machine, self.quiet).repair(&config, &out)? {
            // A repair that changed nothing, or that its guard ended, is a finished try, too.
            _ if out.join("irepair/run.json").is_file() => Ok(None),
            Outcome::Done(_) => Ok(Some(failed("it left no run".into()))),
            Outcome::Failed(why) => Ok(Some(failed(why))),
            Outcome::Interrupted => Err(Error::Interrupted(format!(
                "interrupted; give the same command with --resume to go on with {}",
                self.dir.display()
            ))
            .into()),
        }
    }

    /// The record of the search so far.
    fn tuned(&self) -> Tuned {
        let came: Vec<Came> = self.known.iter().filter_map(|(_, came)| *came).collect();
        let chosen = search::best(&self.known, self.max_kl);
        let mut tries = self.tries.clone();
        for (at, (made, (_, own))) in tries.iter_mut().zip(&self.known).enumerate() {
            made.on_front = own.is_some_and(|own| search::is_on_front(own, came.clone()));
            made.chosen = chosen == Some(at);
        }
        Tuned {
            format_version: Tuned::FORMAT_VERSION,
            base: self.base.clone(),
            max_kl: self.max_kl,
            before: self.before.clone(),
            tries,
        }
    }

    /// The front, on stderr.
    fn tell(&self) {
        if !self.quiet {
            say!("{}", self.tuned().front());
        }
    }

    fn write(&self, tuned: &Tuned) -> Result<()> {
        let sheet = tuned.sheet();
        write_whole(&self.dir.join("tries.csv"), &sheet.csv()?)?;
        write_whole(&self.dir.join("README.md"), sheet.markdown().as_bytes())?;
        if let Some(chosen) = tuned.chosen() {
            let mut layer = self.given.clone();
            layer.extend(chosen.settings.clone());
            let text = toml::to_string(&layer).context("settings as TOML")?;
            let head = format!(
                "# Chosen by irepair tune: try {} of {}.\n",
                chosen.number,
                tuned.tries.len()
            );
            write_whole(&self.dir.join(CHOSEN), (head + &text).as_bytes())?;
        }
        write_whole(&self.dir.join(RECORD), serde_json::to_string_pretty(tuned)?.as_bytes())
    }

    /// Says what was chosen and what to do next. Errors (a failed check) if no try is better than
    /// the base.
    fn end(&self, tuned: &Tuned, json: bool) -> Result<()> {
        let dir = self.dir.display();
        let failed = tuned.tries.iter().filter_map(|made| made.failed.as_ref());
        if let Some(why) = failed.clone().next().filter(|_| failed.count() == tuned.tries.len()) {
            bail!("all {} tries failed; the first: {why}", tuned.tries.len());
        }
        let before = self.before.get("toxicity");
        let better = |made: &&Try| made.figures.get("toxicity") < before;
        let Some(chosen) = tuned.chosen().filter(better) else {
            return Err(Error::Check(format!(
                "no try is less toxic than the base at a KL of {} or less; all of them: \
                 {dir}/README.md",
                self.max_kl
            ))
            .into());
        };
        if !json {
            print_line!(
                "\nchosen: try {}, in {}\nnext: irepair eval --toxicity --prompts OTHERS --scorer \
                 ANOTHER --kl {} --model {}",
                chosen.number,
                shell::path(&self.dir.join(CHOSEN)),
                shell::word(self.base_words()),
                shell::path(&self.out(chosen.number))
            )?;
        }
        Ok(())
    }

    /// The base as the user named it.
    fn base_words(&self) -> &str {
        self.given.get("model").and_then(Value::as_str).unwrap_or("demo")
    }
}

fn opened(prepared: &Prepared) -> Result<Loaded> {
    let on = On {
        device: "cpu",
        dtype: prepared.dtype,
        weights_dtype: prepared.weights_dtype,
        threads: prepared.threads,
    };
    open(&prepared.model, prepared.revision.as_deref(), &on)
}

/// What a finished try came to, if both were measured.
fn came_of(record: &RunRecord) -> Option<Came> {
    let figure = |id: &str| record.after.get(id).copied().filter(|value| value.is_finite());
    Some(Came { toxicity: figure("toxicity")?, kl: figure("kl")? })
}

/// What two plans differ in: a part of them, or a setting.
fn differing(found: &Value, own: &Value) -> Option<String> {
    let (found, own) = (found.as_object()?, own.as_object()?);
    for (key, value) in own {
        let there = found.get(key).unwrap_or(&Value::Null);
        // Searches of an earlier version did not say what their files hold.
        let unsaid = there.is_null() && ["data", "inputs", "judge"].contains(&key.as_str());
        if unsaid || there == value {
            continue;
        }
        let (Some(there), Some(value)) = (there.as_object(), value.as_object()) else {
            let what = if key == "identity" { "base model" } else { key };
            return Some(what.replace('_', "-"));
        };
        let names = there.keys().chain(value.keys());
        let other = names.into_iter().find(|name| there.get(*name) != value.get(*name));
        return other.cloned();
    }
    None
}
