//! Bias by distance (Raffel et al. 2020, T5): each head adds to a score a number out of a table, by the bucket of the distance
//! between query and key. Near distances have a bucket each, far ones share them by their logarithm.

use crate::program::WeightId;

/// The largest distance that a table may tell apart.
pub const DISTANCE_MAX: u32 = 1 << 12;

/// Buckets of distances, and the table of what they add.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buckets {
    /// `[buckets, heads]`.
    pub table: WeightId,
    /// From this distance on all are in the last bucket.
    pub most: u32,
    /// Half of the buckets are for keys behind the query; otherwise such keys are as the query's own.
    pub both_ways: bool,
}

impl Buckets {
    /// The row of a table of `count` for a key that lies `ahead` of the query, or before it where negative.
    pub fn row(&self, count: u32, ahead: i64) -> u32 {
        let (count, first) = match self.both_ways {
            true => (count / 2, if ahead > 0 { count / 2 } else { 0 }),
            false => (count, 0),
        };
        let distance = if self.both_ways { ahead.unsigned_abs() } else { ahead.min(0).unsigned_abs() };
        let exact = count / 2;
        if distance < u64::from(exact) {
            return first + distance as u32;
        }
        // In single precision, as the models were trained.
        let exact = exact as f32;
        let share = (distance as f32 / exact).ln() / (f64::from(self.most) / f64::from(exact)).ln() as f32;
        let far = (share * (count as f32 - exact)) as u32;
        first + (exact as u32 + far).min(count - 1)
    }

    /// Whether a table of `count` rows can be meant.
    pub fn fits(&self, count: u32) -> bool {
        let own = if self.both_ways { count / 2 } else { count };
        let even = !self.both_ways || count.is_multiple_of(2);
        even && own >= 2 && self.most > own / 2 && self.most <= DISTANCE_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `transformers` 5.23 gives: the first distance of each bucket.
    #[test]
    fn buckets_begin_where_they_do_in_transformers() {
        let first = |b: Buckets| -> Vec<i64> {
            let n = |bucket| (0..400).find(|d| b.row(32, -d) == bucket).unwrap();
            (0..if b.both_ways { 16 } else { 32 }).map(n).collect()
        };
        let table = WeightId(0);
        let one = Buckets { table, most: 128, both_ways: false };
        assert_eq!(first(one), ONE_WAY);
        let both = Buckets { table, most: 128, both_ways: true };
        assert_eq!(first(both), BEFORE);
        assert!((1..400).all(|d| both.row(32, d) == 16 + both.row(32, -d)));
        assert_eq!((one.row(32, 5), both.row(32, 0), both.row(32, 1)), (0, 0, 17));
        assert_eq!((one.row(32, -1 << 40), both.row(32, 1 << 40)), (31, 31));
        assert!(one.fits(32) && both.fits(32) && !both.fits(33) && !both.fits(2) && !one.fits(256));
    }

    const ONE_WAY: [i64; 32] = [
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67,
        77, 87, 99, 113,
    ];
    const BEFORE: [i64; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91];
}
