//! Self-BLEU (Zhu et al. 2018, "Texygen"): how alike the answers to one prompt are. Each is scored by BLEU against the others
//! as references; the mean is 0 for answers that share nothing and 1 for equal ones.

use std::collections::HashMap;

/// Longest n-grams.
const ORDER: usize = 4;

/// The mean BLEU of each text against the others; 0 for fewer than two.
pub fn self_bleu(texts: &[Vec<String>]) -> f64 {
    if texts.len() < 2 {
        return 0.0;
    }
    let one = |i: usize| {
        let others: Vec<&[String]> =
            texts.iter().enumerate().filter(|(j, _)| *j != i).map(|t| &t.1[..]).collect();
        bleu(&texts[i], &others)
    };
    (0..texts.len()).map(one).sum::<f64>() / texts.len() as f64
}

/// Sentence BLEU (Papineni et al. 2002) as sacreBLEU has it: counts clipped by the largest of any reference, the length of the
/// closest reference, `exp` smoothing of orders without a match, and only orders that the text has (effective order).
fn bleu(text: &[String], references: &[&[String]]) -> f64 {
    if text.is_empty() {
        return 0.0;
    }
    let (mut log, mut orders, mut smooth) = (0.0, 0, 1.0);
    for n in 1..=ORDER {
        let grams = counts(text, n);
        let total: usize = grams.values().sum();
        if total == 0 {
            break;
        }
        let of: Vec<_> = references.iter().map(|r| counts(r, n)).collect();
        let most = |g: &[String]| of.iter().filter_map(|r| r.get(g)).max().copied().unwrap_or(0);
        let matched: usize = grams.iter().map(|(g, c)| (*c).min(most(g))).sum();
        if matched == 0 && n == 1 {
            return 0.0;
        }
        let precision = if matched == 0 {
            smooth *= 2.0;
            1.0 / (smooth * total as f64)
        } else {
            matched as f64 / total as f64
        };
        log += precision.ln();
        orders += 1;
    }
    let len = text.len();
    let closest = references.iter().map(|r| r.len()).min_by_key(|r| (r.abs_diff(len), *r)).unwrap_or(0);
    let brevity = if len < closest { 1.0 - closest as f64 / len as f64 } else { 0.0 };
    (brevity + log / f64::from(orders)).exp()
}

fn counts(words: &[String], n: usize) -> HashMap<&[String], usize> {
    let mut counts = HashMap::new();
    words.windows(n).for_each(|w| *counts.entry(w).or_insert(0) += 1);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::words;

    #[test]
    fn equal_to_sacrebleu() {
        // sacrebleu.sentence_bleu(a, [b, c], tokenize="none", use_effective_order=True).score / 100, version 2.6.0.
        let cases = [
            (
                "the cat sat on the mat",
                &["the cat sat on a mat", "a cat was on the mat today"][..],
                0.675_600_077_403_517_4,
            ),
            ("one two three", &["four five three", "three two one"], 0.396_850_262_992_049_9),
            ("a b c d e f g", &["a b c d e f g"], 1.0),
            ("short text", &["this is a longer text of some words"], 0.024_893_534_183_931_97),
            ("x y", &["a b c"], 0.0),
        ];
        for (text, references, want) in cases {
            let references: Vec<Vec<String>> = references.iter().map(|r| words(r)).collect();
            let references: Vec<&[String]> = references.iter().map(|r| &r[..]).collect();
            let got = bleu(&words(text), &references);
            assert!((got - want).abs() < 1e-6, "{text}: {got} instead of {want}");
        }
    }

    #[test]
    fn alike_texts_score_high() {
        let t = |s: &str| words(s);
        assert_eq!(self_bleu(&[t("a b c d e"), t("a b c d e")]), 1.0);
        assert!(self_bleu(&[t("a b c d e"), t("f g h i j")]) < 1e-9);
        assert_eq!(self_bleu(&[t("a b")]), 0.0);
    }
}
