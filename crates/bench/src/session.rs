//! A model on a device, measured below the engine: steps are made here, one after the other, on the caller's thread.

use crate::Result;
use crate::work::{Case, Work};
use quarrel_formats::Source;
use quarrel_ir::candidates::COUNT;
use quarrel_ir::cost::{Cost, StepShape, cost};
use quarrel_ir::{
    BLOCK_TOKENS, Candidates, Device, Limits, Op, OpTime, Prepared, Program, Readout, SeqStep, StepInputs,
    Weight,
};
use quarrel_model::decoder::{Options, decoder};
use quarrel_model::{ModelSpec, weights};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Bytes of an element of the cache: the CPU's default, half precision.
pub const KV_ELEMENT_BYTES: usize = 2;

/// The seconds of each case of a round, in the order of [`Work::cases`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// Seconds.
    pub seconds: Vec<f64>,
}

/// What a whole case moves and computes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    /// Weights and cache.
    pub bytes: f64,
    /// Operations on quantised weights.
    pub int_ops: f64,
    /// All others.
    pub flops: f64,
}

impl Totals {
    /// Of the costs of single ops.
    pub(crate) fn add(&mut self, cost: &Cost, quantised: bool) {
        self.bytes += (cost.weight_bytes + cost.kv_bytes) as f64;
        *(if quantised { &mut self.int_ops } else { &mut self.flops }) += cost.flops as f64;
    }
}

/// A weight as it is stored.
#[derive(Debug, Clone, Copy)]
struct Stored {
    bytes: u64,
    quantised: bool,
}

/// A loaded model.
pub struct Session {
    pub(crate) device: Box<dyn Device>,
    pub(crate) program: Program,
    pub(crate) ids: Vec<Weight>,
    pub(crate) vocab: usize,
    prepared: Prepared,
    limits: Limits,
    stored: Vec<Stored>,
    blocks: Vec<u32>,
    logits: Vec<f32>,
    best: Vec<f32>,
    /// Seconds spent on logits since the last profile began: reading them and choosing a token.
    choosing: f64,
    /// Prompt tokens of a step.
    step: usize,
    /// Prompts are sources, which an encoder reads whole; what is decoded answers one of as many tokens as the depth.
    sources: bool,
}

/// Refuses models whose steps cannot be measured behind a cache that nobody computed.
pub(crate) fn check_states(program: &Program) -> Result<()> {
    if program.states.is_empty() {
        return Ok(());
    }
    let why = "the layers of this model have states, which only the tokens before a step can give; measure it with --serve";
    Err(crate::Error::Work(why.into()))
}

impl Session {
    /// Loads the weights into `device` and makes room for `work`. Every block of the cache is written once: the first touch of memory
    /// is slow, and would be measured otherwise.
    ///
    /// # Errors
    /// What the model or the device refuses.
    pub fn new(
        source: &Source,
        spec: &ModelSpec,
        work: &Work,
        mut device: Box<dyn Device>,
    ) -> Result<Session> {
        let mut program = decoder(spec, &Options::default());
        check_states(&program)?;
        program.choose(COUNT);
        let ids = weights::load(source, spec, &program, &mut *device, |_| ())?;
        let sources = program.source_ops() > 0;
        let step = if sources { work.prompt.max(work.step) } else { work.step };
        let limits = Limits {
            rows: work.rows().max(if sources { step } else { 0 }),
            outputs: work.sequences(),
            kv_blocks: work.kv_blocks(),
        };
        let prepared = device.prepare(program.clone(), &ids, limits)?;
        let stored = program
            .weights
            .iter()
            .map(|w| {
                let parts = w.parts.iter().map(|p| weights::tensor(source, spec, &p.name));
                let parts = parts.collect::<quarrel_model::Result<Vec<_>>>()?;
                Ok(Stored {
                    bytes: parts.iter().map(|t| t.data.len() as u64).sum(),
                    quantised: parts.iter().any(|t| t.dtype.block_len() > 1),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let vocab = spec.vocab as usize;
        let blocks: Vec<u32> = (0..limits.kv_blocks as u32).collect();
        let logits = vec![0.0; vocab];
        let mut session = Session {
            device,
            program,
            ids,
            vocab,
            prepared,
            limits,
            stored,
            blocks,
            logits,
            best: Vec::new(),
            choosing: 0.0,
            step,
            sources,
        };
        session.warm()?;
        Ok(session)
    }

    /// Runs one step of a prompt and copies its cache to all other blocks, which is what a depth is made of: the time of
    /// attention does not depend on what the cache holds.
    fn warm(&mut self) -> Result<()> {
        let tokens = self.step.min(self.limits.rows).min(self.limits.kv_blocks * BLOCK_TOKENS);
        self.prompt(tokens)?;
        let full = (tokens / BLOCK_TOKENS).max(1) as u32;
        let pairs: Vec<(u32, u32)> = (full..self.limits.kv_blocks as u32).map(|b| (b % full, b)).collect();
        self.device.copy_blocks(self.prepared, &pairs)?;
        if self.sources {
            self.decode(1, 0, 1)?;
        }
        Ok(self.device.read(self.prepared, Readout::Logits(0), &mut self.logits)?)
    }

    /// Seconds of one case.
    ///
    /// # Errors
    /// What the device refuses.
    pub fn time(&mut self, case: Case) -> Result<f64> {
        let start = Instant::now();
        match case {
            Case::Prompt(tokens) => self.prompt(tokens)?,
            Case::Decode { depth, tokens } => self.decode(1, depth, tokens)?,
            Case::Batch { sequences, depth, steps } => self.decode(sequences, depth, steps)?,
        }
        Ok(start.elapsed().as_secs_f64())
    }

    /// Seconds of one case, of the choice of its tokens, and of each op in it.
    ///
    /// # Errors
    /// Where the device cannot tell the time of its ops.
    pub fn profile(&mut self, case: Case) -> Result<(f64, f64, Vec<OpTime>)> {
        self.device.profile(true)?;
        self.choosing = 0.0;
        let seconds = self.time(case)?;
        let times = self.device.timings(self.prepared)?;
        self.device.profile(false)?;
        Ok((seconds, self.choosing, times))
    }

    fn prompt(&mut self, tokens: usize) -> Result<()> {
        let ids = made_up(tokens, self.vocab);
        for (i, part) in ids.chunks(self.step).enumerate() {
            let ends = i * self.step + part.len() == tokens;
            let last = [part.len() as u32 - 1];
            let seqs = [SeqStep::new(part.len(), i * self.step, &self.blocks)];
            let outputs = if ends && !self.sources { &last[..] } else { &[] };
            let step = StepInputs { source: self.sources, ..StepInputs::new(part, &seqs, outputs) };
            self.device.run(self.prepared, &step)?;
        }
        if self.sources {
            return Ok(()); // nothing comes out of it
        }
        std::hint::black_box(self.choose(1)?);
        Ok(())
    }

    fn decode(&mut self, sequences: usize, depth: usize, steps: usize) -> Result<()> {
        let each = (depth + steps).div_ceil(BLOCK_TOKENS);
        let (start, source) = if self.sources { (0, depth.max(1)) } else { (depth, 0) };
        let outputs: Vec<u32> = (0..sequences as u32).collect();
        let mut tokens = made_up(sequences, self.vocab);
        for i in 0..steps {
            let seqs: Vec<SeqStep> = (0..sequences)
                .map(|s| SeqStep {
                    source,
                    ..SeqStep::new(1, start + i, &self.blocks[s * each..(s + 1) * each])
                })
                .collect();
            self.device.run(self.prepared, &StepInputs::new(&tokens, &seqs, &outputs))?;
            tokens.copy_from_slice(&self.choose(sequences)?);
        }
        Ok(())
    }

    /// The best tokens of the step's rows of logits: as the device chose them; of a row that it could not choose from, or that is too wide
    /// for that, by looking at all of it.
    fn choose(&mut self, rows: usize) -> Result<Vec<u32>> {
        let start = Instant::now();
        let cols = self.program.candidates.map_or(0, |v| v.cols as usize);
        if let Some(view) = self.program.candidates {
            self.best.resize(rows * cols, 0.0);
            self.device.read(self.prepared, Readout::View(view), &mut self.best)?;
        }
        let mut tokens = Vec::with_capacity(rows);
        for row in 0..rows {
            let chosen = self.best.get(row * cols..(row + 1) * cols).filter(|b| !b.is_empty());
            let first = chosen.and_then(|b| Candidates::of(b).iter().next());
            tokens.push(match first {
                Some((id, _)) => id,
                None => {
                    self.device.read(self.prepared, Readout::Logits(row), &mut self.logits)?;
                    best(&self.logits)
                }
            });
        }
        self.choosing += start.elapsed().as_secs_f64();
        Ok(tokens)
    }

    /// What each op of the tape moves and computes in a whole case.
    pub fn costs(&self, case: Case) -> Vec<Cost> {
        let mut sums = vec![Cost::default(); self.program.ops.len()];
        let (depth, reads) = match case {
            Case::Prompt(_) => (0, self.sources),
            Case::Decode { depth, .. } | Case::Batch { depth, .. } => (depth, false),
        };
        let (first, source) = if self.sources { (0, depth.max(1) as u64) } else { (depth, 0) };
        let mut step = |seqs: &[(u64, u64)], outputs: u64| {
            let shape = StepShape { seqs, outputs, kv_element_bytes: KV_ELEMENT_BYTES as u64, source };
            for (sum, node) in sums.iter_mut().zip(&self.program.ops).filter(|(_, n)| n.source == reads) {
                let c = cost(&self.program, &node.op, &shape, |w| self.stored[w].bytes);
                sum.weight_bytes += c.weight_bytes;
                sum.kv_bytes += c.kv_bytes;
                sum.activation_bytes += c.activation_bytes;
                sum.flops += c.flops;
            }
        };
        match case {
            Case::Prompt(tokens) => {
                for at in (0..tokens).step_by(self.step) {
                    let rows = self.step.min(tokens - at);
                    step(&[(at as u64, rows as u64)], u64::from(at + rows == tokens && !reads));
                }
            }
            Case::Decode { tokens, .. } => {
                (first..first + tokens).for_each(|at| step(&[(at as u64, 1)], 1));
            }
            Case::Batch { sequences, steps, .. } => {
                (first..first + steps)
                    .for_each(|at| step(&vec![(at as u64, 1); sequences], sequences as u64));
            }
        }
        sums
    }

    /// The sum of [`Session::costs`].
    pub fn totals(&self, case: Case) -> Totals {
        let mut totals = Totals::default();
        for (node, cost) in self.program.ops.iter().zip(self.costs(case)) {
            totals.add(&cost, self.quantised(&node.op));
        }
        totals
    }

    /// Whether an op multiplies quantised weights.
    pub(crate) fn quantised(&self, op: &Op) -> bool {
        matches!(op, Op::MatMul { weight, .. } | Op::MatMulExperts { weight, .. } if self.stored[weight.0 as usize].quantised)
    }
}

/// Token ids that repeat late: steps of a prime through the vocabulary.
pub(crate) fn made_up(n: usize, vocab: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 7919 + 17) % vocab.max(1)) as u32).collect()
}

/// The token with the largest logit, as sixteen maxima side by side, so that it costs little beside the step.
pub(crate) fn best(logits: &[f32]) -> u32 {
    const LANES: usize = 16;
    let mut largest = [f32::NEG_INFINITY; LANES];
    let chunks = logits.chunks_exact(LANES);
    let rest = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for chunk in chunks {
        for (l, x) in largest.iter_mut().zip(chunk) {
            *l = if *x > *l { *x } else { *l };
        }
    }
    let max = largest.into_iter().fold(rest, f32::max);
    logits.iter().position(|l| *l == max).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_token_is_the_first_of_the_largest() {
        let mut logits: Vec<f32> = (0..100).map(|i| ((i * 37) % 50) as f32).collect();
        assert_eq!(best(&logits), logits.iter().position(|l| *l == 49.0).unwrap() as u32);
        logits[99] = 60.0;
        assert_eq!(best(&logits), 99);
        assert_eq!(best(&[-1.0, -0.5, -2.0]), 1);
        assert_eq!(best(&[]), 0);
    }

    /// A prompt is read by the encoder alone, and what is decoded costs more behind a longer source.
    #[test]
    fn encoder_and_decoder_are_measured_apart() {
        let goldens = concat!(env!("CARGO_MANIFEST_DIR"), "/../conform/goldens/encdec/flan-t5/model.gguf");
        let source = Source::open(goldens).unwrap();
        let spec = quarrel_model::spec(&source).unwrap();
        let wish = crate::work::Wish {
            prompt: Some(300),
            decode: Some(3),
            depths: Some(vec![200]),
            batch: Some(vec![2]),
            batch_depth: 40,
            repeat: 1,
        };
        let (work, _) = Work::new(&wish, spec.context as usize).unwrap();
        let options = quarrel_cpu::CpuOptions { threads: Some(1), ..Default::default() };
        let cpu = Box::new(quarrel_cpu::Cpu::new(options).unwrap());
        let mut session = Session::new(&source, &spec, &work, cpu).unwrap();
        let mut bytes = Vec::new();
        for case in work.cases() {
            assert!(session.time(case).unwrap() > 0.0, "{}", case.name());
            bytes.push(session.totals(case).bytes);
            for (node, cost) in session.program.ops.iter().zip(session.costs(case)) {
                assert!(node.source == matches!(case, Case::Prompt(_)) || cost == Cost::default());
            }
        }
        let [prompt, near, far, batch] = bytes[..] else { panic!("{} cases", bytes.len()) };
        assert!(prompt > 0.0 && far > near && batch > 0.0, "{bytes:?}");
    }

    #[test]
    fn made_up_tokens_are_in_the_vocabulary_and_differ() {
        let mut ids = made_up(512, 49_152);
        assert!(ids.iter().all(|i| *i < 49_152));
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 512);
        assert_eq!(made_up(3, 1), [0, 0, 0]);
    }
}
