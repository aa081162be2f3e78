//! `completions` and `man` print the command line for shells and as manual pages.

use anyhow::Result;
use clap::CommandFactory;

use crate::base::error::Error;
use crate::base::print;
use crate::cli::{Cli, Completions, Man};
use crate::print_line;

pub fn completions(args: &Completions) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "irepair", &mut script);
    print::bytes(&script)
}

pub fn man(args: &Man) -> Result<()> {
    let Some(dir) = &args.out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        return print::bytes(&page);
    };
    let cannot = |e: std::io::Error| {
        Error::Input(format!("--out {}: can't write there: {e}", dir.display()))
    };
    std::fs::create_dir_all(dir).map_err(cannot)?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(cannot)?;
    print_line!("{0}: the manual pages; man -l {0}/irepair.1 shows the first", dir.display())?;
    Ok(())
}
