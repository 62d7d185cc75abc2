//! The mask of a constraint: what it forbids is no candidate for any later stage. Few ids are allowed where a grammar has
//! much to say, so their logits are gathered and the stages run over those alone, not over a vocabulary of `-inf`.

use super::softmax;
use crate::constraint::ConstraintBox;
use crate::{Error, Result};

/// What a mask leaves of a row.
#[derive(Debug, Default)]
pub(super) struct Allowed {
    bits: Vec<u32>,
    /// Ascending.
    ids: Vec<u32>,
    logits: Vec<f32>,
}

impl Allowed {
    /// Asks the constraint and gathers what is left of `row`, which holds no NaN: the logits, in order of their ids, and the
    /// largest. `None` if nothing is forbidden.
    pub(super) fn gather(
        &mut self,
        constraint: &mut ConstraintBox,
        row: &[f32],
        step: usize,
    ) -> Result<Option<(&[f32], f32)>> {
        if !constraint.mask(row.len(), &mut self.bits, step)? {
            return Ok(None);
        }
        self.ids.clear();
        self.logits.clear();
        for (word, first) in self.bits.iter().zip((0u32..).step_by(32)) {
            let mut left = *word;
            while left != 0 {
                let id = first + left.trailing_zeros();
                left &= left - 1;
                self.ids.push(id);
                self.logits.push(row[id as usize]);
            }
        }
        let max = softmax::scan(&self.logits).max;
        if max == f32::INFINITY {
            let stage = "logit_bias, penalties and dry";
            return Err(Error::Logits { stage, step, nan: 0, vocab: row.len(), max });
        }
        if max == f32::NEG_INFINITY {
            let n = self.ids.len();
            let why = format!("the model or logit_bias forbids all of the {n} tokens that it allows");
            return Err(Error::Constraint { step, why });
        }
        Ok(Some((&self.logits, max)))
    }

    /// The id of a gathered logit.
    pub(super) fn id(&self, index: u32) -> u32 {
        self.ids[index as usize]
    }
}
