//! Which instructions are the fastest here. The widest are not on every processor: some lower their clock for them, some
//! run them in two halves. What is measured are the products themselves, a few milliseconds of each.

use crate::{
    Isa,
    matmul::{Epilogue, Input, Line, Quantized, Rows, matmul, room},
    pack::PackedBuilder,
};
use quarrel_formats::{Bytes, DType};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Output and input columns of the matrix: beyond the second cache of a core, so that it is streamed.
const SHAPE: (usize, usize) = (4096, 2048);
/// Rows of a prompt's product, and the share of the matrix that it takes.
const PROMPT: (usize, usize) = (64, 8);
/// Rounds, of which each figure is the best; no round is begun after `LIMIT`.
const ROUNDS: usize = 6;
const LIMIT: Duration = Duration::from_millis(40);
/// Within this share the wider instructions win: a measurement of milliseconds is no better.
const TIE: f64 = 0.05;

/// The speed of each instruction set in products of numbers, in 1e9 per second on one thread: the geometric mean of decoding
/// (a row times a matrix of Q4_K, counted twice) and of a prompt (64 rows). Best instructions first; portable code is left
/// out where there is anything else, being several times slower. Takes less than 60 ms.
pub fn measure() -> Vec<(Isa, f64)> {
    let start = Instant::now();
    let mut all = Isa::available();
    if all.len() > 1 {
        all.retain(|isa| *isa != Isa::PORTABLE);
    }
    // All scales are the half-precision number 0x2c2c, a small one.
    let bytes = DType::Q4_K.row_bytes(SHAPE.1).unwrap_or(0) * SHAPE.0;
    let source = Bytes::from(vec![0x2c; bytes]);
    let mut tried: Vec<Try> = all.into_iter().filter_map(|isa| Try::new(isa, source.clone())).collect();
    for round in 0..ROUNDS {
        if round > 0 && start.elapsed() > LIMIT {
            break;
        }
        tried.iter_mut().for_each(Try::round);
    }
    tried.iter().map(|t| (t.weight.isa(), t.score())).collect()
}

/// The fastest; of those within 5 % of it the first, which is the widest in the order of [`Isa::available`]. Portable code
/// where nothing was measured.
pub fn pick(scores: &[(Isa, f64)]) -> Isa {
    let best = scores.iter().map(|s| s.1).fold(0.0, f64::max);
    let close = |s: &&(Isa, f64)| s.1 >= best * (1.0 - TIE);
    scores.iter().find(close).map_or(Isa::PORTABLE, |s| s.0)
}

/// One instruction set with its weight, and its best rates in products per second.
struct Try {
    weight: crate::pack::PackedWeight,
    x: Vec<f32>,
    memory: Vec<Line>,
    out: Vec<f32>,
    decode: f64,
    prompt: f64,
}

impl Try {
    fn new(isa: Isa, source: Bytes) -> Option<Try> {
        let weight = PackedBuilder::new(isa, DType::Q4_K, SHAPE.0, SHAPE.1, source).ok()?.finish();
        let rows = PROMPT.0;
        Some(Try {
            weight,
            x: (0..rows * SHAPE.1).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect(),
            memory: Vec::new(),
            out: vec![0.0; rows * SHAPE.0],
            decode: 0.0,
            prompt: 0.0,
        })
    }

    fn round(&mut self) {
        let units = self.weight.units();
        self.decode = self.decode.max(self.rate(1, units));
        self.prompt = self.prompt.max(self.rate(PROMPT.0, units / PROMPT.1));
    }

    /// Products per second of so many rows and units.
    fn rate(&mut self, rows: usize, units: usize) -> f64 {
        let from = Rows { ptr: self.x.as_mut_ptr(), stride: SHAPE.1 };
        let place = Rows { ptr: self.out.as_mut_ptr(), stride: SHAPE.0 };
        let memory = room(&mut self.memory, Quantized::bytes(rows, SHAPE.1));
        // SAFETY: `memory` has room for the rows, `x` and `out` for those of a prompt, which are the most there are.
        let start = unsafe {
            let input = Quantized::new(self.weight.isa(), memory, rows, SHAPE.1);
            input.quantize(from, 0..rows);
            let start = Instant::now();
            matmul(&self.weight, 0..units, Input::Quantized(input), place, Epilogue::default());
            start
        };
        let seconds = start.elapsed().as_secs_f64().max(1e-9);
        black_box(&mut self.out);
        (rows * units * crate::matmul::UNIT * SHAPE.1) as f64 / seconds
    }

    fn score(&self) -> f64 {
        (self.decode * self.decode * self.prompt).cbrt() / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_is_taken_and_a_tie_goes_to_the_first() {
        let all = Isa::available();
        let (first, last) = (all[0], *all.last().unwrap());
        for (a, b, wanted) in
            [(100.0, 50.0, first), (100.0, 104.9, first), (100.0, 106.0, last), (50.0, 100.0, last)]
        {
            assert_eq!(pick(&[(first, a), (last, b)]), wanted, "{a} {b}");
        }
        assert_eq!(pick(&[(first, 3.0)]), first);
        assert_eq!(pick(&[]), Isa::PORTABLE);
    }

    #[test]
    fn all_but_portable_are_measured() {
        let scores = measure();
        let mut wanted = Isa::available();
        if wanted.len() > 1 {
            wanted.pop();
        }
        assert_eq!(scores.iter().map(|s| s.0).collect::<Vec<_>>(), wanted);
        assert!(scores.iter().all(|s| s.1.is_finite() && s.1 > 0.0), "{scores:?}");
    }
}
