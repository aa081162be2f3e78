//! Every relative link of the documents leads to a file, and to a heading in it.

use std::path::{Component, Path, PathBuf};

use crate::support::files::{names, read, repository};

/// A link of a document: where it stands, and where it leads.
#[derive(Debug, PartialEq)]
struct Link {
    line: usize,
    to: String,
}

/// The lines of a document that are no code, and their numbers from 1.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut fence: Option<&str> = None;
    let mut lines = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let begins = ["```", "~~~"].into_iter().find(|f| line.trim_start().starts_with(f));
        match (fence, begins) {
            (None, Some(_)) => fence = begins,
            (Some(open), Some(close)) if open == close => fence = None,
            (None, None) => lines.push((number, line)),
            _ => {}
        }
    }
    lines
}

/// A line without what stands between backticks.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("`")
}

/// `[words](to)` and `![words](to)`, `[words]: to`, `src="to"` and `href="to"`.
fn links(text: &str) -> Vec<Link> {
    let inline = regex::Regex::new(r#"\]\(\s*<?([^)\s>]+)"#).expect("a pattern");
    let defined = regex::Regex::new(r"^\s{0,3}\[[^\]]+\]:\s*<?([^\s>]+)").expect("a pattern");
    let html = regex::Regex::new(r#"\b(?:src|srcset|href)="([^"\s]+)"#).expect("a pattern");
    let mut found = Vec::new();
    for (line, words) in prose(text) {
        let words = without_code(words);
        for pattern in [&inline, &defined, &html] {
            let to = pattern.captures_iter(&words).map(|c| c[1].to_owned());
            found.extend(to.map(|to| Link { line, to }));
        }
    }
    found
}

/// The anchors of a document's headings, as GitHub makes them. A heading that comes again gets a
/// number.
fn anchors(text: &str) -> Vec<String> {
    let linked = regex::Regex::new(r"!?\[([^\]]*)\]\([^)]*\)").expect("a pattern");
    let mut anchors: Vec<String> = Vec::new();
    for (_, line) in prose(text) {
        let heading = line.trim_start_matches('#');
        let depth = line.len() - heading.len();
        if !(1..=6).contains(&depth) || !heading.starts_with(' ') {
            continue;
        }
        let anchor: String = linked
            .replace_all(heading.trim().trim_end_matches('#').trim(), "$1")
            .to_lowercase()
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
            .map(|c| if c == ' ' { '-' } else { c })
            .collect();
        let again = (1..).map(|n| format!("{anchor}-{n}")).find(|a| !anchors.contains(a));
        anchors.push(if anchors.contains(&anchor) { again.expect("a number") } else { anchor });
    }
    let ids = regex::Regex::new(r#"\b(?:id|name)="([^"]+)""#).expect("a pattern");
    anchors.extend(ids.captures_iter(text).map(|c| c[1].to_owned()));
    anchors
}

/// A path without `.` and `..`.
fn straight(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut path, part| {
        match part {
            Component::ParentDir => drop(path.pop()),
            Component::CurDir => {}
            part => path.push(part),
        }
        path
    })
}

/// What is wrong with a link of the document `from`, given how to read a file of the repository.
fn broken(from: &Path, to: &str, read: &dyn Fn(&Path) -> Option<String>) -> Option<String> {
    let elsewhere = ["http://", "https://", "mailto:"];
    if elsewhere.iter().any(|scheme| to.starts_with(scheme)) {
        return None;
    }
    let (file, anchor) = to.split_once('#').map_or((to, None), |(f, a)| (f, Some(a)));
    let path = match file {
        "" => from.to_owned(),
        file => straight(&from.parent().unwrap_or(Path::new("")).join(file)),
    };
    let Some(text) = read(&path) else { return Some(format!("{} is missing", path.display())) };
    let is_document = path.extension().is_some_and(|e| e == "md");
    match anchor.filter(|_| is_document) {
        Some(anchor) if !anchors(&text).iter().any(|a| a == anchor) => {
            Some(format!("{} has no heading #{anchor}", path.display()))
        }
        _ => None,
    }
}

/// The documents of the repository, by their paths in it.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in repository("").read_dir().expect("the repository").flatten() {
        let name = PathBuf::from(entry.file_name());
        let is_hidden = name.to_str().is_some_and(|name| name.starts_with('.'));
        if entry.path().is_file() {
            found.push(name);
        } else if !is_hidden && name != Path::new("target") {
            found.extend(names(&entry.path()).into_iter().map(|inner| name.join(inner)));
        }
    }
    found.retain(|path| path.extension().is_some_and(|e| e == "md"));
    found.sort();
    found
}

#[test]
fn every_link_leads_somewhere() {
    let documents = documents();
    assert!(documents.iter().any(|path| path == Path::new("src/guide/methods.md")));
    let read_file = |path: &Path| {
        let path = repository(path.to_str().expect("utf-8"));
        // A picture or a folder has no headings.
        path.exists().then(|| std::fs::read_to_string(&path).unwrap_or_default())
    };
    let (mut found, mut count) = (Vec::new(), 0);
    for document in &documents {
        let text = read(repository(document.to_str().expect("utf-8")));
        for Link { line, to } in links(&text) {
            count += 1;
            if let Some(what) = broken(document, &to, &read_file) {
                found.push(format!("{}:{line}: {to}: {what}", document.display()));
            }
        }
    }
    assert!(count > 50, "only {count} links");
    assert!(found.is_empty(), "{} links lead nowhere:\n{}", found.len(), found.join("\n"));
}

#[test]
fn the_readme_is_short() {
    let bytes = read(repository("README.md")).len();
    assert!(bytes <= 8192, "README.md: {bytes} bytes, at most 8192");
}

#[test]
fn links_and_headings_are_those_of_markdown() {
    let text = "# The *house*, `ls src` & more!\n[a](b.md) ![c](d.svg \"e\") [f](g.md#h-i)\n\
                ```\n[no](code.md)\n# no heading\n```\nand `[no](this.md)` <img src=\"j.png\">\n\
                [k]: l.md\n## Twice\n## Twice\n### [m](n.md) o\n#no heading\n";
    let found = links(text);
    let to: Vec<(usize, &str)> = found.iter().map(|l| (l.line, l.to.as_str())).collect();
    let expected =
        [(2, "b.md"), (2, "d.svg"), (2, "g.md#h-i"), (7, "j.png"), (8, "l.md"), (11, "n.md")];
    assert_eq!(to, expected);
    assert_eq!(anchors(text), ["the-house-ls-src--more", "twice", "twice-1", "m-o"]);
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let read = |path: &Path| match path.to_str() {
        Some("README.md") => Some("# Top\n".to_owned()),
        Some("src/guide/a.md") => Some("## One thing\n".to_owned()),
        Some("src/b.svg") => Some(String::new()),
        _ => None,
    };
    let from = Path::new("src/guide/a.md");
    for to in [
        "a.md",
        "#one-thing",
        "a.md#one-thing",
        "../../README.md#top",
        "../b.svg",
        "../b.svg#part",
        "https://example.org/x.md#y",
    ] {
        assert_eq!(broken(from, to, &read), None, "{to}");
    }
    for (to, words) in [
        ("b.md", "src/guide/b.md is missing"),
        ("../README.md", "src/README.md is missing"),
        ("#another", "src/guide/a.md has no heading #another"),
        ("../../README.md#one-thing", "README.md has no heading #one-thing"),
    ] {
        assert_eq!(broken(from, to, &read).as_deref(), Some(words), "{to}");
    }
}
