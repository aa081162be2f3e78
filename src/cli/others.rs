//! The words of the smaller commands.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};

use super::Output;
use crate::model::memory::Recompute;
use crate::model::precision::{Precision, WeightsDtype};
use crate::model::shapes::SHAPES;

#[derive(Debug, Args)]
pub struct Patch {
    #[command(subcommand)]
    pub command: PatchCommand,
    /// Print the result as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum PatchCommand {
    /// Write the difference of two model folders
    Diff {
        /// Hub id or folder
        base: String,
        repaired: String,
        #[arg(short, long, value_name = "FILE")]
        out: PathBuf,
        /// Replace --out if it exists
        #[arg(long)]
        overwrite: bool,
    },
    /// Make the repaired model from the base
    Apply {
        /// Hub id or folder
        base: String,
        /// A patch, or the repaired model that it lies in
        patch: PathBuf,
        #[arg(short, long, value_name = "DIR")]
        out: PathBuf,
        /// Replace --out if irepair made it
        #[arg(long)]
        overwrite: bool,
    },
    /// Make the base from the repaired model
    Revert {
        repaired: String,
        /// A patch, or the repaired model that it lies in
        patch: PathBuf,
        #[arg(short, long, value_name = "DIR")]
        out: PathBuf,
        /// Replace --out if irepair made it
        #[arg(long)]
        overwrite: bool,
    },
    /// Blocks, norms and sizes
    Show {
        /// A patch, or the repaired model that it lies in
        patch: PathBuf,
    },
    /// Make a LoRA adapter of what a patch changes, for servers that switch adapters on and off
    #[command(after_help = "Examples:
  irepair patch export repaired --peft --rank 64 --out adapter
  irepair patch export p.safetensors --base gpt2-large --peft --rank 16 --out adapter")]
    Export(Export),
    /// Make a part, or a multiple, of what a patch changes: base + λ·(repaired − base)
    #[command(after_help = "Examples:
  irepair patch scale repaired/irepair/patch.safetensors --by 0.8 --out milder.safetensors
  irepair patch scale p.safetensors --base gpt2-large --by 1.5 --out stronger.safetensors")]
    Scale {
        /// A patch, or the repaired model that it lies in
        patch: PathBuf,
        /// λ: 0.8 takes four fifths of the change, -1 the opposite
        #[arg(long, value_name = "λ", allow_negative_numbers = true)]
        by: f64,
        #[command(flatten)]
        to: NewPatch,
    },
    /// Make the mean of what several patches of one base change; a tensor that one of them lacks
    /// counts as unchanged there
    #[command(after_help = "Example:
  irepair patch mean seed1/irepair/patch.safetensors seed2/irepair/patch.safetensors --out mean")]
    Mean {
        /// Patches, or the repaired models that they lie in
        #[arg(required = true, value_name = "PATCH")]
        patches: Vec<PathBuf>,
        #[command(flatten)]
        to: NewPatch,
    },
}

/// The words of `patch export`.
#[derive(Debug, Args)]
pub struct Export {
    /// A patch, or the repaired model that it lies in
    pub patch: PathBuf,
    /// As a LoRA adapter of peft; nothing else is there yet
    #[arg(long, required = true)]
    pub peft: bool,
    /// Rank of the adapter; a matrix that has a smaller one keeps its own
    #[arg(long, value_name = "R", default_value_t = 64, value_parser = rank())]
    pub rank: usize,
    /// The folder of the adapter
    #[arg(short, long, value_name = "DIR")]
    pub out: PathBuf,
    /// The model that the patch is for; not needed where it lies in its repaired model
    #[arg(long, value_name = "MODEL")]
    pub base: Option<String>,
    /// Texts that the patched model writes to measure KL between patched and adapted model; 0: it
    /// is not measured
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = texts())]
    pub normal_texts: usize,
    /// Replace --out if irepair made it
    #[arg(long)]
    pub overwrite: bool,
}

/// From 0 to as many as a machine writes in an hour or two.
fn texts() -> impl TypedValueParser<Value = usize> {
    clap::value_parser!(u32).range(..=100_000).map(|texts| texts as usize)
}

/// From 1 on.
fn rank() -> impl TypedValueParser<Value = usize> {
    clap::value_parser!(u32).range(1..).map(|rank| rank as usize)
}

/// Where a patch goes that is made of patches.
#[derive(Debug, Args)]
pub struct NewPatch {
    /// Where the new patch goes [default: scaled-λ.safetensors or mean.safetensors]
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The model that the patches are for; not needed where one lies in its repaired model
    #[arg(long, value_name = "MODEL")]
    pub base: Option<String>,
    /// Replace --out if it exists
    #[arg(long)]
    pub overwrite: bool,
}

/// The names of the shapes.
fn shapes() -> PossibleValuesParser {
    PossibleValuesParser::new(SHAPES.keys().map(String::as_str))
}

#[derive(Debug, Args)]
pub struct Bench {
    /// Shape of the random model
    #[arg(long, value_parser = shapes(), default_value = "gpt2")]
    pub config: String,
    /// As in `repair`, or `generate`: --tokens new ones after each of --batch prompts of 32
    #[arg(long, default_value = "irepair+kl")]
    pub method: String,
    /// Blocks, instead of the shape's own number
    #[arg(long, value_name = "L")]
    pub blocks: Option<usize>,
    /// Sequences a batch
    #[arg(long, visible_alias = "batch-size", default_value_t = 4)]
    pub batch: usize,
    /// Tokens a sequence, all of them counted
    #[arg(long, default_value_t = 64)]
    pub tokens: usize,
    /// Timed iterations, after one that is not
    #[arg(long, default_value_t = 5)]
    pub iterations: usize,
    #[arg(long)]
    pub threads: Option<usize>,
    /// auto, cpu, cuda, cuda:N or metal
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// What operands of large products are rounded to
    #[arg(long, value_enum, default_value_t = Precision::F32)]
    pub dtype: Precision,
    /// What matrices of weights are kept in while they are not trained; the random ones are rounded
    /// to it
    #[arg(long, value_enum, default_value_t = WeightsDtype::F32)]
    pub weights_dtype: WeightsDtype,
    /// Keep the inputs of blocks alone, and compute the blocks again for the backward pass
    #[arg(long, value_enum, default_value_t = Recompute::Never)]
    pub recompute: Recompute,
    /// Print on stderr where the time goes, and how near the products come to this machine's best
    #[arg(long)]
    pub profile: bool,
    /// Layers composed of candle's own operations instead of our kernels
    #[arg(long)]
    pub composed: bool,
}

#[derive(Debug, Args)]
pub struct Doctor {
    /// Say what of this model is understood, without reading its weights: a hub id, a folder, or
    /// demo
    #[arg(long, short, value_name = "MODEL")]
    pub model: Option<String>,
    /// Branch, tag or commit of a hub model
    #[arg(long, requires = "model")]
    pub revision: Option<String>,
    /// Print as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Report {
    /// The output of `repair` or `compare`, or the .partial folder of an unfinished run
    #[arg(value_name = "RUN_DIR")]
    pub run: PathBuf,
    /// Where the page goes [default: RUN_DIR/irepair/report.html; of a comparison
    /// RUN_DIR/report.html]
    #[arg(short, long, value_name = "FILE.html")]
    pub out: Option<PathBuf>,
    /// Write the page's drawings into this folder, too, each as an SVG file of its own
    #[arg(long, value_name = "DIR")]
    pub pictures: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct Completions {
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub struct Man {
    /// Write a page for every command into this folder
    #[arg(short, long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Guide {
    /// A page [default: the list of pages]
    pub topic: Option<String>,
}
