//! Whatever the tokenizer and the texts: the tokens of prompt and response are those of their
//! texts, and the split is where the rule says.

use std::collections::BTreeMap;
use std::path::Path;

use irepair::data::{FileLine, Pair};
use irepair::tokens::folder::Usual;
use irepair::tokens::{Boundary, Encoder, Lengths};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use crate::support::files::Folder;

const LONG: Lengths = Lengths { prompt: 1000, total: 2000 };
const LETTERS: [&str; 8] = ["a", "b", "c", "ab", " ", "  ", ",", "\n"];

/// The common kinds of tokenizers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bytes,
    /// Pieces with a space that is put before a text.
    Spaced,
    Pieces,
    Words,
    Unigram,
}

/// A tokenizer at random: its kind, what its merges or pieces are made of, and its switches.
#[derive(Debug, Clone)]
struct Made {
    kind: Kind,
    parts: Vec<(usize, usize)>,
    switches: [bool; 4],
}

fn made() -> impl Strategy<Value = Made> {
    let kinds = [Kind::Bytes, Kind::Spaced, Kind::Pieces, Kind::Words, Kind::Unigram];
    (select(kinds.to_vec()), vec((0..40usize, 0..40usize), 0..25), any::<[bool; 4]>())
        .prop_map(|(kind, parts, switches)| Made { kind, parts, switches })
}

fn texts() -> impl Strategy<Value = String> {
    vec(select(LETTERS.to_vec()), 1..12).prop_map(|letters| letters.concat())
}

/// A vocabulary that grows by pairs of what it has, and the pairs.
fn merged(first: &[&str], parts: &[(usize, usize)]) -> (Vec<String>, Vec<[String; 2]>) {
    let mut vocab: Vec<String> = first.iter().map(|piece| (*piece).to_owned()).collect();
    let mut merges = Vec::new();
    for (a, b) in parts {
        let (a, b) = (vocab[a % vocab.len()].clone(), vocab[b % vocab.len()].clone());
        let whole = format!("{a}{b}");
        if whole.len() < 20 && !vocab.contains(&whole) {
            vocab.push(whole);
            merges.push([a, b]);
        }
    }
    (vocab, merges)
}

fn numbered(special: &[&str], vocab: &[String]) -> BTreeMap<String, usize> {
    let all = special.iter().map(|token| (*token).to_owned()).chain(vocab.iter().cloned());
    all.enumerate().map(|(id, token)| (token, id)).collect()
}

/// The `tokenizer.json` of a random tokenizer. Its special tokens are `<s>` (0) and `</s>` (1).
fn tokenizer(made: &Made) -> Value {
    let [space, begins, ends, other] = made.switches;
    let metaspace = |scheme: &str| {
        let mut part = json!({"type": "Metaspace", "replacement": "▁"});
        part["prepend_scheme"] = scheme.into();
        part["split"] = other.into();
        part
    };
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let prepend = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, replace
    ]});
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "Fuse"}),
    ];
    let special = ["<s>", "</s>", "<unk>"];
    let pieces = ["▁", "a", "b", "c", ",", "\n"];
    let (normalizer, splitter, decoder, model) = match made.kind {
        Kind::Bytes => {
            let (vocab, merges) = merged(&["a", "b", "c", ",", "Ġ", "Ċ"], &made.parts);
            let level = |space: bool| {
                json!({"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true,
                       "use_regex": other})
            };
            let model = json!({"type": "BPE", "vocab": numbered(&special, &vocab),
                               "merges": merges});
            (Value::Null, level(space), level(true), model)
        }
        Kind::Spaced | Kind::Pieces => {
            let (vocab, merges) = merged(&pieces, &made.parts);
            let model = json!({"type": "BPE", "vocab": numbered(&special, &vocab),
                               "merges": merges, "unk_token": "<unk>"});
            let (normalizer, splitter) = match (made.kind, space) {
                (Kind::Spaced, true) => (prepend, Value::Null),
                (Kind::Spaced, false) => {
                    (Value::Null, metaspace(if begins { "first" } else { "always" }))
                }
                (_, true) => (replace, Value::Null),
                (_, false) => (Value::Null, metaspace("never")),
            };
            if made.kind == Kind::Spaced {
                decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
            }
            (normalizer, splitter, json!({"type": "Sequence", "decoders": decoders}), model)
        }
        Kind::Words => {
            let (vocab, _) = merged(&["a", "b", "c"], &made.parts);
            let mut all: Vec<String> = vocab.iter().map(|word| format!("##{word}")).collect();
            all.extend(vocab);
            all.push(",".into());
            let vocab = numbered(&special, &all);
            let model = json!({"type": "WordPiece", "vocab": vocab, "unk_token": "<unk>",
                               "continuing_subword_prefix": "##", "max_input_chars_per_word": 100});
            let normalizer = json!({"type": "BertNormalizer", "clean_text": true,
                                    "handle_chinese_chars": true, "strip_accents": null,
                                    "lowercase": true});
            let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": false});
            (normalizer, json!({"type": "BertPreTokenizer"}), decoder, model)
        }
        Kind::Unigram => {
            let (vocab, _) = merged(&pieces, &made.parts);
            let all = special.iter().map(|token| (*token).to_owned()).chain(vocab);
            // The longer a piece, the likelier; no two are equally likely.
            let scored = all.enumerate().map(|(id, piece)| {
                let score = -10.0 / piece.chars().count() as f64 - id as f64 / 1000.0;
                json!([piece, score])
            });
            let model = json!({"type": "Unigram", "unk_id": 2, "byte_fallback": false,
                               "vocab": scored.collect::<Vec<_>>()});
            let scheme = if space { "always" } else { "never" };
            if space {
                decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
            }
            let decoder = json!({"type": "Sequence", "decoders": decoders});
            (Value::Null, metaspace(scheme), decoder, model)
        }
    };
    let mark = |put: bool, name: &str| {
        put.then(|| json!({"SpecialToken": {"id": name, "type_id": 0}})).into_iter()
    };
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single: Vec<Value> =
        mark(begins, "<s>").chain([text.clone()]).chain(mark(ends, "</s>")).collect();
    let added = |id: usize, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    };
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [added(0, "<s>"), added(1, "</s>")],
        "normalizer": normalizer, "pre_tokenizer": splitter, "decoder": decoder, "model": model,
        "post_processor": {
            "type": "TemplateProcessing", "single": single, "pair": [text],
            "special_tokens": {
                "<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
                "</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]},
            },
        },
    })
}

/// Whether a text is what it was before it was tokenized. A tokenizer of words keeps no spaces.
/// Those that put a space before a text do not tell whether there was one.
fn is(kind: Kind, found: &str, text: &str) -> bool {
    let bare = |text: &str| text.split_whitespace().collect::<String>();
    match kind {
        Kind::Words => bare(found) == bare(text),
        Kind::Pieces => found == text,
        Kind::Bytes | Kind::Spaced | Kind::Unigram => {
            found == text
                || found.strip_prefix(' ') == Some(text)
                || text.strip_prefix(' ') == Some(found)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400, failure_persistence: None, ..ProptestConfig::default()
    })]

    #[test]
    fn prompt_and_response_are_their_texts(
        made in made(), prompt in texts(), chosen in texts(), rejected in texts()
    ) {
        let folder = Folder::new();
        folder.write("tokenizer.json", tokenizer(&made).to_string());
        let config = json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"});
        folder.write("tokenizer_config.json", config.to_string());
        let encoder =
            Encoder::of(folder.root(), &Value::Null, Usual::Named, 500).expect("a tokenizer");
        let [_, begins, ends, _] = made.switches;
        let place = FileLine { file: Path::new("rows.jsonl").into(), line: 1 };
        let pair = Pair {
            prompt: prompt.clone(),
            chosen: chosen.clone(),
            rejected: rejected.clone(),
            conversation: None,
            place,
        };
        let words = |text: &str| made.kind != Kind::Words || !text.trim().is_empty();
        prop_assume!([&prompt, &chosen, &rejected].into_iter().all(|text| words(text)));
        let split = |boundary: Boundary| {
            let pairs = std::slice::from_ref(&pair);
            encoder.pairs(pairs, LONG, boundary).expect("tokens").0.remove(0)
        };

        // The prompt's tokens are its own, behind what stands before a text, and before nothing.
        let apart = split(Boundary::Apart);
        let own = encoder.encode(&prompt, false).expect("ids");
        let before: &[u32] = if begins { &[0] } else { &[] };
        prop_assert_eq!(&apart.prompt, &[before, &own].concat());
        for (ids, text) in [(&apart.chosen, &chosen), (&apart.rejected, &rejected)] {
            let both = [&apart.prompt[..], ids].concat();
            let whole = format!("{prompt}{text}");
            let decoded = encoder.decode(&both).expect("a text");
            prop_assert!(is(made.kind, &decoded, &whole), "{:?} {:?}", decoded, whole);
            let after = encoder.decode_after(&apart.prompt, ids).expect("a text");
            let exact = after == *text || made.kind == Kind::Words;
            prop_assert!(exact && is(made.kind, &after, text), "{:?} {:?}", after, text);
        }

        // TRL's: one text with the end behind it, split where its tokens and the prompt's part.
        let trl = split(Boundary::Trl);
        let alone = encoder.encode(&prompt, true).expect("ids");
        let mut shared = alone.len();
        for (ids, text) in [(&trl.chosen, &chosen), (&trl.rejected, &rejected)] {
            let whole = encoder.encode(&format!("{prompt}{text}</s>"), true).expect("ids");
            prop_assert_eq!(&[&trl.prompt[..], ids].concat(), &whole);
            prop_assert_eq!(ids.ends_with(if ends { &[1, 1] } else { &[1] }), true);
            shared = shared.min(alone.iter().zip(&whole).take_while(|(a, b)| a == b).count());
        }
        prop_assert_eq!(&trl.prompt, &alone[..shared]);
    }
}
