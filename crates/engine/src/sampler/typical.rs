//! Locally typical sampling (Meister et al. 2022, eq. 12): with the entropy `H` of the distribution, tokens are taken in the
//! order of `|-ln p - H|` until their mass reaches `p`: those whose surprise is what one expects. The best token may be too
//! expected to be among them.

use super::set::Set;
use super::{Candidate, top_p};

/// Keeps the typical set of mass `p`; 1 keeps all.
pub(super) fn apply(set: &mut Set, p: f32) {
    if p >= 1.0 {
        return;
    }
    let (entropy, total) = set.entropy();
    if set.listed().is_none() {
        // Whatever surprises by more than 2 H comes after everything else, the likelier first: there the bound of top-p holds.
        let n = set.row().len();
        let tail = total * (-2.0 * entropy).exp();
        set.gather(top_p::least_weight(p, total, n).min(tail));
    }
    let expected = (total.ln() - entropy) as f32; // of ln w, for p = w / total
    let distance = |c: &Candidate| (c.weight.ln() - expected).abs();
    let order = |a: &Candidate, b: &Candidate| distance(a).total_cmp(&distance(b)).then(a.id.cmp(&b.id));
    top_p::smallest_set(set.list(), p, total, order);
}
