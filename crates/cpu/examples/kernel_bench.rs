//! Speed of the matrix kernels by type and instruction set: GB/s of a product with one row, for a matrix far larger than the
//! cache of a core and for one like those of a small model, and GOP/s with 8 and 512 rows. One thread.
//!
//! `cargo run --release -p quarrel-cpu --example kernel_bench [-- [TYPE[,TYPE..]] [ISA]]`

use std::{hint::black_box, time::Instant};

use quarrel_cpu::{
    matmul::{Epilogue, Input, PackedFloats, Quantized, Rows, matmul},
    pack::{InputKind, PackedBuilder, PackedWeight},
    simd::Isa,
};
use quarrel_formats::{Bytes, DType};

/// Bytes at the alignment that quantised activations need.
#[derive(Clone)]
#[repr(align(64))]
#[expect(dead_code, reason = "read and written through pointers")]
struct Line([u8; 64]);

/// Activations in both forms.
struct X {
    floats: Vec<f32>,
    blocks: Vec<Line>,
    packed: Vec<f32>,
    rows: usize,
    cols: usize,
}

impl X {
    fn new(rows: usize, cols: usize) -> X {
        let floats = (0..rows * cols).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
        let blocks = vec![Line([0; 64]); Quantized::bytes(rows, cols).div_ceil(64)];
        X { floats, blocks, packed: vec![], rows, cols }
    }

    fn rows(&mut self) -> Rows {
        Rows { ptr: self.floats.as_mut_ptr(), stride: self.cols }
    }

    fn input(&mut self, w: &PackedWeight) -> Input {
        match w.input() {
            InputKind::Float => {
                self.packed = vec![0.0; PackedFloats::bytes(self.rows, self.cols) / 4];
                let ptr = self.packed.as_mut_ptr().cast();
                // SAFETY: `packed` has the size.
                let x = unsafe { PackedFloats::new(w.isa(), ptr, self.rows, self.cols) };
                // SAFETY: as above.
                unsafe { x.pack(self.rows(), 0..self.rows) };
                Input::Float(x)
            }
            InputKind::Quantized => {
                // SAFETY: `blocks` has the size and the alignment.
                let q =
                    unsafe { Quantized::new(w.isa(), self.blocks.as_mut_ptr().cast(), self.rows, self.cols) };
                // SAFETY: as above.
                unsafe { q.quantize(self.rows(), 0..self.rows) };
                Input::Quantized(q)
            }
        }
    }
}

/// The median of seconds per call, over at least 7 calls and about 0.15 s.
fn seconds(mut f: impl FnMut()) -> f64 {
    f();
    let mut all = Vec::new();
    let begin = Instant::now();
    while all.len() < 7 || begin.elapsed().as_secs_f64() < 0.15 {
        let start = Instant::now();
        f();
        all.push(start.elapsed().as_secs_f64());
    }
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn main() {
    let mut types = vec![
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
    let mut isa_name = None;
    for arg in std::env::args().skip(1) {
        match Isa::available().into_iter().find(|isa| isa.name() == arg) {
            Some(isa) => isa_name = Some(isa),
            None => {
                types = arg.split(',').map(|t| t.parse().expect("a type or an instruction set")).collect()
            }
        }
    }
    println!(
        "type    isa       pack GB/s | 1 row: large GB/s  small GB/s | GOP/s: 8 rows  512 rows  512 rows, k=576"
    );
    for dtype in types {
        for isa in Isa::available().into_iter().filter(|isa| isa_name.is_none_or(|only| only == *isa)) {
            let make = |rows: usize, cols: usize| {
                // All scales are the half-precision number 0x2c2c, a small one.
                let bytes = Bytes::from(vec![0x2c; dtype.row_bytes(cols).expect("whole blocks") * rows]);
                let start = Instant::now();
                let builder =
                    PackedBuilder::new(isa, dtype, rows, cols, bytes.clone()).expect("the shape is right");
                let w = builder.finish();
                (w, bytes.len() as f64 / start.elapsed().as_secs_f64())
            };
            let run = |w: &PackedWeight, rows: usize| {
                let mut x = X::new(rows, w.cols());
                let mut out = vec![0.0; rows * w.rows()];
                let input = x.input(w);
                let place = Rows { ptr: out.as_mut_ptr(), stride: w.rows() };
                seconds(|| {
                    // SAFETY: `out` and `x` have the sizes.
                    unsafe { matmul(w, 0..w.units(), input, place, Epilogue::default()) };
                    black_box(&mut out);
                })
            };
            let (large, pack) = make(32768, 2048);
            let stream = large.bytes() as f64 / run(&large, 1);
            drop(large);
            let k = if dtype.block_len() == 256 { 512 } else { 576 };
            let (small, _) = make(1536, k);
            let cached = small.bytes() as f64 / run(&small, 1);
            let (middle, _) = make(2048, 2048);
            let ops =
                |w: &PackedWeight, rows: usize| 2.0 * (w.rows() * w.cols() * rows) as f64 / run(w, rows);
            println!(
                "{:7} {:9} {:9.2} | {:17.2} {:11.2} | {:13.0} {:9.0} {:16.0}",
                dtype.name(),
                isa.name(),
                pack / 1e9,
                stream / 1e9,
                cached / 1e9,
                ops(&middle, 8) / 1e9,
                ops(&middle, 512) / 1e9,
                ops(&small, 512) / 1e9
            );
        }
    }
}
