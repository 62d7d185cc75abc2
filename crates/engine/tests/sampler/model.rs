//! The chain by its definitions, in f64 and with full sorts: an answer to compare with, written from the formulas.

use quarrel_engine::{Sampling, Stage};

/// What a stage of chance and the past decide.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Given {
    /// Whether XTC acts.
    pub(crate) xtc: bool,
    /// Mirostat's bound in bits.
    pub(crate) mu: f64,
}

/// The distribution that is drawn from.
#[derive(Debug, Clone)]
pub(crate) struct Modelled {
    /// By id.
    pub(crate) p: Vec<f64>,
    /// How near the closest decision of any stage was, as a relative difference: below it, rounding may decide otherwise.
    pub(crate) margin: f64,
    /// Probabilities before Mirostat, by id.
    pub(crate) before_mirostat: Vec<f64>,
}

/// Logits by id, and those that are left.
struct State {
    l: Vec<f64>,
    left: Vec<usize>,
    margin: f64,
}

impl State {
    fn p(&self) -> Vec<f64> {
        let best = self.left.iter().map(|i| self.l[*i]).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = self.left.iter().map(|i| (self.l[*i] - best).exp()).sum();
        let mut p = vec![0.0; self.l.len()];
        self.left.iter().for_each(|i| p[*i] = (self.l[*i] - best).exp() / total);
        p
    }

    fn entropy(&self) -> f64 {
        self.p().iter().filter(|p| **p > 0.0).map(|p| -p * p.ln()).sum()
    }

    fn near(&mut self, a: f64, b: f64) {
        self.margin = self.margin.min((a - b).abs() / a.abs().max(b.abs()).max(1e-30));
    }

    /// Keeps the first in some order until their mass reaches `share`.
    fn nucleus(&mut self, share: f64, key: impl Fn(usize) -> f64) {
        let p = self.p();
        self.left.sort_by(|a, b| key(*a).total_cmp(&key(*b)).then(a.cmp(b)));
        let mut mass = 0.0;
        for n in 0..self.left.len() {
            mass += p[self.left[n]];
            self.near(mass, share);
            if mass >= share {
                if let Some(next) = self.left.get(n + 1).map(|i| key(*i)) {
                    self.near(key(self.left[n]), next);
                }
                self.left.truncate(n + 1);
                return;
            }
        }
    }

    fn retain(&mut self, value: &[f64], least: f64) {
        for i in self.left.clone() {
            self.near(value[i], least);
        }
        self.left.retain(|i| value[*i] >= least);
    }
}

/// The weight of each token of the window, the latest first, with whether it is of the answer.
fn weighed(s: &Sampling, prompt: &[u32], answer: &[u32]) -> Vec<(usize, bool, f64)> {
    let all = prompt.iter().map(|t| (*t as usize, false)).chain(answer.iter().map(|t| (*t as usize, true)));
    let mut all: Vec<_> = all.collect();
    all.reverse();
    all.truncate(s.penalty_window.map_or(usize::MAX, |w| w as usize));
    let decay = |age: usize| s.penalty_half_life.map_or(1.0, |h| 0.5f64.powf(age as f64 / f64::from(h)));
    all.into_iter().enumerate().map(|(age, (t, of))| (t, of, decay(age))).collect()
}

fn penalties(s: &Sampling, prompt: &[u32], answer: &[u32], l: &mut [f64]) {
    let seen = weighed(s, prompt, answer);
    for (id, l) in l.iter_mut().enumerate() {
        if let Some((_, _, w)) = seen.iter().find(|t| t.0 == id) {
            let r = f64::from(s.repetition_penalty).powf(*w);
            *l = if *l > 0.0 { *l / r } else { *l * r };
        }
        let of_answer: Vec<f64> = seen.iter().filter(|t| t.0 == id && t.1).map(|t| t.2).collect();
        if let Some(w) = of_answer.first() {
            *l -= f64::from(s.presence_penalty) * w
                + f64::from(s.frequency_penalty) * of_answer.iter().sum::<f64>();
        }
    }
}

fn dry(s: &Sampling, prompt: &[u32], answer: &[u32], l: &mut [f64]) {
    let text: Vec<u32> = prompt.iter().chain(answer).copied().collect();
    let text = &text[text.len() - text.len().min(s.dry_window.map_or(usize::MAX, |w| w as usize))..];
    let is_breaker = |t: &u32| s.dry_breakers.contains(t);
    let mut penalty = vec![0.0; l.len()];
    for next in 1..text.len() {
        let (head, end) = (&text[..next], text.iter().rev());
        let pairs = head.iter().rev().zip(end);
        let n = pairs.take_while(|(a, b)| a == b && !is_breaker(a)).count() as f64;
        let allowed = f64::from(s.dry_allowed_length);
        if n >= allowed && n > 0.0 && !is_breaker(&text[next]) {
            let this: f64 = f64::from(s.dry_multiplier) * f64::from(s.dry_base).powf(n - allowed);
            let old: &mut f64 = &mut penalty[text[next] as usize];
            *old = old.max(this.min(1000.0));
        }
    }
    l.iter_mut().zip(penalty).for_each(|(l, p)| *l -= p);
}

/// Runs the chain over a row, after a prompt and the tokens of an answer. Adaptive sampling is not modelled here.
pub(crate) fn chain(s: &Sampling, prompt: &[u32], answer: &[u32], row: &[f32], given: Given) -> Modelled {
    let l: Vec<f64> = row.iter().map(|l| f64::from(*l)).collect();
    let mut c = State { left: (0..l.len()).collect(), l, margin: f64::INFINITY };
    let mut before_mirostat = Vec::new();
    let order = s.samplers.clone().unwrap_or(Stage::ORDER.to_vec());
    for (n, stage) in order.iter().enumerate() {
        let is_edit = |s: &Stage| matches!(s, Stage::LogitBias | Stage::Penalties | Stage::Dry);
        match stage {
            Stage::LogitBias => {
                s.logit_bias.iter().for_each(|(id, b)| c.l[*id as usize] += f64::from(*b));
                let brief = s.brief_bias.iter().filter(|b| (answer.len() as u32) < b.tokens);
                brief.for_each(|b| c.l[b.id as usize] += f64::from(b.bias));
            }
            Stage::Penalties => penalties(s, prompt, answer, &mut c.l),
            Stage::Dry if s.dry_multiplier > 0.0 => dry(s, prompt, answer, &mut c.l),
            _ => {}
        }
        if is_edit(stage) && order.get(n + 1).is_some_and(is_edit) {
            continue;
        }
        c.left.retain(|i| c.l[*i] > f64::NEG_INFINITY);
        match stage {
            Stage::TopNSigma if s.top_n_sigma > 0.0 => {
                let n = c.left.len() as f64;
                let mean = c.left.iter().map(|i| c.l[*i]).sum::<f64>() / n;
                let sd = (c.left.iter().map(|i| (c.l[*i] - mean).powi(2)).sum::<f64>() / n).sqrt();
                let best = c.left.iter().map(|i| c.l[*i]).fold(f64::NEG_INFINITY, f64::max);
                let below: Vec<f64> = c.l.iter().map(|l| l - best + 100.0).collect();
                c.retain(&below, 100.0 - f64::from(s.top_n_sigma) * sd);
            }
            Stage::Temperature => {
                let t0 = f64::from(s.temperature);
                let t = match s.dynamic_temperature {
                    Some(d) => {
                        let share = c.entropy() / (c.left.len() as f64).ln();
                        let share = if c.left.len() < 2 { 0.0 } else { share };
                        f64::from(d.min) + f64::from(d.max - d.min) * share.powf(f64::from(d.exponent))
                    }
                    None if s.edt_theta > 0.0 => t0 * 0.8f64.powf(f64::from(s.edt_theta) / c.entropy()),
                    None => t0,
                };
                c.l.iter_mut().for_each(|l| *l /= t);
            }
            Stage::TopK if s.top_k > 0 => {
                let l = c.l.clone();
                c.left.sort_by(|a, b| l[*b].total_cmp(&l[*a]).then(a.cmp(b)));
                if let Some(next) = c.left.get(s.top_k as usize).copied() {
                    c.near(l[c.left[s.top_k as usize - 1]], l[next]);
                }
                c.left.truncate(s.top_k as usize);
            }
            Stage::TypicalP if s.typical_p < 1.0 => {
                let (p, h) = (c.p(), c.entropy());
                c.nucleus(f64::from(s.typical_p), |i| (-p[i].ln() - h).abs());
            }
            Stage::TopP if s.top_p < 1.0 => {
                let p = c.p();
                c.nucleus(f64::from(s.top_p), |i| -p[i]);
            }
            Stage::MinP if s.min_p > 0.0 => {
                let p = c.p();
                let best = p.iter().copied().fold(0.0, f64::max);
                c.retain(&p, f64::from(s.min_p) * best);
            }
            Stage::Xtc if given.xtc => {
                let p = c.p();
                let mut top = c.left.clone();
                top.retain(|i| p[*i] >= f64::from(s.xtc_threshold));
                for i in c.left.clone() {
                    c.near(p[i], f64::from(s.xtc_threshold));
                }
                let last = top.iter().copied().min_by(|a, b| p[*a].total_cmp(&p[*b]).then(b.cmp(a)));
                c.left.retain(|i| !top.contains(i) || Some(*i) == last);
            }
            Stage::Mirostat if s.mirostat > 0 => {
                let p = c.p();
                let mut order = c.left.clone();
                order.sort_by(|a, b| p[*b].total_cmp(&p[*a]).then(a.cmp(b)));
                let k = match s.mirostat {
                    1 => zipf(&order.iter().map(|i| p[*i]).collect::<Vec<_>>(), given.mu, row.len(), &mut c),
                    _ => {
                        order.iter().for_each(|i| c.near(p[*i], 0.5f64.powf(given.mu)));
                        order.iter().filter(|i| -p[**i].log2() <= given.mu).count()
                    }
                };
                c.left = order[..k.clamp(1, order.len())].to_vec();
                before_mirostat = p;
            }
            _ => {}
        }
    }
    Modelled { p: c.p(), margin: c.margin, before_mirostat }
}

/// Mirostat 1's number of tokens, by Zipf's exponent.
fn zipf(sorted: &[f64], mu: f64, n: usize, c: &mut State) -> usize {
    let (mut tb, mut tt) = (0.0, 0.0);
    for (i, pair) in sorted.windows(2).take(99).enumerate() {
        let t = ((i as f64 + 2.0) / (i as f64 + 1.0)).ln();
        tb += t * (pair[0] / pair[1]).ln();
        tt += t * t;
    }
    let s = tb / tt;
    let k = ((s - 1.0) * mu.exp2() / (1.0 - (n as f64).powf(1.0 - s))).powf(1.0 / s);
    c.near(k, k.round());
    k as usize
}
