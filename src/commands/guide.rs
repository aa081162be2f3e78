//! `guide` lists the pages of the user's guide, or prints one.

use anyhow::Result;

use crate::base::error::{Error, unknown};
use crate::base::print;
use crate::cli::Guide;
use crate::guide::PAGES;
use crate::print_line;

pub fn run(args: &Guide) -> Result<()> {
    let Some(topic) = &args.topic else {
        for page in PAGES {
            print_line!("{:<22} {}", page.topic, page.about())?;
        }
        print_line!("\nirepair guide TOPIC prints a page")?;
        return Ok(());
    };
    match PAGES.iter().find(|page| page.topic == topic) {
        Some(page) => {
            print::text(page.text)?;
            Ok(())
        }
        None => {
            let topics: Vec<&str> = PAGES.iter().map(|page| page.topic).collect();
            Err(Error::Usage(unknown("topic", topic, &topics)).into())
        }
    }
}
