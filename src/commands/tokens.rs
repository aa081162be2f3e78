//! `tokens` shows pairs as the model sees them.

use anyhow::Result;
use serde_json::json;

use super::On;
use crate::base::print;
use crate::cli::Tokens;
use crate::data::Pair;
use crate::model::precision::{Precision, WeightsDtype};
use crate::print_line;
use crate::say;
use crate::tokens::{Batch, Encoder, Lengths, LossOn, TokenPair};

pub fn run(args: &Tokens) -> Result<()> {
    let (model, words) = (&args.model, &args.pairs);
    let on = On {
        device: "cpu",
        dtype: Precision::F32,
        weights_dtype: WeightsDtype::F32,
        threads: None,
    };
    let loaded = super::open(&model.model, model.revision.as_deref(), &on)?;
    let pairs = super::pairs_of(&model.model, words.data.as_deref(), &words.map, words.limit)?;
    let context = loaded.model.sizes().context;
    let lengths = Lengths::within(context, words.max_length, words.max_prompt_length)?;
    let (tokens, cut) = loaded.encoder.pairs(&pairs, lengths, words.boundary)?;
    for (pair, tokens) in pairs.iter().zip(&tokens) {
        match args.output.json {
            true => print::json(&as_json(pair, tokens, words.loss_on))?,
            false => show(&loaded.encoder, pair, tokens, words.loss_on)?,
        }
    }
    if !args.output.quiet {
        say!(
            "rows: {}; cut to length: {} prompts to {} tokens, {} responses to what {} leave",
            tokens.len(),
            cut.prompts,
            lengths.prompt,
            cut.responses,
            lengths.total
        );
    }
    Ok(())
}

/// Which of the ids of prompt and response count in the loss.
fn counted(prompt: &[u32], response: &[u32], loss_on: LossOn) -> Vec<bool> {
    let batch = Batch::new([(prompt, response)], loss_on);
    let mut mask = vec![false; prompt.len() + response.len()];
    // A row predicts the token behind it.
    batch.rows.iter().for_each(|row| mask[*row as usize + 1] = true);
    mask
}

fn as_json(pair: &Pair, tokens: &TokenPair, loss_on: LossOn) -> serde_json::Value {
    let mask = |response: &[u32]| -> Vec<u8> {
        counted(&tokens.prompt, response, loss_on).into_iter().map(u8::from).collect()
    };
    json!({
        "row": pair.place.to_string(),
        "prompt_ids": tokens.prompt,
        "chosen_ids": tokens.chosen,
        "rejected_ids": tokens.rejected,
        "chosen_mask": mask(&tokens.chosen),
        "rejected_mask": mask(&tokens.rejected),
    })
}

/// A row for people: the tokens of each part, by their names in the vocabulary.
fn show(encoder: &Encoder, pair: &Pair, tokens: &TokenPair, loss_on: LossOn) -> Result<()> {
    print_line!("{}", pair.place)?;
    let part = |what: &str, ids: &[u32], counted: usize| {
        let names: Vec<String> = ids.iter().map(|id| encoder.name_of(*id)).collect();
        let (count, names) = (ids.len(), names.join(" "));
        print_line!("  {what:<8} {count:>4} tokens, {counted:>4} counted  {names}")
    };
    let counts = |response: &[u32]| {
        let mask = counted(&tokens.prompt, response, loss_on);
        let of_prompt = mask[..tokens.prompt.len()].iter().filter(|c| **c).count();
        (of_prompt, mask.iter().filter(|c| **c).count() - of_prompt)
    };
    part("prompt", &tokens.prompt, counts(&tokens.rejected).0)?;
    for (what, ids) in [("chosen", &tokens.chosen), ("rejected", &tokens.rejected)] {
        if !ids.is_empty() {
            part(what, ids, counts(ids).1)?;
        }
    }
    Ok(())
}
