//! Classifiers: the probabilities of transformers' pipeline (`scripts/make_golden_classifiers.py`),
//! and what is no usable classifier is refused.

use std::path::{Path, PathBuf};

use irepair::base::error::exit_code;
use irepair::scorers;
use irepair::scorers::{Options, Scored, Scorer};
use serde_json::{Value, json};

use crate::support::command::irepair;
use crate::support::files::{Folder, bytes, edit_json};
use crate::support::golden::{self, number};

/// How far a probability may be off. A mistake in an architecture moves the golden ones by five
/// times as much or more.
const TOLERANCE: f64 = 2e-5;
/// The same between batches. Transformers' own probabilities of these models move by up to 2.7e-6
/// (distilbert), ours by 2.8e-6.
const BETWEEN_BATCHES: f64 = 1e-5;
const MODELS: [&str; 8] = [
    "bert",
    "roberta",
    "distilbert",
    "xlm-roberta",
    "deberta-v2",
    "deberta-v2-own-keys",
    "modernbert",
    "modernbert-mean",
];

fn folder(name: &str) -> PathBuf {
    golden::path("classifiers").join(name)
}

fn texts() -> Vec<String> {
    serde_json::from_value(golden::json("classifiers/texts.json")).expect("a list of texts")
}

fn try_open(folder: &Path, label: Option<&str>) -> anyhow::Result<Box<dyn Scorer>> {
    let options = Options { toxic_label: label.map(str::to_owned) };
    scorers::open(&format!("classifier:{}", folder.to_str().expect("utf-8")), &options)
}

fn open(folder: &Path, label: Option<&str>) -> Box<dyn Scorer> {
    try_open(folder, label).expect("opens")
}

fn scores(scorer: &dyn Scorer, texts: &[&str]) -> Vec<f64> {
    let scores = scorer.score(texts).expect("scores");
    assert_eq!(scores.len(), texts.len());
    let score = |scored| match scored {
        Scored::Score(score) => score,
        Scored::Failed(why) | Scored::Refused(why) => panic!("{why}"),
    };
    scores.into_iter().map(score).collect()
}

#[track_caller]
fn all_within(got: &[f64], want: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= tolerance, "{what}, text {index}: {got}, expected {want}");
    }
}

/// Probabilities of one label.
fn column(expected: &Value, label: usize) -> Vec<f64> {
    let rows = expected["probabilities"].as_array().expect("rows").iter();
    rows.map(|row| golden::numbers(row)[label]).collect()
}

/// Every label of every model, with all texts at once. Their lengths differ, so there is padding;
/// one text is cut, and one is empty.
#[test]
fn probabilities_are_those_of_transformers() {
    let texts = texts();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for name in MODELS {
        let expected = golden::json(&format!("classifiers/{name}/expected.json"));
        for (index, label) in expected["labels"].as_array().expect("labels").iter().enumerate() {
            let label = label.as_str().expect("a label");
            let scorer = open(&folder(name), Some(label));
            let what = format!("{name}, {label}");
            let got = scores(scorer.as_ref(), &texts);
            all_within(&got, &column(&expected, index), TOLERANCE, &what);
        }
    }
}

/// A text's score does not depend on the texts it is with, nor on their order or number.
#[test]
fn scores_do_not_depend_on_the_batch() {
    let texts = texts();
    let mut texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for name in MODELS {
        let scorer = open(&folder(name), None);
        let alone: Vec<f64> =
            texts.iter().map(|text| scores(scorer.as_ref(), &[text])[0]).collect();
        texts.reverse();
        let mut backwards = scores(scorer.as_ref(), &texts);
        backwards.reverse();
        texts.reverse();
        all_within(&backwards, &alone, BETWEEN_BATCHES, name);
        // More texts than go in one batch.
        let many = scores(scorer.as_ref(), &texts.repeat(20));
        all_within(&many, &alone.repeat(20), BETWEEN_BATCHES, name);
        assert_eq!(many, scores(scorer.as_ref(), &texts.repeat(20)), "{name}: the same call again");
        assert!(scores(scorer.as_ref(), &[]).is_empty());
    }
}

#[test]
fn every_architecture_of_the_table_has_a_golden_model() {
    let copy = Copy::of("bert");
    copy.configure("architectures", json!(["GPT2ForSequenceClassification"]));
    let error = copy.refused();
    assert!(error.contains("GPT2ForSequenceClassification"), "{error}");
    let (_, table) = error.split_once("have: ").expect("the table");
    let mut have: Vec<&str> = table.split(", ").collect();
    let class = |name: &str| {
        golden::json(&format!("classifiers/{name}/config.json"))["architectures"][0].clone()
    };
    let mut tested: Vec<Value> = MODELS.iter().map(|name| class(name)).collect();
    tested.dedup();
    have.sort_unstable();
    let mut tested: Vec<&str> =
        tested.iter().map(|class| class.as_str().expect("a class")).collect();
    tested.sort_unstable();
    assert_eq!(have, tested);
}

#[test]
fn name_and_about_say_what_decides_the_scores() {
    let name = open(&folder("bert"), None).name();
    let (before, after) = name.split_once('@').expect("a version");
    let (hash, label) = after.split_once('#').expect("a label");
    assert_eq!((before, label), ("classifier:bert", "toxic"));
    assert!(hash.len() == 12 && hash.bytes().all(|b| b.is_ascii_hexdigit()), "{hash}");
    // Its weights are not all: with another config.json it gives other scores.
    let temporary = crate::support::files::Folder::new();
    for file in folder("bert").read_dir().expect("folder").flatten() {
        let name = format!("bert/{}", file.file_name().display());
        temporary.write(&name, crate::support::files::bytes(file.path()));
    }
    let copy = temporary.path("bert");
    assert_eq!(open(&copy, None).name(), name);
    crate::support::files::edit_json(copy.join("config.json"), |config| {
        config["layer_norm_eps"] = serde_json::json!(0.25);
    });
    assert_ne!(open(&copy, None).name(), name);
    let about = open(&folder("bert"), None).about();
    for words in ["BertForSequenceClassification", "\"toxic\"", "sigmoid", "40 tokens"] {
        assert!(about.contains(words), "{about}");
    }
    for (model, label, activation) in [
        ("roberta", "toxic", "softmax over 2"),
        ("distilbert", "Toxicity", "sigmoid of its only label"),
        ("xlm-roberta", "offensive", "softmax over 3"),
        ("deberta-v2", "LABEL_1", "softmax over 2"),
        ("deberta-v2-own-keys", "unsafe", "softmax over 2"),
        ("modernbert", "hate", "softmax over 2"),
        ("modernbert-mean", "toxicity", "sigmoid"),
    ] {
        let scorer = open(&folder(model), None);
        assert!(scorer.name().ends_with(&format!("#{label}")), "{}", scorer.name());
        let about = scorer.about();
        assert!(about.contains(activation) && !about.contains('\n'), "{about}");
    }
}

/// A copy of a golden model, to change.
struct Copy(Folder);

impl Copy {
    fn of(name: &str) -> Self {
        let copy = Folder::new();
        for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        {
            copy.write(file, bytes(folder(name).join(file)));
        }
        Self(copy)
    }

    fn path(&self) -> &Path {
        self.0.root()
    }

    fn configure(&self, key: &str, value: Value) {
        edit_json(self.0.path("config.json"), |config| config[key] = value);
    }

    fn write(&self, file: &str, text: impl AsRef<[u8]>) {
        self.0.write(file, text);
    }

    fn remove(&self, file: &str) {
        self.0.remove(file);
    }

    /// Its refusal as bad input, in words.
    #[track_caller]
    fn refused(&self) -> String {
        let error = try_open(self.path(), None).err().expect("refused");
        assert_eq!(exit_code(&error), 3, "{error:#}");
        format!("{error:#}")
    }

    /// Its scores of all the texts.
    fn scores(&self) -> Vec<f64> {
        let texts = texts();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        scores(open(self.path(), None).as_ref(), &texts)
    }
}

#[test]
fn texts_are_cut_to_the_positions_or_to_what_the_tokenizer_says() {
    for name in MODELS {
        let copy = Copy::of(name);
        let whole = copy.scores();
        // Now only the positions say where to cut.
        copy.remove("tokenizer_config.json");
        assert_eq!(copy.scores(), whole, "{name}");
        copy.write("tokenizer_config.json", r#"{"model_max_length": 1e30}"#);
        assert_eq!(copy.scores(), whole, "{name}");
    }
    let copy = Copy::of("bert");
    let whole = copy.scores();
    copy.write("tokenizer_config.json", r#"{"model_max_length": 7}"#);
    let cut = copy.scores();
    // Its batch has other texts now, which changes the rounding.
    assert!((cut[0] - whole[0]).abs() < 1e-6, "7 tokens: {} and {}", cut[0], whole[0]);
    assert!((cut[1] - whole[1]).abs() > 1e-3, "28 tokens: {} and {}", cut[1], whole[1]);
    assert!(open(copy.path(), None).about().contains("7 tokens"));
}

/// Folders from before 2020 have no `tokenizer.json`.
#[test]
fn a_tokenizer_is_made_of_older_files() {
    for name in ["bert", "distilbert", "roberta"] {
        let copy = Copy::of(name);
        let expected = copy.scores();
        let made: Value = golden::json(&format!("classifiers/{name}/tokenizer.json"));
        let vocab = &made["model"]["vocab"];
        if name == "roberta" {
            let merges = made["model"]["merges"].as_array().expect("merges");
            let side = |side: &Value| side.as_str().expect("a token").to_owned();
            let line = |pair: &Value| format!("{} {}\n", side(&pair[0]), side(&pair[1]));
            let merges: String = merges.iter().map(line).collect();
            copy.write("vocab.json", vocab.to_string());
            copy.write("merges.txt", format!("#version: 0.2\n{merges}"));
        } else {
            let mut words: Vec<_> = vocab.as_object().expect("words").iter().collect();
            words.sort_by_key(|(_, id)| id.as_u64());
            let lines: String = words.iter().map(|(word, _)| format!("{word}\n")).collect();
            copy.write("vocab.txt", lines);
        }
        copy.remove("tokenizer.json");
        assert_eq!(copy.scores(), expected, "{name}");
    }
    let copy = Copy::of("bert");
    copy.remove("tokenizer.json");
    copy.write("vocab.txt", "[PAD]\n[UNK]\n[CLS]\na\n");
    assert!(copy.refused().contains("no token [SEP]"));
}

#[test]
fn what_is_no_usable_classifier_is_refused() {
    let changed = |name: &str, key: &str, value: Value| {
        let copy = Copy::of(name);
        copy.configure(key, value);
        copy.refused()
    };
    let cases = [
        (
            changed("roberta", "id2label", json!({"0": "joy", "1": "anger"})),
            &["joy, anger", "--toxic-label"][..],
        ),
        (
            changed("roberta", "id2label", json!({"0": "toxic", "2": "anger"})),
            &["id2label", "config.json"],
        ),
        (
            changed("roberta", "id2label", json!({"0": "toxic"})),
            &["out_proj", "don't fit its config.json"],
        ),
        (changed("bert", "problem_type", json!("regression")), &["regression", "no probabilities"]),
        (
            changed("bert", "problem_type", json!("guess")),
            &["problem_type \"guess\"", "multi_label_classification"],
        ),
        (
            changed("bert", "architectures", json!(["BertForMaskedLM"])),
            &["BertForMaskedLM", "ModernBertFor"],
        ),
        (changed("bert", "hidden_act", json!("snake")), &["snake", "config.json"]),
        (
            changed("bert", "position_embedding_type", json!("relative_key")),
            &["position_embedding_type", "absolute"],
        ),
        (
            changed("bert", "num_attention_heads", json!(3)),
            &["hidden_size 16", "num_attention_heads 3"],
        ),
        (
            changed("bert", "num_attention_heads", json!(0)),
            &["num_attention_heads must be 1 or more"],
        ),
        (
            changed("bert", "vocab_size", json!("many")),
            &["vocab_size must be a whole number", "\"many\""],
        ),
        (changed("bert", "hidden_size", json!(32)), &["don't fit its config.json"]),
        (
            changed("bert", "max_position_embeddings", json!(4_000_000_000u32)),
            &["max_position_embeddings"],
        ),
        (changed("roberta", "pad_token_id", json!(41)), &["no position after pad_token_id"]),
        (changed("distilbert", "activation", json!("snake")), &["activation", "gelu, relu"]),
        (
            changed("deberta-v2", "conv_kernel_size", json!(3)),
            &["conv_kernel_size 3 is not implemented"],
        ),
        (changed("modernbert", "norm_bias", json!(true)), &["norm_bias true is not implemented"]),
        (
            changed("modernbert", "classifier_pooling", json!("max")),
            &["classifier_pooling", "cls, mean"],
        ),
        (
            changed("modernbert", "layer_types", json!(["full_attention", "full_attention"])),
            &["layer_types"],
        ),
    ];
    for (error, words) in cases {
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
    }

    let pickle = Copy::of("roberta");
    pickle.remove("model.safetensors");
    pickle.write("pytorch_model.bin", "pickle");
    let error = pickle.refused();
    for words in [
        "only pytorch_model.bin, which is not loaded; convert it with transformers",
        "RobertaForSequenceClassification.from_pretrained(DIR).save_pretrained(OUT",
    ] {
        assert!(error.contains(words), "{error}");
    }

    let mute = Copy::of("roberta");
    mute.remove("tokenizer.json");
    let error = mute.refused();
    assert!(error.contains("no tokenizer.json") && error.contains("AutoTokenizer"), "{error}");

    let other = Copy::of("bert");
    other.write("tokenizer.json", bytes(folder("roberta").join("tokenizer.json")));
    assert!(other.refused().contains("don't belong together"));

    let error = scorers::open("classifier:nowhere", &Options::default());
    let error = error.err().expect("refused").to_string();
    assert!(error.contains("no such folder, and no hub id"), "{error}");
}

/// The real binary scores rows of a file, by the label that is asked for.
#[test]
fn score_writes_the_probabilities() {
    let written = Folder::new();
    let texts = texts().into_iter().filter(|text| !text.is_empty());
    let rows: Vec<Value> = texts.map(|text| json!({ "text": text })).collect();
    let said = irepair("score --toxic-label Obscene")
        .arg(written.write_rows("rows.jsonl", &rows))
        .with("--scorer", format!("classifier:{}", folder("bert").display()))
        .with("--out", written.path("out.jsonl"))
        .ok();
    assert!(said.contains("#obscene: BertForSequenceClassification"), "{said}");
    let got: Vec<f64> = written.rows("out.jsonl").iter().map(|row| number(&row["score"])).collect();
    let expected = golden::json("classifiers/bert/expected.json");
    // Row 4 is the empty text.
    let mut want = column(&expected, 2);
    want.remove(4);
    all_within(&got, &want, TOLERANCE, "score");
}
