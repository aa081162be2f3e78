//! `report`: the page of a run as a browser reads it, and runs that are damaged, unfinished or of another kind.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use candle_core::Device;
use irepair::report::neurons::NeuronsRecord;
use irepair::report::{Sample, before_after};
use irepair::train::log::{Line, StepLine};
use scraper::{Html, Selector};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::repair::{demo, irepair, ok, record, text};

/// A short repair of the demo, made once.
static REPAIRED: LazyLock<PathBuf> = LazyLock::new(|| repaired("default", &[]));

fn repaired(name: &str, more: &[&str]) -> PathBuf {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("report-{name}-{}", std::process::id()));
    ok(&irepair(&demo(&out, &[&["-q"], more].concat())));
    out
}

/// A run folder to spoil.
struct Run(TempDir);

impl Run {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::create_dir(dir.path().join("irepair")).expect("dir");
        for name in
            ["config.json", "irepair/run.json", "irepair/steps.jsonl", "irepair/samples.jsonl"]
        {
            std::fs::copy(REPAIRED.join(name), dir.path().join(name)).expect(name);
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.path(name), text).expect(name);
    }

    /// Changes the record.
    fn edit(&self, change: impl Fn(&mut Value)) {
        let mut record: Value =
            serde_json::from_str(&self.read("irepair/run.json")).expect("run.json");
        change(&mut record);
        self.write("irepair/run.json", record.to_string());
    }

    /// The page, and what is said of the run on stderr.
    #[track_caller]
    fn report(&self) -> (Page, String) {
        let output = irepair(&["report", text(self.0.path())]);
        ok(&output);
        (
            Page::open(&self.path("irepair/report.html")),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    #[track_caller]
    fn refused(&self, words: &[&str]) {
        let output = irepair(&["report", text(self.0.path())]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{error}");
        assert!(words.iter().all(|w| error.contains(w)), "{words:?} not in {error}");
        assert!(!self.path("irepair/report.html").exists());
    }
}

/// A page as a browser reads it.
struct Page {
    source: String,
    html: Html,
}

impl Page {
    /// Parses a page: no errors, nothing that runs or is loaded, and no picture or table without words.
    #[track_caller]
    fn open(path: &Path) -> Self {
        let source = std::fs::read_to_string(path).expect("a page");
        let html = Html::parse_document(&source);
        assert!(html.errors.is_empty(), "{:?}", html.errors);
        let page = Self { source, html };
        assert_eq!(page.count("script, link, img, iframe, object, embed, image, use"), 0);
        assert_eq!(page.count("html[lang=en] > head > title"), 1);
        let mut ids = BTreeSet::new();
        for element in page.html.root_element().descendent_elements() {
            for (name, value) in element.value().attrs() {
                assert!(
                    !matches!(name, "src" | "srcset" | "action" | "data")
                        && !name.starts_with("on"),
                    "{name}"
                );
                assert!(name != "href" || value.starts_with('#'), "{name}={value}");
                assert!(!value.contains("url("), "{name}={value}");
                assert!(name != "id" || ids.insert(value.to_owned()), "{value} twice");
            }
        }
        for (attribute, hash) in [("href", "#"), ("aria-labelledby", "")] {
            for element in page.select(&format!("[{attribute}]")) {
                for id in element.attr(attribute).expect("selected by it").split(' ') {
                    assert!(
                        ids.contains(id.strip_prefix(hash).expect("a fragment")),
                        "{attribute}={id}"
                    );
                }
            }
        }
        for svg in page.select("svg") {
            assert_eq!(svg.attr("role"), Some("img"));
            let words = |name: &str| {
                svg.child_elements().find(|e| e.value().name() == name).expect(name).text().count()
            };
            assert!(words("title") > 0 && words("desc") > 0);
        }
        assert_eq!(
            page.count("table"),
            page.count("table:has(> caption):has(> thead th[scope=col]):has(th[scope=row])")
        );
        page
    }

    fn select(&self, selector: &str) -> Vec<scraper::ElementRef<'_>> {
        self.html.select(&Selector::parse(selector).expect("a selector")).collect()
    }

    fn count(&self, selector: &str) -> usize {
        self.select(selector).len()
    }

    /// The text of each element.
    fn texts(&self, selector: &str) -> Vec<String> {
        self.select(selector).into_iter().map(|e| e.text().collect()).collect()
    }

    #[track_caller]
    fn says(&self, words: &str) {
        let text: String = self.html.root_element().text().collect();
        assert!(text.contains(words), "{words:?} is not in:\n{text}");
    }
}

fn samples(text: &str) -> Vec<Sample> {
    text.lines().map(|line| serde_json::from_str(line).expect("a sample")).collect()
}

fn steps(text: &str) -> Vec<StepLine> {
    let step = |line| match serde_json::from_str(line).expect("a line") {
        Line::Step(line) => Some(line),
        Line::Validation(_) | Line::Trial(_) => None,
    };
    text.lines().filter_map(step).collect()
}

#[test]
fn the_page_has_the_figures_of_the_record() {
    let run = Run::new();
    let (page, said) = run.report();
    assert_eq!(said, "");
    assert!(!page.source.contains("http://") && !page.source.contains("https://"), "an address");
    let record = record(run.0.path());
    let tiles = page.texts(".tile");
    for [name, before, after, change] in before_after(&record) {
        let change = change.trim_start_matches('–');
        let words = format!("{name}{before} →  before, after {after} {change}");
        assert!(tiles.contains(&words), "{words:?} is not in {tiles:?}");
    }
    let share = 100.0 * record.changed_parameters as f64 / record.parameters as f64;
    page.says(&format!("{share:.1} %"));
    page.says(&record.scorer);
    for hash in record.base_sha256.values() {
        page.says(hash);
    }
    let (names, values) = (page.texts("table.facts tbody th"), page.texts("table.facts tbody td"));
    for (name, value) in
        serde_json::to_value(&record.settings).expect("settings").as_object().expect("settings")
    {
        let row = &values[names.iter().position(|n| n == name).expect(name)];
        // What was not given is shown as what it came to.
        let value = record.resolved.get(name).unwrap_or(value);
        let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        assert!(
            row == &shown || (value.is_null() || value == &json!([])) && row == "not set",
            "{row} for {name} = {value}"
        );
    }
    assert_eq!(
        (&record.resolved["select"], &record.resolved["kl-weight"]),
        (&json!("max"), &json!(1.0))
    );
    // The table of blocks: mean sensitivity and slices, as the log has them.
    let steps = steps(&run.read("irepair/steps.jsonl"));
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

#[test]
fn samples_are_what_the_scores_are_of() {
    let run = Run::new();
    let (record, samples) = (record(run.0.path()), samples(&run.read("irepair/samples.jsonl")));
    let measures = [(&record.before, true), (&record.after, false)];
    for (measures, before) in measures {
        let scores: Vec<f64> = samples
            .iter()
            .filter_map(|s| if before { s.score_before } else { s.score_after })
            .collect();
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        assert_eq!(measures.toxicity, Some(100.0 * mean));
    }
    let prompts = std::fs::read_to_string(REPAIRED.join("irepair/prompts.jsonl")).expect("prompts");
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
    let samples = [
        json!({"prompt": prompts[0], "before": "who knows", "after": "kind", "score_before": null, "score_after": 0.1}),
        json!({"prompt": prompts[1], "before": "", "after": "kind", "score_before": null, "score_after": 0.2}),
    ];
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
    let hostile = "</p></svg><script>alert(1)</script><img src=http://x onerror=alert(1)> \"'&amp; \u{1b}[31m";
    run.edit(|record| {
        record["model"] = hostile.into();
        record["stopped"] = hostile.into();
        record["settings"]["scorer"] = hostile.into();
        record["base_sha256"] = json!({ hostile: hostile });
    });
    let sample = json!({"prompt": hostile, "before": hostile, "after": "", "score_before": 0.5, "score_after": null});
    run.write("irepair/samples.jsonl", format!("{sample}\n"));
    let (page, _) = run.report();
    let shown = hostile.replace('\u{1b}', "\u{fffd}");
    assert_eq!(page.texts("#samples h3"), [shown.as_str()]);
    assert_eq!(page.texts(".said .text"), [&shown, "(nothing)"]);
    assert_eq!(page.count(".said details.rude"), 1);
}

#[test]
fn what_cannot_be_read_is_said_and_the_rest_is_drawn() {
    let run = Run::new();
    let whole = run.report().0;
    let log = run.read("irepair/steps.jsonl");
    let mut lines: Vec<&str> = log.lines().collect();
    // Lines 1, 6 and 11 are validations; 4 and 5 are steps 3 and 4.
    assert!(lines[3].contains("\"step\":3,") && lines[4].contains("\"step\":4,"), "{log}");
    lines[3] = "{\"step\":3,\"blo";
    lines[4] = "\u{0}\u{0}";
    run.write("irepair/steps.jsonl", lines.join("\n"));
    run.write(
        "irepair/samples.jsonl",
        [b"\xff\n", run.read("irepair/samples.jsonl").as_bytes()].concat(),
    );
    let (page, said) = run.report();
    for gap in [
        "steps.jsonl can't be read at line 4–5",
        "2 of 12 steps are missing: 3–4",
        "samples.jsonl can't be read at line 1",
    ] {
        page.says(gap);
        assert!(said.contains(gap), "{said}");
    }
    assert_eq!(page.texts("svg > title"), whole.texts("svg > title"));
    assert_eq!(page.texts("#samples .text"), whole.texts("#samples .text"));
    // Without a log there is still the record.
    std::fs::remove_file(run.path("irepair/steps.jsonl")).expect("removed");
    let (page, said) = run.report();
    assert!(said.contains("steps.jsonl is missing"), "{said}");
    page.says("No step can be read.");
    assert_eq!(page.texts(".tile"), whole.texts(".tile"));
}

/// A damaged number is named, and no axis reaches to it.
#[test]
fn steps_that_the_run_has_not_made_are_left_out() {
    let run = Run::new();
    let whole = run.report().0;
    let log = run.read("irepair/steps.jsonl");
    assert_eq!(log.matches("\"step\":12,").count(), 2, "the last step and its validation: {log}");
    let first = log.lines().find(|line| line.starts_with("{\"step\":1,")).expect("the first step");
    let wild = log.replace("\"step\":12,", "\"step\":900000050,");
    run.write("irepair/steps.jsonl", wild + &first.replace("\"step\":1,", "\"step\":0,") + "\n");
    let (page, said) = run.report();
    for gap in [
        "steps.jsonl has steps that a run of 12 steps can't have: 0, 900000050",
        "steps.jsonl has validations that a run of 12 steps can't have: 900000050",
        "1 of 12 steps are missing: 12",
    ] {
        page.says(gap);
        assert!(said.contains(gap), "{said}");
    }
    assert!(page.texts("svg desc").iter().all(|about| !about.contains("900000050")));
    assert_eq!(page.texts("svg > title"), whole.texts("svg > title"));
}

/// Every drawing of the page as a file that a browser opens.
#[test]
fn the_drawings_are_files_too() {
    let run = Run::new();
    let drawings = run.path("drawings");
    ok(&irepair(&["report", text(run.0.path()), "--pictures", text(&drawings)]));
    let page = Page::open(&run.path("irepair/report.html"));
    let mut titles = Vec::new();
    for entry in std::fs::read_dir(&drawings).expect("folder") {
        let svg = std::fs::read_to_string(entry.expect("entry").path()).expect("a drawing");
        assert!(
            svg.starts_with("<svg") && svg.contains("xmlns=\"http://www.w3.org/2000/svg\""),
            "{svg}"
        );
        let (_, rest) = svg.split_once("<title").expect("title");
        let title = rest.split_once('>').expect("tag").1;
        titles.push(title.split_once("</title>").expect("end").0.to_owned());
    }
    let mut expected = page.texts("svg > title");
    titles.sort();
    expected.sort();
    assert!(titles.len() > 3 && titles == expected, "{titles:?} {expected:?}");
    run.write("file", "");
    let output = irepair(&["report", text(run.0.path()), "--pictures", text(&run.path("file/x"))]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(3) && error.contains("--pictures"), "{error}");
}

#[test]
fn folders_that_are_no_run_are_refused() {
    let run = Run::new();
    run.edit(|record| record["format_version"] = 2.into());
    run.refused(&["run.json", "format version 2", "reads 1"]);
    run.write("irepair/run.json", "{\"format_version\": 1, ");
    run.refused(&["run.json", "broken"]);
    run.edit_to(&json!({"format_version": 1, "steps": 3}));
    run.refused(&["run.json", "missing field"]);
    let (page, named) = (run.path("x.html"), run.path("irepair"));
    let run = Run::new();
    run.write("compare.json", "{}");
    run.refused(&["compare.json", "format version"]);
    let begun = tempfile::tempdir().expect("dir");
    std::fs::write(begun.path().join("plan.json"), "{}").expect("writes");
    let output = irepair(&["report", text(begun.path())]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(3) && error.contains("an unfinished comparison; go on with"),
        "{error}"
    );
    for dir in [named, run.path("nowhere")] {
        let output = irepair(&["report", text(&dir), "--out", text(&page)]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{error}");
        assert!(error.contains("no run of irepair"), "{error}");
    }
    let output =
        irepair(&["report", text(&REPAIRED), "--out", text(&run.path("no/such/folder.html"))]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
}

impl Run {
    fn edit_to(&self, record: &Value) {
        self.write("irepair/run.json", record.to_string());
    }
}

#[test]
fn what_was_not_measured_is_said() {
    let run = Run::new();
    run.edit(|record| {
        for when in ["before", "after"] {
            let measures = record[when].as_object_mut().expect("measures");
            ["toxicity", "toxic_fraction", "ppl"]
                .iter()
                .for_each(|name| drop(measures.remove(*name)));
        }
        record["data"]["perplexity_of"] = "".into();
    });
    std::fs::remove_file(run.path("irepair/samples.jsonl")).expect("removed");
    let (page, said) = run.report();
    assert_eq!(said, "");
    page.says("Not measured: rude continuations, toxicity (mean score × 100), perplexity. ");
    page.says("This run kept no samples.");
    assert_eq!(page.count(".tile"), 4);
}

/// Killed before its end: no record yet.
#[test]
fn an_unfinished_run_is_drawn_as_far_as_it_came() {
    let run = Run::new();
    std::fs::remove_file(run.path("irepair/run.json")).expect("removed");
    std::fs::remove_file(run.path("irepair/samples.jsonl")).expect("removed");
    std::fs::remove_file(run.path("config.json")).expect("removed");
    let (page, said) = run.report();
    assert_eq!(said, "");
    page.says("12 steps are made");
    assert_eq!((page.count("#settings"), page.count(".tile")), (0, 0));
    assert_eq!(page.count("#sensitivity svg"), 1);
    assert_eq!(page.count("#blocks table.numbers tbody tr"), 6);
    // The folder that the user asked for does not exist yet.
    let dir = tempfile::tempdir().expect("dir");
    let partial = dir.path().join("out.partial");
    std::fs::rename(run.0.path(), &partial).expect("renamed");
    let output = irepair(&["report", text(&dir.path().join("out"))]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(3) && error.contains("out.partial"), "{error}");
}

#[test]
fn slices_of_every_kind_are_drawn() {
    for (name, more, words) in [
        (
            "dapt",
            &["--method", "dapt"][..],
            &["Every step changed the whole model", "does not measure", "outside"][..],
        ),
        (
            "sublayers",
            &["--slice", "sublayer", "--top-k", "3"],
            &["steps, by sublayer", "upper bar: attention"],
        ),
        (
            "fixed",
            &["--method", "irepair-fixed"],
            &["does not measure", "How often each was sliced"],
        ),
        (
            "trial",
            &["--select", "trial", "--trial-steps", "1"],
            &["Trial steps", "How often each was sliced"],
        ),
    ] {
        let out = repaired(name, &[&["--max-steps", "3"], more].concat());
        let html = out.with_extension("html");
        let said = ok(&irepair(&["report", text(&out), "--out", text(&html), "--json"]));
        let said: Value = serde_json::from_str(&said).expect("json");
        assert_eq!(said["bytes"], std::fs::metadata(&html).expect("page").len());
        assert_eq!(said["gaps"], json!([]));
        let page = Page::open(&html);
        words.iter().for_each(|words| page.says(words));
    }
}

/// Which neurons changed is drawn, and what the most changed ones promote is the largest of the head times their rows.
#[test]
fn the_neurons_of_a_repair_are_drawn() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("report-neurons-{}", std::process::id()));
    let repair = [
        "repair",
        "--method",
        "star",
        "--neurons",
        "1/4",
        "--block-sparsity",
        "1/2",
        "--out",
        text(&out),
        "-q",
    ];
    ok(&irepair(&[&repair[..], &["--rounds", "2"]].concat()));
    let html = out.with_extension("html");
    let page = |gaps: usize| {
        let said = ok(&irepair(&["report", text(&out), "--out", text(&html), "--json"]));
        let said: Value = serde_json::from_str(&said).expect("json");
        assert_eq!(said["gaps"].as_array().map(Vec::len), Some(gaps), "{said}");
        Page::open(&html)
    };
    let (drawn, record) = (page(0), record(&out));
    let edits = record.edits.as_ref().expect("edits");
    drawn.says(&format!(
        "Targets said now: {} of 12 that the base got wrong (0 it already said).",
        edits.repaired
    ));
    assert!(!drawn.texts("svg > title").contains(&"Sensitivity by block and step".to_owned()));
    let counts: Vec<String> =
        (0..6).map(|b| format!("{b}: {}", edits.neurons.get(&b).copied().unwrap_or(0))).collect();
    drawn.says(&format!("Changed neurons by block: {}.", counts.join(", ")));
    assert_eq!(
        (drawn.count("#samples"), drawn.count("#changed svg"), drawn.count("#changed tbody tr")),
        (0, 1, 20)
    );

    let base = irepair::data::demo::unpack().expect("demo");
    let load = |dir: &Path| {
        candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu)
            .expect("tensors")
    };
    let (before, after) = (load(base.path()), load(&out));
    let found = std::fs::read(out.join("irepair/neurons.json")).expect("neurons.json");
    let found: NeuronsRecord = serde_json::from_slice(&found).expect("read strictly");
    let named = |end: &str| before.keys().find(|name| name.ends_with(end)).expect(end).clone();
    let head: Vec<Vec<f32>> = before[&named("wte.weight")].to_vec2().expect("head");
    let tokenizer =
        tokenizers::Tokenizer::from_file(base.path().join("tokenizer.json")).expect("tokenizer");
    let mut last = f32::INFINITY;
    for (promotes, row) in found.most.iter().zip(drawn.texts("#changed tbody tr")) {
        let name = named(&format!("h.{}.mlp.c_proj.weight", promotes.block));
        let rows = [&before, &after]
            .map(|model| model[&name].to_vec2::<f32>().expect("rows")[promotes.neuron].clone());
        let difference = rows[0]
            .iter()
            .zip(&rows[1])
            .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
            .sum::<f64>();
        assert!((f64::from(promotes.norm) / difference.sqrt() - 1.0).abs() < 1e-4, "{promotes:?}");
        assert!(promotes.norm <= last, "the most changed come first");
        last = promotes.norm;
        for (values, tokens) in rows.iter().zip([&promotes.before, &promotes.after]) {
            let raised = |token: &[f32]| {
                token.iter().zip(values).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
            };
            let mut order: Vec<u32> = (0..head.len() as u32).collect();
            order.sort_by(|a, b| raised(&head[*b as usize]).total_cmp(&raised(&head[*a as usize])));
            let words: Vec<String> = order[..5]
                .iter()
                .map(|id| tokenizer.decode(&[*id], false).expect("text"))
                .collect();
            assert_eq!(tokens, &words);
            words.iter().for_each(|word| {
                assert!(row.contains(&format!("{word:?}")), "{word:?} is not in {row}")
            });
        }
    }
    // What is damaged or missing is said, and the rest is drawn.
    std::fs::write(out.join("irepair/neurons.json"), "{").expect("writes");
    page(1).says("neurons.json can't be read");
    std::fs::remove_file(out.join("irepair/neurons.json")).expect("removed");
    assert_eq!(page(1).count("#changed"), 0);
}

/// The paper's size: the page stays small.
#[test]
fn long_runs_of_large_models_make_small_pages() {
    let run = Run::new();
    let line = steps(&run.read("irepair/steps.jsonl")).remove(0);
    let mut log = String::new();
    for step in 1..=8000 {
        // Neither neighbours nor blocks are alike.
        let sensitivity =
            (0..36).map(|b| 1.0 + ((step * 7919 + b * 104_729) % 1009) as f64 / 100.0).collect();
        let line = StepLine { step, block: Some(step % 36), sensitivity, ..line.clone() };
        let _ = writeln!(log, "{}", serde_json::to_string(&line).expect("a line"));
    }
    run.write("irepair/steps.jsonl", log);
    run.edit(|record| record["steps"] = 8000.into());
    let config: Value = serde_json::from_str(&run.read("config.json")).expect("config");
    let mut config = config.as_object().expect("config").clone();
    config.insert("n_layer".into(), 36.into());
    run.write("config.json", serde_json::to_string(&config).expect("config"));
    let (page, _) = run.report();
    page.says("columns steps 1 to 8000, 34 steps a column");
    assert!(page.source.len() <= 2 << 20, "{} bytes", page.source.len());
}

/// What a page has in one light it has in the other: a colour that the dark form lacks would stand dark on dark.
#[test]
fn every_colour_has_a_dark_form_and_none_is_printed_dark() {
    let run = Run::new();
    run.report();
    let html = run.read("irepair/report.html");
    let mut styles = String::new();
    for style in scraper::Html::parse_document(&html)
        .select(&scraper::Selector::parse("style").expect("selector"))
    {
        styles.extend(style.text());
    }
    let dark_media = "@media screen and (prefers-color-scheme: dark) {";
    assert_eq!(
        styles.matches("prefers-color-scheme").count(),
        styles.matches(dark_media).count(),
        "dark only on screens"
    );
    // Rules as `selector { declarations }`; a dark block ends with the first line that is a brace alone.
    let (mut light, mut dark, mut in_dark) = (Vec::new(), Vec::new(), false);
    for line in styles.lines() {
        match line.trim() {
            line if line == dark_media => in_dark = true,
            "}" => in_dark = false,
            line => {
                for rule in line.split_inclusive('}').filter(|rule| rule.contains('#')) {
                    let (selector, declarations) = rule.split_once('{').expect("a rule");
                    let colours = declarations.split([';', '}']).filter(|d| d.contains('#'));
                    let names = colours.map(|d| {
                        (
                            selector.trim().to_owned(),
                            d.split(':').next().unwrap_or_default().trim().to_owned(),
                        )
                    });
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
