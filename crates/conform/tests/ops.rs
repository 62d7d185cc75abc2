//! Every op on the CPU device against the reference, at odd shapes, for every tensor type.

use quarrel_conform::cases::{self, ACTIVATIONS, Case};
use quarrel_conform::random::Rng;
use quarrel_cpu::{Cpu, CpuOptions, KvType};
use quarrel_formats::DType;
use quarrel_ir::reference::Reference;
use quarrel_ir::{Device, Limits, Prepared, Readout, SeqStep, StateCopy, StepInputs, View};

fn cpu(threads: usize) -> Cpu {
    Cpu::new(CpuOptions { threads: Some(threads), ..CpuOptions::default() }).unwrap()
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Compares with the reference; one and two threads must agree bit for bit.
fn check(case: &Case, bound: f64) -> Vec<f32> {
    let want = case.run(&mut Reference::default(), &[case.rows]).unwrap();
    let one = case.run(&mut cpu(1), &[case.rows]).unwrap();
    let two = case.run(&mut cpu(2), &[case.rows]).unwrap();
    assert!(same_bits(&one, &two), "{}: threads change the bits", case.name);
    let error = case.error(&one, &want);
    assert!(error < bound, "{}: {error}", case.name);
    one
}

#[test]
fn products_of_every_type_at_odd_shapes() {
    for case in cases::products(&mut Rng(1)) {
        // Quantised weights meet activations quantised to 15 bits per block of 32: for normal inputs the error is about
        // 5e-5 of the terms' root sum square.
        check(&case, if case.quantized { 2.5e-4 } else { 1e-5 });
    }
}

#[test]
fn rows_of_tables_of_every_type() {
    for case in cases::lookups(&mut Rng(6)) {
        check(&case, 1e-6);
    }
}

#[test]
fn products_with_norm_bias_residual_gate_and_several_parts() {
    let mut rng = Rng(2);
    for (dtype, cols, bound) in [(DType::F32, 96, 1e-5), (DType::Q8_0, 96, 2e-4), (DType::Q4_K, 256, 2e-4)] {
        for rows in [1, 2, 7, 33, 64] {
            for act in ACTIVATIONS {
                let mut case = cases::feed_forward(dtype, cols, rows, act, &mut rng);
                let plain = check(&case, bound);
                case.program = quarrel_ir::fuse::fuse(&case.program);
                let fused = check(&case, bound);
                assert!(same_bits(&plain, &fused), "{}: fusion changes the bits", case.name);
            }
        }
    }
}

#[test]
fn norms_of_both_kinds_whole_and_per_head() {
    for case in cases::norms(&mut Rng(3)).into_iter().chain(cases::head_norms(&mut Rng(10))) {
        check(&case, 1e-5);
    }
}

#[test]
fn elementwise_ops_and_picked_rows() {
    for case in cases::elementwise(&mut Rng(4)) {
        check(&case, 2e-5);
    }
}

#[test]
fn streams_are_mixed() {
    for case in cases::streams(&mut Rng(9)) {
        check(&case, 2e-5);
    }
}

#[test]
fn the_best_of_rows_with_ties() {
    for case in cases::candidates(&mut Rng(7)) {
        check(&case, 1e-6);
    }
}

#[test]
fn gates_are_exact_at_extremes_and_keep_nan() {
    for case in cases::extremes().into_iter().chain(cases::clips()) {
        check(&case, 1e-6);
    }
}

/// Rope, cache and attention together, over head sizes, groups, windows, caps, biases and sinks.
#[test]
fn attention_at_odd_shapes() {
    let biased = cases::biased_attention(&mut Rng(7));
    for case in cases::attention(&mut Rng(5)).into_iter().chain(biased) {
        // Keys and values are stored in 16 bits.
        let whole = check(&case, 2e-3);
        let rows = case.rows;
        for (threads, chunks) in [(2, vec![rows]), (1, vec![1; rows]), (3, vec![33, 1, 16, rows - 50])] {
            let other = case.run(&mut cpu(threads), &chunks).unwrap();
            assert!(same_bits(&whole, &other), "{}: chunks {chunks:?} change the bits", case.name);
        }
    }
}

#[test]
fn short_convolutions_at_odd_shapes() {
    for case in cases::short_convs(&mut Rng(10)) {
        // Inputs are stored in 16 bits, also where keys and values are codes.
        let whole = check(&case, 2e-3);
        let rows = case.rows;
        for (threads, chunks) in [(2, vec![1; rows]), (3, vec![rows.div_ceil(3), rows - rows.div_ceil(3)])] {
            let chunks: Vec<usize> = chunks.into_iter().filter(|n| *n > 0).collect();
            let other = case.run(&mut cpu(threads), &chunks).unwrap();
            assert!(same_bits(&whole, &other), "{}: chunks {chunks:?} change the bits", case.name);
        }
        let with = |kv| {
            let options = CpuOptions { threads: Some(2), kv, ..CpuOptions::default() };
            case.run(&mut Cpu::new(options).unwrap(), &[rows]).unwrap()
        };
        let want = case.run(&mut Reference::default(), &[rows]).unwrap();
        for (kv, bound) in [(KvType::F32, 1e-6), (KvType::BF16, 1e-2)] {
            let error = case.error(&with(kv), &want);
            assert!(error < bound, "{}, {}: {error}", case.name, kv.name());
        }
        for kv in [KvType::Q8_0, KvType::Q4_0] {
            assert!(same_bits(&whole, &with(kv)), "{}, {}", case.name, kv.name());
        }
    }
}

#[test]
fn recurrences_at_odd_shapes() {
    for case in cases::recurrences(&mut Rng(11)) {
        let whole = check(&case, 1e-5);
        let rows = case.rows;
        for (threads, chunks) in [(2, vec![1; rows]), (3, vec![rows.div_ceil(3), rows - rows.div_ceil(3)])] {
            let chunks: Vec<usize> = chunks.into_iter().filter(|n| *n > 0).collect();
            let other = case.run(&mut cpu(threads), &chunks).unwrap();
            assert!(same_bits(&whole, &other), "{}: chunks {chunks:?} change the bits", case.name);
        }
    }
}

/// Sequences beside each other, forks, and states that are not what a step needs.
#[test]
fn states_belong_to_sequences() {
    let case = cases::recurrences(&mut Rng(12)).swap_remove(2);
    let devices: [Box<dyn Device>; 2] = [Box::new(cpu(2)), Box::new(Reference::default())];
    for mut device in devices {
        let limits = Limits { rows: 16, outputs: 16, kv_blocks: 4 };
        let prepared = quarrel_conform::prepare(&mut *device, &case.program, &case.tensors, limits).unwrap();
        let view = case.program.logits.unwrap();
        // Rows of sequences (state, first token, start, rows), and the bits of what they give.
        let step = |device: &mut dyn Device, seqs: &[(u32, u32, usize, usize)]| {
            let tokens: Vec<u32> = seqs.iter().flat_map(|s| (0..s.3 as u32).map(move |r| s.1 + r)).collect();
            let blocks = [[0], [1], [2]];
            let seqs: Vec<SeqStep> = seqs
                .iter()
                .zip(&blocks)
                .map(|(s, b)| SeqStep { state: s.0, ..SeqStep::new(s.3, s.2, b) })
                .collect();
            device.run(prepared, &StepInputs::new(&tokens, &seqs, &[0]))?;
            let mut out = vec![0.0; tokens.len() * view.cols as usize];
            device.read(prepared, Readout::View(view), &mut out)?;
            Ok::<_, quarrel_ir::Error>(out.into_iter().map(f32::to_bits).collect::<Vec<u32>>())
        };
        let cols = view.cols as usize;
        let alone = step(&mut *device, &[(5, 3, 0, 6)]).unwrap();
        let first = step(&mut *device, &[(5, 3, 0, 4), (6, 40, 0, 2)]).unwrap();
        assert_eq!(first[..4 * cols], alone[..4 * cols]);
        device.copy_state(prepared, 5, 9).unwrap();
        // The fork and the sequence go on alike; the third began with another token.
        let both = step(&mut *device, &[(9, 7, 4, 2), (6, 42, 2, 1), (5, 7, 4, 2)]).unwrap();
        assert_eq!(both[..2 * cols], alone[4 * cols..]);
        assert_eq!(both[3 * cols..], alone[4 * cols..]);
        // One that begins again forgets; what is not the state of the tokens before is refused.
        assert_eq!(step(&mut *device, &[(9, 3, 0, 6)]).unwrap(), alone);
        let refused = |e: quarrel_ir::Error| e.to_string();
        assert!(refused(step(&mut *device, &[(5, 3, 4, 1)]).unwrap_err()).contains("has seen Some(6)"));
        assert!(refused(step(&mut *device, &[(5, 3, 0, 1), (5, 3, 0, 1)]).unwrap_err()).contains("two"));
        copies_go_on(&mut *device, prepared, view, &alone);
        device.drop_state(prepared, 6).unwrap();
        assert!(refused(step(&mut *device, &[(6, 3, 3, 1)]).unwrap_err()).contains("has seen None"));
    }
}

/// Copies of states in the middle of a step: what goes on from them has the bits of the whole, and what is no copy is refused.
fn copies_go_on(device: &mut dyn Device, prepared: Prepared, view: View, alone: &[u32]) {
    let cols = view.cols as usize;
    let mut run = |seqs: &[SeqStep], tokens: &[u32], copies: &[(u32, u32)]| {
        let copies: Vec<StateCopy> = copies.iter().map(|&(row, state)| StateCopy { row, state }).collect();
        device.run(prepared, &StepInputs { snapshots: &copies, ..StepInputs::new(tokens, seqs, &[0]) })?;
        let mut out = vec![0.0; tokens.len() * cols];
        device.read(prepared, Readout::View(view), &mut out)?;
        Ok::<_, quarrel_ir::Error>(out.into_iter().map(f32::to_bits).collect::<Vec<u32>>())
    };
    let seq = |state, rows, start, blocks| SeqStep { state, ..SeqStep::new(rows, start, blocks) };
    // The sequence of `alone` is the second of the step; the first has another text.
    let both = [seq(30, 3, 0, &[0]), seq(31, 6, 0, &[1])];
    let got = run(&both, &[9, 8, 7, 3, 4, 5, 6, 7, 8], &[(1, 40), (3, 41), (6, 42), (8, 43)]).unwrap();
    assert_eq!(got[3 * cols..], *alone);
    for (state, seen) in [(41, 1), (42, 4)] {
        let rest: Vec<u32> = (3 + seen as u32..9).collect();
        assert_eq!(run(&[seq(state, rest.len(), seen, &[1])], &rest, &[]).unwrap(), alone[seen * cols..]);
    }
    // A copy knows how much it has seen.
    for (state, seen) in [(40, 2), (43, 6)] {
        let error = run(&[seq(state, 1, seen + 1, &[1])], &[3], &[]).unwrap_err().to_string();
        assert!(error.contains(&format!("has seen Some({seen})")), "{error}");
    }
    for copies in [&[(9, 50)][..], &[(2, 30)], &[(4, 50), (3, 51)], &[(3, 50), (3, 51)], &[(3, 50), (4, 50)]]
    {
        let error = run(&both, &[9, 8, 7, 3, 4, 5, 6, 7, 8], copies).unwrap_err().to_string();
        assert!(error.contains("cannot be copied after row"), "{copies:?}: {error}");
    }
}

#[test]
fn mixtures_of_experts_at_odd_shapes() {
    for case in cases::mixtures(&mut Rng(8)).into_iter().chain(cases::blocks(&mut Rng(9))) {
        check(&case, if case.quantized { 2e-4 } else { 1e-5 });
    }
}
