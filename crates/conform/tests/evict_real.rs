//! Eviction on a real model: how far the distributions over a page of prose are from those with everything in the cache.
//! The figures go to stdout (`--nocapture`); the weights are those of `golden_real`.

use quarrel_conform::compare::{kl, log_softmax};
use quarrel_cpu::{Cpu, CpuOptions};
use quarrel_engine::{Evicted, Eviction, Evictor};
use quarrel_formats::Source;
use quarrel_ir::{BLOCK_TOKENS, Device, Keep, Limits, Observe, Prepared, Readout, SeqStep, StepInputs};
use quarrel_model::decoder::{Options, decoder};
use quarrel_text::{Ends, Special, Tokenizer};
use std::path::{Path, PathBuf};

const TOKENS: usize = 1024;
const BUDGET: usize = 256;
const ROWS: usize = 64;

struct Model {
    device: Cpu,
    prepared: Prepared,
    vocab: usize,
    heads: usize,
    text: Vec<u32>,
}

fn model() -> Model {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = std::env::var_os("QUARREL_FIXTURES")
        .map_or_else(|| root.join("../../target/fixtures"), PathBuf::from);
    let path = dir.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.exists(), "{} is missing: run `cargo xtask fixtures` first", path.display());
    let source = Source::open(&path).unwrap();
    let tokenizer = Tokenizer::from_gguf(source.metadata().unwrap()).unwrap();
    let text = std::fs::read_to_string(root.join("goldens/text/long.txt")).unwrap();
    let mut text = tokenizer.encode(&text, Special::Plain, Ends::None).unwrap();
    text.truncate(TOKENS);
    let spec = quarrel_model::spec(&source).unwrap();
    let program = decoder(&spec, &Options::default());
    let heads = program.kv.iter().map(|l| l.kv_heads as usize).sum();
    let mut device = Cpu::new(CpuOptions::default()).unwrap();
    let weights = quarrel_model::weights::load(&source, &spec, &program, &mut device, |_| {}).unwrap();
    let limits = Limits { rows: ROWS, outputs: ROWS, kv_blocks: TOKENS.div_ceil(BLOCK_TOKENS) };
    let prepared = device.prepare(program, &weights, limits).unwrap();
    Model { device, prepared, vocab: spec.vocab as usize, heads, text }
}

impl Model {
    /// The logits of every token of the text, and what was evicted meanwhile.
    fn read(&mut self, policy: Eviction) -> (Vec<Vec<f32>>, Vec<Evicted>) {
        let mut evictor = Evictor::new(policy, BUDGET, 0).unwrap();
        let blocks: Vec<u32> = (0..TOKENS.div_ceil(BLOCK_TOKENS) as u32).collect();
        let outputs: Vec<u32> = (0..ROWS as u32).collect();
        let (mut at, mut len) = (0, 0);
        let (mut logits, mut evicted) = (Vec::new(), Vec::new());
        while at < self.text.len() {
            let room = evictor.as_ref().map_or(TOKENS, |e| e.room(len));
            if let Some(evictor) = evictor.as_mut().filter(|_| room == 0) {
                let mass = self.device.take_mass(self.prepared, 0).unwrap();
                let (keep, lost): (Keep, Evicted) = evictor.shorten(&mass, self.heads);
                self.device.compact(self.prepared, &blocks, len, &blocks, &keep).unwrap();
                len = keep.len();
                evicted.push(lost);
                continue;
            }
            let rows = room.min(ROWS).min(self.text.len() - at);
            let observed = evictor.as_ref().map_or(0, |e| e.observe(len, rows));
            let observe = (observed > 0).then_some(Observe { slot: 0, rows: observed });
            let seqs = [SeqStep { observe, ..SeqStep::new(rows, len, &blocks) }];
            let step = StepInputs::new(&self.text[at..at + rows], &seqs, &outputs[..rows]);
            self.device.run(self.prepared, &step).unwrap();
            for i in 0..rows {
                let mut row = vec![0.0; self.vocab];
                self.device.read(self.prepared, Readout::Logits(i), &mut row).unwrap();
                logits.push(row);
            }
            (at, len) = (at + rows, len + rows);
        }
        (logits, evicted)
    }

    fn perplexity(&self, logits: &[Vec<f32>]) -> f64 {
        let next = self.text[1..].iter().zip(logits);
        let nll: f64 = next.map(|(t, row)| -log_softmax(row)[*t as usize]).sum();
        (nll / (self.text.len() - 1) as f64).exp()
    }
}

#[test]
fn smollm2_reads_on_with_a_quarter_of_the_cache() {
    let mut model = model();
    let (full, none) = model.read(Eviction::Refuse);
    assert!(none.is_empty());
    println!("policy            KL of rows past {BUDGET}  perplexity  dropped  attention lost");
    println!("full              {:21}  {:10.3}", 0, model.perplexity(&full));
    let mut measure = |name: &str, policy| {
        let (logits, evicted) = model.read(policy);
        assert!(logits[..BUDGET].iter().zip(&full).all(|(a, b)| a == b), "nothing is lost below the budget");
        let past = logits.iter().zip(&full).skip(BUDGET);
        let kl = past.map(|(l, f)| kl(f, l)).sum::<f64>() / (TOKENS - BUDGET) as f64;
        let dropped: usize = evicted.iter().map(|e| e.dropped).sum();
        let lost = evicted.iter().map(|e| e.mass_lost).sum::<f64>() / evicted.len() as f64;
        println!("{name:16}  {kl:21.4}  {:10.3}  {dropped:7}  {lost:14.4}", model.perplexity(&logits));
        assert_eq!(dropped, 32 * evicted.len());
        (kl, lost)
    };
    let slide = measure("slide", Eviction::SLIDE);
    let h2o = measure("h2o", Eviction::H2O);
    let snap = measure("snapkv", Eviction::SNAP_KV);
    let without = measure("slide, no sinks", Eviction::Slide { sinks: 0 });
    // Dropping the first tokens is what breaks a model (Xiao et al. 2023, figure 3); the others lose long memory only.
    assert!(without.0 > 4.0 * slide.0 && without.1 > 0.05, "sinks matter: {without:?}, {slide:?}");
    assert!(h2o.1 < slide.1 && snap.1 < slide.1, "what is chosen by attention loses less of it");
    for (kl, lost) in [slide, h2o, snap] {
        assert!(kl < 0.5 && lost < 0.05, "KL {kl}, lost {lost}");
    }
}
