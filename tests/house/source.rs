//! Rust source in two parts: its code as tokens, and its comments.

/// A word, a `::`, or another character of code, and the line where it stands (from 1).
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub text: String,
    pub line: usize,
}

pub struct Source {
    pub tokens: Vec<Token>,
    /// The text of each line of a comment, without the slashes, and its line.
    pub comments: Vec<(String, usize)>,
}

impl Source {
    pub fn read(text: &str) -> Self {
        let mut reader = Reader { chars: text.chars().collect(), at: 0, line: 1 };
        let mut source = Self { tokens: Vec::new(), comments: Vec::new() };
        while let Some(c) = reader.peek(0) {
            let line = reader.line;
            if reader.starts_with("//") {
                let comment = reader.take(|c| c != '\n');
                source.comments.push((comment.trim_start_matches(['/', '!']).to_owned(), line));
            } else if reader.starts_with("/*") {
                let comment = reader.block_comment();
                let lines = comment.trim_start_matches(['/', '*', '!']).lines().enumerate();
                source.comments.extend(lines.map(|(i, text)| (text.to_owned(), line + i)));
            } else if let Some(hashes) = reader.raw_string() {
                reader.skip_raw_string(hashes);
            } else if c == '"' {
                reader.skip_quoted('"');
            } else if c == '\'' && reader.is_character() {
                reader.skip_quoted('\'');
            } else if c.is_alphanumeric() || c == '_' {
                let text = reader.take(|c| c.is_alphanumeric() || c == '_');
                source.tokens.push(Token { text, line });
            } else {
                let text = if reader.starts_with("::") { "::".to_owned() } else { c.to_string() };
                text.chars().for_each(|_| reader.next());
                if !c.is_whitespace() {
                    source.tokens.push(Token { text, line });
                }
            }
        }
        source
    }
}

struct Reader {
    chars: Vec<char>,
    at: usize,
    line: usize,
}

impl Reader {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn next(&mut self) {
        self.line += usize::from(self.peek(0) == Some('\n'));
        self.at += 1;
    }

    fn starts_with(&self, text: &str) -> bool {
        text.chars().enumerate().all(|(i, c)| self.peek(i) == Some(c))
    }

    fn take(&mut self, belongs: impl Fn(char) -> bool) -> String {
        let from = self.at;
        while self.peek(0).is_some_and(&belongs) {
            self.next();
        }
        self.chars[from..self.at].iter().collect()
    }

    /// Comments in comments are a part of the outer one.
    fn block_comment(&mut self) -> String {
        let (from, mut depth) = (self.at, 0);
        while self.peek(0).is_some() {
            if self.starts_with("/*") {
                depth += 1;
                self.next();
            } else if self.starts_with("*/") {
                depth -= 1;
                self.next();
            }
            self.next();
            if depth == 0 {
                break;
            }
        }
        self.chars[from..self.at].iter().collect()
    }

    /// The number of hashes of the raw string that begins here.
    fn raw_string(&self) -> Option<usize> {
        let start = usize::from(self.peek(0) == Some('b'));
        if self.peek(start) != Some('r') {
            return None;
        }
        let hashes = (start + 1..).take_while(|i| self.peek(*i) == Some('#')).count();
        (self.peek(start + 1 + hashes) == Some('"')).then_some(hashes)
    }

    fn skip_raw_string(&mut self, hashes: usize) {
        let end = format!("\"{}", "#".repeat(hashes));
        self.take(|c| c != '"');
        self.next();
        while self.peek(0).is_some() && !self.starts_with(&end) {
            self.next();
        }
        end.chars().for_each(|_| self.next());
    }

    fn skip_quoted(&mut self, quote: char) {
        self.next();
        while let Some(c) = self.peek(0) {
            if c == '\\' {
                self.next();
            }
            self.next();
            if c == quote {
                break;
            }
        }
    }

    /// A quote begins a character if another follows it at once or after a backslash. Else it
    /// begins a lifetime.
    fn is_character(&self) -> bool {
        self.peek(1) == Some('\\') || self.peek(2) == Some('\'')
    }
}

#[cfg(test)]
mod proofs {
    use super::*;

    #[test]
    fn code_is_apart_from_comments_and_strings() {
        let text = r##"use a::b; // c::d
/// Of e
fn f<'a>(x: &'a str) { g("h::i \" //", 'j', '\'', r#"k::l " "#, b"m"); /* n /* o */ p
q */ } "##;
        let source = Source::read(text);
        let words: Vec<&str> = source.tokens.iter().map(|t| t.text.as_str()).collect();
        let code = "use a :: b ; fn f < ' a > ( x : & ' a str ) { g ( , , , , b ) ; }";
        assert_eq!(words, code.split(' ').collect::<Vec<_>>());
        let comments: Vec<(&str, usize)> =
            source.comments.iter().map(|(text, line)| (text.trim(), *line)).collect();
        let expected = [("c::d", 1), ("Of e", 2), ("n /* o */ p", 3), ("q */", 4)];
        assert_eq!(comments, expected);
        assert_eq!(source.tokens.last().map(|t| t.line), Some(4));
    }
}
