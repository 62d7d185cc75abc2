//! What comes out of a benchmark, in the frame that `--json` prints and `--check` reads.

use crate::against::Comparison;
use crate::machine::{Machine, Rates};
use crate::ops::Phase;
use crate::session::{Session, Totals, Turn};
use crate::stats::Spread;
use crate::work::{Case, Work};
use quarrel_formats::Source;
use quarrel_model::ModelSpec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A benchmark's results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// What.
    pub model: ModelInfo,
    /// A prompt into an empty cache.
    pub prompt: Option<Speed>,
    /// New tokens from an empty cache.
    pub decode: Option<Speed>,
    /// New tokens behind others, by depth; the first is `decode`.
    pub decode_at: Vec<DepthSpeed>,
    /// Several sequences together.
    pub batch: Vec<BatchSpeed>,
    /// Through the engine: first token and pauses.
    pub latency: Option<Latency>,
    /// A fresh process.
    pub startup: Option<StartUp>,
    /// Memory of a fresh process.
    pub memory: Option<Memory>,
    /// Time by op, if it was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ops: Vec<Phase>,
    /// The same work by another engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<Comparison>,
    /// The version of this program.
    pub version: String,
}

/// Which model, as far as speed goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// As the user knows it.
    pub name: String,
    /// Family.
    pub architecture: String,
    /// Number of weights.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// Bytes of the cache for one token.
    pub kv_bytes_per_token: u64,
    /// Bytes by type of tensor.
    pub types: BTreeMap<String, u64>,
}

impl ModelInfo {
    /// Of an opened model.
    pub fn new(name: &str, source: &Source, spec: &ModelSpec) -> ModelInfo {
        let mut types = BTreeMap::new();
        for t in source.tensors() {
            *types.entry(t.dtype.to_string()).or_insert(0) += t.data.len() as u64;
        }
        ModelInfo {
            name: name.into(),
            architecture: spec.arch.gguf.into(),
            parameters: source.tensors().map(|t| t.len() as u64).sum(),
            weight_bytes: types.values().sum(),
            kv_bytes_per_token: spec.kv_bytes_per_token(crate::session::KV_ELEMENT_BYTES) as u64,
            types,
        }
    }
}

/// Which of the machine's limits is the nearer one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Reading weights and cache.
    Memory,
    /// Multiplying and adding.
    Arithmetic,
}

/// The speed of a case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Speed {
    /// Tokens of a run, of all sequences together.
    pub tokens: usize,
    /// The median of the runs.
    pub tokens_per_s: f64,
    /// The slowest run.
    pub min: f64,
    /// The fastest.
    pub max: f64,
    /// Tokens per second of each run, in order.
    pub runs: Vec<f64>,
    /// Weights and cache read, in 1e9 bytes per second of the median run.
    pub gb_per_s: f64,
    /// Multiplications and additions, in 1e9 per second.
    pub gop_per_s: f64,
    /// Operations for each byte.
    pub ops_per_byte: f64,
    /// The time that the machine's peaks allow, as a share of the time taken.
    pub share_of_peak: f64,
    /// The peak that this share is of.
    pub bound: Bound,
}

impl Speed {
    /// Of a case's runs; `None` of no runs.
    pub fn new(case: Case, totals: &Totals, seconds: &[f64], peaks: &Rates) -> Option<Speed> {
        let tokens = case.tokens();
        let runs: Vec<f64> = seconds.iter().map(|s| tokens as f64 / s.max(1e-9)).collect();
        let spread = Spread::of(&runs)?;
        let per_s = spread.median / tokens as f64;
        let ops = totals.int_ops + totals.flops;
        let (reading, computing) = peaks.seconds(totals);
        Some(Speed {
            tokens,
            tokens_per_s: spread.median,
            min: spread.min,
            max: spread.max,
            runs,
            gb_per_s: totals.bytes * per_s / 1e9,
            gop_per_s: ops * per_s / 1e9,
            ops_per_byte: ops / totals.bytes.max(1.0),
            share_of_peak: reading.max(computing) * per_s,
            bound: if reading >= computing { Bound::Memory } else { Bound::Arithmetic },
        })
    }

    /// The runs' spread.
    pub fn spread(&self) -> Spread {
        Spread { median: self.tokens_per_s, min: self.min, max: self.max }
    }
}

impl Rates {
    /// The least seconds for reading and for computing.
    pub(crate) fn seconds(&self, t: &Totals) -> (f64, f64) {
        let part =
            |amount: f64, giga_per_s: f64| if giga_per_s > 0.0 { amount / giga_per_s / 1e9 } else { 0.0 };
        let computing = part(t.int_ops, self.int8_gop_per_s) + part(t.flops, self.f32_gflop_per_s);
        (part(t.bytes, self.read_gb_per_s), computing)
    }
}

/// The speed behind a number of tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DepthSpeed {
    /// Tokens in the cache before.
    pub depth: usize,
    /// The speed.
    #[serde(flatten)]
    pub speed: Speed,
}

/// The speed of several sequences.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchSpeed {
    /// How many.
    pub sequences: usize,
    /// Tokens of each before the new ones.
    #[serde(default)]
    pub depth: usize,
    /// All together.
    #[serde(flatten)]
    pub speed: Speed,
}

/// How long one waits, through the engine. Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// From the request to its first token.
    pub ttft_ms: Spread,
    /// Between tokens: the median of all pauses.
    pub itl_p50_ms: Option<f64>,
    /// Between tokens: 99 of 100 pauses are shorter.
    pub itl_p99_ms: Option<f64>,
}

/// From the start of a process to the first token on its stdout, the file in the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StartUp {
    /// Seconds.
    pub seconds: f64,
    /// The fastest start.
    pub min: f64,
    /// The slowest.
    pub max: f64,
}

/// Most memory that a fresh process held for the prompt and the new tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Resident, at its peak.
    pub peak_rss_bytes: u64,
    /// Of that, the weights as they are stored.
    pub weight_bytes: u64,
    /// And the cache of the tokens.
    pub kv_bytes: u64,
}

impl Report {
    /// A report with the speeds of `turns`; the rest is filled in by who measures it.
    pub fn new(machine: Machine, model: ModelInfo, work: &Work, session: &Session, turns: &[Turn]) -> Report {
        let mut report = Report {
            machine,
            model,
            prompt: None,
            decode: None,
            decode_at: Vec::new(),
            batch: Vec::new(),
            latency: None,
            startup: None,
            memory: None,
            ops: Vec::new(),
            against: None,
            version: env!("CARGO_PKG_VERSION").into(),
        };
        for (i, case) in work.cases().into_iter().enumerate() {
            let seconds: Vec<f64> = turns.iter().filter_map(|t| t.seconds.get(i).copied()).collect();
            let speed = Speed::new(case, &session.totals(case), &seconds, &report.machine.peaks);
            let Some(speed) = speed else { continue };
            match case {
                Case::Prompt(_) => report.prompt = Some(speed),
                Case::Decode { depth, .. } => report.decode_at.push(DepthSpeed { depth, speed }),
                Case::Batch { sequences, depth, .. } => {
                    report.batch.push(BatchSpeed { sequences, depth, speed })
                }
            }
        }
        report.decode = report.decode_at.first().filter(|d| d.depth == 0).map(|d| d.speed.clone());
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_the_peaks_time_over_the_time_taken() {
        let peaks = Rates { read_gb_per_s: 10.0, int8_gop_per_s: 1000.0, f32_gflop_per_s: 100.0 };
        let decode = Totals { bytes: 1e9, int_ops: 2e9, flops: 0.0 };
        let case = Case::Decode { depth: 0, tokens: 4 };
        let s = Speed::new(case, &decode, &[0.2, 0.1, 0.4], &peaks).unwrap();
        assert_eq!((s.tokens_per_s, s.min, s.max, s.runs.len()), (20.0, 10.0, 40.0, 3));
        assert!((s.gb_per_s - 5.0).abs() < 1e-9 && (s.share_of_peak - 0.5).abs() < 1e-9);
        assert_eq!((s.bound, s.ops_per_byte), (Bound::Memory, 2.0));
        let prompt = Totals { bytes: 1e9, int_ops: 400e9, flops: 20e9 };
        let s = Speed::new(Case::Prompt(512), &prompt, &[1.0], &peaks).unwrap();
        assert!((s.share_of_peak - 0.6).abs() < 1e-9 && (s.gop_per_s - 420.0).abs() < 1e-9);
        assert_eq!(s.bound, Bound::Arithmetic);
        assert!(Speed::new(case, &decode, &[], &peaks).is_none());
    }
}
