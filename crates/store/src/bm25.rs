//! BM25: which old turns share their words with a question (Robertson and Zaragoza 2009, with Lucene's
//! `ln(1 + (N - n + 0.5) / (n + 0.5))`, which is never negative). Words are those of any script, lower-cased.

use std::collections::{BTreeSet, HashMap};

use crate::words::words;

/// How soon more of the same word stops to count.
const K1: f64 = 1.2;
/// How much a long text counts less.
const B: f64 = 0.75;
/// Distinct words of a question that are looked at.
const QUERY_WORDS_MAX: usize = 256;

/// The words of a list of texts.
#[derive(Debug, Clone, Default)]
pub struct Bm25 {
    /// For each word the texts that have it, in order, and how often.
    postings: HashMap<String, Vec<(usize, u32)>>,
    lengths: Vec<usize>,
    words: usize,
}

impl Bm25 {
    /// An index of these texts; they are known by their place in the list.
    pub fn new<'a>(texts: impl IntoIterator<Item = &'a str>) -> Bm25 {
        let mut index = Bm25::default();
        for text in texts {
            index.add(text);
        }
        index
    }

    /// Adds one text behind the others.
    pub fn add(&mut self, text: &str) {
        let (at, list) = (self.lengths.len(), words(text));
        self.lengths.push(list.len());
        self.words += list.len();
        for word in list {
            let texts = self.postings.entry(word).or_default();
            match texts.last_mut() {
                Some((last, count)) if *last == at => *count += 1,
                _ => texts.push((at, 1)),
            }
        }
    }

    /// How many texts there are.
    pub fn len(&self) -> usize {
        self.lengths.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    /// The texts that share a word with the query and their scores, the best first, equal ones in their order.
    pub fn search(&self, query: &str) -> Vec<(usize, f64)> {
        let mut scores = vec![0.0f64; self.lengths.len()];
        let n = self.lengths.len() as f64;
        let mean = (self.words as f64 / n).max(1.0);
        // Each word once, in the order of the alphabet: the same sums however the query is written.
        let query: BTreeSet<String> = words(query).into_iter().collect();
        for texts in query.iter().take(QUERY_WORDS_MAX).filter_map(|word| self.postings.get(word)) {
            let have = texts.len() as f64;
            let idf = (1.0 + (n - have + 0.5) / (have + 0.5)).ln();
            for (at, count) in texts {
                let f = f64::from(*count);
                let length = self.lengths[*at] as f64 / mean;
                scores[*at] += idf * f * (K1 + 1.0) / (f + K1 * (1.0 - B + B * length));
            }
        }
        let mut found: Vec<(usize, f64)> = scores.into_iter().enumerate().filter(|(_, s)| *s > 0.0).collect();
        found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 5] = [
        "The cat sat on the mat.",
        "A dog chased the CAT!",
        "Rust ownership: borrow, move, drop.",
        "Cat cat cat, and another cat; cats are not counted.",
        "",
    ];

    /// Values from the formula in another language (Python, 64-bit floats).
    #[test]
    fn known_values() {
        let index = Bm25::new(TEXTS);
        assert_eq!((index.len(), index.words), (5, 26));
        for (query, expected) in [
            ("cat", vec![(3, 0.786494893926268), (1, 0.5476127858243288), (0, 0.5070822342419361)]),
            ("dog CAT dog", vec![(1, 1.9560681580456034), (3, 0.786494893926268), (0, 0.5070822342419361)]),
            (
                "ownership of the borrow",
                vec![(2, 2.816910744442549), (0, 1.1538435893235732), (1, 0.8894637970984561)],
            ),
            ("nothing here", vec![]),
            ("", vec![]),
        ] {
            let found = index.search(query);
            assert_eq!(found.len(), expected.len(), "{query}: {found:?}");
            for ((at, score), (known_at, known)) in found.iter().zip(expected) {
                assert!(*at == known_at && (score - known).abs() < 1e-12, "{query}: {found:?}");
            }
        }
    }

    #[test]
    fn nothing_to_search() {
        assert!(Bm25::default().search("cat").is_empty());
        assert!(Bm25::new(["", "..."]).search("cat").is_empty());
        assert!(Bm25::default().is_empty());
    }

    #[test]
    fn equal_texts_keep_their_order() {
        let index = Bm25::new(["same words", "same words", "same words"]);
        let found: Vec<usize> = index.search("words").into_iter().map(|f| f.0).collect();
        assert_eq!(found, [0, 1, 2]);
    }
}
