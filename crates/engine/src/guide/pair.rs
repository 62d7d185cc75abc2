//! Sequences in pairs: an answer after its prompt, and the same tokens after a negative one. Each row waits for the other's;
//! what becomes of the one becomes of both.

use super::contrast;
use crate::Result;
use crate::client::Act;

/// The pairs of a request.
#[derive(Debug, Clone)]
pub(crate) struct Pairs {
    scale: f32,
    list: Vec<Pair>,
}

#[derive(Debug, Clone, Default)]
struct Pair {
    /// The sequence of the answer, and the one beside it.
    main: u64,
    shadow: u64,
    /// The row that came first.
    row: Vec<f32>,
    /// Whose it is.
    from: Option<u64>,
    /// Tokens of the main sequence whose row came.
    length: usize,
}

/// Both rows of a pair are there, and made one.
pub(crate) struct Ready {
    /// The answer's sequence.
    pub(crate) main: u64,
    /// Its tokens.
    pub(crate) length: usize,
}

impl Pairs {
    pub(crate) fn new(scale: f32, main: u64, shadow: u64) -> Pairs {
        Pairs { scale, list: vec![Pair { main, shadow, ..Pair::default() }] }
    }

    /// Whether a sequence runs beside an answer.
    pub(crate) fn is_shadow(&self, id: u64) -> bool {
        self.list.iter().any(|p| p.shadow == id)
    }

    /// Takes the row after the `length` tokens of a sequence. When the other is there, `row` becomes that of both.
    pub(crate) fn arrive(&mut self, id: u64, length: usize, row: &mut Vec<f32>) -> Result<Option<Ready>> {
        let Some(p) = self.list.iter_mut().find(|p| p.main == id || p.shadow == id) else { return Ok(None) };
        if id == p.main {
            p.length = length;
        }
        if p.from.is_none_or(|from| from == id) {
            // One that was preempted comes again.
            p.row.clone_from(row);
            p.from = Some(id);
            return Ok(None);
        }
        p.from = None;
        if id == p.shadow {
            std::mem::swap(&mut p.row, row);
        }
        contrast::guide(self.scale, row, &p.row, p.length)?;
        Ok(Some(Ready { main: p.main, length: p.length }))
    }

    /// Adds to what becomes of answers the same for the sequences beside them.
    pub(crate) fn mirror(&mut self, acts: Vec<Act>, mut new_id: impl FnMut() -> u64) -> Vec<Act> {
        let mut both = Vec::with_capacity(2 * acts.len());
        for act in acts {
            let pair = |list: &mut Vec<Pair>, id: u64| {
                let p = list.iter_mut().find(|p| p.main == id)?;
                // Rows of before are of no use.
                p.from = None;
                Some(p.shadow)
            };
            let second = match &act {
                Act::Push { sequence, token } => pair(&mut self.list, *sequence)
                    .map(|shadow| Act::Push { sequence: shadow, token: *token }),
                Act::Rewind { sequence, back, then } => pair(&mut self.list, *sequence)
                    .map(|shadow| Act::Rewind { sequence: shadow, back: *back, then: then.clone() }),
                Act::End { sequence } => {
                    let shadow = pair(&mut self.list, *sequence);
                    self.list.retain(|p| p.main != *sequence);
                    shadow.map(|sequence| Act::End { sequence })
                }
                Act::Fork { from, id, token } => pair(&mut self.list, *from).map(|shadow| {
                    let other = new_id();
                    self.list.push(Pair { main: *id, shadow: other, ..Pair::default() });
                    Act::Fork { from: shadow, id: other, token: *token }
                }),
                Act::Score { .. } | Act::Finish | Act::Fail(_) => None,
            };
            // What ends a request comes last.
            both.push(act);
            both.extend(second);
        }
        both
    }
}
