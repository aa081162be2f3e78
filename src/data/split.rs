//! Which rows are held back.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::random::{Purpose, Stream};

/// Holds back a seeded choice of rows; both parts keep the order of the file. Rows with a key in
/// common go together: held-back pairs whose prompts were learned from would say nothing of other
/// prompts. So a few more than `held_back` may be.
pub fn split<T, K: Ord, const N: usize>(
    rows: Vec<T>,
    held_back: usize,
    seed: u64,
    which: u64,
    keys: impl Fn(usize, &T) -> [K; N],
) -> (Vec<T>, Vec<T>) {
    // By each row, an earlier row of its group or itself.
    let mut earlier: Vec<usize> = (0..rows.len()).collect();
    fn first(earlier: &[usize], mut row: usize) -> usize {
        while earlier[row] != row {
            row = earlier[row];
        }
        row
    }
    let mut row_of = BTreeMap::new();
    for (index, row) in rows.iter().enumerate() {
        for key in keys(index, row) {
            let other = first(&earlier, *row_of.entry(key).or_insert(index));
            let own = first(&earlier, index);
            earlier[own.max(other)] = own.min(other);
        }
    }
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut group_of = BTreeMap::new();
    for index in 0..rows.len() {
        let next = groups.len();
        let place = *group_of.entry(first(&earlier, index)).or_insert(next);
        if place == next {
            groups.push(Vec::new());
        }
        groups[place].push(index);
    }
    let mut order: Vec<usize> = (0..groups.len()).collect();
    Stream::new(seed, Purpose::Split, which, 0).shuffle(&mut order);
    let mut chosen = BTreeSet::new();
    for place in order {
        if chosen.len() >= held_back {
            break;
        }
        if groups[place].len() <= held_back {
            chosen.extend(groups[place].iter().copied());
        }
    }
    if chosen.len() < held_back {
        // Too few groups to keep apart: rows it is.
        let mut order: Vec<usize> = (0..rows.len()).collect();
        Stream::new(seed, Purpose::Split, which, 0).shuffle(&mut order);
        chosen = order.into_iter().take(held_back).collect();
    }
    let (mut kept, mut held) = (Vec::new(), Vec::new());
    for (index, row) in rows.into_iter().enumerate() {
        if chosen.contains(&index) { held.push(row) } else { kept.push(row) }
    }
    (kept, held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_one_prompt_stay_together() {
        let rows: Vec<(u32, u32)> = (0..40).map(|i| (i % 10, i)).collect();
        let (kept, held) = split(rows.clone(), 6, 7, 0, |_, row| [row.0]);
        assert_eq!((kept.len(), held.len()), (32, 8));
        assert!(held.iter().all(|h| kept.iter().all(|k| k.0 != h.0)), "{held:?}");
        assert!(kept.is_sorted_by_key(|r| r.1));
        // One prompt for all: rows are held back.
        assert_eq!(split(rows.clone(), 6, 7, 0, |_, _| [0]).1.len(), 6);
        // Alone, every row is a group, and the number is exact.
        assert_eq!(split(rows.clone(), 6, 7, 0, |index, _| [index]).1.len(), 6);
        // 0 with 1, 1 with 2 and so on, by the one key or the other: five rows a group.
        let chained = |_: usize, row: &(u32, u32)| {
            [row.1 / 5 * 100 + row.1 % 5, row.1 / 5 * 100 + (row.1 % 5 + 1).min(4)]
        };
        let (kept, held) = split(rows, 5, 7, 0, chained);
        assert_eq!(held.len(), 5);
        assert!(held.iter().all(|h| kept.iter().all(|k| k.1 / 5 != h.1 / 5)), "{held:?}");
    }
}
