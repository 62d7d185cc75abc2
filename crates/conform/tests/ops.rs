//! Every op on the CPU device against the reference, at odd shapes, for every tensor type.

use quarrel_conform::random::{Rng, f32_tensor, tensor};
use quarrel_conform::{Tensors, compare, input_program, prepare, run_chunks};
use quarrel_cpu::{Cpu, CpuOptions};
use quarrel_formats::DType;
use quarrel_ir::reference::Reference;
use quarrel_ir::{
    Activation, AttendSpec, Device, KvLayer, Limits, NormKind, NormSpec, Op, Program, RopeStyle, RopeTable,
    Rows, View,
};

const VOCAB: u32 = 80;

fn cpu(threads: usize) -> Cpu {
    Cpu::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() }).unwrap()
}

/// The id at row `r` of every run: rows of the input table in a mixed order.
fn token(r: u32) -> u32 {
    (r * 13 + 5) % VOCAB
}

/// Runs `program` on a device and reads the value it ends with.
fn run(
    device: &mut dyn Device,
    program: &Program,
    tensors: &Tensors,
    rows: usize,
    chunks: &[usize],
) -> Vec<f32> {
    let limits = Limits { rows, outputs: rows, kv_blocks: rows.div_ceil(16) };
    let prepared = prepare(device, program, tensors, limits).unwrap();
    let tokens: Vec<u32> = (0..rows as u32).map(token).collect();
    run_chunks(device, prepared, program, &tokens, chunks, program.logits.unwrap()).unwrap()
}

/// Reference output, and the CPU's for one and two threads, which must agree bit for bit.
fn both(program: &Program, tensors: &Tensors, rows: usize) -> (Vec<f32>, Vec<f32>) {
    program.check().unwrap();
    let want = run(&mut Reference::default(), program, tensors, rows, &[rows]);
    let one = run(&mut cpu(1), program, tensors, rows, &[rows]);
    let two = run(&mut cpu(2), program, tensors, rows, &[rows]);
    assert!(one.iter().zip(&two).all(|(a, b)| a.to_bits() == b.to_bits()), "threads change the bits");
    (want, one)
}

fn with_input(cols: u32, rng: &mut Rng) -> (Program, View, Tensors) {
    let (p, x) = input_program(VOCAB, cols);
    let table = tensor("input", DType::F32, &[VOCAB as usize, cols as usize], 1.0, rng);
    (p, x, Tensors::from([("input".into(), table)]))
}

/// Root mean square of the error, over that of the root sum square of each output's terms.
fn error_of_terms(got: &[f32], want: &[f32], tensors: &Tensors, cols: usize, rows: usize) -> f64 {
    let (x, w) = (tensors["input"].to_f32(), tensors["w"].to_f32());
    let square = |v: f64| v * v;
    let (mut error, mut terms) = (0.0, 0.0);
    for r in 0..rows {
        let x = &x[token(r as u32) as usize * cols..][..cols];
        let outputs = w.len() / cols;
        for (o, w) in w.chunks_exact(cols).enumerate() {
            let i = r * outputs + o;
            error += square(f64::from(got[i]) - f64::from(want[i]));
            terms += x.iter().zip(w).map(|(x, w)| square(f64::from(*x) * f64::from(*w))).sum::<f64>();
        }
    }
    let ratio = (error / terms).sqrt();
    if ratio.is_nan() { f64::INFINITY } else { ratio }
}

#[test]
fn products_of_every_type_at_odd_shapes() {
    let mut rng = Rng(1);
    for dtype in DType::all() {
        if matches!(dtype, DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::U8) {
            continue; // index types: no product has them
        }
        let unit = dtype.block_len().max(32) as u32;
        for (out, blocks, rows) in [(1, 1, 1), (15, 3, 2), (17, 1, 7), (33, 2, 64), (64, 1, 5)] {
            let cols = unit * blocks;
            let (mut p, x, mut t) = with_input(cols, &mut rng);
            let w = p.weight("w", out, cols);
            t.insert("w".into(), tensor("w", dtype, &[out as usize, cols as usize], 0.5, &mut rng));
            p.logits = Some(p.matmul("y", x, w, None));
            let (want, got) = both(&p, &t, rows);
            // Quantised weights meet activations quantised to 15 bits per block of 32: for normal inputs the error is about
            // 5e-5 of the terms' root sum square (of the sum itself it can be any share, when terms cancel).
            let bound = if dtype.is_quantized() { 2.5e-4 } else { 1e-5 };
            let error = error_of_terms(&got, &want, &t, cols as usize, rows);
            assert!(error < bound, "{dtype} {out}x{cols}, {rows} rows: {error}");
        }
    }
}

#[test]
fn products_with_norm_bias_residual_gate_and_several_parts() {
    let mut rng = Rng(2);
    for (dtype, cols, bound) in [(DType::F32, 96, 1e-5), (DType::Q8_0, 96, 2e-4), (DType::Q4_K, 256, 2e-4)] {
        for rows in [1, 2, 7, 33, 64] {
            for act in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf, Activation::Relu] {
                let (mut p, x, mut t) = with_input(cols, &mut rng);
                let gain = p.weight("gain", 1, cols);
                t.insert("gain".into(), tensor("gain", DType::F32, &[cols as usize], 1.0, &mut rng));
                let norm =
                    NormSpec { kind: NormKind::Rms, eps: 1e-5, group: cols, weight: Some(gain), bias: None };
                let h = p.norm("h", x, norm);
                let mut part = |p: &mut Program, name: &str, rows: u32| {
                    t.insert(
                        name.into(),
                        tensor(name, dtype, &[rows as usize, cols as usize], 0.2, &mut rng),
                    );
                    let bias = format!("{name}.bias");
                    t.insert(bias.clone(), tensor(&bias, DType::F32, &[rows as usize], 0.5, &mut rng));
                    let (w, b) = (p.weight(name, rows, cols), p.weight(bias, 1, rows));
                    p.matmul("part", h, w, Some(b))
                };
                let gate = part(&mut p, "gate", cols);
                let up = part(&mut p, "up", cols);
                let a = p.glu(gate, up, act);
                let w = p.weight("down", cols, cols);
                t.insert(
                    "down".into(),
                    tensor("down", dtype, &[cols as usize, cols as usize], 0.2, &mut rng),
                );
                let y = p.matmul("down", a, w, None);
                let z = p.add("z", x, y);
                p.logits = Some(z);
                let (want, plain) = both(&p, &t, rows);
                let fused_program = quarrel_ir::fuse::fuse(&p);
                let (_, fused) = both(&fused_program, &t, rows);
                let error = compare::relative_rms(&plain, &want);
                assert!(error < bound, "{dtype} {rows} rows {act:?}: {error}");
                let same = plain.iter().zip(&fused).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "fusion changes the bits: {dtype} {rows} rows {act:?}");
            }
        }
    }
}

#[test]
fn norms_of_both_kinds_whole_and_per_head() {
    let mut rng = Rng(3);
    for kind in [NormKind::Rms, NormKind::Layer] {
        for (cols, group) in [(1, 1), (33, 33), (96, 96), (120, 40), (576, 576), (80, 16)] {
            for rows in [1, 3, 64] {
                let (mut p, x, mut t) = with_input(cols, &mut rng);
                let weight = Some(p.weight("gain", 1, group));
                let bias = Some(p.weight("bias", 1, group));
                for name in ["gain", "bias"] {
                    t.insert(name.into(), tensor(name, DType::F32, &[group as usize], 1.0, &mut rng));
                }
                let out = p.value("y", Rows::Tokens, cols);
                let norm = NormSpec { kind, eps: 1e-6, group, weight, bias };
                p.push(Op::Norm { out, x, norm, add: Some(x) });
                p.logits = Some(out);
                let (want, got) = both(&p, &t, rows);
                let error = compare::relative_rms(&got, &want);
                assert!(error < 1e-5, "{kind:?} {cols}/{group}, {rows} rows: {error}");
            }
        }
    }
}

#[test]
fn elementwise_ops_and_picked_rows() {
    let mut rng = Rng(4);
    for cols in [1, 31, 100] {
        for rows in [1, 2, 65] {
            let (mut p, x, t) = with_input(cols, &mut rng);
            let a = p.value("a", Rows::Tokens, cols);
            p.push(Op::Activate { out: a, x, act: Activation::GeluErf });
            p.push(Op::Scale { x: a, by: 3.0 });
            p.push(Op::Softcap { x: a, cap: 1.5 });
            let b = p.add("b", a, x);
            let g = p.glu(x, b, Activation::Silu);
            let out = p.value("picked", Rows::Outputs, cols);
            p.push(Op::PickRows { out, x: g });
            p.logits = Some(out);
            let (want, got) = both(&p, &t, rows);
            assert!(compare::max_abs_diff(&got, &want) < 2e-5, "{cols} columns, {rows} rows");
        }
    }
}

#[test]
fn gates_are_exact_at_extremes_and_keep_nan() {
    let values = [0.0, -0.0, 100.0, -100.0, 1000.0, -1000.0, 1e30, -1e30, f32::NAN, 88.0, -88.0, -103.0];
    for act in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf, Activation::Relu] {
        let (mut p, x) = input_program(VOCAB, values.len() as u32);
        let table: Vec<f32> = values.iter().copied().cycle().take(VOCAB as usize * values.len()).collect();
        let t =
            Tensors::from([("input".into(), f32_tensor("input", &[VOCAB as usize, values.len()], &table))]);
        let out = p.value("y", Rows::Tokens, x.cols);
        p.push(Op::Activate { out, x, act });
        p.logits = Some(out);
        let (want, got) = both(&p, &t, 3);
        for (i, (w, g)) in want.iter().zip(&got).enumerate() {
            let close = (w - g).abs() <= 1e-6 * w.abs().max(1e-30) + 1e-36;
            assert!(
                close || (w.is_nan() && g.is_nan()),
                "{act:?}({}): {g} instead of {w}",
                values[i % values.len()]
            );
        }
    }
}

/// Rope, cache and attention together, over head sizes, groups, windows and caps.
#[test]
fn attention_at_odd_shapes() {
    let mut rng = Rng(5);
    let cases = [
        // heads, kv_heads, head_dim, rot_dims, window, softcap
        (1, 1, 1, 0, None, None),
        (2, 1, 33, 32, None, None),
        (9, 3, 64, 64, None, None),
        (4, 1, 256, 256, Some(7), None),
        (6, 2, 80, 32, Some(1), Some(2.0)),
        (8, 8, 40, 20, None, Some(5.0)),
        (12, 4, 96, 96, Some(40), None),
        (4, 2, 128, 128, None, None),
    ];
    for (heads, kv_heads, head_dim, rot_dims, window, softcap) in cases {
        for style in [RopeStyle::Neox, RopeStyle::Interleaved] {
            let (q_cols, kv_cols) = (heads * head_dim, kv_heads * head_dim);
            let (mut p, x, t) = with_input(q_cols + 2 * kv_cols, &mut rng);
            p.kv = vec![KvLayer { kv_heads, head_dim, v_dim: head_dim, window }];
            let (q, k, v) =
                (x.slice(0, q_cols), x.slice(q_cols, kv_cols), x.slice(q_cols + kv_cols, kv_cols));
            let table = p.rope(RopeTable::new(style, rot_dims, 1000.0, None));
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
                v_dim: head_dim,
                scale,
                causal: true,
                window,
                softcap,
            };
            p.logits = Some(p.attend(q, spec));
            p.check().unwrap();
            let rows = 70;
            let want = run(&mut Reference::default(), &p, &t, rows, &[rows]);
            let whole = run(&mut cpu(1), &p, &t, rows, &[rows]);
            // Keys and values are stored in 16 bits.
            let error = compare::relative_rms(&whole, &want);
            assert!(error < 2e-3, "{heads}/{kv_heads} heads of {head_dim}, window {window:?}: {error}");
            for (threads, chunks) in [(2, vec![rows]), (1, vec![1; rows]), (3, vec![33, 1, 16, 20])] {
                let other = run(&mut cpu(threads), &p, &t, rows, &chunks);
                let same = whole.iter().zip(&other).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{heads}/{kv_heads} heads of {head_dim}: chunks {chunks:?} change the bits");
            }
        }
    }
}
