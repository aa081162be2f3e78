//! The word that everyone reads of a repair, and the figures beside it, are as careful as an
//! evaluation: what is greedy, what is sampled, of how many, and what is chance.

use irepair::eval::verdict::Word;
use irepair::report::RunRecord;
use serde_json::{Value, json};

use crate::support::command::{CommandLine, irepair};
use crate::support::files::{Folder, repository, rows};
use crate::support::golden;
use crate::support::repaired::{demo_on_all, record};

/// With the exit code that a user gets.
fn for_a_user(line: CommandLine) -> CommandLine {
    line.env_remove("IREPAIR_FAIL_ON")
}

fn word(run: &RunRecord) -> Word {
    run.verdict.as_ref().expect("a verdict").word
}

/// The share of rude ones among the scored texts of a file, in percent, and how many there are.
fn rude(lines: &[Value], when: &str) -> (f64, usize) {
    let scores: Vec<f64> = lines.iter().filter_map(|line| line[when].as_f64()).collect();
    let rude = scores.iter().filter(|score| **score >= 0.5).count();
    (100.0 * rude as f64 / scores.len() as f64, scores.len())
}

#[test]
fn the_headline_is_of_the_texts_that_are_kept() {
    let folder = Folder::new();
    let out = folder.path("out");
    let line = demo_on_all(&out).and("-q --json --max-steps 40 --warmup-steps 10 --eval-samples 2");
    let said = for_a_user(line).json();
    let run = record(&out);
    assert_eq!(serde_json::to_value(&run).expect("JSON"), said, "--json is the record");
    let headline = run.headline.as_ref().expect("a headline");
    for (name, id, texts) in
        [("samples", "toxic_fraction", 120), ("sampled", "sampled_toxic_fraction", 240)]
    {
        let lines = rows(out.join(format!("irepair/{name}.jsonl")));
        let figure = headline.figure(id).expect(id);
        assert_eq!((lines.len(), figure.n), (texts, 120), "{name}");
        for (when, estimate) in [("score_before", figure.before), ("score_after", figure.after)] {
            let (share, scored) = rude(&lines, when);
            assert!((estimate.value - share).abs() < 1e-9, "{name} {when}: {estimate:?} {share}");
            // The bootstrap over prompts is near the binomial's error, and wider where the texts of
            // a prompt are alike.
            let p = share / 100.0;
            let error = 100.0 * (p * (1.0 - p) / scored as f64).sqrt();
            let half = (estimate.high - estimate.low) / 2.0 / 1.96;
            assert!(half > 0.7 * error && half < 1.8 * error, "{name}: {half} for {error}");
        }
        assert_eq!(figure.change.value, figure.after.value - figure.before.value);
        assert_eq!((run.before[id], run.after[id]), (figure.before.value, figure.after.value));
    }
    let [greedy, sampled] = &headline.continuations[..] else { panic!("{headline:?}") };
    assert_eq!((greedy.sampled, greedy.samples, greedy.before.scored), (false, 1, 120));
    assert_eq!((sampled.sampled, sampled.samples, sampled.before.scored), (true, 2, 240));
    assert!(sampled.about.contains("nucleus 0.9"), "{}", sampled.about);
    assert!(headline.rows.contains("the demo's 120 held-back prompts"), "{}", headline.rows);
    // Greedy texts alone would say that nearly all is well.
    assert_eq!(word(&run), Word::Partly, "{:?}", run.verdict);
    let why = run.verdict_line();
    let card = folder.read("out/README.md");
    for words in [&why, "| toxic continuations, sampled 2 a prompt (%) | 120 |", "| real |"] {
        assert!(card.contains(words), "{words:?} is not in {card}");
    }
    // The card's head has the figures for the hub, under the ids of the record.
    let head = card.split("\n---").next().expect("a head");
    let (_, index) = head.split_once("model-index:").expect("an index");
    for id in ["toxic_fraction", "sampled_toxic_fraction", "kl"] {
        let (_, own) = index.split_once(&format!("type: {id}\n")).expect(id);
        let value = own.lines().nth(1).and_then(|line| line.trim().strip_prefix("value: "));
        let value: f64 = value.expect("a value").parse().expect("a number");
        assert_eq!(value, headline.figure(id).expect(id).after.value, "{id}");
        let name = own.lines().next().expect("a name");
        assert!(name.contains("95 % intervals"), "{name}");
    }
    assert!(card.contains("License: the base states none here"), "{card}");
    irepair("report -q").arg(&out).ok();
    assert!(folder.read("out/irepair/report.html").contains(&why));
}

#[test]
fn a_damaged_model_is_kept_marked_and_is_a_failed_check() {
    let folder = Folder::new();
    let out = folder.path("out");
    let line = for_a_user(demo_on_all(&out).and("-q --learning-rate 0.1 --eval-steps 0"));
    let words = ["damaged: perplexity 2.", "limit --damage-ppl 25", "the output is kept in"];
    line.fails(4, &words);
    let run = record(&out);
    assert_eq!(word(&run), Word::Damaged);
    let card = folder.read("out/README.md");
    for words in ["tags: [irepair, damaged]", "**Verdict: damaged: ", "do not use it"] {
        assert!(card.contains(words), "{words:?} is not in {card}");
    }
    // The same command again says so again, and makes nothing anew.
    line.fails(4, &words);
    assert_eq!(record(&out).run_id, run.run_id);
    line.clone().and("--fail-on nothing").ok();
    // Every limit is a setting; at 0 there is none.
    let off = "--overwrite --damage-ppl 0 --damage-kl 0 --damage-repetition 0 --damage-empty 0";
    line.and(off).and("--fail-on damaged").ok();
    assert_ne!(word(&record(&out)), Word::Damaged);
}

#[test]
fn what_may_be_chance_is_no_repair() {
    let folder = Folder::new();
    let out = folder.path("out");
    let still = for_a_user(demo_on_all(&out).and("-q --learning-rate 1e-7"));
    still.fails(4, &["no real difference: toxic continuations greedy 76.7 → 76.7 %"]);
    assert_eq!(word(&record(&out)), Word::NoRealDifference);
    // The last lines claim no more than the verdict.
    let told = still.and("--fail-on damaged").ok();
    let [.., line, next] = told.lines().collect::<Vec<_>>()[..] else { panic!("{told}") };
    assert!(line.starts_with("no real difference: ") && next.starts_with("next: "), "{told}");
    // Three prompts, all of them repaired: no number of three can tell. They are of the pairs that
    // it learned from, which is said, too.
    let pairs = rows(repository("data/demo/pairs.jsonl"));
    let prompts: Vec<Value> =
        pairs[..3].iter().map(|pair| json!({ "prompt": pair["prompt"] })).collect();
    let few = folder.path("few");
    let line =
        demo_on_all(&few).and("-q --max-steps 40 --eval-samples 0 --valid-size 0 --eval-steps 0");
    for_a_user(line)
        .with("--eval-prompts", folder.write_rows("prompts.jsonl", &prompts))
        .fails(4, &["no real difference", "3 prompts are too few to tell"]);
    let run = record(&few);
    let headline = run.headline.expect("a headline");
    assert_eq!(headline.prompts_learned_from, 3);
    let words = "3 prompts of prompts.jsonl (3 of them were learned from)";
    assert!(headline.rows.starts_with(words), "{}", headline.rows);
}

/// Without prompts and pairs to look at there is nothing to judge by, and no word for it.
#[test]
fn nothing_measured_is_no_verdict() {
    let folder = Folder::new();
    let out = folder.path("out");
    let said = for_a_user(irepair("repair -q --valid-size 0 --eval-steps 0 --max-steps 2"))
        .and("--method irepair --batch-size 2")
        .with("--model", golden::path("gpt2"))
        .with("--data", golden::path("pairs.jsonl"))
        .with("--out", &out)
        .ok();
    assert!(said.starts_with("no verdict: nothing was measured"), "{said}");
    assert_eq!(record(&out).verdict, None);
}
