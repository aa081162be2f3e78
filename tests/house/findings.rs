//! What is out of order in the house, in words: each rule in one function over the files' texts.

use std::collections::BTreeMap;
use std::path::Path;

use super::arrows::{Arrow, arrows, circles, order};
use super::source::Source;
use crate::support::files::{names, repository};

/// Texts of files by their paths in the repository.
pub type Files = BTreeMap<String, String>;

const FILES_IN_THE_ROOT: usize = 5;
const LINES_OF_A_FILE: usize = 500;
const COLUMNS: usize = 100;

/// Uses of a module that stands after the one that uses it, in the order of `src/lib.rs`.
pub fn upward(files: &Files) -> Vec<String> {
    let order = order(files);
    let place = |name: &String| order.iter().position(|other| other == name);
    let runs_up = |arrow: &Arrow| {
        let (from, to) = (place(arrow.from.first()?)?, place(arrow.to.first()?)?);
        let [from_name, to_name] = [&arrow.from, &arrow.to].map(|module| module.join("::"));
        (to > from).then(|| {
            format!(
                "{}: {from_name} uses {to_name}, but {} stands after {} in src/lib.rs",
                arrow.place, order[to], order[from]
            )
        })
    };
    arrows(files).iter().filter_map(runs_up).collect()
}

/// Siblings that use each other, or each the next one up to the first.
pub fn circular(files: &Files) -> Vec<String> {
    let side = |arrow: &Arrow| {
        let (from, to) = arrow.siblings().expect("siblings");
        format!("{}: {} uses {}", arrow.place, from.join("::"), to.join("::"))
    };
    let words = |round: Vec<Arrow>| {
        format!("a circle:\n    {}", round.iter().map(side).collect::<Vec<_>>().join("\n    "))
    };
    circles(&arrows(files)).into_iter().map(words).collect()
}

/// Too many files in the root of `src/`.
pub fn crowded(files: &Files) -> Vec<String> {
    let in_root = |path: &&String| path.strip_prefix("src/").is_some_and(|p| !p.contains('/'));
    let found: Vec<&str> = files.keys().filter(in_root).map(String::as_str).collect();
    let words =
        format!("src/: {} files, at most {FILES_IN_THE_ROOT}: {}", found.len(), found.join(", "));
    Vec::from_iter((found.len() > FILES_IN_THE_ROOT).then_some(words))
}

/// Files of `src/` that are too long.
pub fn long_files(files: &Files) -> Vec<String> {
    let long = |(path, text): (&String, &String)| {
        let lines = text.lines().count();
        (is_rust(path, &["src/"]) && lines > LINES_OF_A_FILE)
            .then(|| format!("{path}: {lines} lines, at most {LINES_OF_A_FILE}"))
    };
    files.iter().filter_map(long).collect()
}

/// Lines that are too wide, comments and strings included.
pub fn long_lines(files: &Files) -> Vec<String> {
    let rust = files.iter().filter(|(path, _)| is_rust(path, &["src/", "tests/", "benches/"]));
    let lines = rust.flat_map(|(path, text)| text.lines().zip(1..).map(move |(l, n)| (path, l, n)));
    lines
        .map(|(path, line, number)| (path, line.chars().count(), number))
        .filter(|(_, columns, _)| *columns > COLUMNS)
        .map(|(path, columns, number)| {
            format!("{path}:{number}: {columns} columns, at most {COLUMNS}")
        })
        .collect()
}

/// Comments that begin with an "Of" that hangs in the air.
pub fn dangling(files: &Files) -> Vec<String> {
    let rust = files.iter().filter(|(path, _)| is_rust(path, &["src/", "tests/", "benches/"]));
    rust.flat_map(|(path, text)| {
        let comments = Source::read(text).comments.into_iter();
        let begins = comments.filter(|(comment, _)| comment.trim_start().starts_with("Of "));
        begins.map(move |(comment, line)| {
            format!("{path}:{line}: a comment begins with a dangling \"Of\": {}", comment.trim())
        })
    })
    .collect()
}

/// Test files that use another test file.
pub fn shared_tests(files: &Files) -> Vec<String> {
    let tests = files.iter().filter(|(path, _)| is_rust(path, &["tests/"]));
    tests
        .flat_map(|(path, text)| {
            let tokens = Source::read(text).tokens;
            let uses: Vec<String> = tokens
                .windows(3)
                .filter(|w| w[0].text == "crate" && w[1].text == "::" && w[2].text != "support")
                .map(|w| format!("{path}:{}: uses crate::{}, not support", w[2].line, w[2].text))
                .collect();
            uses
        })
        .collect()
}

fn is_rust(path: &str, folders: &[&str]) -> bool {
    path.ends_with(".rs") && folders.iter().any(|folder| path.starts_with(folder))
}

/// The files of these folders of the repository. What is no text is there with its name alone.
fn read(folders: &[&str]) -> Files {
    let mut files = Files::new();
    for folder in folders {
        for name in names(&repository(folder)) {
            let path = Path::new(folder).join(name);
            let whole = repository(path.to_str().expect("utf-8"));
            if whole.is_file() {
                let text = if path.extension().is_some_and(|e| e == "rs") {
                    std::fs::read_to_string(whole).expect("text")
                } else {
                    String::new()
                };
                files.insert(path.to_str().expect("utf-8").replace('\\', "/"), text);
            }
        }
    }
    files
}

#[track_caller]
fn none(found: Vec<String>) {
    assert!(found.is_empty(), "{} findings:\n{}", found.len(), found.join("\n"));
}

#[test]
fn a_module_uses_only_what_stands_before_it() {
    none(upward(&read(&["src"])));
}

#[test]
fn no_siblings_use_each_other_in_a_circle() {
    none(circular(&read(&["src"])));
}

#[test]
fn files_are_few_in_the_root_and_short() {
    let files = read(&["src"]);
    none([crowded(&files), long_files(&files)].concat());
}

#[test]
fn lines_are_short() {
    none(long_lines(&read(&["src", "tests", "benches"])));
}

#[test]
fn no_comment_begins_with_a_dangling_of() {
    none(dangling(&read(&["src", "tests", "benches"])));
}

#[test]
fn tests_use_only_their_helpers() {
    none(shared_tests(&read(&["tests"])));
}
