//! A *page* is one HTML file that needs no other file, no script, no font and no network. `maud`
//! escapes the text that comes from data.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::plot;
use super::plot::Picture;

const STYLE: &str = include_str!("page/page.css");
/// With this policy a browser loads and runs nothing, whatever the data hold.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// A part of a page with its own heading. The table of contents leads to it.
pub struct Section {
    /// The anchor, unique on the page.
    pub id: &'static str,
    pub heading: &'static str,
    pub body: Markup,
}

/// The whole page: title, lead, table of contents and sections.
pub fn page(title: &str, lead: &Markup, sections: &[Section]) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { (title) }
                style { (PreEscaped(STYLE)) (PreEscaped(plot::STYLE)) }
            }
            body {
                header { h1 { (title) } (lead) }
                nav aria-label="Contents" {
                    @for s in sections { a href={ "#" (s.id) } { (s.heading) } }
                }
                main {
                    @for s in sections {
                        section id=(s.id) aria-labelledby={ (s.id) "-heading" } {
                            h2 id={ (s.id) "-heading" } { (s.heading) }
                            (s.body)
                        }
                    }
                }
            }
        }
    };
    without_controls(&page.into_string()) + "\n"
}

/// A picture with its caption. Narrow screens scroll a wide picture.
pub fn figure(picture: &Picture) -> Markup {
    html! {
        figure {
            @if picture.width > 450.0 {
                (scroll(&picture.title, picture.inline()))
            } @else {
                (picture.inline())
            }
            figcaption {
                strong { (picture.title) }
                @if !picture.subtitle.is_empty() { ": " (picture.subtitle) }
            }
        }
    }
}

/// A table of numbers. The first column names the rows.
pub fn table(caption: &str, head: &[&str], rows: &[impl AsRef<[String]>]) -> Markup {
    rows_under(caption, "numbers", head, rows)
}

/// A table of names and values.
pub fn facts(caption: &str, rows: &[[String; 2]]) -> Markup {
    words(caption, &["name", "value"], rows)
}

/// A table of words. The first column names the rows.
pub fn words(caption: &str, head: &[&str], rows: &[impl AsRef<[String]>]) -> Markup {
    rows_under(caption, "facts", head, rows)
}

fn rows_under(caption: &str, class: &str, head: &[&str], rows: &[impl AsRef<[String]>]) -> Markup {
    let table = html! {
        table class=(class) {
            caption { (caption) }
            thead { tr { @for name in head { th scope="col" { (name) } } } }
            tbody {
                @for row in rows {
                    tr {
                        @for (index, cell) in row.as_ref().iter().enumerate() {
                            @if index == 0 { th scope="row" { (cell) } } @else { td { (cell) } }
                        }
                    }
                }
            }
        }
    };
    scroll(caption, table)
}

/// A region for what may be wider than the screen. The keyboard can reach and scroll it.
fn scroll(name: &str, body: Markup) -> Markup {
    html! { div.scroll role="region" tabindex="0" aria-label=(name) { (body) } }
}

/// A note that a reader must not miss.
pub fn warning(body: &Markup) -> Markup {
    html! { p.warning role="note" { strong { "Note: " } (body) } }
}

/// A tile with the name of a figure, its value before, its value after, and the change. A change of
/// `–` is left out.
pub fn tile(name: &str, before: Option<&str>, after: &str, change: &str) -> Markup {
    html! {
        div.tile {
            dt { (name) }
            dd {
                @if let Some(before) = before {
                    span.before { (before) }
                    span aria-hidden="true" { " → " }
                    span.unseen { " before, after " }
                }
                strong { (after) } " "
                @if change != "–" { span.change { (change) } }
            }
        }
    }
}

/// Replaces control characters, which data may hold but an HTML page may not.
fn without_controls(page: &str) -> String {
    page.chars()
        .map(|c| if c.is_control() && !c.is_ascii_whitespace() { '\u{fffd}' } else { c })
        .collect()
}
