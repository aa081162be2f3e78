//! The *search* of `tune`: which settings are tried next, given what the tries before them came to.
//!
//! Half of the tries explore: they follow an additive recurrence (Roberts 2018), whose points lie
//! evenly however many there are. The other half stay near the best try so far. Nothing is drawn
//! at random, so a search that was interrupted goes on as if it had not been.

use serde_json::{Value, json};

use crate::settings::Layer;

/// How far from its default a learning rate may be: this many times above or below.
const RATES: f64 = 10.0;
/// The smallest KL budget that is tried, as a share of the largest.
const SMALLEST_BUDGET: f64 = 0.1;
/// How far a try near the best one may be from it: this many times above or below.
const NEAR: f64 = 2.0;
/// The tries that explore before the first one near the best.
pub const FIRST: usize = 4;

/// What is searched. What the user gave is not.
#[derive(Debug, Clone, PartialEq)]
pub struct Space {
    /// The method's own learning rate.
    pub learning_rate: Option<f64>,
    /// The largest KL budget.
    pub kl_budget: Option<f64>,
    /// The selectors, whose first is tried first.
    pub select: &'static [&'static str],
}

/// The settings of one try. `None`: not searched.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub learning_rate: Option<f64>,
    pub kl_budget: Option<f64>,
    pub select: Option<&'static str>,
}

/// What a try came to on the development prompts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Came {
    pub toxicity: f64,
    /// Nats a token.
    pub kl: f64,
}

/// Two significant digits: nobody types more.
fn rounded(value: f64) -> f64 {
    format!("{value:.1e}").parse().unwrap_or(value)
}

/// Point `index` of the additive recurrence in `D` dimensions, each coordinate in 0..1.
fn point<const D: usize>(index: usize) -> [f64; D] {
    // The root of g^(D+1) = g + 1: the golden ratio in one dimension.
    let ratio = (0..64).fold(2.0f64, |g, _| (1.0 + g).powf(1.0 / (D as f64 + 1.0)));
    std::array::from_fn(|k| (0.5 + index as f64 * ratio.powi(-(k as i32 + 1))).fract())
}

impl Space {
    /// Whether there is nothing to search.
    pub fn is_empty(&self) -> bool {
        self.learning_rate.is_none() && self.kl_budget.is_none() && self.select.is_empty()
    }

    /// What a try with these settings chose.
    pub fn choice(&self, layer: &Layer) -> Choice {
        let number = |name: &str| layer.get(name).and_then(Value::as_f64);
        let is_it = |name: &&&str| layer.get("select").and_then(Value::as_str) == Some(**name);
        Choice {
            learning_rate: number("learning-rate").filter(|_| self.learning_rate.is_some()),
            kl_budget: number("kl-budget").filter(|_| self.kl_budget.is_some()),
            select: self.select.iter().find(is_it).copied(),
        }
    }

    /// The settings of the try after these. A try that failed came to `None`. `most_kl`: in nats a
    /// token, what the chosen try may have.
    pub fn next(&self, tries: &[(Choice, Option<Came>)], most_kl: f64) -> Choice {
        let index = tries.len();
        let [u, v, w] = point::<3>(index);
        let near = |at: f64, u: f64| at * NEAR.powf(2.0 * u - 1.0);
        let stays_near = index >= FIRST && index % 2 == 1;
        if let Some(best) = best(tries, most_kl).filter(|_| stays_near) {
            let best = &tries[best].0;
            let within = |(at, most): (f64, f64)| rounded(near(at, v)).min(most);
            return Choice {
                learning_rate: best.learning_rate.map(|rate| rounded(near(rate, u))),
                kl_budget: best.kl_budget.zip(self.kl_budget).map(within),
                select: best.select,
            };
        }
        // The first point is the middle: the method's own rate.
        let rate = |default: f64| rounded(default * RATES.powf(2.0 * u - 1.0));
        let budget = |most: f64| rounded(most * SMALLEST_BUDGET.powf(v)).min(most);
        let select = (w * self.select.len() as f64) as usize;
        match index {
            0 => Choice {
                learning_rate: self.learning_rate,
                kl_budget: self.kl_budget,
                select: self.select.first().copied(),
            },
            _ => Choice {
                learning_rate: self.learning_rate.map(rate),
                kl_budget: self.kl_budget.map(budget),
                select: self.select.get(select).copied(),
            },
        }
    }
}

impl Choice {
    /// The settings, by their names; [`Space::choice`] is the way back.
    pub fn layer(&self) -> Layer {
        let mut layer = Layer::new();
        let mut add = |name: &str, value: Option<Value>| {
            layer.extend(value.map(|value| (name.to_owned(), value)));
        };
        add("learning-rate", self.learning_rate.map(|rate| json!(rate)));
        add("kl-budget", self.kl_budget.map(|nats| json!(nats)));
        add("select", self.select.map(|name| json!(name)));
        layer
    }
}

/// The try with the least toxicity among those within `most_kl`; of equal ones, that with less KL.
pub fn best(tries: &[(Choice, Option<Came>)], most_kl: f64) -> Option<usize> {
    let within = |came: &Came| came.kl <= most_kl;
    let order = |a: &Came, b: &Came| a.toxicity.total_cmp(&b.toxicity).then(a.kl.total_cmp(&b.kl));
    let came = tries.iter().enumerate().filter_map(|(at, (_, came))| Some((at, (*came)?)));
    came.filter(|(_, came)| within(came)).min_by(|(_, a), (_, b)| order(a, b)).map(|(at, _)| at)
}

/// Whether no other try is at least as good in both, and better in one.
pub fn is_on_front(own: Came, all: impl IntoIterator<Item = Came>) -> bool {
    let mut others = all.into_iter();
    !others.any(|other| {
        other.toxicity <= own.toxicity
            && other.kl <= own.kl
            && (other.toxicity < own.toxicity || other.kl < own.kl)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: Space =
        Space { learning_rate: Some(1e-5), kl_budget: Some(0.02), select: &["all", "max"] };

    #[test]
    fn the_first_try_is_the_default_and_all_stay_in_range() {
        let mut tries = Vec::new();
        for index in 0..60 {
            let choice = SPACE.next(&tries, 0.02);
            let (rate, budget) = (choice.learning_rate.expect("a rate"), choice.kl_budget);
            assert!(index > 0 || (rate, budget) == (1e-5, Some(0.02)), "{choice:?}");
            assert!((4e-7..=3e-4).contains(&rate), "{choice:?}");
            assert!(budget.is_some_and(|b| (0.0009..=0.02).contains(&b)), "{choice:?}");
            // As if a rate of 4e-5 were best.
            let toxicity = (rate / 4e-5).ln().abs();
            tries.push((choice, Some(Came { toxicity, kl: 0.01 })));
        }
        let found = best(&tries, 0.02).expect("a best one");
        let rate = tries[found].0.learning_rate.expect("a rate");
        assert!((3.8e-5..4.2e-5).contains(&rate), "{rate}");
        let with = |name| tries.iter().filter(|(c, _)| c.select == Some(name)).count();
        assert!(with("all") > 10 && with("max") > 10);
    }

    #[test]
    fn no_budget_is_rounded_beyond_the_limit() {
        let space = Space { kl_budget: Some(0.0126), ..SPACE };
        let mut tries = Vec::new();
        for _ in 0..40 {
            let choice = space.next(&tries, 0.0126);
            let budget = choice.kl_budget.expect("a budget");
            assert!(budget <= 0.0126, "{budget}");
            // As if more KL were always better.
            tries.push((choice, Some(Came { toxicity: 1.0 / budget, kl: budget })));
        }
    }

    #[test]
    fn the_best_is_within_the_limit() {
        let choice = SPACE.next(&[], 0.02);
        let came = |toxicity, kl| (choice.clone(), Some(Came { toxicity, kl }));
        let tries = [
            came(5.0, 0.03),
            (choice.clone(), None),
            came(9.0, 0.02),
            came(9.0, 0.01),
            came(10.0, 0.001),
        ];
        assert_eq!(best(&tries, 0.02), Some(3));
        assert_eq!(best(&tries, 0.0001), None);
        let all: Vec<Came> = tries.iter().filter_map(|(_, came)| *came).collect();
        let front: Vec<bool> = all.iter().map(|own| is_on_front(*own, all.clone())).collect();
        assert_eq!(front, [true, false, true, true]);
    }

    #[test]
    fn a_choice_is_known_from_its_settings() {
        for index in 0..8 {
            let tries = vec![(SPACE.next(&[], 0.02), None); index];
            let choice = SPACE.next(&tries, 0.02);
            assert_eq!(SPACE.choice(&choice.layer()), choice);
        }
    }

    #[test]
    fn what_is_given_is_not_searched() {
        let space = Space { learning_rate: None, kl_budget: None, select: &[] };
        assert!(space.is_empty() && space.next(&[], 1.0).layer().is_empty());
    }
}
