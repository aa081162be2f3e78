//! What happened, for people: it fits a screen and says where the result lies and what to type
//! next.

use std::fmt::Write as _;
use std::path::Path;

use crate::base::shell;
use crate::checkpoint::Checkpoint;
use crate::eval::verdict::Word;
use crate::model::Model;
use crate::report::plot::short;
use crate::report::table::table;
use crate::report::{EditsRecord, RunRecord, block_number, change_by_block};

/// Blocks that a summary shows at most: with them it fits 24 lines of 80 columns.
const SUMMARY_BLOCKS: usize = 3;

/// The blocks that changed most, in their order, with how often (as `times` says), norm and share
/// of their norm; what is left out is said in a line below.
fn changed_most(
    run: &RunRecord,
    heads: [&str; 2],
    times: impl Fn(Option<usize>) -> usize,
) -> String {
    let changes = change_by_block(&run.changed, block_number);
    let mut order: Vec<(f64, Option<usize>)> =
        changes.iter().map(|(block, change)| (change.norm, *block)).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    let left_out = order.split_off(order.len().min(SUMMARY_BLOCKS));
    let rows: Vec<[String; 4]> = changes
        .into_iter()
        .filter(|(block, _)| order.iter().any(|(_, shown)| shown == block))
        .map(|(block, change)| {
            let relative = format!("{:.2} %", 100.0 * change.norm / change.base_norm);
            [change.name, times(block).to_string(), short(change.norm), relative]
        })
        .collect();
    let mut text = table(["changed", heads[0], "norm of change", heads[1]], &rows);
    if let Some((most, _)) = left_out.first() {
        let _ = writeln!(text, "and {} more, each by {} or less", left_out.len(), short(*most));
    }
    text
}

pub fn summary(run: &RunRecord, out: &Path, model: &Model) -> String {
    match &run.edits {
        Some(edits) => of_edits(run, edits, out),
        None => of_pairs(run, out, model),
    }
}

fn of_pairs(run: &RunRecord, out: &Path, model: &Model) -> String {
    let mut text = headline(run);
    let changed = change_by_block(&run.changed, block_number).into_keys().flatten().count();
    // Where no step has a slice of its own, every step changes everything.
    let steps = |block: Option<usize>| match run.sliced.is_empty() {
        true => run.steps,
        false => block.and_then(|b| run.sliced.get(&b)).copied().unwrap_or(0),
    };
    text += &changed_most(run, ["steps", "of its norm"], steps);
    let _ = writeln!(
        text,
        "{} of {} blocks, {:.1} % of the parameters; all else is byte-equal to the base",
        changed,
        model.sizes().blocks,
        100.0 * run.changed_parameters as f64 / run.parameters.max(1) as f64
    );
    let memory = run.peak_rss_mib.map_or(String::new(), |m| format!(", {m} MiB at most"));
    let _ = writeln!(
        text,
        "{} steps ({}), weights of step {} kept; {:.0} s{memory}{}",
        run.steps,
        run.stopped,
        run.kept_step,
        run.seconds,
        run.fallback()
    );
    undo_and_result(&mut text, run, out);
    // No prompt is kept where the rows are conversations.
    let kept = run.model == "demo" || out.join("irepair/prompts.jsonl").is_file();
    let prompt = if kept { "" } else { " --prompt TEXT" };
    let (base, repaired) = (shell::word(&run.model), shell::path(out));
    let _ = writeln!(text, "next: irepair try {base} {repaired}{prompt}");
    text
}

/// The verdict, the figures with their intervals, and what they were measured on.
fn headline(run: &RunRecord) -> String {
    let mut text = format!("{}\n", run.verdict_line());
    let Some(headline) = &run.headline else { return text };
    let rows = headline.terminal_rows();
    if rows.is_empty() {
        return text;
    }
    text += &table(["", "before (95 %)", "after (95 %)", "change"], &rows);
    let mut on = vec![headline.rows.clone()];
    on.extend(headline.said_of_continuations());
    if !headline.continuations.is_empty() {
        let own = run.data.prompts > 0 && run.settings.judge() == run.settings.scorer;
        let own = if own { ", from which it learned (--eval-scorer names another)" } else { "" };
        on.push(format!("scored by {}{own}", run.settings.judge()));
    }
    let _ = writeln!(text, "on {}", on.join("; "));
    text
}

fn of_edits(run: &RunRecord, edits: &EditsRecord, out: &Path) -> String {
    let mut text = headline(run);
    let _ = writeln!(
        text,
        "targets said now: {} of {} that the model got wrong ({} it already said)",
        edits.repaired, edits.failures, edits.skipped
    );
    let neurons =
        |block: Option<usize>| block.and_then(|b| edits.neurons.get(&b)).copied().unwrap_or(0);
    text += &changed_most(run, ["neurons", "of its output matrix"], neurons);
    let _ = writeln!(
        text,
        "{} neurons, {:.2} % of the parameters; all else is byte-equal to the base",
        edits.neurons.values().sum::<usize>(),
        100.0 * run.changed_parameters as f64 / run.parameters.max(1) as f64
    );
    if edits.worst_residual > 0.01 {
        let _ = writeln!(
            text,
            "the systems can't be met in full: up to {:.0} % of what the targets ask is left (too \
             few neurons for as many tokens, or prompts that look alike)",
            100.0 * edits.worst_residual
        );
    }
    if edits.given_up > 0 {
        let _ = writeln!(text, "{} tokens were given up, their changes undone", edits.given_up);
    }
    let _ = writeln!(
        text,
        "{} steps in {} rounds ({}); {:.1} s, {:.2} a failure{}",
        run.steps,
        edits.rounds,
        run.stopped,
        edits.repair_seconds,
        edits.repair_seconds / edits.failures.max(1) as f64,
        run.fallback()
    );
    undo_and_result(&mut text, run, out);
    let _ = writeln!(
        text,
        "next: irepair eval --model {} --model {} --edits FILE",
        shell::word(&run.model),
        shell::path(out)
    );
    text
}

/// How to take the repair back, and what came of it: never more than the verdict says.
fn undo_and_result(text: &mut String, run: &RunRecord, out: &Path) {
    let _ = writeln!(
        text,
        "undo: irepair patch revert {} {} --out base",
        shell::path(out),
        shell::path(&out.join("irepair/patch.safetensors"))
    );
    let spoiled = [Some(Word::Damaged), Some(Word::NoRealDifference), Some(Word::NotRepaired)];
    if !spoiled.contains(&run.verdict.as_ref().map(|verdict| verdict.word)) {
        // The card is in it, with the verdict and its figures.
        let _ = writeln!(text, "share: hf upload USER/NAME {}", shell::path(out));
    }
    let usual = Checkpoint::open(out, "output", None).is_ok_and(|output| output.has_usual_names());
    let loads = match usual {
        true => "loads in transformers as it is",
        false => "has the names of the base's tensors, which transformers does not know",
    };
    let word = run.verdict.as_ref().map_or("written", |verdict| verdict.word.told());
    let _ = writeln!(text, "{word}: {} {loads}; details in {0}/irepair/run.json", out.display());
}
