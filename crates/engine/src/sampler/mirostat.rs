//! Mirostat (Basu et al. 2021, "Mirostat: a Neural Text Decoding Algorithm that Directly Controls Perplexity"): a truncation by
//! a bound `mu` on the surprise, in bits, that learns from each token: `mu -= eta (S - tau)`, from `mu = 2 tau`.
//!
//! Version 2 (algorithm 2 of its authors' programs) drops tokens with `-log2 p > mu`. Version 1 (algorithm 1) takes the
//! distribution for Zipf's with exponent `s`, estimated from the 100 best tokens by least squares, and keeps the
//! `k = ((s - 1) 2^mu / (1 - N^(1 - s)))^(1/s)` best. `S` is the surprise of the token that is drawn, in the distribution
//! before the truncation, as in the paper; llama.cpp takes it after, where it is less.

use super::set::Set;
use super::{Candidate, best_first};

/// Tokens that version 1 estimates the exponent from.
const ESTIMATE: usize = 100;

/// What it has learned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Mirostat {
    version: u8,
    tau: f32,
    eta: f32,
    /// The bound.
    pub(super) mu: f64,
}

impl Mirostat {
    pub(super) fn new(version: u8, tau: f32, eta: f32) -> Mirostat {
        Mirostat { version, tau, eta, mu: 2.0 * f64::from(tau) }
    }

    /// Truncates; gives the sum of the weights before, which surprise is measured by. `scratch` is for the estimate.
    pub(super) fn apply(&self, set: &mut Set, scratch: &mut Vec<Candidate>) -> f64 {
        let total = set.total();
        if self.version == 1 {
            let n = set.row().len();
            let k = zipf_k(set, scratch, total, self.mu, n);
            set.keep_best(k);
            return total;
        }
        // A weight of which the surprise is `mu`.
        let least = total * (-self.mu * std::f64::consts::LN_2).exp();
        if set.listed().is_none() {
            set.gather(least.min(1.0));
        }
        let list = set.list();
        if list.iter().any(|c| f64::from(c.weight) >= least) {
            list.retain(|c| f64::from(c.weight) >= least);
        } else {
            set.keep_best(1);
        }
        total
    }

    /// Learns from a token that had this share of the mass.
    pub(super) fn learn(&mut self, p: f64) {
        // Weights below the smallest f32 are 0; their surprise is bounded like that of the smallest.
        let surprise = -p.max(1e-45).log2();
        self.mu -= f64::from(self.eta) * (surprise - f64::from(self.tau));
    }
}

/// Version 1's `k`.
fn zipf_k(set: &mut Set, best: &mut Vec<Candidate>, total: f64, mu: f64, n: usize) -> usize {
    match set.listed() {
        Some(list) => {
            best.clear();
            best.extend_from_slice(list);
            super::top_k::shrink(best, ESTIMATE);
        }
        None => super::top_k::select(set.row(), ESTIMATE, best),
    }
    best.sort_unstable_by(best_first);
    let (max, t) = (set.max(), f64::from(set.t));
    // Beyond these it is not Zipf's law but the floor of the numbers.
    let log_p = |c: &Candidate| f64::from(c.logit - max) / t - total.ln();
    let (mut products, mut squares) = (0.0, 0.0);
    for (i, pair) in best.windows(2).enumerate() {
        let rank = ((i + 2) as f64 / (i + 1) as f64).ln();
        products += rank * (log_p(&pair[0]) - log_p(&pair[1]));
        squares += rank * rank;
    }
    if squares == 0.0 {
        return 1;
    }
    let s = products / squares;
    let epsilon = s - 1.0;
    // At s = 1 the quotient is 0 / 0; its limit is 1 / ln n.
    let scale = if epsilon.abs() < 1e-9 {
        1.0 / (n as f64).ln()
    } else {
        epsilon / (1.0 - (n as f64).powf(-epsilon))
    };
    let k = (scale * mu.exp2()).powf(1.0 / s.max(1e-9));
    (k as usize).clamp(1, n)
}
