//! Which tokens of a sequence stay in the cache when it outgrows its budget: the policies, when they act, and what they
//! lost. Pure: the device moves the tokens, and tells how much attention each received.
//!
//! A sequence is shortened exactly when it reaches a length that follows from its request alone, whatever steps brought it
//! there; so its tokens do not depend on what else the engine does. It then keeps 7/8 of the budget, so that the work of
//! shortening is shared by many tokens.

use crate::{Error, Result};
use quarrel_ir::{Keep, Mass};

/// What happens to a sequence that outgrows its budget.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Eviction {
    /// A prompt that does not fit is refused, and an answer ends with [`crate::FinishReason::Length`].
    #[default]
    Refuse,
    /// The first tokens, on which attention rests however little they say, and the most recent ones stay: StreamingLLM (Xiao
    /// et al. 2023, "Efficient Streaming Language Models with Attention Sinks").
    Slide {
        /// First tokens that stay.
        sinks: u32,
    },
    /// In each head the most recent tokens stay, and of the others those that received most attention since they came:
    /// heavy hitters (Zhang et al. 2023, "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of LLMs"). All
    /// attention is added up, which costs time in every step.
    H2o {
        /// Share of the kept tokens that are the most recent ones, 0 to 1.
        recent: f32,
    },
    /// In each head the last tokens stay, and of the others those to which the queries of these attend most, with their
    /// neighbours (Li et al. 2024, "SnapKV: LLM Knows What You are Looking for Before Generation"). A longer prompt than the
    /// budget is shortened at its end, not before, so it must fit into the context. The paper stops there; here the same
    /// is done whenever the answer fills the budget again.
    SnapKv {
        /// Last tokens, whose queries choose.
        window: u32,
        /// A token counts as much as the best of so many around it; odd.
        kernel: u32,
    },
}

impl Eviction {
    /// StreamingLLM with its four sinks.
    pub const SLIDE: Eviction = Eviction::Slide { sinks: 4 };
    /// H2O with as many recent tokens as heavy ones.
    pub const H2O: Eviction = Eviction::H2o { recent: 0.5 };
    /// SnapKV as in the paper's experiments.
    pub const SNAP_KV: Eviction = Eviction::SnapKv { window: 32, kernel: 7 };

    /// Checks its numbers, and that a budget of `budget` tokens has room for what always stays.
    pub fn check(&self, budget: usize) -> Result<()> {
        let field = |field, value: String, range, ok: bool| {
            if ok { Ok(()) } else { Err(Error::Field { field, value, range }) }
        };
        let fixed = match *self {
            Eviction::Refuse => return Ok(()),
            Eviction::Slide { sinks } => sinks,
            Eviction::H2o { recent } => {
                field("eviction.recent", recent.to_string(), "0 to 1", (0.0..=1.0).contains(&recent))?;
                0
            }
            Eviction::SnapKv { window, kernel } => {
                field("eviction.window", window.to_string(), "1 or more tokens", window > 0)?;
                let odd = kernel % 2 == 1 && kernel < 1024;
                field("eviction.kernel", kernel.to_string(), "an odd number below 1024", odd)?;
                window
            }
        };
        let range = "16 tokens or more, and twice those that the eviction policy always keeps";
        field("kv_tokens", budget.to_string(), range, budget >= 16 && budget / 2 >= fixed as usize)
    }
}

/// What an eviction dropped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evicted {
    /// Tokens in the cache before.
    pub before: usize,
    /// Tokens that were dropped (in each head, where heads choose).
    pub dropped: usize,
    /// Share of the attention of the observed rows, 0 to 1, that fell on what was dropped: the mean over layers and heads.
    pub mass_lost: f64,
}

/// What evictions dropped of a request's sequence.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct EvictionStats {
    /// Times that it was shortened.
    pub evictions: usize,
    /// Tokens that were dropped.
    pub evicted_tokens: usize,
    /// Share of attention, 0 to 1, that fell on what was about to be dropped: the mean over evictions of
    /// [`Evicted::mass_lost`].
    pub mass_lost: f64,
}

impl EvictionStats {
    /// Counts one more.
    pub fn add(&mut self, evicted: &Evicted) {
        self.merge(&EvictionStats {
            evictions: 1,
            evicted_tokens: evicted.dropped,
            mass_lost: evicted.mass_lost,
        });
    }

    /// Counts those of another sequence too.
    pub fn merge(&mut self, other: &EvictionStats) {
        let (a, b) = (self.evictions as f64, other.evictions as f64);
        if b > 0.0 {
            self.mass_lost = (self.mass_lost * a + other.mass_lost * b) / (a + b);
        }
        self.evictions += other.evictions;
        self.evicted_tokens += other.evicted_tokens;
    }
}

/// The last rows before an eviction, whose attention tells what it lost, where the policy itself observes none.
const SAMPLE: usize = 8;

/// The eviction of one sequence.
#[derive(Debug, Clone)]
pub struct Evictor {
    policy: Eviction,
    budget: usize,
    /// The length at which the sequence is shortened, for the first time and next.
    first_due: usize,
    due: usize,
    /// By head: what the kept tokens received before the last eviction.
    received: Vec<Vec<f32>>,
}

impl Evictor {
    /// For a sequence with a prompt of `prompt` tokens; none if the policy is to refuse. Errors as [`Eviction::check`].
    pub fn new(policy: Eviction, budget: usize, prompt: usize) -> Result<Option<Evictor>> {
        policy.check(budget)?;
        let due = match policy {
            Eviction::Refuse => return Ok(None),
            Eviction::Slide { .. } | Eviction::H2o { .. } => budget,
            Eviction::SnapKv { .. } => budget.max(prompt),
        };
        Ok(Some(Evictor { policy, budget, first_due: due, due, received: Vec::new() }))
    }

    /// Most tokens of the sequence in the cache from now on.
    pub fn most(&self) -> usize {
        self.due
    }

    /// Tokens that stay of a sequence that has no room.
    pub fn kept(&self) -> usize {
        self.budget - (self.budget / 8).max(1)
    }

    /// Begins again with an empty sequence.
    pub fn restart(&mut self) {
        self.due = self.first_due;
        self.received.clear();
    }

    /// Tokens that may be added to `len` before the sequence must be shortened; 0 when it is time.
    pub fn room(&self, len: usize) -> usize {
        self.due.saturating_sub(len)
    }

    /// How many of the next `rows` rows, the last of them, are to be observed.
    pub fn observe(&self, len: usize, rows: usize) -> usize {
        let watched = match self.policy {
            Eviction::H2o { .. } => self.due,
            Eviction::SnapKv { window, .. } => window as usize,
            Eviction::Slide { .. } | Eviction::Refuse => SAMPLE,
        };
        (len + rows).saturating_sub(self.due.saturating_sub(watched)).min(rows)
    }

    /// The first row that must be computed, and not be taken from a cache, for the choice to be the sequence's own.
    pub fn first_observed(&self) -> usize {
        self.due - self.observe(0, self.due)
    }

    /// Chooses what stays of a sequence that has no room, given what its observed rows attended to, in `heads` heads.
    pub fn shorten(&mut self, mass: &Mass, heads: usize) -> (Keep, Evicted) {
        let before = self.due;
        let target = self.kept();
        let keep = match self.policy {
            Eviction::Slide { sinks } => {
                let (sinks, recent) = (sinks as usize, target - sinks as usize);
                Keep::Tokens((0..sinks).chain(before - recent..before).map(|t| t as u32).collect())
            }
            Eviction::H2o { recent } => {
                self.received.resize(heads, Vec::new());
                let recent = (target as f32 * recent) as usize;
                let choose = |(h, sums): (usize, &mut Vec<f32>)| {
                    sums.resize(before, 0.0);
                    sums.iter_mut().zip(head(mass, h)).for_each(|(s, m)| *s += m);
                    let kept = heaviest(&sums[..before - recent], target - recent, before);
                    *sums = kept.iter().map(|t| sums[*t as usize]).collect();
                    kept
                };
                Keep::PerHead(self.received.iter_mut().enumerate().map(choose).collect())
            }
            Eviction::SnapKv { window, kernel } => {
                let (window, reach) = (window as usize, kernel as usize / 2);
                let choose = |h| {
                    let mut sums = head(mass, h).to_vec();
                    sums.resize(before, 0.0);
                    let old = &sums[..before - window];
                    heaviest(&max_pool(old, reach), target - window, before)
                };
                Keep::PerHead((0..heads).map(choose).collect())
            }
            Eviction::Refuse => Keep::Tokens((0..before as u32).collect()),
        };
        self.due = self.budget;
        let evicted =
            Evicted { before, dropped: before - keep.len(), mass_lost: mass_lost(mass, heads, &keep) };
        (keep, evicted)
    }
}

/// The sums of a head; none where nothing was observed.
fn head(mass: &Mass, head: usize) -> &[f32] {
    if mass.sums.is_empty() { &[] } else { mass.head(head) }
}

/// The `n` heaviest of the first tokens, of equals the later ones, and all tokens behind them up to `end`.
fn heaviest(weights: &[f32], n: usize, end: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..weights.len() as u32).collect();
    let heavier = |a: &u32, b: &u32| weights[*b as usize].total_cmp(&weights[*a as usize]).then(b.cmp(a));
    if n < order.len() {
        order.select_nth_unstable_by(n, heavier);
        order.truncate(n);
    }
    order.sort_unstable();
    order.extend(weights.len() as u32..end as u32);
    order
}

/// The largest of each number and its neighbours up to `reach` away.
fn max_pool(x: &[f32], reach: usize) -> Vec<f32> {
    let around = |i: usize| &x[i.saturating_sub(reach)..(i + reach + 1).min(x.len())];
    (0..x.len()).map(|i| around(i).iter().copied().fold(f32::NEG_INFINITY, f32::max)).collect()
}

/// The share of `mass` on tokens that are not kept, in the mean over heads; 0 where nothing was observed.
fn mass_lost(mass: &Mass, heads: usize, keep: &Keep) -> f64 {
    let lost = |h| {
        let sums = head(mass, h);
        let total: f64 = sums.iter().map(|x| f64::from(*x)).sum();
        let kept = keep.head(h).iter().filter_map(|t| sums.get(*t as usize));
        let kept: f64 = kept.map(|x| f64::from(*x)).sum();
        if total > 0.0 { (1.0 - kept / total).max(0.0) } else { 0.0 }
    };
    (0..heads).map(lost).sum::<f64>() / heads.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy() -> impl Strategy<Value = Eviction> {
        prop_oneof![
            (0u32..9).prop_map(|sinks| Eviction::Slide { sinks }),
            (0.0f32..=1.0).prop_map(|recent| Eviction::H2o { recent }),
            (1u32..9, 0u32..5).prop_map(|(window, k)| Eviction::SnapKv { window, kernel: 2 * k + 1 }),
        ]
    }

    /// Attention of `rows` rows over `tokens` tokens that is different in each head.
    fn some_mass(heads: usize, tokens: usize, rows: usize, seed: u64) -> Mass {
        let mut x = seed | 1;
        let mut sums: Vec<f32> = (0..heads * tokens)
            .map(|_| {
                x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Few values, so that many are equal.
                (x >> 60) as f32
            })
            .collect();
        for head in sums.chunks_exact_mut(tokens) {
            let total: f32 = head.iter().sum::<f32>().max(1.0);
            head.iter_mut().for_each(|s| *s *= rows as f32 / total);
        }
        Mass { rows, tokens, sums }
    }

    proptest! {
        #[test]
        fn what_stays_is_ascending_of_the_size_and_has_what_must_stay(
            policy in policy(), budget in 18usize..200, prompt in 0usize..500, seed: u64,
        ) {
            let heads = 3;
            let mut evictor = Evictor::new(policy, budget, prompt).unwrap().unwrap();
            let mut len = 0;
            for round in 0..4 {
                prop_assert!(evictor.room(len) > 0);
                len += evictor.room(len);
                let snap = matches!(policy, Eviction::SnapKv { .. }) && round == 0;
                prop_assert_eq!(len, if snap { budget.max(prompt) } else { budget });
                let (keep, evicted) = evictor.shorten(&some_mass(heads, len, 8, seed ^ round), heads);
                keep.check(heads, len).unwrap();
                prop_assert_eq!(keep.len(), budget - budget / 8);
                prop_assert_eq!((evicted.before, evicted.dropped), (len, len - keep.len()));
                prop_assert!((0.0..=1.0).contains(&evicted.mass_lost));
                for h in 0..heads {
                    let kept = keep.head(h);
                    let (first, last) = match policy {
                        Eviction::Slide { sinks } => (sinks as usize, keep.len() - sinks as usize),
                        Eviction::H2o { recent } => (0, (keep.len() as f32 * recent) as usize),
                        Eviction::SnapKv { window, .. } => (0, window as usize),
                        Eviction::Refuse => unreachable!("not generated"),
                    };
                    prop_assert!((0..first).all(|t| kept[t] as usize == t), "sinks");
                    prop_assert!((1..=last).all(|b| kept[kept.len() - b] as usize == len - b), "recents");
                }
                len = keep.len();
            }
        }

        #[test]
        fn rows_are_observed_wherever_steps_end(policy in policy(), prompt in 0usize..200, cut in 1usize..40) {
            let evictor = Evictor::new(policy, 64, prompt).unwrap().unwrap();
            let (mut len, mut observed) = (0, Vec::new());
            while evictor.room(len) > 0 {
                let rows = cut.min(evictor.room(len));
                len += rows;
                observed.extend(len - evictor.observe(len - rows, rows)..len);
            }
            prop_assert_eq!(observed, (evictor.first_observed()..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_heavy_stay_and_later_ones_of_equals() {
        assert_eq!(heaviest(&[0.0, 5.0, 1.0, 1.0, 2.0], 3, 7), [1, 3, 4, 5, 6]);
        assert_eq!(heaviest(&[1.0, f32::NAN], 2, 2), [0, 1]);
        assert_eq!(max_pool(&[0.0, 3.0, 1.0, 0.0, 0.0, 2.0], 1), [3.0, 3.0, 3.0, 1.0, 2.0, 2.0]);
    }

    #[test]
    fn attention_before_an_eviction_still_counts_in_h2o() {
        let mut evictor = Evictor::new(Eviction::H2o { recent: 0.25 }, 16, 0).unwrap().unwrap();
        let mass = |heavy: &[u32]| {
            let sums = (0..16).map(|t| if heavy.contains(&t) { 1.0 } else { 0.0 }).collect();
            Mass { rows: 1, tokens: 16, sums }
        };
        // Tokens 0 and 2 are heavy at first; the others that stay are the latest.
        let (keep, _) = evictor.shorten(&mass(&[0, 2]), 1);
        assert_eq!(keep.head(0), [0, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        // They receive nothing any more, and are still heavier than tokens that never did.
        let (keep, evicted) = evictor.shorten(&mass(&[3]), 1);
        assert_eq!(keep.head(0), [0, 1, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(evicted.mass_lost, 0.0);
    }

    #[test]
    fn lost_attention_is_a_mean_over_heads() {
        let mass = Mass { rows: 2, tokens: 4, sums: vec![1.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 2.0] };
        let keep = Keep::PerHead(vec![vec![0, 3], vec![2, 3]]);
        assert_eq!(mass_lost(&mass, 2, &keep), 0.25);
        assert_eq!(mass_lost(&Mass::default(), 2, &Keep::Tokens(vec![0])), 0.0);
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for (policy, budget) in [
            (Eviction::SLIDE, 15),
            (Eviction::Slide { sinks: 33 }, 64),
            (Eviction::H2o { recent: 1.5 }, 64),
            (Eviction::H2o { recent: f32::NAN }, 64),
            (Eviction::SnapKv { window: 0, kernel: 7 }, 64),
            (Eviction::SnapKv { window: 8, kernel: 6 }, 64),
            (Eviction::SNAP_KV, 63),
        ] {
            assert!(Evictor::new(policy, budget, 0).is_err(), "{policy:?} of {budget}");
        }
        assert!(Evictor::new(Eviction::Refuse, 0, 0).unwrap().is_none());
    }
}
