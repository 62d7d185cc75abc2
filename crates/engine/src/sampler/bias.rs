//! Logit bias: `l[id] += bias`, first in the chain (OpenAI API, `logit_bias`). A bias of `-inf` forbids a token.

use super::Edits;

/// Adds each bias; an empty list changes nothing.
pub(crate) fn apply(bias: &[(u32, f32)], row: &mut [f32], edits: &mut Edits) {
    for (id, b) in bias {
        edits.set(row, *id, row[*id as usize] + b);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_and_forbids() {
        let (mut row, mut edits) = (vec![1.0, 2.0, 3.0], Edits::default());
        apply(&[(0, 1.5), (2, f32::NEG_INFINITY), (0, 1.0)], &mut row, &mut edits);
        assert_eq!(row, [3.5, 2.0, f32::NEG_INFINITY]);
        assert_eq!(
            (edits.original(&row, 0), edits.original(&row, 1), edits.original(&row, 2)),
            (1.0, 2.0, 3.0)
        );
    }
}
