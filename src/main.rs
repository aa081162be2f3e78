//! Parse → run → `error: …` → exit code.

// `base::print` prints, and nothing else does.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use irepair::base::error::{Error, exit_code};
use irepair::base::{print, wall};
use irepair::cli::{Cli, Command};
use irepair::commands;

#[global_allocator]
static ALLOCATOR: wall::Counting = wall::Counting;

fn main() -> ExitCode {
    irepair::model::device::quiet_candle_pool();
    irepair::model::device::keep_freed_memory();
    let cli = match Cli::of(std::env::args_os()) {
        Ok(cli) => cli,
        Err(instead) => return tell(&instead),
    };
    let done = wall::whole(|| match cli.command {
        Command::Repair(args) => commands::repair::run(&args),
        Command::Sensitivity(args) => commands::sensitivity::run(&args),
        Command::Tokens(args) => commands::tokens::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Try(args) => commands::try_both::run(&args),
        Command::Pairs(args) => commands::pairs::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Compare(args) => commands::compare::run(&args),
        Command::Tune(args) => commands::tune::run(&args),
        Command::Score(args) => commands::score::run(&args),
        Command::Patch(args) => commands::patch::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Report(args) => commands::report::run(&args),
        Command::Guide(args) => commands::guide::run(&args),
        Command::Completions(args) => commands::manual::completions(&args),
        Command::Man(args) => commands::manual::man(&args),
    });
    done.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

/// Says what clap says instead of a command: help on stdout, or an error on stderr.
fn tell(instead: &clap::Error) -> ExitCode {
    match instead.print() {
        // Its exit code says it all, whether or not stderr could be written.
        _ if instead.use_stderr() => ExitCode::from(2),
        printed => print::whole(printed).map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    if !matches!(error.downcast_ref(), Some(Error::Unread)) {
        print::say(format_args!("error: {error:#}"));
    }
    ExitCode::from(exit_code(error))
}
