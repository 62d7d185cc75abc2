//! The random numbers of a request: PCG64 (XSL-RR 128/64), O'Neill, "PCG: A Family of Simple Fast Space-Efficient
//! Statistically Good Algorithms for Random Number Generation", 2014. Integer arithmetic only, so a seed gives the same
//! numbers on every machine.

const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;
const STREAM: u128 = 0xda3e_39cb_94b9_5bdb;

/// A generator with 128 bits of state.
#[derive(Debug, Clone)]
pub(crate) struct Pcg64 {
    state: u128,
    increment: u128,
}

impl Pcg64 {
    /// The generator of a request's seed. SplitMix64 (Steele et al. 2014) spreads it over the state, so that seeds 1 and
    /// 2 have nothing in common.
    pub(crate) fn new(seed: u64) -> Pcg64 {
        let mut s = seed;
        let high = split_mix(&mut s);
        Pcg64::from_state(u128::from(high) << 64 | u128::from(split_mix(&mut s)), STREAM)
    }

    fn from_state(state: u128, stream: u128) -> Pcg64 {
        let mut rng = Pcg64 { state: 0, increment: stream << 1 | 1 };
        rng.step();
        rng.state = rng.state.wrapping_add(state);
        rng.step();
        rng
    }

    fn step(&mut self) {
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }

    fn next_u64(&mut self) -> u64 {
        self.step();
        (((self.state >> 64) ^ self.state) as u64).rotate_right((self.state >> 122) as u32)
    }

    /// Uniform in `[0, 1)`, a multiple of 2^-53.
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of pcg64 demo programs seeded with (42, 54), as in the C library's `check-pcg64` output.
    #[test]
    fn equals_the_c_library() {
        let mut rng = Pcg64::from_state(42, 54);
        let want =
            [0x86b1_da1d_7206_2b68, 0x1304_aa46_c985_3d39, 0xa367_0e9e_0dd5_0358, 0xf909_0e52_9a7d_ae00];
        for w in want {
            assert_eq!(rng.next_u64(), w);
        }
    }

    #[test]
    fn uniform_stays_below_one() {
        let mut rng = Pcg64::new(7);
        let mean =
            (0..10_000).map(|_| rng.uniform()).inspect(|u| assert!((0.0..1.0).contains(u))).sum::<f64>()
                / 1e4;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
    }
}
