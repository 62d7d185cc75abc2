//! The guesses of an engine: for each sequence its lookup and its judgement, for all the n-gram cache and the shared
//! experience. Pure: the time that steps take is told to it.

use super::Speculate;
use super::depth::{Cost, Depth, Load};
use super::lookup::Lookup;
use super::ngram::Ngrams;
use super::rates::{Class, Rates};
use super::tree::Tree;
use std::collections::HashMap;

/// Contexts of the n-gram cache: 1.3 MB.
const CONTEXTS: usize = 1 << 15;
/// Candidates for each guess that may be put into a step.
const CANDIDATES: usize = 2;

/// What an engine knows about its texts.
#[derive(Debug)]
pub(crate) struct Guesser {
    ngrams: Ngrams,
    shared: Rates,
    sequences: HashMap<u64, Own>,
}

/// What is known of one sequence.
#[derive(Debug, Default)]
struct Own {
    lookup: Lookup,
    depth: Depth,
}

impl Default for Guesser {
    fn default() -> Guesser {
        Guesser { ngrams: Ngrams::new(CONTEXTS), shared: Rates::default(), sequences: HashMap::new() }
    }
}

impl Guesser {
    /// How sequence `id`, now `tokens`, may go on, if `most` guesses may be taken.
    pub(crate) fn candidates(&mut self, id: u64, mode: Speculate, tokens: &[u32], most: usize) -> Tree {
        let own = self.sequences.entry(id).or_default();
        let mut tree = Tree::new(tokens[tokens.len() - 1]);
        if mode.looks_up() {
            own.lookup.update(tokens);
            own.lookup.propose(tokens, most, &mut tree);
        }
        if mode.has_ngrams() {
            self.ngrams.propose(tokens, CANDIDATES * most, &mut tree);
        }
        tree
    }

    /// Those of the candidates that pay.
    pub(crate) fn choose(&mut self, id: u64, tree: &Tree, load: &Load, cost: Cost) -> Tree {
        self.sequences.entry(id).or_default().depth.choose(tree, &self.shared, load, cost)
    }

    /// Whether a draft model should go on from a leaf of the tree, or begin; a token of it takes `extra` seconds.
    pub(crate) fn asks_draft(
        &self,
        id: u64,
        tree: &Tree,
        leaf: usize,
        extra: f64,
        load: &Load,
        cost: Cost,
    ) -> bool {
        let Some(own) = self.sequences.get(&id) else { return false };
        match tree.nodes()[leaf] {
            n if n.depth == 0 => own.depth.starts(extra, &self.shared, load, cost),
            n => {
                let reach = own.depth.reach(tree, &self.shared)[leaf];
                own.depth.pays(reach, n.class, extra, &self.shared, load, cost)
            }
        }
    }

    /// Chance of a class of guesses for a sequence.
    pub(crate) fn chance(&self, id: u64, class: Class) -> f32 {
        let own = self.sequences.get(&id).map_or_else(Rates::default, |o| o.depth.rates().clone());
        own.chance(&self.shared, class)
    }

    /// Books a step of a sequence: `kept` were the guesses, the last `drawn` of its tokens came from it, and guessing took
    /// `extra` seconds.
    pub(crate) fn settle(
        &mut self,
        id: u64,
        mode: Speculate,
        (kept, extra): (&Tree, f64),
        (tokens, drawn): (&[u32], usize),
        load: &Load,
        cost: Cost,
    ) {
        let first = tokens.len() - drawn;
        let own = self.sequences.entry(id).or_default();
        own.depth.settle(kept, &tokens[first..], extra, &mut self.shared, load, cost);
        if mode.has_ngrams() {
            (first + 1..=tokens.len()).for_each(|n| self.ngrams.learn(&tokens[..n]));
        }
    }

    /// A sequence lost its last tokens, and will have others in their places.
    pub(crate) fn rewind(&mut self, id: u64) {
        if let Some(own) = self.sequences.get_mut(&id) {
            own.lookup = Lookup::default();
        }
    }

    /// A sequence is over.
    pub(crate) fn forget(&mut self, id: u64) {
        self.sequences.remove(&id);
    }

    /// All sequences are over.
    pub(crate) fn clear(&mut self) {
        self.sequences.clear();
    }

    /// Sequences that something is kept of.
    pub(crate) fn len(&self) -> usize {
        self.sequences.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load = Load { rows: 1, tokens: 1, room: 6 };

    fn cost(rows: usize) -> f64 {
        1.0 + 0.1 * rows as f64
    }

    /// Steps until a sequence has as many tokens as `text`, which is what the model says.
    fn steps(g: &mut Guesser, id: u64, mode: Speculate, text: &[u32], from: usize) -> usize {
        let (mut n, mut steps) = (from, 0);
        while n < text.len() {
            let tree = g.candidates(id, mode, &text[..n], LOAD.room);
            let kept = g.choose(id, &tree, &LOAD, &cost);
            assert!(kept.guesses() <= LOAD.room);
            let (mut node, mut drawn) = (0, 0);
            loop {
                drawn += 1;
                match kept.child(node, text[n + drawn - 1]) {
                    Some(child) if n + drawn < text.len() => node = child,
                    _ => break,
                }
            }
            n += drawn;
            g.settle(id, mode, (&kept, 0.0), (&text[..n], drawn), &LOAD, &cost);
            steps += 1;
        }
        g.forget(id);
        assert_eq!(g.len(), 0);
        steps
    }

    #[test]
    fn each_kind_of_guess_saves_steps_where_it_can() {
        let text: Vec<u32> = (0..60).map(|i| i * i % 61).collect();
        let twice = [&text[..], &text].concat();
        let mut g = Guesser::default();
        assert_eq!(steps(&mut g, 1, Speculate::Off, &twice, 60), 60);
        let lookup = steps(&mut g, 2, Speculate::Lookup, &twice, 60);
        assert!(lookup < 25, "{lookup}");
        // The second answer is like the first.
        assert!(steps(&mut g, 3, Speculate::Ngram, &text, 3) > 50);
        let again = steps(&mut g, 4, Speculate::Ngram, &text, 3);
        assert!(again < 25, "{again}");
        let both = steps(&mut g, 5, Speculate::Auto, &twice, 60);
        assert!(both <= lookup, "{both}");
    }
}
