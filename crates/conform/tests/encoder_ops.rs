//! What encoders add to the ops: tables that are looked up by position and by type, and attention to what comes later,
//! against the reference and with the same bits in any company.

use quarrel_conform::compare;
use quarrel_conform::random::{Rng, tensor};
use quarrel_conform::rig::{Part, Rig, Sizes};
use quarrel_conform::{Tensors, input_program};
use quarrel_cpu::{Cpu, CpuOptions, Isa, KvType};
use quarrel_formats::DType;
use quarrel_ir::reference::Reference;
use quarrel_ir::{AttendSpec, Device, KvLayer, Lookup, Op, Program, Rows};

const VOCAB: u32 = 80;

fn cpu(isa: Isa, threads: usize, kv: KvType) -> Box<dyn Device> {
    let options =
        CpuOptions { threads: Some(threads), isa: Some(isa), kv, poison: true, ..CpuOptions::default() };
    Box::new(Cpu::new(options).unwrap())
}

fn tokens(n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|r| ((r * 13 + 5 + 31 * seed) % VOCAB as usize) as u32).collect()
}

fn floats(rows: Vec<Vec<u32>>) -> Vec<f32> {
    rows.into_iter().flatten().map(f32::from_bits).collect()
}

/// The rows of sequences of these lengths, all in one step.
fn together(device: Box<dyn Device>, p: &Program, t: &Tensors, lengths: &[usize]) -> Vec<Vec<Vec<u32>>> {
    let ids: Vec<Vec<u32>> = lengths.iter().enumerate().map(|(s, n)| tokens(*n, s)).collect();
    let parts: Vec<Part> =
        ids.iter().enumerate().map(|(seq, tokens)| Part { seq, start: 0, tokens }).collect();
    let sizes = Sizes {
        rows: lengths.iter().sum(),
        seqs: lengths.len(),
        tokens: lengths.iter().copied().max().unwrap_or(0),
    };
    let mut rows = Rig::new(device, p, t, sizes).step(&parts, &[]).into_iter();
    lengths.iter().map(|n| rows.by_ref().take(*n).collect()).collect()
}

/// The rows of one of them alone.
fn alone(device: Box<dyn Device>, p: &Program, t: &Tensors, n: usize, seed: usize) -> Vec<Vec<u32>> {
    let tokens = tokens(n, seed);
    let sizes = Sizes { rows: n, seqs: 1, tokens: n };
    Rig::new(device, p, t, sizes).step(&[Part { seq: 0, start: 0, tokens: &tokens }], &[])
}

#[test]
fn tables_are_looked_up_by_token_position_and_type() {
    let mut rng = Rng(41);
    for (dtype, cols) in [(DType::F32, 37), (DType::F16, 48), (DType::Q8_0, 64)] {
        let (mut p, mut x) = input_program(VOCAB, cols);
        let mut t = Tensors::new();
        let mut add = |t: &mut Tensors, name: &str, rows: u32| {
            t.insert(name.into(), tensor(name, dtype, &[rows as usize, cols as usize], 1.0, &mut rng));
        };
        add(&mut t, "input", VOCAB);
        for (name, rows, by) in [("types", 3, Lookup::Row(2)), ("positions", 33, Lookup::Position)] {
            add(&mut t, name, rows);
            let (table, out) = (p.weight(name, rows, cols), p.value("x", Rows::Tokens, cols));
            p.push(Op::Embed { out, table, scale: 0.7, by, add: Some(x) });
            x = out;
        }
        p.logits = Some(x);
        p.check().unwrap();
        assert_eq!((p.positions(), p.looks_ahead()), (Some(33), false));
        let want = together(Box::new(Reference::default()), &p, &t, &[33, 1, 20]);
        // By hand, where the sequence begins anew.
        let row = |name: &str, r: usize| t[name].to_f32()[r * cols as usize..][..cols as usize].to_vec();
        let (token, kind, place) =
            (row("input", tokens(1, 1)[0] as usize), row("types", 2), row("positions", 0));
        for (c, bits) in want[1][0].iter().enumerate() {
            assert_eq!(f32::from_bits(*bits), token[c] + 0.7 * kind[c] + 0.7 * place[c], "{dtype}");
        }
        for isa in Isa::available() {
            for threads in [1, 3] {
                let got = together(cpu(isa, threads, KvType::F16), &p, &t, &[33, 1, 20]);
                assert_eq!(got, want, "{dtype}, {isa}, {threads} threads");
            }
        }
        for mut rig in [Box::new(Reference::default()) as Box<dyn Device>, cpu(Isa::detect(), 1, KvType::F16)]
            .map(|d| Rig::new(d, &p, &t, Sizes { rows: 34, seqs: 1, tokens: 34 }))
        {
            let (tokens, part) = (tokens(34, 0), |tokens| [Part { seq: 0, start: 0, tokens }]);
            assert!(rig.step_with(&part(&tokens), &[], &[], None).is_err(), "a position that no row is for");
            assert!(rig.step_with(&part(&tokens[..33]), &[], &[], None).is_ok());
        }
    }
}

#[test]
fn attention_that_looks_ahead_at_odd_shapes_and_in_any_company() {
    let mut rng = Rng(42);
    for (heads, kv_heads, head_dim, softcap) in
        [(1, 1, 1, None), (12, 12, 32, None), (6, 2, 33, Some(2.0)), (9, 3, 64, None)]
    {
        let (q_cols, kv_cols) = (heads * head_dim, kv_heads * head_dim);
        let cols = q_cols + 2 * kv_cols;
        let (mut p, x) = input_program(VOCAB, cols);
        let shape = [VOCAB as usize, cols as usize];
        let t = Tensors::from([("input".into(), tensor("input", DType::F32, &shape, 1.0, &mut rng))]);
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
            causal: false,
            window: None,
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
        assert!(p.looks_ahead());
        let windowed = AttendSpec { window: Some(4), ..spec };
        let mut refused = p.clone();
        refused.attend(q, windowed);
        assert!(refused.check().is_err(), "a window without an order");
        let lengths = [1, 290, 16, 17, 130, 2];
        let want = together(Box::new(Reference::default()), &p, &t, &lengths);
        for (isa, kv) in Isa::available().into_iter().flat_map(|i| KvType::ALL.map(|t| (i, t))) {
            let one: Vec<_> =
                lengths.iter().enumerate().map(|(s, n)| alone(cpu(isa, 1, kv), &p, &t, *n, s)).collect();
            for threads in [1, 2, 5] {
                let got = together(cpu(isa, threads, kv), &p, &t, &lengths);
                assert_eq!(got, one, "{heads} heads of {head_dim}, {isa}, {kv:?}, {threads} threads");
            }
            if matches!(kv, KvType::F32 | KvType::F16) {
                let (got, want) = (one.concat(), want.concat());
                let error = compare::relative_rms(&floats(got), &floats(want));
                let bound = if kv == KvType::F32 { 1e-5 } else { 2e-3 };
                assert!(error < bound, "{heads} heads of {head_dim}, {isa}, {kv:?}: {error}");
            }
        }
        // What comes later matters: the same beginning in a longer text gives other rows.
        let longer = alone(cpu(Isa::detect(), 1, KvType::F32), &p, &t, 20, 0);
        let shorter = alone(cpu(Isa::detect(), 1, KvType::F32), &p, &t, 12, 0);
        assert_ne!(longer[0], shorter[0]);
    }
}
