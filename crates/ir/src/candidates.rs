//! What tokens are drawn from: of a row of logits the largest ones, and what the others come to, in a row of floats that is small
//! enough to leave a device. An id is a float too, which holds whole numbers up to [`VOCAB_MAX`] exactly.
//!
//! The form of a row: entries that are NaN; the largest logit; the sum of `e^(l - largest)` over all; how many candidates there are;
//! then `k` logits, best first, of equal ones the lower id first; then their ids.

use std::cmp::Ordering::Equal;

/// Columns before the logits.
const HEAD: u32 = 4;

/// Candidates of a row that engines ask for.
pub const COUNT: u32 = 64;

/// Most columns of logits whose places a float holds.
pub const VOCAB_MAX: u32 = 1 << 24;

/// Columns of a row with room for `k` candidates.
pub fn columns(k: u32) -> u32 {
    HEAD + 2 * k
}

/// Candidates that a row of so many columns has room for.
pub fn count(columns: u32) -> u32 {
    columns.saturating_sub(HEAD) / 2
}

/// A row of candidates.
#[derive(Debug, Clone, Copy)]
pub struct Candidates<'a> {
    /// Entries of the row that are no number.
    pub nan: usize,
    /// The largest logit; `-inf` if there is none.
    pub max: f32,
    /// The sum of `e^(l - max)` over the row, within 1e-6 of it; meaningless where there are NaNs or the largest is not finite.
    pub sum: f32,
    /// The largest logits, best first; `-inf` is none. Empty where a device could not tell so many equal ones apart.
    pub logits: &'a [f32],
    /// Their ids, as floats.
    pub ids: &'a [f32],
}

impl<'a> Candidates<'a> {
    /// Reads a row as an [`crate::Op::TopK`] writes it.
    pub fn of(row: &'a [f32]) -> Candidates<'a> {
        let k = count(row.len() as u32) as usize;
        let (head, lists) = row.split_at(HEAD as usize);
        let n = (head[3] as usize).min(k);
        let (logits, ids) = (&lists[..n], &lists[k..k + n]);
        Candidates { nan: head[0] as usize, max: head[1], sum: head[2], logits, ids }
    }

    /// Ids and logits, best first.
    pub fn iter(&self) -> impl Iterator<Item = (u32, f32)> + 'a {
        self.ids.iter().zip(self.logits).map(|(id, logit)| (*id as u32, *logit))
    }
}

/// Writes a row's head: what devices have in common when they are done.
pub fn write_head(out: &mut [f32], nan: usize, max: f32, sum: f32, candidates: usize) {
    out[..HEAD as usize].copy_from_slice(&[nan as f32, max, sum, candidates as f32]);
}

/// Writes the candidates, best first, behind the head.
pub fn write_lists(out: &mut [f32], best: impl Iterator<Item = (u32, f32)>) {
    let k = count(out.len() as u32) as usize;
    let (logits, ids) = out[HEAD as usize..].split_at_mut(k);
    for ((l, i), (id, logit)) in logits.iter_mut().zip(ids).zip(best) {
        (*l, *i) = (logit, id as f32);
    }
}

/// The semantics: sorts the whole row.
pub fn choose(row: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    let nan = row.iter().filter(|l| l.is_nan()).count();
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max); // passes NaN over
    let sum: f64 = row.iter().map(|l| (f64::from(*l) - f64::from(max)).exp()).sum();
    let mut best: Vec<(u32, f32)> =
        (0..).zip(row.iter().copied()).filter(|(_, l)| *l > f32::NEG_INFINITY).collect();
    best.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Equal).then(a.0.cmp(&b.0)));
    best.truncate(count(out.len() as u32) as usize);
    write_head(out, nan, max, sum as f32, best.len());
    write_lists(out, best.into_iter());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_back_as_it_was_written() {
        let mut out = vec![9.0; columns(3) as usize];
        choose(&[1.0, f32::NEG_INFINITY, 3.0, 1.0, 2.0, f32::NAN], &mut out);
        let c = Candidates::of(&out);
        assert_eq!((c.nan, c.max), (1, 3.0));
        assert_eq!(c.iter().collect::<Vec<_>>(), [(2, 3.0), (4, 2.0), (0, 1.0)]);
        choose(&[0.5, f32::NEG_INFINITY], &mut out);
        let c = Candidates::of(&out);
        assert_eq!((c.nan, c.max, c.sum, c.logits, c.ids), (0, 0.5, 1.0, &[0.5][..], &[0.0][..]));
        choose(&[f32::NEG_INFINITY; 4], &mut out);
        assert_eq!((Candidates::of(&out).max, Candidates::of(&out).logits.len()), (f32::NEG_INFINITY, 0));
    }
}
