//! The words of `repair` and `compare`: the settings of a repair, and where its output goes.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Arg, Args};

use super::Output;
use crate::settings::RepairWords;
use crate::settings::setting::Heading;

const OUTPUT: &str = Heading::Output.title();
const METHOD: &str = Heading::Method.title();
const STOPPING: &str = Heading::Stopping.title();
const SCORING: &str = Heading::Scoring.title();
const MACHINE: &str = Heading::Machine.title();

#[derive(Debug, Args)]
pub struct Repair {
    #[command(flatten)]
    pub words: RepairWords,
    /// Where the repaired model goes [default: repaired/MODEL-METHOD]
    #[arg(short, long, visible_aliases = ["output-dir", "output"], help_heading = OUTPUT)]
    pub out: Option<PathBuf>,
    /// Replace --out if it exists
    #[arg(long, help_heading = OUTPUT)]
    pub overwrite: bool,
    /// Read headers and data only, and say what would be done and how much memory it takes
    #[arg(long, help_heading = OUTPUT)]
    pub dry_run: bool,
    #[command(flatten)]
    pub output: Output,
    /// Settings from a TOML file, or a preset's name
    #[arg(short = 'C', long, value_name = "FILE", help_heading = METHOD, hide_short_help = true)]
    pub config: Option<PathBuf>,
    /// Go on with an interrupted run into the same --out
    #[arg(long, help_heading = STOPPING, hide_short_help = true)]
    pub resume: bool,
}

#[derive(Debug, Args)]
pub struct Compare {
    #[command(flatten)]
    pub words: RepairWords,
    /// Rows: names of methods, or of tables in --runs [default: the paper's]
    #[arg(long, value_delimiter = ',', value_name = "NAME,…", help_heading = "Input")]
    pub methods: Vec<String>,
    /// Settings of rows: a TOML file with a table for each, over --config and under flags
    #[arg(long, value_name = "FILE", help_heading = "Input")]
    pub runs: Option<PathBuf>,
    /// Each row once for each of these; means and standard errors are shown [default: --seed]
    #[arg(long, value_delimiter = ',', value_name = "SEED,…", help_heading = "Input")]
    pub seeds: Vec<u64>,
    /// Finished runs to put beside them
    #[arg(value_name = "RUN_DIR")]
    pub finished: Vec<PathBuf>,
    /// Where runs, tables and figures go [default: compared/MODEL]
    #[arg(short, long, visible_aliases = ["output-dir", "output"], help_heading = OUTPUT)]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
    /// Settings from a TOML file, or a preset's name
    #[arg(short = 'C', long, value_name = "FILE", help_heading = METHOD, hide_short_help = true)]
    pub config: Option<PathBuf>,
    /// Go on with the comparison in --out: what is missing is made
    #[arg(long, help_heading = STOPPING, hide_short_help = true)]
    pub resume: bool,
    /// Write down the tasks of the comparison, for a job array, and do none of them
    #[arg(long, conflicts_with_all = ["task", "merge", "resume", "finished"],
        help_heading = MACHINE, hide_short_help = true)]
    pub plan: bool,
    /// Do task I of a plan: 0 measures the base, the others make a run each and measure it. Killed
    /// and given again, it goes on
    #[arg(long, value_name = "I", conflicts_with_all = ["merge", "resume", "finished"],
        help_heading = MACHINE, hide_short_help = true)]
    pub task: Option<usize>,
    /// Put together what the tasks of a plan have done
    #[arg(long, conflicts_with_all = ["resume", "finished"], help_heading = MACHINE,
        hide_short_help = true)]
    pub merge: bool,
    /// Score continuations of prompts: lee (greedy, one a prompt) or rtp (25 samples a prompt)
    /// [default: lee, without --edits]
    #[arg(long, value_name = "PRESET", help_heading = SCORING, hide_short_help = true)]
    pub toxicity: Option<String>,
    /// Compare repairs of wrong answers: the rows of --data are failures (a prompt and its target),
    /// and these rows, some of them marked generalization or specificity, tell what the repairs are
    /// worth [default: all rows of --data, if a row's method is star, mint or sgd]
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        default_missing_value = "",
        help_heading = SCORING,
        hide_short_help = true
    )]
    pub edits: Option<String>,
    /// Continuations a prompt [default: the preset's]
    #[arg(long, help_heading = SCORING, hide_short_help = true)]
    pub samples: Option<usize>,
    /// Perplexity of a text: wikitext2, lambada-corpus (of the hub), or a file; several times for
    /// several [default: both names; the demo's clean text]
    #[arg(long, value_name = "NAME|FILE", help_heading = SCORING, hide_short_help = true)]
    pub ppl: Vec<String>,
    /// Measure parts and multiples of each run's change, too, for the curve of toxicity against KL
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "SCALE,…",
        help_heading = SCORING,
        hide_short_help = true
    )]
    pub scales: Vec<f64>,
    /// LAMBADA's last words as lm-eval's lambada_openai: of the hub, or of a file
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        default_missing_value = "",
        help_heading = SCORING,
        hide_short_help = true
    )]
    pub lambada: Option<String>,
    /// Runs and evaluations at a time, each in a process and with memory of its own: for a machine
    /// of many cores, or a GPU that one small model leaves idle [default: one on each --device]
    #[arg(short, long, value_name = "N", help_heading = MACHINE, hide_short_help = true)]
    pub jobs: Option<usize>,
}

/// What a search may spend.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    Runs(usize),
    Time(Duration),
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "expected a number of runs, like 12, or a time, like 90m or 2h".to_owned();
        let unit = match text.chars().last() {
            Some('s') => 1.0,
            Some('m') => 60.0,
            Some('h') => 3600.0,
            _ => {
                return match text.parse() {
                    Ok(runs @ 1..=MOST_TRIES) => Ok(Self::Runs(runs)),
                    Ok(_) => Err(format!("expected 1 to {MOST_TRIES} runs")),
                    Err(_) => Err(wrong()),
                };
            }
        };
        let number: f64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
        let seconds = Some(number * unit).filter(|s| *s > 0.0 && *s <= LONGEST_SEARCH);
        seconds.map(|s| Self::Time(Duration::from_secs_f64(s))).ok_or_else(wrong)
    }
}

/// The most tries of a search.
pub const MOST_TRIES: usize = 1000;
/// The longest search, in seconds: a year.
const LONGEST_SEARCH: f64 = 365.0 * 24.0 * 3600.0;

#[derive(Debug, Args)]
pub struct Tune {
    #[command(flatten)]
    pub words: RepairWords,
    /// What to spend: a number of runs (12), or a time (90m, 2h) after which no run begins
    #[arg(long, value_name = "RUNS|TIME", default_value = "12", help_heading = METHOD)]
    pub budget: Budget,
    /// The most KL that the chosen run may have, in nats a token on the base's normal text
    #[arg(long, value_name = "NATS", default_value_t = 0.02, help_heading = METHOD)]
    pub max_kl: f64,
    /// Runs at a time, each in a process and with memory of its own. What is tried next goes by the
    /// rounds of N before it [default: one on each --device]
    #[arg(short, long, value_name = "N", help_heading = MACHINE, hide_short_help = true)]
    pub jobs: Option<usize>,
    /// Where runs, tables and the chosen settings go [default: tuned/MODEL]
    #[arg(short, long, visible_aliases = ["output-dir", "output"], help_heading = OUTPUT)]
    pub out: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
    /// Settings from a TOML file, or a preset's name
    #[arg(short = 'C', long, value_name = "FILE", help_heading = METHOD, hide_short_help = true)]
    pub config: Option<PathBuf>,
    /// Go on with the search in --out
    #[arg(long, help_heading = STOPPING, hide_short_help = true)]
    pub resume: bool,
}

/// What names one repair: a row says it in a comparison.
pub fn one_repair(arg: Arg) -> Arg {
    arg.hide(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_runs_or_time() {
        let time = |seconds| Ok(Budget::Time(Duration::from_secs(seconds)));
        assert_eq!("12".parse(), Ok(Budget::Runs(12)));
        assert_eq!(
            ("90m".parse(), "1.5h".parse(), "7s".parse()),
            (time(5400), time(5400), time(7))
        );
        for wrong in ["", "0", "-1", "1001", "h", "0m", "-2h", "NaNh", "infh", "2d", "1e300h", "é"]
        {
            assert!(wrong.parse::<Budget>().is_err(), "{wrong}");
        }
    }
}
