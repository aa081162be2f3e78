//! Parse → run → `error: …` → exit code.

use std::process::ExitCode;

use irepair::base::{error, plain, wall};
use irepair::cli::{Cli, Command};
use irepair::commands;

#[global_allocator]
static ALLOCATOR: wall::Counting = wall::Counting;

fn main() -> ExitCode {
    irepair::model::device::quiet_candle_pool();
    irepair::model::device::keep_freed_memory();
    irepair::base::interrupt::end_with_the_pipe();
    let cli = Cli::of(std::env::args_os());
    let done = wall::whole(|| match cli.command {
        Command::Repair(args) => commands::repair::run(&args),
        Command::Sensitivity(args) => commands::sensitivity::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Pairs(args) => commands::pairs::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Compare(args) => commands::compare::run(&args),
        Command::Score(args) => commands::score::run(&args),
        Command::Patch(args) => commands::patch::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
        Command::Doctor(args) => commands::doctor::run(&args),
        Command::Report(args) => commands::report::run(&args),
        Command::Guide(args) => commands::guide::run(&args),
        Command::Completions(args) => commands::manual::completions(&args),
        Command::Man(args) => commands::manual::man(&args),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", plain::message(&format!("{error:#}")));
            ExitCode::from(error::exit_code(&error))
        }
    }
}
