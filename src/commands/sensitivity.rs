//! `sensitivity` measures which blocks carry the error.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use serde_json::json;

use super::Loaded;
use crate::bail_input;
use crate::base::error::Error;
use crate::base::files;
use crate::base::print;
use crate::base::progress::Progress;
use crate::cli::Sensitivity;
use crate::cli::shared::in_range;
use crate::model::memory::Passes;
use crate::report::plot;
use crate::report::plot::short;
use crate::report::table::table;
use crate::say;
use crate::slice::sensitivity::{Density, density, pick, sensitivity};
use crate::tokens::{Lengths, PairBatch};
use crate::train::look::drawn;

/// Which pairs are drawn: always the same ones, so that two models can be compared.
const DRAW: u64 = 42;

/// The sensitivity of every block.
struct BlockSensitivities {
    /// Mean over the batches by block, where a batch counts by its pairs.
    mean: Vec<f64>,
    /// The sensitivity in each batch, by block.
    batches: Vec<Vec<f64>>,
    /// Number of parameters by block.
    parameters: Vec<usize>,
    density: Option<Density>,
    pairs: usize,
}

pub fn run(args: &Sensitivity) -> Result<()> {
    let words = &args.pairs;
    in_range("batch-size", args.batch.batch_size)?;
    for (flag, path) in [("--dump", &args.dump), ("--plot", &args.plot)] {
        if let Some(path) = path {
            super::writable(flag, path)?;
        }
    }
    let loaded = args.model.open()?;
    let pairs = super::pairs_of(&args.model.model, words.data.as_deref(), &words.map, words.limit)?;
    let lengths =
        Lengths::within(loaded.model.sizes().context, words.max_length, words.max_prompt_length)?;
    let (mut tokens, cut) = loaded.encoder.pairs(&pairs, lengths, words.boundary)?;
    let read = tokens.len();
    tokens.retain(|pair| !pair.rejected.is_empty());
    if tokens.is_empty() {
        bail_input!(
            "{}: no row has a rejected response, and the sensitivity is that of their NLL",
            pairs[0].place.file.display()
        );
    }
    if tokens.len() < read && !args.output.quiet {
        say!("{} of {read} rows have no rejected response and are left out", read - tokens.len());
    }
    if !args.output.quiet && cut.prompts + cut.responses > 0 {
        say!(
            "cut to length: {} prompts, {} responses of {} pairs",
            cut.prompts,
            cut.responses,
            tokens.len()
        );
    }
    let all = tokens.len();
    let sample = if args.sample == 0 { all } else { args.sample.min(all) };
    let tokens: Vec<_> = drawn(&tokens, sample, DRAW).into_iter().cloned().collect();
    if sample < all && !args.output.quiet {
        say!("{sample} of {all} pairs, drawn at random, are measured (--sample 0 takes all)");
    }
    let rows = |p: &crate::tokens::TokenPair| p.prompt.len() + p.rejected.len();
    let graph_rows =
        tokens.chunks(args.batch.batch_size).map(|b| b.iter().map(rows).sum()).max().unwrap_or(0);
    let longest = tokens.iter().map(rows).max().unwrap_or(0);
    let recompute = loaded.check_graphs(
        args.batch.recompute,
        Passes { graph_rows, longest, ..Passes::default() },
        "lower --batch-size or --max-length",
    )?;
    let mut weights = loaded.weights()?;
    weights.set_recompute(recompute);
    weights.set_precision(loaded.precision);
    let blocks = loaded.model.sizes().blocks;
    let mut mean = vec![0f64; blocks];
    let mut batches = Vec::new();
    let mut progress = Progress::new("pairs", 0, tokens.len(), args.output.quiet);
    for pairs in tokens.chunks(args.batch.batch_size) {
        let batch = PairBatch::new(&pairs.iter().collect::<Vec<_>>(), words.loss_on);
        let (found, _) = sensitivity(&loaded.model, &weights, &batch.rejected)?;
        // Errors on a value that is not finite.
        pick(&found, |a, b| a > b).map_err(|e| not_measured(&loaded, &e))?;
        let share = pairs.len() as f64 / tokens.len() as f64;
        mean.iter_mut().zip(&found).for_each(|(m, s)| *m += s * share);
        batches.push(found);
        progress.advance(pairs.len());
    }
    progress.finish();
    if mean.iter().sum::<f64>() == 0.0 {
        let why = "no block has a gradient: what it says does not depend on its blocks";
        return Err(not_measured(&loaded, &why));
    }
    let parameters = loaded.model.block_parameters();
    let (density, pairs) = (density(&mean), tokens.len());
    let found = BlockSensitivities { density, mean, batches, parameters, pairs };
    if let Some(path) = &args.dump {
        write(path, &found.csv(args.per_batch))?;
    }
    if let Some(path) = &args.plot {
        let top = found.density.as_ref().map_or(&[][..], |d| &d.top);
        let title = format!("Where the error lives: {}", loaded.short_name());
        write(path, &plot::blocks(&title, &found.mean, top).file())?;
    }
    if args.output.json {
        print::json(&found.json())?;
    } else {
        print::text(found.text())?;
    }
    Ok(())
}

fn not_measured(loaded: &Loaded, why: &dyn std::fmt::Display) -> anyhow::Error {
    let name = &loaded.checkpoint().name;
    Error::Check(format!("{name}: {why}; its weights are broken, or its sums overflow")).into()
}

fn write(path: &Path, text: &str) -> Result<()> {
    files::write_whole(path, text.as_bytes())
}

impl BlockSensitivities {
    /// Sensitivity of a block, its share of the sum over all blocks, and its density: the
    /// sensitivity divided by the mean over all blocks.
    fn row(values: &[f64], block: usize) -> (f64, f64, f64) {
        let sum: f64 = values.iter().sum();
        (values[block], values[block] / sum, values[block] / (sum / values.len() as f64))
    }

    fn csv(&self, per_batch: bool) -> String {
        let mut out = String::from(if per_batch { "batch," } else { "" });
        out += "block,sensitivity,share,parameters,density\n";
        let all: Vec<(Option<usize>, &[f64])> = if per_batch {
            self.batches.iter().enumerate().map(|(i, b)| (Some(i), b.as_slice())).collect()
        } else {
            vec![(None, &self.mean)]
        };
        for (batch, values) in all {
            for block in 0..values.len() {
                let (sensitivity, share, density) = Self::row(values, block);
                if let Some(batch) = batch {
                    let _ = write!(out, "{batch},");
                }
                let _ = writeln!(
                    out,
                    "{block},{sensitivity},{share},{},{density}",
                    self.parameters[block]
                );
            }
        }
        out
    }

    fn json(&self) -> serde_json::Value {
        let blocks: Vec<_> = (0..self.mean.len())
            .map(|block| {
                let (sensitivity, share, density) = Self::row(&self.mean, block);
                json!({"block": block, "sensitivity": sensitivity, "share": share,
                       "parameters": self.parameters[block], "density": density})
            })
            .collect();
        json!({
            "pairs": self.pairs, "batches": self.batches.len(), "blocks": blocks,
            "error_density": self.density,
        })
    }

    fn text(&self) -> String {
        let rows: Vec<[String; 5]> = (0..self.mean.len())
            .map(|block| {
                let (sensitivity, share, density) = Self::row(&self.mean, block);
                [
                    block.to_string(),
                    short(sensitivity),
                    format!("{:.1} %", 100.0 * share),
                    self.parameters[block].to_string(),
                    format!("{density:.2}"),
                ]
            })
            .collect();
        let mut out = table(["block", "sensitivity", "share", "parameters", "density"], &rows);
        let _ = writeln!(
            out,
            "\nmean gradient norm of the rejected responses' NLL over {} batches, {} pairs",
            self.batches.len(),
            self.pairs
        );
        if let Some(d) = &self.density {
            let top: Vec<String> = d.top.iter().map(ToString::to_string).collect();
            let _ = writeln!(
                out,
                "error density: {} a block in the top 20 % (block {}), {} in the others: {:+.1} %",
                short(d.top_density),
                top.join(", "),
                short(d.rest_density),
                d.percent_above
            );
        }
        out
    }
}
