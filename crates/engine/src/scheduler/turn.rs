//! Whose turn it is: classes that age, shares of those who ask, deadlines, then the order of arrival.

use crate::sequence::{Sequence, Standing};
use std::{cmp::Ordering, collections::HashMap, sync::Arc, time::Duration};

/// Waiting so long makes a request as urgent as the next class.
pub(crate) const AGEING: Duration = Duration::from_secs(10);

/// Without a deadline a request counts as if it had this one, so that those with a later one do not wait for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// How urgent a request is by now; 0 is the most.
pub(crate) fn level(s: &Standing, now: Duration) -> u8 {
    let promoted = now.saturating_sub(s.arrived).as_nanos() / AGEING.as_nanos();
    (s.class as u8).saturating_sub(promoted.min(255) as u8)
}

/// What one key has had.
#[derive(Debug)]
struct Account {
    rows: f64,
    sequences: usize,
}

/// Rows computed by key, for those that have something to do. A key that comes starts where the least served one stands, so
/// that an absence earns nothing and costs nothing (start-time fair queueing, Goyal 1996).
#[derive(Debug, Default)]
pub(crate) struct Shares(HashMap<Arc<str>, Account>);

impl Shares {
    pub(crate) fn enter(&mut self, key: &Arc<str>) {
        let least = self.0.values().map(|a| a.rows).min_by(f64::total_cmp).unwrap_or(0.0);
        self.0.entry(key.clone()).or_insert(Account { rows: least, sequences: 0 }).sequences += 1;
    }

    pub(crate) fn leave(&mut self, key: &Arc<str>) {
        let Some(account) = self.0.get_mut(key) else { return };
        account.sequences -= 1;
        if account.sequences == 0 {
            self.0.remove(key);
        }
    }

    pub(crate) fn charge(&mut self, key: &Arc<str>, rows: usize) {
        if let Some(account) = self.0.get_mut(key) {
            account.rows += rows as f64;
        }
    }

    fn of(&self, key: &Arc<str>) -> f64 {
        self.0.get(key).map_or(0.0, |a| a.rows)
    }

    /// Keys that have something to do.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Of two that wait: the more urgent level, what another waits for, one that has run before (the earlier first, so that the sequences of one
    /// request meet again), the key that had less, the nearer deadline, the earlier arrival.
    pub(crate) fn compare(&self, a: &Sequence, b: &Sequence, now: Duration) -> Ordering {
        let due = |s: &Standing| s.deadline.unwrap_or(s.arrived + PATIENCE);
        let (x, y) = (&a.standing, &b.standing);
        level(x, now)
            .cmp(&level(y, now))
            .then(b.beside.cmp(&a.beside))
            .then(b.admitted.is_some().cmp(&a.admitted.is_some()))
            .then_with(|| if a.admitted.is_some() { a.order.cmp(&b.order) } else { Ordering::Equal })
            .then(self.of(&x.key).total_cmp(&self.of(&y.key)))
            .then(due(x).cmp(&due(y)))
            .then(a.order.cmp(&b.order))
            .then(a.id.cmp(&b.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Class;
    use crate::sequence::Goal;

    fn sequence(id: u64, class: Class, key: &str, arrived: u64, deadline: Option<u64>) -> Sequence {
        let s = Duration::from_secs;
        let standing = Standing { class, key: key.into(), arrived: s(arrived), deadline: deadline.map(s) };
        Sequence { standing, order: id, ..Sequence::new(id, [0; 32], vec![1], Goal::Next) }
    }

    fn order(shares: &Shares, now: u64, mut all: Vec<Sequence>) -> Vec<u64> {
        all.sort_by(|a, b| shares.compare(a, b, Duration::from_secs(now)));
        all.iter().map(|s| s.id).collect()
    }

    #[test]
    fn classes_come_first_and_age() {
        use Class::*;
        let all = || {
            vec![
                sequence(1, Background, "", 0, None),
                sequence(2, Batch, "", 1, None),
                sequence(3, Interactive, "", 2, None),
            ]
        };
        let shares = Shares::default();
        assert_eq!(order(&shares, 2, all()), [3, 2, 1]);
        // After 11 s the second is as urgent as the third, and was there before; after 20 s the first is, too.
        assert_eq!(order(&shares, 11, all()), [2, 3, 1]);
        assert_eq!(order(&shares, 20, all()), [1, 2, 3]);
    }

    #[test]
    fn keys_share_and_deadlines_decide_within_one() {
        let mut shares = Shares::default();
        for key in ["greedy", "modest"] {
            shares.enter(&key.into());
        }
        shares.charge(&"greedy".into(), 500);
        shares.charge(&"modest".into(), 20);
        let all = || {
            vec![
                sequence(1, Class::Interactive, "greedy", 0, None),
                sequence(2, Class::Interactive, "modest", 1, None),
                sequence(3, Class::Interactive, "modest", 2, Some(5)),
            ]
        };
        assert_eq!(order(&shares, 3, all()), [3, 2, 1]);
        // One who comes back starts where the least served stands.
        shares.enter(&"late".into());
        assert_eq!(shares.of(&"late".into()), 20.0);
        shares.leave(&"late".into());
        shares.leave(&"greedy".into());
        assert_eq!(shares.len(), 1);
    }
}
