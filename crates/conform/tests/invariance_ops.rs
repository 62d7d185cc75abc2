//! Batch invariance op by op: the bits of a row computed among others, on any number of threads, are those of the row
//! computed alone on one thread, on every instruction set and for every tensor type.

use quarrel_conform::cases::{self, Mixture};
use quarrel_conform::random::{Rng, tensor};
use quarrel_conform::rig::{Part, Rig, Sizes};
use quarrel_conform::{Tensors, input_program};
use quarrel_cpu::{Cpu, CpuOptions, Isa, KvType};
use quarrel_formats::DType;
use quarrel_ir::{
    Activation, AttendSpec, Gate, KvCopy, KvLayer, NormKind, NormSpec, Op, Program, RopeStyle, RopeTable,
    RouteSpec, Rows, Scoring, Stop, View,
};

const VOCAB: u32 = 80;
const ROWS: [usize; 10] = [1, 2, 3, 7, 8, 9, 16, 33, 64, 100];
const MOST: usize = 100;
const THREADS: std::ops::RangeInclusive<usize> = 1..=4;

fn cpu(isa: Isa, threads: usize, kv: KvType) -> Box<Cpu> {
    let options = CpuOptions {
        isa: Some(isa),
        threads: Some(threads),
        kv,
        poison: threads == 2,
        ..CpuOptions::default()
    };
    Box::new(Cpu::new(options).unwrap())
}

fn token(r: usize) -> u32 {
    ((r * 13 + 5) % VOCAB as usize) as u32
}

fn with_input(cols: u32, rng: &mut Rng) -> (Program, View, Tensors) {
    let (p, x) = input_program(VOCAB, cols);
    let table = tensor("input", DType::F32, &[VOCAB as usize, cols as usize], 1.0, rng);
    (p, x, Tensors::from([("input".into(), table)]))
}

/// Adds a weight of normal values.
fn weight(
    p: &mut Program,
    t: &mut Tensors,
    name: &str,
    dtype: DType,
    shape: [u32; 2],
    rng: &mut Rng,
) -> quarrel_ir::WeightId {
    let [rows, cols] = shape;
    let dims = [rows as usize, cols as usize];
    t.insert(name.into(), tensor(name, dtype, if rows == 1 { &dims[1..] } else { &dims }, 0.3, rng));
    p.weight(name, rows, cols)
}

/// A program without attention: row `r` is position `r`. In a step it stands among any others; alone it is a step.
fn check_rows(what: &str, p: &Program, t: &Tensors) {
    p.check().unwrap();
    let sizes = Sizes { rows: MOST, seqs: 3, tokens: 3 * MOST };
    let tokens: Vec<u32> = (0..3 * MOST).map(token).collect();
    for isa in Isa::available() {
        let mut alone = Rig::new(cpu(isa, 1, KvType::F16), p, t, Sizes { rows: 1, ..sizes });
        let want: Vec<Vec<u32>> = (0..MOST + 12)
            .map(|r| alone.step(&[Part { seq: 0, start: r, tokens: &tokens[r..=r] }], &[0]).remove(0))
            .collect();
        for threads in THREADS {
            let mut rig = Rig::new(cpu(isa, threads, KvType::F16), p, t, sizes);
            for rows in ROWS {
                // Two sequences, so that a row's place in the step is not its position; every third row is picked.
                let (first, from) = (rows / 3, rows * 7 % MOST);
                let parts = [(0, from, first), (1, from + first, rows - first)];
                let parts: Vec<Part> = parts
                    .iter()
                    .filter(|p| p.2 > 0)
                    .map(|p| Part { seq: p.0, start: p.1, tokens: &tokens[p.1..p.1 + p.2] })
                    .collect();
                let picked = (0..rows as u32).filter(|r| r % 3 == 0).collect::<Vec<_>>();
                let got = rig.step(&parts, &picked);
                let outputs = p.rows_of(p.logits.unwrap()) == Rows::Outputs;
                assert_eq!(got.len(), if outputs { picked.len() } else { rows });
                for (i, row) in got.iter().enumerate() {
                    let r = if outputs { picked[i] as usize } else { i };
                    assert!(*row == want[from + r], "{what}, {isa}, {threads} threads: row {r} of {rows}");
                }
            }
        }
    }
}

/// Every type that a product can have; those in use and the rare ones.
fn product_types() -> impl Iterator<Item = DType> {
    DType::all().filter(|d| !matches!(d, DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::U8))
}

#[test]
fn products_of_every_type() {
    let mut rng = Rng(11);
    for dtype in product_types() {
        let unit = 32usize.next_multiple_of(dtype.block_len()) as u32;
        for (out, cols) in [(1, unit), (49, 3 * unit)] {
            let (mut p, x, mut t) = with_input(cols, &mut rng);
            let w = weight(&mut p, &mut t, "w", dtype, [out, cols], &mut rng);
            p.logits = Some(p.matmul("y", x, w, None));
            check_rows(&format!("{dtype} {out}x{cols}"), &p, &t);
        }
    }
}

#[test]
fn fused_layers_of_every_type() {
    let mut rng = Rng(12);
    for dtype in product_types() {
        let (cols, out) = (96usize.next_multiple_of(dtype.block_len()) as u32, 40);
        let (mut p, x, mut t) = with_input(cols, &mut rng);
        let gain = Some(weight(&mut p, &mut t, "gain", DType::F32, [1, cols], &mut rng));
        let h = p.norm(
            "h",
            x,
            NormSpec { kind: NormKind::Rms, eps: 1e-5, group: cols, weight: gain, bias: None },
        );
        let mut part = |p: &mut Program, name: &str| {
            let w = weight(p, &mut t, name, dtype, [out, cols], &mut rng);
            let b = weight(p, &mut t, &format!("{name}.bias"), DType::F32, [1, out], &mut rng);
            p.matmul("part", h, w, Some(b))
        };
        let (gate, up) = (part(&mut p, "gate"), part(&mut p, "up"));
        let a = p.glu(gate, up, Activation::Silu);
        let down = weight(&mut p, &mut t, "down", dtype, [out, cols], &mut rng);
        let y = p.matmul("down", x, down, None);
        p.logits = Some(p.add("z", a, y));
        let fused = quarrel_ir::fuse::fuse(&p);
        assert!(fused.ops.len() < p.ops.len());
        check_rows(&format!("fused layer of {dtype}"), &fused, &t);
    }
}

#[test]
fn embeddings_of_every_type() {
    let mut rng = Rng(13);
    for dtype in product_types() {
        let cols = 40usize.next_multiple_of(dtype.block_len()) as u32;
        let mut p = Program::new();
        let mut t = Tensors::new();
        let table = weight(&mut p, &mut t, "table", dtype, [VOCAB, cols], &mut rng);
        p.logits = Some(p.embed("x", table, 1.7));
        check_rows(&format!("embedding of {dtype}"), &p, &t);
    }
}

#[test]
fn norms_and_elementwise_ops_narrow_and_wide() {
    let mut rng = Rng(14);
    for kind in [NormKind::Rms, NormKind::Layer] {
        for (cols, group) in [(33, 33), (120, 40), (576, 576)] {
            let (mut p, x, mut t) = with_input(cols, &mut rng);
            let gain = Some(weight(&mut p, &mut t, "gain", DType::F32, [1, group], &mut rng));
            let bias = Some(weight(&mut p, &mut t, "bias", DType::F32, [1, group], &mut rng));
            let out = p.value("y", Rows::Tokens, cols);
            let norm = NormSpec { kind, eps: 1e-6, group, weight: gain, bias };
            p.push(Op::Norm { out, x, norm, add: Some(x) });
            p.logits = Some(out);
            check_rows(&format!("{kind:?} norm of {cols}/{group}"), &p, &t);
        }
    }
    // The last is as wide as logits, which are split by columns.
    for cols in [1, 100, 16 * 1024 + 5] {
        let (mut p, x, t) = with_input(cols, &mut rng);
        let a = p.value("a", Rows::Tokens, cols);
        p.push(Op::Activate { out: a, x, act: Activation::GeluTanh });
        let b = p.add("b", a, x);
        let g = p.glu(x, b, Activation::GeluErf);
        let out = p.value("picked", Rows::Outputs, cols);
        p.push(Op::PickRows { out, x: g });
        p.push(Op::Scale { x: out, by: 3.0 });
        p.push(Op::Softcap { x: out, cap: 1.5 });
        p.push(Op::Clip { x: out, by: 1.0 });
        p.logits = Some(out);
        check_rows(&format!("elementwise ops on {cols}"), &p, &t);
    }
}

#[test]
fn rotations_of_both_styles() {
    let mut rng = Rng(15);
    for style in [RopeStyle::Neox, RopeStyle::Interleaved] {
        for (head_dim, rot_dims) in [(64, 64), (40, 20), (33, 32)] {
            let (mut p, x, t) = with_input(3 * head_dim, &mut rng);
            let table = p.rope(RopeTable::new(style, rot_dims, 1000.0, None));
            p.push(Op::Rope { x, head_dim, table });
            p.logits = Some(x);
            check_rows(&format!("{style:?} rope, {rot_dims} of {head_dim}"), &p, &t);
        }
    }
}

/// Shape of an attention: heads, kv heads, columns of a head, window, cap.
type Shape = (u32, u32, u32, Option<u32>, Option<f32>);

fn attention(shape: Shape, rng: &mut Rng) -> (Program, Tensors) {
    attention_to(shape, shape.2, rng)
}

/// The same, with values of `v_dim` columns, which are the first of their keys.
fn attention_to(shape: Shape, v_dim: u32, rng: &mut Rng) -> (Program, Tensors) {
    let (heads, kv_heads, head_dim, window, softcap) = shape;
    let (q_cols, kv_cols) = (heads * head_dim, kv_heads * head_dim);
    let (mut p, x, t) = with_input(q_cols + 2 * kv_cols, rng);
    p.kv = vec![KvLayer { kv_heads, head_dim, v_dim, window }];
    let (q, k, v) =
        (x.slice(0, q_cols), x.slice(q_cols, kv_cols), x.slice(q_cols + kv_cols, kv_heads * v_dim));
    let table = p.rope(RopeTable::new(RopeStyle::Neox, head_dim / 2 * 2, 1000.0, None));
    for x in [q, k] {
        p.push(Op::Rope { x, head_dim, table });
    }
    p.push(Op::StoreKv { k, v, kv_layer: 0 });
    let scale = (head_dim as f32).powf(-0.5);
    let spec = AttendSpec {
        kv_layer: 0,
        heads,
        kv_heads,
        head_dim,
        v_dim,
        scale,
        causal: true,
        window,
        softcap,
        alibi: None,
        buckets: None,
        of_source: false,
        chunked: false,
        sinks: None,
        blocks: None,
    };
    p.logits = Some(p.attend(q, spec));
    p.check().unwrap();
    (p, t)
}

/// One key head for all, whose values are narrower: latent attention.
const LATENT: Shape = (6, 1, 88, None, None);

/// A step's rows: sequence and positions.
type Cut = Vec<(usize, std::ops::Range<usize>)>;

/// Ways to feed three sequences of `n` tokens: whole; cut next to the bounds of chunks, blocks and tiles; together; many
/// decodes at different depths.
fn schedules(n: usize) -> Vec<Vec<Cut>> {
    let cut = |bounds: &[usize]| -> Vec<Cut> { bounds.windows(2).map(|w| vec![(0, w[0]..w[1])]).collect() };
    let singles = |seq: usize, r: std::ops::Range<usize>| r.map(move |p| (seq, p..p + 1));
    let mut together = vec![vec![(0, 0..127), (1, 0..33), (2, 0..n - 9)]];
    together.extend((0..8).map(|i| {
        let many = [(0, 127 + i * 8..135 + i * 8), (1, 33 + i..34 + i), (2, n - 9 + i..n - 8 + i)];
        many.to_vec()
    }));
    together.push(vec![(0, 191..n)]);
    let mut decode = vec![vec![(0, 0..n - 6), (1, 0..120), (2, 0..3)]];
    decode.extend(
        singles(0, n - 6..n).zip(singles(1, 120..126)).zip(singles(2, 3..9)).map(|((a, b), c)| vec![a, b, c]),
    );
    vec![cut(&[0, n]), cut(&[0, 1, 16, 127, 128, 129, 130, 161, 255, 257, n]), together, decode]
}

#[test]
fn attention_at_depths_across_chunks_and_tiles() {
    let mut rng = Rng(16);
    let shapes: [Shape; 9] = [
        (1, 1, 16, None, None),
        (3, 1, 64, None, None),
        (4, 2, 33, Some(128), None),
        (5, 1, 40, Some(150), Some(2.0)),
        (7, 1, 20, Some(1), None),
        (8, 2, 64, None, None),
        (9, 1, 24, Some(20), None),
        (16, 1, 48, None, Some(5.0)),
        LATENT,
    ];
    let n = 290;
    let tokens: Vec<Vec<u32>> = (0..3).map(|s| (0..n).map(|r| token(r + 31 * s)).collect()).collect();
    let sizes = Sizes { rows: 3 * n, seqs: 3, tokens: n };
    for shape in shapes {
        let v_dim = if shape == LATENT { shape.2 - 24 } else { shape.2 };
        let (p, t) = attention_to(shape, v_dim, &mut rng);
        for (isa, kv) in Isa::available().into_iter().flat_map(|i| KvType::ALL.map(|t| (i, t))) {
            let mut alone = Rig::new(cpu(isa, 1, kv), &p, &t, Sizes { rows: 1, ..sizes });
            let want: Vec<Vec<Vec<u32>>> = tokens
                .iter()
                .map(|ids| {
                    let step = |r: usize| {
                        alone.step(&[Part { seq: 1, start: r, tokens: &ids[r..=r] }], &[]).remove(0)
                    };
                    (0..n).map(step).collect()
                })
                .collect();
            for threads in THREADS {
                for (i, schedule) in schedules(n).iter().enumerate() {
                    let mut rig = Rig::new(cpu(isa, threads, kv), &p, &t, sizes);
                    for cut in schedule {
                        let part = |(seq, r): &(usize, std::ops::Range<usize>)| Part {
                            seq: *seq,
                            start: r.start,
                            tokens: &tokens[*seq][r.clone()],
                        };
                        let got = rig.step(&cut.iter().map(part).collect::<Vec<_>>(), &[]);
                        let rows = cut.iter().flat_map(|(s, r)| r.clone().map(move |p| (*s, p)));
                        for ((seq, position), row) in rows.zip(&got) {
                            assert!(
                                *row == want[seq][position],
                                "{shape:?}, {isa}, {kv:?}, {threads} threads, schedule {i}: sequence {seq} at {position}"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Contexts of many chunks, where a decoding step is split over the threads by chunk.
#[test]
fn long_contexts_split_over_threads() {
    let mut rng = Rng(17);
    let n = 1300;
    let tokens: Vec<u32> = (0..n).map(token).collect();
    let sizes = Sizes { rows: n, seqs: 2, tokens: n };
    for shape in [(3, 1, 64, None, None), (9, 3, 64, None, None), (8, 2, 40, Some(700), Some(3.0))] {
        let (p, t) = attention(shape, &mut rng);
        for isa in Isa::available() {
            let whole = |threads| {
                let mut rig = Rig::new(cpu(isa, threads, KvType::F16), &p, &t, sizes);
                let rows = rig.step(&[Part { seq: 0, start: 0, tokens: &tokens }], &[]);
                (rig, rows)
            };
            let (_, want) = whole(1);
            for threads in THREADS {
                let (mut rig, got) = whole(threads);
                assert!(got == want, "{shape:?}, {isa}, {threads} threads: whole");
                // The same positions once more, one, three and nine at a time.
                for (at, rows) in [(1299, 1), (1151, 1), (1152, 1), (1030, 3), (895, 9), (511, 2), (127, 2)] {
                    let got = rig.step(&[Part { seq: 0, start: at, tokens: &tokens[at..at + rows] }], &[]);
                    assert!(
                        got == want[at..at + rows],
                        "{shape:?}, {isa}, {threads} threads: {rows} at {at}"
                    );
                }
            }
        }
    }
}

/// A tree of tokens in one step, where branches share rows, gives what each branch alone gives; on the reference too.
#[test]
fn branches_of_a_tree_equal_each_branch_alone() {
    let mut rng = Rng(18);
    let (p, t) = attention((4, 2, 33, Some(100), None), &mut rng);
    let sizes = Sizes { rows: 200, seqs: 3, tokens: 160 };
    // The prompt ends one token before a block does, so that branches cross into the next.
    let prompt: Vec<u32> = (0..142).map(token).collect();
    let paths = [[11, 12, 13, 14], [11, 12, 23, 24], [11, 32, 33, 34]];
    let device = |threads| -> Box<dyn quarrel_ir::Device> {
        match threads {
            0 => Box::<quarrel_ir::reference::Reference>::default(),
            n => cpu(Isa::detect(), n, KvType::F16),
        }
    };
    for threads in 0..=4 {
        let mut rig = Rig::new(device(threads), &p, &t, sizes);
        let mut start = |path: &[u32]| {
            rig.step(&[Part { seq: 0, start: 0, tokens: &prompt }], &[]);
            rig.step(&[Part { seq: 0, start: prompt.len(), tokens: path }], &[])
        };
        let want = paths.map(|path| start(&path));
        rig.step(&[Part { seq: 0, start: 0, tokens: &prompt }], &[]);
        (1..3).for_each(|to| rig.fork(0, to));
        let part = |seq: usize, shared: usize| Part {
            seq,
            start: prompt.len() + shared,
            tokens: &paths[seq][shared..],
        };
        let copies = [(0, 1), (0, 2), (1, 1)].map(|(row, seq)| KvCopy { row, seq });
        let got = rig.step_with(&[part(0, 0), part(1, 2), part(2, 1)], &[], &copies, None).unwrap();
        let tree = [&want[0][..], &want[1][2..], &want[2][1..]].concat();
        assert!(got == tree, "{threads} threads");
        let wrong = [KvCopy { row: 3, seq: 2 }];
        assert!(rig.step_with(&[part(0, 0), part(2, 1)], &[], &wrong, None).is_err());
    }
}

/// A step that is stopped says so, and leaves the device as good as before.
#[test]
fn a_stopped_step_is_left_and_can_be_repeated() {
    let mut rng = Rng(19);
    let (p, t) = attention((4, 2, 32, None, None), &mut rng);
    let tokens: Vec<u32> = (0..90).map(token).collect();
    for threads in THREADS {
        let mut rig = Rig::new(
            cpu(Isa::detect(), threads, KvType::F16),
            &p,
            &t,
            Sizes { rows: 90, seqs: 1, tokens: 90 },
        );
        let part = [Part { seq: 0, start: 0, tokens: &tokens }];
        let want = rig.step(&part, &[]);
        for _ in 0..20 {
            let stop = || true;
            let error = rig.step_with(&part, &[], &[], Some(Stop(&stop))).unwrap_err();
            assert!(matches!(error, quarrel_ir::Error::Stopped), "{error}");
            let go = || false;
            assert!(rig.step_with(&part, &[], &[], Some(Stop(&go))).unwrap() == want, "{threads} threads");
        }
    }
}

#[test]
fn blocks_of_columns_with_a_weight_each() {
    for case in cases::blocks(&mut Rng(20)) {
        check_rows(&case.name, &case.program, &case.tensors);
    }
}

#[test]
fn mixtures_of_experts_of_every_kind_of_weight() {
    let mut rng = Rng(19);
    let spec = RouteSpec { used: 3, scoring: Scoring::Softmax, groups: None, normalize: true, scale: 1.0 };
    for dtype in [DType::F32, DType::BF16, DType::Q8_0, DType::Q4_K, DType::MXFP4, DType::IQ4_XS] {
        let cols = 32usize.next_multiple_of(dtype.block_len()) as u32;
        let gate = Some(Gate::Plain(Activation::Silu));
        let m = Mixture { cols, ff: cols, experts: 9, spec, gate, biased: dtype == DType::F32 };
        let (mut p, x, mut t) = with_input(cols, &mut rng);
        p.logits = Some(cases::mixture_of(&mut p, &mut t, x, dtype, m, &mut rng));
        check_rows(&format!("mixture of {dtype}"), &p, &t);
    }
}
