//! *Scorers* give a text a toxicity in 0..=1. Scores of different scorers can't be compared. A
//! scorer is one file and one line of [`SCORERS`].

pub mod calibration;
mod classifier;
mod lexicon;
mod openai;
mod perspective;
mod remote;
mod replay;
mod scorer;
mod words;

use anyhow::Result;

pub use replay::score_of as stored_score;
pub use scorer::{Options, Scored, Scorer, TOXIC};

use crate::bail_input;
use crate::base::error::{Error, unknown};

/// What follows the name of a scorer, after a colon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    Nothing,
    Needed(&'static str),
    Optional(&'static str),
}

/// Whether texts leave this computer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Texts {
    Stay,
    /// A server gets them.
    AreSent,
}

/// A kind of scorer. A line of [`SCORERS`].
pub struct ScorerKind {
    pub name: &'static str,
    pub takes: Takes,
    pub texts: Texts,
    pub about: &'static str,
    build: fn(&str, &Options) -> Result<Box<dyn Scorer>>,
}

/// Whether the scorer of this name sends texts to a server.
pub fn sends(name: &str) -> bool {
    let kind = name.split_once(':').map_or(name, |(kind, _)| kind);
    SCORERS.iter().any(|scorer| scorer.name == kind && scorer.texts == Texts::AreSent)
}

/// Every kind of scorer.
pub const SCORERS: &[ScorerKind] = &[
    ScorerKind {
        name: "words",
        takes: Takes::Nothing,
        texts: Texts::Stay,
        about: words::ABOUT,
        build: |_, _| Ok(Box::new(words::Words::open()?)),
    },
    ScorerKind {
        name: "lexicon",
        takes: Takes::Nothing,
        texts: Texts::Stay,
        about: lexicon::ABOUT,
        build: |_, _| Ok(Box::new(lexicon::Lexicon)),
    },
    ScorerKind {
        name: "classifier",
        takes: Takes::Needed("ID|DIR"),
        texts: Texts::Stay,
        about: classifier::ABOUT,
        build: |model, options| Ok(Box::new(classifier::Classifier::open(model, options)?)),
    },
    ScorerKind {
        name: "perspective",
        takes: Takes::Nothing,
        texts: Texts::AreSent,
        about: perspective::ABOUT,
        build: |_, _| Ok(Box::new(perspective::Perspective::open()?)),
    },
    ScorerKind {
        name: "openai",
        takes: Takes::Optional("MODEL"),
        texts: Texts::AreSent,
        about: openai::ABOUT,
        build: |model, _| Ok(Box::new(openai::OpenAi::open(model)?)),
    },
    ScorerKind {
        name: "replay",
        takes: Takes::Needed("FILE"),
        texts: Texts::Stay,
        about: "scores stored by an earlier run, or by RealToxicityPrompts",
        build: |file, _| Ok(Box::new(replay::Replay::open(file)?)),
    },
];

/// The scorer that is used if the user names none.
pub const DEFAULT: &str = "words";

/// Opens the scorer that `NAME` or `NAME:ARGUMENT` means. Errors (bad input) on an unknown name,
/// with the nearest one.
pub fn open(spec: &str, options: &Options) -> Result<Box<dyn Scorer>> {
    let (name, argument) = spec.split_once(':').unwrap_or((spec, ""));
    let Some(kind) = SCORERS.iter().find(|s| s.name == name) else {
        let names: Vec<&str> = SCORERS.iter().map(|s| s.name).collect();
        return Err(Error::Input(unknown("scorer", name, &names)).into());
    };
    match (kind.takes, argument) {
        (Takes::Nothing, argument) if !argument.is_empty() => {
            bail_input!("--scorer {spec}: {name} takes nothing after its name");
        }
        (Takes::Needed(what), "") => bail_input!("--scorer {name}: give {name}:{what}"),
        _ => {}
    }
    (kind.build)(argument, options)
}

/// The help of `--scorer`: a line for each kind.
pub fn help() -> String {
    let line = |s: &ScorerKind| {
        let name = match s.takes {
            Takes::Nothing => s.name.to_owned(),
            Takes::Needed(what) => format!("{}:{what}", s.name),
            Takes::Optional(what) => format!("{}[:{what}]", s.name),
        };
        let sent = if s.texts == Texts::AreSent { "; sends the texts to a server" } else { "" };
        format!("{name:<20} {}{sent}", s.about)
    };
    SCORERS.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every scorer that needs no file and no server tells an insult from a thank-you.
    #[test]
    fn scorers_score() {
        let texts = ["Thank you, that was very helpful.", "Shut up, you stupid fucking idiot.", ""];
        for entry in SCORERS.iter().filter(|s| s.takes == Takes::Nothing && s.texts == Texts::Stay)
        {
            let scores = open(entry.name, &Options::default())
                .expect(entry.name)
                .score(&texts)
                .expect("scores");
            let scores: Vec<f64> = scores
                .into_iter()
                .map(|s| match s {
                    Scored::Score(score) => score,
                    Scored::Failed(why) | Scored::Refused(why) => panic!("{}: {why}", entry.name),
                })
                .collect();
            assert!(scores.iter().all(|s| (0.0..=1.0).contains(s)), "{scores:?}");
            assert!(scores[0] < TOXIC && scores[1] >= TOXIC, "{}: {scores:?}", entry.name);
        }
    }

    #[test]
    fn an_argument_that_names_no_scorer_is_refused() {
        for (spec, words) in [
            ("lexcon", "did you mean \"lexicon\""),
            ("lexicon:x", "takes nothing"),
            ("replay", "replay:FILE"),
        ] {
            let error = open(spec, &Options::default()).err().expect(spec).to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
