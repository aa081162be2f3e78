//! Where the error was: the sensitivity of every block in every step.

use maud::html;

use super::NO_STEP;
use crate::report::folder::RunFolder;
use crate::report::page::{Section, figure};
use crate::report::plot::{HeatMap, Picture, heat_map};

/// The heat map. `None` if the sensitivities were not measured.
pub fn picture(run: &RunFolder) -> Option<Picture> {
    heat_map(&HeatMap { steps: &run.steps, blocks: run.blocks(), kept: run.kept() })
}

pub fn section(run: &RunFolder) -> Option<Section> {
    if run.is_neuron_level() {
        return None;
    }
    let why_not = match run.steps.is_empty() {
        true => NO_STEP,
        false => "The method does not measure the sensitivity of the blocks at every step.",
    };
    let body = match picture(run) {
        Some(picture) => html! {
            p.dim {
                "The sensitivity of a block says how much of the error it carries: how strongly "
                "the NLL of the rejected responses would answer to a change of its weights (the "
                "norm of their gradient)."
            }
            (figure(&picture))
        },
        None => html! { p { (why_not) } },
    };
    Some(Section { id: "sensitivity", heading: "Where the error is", body })
}
