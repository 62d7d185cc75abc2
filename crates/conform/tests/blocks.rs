//! Attention by blocks of positions, local with global ones and with strides: what it gives is what dense attention with a mask gives,
//! what is not seen is not read, and a row's bits are the same in any company.

use quarrel_conform::random::{Rng, f32_tensor, tensor};
use quarrel_conform::rig::{Part, Rig, Sizes};
use quarrel_conform::{Tensors, compare, input_program};
use quarrel_cpu::{Cpu, CpuOptions, Isa, KvType};
use quarrel_formats::DType;
use quarrel_ir::reference::Reference;
use quarrel_ir::{AttendSpec, Blocks, Device, KvLayer, Op, Program};

const VOCAB: u32 = 331;

/// Query heads, key heads, columns of each, tokens, pattern.
type Shape = (u32, u32, u32, usize, Blocks);

const SHAPES: [Shape; 6] = [
    // Local alone; local and global; strided; strides that differ by head; all; blocks as long as several chunks.
    (1, 1, 16, 60, Blocks { tokens: 8, local: 2, global: 0, stride: 0, shift: 0 }),
    (4, 2, 33, 150, Blocks { tokens: 16, local: 2, global: 1, stride: 0, shift: 0 }),
    (3, 1, 20, 90, Blocks { tokens: 4, local: 1, global: 0, stride: 3, shift: 0 }),
    (8, 2, 16, 330, Blocks { tokens: 64, local: 1, global: 0, stride: 4, shift: 1 }),
    (6, 3, 24, 75, Blocks { tokens: 2, local: 3, global: 2, stride: 5, shift: 2 }),
    (2, 1, 8, 330, Blocks { tokens: 256, local: 1, global: 0, stride: 2, shift: 0 }),
];

fn token(i: usize) -> u32 {
    ((i * 7 + 3) % VOCAB as usize) as u32
}

fn program((heads, kv_heads, head_dim, _, blocks): Shape) -> Program {
    let (q_cols, kv_cols) = (heads * head_dim, kv_heads * head_dim);
    let (mut p, x) = input_program(VOCAB, q_cols + 2 * kv_cols);
    p.kv = vec![KvLayer { kv_heads, head_dim, v_dim: head_dim, window: None }];
    let (q, k, v) = (x.slice(0, q_cols), x.slice(q_cols, kv_cols), x.slice(q_cols + kv_cols, kv_cols));
    p.push(Op::StoreKv { k, v, kv_layer: 0 });
    let spec = AttendSpec {
        kv_layer: 0,
        heads,
        kv_heads,
        head_dim,
        v_dim: head_dim,
        scale: (head_dim as f32).powf(-0.5),
        causal: true,
        window: None,
        chunked: false,
        blocks: Some(blocks),
        softcap: None,
        alibi: None,
        buckets: None,
        of_source: false,
        sinks: None,
    };
    p.logits = Some(p.attend(q, spec));
    p
}

fn table((heads, kv_heads, head_dim, ..): Shape, rng: &mut Rng) -> Tensors {
    let shape = [VOCAB as usize, ((heads + 2 * kv_heads) * head_dim) as usize];
    Tensors::from([("input".into(), tensor("input", DType::F32, &shape, 1.0, rng))])
}

fn cpu(isa: Isa, threads: usize, kv: KvType) -> Box<dyn Device> {
    let options =
        CpuOptions { isa: Some(isa), threads: Some(threads), kv, poison: true, ..CpuOptions::default() };
    Box::new(Cpu::new(options).unwrap())
}

fn whole(device: Box<dyn Device>, p: &Program, t: &Tensors, n: usize) -> Vec<Vec<u32>> {
    let tokens: Vec<u32> = (0..n).map(token).collect();
    let sizes = Sizes { rows: n, seqs: 1, tokens: n };
    Rig::new(device, p, t, sizes).step(&[Part { seq: 0, start: 0, tokens: &tokens }], &[])
}

fn floats(rows: &[Vec<u32>]) -> Vec<f32> {
    rows.iter().flatten().map(|b| f32::from_bits(*b)).collect()
}

/// Softmax attention with a mask, written down anew: the mask is drawn block by block as the papers draw it.
fn masked((heads, kv_heads, head_dim, n, b): Shape, t: &Tensors) -> Vec<f32> {
    let (cols, all) = (((heads + 2 * kv_heads) * head_dim) as usize, t["input"].to_f32());
    let (hd, tokens) = (head_dim as usize, b.tokens as usize);
    let count = n.div_ceil(tokens);
    let mut out = Vec::new();
    for i in 0..n {
        for h in 0..heads as usize {
            let mut row = vec![false; count];
            let own = i / tokens;
            row[own.saturating_sub(b.local as usize - 1)..=own].fill(true);
            row[..count.min(b.global as usize)].fill(true);
            let mut at = b.stride as usize;
            while at > 0 && at < count + 1 + h * b.shift as usize {
                // Counted from 1, the strides' ends, moved towards the front by the head.
                if let Some(block) = (at - 1).checked_sub(h * b.shift as usize).filter(|block| *block < count)
                {
                    row[block] = true;
                }
                at += b.stride as usize;
            }
            let at = |j: usize, col: usize| &all[token(j) as usize * cols + col..][..hd];
            let kv = h / (heads / kv_heads) as usize;
            let (k, v) = ((heads as usize + kv) * hd, ((heads + kv_heads) as usize + kv) * hd);
            let seen: Vec<usize> = (0..=i).filter(|j| row[j / tokens]).collect();
            let dot = |j: &usize| {
                at(i, h * hd).iter().zip(at(*j, k)).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
            };
            let weights: Vec<f64> =
                seen.iter().map(|j| (dot(j) / f64::from(head_dim).sqrt()).exp()).collect();
            let sum: f64 = weights.iter().sum();
            out.extend((0..hd).map(|c| {
                let total: f64 = seen.iter().zip(&weights).map(|(j, w)| w * f64::from(at(*j, v)[c])).sum();
                (total / sum) as f32
            }));
        }
    }
    out
}

#[test]
fn blocks_equal_dense_attention_with_a_mask() {
    let mut rng = Rng(51);
    for shape in SHAPES {
        let (p, t) = (program(shape), table(shape, &mut rng));
        p.check().unwrap();
        let want = masked(shape, &t);
        let got = floats(&whole(Box::<Reference>::default(), &p, &t, shape.3));
        assert!(compare::max_abs_diff(&want, &got) < 1e-5, "{shape:?}: reference");
        for kv in [KvType::F32, KvType::F16, KvType::Q8_0] {
            let got = floats(&whole(cpu(Isa::detect(), 2, kv), &p, &t, shape.3));
            let error = compare::relative_rms(&want, &got);
            let bound = match kv {
                KvType::F32 => 1e-5,
                KvType::F16 => 2e-3,
                _ => 3e-2,
            };
            assert!(error < bound, "{shape:?}, {kv:?}: {error}");
        }
    }
}

/// A cache whose unseen part is full of NaN gives the same: the cost follows what is seen.
#[test]
fn what_is_not_seen_is_not_read() {
    let shape = (2, 1, 16, 200, Blocks { tokens: 16, local: 2, global: 1, stride: 0, shift: 0 });
    let (p, t) = (program(shape), table(shape, &mut Rng(52)));
    // The last rows see the first block and the last two.
    let (n, unseen) = (shape.3, 16..176);
    let last = |rows: Vec<Vec<u32>>| rows[192..].to_vec();
    let cols = 4 * 16;
    let mut broken = t["input"].to_f32();
    for i in unseen {
        broken[token(i) as usize * cols..][..cols].fill(f32::NAN);
    }
    let broken = f32_tensor("input", &[VOCAB as usize, cols], &broken);
    let broken = Tensors::from([("input".into(), broken)]);
    for make in [|| Box::<Reference>::default() as Box<dyn Device>, || cpu(Isa::detect(), 2, KvType::F16)] {
        let (want, got) = (whole(make(), &p, &t, n), whole(make(), &p, &broken, n));
        assert_eq!(last(want), last(got));
    }
    let seen: Vec<u64> = (0..n as u64).map(|i| shape.4.seen(i)).collect();
    assert_eq!((seen[0], seen[31], seen[199]), (1, 32, 16 + 16 + 8));
}

#[test]
fn rows_have_the_same_bits_in_any_company() {
    let mut rng = Rng(53);
    for shape in SHAPES {
        let (p, t, n) = (program(shape), table(shape, &mut rng), shape.3);
        let tokens: Vec<u32> = (0..n).map(token).collect();
        let sizes = Sizes { rows: 2 * n, seqs: 2, tokens: n };
        for (isa, kv) in Isa::available().into_iter().flat_map(|i| KvType::ALL.map(|t| (i, t))) {
            let want = whole(cpu(isa, 1, kv), &p, &t, n);
            for (threads, cut) in [(1, 1), (2, 33), (3, n - 1)] {
                let mut rig = Rig::new(cpu(isa, threads, kv), &p, &t, sizes);
                // The second sequence is whole in the first step.
                let mut at = 0;
                while at < n {
                    let next = n.min(at + cut);
                    let mut parts = vec![Part { seq: 0, start: at, tokens: &tokens[at..next] }];
                    parts.extend((at == 0).then_some(Part { seq: 1, start: 0, tokens: &tokens }));
                    let got = rig.step(&parts, &[]);
                    assert!(
                        got[..next - at] == want[at..next],
                        "{shape:?}, {isa}, {kv:?}, {threads} threads at {at}"
                    );
                    assert!(
                        at > 0 || got[next..] == want[..],
                        "{shape:?}, {isa}, {kv:?}: the other sequence"
                    );
                    at = next;
                }
            }
        }
    }
}

#[test]
fn patterns_without_a_meaning_are_refused() {
    let shape = SHAPES[0];
    let with = |change: &dyn Fn(&mut AttendSpec)| {
        let mut p = program(shape);
        for node in &mut p.ops {
            if let Op::Attend { spec, .. } = &mut node.op {
                change(spec);
            }
        }
        p.check().is_ok()
    };
    assert!(with(&|_| ()));
    assert!(!with(&|s| s.window = Some(8)));
    assert!(!with(&|s| s.alibi = Some(8.0)));
    assert!(!with(&|s| s.causal = false));
    assert!(!with(&|s| s.blocks = s.blocks.map(|b| Blocks { tokens: 12, ..b })));
    assert!(!with(&|s| s.blocks = s.blocks.map(|b| Blocks { local: 0, ..b })));
    assert!(quarrel_ir::evict::key_rotations(&program(shape)).is_err());
}

/// The count that costs are made of is the count of what is seen.
#[test]
fn positions_seen_are_counted() {
    for (.., n, b) in SHAPES {
        for position in 0..n {
            let seen = (0..=position).filter(|key| b.sees(0, position, *key)).count();
            assert_eq!(b.seen(position as u64), seen as u64, "{b:?} at {position}");
        }
    }
}
