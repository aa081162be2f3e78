//! `bench` measures the time of one iteration on random weights. Its JSON has the same keys as that
//! of the PyTorch reference.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use anyhow::Result;
use candle_core::{Device, Tensor};
use serde_json::json;

use super::in_counts;
use crate::bail_input;
use crate::base::print;
use crate::base::profile;
use crate::base::profile::{Part, Phase, Profile};
use crate::base::random::{Purpose, Stream};
use crate::cli::Bench;
use crate::model::Model;
use crate::model::device;
use crate::model::generate::{Ends, Generation, Job, Sampling, generate};
use crate::model::kernels::matmul::{Mat, large_product};
use crate::model::memory;
use crate::model::memory::{Passes, Recompute};
use crate::model::precision::Precision;
use crate::model::precision::WeightsDtype;
use crate::model::shapes;
use crate::model::weights::{Kernels, Weights, Who};
use crate::report::table::table;
use crate::say;
use crate::slice::input::StepInput;
use crate::step::optim::{Optimizer, OptimizerKind};
use crate::step::{self, Named, Recipe, cost};
use crate::tokens::{LossOn, Packed, PairBatch, TokenPair};

/// The tokens of a prompt that `generate` continues.
const PROMPT: usize = 32;

pub fn run(args: &Bench) -> Result<()> {
    in_counts(&[
        ("--batch", args.batch),
        ("--iterations", args.iterations),
        ("--blocks", args.blocks.unwrap_or(1)),
    ])?;
    if args.tokens < 2 || args.tokens > 1024 {
        bail_input!("--tokens {}: must be 2 to 1024", args.tokens);
    }
    let recipe = match args.method.as_str() {
        "generate" => None,
        name => match step::named(name)? {
            Named::Blocks(method) => Some(method.recipe()),
            Named::Neurons(_) => bail_input!(
                "--method {name} changes neurons, not blocks; a block-level method is wanted"
            ),
        },
    };
    let threads = device::set_threads(args.threads)?;
    let device = device::choose(&args.device)?.device;
    let (precision, why_not) = device::precision(args.dtype, &device)?;
    if let Some(why) = why_not {
        bail_input!("--dtype bf16: {why}");
    }
    let model = shapes::model(&args.config, args.blocks)?;
    let kernels = if args.composed { Kernels::Composed } else { Kernels::on(&device) };
    let rows = args.batch * args.tokens;
    let passes = match &recipe {
        Some(recipe) => {
            let extent = recipe.select.build(recipe.slicing.clone()).extent(&model);
            let compares = recipe.kl_weight != 0.0;
            Passes {
                slice: extent.parameters,
                slice_stays: extent.stays,
                optimizer_values: 1,
                keeps_originals: recipe.needs_reference(),
                graph_rows: rows,
                longest: args.tokens,
                compares,
                recompute: args.recompute == Recompute::Always,
                compared_rows: if compares { rows.saturating_mul(1 + args.iterations) } else { 0 },
                ..Passes::default()
            }
        }
        None => Passes {
            written: (args.batch, PROMPT + args.tokens),
            plain_rows: PROMPT * args.batch,
            longest: PROMPT,
            ..Passes::default()
        },
    };
    let found = memory::estimate(&model, kernels, args.weights_dtype, &passes);
    found.check(&device, "lower --batch or --tokens, or take a smaller --config")?;
    let estimate = memory::mib(found.total());
    let mut weights = random_weights(&model, &device, args.weights_dtype)?.with_kernels(kernels);
    weights.set_precision(precision);
    weights.set_recompute(args.recompute == Recompute::Always);
    let (mut times, profile, kaplan) = match recipe {
        Some(recipe) => repair_times(args, recipe, &model, &mut weights)?,
        None => generation_times(args, &model, &weights)?,
    };
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    let median = if times.len() % 2 == 1 {
        times[middle]
    } else {
        (times[middle - 1] + times[middle]) / 2.0
    };
    let round = |x: f64| (x * 1e4).round() / 1e4;
    if args.profile {
        let peak = device::peak_rss_mib();
        print::heard(profile_text(&profile, args.iterations, threads, product_rate(precision)));
        if let Some(peak) = peak.filter(|_| device.is_cpu()) {
            say!("memory: {peak} MiB at most, {estimate} estimated");
        }
    }
    let products = match precision {
        Precision::F32 => "",
        Precision::Tf32 => " tf32",
        Precision::Bf16 => " bf16",
    };
    let weights_dtype = match args.weights_dtype {
        WeightsDtype::F32 => String::new(),
        dtype => format!(" weights-{dtype}"),
    };
    let again = if args.recompute == Recompute::Always { " recompute" } else { "" };
    let version = env!("CARGO_PKG_VERSION");
    let composed = if args.composed { " composed" } else { "" };
    let gflop = profile.operations / args.iterations as f64 / 1e9;
    print::json(&json!({
        "impl": format!("irepair {version}{products}{weights_dtype}{again}{composed}"),
        "config": args.config, "method": args.method, "batch": args.batch,
        "tokens": args.tokens, "threads": threads,
        "median_s": round(median), "min_s": round(times[0]),
        "peak_rss_mib": device::peak_rss_mib(),
        "gflop": (profile.operations > 0.0).then(|| round(gflop)),
        "gflop_kaplan": kaplan.map(|k| round(k / 1e9)),
    }))?;
    Ok(())
}

/// Floating-point operations per second of a square product that fits into the caches: the most
/// that our kernels reach on this machine.
fn product_rate(precision: Precision) -> f64 {
    const SIDE: usize = 1024;
    let a: Vec<f32> = (0..SIDE * SIDE).map(|i| (i % 1000) as f32 / 1000.0 - 0.5).collect();
    let mut out = vec![0f32; SIDE * SIDE];
    let m = Mat::new(&a, SIDE, SIDE);
    let mut seconds = || {
        let begun = Instant::now();
        large_product(&mut out, m, m.t(), 0.0, 1.0, precision);
        begun.elapsed().as_secs_f64()
    };
    let best = (0..10).map(|_| seconds()).fold(f64::INFINITY, f64::min);
    2.0 * (SIDE as f64).powi(3) / best
}

/// Where the time of a mean iteration went, as text for people. `rate` is the [`product_rate`].
fn profile_text(profile: &Profile, iterations: usize, threads: usize, rate: f64) -> String {
    let n = iterations as f64;
    let row = |name: &str, by_phase: Vec<f64>| {
        let total: f64 = by_phase.iter().sum();
        let [f, b, o] = [0, 1, 2].map(|i| format!("{:.1}", 1e3 * by_phase[i] / n));
        [
            name.to_owned(),
            f,
            b,
            o,
            format!("{:.1}", 1e3 * total / n),
            format!("{:.1} %", 100.0 * total / profile.wall),
        ]
    };
    let by_phase = |part: Part| {
        Phase::ALL.iter().map(|(phase, _)| profile.seconds(part, *phase)).collect::<Vec<_>>()
    };
    let mut rows: Vec<_> =
        Part::ALL.iter().map(|(part, name)| row(name, by_phase(*part))).collect();
    let all = Phase::ALL
        .iter()
        .map(|(phase, _)| Part::ALL.iter().map(|(p, _)| profile.seconds(*p, *phase)).sum());
    rows.push(row("all", all.collect()));
    let large = profile.total(Part::Product) + profile.total(Part::HeadProduct);
    let mut text =
        table(["ms an iteration", "forward", "backward", "optimizer", "all", "share"], &rows);
    if profile.operations == 0.0 {
        text += "operations are only counted in our kernels, on the CPU\n";
    } else {
        let reached = profile.large_operations / large;
        let _ = writeln!(
            text,
            "{:.1} GFLOP an iteration, {:.1} of them in large products: {:.0} GFLOP/s there, \
             {:.0} % of the {:.0} that a 1,024-sided product reaches here; {:.0} GFLOP/s over all",
            profile.operations / n / 1e9,
            profile.large_operations / n / 1e9,
            reached / 1e9,
            100.0 * reached / rate,
            rate / 1e9,
            profile.operations / profile.wall / 1e9,
        );
    }
    if profile.processor > 0.0 {
        let _ = writeln!(
            text,
            "cores waiting: {:.1} % of {threads} threads' time",
            100.0 * (1.0 - profile.processor / (profile.wall * threads as f64)).max(0.0),
        );
    }
    text
}

/// Seconds of each timed iteration, their profile, and the operations of a mean iteration by
/// Kaplan's formula.
type Times = (Vec<f64>, Profile, Option<f64>);

/// The times of repair steps. The first iteration is not timed.
fn repair_times(
    args: &Bench,
    recipe: Recipe,
    model: &Model,
    weights: &mut Weights,
) -> Result<Times> {
    let mut method = recipe.clone().build();
    // A selector's look and its trials come once before the first step, so no iteration has them.
    // Here the look sees one batch, and the last trial wins.
    let sample = random_pairs(&mut Stream::new(0, Purpose::Bench, u64::MAX - 1, 0), model, args);
    method.look(model, weights, &mut std::iter::once(sample))?;
    // Random tokens would mark no rejected response, so the objective learns from a made-up pair.
    let pair = |chosen, rejected| TokenPair {
        prompt: vec![0],
        chosen: vec![chosen; 10],
        rejected: vec![rejected; 10],
    };
    method.objective.learn(&[pair(0, 1)], model.sizes().vocabulary)?;
    if let Some(last) = recipe.trials(model).pop() {
        method.settle(last);
    }
    weights.keep_originals(recipe.needs_reference());
    let device = weights.device();
    let mut optimizer = Optimizer::new(OptimizerKind::Rmsprop);
    let mut times = Vec::new();
    let (mut kaplan, mut touched) = (0.0, model.sizes().blocks);
    for iteration in 0..=args.iterations {
        let mut stream = Stream::new(0, Purpose::Bench, iteration as u64, 0);
        let pairs = random_pairs(&mut stream, model, args);
        let texts = random_ids(&mut stream, model, args.batch, args.tokens);
        let normal = Packed::new(texts.iter().map(Vec::as_slice));
        if iteration == 1 {
            profile::start();
        }
        let begun = Instant::now();
        let input = StepInput { model, weights, pairs: &pairs, normal: Some(&normal) };
        let report = method.step(std::slice::from_ref(&input))?;
        optimizer.step(weights, &report.gradients, 1e-5, 1.0)?;
        device.synchronize()?;
        let block = report.selection.slice.only_block();
        touched = touched.min(block.unwrap_or(0));
        if iteration > 0 {
            times.push(begun.elapsed().as_secs_f64());
            let (tokens, predicted) = (args.batch * args.tokens, args.batch * (args.tokens - 1));
            let work = cost::Work {
                tokens: [tokens; 3],
                counted: [predicted, predicted, tokens],
                sequences: args.batch,
                block,
                touched,
                parameters: block.map_or(0, |b| model.block_parameters()[b]),
            };
            kaplan += cost::operations(model, &recipe, &work) / args.iterations as f64;
        }
    }
    Ok((times, profile::stop().unwrap_or_default(), Some(kaplan)))
}

/// A batch of pairs of random tokens, without prompts.
fn random_pairs(stream: &mut Stream, model: &Model, args: &Bench) -> PairBatch {
    let mut draw = || random_ids(stream, model, args.batch, args.tokens);
    let texts = draw().into_iter().zip(draw());
    let pairs: Vec<TokenPair> = texts
        .map(|(rejected, chosen)| TokenPair { prompt: Vec::new(), chosen, rejected })
        .collect();
    PairBatch::new(&pairs.iter().collect::<Vec<_>>(), LossOn::All)
}

/// `batch` sequences of `tokens` random ids each. The last id of the vocabulary, which ends a text
/// of GPT-2, is never drawn.
fn random_ids(stream: &mut Stream, model: &Model, batch: usize, tokens: usize) -> Vec<Vec<u32>> {
    let ids = model.sizes().vocabulary - 1;
    (0..batch).map(|_| (0..tokens).map(|_| stream.below(ids) as u32).collect()).collect()
}

/// The times of writing `--tokens` new tokens greedily after each of `--batch` prompts of 32
/// tokens. The first iteration is not timed.
fn generation_times(args: &Bench, model: &Model, weights: &Weights) -> Result<Times> {
    let view = weights.frozen(Who::Patient)?;
    let settings = Generation {
        sampling: Sampling::Greedy,
        max_new_tokens: args.tokens,
        ends: Ends::default(),
        seed: 0,
        at_a_time: usize::MAX,
    };
    let mut times = Vec::new();
    for iteration in 0..=args.iterations {
        let mut stream = Stream::new(0, Purpose::Bench, iteration as u64, 0);
        let jobs: Vec<Job> = random_ids(&mut stream, model, args.batch, PROMPT)
            .into_iter()
            .map(|ids| Job::new(ids, 0, 0))
            .collect();
        if iteration == 1 {
            profile::start();
        }
        let begun = Instant::now();
        generate(model, &view, &jobs, &settings)?;
        if iteration > 0 {
            times.push(begun.elapsed().as_secs_f64());
        }
    }
    Ok((times, profile::stop().unwrap_or_default(), None))
}

/// Weights as GPT-2 begins with them: matrices are normally distributed with deviation 0.02, the
/// weights of norms are 1, and biases are 0.
fn random_weights(model: &Model, device: &Device, kept: WeightsDtype) -> Result<Weights> {
    let mut tensors = BTreeMap::new();
    for (index, spec) in model.specs().into_iter().enumerate() {
        let count = spec.shape.iter().product();
        let values: Vec<f32> = if spec.shape.len() == 2 {
            let mut stream = Stream::new(0, Purpose::Bench, u64::MAX, index as u64);
            (0..count).map(|_| (stream.normal() * 0.02) as f32).collect()
        } else {
            vec![if spec.name.ends_with("weight") { 1.0 } else { 0.0 }; count]
        };
        let mut tensor = Tensor::from_vec(values, spec.shape.as_slice(), &Device::Cpu)?;
        if spec.is_matrix() {
            tensor = tensor.to_dtype(kept.dtype())?;
        }
        tensors.insert(spec.name, tensor.to_device(device)?);
    }
    Weights::new(model.specs(), tensors)
}
