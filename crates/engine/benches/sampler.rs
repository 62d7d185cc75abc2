//! What the sampling chain costs for each token, with Gemma's vocabulary of 262,144.

use criterion::{Criterion, criterion_group, criterion_main};
use quarrel_engine::{DynamicTemperature, LogitSampler, Sampling};
use std::hint::black_box;

const VOCAB: usize = 262_144;

/// Logits like a model's: a bell of noise, and a few tokens above it.
fn row() -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let mut row: Vec<f32> =
        (0..VOCAB).map(|_| 2.5 * (0..12).map(|_| uniform()).sum::<f32>() - 20.0).collect();
    for i in 0..60 {
        row[i * 4001 + 77] = 14.0 - i as f32 * 0.25;
    }
    row
}

fn samplers(c: &mut Criterion) {
    let s = Sampling::default;
    let default = || Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, ..s() };
    let range = Some(DynamicTemperature { min: 0.2, max: 1.5, exponent: 1.0 });
    let prompt: Vec<u32> = (0..2000).map(|i| i * 37 % 1500).collect();
    let cases = [
        ("greedy", Sampling::greedy()),
        ("default", default()),
        ("default, with its log-probability", default()),
        ("default and penalties", Sampling { repetition_penalty: 1.1, frequency_penalty: 0.2, ..default() }),
        ("default, DRY and XTC", Sampling { dry_multiplier: 0.8, xtc_probability: 0.5, ..default() }),
        ("top-p and min-p", Sampling { top_p: 0.95, min_p: 0.05, ..s() }),
        ("entropy-scaled and top-p", Sampling { top_p: 0.9, dynamic_temperature: range, ..s() }),
        ("quality: min-p and DRY", Sampling::quality()),
        ("top-n-sigma", Sampling { top_n_sigma: 1.0, ..s() }),
        ("typical", Sampling { typical_p: 0.9, ..s() }),
        ("Mirostat 2", Sampling { mirostat: 2, ..s() }),
        ("Mirostat 1", Sampling { mirostat: 1, ..s() }),
        ("plain", s()),
    ];
    let (first, mut row) = (row(), vec![0.0; VOCAB]);
    let mut group = c.benchmark_group("sampler");
    group.bench_function("copy of the row, which each of the others has in it", |b| {
        b.iter(|| black_box(&mut row).copy_from_slice(&first));
    });
    for (name, s) in cases {
        let sampler = LogitSampler::new(s, &prompt, VOCAB).expect("settings in their ranges");
        let mut sampler = if name.ends_with("log-probability") { sampler } else { sampler.unreported() };
        group.bench_function(name, |b| {
            b.iter(|| {
                row.copy_from_slice(&first);
                sampler.next(black_box(&mut row)).expect("a row with a distribution").id
            });
        });
    }
}

criterion_group!(benches, samplers);
criterion_main!(benches);
