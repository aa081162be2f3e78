//! The neurons of a repair on its page.

use std::path::Path;

use candle_core::Device;
use irepair::report::neurons::NeuronsRecord;

use crate::support::command::irepair;
use crate::support::files::bytes;
use crate::support::page::{Page, place};
use crate::support::repaired::record;

/// The page shows which neurons changed. The tokens that the most changed ones promote are those of
/// the largest products of the head and their rows.
#[test]
fn the_neurons_of_a_repair_are_drawn() {
    let out = place("neurons");
    irepair("repair --method star --neurons 1/4 --block-sparsity 1/2 --rounds 2 -q")
        .with("--out", &out)
        .ok();
    let html = out.with_extension("html");
    let page = |gaps: usize| {
        let said = irepair("report --json").arg(&out).with("--out", &html).json();
        assert_eq!(said["gaps"].as_array().map(Vec::len), Some(gaps), "{said}");
        Page::open(&html)
    };
    let (drawn, record) = (page(0), record(&out));
    let edits = record.edits.as_ref().expect("edits");
    let wrong = "of 12 that the base got wrong (0 it already said).";
    drawn.says(&format!("Targets said now: {} {wrong}", edits.repaired));
    assert!(!drawn.texts("svg > title").contains(&"Sensitivity by block and step".to_owned()));
    let counts: Vec<String> =
        (0..6).map(|b| format!("{b}: {}", edits.neurons.get(&b).copied().unwrap_or(0))).collect();
    drawn.says(&format!("Changed neurons by block: {}.", counts.join(", ")));
    let counts = ["#samples", "#changed svg", "#changed tbody tr"].map(|of| drawn.count(of));
    assert_eq!(counts, [0, 1, 20]);

    let base = irepair::data::demo::unpack().expect("demo");
    let load = |dir: &Path| {
        candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu)
            .expect("tensors")
    };
    let (before, after) = (load(base.path()), load(&out));
    let found: NeuronsRecord =
        serde_json::from_slice(&bytes(out.join("irepair/neurons.json"))).expect("read strictly");
    let named = |end: &str| before.keys().find(|name| name.ends_with(end)).expect(end).clone();
    let head: Vec<Vec<f32>> = before[&named("wte.weight")].to_vec2().expect("head");
    let tokenizer =
        tokenizers::Tokenizer::from_file(base.path().join("tokenizer.json")).expect("tokenizer");
    let mut last = f32::INFINITY;
    for (promotes, row) in found.most.iter().zip(drawn.texts("#changed tbody tr")) {
        let name = named(&format!("h.{}.mlp.c_proj.weight", promotes.block));
        let rows = [&before, &after]
            .map(|model| model[&name].to_vec2::<f32>().expect("rows")[promotes.neuron].clone());
        let apart = rows[0].iter().zip(&rows[1]).map(|(a, b)| f64::from(*a) - f64::from(*b));
        let difference: f64 = apart.map(|d| d.powi(2)).sum();
        assert!((f64::from(promotes.norm) / difference.sqrt() - 1.0).abs() < 1e-4, "{promotes:?}");
        assert!(promotes.norm <= last, "the most changed come first");
        last = promotes.norm;
        for (values, tokens) in rows.iter().zip([&promotes.before, &promotes.after]) {
            let raised = |token: &[f32]| {
                token.iter().zip(values).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
            };
            let mut order: Vec<u32> = (0..head.len() as u32).collect();
            order.sort_by(|a, b| raised(&head[*b as usize]).total_cmp(&raised(&head[*a as usize])));
            let word = |id: &u32| tokenizer.decode(&[*id], false).expect("text");
            let words: Vec<String> = order[..5].iter().map(word).collect();
            assert_eq!(tokens, &words);
            for word in words {
                assert!(row.contains(&format!("{word:?}")), "{word:?} is not in {row}");
            }
        }
    }
    // What is damaged or missing is said, and the rest is drawn.
    std::fs::write(out.join("irepair/neurons.json"), "{").expect("writes");
    page(1).says("neurons.json can't be read");
    std::fs::remove_file(out.join("irepair/neurons.json")).expect("removed");
    assert_eq!(page(1).count("#changed"), 0);
}
