//! Top-p, or nucleus (Holtzman et al. 2020): the smallest set of best tokens whose mass reaches `p`.
//! A quickselect by mass: halves are split by rank and only the half with the boundary is split again, so no sort.

use super::set::Set;
use super::{Candidate, best_first};
use std::cmp::Ordering;
use std::ops::SubAssign;

/// Keeps the nucleus. `least` is a share of the best one's weight below which a later stage keeps nothing anyway.
pub(super) fn apply(set: &mut Set, p: f32, least: f32) {
    if p >= 1.0 {
        return;
    }
    let total = set.total();
    if set.listed().is_none() {
        let n = set.row().len();
        set.gather(least_weight(p, total, n).max(f64::from(least)));
    }
    smallest_set(set.list(), p, total, best_first);
}

/// Keeps the first candidates in some order whose mass reaches `p total`: one at least. They are left in no order.
pub(super) fn smallest_set(
    candidates: &mut Vec<Candidate>,
    p: f32,
    total: f64,
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
) {
    let mass = |part: &[Candidate]| part.iter().map(|c| f64::from(c.weight)).sum();
    let last = boundary(candidates, f64::from(p) * total, mass, order);
    candidates.truncate(last + 1);
}

/// The rank in some order of the candidate with which the mass of those up to it reaches `need`; the last one's if none does. It
/// then stands at that place, and those before it in no order.
pub(super) fn boundary<M: PartialOrd + SubAssign>(
    candidates: &mut [Candidate],
    mut need: M,
    mass: impl Fn(&[Candidate]) -> M,
    order: impl Fn(&Candidate, &Candidate) -> Ordering,
) -> usize {
    // It is one of `low..high`: everything before `low` is not enough.
    let (mut low, mut high) = (0, candidates.len());
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        candidates[low..high].select_nth_unstable_by(middle - low, &order);
        let better = mass(&candidates[low..middle]);
        if better >= need {
            high = middle;
        } else {
            need -= better;
            low = middle;
        }
    }
    low
}

/// Tokens of less weight than this cannot be in the nucleus: all `n` of them together weigh less than `1 - p`.
pub(super) fn least_weight(p: f32, total: f64, n: usize) -> f64 {
    (1.0 - f64::from(p)) * total / n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn is_the_smallest_prefix_that_reaches_p(
            weights in proptest::collection::vec(1u16..1000, 1..300), p in 0.01f32..1.0,
        ) {
            let all: Vec<Candidate> = weights
                .iter()
                .enumerate()
                .map(|(i, w)| Candidate { id: i as u32, logit: f32::from(*w).ln(), weight: f32::from(*w) })
                .collect();
            let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
            let mut sorted = all.clone();
            sorted.sort_by(best_first);
            let mut mass = 0.0;
            let want = 1 + sorted
                .iter()
                .position(|c| {
                    mass += f64::from(c.weight);
                    mass >= f64::from(p) * total
                })
                .unwrap();
            let mut got = all.clone();
            smallest_set(&mut got, p, total, best_first);
            proptest::prop_assert_eq!(got.len(), want);
            got.sort_by(best_first);
            proptest::prop_assert_eq!(&got[..], &sorted[..want]);
            let least = least_weight(p, total, all.len());
            proptest::prop_assert!(got.iter().all(|c| f64::from(c.weight) >= least));
        }
    }
}
