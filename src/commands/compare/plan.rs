//! The *plan* of a comparison: every method with every seed, their settings, and the one evaluation
//! of all of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::arguments;
use super::failures::Failures;
use super::part::{self, Part};
use super::planned::{self, PlannedRun, difference, learn_from_one, same_data};
use crate::bail_input;
use crate::base::claim::{self, Claim};
use crate::base::error::{Error, unknown};
use crate::base::files;
use crate::cli::Compare;
use crate::commands::child::Machine;
use crate::commands::repair::read_data;
use crate::commands::{Loaded, On, open};
use crate::model::precision::Precision;
use crate::model::precision::WeightsDtype;
use crate::report::RunRecord;
use crate::report::comparison::{BaseRecord, VANILLA};
use crate::settings::{Layer, Layers, Prepared, RepairSettings, read_layer, read_tables};
use crate::step;

pub struct ComparisonPlan {
    pub base: BaseRecord,
    /// SHA-256 of the pairs. `None` if no run will learn from pairs.
    pub data_sha256: Option<String>,
    /// All that decides what the base says: its weights, and the small files beside them.
    identity: String,
    /// The runs that the comparison makes.
    pub runs: Vec<PlannedRun>,
    pub seeds: Vec<u64>,
    /// The arguments of `eval` that are the same for all models.
    pub eval: Vec<String>,
    /// SHA-256 of the files that are read besides the model, by name.
    inputs: BTreeMap<String, String>,
    /// The scorer that measures continuations, with what tells it from others of its name.
    judge: Option<String>,
    /// The command `sensitivity` with its arguments.
    pub sensitivity: Vec<String>,
    /// Parts and multiples of each run's change that are measured, too, in ascending order.
    pub scales: Vec<f64>,
    pub weights_dtype: String,
    /// What the processes run on.
    pub machine: Machine,
    /// The wrong answers from which all methods learn. `None` if they learn from pairs.
    pub failures: Option<Failures>,
    /// What this command does of it.
    pub part: Part,
    /// The folder of the comparison.
    pub dir: PathBuf,
}

/// The methods in Table 1 of the paper.
const PAPER: [&str; 6] = [VANILLA, "dapt", "dapt+kl", "dpo", "irepair", "irepair+kl"];
/// The methods that repair wrong answers.
const FOR_FAILURES: [&str; 5] = [VANILLA, "star", "mint", "sgd", "irepair+kl"];
/// The settings that say what a method is.
const METHOD: [&str; 3] = ["method", "select", "objective"];
/// The settings of the evaluation that block-level methods have, too.
const EVALUATION: [&str; 5] =
    ["eval-prompts", "eval-scorer", "scorer", "toxic-label", "normal-texts"];
/// The settings that only neuron-level methods have.
const NEURON_LEVEL: [&str; 4] = ["mode", "block-sparsity", "neurons", "rounds"];

impl ComparisonPlan {
    /// Resolves the settings of every run. Errors (bad input, usage) before anything is made.
    pub fn new(args: &Compare) -> Result<Self> {
        let flags = args.words.together();
        if let Some(key) = METHOD.iter().find(|k| flags.contains_key(**k)) {
            return Err(Error::Usage(format!(
                "--{key} names one repair; compare takes --methods, or tables of settings in --runs"
            ))
            .into());
        }
        if let Some(twice) =
            args.seeds.iter().enumerate().find(|(at, seed)| args.seeds[..*at].contains(seed))
        {
            return Err(Error::Usage(format!("--seeds: {} is given twice", twice.1)).into());
        }
        if flags.contains_key("seed") && !args.seeds.is_empty() {
            return Err(Error::Usage("give either --seed or --seeds".into()).into());
        }
        let tables = args.runs.as_deref().map(read_tables).transpose()?.unwrap_or_default();
        let (file_name, mut file) = read_layer(args.config.as_deref())?;
        // The rows name their methods. The method of a preset is meant for a single repair.
        file.retain(|key, _| !METHOD.contains(&key.as_str()));
        let resolve =
            |layer: &Layer| Prepared::new(Layers::of_file(file_name.clone(), layer.clone()));
        // With pairs and prompts, each method learns from what it learns from.
        let has = |name: &str| flags.contains_key(name) || file.contains_key(name);
        let by_both = has("data") && has("prompts");
        let mut rows = Vec::new();
        for name in names(args, &tables)?.into_iter().filter(|n| n != VANILLA) {
            let mut layer = file.clone();
            let own_prompts = tables.get(&name).is_some_and(|row| row.contains_key("prompts"));
            match tables.get(&name) {
                Some(table) => layer.extend(table.clone()),
                None => drop(step::named(&name)?),
            }
            layer.extend(flags.clone());
            if !METHOD.iter().any(|k| layer.contains_key(*k)) {
                layer.insert("method".into(), name.as_str().into());
            }
            if is_neuron_level(&layer) {
                layer.retain(|key, _| !EVALUATION.contains(&key.as_str()));
            }
            if by_both || own_prompts {
                learn_from_one(&mut layer, own_prompts);
            }
            let settings = resolve(&layer).with_context(|| format!("row {name}"))?;
            rows.push((name, layer, settings));
        }
        let mut all = file.clone();
        all.extend(flags);
        all.retain(|key, _| !NEURON_LEVEL.contains(&key.as_str()));
        if by_both {
            learn_from_one(&mut all, false);
        }
        let mut shared = resolve(&all)?;
        let machine = Machine::new(&shared.device, args.jobs, shared.threads)?;
        let kept = shared.weights_dtype;
        let on = On {
            device: machine.first(),
            dtype: Precision::F32,
            weights_dtype: kept,
            threads: shared.threads,
        };
        let loaded = open(&shared.model, shared.revision.as_deref(), &on)?;
        let base = BaseRecord {
            model: shared.model.clone(),
            name: loaded.short_name(),
            revision: loaded.checkpoint().revision.clone(),
            sha256: loaded.checkpoint().hash()?,
            files: loaded.checkpoint().hashes()?.clone(),
            parameters: loaded
                .model
                .specs()
                .iter()
                .map(|s| s.shape.iter().product::<usize>())
                .sum(),
            scorer: shared.judge().to_owned(),
            toxic_label: shared.toxic_label.clone(),
        };
        let by_pairs = |row: &Prepared| row.recipe().is_some();
        if let Some((name, _, row)) =
            rows.iter().find(|(_, _, row)| by_pairs(row) && row.judge() != base.scorer)
        {
            bail_input!(
                "row {name}: {} scores its continuations, and {} the others'; give --eval-scorer",
                row.judge(),
                base.scorer
            );
        }
        if let Some((name, ..)) =
            rows.iter().find(|(.., row)| by_pairs(row) && row.toxic_label != base.toxic_label)
        {
            bail_input!(
                "row {name}: its toxic-label is not the others'; give it once, as --toxic-label or \
                 in --config"
            );
        }
        if let Some((name, ..)) =
            rows.iter().find(|(.., row)| row.model != base.model || !same_data(row, &shared))
        {
            bail_input!("row {name}: its model or data are not those of the comparison");
        }
        if let Some((name, _)) = tables.iter().find(|(_, row)| row.contains_key("seed")) {
            bail_input!(
                "row {name}: the seeds are the same for all rows; give them as --seeds, or one as \
                 --seed"
            );
        }
        if let Some((name, _)) = tables.iter().find(|(_, row)| row.contains_key("device")) {
            bail_input!(
                "row {name}: give the device once for all rows, as --device or in --config; \
                 cuda:0,cuda:1 spreads them over two"
            );
        }
        let dir = args.out.clone().unwrap_or_else(|| Path::new("compared").join(&base.name));
        loaded.checkpoint().stays_whole(&dir)?;
        let on_failures = args.edits.is_some() || rows.iter().any(|(.., row)| !by_pairs(row));
        let failures = on_failures.then(|| Failures::read(&shared, &dir)).transpose()?;
        let (eval, judge) = arguments::evaluation(args, &shared, on_failures)?;
        if let Some(failures) = &failures {
            failures.set_as_data(&mut all, true);
            shared = resolve(&all)?;
            for (_, layer, settings) in &mut rows {
                failures.set_as_data(layer, by_pairs(settings));
                *settings = resolve(layer)?;
            }
        }
        for (_, layer, settings) in rows.iter_mut().filter(|(.., settings)| by_pairs(settings)) {
            // The evaluation samples, the same for all, so a run need not.
            if layer.get("eval-samples").is_none() {
                layer.insert("eval-samples".into(), 0.into());
                *settings = resolve(layer)?;
            }
        }
        if args.toxicity.is_some() || !on_failures {
            let on_the_way =
                |settings: &Prepared| by_pairs(settings) && settings.checkpoint_steps == 0;
            for (_, layer, settings) in
                rows.iter_mut().filter(|(.., settings)| on_the_way(settings))
            {
                // The trade-off also shows the weights on the way. A 0 that the user gave stays.
                layer.entry("checkpoint-steps").or_insert(settings.max_steps.div_ceil(4).into());
                *settings = resolve(layer)?;
            }
        }
        let seeds = match rows.first() {
            Some((.., first)) if args.seeds.is_empty() => vec![first.seed],
            _ => args.seeds.clone(),
        };
        let from_prompts = shared.recipe().is_some_and(|recipe| recipe.online);
        let data_sha256 = match on_failures || rows.is_empty() || from_prompts {
            true => None,
            false => Some(read_data(&shared)?.sha256),
        };
        let mut runs = Vec::new();
        for (name, layer, settings) in rows {
            // A neuron-level repair draws nothing at random, so one seed is enough.
            let own = if by_pairs(&settings) { &seeds[..] } else { &seeds[..1] };
            for &seed in own {
                let mut layer = layer.clone();
                layer.insert("seed".into(), seed.into());
                // Each process gets its device and its number of threads as arguments.
                layer.retain(|key, _| !["device", "threads"].contains(&key.as_str()));
                let settings = RepairSettings { seed, ..settings.settings.clone() };
                runs.push(PlannedRun {
                    name: name.clone(),
                    method: settings.method.clone(),
                    seed,
                    layer,
                    settings,
                });
            }
        }
        let read = eval.iter().map(String::as_str).filter(|name| Path::new(name).is_file());
        let learned_from = runs.iter().flat_map(|run: &PlannedRun| run.settings.inputs());
        Ok(Self {
            inputs: files::hashes(read.chain(learned_from))?,
            judge,
            eval,
            sensitivity: arguments::sensitivity(&shared),
            scales: arguments::scales(args)?,
            weights_dtype: kept.to_string(),
            machine,
            base,
            data_sha256,
            identity: loaded.checkpoint().identity()?,
            runs,
            seeds,
            failures,
            part: Part::of(args),
            dir,
        })
    }

    /// Opens the base on the CPU.
    pub fn open(&self) -> Result<Loaded> {
        let (dtype, weights_dtype) = (Precision::F32, WeightsDtype::F32);
        let on = On { device: "cpu", dtype, weights_dtype, threads: None };
        open(&self.base.model, self.base.revision.as_deref(), &on)
    }

    /// The names of the rows of runs that were finished before. A run goes by its method. If runs
    /// of one method differ in more than the seed, they go by their folders. Errors (bad input) if
    /// two runs would have the same name and seed, or if a folder has the name of another row.
    pub fn names_of(&self, dirs: &[PathBuf], records: &[RunRecord]) -> Result<Vec<String>> {
        let differ = |a: &RepairSettings, b: &RepairSettings| -> Result<bool> {
            Ok(difference(&RepairSettings { seed: b.seed, ..a.clone() }, b)?.is_some())
        };
        let mut seen: BTreeMap<(String, u64), PathBuf> = self
            .runs
            .iter()
            .map(|run| ((run.name.clone(), run.seed), run.dir(&self.dir)))
            .collect();
        let mut own: Vec<String> = Vec::new();
        let is_taken = |name: &str| {
            name == VANILLA
                || self.runs.iter().any(|run| run.name == name)
                || step::METHODS.iter().any(|m| m.name == name)
        };
        let mut names = Vec::new();
        for (dir, record) in dirs.iter().zip(records) {
            let method = &record.settings.method;
            let others = records.iter().map(|r| &r.settings).filter(|s| s.method == *method);
            let rows = self.runs.iter().filter(|run| run.name == *method).map(|run| &run.settings);
            let mut apart = false;
            for other in others.chain(rows) {
                apart |= differ(&record.settings, other)?;
            }
            let folder = || {
                dir.components().next_back().map(|c| c.as_os_str().to_string_lossy().into_owned())
            };
            let name =
                if apart { folder().unwrap_or_else(|| method.clone()) } else { method.clone() };
            if apart && (is_taken(&name) || own.contains(&name)) {
                bail_input!(
                    "{}: it differs from another run of {method} in more than the seed, and {name} \
                     is another row's name; rename the folder",
                    dir.display()
                );
            }
            if apart {
                own.push(name.clone());
            }
            if let Some(other) = seen.insert((name.clone(), record.seed), dir.clone()) {
                let (other, dir) = (other.display(), dir.display());
                bail_input!(
                    "{other} and {dir} would both be {name}, seed {}: give one of them",
                    record.seed
                );
            }
            names.push(name);
        }
        Ok(names)
    }

    /// Makes the folder of the comparison, or goes on with it. Errors (bad input) if it holds
    /// another comparison or something else, or, with --resume, if its runs don't `fit`.
    pub fn claim(&self, args: &Compare, fit: impl Fn() -> Result<()>) -> Result<()> {
        let dir = &self.dir;
        let path = dir.join("plan.json");
        let mut plan = json!({
            "format_version": 1, "base": self.base, "identity": self.identity, "eval": self.eval,
            "sensitivity": self.sensitivity,
            "failures": self.failures.as_ref().map(Failures::hash), "data": self.data_sha256,
            "inputs": self.inputs, "judge": self.judge,
            "scales": self.scales, "tasks": planned::written(&self.runs)?,
        });
        if path.exists() {
            let text = files::read(&path);
            let (true, Ok(text)) = (claim::is_ours(dir, KIND), text) else {
                bail_input!("{} is no comparison of irepair; choose another --out", dir.display());
            };
            if !args.resume && matches!(self.part, Part::Whole) {
                bail_input!(
                    "{} exists; go on with --resume, or choose another --out",
                    dir.display()
                );
            }
            let found: Value = serde_json::from_slice(&text)
                .map_err(|e| Error::Input(format!("{}: {e}", path.display())))?;
            if let Some(name) = planned::changed(&found["inputs"], &mut plan["inputs"]) {
                bail_input!(
                    "{}: {name} is another file than when that comparison was begun; choose \
                     another --out",
                    dir.display()
                );
            }
            for key in COMMON {
                // A comparison that makes no run itself does not know the data, nor a plan of an
                // earlier version its scorer's own name.
                let unknown = ["data", "judge"].contains(&key)
                    && (found[key].is_null() || plan[key].is_null());
                if unknown && plan[key].is_null() {
                    plan[key] = found[key].clone();
                }
                if !unknown && found[key] != plan[key] {
                    let what = match key {
                        "base" => "base or scorer",
                        "identity" => "base's config.json or tokenizer",
                        key => key,
                    };
                    bail_input!(
                        "{}: the {what} of that comparison is another ({} there, {} here); choose \
                         another --out",
                        dir.display(),
                        found[key],
                        plan[key]
                    );
                }
            }
            if args.resume {
                fit()?;
            }
            match (self.part, self.is_of(&found, &plan)) {
                (Part::Task(_) | Part::Merge, is_of) => is_of?,
                // What failed was a task of another plan.
                (Part::Plan, Err(_)) if !found["tasks"].is_null() => part::forget_all(dir)?,
                _ => {}
            }
        } else if matches!(self.part, Part::Task(_) | Part::Merge) {
            bail_input!(
                "{}: no plan is there; make it by the same command with --plan",
                dir.display()
            );
        } else if args.resume && !claim::is_ours(dir, KIND) {
            bail_input!("--resume: there is no comparison in {}", dir.display());
        }
        let scratch = self.scratch();
        if matches!(self.part, Part::Task(_)) {
            // Other tasks work here, too. This one is locked by its own folder until it ends.
            std::mem::forget(Claim::take(&scratch, "task")?);
            return claim::empty(&scratch).with_context(|| scratch.display().to_string());
        }
        // A mark without a plan: killed between the two. It is held until the process ends.
        std::mem::forget(Claim::take(dir, KIND)?);
        std::fs::create_dir_all(dir.join("runs")).map_err(|e| {
            Error::Input(format!("--out {}: can't write there: {e}", dir.display()))
        })?;
        // What a killed comparison left there is as large as models.
        self.remove_scratch();
        // Tasks may be at work there, whose unfinished files are their own.
        if self.part == Part::Whole {
            files::sweep(dir).with_context(|| dir.display().to_string())?;
        }
        std::fs::create_dir(&scratch).with_context(|| scratch.display().to_string())?;
        files::write_whole(&path, serde_json::to_string_pretty(&plan)?.as_bytes())
    }

    /// Errors (bad input) if the tasks are not those of the plan that was written down.
    fn is_of(&self, found: &Value, own: &Value) -> Result<()> {
        let scales = || format!("its --scales are {}, and here {}", found["scales"], own["scales"]);
        let apart = planned::apart(&found["tasks"], &own["tasks"])
            .or_else(|| (found["scales"] != own["scales"]).then(scales));
        match apart {
            None => Ok(()),
            Some(what) => bail_input!(
                "{}: the plan there is another: {what}; give the command that made the plan, with \
                 --task or --merge in place of --plan, or make it again with --plan",
                self.dir.display()
            ),
        }
    }

    /// The folder for models that are made to be evaluated once.
    pub fn scratch(&self) -> PathBuf {
        match self.part {
            Part::Task(index) => self.dir.join(format!("scratch-{index}")),
            _ => self.dir.join("scratch"),
        }
    }

    pub fn remove_scratch(&self) {
        std::fs::remove_dir_all(self.scratch()).ok();
    }
}

/// What is the same whenever a comparison is gone on with.
const COMMON: [&str; 8] =
    ["format_version", "base", "identity", "eval", "judge", "sensitivity", "failures", "data"];

/// What the folder of a comparison is marked for.
const KIND: &str = "comparison";

/// The names of the rows, in order. Errors (bad input, usage) if a name is unknown or given twice.
fn names(args: &Compare, tables: &BTreeMap<String, Layer>) -> Result<Vec<String>> {
    let mut names = args.methods.clone();
    if names.is_empty() && args.finished.is_empty() {
        names = match (tables.is_empty(), &args.edits) {
            (false, _) => tables.keys().cloned().collect(),
            (true, None) => PAPER.map(str::to_owned).to_vec(),
            (true, Some(_)) => FOR_FAILURES.map(str::to_owned).to_vec(),
        };
    }
    let known: Vec<&str> = step::names()
        .map(|name| -> &str { name })
        .chain(tables.keys().map(String::as_str))
        .collect();
    for (index, name) in names.iter().enumerate() {
        if name != VANILLA && !known.contains(&name.as_str()) {
            return Err(Error::Input(unknown("method", name, &known)).into());
        }
        if names[..index].contains(name) {
            return Err(Error::Usage(format!("--methods: {name} is given twice")).into());
        }
    }
    Ok(names)
}

/// Whether these settings name a neuron-level method.
fn is_neuron_level(layer: &Layer) -> bool {
    let named = layer.get("method").and_then(Value::as_str).map(step::named);
    matches!(named, Some(Ok(step::Named::Neurons(_))))
}
