//! The one merging loop of both BPE kinds: join the best neighbouring pair until none is left, with a heap, so that a
//! text of n symbols takes about n log n steps however it is made.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::table::NONE;

/// A run of bytes of the text that is one symbol so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    pub(super) start: u32,
    /// 0 once it was merged into its left neighbour.
    pub(super) len: u32,
    /// Its token, or [`NONE`].
    pub(super) id: u32,
    prev: u32,
    next: u32,
}

/// A possible merge: key, left symbol, right symbol, bytes of both, id of the joined token.
type Pair = (u32, u32, u32, u32, u32);

/// Work space, kept between words so that it is allocated once a text.
#[derive(Debug, Default)]
pub(super) struct Merger {
    pub(super) symbols: Vec<Symbol>,
    heap: BinaryHeap<Reverse<Pair>>,
}

impl Merger {
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
        self.heap.clear();
    }

    /// Appends a symbol of `len` bytes behind the last one.
    pub(super) fn push(&mut self, len: u32, id: u32) {
        let i = self.symbols.len() as u32;
        let start = self.symbols.last().map_or(0, |s| s.start + s.len);
        if let Some(last) = self.symbols.last_mut() {
            last.next = i;
        }
        self.symbols.push(Symbol { start, len, id, prev: i.wrapping_sub(1), next: NONE });
    }

    /// Merges until no pair is left. `pair(left, right)` gives a key (lowest first; equal keys leftmost first) and the
    /// id of the joined token, or nothing.
    pub(super) fn run(&mut self, pair: impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        for i in 1..self.symbols.len() as u32 {
            self.offer(i - 1, i, &pair);
        }
        while let Some(Reverse((_, left, right, len, id))) = self.heap.pop() {
            let (l, r) = (self.symbols[left as usize], self.symbols[right as usize]);
            if l.len == 0 || r.len == 0 || l.len + r.len != len {
                continue; // one side has changed since
            }
            self.symbols[right as usize].len = 0;
            let joined = &mut self.symbols[left as usize];
            (joined.len, joined.id, joined.next) = (len, id, r.next);
            if r.next != NONE {
                self.symbols[r.next as usize].prev = left;
                self.offer(left, r.next, &pair);
            }
            if l.prev != NONE {
                self.offer(l.prev, left, &pair);
            }
        }
    }

    fn offer(&mut self, left: u32, right: u32, pair: &impl Fn(&Symbol, &Symbol) -> Option<(u32, u32)>) {
        let (l, r) = (&self.symbols[left as usize], &self.symbols[right as usize]);
        if let Some((key, id)) = pair(l, r) {
            let len = l.len + r.len;
            self.heap.push(Reverse((key, left, right, len, id)));
        }
    }

    /// The symbols that are left, in order.
    pub(super) fn alive(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|s| s.len > 0)
    }
}

/// A key that orders scores from high to low (`-0` and `0` equal).
pub(super) fn score_key(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn score_keys_order_high_to_low() {
        let scores = [f32::INFINITY, 3.5, 0.0, -0.5, -2.0, -1e9, f32::NEG_INFINITY];
        let keys: Vec<u32> = scores.iter().map(|&s| score_key(s)).collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "{keys:?}");
        assert_eq!(score_key(-0.0), score_key(0.0));
    }
}
