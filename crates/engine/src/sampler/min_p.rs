//! Min-p (Nguyen et al. 2024): keep `p_i >= min_p p_max`.

use super::set::Set;

/// Keeps the candidates of at least `min_p` times the best one's probability; 0 keeps all.
pub(super) fn apply(set: &mut Set, min_p: f32) {
    if min_p <= 0.0 {
        return;
    }
    if set.listed().is_none() {
        set.gather(f64::from(min_p));
    }
    let list = set.list();
    // 1, unless an earlier stage has dropped the row's best.
    let best = list.iter().fold(0.0, |m: f32, c| m.max(c.weight));
    list.retain(|c| c.weight >= min_p * best);
}
