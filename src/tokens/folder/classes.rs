//! The *class* of a tokenizer. Some classes of transformers 5 take no more than the vocabulary of a
//! `tokenizer.json` and its post-processor, and make the rest by rules of their own.

use serde_json::{Map, Value, json};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{AddedVocabulary, Tokenizer};

use super::{Theirs, flag};
use crate::say;

/// Which class transformers takes for the models of an architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usual {
    /// The one that the folder names, or `tokenizer.json` as it stands.
    Named,
    /// The one that the folder names, or this one.
    Or(&'static str),
    /// This one, whatever the folder names.
    Only(&'static str),
}

impl Usual {
    /// `tokenizer.json` as it stands, whatever class the folder names.
    pub const AS_IT_STANDS: Self = Self::Only("TokenizersBackend");
}

type Make = fn(&mut Tokenizer, &Map<String, Value>, &dyn Fn(&str) -> Option<String>) -> Theirs<()>;

/// A line of [`CLASSES`].
pub struct Class {
    pub name: &'static str,
    /// The type of its vocabulary in `tokenizer.json`.
    pub model: &'static str,
    /// Whether it can be made from the vocabulary's own files.
    pub vocabulary: bool,
    /// Special tokens where the files name no other.
    pub special: &'static [(&'static str, &'static str)],
    /// Makes all but the added tokens and the post-processor.
    pub make: Make,
    /// Whether texts begin with `bos_token`, whatever the post-processor says.
    pub begins: bool,
    /// Whether the post-processor of the file is dropped.
    pub drops_marks: bool,
    /// The tokens that texts are put between, whatever the post-processor says.
    pub encloses: Option<[&'static str; 2]>,
    /// Whether special tokens match as they are written, whatever the files say of them.
    pub specials_are_plain: bool,
}

impl Class {
    const fn new(name: &'static str, model: &'static str, make: Make) -> Self {
        Self {
            name,
            model,
            vocabulary: false,
            special: &[],
            make,
            begins: false,
            drops_marks: false,
            encloses: None,
            specials_are_plain: false,
        }
    }

    pub fn is_made_from(&self, model: &ModelWrapper) -> bool {
        match model {
            ModelWrapper::BPE(_) => self.model == "BPE",
            ModelWrapper::WordPiece(_) => self.model == "WordPiece",
            _ => false,
        }
    }
}

const END: &str = "<|endoftext|>";
const LLAMA: &[(&str, &str)] =
    &[("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")];

/// The classes that are made anew, as in transformers 5.24.
const CLASSES: &[Class] = &[
    Class {
        vocabulary: true,
        special: &[("unk_token", END), ("bos_token", END), ("eos_token", END)],
        ..Class::new("GPT2Tokenizer", "BPE", |tokenizer, settings, _| {
            let space = flag(settings, "add_prefix_space").unwrap_or(false);
            byte_pairs(tokenizer, false, None);
            parts(tokenizer, Value::Null, byte_level(space, true), byte_level(true, true))
        })
    },
    Class {
        vocabulary: true,
        special: &[
            ("unk_token", END),
            ("bos_token", END),
            ("eos_token", END),
            ("pad_token", "<|padding|>"),
        ],
        drops_marks: true,
        ..Class::new("GPTNeoXTokenizer", "BPE", |tokenizer, settings, _| {
            let space = flag(settings, "add_prefix_space").unwrap_or(false);
            byte_pairs(tokenizer, false, None);
            let normalizer = json!({"type": "NFC"});
            parts(tokenizer, normalizer, byte_level(space, true), byte_level(true, true))
        })
    },
    Class {
        vocabulary: true,
        special: &[("unk_token", END), ("eos_token", END), ("pad_token", END)],
        specials_are_plain: true,
        ..Class::new("Qwen2Tokenizer", "BPE", |tokenizer, settings, _| {
            let space = flag(settings, "add_prefix_space").unwrap_or(false);
            byte_pairs(tokenizer, false, None);
            let split = json!({
                "type": "Split", "pattern": {"Regex": QWEN2}, "behavior": "Isolated",
                "invert": false,
            });
            let both = json!({"type": "Sequence", "pretokenizers": [
                split, byte_level(space, false)
            ]});
            parts(tokenizer, json!({"type": "NFC"}), both, byte_level(true, true))
        })
    },
    Class {
        special: LLAMA,
        ..Class::new("LlamaTokenizer", "BPE", |tokenizer, settings, _| {
            let space = flag(settings, "add_prefix_space").unwrap_or(true);
            let scheme = match (space, flag(settings, "legacy")) {
                (false, _) => "never",
                (true, Some(true)) => "always",
                (true, _) => "first",
            };
            byte_pairs(tokenizer, true, None);
            parts(tokenizer, Value::Null, metaspace(scheme), sentence_piece(space))
        })
    },
    Class {
        special: &[
            ("unk_token", "<unk>"),
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("prefix_token", "▁<PRE>"),
            ("middle_token", "▁<MID>"),
            ("suffix_token", "▁<SUF>"),
            ("eot_token", "▁<EOT>"),
            ("fill_token", "<FILL_ME>"),
        ],
        begins: true,
        ..Class::new("CodeLlamaTokenizer", "BPE", |tokenizer, settings, special| {
            let space = flag(settings, "add_prefix_space").unwrap_or(true);
            byte_pairs(tokenizer, true, special("unk_token"));
            let scheme = if space { "first" } else { "never" };
            parts(tokenizer, Value::Null, metaspace(scheme), sentence_piece(true))
        })
    },
    Class {
        special: &[
            ("unk_token", "<unk>"),
            ("bos_token", "<bos>"),
            ("eos_token", "<eos>"),
            ("pad_token", "<pad>"),
            ("mask_token", "<mask>"),
        ],
        ..Class::new("GemmaTokenizer", "BPE", |tokenizer, _, special| {
            byte_pairs(tokenizer, true, special("unk_token"));
            let replace = json!({
                "type": "Replace", "pattern": {"String": " "}, "content": "▁",
            });
            let split = json!({
                "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious",
                "invert": false,
            });
            parts(tokenizer, replace, split, sentence_piece(false))
        })
    },
    Class {
        special: &[
            ("unk_token", "[UNK]"),
            ("sep_token", "[SEP]"),
            ("pad_token", "[PAD]"),
            ("cls_token", "[CLS]"),
            ("mask_token", "[MASK]"),
        ],
        encloses: Some(["cls_token", "sep_token"]),
        ..Class::new("BertTokenizer", "WordPiece", |tokenizer, settings, special| {
            if let ModelWrapper::WordPiece(pieces) = tokenizer.get_model() {
                let mut pieces = pieces.clone();
                pieces.unk_token = special("unk_token").unwrap_or_else(|| "[UNK]".into());
                pieces.continuing_subword_prefix = "##".into();
                pieces.max_input_chars_per_word = 100;
                tokenizer.with_model(ModelWrapper::WordPiece(pieces));
            }
            let normalizer = json!({
                "type": "BertNormalizer", "clean_text": true,
                "handle_chinese_chars": flag(settings, "tokenize_chinese_chars").unwrap_or(true),
                "strip_accents": flag(settings, "strip_accents"),
                "lowercase": flag(settings, "do_lower_case").unwrap_or(true),
            });
            let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
            parts(tokenizer, normalizer, json!({"type": "BertPreTokenizer"}), decoder)
        })
    },
];

/// More classes that transformers makes anew and that models of ours are seen with. What they make
/// is what they save.
const NOT_MADE: [&str; 9] = [
    "AlbertTokenizer",
    "BigBirdTokenizer",
    "CohereTokenizer",
    "DebertaV2Tokenizer",
    "RobertaTokenizer",
    "T5Tokenizer",
    "WhisperTokenizer",
    "XGLMTokenizer",
    "XLMRobertaTokenizer",
];

/// How Qwen2 splits texts into words.
const QWEN2: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}\
                     | ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/// The class of a folder: `None` takes `tokenizer.json` as it stands.
pub fn of(
    settings: &Map<String, Value>,
    model: &Value,
    usual: Usual,
    json: Option<&[u8]>,
) -> Option<&'static Class> {
    let class = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let named =
        class(settings.get("tokenizer_class")).or_else(|| class(model.get("tokenizer_class")));
    let named = named.as_deref().map(|name| name.strip_suffix("Fast").unwrap_or(name));
    let name = match (usual, named) {
        (Usual::Only(name), _) => name,
        // Llama 3 and others name this class and have a vocabulary of bytes, which is not its own.
        (_, Some("LlamaTokenizer")) if json.is_some_and(is_of_bytes) => return None,
        (_, Some(name)) => name,
        (Usual::Or(name), None) => name,
        (Usual::Named, None) => return None,
    };
    let found = CLASSES.iter().find(|class| class.name == name);
    if found.is_none() && NOT_MADE.contains(&name) {
        say!(
            "warning: transformers makes a {name} by rules of its own; tokenizer.json is used as \
             it stands"
        );
    }
    found
}

fn is_of_bytes(json: &[u8]) -> bool {
    let word = b"\"ByteLevel\"";
    json.windows(word.len()).any(|found| found == word)
}

fn byte_level(space: bool, words: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": words,
    })
}

fn metaspace(scheme: &str) -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false})
}

/// The decoder of a SentencePiece vocabulary, which may put a space before a text.
fn sentence_piece(space: bool) -> Value {
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if space {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": decoders})
}

/// Sets what a class says of its merges. With `pieces` they are those of SentencePiece.
fn byte_pairs(tokenizer: &mut Tokenizer, pieces: bool, unknown: Option<String>) {
    let ModelWrapper::BPE(pairs) = tokenizer.get_model() else { return };
    let mut pairs = pairs.clone();
    pairs.dropout = None;
    pairs.unk_token = unknown;
    pairs.fuse_unk = pieces;
    pairs.byte_fallback = pieces;
    pairs.ignore_merges = false;
    tokenizer.with_model(ModelWrapper::BPE(pairs));
}

/// Sets the parts of a tokenizer, and takes its added tokens away.
fn parts(
    tokenizer: &mut Tokenizer,
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
) -> Theirs<()> {
    tokenizer.with_added_vocabulary(AddedVocabulary::new());
    let normalizer: Option<NormalizerWrapper> = serde_json::from_value(normalizer)?;
    tokenizer.with_normalizer(normalizer)?;
    let pre_tokenizer: PreTokenizerWrapper = serde_json::from_value(pre_tokenizer)?;
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer));
    let decoder: DecoderWrapper = serde_json::from_value(decoder)?;
    tokenizer.with_decoder(Some(decoder));
    Ok(())
}
