//! The attention weights of observed rows, added up per token: a pass of its own behind attention, which it leaves alone.
//!
//! A row's weights are computed as if it were alone, and rows are added in their order, so the sums are the same on any
//! number of threads and however a prompt was cut.

use super::attention::{Span, with_sink};
use super::bias::{Bias, biased};
use super::elementwise::softcap;
use crate::kv::codes::{self, Codes, GROUP, LINE, Part, Q4, Q8, SCALES};
use crate::kv::{Element, KvHead, Stored};
use crate::simd::{F32x16, Kernel, LANES, Simd, f16_to_f32};
use quarrel_ir::{AttendSpec, BLOCK_TOKENS, alibi_slope};
use std::marker::PhantomData;

/// Rows that share one reading of the keys.
pub(crate) const ROWS: usize = 8;

/// The sums of one head: 16 for each page of the sequence, `stride` elements from page to page.
#[derive(Clone, Copy)]
pub(crate) struct Sums {
    pub(crate) base: *mut f32,
    pub(crate) stride: usize,
    pub(crate) pages: usize,
}

/// Scratch of one thread.
#[derive(Default)]
pub(crate) struct Scratch {
    /// A page of keys, `[head_dim][16]`.
    keys: Vec<f32>,
    /// Query vectors of all rows.
    queries: Vec<f32>,
    /// `[vector][token]`.
    scores: Vec<f32>,
}

/// How a page of keys is read as a matrix.
pub(crate) trait ReadKeys: Stored {
    /// Writes `[head_dim][16]`, rotated if they are stored so.
    fn read_keys<S: Simd>(s: S, page: &[u8], keys: &mut [f32]);
}

impl<E: Element> ReadKeys for E {
    #[inline(always)]
    fn read_keys<S: Simd>(s: S, page: &[u8], keys: &mut [f32]) {
        let row = LANES * size_of::<E>();
        for (row, keys) in page.chunks_exact(row).zip(keys.chunks_exact_mut(LANES)) {
            // SAFETY: 16 numbers; a load need not be aligned.
            unsafe { E::load_ptr(s, row.as_ptr().cast()) }.store(keys);
        }
    }
}

impl ReadKeys for Q8 {
    #[inline(always)]
    fn read_keys<S: Simd>(_: S, page: &[u8], keys: &mut [f32]) {
        read_codes::<Q8>(page, keys)
    }
}

impl ReadKeys for Q4 {
    #[inline(always)]
    fn read_keys<S: Simd>(_: S, page: &[u8], keys: &mut [f32]) {
        read_codes::<Q4>(page, keys)
    }
}

/// Keys in codes: a line has a word per token, whose bytes (and then their upper halves) are columns.
#[inline(always)]
fn read_codes<C: Codes>(page: &[u8], keys: &mut [f32]) {
    let columns = 32 / C::BITS;
    let (lines, scales) = page.split_at(Part::Keys.lines::<C>(keys.len() / LANES) * LINE);
    for (i, (line, keys)) in lines.chunks_exact(LINE).zip(keys.chunks_mut(columns * LANES)).enumerate() {
        let at = i * columns / GROUP * SCALES;
        let scale: [f32; LANES] = std::array::from_fn(|t| {
            f16_to_f32(u16::from_le_bytes([scales[at + 2 * t], scales[at + 2 * t + 1]]))
        });
        let words: [u32; LANES] =
            std::array::from_fn(|t| u32::from_le_bytes(std::array::from_fn(|b| line[4 * t + b])));
        for (column, key) in keys.chunks_exact_mut(LANES).enumerate() {
            let shift = 8 * (column % 4) + 4 * (column / 4);
            for t in 0..LANES {
                let code = words[t] >> shift & ((1 << C::BITS) - 1);
                key[t] = (code as i32 - C::CENTRE) as f32 * scale[t];
            }
        }
    }
}

/// Adds the weights of up to [`ROWS`] rows for one key head; a row is the vectors of the head's queries, and what it sees.
pub(crate) struct Observed<'a, T> {
    pub(crate) spec: &'a AttendSpec,
    pub(crate) kv: KvHead<'a>,
    /// The first query head of the key head.
    pub(crate) first: usize,
    /// The scores of all heads' sinks; empty without.
    pub(crate) sinks: &'a [f32],
    pub(crate) rows: &'a [(&'a [f32], Span)],
    pub(crate) sums: Sums,
    pub(crate) scratch: &'a mut Scratch,
    pub(crate) stored: PhantomData<T>,
}

impl<T: ReadKeys> Kernel for Observed<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (head_dim, group) =
            (self.spec.head_dim as usize, (self.spec.heads / self.spec.kv_heads) as usize);
        let Scratch { keys, queries, scores } = self.scratch;
        queries.clear();
        self.rows.iter().for_each(|(q, _)| queries.extend_from_slice(q));
        if T::ROTATED {
            codes::rotate(s, queries, head_dim);
        }
        let first = self.rows.iter().map(|r| r.1.0).min().unwrap_or(0) / BLOCK_TOKENS;
        let end = self.rows.iter().map(|r| r.1.1).max().unwrap_or(0).div_ceil(BLOCK_TOKENS);
        let width = (end - first) * BLOCK_TOKENS;
        keys.resize(head_dim * BLOCK_TOKENS, 0.0);
        scores.resize(self.rows.len() * group * width, 0.0);
        for page in first..end {
            let (at, bytes) = self.kv.keys(page);
            // SAFETY: a page of the head's keys, which nothing writes now: a barrier lies behind `StoreKv`.
            let stored = unsafe { std::slice::from_raw_parts(at, bytes) };
            T::read_keys(s, stored, keys);
            let mut v = 0;
            while v < self.rows.len() * group {
                let (q, out) = (&queries[v * head_dim..], &mut scores[v * width + (page - first) * LANES..]);
                v += match self.rows.len() * group - v {
                    1 => dots::<S, 1>(s, keys, q, out, width),
                    2 => dots::<S, 2>(s, keys, q, out, width),
                    3 => dots::<S, 3>(s, keys, q, out, width),
                    _ => dots::<S, 4>(s, keys, q, out, width),
                };
            }
        }
        for ((_, span), scores) in self.rows.iter().zip(scores.chunks_exact_mut(group * width)) {
            // Pages that a neighbour sees and this row does not are nobody's here: their scores may be NaN.
            let pages = span.0 / BLOCK_TOKENS..span.1.div_ceil(BLOCK_TOKENS);
            let own = (pages.start - first) * LANES..(pages.end - first) * LANES;
            for (h, scores) in scores.chunks_exact_mut(width).enumerate() {
                let h = self.first + h;
                let slope = self.spec.alibi.map(|max| alibi_slope(max, self.spec.heads, h as u32));
                let head = Head {
                    bias: slope.map(|s| Bias::Slope(s, span.1 - 1)),
                    sink: self.sinks.get(h).copied(),
                };
                soften(
                    s,
                    self.spec,
                    *span,
                    head,
                    pages.start * BLOCK_TOKENS,
                    &mut scores[own.clone()],
                    group,
                );
            }
            assert!(pages.end <= self.sums.pages);
            for page in pages {
                // SAFETY: a page of the sums of this head, which are this thread's.
                let sum = unsafe {
                    std::slice::from_raw_parts_mut(self.sums.base.add(page * self.sums.stride), LANES)
                };
                let mut all = s.zero();
                for scores in scores.chunks_exact(width) {
                    all = all + s.load(&scores[(page - first) * LANES..]);
                }
                (s.load(sum) + all).store(sum);
            }
        }
    }
}

/// Dot products of `R` vectors with a page of keys, each to a row of `out`; returns `R`.
#[inline(always)]
fn dots<S: Simd, const R: usize>(s: S, keys: &[f32], q: &[f32], out: &mut [f32], width: usize) -> usize {
    let head_dim = keys.len() / LANES;
    let mut acc = [s.zero(); R];
    let q: [&[f32]; R] = std::array::from_fn(|r| &q[r * head_dim..][..head_dim]);
    for (d, key) in keys.chunks_exact(LANES).enumerate() {
        let key = s.load(key);
        for r in 0..R {
            acc[r] = s.splat(q[r][d]).fma(key, acc[r]);
        }
    }
    for r in 0..R {
        acc[r].store(&mut out[r * width..]);
    }
    R
}

/// What is a query head's own.
struct Head {
    bias: Option<Bias<'static>>,
    sink: Option<f32>,
}

/// Turns dot products, of which the first is that of position `first`, into weights that add up to `1 / group`.
#[inline(always)]
fn soften<S: Simd>(
    s: S,
    spec: &AttendSpec,
    span: Span,
    head: Head,
    first: usize,
    row: &mut [f32],
    group: usize,
) {
    let index: [f32; LANES] = std::array::from_fn(|i| i as f32);
    let (index, none) = (s.load(&index), s.splat(f32::NEG_INFINITY));
    let mut top = none;
    for (page, x) in row.chunks_exact_mut(LANES).enumerate() {
        let at = first + page * LANES;
        let mut score = s.load(x) * s.splat(spec.scale);
        if let Some(cap) = spec.softcap {
            score = softcap(cap, score);
        }
        score = biased(s, head.bias, at, score);
        if span.0 > at || span.1 < at + LANES {
            score = index.select_lt(s.splat(span.1.saturating_sub(at) as f32), score, none);
            score = index.select_lt(s.splat(span.0.saturating_sub(at) as f32), none, score);
        }
        // A NaN is lost here and comes back in the sum.
        top = score.max(top);
        score.store(x);
    }
    let top = top.largest();
    let max = s.splat(top);
    let mut sum = s.zero();
    for x in row.chunks_exact_mut(LANES) {
        let e = (s.load(x) - max).exp();
        sum = sum + e;
        e.store(x);
    }
    let (weight, total) = match head.sink {
        Some(sink) => with_sink(s, top, sum.sum(), sink),
        None => (1.0, sum.sum()),
    };
    let factor = s.splat(weight / (total * group as f32));
    row.chunks_exact_mut(LANES).for_each(|x| (s.load(x) * factor).store(x));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{KvType, by_type};
    use crate::simd::Isa;

    /// Stores 16 keys and reads them back one by one and as a matrix.
    struct Both<'a, T>(&'a [Vec<f32>], PhantomData<T>);

    impl<T: ReadKeys> Kernel for Both<'_, T> {
        type Out = (Vec<f32>, Vec<f32>);

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> Self::Out {
            let dim = self.0[0].len();
            // As many whole numbers as any type needs, and so aligned.
            let mut page = vec![0u32; dim.next_multiple_of(64) * BLOCK_TOKENS];
            let (mut singly, mut keys) = (vec![0.0; dim * LANES], vec![0.0; dim * LANES]);
            let bytes = size_of_val(&page[..]);
            for (token, key) in self.0.iter().enumerate() {
                // SAFETY: the page is large enough for any type.
                unsafe { T::store(s, Part::Keys, token, key, page.as_mut_ptr().cast()) };
            }
            // SAFETY: the bytes of `page`.
            let page = unsafe { std::slice::from_raw_parts(page.as_ptr().cast::<u8>(), bytes) };
            let mut key = vec![0.0; dim];
            for token in 0..LANES {
                T::read(Part::Keys, token, page, &mut key);
                (0..dim).for_each(|d| singly[d * LANES + token] = key[d]);
            }
            T::read_keys(s, page, &mut keys);
            (singly, keys)
        }
    }

    #[test]
    fn a_page_of_keys_is_read_as_its_tokens_are() {
        for dim in [4, 20, 33, 64, 80, 128] {
            let keys: Vec<Vec<f32>> = (0..LANES)
                .map(|t| (0..dim).map(|d| ((t * 37 + d * 11) % 101) as f32 / 7.0 - 7.0).collect())
                .collect();
            for isa in Isa::available() {
                for kind in KvType::ALL {
                    let (singly, all) = by_type!(kind, T, isa.run(Both::<T>(&keys, PhantomData)));
                    assert_eq!(singly, all, "{kind:?} of {dim} columns, {isa}");
                    assert!((all[LANES + 3] - keys[3][1]).abs() < 1.0, "{kind:?} of {dim} columns");
                }
            }
        }
    }
}
