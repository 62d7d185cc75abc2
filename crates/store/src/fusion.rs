//! Likeness of embeddings, and one ranking from several: what a retrieval by words and one by meaning agree on comes
//! first. The vectors are the caller's; no model is known here.

/// The cosine of the angle between two vectors, -1 to 1. `None` where there is none: other lengths, a zero vector, or
/// values that are not finite.
pub fn cosine(a: &[f32], b: &[f32]) -> Option<f64> {
    if a.len() != b.len() {
        return None;
    }
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let norms = dot(a, a).sqrt() * dot(b, b).sqrt();
    let cosine = dot(a, b) / norms;
    (norms > 0.0 && cosine.is_finite()).then(|| cosine.clamp(-1.0, 1.0))
}

/// The candidates that have a cosine to the query of at least `least`, the best first, equal ones in their order. Those
/// without one are left out.
pub fn rank_by_cosine<'a>(
    query: &[f32],
    candidates: impl IntoIterator<Item = &'a [f32]>,
    least: f64,
) -> Vec<(usize, f64)> {
    let cosines = candidates.into_iter().map(|v| cosine(query, v)).enumerate();
    let mut found: Vec<(usize, f64)> =
        cosines.filter_map(|(i, c)| Some((i, c.filter(|c| *c >= least)?))).collect();
    found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    found
}

/// Reciprocal rank fusion (Cormack, Clarke, Büttcher 2009): each list gives `1 / (60 + rank)` to what is in it, the
/// first with rank 1. The best first, equal ones by number; a number that a list has twice counts where it comes first.
pub fn reciprocal_rank_fusion(lists: &[&[usize]]) -> Vec<(usize, f64)> {
    let mut scores: std::collections::BTreeMap<usize, f64> = std::collections::BTreeMap::new();
    for list in lists {
        let mut seen = std::collections::HashSet::new();
        let once = list.iter().filter(|at| seen.insert(**at));
        for (rank, at) in once.enumerate() {
            *scores.entry(*at).or_default() += 1.0 / (61.0 + rank as f64);
        }
    }
    let mut fused: Vec<(usize, f64)> = scores.into_iter().collect();
    fused.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    fused
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosines() {
        for (a, b, expected) in [
            (&[1.0, 0.0][..], &[2.0, 0.0][..], Some(1.0)),
            (&[1.0, 0.0], &[0.0, 3.0], Some(0.0)),
            (&[1.0, 2.0], &[-2.0, -4.0], Some(-1.0)),
            (&[3.0, 4.0], &[4.0, 3.0], Some(0.96)),
            (&[f32::MAX, 1.0], &[f32::MAX, 1.0], Some(1.0)),
            (&[1.0], &[1.0, 0.0], None),
            (&[0.0, 0.0], &[1.0, 0.0], None),
            (&[], &[], None),
            (&[f32::NAN, 0.0], &[1.0, 0.0], None),
            (&[f32::INFINITY, 0.0], &[1.0, 0.0], None),
        ] {
            let found = cosine(a, b);
            assert_eq!(found.is_some(), expected.is_some(), "{a:?} {b:?}");
            assert!(found.zip(expected).is_none_or(|(f, e)| (f - e).abs() < 1e-12), "{a:?} {b:?}: {found:?}");
        }
    }

    #[test]
    fn ranks() {
        let vectors: [&[f32]; 5] = [&[0.0, 1.0], &[1.0, 1.0], &[2.0, 2.0], &[1.0], &[-1.0, 0.0]];
        let order =
            |least| rank_by_cosine(&[1.0, 0.5], vectors, least).iter().map(|f| f.0).collect::<Vec<_>>();
        assert_eq!(order(-1.0), [1, 2, 0, 4]);
        assert_eq!(order(0.9), [1, 2]);
    }

    #[test]
    fn fusion_prefers_what_both_found() {
        let fused = reciprocal_rank_fusion(&[&[7, 3, 5], &[9, 3]]);
        assert_eq!(fused.iter().map(|f| f.0).collect::<Vec<_>>(), [3, 7, 9, 5]);
        for ((_, score), known) in fused.iter().zip([2.0 / 62.0, 1.0 / 61.0, 1.0 / 61.0, 1.0 / 63.0]) {
            assert!((score - known).abs() < 1e-15);
        }
        assert_eq!(reciprocal_rank_fusion(&[&[4, 4, 4, 2]])[1], (2, 1.0 / 62.0));
        assert!(reciprocal_rank_fusion(&[]).is_empty());
    }
}
