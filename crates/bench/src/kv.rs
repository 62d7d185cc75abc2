//! What the types of the KV cache cost: how far the model's answers on a text move from those with f16, the bytes of a token,
//! and the speed behind a long context. One device holds the weights; each type has a cache of its own.

use crate::work::STEP;
use crate::{Error, Progress, Result};
use quarrel_cpu::{Cpu, CpuOptions, Isa, KvType};
use quarrel_formats::Source;
use quarrel_ir::{BLOCK_TOKENS, Device, Limits, Prepared, Readout, SeqStep, StepInputs};
use quarrel_model::decoder::{Options, decoder};
use quarrel_model::{ModelSpec, weights};
use serde::Serialize;
use std::time::Instant;

/// Positions of a text whose logits are held at once.
const ROWS: usize = 16;

/// What to compare on.
#[derive(Debug, Clone)]
pub struct KvWork {
    /// The text.
    pub ids: Vec<u32>,
    /// Tokens before those that are timed.
    pub depth: usize,
    /// Timed tokens.
    pub decode: usize,
    /// Rounds of timing, of which the median counts.
    pub repeat: usize,
}

/// One type of the cache.
#[derive(Debug, Clone, Serialize)]
pub struct KvRow {
    /// `f16` and the like.
    pub kv: &'static str,
    /// Bytes of a token, all layers.
    pub bytes_per_token: f64,
    /// Mean over the positions of KL(f16 || type) in nats, from all logits.
    pub kl_mean: f64,
    /// The largest of them.
    pub kl_max: f64,
    /// Share of the positions whose best token is that of f16.
    pub same_best: f64,
    /// exp of the mean negative log-likelihood of the text's next tokens.
    pub perplexity: f64,
    /// New tokens per second from an empty cache.
    pub decode_tokens_per_s: f64,
    /// The same behind `depth` tokens.
    pub decode_at_depth_tokens_per_s: f64,
}

/// The comparison, as `--json` prints it.
#[derive(Debug, Clone, Serialize)]
pub struct KvReport {
    /// The model, as the user knows it.
    pub model: String,
    /// Threads.
    pub threads: usize,
    /// The processor's instructions.
    pub isa: String,
    /// Positions of the text that were compared.
    pub positions: usize,
    /// Tokens before the timed ones.
    pub depth: usize,
    /// The types, f16 first.
    pub types: Vec<KvRow>,
}

/// Compares all types.
///
/// # Errors
/// A text that is too short or longer than the model's context, and what the model or the device refuses.
pub fn compare(
    source: &Source,
    spec: &ModelSpec,
    (name, work): (&str, &KvWork),
    threads: usize,
    isa: Isa,
    progress: Progress,
) -> Result<KvReport> {
    let n = work.ids.len();
    let longest = n.max(work.depth + work.decode);
    if n < 2 || longest > spec.context as usize {
        return Err(Error::Work(format!(
            "a text of {n} tokens and decoding at depth {}; needed are two tokens and no more than the model's context of {}",
            work.depth, spec.context
        )));
    }
    progress("loading");
    let program = decoder(spec, &Options::default());
    crate::session::check_states(&program)?;
    if program.source_ops() > 0 {
        let why = "a decoder that answers an encoder predicts nothing of a text; types of the cache are compared on models that do";
        return Err(Error::Work(why.into()));
    }
    let mut cpu = Cpu::new(CpuOptions { threads: Some(threads), isa: Some(isa), ..CpuOptions::default() })?;
    let ids = weights::load(source, spec, &program, &mut cpu, |_| ())?;
    let limits = Limits { rows: STEP, outputs: ROWS, kv_blocks: longest.div_ceil(BLOCK_TOKENS) };
    let mut types = vec![KvType::F16];
    types.extend(KvType::ALL.into_iter().filter(|t| *t != KvType::F16));
    let mut run = Run { cpu, vocab: spec.vocab as usize, blocks: (0..limits.kv_blocks as u32).collect() };
    let mut caches = Vec::new();
    for kv in &types {
        run.cpu.set_kv(*kv);
        caches.push(run.cpu.prepare(program.clone(), &ids, limits)?);
    }
    let mut sums = vec![Sums::default(); types.len()];
    progress("text");
    for start in (0..n).step_by(ROWS) {
        let part = &work.ids[start..n.min(start + ROWS)];
        let next = &work.ids[start + 1..n.min(start + ROWS + 1)];
        let base: Vec<Softmax> = run.logits(caches[0], start, part)?.iter().map(|l| Softmax::of(l)).collect();
        for (sums, cache) in sums.iter_mut().zip(&caches) {
            let rows = run.logits(*cache, start, part)?;
            for (i, (row, base)) in rows.iter().zip(&base).enumerate() {
                sums.add(base, row, next.get(i).copied());
            }
        }
    }
    let mut speeds = vec![[Vec::new(), Vec::new()]; types.len()];
    for cache in &caches {
        run.fill(*cache, n)?;
    }
    for round in 0..work.repeat {
        progress(&format!("speed, round {}", round + 1));
        for (speeds, cache) in speeds.iter_mut().zip(&caches) {
            for (speeds, depth) in speeds.iter_mut().zip([0, work.depth]) {
                speeds.push(run.speed(*cache, depth, work.decode)?);
            }
        }
    }
    let median = |speeds: &mut Vec<f64>| {
        speeds.sort_by(f64::total_cmp);
        speeds.get(speeds.len() / 2).copied().unwrap_or(0.0)
    };
    let rows = types.iter().zip(&caches).zip(sums.iter().zip(&mut speeds));
    let rows = rows.map(|((kv, cache), (s, [empty, deep]))| KvRow {
        kv: kv.name(),
        bytes_per_token: run.cpu.block_bytes(*cache) as f64 / BLOCK_TOKENS as f64,
        kl_mean: s.kl / n as f64,
        kl_max: s.kl_max,
        same_best: s.same as f64 / n as f64,
        perplexity: (s.nll / (n - 1) as f64).exp(),
        decode_tokens_per_s: median(empty),
        decode_at_depth_tokens_per_s: median(deep),
    });
    Ok(KvReport {
        model: name.to_string(),
        threads,
        isa: isa.to_string(),
        positions: n,
        depth: work.depth,
        types: rows.collect(),
    })
}

/// The device and the blocks of the one sequence.
struct Run {
    cpu: Cpu,
    vocab: usize,
    blocks: Vec<u32>,
}

impl Run {
    /// The logits of each of `tokens`, at most [`ROWS`].
    fn logits(&mut self, cache: Prepared, start: usize, tokens: &[u32]) -> Result<Vec<Vec<f32>>> {
        let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
        let seqs = [SeqStep::new(tokens.len(), start, &self.blocks)];
        self.cpu.run(cache, &StepInputs::new(tokens, &seqs, &outputs))?;
        outputs.iter().map(|row| self.row(cache, *row as usize)).collect()
    }

    fn row(&mut self, cache: Prepared, row: usize) -> Result<Vec<f32>> {
        let mut logits = vec![0.0; self.vocab];
        self.cpu.read(cache, Readout::Logits(row), &mut logits)?;
        Ok(logits)
    }

    /// Copies the blocks of the text to all behind it: a depth to decode at, for its time and not for its sense.
    fn fill(&mut self, cache: Prepared, n: usize) -> Result<()> {
        let full = (n / BLOCK_TOKENS).max(1) as u32;
        let pairs: Vec<(u32, u32)> = (full..self.blocks.len() as u32).map(|b| (b % full, b)).collect();
        Ok(self.cpu.copy_blocks(cache, &pairs)?)
    }

    /// New tokens per second behind `depth` others, each the best of the last logits.
    fn speed(&mut self, cache: Prepared, depth: usize, n: usize) -> Result<f64> {
        let mut token = 0;
        let mut logits = vec![0.0; self.vocab];
        let clock = Instant::now();
        for i in 0..n {
            let seqs = [SeqStep::new(1, depth + i, &self.blocks)];
            self.cpu.run(cache, &StepInputs::new(&[token], &seqs, &[0]))?;
            self.cpu.read(cache, Readout::Logits(0), &mut logits)?;
            token = crate::session::best(&logits);
        }
        Ok(n as f64 / clock.elapsed().as_secs_f64())
    }
}

/// Probabilities and their logarithms.
struct Softmax {
    logits: Vec<f32>,
    p: Vec<f32>,
    lse: f64,
    best: u32,
}

/// Logarithm of the sum of exponentials.
fn lse(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(max) + logits.iter().map(|l| f64::from((l - max).exp())).sum::<f64>().ln()
}

impl Softmax {
    fn of(logits: &[f32]) -> Softmax {
        let lse = lse(logits);
        let p = logits.iter().map(|l| (f64::from(*l) - lse).exp() as f32).collect();
        Softmax { logits: logits.to_vec(), p, lse, best: crate::session::best(logits) }
    }
}

/// Over the positions of the text.
#[derive(Clone, Default)]
struct Sums {
    kl: f64,
    kl_max: f64,
    same: usize,
    nll: f64,
}

impl Sums {
    /// Adds a position: what f16 says, what this type says, and the token that comes.
    fn add(&mut self, base: &Softmax, logits: &[f32], next: Option<u32>) {
        let lse = lse(logits);
        let shift = lse - base.lse;
        let terms = base.p.iter().zip(&base.logits).zip(logits);
        let kl =
            terms.map(|((p, a), b)| f64::from(*p) * (f64::from(*a) - f64::from(*b) + shift)).sum::<f64>();
        self.kl += kl;
        self.kl_max = self.kl_max.max(kl);
        self.same += usize::from(crate::session::best(logits) == base.best);
        self.nll += next.map_or(0.0, |t| lse - f64::from(logits[t as usize]));
    }
}

/// The comparison as people read it.
pub fn text(r: &KvReport) -> String {
    let header =
        ["KV", "BYTES/TOKEN", "KL MEAN", "KL MAX", "SAME BEST", "PERPLEXITY", "TOKENS/S", "AT DEPTH", "KEPT"];
    let mut rows = vec![header.map(String::from).to_vec()];
    for t in &r.types {
        rows.push(vec![
            t.kv.into(),
            format!("{:.0}", t.bytes_per_token),
            number(t.kl_mean),
            number(t.kl_max),
            format!("{:.1}%", 100.0 * t.same_best),
            format!("{:.4}", t.perplexity),
            format!("{:.1}", t.decode_tokens_per_s),
            format!("{:.1}", t.decode_at_depth_tokens_per_s),
            format!("{:.0}%", 100.0 * t.decode_at_depth_tokens_per_s / t.decode_tokens_per_s),
        ]);
    }
    let table = crate::text::table(&rows, &[1, 2, 3, 4, 5, 6, 7, 8]);
    format!(
        "{}: KL(f16 || type) in nats over {} positions, decoding at depth {}, {} threads, {}\n{table}",
        r.model, r.positions, r.depth, r.threads, r.isa
    )
}

/// A small number with three digits; 0 is exact.
fn number(x: f64) -> String {
    if x == 0.0 { "0".into() } else { format!("{x:.2e}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_of_known_distributions() {
        let base = Softmax::of(&[0.0, 0.0]);
        let mut same = Sums::default();
        same.add(&base, &[0.0, 0.0], Some(1));
        assert_eq!((same.kl, same.kl_max, same.same), (0.0, 0.0, 1));
        assert!((same.nll - 2f64.ln()).abs() < 1e-7);
        // (1/2, 1/2) against (3/4, 1/4): ln(2/sqrt(3)).
        let mut other = Sums::default();
        other.add(&base, &[3f32.ln(), 0.0], None);
        other.add(&base, &[-(3f32.ln()), 0.0], None);
        assert!((other.kl_max - (2.0 / 3f64.sqrt()).ln()).abs() < 1e-7 && other.kl > 1.99 * other.kl_max);
        assert_eq!((other.same, other.nll), (1, 0.0));
    }
}
