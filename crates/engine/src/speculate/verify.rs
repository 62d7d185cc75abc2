//! Draw, then match: at each position the request's own sampler draws as if nothing had been guessed; the step goes on as long
//! as what is drawn was guessed. So the output is that of plain decoding, byte for byte, whatever is guessed (docs/adr/0004).

use super::rates::Class;
use super::tree::{ROOT, Tree};

/// What became of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Walked {
    /// The last node whose token was drawn: the cache holds the path to it.
    pub(crate) node: usize,
    /// Guesses that came true.
    pub(crate) accepted: usize,
}

/// Walks the tree from its root. `draw` takes a token from the logits of a node and says `None` when the request is over;
/// a token that it gives belongs to the sequence, guessed or not.
pub(crate) fn walk<E>(
    tree: &Tree,
    mut draw: impl FnMut(usize) -> Result<Option<u32>, E>,
) -> Result<Walked, E> {
    let mut node = ROOT;
    while let Some(token) = draw(node)? {
        match tree.child(node, token) {
            Some(child) => node = child,
            None => break,
        }
    }
    Ok(Walked { node, accepted: tree.nodes()[node].depth })
}

/// Books the guesses that were put to the test: the children of every node of the path whose token was drawn. `drawn` are
/// the tokens that [`walk`] drew, in order.
pub(crate) fn observe(tree: &Tree, drawn: &[u32], mut book: impl FnMut(Class, bool)) {
    let mut node = Some(ROOT);
    for token in drawn {
        let Some(at) = node else { return };
        for c in tree.children(at) {
            book(tree.nodes()[c].class, tree.nodes()[c].token == *token);
        }
        node = tree.child(at, *token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampler::{Sampler, Scratch};
    use crate::sampling::Sampling;
    use crate::speculate::tree::tests::tree;
    use proptest::prelude::*;

    const VOCAB: u32 = 7;

    /// A model: logits from the last two tokens.
    fn logits(tokens: &[u32]) -> Vec<f32> {
        let (a, b) = (tokens[tokens.len() - 1], tokens[tokens.len() - 2]);
        (0..VOCAB).map(|t| ((a * 31 + b * 17 + t * 13) % 23) as f32 / 6.0).collect()
    }

    fn plain(sampling: &Sampling, seed: u64, prompt: &[u32], n: usize) -> Vec<u32> {
        let (mut sampler, mut scratch) =
            (Sampler::new(sampling.clone(), seed, 0, prompt), Scratch::default());
        let mut tokens = prompt.to_vec();
        for i in 0..n {
            tokens.push(sampler.of_row(&mut logits(&tokens), None, i, &mut scratch).unwrap().id);
        }
        tokens
    }

    /// Decodes with a tree from `guess` in each step; gives the tokens, and how many guesses came true.
    fn guessed(
        sampling: &Sampling,
        seed: u64,
        prompt: &[u32],
        n: usize,
        mut guess: impl FnMut(&[u32]) -> Tree,
    ) -> (Vec<u32>, usize) {
        let (mut sampler, mut scratch) =
            (Sampler::new(sampling.clone(), seed, 0, prompt), Scratch::default());
        let (mut tokens, mut accepted) = (prompt.to_vec(), 0);
        while tokens.len() < prompt.len() + n {
            let (tree, before) = (guess(&tokens), tokens.len());
            let walked = walk::<()>(&tree, |node| {
                // The row of a node sees the sequence and the path to it, whatever the sampler drew elsewhere.
                let path = tree.path(node).into_iter().map(|n| tree.nodes()[n].token);
                let seen: Vec<u32> = tokens[..before].iter().copied().chain(path).collect();
                assert_eq!(seen, tokens);
                let token = sampler.of_row(&mut logits(&seen), None, seen.len(), &mut scratch).unwrap().id;
                tokens.push(token);
                Ok((tokens.len() < prompt.len() + n).then_some(token))
            })
            .unwrap();
            accepted += walked.accepted;
            let mut hits = 0;
            observe(&tree, &tokens[before..], |_, hit| hits += usize::from(hit));
            assert!(hits == walked.accepted || tokens.len() == prompt.len() + n);
        }
        (tokens, accepted)
    }

    fn settings() -> impl Strategy<Value = Sampling> {
        let penalties =
            (prop_oneof![Just(1.0f32), 0.5f32..2.0], -2f32..2.0, -2f32..2.0, prop::option::of(1u32..9));
        (prop_oneof![Just(0.0f32), 0.2f32..2.0], prop_oneof![Just(1.0f32), 0.3f32..1.0], penalties).prop_map(
            |(temperature, top_p, (repetition_penalty, presence_penalty, frequency_penalty, window))| {
                let penalty_window = window;
                Sampling {
                    temperature,
                    top_p,
                    repetition_penalty,
                    presence_penalty,
                    frequency_penalty,
                    penalty_window,
                    ..Sampling::default()
                }
            },
        )
    }

    proptest! {
        #[test]
        fn tokens_are_those_of_plain_decoding_whatever_is_guessed(
            sampling in settings(), seed: u64,
            trees in prop::collection::vec(tree(VOCAB, 24), 1..6),
        ) {
            let prompt = [1, 2, 3];
            let mut turn = 0;
            let (got, _) = guessed(&sampling, seed, &prompt, 40, |tokens| {
                turn += 1;
                let mut tree = Tree::new(tokens[tokens.len() - 1]);
                let like = &trees[turn % trees.len()];
                for n in &like.nodes()[1..] {
                    tree.add(n.parent, n.token, Class::default());
                }
                tree
            });
            prop_assert_eq!(got, plain(&sampling, seed, &prompt, 40));
        }
    }

    #[test]
    fn a_request_that_ends_within_the_tree_takes_no_more() {
        let mut tree = Tree::new(0);
        let a = tree.add(ROOT, 1, Class::default());
        tree.add(a, 2, Class::default());
        let mut asked = 0;
        let walked = walk::<()>(&tree, |_| {
            asked += 1;
            Ok((asked == 1).then_some(1))
        });
        assert_eq!((walked, asked), (Ok(Walked { node: a, accepted: 1 }), 2));
        assert_eq!(walk(&tree, |_| Err("broken")), Err("broken"));
    }

    /// The distribution of pairs of tokens after a prompt, with trees that guess often rightly and often wrongly, against
    /// the model's own; the seeds differ from those that made the trees.
    #[test]
    fn the_sampled_distribution_is_unchanged_with_trees() {
        let sampling = Sampling { temperature: 0.9, ..Sampling::default() };
        let prompt = [3, 5];
        let softmax = |tokens: &[u32]| -> Vec<f64> {
            let e: Vec<f64> = logits(tokens).iter().map(|l| (f64::from(*l) / 0.9).exp()).collect();
            let z: f64 = e.iter().sum();
            e.iter().map(|e| e / z).collect()
        };
        const N: u64 = 30_000;
        let (mut counts, mut accepted) = (vec![0u32; (VOCAB * VOCAB) as usize], 0);
        for seed in 0..N {
            let (tokens, hits) = guessed(&sampling, seed, &prompt, 2, |tokens| {
                let mut tree = Tree::new(tokens[tokens.len() - 1]);
                for i in 0..3u32 {
                    let first = tree.add(ROOT, (seed as u32 * 5 + i * 3) % VOCAB, Class::default());
                    tree.add(first, (seed as u32 / 7 + i) % VOCAB, Class::default());
                    tree.add(first, (seed as u32 / 3 + 2 * i) % VOCAB, Class::default());
                }
                tree
            });
            counts[(tokens[2] * VOCAB + tokens[3]) as usize] += 1;
            accepted += hits;
        }
        assert!(accepted > 5000, "the trees were too tame: {accepted}");
        let first = softmax(&prompt);
        let mut chi = 0.0;
        for a in 0..VOCAB {
            let second = softmax(&[5, a]);
            for b in 0..VOCAB {
                let want = first[a as usize] * second[b as usize] * N as f64;
                chi += (f64::from(counts[(a * VOCAB + b) as usize]) - want).powi(2) / want;
            }
        }
        // 48 degrees of freedom: mean 48, deviation 9.8; 84 is exceeded once in a thousand.
        assert!(chi < 84.0, "chi-square {chi}");
    }
}
