//! Rotary embedding: angles once per row and step, rotations of all heads of a row.

use crate::simd::{F32x16, Isa, Kernel, LANES, Simd};
use quarrel_ir::{RopeStyle, RopeTable};

/// Rotates the heads of one row. `cos` and `sin` have one element per pair, as [`RopeTable::angles`] writes them.
pub(crate) fn rope(isa: Isa, table: &RopeTable, head_dim: usize, cos: &[f32], sin: &[f32], x: &mut [f32]) {
    let (first, rot) = (table.first as usize, table.rot_dims as usize);
    isa.run(Row { style: table.style, first, rot, head_dim, cos, sin, x })
}

struct Row<'a> {
    style: RopeStyle,
    first: usize,
    rot: usize,
    head_dim: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    x: &'a mut [f32],
}

impl Kernel for Row<'_> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let half = self.rot / 2;
        for head in self.x.chunks_exact_mut(self.head_dim) {
            let head = &mut head[self.first..];
            match self.style {
                RopeStyle::Neox => {
                    let (a, b) = head[..self.rot].split_at_mut(half);
                    halves(s, self.cos, self.sin, a, b);
                }
                // The compiler turns this into shuffles of whole vectors.
                RopeStyle::Interleaved => {
                    for ((pair, c), s) in
                        head[..self.rot].as_chunks_mut::<2>().0.iter_mut().zip(self.cos).zip(self.sin)
                    {
                        *pair = [pair[0] * c - pair[1] * s, pair[0] * s + pair[1] * c];
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn halves<S: Simd>(s: S, cos: &[f32], sin: &[f32], a: &mut [f32], b: &mut [f32]) {
    for (((a, b), cos), sin) in
        a.chunks_mut(LANES).zip(b.chunks_mut(LANES)).zip(cos.chunks(LANES)).zip(sin.chunks(LANES))
    {
        let full = a.len() == LANES;
        let load = |p: &[f32]| if full { s.load(p) } else { s.load_partial(p, 0.0) };
        let (x, y, c, n) = (load(a), load(b), load(cos), load(sin));
        let (p, q) = (x * c - y * n, x * n + y * c);
        if full {
            p.store(a);
            q.store(b);
        } else {
            p.store_partial(a);
            q.store_partial(b);
        }
    }
}
