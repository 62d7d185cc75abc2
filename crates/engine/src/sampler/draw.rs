//! The draw: inverse of the cumulative distribution over the candidates, best first. The order is part of the contract: the same
//! seed and settings give the same tokens, however the candidates were found; and what a device has chosen as the best of a row is enough
//! to draw from it, nearly always.

use super::top_p::boundary;
use super::{Candidate, best_first};

/// A candidate that was drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draw {
    pub(super) of: Candidate,
    /// The sum of all weights.
    pub(super) total: f64,
}

/// Lists longer than this are not sorted: more than a device chooses, so how the candidates were found makes no difference.
const LONG: usize = 2048;
/// Units of the largest weight in the sums of long lists, which are integers and so do not depend on the order of the list.
const UNITS: f64 = (1u64 << 44) as f64;

/// Draws one of the candidates, of which at least one has a weight, by a number in `[0, 1)`. They are left in some order.
pub(super) fn draw(candidates: &mut [Candidate], uniform: f64) -> Draw {
    match candidates.len() {
        0..=LONG => draw_sorted(candidates, uniform),
        _ => draw_split(candidates, uniform),
    }
}

fn draw_sorted(candidates: &mut [Candidate], uniform: f64) -> Draw {
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

/// Splits the list by rank, and then only the part in which the drawn one lies. What weighs less than one unit is not drawn.
fn draw_split(candidates: &mut [Candidate], uniform: f64) -> Draw {
    let most = candidates.iter().fold(0.0, |m: f64, c| m.max(f64::from(c.weight)));
    if most == 0.0 {
        return draw_sorted(candidates, uniform); // all have vanished alike
    }
    let scale = UNITS / most;
    let mass = |part: &[Candidate]| -> u128 {
        // So many of the largest fit into 64 bits.
        let units =
            |part: &[Candidate]| part.iter().map(|c| (f64::from(c.weight) * scale) as u64).sum::<u64>();
        part.chunks(1 << 18).map(|part| u128::from(units(part))).sum()
    };
    let total = mass(candidates);
    let drawn = ((uniform * total as f64) as u128).min(total - 1);
    // What is drawn has a weight: only with it is the mass larger than `drawn`.
    let at = boundary(candidates, drawn + 1, mass, best_first);
    Draw { of: candidates[at], total: total as f64 / scale }
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
    /// A long list is split and not sorted; that gives the tokens of a list that is sorted, whatever order it comes in.
    #[test]
    fn a_long_list_gives_the_tokens_of_a_sorted_one() {
        let mut rng = Pcg64::new(5);
        for n in [LONG + 1, 5000, 40_000] {
            let logits: Vec<f32> = (0..n).map(|_| (12.0 * rng.uniform() - 12.0) as f32).collect();
            let all = |order: &mut dyn Iterator<Item = usize>| -> Vec<Candidate> {
                order
                    .map(|i| {
                        let weight = if i % 7 == 0 { 0.0 } else { logits[i].exp() };
                        Candidate { id: i as u32, logit: if i % 7 == 0 { -200.0 } else { logits[i] }, weight }
                    })
                    .collect()
            };
            let mut sorted = all(&mut (0..n));
            for uniform in (0..40).map(|_| rng.uniform()).chain([0.0, 1.0 - f64::EPSILON / 2.0]) {
                let want = draw_sorted(&mut sorted, uniform);
                let (a, b) =
                    (draw(&mut all(&mut (0..n)), uniform), draw(&mut all(&mut (0..n).rev()), uniform));
                assert_eq!((a.of, a.total), (b.of, b.total), "{n} {uniform}");
                assert!((a.total - want.total).abs() < 1e-7 * want.total);
                // Neighbours where the sums differ by their roundings, else the same.
                let rank = |c: Candidate| sorted.iter().position(|s| *s == c).unwrap();
                assert!(rank(a.of).abs_diff(rank(want.of)) <= 1 && a.of.weight > 0.0, "{n} {uniform}");
            }
        }
    }
}
