//! Attention over a cache of codes: dot products of whole numbers, which are exact in any order.
//!
//! Queries become 15 bits and a sign, one scale for a head; a score is the sum over groups of 32 columns of key scale times
//! whole product. In a chunk each row's softmax weights, times the scales of the values of a group of columns, become 15 bits
//! and a sign relative to the largest, and the values' codes are summed with them: 128 tokens fit in a word of 32 bits. What
//! a row does not see has a weight of zero, so its bits depend on what it sees alone, as with floats.

use super::attention::{
    BLOCKS, CHUNK, MOST, Pages, Queries as Taken, Scratch, Soften, Span, WIDE, by_size, group_size, reset,
    seen, state_len,
};
use crate::kv::codes::{Codes, GROUP, LINE, Part, SCALES, rotate};
use crate::kv::{KvHead, prefetch};
use crate::simd::{F32x16, Isa, Kernel, LANES, Simd};
use quarrel_ir::{AttendSpec, BLOCK_TOKENS};
use std::marker::PhantomData;
use std::ops::Range;

/// The largest whole number of a query or weight.
const TOP: f32 = 32767.0;

/// Columns of a query: whole lines of keys of 4 bits.
fn columns(head_dim: usize) -> usize {
    head_dim.next_multiple_of(8)
}

/// Query vectors, rotated, as whole numbers.
#[derive(Default)]
pub(crate) struct Queries {
    /// Groups of vectors in turn, each `[columns / 2][vectors]`, two columns a word: of each four the even, then the odd ones.
    words: Vec<i32>,
    /// Of each vector.
    scales: Vec<f32>,
    /// Groups of vectors in turn, each `[groups of columns][vectors]`: minus the sum of the numbers.
    starts: Vec<i32>,
    turned: Vec<f32>,
}

impl Queries {
    /// Takes the columns of the key heads `kv_heads` from `rows`, `n` vectors of each.
    pub(super) fn pack<'a>(
        &mut self,
        isa: Isa,
        spec: &AttendSpec,
        kv_heads: Range<usize>,
        rows: impl Iterator<Item = &'a [f32]> + Clone,
        n: usize,
    ) {
        let (dim, heads) = (spec.head_dim as usize, (spec.heads / spec.kv_heads) as usize);
        let (words, groups) = (columns(dim) / 2, dim.div_ceil(GROUP));
        let all = n * kv_heads.len();
        self.words.resize(all * words, 0);
        self.scales.resize(all, 0.0);
        self.starts.resize(all * groups, 0);
        for (i, head) in kv_heads.enumerate() {
            let columns = head * heads * dim..(head + 1) * heads * dim;
            let vectors = rows.clone().flat_map(|row| row[columns.clone()].chunks_exact(dim));
            for (j, x) in vectors.enumerate() {
                // The group of vectors, its size, and the place in it.
                let (mut first, mut size) = (0, group_size(isa, n));
                while j >= first + size {
                    first += size;
                    size = group_size(isa, n - first);
                }
                let (at, stride) = (i * n + first, size);
                let (offset, starts) = (at * words + j - first, at * groups + j - first);
                self.turned.clear();
                self.turned.extend_from_slice(x);
                self.scales[i * n + j] = isa.run(Code {
                    x: &mut self.turned,
                    dim,
                    words: &mut self.words[offset..],
                    starts: &mut self.starts[starts..],
                    stride,
                });
            }
        }
    }
}

/// Makes whole numbers of one query vector: every `stride`th word and start. Returns the scale.
struct Code<'a> {
    x: &'a mut Vec<f32>,
    dim: usize,
    words: &'a mut [i32],
    starts: &'a mut [i32],
    stride: usize,
}

impl Kernel for Code<'_> {
    type Out = f32;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let Code { x, dim, words, starts, stride } = self;
        rotate(s, x, dim);
        x.resize(dim.next_multiple_of(LANES), 0.0);
        let (mut top, mut all) = (s.zero(), s.zero());
        for x in x.chunks_exact(LANES) {
            let x = s.load(x);
            top = top.max(x.abs());
            all = all + x;
        }
        // NaN where one of the numbers is, or infinite.
        let (top, wrong) = (top.largest(), all.sum() * 0.0);
        let by = s.splat(if top > TINY { TOP / top } else { 0.0 });
        let ones = s.words(0x0001_0001);
        for (group, x) in x.chunks(GROUP).enumerate() {
            let mut sum = s.words(0);
            for (i, x) in x.chunks_exact(LANES).enumerate() {
                let pairs = s.pair_up(s.round_to_words(s.load(x) * by));
                sum = s.dot_halves(sum, pairs, ones);
                let first = (group * GROUP + i * LANES) / 2;
                let pairs = s.to_words(pairs);
                let pairs = pairs.chunks_exact(4).flat_map(|p| &p[..2]);
                for (word, pair) in words.iter_mut().skip(first * stride).step_by(stride).zip(pairs) {
                    *word = *pair;
                }
            }
            // Each number is in two words.
            starts[group * stride] = -(s.to_floats(sum).sum() as i32 / 2);
        }
        top / TOP + wrong
    }
}

/// Numbers whose largest is not above this are taken as zero: one over it is still a number.
const TINY: f32 = 1e-30;

/// The weights of one group of vectors for one group of columns.
pub(super) struct Weights {
    products: [[f32; CHUNK]; MOST],
    /// As whole numbers, in pairs: of each four words the first two count.
    words: [[i32; CHUNK]; MOST],
    /// Minus the sum of the numbers.
    starts: [i32; MOST],
    factors: [f32; MOST],
}

impl Default for Weights {
    fn default() -> Self {
        Weights {
            products: [[0.0; CHUNK]; MOST],
            words: [[0; CHUNK]; MOST],
            starts: [0; MOST],
            factors: [0.0; MOST],
        }
    }
}

/// As [`super::attention::Cached::chunk`] says.
///
/// # Safety
/// As there.
pub(super) unsafe fn chunk<C: Codes>(
    isa: Isa,
    spec: &AttendSpec,
    kv: KvHead,
    (queries, taken): (&Taken, usize),
    chunk: usize,
    next: Option<(KvHead, usize)>,
    scratch: &mut Scratch,
    parts: &mut [f32],
) {
    let (start, end) = (chunk * CHUNK, (chunk + 1) * CHUNK);
    let (len, dim, v_dim) = (state_len(spec), spec.head_dim as usize, spec.v_dim as usize);
    reset(parts, len);
    let spans = &queries.spans;
    let n = spans.len();
    let (words, groups) = (columns(dim) / 2, dim.div_ceil(GROUP));
    let last = spans.iter().map(|s| s.1).max().unwrap_or(0);
    let [mut keys, mut values, mut next_keys, none] = [const { Pages::<u8>::none() }; 4];
    keys.keys(kv, chunk, last);
    values.values(kv, chunk, last);
    if let Some((kv, chunk)) = next {
        next_keys.keys(kv, chunk, usize::MAX);
    }
    let mut ahead = &next_keys;
    let mut at = 0;
    while at < n {
        let size = group_size(isa, n - at);
        let first = taken * n + at;
        let group = Group {
            words: &queries.codes.words[first * words..(first + size) * words],
            scales: &queries.codes.scales[first..first + size],
            starts: &queries.codes.starts[first * groups..(first + size) * groups],
        };
        let parts = &mut parts[at * len..(at + size) * len];
        let mut seen = [(end, start); MOST];
        let (mut lo, mut hi) = (end, start);
        for (clamped, span) in seen.iter_mut().zip(&spans[at..at + size]) {
            *clamped = (span.0.max(start), span.1.min(end));
            if clamped.0 < clamped.1 {
                (lo, hi) = (lo.min(clamped.0), hi.max(clamped.1));
            }
        }
        // Later groups find the chunk in the core's cache.
        let fetch = if at == 0 { &values } else { &none };
        let bias = queries.bias(spec, taken, at);
        at += size;
        if lo >= hi {
            continue;
        }
        let seen = &seen[..size];
        let blocks = (lo - start) / BLOCK_TOKENS..(hi - start).div_ceil(BLOCK_TOKENS);
        let weights = &mut scratch.weights;
        by_size!(
            size,
            R,
            isa.run(Scores::<C, R> {
                keys: &keys,
                dim,
                blocks: blocks.clone(),
                group,
                fetch,
                weights,
                codes: PhantomData
            })
        );
        isa.run(Soften { spec, spans: seen, bias, blocks: blocks.clone(), start, weights, parts, len });
        for column in 0..v_dim.div_ceil(GROUP) {
            let scales = Part::Values.lines::<C>(v_dim) * LINE + column * SCALES;
            by_size!(
                size,
                R,
                isa.run(Weigh::<R> { values: &values, scales, blocks: blocks.clone(), seen, start, scratch })
            );
            let (blocks, weights) = (blocks.clone(), &scratch.codes);
            by_size!(
                size,
                R,
                isa.run(Values::<C, R> {
                    values: &values,
                    v_dim,
                    column,
                    blocks,
                    fetch: ahead,
                    weights,
                    parts,
                    len,
                    codes: PhantomData
                })
            );
        }
        ahead = &none;
    }
}

/// Query vectors that are computed together.
struct Group<'a> {
    words: &'a [i32],
    scales: &'a [f32],
    starts: &'a [i32],
}

/// Dot products of `R` query vectors with the keys of `blocks`, to `weights`. Meanwhile the lines of `fetch` come.
struct Scores<'a, C, const R: usize> {
    keys: &'a Pages<u8>,
    dim: usize,
    blocks: Range<usize>,
    group: Group<'a>,
    fetch: &'a Pages<u8>,
    weights: &'a mut [[f32; CHUNK]; MOST],
    codes: PhantomData<C>,
}

impl<C: Codes, const R: usize> Kernel for Scores<'_, C, R> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let (lines, groups) = (Part::Keys.lines::<C>(self.dim), self.dim.div_ceil(GROUP));
        assert!(lines * LINE + groups * SCALES <= self.keys.len && self.blocks.end <= BLOCKS);
        assert!(self.group.words.len() >= R * lines * C::PAIRS && self.group.starts.len() >= R * groups);
        assert!(self.keys.at[self.blocks.clone()].iter().all(|p| !p.is_null()));
        let mut b = self.blocks.start;
        while b < self.blocks.end {
            let left = self.blocks.end - b;
            // SAFETY: these blocks have a page of keys each, as asserted.
            unsafe {
                b += match (S::VECTORS >= WIDE, R) {
                    (true, 1..=3) if left >= 4 => self.abreast::<S, 4>(s, b),
                    (true, 1..=6) | (false, 1) if left >= 2 => self.abreast::<S, 2>(s, b),
                    _ => self.abreast::<S, 1>(s, b),
                };
            }
        }
    }
}

impl<C: Codes, const R: usize> Scores<'_, C, R> {
    /// `B` blocks at a time; returns `B`.
    ///
    /// # Safety
    /// Blocks `b..b + B` have pages, and those as many lines and groups as the vectors.
    #[inline(always)]
    unsafe fn abreast<S: Simd, const B: usize>(&mut self, s: S, b: usize) -> usize {
        let lines = Part::Keys.lines::<C>(self.dim);
        let in_group = GROUP / (2 * C::PAIRS);
        let mut total = [[s.zero(); B]; R];
        // Without checks in the inner loops, which would keep sums in memory.
        let keys: [*const u8; B] = std::array::from_fn(|j| self.keys.at[b + j]);
        let fetch: [*const u8; B] = std::array::from_fn(|j| self.fetch.at[b + j]);
        let fetched = self.fetch.len / LINE;
        let mut q = self.group.words.as_ptr();
        for g in 0..self.dim.div_ceil(GROUP) {
            let starts = &self.group.starts[g * R..(g + 1) * R];
            let mut acc = [[s.words(0); B]; R];
            for r in 0..R {
                acc[r] = [s.words(starts[r] * C::CENTRE); B];
            }
            for line in g * in_group..lines.min((g + 1) * in_group) {
                if line < fetched {
                    fetch.iter().for_each(|p| prefetch(p.wrapping_add(line * LINE)));
                }
                // SAFETY: a line of each page.
                let codes: [S::I; B] =
                    std::array::from_fn(|j| unsafe { s.load_words(keys[j].add(line * LINE)) });
                for p in 0..C::PAIRS {
                    let pairs: [S::I; B] = std::array::from_fn(|j| C::pair(s, codes[j], p));
                    for r in 0..R {
                        // SAFETY: `q` has `R` words for each pair of a line.
                        let x = s.words(unsafe { *q.add(p * R + r) });
                        for j in 0..B {
                            acc[r][j] = s.dot_halves(acc[r][j], pairs[j], x);
                        }
                    }
                }
                q = q.wrapping_add(C::PAIRS * R);
            }
            for j in 0..B {
                // SAFETY: the scales of a group follow the lines.
                let scale = unsafe { s.load_f16_ptr(keys[j].add(lines * LINE + g * SCALES).cast()) };
                for r in 0..R {
                    total[r][j] = scale.fma(s.to_floats(acc[r][j]), total[r][j]);
                }
            }
        }
        for j in 0..B {
            (lines..fetched).for_each(|line| prefetch(fetch[j].wrapping_add(line * LINE)));
            for r in 0..R {
                let score = total[r][j] * s.splat(self.group.scales[r]);
                score.store(&mut self.weights[r][(b + j) * BLOCK_TOKENS..]);
            }
        }
        B
    }
}

/// Makes whole numbers of `R` rows of softmax weights times the values' scales, which begin at `scales` in a page.
struct Weigh<'a, const R: usize> {
    values: &'a Pages<u8>,
    scales: usize,
    blocks: Range<usize>,
    seen: &'a [Span],
    start: usize,
    scratch: &'a mut Scratch,
}

impl<const R: usize> Kernel for Weigh<'_, R> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Weigh { values, scales, blocks, seen: spans, start, scratch } = self;
        assert!(scales + SCALES <= values.len && blocks.end <= BLOCKS && spans.len() == R && R <= MOST);
        assert!(values.at[blocks.clone()].iter().all(|p| !p.is_null()));
        let Scratch { weights, codes } = scratch;
        let (first, last) = (start + blocks.start * BLOCK_TOKENS, start + blocks.end * BLOCK_TOKENS);
        let whole = spans.iter().all(|span| span.0 <= first && last <= span.1);
        let (mut top, mut all) = ([s.zero(); R], [s.zero(); R]);
        for b in blocks.clone() {
            // SAFETY: inside the page, as asserted.
            let scale = unsafe { s.load_f16_ptr(values.at[b].add(scales).cast()) };
            for r in 0..R {
                let mut x = s.load(&weights[r][b * BLOCK_TOKENS..]) * scale;
                if !whole {
                    // A stale scale may be NaN.
                    x = seen(s, spans[r], start + b * BLOCK_TOKENS, x, s.zero());
                }
                x.store(&mut codes.products[r][b * BLOCK_TOKENS..]);
                top[r] = top[r].max(x.abs());
                all[r] = all[r] + x;
            }
        }
        let mut by = [s.zero(); R];
        for r in 0..R {
            // NaN where one of the products is, or infinite.
            let (top, wrong) = (top[r].largest(), all[r].sum() * 0.0);
            by[r] = s.splat(if top > TINY { TOP / top } else { 0.0 });
            codes.factors[r] = top / TOP + wrong;
        }
        let ones = s.words(0x0001_0001);
        let mut sums = [s.words(0); R];
        for b in blocks {
            for r in 0..R {
                let x = s.load(&codes.products[r][b * BLOCK_TOKENS..]);
                let pairs = s.pair_up(s.round_to_words(x * by[r]));
                sums[r] = s.dot_halves(sums[r], pairs, ones);
                s.store_words(pairs, &mut codes.words[r][b * BLOCK_TOKENS..]);
            }
        }
        for r in 0..R {
            // Each number is in two words; the sum of 128 is exact in floats.
            codes.starts[r] = -(s.to_floats(sums[r]).sum() as i32 / 2);
        }
    }
}

/// Sums the codes of one group of columns with `R` rows of weights, to `parts`. Meanwhile the lines of `fetch` come.
struct Values<'a, C, const R: usize> {
    values: &'a Pages<u8>,
    v_dim: usize,
    /// Group of columns.
    column: usize,
    blocks: Range<usize>,
    fetch: &'a Pages<u8>,
    weights: &'a Weights,
    parts: &'a mut [f32],
    len: usize,
    codes: PhantomData<C>,
}

impl<C: Codes, const R: usize> Kernel for Values<'_, C, R> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        assert!(Part::Values.lines::<C>(self.v_dim) * LINE <= self.values.len && self.blocks.end <= BLOCKS);
        assert!(self.values.at[self.blocks.clone()].iter().all(|p| !p.is_null()) && R <= MOST);
        let vectors = (self.v_dim.div_ceil(LANES) - 2 * self.column).min(2);
        // SAFETY: these blocks have a page of values each, as asserted, and the group has so many vectors.
        unsafe {
            match (S::VECTORS >= WIDE || R <= 2, vectors) {
                (true, 2) => self.abreast::<S, 2>(s, 0, vectors),
                (false, 2) => {
                    self.abreast::<S, 1>(s, 0, vectors);
                    self.abreast::<S, 1>(s, 1, vectors);
                }
                _ => self.abreast::<S, 1>(s, 0, vectors),
            }
        }
    }
}

impl<C: Codes, const R: usize> Values<'_, C, R> {
    /// `N` vectors of columns from `first` on, of the group's `vectors`.
    ///
    /// # Safety
    /// The blocks have pages of values with this group.
    #[inline(always)]
    unsafe fn abreast<S: Simd, const N: usize>(&mut self, s: S, first: usize, vectors: usize) {
        let lines = if C::BITS == 8 { vectors } else { 1 };
        let offset = self.column * if C::BITS == 8 { 2 } else { 1 } * (BLOCK_TOKENS / 4) * LINE;
        // Sums of even and of odd numbers where there are few, so that one need not wait for the other.
        let mut acc = [[[s.words(0); 2]; N]; R];
        for r in 0..R {
            for n in 0..N {
                acc[r][n][0] = s.words(self.weights.starts[r].wrapping_mul(C::CENTRE));
            }
        }
        let odd = usize::from(R <= 4);
        let steps = BLOCK_TOKENS / 4;
        let groups = self.v_dim.div_ceil(GROUP);
        let all = self.fetch.len / LINE;
        let each = all.div_ceil(groups * steps);
        for b in self.blocks.clone() {
            let page = self.values.at[b].wrapping_add(offset);
            let fetch = self.fetch.at[b];
            let words = self.weights.words.as_ptr().cast::<i32>().wrapping_add(b * BLOCK_TOKENS);
            for t in 0..steps {
                let line = (self.column * steps + t) * each;
                (line..all.min(line + each)).for_each(|l| prefetch(fetch.wrapping_add(l * LINE)));
                for n in 0..N {
                    let line = (t * lines + if C::BITS == 8 { first + n } else { 0 }) * LINE;
                    // SAFETY: four tokens of this group's columns.
                    let codes = unsafe { s.load_words(page.add(line)) };
                    let pair = if C::BITS == 8 { 0 } else { 2 * (first + n) };
                    let pairs = [C::pair(s, codes, pair), C::pair(s, codes, pair + 1)];
                    for r in 0..R {
                        // SAFETY: of four words of each row the first two.
                        let w = unsafe { words.add(r * CHUNK + 4 * t) };
                        // SAFETY: as above.
                        let (even, other) = unsafe { (s.words(*w), s.words(*w.add(1))) };
                        acc[r][n][0] = s.dot_halves(acc[r][n][0], pairs[0], even);
                        acc[r][n][odd] = s.dot_halves(acc[r][n][odd], pairs[1], other);
                    }
                }
            }
        }
        for r in 0..R {
            for n in 0..N {
                let sum = s.add_words(acc[r][n][0], if odd == 1 { acc[r][n][1] } else { s.words(0) });
                let x = s.to_floats(sum) * s.splat(self.weights.factors[r]);
                x.store(&mut self.parts[r * self.len + LANES + self.column * GROUP + (first + n) * LANES..]);
            }
        }
    }
}
