//! How much to guess: of the guesses at hand as many as give the most tokens per second, by the measured chance of each and the
//! measured time of a step; none where it does not pay. What wrong guesses may cost in all is bounded by an account: it starts
//! with the time of two tokens and grows by 0.8% of the time that plain decoding takes, so text that nobody can guess is at
//! most that much slower, and that is also what now and then pays for a probe.

use super::rates::{Class, Rates};
use super::tree::Tree;
use super::verify;

/// What the account starts with and its most, in times of a token; and what it earns with each.
const BALANCE_START: f64 = 2.0;
const BALANCE_MAX: f64 = 6.0;
const INCOME: f64 = 0.008;
/// A gain smaller than this is not worth the doubt.
const GAIN_LEAST: f64 = 1.03;
/// Steps without a guess until a doubtful one is tried again, at first and at most.
const WAIT_LEAST: u32 = 4;
const WAIT_MAX: u32 = 64;

/// The step that the guesses would join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Load {
    /// Its rows without guesses, the sequence's own among them.
    pub(crate) rows: usize,
    /// Tokens that it makes without guesses, the sequence's own among them: at least 1.
    pub(crate) tokens: usize,
    /// Most guesses.
    pub(crate) room: usize,
}

/// Seconds that a step of so many rows takes.
pub(crate) type Cost<'a> = &'a dyn Fn(usize) -> f64;

/// One request's judgement.
#[derive(Debug, Default)]
pub(crate) struct Depth {
    rates: Rates,
    /// In seconds; `None` before the first step.
    balance: Option<f64>,
    /// Steps since the last guess, and how many there must be before a doubtful one.
    idle: u32,
    wait: u32,
}

impl Depth {
    /// Keeps the guesses that pay.
    pub(crate) fn choose(&self, tree: &Tree, shared: &Rates, load: &Load, cost: Cost) -> Tree {
        let most = tree.guesses().min(load.room);
        if most == 0 {
            return tree.keep(|_| false);
        }
        let reach = self.reach(tree, shared);
        let mut order: Vec<usize> = (1..reach.len()).collect();
        // A child reaches no further than its parent and comes after it, so every prefix is a tree.
        order.sort_by(|a, b| reach[*b].total_cmp(&reach[*a]));
        let (plain, tokens) = (cost(load.rows), load.tokens as f64);
        let balance = self.balance(load, cost);
        let (mut best, mut best_rate, mut gain) = (0, tokens / plain * GAIN_LEAST, 0.0);
        for k in 1..=most {
            gain += f64::from(reach[order[k - 1]]);
            let time = cost(load.rows + k);
            if (tokens + gain) / time > best_rate && time - plain <= balance {
                (best, best_rate) = (k, (tokens + gain) / time);
            }
        }
        if best == 0 && self.is_due() && cost(load.rows + 1) - plain <= balance {
            best = 1;
        }
        let wanted = &order[..best];
        tree.keep(|n| wanted.contains(&n))
    }

    /// Whether a draft model should be asked for a first token, which takes `extra` seconds.
    pub(crate) fn starts(&self, extra: f64, shared: &Rates, load: &Load, cost: Cost) -> bool {
        let lost = cost(load.rows + 1) - cost(load.rows) + extra;
        load.room > 0
            && lost <= self.balance(load, cost)
            && (self.is_due() || self.pays(1.0, Class::draft(0.9), extra, shared, load, cost))
    }

    /// Whether one more token of a draft model is worth its time, `extra` seconds of the draft's step, after guesses that come
    /// true with chance `reach`; `class` is what the last one rested on.
    pub(crate) fn pays(
        &self,
        reach: f32,
        class: Class,
        extra: f64,
        shared: &Rates,
        load: &Load,
        cost: Cost,
    ) -> bool {
        let plain = cost(load.rows);
        let worth = f64::from(reach * self.rates.chance(shared, class)) * plain / load.tokens as f64;
        worth > GAIN_LEAST * (cost(load.rows + 1) - plain + extra)
    }

    /// Whether nothing has been guessed for so long that it should be tried again.
    fn is_due(&self) -> bool {
        self.idle >= self.wait.max(WAIT_LEAST)
    }

    /// What the sequence itself has shown.
    pub(crate) fn rates(&self) -> &Rates {
        &self.rates
    }

    /// Chance that the path to each node comes true.
    pub(crate) fn reach(&self, tree: &Tree, shared: &Rates) -> Vec<f32> {
        let mut reach = vec![1.0; tree.nodes().len()];
        for (i, n) in tree.nodes().iter().enumerate().skip(1) {
            reach[i] = reach[n.parent] * self.rates.chance(shared, n.class);
        }
        reach
    }

    /// Books a step: `kept` were its guesses, `drawn` the tokens that came, `extra` the seconds that guessing took.
    pub(crate) fn settle(
        &mut self,
        kept: &Tree,
        drawn: &[u32],
        extra: f64,
        shared: &mut Rates,
        load: &Load,
        cost: Cost,
    ) {
        let token = cost(load.rows) / load.tokens as f64;
        let mut balance = self.balance(load, cost) + INCOME * token - extra;
        let guesses = kept.guesses();
        self.idle += 1;
        if guesses > 0 {
            self.idle = 0;
            let mut hits = 0;
            verify::observe(kept, drawn, |class, hit| {
                self.rates.observe(class, hit);
                shared.observe(class, hit);
                hits += u64::from(hit);
            });
            balance += hits as f64 * token - (cost(load.rows + guesses) - cost(load.rows));
            self.wait = if hits > 0 { WAIT_LEAST } else { (2 * self.wait).clamp(WAIT_LEAST, WAIT_MAX) };
        }
        self.balance = Some(balance.min(BALANCE_MAX * token));
    }

    /// Seconds that may still be lost.
    pub(crate) fn balance(&self, load: &Load, cost: Cost) -> f64 {
        self.balance.unwrap_or_else(|| BALANCE_START * cost(load.rows) / load.tokens as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speculate::tree::ROOT;
    use crate::speculate::tree::tests::tree;
    use proptest::prelude::*;

    const ALONE: Load = Load { rows: 1, tokens: 1, room: 16 };

    fn linear(a: f64, b: f64) -> impl Fn(usize) -> f64 {
        move |rows| a + b * rows as f64
    }

    fn chain(n: usize, class: Class) -> Tree {
        let mut t = Tree::new(0);
        (0..n).fold(ROOT, |at, i| t.add(at, i as u32, class));
        t
    }

    /// Decodes `n` tokens with guesses of which `hit` says whether they come true; the time against that of plain decoding.
    fn slowdown(n: usize, cost: Cost, load: Load, mut hit: impl FnMut(usize) -> bool) -> f64 {
        let (mut depth, mut shared) = (Depth::default(), Rates::default());
        let (mut time, mut tokens) = (0.0, 0);
        while tokens < n {
            let tree = chain(8, Class::lookup(5));
            let kept = depth.choose(&tree, &shared, &load, cost);
            let mut drawn: Vec<u32> = Vec::new();
            while drawn.len() < kept.guesses() && hit(tokens + drawn.len()) {
                drawn.push(drawn.len() as u32);
            }
            drawn.push(99);
            time += cost(load.rows + kept.guesses())
                - (load.tokens - 1) as f64 * cost(load.rows) / load.tokens as f64;
            depth.settle(&kept, &drawn, 0.0, &mut shared, &load, cost);
            tokens += drawn.len();
        }
        time / (tokens as f64 * cost(load.rows) / load.tokens as f64)
    }

    #[test]
    fn hopeless_text_costs_at_most_two_percent_and_certain_text_gains() {
        for (a, b) in [(1.0, 0.02), (1.0, 0.3), (0.1, 1.0)] {
            for load in [ALONE, Load { rows: 8, tokens: 8, room: 16 }, Load { rows: 100, tokens: 4, room: 3 }]
            {
                let cost = linear(a, b);
                let lost = slowdown(300, &cost, load, |_| false);
                assert!((1.0..1.02).contains(&lost), "{a} {b} {load:?}: {lost}");
                let won = slowdown(300, &cost, load, |_| true);
                // Where rows cost as much as steps there is nothing to gain.
                assert!(
                    won < if b < 0.5 && load.tokens == 1 { 0.55 } else { 1.01 },
                    "{a} {b} {load:?}: {won}"
                );
            }
        }
    }

    #[test]
    fn text_that_turns_repetitive_is_noticed_and_one_that_turns_random_too() {
        let cost = linear(1.0, 0.2);
        let late = slowdown(1000, &cost, ALONE, |i| i > 300);
        assert!(late < 0.65, "{late}");
        let early = slowdown(1000, &cost, ALONE, |i| i < 300);
        assert!(early < 0.9, "{early}");
    }

    #[test]
    fn guesses_are_as_many_as_their_chance_and_the_cost_of_rows_allow() {
        let shared = Rates::default();
        let kept = |class, b| {
            let cost = linear(1.0, b);
            Depth::default().choose(&chain(16, class), &shared, &ALONE, &cost).guesses()
        };
        let sure = Class::lookup(20);
        assert!(kept(sure, 0.02) > kept(sure, 0.2) && kept(sure, 0.2) > kept(Class::lookup(4), 0.2));
        assert_eq!(kept(Class::lookup(2), 1.0), 0);
    }

    #[test]
    fn a_draft_goes_on_while_it_pays() {
        let (d, shared) = (Depth::default(), Rates::default());
        let cost = linear(1.0, 0.1);
        let (sure, unsure) = (Class::draft(0.99), Class::draft(0.1));
        let pays = |reach, class, extra| d.pays(reach, class, extra, &shared, &ALONE, &cost);
        assert!(
            pays(1.0, sure, 0.2) && !pays(1.0, sure, 1.2) && !pays(0.1, sure, 0.2) && !pays(1.0, unsure, 0.2)
        );
    }

    proptest! {
        #[test]
        fn what_is_kept_is_a_tree_within_the_room(
            t in tree(5, 20), rows in 1usize..40, room in 0usize..20, b in 0.0f64..0.2,
        ) {
            let cost = linear(1.0, b);
            let load = Load { rows, tokens: 1, room };
            let kept = Depth::default().choose(&t, &Rates::default(), &load, &cost);
            prop_assert!(kept.guesses() <= room);
            for n in 1..kept.nodes().len() {
                let mut at = ROOT;
                for p in kept.path(n) {
                    at = t.child(at, kept.nodes()[p].token).unwrap();
                }
            }
        }
    }
}
