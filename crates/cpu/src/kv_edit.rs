//! Shortening a sequence in the cache: kept tokens move to the front, their keys turn to where they are then.
//!
//! A head's part of a page is its own, so heads are split over the threads; and a kept token never moves backwards, so
//! going through them in order a page may be its own target.

use crate::kv::codes::{self, Part};
use crate::kv::{KvShare, Stored, by_type};
use crate::pool::Team;
use crate::simd::{Isa, Kernel, Simd};
use quarrel_ir::{BLOCK_TOKENS, Keep, KeyRotation, KvLayer, Turn};
use std::marker::PhantomData;

/// One sequence on its way to be shorter.
pub(crate) struct Compaction<'a> {
    pub(crate) isa: Isa,
    pub(crate) kv: KvShare<'a>,
    pub(crate) layers: &'a [KvLayer],
    pub(crate) rotations: &'a [Option<KeyRotation>],
    pub(crate) from: &'a [u32],
    pub(crate) to: &'a [u32],
    pub(crate) keep: &'a Keep,
}

impl Compaction<'_> {
    /// One thread's share.
    pub(crate) fn thread(&self, team: &Team) {
        let heads = || {
            self.layers
                .iter()
                .enumerate()
                .flat_map(|(l, layer)| (0..layer.kv_heads as usize).map(move |h| (l, h)))
        };
        for i in team.share(heads().count()) {
            if let Some((layer, head)) = heads().nth(i) {
                let kept = self.keep.head(i);
                by_type!(self.kv.kind(), T, self.isa.run(Head::<T>(self, layer, head, kept, PhantomData)));
            }
        }
    }
}

/// One head of one layer, and what is kept of it.
struct Head<'a, T>(&'a Compaction<'a>, usize, usize, &'a [u32], PhantomData<T>);

impl<T: Stored> Kernel for Head<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Head(c, layer, head, kept, _) = self;
        let (from, to) = (c.kv.head(layer, head, c.from), c.kv.head(layer, head, c.to));
        let KvLayer { head_dim, v_dim, .. } = c.layers[layer];
        let mut key = vec![0.0; head_dim as usize];
        let mut value = vec![0.0; v_dim as usize];
        let mut turns: Vec<Turn> = Vec::new();
        let mut by = 0;
        for (new, old) in kept.iter().enumerate() {
            let (block, token) = (new / BLOCK_TOKENS, new % BLOCK_TOKENS);
            let old = *old as usize;
            let (old_block, old_token) = (old / BLOCK_TOKENS, old % BLOCK_TOKENS);
            let (keys, values) = (from.keys(old_block), from.values(old_block));
            let (new_keys, new_values) = (to.keys(block), to.values(block));
            if old == new {
                // What does not move stays as it is, to the bit: with the page of the first such token come all.
                if token == 0 && keys.0 != new_keys.0 {
                    for (from, to) in [(keys, new_keys), (values, new_values)] {
                        // SAFETY: the head's parts of two pages, which are different; this thread alone has the head.
                        unsafe { std::ptr::copy_nonoverlapping(from.0, to.0.cast_mut(), from.1) };
                    }
                }
                continue;
            }
            // SAFETY: the head's parts of a page, which this thread alone has and does not write while it reads.
            unsafe {
                T::read(Part::Keys, old_token, std::slice::from_raw_parts(keys.0, keys.1), &mut key);
                T::read(Part::Values, old_token, std::slice::from_raw_parts(values.0, values.1), &mut value);
            }
            if let Some(rotation) = &c.rotations[layer] {
                if by != old - new {
                    by = old - new;
                    turns.clear();
                    turns.extend(rotation.turns(old as u32, new as u32));
                }
                if T::ROTATED {
                    codes::rotate(s, &mut key, head_dim as usize);
                }
                for &Turn { a, b, cos, sin } in &turns {
                    let (x, y, cos, sin) = (key[a], key[b], cos as f32, sin as f32);
                    (key[a], key[b]) = (x * cos - y * sin, x * sin + y * cos);
                }
                if T::ROTATED {
                    codes::rotate(s, &mut key, head_dim as usize);
                }
            }
            // SAFETY: as above; the token moves to the front, so what it overwrites was read.
            unsafe {
                T::store(s, Part::Keys, token, &key, new_keys.0.cast_mut());
                T::store(s, Part::Values, token, &value, new_values.0.cast_mut());
            }
        }
    }
}
