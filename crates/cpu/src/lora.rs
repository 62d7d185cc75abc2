//! Adapters: what `scale * B (A n(x))` adds to products, for the rows of sequences that have one.
//!
//! Lanes of `A` are input columns, in the order that its width alone decides; lanes of `B` are the output columns of a unit,
//! walked rank after rank. So a row's bits do not depend on the rows beside it, whatever adapters they have.

use crate::exec::Memory;
use crate::linear::Piece;
use crate::matmul::UNIT;
use crate::simd::{F32x16, Isa, Kernel, LANES, Simd};
use quarrel_ir::{Adapter, AdapterPart, Error, Program, Result, SeqStep, WeightId, no_adapter};
use std::collections::BTreeMap;
use std::ops::Range;

/// 16 floats on a cache line of their own.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Sixteen([f32; LANES]);

const ZERO: Sixteen = Sixteen([0.0; LANES]);

/// The adapters of a prepared Program, and the room for what lies between `A` and `B`.
#[derive(Default)]
pub(crate) struct Adapters {
    loaded: BTreeMap<u32, Loaded>,
    next: u32,
    /// Rows of a step, `stride` floats each.
    low: Vec<f32>,
    stride: usize,
}

/// An adapter.
struct Loaded {
    /// By `WeightId`.
    changes: Vec<Option<Change>>,
    bytes: usize,
}

/// What an adapter does to the products with one weight.
struct Change {
    /// `A` of all parts, one below the other: `vectors` for each row, the last filled with zeros.
    a: Vec<Sixteen>,
    vectors: usize,
    /// Of each row of `a`.
    scales: Vec<f32>,
    /// By piece of the weight.
    pieces: Vec<Option<Up>>,
}

/// The rows of `B` behind one piece.
struct Up {
    /// Rows of `a` that it belongs to.
    ranks: Range<usize>,
    /// Unit after unit, a vector for each rank.
    b: Vec<Sixteen>,
}

impl Change {
    fn new(program: &Program, parts: &[&AdapterPart], cols: usize, pieces: &[Piece]) -> Change {
        let vectors = cols.div_ceil(LANES);
        let mut change = Change { a: Vec::new(), vectors, scales: Vec::new(), pieces: Vec::new() };
        change.pieces.resize_with(pieces.len(), || None);
        for p in parts {
            let rank = p.rank(program);
            let ranks = change.scales.len()..change.scales.len() + rank;
            change.scales.resize(ranks.end, p.scale);
            for row in p.a.chunks_exact(cols) {
                change.a.extend(row.chunks(LANES).map(|v| {
                    let mut sixteen = ZERO;
                    sixteen.0[..v.len()].copy_from_slice(v);
                    sixteen
                }));
            }
            let first = p.first_row(program);
            let rows = first..first + p.b.len() / rank;
            for (piece, up) in pieces.iter().zip(&mut change.pieces) {
                // Pieces are cut where parts end, so each lies in one part.
                if rows.contains(&piece.first()) {
                    let from = piece.first() - first;
                    *up = Some(Up {
                        ranks: ranks.clone(),
                        b: transpose(&p.b, rank, from..from + piece.rows()),
                    });
                }
            }
        }
        change
    }

    fn bytes(&self) -> usize {
        let b: usize = self.pieces.iter().flatten().map(|u| u.b.len()).sum();
        size_of::<Sixteen>() * (self.a.len() + b) + 4 * self.scales.len()
    }
}

/// Rows of `B` by units of output columns.
fn transpose(b: &[f32], rank: usize, rows: Range<usize>) -> Vec<Sixteen> {
    let mut out = vec![ZERO; rows.len().div_ceil(UNIT) * rank];
    for (i, row) in b[rows.start * rank..rows.end * rank].chunks_exact(rank).enumerate() {
        for (j, v) in row.iter().enumerate() {
            out[i / UNIT * rank + j].0[i % UNIT] = *v;
        }
    }
    out
}

impl Adapters {
    /// Takes parts in that `check_adapter` has seen. `pieces` gives those of a weight; `rows` are the most of a step.
    pub(crate) fn load<'a>(
        &mut self,
        program: &Program,
        parts: &[AdapterPart],
        pieces: impl Fn(WeightId) -> &'a [Piece],
        rows: usize,
    ) -> Result<Adapter> {
        let mut by_weight: BTreeMap<u32, Vec<&AdapterPart>> = BTreeMap::new();
        parts.iter().for_each(|p| by_weight.entry(p.weight.0).or_default().push(p));
        let mut changes = Vec::new();
        changes.resize_with(program.weights.len(), || None);
        for (w, parts) in by_weight {
            let cols = program.weights[w as usize].cols as usize;
            changes[w as usize] = Some(Change::new(program, &parts, cols, pieces(WeightId(w))));
        }
        let bytes = changes.iter().flatten().map(Change::bytes).sum();
        let next = self.next.checked_add(1).ok_or_else(|| {
            Error::Step("no handle is left for another adapter; start the engine anew".into())
        })?;
        let handle = std::mem::replace(&mut self.next, next);
        self.loaded.insert(handle, Loaded { changes, bytes });
        self.make_room(rows);
        Ok(Adapter(handle))
    }

    /// Frees an adapter.
    pub(crate) fn unload(&mut self, adapter: Adapter, rows: usize) -> Result<()> {
        self.loaded.remove(&adapter.0).ok_or_else(|| no_adapter(adapter))?;
        self.make_room(rows);
        Ok(())
    }

    fn make_room(&mut self, rows: usize) {
        let changes = self.loaded.values().flat_map(|l| l.changes.iter().flatten());
        self.stride = changes.map(|c| c.scales.len().next_multiple_of(LANES)).max().unwrap_or(0);
        self.low = vec![0.0; rows * self.stride];
    }

    /// Bytes of memory.
    pub(crate) fn bytes(&self) -> usize {
        self.loaded.values().map(|l| l.bytes).sum::<usize>() + 4 * self.low.len()
    }

    /// What a step needs of them; nothing if no sequence has one.
    pub(crate) fn step(&mut self, seqs: &[SeqStep]) -> Result<Option<Step<'_>>> {
        if seqs.iter().all(|s| s.adapter.is_none()) {
            return Ok(None);
        }
        let find = |a: Adapter| self.loaded.get(&a.0).ok_or_else(|| no_adapter(a));
        let seqs = seqs.iter().map(|s| s.adapter.map(find).transpose()).collect::<Result<_>>()?;
        Ok(Some(Step { seqs, low: Memory(self.low.as_mut_ptr()), stride: self.stride }))
    }
}

/// The adapters of a step.
pub(crate) struct Step<'a> {
    /// By sequence.
    seqs: Vec<Option<&'a Loaded>>,
    low: Memory,
    stride: usize,
}

impl<'a> Step<'a> {
    /// What is done to the products with a weight, if anything. `places` are those of the step's rows, `outputs` the rows
    /// that a product of outputs has.
    pub(crate) fn product(
        &'a self,
        weight: WeightId,
        places: &'a [(usize, usize)],
        outputs: Option<&'a [u32]>,
    ) -> Option<Product<'a>> {
        let product = Product { step: self, weight: weight.0 as usize, places, outputs };
        self.seqs.iter().flatten().any(|l| l.changes[product.weight].is_some()).then_some(product)
    }
}

/// The adapters of a step as one product sees them.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    step: &'a Step<'a>,
    weight: usize,
    places: &'a [(usize, usize)],
    outputs: Option<&'a [u32]>,
}

impl<'a> Product<'a> {
    fn change(&self, row: usize) -> Option<&'a Change> {
        let token = self.outputs.map_or(row, |o| o[row] as usize);
        self.step.seqs[self.places[token].0]?.changes[self.weight].as_ref()
    }

    /// Ranks of all parts that change this row.
    pub(crate) fn ranks(&self, row: usize) -> usize {
        self.change(row).map_or(0, |c| c.scales.len())
    }

    /// `scale * A x` of a row for some of its ranks.
    ///
    /// # Safety
    /// No other thread uses these ranks of the row meanwhile.
    pub(crate) unsafe fn down(&self, isa: Isa, row: usize, x: &[f32], ranks: Range<usize>) {
        let Some(change) = self.change(row) else { return };
        assert!(ranks.end <= change.scales.len() && x.len().div_ceil(LANES) == change.vectors);
        // SAFETY: there is room for the ranks of every change in each row; these are the caller's.
        let out = unsafe {
            let at = self.step.low.0.add(row * self.step.stride + ranks.start);
            std::slice::from_raw_parts_mut(at, ranks.len())
        };
        isa.run(Down { change, x, first: ranks.start, out });
    }

    /// What is added to the product with a piece of the weight.
    pub(crate) fn delta(self, piece: usize) -> Delta<'a> {
        Delta { product: self, piece }
    }
}

/// What adapters add to the product with one piece of a weight.
#[derive(Clone, Copy)]
pub struct Delta<'a> {
    product: Product<'a>,
    piece: usize,
}

impl std::fmt::Debug for Delta<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Delta({}, {})", self.product.weight, self.piece)
    }
}

impl Delta<'_> {
    /// Adds to `y`, which holds [`UNIT`] floats for each of `units` of each of `rows`.
    ///
    /// # Safety
    /// [`Product::down`] is done for these rows, behind a barrier.
    pub(crate) unsafe fn add(self, isa: Isa, rows: Range<usize>, units: Range<usize>, y: &mut [f32]) {
        let width = units.len() * UNIT;
        for (row, y) in rows.zip(y.chunks_exact_mut(width)) {
            let Some(up) = self.product.change(row).and_then(|c| c.pieces[self.piece].as_ref()) else {
                continue;
            };
            let rank = up.ranks.len();
            // SAFETY: as in `down`; nobody writes now, by the caller's promise.
            let low = unsafe {
                let at = self.product.step.low.0.add(row * self.product.step.stride + up.ranks.start);
                std::slice::from_raw_parts(at, rank)
            };
            isa.run(Add { low, b: &up.b[units.start * rank..units.end * rank], y });
        }
    }
}

struct Down<'a> {
    change: &'a Change,
    x: &'a [f32],
    first: usize,
    out: &'a mut [f32],
}

/// Ranks that are computed together where there are registers for it; their arithmetic is their own.
const TOGETHER: usize = 4;

impl Kernel for Down<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Down { change, x, first, out } = self;
        let row = |j: usize| &change.a[(first + j) * change.vectors..][..change.vectors];
        let mut j = 0;
        if S::VECTORS >= 4 * TOGETHER {
            while j + TOGETHER <= out.len() {
                let dots = dots(s, std::array::from_fn::<_, TOGETHER, _>(|i| row(j + i)), x);
                out[j..j + TOGETHER].copy_from_slice(&dots);
                j += TOGETHER;
            }
        }
        for j in j..out.len() {
            [out[j]] = dots(s, [row(j)], x);
        }
        out.iter_mut().zip(&change.scales[first..]).for_each(|(h, scale)| *h *= scale);
    }
}

/// The products of rows with `x`: vector i goes to sum i mod 2.
#[inline(always)]
fn dots<S: Simd, const N: usize>(s: S, rows: [&[Sixteen]; N], x: &[f32]) -> [f32; N] {
    let mut sums = [[s.zero(); 2]; N];
    let whole = x.len() / LANES;
    let (vectors, tail) = x.as_chunks::<LANES>();
    for i in 0..whole {
        let x = s.load(&vectors[i]);
        for n in 0..N {
            sums[n][i % 2] = s.load(&rows[n][i].0).fma(x, sums[n][i % 2]);
        }
    }
    if !tail.is_empty() {
        let x = s.load_partial(tail, 0.0);
        for n in 0..N {
            sums[n][whole % 2] = s.load(&rows[n][whole].0).fma(x, sums[n][whole % 2]);
        }
    }
    sums.map(|[a, b]| (a + b).sum())
}

struct Add<'a> {
    low: &'a [f32],
    b: &'a [Sixteen],
    y: &'a mut [f32],
}

impl Kernel for Add<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Add { low, b, y } = self;
        for (y, b) in y.as_chunks_mut::<UNIT>().0.iter_mut().zip(b.chunks_exact(low.len())) {
            // Rank j goes to sum j mod 4.
            let mut sums = [s.zero(); 4];
            for (b, low) in b.chunks(4).zip(low.chunks(4)) {
                for (sum, (b, low)) in sums.iter_mut().zip(b.iter().zip(low)) {
                    *sum = s.load(&b.0).fma(s.splat(*low), *sum);
                }
            }
            (s.load(y) + ((sums[0] + sums[1]) + (sums[2] + sums[3]))).store(y);
        }
    }
}
