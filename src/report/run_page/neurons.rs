//! Which neurons changed, and which tokens the most changed ones promote.

use maud::{Markup, html};

use crate::report::folder::RunFolder;
use crate::report::neurons::NeuronsRecord;
use crate::report::page::{Section, figure, words};
use crate::report::plot::{NeuronMap, Picture, neuron_map, short};
use crate::step::neurons::change::Promoted;

/// The map of the changed neurons.
pub fn picture(run: &RunFolder) -> Option<Picture> {
    let found = run.neurons.as_ref()?;
    let marked: Vec<(usize, usize)> = found.most.iter().map(|n| (n.block, n.neuron)).collect();
    Some(neuron_map(&NeuronMap {
        blocks: found.blocks,
        width: found.neurons,
        changed: &found.changed,
        marked: &marked,
    }))
}

pub fn section(run: &RunFolder) -> Option<Section> {
    let found = run.neurons.as_ref()?;
    let body = html! { (figure(&picture(run)?)) (promoted_tokens(found)) };
    Some(Section { id: "changed", heading: "Which neurons changed", body })
}

fn promoted_tokens(found: &NeuronsRecord) -> Markup {
    let quoted = |tokens: &[String]| {
        tokens.iter().map(|token| format!("{token:?}")).collect::<Vec<_>>().join(" ")
    };
    let row = |n: &Promoted<String>| {
        let relative = if n.base_norm > 0.0 {
            format!("{:.1} %", 100.0 * n.norm / n.base_norm)
        } else {
            "–".into()
        };
        let name = format!("{}, {}", n.block, n.neuron);
        [name, short(f64::from(n.norm)), relative, quoted(&n.before), quoted(&n.after)]
    };
    let rows: Vec<[String; 5]> = found.most.iter().map(row).collect();
    let head =
        ["block, neuron", "norm of change", "of its norm", "promoted before", "promotes now"];
    let caption = "The most changed neurons, and the tokens whose logits their output rows raise \
                   most (head × output row)";
    words(caption, &head, &rows)
}
