//! How long the rest of a run will take: the parts in their order as long as the machine's peaks allow, times what the parts
//! behind took more than that.

use crate::work::{Case, STEP};
use crate::{ModelInfo, Rates};
use quarrel_model::ModelSpec;

/// How much slower than the peaks a part is until something has been measured.
const SLOWER: f64 = 3.0;
/// What that guess weighs, as a share of the whole plan: the first parts are short and tell little.
const GUESS: f64 = 0.05;
/// Starting a process, and bytes of weights that it loads in a second.
const START: f64 = 0.03;
const LOAD: f64 = 1.5e9;

/// What the peaks allow a model, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Peak {
    /// Reading all weights.
    weights: f64,
    /// Products of a row with all of them.
    row: f64,
    /// Attention of one query to one key, in all layers.
    pair: f64,
    /// Starting a process and loading the weights.
    load: f64,
}

impl Peak {
    /// Of a model on a machine with these peaks.
    pub fn new(spec: &ModelSpec, model: &ModelInfo, peaks: &Rates) -> Peak {
        let each = |giga: f64| 1.0 / (giga.max(1e-3) * 1e9);
        let queries = f64::from(spec.heads) * f64::from(spec.head_dim) * spec.layers.len() as f64;
        Peak {
            weights: model.weight_bytes as f64 * each(peaks.read_gb_per_s),
            row: 2.0 * model.parameters as f64 * each(peaks.int8_gop_per_s),
            pair: 4.0 * queries * each(peaks.f32_gflop_per_s),
            load: (START + model.weight_bytes as f64 / LOAD) / SLOWER,
        }
    }

    /// A fresh process with its weights.
    pub fn load(&self) -> f64 {
        self.load
    }

    /// One case.
    pub fn case(&self, case: Case) -> f64 {
        let step = |rows: usize| if rows == 0 { 0.0 } else { self.weights.max(self.row * rows as f64) };
        match case {
            Case::Prompt(n) => {
                let pairs = n as f64 * n as f64 / 2.0;
                (n / STEP) as f64 * step(STEP) + step(n % STEP) + self.pair * pairs
            }
            Case::Decode { depth, tokens } => {
                let pairs = tokens as f64 * (depth as f64 + tokens as f64 / 2.0);
                tokens as f64 * step(1) + self.pair * pairs
            }
            Case::Batch { sequences, depth, steps } => {
                let pairs = (sequences * steps) as f64 * (depth as f64 + steps as f64 / 2.0);
                steps as f64 * step(sequences) + self.pair * pairs
            }
        }
    }
}

/// The parts of a run, in order.
#[derive(Debug, Clone)]
pub struct Plan {
    parts: Vec<f64>,
    begun: usize,
}

impl Plan {
    /// Of the seconds of the parts at the peaks.
    pub fn new(parts: Vec<f64>) -> Plan {
        Plan { parts, begun: 0 }
    }

    /// How many parts there are.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// A part begins `elapsed` seconds after the first: how many are done, and the seconds that are left.
    pub fn begin(&mut self, elapsed: f64) -> (usize, f64) {
        let behind = self.begun.min(self.parts.len());
        self.begun = behind + 1;
        let (done, left) = self.parts.split_at(behind);
        let (done, left) = (done.iter().sum::<f64>(), left.iter().sum::<f64>());
        let guess = GUESS * (done + left);
        (behind, left * (SLOWER * guess + elapsed) / (guess + done).max(1e-9))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_what_was_measured() {
        let mut plan = Plan::new(vec![1.0; 100]);
        assert_eq!(plan.begin(0.0), (0, 100.0 * SLOWER));
        let mut last = (0, 0.0);
        for i in 1..100 {
            last = plan.begin(10.0 * f64::from(i)); // ten times the peaks
        }
        assert_eq!(last.0, 99);
        assert!((9.0..10.0).contains(&last.1), "{last:?}");
        assert_eq!(plan.begin(1000.0), (100, 0.0), "more parts than planned are no fault");
        assert_eq!(plan.begin(1000.0), (100, 0.0));
        assert_eq!(Plan::new(vec![]).begin(0.0), (0, 0.0));
    }

    #[test]
    fn a_case_reads_or_computes_whichever_takes_longer() {
        let peak = Peak { weights: 8.0, row: 1.0, pair: 0.5, load: 1.0 };
        for (case, seconds) in [
            (Case::Prompt(4), 8.0 + 4.0),
            (Case::Prompt(STEP + 16), 512.0 + 16.0 + 0.5 * 528.0 * 264.0),
            (Case::Decode { depth: 0, tokens: 2 }, 2.0 * 8.0 + 1.0),
            (Case::Decode { depth: 10, tokens: 2 }, 2.0 * 8.0 + 11.0),
            (Case::Batch { sequences: 4, depth: 0, steps: 2 }, 2.0 * 8.0 + 4.0),
            (Case::Batch { sequences: 20, depth: 0, steps: 2 }, 2.0 * 20.0 + 20.0),
        ] {
            assert_eq!(peak.case(case), seconds, "{case:?}");
        }
    }
}
