//! Which settings a method has a use for: each function says why it has none.

use super::Method;
use crate::slice::select::First;
use crate::step::Recipe;

/// Settings of block-level methods that `of` finds in the recipe.
fn recipe(
    method: &Method,
    of: impl Fn(&Recipe) -> bool,
    why: &'static str,
) -> Option<&'static str> {
    match method {
        Method::Neurons(_) => Some("neurons to change, and no use for such a setting"),
        Method::Blocks(recipe) => (!of(recipe)).then_some(why),
    }
}

pub fn blocks(method: &Method) -> Option<&'static str> {
    recipe(method, |_| true, "")
}

pub fn ranking(method: &Method) -> Option<&'static str> {
    recipe(method, |r| r.select.ranks, "no ranking of blocks")
}

pub fn look(method: &Method) -> Option<&'static str> {
    recipe(method, |r| r.first() == First::Look, "no look at a sample")
}

pub fn trials(method: &Method) -> Option<&'static str> {
    recipe(method, |r| r.first() == First::Trials, "no trials to make")
}

pub fn beta(method: &Method) -> Option<&'static str> {
    recipe(method, |r| r.objective.beta.is_some(), "no β in it")
}

pub fn nll(method: &Method) -> Option<&'static str> {
    recipe(method, |r| r.objective.alpha, "no NLL in it")
}

/// Settings of methods that sample their own pairs.
pub fn online(method: &Method) -> Option<&'static str> {
    recipe(method, |r| r.online, "pairs of a file, and samples nothing")
}

/// Rounds: of sampling, or over the rows that still fail.
pub fn rounds(method: &Method) -> Option<&'static str> {
    match method {
        Method::Neurons(_) => None,
        Method::Blocks(recipe) => (!recipe.online).then_some("no rounds"),
    }
}

/// Pairs of a file.
pub fn pairs(method: &Method) -> Option<&'static str> {
    match method {
        Method::Blocks(recipe) if recipe.online => Some("pairs of its own (--prompts)"),
        _ => None,
    }
}

/// Pairs of a file, which are prompts with responses.
pub fn rows(method: &Method) -> Option<&'static str> {
    pairs(method).or_else(|| blocks(method))
}

/// A KL term.
pub fn kl(method: &Method) -> Option<&'static str> {
    recipe(
        method,
        |r| r.kl_weight != 0.0,
        "no KL term to keep within a budget (a name that ends in +kl has)",
    )
}

pub fn neurons(method: &Method) -> Option<&'static str> {
    match method {
        Method::Neurons(_) => None,
        Method::Blocks(_) => Some("whole blocks to change, no neurons of a wrong answer"),
    }
}

/// Settings of both families' methods that follow a gradient.
pub fn descent(method: &Method) -> Option<&'static str> {
    match method {
        Method::Neurons(recipe) if !recipe.method.descends => Some("no gradient to follow"),
        _ => None,
    }
}

/// Settings of neuron-level methods that follow a gradient.
pub fn descent_alone(method: &Method) -> Option<&'static str> {
    neurons(method).or_else(|| descent(method))
}
