//! Top-k (Fan et al. 2018): keep the `k` largest logits. One pass with a rising floor, never a sort of the vocabulary.

use super::{Candidate, best_first};

/// Puts the `k` best of the row into `out`, in no order; of equal logits the lower id is better. Tokens at `-inf` are
/// forbidden and never kept.
pub(crate) fn select(row: &[f32], k: usize, out: &mut Vec<Candidate>) {
    const BLOCK: usize = 32;
    out.clear();
    let room = 2 * k.clamp(32, row.len().max(32));
    let mut floor = f32::NEG_INFINITY;
    for (block, logits) in row.chunks(BLOCK).enumerate() {
        // Most blocks have nothing above the floor, which vector code sees at once.
        if logits.iter().fold(0u32, |any, l| any | u32::from(*l > floor)) == 0 {
            continue;
        }
        for (i, &logit) in logits.iter().enumerate() {
            // A later id that ties with the k-th best loses to it, so `>` is exact.
            if logit > floor {
                out.push(Candidate { id: (block * BLOCK + i) as u32, logit, weight: 0.0 });
                if out.len() == room {
                    shrink(out, k);
                    floor = out[k - 1].logit;
                }
            }
        }
    }
    shrink(out, k);
}

/// Keeps the `k` best.
pub(super) fn shrink(out: &mut Vec<Candidate>, k: usize) {
    if out.len() > k {
        out.select_nth_unstable_by(k - 1, best_first);
        out.truncate(k);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn equals_a_full_sort(row in proptest::collection::vec(-9i8..9, 1..400), k in 1usize..200) {
            let row: Vec<f32> =
                row.iter().map(|l| if *l == -9 { f32::NEG_INFINITY } else { f32::from(*l) }).collect();
            let mut want: Vec<u32> = (0..row.len() as u32).filter(|i| row[*i as usize].is_finite()).collect();
            want.sort_by(|a, b| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b)));
            want.truncate(k);
            let mut got = Vec::new();
            select(&row, k, &mut got);
            got.sort_by(best_first);
            proptest::prop_assert_eq!(got.iter().map(|c| c.id).collect::<Vec<_>>(), want);
        }
    }
}
