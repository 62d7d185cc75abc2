//! Adapters op by op: what the CPU adds is what the reference adds, and the bits of a row with an adapter, or without, are
//! those of the row alone, for every tensor type, at odd shapes, among rows with other adapters.

use quarrel_conform::compare::relative_rms;
use quarrel_conform::random::{Rng, f32_tensor, tensor};
use quarrel_conform::rig::{Part, Rig, Sizes};
use quarrel_conform::{Tensors, input_program};
use quarrel_cpu::{Cpu, CpuOptions, Isa};
use quarrel_formats::DType;
use quarrel_ir::reference::Reference;
use quarrel_ir::{
    Activation, Adapter, AdapterPart, Error, NormKind, NormSpec, Op, Program, RANK_MAX, Rows, View,
    WeightDecl, WeightId, WeightPart, check_adapter,
};

const VOCAB: u32 = 80;
const MOST: usize = 100;
const SIZES: Sizes = Sizes { rows: MOST, seqs: 4, tokens: MOST };
/// Rows of each of four sequences, the last without an adapter.
const STEPS: [[usize; 4]; 6] =
    [[1, 0, 0, 0], [1, 1, 1, 1], [0, 2, 0, 1], [7, 1, 0, 9], [13, 12, 25, 3], [27, 1, 22, 13]];

/// Most rows of one sequence in a step.
const LONGEST: usize = 27;

fn token(r: usize) -> u32 {
    ((r * 13 + 5) % VOCAB as usize) as u32
}

fn cpu(isa: Isa, threads: usize) -> Box<Cpu> {
    let options =
        CpuOptions { isa: Some(isa), threads: Some(threads), poison: threads == 2, ..CpuOptions::default() };
    Box::new(Cpu::new(options).unwrap())
}

struct Build {
    p: Program,
    t: Tensors,
    rng: Rng,
    dtype: DType,
}

impl Build {
    fn new(dtype: DType, cols: u32) -> (Build, View) {
        let mut rng = Rng(31);
        let (p, x) = input_program(VOCAB, cols);
        let table = tensor("input", DType::F32, &[VOCAB as usize, cols as usize], 1.0, &mut rng);
        (Build { p, t: Tensors::from([("input".into(), table)]), rng, dtype }, x)
    }

    fn vector(&mut self, name: &str, n: u32) -> WeightId {
        self.t.insert(name.into(), tensor(name, DType::F32, &[n as usize], 0.3, &mut self.rng));
        self.p.weight(name, 1, n)
    }

    /// One weight of stacked tensors.
    fn stacked(&mut self, parts: &[(&str, u32)], cols: u32) -> WeightId {
        for (name, rows) in parts {
            let shape = [*rows as usize, cols as usize];
            self.t.insert((*name).into(), tensor(name, self.dtype, &shape, 0.3, &mut self.rng));
        }
        let part = |(name, rows): &(&str, u32)| WeightPart { name: (*name).into(), rows: *rows };
        self.p.weights.push(WeightDecl { parts: parts.iter().map(part).collect(), cols });
        WeightId(self.p.weights.len() as u32 - 1)
    }

    fn norm(&mut self, cols: u32) -> Option<NormSpec> {
        let weight = Some(self.vector("gain", cols));
        Some(NormSpec { kind: NormKind::Rms, eps: 1e-5, group: cols, weight, bias: None })
    }
}

/// Q, K and V in one product of a folded norm, with a bias of all.
fn merged(dtype: DType, cols: u32) -> (Program, Tensors) {
    let (mut b, x) = Build::new(dtype, cols);
    let norm = b.norm(cols);
    let weight = b.stacked(&[("q", 49), ("k", 16), ("v", 3)], cols);
    let bias = Some(b.vector("bias", 68));
    let out = b.p.value("qkv", Rows::Tokens, 68);
    b.p.push(Op::MatMul { out, x, norm, weight, bias, add: None, glu: None });
    b.p.logits = Some(out);
    (b.p, b.t)
}

/// Gate and up, then down with a residual, then a head on some rows.
fn block(dtype: DType, cols: u32) -> (Program, Tensors) {
    let (mut b, x) = Build::new(dtype, cols);
    let norm = b.norm(cols);
    let ff = cols; // of whole blocks, as the type needs
    let weight = b.stacked(&[("gate", ff), ("up", ff)], cols);
    let a = b.p.value("act", Rows::Tokens, ff);
    b.p.push(Op::MatMul { out: a, x, norm, weight, bias: None, add: None, glu: Some(Activation::Silu) });
    let weight = b.stacked(&[("down", cols)], ff);
    let y = b.p.value("y", Rows::Tokens, cols);
    b.p.push(Op::MatMul { out: y, x: a, norm: None, weight, bias: None, add: Some(x), glu: None });
    let picked = b.p.value("picked", Rows::Outputs, cols);
    b.p.push(Op::PickRows { out: picked, x: y });
    let head = b.stacked(&[("head", 35)], cols);
    b.p.logits = Some(b.p.matmul("logits", picked, head, None));
    (b.p, b.t)
}

/// An adapter of these ranks for some tensors of a program.
fn adapter(p: &Program, ranks: &[(&str, usize)], zero_b: bool, seed: u64) -> Vec<AdapterPart> {
    let mut rng = Rng(seed);
    let part = |(name, rank): &(&str, usize)| {
        let places = p.weights.iter().enumerate();
        let (w, part) = places
            .flat_map(|(w, d)| (0..d.parts.len()).map(move |i| (w, i)))
            .find(|(w, i)| p.weights[*w].parts[*i].name == *name)
            .unwrap();
        let (cols, rows) = (p.weights[w].cols as usize, p.weights[w].parts[part].rows as usize);
        let a = (0..rank * cols).map(|_| rng.normal() * 0.3).collect();
        let b = (0..rows * rank).map(|_| if zero_b { 0.0 } else { rng.normal() * 0.3 }).collect();
        AdapterPart { weight: WeightId(w as u32), part, a, b, scale: 0.75 }
    };
    ranks.iter().map(part).collect()
}

type Ranks = &'static [(&'static str, usize)];

/// What a step of `rows` rows of each sequence gives.
fn step(rig: &mut Rig, rows: &[usize; 4], adapters: &[Option<Adapter>; 4]) -> Vec<Vec<u32>> {
    let tokens: Vec<u32> = (0..MOST).map(token).collect();
    let part = |(seq, n): (usize, &usize)| (Part { seq, start: 0, tokens: &tokens[..*n] }, adapters[seq]);
    let parts: Vec<_> = rows.iter().enumerate().filter(|(_, n)| **n > 0).map(part).collect();
    let all: Vec<u32> = (0..rows.iter().sum::<usize>() as u32).collect();
    rig.step_adapted(&parts, &all, &[], None).unwrap()
}

fn floats(rows: &[Vec<u32>]) -> Vec<f32> {
    rows.iter().flatten().map(|b| f32::from_bits(*b)).collect()
}

fn check(what: &str, p: &Program, t: &Tensors, ranks: [Ranks; 3]) {
    p.check().unwrap();
    let parts: Vec<_> = ranks.iter().enumerate().map(|(i, r)| adapter(p, r, false, i as u64)).collect();
    let load = |rig: &mut Rig| {
        let mut all = parts.iter().map(|a| Some(rig.load_adapter(a).unwrap()));
        [all.next().unwrap(), all.next().unwrap(), all.next().unwrap(), None]
    };
    let rows = STEPS[5];
    let mut reference = Rig::new(Box::<Reference>::default(), p, t, SIZES);
    let handles = load(&mut reference);
    let exact = floats(&step(&mut reference, &rows, &handles));
    let plain = floats(&step(&mut reference, &rows, &[None; 4]));
    for isa in Isa::available() {
        // Each sequence alone, row after row: the positions do not matter without attention.
        let mut alone = Rig::new(cpu(isa, 1), p, t, Sizes { rows: 1, ..SIZES });
        let without: Vec<_> = (0..LONGEST).map(|r| one(&mut alone, r, None)).collect();
        let handles = load(&mut alone);
        let want: Vec<Vec<_>> =
            handles.iter().map(|a| (0..LONGEST).map(|r| one(&mut alone, r, *a)).collect()).collect();
        assert!(want[3] == without, "{what}, {isa}: rows without an adapter, once some are loaded");
        for threads in 1..=4 {
            let mut rig = Rig::new(cpu(isa, threads), p, t, SIZES);
            let handles = load(&mut rig);
            for rows in STEPS {
                let got = step(&mut rig, &rows, &handles);
                let want: Vec<_> = (0..4).flat_map(|s| want[s][..rows[s]].iter()).collect();
                assert!(got.iter().eq(want), "{what}, {isa}, {threads} threads: {rows:?}");
            }
            if threads == 2 {
                let got = floats(&step(&mut rig, &rows, &handles));
                let error = relative_rms(&got, &exact);
                let change = relative_rms(&plain, &exact);
                assert!(error < 3e-3 && change > 0.01, "{what}, {isa}: error {error:e}, change {change:e}");
            }
        }
    }
}

/// The bits of one row alone.
fn one(rig: &mut Rig, r: usize, adapter: Option<Adapter>) -> Vec<u32> {
    let tokens = [token(r)];
    let part = (Part { seq: 0, start: 0, tokens: &tokens }, adapter);
    rig.step_adapted(&[part], &[0], &[], None).unwrap().remove(0)
}

/// Types of every kernel: floats, blocks with and without offsets and halves, tables, and those decoded row by row.
const TYPES: [DType; 12] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q8_0,
    DType::Q2_K,
    DType::Q4_K,
    DType::Q6_K,
    DType::IQ4_NL,
    DType::IQ2_XS,
];

#[test]
fn merged_products_of_every_type() {
    for dtype in TYPES {
        let cols = 96usize.next_multiple_of(dtype.block_len()) as u32;
        let (p, t) = merged(dtype, cols);
        let ranks: [Ranks; 3] = [&[("q", 8), ("k", 8), ("v", 8)], &[("v", 1)], &[("q", 64), ("v", 3)]];
        check(&format!("merged {dtype}"), &p, &t, ranks);
    }
}

#[test]
fn blocks_of_every_type() {
    for dtype in TYPES {
        let cols = 64usize.next_multiple_of(dtype.block_len()) as u32;
        let (p, t) = block(dtype, cols);
        let ranks: [Ranks; 3] = [
            &[("gate", 4), ("up", 4), ("down", 4), ("head", 4)],
            &[("up", 17), ("head", 2)],
            &[("down", 33), ("gate", 5)],
        ];
        check(&format!("block {dtype}"), &p, &t, ranks);
    }
}

#[test]
fn widths_that_are_no_whole_vectors() {
    for cols in [1, 15, 17, 100] {
        let (p, t) = merged(DType::F32, cols);
        check(&format!("{cols} columns"), &p, &t, [&[("q", 2)], &[("k", 7), ("v", 5)], &[("v", 16)]]);
    }
}

#[test]
fn a_zero_b_changes_no_bit() {
    for dtype in [DType::F16, DType::Q4_K, DType::Q8_0] {
        let (p, t) = block(dtype, 256);
        let zero = adapter(&p, &[("gate", 4), ("up", 4), ("down", 4), ("head", 4)], true, 1);
        for threads in [1, 3] {
            let mut rig = Rig::new(cpu(Isa::detect(), threads), &p, &t, SIZES);
            let want = step(&mut rig, &STEPS[4], &[None; 4]);
            let handle = Some(rig.load_adapter(&zero).unwrap());
            assert!(step(&mut rig, &STEPS[4], &[handle; 4]) == want, "{dtype}, {threads} threads");
        }
    }
}

/// `W + scale * B A` as a weight of its own.
fn merge(p: &Program, t: &Tensors, parts: &[AdapterPart]) -> Tensors {
    let mut merged = t.clone();
    for part in parts {
        let (decl, rank) = (&p.weights[part.weight.0 as usize], part.rank(p));
        let (name, cols) = (&decl.parts[part.part].name, decl.cols as usize);
        let mut w = t[name].to_f32();
        for (w, b) in w.chunks_exact_mut(cols).zip(part.b.chunks_exact(rank)) {
            for (a, b) in part.a.chunks_exact(cols).zip(b) {
                w.iter_mut().zip(a).for_each(|(w, a)| *w += part.scale * b * a);
            }
        }
        merged.insert(name.clone(), f32_tensor(name, &t[name].shape, &w));
    }
    merged
}

#[test]
fn merged_weights_in_f32_give_the_same() {
    for (p, t) in [block(DType::F32, 100), merged(DType::F32, 100)] {
        let all = [("gate", 6), ("up", 2), ("down", 33), ("head", 5), ("q", 8), ("v", 3)];
        let known = |n: &str| p.weights.iter().any(|w| w.parts.iter().any(|part| part.name == n));
        let ranks: Vec<_> = all.into_iter().filter(|(n, _)| known(n)).collect();
        let parts = adapter(&p, &ranks, false, 9);
        let mut whole = Rig::new(cpu(Isa::detect(), 2), &p, &merge(&p, &t, &parts), SIZES);
        let want = floats(&step(&mut whole, &STEPS[5], &[None; 4]));
        let mut rig = Rig::new(cpu(Isa::detect(), 2), &p, &t, SIZES);
        let handle = Some(rig.load_adapter(&parts).unwrap());
        let got = floats(&step(&mut rig, &STEPS[5], &[handle; 4]));
        let error = relative_rms(&got, &want);
        assert!(error < 1e-5, "{error:e}");
    }
}

#[test]
fn an_unloaded_adapter_frees_its_memory_and_is_refused() {
    let (p, t) = block(DType::F32, 64);
    let devices: [Box<dyn quarrel_ir::Device>; 2] = [Box::<Reference>::default(), cpu(Isa::detect(), 2)];
    for device in devices {
        let mut rig = Rig::new(device, &p, &t, SIZES);
        let before = rig.memory();
        let parts = adapter(&p, &[("down", 8)], false, 1);
        let (a, b) = (rig.load_adapter(&parts).unwrap(), rig.load_adapter(&parts).unwrap());
        assert!(a != b && rig.memory() >= before + 2 * 4 * 8 * 128);
        let want = step(&mut rig, &STEPS[3], &[Some(b); 4]);
        rig.unload_adapter(a).unwrap();
        assert!(step(&mut rig, &STEPS[3], &[Some(b); 4]) == want, "the other one is as it was");
        let tokens = [1];
        let part = (Part { seq: 0, start: 0, tokens: &tokens }, Some(a));
        let e = rig.step_adapted(&[part], &[0], &[], None).unwrap_err();
        assert!(matches!(&e, Error::Step(why) if why.contains("adapter 0 is not loaded")), "{e}");
        assert!(rig.unload_adapter(a).is_err());
        rig.unload_adapter(b).unwrap();
        assert_eq!(rig.memory(), before);
        let c = rig.load_adapter(&parts).unwrap();
        assert!(c != a && c != b, "a handle is given once");
    }
}

#[test]
fn parts_that_do_not_fit_are_refused_by_name() {
    let (p, _) = block(DType::F32, 64);
    let good = adapter(&p, &[("down", 8)], false, 1).remove(0);
    let part = |f: &dyn Fn(&mut AdapterPart)| {
        let mut part = good.clone();
        f(&mut part);
        part
    };
    check_adapter(&p, std::slice::from_ref(&good)).unwrap();
    let cases = [
        (vec![part(&|p| p.weight = WeightId(99))], "no such part"),
        (vec![part(&|p| p.part = 1)], "no such part"),
        (vec![part(&|p| p.weight = WeightId(0))], "input (adapter): no product uses this tensor"),
        (vec![part(&|p| p.a.truncate(511))], "down (adapter): 511 and 512 values"),
        (vec![part(&|p| p.b.clear())], "of one rank in"),
        (vec![part(&|p| (p.a, p.b) = (vec![], vec![]))], "of one rank in"),
        (
            vec![part(&|p| (p.a, p.b) = (vec![0.0; (RANK_MAX + 1) * 64], vec![0.0; (RANK_MAX + 1) * 64]))],
            "512",
        ),
        (vec![part(&|p| p.scale = f32::INFINITY)], "its scale is inf"),
        (vec![good.clone(), good.clone()], "is there twice"),
    ];
    for (parts, why) in cases {
        let e = check_adapter(&p, &parts).unwrap_err().to_string();
        assert!(e.contains(why), "{e}");
    }
}
