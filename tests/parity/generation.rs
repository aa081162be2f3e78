//! Greedy texts are those of transformers' `generate`, and so are the logits along them.

use irepair::model::Caches;
use irepair::model::generate::{Generation, Job, Sampling, generate};
use irepair::model::weights::Who;
use irepair::tokens::Packed;

use crate::support::golden::{GENERATE, Golden, KERNELS, ids, json, numbers};
use crate::support::tensors::all_close;

/// Greedy texts, batched or one by one, with our cache.
#[test]
fn greedy_generation_equals_transformers() {
    let expected = json("generate.json");
    for name in GENERATE {
        let golden = Golden::open(name);
        let rows = expected[name].as_array().expect("rows");
        let jobs: Vec<Job> = rows.iter().map(|r| Job::new(ids(&r["prompt_ids"]), 0, 0)).collect();
        let want: Vec<Vec<u32>> = rows.iter().map(|r| ids(&r["new_ids"])).collect();
        let settings = Generation {
            sampling: Sampling::Greedy,
            max_new_tokens: 20,
            ends: [].into(),
            seed: 0,
            at_a_time: usize::MAX,
        };
        for kernels in KERNELS {
            let weights = golden.weights(kernels);
            let view = weights.frozen(Who::Patient).expect("view");
            let texts =
                |jobs: &[Job]| generate(&golden.model, &view, jobs, &settings).expect("texts");
            // Every prompt twice, so that each is read once and continued twice.
            let twice = texts(&[&jobs[..], &jobs[..]].concat());
            assert_eq!(twice, [&want[..], &want[..]].concat(), "{name} {kernels:?}");
            for (job, want) in jobs.chunks(1).zip(&want) {
                assert_eq!(&texts(job)[0], want, "{name} alone");
            }
            // Two at a time; every second one ends at once, and another begins in its place.
            let mut short = settings.clone();
            (short.ends, short.at_a_time) = ([want[0][3], want[1][0]].into(), 2);
            let ended = |text: &Vec<u32>| -> Vec<u32> {
                text.iter().copied().take_while(|id| !short.ends.contains(id)).collect()
            };
            let jobs = [&jobs[..], &jobs[..], &jobs[..1]].concat();
            let got = generate(&golden.model, &view, &jobs, &short).expect("texts");
            let want = [&want[..], &want[..], &want[..1]].concat();
            assert_eq!(got, want.iter().map(ended).collect::<Vec<_>>(), "{name} {kernels:?}");
        }
    }
}

/// The logits along the greedy texts, too: tiny models repeat tokens, and ids alone test little.
#[test]
fn cached_logits_equal_transformers() {
    let expected = json("generate.json");
    for name in GENERATE {
        let golden = Golden::open(name);
        let rows = || expected[name].as_array().expect("rows").iter();
        let of_each = |kernels| rows().map(move |row| (kernels, row));
        for (kernels, row) in KERNELS.into_iter().flat_map(of_each) {
            let weights = golden.weights(kernels);
            let view = weights.frozen(Who::Patient).expect("view");
            let (prompt, new) = (ids(&row["prompt_ids"]), ids(&row["new_ids"]));
            let caches = Caches::new(golden.model.sizes().blocks, 1);
            let mut packed = Packed::new([prompt.as_slice()]);
            let mut got = Vec::new();
            for (i, id) in new.iter().enumerate() {
                let logits = golden.model.next_logits(&view, &packed, &caches).expect("logits");
                got.push(logits.to_vec2::<f32>().expect("values")[0][*id as usize]);
                packed = Packed::continuing([(&[*id][..], prompt.len() + i)]);
            }
            let want: Vec<f32> = numbers(&row["top_logits"]).iter().map(|x| *x as f32).collect();
            all_close(&got, &want, 1e-5, &format!("{name} {kernels:?}"));
        }
    }
}
