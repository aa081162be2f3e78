//! The lines of the guide's page for those who come from other tools run as they stand.

use crate::support::command::irepair;
use crate::support::files::{Folder, read, repository};

#[test]
fn lines_of_the_page_run() {
    let page = read(repository("src/guide/coming-from.md"));
    let folder = Folder::new();
    let lines: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("irepair ")).collect();
    assert!(lines.len() >= 4, "{lines:?}");
    for line in lines {
        let quick =
            if line.starts_with("repair") { " --eval-samples 0 --normal-texts 16" } else { "" };
        let output = irepair(&format!("{line}{quick}"))
            .env("IREPAIR_CACHE", folder.path("cache"))
            .command()
            .current_dir(folder.root())
            .output()
            .expect("runs");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    for written in ["by-trl/model.safetensors", "ipo/model.safetensors", "texts.jsonl"] {
        assert!(folder.path(written).is_file(), "{written}");
    }
    assert!(folder.path("results/results.json").is_file());
}

/// The flags that the page says are taken are taken.
#[test]
fn flags_of_the_page_are_there() {
    let page = read(repository("src/guide/coming-from.md"));
    let helps: String =
        ["repair", "eval", "generate"].map(|command| irepair(command).and("--help").ok()).concat();
    let ours =
        page.lines().filter(|line| line.starts_with('|')).filter_map(|line| line.split('|').nth(2));
    let mut flags = 0;
    for cell in ours {
        for word in cell
            .split(['`', ' ', ','])
            .filter(|w| w.starts_with("--") && w.len() > 2 && !w.starts_with("---"))
        {
            assert!(helps.contains(word), "{word} of {cell:?} is no flag");
            flags += 1;
        }
    }
    assert!(flags > 20, "{flags}");
}
