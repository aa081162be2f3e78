//! *Plain* text: what comes from outside (names of tensors and files, templates, servers) is shown
//! to people without the characters that would steer their terminal.

use std::borrow::Cow;

/// The bytes of a message that are shown at most; of a longer one the beginning and the end.
const LONGEST: usize = 3000;

/// Whether a character is shown as its number: control characters, and those that turn the
/// direction of what follows. A new line and a tab are not.
fn steers(c: char) -> bool {
    let turns = matches!(
        c,
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
    );
    turns || (c.is_control() && c != '\n' && c != '\t')
}

/// The text without what steers a terminal: ESC becomes `\u{1b}`.
pub fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let escaped = |c: char| match steers(c) {
        true => format!("\\u{{{:x}}}", u32::from(c)),
        false => c.to_string(),
    };
    Cow::Owned(text.chars().map(escaped).collect())
}

/// [`plain`] in one line: new lines and tabs become their numbers, too. For a name.
pub fn plain_line(text: &str) -> Cow<'_, str> {
    match plain(text) {
        plain if plain.contains(['\n', '\t']) => {
            Cow::Owned(plain.replace('\n', "\\n").replace('\t', "\\t"))
        }
        plain => plain,
    }
}

/// [`plain`], and cut in the middle if it is too long to be read.
pub fn message(text: &str) -> Cow<'_, str> {
    let text = plain(text);
    if text.len() <= LONGEST {
        return text;
    }
    let (begin, end) = (at(&text, LONGEST * 3 / 4), at(&text, text.len() - LONGEST / 4));
    let left_out = end - begin;
    format!("{} … ({left_out} bytes left out) … {}", &text[..begin], &text[end..]).into()
}

/// The first `longest` bytes of a text at most. What is left out is said.
pub fn shortened(text: &str, longest: usize) -> Cow<'_, str> {
    if text.len() <= longest {
        return Cow::Borrowed(text);
    }
    let cut = at(text, longest);
    format!("{}… ({} bytes left out)", &text[..cut], text.len() - cut).into()
}

/// The last boundary of a character that is not after this byte.
fn at(text: &str, byte: usize) -> usize {
    (0..=byte.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(plain("a\u{1b}[31mb\r\nc\td\u{9b}\u{202e}"), {
            "a\\u{1b}[31mb\\u{d}\nc\td\\u{9b}\\u{202e}"
        });
        assert_eq!(plain_line("a\nb\tc\u{7}"), "a\\nb\\tc\\u{7}");
        assert!(matches!(plain("Größe → \u{1f600}"), Cow::Borrowed(_)));
    }

    #[test]
    fn what_is_too_long_is_cut_and_said() {
        let text = "ä".repeat(1_000_000);
        let said = message(&text);
        assert!(said.len() < 3100 && said.contains(" bytes left out"), "{}", said.len());
        assert_eq!(shortened(&text, 5), "ää… (1999996 bytes left out)");
        assert_eq!(shortened("abc", 3), "abc");
    }
}
