//! The tokens that may still be drawn: first a whole row of logits, which nothing is copied of, then the list of those that a
//! truncation has left. Each stage works on either.

use super::draw::{Draw, draw};
use super::{Candidate, best_first, softmax, top_k};
use crate::logits::CANDIDATES;

/// What the stages that compare tokens work on.
pub(super) struct Set<'a> {
    row: &'a [f32],
    /// The largest logit of the row.
    best: f32,
    /// What weights are relative to: the largest logit of the row, or of those that were left at the last scaling.
    max: f32,
    /// What the weights' logits are divided by.
    pub(super) t: f32,
    /// The candidates, once some have been dropped.
    list: &'a mut Vec<Candidate>,
    listed: bool,
}

impl<'a> Set<'a> {
    /// All of a row without NaN, whose largest logit is finite.
    pub(super) fn new(row: &'a [f32], max: f32, list: &'a mut Vec<Candidate>) -> Set<'a> {
        list.clear();
        Set { row, best: max, max, t: 1.0, list, listed: false }
    }

    /// The best of a row, best first, as a device has chosen them; `max` is the first's logit.
    pub(super) fn of_best(list: &'a mut Vec<Candidate>, max: f32) -> Set<'a> {
        let mut set = Set { row: &[], best: max, max, t: 1.0, list, listed: true };
        set.weigh();
        set
    }

    /// The weight of the last one of a list.
    pub(super) fn least(&self) -> f32 {
        self.list.last().map_or(0.0, |c| c.weight)
    }

    /// The row that it came from.
    pub(super) fn row(&self) -> &'a [f32] {
        self.row
    }

    /// The largest logit that weights are relative to.
    pub(super) fn max(&self) -> f32 {
        self.max
    }

    /// The candidates as a list; all of the row if there was none.
    pub(super) fn list(&mut self) -> &mut Vec<Candidate> {
        if !self.listed {
            self.gather(0.0);
        }
        self.list
    }

    /// The candidates, if some have been dropped.
    pub(super) fn listed(&mut self) -> Option<&mut Vec<Candidate>> {
        self.listed.then_some(&mut *self.list)
    }

    /// Divides the logits by `t`. If all that are left are far below the row's best, their weights must not vanish.
    pub(super) fn scale(&mut self, t: f32) {
        self.t = t;
        if self.listed {
            self.max = self.list.iter().fold(f32::NEG_INFINITY, |m, c| m.max(c.logit));
            self.weigh();
        }
    }

    fn weigh(&mut self) {
        let (max, inverse) = (self.max, 1.0 / self.t);
        self.list.iter_mut().for_each(|c| c.weight = softmax::exp((c.logit - max) * inverse));
    }

    /// The sum of the weights.
    pub(super) fn total(&self) -> f64 {
        match self.listed {
            true => self.list.iter().map(|c| f64::from(c.weight)).sum(),
            false => softmax::sum(self.row, self.max, self.t),
        }
    }

    /// The share of the candidates in what the whole row weighs at this temperature.
    pub(super) fn mass(&self) -> f64 {
        let all = softmax::sum(self.row, self.best, self.t);
        self.total() * f64::from((self.max - self.best) / self.t).exp() / all
    }

    /// Number of candidates that are not forbidden.
    pub(super) fn count(&self) -> usize {
        match self.listed {
            true => self.list.len(),
            false => self.row.iter().filter(|l| **l > f32::NEG_INFINITY).count(),
        }
    }

    /// Entropy of the distribution in nats, and the sum of its weights.
    pub(super) fn entropy(&self) -> (f64, f64) {
        let (z, weighted) = match self.listed {
            true => {
                let inverse = 1.0 / self.t;
                let terms = self.list.iter().filter(|c| c.weight > 0.0);
                let weighted = terms.map(|c| f64::from(c.weight) * f64::from((c.logit - self.max) * inverse));
                (self.total(), weighted.sum())
            }
            false => softmax::entropy_sums(self.row, self.max, self.t),
        };
        ((z.ln() - weighted / z).max(0.0), z)
    }

    /// Collects the candidates of at least about this weight: nothing of at least this weight is lost, and little else kept.
    pub(super) fn gather(&mut self, least: f64) {
        // The slack covers the roundings of logarithm and exponential; 0 becomes -inf and keeps all.
        let floor = self.max + self.t * (least.ln() as f32 - 1e-3) - self.max.abs() * 1e-6;
        self.gather_logits(floor);
    }

    /// Collects the candidates of at least this logit.
    pub(super) fn gather_logits(&mut self, floor: f32) {
        const BLOCK: usize = 32;
        if self.listed {
            self.list.retain(|c| c.logit >= floor);
            return;
        }
        self.list.clear();
        let (max, inverse) = (self.max, 1.0 / self.t);
        for (block, logits) in self.row.chunks(BLOCK).enumerate() {
            // Most blocks have nothing, which vector code sees at once.
            if logits.iter().fold(0u32, |any, l| any | u32::from(*l >= floor)) == 0 {
                continue;
            }
            for (i, &logit) in logits.iter().enumerate() {
                if logit >= floor && logit > f32::NEG_INFINITY {
                    let id = (block * BLOCK + i) as u32;
                    self.list.push(Candidate { id, logit, weight: softmax::exp((logit - max) * inverse) });
                }
            }
        }
        self.listed = true;
    }

    /// Keeps the `k` best.
    pub(super) fn keep_best(&mut self, k: usize) {
        if self.listed {
            top_k::shrink(self.list, k);
        } else if k < self.row.len() {
            // Temperature keeps the order, so the k best logits are the k best scaled ones.
            top_k::select(self.row, k, self.list);
            self.listed = true;
            self.weigh();
        }
    }

    /// Draws a candidate by a number in `[0, 1)`: best first; of a whole row so many as a device may have chosen,
    /// then the others in order of their ids.
    pub(super) fn draw(&mut self, uniform: f64) -> Draw {
        if self.listed {
            return draw(self.list, uniform);
        }
        let total = self.total();
        top_k::select(self.row, CANDIDATES as usize, self.list);
        self.list.sort_unstable_by(best_first);
        self.weigh();
        let mut mass = uniform * total;
        for c in self.list.iter().filter(|c| c.weight > 0.0) {
            mass -= f64::from(c.weight);
            if mass < 0.0 {
                return Draw { of: *c, total };
            }
        }
        let mut seen = [u32::MAX; CANDIDATES as usize];
        seen.iter_mut().zip(self.list.iter()).for_each(|(s, c)| *s = c.id);
        seen.sort_unstable();
        match softmax::find(self.row, self.max, self.t, mass, &seen) {
            Some((place, weight)) => {
                Draw { of: Candidate { id: place as u32, logit: self.row[place], weight }, total }
            }
            // Rounding may leave a trace after the last one.
            None => Draw {
                of: self.list.iter().rfind(|c| c.weight > 0.0).copied().unwrap_or(self.list[0]),
                total,
            },
        }
    }

    /// The index of the best one: of equal logits the lowest.
    pub(super) fn best(&self) -> u32 {
        match self.listed {
            true => self.list.iter().min_by(|a, b| best_first(a, b)).expect("a stage keeps one at least").id,
            false => softmax::argmax(self.row, self.max),
        }
    }
}
