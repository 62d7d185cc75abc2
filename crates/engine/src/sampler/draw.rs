//! The draw: inverse of the cumulative distribution over the candidates, best first. The order is part of the contract: the same
//! seed and settings give the same tokens, however the candidates were found; and what a device has chosen as the best of a row is enough
//! to draw from it, nearly always.

use super::{Candidate, best_first};

/// A candidate that was drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draw {
    pub(super) of: Candidate,
    /// The sum of all weights.
    pub(super) total: f64,
}

/// Draws one of the candidates, of which at least one has a weight, by a number in `[0, 1)`.
pub(super) fn draw(candidates: &mut [Candidate], uniform: f64) -> Draw {
    candidates.sort_unstable_by(best_first);
    let total: f64 = candidates.iter().map(|c| f64::from(c.weight)).sum();
    let mut left = uniform * total;
    let mut of = candidates[0];
    for c in candidates.iter().filter(|c| c.weight > 0.0) {
        of = *c;
        left -= f64::from(c.weight);
        if left < 0.0 {
            break;
        }
    }
    // Rounding may leave a trace after the last one.
    Draw { of, total }
}

#[cfg(test)]
mod tests {
    use super::super::rng::Pcg64;
    use super::*;

    #[test]
    fn frequencies_pass_a_chi_square_test() {
        let weights = [0.4f32, 0.0, 1.0, 0.05, 0.3, 0.25];
        let all: Vec<Candidate> = weights
            .iter()
            .enumerate()
            .map(|(i, w)| Candidate { id: i as u32, logit: w.ln(), weight: *w })
            .collect();
        let (mut rng, mut counts) = (Pcg64::new(11), [0u32; 6]);
        const N: u32 = 20_000;
        for _ in 0..N {
            counts[draw(&mut all.clone(), rng.uniform()).of.id as usize] += 1;
        }
        assert_eq!(counts[1], 0);
        let total: f32 = weights.iter().sum();
        let chi: f64 = (0..6)
            .filter(|i| weights[*i] > 0.0)
            .map(|i| {
                let want = f64::from(weights[i] / total) * f64::from(N);
                (f64::from(counts[i]) - want).powi(2) / want
            })
            .sum();
        assert!(chi < 18.47, "chi-square {chi} with 4 degrees of freedom (p = 0.001)");
    }
}
