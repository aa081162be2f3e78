//! The page of a run as a browser reads it, and run folders to spoil.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use irepair::train::log::{Line, StepLine};
use scraper::{ElementRef, Html, Selector};
use serde_json::Value;

use super::command::{CommandLine, irepair, ok, stderr};
use super::files::{Folder, bytes, edit_json, read};
use super::repaired::demo;

/// A short repair of the demo, made once.
pub static REPAIRED: LazyLock<PathBuf> = LazyLock::new(|| {
    let out = place("default");
    demo(&out).and("-q").ok();
    out
});

/// Where the repair of this name goes.
pub fn place(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("report-{name}-{}", std::process::id()))
}

/// A folder with the repaired run, to spoil.
pub struct Run(Folder);

impl Run {
    pub fn new() -> Self {
        let folder = Folder::new();
        for name in
            ["config.json", "irepair/run.json", "irepair/steps.jsonl", "irepair/samples.jsonl"]
        {
            folder.write(name, bytes(REPAIRED.join(name)));
        }
        Self(folder)
    }

    pub fn root(&self) -> &Path {
        self.0.root()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    pub fn read(&self, name: &str) -> String {
        self.0.read(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        self.0.write(name, text)
    }

    pub fn remove(&self, name: &str) {
        self.0.remove(name);
    }

    /// Changes the record.
    pub fn edit(&self, change: impl FnOnce(&mut Value)) {
        edit_json(self.path("irepair/run.json"), change);
    }

    pub fn line(&self) -> CommandLine {
        irepair("report").arg(self.root())
    }

    /// The page, and what is said of the run on stderr.
    #[track_caller]
    pub fn report(&self) -> (Page, String) {
        let output = self.line().run();
        ok(&output);
        (Page::open(&self.path("irepair/report.html")), stderr(&output))
    }

    #[track_caller]
    pub fn refused(&self, words: &[&str]) {
        self.line().fails(3, words);
        assert!(!self.path("irepair/report.html").exists());
    }
}

/// A page as a browser reads it.
pub struct Page {
    pub source: String,
    html: Html,
}

impl Page {
    /// Parses a page: no errors, nothing that runs or is loaded, and no picture or table without
    /// words.
    #[track_caller]
    pub fn open(path: &Path) -> Self {
        let source = read(path);
        let html = Html::parse_document(&source);
        assert!(html.errors.is_empty(), "{:?}", html.errors);
        let page = Self { source, html };
        assert_eq!(page.count("script, link, img, iframe, object, embed, image, use"), 0);
        assert_eq!(page.count("html[lang=en] > head > title"), 1);
        let mut ids = BTreeSet::new();
        for element in page.html.root_element().descendent_elements() {
            for (name, value) in element.value().attrs() {
                let loads = matches!(name, "src" | "srcset" | "action" | "data");
                assert!(!loads && !name.starts_with("on"), "{name}");
                assert!(name != "href" || value.starts_with('#'), "{name}={value}");
                assert!(!value.contains("url("), "{name}={value}");
                assert!(name != "id" || ids.insert(value.to_owned()), "{value} twice");
            }
        }
        for (attribute, hash) in [("href", "#"), ("aria-labelledby", "")] {
            for element in page.select(&format!("[{attribute}]")) {
                for id in element.attr(attribute).expect("selected by it").split(' ') {
                    let known = ids.contains(id.strip_prefix(hash).expect("a fragment"));
                    assert!(known, "{attribute}={id}");
                }
            }
        }
        for svg in page.select("svg") {
            assert_eq!(svg.attr("role"), Some("img"));
            let words = |name: &str| {
                svg.child_elements().find(|e| e.value().name() == name).expect(name).text().count()
            };
            assert!(words("title") > 0 && words("desc") > 0);
        }
        let described = "table:has(> caption):has(> thead th[scope=col]):has(th[scope=row])";
        assert_eq!(page.count("table"), page.count(described));
        page
    }

    fn select(&self, selector: &str) -> Vec<ElementRef<'_>> {
        self.html.select(&Selector::parse(selector).expect("a selector")).collect()
    }

    pub fn count(&self, selector: &str) -> usize {
        self.select(selector).len()
    }

    /// The text of each element.
    pub fn texts(&self, selector: &str) -> Vec<String> {
        self.select(selector).into_iter().map(|e| e.text().collect()).collect()
    }

    #[track_caller]
    pub fn says(&self, words: &str) {
        let text: String = self.html.root_element().text().collect();
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
}

/// The steps in a log's text.
pub fn steps_of(text: &str) -> Vec<StepLine> {
    let step = |line| match serde_json::from_str(line).expect("a line") {
        Line::Step(line) => Some(line),
        Line::Validation(_) | Line::Trial(_) | Line::Round(_) => None,
    };
    text.lines().filter_map(step).collect()
}
