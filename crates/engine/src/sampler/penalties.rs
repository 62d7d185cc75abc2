//! Repetition, presence and frequency penalties, with a window and a decay.
//!
//! Repetition (Keskar et al. 2019, "CTRL", eq. 2): a token of the prompt or the answer has `l / r` if `l > 0`, else `l r`.
//! Presence and frequency (OpenAI API): a token that the answer has `c` times loses `presence + c frequency`.
//! Decay (frequency-based token suppression): what was `a` tokens ago counts `w = 2^(-a / half_life)`: `r` becomes `r^w` and
//! `presence` becomes `w presence`, by the token's last place, and `c` is the sum of `w` over its places.

use super::Edits;
use super::adaptive::Steer;
use crate::sampling::Sampling;
use std::collections::{HashMap, VecDeque};

/// How often a token is in the window, and since when.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    /// In prompt and answer.
    all: u32,
    /// In the answer.
    answer: u32,
    /// Its last place in either, and in the answer.
    last: u64,
    last_answer: u64,
    /// The sum of decayed places in the answer, as of the last of them.
    decayed: f64,
}

/// A token in the window, and whether it is of the answer.
type Counted = (u32, bool);

/// What a guessed token changed: its id with its count before, and the same of what it drove out of the window.
#[derive(Debug, Clone)]
struct Undo {
    id: u32,
    before: Option<Count>,
    out: Option<(Counted, Option<Count>)>,
}

/// The tokens that penalties look at, counted as they come.
#[derive(Debug, Clone)]
pub(super) struct Penalties {
    repetition: f32,
    presence: f32,
    frequency: f32,
    window: usize,
    half_life: Option<f64>,
    /// Tokens so far.
    length: u64,
    /// The last `window` tokens and whether each is of the answer; kept only where there is a window.
    recent: VecDeque<Counted>,
    counts: HashMap<u32, Count>,
    guessed: Option<Vec<Undo>>,
}

impl Penalties {
    /// `None` if the settings change nothing.
    pub(super) fn new(s: &Sampling) -> Option<Penalties> {
        let off = s.repetition_penalty == 1.0 && s.presence_penalty == 0.0 && s.frequency_penalty == 0.0;
        (!off || s.adaptive != 0.0).then(|| Penalties {
            repetition: s.repetition_penalty,
            presence: s.presence_penalty,
            frequency: s.frequency_penalty,
            window: s.penalty_window.map_or(usize::MAX, |w| w as usize),
            half_life: s.penalty_half_life.map(f64::from),
            length: 0,
            recent: VecDeque::new(),
            counts: HashMap::new(),
            guessed: None,
        })
    }

    /// What a place counts that is so many tokens back.
    fn decay(&self, age: u64) -> f64 {
        self.half_life.map_or(1.0, |h| (-(age as f64) / h).exp2())
    }

    /// A token of the prompt, or of the answer.
    pub(super) fn push(&mut self, id: u32, answer: bool) {
        let before = self.guessed.as_ref().and_then(|_| self.counts.get(&id).copied());
        self.count(id, answer);
        let mut out = None;
        if self.window < usize::MAX {
            self.recent.push_back((id, answer));
            out = if self.recent.len() > self.window { self.recent.pop_front() } else { None };
        }
        let out = out.map(|counted| (counted, self.counts.get(&counted.0).copied()));
        if let Some(((id, answer), _)) = out {
            self.discount(id, answer);
        }
        if let Some(guessed) = &mut self.guessed {
            guessed.push(Undo { id, before, out });
        }
    }

    /// From here on tokens are only guessed, until [`Self::take_back`].
    pub(super) fn guess(&mut self) {
        self.guessed = Some(Vec::new());
    }

    /// Takes the guessed tokens of the answer back: the counts are those before, to the bit.
    pub(super) fn take_back(&mut self) {
        for Undo { id, before, out } in self.guessed.take().into_iter().flatten().rev() {
            if let Some((counted, before)) = out {
                self.recent.push_front(counted);
                self.restore(counted.0, before);
            }
            self.recent.pop_back();
            self.restore(id, before);
            self.length -= 1;
        }
    }

    fn restore(&mut self, id: u32, before: Option<Count>) {
        match before {
            Some(count) => drop(self.counts.insert(id, count)),
            None => drop(self.counts.remove(&id)),
        }
    }

    fn count(&mut self, id: u32, answer: bool) {
        let place = self.length;
        self.length += 1;
        let decayed = match self.counts.get(&id) {
            Some(c) if answer && c.answer > 0 => c.decayed * self.decay(place - c.last_answer),
            _ => 0.0,
        };
        let count = self.counts.entry(id).or_default();
        count.all += 1;
        count.last = place;
        if answer {
            count.answer += 1;
            count.last_answer = place;
            count.decayed = decayed + 1.0;
        }
    }

    /// Takes the place that has just left the window out.
    fn discount(&mut self, id: u32, answer: bool) {
        let place = self.length - 1 - self.window as u64;
        let Some(mut count) = self.counts.get(&id).copied() else { return };
        count.all -= 1;
        if answer {
            count.answer -= 1;
            count.decayed -= self.decay(count.last_answer - place);
        }
        match count.all {
            0 => drop(self.counts.remove(&id)),
            _ => drop(self.counts.insert(id, count)),
        }
    }

    /// Changes the logits of the tokens in the window; each depends on its own count alone, so their order is free.
    pub(super) fn apply(&self, steer: Steer, row: &mut [f32], edits: &mut Edits) {
        let repetition = self.repetition * steer.repetition;
        let frequency = self.frequency + steer.frequency;
        for (id, count) in &self.counts {
            let mut l = row[*id as usize];
            let (mut r, mut presence, mut times) = (repetition, self.presence, count.answer as f32);
            if self.half_life.is_some() {
                // The next token is one after the last.
                let since = |place: u64| self.decay(self.length - 1 - place);
                r = f64::from(r).powf(since(count.last)) as f32;
                if count.answer > 0 {
                    let w = since(count.last_answer);
                    (presence, times) = ((f64::from(presence) * w) as f32, (count.decayed * w) as f32);
                }
            }
            l = if l > 0.0 { l / r } else { l * r };
            if count.answer > 0 {
                l -= presence + times * frequency;
            }
            edits.set(row, *id, l);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition over a plain list of tokens.
    fn model(s: &Sampling, prompt: &[u32], answer: &[u32], row: &[f32]) -> Vec<f32> {
        let all: Vec<(u32, bool)> =
            prompt.iter().map(|t| (*t, false)).chain(answer.iter().map(|t| (*t, true))).collect();
        let window = &all[all.len() - all.len().min(s.penalty_window.map_or(usize::MAX, |w| w as usize))..];
        let half_life = s.penalty_half_life.map_or(f64::INFINITY, f64::from);
        // What the last tokens count, latest first.
        let weighed =
            || window.iter().rev().enumerate().map(|(age, w)| (*w, (-(age as f64) / half_life).exp2()));
        (0..row.len() as u32)
            .map(|id| {
                let mut l = row[id as usize];
                if let Some((_, w)) = weighed().find(|((t, _), _)| *t == id) {
                    let r = f64::from(s.repetition_penalty).powf(w) as f32;
                    l = if l > 0.0 { l / r } else { l * r };
                }
                let of_answer: Vec<f64> =
                    weighed().filter(|(t, _)| *t == (id, true)).map(|(_, w)| w).collect();
                let Some(w) = of_answer.first() else { return l };
                let c = of_answer.iter().sum::<f64>();
                l - ((f64::from(s.presence_penalty) * w) as f32 + c as f32 * s.frequency_penalty)
            })
            .collect()
    }

    fn close(a: &[f32], b: &[f32]) -> bool {
        a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
    }

    proptest::proptest! {
        #[test]
        fn equal_to_the_definition(
            prompt in proptest::collection::vec(0u32..12, 0..20),
            answer in proptest::collection::vec(0u32..12, 0..20),
            row in proptest::collection::vec(-5f32..5.0, 12),
            (r, p, f) in (0.5f32..2.0, -2f32..2.0, -2f32..2.0),
            window in proptest::option::of(1u32..30), half in proptest::option::of(1u32..40),
        ) {
            let s = Sampling {
                repetition_penalty: r, presence_penalty: p, frequency_penalty: f, penalty_window: window,
                penalty_half_life: half, ..Sampling::default()
            };
            let mut penalties = Penalties::new(&s).unwrap();
            prompt.iter().for_each(|t| penalties.push(*t, false));
            answer.iter().for_each(|t| penalties.push(*t, true));
            let (mut got, mut edits) = (row.clone(), Edits::default());
            penalties.apply(Steer::NONE, &mut got, &mut edits);
            let want = model(&s, &prompt, &answer, &row);
            proptest::prop_assert!(if half.is_some() { close(&got, &want) } else { got == want }, "{got:?} {want:?}");
            for id in 0..12 {
                proptest::prop_assert_eq!(edits.original(&got, id), row[id as usize]);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn what_was_guessed_leaves_nothing(
            answer in proptest::collection::vec(0u32..6, 0..20),
            guesses in proptest::collection::vec(proptest::collection::vec(0u32..6, 0..9), 1..4),
            row in proptest::collection::vec(-5f32..5.0, 6),
            window in proptest::option::of(1u32..12), half in proptest::option::of(1u32..9),
        ) {
            let s = Sampling {
                repetition_penalty: 1.3, presence_penalty: 0.4, frequency_penalty: 0.3, penalty_window: window,
                ..Sampling::default()
            };
            let s = Sampling { penalty_half_life: half, ..s };
            let (mut p, mut plain) = (Penalties::new(&s).unwrap(), Penalties::new(&s).unwrap());
            p.push(3, false);
            plain.push(3, false);
            for (n, token) in answer.iter().enumerate() {
                p.guess();
                guesses[n % guesses.len()].iter().for_each(|t| p.push(*t, true));
                p.take_back();
                p.push(*token, true);
                plain.push(*token, true);
            }
            let (mut got, mut want) = (row.clone(), row.clone());
            plain.apply(Steer::NONE, &mut want, &mut Edits::default());
            p.apply(Steer::NONE, &mut got, &mut Edits::default());
            proptest::prop_assert_eq!(&got, &want);
            proptest::prop_assert!(close(&got, &model(&s, &[3], &answer, &row)));
        }
    }

    #[test]
    fn identity_settings_are_absent() {
        assert!(Penalties::new(&Sampling::default()).is_none());
    }
}
