//! A *slice* is the part of a model that one repair step may change.

pub mod input;
pub mod select;
pub mod sensitivity;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::Model;
use crate::model::weights::{Place, Sublayer, TensorSpec, Want};

/// What a slice is cut into.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// Whole blocks (IRepair).
    #[default]
    Block,
    /// The attention and the MLP of a block apart, each with its norm.
    Sublayer,
}

/// Which tensors of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Whole,
    Attention,
    Mlp,
}

/// A block or a sublayer of it: what selectors rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unit {
    pub block: usize,
    pub part: Part,
}

impl Unit {
    /// Every unit of a model, in order.
    pub fn all(blocks: usize, granularity: Granularity) -> Vec<Self> {
        let parts: &[Part] = match granularity {
            Granularity::Block => &[Part::Whole],
            Granularity::Sublayer => &[Part::Attention, Part::Mlp],
        };
        (0..blocks).flat_map(|block| parts.iter().map(move |&part| Self { block, part })).collect()
    }

    /// Whether a tensor belongs to it.
    pub fn contains(&self, spec: &TensorSpec) -> bool {
        spec.place == Place::Block(self.block)
            && match self.part {
                Part::Whole => true,
                Part::Attention => spec.sublayer == Some(Sublayer::Attention),
                Part::Mlp => spec.sublayer == Some(Sublayer::Mlp),
            }
    }

    /// Number of its parameters.
    pub fn parameters(&self, model: &Model) -> usize {
        let specs = model.specs();
        specs.iter().filter(|s| self.contains(s)).map(|s| s.shape.iter().product::<usize>()).sum()
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            Part::Whole => write!(f, "{}", self.block),
            Part::Attention => write!(f, "{}.attention", self.block),
            Part::Mlp => write!(f, "{}.mlp", self.block),
        }
    }
}

/// Which tensors a step may change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slice {
    /// Some units, in order.
    Units(Vec<Unit>),
    /// The whole model: blocks, embeddings, final norm and head.
    Everything,
}

impl Slice {
    /// One whole block, 0-based.
    pub fn block(block: usize) -> Self {
        Self::Units(vec![Unit { block, part: Part::Whole }])
    }

    /// Whether a tensor is in the slice.
    pub fn contains(&self, spec: &TensorSpec) -> bool {
        match self {
            Slice::Units(units) => units.iter().any(|u| u.contains(spec)),
            Slice::Everything => true,
        }
    }

    /// What a training pass wants of a tensor: its gradient if it is in the slice, nothing if not.
    pub fn want(&self, spec: &TensorSpec) -> Want {
        if self.contains(spec) { Want::Gradient } else { Want::Nothing }
    }

    /// The block, if all of the slice lies in one.
    pub fn only_block(&self) -> Option<usize> {
        match self {
            Slice::Units(units) => {
                let first = units.first()?.block;
                units.iter().all(|u| u.block == first).then_some(first)
            }
            Slice::Everything => None,
        }
    }

    /// The slice of units named as [`Slice::names`] names them. `None` for names that mean nothing.
    pub fn named(names: &[String]) -> Option<Self> {
        let unit = |name: &String| {
            let (block, part) = match name.split_once('.') {
                None => (name.as_str(), Part::Whole),
                Some((block, "attention")) => (block, Part::Attention),
                Some((block, "mlp")) => (block, Part::Mlp),
                Some(_) => return None,
            };
            Some(Unit { block: block.parse().ok()?, part })
        };
        let mut units = names.iter().map(unit).collect::<Option<Vec<_>>>()?;
        // A unit that is named twice is in the slice once.
        units.sort_unstable();
        units.dedup();
        Some(Self::Units(units))
    }

    /// Several slices as one. `None` if one is the whole model.
    pub fn union(slices: &[Self]) -> Option<Self> {
        let mut all = Vec::new();
        for slice in slices {
            match slice {
                Slice::Units(units) => all.extend_from_slice(units),
                Slice::Everything => return None,
            }
        }
        all.sort_unstable();
        Some(Self::Units(all))
    }

    /// The names of its units; none for the whole model.
    pub fn names(&self) -> Vec<String> {
        match self {
            Slice::Units(units) => units.iter().map(ToString::to_string).collect(),
            Slice::Everything => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ARCHES;

    #[test]
    fn slices_are_known_by_their_names() {
        let slice = Slice::Units(Unit::all(2, Granularity::Sublayer));
        assert_eq!(Slice::named(&slice.names()), Some(slice));
        assert_eq!(Slice::named(&["3".into()]), Some(Slice::block(3)));
        assert_eq!(Slice::named(&["3.head".into()]), None);
    }

    #[test]
    fn sublayers_divide_every_block() {
        for arch in ARCHES {
            let config = serde_json::from_str(arch.tiny).expect(arch.model_type);
            let model = Model::from_config(&config).expect(arch.model_type);
            let blocks = model.block_parameters();
            let units = Unit::all(blocks.len(), Granularity::Sublayer);
            for (pair, block) in units.chunks(2).zip(&blocks) {
                let parts: Vec<usize> = pair.iter().map(|u| u.parameters(&model)).collect();
                assert_eq!(parts.iter().sum::<usize>(), *block, "{}", arch.model_type);
                assert!(
                    parts.iter().all(|p| *p > block / 10),
                    "{}: {parts:?} of {block}",
                    arch.model_type
                );
            }
        }
    }
}
