//! *Python literals*: what `repr` makes of lists and dictionaries, and so what `to_csv` of pandas
//! and of datasets writes where a cell holds them. Arrays of NumPy, which have no commas, too.

use serde_json::{Map, Number, Value};

/// Lists may lie so deep in each other.
const DEEPEST: usize = 32;

/// The value of a literal; `None` if the text is not one. What is no JSON (`nan`) becomes null.
pub fn parse(text: &str) -> Option<Value> {
    let mut reader = Reader { rest: text };
    let value = reader.value(0)?;
    reader.skip_blanks();
    reader.rest.is_empty().then_some(value)
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start();
    }

    /// Whether the text goes on with this, which is then read.
    fn take(&mut self, begin: &str) -> bool {
        self.skip_blanks();
        match self.rest.strip_prefix(begin) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > DEEPEST {
            return None;
        }
        self.skip_blanks();
        match self.rest.chars().next()? {
            '[' => self.list('[', ']', depth),
            '(' => self.list('(', ')', depth),
            '{' => self.dictionary(depth),
            '\'' | '"' => self.string().map(Value::from),
            _ if self.take("array(") => self.array(depth),
            _ => self.word(),
        }
    }

    /// Items between brackets. NumPy writes no commas between them.
    fn list(&mut self, open: char, close: char, depth: usize) -> Option<Value> {
        let mut items = Vec::new();
        self.rest = self.rest.strip_prefix(open)?;
        while !self.take(close.encode_utf8(&mut [0; 4])) {
            items.push(self.value(depth + 1)?);
            self.take(",");
        }
        Some(items.into())
    }

    /// What follows `array(`: a list, and words about it such as `dtype=object`.
    fn array(&mut self, depth: usize) -> Option<Value> {
        self.skip_blanks();
        let items = self.list('[', ']', depth)?;
        let (about, rest) = self.rest.split_once(')')?;
        if !about.trim_start().is_empty() && !about.trim_start().starts_with(',') {
            return None;
        }
        self.rest = rest;
        Some(items)
    }

    fn dictionary(&mut self, depth: usize) -> Option<Value> {
        let mut fields = Map::new();
        self.rest = self.rest.strip_prefix('{')?;
        while !self.take("}") {
            self.skip_blanks();
            let key = self.string()?;
            if !self.take(":") {
                return None;
            }
            fields.insert(key, self.value(depth + 1)?);
            self.take(",");
        }
        Some(fields.into())
    }

    /// A string in either quotes.
    fn string(&mut self) -> Option<String> {
        let quote = self.rest.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let mut text = String::new();
        let mut rest = self.rest[1..].chars();
        loop {
            match rest.next()? {
                c if c == quote => break,
                '\\' => text.push(match rest.next()? {
                    'n' => '\n',
                    'r' => '\r',
                    't' => '\t',
                    'x' => code(&mut rest, 2)?,
                    'u' => code(&mut rest, 4)?,
                    'U' => code(&mut rest, 8)?,
                    c @ ('\\' | '\'' | '"') => c,
                    _ => return None,
                }),
                c => text.push(c),
            }
        }
        self.rest = rest.as_str();
        Some(text)
    }

    /// A number, or one of Python's few words.
    fn word(&mut self) -> Option<Value> {
        let ends = |c: char| c.is_whitespace() || matches!(c, ',' | ']' | ')' | '}' | ':');
        let (word, rest) = self.rest.split_at(self.rest.find(ends).unwrap_or(self.rest.len()));
        self.rest = rest;
        Some(match word {
            "None" | "nan" | "inf" | "-inf" => Value::Null,
            "True" => true.into(),
            "False" => false.into(),
            number => match number.parse::<i64>() {
                Ok(whole) => whole.into(),
                Err(_) => Value::Number(Number::from_f64(number.parse().ok()?)?),
            },
        })
    }
}

/// The character whose number stands next, in so many hexadecimal digits.
fn code(rest: &mut std::str::Chars, digits: usize) -> Option<char> {
    let mut number = 0;
    for _ in 0..digits {
        number = number * 16 + rest.next()?.to_digit(16)?;
    }
    char::from_u32(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_of_python_and_numpy() {
        let want = serde_json::json!([
            {"role": "user", "content": "it's \"5\"\n\u{e9}\u{1f600}\\"},
            {"role": "assistant", "content": "ok", "name": null, "n": [1, -2.5, true]},
        ]);
        // print(repr(rows)), and str(numpy.array(rows, dtype=object)).
        let list = r#"[{'role': 'user', 'content': 'it\'s "5"\né\U0001f600\\'}, "#;
        let last = "{'role': 'assistant', 'content': 'ok', 'name': None, 'n': [1, -2.5, True]}]";
        assert_eq!(parse(&format!("{list}{last}")), Some(want.clone()));
        let without_commas = format!("{}\n {last}", list.trim_end_matches(", "));
        assert_eq!(parse(&without_commas), Some(want.clone()));
        let array = format!("array({without_commas},\n      dtype=object)");
        assert_eq!(parse(&array), Some(want));
        assert_eq!(parse("('a', nan)"), Some(serde_json::json!(["a", null])));
        let deep = "[".repeat(100_000);
        for text in ["[{'a': 1}", "[1] 2", "{'a' 1}", "[...]", "'a\\q'", "array(1)", &deep] {
            assert_eq!(parse(text), None, "{}", &text[..text.len().min(20)]);
        }
    }
}
