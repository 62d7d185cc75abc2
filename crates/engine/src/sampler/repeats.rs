//! The repeats in a text as it grows: for each earlier place of the last token, how many tokens up to there equal those up to
//! the end. A place's length is that of the place before it, at the token before, plus 1; so each token costs as many steps
//! as it was there before, and a prompt of `n` tokens, by Z-boxes (Gusfield 1997, section 1.4), `n`.

use std::collections::HashMap;
use std::sync::Arc;

const NONE: u32 = u32::MAX;

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Repeats {
    window: usize,
    /// Ascending; no repeat goes over one of them.
    breakers: Arc<[u32]>,
    tokens: Vec<u32>,
    /// The place before each with the same token.
    previous: Vec<u32>,
    last: HashMap<u32, u32>,
    /// Of places with the last token: the repeat's length, and the mark of the end for which it holds.
    lengths: Vec<(u32, u32)>,
    /// Of the text's end as it is: each that there was has another.
    mark: u32,
    marks: u32,
    /// While tokens are only guessed: the number of those before, and the lengths at their last.
    guessed: Option<usize>,
    kept: Vec<(u32, u32)>,
}

impl Repeats {
    /// Of a text to begin with; only the last `window` tokens count.
    pub(super) fn new(text: &[u32], window: usize, breakers: Arc<[u32]>) -> Repeats {
        let mut r = Repeats {
            window,
            breakers,
            tokens: Vec::with_capacity(text.len() + 64),
            previous: Vec::with_capacity(text.len() + 64),
            last: HashMap::new(),
            lengths: Vec::with_capacity(text.len() + 64),
            mark: 0,
            marks: 0,
            guessed: None,
            kept: Vec::new(),
        };
        text.iter().for_each(|t| r.append(*t));
        r.measure();
        r
    }

    fn is_breaker(&self, id: u32) -> bool {
        self.breakers.binary_search(&id).is_ok()
    }

    fn append(&mut self, id: u32) {
        let place = self.tokens.len() as u32;
        self.tokens.push(id);
        self.previous.push(self.last.insert(id, place).unwrap_or(NONE));
        self.lengths.push((0, 0));
        self.marks = self.marks.wrapping_add(1);
        self.mark = self.marks;
    }

    /// The lengths at the end, from nothing: Z-boxes of the text read backwards.
    fn measure(&mut self) {
        let n = self.tokens.len();
        let back = |i: usize| self.tokens[n - 1 - i];
        // A repeat ends before the last breaker.
        let most = (0..n).find(|i| self.is_breaker(back(*i))).unwrap_or(n);
        let mut z = vec![0; n];
        let (mut from, mut to) = (0, 0);
        for i in 1..n {
            let mut length = if i < to { z[i - from].min(to - i) } else { 0 };
            while i + length < n && back(length) == back(i + length) {
                length += 1;
            }
            if i + length > to {
                (from, to) = (i, i + length);
            }
            z[i] = length;
            let length = length.min(most);
            if length > 0 {
                self.lengths[n - 1 - i] = (length as u32, self.mark);
            }
        }
    }

    /// One token more.
    pub(super) fn push(&mut self, id: u32) {
        let start = (self.tokens.len() + 1).saturating_sub(self.window) as u32;
        let mut place = if self.is_breaker(id) { NONE } else { self.last.get(&id).copied().unwrap_or(NONE) };
        let before = self.mark;
        self.append(id);
        // Downwards, so that the length of the place before is still that of the token before.
        while place != NONE && place >= start {
            let length = match place.checked_sub(1).map(|p| self.lengths[p as usize]) {
                Some((length, mark)) if mark == before => length,
                _ => 0,
            };
            self.lengths[place as usize] = (length + 1, self.mark);
            place = self.previous[place as usize];
        }
    }

    /// For each repeat that ends here: the token that went on with it, and its length.
    pub(super) fn each(&self) -> impl Iterator<Item = (u32, u32)> {
        let start = self.tokens.len().saturating_sub(self.window) as u32;
        let first = self.previous.last().copied().unwrap_or(NONE);
        let next = |p: &u32| Some(self.previous[*p as usize]).filter(|p| *p != NONE);
        std::iter::successors(Some(first).filter(|p| *p != NONE), next)
            .take_while(move |p| *p >= start)
            .filter_map(move |p| match self.lengths[p as usize] {
                (length, mark) if mark == self.mark => {
                    Some((self.tokens[p as usize + 1], length.min(p - start + 1)))
                }
                _ => None,
            })
    }

    /// The longest repeat that ends here.
    pub(super) fn longest(&self) -> u32 {
        self.each().map(|r| r.1).max().unwrap_or(0)
    }

    /// From here on tokens are only guessed, until [`Self::take_back`].
    pub(super) fn guess(&mut self) {
        self.guessed = Some(self.tokens.len());
        self.kept.clear();
        let Some(end) = self.tokens.len().checked_sub(1) else { return };
        let mut place = self.previous[end];
        while place != NONE {
            let (length, mark) = self.lengths[place as usize];
            if mark == self.mark {
                self.kept.push((place, length));
            }
            place = self.previous[place as usize];
        }
    }

    /// Takes the guessed tokens back.
    pub(super) fn take_back(&mut self) {
        let Some(n) = self.guessed.take() else { return };
        while self.tokens.len() > n {
            if let (Some(id), Some(previous)) = (self.tokens.pop(), self.previous.pop()) {
                match previous {
                    NONE => self.last.remove(&id),
                    place => self.last.insert(id, place),
                };
            }
        }
        self.lengths.truncate(n);
        // What was measured for the guesses must not hold for what comes instead.
        self.marks = self.marks.wrapping_add(1);
        self.mark = self.marks;
        for (place, length) in &self.kept {
            self.lengths[*place as usize] = (*length, self.mark);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By the definition: from each earlier place backwards.
    fn model(text: &[u32], window: usize, breakers: &[u32]) -> Vec<(u32, u32)> {
        let text = &text[text.len() - text.len().min(window)..];
        let n = text.len();
        let mut all = Vec::new();
        for i in (0..n.saturating_sub(1)).rev() {
            let same = |k: &usize| text[i - k] == text[n - 1 - k] && !breakers.contains(&text[i - k]);
            let length = (0..=i).take_while(same).count() as u32;
            if length > 0 {
                all.push((text[i + 1], length));
            }
        }
        all
    }

    proptest! {
        #[test]
        fn equal_to_the_definition(
            prompt in prop::collection::vec(0u32..4, 0..40),
            answer in prop::collection::vec(0u32..4, 0..40),
            guesses in prop::collection::vec(prop::collection::vec(0u32..4, 0..6), 1..4),
            window in prop_oneof![Just(usize::MAX), 1usize..50],
            breakers in prop_oneof![Just(vec![]), Just(vec![2]), Just(vec![0, 3])],
        ) {
            let mut r = Repeats::new(&prompt, window, breakers.clone().into());
            let mut text = prompt;
            for (n, token) in answer.iter().enumerate() {
                prop_assert_eq!(r.each().collect::<Vec<_>>(), model(&text, window, &breakers));
                r.guess();
                guesses[n % guesses.len()].iter().for_each(|t| r.push(*t));
                r.take_back();
                prop_assert_eq!(r.each().collect::<Vec<_>>(), model(&text, window, &breakers));
                r.push(*token);
                text.push(*token);
            }
        }
    }

    #[test]
    fn a_prompt_of_one_token_over_and_over_is_no_trap() {
        let mut r = Repeats::new(&vec![7; 200_000], usize::MAX, Arc::default());
        assert_eq!(r.longest(), 199_999);
        r.push(7);
        assert_eq!(r.longest(), 200_000);
    }
}
