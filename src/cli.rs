//! The words of the command line, and no work.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::model::precision::Precision;
use crate::model::precision::WeightsDtype;
use crate::model::shapes::SHAPES;
use crate::settings::RepairOptions;
use crate::tokens::LossOn;

/// Repairs data-driven errors (toxicity first) inside a language model's weights and touches as little else as possible
#[derive(Debug, Parser)]
#[command(name = "irepair", version, arg_required_else_help = true, args_override_self = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Repair a model with pairs of chosen and rejected responses (alone: the embedded demo)
    #[command(
        after_help = "Example:\n  irepair repair --model gpt2-large --data pairs.jsonl --out repaired/gpt2-large\n\n\
                            Settings: defaults < preset < --config FILE < IREPAIR_* variables < flags."
    )]
    Repair(Box<Repair>),
    /// Show which blocks carry the error: the gradient norm of the rejected responses' NLL by block
    #[command(
        after_help = "Example:\n  irepair sensitivity --model gpt2 --data pairs.jsonl --dump blocks.csv --plot blocks.svg"
    )]
    Sensitivity(Sensitivity),
    /// Write texts: continuations of prompts, or unconditional ones
    #[command(
        after_help = "Examples:\n  irepair generate --model gpt2 --prompts prompts.jsonl --out texts.jsonl\n  \
                            irepair generate --model gpt2 --unconditional 15000 --scorer lexicon --keep-below 0.5 --out normal.jsonl"
    )]
    Generate(Generate),
    /// Measure models: toxicity, perplexity, LAMBADA, and what a repair cost elsewhere
    #[command(
        after_help = "Examples:\n  irepair eval --model gpt2-large --model repaired --toxicity --ppl wikitext2 --kl gpt2-large\n  \
                            irepair eval --model repaired --toxicity rtp --prompts prompts.jsonl --shard 0/4 --out part0\n  \
                            irepair eval --merge part0 part1 part2 part3 --out all"
    )]
    Eval(Box<Eval>),
    /// Make the same repair by several methods, and put them beside each other: the paper's tables and figures
    #[command(
        after_help = "Examples:\n  irepair compare --model gpt2-large --data pairs.jsonl --seeds 1,2,3\n  \
                            irepair compare --model patient --data pairs.jsonl --runs runs.toml --methods dpo+kl,one-block \
                            --eval-prompts prompts.jsonl --ppl wiki.test.raw --out compared/patient\n  \
                            irepair compare --methods star,mint,sgd,irepair+kl --model gpt2 --data failures.jsonl --edits\n\n\
                            A file of --runs has a table of settings a row: [one-block] select = \"max\" objective = \"dpo\" …"
    )]
    #[command(
        mut_arg("method", one_repair),
        mut_arg("select", one_repair),
        mut_arg("objective", one_repair)
    )]
    Compare(Box<Compare>),
    /// Score texts, or compare a scorer with stored scores
    #[command(
        after_help = "Examples:\n  irepair score texts.jsonl --scorer lexicon --out scored.jsonl\n  \
                            irepair score --calibrate perspective.jsonl --scorer lexicon --plot calibration.svg"
    )]
    Score(Score),
    /// Make, show, apply or take back a patch: what a repair changed, without the model
    #[command(
        after_help = "Examples:\n  irepair patch show repaired/irepair/patch.safetensors\n  \
                            irepair patch apply gpt2-large patch.safetensors --out repaired\n  \
                            irepair patch revert repaired patch.safetensors --out base"
    )]
    Patch(Patch),
    /// Time one iteration on random weights; prints one JSON line
    #[command(
        after_help = "Example:\n  irepair bench --config gpt2 --method irepair+kl --batch 4 --tokens 64 --iterations 5 --threads 2"
    )]
    Bench(Bench),
    /// Print build features, devices, caches and versions
    #[command(after_help = "Example:\n  irepair doctor")]
    Doctor(Doctor),
    /// Draw a run as one HTML page: where the error was, what changed, and what it cost
    #[command(after_help = "Example:\n  irepair report repaired/gpt2-large")]
    Report(Report),
    /// Print the completions of a shell
    #[command(
        after_help = "Example:\n  irepair completions bash > ~/.local/share/bash-completion/completions/irepair"
    )]
    Completions(Completions),
    /// Print the manual, or write its pages, one a command
    #[command(
        after_help = "Examples:\n  irepair man | man -l -\n  irepair man --out ~/.local/share/man/man1"
    )]
    Man(Man),
}

/// How much is printed.
#[derive(Debug, Clone, Copy, Args)]
pub struct Output {
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// No progress on stderr
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct Repair {
    #[command(flatten)]
    pub options: RepairOptions,
    /// Where the repaired model goes [default: repaired/MODEL-METHOD]
    #[arg(short, long, visible_aliases = ["output-dir", "output"])]
    pub out: Option<PathBuf>,
    /// Replace --out if it exists
    #[arg(long)]
    pub overwrite: bool,
    /// Go on with an interrupted run into the same --out
    #[arg(long)]
    pub resume: bool,
    /// Settings from a TOML file, or a preset's name
    #[arg(short = 'C', long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Read headers and data only, and say what would be done and how much memory it takes
    #[arg(long)]
    pub dry_run: bool,
    /// Threads of the CPU kernels [default: RAYON_NUM_THREADS, or all cores]
    #[arg(long)]
    pub threads: Option<usize>,
    #[command(flatten)]
    pub output: Output,
}

/// Which model, and on what.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Hub id, short name (gpt2-large), ID@REVISION, local folder, or `demo`
    #[arg(short, long, env = "IREPAIR_MODEL", default_value = "demo", visible_aliases = ["model-name-or-path", "model-id"])]
    pub model: String,
    /// Branch, tag or commit of a hub model
    #[arg(long, env = "IREPAIR_REVISION", visible_alias = "model-revision")]
    pub revision: Option<String>,
    /// auto, cpu, cuda, cuda:N or metal
    #[arg(long, env = "IREPAIR_DEVICE", default_value = "auto")]
    pub device: String,
    /// Of the operands of large products; sums and all else are f32
    #[arg(long, env = "IREPAIR_DTYPE", value_enum, default_value_t = Precision::F32, visible_alias = "torch-dtype")]
    pub dtype: Precision,
    /// What matrices of weights are kept in while they are not trained: bf16 or f16 halves the memory of those that the
    /// checkpoint stores so, and changes no result
    #[arg(long, env = "IREPAIR_WEIGHTS_DTYPE", value_enum, default_value_t = WeightsDtype::F32)]
    pub weights_dtype: WeightsDtype,
    /// Threads of the CPU kernels [default: RAYON_NUM_THREADS, or all cores]
    #[arg(long)]
    pub threads: Option<usize>,
}

#[derive(Debug, Args)]
pub struct Sensitivity {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Pairs: a .jsonl, .json, .jsonl.gz, .csv or .parquet file, or a folder of them [default: the demo's]
    #[arg(long, env = "IREPAIR_DATA", visible_aliases = ["dataset", "dataset-name"])]
    pub data: Option<PathBuf>,
    /// Write block,sensitivity,share,parameters,density as CSV
    #[arg(long, value_name = "FILE")]
    pub dump: Option<PathBuf>,
    /// One line a block and batch in --dump
    #[arg(long, requires = "dump")]
    pub per_batch: bool,
    /// Draw the blocks as SVG
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Pairs a batch
    #[arg(short, long, default_value_t = 4)]
    pub batch_size: usize,
    /// Use only the first N pairs
    #[arg(short = 'L', long, value_name = "N")]
    pub limit: Option<usize>,
    /// Tokens that count in the NLL
    #[arg(long, value_enum, default_value_t = LossOn::Response)]
    pub loss_on: LossOn,
    /// Tokens of prompt and response together [default: 128, or the model's context if that is less]
    #[arg(long)]
    pub max_length: Option<usize>,
    /// Tokens of the prompt; the first ones are kept [default: 64, or 3/4 of --max-length if that is less]
    #[arg(long)]
    pub max_prompt_length: Option<usize>,
    /// Names of keys in the rows: prompt=question,chosen=good,…
    #[arg(long, value_delimiter = ',', value_name = "OURS=THEIRS")]
    pub map: Vec<String>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").args(["prompts", "unconditional"])))]
pub struct Generate {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Rows with "prompt" or "text", or lines of a .txt [default: the demo's held-back prompts]
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,
    /// Write N texts from the start-of-sequence token alone
    #[arg(long, value_name = "N")]
    pub unconditional: Option<usize>,
    /// Where the texts go, one JSON object a line
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,
    /// Replace --out if it exists
    #[arg(long)]
    pub overwrite: bool,
    /// Tokens a text [default: 20 after a prompt, 64 unconditional]
    #[arg(long)]
    pub max_new_tokens: Option<usize>,
    /// Texts a prompt
    #[arg(long, default_value_t = 1, visible_alias = "num-return-sequences")]
    pub samples: usize,
    /// Always the most likely token
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p"])]
    pub greedy: bool,
    #[arg(long, default_value_t = 1.0)]
    pub temperature: f64,
    /// Only the K likeliest tokens; 0 = all
    #[arg(long, default_value_t = 0)]
    pub top_k: usize,
    /// Only the likeliest tokens that together reach P
    #[arg(long, default_value_t = 0.9)]
    pub top_p: f64,
    /// Cut prompts to their first N tokens
    #[arg(long, value_name = "N")]
    pub max_prompt_length: Option<usize>,
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Texts written at a time; does not change them
    #[arg(short, long, default_value_t = 32)]
    pub batch_size: usize,
    /// Score each text
    #[arg(long, env = "IREPAIR_SCORER", long_help = scorer_help())]
    pub scorer: Option<String>,
    #[command(flatten)]
    pub scoring: Scoring,
    /// Write only part I of N (0/4 … 3/4) of the texts; the parts' files one after another are the whole
    #[arg(long, value_name = "I/N", default_value = "0/1")]
    pub shard: crate::eval::ledger::Shard,
    /// Keep only texts that score below this
    #[arg(long, requires = "scorer", value_name = "SCORE")]
    pub keep_below: Option<f64>,
    /// Use only the first N prompts
    #[arg(short = 'L', long, value_name = "N")]
    pub limit: Option<usize>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct Eval {
    /// Hub id, short name, ID@REVISION, local folder, or `demo`; several: differences from the first are shown
    #[arg(short, long = "model", env = "IREPAIR_MODEL", default_value = "demo", value_name = "MODEL", visible_aliases = ["model-name-or-path", "model-id"])]
    pub models: Vec<String>,
    /// Branch, tag or commit of a hub model
    #[arg(long, env = "IREPAIR_REVISION", visible_alias = "model-revision")]
    pub revision: Option<String>,
    /// Score continuations of prompts: lee (greedy, one a prompt) or rtp (25 samples a prompt)
    #[arg(long, value_name = "PRESET", num_args = 0..=1, default_missing_value = "lee")]
    pub toxicity: Option<String>,
    /// Prompts to continue: a file, or rtp-challenge of the hub [default: rtp-challenge; the demo's]
    #[arg(long, value_name = "FILE", env = "IREPAIR_EVAL_PROMPTS")]
    pub prompts: Option<String>,
    /// Continuations a prompt [default: the preset's]
    #[arg(long, visible_alias = "num-return-sequences")]
    pub samples: Option<usize>,
    /// Tokens a continuation [default: the preset's]
    #[arg(long)]
    pub max_new_tokens: Option<usize>,
    /// [default: the preset's]
    #[arg(long)]
    pub temperature: Option<f64>,
    /// [default: the preset's]
    #[arg(long)]
    pub top_p: Option<f64>,
    /// A score of this or more counts as toxic
    #[arg(long, default_value_t = crate::scorers::TOXIC)]
    pub threshold: f64,
    /// What scores the continuations
    #[arg(long, env = "IREPAIR_SCORER", default_value = crate::scorers::DEFAULT, long_help = scorer_help())]
    pub scorer: String,
    #[command(flatten)]
    pub scoring: Scoring,
    /// Perplexity of a text: wikitext2, lambada-corpus (of the hub), or a file; several times for several
    #[arg(long, value_name = "NAME|FILE")]
    pub ppl: Vec<String>,
    /// paper: windows of 1,024 tokens without overlap; lm-eval: word and byte perplexity by document
    #[arg(long, value_enum, default_value_t = PplProtocol::Paper)]
    pub ppl_protocol: PplProtocol,
    /// LAMBADA's last words as lm-eval's lambada_openai: of the hub, or of a file
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "")]
    pub lambada: Option<String>,
    /// KL from this base on normal text, and how often both would say the same token
    #[arg(long, value_name = "BASE")]
    pub kl: Option<String>,
    /// Rows with a prompt and a target, some of them marked generalization or specificity: how often the target is said
    /// [default: what the demo gets wrong]
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = crate::eval::sources::DEMO)]
    pub edits: Option<String>,
    /// Normal text for --kl; without it the base writes its own
    #[arg(long, value_name = "FILE", env = "IREPAIR_NORMAL")]
    pub normal: Option<PathBuf>,
    /// How many normal texts the base writes
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub normal_texts: usize,
    /// Use only the first N prompts and passages
    #[arg(short = 'L', long, value_name = "N")]
    pub limit: Option<usize>,
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Do only part I of N (0/4 … 3/4); --merge joins them
    #[arg(long, value_name = "I/N", default_value = "0/1")]
    pub shard: crate::eval::ledger::Shard,
    /// Join the results of all shards instead of measuring
    #[arg(long, value_name = "DIR", num_args = 1..)]
    pub merge: Vec<PathBuf>,
    /// Where results and samples go [default: evaluated/MODEL]
    #[arg(short, long, visible_aliases = ["output-dir", "output", "output-path"])]
    pub out: Option<PathBuf>,
    /// Replace --out if it exists
    #[arg(long)]
    pub overwrite: bool,
    /// Go on with an interrupted evaluation into the same --out
    #[arg(long)]
    pub resume: bool,
    /// auto, cpu, cuda, cuda:N or metal
    #[arg(long, env = "IREPAIR_DEVICE", default_value = "auto")]
    pub device: String,
    /// What matrices of weights are kept in: bf16 or f16 halves the memory of those that the checkpoint stores so, and
    /// changes no result
    #[arg(long, env = "IREPAIR_WEIGHTS_DTYPE", value_enum, default_value_t = WeightsDtype::F32)]
    pub weights_dtype: WeightsDtype,
    /// Threads of the CPU kernels [default: RAYON_NUM_THREADS, or all cores]
    #[arg(long)]
    pub threads: Option<usize>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct Compare {
    #[command(flatten)]
    pub options: RepairOptions,
    /// Rows: names of methods, or of tables in --runs [default: the paper's]
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    pub methods: Vec<String>,
    /// Settings of rows: a TOML file with a table for each, over --config and under flags
    #[arg(long, value_name = "FILE")]
    pub runs: Option<PathBuf>,
    /// Each row once for each of these; means and standard errors are shown [default: --seed]
    #[arg(long, value_delimiter = ',', value_name = "SEED,…")]
    pub seeds: Vec<u64>,
    /// Finished runs to put beside them
    #[arg(value_name = "RUN_DIR")]
    pub finished: Vec<PathBuf>,
    /// Score continuations of prompts: lee (greedy, one a prompt) or rtp (25 samples a prompt) [default: lee, without --edits]
    #[arg(long, value_name = "PRESET")]
    pub toxicity: Option<String>,
    /// Compare repairs of wrong answers: the rows of --data are failures (a prompt and its target), and these rows, some of
    /// them marked generalization or specificity, tell what the repairs are worth [default: all rows of --data, if a row's
    /// method is star, mint or sgd]
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "")]
    pub edits: Option<String>,
    /// Continuations a prompt [default: the preset's]
    #[arg(long)]
    pub samples: Option<usize>,
    /// Perplexity of a text: wikitext2, lambada-corpus (of the hub), or a file; several times for several
    /// [default: both names; the demo's clean text]
    #[arg(long, value_name = "NAME|FILE")]
    pub ppl: Vec<String>,
    /// LAMBADA's last words as lm-eval's lambada_openai: of the hub, or of a file
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "")]
    pub lambada: Option<String>,
    /// Where runs, tables and figures go [default: compared/MODEL]
    #[arg(short, long, visible_aliases = ["output-dir", "output"])]
    pub out: Option<PathBuf>,
    /// Go on with the comparison in --out: what is missing is made
    #[arg(long)]
    pub resume: bool,
    /// Settings from a TOML file, or a preset's name
    #[arg(short = 'C', long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Runs and evaluations at a time, each in a process and with memory of its own: for a machine of many cores, or a GPU that
    /// one small model leaves idle
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    pub jobs: usize,
    /// Threads of the CPU kernels, of each process [default: RAYON_NUM_THREADS, or all cores, shared by --jobs]
    #[arg(long)]
    pub threads: Option<usize>,
    #[command(flatten)]
    pub output: Output,
}

/// What names one repair: a row says it in a comparison.
fn one_repair(arg: Arg) -> Arg {
    arg.hide(true)
}

/// Protocols of perplexity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PplProtocol {
    Paper,
    LmEval,
}

/// What scorers are told.
#[derive(Debug, Clone, Args)]
pub struct Scoring {
    /// The toxic label of a classifier [default: found by its name]
    #[arg(long, value_name = "LABEL")]
    pub toxic_label: Option<String>,
}

impl Scoring {
    pub fn options(&self) -> crate::scorers::Options {
        crate::scorers::Options { toxic_label: self.toxic_label.clone() }
    }
}

pub fn scorer_help() -> String {
    format!(
        "What gives a text its score; scores of different scorers don't compare\n\n{}",
        crate::scorers::help()
    )
}

#[derive(Debug, Args)]
pub struct Score {
    /// Texts: rows with "text", "continuation" or "prompt", or lines of a .txt
    #[arg(required_unless_present = "calibrate", conflicts_with = "calibrate")]
    pub file: Option<PathBuf>,
    /// What gives a text its score
    #[arg(long, env = "IREPAIR_SCORER", default_value = crate::scorers::DEFAULT, long_help = scorer_help())]
    pub scorer: String,
    #[command(flatten)]
    pub scoring: Scoring,
    /// Compare the scorer with the scores stored in this file (rows with "text" and "score" or "toxicity")
    #[arg(long, value_name = "FILE")]
    pub calibrate: Option<PathBuf>,
    /// Draw the calibration as SVG
    #[arg(long, value_name = "FILE", requires = "calibrate")]
    pub plot: Option<PathBuf>,
    /// Where the rows with their scores go
    #[arg(short, long, value_name = "FILE", conflicts_with = "calibrate")]
    pub out: Option<PathBuf>,
    /// Replace --out if it exists
    #[arg(long)]
    pub overwrite: bool,
    /// Do only part I of N (0/4 … 3/4) of the rows; the parts' files one after another are the whole
    #[arg(long, value_name = "I/N", default_value = "0/1")]
    pub shard: crate::eval::ledger::Shard,
    /// Use only the first N rows
    #[arg(short = 'L', long, value_name = "N")]
    pub limit: Option<usize>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct Patch {
    #[command(subcommand)]
    pub command: PatchCommand,
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum PatchCommand {
    /// Write the difference of two model folders
    Diff {
        /// Hub id or folder
        base: String,
        repaired: String,
        #[arg(short, long, value_name = "FILE")]
        out: PathBuf,
        /// Replace --out if it exists
        #[arg(long)]
        overwrite: bool,
    },
    /// Make the repaired model from the base
    Apply {
        /// Hub id or folder
        base: String,
        patch: PathBuf,
        #[arg(short, long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Make the base from the repaired model
    Revert {
        repaired: String,
        patch: PathBuf,
        #[arg(short, long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Blocks, norms and sizes
    Show { patch: PathBuf },
}

#[derive(Debug, Args)]
pub struct Bench {
    /// Shape of the random model
    #[arg(long, value_parser = PossibleValuesParser::new(SHAPES.keys().map(String::as_str)), default_value = "gpt2")]
    pub config: String,
    /// As in `repair`, or `generate`: --tokens new ones after each of --batch prompts of 32
    #[arg(long, default_value = "irepair+kl")]
    pub method: String,
    /// Blocks, instead of the shape's own number
    #[arg(long, value_name = "L")]
    pub blocks: Option<usize>,
    /// Sequences a batch
    #[arg(long, visible_alias = "batch-size", default_value_t = 4)]
    pub batch: usize,
    /// Tokens a sequence, all of them counted
    #[arg(long, default_value_t = 64)]
    pub tokens: usize,
    /// Timed iterations, after one that is not
    #[arg(long, default_value_t = 5)]
    pub iterations: usize,
    #[arg(long)]
    pub threads: Option<usize>,
    /// auto, cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Of the operands of large products
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub dtype: Precision,
    /// What matrices of weights are kept in while they are not trained; the random ones are rounded to it
    #[arg(long, value_enum, default_value_t = WeightsDtype::F32)]
    pub weights_dtype: WeightsDtype,
    /// Print on stderr where the time goes, and how near the products come to this machine's best
    #[arg(long)]
    pub profile: bool,
    /// Layers composed of candle's own operations instead of our kernels
    #[arg(long)]
    pub composed: bool,
}

#[derive(Debug, Args)]
pub struct Doctor {
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Report {
    /// The output of `repair` or `compare`, or the .partial folder of an unfinished run
    #[arg(value_name = "RUN_DIR")]
    pub run: PathBuf,
    /// Where the page goes [default: RUN_DIR/irepair/report.html; of a comparison RUN_DIR/report.html]
    #[arg(short, long, value_name = "FILE.html")]
    pub out: Option<PathBuf>,
    /// Write the page's drawings into this folder, too, each as an SVG file of its own
    #[arg(long, value_name = "DIR")]
    pub pictures: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct Completions {
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub struct Man {
    /// Write a page for every command into this folder
    #[arg(short, long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

impl Cli {
    /// What this command line asks for; ends the process where it asks for help or cannot be read.
    pub fn of(arguments: impl Iterator<Item = std::ffi::OsString>) -> Self {
        let matches = Self::command().get_matches_from(kebab(arguments));
        let mut cli = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        if let (Command::Repair(repair), Some((_, matches))) =
            (&mut cli.command, matches.subcommand())
        {
            flags_over_variables(&mut repair.options, matches);
        }
        cli
    }
}

/// A method is one thing with two ways to say it, so a flag of one way lies over a variable of the other.
fn flags_over_variables(options: &mut RepairOptions, matches: &ArgMatches) {
    let from = |name: &str, source| matches.value_source(name) == Some(source);
    if from("method", ValueSource::CommandLine) {
        if from("select", ValueSource::EnvVariable) {
            options.select = None;
        }
        if from("objective", ValueSource::EnvVariable) {
            options.objective = None;
        }
    } else if from("method", ValueSource::EnvVariable)
        && ["select", "objective"].into_iter().any(|part| from(part, ValueSource::CommandLine))
    {
        options.method = None;
    }
}

/// `--learning_rate` as `--learning-rate`: users of TRL and lm-eval type underscores.
fn kebab(arguments: impl Iterator<Item = std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    arguments
        .map(|argument| match argument.to_str() {
            Some(text) if text.starts_with("--") => {
                let (name, value) =
                    text.split_once('=').map_or((text, None), |(n, v)| (n, Some(v)));
                let name = name.replace('_', "-");
                value.map_or(name.clone(), |v| format!("{name}={v}")).into()
            }
            _ => argument,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_fit_together() {
        Cli::command().debug_assert();
        let snake =
            kebab(["--learning_rate=a_b", "x_y", "--max_steps"].into_iter().map(Into::into));
        assert_eq!(snake, ["--learning-rate=a_b", "x_y", "--max-steps"]);
    }

    #[test]
    fn every_command_shows_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(
                help.contains(&format!("irepair {}", command.get_name())),
                "{}",
                command.get_name()
            );
        }
    }
}
