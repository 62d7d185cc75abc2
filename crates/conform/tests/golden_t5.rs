//! T5's kin with random weights against what `transformers` computed for them in float32, from safetensors and from GGUF
//! (`goldens/make_t5.py` made them): an encoder with a decoder, whole, in pieces and token by token. Encoders alone are in
//! `golden_embed.rs` too.

use quarrel_conform::compare;
use quarrel_cpu::{Cpu, CpuOptions, Isa, KvType};
use quarrel_engine::{
    Beams, Confidence, EmbedRequest, Engine, EngineConfig, Event, Eviction, Guide, Handle, LoadOptions,
    Request, Sampling, Speculate,
};
use quarrel_formats::Source;
use quarrel_ir::reference::Reference;
use quarrel_ir::{Device, Limits, Observe, Prepared, Readout, SeqStep, StepInputs, View};
use quarrel_model::ModelSpec;
use quarrel_model::decoder::{Options, decoder};
use std::path::{Path, PathBuf};

#[derive(serde::Deserialize)]
struct Encoder {
    dim: usize,
    prompts: Vec<Vec<u32>>,
}

#[derive(serde::Deserialize)]
struct Whole {
    vocab_size: usize,
    sources: Vec<Vec<u32>>,
    answers: Vec<Vec<u32>>,
    greedy: Vec<Vec<u32>>,
}

fn goldens(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens").join(name)
}

fn golden<T: serde::de::DeserializeOwned>(dir: &Path, file: &str) -> (T, Vec<f32>) {
    let golden = serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
    (golden, compare::floats(&dir.join(file)))
}

const BLOCKS: usize = 12;

struct Model {
    device: Box<dyn Device>,
    prepared: Prepared,
    spec: ModelSpec,
    hidden: Option<View>,
}

impl Model {
    fn open(mut device: Box<dyn Device>, path: &Path, fuse: bool, seqs: usize) -> Model {
        let source = Source::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let spec = quarrel_model::spec(&source).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let program = decoder(&spec, &Options { fuse, ..Options::default() });
        let hidden = program.hidden;
        let weights = quarrel_model::weights::load(&source, &spec, &program, &mut *device, |_| {}).unwrap();
        let limits = Limits { rows: 200, outputs: 200, kv_blocks: BLOCKS * seqs };
        let prepared = device.prepare(program, &weights, limits).unwrap();
        Model { device, prepared, spec, hidden }
    }

    /// A step of sources, one for each table of blocks.
    fn read_sources(&mut self, sources: &[&[u32]], blocks: &[Vec<u32>]) {
        let seqs: Vec<SeqStep> =
            sources.iter().zip(blocks).map(|(s, b)| SeqStep::new(s.len(), 0, b)).collect();
        let tokens = sources.concat();
        let step = StepInputs { source: true, ..StepInputs::new(&tokens, &seqs, &[]) };
        self.device.run(self.prepared, &step).unwrap();
    }

    /// Logits of all rows of a step of answers: each with the positions before it and those of its source.
    fn answer(&mut self, parts: &[(&[u32], usize, usize, &Vec<u32>)]) -> Vec<f32> {
        let tokens: Vec<u32> = parts.iter().flat_map(|p| p.0.to_vec()).collect();
        let seqs: Vec<SeqStep> = parts
            .iter()
            .map(|(tokens, start, source, blocks)| SeqStep {
                source: *source,
                ..SeqStep::new(tokens.len(), *start, blocks)
            })
            .collect();
        let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
        self.device.run(self.prepared, &StepInputs::new(&tokens, &seqs, &outputs)).unwrap();
        let mut all = Vec::new();
        for i in 0..tokens.len() {
            let mut row = vec![0.0; self.spec.vocab as usize];
            self.device.read(self.prepared, Readout::Logits(i), &mut row).unwrap();
            all.extend(row);
        }
        all
    }
}

/// Blocks of sequences, none in order.
fn tables(seqs: usize) -> Vec<Vec<u32>> {
    let block = |s: usize, b: usize| ((s * BLOCKS + b * 5 % BLOCKS) % (seqs * BLOCKS)) as u32;
    (0..seqs).map(|s| (0..BLOCKS).map(|b| block(s, b)).collect()).collect()
}

type Make = dyn Fn() -> Box<dyn Device>;

fn cpu(kv: KvType, threads: usize) -> Box<dyn Device> {
    let options = CpuOptions { threads: Some(threads), kv, poison: true, ..CpuOptions::default() };
    Box::new(Cpu::new(options).unwrap())
}

fn files(dir: &Path) -> [PathBuf; 2] {
    [dir.join("model.safetensors"), dir.join("model.gguf")]
}

fn check_whole(make: &Make, kl_max: f64, diff_max: f32) {
    for name in ["encdec/t5", "encdec/flan-t5", "encdec/mt5"] {
        let dir = goldens(name);
        let (golden, want): (Whole, _) = golden(&dir, "logits.bin");
        let blocks = tables(golden.sources.len());
        for (path, fuse) in files(&dir).into_iter().flat_map(|p| [(p.clone(), false), (p, true)]) {
            let at = format!("{}, fused {fuse}", path.display());
            let mut m = Model::open(make(), &path, fuse, blocks.len());
            assert_eq!((m.spec.vocab as usize, m.spec.source.unwrap().start), (golden.vocab_size, 0), "{at}");
            // All sources in one step, all answers in another.
            let sources: Vec<&[u32]> = golden.sources.iter().map(Vec::as_slice).collect();
            m.read_sources(&sources, &blocks);
            let all: Vec<_> = (0..blocks.len())
                .map(|i| (&golden.answers[i][..], 0, sources[i].len(), &blocks[i]))
                .collect();
            let together = m.answer(&all);
            let kl = compare::mean_kl(&want, &together, golden.vocab_size);
            let diff = compare::max_abs_diff(&want, &together);
            assert!(kl < kl_max && diff < diff_max, "{at}: KL {kl:e}, largest difference {diff:e}");
            // Each alone, its answer in pieces.
            let mut m = Model::open(make(), &path, fuse, blocks.len());
            let mut pieces = Vec::new();
            for (i, (source, answer)) in sources.iter().zip(&golden.answers).enumerate() {
                m.read_sources(&[source], &blocks[i..=i]);
                for (n, piece) in answer.chunks([1, 2, 7, 20][i]).enumerate() {
                    let part = (piece, n * [1, 2, 7, 20][i], source.len(), &blocks[i]);
                    pieces.extend(m.answer(&[part]));
                }
            }
            let same = together.iter().zip(&pieces).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same && together.len() == pieces.len(), "{at}: pieces and company change the bits");
            // What it would say.
            for (i, (source, greedy)) in sources.iter().zip(&golden.greedy).enumerate() {
                let (mut said, mut last) = (Vec::new(), 0);
                for position in 0..greedy.len() {
                    let row = m.answer(&[(&[last], position, source.len(), &blocks[i])]);
                    last = compare::argmax(&row) as u32;
                    said.push(last);
                }
                assert_eq!(said, *greedy, "{at}");
            }
        }
    }
}

#[test]
fn reference_equals_transformers() {
    check_whole(&|| Box::new(Reference::default()), 1e-6, 2e-3);
}

#[test]
fn cpu_equals_transformers() {
    check_whole(&|| cpu(KvType::F32, 3), 1e-6, 2e-3);
    check_whole(&|| cpu(KvType::F16, 2), 1e-3, 0.1);
}

/// A bias by distance with all instructions, and in every type of cache, whose sums are the kernel's own for codes.
#[test]
fn every_kernel_has_the_bias() {
    let dir = goldens("embed/t5encoder");
    let (golden, want): (Encoder, _) = golden(&dir, "hidden.bin");
    let (tokens, blocks) = (golden.prompts.last().unwrap(), tables(1));
    let bounds = [
        (KvType::F32, 1e-5),
        (KvType::F16, 5e-3),
        (KvType::BF16, 0.02),
        (KvType::Q8_0, 0.03),
        (KvType::Q4_0, 0.4),
    ];
    for (isa, (kv, bound)) in Isa::available().into_iter().flat_map(|i| bounds.map(|b| (i, b))) {
        let options = CpuOptions { threads: Some(2), isa: Some(isa), kv, ..CpuOptions::default() };
        let cpu = Box::new(Cpu::new(options).unwrap());
        let mut m = Model::open(cpu, &files(&dir)[1], true, 1);
        let hidden = m.hidden.unwrap();
        let seqs = [SeqStep::new(tokens.len(), 0, &blocks[0])];
        m.device.run(m.prepared, &StepInputs::new(tokens, &seqs, &[])).unwrap();
        let mut rows = vec![0.0; tokens.len() * golden.dim];
        m.device.read(m.prepared, Readout::View(hidden), &mut rows).unwrap();
        let error = compare::relative_rms(&rows, &want[want.len() - rows.len()..]);
        assert!(error < bound, "{isa}, {kv:?}: {error}");
    }
}

#[test]
fn steps_that_contradict_the_stacks_are_refused() {
    let blocks = tables(1);
    for device in [Box::new(Reference::default()) as Box<dyn Device>, cpu(KvType::F16, 1)] {
        let mut m = Model::open(device, &goldens("encdec/t5/model.gguf"), true, 1);
        let seq = SeqStep::new(3, 0, &blocks[0]);
        let mut run = |seq: SeqStep, source: bool, outputs: &[u32]| {
            let seqs = [seq];
            let step = StepInputs { source, ..StepInputs::new(&[3, 4, 5], &seqs, outputs) };
            m.device.run(m.prepared, &step).map_err(|e| e.to_string())
        };
        run(seq, true, &[]).unwrap();
        run(SeqStep { source: 3, ..seq }, false, &[2]).unwrap();
        for (seq, source, outputs, why) in [
            (seq, true, &[2][..], "nothing comes out of it"),
            (SeqStep { start: 1, ..seq }, true, &[], "a source is read whole"),
            (seq, false, &[2], "a source of 0 tokens"),
            (SeqStep { source: 16 * BLOCKS + 1, ..seq }, false, &[2], "blocks for a source of"),
            (
                SeqStep { source: 3, observe: Some(Observe { slot: 0, rows: 1 }), ..seq },
                false,
                &[2],
                "not observed",
            ),
        ] {
            let e = run(seq, source, outputs).unwrap_err();
            assert!(e.contains(why), "{why}: {e}");
        }
    }
    let mut m = Model::open(cpu(KvType::F16, 1), &goldens("embed/t5encoder/model.gguf"), true, 1);
    let seqs = [SeqStep::new(2, 0, &blocks[0])];
    let step = StepInputs { source: true, ..StepInputs::new(&[3, 4], &seqs, &[]) };
    let e = m.device.run(m.prepared, &step).unwrap_err().to_string();
    assert!(e.contains("the model reads no sources"), "{e}");
}

/// What people do with the encoder: embed, with it alone or with a file of the whole.
#[test]
fn engines_embed_with_the_encoder() {
    let (golden, want): (Encoder, _) = golden(&goldens("embed/t5encoder"), "hidden.bin");
    let mut rows = want.chunks_exact(golden.dim);
    let alone = engine("embed/t5encoder/model.gguf", true, |_| {});
    for prompt in &golden.prompts {
        let mut mean = vec![0.0; golden.dim];
        rows.by_ref().take(prompt.len()).for_each(|r| mean.iter_mut().zip(r).for_each(|(m, x)| *m += x));
        let got = alone.embed(EmbedRequest::new(prompt.clone())).unwrap().wait().unwrap();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let cosine = |a: &[f32], b: &[f32]| dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
        assert!(cosine(&got.vectors[0], &mean) > 0.999_999, "{} tokens", prompt.len());
    }
    for name in ["encdec/flan-t5/model.gguf", "encdec/t5/model.safetensors"] {
        let whole = engine(name, true, |_| {});
        assert!(!whole.info().generates && whole.info().source.is_none());
        let got = whole.embed(EmbedRequest::new(vec![5, 6, 1])).unwrap().wait().unwrap();
        assert!(got.vectors[0].len() == golden.dim && got.vectors[0].iter().all(|x| x.is_finite()));
    }
}

fn engine(name: &str, encoder: bool, configure: impl FnOnce(&mut EngineConfig)) -> Handle {
    let source = Source::open(goldens(name)).unwrap();
    let options = LoadOptions { hidden: true, encoder, ..LoadOptions::default() };
    Engine::load(&source, cpu(KvType::F32, 2), &options, configure, |_| {}).unwrap().handle
}

/// Tokens by answer, and the tokens of the prompt that were counted and found.
fn ask(handle: &Handle, request: Request) -> (Vec<Vec<u32>>, [usize; 2]) {
    let mut said = vec![Vec::new(); request.n as usize];
    for event in handle.submit(request).unwrap() {
        match event {
            Event::Token { choice, id, .. } => said[choice as usize].push(id),
            Event::Done { stats, .. } => return (said, [stats.prompt_tokens, stats.cached_tokens]),
            Event::Failed(e) => panic!("{e}"),
            _ => {}
        }
    }
    panic!("no end");
}

#[test]
fn engines_answer_sources_as_transformers_does() {
    for path in ["t5", "flan-t5", "mt5"].into_iter().flat_map(|name| files(&Path::new("encdec").join(name))) {
        let path = path.to_str().unwrap();
        let (golden, _): (Whole, _) = golden(goldens(path).parent().unwrap(), "logits.bin");
        let handle = engine(path, false, |_| {});
        assert_eq!(handle.info().context, 1024, "source and answer");
        for (source, greedy) in golden.sources.iter().zip(&golden.greedy) {
            let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
            let max_tokens = Some(greedy.len() as u32);
            let request = Request { sampling, max_tokens, ..Request::new(source.clone()) };
            for _ in 0..2 {
                let (said, counted) = ask(&handle, request.clone());
                assert_eq!((&said[0], counted), (greedy, [source.len(), 0]), "{path}");
            }
        }
    }
}

/// Answers that fork, and beams, in a cache with room for all and in one that they fight for.
#[test]
fn forks_of_an_answer_go_on_by_themselves() {
    let (golden, _): (Whole, _) = golden(&goldens("encdec/flan-t5"), "logits.bin");
    for blocks in [64, 10] {
        let configure = |c: &mut EngineConfig| {
            *c = EngineConfig { kv_blocks: Some(blocks), step_tokens: 160, ..EngineConfig::new(160) };
        };
        let handle = engine("encdec/flan-t5/model.gguf", false, configure);
        let sampled = |seed| Request {
            sampling: Sampling { temperature: 1.5, seed: Some(seed), ..Sampling::default() },
            max_tokens: Some(40),
            ..Request::new(golden.sources[2].clone())
        };
        let (many, counted) = ask(&handle, Request { n: 4, ..sampled(40) });
        assert_eq!(counted, [golden.sources[2].len(), 0]);
        for (i, said) in many.iter().enumerate() {
            assert_eq!(ask(&handle, sampled(40 + i as u64)).0[0], *said, "{blocks} blocks, answer {i}");
        }
        assert!(many.iter().any(|a| *a != many[0]));
        assert_eq!((handle.stats().preemptions > 0, handle.stats().blocks_used), (blocks == 10, 0));
        let beams = Some(Beams { width: 3, length_penalty: 0.0 });
        let greedy = Request { beams, max_tokens: Some(8), ..Request::new(golden.sources[1].clone()) };
        assert_eq!(ask(&handle, greedy).0[0].len(), 8);
    }
}

#[test]
fn what_a_source_does_not_go_with_is_refused_by_name() {
    let handle = engine("encdec/flan-t5/model.gguf", false, |_| {});
    let plain = || Request::new(vec![5, 6, 1]);
    let confidence = Confidence { tries: 2, window: 6, best: 5, min: 90.0, max: 99.0 };
    let guide = Guide { confidence: Some(confidence), ..Guide::default() };
    for (request, why) in [
        (Request { guide: Some(Box::new(guide)), ..plain() }, "are not guided"),
        (Request { eviction: Eviction::H2O, ..plain() }, "cannot be moved"),
        (Request { speculate: Speculate::Lookup, ..plain() }, "nothing is guessed ahead"),
        (Request::new(vec![5; 1024]), "1025 tokens"),
        (Request::new(Vec::new()), "prompt"),
    ] {
        let e = handle.submit(request).err().unwrap().to_string();
        assert!(e.contains(why), "{why}: {e}");
    }
    let e = handle.score(vec![5, 6, 7], 1).unwrap_err().to_string();
    assert!(e.contains("not its prompt"), "{e}");
    let e = handle.logits(vec![5, 6, 7]).unwrap_err().to_string();
    assert!(e.contains("not its prompt"), "{e}");
    let e = handle.embed(EmbedRequest::new(vec![5])).err().unwrap().to_string();
    assert!(e.contains("encoder alone"), "{e}");
    let source = Source::open(goldens("encdec/t5/model.gguf")).unwrap();
    let small = LoadOptions { context: Some(64), ..LoadOptions::default() };
    let e = Engine::load(&source, cpu(KvType::F16, 1), &small, |c| c.step_tokens = 40, |_| {});
    assert!(e.err().unwrap().to_string().contains("step_tokens is 40"));
}
