//! The CPU device against the reference interpreter on small random decoders, and against itself: the same bits whatever
//! the threads, the neighbours in a step and the way in which a prompt is cut.

use quarrel_cpu::{Cpu, CpuOptions, Isa, KvType};
use quarrel_formats::{Bytes, DType, Tensor, quant};
use quarrel_ir::reference::Reference;
use quarrel_ir::{
    BLOCK_TOKENS, Device, HostWeight, Limits, Op, Prepared, Program, Readout, RopeStyle, SeqStep, StepInputs,
    Weight,
};
use quarrel_model::arch::{Arch, GEMMA3, LLAMA};
use quarrel_model::decoder::{Options, decoder};
use quarrel_model::rope::Rotary;
use quarrel_model::{LayerSpec, ModelSpec};

const VOCAB: u32 = 96;

/// xorshift64*, as uniform numbers in -1..1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

#[derive(Clone, Copy)]
struct Shape {
    arch: &'static Arch,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    style: RopeStyle,
    softcap: Option<f32>,
    window: Option<u32>,
    bias: bool,
}

const BASE: Shape = Shape {
    arch: &LLAMA,
    heads: 6,
    kv_heads: 2,
    head_dim: 32,
    style: RopeStyle::Interleaved,
    softcap: None,
    window: None,
    bias: false,
};

fn model(s: Shape) -> ModelSpec {
    let rope = |base| Rotary::plain(s.style, s.head_dim / 2 * 2, base);
    ModelSpec {
        vocab: VOCAB,
        dim: 64,
        heads: s.heads,
        kv_heads: s.kv_heads,
        head_dim: s.head_dim,
        v_dim: s.head_dim,
        ff: 96,
        context: 4096,
        eps: 1e-5,
        attn_scale: (s.head_dim as f32).powf(-0.5),
        attn_softcap: s.softcap,
        logit_softcap: s.softcap,
        qkv_bias: s.bias,
        out_bias: s.bias,
        ff_bias: s.bias,
        tied: true,
        ropes: vec![rope(1e4), rope(1e3)],
        layers: vec![
            LayerSpec { window: s.window, rope: Some(0) },
            LayerSpec { window: None, rope: Some(1) },
        ],
        ..ModelSpec::new(s.arch)
    }
}

/// Random weights in the order of the program: vectors in F32, matrices in `dtype` where their width allows it.
fn weights(program: &Program, dtype: DType, device: &mut dyn Device) -> Vec<Weight> {
    weights_with(program, dtype, device, |_, _| ())
}

/// The same, with a last word on the values of each tensor.
fn weights_with(
    program: &Program,
    dtype: DType,
    device: &mut dyn Device,
    change: impl Fn(&str, &mut [f32]),
) -> Vec<Weight> {
    let load = |decl: &quarrel_ir::WeightDecl| {
        let parts = decl.parts.iter().map(|p| {
            let vector = !p.name.ends_with("weight") || p.name.contains("norm");
            let seed = p.name.bytes().fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
            let mut random = Random(seed);
            let n = p.rows as usize * decl.cols as usize;
            let scale = if vector { 0.2 } else { 2.0 / (decl.cols as f32).sqrt() };
            let shift = if p.name.contains("norm") { 1.0 } else { 0.0 };
            let mut values: Vec<f32> = (0..n).map(|_| random.next() * scale + shift).collect();
            change(&p.name, &mut values);
            let dtype = if vector || !(decl.cols as usize).is_multiple_of(dtype.block_len()) {
                DType::F32
            } else {
                dtype
            };
            let mut data = Vec::new();
            match dtype {
                // The encoder refuses NaN.
                DType::F32 => data.extend(values.iter().flat_map(|x| x.to_le_bytes())),
                _ => quant::quantize(dtype, &values, &mut data).unwrap(),
            }
            let shape = if vector { vec![n] } else { vec![p.rows as usize, decl.cols as usize] };
            Tensor { name: p.name.clone(), dtype, shape, data: Bytes::from(data) }
        });
        HostWeight { parts: parts.collect() }
    };
    program.weights.iter().map(|d| device.load(d, load(d)).unwrap()).collect()
}

/// A device with a prepared program, which feeds sequences and collects their logits.
struct Rig {
    device: Box<dyn Device>,
    prepared: Prepared,
}

const BLOCKS: u32 = 64;

impl Rig {
    fn new(mut device: Box<dyn Device>, program: &Program, dtype: DType) -> Rig {
        let ids = weights(program, dtype, &mut *device);
        let limits = Limits { rows: 512, outputs: 512, kv_blocks: 3 * BLOCKS as usize };
        let prepared = device.prepare(program.clone(), &ids, limits).unwrap();
        Rig { device, prepared }
    }

    fn cpu(options: CpuOptions, program: &Program, dtype: DType) -> Rig {
        Rig::new(Box::new(Cpu::new(CpuOptions { poison: true, ..options }).unwrap()), program, dtype)
    }

    /// Feeds `(sequence, start, tokens)` in one step and returns the logits of every row.
    fn step(&mut self, parts: &[(u32, usize, &[u32])]) -> Vec<Vec<f32>> {
        let tokens: Vec<u32> = parts.iter().flat_map(|p| p.2.to_vec()).collect();
        // Every sequence has its own blocks, out of order.
        let blocks: Vec<Vec<u32>> = parts
            .iter()
            .map(|p| (0..BLOCKS).map(|b| p.0 * BLOCKS + (b * 37 + 11) % BLOCKS).collect())
            .collect();
        let seqs: Vec<SeqStep> = parts
            .iter()
            .zip(&blocks)
            .map(|(p, b)| SeqStep::new(p.2.len(), p.1, &b[..(p.1 + p.2.len()).div_ceil(BLOCK_TOKENS)]))
            .collect();
        let outputs: Vec<u32> = (0..tokens.len() as u32).collect();
        self.device.run(self.prepared, &StepInputs::new(&tokens, &seqs, &outputs)).unwrap();
        outputs
            .iter()
            .map(|r| {
                let mut row = vec![0.0; VOCAB as usize];
                self.device.read(self.prepared, Readout::Logits(*r as usize), &mut row).unwrap();
                row
            })
            .collect()
    }
}

fn tokens(seed: u64, n: usize) -> Vec<u32> {
    let mut random = Random(seed);
    (0..n).map(|_| ((random.next() + 1.0) * 0.5 * (VOCAB - 1) as f32) as u32).collect()
}

fn worst(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let diff = |(a, b): (&Vec<f32>, &Vec<f32>)| {
        let size = b.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        // A NaN must count as a difference.
        a.iter().zip(b).map(|(x, y)| (x - y).abs() / size).fold(0.0, |m: f32, d| if d <= m { m } else { d })
    };
    a.iter().zip(b).map(diff).fold(0.0, |m, d| if d <= m { m } else { d })
}

fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|r| r.iter().map(|x| x.to_bits()).collect()).collect()
}

fn shapes() -> Vec<Shape> {
    let gemma = Shape { arch: &GEMMA3, style: RopeStyle::Neox, window: Some(20), ..BASE };
    vec![
        BASE,
        Shape { heads: 2, kv_heads: 1, head_dim: 1, ..BASE },
        Shape { heads: 3, kv_heads: 3, head_dim: 7, style: RopeStyle::Neox, bias: true, ..BASE },
        Shape { heads: 5, kv_heads: 1, head_dim: 40, softcap: Some(2.0), ..BASE },
        Shape { heads: 7, kv_heads: 1, head_dim: 64, window: Some(3), ..BASE },
        Shape { heads: 9, kv_heads: 1, head_dim: 80, ..gemma },
        Shape { heads: 4, kv_heads: 4, head_dim: 96, bias: true, ..gemma },
        Shape { heads: 8, kv_heads: 2, head_dim: 128, softcap: Some(5.0), ..gemma },
        Shape { heads: 4, kv_heads: 1, head_dim: 256, ..gemma },
    ]
}

#[test]
fn decoders_agree_with_the_reference_fused_and_not_on_every_instruction_set() {
    for (i, shape) in shapes().into_iter().enumerate() {
        let (a, b) = (tokens(1, 75), tokens(2, 7));
        let plain = decoder(&model(shape), &Options { fuse: false, ..Options::default() });
        let mut reference = Rig::new(Box::new(Reference::default()), &plain, DType::F32);
        let mut want = reference.step(&[(0, 0, &a[..64]), (1, 0, &b)]);
        want.extend(reference.step(&[(1, 7, &a[..1])]));
        want.extend(reference.step(&[(0, 64, &a[64..66]), (1, 8, &b[..1])]));
        for isa in Isa::available() {
            for fuse in [false, true] {
                let program = decoder(&model(shape), &Options { fuse, ..Options::default() });
                let options =
                    CpuOptions { threads: Some(2), isa: Some(isa), kv: KvType::F32, ..CpuOptions::default() };
                let mut cpu = Rig::cpu(options, &program, DType::F32);
                let mut got = cpu.step(&[(0, 0, &a[..64]), (1, 0, &b)]);
                got.extend(cpu.step(&[(1, 7, &a[..1])]));
                got.extend(cpu.step(&[(0, 64, &a[64..66]), (1, 8, &b[..1])]));
                let worst = worst(&got, &want);
                assert!(worst < 2e-5, "shape {i}, {isa}, fuse {fuse}: {worst}");
            }
        }
    }
}

#[test]
fn quantised_weights_and_half_precision_caches_stay_close_to_the_reference() {
    for dtype in [DType::Q8_0, DType::Q4_1, DType::Q5_0, DType::F16, DType::BF16] {
        let a = tokens(1, 40);
        let program = decoder(&model(BASE), &Options { fuse: true, ..Options::default() });
        let want = Rig::new(Box::new(Reference::default()), &program, dtype).step(&[(0, 0, &a)]);
        for isa in Isa::available() {
            let options = CpuOptions { threads: Some(2), isa: Some(isa), ..CpuOptions::default() };
            let got = Rig::cpu(options, &program, dtype).step(&[(0, 0, &a)]);
            let worst = worst(&got, &want);
            assert!(worst < 0.03, "{dtype}, {isa}: {worst}");
        }
    }
}

#[test]
fn every_type_of_cache_stays_as_close_to_the_reference_as_it_can() {
    for (i, shape) in shapes().into_iter().enumerate() {
        let a = tokens(1, 150);
        let program = decoder(&model(shape), &Options { fuse: true, ..Options::default() });
        let want = Rig::new(Box::new(Reference::default()), &program, DType::F32).step(&[(0, 0, &a)]);
        // Half a step of the largest number that shares a scale; a number that shares it with none is its f16 scale. Two
        // layers round keys and values each, and a softmax over few columns averages nothing: measured 1 to 14 steps.
        let alone = shape.head_dim == 1;
        const HALF: f32 = 1.0 / 2048.0;
        for (kv, step) in [
            (KvType::F16, HALF),
            (KvType::BF16, 1.0 / 256.0),
            (KvType::Q8_0, if alone { HALF } else { 1.0 / 254.0 }),
            (KvType::Q4_0, if alone { HALF } else { 1.0 / 16.0 }),
        ] {
            for isa in Isa::available() {
                let options = CpuOptions { threads: Some(2), isa: Some(isa), kv, ..CpuOptions::default() };
                let got = Rig::cpu(options, &program, DType::F32).step(&[(0, 0, &a)]);
                let worst = worst(&got, &want);
                assert!(worst < 16.0 * step, "shape {i}, {kv:?}, {isa}: {worst}");
            }
        }
    }
}

#[test]
fn a_saved_block_continues_like_the_original() {
    let program = decoder(&model(BASE), &Options { fuse: true, ..Options::default() });
    let a = tokens(6, 40);
    let cpus = KvType::ALL.map(|kv| {
        let options = CpuOptions { threads: Some(2), kv, ..CpuOptions::default() };
        Rig::cpu(options, &program, DType::Q8_0)
    });
    for mut rig in cpus.into_iter().chain([Rig::new(Box::new(Reference::default()), &program, DType::Q8_0)]) {
        rig.step(&[(0, 0, &a[..33])]);
        let mut bytes = vec![0; rig.device.block_bytes(rig.prepared)];
        let saved: Vec<Vec<u8>> = (0..3)
            .map(|b| (b * 37 + 11) % BLOCKS)
            .map(|b| {
                rig.device.save_block(rig.prepared, b, &mut bytes).unwrap();
                bytes.clone()
            })
            .collect();
        let want = rig.step(&[(0, 33, &a[33..])]);
        for (b, data) in saved.iter().enumerate() {
            let block = BLOCKS + (b as u32 * 37 + 11) % BLOCKS;
            rig.device.load_block(rig.prepared, block, data).unwrap();
        }
        assert_eq!(bits(&rig.step(&[(1, 33, &a[33..])])), bits(&want));
        let short = rig.device.load_block(rig.prepared, 0, &bytes[1..]).unwrap_err().to_string();
        assert!(short.contains("a block of this cache has"), "{short}");
        assert!(rig.device.save_block(rig.prepared, 3 * BLOCKS, &mut bytes).is_err());
    }
}

#[test]
fn bits_depend_on_nothing_but_the_sequence() {
    let gemma = Shape { arch: &GEMMA3, style: RopeStyle::Neox, window: Some(150), ..BASE };
    for (i, shape) in [BASE, Shape { heads: 5, kv_heads: 1, head_dim: 40, ..gemma }].into_iter().enumerate() {
        // Long enough for several chunks of the context.
        let (a, b) = (tokens(3, 430), tokens(4, 90));
        let program = decoder(&model(shape), &Options { fuse: true, ..Options::default() });
        for isa in Isa::available() {
            let rig = |threads| {
                let options = CpuOptions { threads: Some(threads), isa: Some(isa), ..CpuOptions::default() };
                Rig::cpu(options, &program, DType::Q8_0)
            };
            let want = bits(&rig(1).step(&[(0, 0, &a)]));
            for threads in 1..=3 {
                let whole = rig(threads).step(&[(0, 0, &a)]);
                assert!(want == bits(&whole), "shape {i}, {isa}, {threads} threads: whole prompt");
                let mut cpu = rig(threads);
                let mut cut = Vec::new();
                for (from, to) in [(0, 1), (1, 8), (8, 71), (71, 200), (200, 201), (201, 415)] {
                    cut.extend(cpu.step(&[(0, from, &a[from..to])]));
                }
                for at in 415..430 {
                    cut.extend(cpu.step(&[(0, at, &a[at..at + 1])]));
                }
                assert!(want == bits(&cut), "shape {i}, {isa}, {threads} threads: cut prompt");
                let mut cpu = rig(threads);
                let first = cpu.step(&[(1, 0, &b[..50]), (0, 0, &a[..300]), (2, 0, &b[..3])]);
                let mut beside = first[50..350].to_vec();
                for at in 300..340 {
                    let rows = cpu.step(&[(0, at, &a[at..at + 1]), (1, at - 250, &b[at - 250..at - 249])]);
                    beside.push(rows[0].clone());
                }
                assert!(want[..340] == bits(&beside), "shape {i}, {isa}, {threads} threads: beside others");
            }
        }
    }
}

#[test]
fn every_value_of_an_unfused_step_agrees_with_the_reference() {
    let gemma = Shape { arch: &GEMMA3, style: RopeStyle::Neox, window: Some(20), bias: true, ..BASE };
    let program = decoder(&model(gemma), &Options { fuse: false, ..Options::default() });
    let a = tokens(5, 33);
    let options =
        CpuOptions { keep_values: true, kv: KvType::F32, threads: Some(3), ..CpuOptions::default() };
    let mut cpu = Rig::cpu(options, &program, DType::F32);
    let mut reference = Rig::new(Box::new(Reference::default()), &program, DType::F32);
    cpu.step(&[(0, 0, &a)]);
    reference.step(&[(0, 0, &a)]);
    for (i, node) in program.ops.iter().enumerate() {
        let Some(view) = node.op.output() else { continue };
        let mut values = [vec![0.0; 33 * view.cols as usize], vec![0.0; 33 * view.cols as usize]];
        cpu.device.read(cpu.prepared, Readout::View(view), &mut values[0]).unwrap();
        reference.device.read(reference.prepared, Readout::View(view), &mut values[1]).unwrap();
        let [got, want] = values.map(|v| vec![v]);
        let worst = worst(&got, &want);
        assert!(worst < 2e-5, "op {i} ({}): {worst}", node.op.name());
    }
}

#[test]
fn a_nan_stays_in_its_own_sequence_and_in_what_follows_it() {
    let program = decoder(&model(BASE), &Options { fuse: true, ..Options::default() });
    let mut cpu = Cpu::new(CpuOptions { threads: Some(2), poison: true, ..CpuOptions::default() }).unwrap();
    let ids = weights_with(&program, DType::F32, &mut cpu, |name, values| {
        if name == "token_embd.weight" {
            values[5 * 64 + 3] = f32::NAN;
        }
    });
    let limits = Limits { rows: 512, outputs: 512, kv_blocks: 3 * BLOCKS as usize };
    let prepared = cpu.prepare(program, &ids, limits).unwrap();
    let mut rig = Rig { device: Box::new(cpu), prepared };
    let (bad, good): (Vec<u32>, Vec<u32>) = ((1..40).collect(), (6..46).collect());
    let rows = rig.step(&[(0, 0, &bad), (1, 0, &good)]);
    let nan = |row: &Vec<f32>| row.iter().filter(|x| x.is_nan()).count();
    // The head's row of token 5 is NaN for every row; all else depends on the sequence.
    rows[..4].iter().for_each(|r| assert_eq!(nan(r), 1, "rows before the NaN"));
    rows[4..39].iter().for_each(|r| assert_eq!(nan(r), VOCAB as usize, "rows that see the NaN"));
    rows[39..].iter().for_each(|r| assert_eq!(nan(r), 1, "another sequence"));
    // Pages that held NaN are used again by a sequence that has not written all of them.
    let again = rig.step(&[(0, 0, &good[..20])]);
    assert_eq!(bits(&again), bits(&rows[39..59]));
}

#[test]
fn a_copied_page_continues_like_the_original() {
    let program = decoder(&model(BASE), &Options { fuse: true, ..Options::default() });
    let a = tokens(6, 40);
    let mut cpu = Rig::cpu(CpuOptions { threads: Some(2), ..CpuOptions::default() }, &program, DType::Q8_0);
    let before = cpu.device.memory();
    cpu.step(&[(0, 0, &a[..33])]);
    assert!(cpu.device.memory() > before, "pages that were written count");
    let want = cpu.step(&[(0, 33, &a[33..])]);
    cpu.step(&[(0, 0, &a[..33])]);
    let pairs: Vec<(u32, u32)> = (0..3).map(|b| (b * 37 + 11) % BLOCKS).map(|b| (b, b + BLOCKS)).collect();
    cpu.device.copy_blocks(cpu.prepared, &pairs).unwrap();
    let got = cpu.step(&[(1, 33, &a[33..])]);
    assert_eq!(bits(&got), bits(&want));
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let mut program = decoder(&model(BASE), &Options { fuse: true, ..Options::default() });
    let mut cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
    let ids = weights(&program, DType::F32, &mut cpu);
    let limits = Limits { rows: 4, outputs: 4, kv_blocks: 4 };
    let prepared = cpu.prepare(program.clone(), &ids, limits).unwrap();
    let seqs = [SeqStep::new(5, 0, &[0])];
    let step = StepInputs::new(&[0; 5], &seqs, &[]);
    let message = cpu.run(prepared, &step).unwrap_err().to_string();
    assert!(message.contains("tokens in a step is 5, the limit is 4"), "{message}");
    let x = program.ops[0].op.output().unwrap();
    program.ops.insert(
        1,
        quarrel_ir::Node { op: Op::Add { out: x, a: x, b: x, by: [1.0; 2] }, layer: None, source: false },
    );
    let message = cpu.prepare(program, &ids, limits).unwrap_err().to_string();
    assert!(message.contains("op 1 (add)") && message.contains("overlaps"), "{message}");
}
