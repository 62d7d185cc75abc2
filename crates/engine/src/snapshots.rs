//! Copies of states that published blocks own: a block with the state behind its last token is where a sequence can begin. Which
//! there are, and whose turn it is to go: that of the one that has been found, or made, longest ago; those last that a request asked
//! to keep.

/// What tells the numbers of copies from those of sequences, where states are kept.
pub(crate) const SNAPSHOT: u32 = 1 << 31;

/// What a place is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Free,
    /// The planned step writes to it.
    Taken,
    /// A published block owns it; `used` when. An answer that goes on replaces its own.
    Held {
        block: u32,
        used: u64,
        answer: Option<u64>,
        keep: bool,
    },
}

/// The places.
#[derive(Debug, Default)]
pub(crate) struct Snapshots {
    /// Those that have been used.
    places: Vec<Place>,
    total: usize,
    clock: u64,
    made: u64,
    evicted: u64,
    /// Places whose copies nobody can find any more.
    left: Vec<u32>,
}

impl Snapshots {
    pub(crate) fn new(total: usize) -> Snapshots {
        Snapshots { total, ..Snapshots::default() }
    }

    /// Copies that blocks own.
    pub(crate) fn held(&self) -> usize {
        self.places.iter().filter(|p| matches!(p, Place::Held { .. })).count()
    }

    /// Copies that were made, and those that had to make room for others.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.made, self.evicted)
    }

    /// A place to write to, and the block that loses its copy by that: the answer's own copy before a free place, and that before
    /// the one that was used longest ago.
    pub(crate) fn take(&mut self, answer: Option<u64>) -> Option<(u32, Option<u32>)> {
        let own = |p: &Place| matches!(p, Place::Held { answer: a, .. } if answer.is_some() && *a == answer);
        let at = match self.places.iter().position(own) {
            Some(at) => at,
            None => match self.places.iter().position(|p| *p == Place::Free) {
                Some(at) => at,
                None if self.places.len() < self.total => {
                    self.places.push(Place::Free);
                    self.places.len() - 1
                }
                None => {
                    let used = |(at, p): (usize, &Place)| match p {
                        Place::Held { used, keep, .. } => Some((*keep, *used, at)),
                        _ => None,
                    };
                    let (_, _, at) = self.places.iter().enumerate().filter_map(used).min()?;
                    self.evicted += 1;
                    at
                }
            },
        };
        let loses = match std::mem::replace(&mut self.places[at], Place::Taken) {
            Place::Held { block, .. } => Some(block),
            _ => None,
        };
        Some((at as u32, loses))
    }

    /// Gives a copy that was written to a block.
    pub(crate) fn put(&mut self, place: u32, block: u32, answer: Option<u64>, keep: bool) {
        self.clock += 1;
        self.made += 1;
        self.places[place as usize] = Place::Held { block, used: self.clock, answer, keep };
    }

    /// Notes that a sequence begins with a copy: it is its answer's alone no more.
    pub(crate) fn touch(&mut self, place: u32) {
        self.clock += 1;
        if let Place::Held { used, answer, .. } = &mut self.places[place as usize] {
            (*used, *answer) = (self.clock, None);
        }
    }

    /// Frees a place.
    pub(crate) fn free(&mut self, place: u32) {
        self.places[place as usize] = Place::Free;
        self.left.push(place);
    }

    /// Frees all places.
    pub(crate) fn clear(&mut self) {
        (0..self.places.len() as u32).for_each(|p| self.free(p));
    }

    /// Places that were freed since this was asked last: what is there can be dropped.
    pub(crate) fn left(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.left)
    }

    /// Checks that the copies that blocks own are these: pairs of block and place.
    pub(crate) fn check(&self, owned: impl Iterator<Item = (u32, u32)>) -> Result<(), String> {
        let mut count = 0;
        for (block, place) in owned {
            count += 1;
            match self.places.get(place as usize) {
                Some(Place::Held { block: b, .. }) if *b == block => {}
                other => return Err(format!("block {block} owns the copy {place}, which is {other:?}")),
            }
        }
        if count != self.held() || self.places.len() > self.total {
            return Err(format!("{count} copies are owned, {} of {} held", self.held(), self.total));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_was_used_longest_ago_goes_and_answers_replace_their_own() {
        let mut s = Snapshots::new(3);
        for block in [10, 11, 12] {
            let (place, loses) = s.take((block == 12).then_some(7)).unwrap();
            assert_eq!((place, loses), (block - 10, None));
            s.put(place, block, (block == 12).then_some(7), false);
        }
        s.touch(0);
        assert_eq!(s.take(Some(7)), Some((2, Some(12))), "the answer's own");
        s.put(2, 13, Some(7), false);
        assert_eq!(s.take(None), Some((1, Some(11))), "the oldest that was not found since");
        assert_eq!((s.take(None), s.take(Some(9))), (Some((0, Some(10))), Some((2, Some(13)))));
        assert_eq!((s.take(None), s.held(), s.counts()), (None, 0, (4, 3)), "all are being written");
        s.free(1);
        assert_eq!((s.take(None), s.left()), (Some((1, None)), vec![1]));
        s.put(1, 20, None, false);
        s.check([(20, 1)].into_iter()).unwrap();
        assert!(s.check([(21, 1)].into_iter()).is_err() && s.check(std::iter::empty()).is_err());
    }

    #[test]
    fn what_an_answer_left_is_kept_once_it_is_found() {
        let mut s = Snapshots::new(2);
        let (place, _) = s.take(Some(7)).unwrap();
        s.put(place, 10, Some(7), true);
        s.touch(place);
        assert_eq!(s.take(Some(7)), Some((1, None)));
        s.put(1, 11, None, false);
        assert_eq!(s.take(None), Some((1, Some(11))), "the other is to be kept");
        assert_eq!(s.take(None), Some((0, Some(10))));
        s.clear();
        assert_eq!((s.left(), s.held()), (vec![0, 1], 0));
    }
}
