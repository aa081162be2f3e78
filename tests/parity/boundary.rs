//! Where a prompt ends and a response begins: `--boundary trl` gives the tokens of TRL's own code,
//! and our rule gives those of the whole text where no token lies across the boundary
//! (`scripts/make_golden_boundary.py`).

use std::path::Path;

use irepair::data;
use irepair::data::{Edit, EditKind, FileLine, KeyMap, Pair};
use irepair::tokens::{Boundary, Encoder, Lengths};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::files::Folder;
use crate::support::golden::{self, ids};
use crate::support::tokenizer::{folder, open};

const LONG: Lengths = Lengths { prompt: 1000, total: 2000 };

fn place() -> FileLine {
    FileLine { file: Path::new("rows.jsonl").into(), line: 1 }
}

fn pair([prompt, chosen, rejected]: [String; 3]) -> Pair {
    Pair { prompt, chosen, rejected, conversation: None, place: place() }
}

/// The rows of plain text.
fn rows(golden: &Value) -> Vec<[String; 3]> {
    let text = |row: &Value, at: usize| row[at].as_str().expect("a text").to_owned();
    let rows = golden["rows"].as_array().expect("rows");
    rows.iter().map(|row| [0, 1, 2].map(|at| text(row, at))).collect()
}

/// Prompt, chosen and rejected of a pair in tokens.
fn tokens(encoder: &Encoder, pair: &Pair, boundary: Boundary) -> [Vec<u32>; 3] {
    let pairs = std::slice::from_ref(pair);
    let (mut found, cut) = encoder.pairs(pairs, LONG, boundary).expect("tokens");
    assert_eq!((cut.prompts, cut.responses), (0, 0));
    let found = found.remove(0);
    [found.prompt, found.chosen, found.rejected]
}

#[test]
fn rows_of_plain_text_are_split_as_trl_splits_them() {
    let golden = golden::json("tokenizers/boundary.json");
    let rows = rows(&golden);
    assert_eq!(rows.len(), 20);
    let mut wrong = Vec::new();
    for case in golden["cases"].as_array().expect("cases") {
        let encoder = open(&folder(case), &case["model"]).expect("opens");
        for (row, expected) in rows.iter().zip(case["rows"].as_array().expect("rows")) {
            let expected = [0, 1, 2].map(|at| ids(&expected["trl"][at]));
            // What has no tokens TRL lets through, and we do not.
            if expected[1..].iter().any(Vec::is_empty) {
                continue;
            }
            let found = tokens(&encoder, &pair(row.clone()), Boundary::Trl);
            if found != expected {
                wrong.push(format!("{}: {row:?}: {found:?} not {expected:?}", case["name"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn responses_go_on_where_the_prompt_ends() {
    let golden = golden::json("tokenizers/boundary.json");
    let (mut wrong, mut same) = (Vec::new(), 0);
    for case in golden["cases"].as_array().expect("cases") {
        let encoder = open(&folder(case), &case["model"]).expect("opens");
        let before = ids(&case["before"]);
        for (row, expected) in rows(&golden).into_iter().zip(case["rows"].as_array().expect("rows"))
        {
            let pair = pair(row.clone());
            let [prompt, chosen, rejected] = tokens(&encoder, &pair, Boundary::Apart);
            let alone = [&before[..], &ids(&expected["prompt"])].concat();
            if prompt != alone {
                wrong.push(format!("{}: {:?}: {prompt:?} not {alone:?}", case["name"], row[0]));
            }
            for (at, found) in [chosen, rejected].into_iter().enumerate() {
                let text = &row[at + 1];
                let edit = Edit {
                    prompt: row[0].clone(),
                    target: text.clone(),
                    rejected: None,
                    kind: EditKind::Failure,
                    place: place(),
                };
                let edit = encoder.edits(&[edit], 2000).expect("tokens").remove(0);
                assert_eq!((&edit.prompt, &edit.target), (&prompt, &found), "{row:?}");
                if expected["apart"][at].is_null() {
                    continue;
                }
                same += 1;
                let whole = ids(&expected["apart"][at]);
                if found != whole {
                    let [prompt, ..] = &row;
                    wrong.push(format!(
                        "{}: {prompt:?} + {text:?}: {found:?} not {whole:?}",
                        case["name"]
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(same > 200, "{same} responses have no token across the boundary");
}

/// A conversation is tokenized as a whole, by both settings.
#[test]
fn conversations_are_split_as_trl_splits_them() {
    let golden = golden::json("tokenizers/boundary.json");
    let written = Folder::new();
    let talks = golden["talks"].as_array().expect("conversations");
    let mut wrong = Vec::new();
    for case in golden["cases"].as_array().expect("cases") {
        let folder = folder(case);
        let templates = golden["templates"].as_array().expect("templates");
        for (template, chats) in templates.iter().zip(case["chats"].as_array().expect("chats")) {
            folder.write("chat_template.jinja", template.as_str().expect("a template"));
            let encoder = open(&folder, &case["model"]).expect("opens");
            for (talk, expected) in talks.iter().zip(chats.as_array().expect("rows")) {
                let path = written.write_rows("rows.jsonl", std::slice::from_ref(talk));
                let pairs = data::read_pairs(&path, &KeyMap::new(), None).expect("pairs");
                let expected = [0, 1, 2].map(|at| ids(&expected[at]));
                for boundary in [Boundary::Apart, Boundary::Trl] {
                    let found = tokens(&encoder, &pairs[0], boundary);
                    if found != expected {
                        wrong.push(format!(
                            "{}: {template} {talk}: {found:?} not {expected:?}",
                            case["name"]
                        ));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn trls_way_needs_an_end() {
    let folder = Folder::new();
    folder.write("tokenizer.json", golden::json("llama/tokenizer.json").to_string());
    let encoder = open(&folder, &json!({"model_type": "llama"})).expect("opens");
    let pair = pair(["a", " b", " c"].map(str::to_owned));
    let error = encoder.pairs(&[pair], LONG, Boundary::Trl).expect_err("refused");
    assert!(error.to_string().contains("puts the eos_token behind a response"), "{error:#}");
}

/// A hundred rows in each of six shapes: as TRL's trainer prepares them, and of conversations as
/// `apply_chat_template` does (`scripts/make_golden_shapes.py`).
#[test]
fn rows_of_six_shapes_have_the_tokens_that_trl_gives_them() {
    let golden = golden::json("shapes/expected.json");
    let mut compared = 0;
    for case in golden["cases"].as_array().expect("cases") {
        let folder = folder(case);
        folder.write("chat_template.jinja", case["template"].as_str().expect("a template"));
        let encoder = open(&folder, &case["model"]).expect("opens");
        for (shape, sha256) in case["sha256"].as_object().expect("shapes") {
            let path = golden::path("shapes").join(format!("{shape}.jsonl.gz"));
            let pairs = data::read_pairs(&path, &KeyMap::new(), None).expect("pairs");
            assert_eq!(pairs.len(), 100, "{shape}");
            let lines = pairs
                .iter()
                .map(|pair| format!("{}\n", json!(tokens(&encoder, pair, Boundary::Trl))));
            let lines: String = lines.collect();
            let found = irepair::base::files::hex(&Sha256::digest(lines.as_bytes()));
            assert_eq!(*sha256, json!(found), "{}: {shape}", case["name"]);
            compared += pairs.len();
        }
    }
    assert_eq!(compared, 3600);
}
