//! `report`: a run or a comparison as one HTML page.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::writable;
use crate::checkpoint;
use crate::cli::Report;
use crate::report::compare_page::compare_page;
use crate::report::comparison::{Comparison, RECORD};
use crate::report::folder::RunFolder;
use crate::report::run_page::run_page;

pub fn run(args: &Report) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| {
        let compared = args.run.join(RECORD).is_file();
        args.run.join(if compared { "report.html" } else { "irepair/report.html" })
    });
    let (page, gaps) = draw(&args.run)?;
    writable("--out", &out)?;
    if !args.output.quiet {
        gaps.iter().for_each(|gap| eprintln!("{}: {gap}", args.run.display()));
    }
    checkpoint::write_whole(&out, page.as_bytes())?;
    if args.output.json {
        println!("{}", json!({ "out": out, "bytes": page.len(), "gaps": gaps }));
    } else {
        println!("{}: {} KiB; opens in any browser, and needs no other file", out.display(), page.len().div_ceil(1024));
    }
    Ok(())
}

/// The page of a folder, and what of it could not be read.
fn draw(dir: &Path) -> Result<(String, Vec<String>)> {
    let record = dir.join(RECORD);
    if record.is_file() {
        return Ok((compare_page(&Comparison::read(&record)?), Vec::new()));
    }
    let run = RunFolder::open(dir)?;
    Ok((run_page(&run), run.gaps))
}
