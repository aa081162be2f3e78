//! `report` makes one HTML page of a run or of a comparison.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::writable;
use crate::bail_input;
use crate::base::error::Error;
use crate::base::files;
use crate::base::print;
use crate::cli::Report;
use crate::print_line;
use crate::report::compare_page;
use crate::report::compare_page::compare_page;
use crate::report::comparison::{Comparison, RECORD};
use crate::report::folder::RunFolder;
use crate::report::plot::Picture;
use crate::report::run_page;
use crate::report::run_page::run_page;
use crate::say;

pub fn run(args: &Report) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| {
        let compared = args.run.join(RECORD).is_file();
        args.run.join(if compared { "report.html" } else { "irepair/report.html" })
    });
    let Drawn { page, pictures, gaps } = draw(&args.run)?;
    writable("--out", &out)?;
    if let Some(dir) = &args.pictures {
        let cannot =
            |e| Error::Input(format!("--pictures {}: can't write there: {e}", dir.display()));
        std::fs::create_dir_all(dir).map_err(cannot)?;
        for picture in &pictures {
            files::write_whole(
                &dir.join(format!("{}.svg", picture.id)),
                picture.file().as_bytes(),
            )?;
        }
    }
    if !args.output.quiet {
        gaps.iter().for_each(|gap| say!("{}: {gap}", args.run.display()));
    }
    files::write_whole(&out, page.as_bytes())?;
    if args.output.json {
        let ids: Vec<&str> = pictures.iter().map(|p| p.id.as_str()).collect();
        print::json(&json!({ "out": out, "bytes": page.len(), "gaps": gaps, "pictures": ids }))?;
    } else {
        print_line!(
            "{}: {} KiB; opens in any browser and needs no other file",
            out.display(),
            page.len().div_ceil(1024)
        )?;
    }
    Ok(())
}

/// A page, and what belongs to it.
struct Drawn {
    page: String,
    /// The pictures of the page.
    pictures: Vec<Picture>,
    /// What could not be read, a sentence each.
    gaps: Vec<String>,
}

/// Draws the page of the run or comparison in this folder. Errors (bad input) if it holds neither.
fn draw(dir: &Path) -> Result<Drawn> {
    let record = dir.join(RECORD);
    if record.is_file() {
        let found = Comparison::read(&record)?;
        let (page, pictures) = (compare_page(&found), compare_page::pictures(&found));
        return Ok(Drawn { page, pictures, gaps: found.gaps });
    }
    if dir.join("plan.json").is_file() && !dir.join("irepair").is_dir() {
        bail_input!(
            "{}: an unfinished comparison; go on with `irepair compare … --resume`",
            dir.display()
        );
    }
    let run = RunFolder::open(dir)?;
    Ok(Drawn { page: run_page(&run), pictures: run_page::pictures(&run), gaps: run.gaps })
}
