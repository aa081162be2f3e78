//! The words of the command line, and no work.

mod others;
mod repair;
pub mod shared;
mod texts;

use clap::{Args, Parser, Subcommand};

pub use others::{
    Bench, Completions, Doctor, Export, Guide, Man, NewPatch, Patch, PatchCommand, Report,
};
use repair::one_repair;
pub use repair::{Budget, Compare, MOST_TRIES, Repair, Tune};
use texts::as_generate_says;
pub use texts::{Eval, Generate, Pairs, PplProtocol, Score, Sensitivity, Tokens, Try};

/// Repairs data-driven errors (toxicity first) inside a language model's weights and touches as
/// little else as possible
#[derive(Debug, Parser)]
#[command(name = "irepair", version, arg_required_else_help = true, args_override_self = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const REPAIR: &str = "Example:
  irepair repair --model gpt2-large --data pairs.jsonl --out repaired/gpt2-large

Settings: defaults < preset < --config FILE < IREPAIR_* variables < flags.";

const GENERATE: &str = "Examples:
  irepair generate --model gpt2 --prompt \"Once upon a time\"
  irepair generate --model gpt2 --prompts prompts.jsonl --out texts.jsonl
  irepair generate --model gpt2 --unconditional 9999 --scorer words --keep-below 0.5 --out n.jsonl";

const EVAL: &str = "Examples:
  irepair eval --model gpt2-large --model repaired --toxicity --ppl wikitext2 --kl gpt2-large
  irepair eval --model repaired --toxicity rtp --prompts prompts.jsonl --shard 0/4 --out part0
  irepair eval --merge part0 part1 part2 part3 --out all";

const COMPARE: &str = "Examples:
  irepair compare --model gpt2-large --data pairs.jsonl --seeds 1,2,3
  irepair compare --model patient --data pairs.jsonl --runs runs.toml --methods dpo+kl,one-block \
    --eval-prompts prompts.jsonl --ppl wiki.test.raw --out compared/patient
  irepair compare --methods star,mint,sgd,irepair+kl --model gpt2 --data failures.jsonl --edits

A file of --runs has a table of settings a row: [one-block] select = \"max\" objective = \"dpo\" …";

const TUNE: &str = "Examples:
  irepair tune --model gpt2 --prompts prompts.jsonl --scorer classifier:DIR --budget 2h
  irepair tune --model gpt2 --data pairs.jsonl --method dpo+kl --eval-prompts dev.jsonl --budget 12

What is given is not searched: --learning-rate, --kl-weight or --kl-budget, --method or --select.
The tries are made with --eval-prompts, or with prompts that the method holds back. Judge the chosen
one on others.";

const MORE: &str = "Method, loss, training, stopping, scoring, wrong answers, machine: \
                    irepair repair --help; in words: irepair guide methods";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Repair a model with pairs of chosen and rejected responses (alone: the embedded demo)
    #[command(after_help = [REPAIR, MORE].join("\n\n"), after_long_help = REPAIR)]
    Repair(Box<Repair>),
    /// Show which blocks carry the error: the gradient norm of the rejected responses' NLL by block
    #[command(after_help = "Example:
  irepair sensitivity --model gpt2 --data pairs.jsonl --dump blocks.csv --plot blocks.svg")]
    Sensitivity(Sensitivity),
    /// Show the tokens of pairs: where a response begins, which tokens count, what is cut
    #[command(after_help = "Examples:
  irepair tokens --model gpt2 --data pairs.jsonl --limit 3
  irepair tokens --model gpt2 --data pairs.jsonl --boundary trl --json > tokens.jsonl")]
    Tokens(Tokens),
    /// Write texts: continuations of prompts, or unconditional ones
    #[command(after_help = GENERATE)]
    Generate(Generate),
    /// Show what a model and its repaired form say to the same prompts, side by side
    #[command(after_help = "Examples:
  irepair try demo repaired/demo-irepair+kl
  irepair try gpt2-large repaired --prompt \"You are\" --samples 4")]
    Try(Try),
    /// Write preference pairs of a model's own texts, told apart by a scorer
    #[command(
        after_help = "Example:
  irepair pairs --model gpt2 --prompts prompts.jsonl --scorer classifier:DIR --out pairs.jsonl",
        mut_arg("samples-per-prompt", as_generate_says)
    )]
    Pairs(Pairs),
    /// Measure models: toxicity, perplexity, LAMBADA, and what a repair cost elsewhere
    #[command(after_help = EVAL)]
    Eval(Box<Eval>),
    /// Make the same repair by several methods, and put them beside each other: the paper's tables
    /// and figures
    #[command(
        after_help = COMPARE,
        mut_arg("method", one_repair),
        mut_arg("select", one_repair),
        mut_arg("objective", one_repair)
    )]
    Compare(Box<Compare>),
    /// Search the settings of a repair that matter, on development prompts: learning rate, KL
    /// budget, and which unit a step changes
    #[command(after_help = TUNE)]
    Tune(Box<Tune>),
    /// Score texts, or compare a scorer with stored scores
    #[command(after_help = "Examples:
  irepair score texts.jsonl --scorer lexicon --out scored.jsonl
  irepair score --calibrate perspective.jsonl --scorer lexicon --plot calibration.svg")]
    Score(Score),
    /// Make, show, apply, scale, average or take back a patch: what a repair changed, without the
    /// model
    #[command(after_help = "Examples:
  irepair patch show repaired/irepair/patch.safetensors
  irepair patch apply gpt2-large patch.safetensors --out repaired
  irepair patch revert repaired patch.safetensors --out base
  irepair patch scale patch.safetensors --by 0.8 --base gpt2-large --out milder.safetensors")]
    Patch(Patch),
    /// Time one iteration on random weights; prints one JSON line
    #[command(after_help = "Example:
  irepair bench --config gpt2 --method irepair+kl --batch 4 --tokens 64 --iterations 5")]
    Bench(Bench),
    /// Print build features, devices, caches and versions; or what of a model is understood
    #[command(after_help = "Examples:\n  irepair doctor\n  irepair doctor --model gpt2-large")]
    Doctor(Doctor),
    /// Draw a run as one HTML page: where the error was, what changed, and what it cost
    #[command(after_help = "Example:\n  irepair report repaired/gpt2-large")]
    Report(Report),
    /// Print a page of the user's guide, or the list of pages
    #[command(after_help = "Examples:\n  irepair guide\n  irepair guide methods")]
    Guide(Guide),
    /// Print the completions of a shell
    #[command(after_help = "Example:
  irepair completions bash > ~/.local/share/bash-completion/completions/irepair")]
    Completions(Completions),
    /// Print the manual, or write its pages, one a command
    #[command(after_help = "Examples:
  irepair man | man -l -
  irepair man --out ~/.local/share/man/man1")]
    Man(Man),
}

/// How much is printed.
#[derive(Debug, Clone, Copy, Args)]
pub struct Output {
    /// Print the result as JSON
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    /// No progress on stderr
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
}

impl Cli {
    /// What this command line asks for. An error is what clap says instead: why it can't be read,
    /// or the help that it asks for.
    pub fn of(arguments: impl Iterator<Item = std::ffi::OsString>) -> Result<Self, clap::Error> {
        Self::try_parse_from(kebab(arguments)).map_err(with_our_word)
    }
}

/// An unknown flag that users of other programs know, with what it is called here.
fn with_our_word(error: clap::Error) -> clap::Error {
    let found = error.get(clap::error::ContextKind::InvalidArg);
    let Some(clap::error::ContextValue::String(flag)) = found else { return error };
    let flag = flag.split('=').next().unwrap_or_default();
    if !matches!(flag, "--epochs" | "--num-epochs" | "--num-train-epochs") {
        return error;
    }
    let why = format!(
        "{flag}: a run is counted in steps here: --max-steps N, and an epoch is the pairs divided \
         by --batch-size (irepair repair --dry-run says how often each pair is seen)\n"
    );
    clap::Error::raw(clap::error::ErrorKind::UnknownArgument, why)
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
    use clap::CommandFactory;

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
