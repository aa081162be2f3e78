//! `try` and `generate` on a terminal: what two models say, without a file in between.

use serde_json::json;

use crate::support::command::irepair;
use crate::support::files::{Folder, rows};
use crate::support::golden;
use crate::support::repaired::demo;

#[test]
fn two_models_are_shown_side_by_side() {
    let folder = Folder::new();
    let out = folder.path("out");
    demo(&out).and("-q --max-steps 2 --eval-samples 0").ok();
    let tried = |more: &str| irepair("try demo -q").arg(&out).and(more);
    // Without prompts of their own: the first that the repair held back.
    let shown = tried("--json --samples 3").json();
    let prompts = shown["prompts"].as_array().expect("prompts");
    let held_back = rows(out.join("irepair/prompts.jsonl"));
    assert_eq!(prompts.len(), 3);
    let samples = rows(out.join("irepair/samples.jsonl"));
    for (index, prompt) in prompts.iter().enumerate() {
        assert_eq!(prompt["prompt"], held_back[index]["prompt"]);
        for (side, when) in [("base", "before"), ("repaired", "after")] {
            let said = prompt[side].as_array().expect("texts");
            let sampled: Vec<bool> =
                said.iter().map(|text| text["sampled"] == json!(true)).collect();
            assert_eq!(sampled, [false, true, true, true]);
            // The same model says the same, greedily: here it goes on for longer.
            let text = said[0]["text"].as_str().expect("text");
            let begins = samples[index][when].as_str().expect("text");
            assert!(text.starts_with(begins), "{side} {index}: {text:?} for {begins:?}");
        }
    }
    // What is rude is veiled unless it is asked for; the score says that there is something.
    let rude = prompts[0]["base"][0]["text"].as_str().expect("text");
    assert!(prompts[0]["base"][0]["score"].as_f64() >= Some(0.5), "{shown}");
    let word = rude.split_whitespace().max_by_key(|word| word.len()).expect("a word");
    let veiled = tried("--limit 1").ok();
    assert!(!veiled.contains(word) && veiled.contains('▒'), "{word:?} is in {veiled}");
    let unveiled = tried("--limit 1 --show").ok();
    assert!(unveiled.contains(word) && !unveiled.contains('▒'), "{word:?} is not in {unveiled}");
    let typed = tried("--samples 1").with("--prompt", "Why is it late?").ok();
    assert!(typed.contains("> Why is it late?") && typed.contains("greedy"), "{typed}");
    irepair("try -q").arg(golden::path("gpt2")).arg(golden::path("gpt2")).fails(2, &["--prompt"]);
    irepair("try demo").fails(2, &["REPAIRED"]);
    irepair("try demo demo --samples 1000000001").fails(3, &["--samples"]);
}

/// An instruct model is asked as its users ask it.
#[test]
fn chat_templates_are_applied() {
    let folder = Folder::new();
    let model = folder.model("qwen2");
    let template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} tea";
    folder.write("model/chat_template.jinja", template);
    let line = irepair("try --json --samples 0").arg(&model).arg(&model);
    let line = line.with("--prompt", "Tea at noon");
    let said = |more: &str, words: &str| {
        let output = line.clone().and(more).run();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && error.contains(words), "{error}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")["prompts"][0]
            ["base"]
            .clone()
    };
    let asked = said("", "a prompt is what a user says");
    let plain = said("--plain", "continued as they are");
    let generate = |prompt: &str| {
        let line = irepair("generate --greedy --json --max-new-tokens 30").with("--model", &model);
        line.with("--prompt", prompt)
    };
    let texts = ["[user] Tea at noon tea", "Tea at noon"].map(|prompt| {
        let row: serde_json::Value = serde_json::from_str(&generate(prompt).ok()).expect("a row");
        row["continuation"].clone()
    });
    assert_eq!([&asked[0]["text"], &plain[0]["text"]], [&texts[0], &texts[1]]);
    // `generate` goes on with a plain prompt as it is, and says so.
    let warned = generate("Tea at noon").warns();
    assert!(warned.contains("has a chat template, and 1 of 1 prompts are plain"), "{warned}");
}

#[test]
fn texts_go_to_the_terminal_without_a_file() {
    let line = irepair("generate -q --samples 2 --seed 5 --scorer words");
    let line = line.with("--prompt", "Why is it late?").with("--prompt", "Tea at noon");
    let shown = line.ok();
    let prompts: Vec<&str> = shown.lines().filter(|line| line.starts_with("> ")).collect();
    assert_eq!(prompts, ["> Why is it late?", "> Tea at noon"]);
    assert_eq!(shown.lines().count(), 6, "{shown}");
    // The same texts as in a file.
    let folder = Folder::new();
    let out = folder.path("texts.jsonl");
    line.clone().with("--out", &out).ok();
    let printed = line.and("--json").ok();
    assert_eq!(printed, std::fs::read_to_string(out).expect("texts"));
    irepair("generate --overwrite --prompt x").fails(2, &["--out"]);
    irepair("generate --prompt x --prompts y").fails(2, &["--prompts"]);
    irepair("generate --prompt x -m one --model two").fails(2, &["irepair try BASE REPAIRED"]);
}
