//! The user's guide, a page a topic: `irepair guide TOPIC` prints it.

/// A page of the guide.
pub struct Page {
    pub topic: &'static str,
    pub text: &'static str,
}

impl Page {
    /// Its first sentence.
    pub fn about(&self) -> String {
        let mut lines =
            self.text.lines().skip_while(|line| line.starts_with('#') || line.is_empty());
        let paragraph: Vec<&str> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        let paragraph = paragraph.join(" ");
        let sentence = paragraph.split_inclusive(". ").next().unwrap_or_default();
        let sentence = sentence.trim().trim_end_matches('.');
        sentence.strip_prefix("This page ").unwrap_or(sentence).to_owned()
    }
}

/// All pages, in the order of a first reading.
pub const PAGES: &[Page] = &[
    Page { topic: "start", text: include_str!("start.md") },
    Page { topic: "models-and-data", text: include_str!("models-and-data.md") },
    Page { topic: "tokens", text: include_str!("tokens.md") },
    Page { topic: "methods", text: include_str!("methods.md") },
    Page { topic: "online", text: include_str!("online.md") },
    Page { topic: "evaluation", text: include_str!("evaluation.md") },
    Page { topic: "compare-and-report", text: include_str!("compare-and-report.md") },
    Page { topic: "outputs", text: include_str!("outputs.md") },
    Page { topic: "conversations", text: include_str!("conversations.md") },
    Page { topic: "wrong-answers", text: include_str!("wrong-answers.md") },
    Page { topic: "large-models-and-gpus", text: include_str!("large-models-and-gpus.md") },
    Page { topic: "scale-out", text: include_str!("scale-out.md") },
    Page { topic: "serve", text: include_str!("serve.md") },
    Page { topic: "coming-from", text: include_str!("coming-from.md") },
    Page { topic: "trust", text: include_str!("trust.md") },
    Page { topic: "glossary", text: include_str!("glossary.md") },
];

#[doc = include_str!("start.md")]
pub mod start {}

#[doc = include_str!("models-and-data.md")]
pub mod models_and_data {}

#[doc = include_str!("tokens.md")]
pub mod tokens {}

#[doc = include_str!("methods.md")]
pub mod methods {}

#[doc = include_str!("online.md")]
pub mod online {}

#[doc = include_str!("evaluation.md")]
pub mod evaluation {}

#[doc = include_str!("compare-and-report.md")]
pub mod compare_and_report {}

#[doc = include_str!("outputs.md")]
pub mod outputs {}

#[doc = include_str!("conversations.md")]
pub mod conversations {}

#[doc = include_str!("wrong-answers.md")]
pub mod wrong_answers {}

#[doc = include_str!("large-models-and-gpus.md")]
pub mod large_models_and_gpus {}

#[doc = include_str!("scale-out.md")]
pub mod scale_out {}

#[doc = include_str!("serve.md")]
pub mod serve {}

#[doc = include_str!("coming-from.md")]
pub mod coming_from {}

#[doc = include_str!("trust.md")]
pub mod trust {}

#[doc = include_str!("glossary.md")]
pub mod glossary {}
