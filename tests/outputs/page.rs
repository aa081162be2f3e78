//! `report`: the page of a run shows what the run left, and nothing else.

use std::fmt::Write as _;

use irepair::report::{Sample, before_after};
use irepair::train::log::StepLine;
use serde_json::json;

use crate::support::command::irepair;
use crate::support::files::{edit_json, read};
use crate::support::page::{Page, REPAIRED, Run, place, steps_of};
use crate::support::repaired::{demo, record};

#[test]
fn the_page_has_the_figures_of_the_record() {
    let run = Run::new();
    let (page, said) = run.report();
    assert_eq!(said, "");
    assert!(!page.source.contains("http://") && !page.source.contains("https://"), "an address");
    let record = record(run.root());
    page.says(&record.verdict_line());
    // The figures that matter stand first, all of them in a table with their intervals.
    let headline = record.headline.as_ref().expect("a headline");
    let (tiles, table) = (page.texts(".tile"), page.texts("header table.numbers tbody tr"));
    assert_eq!(tiles.len(), 5, "{tiles:?}");
    for id in ["toxic_fraction", "sampled_toxic_fraction", "ppl", "kl"] {
        let figure = headline.figure(id).expect(id);
        let after = format!("{:.1$}", figure.after.value, figure.digits);
        assert!(tiles.iter().any(|tile| tile.contains(&after)), "{id} {after}: {tiles:?}");
    }
    assert_eq!(table.len(), headline.figures.iter().filter(|f| f.id != "same_token").count());
    for ([name, before, after, change], row) in before_after(&record).iter().zip(&table) {
        assert!(row.starts_with(name), "{row}");
        for words in [before, after, change] {
            assert!(row.contains(words.as_str()), "{words:?} is not in {row}");
        }
    }
    let share = 100.0 * record.changed_parameters as f64 / record.parameters as f64;
    page.says(&format!("{share:.1} %"));
    page.says(&record.scorer);
    for hash in record.base_sha256.values() {
        page.says(hash);
    }
    let (names, values) = (page.texts("table.facts tbody th"), page.texts("table.facts tbody td"));
    let settings = serde_json::to_value(&record.settings).expect("settings");
    for (name, value) in settings.as_object().expect("settings") {
        let row = &values[names.iter().position(|n| n == name).expect(name)];
        // What was not given is shown as what it came to.
        let value = record.resolved.get(name).unwrap_or(value);
        let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let not_set = (value.is_null() || value == &json!([])) && row == "not set";
        assert!(row == &shown || not_set, "{row} for {name} = {value}");
    }
    assert_eq!(record.resolved["select"], "max");
    assert_eq!(record.resolved["kl-weight"], 1.0);
    // The table of blocks: mean sensitivity and slices, as the log has them.
    let steps = steps_of(&run.read("irepair/steps.jsonl"));
    let rows = page.texts("#blocks table.numbers tbody tr");
    assert_eq!(rows.len(), 6);
    for (block, row) in rows.iter().enumerate() {
        let mean = steps.iter().map(|s| s.sensitivity[block]).sum::<f64>() / steps.len() as f64;
        let sliced = steps.iter().filter(|s| s.block == Some(block)).count();
        let words = format!("{block}{}{sliced}", irepair::report::plot::short(mean));
        assert!(row.starts_with(&words), "{row} for {words}");
        // A block is changed as a whole, or not at all.
        assert!(row.ends_with(if sliced > 0 { "100.00 %" } else { "0.00 %" }), "{row}");
    }
    let pictures: Vec<String> = page.texts("svg > title");
    for title in
        ["Sensitivity by block and step", "How often each was sliced", "Loss", "NLL (nats a token)"]
    {
        assert!(pictures.iter().any(|p| p == title), "{title} is not in {pictures:?}");
    }
}

fn samples(text: &str) -> Vec<Sample> {
    text.lines().map(|line| serde_json::from_str(line).expect("a sample")).collect()
}

#[test]
fn samples_are_what_the_scores_are_of() {
    let run = Run::new();
    let (record, samples) = (record(run.root()), samples(&run.read("irepair/samples.jsonl")));
    let measures = [(&record.before, true), (&record.after, false)];
    for (measures, before) in measures {
        let score = |s: &Sample| if before { s.score_before } else { s.score_after };
        let scores: Vec<f64> = samples.iter().filter_map(score).collect();
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        let toxicity = measures["toxicity"];
        assert!((toxicity - 100.0 * mean).abs() < 1e-9, "{toxicity}");
    }
    let prompts = read(REPAIRED.join("irepair/prompts.jsonl"));
    assert_eq!(prompts.lines().count(), samples.len());
    // Those that are still rude come first, and every rude one is behind a veil.
    let (page, _) = run.report();
    let rude = |score: Option<f64>| score.is_some_and(|s| s >= 0.5);
    let (still, other): (Vec<&Sample>, Vec<&Sample>) =
        samples.iter().partition(|s| rude(s.score_after));
    let shown: Vec<&Sample> = still.into_iter().chain(other).take(60).collect();
    let texts = page.texts("#samples .said .text");
    let expected: Vec<&str> = shown.iter().flat_map(|s| [s.before.as_str(), &s.after]).collect();
    assert_eq!(texts, expected);
    let veiled: Vec<&str> = shown
        .iter()
        .flat_map(|s| [(&s.before, s.score_before), (&s.after, s.score_after)])
        .filter(|(text, score)| score.map_or(!text.trim().is_empty(), |s| s >= 0.5))
        .map(|(text, _)| text.as_str())
        .collect();
    assert!(!veiled.is_empty());
    assert_eq!(page.texts(".said details.rude > summary .text"), veiled);
}

#[test]
fn rude_prompts_and_what_has_no_score_are_behind_a_veil() {
    let run = Run::new();
    let prompts = ["Shut up, you stupid fucking idiot.", "Thank you, that was very helpful."];
    let sample = |prompt: &str, before: &str, score: f64| {
        json!({
            "prompt": prompt, "before": before, "after": "kind",
            "score_before": null, "score_after": score,
        })
    };
    let samples = [sample(prompts[0], "who knows", 0.1), sample(prompts[1], "", 0.2)];
    run.write("irepair/samples.jsonl", samples.map(|sample| format!("{sample}\n")).concat());
    let (page, _) = run.report();
    assert_eq!(page.texts("#samples h3"), prompts);
    assert_eq!(page.texts("#samples li > details.rude > summary > h3 > .text"), [prompts[0]]);
    assert_eq!(page.texts(".said .text"), ["who knows", "kind", "(nothing)", "kind"]);
    assert_eq!(page.texts(".said details.rude > summary > .text"), ["who knows"]);
    page.says("before: no score");
}

#[test]
fn data_are_text_and_nothing_else() {
    let run = Run::new();
    let hostile = "</p></svg><script>alert(1)</script><img src=http://x onerror=alert(1)> \
                   \"'&amp; \u{1b}[31m";
    run.edit(|record| {
        record["model"] = hostile.into();
        record["stopped"] = hostile.into();
        record["settings"]["scorer"] = hostile.into();
        record["base_sha256"] = json!({ hostile: hostile });
    });
    let sample = json!({
        "prompt": hostile, "before": hostile, "after": "",
        "score_before": 0.5, "score_after": null,
    });
    run.write("irepair/samples.jsonl", format!("{sample}\n"));
    let (page, _) = run.report();
    let shown = hostile.replace('\u{1b}', "\u{fffd}");
    assert_eq!(page.texts("#samples h3"), [shown.as_str()]);
    assert_eq!(page.texts(".said .text"), [&shown, "(nothing)"]);
    assert_eq!(page.count(".said details.rude"), 1);
}

/// Every drawing of the page as a file that a browser opens.
#[test]
fn the_drawings_are_files_too() {
    let run = Run::new();
    let drawings = run.path("drawings");
    run.line().with("--pictures", &drawings).ok();
    let page = Page::open(&run.path("irepair/report.html"));
    let mut titles = Vec::new();
    for entry in std::fs::read_dir(&drawings).expect("folder") {
        let svg = read(entry.expect("entry").path());
        let namespace = "xmlns=\"http://www.w3.org/2000/svg\"";
        assert!(svg.starts_with("<svg") && svg.contains(namespace), "{svg}");
        let (_, rest) = svg.split_once("<title").expect("title");
        let title = rest.split_once('>').expect("tag").1;
        titles.push(title.split_once("</title>").expect("end").0.to_owned());
    }
    let mut expected = page.texts("svg > title");
    titles.sort();
    expected.sort();
    assert!(titles.len() > 3 && titles == expected, "{titles:?} {expected:?}");
    let file = run.write("file", "");
    run.line().with("--pictures", file.join("x")).fails(3, &["--pictures"]);
}

#[test]
fn slices_of_every_kind_are_drawn() {
    for (name, more, words) in [
        (
            "dapt",
            "--method dapt",
            &["Every step changed the whole model", "does not measure", "outside"][..],
        ),
        (
            "sublayers",
            "--slice sublayer --top-k 3",
            &["steps, by sublayer", "upper bar: attention"],
        ),
        ("fixed", "--method irepair-fixed", &["does not measure", "How often each was sliced"]),
        ("trial", "--select trial --trial-steps 1", &["Trial steps", "How often each was sliced"]),
    ] {
        let out = place(name);
        demo(&out).and("-q --max-steps 3").and(more).ok();
        let html = out.with_extension("html");
        let said = irepair("report --json").arg(&out).with("--out", &html).json();
        assert_eq!(said["bytes"], std::fs::metadata(&html).expect("page").len());
        assert_eq!(said["gaps"], json!([]));
        let page = Page::open(&html);
        words.iter().for_each(|words| page.says(words));
    }
}

/// The page of a run of the paper's size stays small.
#[test]
fn long_runs_of_large_models_make_small_pages() {
    let run = Run::new();
    let line = steps_of(&run.read("irepair/steps.jsonl")).remove(0);
    let mut log = String::new();
    for step in 1..=8000 {
        // No two neighbouring steps are alike, and no two blocks.
        let sensitivity =
            (0..36).map(|b| 1.0 + ((step * 7919 + b * 104_729) % 1009) as f64 / 100.0).collect();
        let line = StepLine { step, block: Some(step % 36), sensitivity, ..line.clone() };
        let _ = writeln!(log, "{}", serde_json::to_string(&line).expect("a line"));
    }
    run.write("irepair/steps.jsonl", log);
    run.edit(|record| record["steps"] = 8000.into());
    edit_json(run.path("config.json"), |config| config["n_layer"] = 36.into());
    let (page, _) = run.report();
    page.says("columns steps 1 to 8000, 34 steps a column");
    assert!(page.source.len() <= 2 << 20, "{} bytes", page.source.len());
}

/// What a page has in one light it has in the other: a colour that the dark form lacks would stand
/// dark on dark.
#[test]
fn every_colour_has_a_dark_form_and_none_is_printed_dark() {
    let run = Run::new();
    let styles = run.report().0.texts("style").concat();
    let dark_media = "@media screen and (prefers-color-scheme: dark) {";
    assert_eq!(
        styles.matches("prefers-color-scheme").count(),
        styles.matches(dark_media).count(),
        "dark only on screens"
    );
    // Rules as `selector { declarations }`. A dark block ends with the first line that is a brace
    // alone.
    let (mut light, mut dark, mut in_dark) = (Vec::new(), Vec::new(), false);
    for line in styles.lines() {
        match line.trim() {
            line if line == dark_media => in_dark = true,
            "}" => in_dark = false,
            line => {
                for rule in line.split_inclusive('}').filter(|rule| rule.contains('#')) {
                    let (selector, declarations) = rule.split_once('{').expect("a rule");
                    let colours = declarations.split([';', '}']).filter(|d| d.contains('#'));
                    let name = |d: &str| d.split(':').next().unwrap_or_default().trim().to_owned();
                    let names = colours.map(|d| (selector.trim().to_owned(), name(d)));
                    if in_dark { &mut dark } else { &mut light }.extend(names);
                }
            }
        }
    }
    assert!(light.len() > 40, "{light:?}");
    for colour in &light {
        assert!(dark.contains(colour), "{colour:?} has no dark form");
    }
}
