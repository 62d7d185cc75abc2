//! XTC, "exclude top choices" (Weidmann 2024, text-generation-webui pull request 6335): with a probability, all tokens of at
//! least a threshold are dropped but the least likely of them. A sensible token is left, and it is not the expected one.

use super::best_first;
use super::set::Set;
use std::cmp::Ordering;

/// Drops the top choices above the threshold, if there are two at least.
pub(super) fn apply(set: &mut Set, threshold: f32) {
    let total = set.total();
    let least = f64::from(threshold) * total;
    let list = set.list();
    let top = list.iter().filter(|c| f64::from(c.weight) >= least);
    let Some(kept) = top.max_by(|a, b| best_first(a, b)).copied() else { return };
    list.retain(|c| best_first(c, &kept) != Ordering::Less);
}
