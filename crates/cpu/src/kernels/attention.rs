//! Softmax attention over the paged cache, in chunks of the context whose bounds are absolute positions.
//!
//! Within a chunk a row finds its maximum, its weights and its weighted sum of values; chunks are merged in order of
//! position (online softmax, Milakov & Gimelshein 2018; Dao et al. 2022). Which chunks exist, and everything inside one,
//! depends on the row's own position and window alone, so a row's bits are the same in any batch, alone or in a prompt,
//! and when a long context is split over threads. Rows and heads that share keys are computed together: that changes
//! which numbers lie in registers and not how any of them is made.

use super::elementwise::softcap;
use crate::kv::{Element, KvHead, padded};
use crate::simd::{F32x16, LANES, Simd};
use quarrel_ir::{AttendSpec, BLOCK_TOKENS};
use std::ops::Range;

/// Positions of a chunk.
pub(crate) const CHUNK: usize = 128;
/// Most query vectors that are computed together.
const MOST: usize = 8;

/// Positions that a query sees.
pub(crate) type Span = (usize, usize);

/// What a token at `position` sees: its window up to itself.
pub(crate) fn span(spec: &AttendSpec, position: usize) -> Span {
    (spec.window.map_or(0, |w| (position + 1).saturating_sub(w as usize)), position + 1)
}

/// The chunks that any of `spans` touches.
pub(crate) fn chunks(spans: &[Span]) -> Range<usize> {
    let lo = spans.iter().map(|s| s.0).min().unwrap_or(0);
    let hi = spans.iter().map(|s| s.1).max().unwrap_or(0);
    lo / CHUNK..hi.div_ceil(CHUNK)
}

/// Sizes in which `n` query vectors are taken together.
fn group_size(n: usize) -> usize {
    match n {
        1..=4 | 6 | 8 => n,
        5 => 3,
        7 => 4,
        9 => 6,
        10 => 6,
        _ => MOST,
    }
}

/// The query vectors of one tile: several heads of several rows that read the same key head.
#[derive(Default)]
pub(crate) struct Queries {
    /// Groups in turn, each `[head_dim][vectors]`.
    packed: Vec<f32>,
    /// What each vector sees.
    pub(crate) spans: Vec<Span>,
    head_dim: usize,
}

impl Queries {
    /// Takes `rows` (each all heads of one kv head, in order) with their spans.
    pub(crate) fn pack<'a>(
        &mut self,
        head_dim: usize,
        heads: usize,
        rows: impl Iterator<Item = (&'a [f32], Span)> + Clone,
    ) {
        self.head_dim = head_dim;
        self.spans.clear();
        self.spans.extend(rows.clone().flat_map(|(_, span)| std::iter::repeat_n(span, heads)));
        let n = self.spans.len();
        self.packed.resize(n * head_dim, 0.0);
        let mut vectors = rows.flat_map(|(row, _)| row.chunks_exact(head_dim));
        let mut at = 0;
        while at < n {
            let size = group_size(n - at);
            let group = &mut self.packed[at * head_dim..(at + size) * head_dim];
            for (j, q) in vectors.by_ref().take(size).enumerate() {
                q.iter().enumerate().for_each(|(d, x)| group[d * size + j] = *x);
            }
            at += size;
        }
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
pub(crate) type Weights = [[f32; CHUNK]; MOST];

/// Scratch of one thread.
pub(crate) fn weights() -> Box<Weights> {
    Box::new([[0.0; CHUNK]; MOST])
}

/// Computes the part of every query vector from one chunk into `parts`, one state each. A vector that sees nothing of the
/// chunk keeps a maximum of minus infinity, a sum of 0 and values of 0.
///
/// # Safety
/// `E` must be the type of the cache, and nothing may write this layer's cache meanwhile.
#[inline(always)]
pub(crate) unsafe fn chunk<S: Simd, E: Element>(
    s: S,
    spec: &AttendSpec,
    kv: KvHead,
    queries: &Queries,
    chunk: usize,
    weights: &mut Weights,
    parts: &mut [f32],
) {
    let len = state_len(spec);
    let hd = queries.head_dim;
    // Several groups find the chunk in the cache of the core, behind the first.
    let alone = queries.spans.len() <= MOST;
    let mut at = 0;
    // No closures around vectors: they would be functions of their own, without the instructions.
    while at < queries.spans.len() {
        let n = group_size(queries.spans.len() - at);
        let spans = &queries.spans[at..at + n];
        let parts = &mut parts[at * len..(at + n) * len];
        reset(parts, len);
        let q = &queries.packed[at * hd..(at + n) * hd];
        // SAFETY: the caller's promise.
        unsafe {
            match n {
                1 => group::<S, E, 1, 4>(s, spec, kv, q, spans, chunk, alone, weights, parts),
                2 => group::<S, E, 2, 4>(s, spec, kv, q, spans, chunk, alone, weights, parts),
                3 => group::<S, E, 3, 4>(s, spec, kv, q, spans, chunk, alone, weights, parts),
                4 => group::<S, E, 4, 4>(s, spec, kv, q, spans, chunk, alone, weights, parts),
                6 => group::<S, E, 6, 2>(s, spec, kv, q, spans, chunk, alone, weights, parts),
                _ => group::<S, E, 8, 2>(s, spec, kv, q, spans, chunk, alone, weights, parts),
            }
        }
        at += n;
    }
}

/// `R` query vectors over one chunk; values are summed in `N` vectors of columns at a time. A group that is `alone` in its
/// tile fetches ahead.
///
/// # Safety
/// As for [`chunk`].
#[inline(always)]
unsafe fn group<S: Simd, E: Element, const R: usize, const N: usize>(
    s: S,
    spec: &AttendSpec,
    kv: KvHead,
    q: &[f32],
    spans: &[Span],
    chunk: usize,
    alone: bool,
    weights: &mut Weights,
    parts: &mut [f32],
) {
    let (start, end) = (chunk * CHUNK, (chunk + 1) * CHUNK);
    let spans: [Span; R] = std::array::from_fn(|r| (spans[r].0.max(start), spans[r].1.min(end)));
    let (mut lo, mut hi) = (end, start);
    for (from, to) in spans.into_iter().filter(|s| s.0 < s.1) {
        (lo, hi) = (lo.min(from), hi.max(to));
    }
    if lo >= hi {
        return;
    }
    let blocks = lo / BLOCK_TOKENS..hi.div_ceil(BLOCK_TOKENS);
    let index: [f32; LANES] = std::array::from_fn(|i| i as f32);
    let (index, none) = (s.load(&index), s.splat(f32::NEG_INFINITY));

    let mut top = [none; R];
    for b in blocks.clone() {
        // SAFETY: the caller's promise.
        let keys = unsafe {
            if alone {
                kv.prefetch::<E>(b);
            }
            kv.keys::<E>(b)
        };
        let scores = scores::<S, E, R>(s, q, keys);
        let first = b * BLOCK_TOKENS;
        for r in 0..R {
            let mut x = scores[r] * s.splat(spec.scale);
            if let Some(cap) = spec.softcap {
                x = softcap(cap, x);
            }
            let (lo, hi) = spans[r];
            if lo > first || hi < first + BLOCK_TOKENS {
                x = index.select_lt(s.splat(hi.saturating_sub(first) as f32), x, none);
                x = index.select_lt(s.splat(lo.saturating_sub(first) as f32), none, x);
            }
            top[r] = x.max(top[r]);
            x.store(&mut weights[r][first - start..]);
        }
    }
    let len = parts.len() / R;
    for r in 0..R {
        let max = top[r].largest();
        // A row whose scores are all minus infinity has weights of 0 here, and 0 / 0 in the end.
        let shift = s.splat(if max == f32::NEG_INFINITY { 0.0 } else { max });
        let mut sum = s.zero();
        for x in weights[r][blocks.start * BLOCK_TOKENS - start..blocks.end * BLOCK_TOKENS - start]
            .chunks_exact_mut(LANES)
        {
            let e = (s.load(x) - shift).exp();
            sum = sum + e;
            e.store(x);
        }
        (parts[r * len], parts[r * len + 1]) = (max, sum.sum());
    }
    // Tokens that some rows do not see are never read for them: a stale or NaN value there must not matter. So a row
    // takes what it alone sees before, then all take what they share, then it takes what it alone sees behind.
    let (mut from, mut to) = (start, end);
    for (lo, hi) in spans {
        (from, to) = (from.max(lo), to.min(hi));
    }
    let shared = from < to;
    let weights: &[[f32; CHUNK]; R] = weights.first_chunk().expect("R is at most MOST");
    for behind in [false, true] {
        for r in 0..R {
            let (lo, hi) = spans[r];
            let own = match (shared, behind) {
                (true, false) => lo..from,
                (true, true) => to..hi,
                (false, false) => lo..hi,
                (false, true) => 0..0,
            };
            if own.start < own.end {
                let (w, part) = (std::array::from_ref(&weights[r]), &mut parts[r * len..(r + 1) * len]);
                // SAFETY: the caller's promise.
                unsafe { values::<S, E, 1, 4>(s, kv, w, own, part) };
            }
        }
        if shared && !behind {
            // SAFETY: the caller's promise.
            unsafe { values::<S, E, R, N>(s, kv, weights, from..to, parts) };
        }
    }
}

/// Dot products of `R` packed query vectors with the 16 keys of a block; even and odd columns are summed apart.
#[inline(always)]
fn scores<S: Simd, E: Element, const R: usize>(s: S, q: &[f32], keys: &[E]) -> [S::F; R] {
    let (mut even, mut odd) = ([s.zero(); R], [s.zero(); R]);
    let mut k = keys.chunks_exact(2 * LANES);
    let mut p = q.chunks_exact(2 * R);
    for (k, q) in (&mut k).zip(&mut p) {
        let (k0, k1) = (E::load(s, &k[..LANES]), E::load(s, &k[LANES..]));
        for r in 0..R {
            even[r] = s.splat(q[r]).fma(k0, even[r]);
            odd[r] = s.splat(q[R + r]).fma(k1, odd[r]);
        }
    }
    if let (Some(k), Some(q)) = (k.remainder().get(..LANES), p.remainder().get(..R)) {
        let k = E::load(s, k);
        for r in 0..R {
            even[r] = s.splat(q[r]).fma(k, even[r]);
        }
    }
    for r in 0..R {
        even[r] = even[r] + odd[r];
    }
    even
}

/// Adds the weighted values of `tokens` to the `R` states in `parts`, token by token.
///
/// # Safety
/// As for [`chunk`].
#[inline(always)]
unsafe fn values<S: Simd, E: Element, const R: usize, const N: usize>(
    s: S,
    kv: KvHead,
    weights: &[[f32; CHUNK]; R],
    tokens: Range<usize>,
    parts: &mut [f32],
) {
    let len = parts.len() / R;
    let columns = len - LANES;
    let mut col = 0;
    while col < columns {
        // SAFETY: the caller's promise.
        unsafe {
            if col + N * LANES <= columns {
                columns_of::<S, E, R, N>(s, kv, weights, tokens.clone(), parts, len, col);
                col += N * LANES;
            } else {
                columns_of::<S, E, R, 1>(s, kv, weights, tokens.clone(), parts, len, col);
                col += LANES;
            }
        }
    }
}

/// `N` vectors of columns of [`values`].
///
/// # Safety
/// As for [`chunk`].
#[inline(always)]
unsafe fn columns_of<S: Simd, E: Element, const R: usize, const N: usize>(
    s: S,
    kv: KvHead,
    weights: &[[f32; CHUNK]; R],
    tokens: Range<usize>,
    parts: &mut [f32],
    len: usize,
    col: usize,
) {
    let at = LANES + col;
    let mut acc = [[s.zero(); N]; R];
    for r in 0..R {
        for n in 0..N {
            acc[r][n] = s.load(&parts[r * len + at + n * LANES..]);
        }
    }
    let mut t = tokens.start;
    while t < tokens.end {
        let end = tokens.end.min((t / BLOCK_TOKENS + 1) * BLOCK_TOKENS);
        // SAFETY: the caller's promise.
        let v = unsafe { kv.values::<E>(t / BLOCK_TOKENS) };
        let width = v.len() / BLOCK_TOKENS;
        for token in t..end {
            let v = &v[token % BLOCK_TOKENS * width + col..][..N * LANES];
            let mut lines = [s.zero(); N];
            for n in 0..N {
                lines[n] = E::load(s, &v[n * LANES..]);
            }
            let i = token % CHUNK;
            for r in 0..R {
                let w = s.splat(weights[r][i]);
                for n in 0..N {
                    acc[r][n] = w.fma(lines[n], acc[r][n]);
                }
            }
        }
        t = end;
    }
    for r in 0..R {
        for n in 0..N {
            acc[r][n].store(&mut parts[r * len + at + n * LANES..]);
        }
    }
}

/// Merges the next chunk's part into a vector's state. A part that saw nothing changes nothing.
#[inline(always)]
pub(crate) fn merge<S: Simd>(s: S, state: &mut [f32], part: &[f32]) {
    if part[1] == 0.0 && part[0] == f32::NEG_INFINITY {
        return;
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

/// Writes a finished state as an output row of one head.
#[inline(always)]
pub(crate) fn finish<S: Simd>(s: S, state: &[f32], out: &mut [f32]) {
    let sum = s.splat(state[1]);
    for (x, out) in state[LANES..].chunks_exact(LANES).zip(out.chunks_mut(LANES)) {
        let y = s.load(x) / sum;
        if out.len() == LANES { y.store(out) } else { y.store_partial(out) }
    }
}
