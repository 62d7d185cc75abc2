//! What attention adds to scores: ALiBi's slopes, or numbers by distance out of a table that is laid out once.

use super::attention::Span;
use crate::simd::{F32x16, LANES, Simd};
use quarrel_ir::{BLOCK_TOKENS, Buckets};

/// A bias by distance as it is added to the keys of a block at once: for each head the numbers of the distances `-most..=most` in
/// turn, and those at the ends again for a block more, so that 16 neighbours can be read wherever a block lies.
pub(crate) struct Distances {
    pub(crate) buckets: Buckets,
    most: usize,
    numbers: Vec<f32>,
}

impl Distances {
    /// Lays a table `[buckets, heads]` out.
    pub(crate) fn new(buckets: Buckets, heads: usize, table: &[f32]) -> Distances {
        let most = buckets.most as usize;
        let (rows, len) = ((table.len() / heads) as u32, Self::len(most));
        let number = |i: usize| {
            let (head, at) = (i / len, i % len);
            let ahead = (at as i64 - (most + BLOCK_TOKENS) as i64).clamp(-(most as i64), most as i64);
            table[buckets.row(rows, ahead) as usize * heads + head]
        };
        let numbers = (0..heads * len).map(number).collect();
        Distances { buckets, most, numbers }
    }

    const fn len(most: usize) -> usize {
        2 * most + 1 + 2 * BLOCK_TOKENS
    }

    /// The numbers of one head.
    pub(crate) fn head(&self, head: usize) -> &[f32] {
        let len = Self::len(self.most);
        &self.numbers[head * len..(head + 1) * len]
    }
}

/// The bias of one query vector.
#[derive(Clone, Copy)]
pub(crate) enum Bias<'a> {
    /// The slope for each position before the given one.
    Slope(f32, usize),
    /// A head's numbers of [`Distances`], and the vector's position.
    Table(&'a [f32], usize),
}

/// The biases of the vectors of a group.
#[derive(Clone, Copy)]
pub(crate) enum Biases<'a> {
    /// Slopes, and what the vectors see.
    Slopes(&'a [f32], &'a [Span]),
    /// By distance: the group's vectors begin at `at` of those of `heads` query heads from `first` on, in turn, whose positions
    /// are given.
    Tables { distances: &'a Distances, first: usize, heads: usize, at: usize, positions: &'a [usize] },
}

impl<'a> Biases<'a> {
    /// That of the group's `i`th vector.
    #[inline(always)]
    pub(crate) fn of(self, i: usize) -> Bias<'a> {
        match self {
            Biases::Slopes(slopes, spans) => Bias::Slope(slopes[i], spans[i].1 - 1),
            Biases::Tables { distances, first, heads, at, positions } => {
                Bias::Table(distances.head(first + (at + i) % heads), positions[at + i])
            }
        }
    }
}

/// Scores of the positions from `first` on, with their bias.
#[inline(always)]
pub(crate) fn biased<S: Simd>(s: S, bias: Option<Bias>, first: usize, score: S::F) -> S::F {
    match bias {
        None => score,
        Some(Bias::Slope(slope, position)) => {
            let index: [f32; LANES] = std::array::from_fn(|i| i as f32);
            let behind = s.load(&index) + s.splat(first as f32 - position as f32);
            behind.fma(s.splat(slope), score)
        }
        Some(Bias::Table(numbers, position)) => {
            let middle = numbers.len() / 2;
            let at = (middle + first).saturating_sub(position).min(numbers.len() - LANES);
            score + s.load(&numbers[at..])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Kernel};
    use quarrel_ir::WeightId;

    struct Add<'a>(Bias<'a>, usize);

    impl Kernel for Add<'_> {
        type Out = [f32; LANES];

        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; LANES] {
            biased(s, Some(self.0), self.1, s.zero()).to_array()
        }
    }

    #[test]
    fn every_block_gets_the_numbers_of_its_distances() {
        let heads = 3;
        let table: Vec<f32> = (0..32 * heads).map(|i| i as f32).collect();
        for (most, both_ways) in [(128, true), (128, false), (20, true), (40, false)] {
            let buckets = Buckets { table: WeightId(0), most, both_ways };
            let d = Distances::new(buckets, heads, &table);
            for (position, block) in
                (0..400).step_by(7).flat_map(|p| (0..400).step_by(16).map(move |b| (p, b)))
            {
                for (head, isa) in (0..heads).flat_map(|h| Isa::available().into_iter().map(move |i| (h, i)))
                {
                    let got = isa.run(Add(Bias::Table(d.head(head), position), block));
                    let want = |i: usize| {
                        table[buckets.row(32, (block + i) as i64 - position as i64) as usize * heads + head]
                    };
                    let want: [f32; LANES] = std::array::from_fn(want);
                    assert_eq!(got, want, "{position} of {most}, block at {block}");
                }
            }
        }
    }
}
