//! Softmax attention over the paged cache, in chunks of the context whose bounds are absolute positions.
//!
//! Within a chunk a row finds its maximum, its weights and its weighted sum of values; chunks are merged in order of
//! position (online softmax, Milakov & Gimelshein 2018; Dao et al. 2022). Which chunks exist, and everything inside one,
//! depends on the row's own position and window alone (where it sees what comes after it, on its sequence's length), so a row's
//! bits are the same in any batch, alone or in a prompt, and when a long context is split over threads. Rows and heads that share keys are computed together: that changes
//! which numbers lie in registers and not how any of them is made. Scores, softmax and values are functions of their own:
//! in one, the constants of the exponential would take the registers of the sums.

use super::attention_codes;
use super::bias::{Bias, Biases, Distances, biased};
use super::elementwise::softcap;
use crate::kv::codes::{Q4, Q8, rotate};
use crate::kv::{Bf16, Element, KvHead, Stored, padded, prefetch};
use crate::simd::{F32x16, Isa, Kernel, LANES, Simd};
use quarrel_ir::{AttendSpec, BLOCK_TOKENS, alibi_slope};
use std::ops::Range;
use std::sync::Arc;

/// Positions of a chunk.
pub(crate) const CHUNK: usize = 128;
/// Blocks of a chunk.
pub(super) const BLOCKS: usize = CHUNK / BLOCK_TOKENS;
/// Most query vectors that are computed together.
pub(crate) const MOST: usize = 12;

/// Positions that a query sees.
pub(crate) type Span = (usize, usize);

/// What a token at `position` of a sequence of `end` tokens sees: its window up to itself, or everything.
pub(crate) fn span(spec: &AttendSpec, position: usize, end: usize) -> Span {
    if !spec.causal {
        return (0, end);
    }
    (spec.first(position), position + 1)
}

/// Positions that are read at once: a chunk, or the part of one that lies in one block of a pattern.
pub(crate) fn unit(spec: &AttendSpec) -> usize {
    spec.blocks.map_or(CHUNK, |b| CHUNK.min(b.tokens as usize))
}

/// The chunks that any of `spans` touches.
pub(crate) fn chunks(spans: &[Span]) -> Range<usize> {
    let lo = spans.iter().map(|s| s.0).min().unwrap_or(0);
    let hi = spans.iter().map(|s| s.1).max().unwrap_or(0);
    lo / CHUNK..hi.div_ceil(CHUNK)
}

/// How many of `n` query vectors are taken together: as many as registers can hold sums of.
pub(super) fn group_size(isa: Isa, n: usize) -> usize {
    let wide = isa.vectors() >= WIDE;
    match n {
        1..=4 | 6 => n,
        5 => 3,
        7 => 4,
        8 => {
            if wide {
                8
            } else {
                4
            }
        }
        12.. if wide => MOST,
        11 if wide => 8,
        _ => 6,
    }
}

/// Vectors in the registers of a CPU that has many.
pub(super) const WIDE: usize = 32;

/// Vectors of keys or values whose sums with `r` queries fit in `vectors` registers, beside what is loaded.
const fn abreast(vectors: usize, r: usize) -> usize {
    match (vectors >= WIDE, r) {
        (true, 1..=6) => 4,
        (true, _) | (false, 1..=2) => 2,
        (false, _) => 1,
    }
}

/// The query vectors of one tile that read the same key head: several heads of several rows.
#[derive(Default)]
pub(crate) struct Queries {
    /// Groups in turn, each `[head_dim][vectors]`; then the same for the next key head.
    packed: Vec<f32>,
    /// The same in codes, for a cache of codes.
    pub(super) codes: attention_codes::Queries,
    /// What each vector of a key head sees; of the unit that is next, where attention is by blocks.
    pub(crate) spans: Vec<Span>,
    /// What each would see without blocks.
    whole: Vec<Span>,
    /// The bias by distance, where there is one, and the first query head that was taken.
    distances: Option<(Arc<Distances>, usize)>,
    /// With that, the position of each vector of a key head.
    positions: Vec<usize>,
    /// How much a score of each vector of each key head falls for each position back; empty without ALiBi.
    slopes: Vec<f32>,
}

impl Queries {
    /// Takes the columns of the key heads `kv_heads` from `rows`, which come with their spans.
    fn pack<'a>(
        &mut self,
        isa: Isa,
        spec: &AttendSpec,
        kv_heads: Range<usize>,
        rows: impl Iterator<Item = (&'a [f32], Span)> + Clone,
    ) {
        let (head_dim, heads) = (spec.head_dim as usize, (spec.heads / spec.kv_heads) as usize);
        self.see(spec, kv_heads.clone(), rows.clone());
        let n = self.spans.len();
        self.packed.resize(n * head_dim * kv_heads.len(), 0.0);
        for (packed, head) in self.packed.chunks_exact_mut(n * head_dim).zip(kv_heads) {
            let columns = head * heads * head_dim..(head + 1) * heads * head_dim;
            let mut vectors = rows.clone().flat_map(|(row, _)| row[columns.clone()].chunks_exact(head_dim));
            let mut at = 0;
            while at < n {
                let size = group_size(isa, n - at);
                let group = &mut packed[at * head_dim..(at + size) * head_dim];
                for (j, q) in vectors.by_ref().take(size).enumerate() {
                    q.iter().enumerate().for_each(|(d, x)| group[d * size + j] = *x);
                }
                at += size;
            }
        }
    }

    /// Notes what the vectors of each head see, and how steeply.
    fn see<'a>(
        &mut self,
        spec: &AttendSpec,
        kv_heads: Range<usize>,
        rows: impl Iterator<Item = (&'a [f32], Span)>,
    ) {
        let heads = (spec.heads / spec.kv_heads) as usize;
        self.spans.clear();
        self.spans.extend(rows.flat_map(|(_, span)| std::iter::repeat_n(span, heads)));
        self.whole.clone_from(&self.spans);
        self.slopes.clear();
        self.distances = None;
        if let Some(max) = spec.alibi {
            let slope = |h: usize| alibi_slope(max, spec.heads, h as u32);
            let rows = self.spans.len() / heads;
            self.slopes.extend(
                kv_heads.flat_map(|kv| (0..rows * heads).map(move |v| slope(kv * heads + v % heads))),
            );
        }
    }

    /// Where attention is by blocks: narrows what the vectors, which are of query head `head`, see to the unit `at`. Says
    /// whether any of them sees something of it.
    pub(crate) fn narrow(&mut self, spec: &AttendSpec, head: usize, at: usize) -> bool {
        let Some(blocks) = spec.blocks else { return true };
        let (first, end) = (at * unit(spec), (at + 1) * unit(spec));
        let mut any = false;
        for (span, (_, past)) in self.spans.iter_mut().zip(&self.whole) {
            let sees = first < *past && blocks.sees(head, past - 1, first);
            *span = if sees { (first, end.min(*past)) } else { (0, 0) };
            any |= sees;
        }
        any
    }

    /// Notes where the vectors of each head are, of which the first is query head `first`, for a bias by distance.
    pub(crate) fn measure(
        &mut self,
        distances: &Arc<Distances>,
        first: usize,
        position: usize,
        heads: usize,
    ) {
        self.distances = Some((distances.clone(), first));
        self.positions.clear();
        self.positions.extend((0..self.spans.len()).map(|v| position + v / heads));
    }

    /// The bias of the vectors from `at` on of the `i`th key head that was taken.
    pub(super) fn bias(&self, spec: &AttendSpec, i: usize, at: usize) -> Option<Biases<'_>> {
        if let Some((distances, first)) = &self.distances {
            let heads = (spec.heads / spec.kv_heads) as usize;
            let (first, positions) = (first + i * heads, &self.positions[..]);
            return Some(Biases::Tables { distances, first, heads, at, positions });
        }
        let slopes = self.slopes.get(i * self.spans.len() + at..)?;
        (!slopes.is_empty()).then_some(Biases::Slopes(slopes, &self.spans[at..]))
    }

    /// The packed vectors of the `i`th key head that was taken.
    fn head(&self, i: usize, head_dim: usize) -> &[f32] {
        let n = self.spans.len() * head_dim;
        &self.packed[i * n..(i + 1) * n]
    }
}

/// A vector's softmax so far, or its part from one chunk: `[max, sum, pad.., values]`.
pub(crate) fn state_len(spec: &AttendSpec) -> usize {
    LANES + padded(spec.v_dim)
}

/// Puts states before the first chunk.
pub(crate) fn reset(states: &mut [f32], len: usize) {
    for s in states.chunks_exact_mut(len) {
        s.fill(0.0);
        s[0] = f32::NEG_INFINITY;
    }
}

/// The weights of one group in one chunk.
pub(super) type Weights = [[f32; CHUNK]; MOST];

/// Scratch of one thread.
pub(crate) struct Scratch {
    pub(super) weights: Weights,
    pub(super) codes: attention_codes::Weights,
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch { weights: [[0.0; CHUNK]; MOST], codes: attention_codes::Weights::default() }
    }
}

/// How attention reads a cache of one type.
pub(crate) trait Cached: Stored {
    /// Takes the columns of the key heads `kv_heads` from `rows`, which come with what they see.
    fn pack<'a>(
        queries: &mut Queries,
        isa: Isa,
        spec: &AttendSpec,
        kv_heads: Range<usize>,
        rows: impl Iterator<Item = (&'a [f32], Span)> + Clone,
    );

    /// Computes the part of every query vector of the `taken`th key head from one chunk into `parts`, one state each. A
    /// vector that sees nothing of the chunk keeps a maximum of minus infinity, a sum of 0 and values of 0. `next` is the
    /// head and chunk that this thread reads next, for its keys to be on their way.
    ///
    /// # Safety
    /// The cache must be of this type, and nothing may write this layer of it meanwhile.
    unsafe fn chunk(
        isa: Isa,
        spec: &AttendSpec,
        kv: KvHead,
        taken: (&Queries, usize),
        chunk: usize,
        next: Option<(KvHead, usize)>,
        scratch: &mut Scratch,
        parts: &mut [f32],
    );
}

macro_rules! floats {
    ($($T:ty)*) => {$(
        impl Cached for $T {
            fn pack<'a>(
                queries: &mut Queries,
                isa: Isa,
                spec: &AttendSpec,
                kv_heads: Range<usize>,
                rows: impl Iterator<Item = (&'a [f32], Span)> + Clone,
            ) {
                queries.pack(isa, spec, kv_heads, rows)
            }

            unsafe fn chunk(
                isa: Isa,
                spec: &AttendSpec,
                kv: KvHead,
                taken: (&Queries, usize),
                at: usize,
                next: Option<(KvHead, usize)>,
                scratch: &mut Scratch,
                parts: &mut [f32],
            ) {
                // SAFETY: the caller's promise.
                unsafe { chunk::<$T>(isa, spec, kv, taken, at, next, &mut scratch.weights, parts) }
            }
        }
    )*};
}
floats!(u16 Bf16 f32);

macro_rules! codes {
    ($($T:ty)*) => {$(
        impl Cached for $T {
            fn pack<'a>(
                queries: &mut Queries,
                isa: Isa,
                spec: &AttendSpec,
                kv_heads: Range<usize>,
                rows: impl Iterator<Item = (&'a [f32], Span)> + Clone,
            ) {
                queries.see(spec, kv_heads.clone(), rows.clone());
                queries.codes.pack(isa, spec, kv_heads, rows.map(|(row, _)| row), queries.spans.len())
            }

            unsafe fn chunk(
                isa: Isa,
                spec: &AttendSpec,
                kv: KvHead,
                taken: (&Queries, usize),
                at: usize,
                next: Option<(KvHead, usize)>,
                scratch: &mut Scratch,
                parts: &mut [f32],
            ) {
                // SAFETY: the caller's promise.
                unsafe { attention_codes::chunk::<$T>(isa, spec, kv, taken, at, next, scratch, parts) }
            }
        }
    )*};
}
codes!(Q8 Q4);

/// Where the blocks of a chunk lie: keys `[head_dim][16]` or values `[16][columns]`, `len` elements each; null where the
/// chunk has no block.
pub(super) struct Pages<E> {
    pub(super) at: [*const E; BLOCKS],
    pub(super) len: usize,
}

/// Runs `$body` with the constant `$R` for each size of a group.
macro_rules! by_size {
    ($n:expr, $R:ident, $body:expr) => {
        match $n {
            1 => {
                const $R: usize = 1;
                $body
            }
            2 => {
                const $R: usize = 2;
                $body
            }
            3 => {
                const $R: usize = 3;
                $body
            }
            4 => {
                const $R: usize = 4;
                $body
            }
            6 => {
                const $R: usize = 6;
                $body
            }
            8 => {
                const $R: usize = 8;
                $body
            }
            _ => {
                const $R: usize = $crate::kernels::attention::MOST;
                $body
            }
        }
    };
}
pub(super) use by_size;

/// As [`Cached::chunk`] says.
///
/// # Safety
/// As there.
unsafe fn chunk<E: Element>(
    isa: Isa,
    spec: &AttendSpec,
    kv: KvHead,
    (queries, taken): (&Queries, usize),
    chunk: usize,
    next: Option<(KvHead, usize)>,
    weights: &mut Weights,
    parts: &mut [f32],
) {
    let (start, end) = (chunk * CHUNK, (chunk + 1) * CHUNK);
    let (len, head_dim) = (state_len(spec), spec.head_dim as usize);
    reset(parts, len);
    let spans = &queries.spans;
    let packed = queries.head(taken, head_dim);
    let seen = spans.iter().map(|s| s.1).max().unwrap_or(0);
    let [mut keys, mut values, mut next_keys, none] = [const { Pages::<E>::none() }; 4];
    keys.keys(kv, chunk, seen);
    values.values(kv, chunk, seen);
    if let Some((kv, chunk)) = next {
        next_keys.keys(kv, chunk, usize::MAX);
    }
    let mut ahead = &next_keys;
    let mut at = 0;
    while at < spans.len() {
        let n = group_size(isa, spans.len() - at);
        let first = at == 0;
        let parts = &mut parts[at * len..(at + n) * len];
        let q = &packed[at * head_dim..(at + n) * head_dim];
        let mut seen = [(end, start); MOST];
        // All that some vector sees, and what every vector sees.
        let ((mut lo, mut hi), (mut from, mut to)) = ((end, start), (start, end));
        for (clamped, span) in seen.iter_mut().zip(&spans[at..at + n]) {
            *clamped = (span.0.max(start), span.1.min(end));
            if clamped.0 < clamped.1 {
                (lo, hi) = (lo.min(clamped.0), hi.max(clamped.1));
            }
            (from, to) = (from.max(clamped.0), to.min(clamped.1));
        }
        let bias = queries.bias(spec, taken, at);
        at += n;
        if lo >= hi {
            continue;
        }
        let blocks = (lo - start) / BLOCK_TOKENS..(hi - start).div_ceil(BLOCK_TOKENS);
        // Later groups find the chunk in the core's cache.
        let fetch = if first { &values } else { &none };
        by_size!(n, R, isa.run(Scores::<E, R> { keys: &keys, blocks: blocks.clone(), q, fetch, weights }));
        isa.run(Soften { spec, spans: &seen[..n], bias, blocks, start, weights, parts, len });
        // Tokens that a vector does not see are never read for it: a stale or NaN value there must not matter. So each
        // takes what it alone sees before, then all take what they share, then each what it alone sees behind.
        for phase in 0..3 {
            if phase == 1 {
                if from < to {
                    let tokens = from - start..to - start;
                    let fetch = if first { std::mem::replace(&mut ahead, &none) } else { &none };
                    by_size!(
                        n,
                        R,
                        isa.run(Values::<E, R> {
                            values: &values,
                            tokens,
                            row: 0,
                            fetch,
                            weights,
                            parts,
                            len
                        })
                    );
                }
                continue;
            }
            for (row, (lo, hi)) in seen[..n].iter().copied().enumerate() {
                let own = match (from < to, phase) {
                    (true, 0) => lo..from,
                    (true, _) => to..hi,
                    (false, 0) => lo..hi,
                    (false, _) => continue,
                };
                if own.start < own.end {
                    let tokens = own.start - start..own.end - start;
                    let parts = &mut parts[row * len..(row + 1) * len];
                    isa.run(Values::<E, 1> {
                        values: &values,
                        tokens,
                        row,
                        fetch: &none,
                        weights,
                        parts,
                        len,
                    });
                }
            }
        }
    }
}

impl<E> Pages<E> {
    pub(super) const fn none() -> Pages<E> {
        Pages { at: [std::ptr::null(); BLOCKS], len: 0 }
    }

    /// Takes the blocks of `chunk` that hold positions below `end` and that the sequence has.
    pub(super) fn keys(&mut self, kv: KvHead, chunk: usize, end: usize) {
        self.take(kv.blocks(), chunk, end, |b| kv.keys(b))
    }

    /// The same of values.
    pub(super) fn values(&mut self, kv: KvHead, chunk: usize, end: usize) {
        self.take(kv.blocks(), chunk, end, |b| kv.values(b))
    }

    fn take(&mut self, blocks: usize, chunk: usize, end: usize, page: impl Fn(usize) -> (*const u8, usize)) {
        for (at, b) in self.at.iter_mut().zip(chunk * BLOCKS..blocks.min(end.div_ceil(BLOCK_TOKENS))) {
            let (start, bytes) = page(b);
            (*at, self.len) = (start.cast(), bytes / size_of::<E>());
        }
    }

    /// Asks for the cache line where row `i / 16` of a block begins, if one begins there.
    #[inline(always)]
    fn fetch(&self, block: usize, i: usize) {
        if (i * size_of::<E>()).is_multiple_of(LINE) && i < self.len {
            prefetch(self.at[block].wrapping_add(i).cast());
        }
    }
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Dot products of `R` packed query vectors with the keys of `blocks`, to `weights`; each is summed in the order of the
/// columns. Meanwhile the lines of `fetch` come.
struct Scores<'a, E, const R: usize> {
    keys: &'a Pages<E>,
    blocks: Range<usize>,
    q: &'a [f32],
    fetch: &'a Pages<E>,
    weights: &'a mut Weights,
}

impl<E: Element, const R: usize> Kernel for Scores<'_, E, R> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        assert!(self.q.len() * LANES == self.keys.len * R && self.blocks.end <= BLOCKS);
        assert!(self.keys.at[self.blocks.clone()].iter().all(|p| !p.is_null()));
        let mut b = self.blocks.start;
        while b < self.blocks.end {
            let left = self.blocks.end - b;
            // SAFETY: these blocks have a page of keys each, as many columns as `q` has.
            unsafe {
                b += match abreast(S::VECTORS, R) {
                    4 if left >= 4 => self.abreast::<S, 4>(s, b),
                    2 | 4 if left >= 2 => self.abreast::<S, 2>(s, b),
                    _ => self.abreast::<S, 1>(s, b),
                };
            }
        }
    }
}

impl<E: Element, const R: usize> Scores<'_, E, R> {
    /// `B` blocks at a time; returns `B`.
    ///
    /// # Safety
    /// Blocks `b..b + B` have pages, and those as many columns as `q`.
    #[inline(always)]
    unsafe fn abreast<S: Simd, const B: usize>(&mut self, s: S, b: usize) -> usize {
        let mut acc = [[s.zero(); B]; R];
        let mut q = self.q.as_ptr();
        let mut i = 0;
        while i < self.keys.len {
            let mut k = [s.zero(); B];
            for j in 0..B {
                // SAFETY: row `i / 16` of a page.
                k[j] = unsafe { E::load_ptr(s, self.keys.at[b + j].add(i)) };
                self.fetch.fetch(b + j, i);
            }
            for r in 0..R {
                // SAFETY: `q` has `R` numbers for each row of a page.
                let x = s.splat(unsafe { *q.add(r) });
                for j in 0..B {
                    acc[r][j] = x.fma(k[j], acc[r][j]);
                }
            }
            q = q.wrapping_add(R);
            i += LANES;
        }
        for r in 0..R {
            for j in 0..B {
                acc[r][j].store(&mut self.weights[r][(b + j) * BLOCK_TOKENS..]);
            }
        }
        B
    }
}

/// Turns rows of dot products into weights relative to the largest score of each, and notes that score and the sum of the
/// weights in the row's part.
pub(super) struct Soften<'a> {
    pub(super) spec: &'a AttendSpec,
    pub(super) spans: &'a [Span],
    /// As [`Queries::bias`] gives it.
    pub(super) bias: Option<Biases<'a>>,
    pub(super) blocks: Range<usize>,
    pub(super) start: usize,
    pub(super) weights: &'a mut Weights,
    pub(super) parts: &'a mut [f32],
    pub(super) len: usize,
}

impl Kernel for Soften<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let rows = self.weights.iter_mut().zip(self.spans).zip(self.parts.chunks_exact_mut(self.len));
        for (i, ((row, span), part)) in rows.enumerate() {
            let bias = self.bias.map(|b| b.of(i));
            let row = &mut row[self.blocks.start * BLOCK_TOKENS..self.blocks.end * BLOCK_TOKENS];
            let first = self.start + self.blocks.start * BLOCK_TOKENS;
            (part[0], part[1]) = soften(s, self.spec, *span, bias, first, row);
        }
    }
}

/// `x`, of positions from `first` on, where they are in `span`, else `none`.
#[inline(always)]
pub(super) fn seen<S: Simd>(s: S, span: Span, first: usize, x: S::F, none: S::F) -> S::F {
    if span.0 <= first && first + BLOCK_TOKENS <= span.1 {
        return x;
    }
    let index: [f32; LANES] = std::array::from_fn(|i| i as f32);
    let index = s.load(&index);
    let x = index.select_lt(s.splat(span.1.saturating_sub(first) as f32), x, none);
    index.select_lt(s.splat(span.0.saturating_sub(first) as f32), none, x)
}

/// One row of [`Soften`], whose first score is that of position `first`; returns the largest score and the sum.
#[inline(always)]
fn soften<S: Simd>(
    s: S,
    spec: &AttendSpec,
    span: Span,
    bias: Option<Bias>,
    mut first: usize,
    row: &mut [f32],
) -> (f32, f32) {
    let none = s.splat(f32::NEG_INFINITY);
    let mut top = none;
    for x in row.chunks_exact_mut(LANES) {
        let mut score = s.load(x) * s.splat(spec.scale);
        if let Some(cap) = spec.softcap {
            score = softcap(cap, score);
        }
        score = seen(s, span, first, biased(s, bias, first, score), none);
        first += BLOCK_TOKENS;
        // A NaN is lost here and comes back in the sum.
        top = score.max(top);
        score.store(x);
    }
    let max = top.largest();
    // A row whose scores are all minus infinity has weights of 0 here, and 0 / 0 in the end.
    let shift = s.splat(if max == f32::NEG_INFINITY { 0.0 } else { max });
    let mut sum = s.zero();
    for x in row.chunks_exact_mut(LANES) {
        let e = (s.load(x) - shift).exp();
        sum = sum + e;
        e.store(x);
    }
    (max, sum.sum())
}

/// Adds the values of `tokens` (positions in the chunk), weighted by `R` rows of `weights` from `row` on, to the states in
/// `parts`, token by token. Meanwhile the lines of `fetch` come.
struct Values<'a, E, const R: usize> {
    values: &'a Pages<E>,
    tokens: Range<usize>,
    row: usize,
    fetch: &'a Pages<E>,
    weights: &'a Weights,
    parts: &'a mut [f32],
    len: usize,
}

impl<E: Element, const R: usize> Kernel for Values<'_, E, R> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let columns = self.len - LANES;
        assert!(
            self.values.len == columns * BLOCK_TOKENS && self.row + R <= MOST && self.tokens.end <= CHUNK
        );
        assert!(self.parts.len() == R * self.len && self.tokens.start < self.tokens.end);
        let blocks = self.tokens.start / BLOCK_TOKENS..self.tokens.end.div_ceil(BLOCK_TOKENS);
        assert!(self.values.at[blocks].iter().all(|p| !p.is_null()));
        let mut col = 0;
        while col < columns {
            let left = (columns - col) / LANES;
            // SAFETY: these blocks have a page of values each, with so many columns.
            unsafe {
                col += match abreast(S::VECTORS, R) {
                    4 if left >= 4 => self.abreast::<S, 4>(s, col),
                    2 | 4 if left >= 2 => self.abreast::<S, 2>(s, col),
                    _ => self.abreast::<S, 1>(s, col),
                };
            }
        }
    }
}

impl<E: Element, const R: usize> Values<'_, E, R> {
    /// `N` vectors of columns from `col` on; returns their columns.
    ///
    /// # Safety
    /// The blocks of `tokens` have pages of `len - 16` columns, of which these are some; `tokens` lie in the chunk, and
    /// `weights` has `R` rows from `row` on.
    #[inline(always)]
    unsafe fn abreast<S: Simd, const N: usize>(&mut self, s: S, col: usize) -> usize {
        let (width, at) = (self.len - LANES, LANES + col);
        let mut acc = [[s.zero(); N]; R];
        for r in 0..R {
            for n in 0..N {
                acc[r][n] = s.load(&self.parts[r * self.len + at + n * LANES..]);
            }
        }
        let weights = self.weights.as_ptr().cast::<f32>().wrapping_add(self.row * CHUNK);
        let mut t = self.tokens.start;
        while t < self.tokens.end {
            let (block, end) = (t / BLOCK_TOKENS, self.tokens.end.min((t / BLOCK_TOKENS + 1) * BLOCK_TOKENS));
            let mut v = self.values.at[block].wrapping_add(t % BLOCK_TOKENS * width + col);
            // The lines of the next keys are spread over the tokens.
            let step = if col == 0 { self.fetch.len * size_of::<E>() / BLOCK_TOKENS } else { 0 };
            let mut next = self.fetch.at[block].cast::<u8>().wrapping_add(t % BLOCK_TOKENS * step);
            while t < end {
                let stop = next.wrapping_add(step);
                while next < stop {
                    prefetch(next);
                    next = next.wrapping_add(LINE);
                }
                next = stop;
                let mut lines = [s.zero(); N];
                for n in 0..N {
                    // SAFETY: row `t % 16` of the page.
                    lines[n] = unsafe { E::load_ptr(s, v.add(n * LANES)) };
                }
                for r in 0..R {
                    // SAFETY: `t` is in the chunk.
                    let w = s.splat(unsafe { *weights.add(r * CHUNK + t) });
                    for n in 0..N {
                        acc[r][n] = w.fma(lines[n], acc[r][n]);
                    }
                }
                v = v.wrapping_add(width);
                t += 1;
            }
        }
        for r in 0..R {
            for n in 0..N {
                acc[r][n].store(&mut self.parts[r * self.len + at + n * LANES..]);
            }
        }
        N * LANES
    }
}

/// Merges the next chunk's parts into the vectors' states. A part that saw nothing changes nothing.
pub(crate) struct Merge<'a> {
    pub(crate) states: &'a mut [f32],
    pub(crate) parts: &'a [f32],
    /// Of one state.
    pub(crate) len: usize,
}

impl Kernel for Merge<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (state, part) in self.states.chunks_exact_mut(self.len).zip(self.parts.chunks_exact(self.len)) {
            if part[1] == 0.0 && part[0] == f32::NEG_INFINITY {
                continue;
            }
            let max = if part[0] > state[0] { part[0] } else { state[0] };
            let mut shift = [0.0; LANES];
            (shift[0], shift[1]) = (state[0] - max, part[0] - max);
            let factors = s.load(&shift).exp().to_array();
            state[0] = max;
            state[1] = state[1] * factors[0] + part[1] * factors[1];
            let (a, b) = (s.splat(factors[0]), s.splat(factors[1]));
            for (x, y) in state[LANES..].chunks_exact_mut(LANES).zip(part[LANES..].chunks_exact(LANES)) {
                let sum = (s.load(x) * a) + (s.load(y) * b);
                sum.store(x);
            }
        }
    }
}

/// A sum of weights relative to the score `max` with that of a sink added, and the factor on those weights.
#[inline(always)]
pub(super) fn with_sink<S: Simd>(s: S, max: f32, sum: f32, sink: f32) -> (f32, f32) {
    let top = if sink > max { sink } else { max };
    let mut shift = [0.0; LANES];
    (shift[0], shift[1]) = (max - top, sink - top);
    let weights = s.load(&shift).exp().to_array();
    (weights[0], sum * weights[0] + weights[1])
}

/// Writes a finished state as an output row of one head.
pub(crate) struct Finish<'a> {
    pub(crate) state: &'a [f32],
    pub(crate) out: &'a mut [f32],
    /// The score of the head's sink.
    pub(crate) sink: Option<f32>,
    /// Whether the values were rotated.
    pub(crate) rotated: bool,
}

impl Kernel for Finish<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Finish { state, out, sink, rotated } = self;
        let (factor, sum) = match sink {
            Some(sink) => with_sink(s, state[0], state[1], sink),
            None => (1.0, state[1]),
        };
        let (factor, sum, dim) = (s.splat(factor), s.splat(sum), out.len());
        for (x, out) in state[LANES..].chunks_exact(LANES).zip(out.chunks_mut(LANES)) {
            let y = s.load(x) * factor / sum;
            if out.len() == LANES { y.store(out) } else { y.store_partial(out) }
        }
        if rotated {
            rotate(s, out, dim);
        }
    }
}
