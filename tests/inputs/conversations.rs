//! Conversations: their texts and tokens are those of transformers (`scripts/make_golden_chat.py`),
//! and what can't be one is refused.

use std::path::{Path, PathBuf};

use irepair::data;
use irepair::data::{FileLine, KeyMap};
use irepair::tokens::chat::Ending;
use irepair::tokens::folder::Usual;
use irepair::tokens::{Boundary, Encoder, Lengths};
use serde_json::{Value, json};

use crate::support::command::{CommandLine, irepair};
use crate::support::files::{Folder, bytes};
use crate::support::golden::{self, ids};

/// Refuses conversations that do not alternate.
const STRICT: &str = "mistral";

fn template(name: &str) -> String {
    golden::json("chat.json")["templates"][name]["template"].as_str().expect("a template").into()
}

/// The folder of the golden llama with this template, in each of the places that it can have.
fn folders(template: &str) -> Vec<Folder> {
    let config = golden::json("llama/tokenizer_config.json");
    let named =
        json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]);
    let places =
        [("chat_template", json!(template)), ("chat_template", named), ("other", Value::Null)];
    let folder = |(index, (key, value)): (usize, (&str, Value))| {
        let folder = Folder::new();
        let mut config = config.clone();
        config[key] = value;
        folder.write("tokenizer_config.json", config.to_string());
        folder.write("tokenizer.json", bytes(golden::path("llama/tokenizer.json")));
        if index == 2 {
            folder.write("chat_template.jinja", template);
        }
        folder
    };
    places.into_iter().enumerate().map(folder).collect()
}

/// The encoder of a folder that has a tokenizer and a template.
fn encoder(folder: &Folder) -> anyhow::Result<Encoder> {
    Encoder::of(folder.root(), &Value::Null, Usual::Named, 320)
}

fn place() -> FileLine {
    FileLine { file: Path::new("chat.jsonl").into(), line: 3 }
}

#[test]
fn templates_give_what_transformers_gives() {
    let golden = golden::json("chat.json");
    let conversations = golden["conversations"].as_array().expect("conversations");
    let place = place();
    for (name, expected) in golden["templates"].as_object().expect("templates") {
        for folder in folders(&template(name)) {
            let chat = encoder(&folder).expect("opens");
            let rows = expected["rows"].as_array().expect("rows");
            for (messages, row) in conversations.iter().zip(rows) {
                let messages = messages.as_array().expect("messages");
                let whole = chat.render(messages, Ending::Message, &place);
                if row.is_null() {
                    let error = whole.expect_err("refused").to_string();
                    let why = ["must alternate", "System role not supported"];
                    let said = why.iter().any(|why| error.contains(why));
                    assert!(error.contains("chat.jsonl:3") && said, "{error}");
                    continue;
                }
                assert_eq!(whole.expect(name), row["whole"], "{name}");
                let begin = chat.render(&messages[..messages.len() - 1], Ending::Prompt, &place);
                assert_eq!(begin.expect(name), row["begin"], "{name}");
            }
        }
    }
}

/// Both forms of rows give the prompt's and the answers' tokens, the template's special tokens
/// among them, once.
#[test]
fn conversations_in_tokens_are_transformers() {
    let golden = golden::json("chat.json");
    let written = Folder::new();
    for (name, expected) in golden["templates"].as_object().expect("templates") {
        let folder = &folders(&template(name))[0];
        let encoder = encoder(folder).expect("opens");
        let rows = expected["rows"].as_array().expect("rows");
        let conversations = golden["conversations"].as_array().expect("conversations");
        for (messages, row) in conversations.iter().zip(rows) {
            if row.is_null() {
                continue;
            }
            let messages = messages.as_array().expect("messages");
            let (answer, history) = messages.split_last().expect("messages");
            let other = json!({"role": "assistant", "content": "No."});
            let explicit = json!({"prompt": history, "chosen": [answer], "rejected": [other]});
            let implicit = json!({"chosen": messages, "rejected": ([history, &[other]].concat())});
            let path = written.write_rows("rows.jsonl", &[explicit, implicit]);
            let pairs = data::read_pairs(&path, &KeyMap::new(), None).expect("pairs");
            let (prompt, answer) = (ids(&row["prompt_ids"]), ids(&row["answer_ids"]));
            let long = Lengths { prompt: 1000, total: 2000 };
            let (tokens, _) = encoder.pairs(&pairs, long, Boundary::Apart).expect("tokens");
            // TRL's way is the same: it has one for both.
            let (trl, _) = encoder.pairs(&pairs, long, Boundary::Trl).expect("tokens");
            assert_eq!(format!("{trl:?}"), format!("{tokens:?}"), "{name}");
            for pair in &tokens {
                assert_eq!((&pair.prompt, &pair.chosen), (&prompt, &answer), "{name}");
                assert_ne!(pair.rejected, pair.chosen);
            }
            // A prompt that is too long keeps its end, with the turn that is to be answered.
            let short = Lengths { prompt: 9, total: 12 };
            let (cut, count) = encoder.pairs(&pairs[..1], short, Boundary::Apart).expect("tokens");
            assert_eq!(cut[0].prompt, prompt[prompt.len() - 9..], "{name}");
            assert_eq!(cut[0].chosen, answer[..3], "{name}");
            assert_eq!((count.prompts, count.responses), (1, 2), "{name}");
        }
    }
}

fn turn(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// A model folder that has this template.
fn chat_model(folder: &Folder, template: &str) -> PathBuf {
    let model = folder.model("qwen2");
    folder.write("model/chat_template.jinja", template);
    model
}

fn sensitivity(model: &Path, data: &Path) -> CommandLine {
    irepair("sensitivity").with("--model", model).with("--data", data)
}

/// Templates of reasoning models open a thought where an answer is to come. An answer that is there
/// does not have one.
#[test]
fn a_thought_that_is_only_asked_for_is_no_part_of_the_prompt() {
    let folder = Folder::new();
    let turns = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}";
    let asks = "{% if add_generation_prompt %}<assistant><think>\n{% endif %}";
    let model = chat_model(&folder, &format!("{turns}{asks}"));
    let row = json!({
        "prompt": [turn("user", "Tea?")],
        "chosen": [turn("assistant", "Yes.")],
        "rejected": [turn("assistant", "No.")],
    });
    let plain = json!({"prompt": "<user>Tea?<assistant>", "chosen": "Yes.", "rejected": "No."});
    let numbers = |row: &Value| {
        let data = folder.write_rows("thought.jsonl", std::slice::from_ref(row));
        sensitivity(&model, &data).and("--json").ok()
    };
    assert_eq!(numbers(&row), numbers(&plain), "the same tokens");
    // What stands before the answer must be there whole.
    let begins = "{% if add_generation_prompt %}a{% else %}b{% endif %}";
    let model = chat_model(&folder, &format!("{begins}{turns}"));
    let data = folder.write_rows("before.jsonl", &[row]);
    sensitivity(&model, &data).fails(3, &["before.jsonl:1", "differently"]);
}

#[test]
fn every_command_takes_conversations() {
    let folder = Folder::new();
    let model = chat_model(&folder, &template(STRICT));
    let ask = |i: usize| turn("user", &format!("Tea at {i}?"));
    let (good, bad) = (turn("assistant", "Yes."), turn("assistant", "Never."));
    let rows: Vec<Value> =
        (0..6).map(|i| json!({"prompt": [ask(i)], "chosen": [good], "rejected": [bad]})).collect();
    let chat = folder.write_rows("chat.jsonl", &rows);
    let plain = |i| {
        json!({
            "prompt": format!("<|endoftext|>[INST] Tea at {i}? [/INST]"),
            "chosen": "Yes.<|endoftext|>",
            "rejected": "Never.<|endoftext|>",
        })
    };
    let plain = folder.write_rows("plain.jsonl", &(0..6).map(plain).collect::<Vec<_>>());
    let [of_chat, of_plain] =
        [&chat, &plain].map(|data| sensitivity(&model, data).and("--json").ok());
    assert_eq!(of_chat, of_plain, "the same tokens");

    let prompts: Vec<Value> = (0..2).map(|i| json!({"prompt": [ask(i)]})).collect();
    let prompts = folder.write_rows("prompts.jsonl", &prompts);
    let texts = |prompts: &Path, name: &str| -> Vec<Value> {
        irepair("generate -q --greedy")
            .with("--model", &model)
            .with("--prompts", prompts)
            .with("--out", folder.path(name))
            .ok();
        folder.rows(name).iter().map(|row| row["continuation"].clone()).collect()
    };
    let written = texts(&prompts, "texts.jsonl");
    assert_eq!(written, texts(&plain, "plain-texts.jsonl")[..2]);
    // Prompts are not cut to the preset's 32 tokens.
    let measured = irepair("eval -q --toxicity")
        .with("--model", &model)
        .with("--prompts", &prompts)
        .with("--out", folder.path("evaluated"))
        .ok();
    assert!(measured.contains("preset lee: 2 prompts, 1 × 20 new tokens"), "{measured}");

    let out = folder.path("out");
    irepair("repair -q --method irepair --batch-size 2 --max-steps 2 --valid-size 2")
        .and("--eval-steps 1")
        .with("--model", &model)
        .with("--data", &chat)
        .with("--out", &out)
        .ok();
    let run = folder.json("out/irepair/run.json");
    let measures = [&run["before"]["toxicity"], &run["after"]["nll_chosen"]];
    assert!(measures.iter().all(|measure| measure.is_number()), "{run}");
    assert!(out.join("chat_template.jinja").is_file());
    assert!(!out.join("irepair/prompts.jsonl").exists());
}

/// Chat models end a turn and a text with different tokens: `eos_token_id` is a list, and
/// `generation_config.json` decides.
#[test]
fn every_token_that_ends_a_text_does() {
    let folder = Folder::new();
    let model = folder.model("llama");
    let rows = golden::json("generate.json")["llama"].clone();
    let row = &rows[0];
    let new = ids(&row["new_ids"]);
    let prompts = folder.write("prompts.txt", row["prompt"].as_str().expect("a prompt"));
    let written = |name: &str, generation: &Value| {
        folder.write("model/generation_config.json", generation.to_string());
        irepair("generate -q --greedy")
            .with("--model", &model)
            .with("--prompts", &prompts)
            .with("--out", folder.path(name))
            .ok();
        folder.json(name)["continuation"].as_str().expect("a text").to_owned()
    };
    let whole = written("whole.jsonl", &json!({}));
    assert_eq!(whole, row["text"]);
    // The first token that is not that of the beginning.
    let at = new.iter().position(|id| *id != new[0]).expect("two different tokens");
    let cut = written("cut.jsonl", &json!({"eos_token_id": [0, new[at]]}));
    assert!(whole.starts_with(&cut), "{cut:?} of {whole:?}");
    assert!(cut.len() < whole.len() && !cut.is_empty(), "{cut:?} of {whole:?}");
}

#[test]
fn conversations_that_are_refused() {
    let folder = Folder::new();
    let good = json!({
        "prompt": [turn("user", "Tea?")],
        "chosen": [turn("assistant", "Yes.")],
        "rejected": [turn("assistant", "No.")],
    });
    let refuse = |template: Option<&str>, row: &Value, words: &[&str]| {
        let model = match template {
            Some(template) => chat_model(&folder, template),
            None => golden::path("qwen2"),
        };
        let data = folder.write_rows("chat.jsonl", &[good.clone(), row.clone()]);
        sensitivity(&model, &data).fails(3, words);
    };
    let words = ["chat.jsonl:1", "no chat template", "chat_template.jinja", "plain strings"];
    refuse(None, &good, &words);
    let with = |key: &str, value: Value| {
        let mut row = good.clone();
        row[key] = value;
        row
    };
    let strict = template(STRICT);
    let system = with("prompt", json!([turn("system", "Be kind."), turn("user", "Tea?")]));
    let words = ["chat.jsonl:2", "chat_template.jinja", "roles must alternate"];
    refuse(Some(&strict), &system, &words);
    let loops =
        "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
    refuse(Some(loops), &good, &["chat.jsonl:1", "does not come to an end"]);
    let grows = "{% set ns = namespace(x='ab') %}\
                 {% for a in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
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
    let model = chat_model(&folder, &template(STRICT));
    let answered = json!({"prompt": [turn("assistant", "Yes.")]});
    irepair("generate")
        .with("--model", &model)
        .with("--prompts", folder.write_rows("prompts.jsonl", &[answered]))
        .with("--out", folder.path("out.jsonl"))
        .fails(3, &["prompts.jsonl:1", "an assistant answers"]);
    let conversation = json!({"prompt": [turn("user", "Tea?")]});
    irepair("eval")
        .with("--model", &model)
        .with("--lambada", folder.write_rows("texts.jsonl", &[conversation]))
        .with("--out", folder.path("out"))
        .fails(3, &["texts.jsonl:1", "conversation"]);
}

/// Templates are told one date whatever the day, and the special tokens of both files that
/// transformers has had.
#[test]
fn dates_and_special_tokens() {
    let folder = Folder::new();
    folder.write("tokenizer.json", bytes(golden::path("llama/tokenizer.json")));
    let open = || encoder(&folder);
    let render = |template: &str, config: Value| {
        folder.write("chat_template.jinja", template);
        folder.write("tokenizer_config.json", config.to_string());
        let chat = open().expect("opens");
        chat.render(&[turn("user", "Tea?")], Ending::Prompt, &place())
    };
    let date = "{% if strftime_now is defined %}\
                {{ strftime_now('%A %a %d %B %b %m %Y %y %j %H:%M:%S 5%%') }}{% endif %}";
    let rendered = render(date, json!({})).expect("a date");
    assert_eq!(rendered, "Thursday Thu 01 January Jan 01 2026 26 001 00:00:00 5%");
    for field in ["%c", "%"] {
        let asks = format!("{{{{ strftime_now('{field}') }}}}");
        let error = render(&asks, json!({})).expect_err(field).to_string();
        let words = format!("strftime_now: {field} is not implemented (have: %%");
        assert!(error.contains(&words), "{error}");
    }
    folder.write("chat_template.jinja", "{{ 'tool_calls' in messages[0] }}");
    let silent = json!({"role": "user", "content": "Tea?", "tool_calls": null});
    let rendered = open().expect("opens").render(&[silent], Ending::Prompt, &place());
    assert_eq!(rendered.expect("a text").to_lowercase(), "false", "a null counts as left out");
    let bos = json!({"content": "<s>", "lstrip": false});
    let map = json!({"bos_token": bos, "eos_token": "<end>", "extra": ["<x>"]});
    folder.write("special_tokens_map.json", map.to_string());
    let tokens = "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}";
    let config = json!({"eos_token": "</s>", "bos_token": null, "unk_token": "<unk>"});
    assert_eq!(render(tokens, config.clone()).expect("tokens"), "<s>|<end>|<unk>");
    let mut newer = config;
    newer["added_tokens_decoder"] = json!({});
    assert_eq!(render(tokens, newer).expect("tokens"), "|</s>|<unk>");
    folder.write("special_tokens_map.json", "{");
    assert!(open().is_ok(), "what is not asked is not read");
    folder.write("tokenizer_config.json", "{}");
    let error = open().map(|_| ()).expect_err("broken").to_string();
    assert!(error.contains("special_tokens_map.json: broken JSON"), "{error}");
}
