//! A row of logits on its way to whoever draws from it: its best entries at once, all of it only where those are not enough,
//! because on a GPU a row is half a megabyte on the other side of a bus.

use crate::Result;
use quarrel_ir::{Candidates, Device, Prepared, Readout};

/// Candidates of each row that devices are asked for: a part of the contract of draws, whose order they begin.
pub(crate) const CANDIDATES: u32 = quarrel_ir::candidates::COUNT;

/// One row of the last step.
pub(crate) struct Logits<'a> {
    device: &'a mut dyn Device,
    prepared: Prepared,
    /// Which of the step's rows with logits.
    output: usize,
    best: Option<Candidates<'a>>,
    row: &'a mut Vec<f32>,
    is_here: bool,
}

impl<'a> Logits<'a> {
    /// Row `output`; `row` is where it comes to, and has its length. `best` is what the device chose of it, if it did.
    pub(crate) fn new(
        device: &'a mut dyn Device,
        prepared: Prepared,
        output: usize,
        best: Option<Candidates<'a>>,
        row: &'a mut Vec<f32>,
    ) -> Logits<'a> {
        Logits { device, prepared, output, best, row, is_here: false }
    }

    /// What the device chose of the row, if it did and the row is still what it was.
    pub(crate) fn best(&self) -> Option<Candidates<'a>> {
        self.best
    }

    /// Length of the row.
    pub(crate) fn vocab(&self) -> usize {
        self.row.len()
    }

    /// All of the row, which may be changed, and what the device chose of it before.
    pub(crate) fn whole(&mut self) -> Result<(&mut Vec<f32>, Option<Candidates<'a>>)> {
        if !self.is_here {
            let what = Readout::Logits(self.output);
            self.device.read(self.prepared, what, self.row)?;
            self.is_here = true;
        }
        Ok((self.row, self.best))
    }

    /// All of the row, to become another one: what the device chose of it does not hold any more.
    pub(crate) fn replaced(&mut self) -> Result<&mut Vec<f32>> {
        self.whole()?;
        self.best = None;
        Ok(self.row)
    }

    /// Takes back what a drawer changed, for the next one. `saved` is from [`Self::save`].
    pub(crate) fn restore(&mut self, saved: &Option<Vec<f32>>) {
        match saved {
            Some(row) => self.row.clone_from(row),
            None => self.is_here = false, // the device has it
        }
    }

    /// A copy of the row, if it is not the device's any more.
    pub(crate) fn save(&self) -> Option<Vec<f32>> {
        (self.is_here && self.best.is_none()).then(|| self.row.clone())
    }
}
