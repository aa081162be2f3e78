//! The words of the commands that measure, write and score texts.

use std::path::PathBuf;

use clap::{Arg, Args, ValueEnum};

use super::Output;
use super::shared::{
    BatchWords, MachineWords, MeasureWords, ModelWords, NamedModel, OneModel, PairWords,
    PairingWords, ScorerWords, WritingWords,
};
use crate::eval::ledger::Shard;
use crate::eval::sources;
use crate::scorers;

#[derive(Debug, Args)]
pub struct Sensitivity {
    #[command(flatten)]
    pub model: ModelWords,
    #[command(flatten)]
    pub pairs: PairWords,
    #[command(flatten)]
    pub batch: BatchWords,
    /// Measure so many pairs, drawn at random; 0 = all
    #[arg(long, value_name = "N", default_value_t = 512, help_heading = "Input")]
    pub sample: usize,
    /// Write block,sensitivity,share,parameters,density as CSV
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub dump: Option<PathBuf>,
    /// One line a block and batch in --dump
    #[arg(long, requires = "dump", help_heading = "Output")]
    pub per_batch: bool,
    /// Draw the blocks as SVG
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub plot: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct Tokens {
    #[command(flatten)]
    pub model: NamedModel,
    #[command(flatten)]
    pub pairs: PairWords,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").args(["prompt", "prompts", "unconditional"])))]
pub struct Generate {
    #[command(flatten)]
    pub model: OneModel,
    /// A prompt; several times for several
    #[arg(long, value_name = "TEXT", conflicts_with = "limit", help_heading = "Input")]
    pub prompt: Vec<String>,
    /// Rows with "prompt" or "text", or lines of a .txt [default: the demo's held-back prompts]
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    pub prompts: Option<PathBuf>,
    /// Write N texts from the start-of-sequence token alone
    #[arg(long, value_name = "N", conflicts_with_all = ["limit", "max_prompt_length", "samples"],
        help_heading = "Input")]
    pub unconditional: Option<usize>,
    /// Use only the first N prompts
    #[arg(short = 'L', long, value_name = "N", help_heading = "Input")]
    pub limit: Option<usize>,
    /// Cut prompts to their first N tokens
    #[arg(long, value_name = "N", help_heading = "Input")]
    pub max_prompt_length: Option<usize>,
    /// Where the texts go, one JSON object a line [default: the terminal]
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// Replace --out if it exists
    #[arg(long, requires = "out", help_heading = "Output")]
    pub overwrite: bool,
    #[command(flatten)]
    pub output: Output,
    /// Tokens a text [default: 20 after a prompt, 64 unconditional]
    #[arg(long, help_heading = "Writing")]
    pub max_new_tokens: Option<usize>,
    /// Texts a prompt
    #[arg(
        long,
        default_value_t = 1,
        visible_alias = "num-return-sequences",
        help_heading = "Writing"
    )]
    pub samples: usize,
    /// Always the most likely token
    #[arg(
        long,
        conflicts_with_all = ["temperature", "top_k", "top_p"],
        help_heading = "Writing"
    )]
    pub greedy: bool,
    /// What logits are divided by before a token is drawn
    #[arg(long, default_value_t = 1.0, help_heading = "Writing")]
    pub temperature: f64,
    /// Only the K likeliest tokens; 0 = all
    #[arg(long, default_value_t = 0, help_heading = "Writing")]
    pub top_k: usize,
    /// Only the likeliest tokens that together reach P
    #[arg(long, default_value_t = 0.9, help_heading = "Writing")]
    pub top_p: f64,
    /// Texts written at a time: where one ends, the next begins; does not change them
    #[arg(short, long, default_value_t = 32, help_heading = "Writing")]
    pub batch_size: usize,
    /// Write only part I of N (0/4 … 3/4) of the texts; the parts' files one after another are the
    /// whole
    #[arg(long, value_name = "I/N", default_value = "0/1", help_heading = "Writing")]
    pub shard: Shard,
    #[command(flatten)]
    pub writing: WritingWords,
    /// Score each text
    #[arg(
        long,
        env = "IREPAIR_SCORER",
        long_help = score_each_text(),
        help_heading = "Scoring",
        hide_short_help = true
    )]
    pub scorer: Option<String>,
    /// Keep only texts that score below this
    #[arg(
        long,
        requires = "scorer",
        value_name = "SCORE",
        help_heading = "Scoring",
        hide_short_help = true
    )]
    pub keep_below: Option<f64>,
}

fn score_each_text() -> String {
    format!("Score each text\n\n{}", scorers::help())
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("asked").args(["prompt", "prompts"])))]
pub struct Try {
    /// The model before the repair: hub id, short name, ID@REVISION, local folder, or `demo`
    pub base: String,
    /// The repaired model
    pub repaired: String,
    /// A prompt; several times for several
    #[arg(long, value_name = "TEXT", help_heading = "Input")]
    pub prompt: Vec<String>,
    /// Rows with "prompt" or "text", or lines of a .txt [default: the first prompts that the repair
    /// held back; then, on a terminal, what you type]
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    pub prompts: Option<PathBuf>,
    /// Use only the first N prompts [default: 3 of those that were held back, all of a file]
    #[arg(short = 'L', long, value_name = "N", help_heading = "Input")]
    pub limit: Option<usize>,
    /// Give prompts to a model with a chat template as they are, not as what a user says
    #[arg(long, help_heading = "Input")]
    pub plain: bool,
    /// Show rude texts, too; else their letters are hidden
    #[arg(long, help_heading = "Output")]
    pub show: bool,
    #[command(flatten)]
    pub output: Output,
    /// Sampled texts of each model beside the greedy one
    #[arg(long, default_value_t = 2, value_name = "N", help_heading = "Writing")]
    pub samples: usize,
    /// Tokens a text
    #[arg(long, default_value_t = 30, help_heading = "Writing")]
    pub max_new_tokens: usize,
    /// What logits are divided by before a token is drawn
    #[arg(long, default_value_t = 1.0, help_heading = "Writing")]
    pub temperature: f64,
    /// Only the likeliest tokens that together reach P
    #[arg(long, default_value_t = 0.9, help_heading = "Writing")]
    pub top_p: f64,
    #[command(flatten)]
    pub writing: WritingWords,
    /// What scores the texts
    #[arg(
        long,
        env = "IREPAIR_SCORER",
        default_value = scorers::DEFAULT,
        long_help = what_scores_texts(),
        help_heading = "Scoring"
    )]
    pub scorer: String,
    #[command(flatten)]
    pub machine: MachineWords,
}

fn what_scores_texts() -> String {
    format!("What scores the texts\n\n{}", scorers::help())
}

#[derive(Debug, Args)]
pub struct Pairs {
    #[command(flatten)]
    pub model: ModelWords,
    /// Rows with "prompt" or "text", or lines of a .txt [default: the demo's]
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    pub prompts: Option<PathBuf>,
    /// Use only the first N prompts
    #[arg(short = 'L', long, value_name = "N", help_heading = "Input")]
    pub limit: Option<usize>,
    /// Where the pairs go, one JSON object a line
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub out: PathBuf,
    /// Replace --out if it exists
    #[arg(long, help_heading = "Output")]
    pub overwrite: bool,
    #[command(flatten)]
    pub output: Output,
    #[command(flatten)]
    pub writing: PairingWords,
}

/// `--samples`, as `generate`, `try` and `eval` call it: no other samples are meant here.
pub fn as_generate_says(arg: Arg) -> Arg {
    arg.visible_alias("samples")
}

#[derive(Debug, Args)]
pub struct Eval {
    /// Hub id, short name, ID@REVISION, local folder, or `demo`; several: differences from the
    /// first are shown
    #[arg(
        short,
        long = "model",
        env = "IREPAIR_MODEL",
        default_value = "demo",
        value_name = "MODEL",
        visible_aliases = ["model-name-or-path", "model-id"],
        help_heading = "Input"
    )]
    pub models: Vec<String>,
    /// Prompts to continue: a file, or rtp-challenge of the hub [default: rtp-challenge; the
    /// demo's]
    #[arg(long, value_name = "FILE", env = "IREPAIR_EVAL_PROMPTS", help_heading = "Input")]
    pub prompts: Option<String>,
    /// Normal text for --kl; without it the base writes its own
    #[arg(long, value_name = "FILE", env = "IREPAIR_NORMAL", help_heading = "Input")]
    pub normal: Option<PathBuf>,
    /// Use only the first N prompts and passages
    #[arg(short = 'L', long, value_name = "N", help_heading = "Input")]
    pub limit: Option<usize>,
    /// Score continuations of prompts: lee (greedy, one a prompt) or rtp (25 samples a prompt)
    #[arg(
        long,
        value_name = "PRESET",
        num_args = 0..=1,
        default_missing_value = "lee",
        help_heading = "What is measured"
    )]
    pub toxicity: Option<String>,
    /// Perplexity of a text: wikitext2, lambada-corpus (of the hub), or a file; several times for
    /// several
    #[arg(long, value_name = "NAME|FILE", help_heading = "What is measured")]
    pub ppl: Vec<String>,
    /// paper: windows of 1,024 tokens without overlap; lm-eval: word and byte perplexity by
    /// document
    #[arg(
        long,
        value_enum,
        default_value_t = PplProtocol::Paper,
        help_heading = "What is measured"
    )]
    pub ppl_protocol: PplProtocol,
    /// LAMBADA's last words as lm-eval's lambada_openai: of the hub, or of a file
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        default_missing_value = "",
        help_heading = "What is measured"
    )]
    pub lambada: Option<String>,
    /// KL from this base on normal text, and how often both would say the same token
    #[arg(long, value_name = "BASE", help_heading = "What is measured")]
    pub kl: Option<String>,
    /// Rows with a prompt and a target, some of them marked generalization or specificity: how
    /// often the target is said [default: what the demo gets wrong]
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        default_missing_value = sources::DEMO,
        help_heading = "What is measured"
    )]
    pub edits: Option<String>,
    /// Where results and samples go [default: evaluated/MODEL, then MODEL-2, …]
    #[arg(
        short,
        long,
        visible_aliases = ["output-dir", "output", "output-path"],
        help_heading = "Output"
    )]
    pub out: Option<PathBuf>,
    /// Replace --out if it exists
    #[arg(long, help_heading = "Output")]
    pub overwrite: bool,
    /// Go on with an interrupted evaluation into the same --out
    #[arg(long, help_heading = "Output")]
    pub resume: bool,
    /// Do only part I of N (0/4 … 3/4); --merge joins them
    #[arg(long, value_name = "I/N", default_value = "0/1", help_heading = "Output")]
    pub shard: Shard,
    /// Join the results of all shards instead of measuring
    #[arg(long, value_name = "DIR", num_args = 1.., help_heading = "Output")]
    pub merge: Vec<PathBuf>,
    #[command(flatten)]
    pub output: Output,
    /// Continuations a prompt [default: the preset's]
    #[arg(
        long,
        visible_alias = "num-return-sequences",
        help_heading = "Scoring",
        hide_short_help = true
    )]
    pub samples: Option<usize>,
    /// Tokens a continuation [default: the preset's]
    #[arg(long, help_heading = "Scoring", hide_short_help = true)]
    pub max_new_tokens: Option<usize>,
    /// What logits are divided by before a token is drawn [default: the preset's]
    #[arg(long, help_heading = "Scoring", hide_short_help = true)]
    pub temperature: Option<f64>,
    /// Only the likeliest tokens that together reach P [default: the preset's]
    #[arg(long, help_heading = "Scoring", hide_short_help = true)]
    pub top_p: Option<f64>,
    /// A score of this or more counts as toxic
    #[arg(
        long,
        default_value_t = scorers::TOXIC,
        help_heading = "Scoring",
        hide_short_help = true
    )]
    pub threshold: f64,
    /// What scores the continuations
    #[arg(
        long,
        env = "IREPAIR_SCORER",
        default_value = scorers::DEFAULT,
        long_help = what_scores(),
        help_heading = "Scoring",
        hide_short_help = true
    )]
    pub scorer: String,
    #[command(flatten)]
    pub shared: MeasureWords,
}

fn what_scores() -> String {
    format!("What scores the continuations\n\n{}", scorers::help())
}

/// Protocols of perplexity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PplProtocol {
    Paper,
    LmEval,
}

#[derive(Debug, Args)]
pub struct Score {
    /// Texts: rows with "text", "continuation" or "prompt", or lines of a .txt
    #[arg(required_unless_present = "calibrate", conflicts_with = "calibrate")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub scoring: ScorerWords,
    /// Compare the scorer with the scores stored in this file (rows with "text" and "score" or
    /// "toxicity")
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
    /// Do only part I of N (0/4 … 3/4) of the rows; the parts' files one after another are the
    /// whole
    #[arg(long, value_name = "I/N", default_value = "0/1")]
    pub shard: Shard,
    /// Use only the first N rows
    #[arg(short = 'L', long, value_name = "N")]
    pub limit: Option<usize>,
    #[command(flatten)]
    pub output: Output,
}
