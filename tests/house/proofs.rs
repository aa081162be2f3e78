//! Every rule of the house fails on what breaks it, and on nothing else.

use super::findings::{
    Files, circular, crowded, dangling, long_files, long_lines, shared_tests, upward,
};

fn files(texts: &[(&str, &str)]) -> Files {
    texts.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

/// A house of two floors and these files.
fn house(texts: &[(&str, &str)]) -> Files {
    let lib = ("src/lib.rs", "pub mod low;\npub mod high;\n");
    let low = ("src/low/mod.rs", "pub mod one;\npub mod two;\n");
    let high = ("src/high.rs", "use crate::low::one;\nfn f() { one::g(); crate::low::two::g() }\n");
    let empty = [("src/low/one.rs", ""), ("src/low/two.rs", ""), ("src/main.rs", "")];
    files(&[&[lib, low, high], &empty[..], texts].concat())
}

#[test]
fn a_house_in_order_has_no_findings() {
    let house = house(&[]);
    for rule in [upward, circular, crowded, long_files, long_lines, dangling] {
        assert_eq!(rule(&house), Vec::<String>::new());
    }
}

#[test]
fn an_arrow_that_runs_up_is_found_however_it_is_written() {
    for text in [
        "\nuse crate::high;",
        "\nuse crate::high::Thing;",
        "\nuse std::{io, fmt}; use crate::{low::two, high::{self, Thing}};",
        "\nuse super::super::high::Thing as Other;",
        "\nfn f() -> u8 { crate::high::g() }",
        "\nmod tests { use super::super::super::high; }",
        "\nmacro_rules! m { () => { $crate::high::g() } }",
        "\n/* crate::low */ pub(crate) use crate :: high :: *;",
    ] {
        let found = upward(&house(&[("src/low/one.rs", text)]));
        let words = "src/low/one.rs:2: low::one uses high, but high stands after low in src/lib.rs";
        assert_eq!(found, [words], "{text}");
    }
    for text in [
        "// use crate::high;\n/// [`high`](crate::high)\n",
        "const A: &str = \"crate::high::g()\"; const B: &str = r#\"crate::high\"#;",
        "use crate::{Nats, bail_input}; use super::two;",
        "use self::f as high; fn f() { high::g() }",
        "fn f(x: crate::low::two::T) { x.high::<u8>(); other::high::g() }",
    ] {
        assert_eq!(upward(&house(&[("src/low/one.rs", text)])), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn a_circle_is_found_at_every_level() {
    // Between files, one of which uses the other through a name.
    let found = circular(&house(&[
        ("src/low/one.rs", "use super::two::Thing;"),
        ("src/low/two.rs", "use crate::low;\n\nfn f() { low::one::g() }"),
    ]));
    let words = "a circle:\n    \
                 src/low/one.rs:1: low::one uses low::two\n    \
                 src/low/two.rs:3: low::two uses low::one";
    assert_eq!(found, [words]);
    // Between a file and a folder: what lies in the folder is a part of it.
    let found = circular(&house(&[
        ("src/low/one.rs", "use super::three::deep::Thing;"),
        ("src/low/three/mod.rs", "mod deep; use deep::Thing;"),
        ("src/low/three/deep.rs", "use super::super::two; use super::Other;"),
        ("src/low/two.rs", "use super::one;"),
    ]));
    let words = "a circle:\n    \
                 src/low/one.rs:1: low::one uses low::three\n    \
                 src/low/three/deep.rs:1: low::three uses low::two\n    \
                 src/low/two.rs:1: low::two uses low::one";
    assert_eq!(found, [words]);
    // Between the floors themselves.
    assert_eq!(circular(&house(&[("src/low/one.rs", "use crate::high;")])).len(), 1);
    // Two circles are two findings.
    let found = circular(&house(&[
        ("src/low/one.rs", "use super::two;"),
        ("src/low/two.rs", "use super::one;"),
        ("src/low/three.rs", "use super::four; use super::one;"),
        ("src/low/four.rs", "use super::three;"),
    ]));
    assert_eq!(found.len(), 2, "{found:?}");
    // A parent and its children are none.
    let found = circular(&house(&[
        ("src/low/mod.rs", "pub mod one; pub mod two; use one::Thing; use self::two::Other;"),
        ("src/low/one.rs", "use super::Thing; use crate::low;"),
        ("src/low/two.rs", "use super::one; mod tests { use super::*; }"),
    ]));
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn a_crowded_root_and_a_long_file_are_found() {
    let more = [("src/README.md", ""), ("src/a.rs", ""), ("src/low/b.rs", "")];
    assert_eq!(crowded(&house(&more[..1])), Vec::<String>::new());
    let files = "src/README.md, src/a.rs, src/high.rs, src/lib.rs, src/main.rs";
    assert_eq!(crowded(&house(&more)).len(), 0, "five");
    let six = house(&[&more[..], &[("src/z.rs", "")]].concat());
    assert_eq!(crowded(&six), [format!("src/: 6 files, at most 5: {files}, src/z.rs")]);
    let lines = "fn f() {}\n".repeat(500);
    assert_eq!(long_files(&house(&[("src/low/one.rs", &lines)])), Vec::<String>::new());
    let found = long_files(&house(&[("src/low/one.rs", &format!("{lines}\n"))]));
    assert_eq!(found, ["src/low/one.rs: 501 lines, at most 500"]);
}

#[test]
fn a_long_line_is_found_in_code_comments_and_strings() {
    // Characters are counted, not bytes.
    let whole = "é".repeat(100);
    for path in ["src/low/one.rs", "tests/a/b.rs", "benches/c.rs"] {
        assert_eq!(long_lines(&files(&[(path, &whole)])), Vec::<String>::new());
        let found = long_lines(&files(&[(path, &format!("\n{whole}/"))]));
        assert_eq!(found, [format!("{path}:2: 101 columns, at most 100")]);
    }
    let elsewhere = [("src/guide/a.md", "-"), ("scripts/a.rs", "-")];
    let elsewhere = elsewhere.map(|(path, text)| (path.to_owned(), text.repeat(101)));
    assert_eq!(long_lines(&elsewhere.into()), Vec::<String>::new());
}

#[test]
fn a_comment_that_begins_with_of_is_found() {
    for comment in ["// Of x.", "/// Of x.", "//! Of x.", "f(); // Of x.", "/* Of x.", "/** Of x."]
    {
        let found = dangling(&files(&[("tests/a.rs", &format!("\n{comment}\n*/"))]));
        let words = "tests/a.rs:2: a comment begins with a dangling \"Of\": Of x.";
        assert!(found.first().is_some_and(|line| line.starts_with(words)), "{comment}: {found:?}");
    }
    let fine = "// Off x. Of y.\n// of z\nconst A: &str = \"// Of x\";";
    assert_eq!(dangling(&files(&[("src/a.rs", fine)])), Vec::<String>::new());
}

#[test]
fn a_test_that_uses_another_is_found() {
    let found = shared_tests(&files(&[
        ("tests/a.rs", "use crate::support::b;\nuse super::c;\nuse crate::parity::d;"),
        ("src/e.rs", "use crate::f;"),
    ]));
    assert_eq!(found, ["tests/a.rs:3: uses crate::parity, not support"]);
}
