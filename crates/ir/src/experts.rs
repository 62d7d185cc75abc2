//! Mixtures of experts: how a row chooses its experts and what their products are weighted by. This is the semantics of
//! [`Op::Route`](crate::Op::Route), and fast enough that devices of this process run it as it is: it costs a few experts'
//! scores, and its arithmetic is one row's alone.

use crate::op::Activation;
use crate::reference::activate;

/// How logits of experts become scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scoring {
    /// Softmax over all experts.
    Softmax,
    /// `1 / (1 + exp(-x))` of each.
    Sigmoid,
    /// One expert after the other by its logit; the weight of each is its part of a softmax over those not chosen before whose
    /// logits `x` are near the best, `best - x <= 2 eps max(|x|, best)`: SparseMixer without its noise (Liu et al. 2023), as in
    /// Phi-3.5-MoE.
    Sparse {
        /// Half of the relative distance that counts as near.
        eps: f32,
    },
}

/// A choice of groups before that of experts: only experts of the best groups are candidates (DeepSeek-V2, 3.4 in 2405.04434).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertGroups {
    /// Groups of equally many neighbouring experts.
    pub count: u32,
    /// Groups that are kept.
    pub used: u32,
    /// A group's score is the sum of so many of its best scores.
    pub best: u32,
}

/// The parameters of an [`Op::Route`](crate::Op::Route).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouteSpec {
    /// Experts of a row.
    pub used: u32,
    /// From logits to scores.
    pub scoring: Scoring,
    /// Whether only some groups of experts are candidates.
    pub groups: Option<ExpertGroups>,
    /// Weights are divided by their sum: with [`Scoring::Softmax`] that is a softmax over the chosen alone.
    pub normalize: bool,
    /// Multiplies the weights at last.
    pub scale: f32,
}

impl RouteSpec {
    /// What does not fit together, for a router of so many experts.
    pub(crate) fn problem(&self, experts: u32) -> Option<String> {
        let groups = self.groups.unwrap_or(ExpertGroups { count: 1, used: 1, best: 1 });
        let (n, of) = (groups.count.max(1), experts / groups.count.max(1));
        if groups.count == 0 || n > 128 || !experts.is_multiple_of(n) || groups.used == 0 || groups.used > n {
            return Some(format!(
                "{} groups, {} of them used, of {experts} experts",
                groups.count, groups.used
            ));
        }
        if groups.best == 0 || groups.best > of || self.used == 0 || self.used > groups.used * of {
            return Some(format!("{} of {experts} experts, from {} groups of {of}", self.used, groups.used));
        }
        None
    }
}

/// A gate over two products: [`Op::MatMulExperts`](crate::Op::MatMulExperts).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Gate {
    /// `act(gate) * up`.
    Plain(Activation),
    /// `g * sigmoid(alpha * g) * (u + 1)` with `g = min(gate, limit)` and `u` in `-limit..=limit`: GPT-OSS.
    Clamped {
        /// Slope of the sigmoid.
        alpha: f32,
        /// Largest value.
        limit: f32,
    },
}

impl Gate {
    /// The gated value; NaN stays NaN.
    pub fn apply(self, gate: f64, up: f64) -> f64 {
        match self {
            Gate::Plain(act) => f64::from(activate(act, gate) as f32) * up,
            Gate::Clamped { alpha, limit } => {
                let (alpha, limit) = (f64::from(alpha), f64::from(limit));
                let g = if gate > limit { limit } else { gate };
                let u = if up > limit {
                    limit
                } else if up < -limit {
                    -limit
                } else {
                    up
                };
                activate(Activation::Silu, alpha * g) / alpha * (u + 1.0)
            }
        }
    }
}

/// Chooses the experts of a row: `out` gets the ids of [`RouteSpec::used`] experts, best first, then the weight of each. `bias`
/// is added to the scores when experts and groups are chosen, and not to the weights (DeepSeek-V3). Equal scores are taken in the
/// order of the experts; if a logit is NaN, so is every weight.
pub fn route(
    spec: &RouteSpec,
    bias: Option<&[f32]>,
    logits: &[f32],
    scratch: &mut Vec<[f64; 2]>,
    out: &mut [f32],
) {
    let (ids, weights) = out.split_at_mut(spec.used as usize);
    let best = logits.iter().fold(f64::NEG_INFINITY, |m, l| m.max(f64::from(*l)));
    let broken = logits.iter().any(|l| l.is_nan());
    // Score, and what is chosen by.
    scratch.clear();
    scratch.extend(logits.iter().enumerate().map(|(i, l)| {
        let l = f64::from(*l);
        let score = match spec.scoring {
            Scoring::Softmax => (l - best).exp(),
            Scoring::Sigmoid => 1.0 / (1.0 + (-l).exp()),
            Scoring::Sparse { .. } => l,
        };
        [score, score + bias.map_or(0.0, |b| f64::from(b[i]))]
    }));
    if spec.scoring == Scoring::Softmax {
        let sum: f64 = scratch.iter().map(|s| s[0]).sum();
        for (i, s) in scratch.iter_mut().enumerate() {
            s[0] /= sum;
            s[1] = s[0] + bias.map_or(0.0, |b| f64::from(b[i]));
        }
    }
    if let Some(groups) = spec.groups {
        keep_groups(&groups, scratch);
    }
    for (id, weight) in ids.iter_mut().zip(weights.iter_mut()) {
        let chosen = best_of(scratch.iter().map(|s| s[1]));
        *weight = match spec.scoring {
            Scoring::Sparse { eps } => sparse_weight(scratch, chosen, f64::from(eps)) as f32,
            _ => scratch[chosen][0] as f32,
        };
        *id = chosen as f32;
        scratch[chosen][1] = f64::NEG_INFINITY;
    }
    // A sum of zero would divide by zero; transformers adds this much too.
    let sum = if spec.normalize { weights.iter().map(|w| f64::from(*w)).sum::<f64>() + 1e-20 } else { 1.0 };
    for w in weights {
        *w = if broken { f32::NAN } else { (f64::from(*w) / sum * f64::from(spec.scale)) as f32 };
    }
}

/// The first of the greatest numbers, or of all if none is greater than negative infinity.
fn best_of(scores: impl Iterator<Item = f64>) -> usize {
    let (mut at, mut best) = (0, f64::NEG_INFINITY);
    for (i, s) in scores.enumerate() {
        if s > best {
            (at, best) = (i, s);
        }
    }
    at
}

/// Takes the experts of all but the best groups out of the choice.
fn keep_groups(groups: &ExpertGroups, scores: &mut [[f64; 2]]) {
    let of = scores.len() / groups.count as usize;
    let mut kept = 0u128; // `Program::check` allows no more groups than it has bits
    for _ in 0..groups.used {
        let of_group = scores.chunks_exact(of).enumerate().map(|(g, group)| {
            if (kept >> g) & 1 == 1 {
                return f64::NEG_INFINITY;
            }
            let (mut sum, mut below) = (0.0, (f64::INFINITY, usize::MAX));
            for _ in 0..groups.best {
                // The next in the order of scores, equal ones from the last to the first.
                let next = group.iter().enumerate().map(|(i, s)| (s[1], i)).filter(|s| *s < below);
                below = next.fold((f64::NEG_INFINITY, 0), |m, s| if s > m { s } else { m });
                sum += below.0;
            }
            sum
        });
        let group = best_of(of_group);
        kept |= 1 << group;
    }
    for (g, group) in scores.chunks_exact_mut(of).enumerate() {
        if (kept >> g) & 1 == 0 {
            group.iter_mut().for_each(|s| s[1] = f64::NEG_INFINITY);
        }
    }
}

/// The part of `chosen`, the best of what is left, in a softmax over those near it.
fn sparse_weight(scores: &[[f64; 2]], chosen: usize, eps: f64) -> f64 {
    let best = scores[chosen][0];
    let left = scores.iter().filter(|s| s[1] != f64::NEG_INFINITY);
    let near = left.filter(|s| best - s[0] <= 2.0 * eps * s[0].abs().max(best));
    1.0 / near.map(|s| (s[0] - best).exp()).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(spec: RouteSpec, bias: Option<&[f32]>, logits: &[f32]) -> (Vec<usize>, Vec<f32>) {
        assert_eq!(spec.problem(logits.len() as u32), None);
        let mut out = vec![0.0; 2 * spec.used as usize];
        route(&spec, bias, logits, &mut Vec::new(), &mut out);
        let (ids, weights) = out.split_at(spec.used as usize);
        (ids.iter().map(|i| *i as usize).collect(), weights.to_vec())
    }

    const PLAIN: RouteSpec =
        RouteSpec { used: 2, scoring: Scoring::Softmax, groups: None, normalize: true, scale: 1.0 };

    fn near(got: &[f32], want: &[f64]) {
        assert!(got.iter().zip(want).all(|(g, w)| (f64::from(*g) - w).abs() < 1e-6), "{got:?} {want:?}");
    }

    #[test]
    fn the_best_are_chosen_and_weighted_as_the_family_says() {
        let logits = [0.1, 2.0, -1.0, 1.0];
        let (ids, weights) = run(PLAIN, None, &logits);
        let e = std::f64::consts::E;
        assert_eq!(ids, [1, 3]);
        near(&weights, &[e / (e + 1.0), 1.0 / (e + 1.0)]);

        let all: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        let (_, weights) = run(RouteSpec { normalize: false, scale: 16.0, ..PLAIN }, None, &logits);
        near(&weights, &[16.0 * e * e / all, 16.0 * e / all]);

        // A bias changes who is chosen and not by how much they count.
        let sigmoid = RouteSpec { scoring: Scoring::Sigmoid, normalize: false, ..PLAIN };
        let (ids, weights) = run(sigmoid, Some(&[0.0, 0.0, 5.0, 0.0]), &logits);
        assert_eq!(ids, [2, 1]);
        near(&weights, &[1.0 / (1.0 + e), 1.0 / (1.0 + (-2.0f64).exp())]);
    }

    #[test]
    fn only_the_best_groups_are_candidates() {
        let logits = [3.0, -3.0, 2.0, 1.9, 2.5, -9.0];
        let by = |best| {
            let groups = Some(ExpertGroups { count: 3, used: 1, best });
            run(RouteSpec { groups, ..PLAIN }, None, &logits).0
        };
        assert_eq!(by(1), [0, 1], "the group of the best");
        let groups = Some(ExpertGroups { count: 3, used: 1, best: 2 });
        let sums = RouteSpec { groups, scoring: Scoring::Sigmoid, ..PLAIN };
        assert_eq!(run(sums, None, &logits).0, [2, 3], "the group of the best two together");
        assert_eq!(run(sums, None, &[1.0; 6]).0, [0, 1], "equal scores in their order");
    }

    #[test]
    fn experts_near_the_best_share_its_weight_in_turn() {
        let spec = RouteSpec { scoring: Scoring::Sparse { eps: 0.01 }, normalize: false, ..PLAIN };
        let (ids, weights) = run(spec, None, &[1.0, 1.01, 0.5, -3.0]);
        assert_eq!(ids, [1, 0]);
        // The second was near the first; nothing is near the second.
        near(&weights, &[1.0 / (1.0 + (-0.01f64).exp()), 1.0]);
    }

    #[test]
    fn a_logit_that_is_no_number_makes_every_weight_none_and_ids_stay_in_range() {
        for logits in [[f32::NAN; 4], [1.0, f32::NAN, 2.0, f32::NEG_INFINITY]] {
            let (ids, weights) = run(PLAIN, None, &logits);
            assert!(ids.iter().all(|i| *i < 4) && weights.iter().all(|w| w.is_nan()), "{ids:?} {weights:?}");
        }
    }

    #[test]
    fn clamped_gates_keep_their_bounds_and_nan() {
        let gate = Gate::Clamped { alpha: 1.702, limit: 7.0 };
        assert_eq!(gate.apply(100.0, 100.0), gate.apply(7.0, 7.0));
        assert_eq!(gate.apply(1.0, -100.0), gate.apply(1.0, -7.0));
        assert!(gate.apply(f64::NAN, 1.0).is_nan() && gate.apply(1.0, f64::NAN).is_nan());
    }
}
