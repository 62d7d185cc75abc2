//! Prompt lookup (Saxena 2023): a text that repeats itself goes on as it did before. The places where the last tokens stood
//! already are found by an index that grows with the sequence, as in LZ77: for each pair of tokens, the place of the last
//! equal pair. Nothing is scanned; a step looks at a limited number of places.

use super::rates::Class;
use super::tree::{ROOT, Tree};

/// Places that are looked at in a step, latest first.
const PLACES_MAX: usize = 48;
/// Longer matches are not told apart.
const MATCH_MAX: usize = 32;
/// Different continuations of one match.
const WIDTH: usize = 3;
/// No place.
const NONE: u32 = u32::MAX;

/// The index of one sequence: about 12 bytes a token.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    /// By a pair's hash, the place of its last token where it stood last.
    heads: Vec<u32>,
    /// For each place, the one before it with the same hash.
    before: Vec<u32>,
}

impl Lookup {
    /// Takes in what the sequence, of which only the end has changed since the last call, has gained. (A sequence only grows;
    /// if it is shorter the index starts anew.)
    pub(crate) fn update(&mut self, tokens: &[u32]) {
        if tokens.len() < self.before.len() {
            self.heads.clear();
            self.before.clear();
        }
        if tokens.len() * 2 > self.heads.len() {
            // Half empty, so that chains are of equal pairs; made anew whenever the sequence has doubled.
            self.heads = vec![NONE; (tokens.len() * 4).next_power_of_two().max(256)];
            self.before.clear();
        }
        for i in self.before.len()..tokens.len() {
            let head = match i {
                0 => None,
                _ => Some(hash(tokens[i - 1], tokens[i]) as usize & (self.heads.len() - 1)),
            };
            self.before.push(head.map_or(NONE, |h| std::mem::replace(&mut self.heads[h], i as u32)));
        }
    }

    /// Adds to the tree, which has no more than `most` guesses then, how `tokens` may go on: `update` has seen them.
    pub(crate) fn propose(&self, tokens: &[u32], most: usize, tree: &mut Tree) {
        let end = tokens.len() - 1;
        // Length of the match, place, by different next tokens.
        let mut found: [(usize, usize); WIDTH] = [(0, 0); WIDTH];
        let mut at = self.before.get(end).copied().unwrap_or(NONE);
        for _ in 0..PLACES_MAX {
            let Some(i) = (at != NONE).then_some(at as usize) else { break };
            at = self.before[i];
            let n = matching(tokens, i);
            let same = found.iter().position(|f| f.0 > 0 && tokens[f.1 + 1] == tokens[i + 1]);
            // Of equals the latest is taken, and it was met first.
            let slot = same.unwrap_or(WIDTH - 1);
            if n >= 2 && n > found[slot].0 {
                found[slot] = (n, i);
                found.sort_by_key(|f| std::cmp::Reverse(f.0));
            }
            if found[0].0 == MATCH_MAX {
                break;
            }
        }
        for (n, i) in found.into_iter().filter(|f| f.0 > 0) {
            continue_from(tokens, i, n, most, tree);
        }
    }
}

/// Copies what follows place `i`, up to and over the end of the sequence into the copy itself.
fn continue_from(tokens: &[u32], i: usize, n: usize, most: usize, tree: &mut Tree) {
    let (mut node, mut copied) = (ROOT, Vec::with_capacity(most));
    while copied.len() < most && tree.guesses() < most {
        let from = i + 1 + copied.len();
        let token = tokens.get(from).copied().unwrap_or_else(|| copied[from - tokens.len()]);
        // Given that the guesses so far were right, the match is so much longer.
        node = tree.add(node, token, Class::lookup(n + copied.len()));
        copied.push(token);
    }
}

/// How many tokens up to place `i` equal those up to the end.
fn matching(tokens: &[u32], i: usize) -> usize {
    let ends = tokens[..=i].iter().rev().zip(tokens.iter().rev());
    ends.take(MATCH_MAX).take_while(|(a, b)| a == b).count()
}

fn hash(a: u32, b: u32) -> u32 {
    let h = (u64::from(a) << 32 | u64::from(b)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (h >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tree(tokens: &[u32], most: usize) -> Tree {
        let mut lookup = Lookup::default();
        lookup.update(tokens);
        let mut tree = Tree::new(tokens[tokens.len() - 1]);
        lookup.propose(tokens, most, &mut tree);
        tree
    }

    fn tokens_of(tree: &Tree) -> Vec<u32> {
        tree.nodes()[1..].iter().map(|n| n.token).collect()
    }

    #[test]
    fn the_longest_match_comes_first_and_others_branch_off() {
        let t = tree(&[7, 1, 2, 30, 31, 9, 1, 2, 40, 41, 7, 1, 2], 4);
        assert_eq!(tokens_of(&t), [30, 31, 9, 1]);
        assert_eq!(t.nodes()[1].class, Class::lookup(3));
        assert_eq!(t.nodes()[4].class, Class::lookup(6));
        let t = tree(&[7, 1, 2, 30, 8, 1, 2, 40, 7, 1, 2], 100);
        assert_eq!(t.children(ROOT).map(|c| t.nodes()[c].token).collect::<Vec<_>>(), [30]);
        assert_eq!(t.guesses(), 100);
    }

    #[test]
    fn other_continuations_follow_where_there_is_room() {
        let tokens = [1, 2, 30, 8, 1, 2, 40, 9, 1, 2];
        let mut lookup = Lookup::default();
        lookup.update(&tokens);
        let mut t = Tree::new(2);
        lookup.propose(&tokens, 1, &mut t);
        // The latest of equal matches.
        assert_eq!(tokens_of(&t), [40]);
    }

    #[test]
    fn a_cycle_goes_on_over_the_end() {
        assert_eq!(tokens_of(&tree(&[1, 2, 3, 1, 2, 3, 1, 2], 7)), [3, 1, 2, 3, 1, 2, 3]);
        assert_eq!(tokens_of(&tree(&[5, 5, 5], 4)), [5, 5, 5, 5]);
    }

    #[test]
    fn nothing_is_guessed_where_nothing_repeats() {
        assert_eq!(tree(&[1], 4).guesses(), 0);
        assert_eq!(tree(&[1, 2, 3, 4], 4).guesses(), 0);
        // One token alone is no match.
        assert_eq!(tree(&[1, 2, 3, 2], 4).guesses(), 0);
    }

    proptest! {
        /// The first guess follows a longest match (up to the limits), and an index grown token by token is that of the whole.
        #[test]
        fn grown_equals_built_and_the_match_is_longest(tokens in prop::collection::vec(0u32..4, 1..40)) {
            let mut grown = Lookup::default();
            for n in 1..=tokens.len() {
                grown.update(&tokens[..n]);
            }
            let mut got = Tree::new(tokens[tokens.len() - 1]);
            grown.propose(&tokens, 3, &mut got);
            prop_assert_eq!(&got, &tree(&tokens, 3));
            let best = (0..tokens.len() - 1).map(|i| matching(&tokens, i)).max().unwrap_or(0);
            if best < 2 {
                prop_assert_eq!(got.guesses(), 0);
            } else {
                prop_assert_eq!(got.nodes()[1].class, Class::lookup(best));
            }
        }
    }
}
