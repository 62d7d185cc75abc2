//! Counts over the words of a text. A word is a run of letters and digits, in lower case: so texts of models with different
//! tokenizers are counted alike.

use std::collections::HashSet;

/// The words of a text.
pub fn words(text: &str) -> Vec<String> {
    let parts = text.split(|c: char| !c.is_alphanumeric() && c != '\'');
    parts.filter(|w| w.chars().any(char::is_alphanumeric)).map(str::to_lowercase).collect()
}

/// rep-n: the share of n-grams that repeat an earlier one, `1 - |distinct| / |all|` (Welleck et al. 2020); 0 where there are
/// none.
pub fn repetition(words: &[String], n: usize) -> f64 {
    let all = words.windows(n).count();
    if all == 0 {
        return 0.0;
    }
    1.0 - words.windows(n).collect::<HashSet<_>>().len() as f64 / all as f64
}

/// distinct-n: distinct n-grams of several texts over all of theirs (Li et al. 2016); 0 where there are none.
pub fn distinct(texts: &[Vec<String>], n: usize) -> f64 {
    let all: usize = texts.iter().map(|t| t.windows(n).count()).sum();
    let distinct: HashSet<&[String]> = texts.iter().flat_map(|t| t.windows(n)).collect();
    if all == 0 { 0.0 } else { distinct.len() as f64 / all as f64 }
}

/// The sentences of a text with their places: they end at `.`, `!` or `?` before a space, or at a line's end.
pub fn sentences(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    for line in text.lines() {
        let (mut start, bytes) = (0, line.as_bytes());
        for i in 0..bytes.len() {
            let end = matches!(bytes[i], b'.' | b'!' | b'?') && bytes.get(i + 1).is_none_or(|b| *b == b' ');
            if end || i + 1 == bytes.len() {
                out.push(line[start..=i].trim());
                start = i + 1;
            }
        }
    }
    out.retain(|s| s.chars().any(char::is_alphanumeric));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_repeats_is_counted_and_what_is_new_too() {
        let w = words("A b c d. A b, c d! It's 9");
        assert_eq!(w, ["a", "b", "c", "d", "a", "b", "c", "d", "it's", "9"]);
        // Seven 4-grams, of which abcd comes twice.
        assert!((repetition(&w, 4) - 1.0 / 7.0).abs() < 1e-12);
        assert_eq!(repetition(&words("a b"), 4), 0.0);
        let same = vec![words("a b c"), words("a b c")];
        assert_eq!(distinct(&same, 1), 0.5);
        assert_eq!(distinct(&[words("")], 2), 0.0);
    }

    #[test]
    fn sentences_end_where_people_end_them() {
        let s = sentences("It is 3.5 m. Really?  Yes!\n- a point\n\nüber. é");
        assert_eq!(s, ["It is 3.5 m.", "Really?", "Yes!", "- a point", "über.", "é"]);
        assert!(sentences(" \n--- \n").is_empty());
    }
}
