//! Min-p (Nguyen et al. 2024): keep `p_i >= min_p p_max`. Weights have their maximum at 1, so they compare directly.

use super::Candidate;

/// Keeps the candidates of at least `min_p` times the best one's probability; 0 keeps all.
pub(crate) fn keep(candidates: &mut Vec<Candidate>, min_p: f32) {
    if min_p > 0.0 {
        candidates.retain(|c| c.weight >= min_p);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compares_with_the_best() {
        let all: Vec<Candidate> = [1.0, 0.5, 0.1, 0.0]
            .iter()
            .enumerate()
            .map(|(i, w): (usize, &f32)| Candidate { id: i as u32, logit: w.ln(), weight: *w })
            .collect();
        for (min_p, want) in [(0.0, 4), (0.05, 3), (0.1, 3), (0.2, 2), (0.6, 1), (1.0, 1)] {
            let mut got = all.clone();
            keep(&mut got, min_p);
            assert_eq!(got.len(), want, "min_p {min_p}");
        }
    }
}
