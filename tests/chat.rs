//! Conversations: what `scripts/make_golden_chat.py` had transformers make of them, and what is refused.

use irepair::data;
use irepair::data::{FileLine, KeyMap};
use irepair::tokens::chat::{ChatTemplate, Ending};
use irepair::tokens::{Encoder, Lengths};
use serde_json::{Value, json};

use crate::cli::{Bench, refused};
use crate::golden;
use crate::repair::{irepair, ok};

/// Refuses conversations that do not alternate.
const STRICT: &str = "mistral";

fn template(name: &str) -> String {
    golden::json("chat.json")["templates"][name]["template"].as_str().expect("a template").into()
}

/// The folder of the golden llama with this template, in each of the places that it can have.
fn folders(template: &str) -> Vec<tempfile::TempDir> {
    let config = golden::json("llama/tokenizer_config.json");
    let named =
        json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]);
    let places =
        [("chat_template", json!(template)), ("chat_template", named), ("other", Value::Null)];
    let folder = |(index, (key, value)): (usize, (&str, Value))| {
        let dir = tempfile::tempdir().expect("dir");
        let mut config = config.clone();
        config[key] = value;
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string())
            .expect("writes");
        if index == 2 {
            std::fs::write(dir.path().join("chat_template.jinja"), template).expect("writes");
        }
        dir
    };
    places.into_iter().enumerate().map(folder).collect()
}

#[test]
fn templates_give_what_transformers_gives() {
    let golden = golden::json("chat.json");
    let conversations = golden["conversations"].as_array().expect("conversations");
    let place = FileLine { file: std::path::Path::new("chat.jsonl").into(), line: 3 };
    for (name, expected) in golden["templates"].as_object().expect("templates") {
        for folder in folders(&template(name)) {
            let chat = ChatTemplate::of(folder.path()).expect("opens").expect("a template");
            for (messages, row) in
                conversations.iter().zip(expected["rows"].as_array().expect("rows"))
            {
                let messages = messages.as_array().expect("messages");
                let whole = chat.render(messages, Ending::Message, &place);
                if row.is_null() {
                    let error = whole.expect_err("refused").to_string();
                    assert!(
                        error.contains("chat.jsonl:3") && error.contains("must alternate"),
                        "{error}"
                    );
                    continue;
                }
                assert_eq!(whole.expect(name), row["whole"], "{name}");
                let begin = chat.render(&messages[..messages.len() - 1], Ending::Prompt, &place);
                assert_eq!(begin.expect(name), row["begin"], "{name}");
            }
        }
    }
}

/// Both forms of rows give the prompt's and the answers' tokens, the template's special tokens among them, once.
#[test]
fn conversations_in_tokens_are_transformers() {
    let golden = golden::json("chat.json");
    let bench = Bench::new();
    for (name, expected) in golden["templates"].as_object().expect("templates") {
        let folder = &folders(&template(name))[0];
        let tokenizer = golden::dir().join("llama/tokenizer.json");
        let encoder = Encoder::from_file(&tokenizer, 320).expect("tokenizer");
        let encoder = encoder.with_chat(ChatTemplate::of(folder.path()).expect("opens"));
        let rows = expected["rows"].as_array().expect("rows");
        for (messages, row) in
            golden["conversations"].as_array().expect("conversations").iter().zip(rows)
        {
            if row.is_null() {
                continue;
            }
            let messages = messages.as_array().expect("messages");
            let (answer, history) = messages.split_last().expect("messages");
            let other = json!({"role": "assistant", "content": "No."});
            let explicit = json!({"prompt": history, "chosen": [answer], "rejected": [other]});
            let implicit = json!({"chosen": messages, "rejected": ([history, &[other]].concat())});
            let path = bench.file("rows.jsonl", format!("{explicit}\n{implicit}\n"));
            let pairs = data::read_pairs(path.as_ref(), &KeyMap::new(), None).expect("pairs");
            let ids = |key: &str| {
                golden::numbers(&row[key]).iter().map(|x| *x as u32).collect::<Vec<_>>()
            };
            let (tokens, _) =
                encoder.pairs(&pairs, Lengths { prompt: 1000, total: 2000 }).expect("tokens");
            for pair in &tokens {
                assert_eq!(
                    (&pair.prompt, &pair.chosen),
                    (&ids("prompt_ids"), &ids("answer_ids")),
                    "{name}"
                );
                assert_ne!(pair.rejected, pair.chosen);
            }
            // Too long: the end stays, with the turn that is to be answered.
            let (cut, count) =
                encoder.pairs(&pairs[..1], Lengths { prompt: 9, total: 12 }).expect("tokens");
            let whole = ids("prompt_ids");
            assert_eq!(
                (cut[0].prompt.as_slice(), count.prompts),
                (&whole[whole.len() - 9..], 1),
                "{name}"
            );
            assert_eq!(
                (cut[0].chosen.as_slice(), count.responses),
                (&ids("answer_ids")[..3], 2),
                "{name}"
            );
        }
    }
}

fn turn(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// A folder that has a template, and rows of conversations for it.
fn chat_model(bench: &Bench, template: &str) -> String {
    let model = bench.model_of("qwen2");
    std::fs::write(model.join("chat_template.jinja"), template).expect("writes");
    model.to_str().expect("utf-8").into()
}

/// Templates of reasoning models open a thought where an answer is to come, which one that is there does not have.
#[test]
fn a_thought_that_is_only_asked_for_is_no_part_of_the_prompt() {
    let bench = Bench::new();
    let turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let model = chat_model(
        &bench,
        &format!("{turns}{{% if add_generation_prompt %}}<assistant><think>\n{{% endif %}}"),
    );
    let row = json!({"prompt": [turn("user", "Tea?")], "chosen": [turn("assistant", "Yes.")],
                     "rejected": [turn("assistant", "No.")]});
    let plain = json!({"prompt": "<user>Tea?<assistant>", "chosen": "Yes.", "rejected": "No."});
    let sensitivity = |row: &Value| {
        let data = bench.file("thought.jsonl", format!("{row}\n"));
        ok(&irepair(&["sensitivity", "--model", &model, "--json", "--data", &data]))
    };
    assert_eq!(sensitivity(&row), sensitivity(&plain), "the same tokens");
    // What stands before the answer must be there whole.
    let model = chat_model(
        &bench,
        &format!("{{% if add_generation_prompt %}}a{{% else %}}b{{% endif %}}{turns}"),
    );
    let data = bench.file("before.jsonl", format!("{row}\n"));
    refused(
        &["sensitivity", "--model", &model, "--data", &data],
        3,
        &["before.jsonl:1", "differently"],
    );
}

#[test]
fn every_command_takes_conversations() {
    let bench = Bench::new();
    let model = chat_model(&bench, &template(STRICT));
    let ask = |i: usize| turn("user", &format!("Tea at {i}?"));
    let (good, bad) = (turn("assistant", "Yes."), turn("assistant", "Never."));
    let rows = (0..6)
        .map(|i| json!({"prompt": [ask(i)], "chosen": [good], "rejected": [bad]}).to_string());
    let chat = bench.file("chat.jsonl", rows.collect::<Vec<_>>().join("\n"));
    let plain = (0..6).map(|i| {
        let [prompt, chosen, rejected] = [
            format!("<|endoftext|>[INST] Tea at {i}? [/INST]"),
            "Yes.<|endoftext|>".into(),
            "Never.<|endoftext|>".into(),
        ];
        json!({"prompt": prompt, "chosen": chosen, "rejected": rejected}).to_string()
    });
    let plain = bench.file("plain.jsonl", plain.collect::<Vec<_>>().join("\n"));
    let sensitivity =
        |data: &str| ok(&irepair(&["sensitivity", "--model", &model, "--json", "--data", data]));
    assert_eq!(sensitivity(&chat), sensitivity(&plain), "the same tokens");

    let prompts = bench.file(
        "prompts.jsonl",
        (0..2).map(|i| json!({"prompt": [ask(i)]}).to_string() + "\n").collect::<String>(),
    );
    let texts = |prompts: &str, name: &str| {
        let out = bench.path(name);
        ok(&irepair(&[
            "generate",
            "-q",
            "--model",
            &model,
            "--greedy",
            "--prompts",
            prompts,
            "--out",
            out.to_str().expect("utf-8"),
        ]));
        let rows = std::fs::read_to_string(out).expect("texts");
        let text =
            |row: &str| serde_json::from_str::<Value>(row).expect("JSON")["continuation"].clone();
        rows.lines().map(text).collect::<Vec<_>>()
    };
    let written = texts(&prompts, "texts.jsonl");
    assert_eq!(written, texts(&plain, "plain-texts.jsonl")[..2]);
    let evaluated = bench.path("evaluated");
    let evaluated = ["--out", evaluated.to_str().expect("utf-8")];
    let eval = ["eval", "-q", "--model", &model, "--toxicity", "--prompts", &prompts];
    // Not cut to the preset's 32 tokens.
    let measured = ok(&irepair(&[&eval[..], &evaluated].concat()));
    assert!(measured.contains("preset lee: 2 prompts, 1 × 20 new tokens"), "{measured}");

    let out = bench.path("out");
    let out_s = out.to_str().expect("utf-8");
    ok(&irepair(&[
        "repair",
        "-q",
        "--model",
        &model,
        "--data",
        &chat,
        "--out",
        out_s,
        "--method",
        "irepair",
        "--batch-size",
        "2",
        "--max-steps",
        "2",
        "--valid-size",
        "2",
        "--eval-steps",
        "1",
    ]));
    let run: Value =
        serde_json::from_slice(&std::fs::read(out.join("irepair/run.json")).expect("run"))
            .expect("JSON");
    assert!(
        run["before"]["toxicity"].is_number() && run["after"]["nll_chosen"].is_number(),
        "{run}"
    );
    assert!(out.join("chat_template.jinja").is_file());
    assert!(!out.join("irepair/prompts.jsonl").exists());
}

/// Chat models end a turn and a text with different tokens: `eos_token_id` is a list, and `generation_config.json` decides.
#[test]
fn every_token_that_ends_a_text_does() {
    let bench = Bench::new();
    let model = bench.model_of("llama");
    let rows = golden::json("generate.json")["llama"].clone();
    let row = &rows[0];
    let new = golden::numbers(&row["new_ids"]);
    let prompts = bench.file("prompts.txt", row["prompt"].as_str().expect("a prompt"));
    let written = |name: &str, generation: &Value| {
        std::fs::write(model.join("generation_config.json"), generation.to_string())
            .expect("writes");
        let (model, out) = (model.to_str().expect("utf-8"), bench.path(name));
        let out = out.to_str().expect("utf-8");
        ok(&irepair(&[
            "generate",
            "-q",
            "--model",
            model,
            "--greedy",
            "--prompts",
            &prompts,
            "--out",
            out,
        ]));
        let row: Value =
            serde_json::from_slice(&std::fs::read(out).expect("texts")).expect("a row");
        row["continuation"].as_str().expect("a text").to_owned()
    };
    let whole = written("whole.jsonl", &json!({}));
    assert_eq!(whole, row["text"]);
    // The first token that is not that of the beginning.
    let at = new.iter().position(|id| *id != new[0]).expect("two different tokens");
    let cut = written("cut.jsonl", &json!({"eos_token_id": [0, new[at] as u32]}));
    assert!(
        whole.starts_with(&cut) && cut.len() < whole.len() && !cut.is_empty(),
        "{cut:?} of {whole:?}"
    );
}

#[test]
fn conversations_that_are_refused() {
    let bench = Bench::new();
    let good = json!({"prompt": [turn("user", "Tea?")], "chosen": [turn("assistant", "Yes.")], "rejected": [turn("assistant", "No.")]});
    let refuse = |template: Option<&str>, row: &Value, words: &[&str]| {
        let model = match template {
            Some(template) => chat_model(&bench, template),
            None => golden::dir().join("qwen2").to_str().expect("utf-8").into(),
        };
        let data = bench.file("chat.jsonl", format!("{good}\n{row}\n"));
        refused(&["sensitivity", "--model", &model, "--data", &data], 3, words);
    };
    refuse(
        None,
        &good,
        &["chat.jsonl:1", "no chat template", "chat_template.jinja", "plain strings"],
    );
    let with = |key: &str, value: Value| {
        let mut row = good.clone();
        row[key] = value;
        row
    };
    let strict = template(STRICT);
    let system = with("prompt", json!([turn("system", "Be kind."), turn("user", "Tea?")]));
    refuse(
        Some(&strict),
        &system,
        &["chat.jsonl:2", "chat_template.jinja", "roles must alternate"],
    );
    let loops =
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
    refuse(Some(loops), &good, &["chat.jsonl:1", "does not come to an end"]);
    let grows = "{% set ns = namespace(x='ab') %}{% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    refuse(Some(grows), &good, &["chat.jsonl:1", "does not come to an end"]);
    let nested = |times: usize, list: &str| {
        let begin = "{% set ns = namespace(x=[]) %}{% for a in range(";
        format!("{begin}{times}) %}}{{% set ns.x = {list} %}}{{% endfor %}}{{{{ ns.x | tojson }}}}")
    };
    refuse(Some(&nested(60, "[ns.x, ns.x]")), &good, &["chat.jsonl:1", "does not come to an end"]);
    refuse(Some(&nested(999, "[ns.x]")), &good, &["chat.jsonl:1", "tojson: values lie too deep"]);
    refuse(Some("{{ nothing | tojson }}"), &good, &["chat.jsonl:1", "tojson: undefined"]);
    refuse(Some("{{ 1 | tojson(indents=2) }}"), &good, &["chat.jsonl:1", "indents"]);
    refuse(Some("{% generation %}"), &good, &["chat.jsonl:1", "syntax error"]);
    refuse(Some("{% if %}"), &good, &["chat.jsonl:1", "chat_template.jinja", "syntax error"]);
    refuse(Some("{{ nothing.at.all }}"), &good, &["chat.jsonl:1", "undefined"]);
    refuse(Some("{{ messages | length }}"), &good, &["chat.jsonl:1", "differently"]);
    refuse(Some("x"), &good, &["chat.jsonl:1", "chosen has no tokens"]);
    let strict = Some(strict.as_str());
    refuse(strict, &with("chosen", json!("Yes.")), &["chat.jsonl:2", "chosen", "list of messages"]);
    refuse(
        strict,
        &with("chosen", json!([{"role": "assistant"}])),
        &["chat.jsonl:2", "message 0", "content"],
    );
    refuse(
        strict,
        &with("chosen", json!([turn("user", "Yes.")])),
        &["chat.jsonl:2", "chosen", "assistant's answer"],
    );
    refuse(
        strict,
        &with("rejected", json!([turn("assistant", " ")])),
        &["chat.jsonl:2", "rejected is empty"],
    );
    let longer =
        json!([turn("assistant", "Yes."), turn("user", "Now?"), turn("assistant", "Now.")]);
    refuse(strict, &with("chosen", longer), &["chat.jsonl:2", "the same up to the last turn"]);
    // A prompt that is answered already, and a conversation where a plain text is wanted.
    let model = chat_model(&bench, &template(STRICT));
    let prompts =
        bench.file("prompts.jsonl", json!({"prompt": [turn("assistant", "Yes.")]}).to_string());
    let out = bench.path("out.jsonl");
    refused(
        &[
            "generate",
            "--model",
            &model,
            "--prompts",
            &prompts,
            "--out",
            out.to_str().expect("utf-8"),
        ],
        3,
        &["prompts.jsonl:1", "an assistant answers"],
    );
    let texts = bench.file("texts.jsonl", json!({"prompt": [turn("user", "Tea?")]}).to_string());
    let out = bench.path("out");
    let eval =
        ["eval", "--model", &model, "--lambada", &texts, "--out", out.to_str().expect("utf-8")];
    refused(&eval, 3, &["texts.jsonl:1", "conversation"]);
}

/// Templates are told one date whatever the day, and the special tokens of both files that transformers has had.
#[test]
fn dates_and_special_tokens() {
    let dir = tempfile::tempdir().expect("dir");
    let write =
        |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("writes");
    let render = |template: &str, config: Value| {
        write("chat_template.jinja", template);
        write("tokenizer_config.json", &config.to_string());
        let chat = ChatTemplate::of(dir.path()).expect("opens").expect("a template");
        let place = FileLine { file: std::path::Path::new("chat.jsonl").into(), line: 3 };
        chat.render(&[turn("user", "Tea?")], Ending::Prompt, &place)
    };
    let date = "{% if strftime_now is defined %}{{ strftime_now('%A %a %d %B %b %m %Y %y %j %H:%M:%S 5%%') }}{% endif %}";
    assert_eq!(
        render(date, json!({})).expect("a date"),
        "Thursday Thu 01 January Jan 01 2026 26 001 00:00:00 5%"
    );
    for field in ["%c", "%"] {
        let error = render(&format!("{{{{ strftime_now('{field}') }}}}"), json!({}))
            .expect_err(field)
            .to_string();
        assert!(
            error.contains(&format!("strftime_now: {field} is not implemented (have: %%")),
            "{error}"
        );
    }
    let map = json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "<end>", "extra": ["<x>"]});
    write("special_tokens_map.json", &map.to_string());
    let tokens = "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}";
    let config = json!({"eos_token": "</s>", "bos_token": null, "unk_token": "<unk>"});
    assert_eq!(render(tokens, config.clone()).expect("tokens"), "<s>|<end>|<unk>");
    let mut newer = config;
    newer["added_tokens_decoder"] = json!({});
    assert_eq!(render(tokens, newer).expect("tokens"), "|</s>|<unk>");
    write("special_tokens_map.json", "{");
    let error = ChatTemplate::of(dir.path()).map(|_| ());
    assert!(error.is_ok(), "what is not asked is not read");
    write("tokenizer_config.json", "{}");
    let error = ChatTemplate::of(dir.path()).map(|_| ()).expect_err("broken").to_string();
    assert!(error.contains("special_tokens_map.json: broken JSON"), "{error}");
}
