//! Speed of every kernel, on one thread: `cargo bench -p quarrel-cpu -- FILTER`, where a filter is for example `matmul/Q4_K`,
//! `pack`, `attend/8192` or nothing. Products and packing are called as they are; the other ops run as Programs, and what
//! is measured is the time of the op alone.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use quarrel_cpu::{
    Cpu, CpuOptions,
    matmul::{Epilogue, Input, PackedFloats, Quantized, Rows, matmul},
    pack::{InputKind, PackedBuilder, PackedWeight},
    simd::Isa,
};
use quarrel_formats::{Bytes, DType, Tensor};
use quarrel_ir::{
    Activation, AttendSpec, BLOCK_TOKENS, Device, HostWeight, KvLayer, Limits, NormKind, NormSpec, Op,
    Program, RopeStyle, RopeTable, SeqStep, StepInputs, View,
};

const TYPES: [DType; 16] = [
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q2_K,
    DType::Q3_K,
    DType::Q4_K,
    DType::Q5_K,
    DType::Q6_K,
    DType::IQ4_NL,
    DType::IQ4_XS,
    DType::MXFP4,
    DType::F16,
    DType::BF16,
    DType::F32,
];
/// Output and input columns of the matrices.
const SHAPE: (usize, usize) = (16384, 2048);

/// A cache line.
#[derive(Clone)]
#[repr(align(64))]
#[expect(dead_code, reason = "read and written through pointers")]
struct Line([u8; 64]);

fn lines(bytes: usize) -> Vec<Line> {
    vec![Line([0; 64]); bytes.div_ceil(64)]
}

fn floats(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect()
}

/// All scales are the half-precision number 0x2c2c, a small one.
fn source(dtype: DType, rows: usize, cols: usize) -> Bytes {
    Bytes::from(vec![0x2c; dtype.row_bytes(cols).expect("whole blocks") * rows])
}

fn packed(dtype: DType, bytes: Bytes) -> PackedWeight {
    PackedBuilder::new(Isa::detect(), dtype, SHAPE.0, SHAPE.1, bytes).expect("the shape is right").finish()
}

/// The activations in the form that the weight multiplies, in `memory`.
fn input(w: &PackedWeight, x: &mut [f32], rows: usize, memory: &mut Vec<Line>) -> Input {
    let from = Rows { ptr: x.as_mut_ptr(), stride: w.cols() };
    *memory = lines(Quantized::bytes(rows, w.cols()).max(PackedFloats::bytes(rows, w.cols())));
    let place = memory.as_mut_ptr().cast();
    // SAFETY: `memory` has room for either form, and `x` has the rows.
    unsafe {
        match w.input() {
            InputKind::Quantized => {
                let q = Quantized::new(w.isa(), place, rows, w.cols());
                q.quantize(from, 0..rows);
                Input::Quantized(q)
            }
            InputKind::Float => {
                let p = PackedFloats::new(w.isa(), place, rows, w.cols());
                p.pack(from, 0..rows);
                Input::Float(p)
            }
        }
    }
}

/// Products by type and rows: bytes of weights for one row, multiplications and additions for more.
fn products(c: &mut Criterion) {
    let mut group = c.benchmark_group("matmul");
    for dtype in TYPES {
        let mut weight = None;
        for rows in [1, 8, 512] {
            let ops = (2 * rows * SHAPE.0 * SHAPE.1) as u64;
            let bytes = dtype.row_bytes(SHAPE.1).expect("whole blocks") * SHAPE.0;
            group.throughput(if rows == 1 {
                Throughput::Bytes(bytes as u64)
            } else {
                Throughput::Elements(ops)
            });
            group.bench_function(BenchmarkId::new(dtype.name(), rows), |b| {
                let w = weight.get_or_insert_with(|| packed(dtype, source(dtype, SHAPE.0, SHAPE.1)));
                let (mut x, mut memory, mut out) =
                    (floats(rows * SHAPE.1), vec![], vec![0.0; rows * SHAPE.0]);
                let input = input(w, &mut x, rows, &mut memory);
                let place = Rows { ptr: out.as_mut_ptr(), stride: SHAPE.0 };
                // SAFETY: `out` and the input have the sizes.
                b.iter(|| unsafe { matmul(w, 0..w.units(), input, place, Epilogue::default()) });
                black_box(&mut out);
            });
        }
    }
}

/// Packing by type, with the memory that it needs.
fn packing(c: &mut Criterion) {
    let mut group = c.benchmark_group("pack");
    for dtype in TYPES {
        let bytes = dtype.row_bytes(SHAPE.1).expect("whole blocks") * SHAPE.0;
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(dtype.name(), |b| {
            let bytes = source(dtype, SHAPE.0, SHAPE.1);
            b.iter(|| packed(dtype, bytes.clone()));
        });
    }
}

/// Activations to whole numbers, and to chunks of floats.
fn activations(c: &mut Criterion) {
    let (rows, cols) = (8, 2048);
    let mut group = c.benchmark_group("activations");
    group.throughput(Throughput::Elements((rows * cols) as u64));
    let (mut x, isa) = (floats(rows * cols), Isa::detect());
    let mut memory = lines(Quantized::bytes(rows, cols).max(PackedFloats::bytes(rows, cols)));
    let (from, place) = (Rows { ptr: x.as_mut_ptr(), stride: cols }, memory.as_mut_ptr().cast());
    // SAFETY: `memory` has room for either form, and `x` has the rows.
    unsafe {
        let (q, p) = (Quantized::new(isa, place, rows, cols), PackedFloats::new(isa, place, rows, cols));
        group.bench_function("quantise", |b| b.iter(|| q.quantize(from, 0..rows)));
        group.bench_function("pack", |b| b.iter(|| p.pack(from, 0..rows)));
    }
}

/// Runs a Program's only op of a name on `rows` rows behind `depth` others.
fn op(
    c: &mut Criterion,
    name: &str,
    id: String,
    rows: usize,
    depth: usize,
    build: impl Fn(&mut Program, View),
) {
    const COLS: u32 = 2048;
    let mut group = c.benchmark_group(name);
    // Long ops are repeated once for each sample, no more.
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(rows as u64));
    group.bench_function(id, |b| {
        let mut p = Program::new();
        let table = p.weight("table", 8, COLS);
        let x = p.embed("x", table, 1.0);
        p.logits = Some(x); // a Program needs some; none is asked for
        build(&mut p, x);
        let mut cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).expect("a thread");
        let ids: Vec<_> = p
            .weights
            .iter()
            .map(|decl| {
                let shape = vec![decl.rows() as usize, COLS as usize];
                let data =
                    floats(shape[0] * shape[1]).iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
                let name = decl.parts[0].name.clone();
                let part = Tensor { name, dtype: DType::F32, shape, data: data.into() };
                cpu.load(decl, HostWeight { parts: vec![part] }).expect("the shape is the declared one")
            })
            .collect();
        let blocks: Vec<u32> = (0..(rows + depth).div_ceil(BLOCK_TOKENS) as u32).collect();
        let limits = Limits { rows: rows.max(512), outputs: 1, kv_blocks: blocks.len() };
        let at = p.ops.iter().position(|n| n.op.name() == name).expect("the op was built");
        let prepared = cpu.prepare(p, &ids, limits).expect("a right program");
        let feed = |cpu: &mut Cpu, rows: usize, start: usize| {
            let tokens: Vec<u32> = (0..rows as u32).map(|i| i % 8).collect();
            let seq = SeqStep::new(rows, start, &blocks);
            cpu.run(prepared, &StepInputs::new(&tokens, &[seq], &[])).expect("a step");
        };
        // What is behind is one step, copied on: the time does not depend on what the cache holds.
        let first = 512.min(depth);
        if first > 0 {
            feed(&mut cpu, first, 0);
            let full = (first / BLOCK_TOKENS) as u32;
            let pairs: Vec<(u32, u32)> = (full..blocks.len() as u32).map(|to| (to % full, to)).collect();
            cpu.copy_blocks(prepared, &pairs).expect("blocks of the cache");
        }
        b.iter_custom(|n| {
            cpu.profile(true).unwrap();
            (0..n).for_each(|_| feed(&mut cpu, rows, depth));
            Duration::from_nanos(cpu.timings(prepared).unwrap()[at].busy_ns)
        });
    });
}

/// The ops beside products, of a model with 32 heads of 64.
fn ops(c: &mut Criterion) {
    for rows in [1, 512] {
        op(c, "norm", format!("rms/{rows}"), rows, 0, |p, x| {
            let norm = NormSpec { kind: NormKind::Rms, eps: 1e-5, group: 2048, weight: None, bias: None };
            p.norm("y", x, norm);
        });
        op(c, "rope", format!("neox/{rows}"), rows, 0, |p, x| {
            let table = p.rope(RopeTable::new(RopeStyle::Neox, 64, 1e4, None));
            p.push(Op::Rope { x, head_dim: 64, table });
        });
        op(c, "glu", format!("silu/{rows}"), rows, 0, |p, x| {
            p.glu(x.slice(0, 1024), x.slice(1024, 1024), Activation::Silu);
        });
        // The longest depth for a single row: for many it takes a second each.
        for depth in [128, 2048, 8192].into_iter().filter(|d| d * rows <= 2048 * 512) {
            op(c, "attend", format!("{depth}/{rows}"), rows, depth, |p, x| {
                p.kv.push(KvLayer { kv_heads: 8, head_dim: 64, v_dim: 64, window: None });
                p.push(Op::StoreKv { k: x.slice(0, 512), v: x.slice(512, 512), kv_layer: 0 });
                let (kv_heads, head_dim, v_dim) = (8, 64, 64);
                p.attend(
                    x,
                    AttendSpec {
                        kv_layer: 0,
                        heads: 32,
                        kv_heads,
                        head_dim,
                        v_dim,
                        scale: 0.125,
                        causal: true,
                        window: None,
                        softcap: None,
                        alibi: None,
                        buckets: None,
                        of_source: false,
                        chunked: false,
                        sinks: None,
                        blocks: None,
                    },
                );
            });
        }
    }
}

fn config() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400))
}

criterion_group! { name = kernels; config = config(); targets = products, packing, activations, ops }
criterion_main!(kernels);
