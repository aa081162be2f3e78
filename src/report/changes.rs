//! The norms of changes, block by block.

use std::collections::BTreeMap;

use crate::checkpoint::Change;

/// The N in names of tensors like `…h.N.…` and `…layers.N.…`.
pub fn block_number(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// The changes of all tensors of each block as one change. `None` stands for tensors outside the
/// blocks.
pub fn change_by_block(
    changed: &[Change],
    block_of: impl Fn(&str) -> Option<usize>,
) -> BTreeMap<Option<usize>, Change> {
    let mut blocks: BTreeMap<Option<usize>, Change> = BTreeMap::new();
    for change in changed {
        let block = block_of(&change.name);
        let sum = blocks.entry(block).or_insert_with(|| Change {
            name: block.map_or("outside the blocks".into(), |b| format!("block {b}")),
            norm: 0.0,
            base_norm: 0.0,
            values: 0,
        });
        sum.norm = sum.norm.hypot(change.norm);
        sum.base_norm = sum.base_norm.hypot(change.base_norm);
        sum.values += change.values;
    }
    blocks
}
