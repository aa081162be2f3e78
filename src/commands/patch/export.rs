//! `patch export` makes a LoRA adapter of what a patch changes.

use anyhow::Result;
use serde_json::json;

use super::{Walk, base_beside, folders_beside, mark};
use crate::base::files::write_whole;
use crate::base::plain::plain_line;
use crate::base::print;
use crate::checkpoint::lora::{self, Lora};
use crate::checkpoint::patch::{Direction, PatchFile};
use crate::cli::Export;
use crate::commands::{Loaded, On, open};
use crate::eval::divergence::{Base, Divergence};
use crate::eval::task::{Subject, Task};
use crate::model::generate::{Generation, Job, Sampling, generate};
use crate::model::memory::{Estimate, Part, Passes};
use crate::model::precision::{Precision, WeightsDtype};
use crate::model::weights::{TensorSpec, Who};
use crate::print_line;
use crate::report::plot::short;
use crate::report::table::table;

/// Tokens of each text that the model writes for the divergence.
const TOKENS: usize = 64;
/// Texts that it writes at a time.
const AT_A_TIME: usize = 64;

pub fn run(args: &Export, json: bool) -> Result<()> {
    let path = super::patch_in(&args.patch);
    let patch = PatchFile::open(&path)?;
    let (beside, [reverted, folder]) = folders_beside(&args.out, ["base", "adapter"])?;
    let record = super::record_beside(&path, &patch.summary());
    let base = match &args.base {
        Some(base) => base.clone(),
        None => {
            base_beside(std::slice::from_ref(&patch), &reverted)?;
            reverted.display().to_string()
        }
    };
    let on = On {
        device: "cpu",
        dtype: Precision::F32,
        weights_dtype: WeightsDtype::F32,
        threads: None,
    };
    let mut loaded = open(&base, None, &on)?;
    let to = Walk { direction: Direction::Apply, out: &args.out, overwrite: args.overwrite };
    to.free(loaded.checkpoint(), &path)?;
    patch.is_for(loaded.checkpoint())?;
    // Matrices that are not widened give the same results.
    loaded.weights_dtype = loaded.stored();
    check_memory(&loaded, &patch, args)?;
    let lora = Lora::of(loaded.checkpoint(), &loaded.model, &patch, args.rank)?;
    let kl = match args.normal_texts {
        0 => None,
        texts => divergence(&loaded, &patch, &lora, texts)?,
    };

    // What peft is told to load: the hub's name, never a path of this machine.
    let of_hub = |loaded: &Loaded| {
        let checkpoint = loaded.checkpoint();
        checkpoint.revision.clone().map(|revision| (checkpoint.name.clone(), revision))
    };
    let named = of_hub(&loaded).or_else(|| {
        let record = record.as_ref()?;
        Some((record.model.clone(), record.base_revision.clone()?))
    });
    let name = named.as_ref().map(|(name, revision)| (name.as_str(), Some(revision.as_str())));
    lora.write(&folder, name)?;
    mark(&folder)?;
    let card = card(&lora, kl, name);
    write_whole(&folder.join("README.md"), card.as_bytes())?;
    to.name(&folder, beside.path())?;

    if json {
        return print::json(&json!({
            "out": args.out, "rank": lora.rank, "captured": lora.captured(),
            "kl_from_patched": kl, "matrices": lora.matrices, "left_out": lora.left_out,
        }));
    }
    show(&lora, kl, args)
}

/// Errors (bad input) if the export takes more memory than there is.
fn check_memory(loaded: &Loaded, patch: &PatchFile, args: &Export) -> Result<()> {
    const F64: usize = 8;
    let part = |name: &str, bytes: usize| Part { name: name.into(), bytes: bytes as u64 };
    let size = |shape: &[usize]| shape.iter().product::<usize>();
    // The base's own: what a patch says of shapes is still to be checked.
    let specs = loaded.model.specs();
    let is_changed = |spec: &TensorSpec| {
        let on_disk = loaded.checkpoint().disk_name(&spec.name);
        on_disk.is_some_and(|name| patch.tensors.contains_key(name))
    };
    let shapes = || specs.iter().filter(|spec| is_changed(spec)).map(|spec| spec.shape.as_slice());
    let matrices = || shapes().filter(|shape| shape.len() == 2);
    let shorter = |shape: &[usize]| shape.iter().min().copied().unwrap_or(0);
    let thin = |shape: &[usize]| args.rank.min(shorter(shape)) * shape.iter().sum::<usize>();
    let adapter = part("adapter", F64 * matrices().map(thin).sum::<usize>());
    // A matrix before and after, their difference and a factor; the products of its shorter side
    // with itself, their eigenvectors, and what finding these takes.
    let taken = matrices().map(|shape| 4 * size(shape) + 4 * shorter(shape).pow(2));
    let largest = part("largest matrix", F64 * taken.max().unwrap_or(0));
    let factors =
        Estimate { parts: vec![adapter.clone(), largest], each_further_block: 0, recompute: false };
    factors.check(&loaded.device, "lower --rank")?;
    if args.normal_texts == 0 {
        return Ok(());
    }
    // Two models of one base lie beside each other.
    let changed = shapes().map(size).sum::<usize>();
    let mut models = loaded.estimate(&Passes {
        plain_rows: TOKENS,
        longest: TOKENS,
        written: (args.normal_texts.min(AT_A_TIME), TOKENS),
        compares: true,
        ..Passes::default()
    });
    models.parts.extend([adapter, part("patched and adapted tensors", 2 * 4 * changed)]);
    models.check(&loaded.device, "lower --rank, or give --normal-texts 0")
}

/// KL(patched ‖ adapted) in nats a token over texts that the patched model writes by itself; `None`
/// if it writes none.
fn divergence(
    loaded: &Loaded,
    patch: &PatchFile,
    lora: &Lora,
    texts: usize,
) -> Result<Option<f64>> {
    let (checkpoint, model) = (loaded.checkpoint(), &loaded.model);
    let mut patched = loaded.weights()?;
    for spec in model.specs() {
        let Some(name) = checkpoint.disk_name(&spec.name) else { continue };
        if patch.tensors.contains_key(name) {
            patched.restore(&spec.name, lora::patched(checkpoint, patch, name)?)?;
        }
    }
    let begin = loaded.end_of_text()?;
    let generation = Generation {
        sampling: Sampling::Random { temperature: 1.0, top_k: 0, top_p: 0.9 },
        max_new_tokens: TOKENS.min(model.sizes().context.saturating_sub(1)),
        ends: loaded.ends(),
        seed: 0,
        at_a_time: AT_A_TIME,
    };
    let jobs: Vec<Job> = (0..texts).map(|i| Job::new(vec![begin], i as u64, 0)).collect();
    let written = generate(model, &patched.frozen(Who::Patient)?, &jobs, &generation)?;
    let mut adapted = patched.sibling()?;
    // The patched model keeps what it was: the base.
    for tensor in lora.adapted(|name| patched.tensor(Who::Reference, name)) {
        let (name, values) = tensor?;
        adapted.restore(name, values)?;
    }
    let task = Divergence {
        base: Base::Model { model, weights: &patched, hash: patch.repaired_sha256.clone() },
        texts: written.into_iter().filter(|ids| !ids.is_empty()).collect(),
        texts_name: "written by the patched model".into(),
    };
    let (encoder, ends) = (&loaded.encoder, loaded.ends());
    let subject = Subject { model, weights: &adapted, encoder, ends };
    let (mut nats, mut tokens) = (0.0, 0.0);
    for unit in 0..task.units() {
        for row in task.work(&subject, unit)? {
            nats += row["nats"].as_f64().unwrap_or(f64::NAN);
            tokens += row["tokens"].as_f64().unwrap_or(f64::NAN);
        }
    }
    Ok((tokens > 0.0).then(|| nats / tokens))
}

fn kl_words(kl: Option<f64>) -> String {
    kl.map_or(String::new(), |kl| {
        format!("; KL between patched and adapted model {} nats a token", short(kl))
    })
}

fn left_out_words(lora: &Lora) -> Option<String> {
    let many = lora.left_out.len();
    let norm = lora.left_out.iter().map(|t| t.norm * t.norm).sum::<f64>().sqrt();
    (many > 0).then(|| {
        let are = if many == 1 { "tensor is" } else { "tensors are" };
        format!(
            "{many} changed {are} no matrix of a linear layer (norms, biases, embeddings; norm of \
             their change {}) and left out",
            short(norm)
        )
    })
}

fn show(lora: &Lora, kl: Option<f64>, args: &Export) -> Result<()> {
    let percent = |part: f64| format!("{:.1} %", 100.0 * part);
    let rows: Vec<[String; 4]> = lora
        .matrices
        .iter()
        .map(|m| {
            let share = if m.norm > 0.0 { m.captured / m.norm } else { 1.0 };
            [plain_line(&m.module).into_owned(), m.rank.to_string(), short(m.norm), percent(share)]
        })
        .collect();
    print::text(table(["layer", "rank", "norm of change", "captured"], &rows))?;
    if let Some(words) = left_out_words(lora) {
        print_line!("{words}")?;
    }
    print_line!(
        "{}: a LoRA adapter of rank {} with {} of the change's norm{}",
        args.out.display(),
        lora.rank,
        percent(lora.captured()),
        kl_words(kl)
    )?;
    print_line!(
        "next: in Python, PeftModel.from_pretrained(BASE, {:?}); irepair guide serve",
        args.out.display().to_string()
    )
}

/// The card of the adapter's folder.
fn card(lora: &Lora, kl: Option<f64>, base: Option<(&str, Option<&str>)>) -> String {
    let mut card = String::from("---\n");
    if let Some((name, _)) = base {
        card += &format!("base_model: {}\nbase_model_relation: adapter\n", plain_line(name));
    }
    card += "library_name: peft\npipeline_tag: text-generation\ntags: [irepair, lora]\n---\n\n\
             # A repair by irepair as a LoRA adapter\n\n";
    card += &format!(
        "Rank {}, {} layers. It carries {:.1} % of the norm of the repair's change{}.\n",
        lora.rank,
        lora.matrices.len(),
        100.0 * lora.captured(),
        kl_words(kl)
    );
    if let Some(words) = left_out_words(lora) {
        card += &format!("\n{words}.\n");
    }
    card
}
