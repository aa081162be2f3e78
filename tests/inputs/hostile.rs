//! Files that are made to do harm: they would fill the memory or the stack, never end, steer the
//! terminal, or make a model see tokens that it has not.

use std::io::Write;

use serde_json::{Value, json};

use crate::support::command::{CommandLine, ends, irepair, stderr};
use crate::support::files::{Folder, edit_json};
use crate::support::golden;

const PAIR: &str = r#"{"prompt": "hello a", "chosen": " b", "rejected": " c"}"#;

fn sensitivity(folder: &Folder) -> CommandLine {
    irepair("sensitivity -q")
        .with("--model", folder.path("model"))
        .with("--data", folder.write("pairs.jsonl", PAIR))
}

/// A folder with a model whose tokenizer is changed like this.
fn with_tokenizer(change: impl FnOnce(&mut Value)) -> Folder {
    let folder = Folder::new();
    edit_json(folder.model("gpt2").join("tokenizer.json"), change);
    folder
}

#[test]
fn ids_that_the_model_has_not() {
    let begins = |id: u32| {
        json!({
            "type": "TemplateProcessing", "pair": [],
            "single": [
                {"SpecialToken": {"id": "<z>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "special_tokens": {"<z>": {"id": "<z>", "ids": [id], "tokens": ["<z>"]}},
        })
    };
    // One past the vocabulary, and far past it.
    for id in [320, 4_000_000_000] {
        let folder = with_tokenizer(|t| t["post_processor"] = begins(id));
        let words = ["tokenizer.json", "<z>", &format!("id {id}"), "ends at 319"];
        sensitivity(&folder).fails(3, &words);
    }
    let added = |content: &str| {
        let token = json!({"id": 5000, "content": content, "single_word": false, "lstrip": false,
                           "rstrip": false, "normalized": false, "special": true});
        with_tokenizer(|t| {
            for id in 320..5000 {
                t["added_tokens"].as_array_mut().expect("tokens").push(
                    json!({"id": id, "content": format!("<unused-{id}>"), "single_word": false,
                           "lstrip": false, "rstrip": false, "normalized": false, "special": true}),
                );
            }
            t["added_tokens"].as_array_mut().expect("tokens").push(token.clone());
        })
    };
    sensitivity(&added("hello")).fails(3, &["tokenizer.json", "vocabulary ends at 319"]);
    // One that no text has does no harm.
    sensitivity(&added("<never>")).ok();
}

#[test]
fn dropout_is_switched_off() {
    let plain = Folder::new();
    plain.model("gpt2");
    let want = sensitivity(&plain).and("--json").ok();
    let folder = with_tokenizer(|t| t["model"]["dropout"] = json!(0.9));
    let line = sensitivity(&folder).and("--json");
    assert_eq!(line.ok(), want);
    assert_eq!(line.warns().matches("dropout").count(), 1);
}

#[test]
fn tokenizers_that_panic_or_fill_the_memory() {
    let replace =
        |with: String| json!({"type": "Replace", "pattern": {"String": "a"}, "content": with});
    let grows = vec![replace("a".repeat(10)); 12];
    for (part, value, words) in [
        ("pre_tokenizer", json!({"type": "FixedLength", "length": 0}), "gives up"),
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "gives up"),
        (
            "normalizer",
            json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
            "more memory",
        ),
        (
            "normalizer",
            json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
            "gives up",
        ),
        ("normalizer", json!({"type": "Sequence", "normalizers": grows}), "more memory"),
    ] {
        let folder = with_tokenizer(|t| t[part] = value);
        sensitivity(&folder).fails(3, &["error: ", "tokenizer.json: ", words]);
    }
}

#[test]
fn chat_templates_that_do_not_end() {
    let folder = Folder::new();
    let model = folder.model("gpt2");
    let turn = |role: &str, text: &str| json!([{"role": role, "content": text}]);
    let row = json!({"prompt": turn("user", "hi"), "chosen": turn("assistant", "a"),
                     "rejected": turn("assistant", "b")});
    let rows = folder.write_rows("chat.jsonl", &[row]);
    let line = irepair("sensitivity -q").with("--model", &model).with("--data", rows);
    let itself = "{% set ns = namespace(a=1) %}{% set ns.a = [ns] %}";
    for (template, words) in [
        (format!("{{{{ {} }}}}", vec!["1"; 32_000].join("+")), "nested too deep"),
        (format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(32_000)), "nested too deep"),
        (format!("{{{{ {}1 }}}}", "not ".repeat(100_000)), "nested too deep"),
        (format!("{{{{ {}1{} }}}}", "(".repeat(9_000), ")".repeat(9_000)), "recursion"),
        (format!("{itself}{{{{ ns }}}}"), "nested too deep"),
        (format!("{itself}{{{{ ns|tojson }}}}"), "too deep"),
        ("{{ strftime_now('%Y' * 10**7) }}".into(), "strftime_now"),
        ("{{ '{:>1000000000}'.format('a') }}".into(), "more memory"),
        ("{{ 'x' * 10**9 }}".into(), "does not come to an end"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".into(),
            "does not come to an end",
        ),
        ("{{ raise_exception('\u{1b}[31m' ~ 'y' * 90000) }}".into(), "\\u{1b}[31m"),
    ] {
        folder.write("model/chat_template.jinja", template);
        let error = line.fails(3, &["error: ", "chat", words]);
        assert!(error.len() < 4096, "{} bytes", error.len());
        // A pair of plain strings does not ask for it.
        sensitivity(&folder).ok();
    }
}

#[test]
fn gzip_bombs() {
    let folder = Folder::new();
    folder.model("gpt2");
    let pack = |name: &str, bytes: &[u8], times: usize| {
        let file = std::fs::File::create(folder.path(name)).expect("file");
        let mut gz = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        (0..times).for_each(|_| gz.write_all(bytes).expect("gzip"));
        gz.finish().expect("gzip");
        irepair("sensitivity -q")
            .with("--model", folder.path("model"))
            .with("--data", folder.path(name))
    };
    let zeros = pack("zeros.jsonl.gz", &[b'\n'; 1 << 20], 200);
    zeros.fails(3, &["zeros.jsonl.gz: it unpacks to far more"]);
    zeros.and("--limit 2").fails(3, &["zeros.jsonl.gz"]);
    // The first of many good rows are read, and no more.
    let rows = pack("rows.jsonl.gz", format!("{PAIR}\n").repeat(1 << 14).as_bytes(), 100);
    rows.and("--limit 2").ok();
}

/// A page of some kilobytes names a long text of the dictionary twelve thousand times.
#[test]
fn a_dictionary_of_parquet_that_fills_the_memory() {
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::properties::{EnabledStatistics, WriterProperties};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    let folder = Folder::new();
    folder.model("gpt2");
    let columns = ["prompt", "chosen", "rejected"];
    let fields: String = columns.map(|c| format!("required binary {c} (UTF8); ")).concat();
    let schema = parse_message_type(&format!("message m {{ {fields} }}")).expect("a schema");
    let properties = WriterProperties::builder()
        .set_dictionary_page_size_limit(64 << 20)
        .set_statistics_enabled(EnabledStatistics::None);
    let file = std::fs::File::create(folder.path("bomb.parquet")).expect("a file");
    let properties = properties.build().into();
    let mut writer = SerializedFileWriter::new(file, schema.into(), properties).expect("a writer");
    let mut group = writer.next_row_group().expect("a group");
    for text in columns {
        let mut column = group.next_column().expect("a column").expect("a column");
        let long = ByteArray::from(text.repeat(1 << 17).into_bytes());
        let values = vec![long; 12_000];
        column.typed::<ByteArrayType>().write_batch(&values, None, None).expect("values");
        column.close().expect("closes");
    }
    group.close().expect("closes");
    writer.close().expect("closes");
    let size = std::fs::metadata(folder.path("bomb.parquet")).expect("a file").len();
    assert!(size < 8 << 20, "{size}");
    let line = irepair("sensitivity -q")
        .with("--model", folder.path("model"))
        .with("--data", folder.path("bomb.parquet"));
    let error = ends(&line.run_after("ulimit -v 8000000"), 3);
    assert!(error.contains("bomb.parquet: it takes more memory than its size allows"), "{error}");
}

#[test]
fn weights_that_give_no_numbers() {
    let folder = Folder::new();
    let path = folder.model("gpt2").join("model.safetensors");
    let mut file = std::fs::read(&path).expect("weights");
    let length = u64::from_le_bytes(file[..8].try_into().expect("8 bytes")) as usize;
    // Every value is finite, and every sum of them overflows.
    for value in file[8 + length..].chunks_exact_mut(8) {
        value[..4].copy_from_slice(&3e38f32.to_le_bytes());
        value[4..].copy_from_slice(&(-3e38f32).to_le_bytes());
    }
    std::fs::write(&path, file).expect("writes");
    let prompts = folder.write("prompts.txt", "hello a\n");
    let text = folder.write_rows("text.jsonl", &[json!({"text": "hello a b ".repeat(60)})]);
    let on = |words: &str| irepair(words).with("--model", folder.path("model"));
    let model = folder.path("model").display().to_string();
    for line in [
        on("generate -q").with("--prompts", &prompts).with("--out", folder.path("g.jsonl")),
        on("pairs -q --scorer lexicon").with("--prompts", &prompts).with("--out", folder.path("p")),
        on("eval -q --toxicity").with("--prompts", &prompts).with("--out", folder.path("t")),
        on("eval -q").with("--ppl", &text).with("--out", folder.path("e")),
        sensitivity(&folder),
    ] {
        line.fails(4, &[&model]);
    }
}

#[test]
fn numbers_that_are_too_large() {
    let folder = Folder::new();
    let prompts = folder.write("prompts.txt", "hello a\n");
    let model = golden::path("gpt2");
    let line = |words: &str| irepair(words).with("--model", &model).with("--prompts", &prompts);
    let written = |words: &str| line(words).with("--out", folder.path("out"));
    let huge = "99999999999999999";
    for flag in ["--samples", "--batch-size", "--max-new-tokens"] {
        written("generate -q").with(flag, huge).fails(3, &[flag, "at most"]);
    }
    for flag in ["--samples", "--max-new-tokens", "--normal-texts"] {
        written("eval -q --toxicity").with(flag, huge).fails(3, &[flag, "at most"]);
    }
    for flag in ["--rounds", "--samples-per-prompt", "--max-steps", "--normal-texts"] {
        line("repair --dry-run --scorer lexicon").with(flag, huge).fails(3, &[flag, "at most"]);
    }
    // As many as may be, but more than fit into memory.
    let little = |line: CommandLine| line.env("IREPAIR_MEMORY_LIMIT", "1000");
    little(written("generate -q --samples 900000000")).fails(3, &["--samples: 900000000", "MiB"]);
    for flag in ["--batch", "--iterations"] {
        irepair("bench --config gpt2").with(flag, huge).fails(3, &[flag, "at most"]);
    }
    let scored = || written("generate -q --scorer lexicon");
    for wrong in ["nan", "inf", "-1"] {
        scored().arg(format!("--keep-below={wrong}")).fails(3, &["--keep-below"]);
    }
    for wrong in ["0/0", "5/4", "18446744073709551614/18446744073709551615"] {
        written("generate -q").with("--shard", wrong).fails(2, &["--shard"]);
    }
    for wrong in ["99999999999999 GiB", "99999999999999", "-1", ""] {
        let line = written("generate -q").env("IREPAIR_MEMORY_LIMIT", wrong);
        line.fails(3, &["IREPAIR_MEMORY_LIMIT"]);
    }
}

#[test]
fn nothing_steers_the_terminal_and_nothing_is_endless() {
    let folder = Folder::new();
    let model = golden::path("gpt2");
    let name = format!("\u{1b}[31m{}", "k".repeat(1 << 20));
    let row = json!({ name: 1 });
    let line = irepair("sensitivity -q")
        .with("--model", &model)
        .with("--data", folder.write_rows("rows.jsonl", &[row]));
    let error = ends(&line.run(), 3);
    assert!(error.contains("\\u{1b}[31mk") && error.contains("bytes left out"), "{error:.500}");
    assert!(error.len() < 4096 && !error.contains('\u{1b}'), "{} bytes", error.len());
    let toml = folder.write("own.toml", format!("\"\\u001b{}\" = 1\n", "x".repeat(1 << 20)));
    let line = irepair("repair --dry-run").with("--model", &model).with("--config", toml);
    let said = stderr(&line.run());
    assert!(said.contains("own.toml:1: unknown key") && said.len() < 4096, "{said:.500}");
    assert!(!said.contains('\u{1b}'));
}
