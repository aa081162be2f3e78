//! The headline of a run, put together of what was measured before and after.

use anyhow::Result;
use serde_json::Value;

use super::Order;
use super::job::{Job, Kept, MeasuredOn};
use super::measure::{Measured, MeasuredTask};
use crate::eval::kinds::kind;
use crate::eval::paired::Paired;
use crate::eval::task::{Clusters, Figure};
use crate::eval::verdict::{Continuations, Counts, Limits, MARGIN, TARGETS};
use crate::eval::{nll, repetition};
use crate::report::{EditsRecord, Headline};
use crate::settings::Prepared;

/// On pairs of which both responses are measured.
const MARGIN_FIGURE: Figure = Figure {
    id: MARGIN,
    name: "NLL of rejected less that of chosen",
    unit: "nats a token",
    from_sums: |s| s[2] / s[3] - s[0] / s[1],
    digits: 3,
    less_is_better: false,
};

const TARGETS_FIGURE: Figure = Figure {
    id: TARGETS,
    name: "targets said",
    unit: "%",
    from_sums: |s| 100.0 * s[0] / s[1],
    digits: 1,
    less_is_better: false,
};

pub fn headline(
    order: &Order,
    job: &dyn Job,
    before: &Measured,
    after: &Measured,
    kept: &Kept,
) -> Result<Headline> {
    let seed = order.prepared.seed;
    let both = || before.tasks.iter().zip(&after.tasks);
    let (mut figures, mut continuations) = (Vec::new(), Vec::new());
    for (before, after) in both() {
        let kind = kind(&before.settings)?;
        let clusters = |task: &MeasuredTask| (kind.clusters)(&task.settings, &task.rows);
        let (of_before, of_after) = (clusters(before)?, clusters(after)?);
        let reported = (kind.figures)(&before.settings).iter();
        let mut own: Vec<Paired> = reported
            .filter(|figure| before.reports(figure.id))
            .filter_map(|figure| Paired::new(figure, &of_before, &of_after, seed))
            .collect();
        if before.continues_prompts() {
            let (b, a) = (&before.repetition, &after.repetition);
            own.extend(Paired::new(&repetition::FIGURE, b, a, seed));
            continuations.push(Continuations {
                sampled: before.is_sampled(),
                prompts: of_before.len(),
                samples: before.settings["protocol"]["samples"].as_u64().unwrap_or(1) as usize,
                about: before.about.clone(),
                before: counts(before)?,
                after: counts(after)?,
            });
        }
        let sampled = before.is_sampled();
        figures.extend(own.into_iter().map(|f| if sampled { f.sampled() } else { f }));
    }
    let margins = (margins(before)?, margins(after)?);
    figures.extend(Paired::new(&MARGIN_FIGURE, &margins.0, &margins.1, seed));
    if let Some(EditsRecord { failures, repaired, .. }) = kept.edits {
        let said = |n: usize| (0..failures).map(move |i| vec![f64::from(u8::from(i < n)), 1.0]);
        let (none, now): (Clusters, Clusters) = (said(0).collect(), said(repaired).collect());
        figures.extend(Paired::new(&TARGETS_FIGURE, &none, &now, seed));
    }
    let MeasuredOn { rows, learned_from: prompts_learned_from } = job.measured_on()?;
    let limits = limits(order.prepared);
    Ok(Headline { figures, continuations, rows, prompts_learned_from, limits })
}

fn limits(settings: &Prepared) -> Limits {
    Limits {
        ppl_percent: settings.damage_ppl,
        kl_nats: settings.damage_kl,
        repetition_points: settings.damage_repetition,
        empty_points: settings.damage_empty,
    }
}

fn counts(task: &MeasuredTask) -> Result<Counts> {
    let counted = (kind(&task.settings)?.counts)(&task.rows);
    let of = |what: &str| counted.iter().find(|(name, _)| *name == what).map_or(0, |(_, n)| *n);
    Ok(Counts { scored: of("scored"), empty: of("empty"), failed: of("failed") })
}

/// One cluster for each pair: nats and tokens of its chosen, then of its rejected response. Empty
/// where a pair lacks one of them.
fn margins(measured: &Measured) -> Result<Clusters> {
    let of = |responses: &str| -> Result<Clusters> {
        let is_it = |task: &&MeasuredTask| {
            let Value::String(of) = &task.settings["of"] else { return false };
            task.settings["task"] == nll::KIND.task && of == responses
        };
        let task = measured.tasks.iter().find(is_it);
        task.map_or(Ok(Clusters::new()), |t| (nll::KIND.clusters)(&t.settings, &t.rows))
    };
    let (chosen, rejected) = (of("chosen")?, of("rejected")?);
    if chosen.len() != rejected.len() {
        return Ok(Clusters::new());
    }
    Ok(chosen
        .into_iter()
        .zip(rejected)
        .map(|(chosen, rejected)| [chosen, rejected].concat())
        .collect())
}
