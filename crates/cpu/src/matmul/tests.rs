//! Products against sums in f64, on every instruction set; bits, special values, epilogues.

use quarrel_formats::{Bytes, quant};

use super::*;
use crate::pack::{InputKind, PackedBuilder, tile_bytes};

/// A reproducible stream of numbers (xorshift).
pub(crate) struct Rng(u64);

impl Rng {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

const PACKED: [DType; 13] = [
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
];

/// Blocks of random bits whose scales are small numbers.
fn weights(dtype: DType, rows: usize, cols: usize, rng: &mut Rng) -> Bytes {
    let mut bytes: Vec<u8> =
        (0..dtype.row_bytes(cols).unwrap() * rows).map(|_| (rng.bits() >> 20) as u8).collect();
    let halves: &[usize] = match dtype {
        DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => &[0, 2],
        DType::Q2_K => &[80, 82],
        DType::Q3_K => &[108],
        DType::Q6_K => &[208],
        DType::F16
        | DType::Q4_0
        | DType::Q5_0
        | DType::Q8_0
        | DType::IQ4_NL
        | DType::IQ4_XS
        | DType::TQ2_0 => &[0],
        _ => &[],
    };
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        for at in halves {
            let at = if dtype == DType::TQ2_0 { 64 } else { *at };
            // Exponents from 2^-8 to 2^-1, either sign.
            block[at + 1] = block[at + 1] & 0x83 | ((7 + (rng.bits() >> 30) % 8) as u8) << 2;
        }
        match dtype {
            DType::MXFP4 => block[0] = 120 + block[0] % 12,
            DType::F32 => block.copy_from_slice(&rng.float().to_le_bytes()),
            DType::BF16 => block.copy_from_slice(&rng.float().to_le_bytes()[2..]),
            _ => {}
        }
    }
    Bytes::from(bytes)
}

fn packed(isa: Isa, dtype: DType, rows: usize, cols: usize, bytes: &Bytes) -> PackedWeight {
    let builder = PackedBuilder::new(isa, dtype, rows, cols, bytes.clone()).unwrap();
    builder.pack_next(1);
    builder.finish()
}

/// Activations, kept in both forms.
struct X {
    floats: Vec<f32>,
    rows: usize,
    blocks: Vec<XBlock>,
    isa: Isa,
    packed: Vec<f32>,
}

impl X {
    fn new(isa: Isa, mut floats: Vec<f32>, rows: usize) -> X {
        let cols = floats.len() / rows;
        let zero =
            XBlock { q: [[0; 32]; 2], scale: 0.0, scaled_sum: 0.0, scaled_half: [0.0; 2], starts: [0; 4] };
        let mut x = X { blocks: vec![zero; rows * (cols / 32)], isa, rows, floats: vec![], packed: vec![] };
        if cols.is_multiple_of(32) {
            let all = Rows { ptr: floats.as_mut_ptr(), stride: cols };
            let Input::Quantized(q) = x.quantized(cols) else { unreachable!() };
            // SAFETY: `floats` and `blocks` have these sizes.
            unsafe {
                q.quantize(all, rows / 2..rows);
                q.quantize(all, 0..rows / 2);
            }
        }
        x.floats = floats;
        x
    }

    fn quantized(&mut self, cols: usize) -> Input {
        assert_eq!(Quantized::bytes(self.rows, cols), size_of_val(&self.blocks[..]));
        // SAFETY: `blocks` has this size.
        Input::Quantized(unsafe {
            Quantized::new(self.isa, self.blocks.as_mut_ptr().cast(), self.rows, cols)
        })
    }

    fn packed(&mut self, cols: usize) -> Input {
        self.packed = vec![f32::NAN; PackedFloats::bytes(self.rows, cols) / 4];
        let ptr = self.packed.as_mut_ptr().cast();
        // SAFETY: `packed` has this size, and `floats` theirs.
        unsafe {
            let x = PackedFloats::new(self.isa, ptr, self.rows, cols);
            let rows = Rows { ptr: self.floats.as_mut_ptr(), stride: cols };
            x.pack(rows, self.rows / 2..self.rows);
            x.pack(rows, 0..self.rows / 2);
            Input::Float(x)
        }
    }

    fn input(&mut self, kind: InputKind) -> Input {
        let cols = self.floats.len() / self.rows;
        match kind {
            InputKind::Quantized => self.quantized(cols),
            InputKind::Float => self.packed(cols),
        }
    }

    /// The values that the weights see.
    fn seen(&self, kind: InputKind, row: usize) -> Vec<f64> {
        let cols = self.floats.len() / self.rows;
        match kind {
            InputKind::Float => self.floats[row * cols..][..cols].iter().map(|x| f64::from(*x)).collect(),
            InputKind::Quantized => {
                let group = row / GROUP * GROUP;
                let n = GROUP.min(self.rows - group);
                let block = |b: usize| self.blocks[group * (cols / 32) + b * n + row - group];
                (0..cols / 32)
                    .flat_map(|b| values(&block(b)).map(|q| f64::from(q) * f64::from(block(b).scale)))
                    .collect()
            }
        }
    }
}

/// The whole numbers that a block holds.
fn values(block: &XBlock) -> [i32; 32] {
    std::array::from_fn(|i| 128 * i32::from(block.q[0][i]) + i32::from(block.q[1][i]))
}

fn product(w: &PackedWeight, x: &mut X, epilogue: Epilogue<'_>) -> Vec<f32> {
    let mut out = vec![7.0; x.rows * w.rows()];
    let rows = Rows { ptr: out.as_mut_ptr(), stride: w.rows() };
    // SAFETY: `out` has the size.
    unsafe { matmul(w, 0..w.units(), x.input(w.input()), rows, epilogue) };
    out
}

fn close(got: f32, want: f64, scale: f64, what: impl Fn() -> String) {
    assert!(
        (f64::from(got) - want).abs() <= 2e-6 * scale + 1e-30,
        "{}: {got}, not {want} (of {scale})",
        what()
    );
}

#[test]
fn every_type_and_shape_is_the_sum_of_products() {
    let mut rng = Rng(1);
    let types = PACKED.into_iter().chain([DType::F32, DType::F16, DType::BF16]);
    for dtype in types {
        let columns: &[usize] = match dtype.block_len() {
            256 => &[256, 512, 768],
            32 => &[32, 64, 96, 256, 576],
            _ => &[1, 5, 16, 31, 32, 100, 256],
        };
        for isa in Isa::available() {
            for (i, cols) in columns.iter().enumerate() {
                let rows = [15, 16, 17, 33, 1, 40, 9][i];
                let bytes = weights(dtype, rows, *cols, &mut rng);
                let mut plain = vec![0.0; rows * cols];
                quant::dequantize(dtype, &bytes, &mut plain).unwrap();
                let w = packed(isa, dtype, rows, *cols, &bytes);
                assert_eq!(w.input() == InputKind::Quantized, dtype.is_quantized());
                for x_rows in [1, 2, 3, 5, 8, 9, 15, 64, 67] {
                    let x = (0..x_rows * cols).map(|_| rng.float() * 3.0).collect();
                    let mut x = X::new(isa, x, x_rows);
                    let y = product(&w, &mut x, Epilogue::default());
                    for r in 0..x_rows {
                        let seen = x.seen(w.input(), r);
                        for c in 0..rows {
                            let terms = || {
                                plain[c * cols..][..*cols].iter().zip(&seen).map(|(w, x)| f64::from(*w) * x)
                            };
                            // Types with an offset add it apart from the codes: the terms are larger than the sum shows.
                            let scale = terms().map(f64::abs).sum::<f64>()
                                + seen.iter().map(|x| x.abs()).sum::<f64>();
                            close(y[r * rows + c], terms().sum(), 4.0 * scale, || {
                                format!("{isa} {dtype} {rows}x{cols}, {x_rows} rows: row {r}, column {c}")
                            });
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn activations_are_quantised_to_the_nearest_of_32513_steps() {
    let mut rng = Rng(2);
    for isa in Isa::available() {
        for size in [1e-20f32, 1.0, 1e30] {
            let x: Vec<f32> = (0..10 * 96).map(|_| rng.float() * size).collect();
            let quantized = X::new(isa, x.clone(), 10);
            for r in 0..10 {
                let seen = quantized.seen(InputKind::Quantized, r);
                for (b, block) in x[r * 96..][..96].chunks(32).enumerate() {
                    let max = block.iter().fold(0f32, |m, x| m.max(x.abs()));
                    for (x, seen) in block.iter().zip(&seen[32 * b..]) {
                        let error = (f64::from(*x) - seen).abs();
                        assert!(error <= f64::from(max) / 16256.0 * 0.501, "{isa}: {x} became {seen}");
                    }
                }
            }
        }
        let mut blocks = X::new(isa, (0..32).map(|i| i as f32 - 20.0).collect(), 1).blocks;
        let sum: i32 = values(&blocks[0]).iter().sum();
        assert_eq!(blocks[0].scaled_sum, blocks[0].scale * sum as f32);
        blocks = X::new(isa, vec![0.0; 32], 1).blocks;
        assert_eq!((blocks[0].q, blocks[0].scale), ([[0; 32]; 2], 0.0));
    }
}

#[test]
fn bits_do_not_depend_on_rows_units_or_order() {
    let mut rng = Rng(3);
    for dtype in PACKED.into_iter().chain([DType::F32, DType::F16, DType::BF16, DType::TQ2_0]) {
        for isa in Isa::available() {
            let (rows, cols) = (70, if dtype.block_len() == 1 { 300 } else { 512 });
            let bytes = weights(dtype, rows, cols, &mut rng);
            let w = packed(isa, dtype, rows, cols, &bytes);
            let x: Vec<f32> = (0..64 * cols).map(|_| rng.float()).collect();
            let all = product(&w, &mut X::new(isa, x.clone(), 64), Epilogue::default());
            assert!(all.iter().all(|y| y.is_finite()), "{isa} {dtype}");
            for n in [1, 2, 3, 7, 8, 13] {
                for first in [0, 5, 64 - n] {
                    let mut some = X::new(isa, x[first * cols..(first + n) * cols].to_vec(), n);
                    let mut out = vec![0.0; n * rows];
                    let place = Rows { ptr: out.as_mut_ptr(), stride: rows };
                    for units in [3..5, 0..1, 1..3] {
                        // SAFETY: `out` has the size.
                        unsafe { matmul(&w, units, some.input(w.input()), place, Epilogue::default()) };
                    }
                    let want = &all[first * rows..(first + n) * rows];
                    let same = out.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{isa} {dtype}: rows {first}..{}", first + n);
                }
            }
        }
    }
}

#[test]
fn sums_of_floats_do_not_depend_on_the_instruction_set_beyond_its_fma() {
    let mut rng = Rng(9);
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::TQ2_0] {
        for (rows, cols) in [(40, 512), (16, 300), (5, 7), (33, 16), (1, 1000)] {
            let cols = if dtype.is_quantized() { 512 } else { cols };
            let bytes = weights(dtype, rows, cols, &mut rng);
            let x: Vec<f32> = (0..127 * cols).map(|_| rng.float()).collect();
            let all: Vec<Vec<f32>> = Isa::available()
                .into_iter()
                .filter(|isa| *isa != Isa::PORTABLE)
                .map(|isa| {
                    let w = packed(isa, dtype, rows, cols, &bytes);
                    product(&w, &mut X::new(isa, x.clone(), 127), Epilogue::default())
                })
                .collect();
            assert!(all.windows(2).all(|w| w[0] == w[1]), "{dtype} {rows}x{cols}");
        }
    }
}

#[test]
fn a_gate_of_floats_is_the_product_of_both() {
    let mut rng = Rng(10);
    for isa in Isa::available() {
        let make = |rng: &mut Rng| packed(isa, DType::F16, 55, 96, &weights(DType::F16, 55, 96, rng));
        let (gate, up) = (make(&mut rng), make(&mut rng));
        let mut x = X::new(isa, (0..114 * 96).map(|_| rng.float()).collect(), 114);
        let [g, u] = [&gate, &up].map(|w| product(w, &mut x, Epilogue::default()));
        let mut out = vec![0.0; 114 * 55];
        let place = Rows { ptr: out.as_mut_ptr(), stride: 55 };
        // SAFETY: `out` has the size.
        unsafe {
            matmul_glu(
                Side::new(&gate),
                Side::new(&up),
                0..4,
                x.input(InputKind::Float),
                place,
                Activation::Relu,
            )
        };
        let want: Vec<f32> = g.iter().zip(&u).map(|(g, u)| g.max(0.0) * u).collect();
        assert_eq!(out, want, "{isa}");
        assert!(out.iter().any(|y| *y != 0.0));
    }
}

#[test]
fn rare_types_are_decoded() {
    let mut rng = Rng(4);
    for isa in Isa::available() {
        let bytes = weights(DType::TQ2_0, 17, 512, &mut rng);
        let mut plain = vec![0.0; 17 * 512];
        quant::dequantize(DType::TQ2_0, &bytes, &mut plain).unwrap();
        let w = packed(isa, DType::TQ2_0, 17, 512, &bytes);
        let as_f32 = packed(isa, DType::F32, 17, 512, &Bytes::from(bytemuck::cast_slice(&plain).to_vec()));
        let x: Vec<f32> = (0..3 * 512).map(|_| rng.float()).collect();
        let mut x = X::new(isa, x, 3);
        assert_eq!(product(&w, &mut x, Epilogue::default()), product(&as_f32, &mut x, Epilogue::default()));
    }
}

#[test]
fn what_is_not_a_number_stays_so() {
    let mut rng = Rng(5);
    for dtype in PACKED.into_iter().chain([DType::F32, DType::F16]) {
        for isa in Isa::available() {
            let w = packed(isa, dtype, 20, 256, &weights(dtype, 20, 256, &mut rng));
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = vec![0.5; 3 * 256];
                x[256 + 77] = bad;
                let y = product(&w, &mut X::new(isa, x, 3), Epilogue::default());
                for (c, y) in y.iter().enumerate() {
                    assert_eq!(y.is_finite(), c / 20 != 1, "{isa} {dtype}: {bad} gave {y} in row {}", c / 20);
                }
            }
            // Extreme but finite activations do no harm.
            let extremes = [0.0, -0.0, 1e-45, -1e-38, 1e30, -1e30, 3.0, 1e-10];
            let x = (0..256).map(|i| extremes[i % 8]).collect();
            let y = product(&w, &mut X::new(isa, x, 1), Epilogue::default());
            assert!(y.iter().all(|y| y.is_finite()), "{isa} {dtype}: {y:?}");
        }
    }
    // A scale that is no number in the file.
    let mut bytes = weights(DType::Q4_0, 20, 64, &mut rng).to_vec();
    bytes[36 * 4 + 1] = 0x7e;
    for isa in Isa::available() {
        let w = packed(isa, DType::Q4_0, 20, 64, &Bytes::from(bytes.clone()));
        let y = product(&w, &mut X::new(isa, vec![1.0; 64], 1), Epilogue::default());
        assert!(y.iter().enumerate().all(|(c, y)| y.is_nan() == (c == 4)));
    }
}

#[test]
fn the_largest_codes_and_activations_do_not_overflow() {
    for dtype in PACKED {
        for byte in [0x00, 0x80, 0xff, 0xf0, 0x0f, 0x88] {
            let cols = dtype.block_len().max(64);
            let mut bytes = vec![byte; dtype.row_bytes(cols).unwrap() * 16];
            let mut rng = Rng(6);
            let patched = weights(dtype, 16, cols, &mut rng);
            // Keep sane scales: take the scale fields of the random matrix, where its setter writes them.
            for (at, b) in bytes.iter_mut().enumerate() {
                let i = at % dtype.block_bytes();
                let scale = match dtype {
                    DType::Q4_1 | DType::Q5_1 | DType::Q4_K | DType::Q5_K => i < 4,
                    DType::Q2_K => i >= 80,
                    DType::Q3_K => i >= 108,
                    DType::Q6_K => i >= 208,
                    DType::MXFP4 => i == 0,
                    _ => i < 2,
                };
                if scale {
                    *b = patched[at];
                }
            }
            let bytes = Bytes::from(bytes);
            let mut plain = vec![0.0; 16 * cols];
            quant::dequantize(dtype, &bytes, &mut plain).unwrap();
            for isa in Isa::available() {
                let w = packed(isa, dtype, 16, cols, &bytes);
                for pattern in [[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]] {
                    let mut x = X::new(isa, (0..cols).map(|k| pattern[k % 2]).collect(), 1);
                    let y = product(&w, &mut x, Epilogue::default());
                    let seen = x.seen(InputKind::Quantized, 0);
                    for c in 0..16 {
                        let terms =
                            || plain[c * cols..][..cols].iter().zip(&seen).map(|(w, x)| f64::from(*w) * x);
                        let scale = terms().map(f64::abs).sum::<f64>() + 10.0 * cols as f64;
                        close(y[c], terms().sum(), scale, || format!("{isa} {dtype} {byte:#x}"));
                    }
                }
            }
        }
    }
}

#[test]
fn epilogues_are_what_separate_operations_would_give() {
    struct Act(Activation, Vec<f32>);
    impl Kernel for Act {
        type Out = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Vec<f32> {
            let mut y = self.1;
            for part in y.chunks_mut(UNIT) {
                self.0.apply(s.load_partial(part, 0.0)).store_partial(part);
            }
            y
        }
    }
    let mut rng = Rng(7);
    for isa in Isa::available() {
        let (rows, cols, n) = (37, 256, 11);
        let make = |dtype, rng: &mut Rng| packed(isa, dtype, rows, cols, &weights(dtype, rows, cols, rng));
        let (gate, up) = (make(DType::Q4_K, &mut rng), make(DType::Q8_0, &mut rng));
        let mut x = X::new(isa, (0..n * cols).map(|_| rng.float() * 0.1).collect(), n);
        let bias: Vec<f32> = (0..rows).map(|_| rng.float()).collect();
        let add: Vec<f32> = (0..n * rows).map(|_| rng.float()).collect();
        let (g, u) = (product(&gate, &mut x, Epilogue::default()), product(&up, &mut x, Epilogue::default()));

        // The residual may be the output itself.
        let mut out = add.clone();
        let place = Rows { ptr: out.as_mut_ptr(), stride: rows };
        let epilogue = Epilogue { bias: Some(&bias), delta: None, add: Some(place) };
        // SAFETY: `out` has the size.
        unsafe { matmul(&gate, 0..3, x.input(InputKind::Quantized), place, epilogue) };
        for i in 0..n * rows {
            assert_eq!(out[i].to_bits(), (add[i] + (g[i] + bias[i % rows])).to_bits(), "{isa}");
        }

        for act in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf, Activation::Relu] {
            let mut out = vec![0.0; n * rows];
            let place = Rows { ptr: out.as_mut_ptr(), stride: rows };
            // SAFETY: `out` has the size.
            unsafe {
                let up = Side { bias: Some(&bias), ..Side::new(&up) };
                matmul_glu(Side::new(&gate), up, 0..3, x.input(InputKind::Quantized), place, act)
            };
            let g = isa.run(Act(act, g.clone()));
            for i in 0..n * rows {
                assert_eq!(out[i].to_bits(), (g[i] * (u[i] + bias[i % rows])).to_bits(), "{isa} {act:?}");
            }
        }
    }
}

#[test]
fn wrong_sizes_are_refused_and_threads_share_the_packing() {
    let mut rng = Rng(8);
    let bytes = weights(DType::Q4_0, 100, 64, &mut rng);
    for (rows, cols) in [(99, 64), (100, 32), (100, 65), (usize::MAX, 64)] {
        assert!(PackedBuilder::new(Isa::detect(), DType::Q4_0, rows, cols, bytes.clone()).is_err());
    }
    let one = packed(Isa::detect(), DType::Q4_0, 100, 64, &bytes);
    let builder = PackedBuilder::new(Isa::detect(), DType::Q4_0, 100, 64, bytes.clone()).unwrap();
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| while builder.pack_next(1) {});
        }
    });
    let mut x = X::new(Isa::detect(), (0..64).map(|_| rng.float()).collect(), 1);
    let many = product(&builder.finish(), &mut x, Epilogue::default());
    assert_eq!(many, product(&one, &mut x, Epilogue::default()));
}

#[test]
fn every_instruction_set_packs_the_same_codes_and_scales() {
    let mut rng = Rng(11);
    for dtype in PACKED {
        let bytes = weights(dtype, 45, 768, &mut rng);
        let tiles = |isa| {
            let w = packed(isa, dtype, 45, 768, &bytes);
            let (kernel, first, n) = w.tiles(0..w.units()).unwrap();
            let (kernel, (codes, scales)) = (*kernel, tile_bytes(kernel, w.blocks()));
            let tiles = (0..n).map(|i| first.nth(i));
            // SAFETY: the two parts of a tile have these sizes.
            let read = |t: crate::pack::Tile| unsafe {
                let parts = [(t.codes, codes), (t.scales, scales)];
                parts.map(|(p, n)| std::slice::from_raw_parts(p, n).to_vec())
            };
            let xor = matches!(dtype, DType::Q8_0).then_some(if kernel.lanes == 16 { 0x80 } else { 0 });
            (kernel, xor.unwrap_or(0), tiles.map(read).collect::<Vec<_>>())
        };
        let (kernel, _, plain) = tiles(Isa::PORTABLE);
        for isa in Isa::available() {
            let (k, xor, got) = tiles(isa);
            // A tile of 16 columns is two of 8, interleaved by fields: a code's word, a factor, a byte.
            let n = k.lanes / kernel.lanes;
            let whole = dtype.block_len() / 32 * 32;
            let small = k.scale_bytes - if kernel.scale_bytes % 4 == 2 { 2 } else { 4 }.min(k.scale_bytes);
            for (i, [codes, scales]) in got.iter().enumerate() {
                let part = &plain[i * n..][..n];
                for (at, byte) in codes.iter().enumerate() {
                    let (field, lane) = (at / (4 * k.lanes), at / 4 % k.lanes);
                    let want = &part[lane / kernel.lanes][0];
                    let want = want[(field * kernel.lanes + lane % kernel.lanes) * 4 + at % 4];
                    assert_eq!(byte ^ xor, want, "{isa} {dtype}: tile {i}, byte {at} of the codes");
                }
                let groups = 768 / whole;
                for g in 0..groups {
                    for f in 0..k.scale_bytes {
                        // Halves first: two bytes each of all columns.
                        let halves = k.scale_bytes - small;
                        for lane in 0..k.lanes {
                            let place = |l: usize, lane: usize| {
                                let start = g * k.scale_bytes * l;
                                if f < halves {
                                    start + (f / 2 * l + lane) * 2 + f % 2
                                } else {
                                    start + f * l + lane
                                }
                            };
                            let want = &part[lane / kernel.lanes][1];
                            let want = want[place(kernel.lanes, lane % kernel.lanes)];
                            let byte = scales[place(k.lanes, lane)];
                            assert_eq!(byte, want, "{isa} {dtype}: tile {i}, group {g}, scale byte {f}");
                        }
                    }
                }
            }
        }
    }
}
