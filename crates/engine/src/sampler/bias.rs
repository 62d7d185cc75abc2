//! Logit bias: `l[id] += bias`, first in the chain (OpenAI API, `logit_bias`). A bias of `-inf` forbids a token. A brief bias
//! is one for the first tokens of the answer: what an answer may not begin with.

use super::Edits;
use crate::sampling::Sampling;

/// Adds each bias that holds when `made` tokens of the answer are there; without any, nothing is changed.
pub(super) fn apply(s: &Sampling, made: u32, row: &mut [f32], edits: &mut Edits) {
    let brief = s.brief_bias.iter().filter(|b| made < b.tokens).map(|b| (b.id, b.bias));
    for (id, b) in s.logit_bias.iter().copied().chain(brief) {
        edits.set(row, id, row[id as usize] + b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::BriefBias;

    #[test]
    fn adds_forbids_and_ends() {
        let logit_bias = vec![(0, 1.5), (2, f32::NEG_INFINITY), (0, 1.0)];
        let brief_bias = vec![BriefBias { id: 1, bias: -4.0, tokens: 3 }];
        let s = Sampling { logit_bias, brief_bias, ..Sampling::default() };
        for (made, second) in [(0, -2.0), (2, -2.0), (3, 2.0), (9, 2.0)] {
            let (mut row, mut edits) = (vec![1.0, 2.0, 3.0], Edits::default());
            apply(&s, made, &mut row, &mut edits);
            assert_eq!(row, [3.5, second, f32::NEG_INFINITY]);
            for id in 0..3 {
                assert_eq!(edits.original(&row, id), id as f32 + 1.0);
            }
        }
    }
}
