//! *WikiText* is a corpus of Wikipedia's pages, tokenized with spaces. lm-eval measures each page
//! apart, as running text.

use anyhow::Result;
use regex::Regex;

/// The pages of a WikiText file, split as in EleutherAI/wikitext_document_level. A page begins with
/// a heading of the first level (` = Title = `). The line break before the next heading belongs to
/// no page.
pub fn pages(text: &str) -> Vec<String> {
    let is_title = |line: &str| {
        let flat = line.replace("= = =", "===").replace("= =", "==");
        flat.trim().starts_with("= ") && flat.trim().ends_with(" =")
    };
    let mut pages: Vec<String> = Vec::new();
    for line in text.split('\n') {
        match pages.last_mut() {
            Some(page) if !is_title(line) => {
                page.push('\n');
                page.push_str(line);
            }
            _ => pages.push(line.to_owned()),
        }
    }
    pages.retain(|page| !page.trim().is_empty());
    pages
}

/// Undoes the tokenization of WikiText with the replacements of lm-eval's `wikitext_detokenizer`,
/// in its order.
pub struct Detokenizer {
    /// `/' [0-9]/` becomes the literal text `/'[0-9]/`. lm-eval uses a JavaScript pattern in
    /// Python, so the slashes belong to the text that is searched for.
    slashes: Regex,
    brackets: Vec<(Regex, &'static str)>,
}

impl Detokenizer {
    /// Compiles the patterns.
    pub fn new() -> Result<Self> {
        let brackets = [
            (r"\(\s*([^\)]*?)\s*\)", "($1)"),
            (r"\[\s*([^\]]*?)\s*\]", "[$1]"),
            (r"\{\s*([^}]*?)\s*\}", "{$1}"),
            ("\"\\s*([^\"]*?)\\s*\"", "\"$1\""),
            (r"'\s*([^']*?)\s*'", "'$1'"),
        ];
        // Python's `\s` also matches these four control characters.
        let regex = |r: &str| Regex::new(&r.replace(r"\s", r"[\s\x1c-\x1f]"));
        let brackets =
            brackets.into_iter().map(|(r, to)| Ok((regex(r)?, to))).collect::<Result<_>>()?;
        Ok(Self { slashes: Regex::new("/' [0-9]/")?, brackets })
    }

    /// The page as running text.
    pub fn apply(&self, page: &str) -> String {
        const FIRST: &[(&str, &str)] = &[
            (" @-@ ", "-"),
            (" @,@ ", ","),
            (" @.@ ", "."),
            (" : ", ": "),
            (" ; ", "; "),
            (" . ", ". "),
            (" ! ", "! "),
            (" ? ", "? "),
            (" , ", ", "),
        ];
        const LAST: &[(&str, &str)] = &[
            ("= = = =", "===="),
            ("= = =", "==="),
            ("= =", "=="),
            (" ° ", "°"),
            (" \n", "\n"),
            ("\n ", "\n"),
            (" N ", " 1 "),
            (" 's", "'s"),
        ];
        let text = page.replace("s '", "s'");
        let mut text = self.slashes.replace_all(&text, regex::NoExpand("/'[0-9]/")).into_owned();
        FIRST.iter().for_each(|(from, to)| text = text.replace(from, to));
        for (regex, to) in &self.brackets {
            text = regex.replace_all(&text, *to).into_owned();
        }
        LAST.iter().for_each(|(from, to)| text = text.replace(from, to));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected: lm-eval 0.4's `wikitext_detokenizer` on the same page.
    #[test]
    fn pages_are_detokenized() {
        let text = " \n = Robert <unk> = \n \n He ( an actor ) said : \" no \" , in 2 @,@ 000 . \
                    /' 5/ = = Career = = \n";
        let found = pages(&format!("{text} = Second = \n more \n"));
        assert_eq!(found.len(), 2);
        let page = Detokenizer::new().expect("regexes").apply(&found[0]);
        let first =
            " = Robert <unk> =\n\nHe (an actor) said: \"no\", in 2,000. /'[0-9]/ == Career == ";
        assert_eq!(page, first);
        assert_eq!(found[1], " = Second = \n more \n");
    }
}
