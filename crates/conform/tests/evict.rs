//! Shortening a sequence in the cache and adding up attention: the CPU against the reference at odd shapes, and against
//! itself on every instruction set, number of threads and way to cut a prompt.

use quarrel_conform::compare::max_abs_diff;
use quarrel_conform::random::{Rng, tensor};
use quarrel_conform::{Tensors, input_program, prepare};
use quarrel_cpu::{Cpu, CpuOptions, Isa, KvType};
use quarrel_formats::DType;
use quarrel_ir::reference::Reference;
use quarrel_ir::{
    AttendSpec, BLOCK_TOKENS, Device, Error, Keep, KvLayer, Limits, Mass, Observe, Op, Prepared, Program,
    Readout, RopeStyle, RopeTable, Rows, SeqStep, StepInputs, Stop,
};

const VOCAB: u32 = 80;
const BLOCKS: usize = 40;

/// One attention layer of a program.
#[derive(Clone, Copy)]
struct Layer {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    v_dim: u32,
    window: Option<u32>,
    softcap: Option<f32>,
    /// Style and rotated columns.
    rope: Option<(RopeStyle, u32)>,
}

const PLAIN: Layer =
    Layer { heads: 6, kv_heads: 2, head_dim: 32, v_dim: 32, window: None, softcap: None, rope: None };

/// Programs of one or two layers.
fn shapes() -> Vec<Vec<Layer>> {
    let neox = |dims| Some((RopeStyle::Neox, dims));
    vec![
        vec![
            Layer { rope: neox(32), ..PLAIN },
            Layer { heads: 3, kv_heads: 3, rope: Some((RopeStyle::Interleaved, 32)), ..PLAIN },
        ],
        vec![
            Layer {
                heads: 5,
                kv_heads: 1,
                head_dim: 20,
                v_dim: 12,
                window: Some(21),
                rope: neox(14),
                ..PLAIN
            },
            PLAIN,
        ],
        vec![Layer { heads: 8, head_dim: 64, v_dim: 33, softcap: Some(3.0), rope: neox(64), ..PLAIN }],
    ]
}

/// Layers side by side, each with queries, keys and values of its own among the columns of the input.
fn program(layers: &[Layer]) -> (Program, Tensors) {
    let cols = |l: &Layer| (l.heads + l.kv_heads) * l.head_dim + l.kv_heads * l.v_dim;
    let all = layers.iter().map(cols).sum();
    let (mut p, x) = input_program(VOCAB, all);
    let out = p.value("out", Rows::Tokens, layers.iter().map(|l| l.heads * l.v_dim).sum());
    let (mut at, mut to) = (0, 0);
    for (kv_layer, l) in (0..).zip(layers) {
        let &Layer { heads, kv_heads, head_dim, v_dim, window, softcap, rope } = l;
        let (q, k, v) = (heads * head_dim, kv_heads * head_dim, kv_heads * v_dim);
        if let Some((style, dims)) = rope {
            let mut table = RopeTable::new(style, dims, 1e3, None);
            table.mscale = 1.2;
            let table = p.rope(table);
            p.push(Op::Rope { x: x.slice(at, q + k), head_dim, table });
        }
        p.kv.push(KvLayer { kv_heads, head_dim, v_dim, window });
        p.push(Op::StoreKv { k: x.slice(at + q, k), v: x.slice(at + q + k, v), kv_layer });
        let scale = (head_dim as f32).powf(-0.5);
        // Layers without rotation know distances by a bias, and those with a cap have sinks.
        let alibi = rope.is_none().then_some(8.0);
        let sinks = softcap.map(|_| p.weight(format!("sinks{kv_layer}"), 1, heads));
        let spec = AttendSpec {
            kv_layer,
            heads,
            kv_heads,
            head_dim,
            v_dim,
            scale,
            causal: true,
            window,
            softcap,
            alibi,
            buckets: None,
            of_source: false,
            blocks: None,
            chunked: false,
            sinks,
        };
        p.push(Op::Attend { out: out.slice(to, heads * v_dim), q: x.slice(at, q), spec });
        (at, to) = (at + cols(l), to + heads * v_dim);
    }
    p.logits = Some(out);
    p.check().unwrap();
    let shape = [VOCAB as usize, all as usize];
    let input = tensor("input", DType::F32, &shape, 1.0, &mut Rng(u64::from(all)));
    let mut tensors = Tensors::from([("input".into(), input)]);
    for (kv_layer, l) in layers.iter().enumerate().filter(|(_, l)| l.softcap.is_some()) {
        let name = format!("sinks{kv_layer}");
        let scores = tensor(&name, DType::F32, &[l.heads as usize], 1.0, &mut Rng(u64::from(all) + 1));
        tensors.insert(name, scores);
    }
    (p, tensors)
}

struct Rig {
    device: Box<dyn Device>,
    prepared: Prepared,
    cols: usize,
    program: Program,
}

impl Rig {
    fn new(mut device: Box<dyn Device>, layers: &[Layer]) -> Rig {
        let (program, tensors) = program(layers);
        let limits = Limits { rows: 128, outputs: 1, kv_blocks: BLOCKS };
        let prepared = prepare(&mut *device, &program, &tensors, limits).unwrap();
        let cols = program.logits.unwrap().cols as usize;
        Rig { device, prepared, cols, program }
    }

    fn heads(&self) -> usize {
        self.program.kv.iter().map(|l| l.kv_heads as usize).sum()
    }

    /// Rows of one sequence from `start` on, of which the last `observed` count in `slot`; gives what the layers put out.
    fn step(&mut self, tokens: &[u32], start: usize, blocks: &[u32], slot: u32, observed: usize) -> Vec<f32> {
        let observe = (observed > 0).then_some(Observe { slot, rows: observed });
        let seqs = [SeqStep { observe, ..SeqStep::new(tokens.len(), start, blocks) }];
        self.device.run(self.prepared, &StepInputs::new(tokens, &seqs, &[0])).unwrap();
        let mut out = vec![0.0; tokens.len() * self.cols];
        let view = Readout::View(self.program.logits.unwrap());
        self.device.read(self.prepared, view, &mut out).unwrap();
        out
    }

    fn mass(&mut self, slot: u32) -> Mass {
        self.device.take_mass(self.prepared, slot).unwrap()
    }

    fn compact(&mut self, from: &[u32], tokens: usize, to: &[u32], keep: &Keep) {
        self.device.compact(self.prepared, from, tokens, to, keep).unwrap();
    }
}

fn cpu(isa: Isa, threads: usize, kv: KvType) -> Box<Cpu> {
    let options = CpuOptions { isa: Some(isa), threads: Some(threads), kv, ..CpuOptions::default() };
    Box::new(Cpu::new(options).unwrap())
}

fn tokens(n: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng(seed);
    (0..n).map(|_| rng.below(VOCAB as usize) as u32).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn observed_rows_add_up_to_what_the_reference_says() {
    let text = tokens(75, 3);
    let blocks: Vec<u32> = (0..5).rev().collect();
    // Chunks, and how many of the last rows of each are observed.
    let cuts: [&[(usize, usize)]; 4] =
        [&[(75, 75)], &[(20, 20), (1, 1), (37, 37), (17, 17)], &[(70, 0), (5, 5)], &[(60, 9), (15, 2)]];
    for layers in shapes() {
        let mut reference = Rig::new(Box::<Reference>::default(), &layers);
        let sinks: Vec<bool> =
            layers.iter().flat_map(|l| vec![l.softcap.is_some(); l.kv_heads as usize]).collect();
        let mut alike: Option<(Isa, Vec<u32>)> = None;
        for (c, cut) in cuts.iter().enumerate() {
            let feed = |rig: &mut Rig| {
                let mut at = 0;
                for (rows, observed) in *cut {
                    rig.step(&text[at..at + rows], at, &blocks, 7, *observed);
                    at += rows;
                }
                rig.mass(7)
            };
            let want = feed(&mut reference);
            assert_eq!((want.rows, want.tokens), (cut.iter().map(|c| c.1).sum(), 75));
            for head in 0..reference.heads() {
                let total: f32 = want.head(head).iter().sum();
                let rows = want.rows as f32;
                // A sink takes its part of each row.
                let fits =
                    if sinks[head] { total > 0.0 && total < rows } else { (total - rows).abs() < 1e-3 };
                assert!(fits, "a row gives 1 in all, and less beside a sink, not {total} of {rows}");
            }
            for isa in Isa::available() {
                for threads in 1..=4 {
                    let mut rig = Rig::new(cpu(isa, threads, KvType::F32), &layers);
                    let got = feed(&mut rig);
                    assert_eq!((got.rows, got.tokens), (want.rows, want.tokens));
                    let error = max_abs_diff(&got.sums, &want.sums);
                    assert!(error < 2e-5 * want.rows as f32, "{isa}, cut {c}: {error}");
                    // The first two cuts observe the same rows.
                    if c < 2 {
                        let got = (isa, bits(&got.sums));
                        if let Some(alike) = alike.as_ref().filter(|a| a.0 == isa) {
                            assert!(*alike == got, "{isa}, {threads} threads, cut {c}");
                        } else {
                            alike = Some(got);
                        }
                    }
                    assert_eq!(rig.mass(7), Mass::default(), "taken is gone");
                }
            }
        }
    }
}

#[test]
fn rows_beside_and_a_step_that_was_stopped_change_no_sums() {
    let (a, b) = (tokens(50, 5), tokens(41, 6));
    let (of_a, of_b): (Vec<u32>, Vec<u32>) = ((0..4).collect(), (4..8).collect());
    let layers = &shapes()[0];
    let devices: [fn() -> Box<dyn Device>; 2] =
        [|| Box::<Reference>::default(), || cpu(Isa::detect(), 2, KvType::F16)];
    for device in devices {
        let mut alone = Rig::new(device(), layers);
        alone.step(&a[..30], 0, &of_a, 1, 30);
        alone.step(&a[30..], 30, &of_a, 1, 20);
        let want = alone.mass(1);
        let mut rig = Rig::new(device(), layers);
        rig.step(&a[..30], 0, &of_a, 1, 30);
        let both: Vec<u32> = b.iter().chain(&a[30..]).copied().collect();
        let seqs = [
            SeqStep { observe: Some(Observe { slot: 2, rows: 3 }), ..SeqStep::new(41, 0, &of_b) },
            SeqStep { observe: Some(Observe { slot: 1, rows: 20 }), ..SeqStep::new(20, 30, &of_a) },
        ];
        // Stopped at the second layer.
        let asked = std::sync::atomic::AtomicUsize::new(0);
        let stop = || asked.fetch_add(1, std::sync::atomic::Ordering::Relaxed) > 0;
        let step = StepInputs::new(&both, &seqs, &[0]);
        let stopped = StepInputs { stop: Some(Stop(&stop)), ..step };
        assert!(matches!(rig.device.run(rig.prepared, &stopped), Err(Error::Stopped)));
        rig.device.run(rig.prepared, &step).unwrap();
        assert_eq!(rig.mass(1), want);
        assert_eq!((rig.mass(2).rows, rig.mass(2).rows), (3, 0));
        let twice = [seqs[0], SeqStep { observe: seqs[0].observe, ..seqs[1] }];
        assert!(rig.device.run(rig.prepared, &StepInputs::new(&both, &twice, &[0])).is_err());
    }
}

/// Positions below `n` that stay: about half, different for each `seed`, `count` of them.
fn some_kept(n: usize, count: usize, sinks: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng(seed);
    let mut rest: Vec<u32> = (sinks as u32..n as u32).collect();
    while rest.len() + sinks > count {
        rest.remove(rng.below(rest.len()));
    }
    (0..sinks as u32).chain(rest).collect()
}

#[test]
fn a_shortened_sequence_goes_on_as_in_the_reference() {
    let text = tokens(90, 8);
    let from: Vec<u32> = vec![9, 2, 30, 11, 5];
    let same = [9, 2, 30, 11];
    let other = [20, 21, 22, 23];
    let mixed = [9, 21, 30, 23];
    for layers in shapes() {
        let mut reference = Rig::new(Box::<Reference>::default(), &layers);
        let heads = reference.heads();
        let per_head =
            |sinks| Keep::PerHead((0..heads as u64).map(|h| some_kept(70, 41, sinks, h)).collect());
        let keeps = [
            Keep::Tokens(some_kept(70, 41, 4, 77)),
            Keep::Tokens(some_kept(70, 48, 0, 78)),
            per_head(0),
            per_head(20),
            Keep::Tokens((0..41).collect()),
        ];
        for keep in &keeps {
            for to in [same, other, mixed] {
                let feed = |rig: &mut Rig| {
                    rig.step(&text[..70], 0, &from, 0, 0);
                    rig.compact(&from, 70, &to, keep);
                    let blocks = [&to[..keep.len().div_ceil(BLOCK_TOKENS)], &[31, 32]].concat();
                    rig.step(&text[70..], keep.len(), &blocks, 0, 0)
                };
                let want = feed(&mut reference);
                for isa in Isa::available() {
                    for (kv, bound) in [(KvType::F32, 1e-5), (KvType::F16, 2e-3)] {
                        let mut one = None;
                        for threads in [1, 2, 3] {
                            let got = feed(&mut Rig::new(cpu(isa, threads, kv), &layers));
                            let error = max_abs_diff(&got, &want);
                            assert!(error < bound, "{isa}, {kv:?}, to {to:?}: {error}");
                            assert_eq!(
                                *one.get_or_insert(bits(&got)),
                                bits(&got),
                                "{isa}, {threads} threads"
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn moved_keys_are_those_computed_where_they_are_now() {
    // Keys and values of these layers depend on the token alone, so the kept tokens can be computed anew.
    let (text, from, to) = (tokens(80, 9), [3, 1, 4, 8, 5], [10, 11, 12]);
    let kept = some_kept(70, 37, 4, 79);
    let anew: Vec<u32> = kept.iter().map(|t| text[*t as usize]).collect();
    let cases = [
        (KvType::F32, 1e-5),
        (KvType::F16, 2e-3),
        (KvType::BF16, 2e-2),
        (KvType::Q8_0, 3e-2),
        (KvType::Q4_0, 0.5),
    ];
    for layers in shapes() {
        for (kv, bound) in cases {
            let mut rig = Rig::new(cpu(Isa::detect(), 2, kv), &layers);
            rig.step(&text[..70], 0, &from, 0, 0);
            rig.compact(&from, 70, &to, &Keep::Tokens(kept.clone()));
            let got = rig.step(&text[70..], 37, &to, 0, 0);
            let others = [20, 21, 22];
            rig.step(&anew, 0, &others, 0, 0);
            let want = rig.step(&text[70..], 37, &others, 0, 0);
            let error = max_abs_diff(&got, &want);
            assert!(error < bound, "{kv:?}: {error}");
        }
    }
}

#[test]
fn what_does_not_move_keeps_its_bits() {
    let (text, from, to) = (tokens(80, 9), [3, 1, 4, 8, 5], [10, 11, 12]);
    for kv in KvType::ALL {
        let mut rig = Rig::new(cpu(Isa::detect(), 2, kv), &shapes()[0]);
        rig.step(&text[..70], 0, &from, 0, 0);
        let want = rig.step(&text[39..50], 39, &from, 0, 0);
        rig.compact(&from, 70, &to, &Keep::Tokens((0..39).collect()));
        assert_eq!(bits(&rig.step(&text[39..48], 39, &to, 0, 0)), bits(&want[..9 * rig.cols]), "{kv:?}");
    }
}

#[test]
fn a_compaction_that_does_not_fit_is_refused() {
    for device in [Box::<Reference>::default() as Box<dyn Device>, cpu(Isa::detect(), 1, KvType::F16)] {
        let mut rig = Rig::new(device, &shapes()[0]);
        let keep = Keep::Tokens(vec![1, 2, 3]);
        for (from, n, to) in
            [(&[0, 1][..], 33, &[2][..]), (&[0, 1], 32, &[]), (&[0, 1], 32, &[1]), (&[0], 3, &[2])]
        {
            assert!(rig.device.compact(rig.prepared, from, n, to, &keep).is_err(), "{from:?} {n} {to:?}");
        }
        assert!(rig.device.compact(rig.prepared, &[0], 16, &[BLOCKS as u32], &keep).is_err());
    }
}
