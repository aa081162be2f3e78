//! The normal texts of a repair: read, or written by the model itself.

use std::path::Path;

use anyhow::Result;

use super::Loaded;
use super::rows::{Rows, lengths};
use crate::checkpoint::hub::rows_path;
use crate::data::split::split;
use crate::eval::normal::{self, Normal, Writing};
use crate::eval::task::Subject;
use crate::model::weights::Weights;
use crate::scorers::Scorer;
use crate::settings::Prepared;
use crate::slice::select::First;
use crate::step::Recipe;
use crate::tokens::Cut;
use crate::{bail_input, data};

/// Tokens of a normal text that the model writes.
pub const WRITTEN_TOKENS: usize = 64;

impl Rows {
    /// Whether the run looks at held-back pairs on its way.
    pub fn validates(&self, settings: &Prepared, recipe: &Recipe) -> bool {
        let looks = settings.eval_steps > 0 || recipe.first() == First::Trials;
        looks && !(self.train.valid_pairs.is_empty() && self.held_prompts.is_empty())
    }

    /// How many of so many normal texts are held back.
    pub fn normal_to_hold_back(&self, settings: &Prepared, recipe: &Recipe, texts: usize) -> usize {
        let to_spare = texts.saturating_sub(settings.batch_size);
        let most = self.record.held_back.min(texts / 4).min(to_spare);
        // Without a look at held-back pairs, the KL of an online method and that of a budget are
        // measured all the same.
        if recipe.online || settings.kl_budget.is_some() || self.validates(settings, recipe) {
            most
        } else {
            0
        }
    }

    /// Reads and splits normal texts.
    pub fn take_normal(
        &mut self,
        settings: &Prepared,
        recipe: &Recipe,
        loaded: &Loaded,
        path: &Path,
    ) -> Result<()> {
        let texts = data::read_texts(&rows_path(path)?, &data::KeyMap::new(), None)?;
        let (tokens, Cut { texts: cut, .. }) =
            loaded.encoder.texts(&texts, lengths(settings, loaded)?)?;
        if tokens.len() < settings.batch_size {
            bail_input!(
                "{}: {} texts are fewer than a batch of {}; lower --batch-size, or give more \
                 normal text",
                path.display(),
                tokens.len(),
                settings.batch_size
            );
        }
        let held_back = self.normal_to_hold_back(settings, recipe, tokens.len());
        let (normal, valid_normal) = split(tokens, held_back, settings.seed, 1, |index, _| [index]);
        self.record.cut_texts = cut;
        self.record.normal = normal.len();
        self.record.normal_held_back = valid_normal.len();
        if self.text.is_empty() && !valid_normal.is_empty() {
            self.record.perplexity_of = "held-back normal text".into();
            let end = loaded.ends().first().copied();
            self.text = valid_normal
                .iter()
                .flat_map(|ids| end.into_iter().chain(ids.iter().copied()))
                .collect();
        }
        let validates = self.validates(settings, recipe);
        // Too few to hold any back: the KL term of the validation then looks at texts it also
        // learned from.
        self.train.valid_normal =
            if validates && valid_normal.is_empty() { normal.clone() } else { valid_normal };
        self.train.normal = normal;
        Ok(())
    }
}

/// Unconditional texts as the paper makes them, those that score as toxic left out.
pub fn write(
    settings: &Prepared,
    loaded: &Loaded,
    weights: &Weights,
    scorer: &dyn Scorer,
    quiet: bool,
) -> Result<Normal> {
    let tokens = lengths(settings, loaded)?.total.saturating_sub(1).min(WRITTEN_TOKENS);
    let writing =
        Writing::new(settings.normal_texts, tokens, settings.seed, loaded.end_of_text()?, scorer);
    let subject =
        Subject { model: &loaded.model, weights, encoder: &loaded.encoder, ends: loaded.ends() };
    normal::normal(&subject, &loaded.checkpoint().identity()?, &writing, quiet)
}
