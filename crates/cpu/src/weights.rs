//! What the device keeps of each weight: the tensor as it came, and what a Program needs of it: a vector in f32, a matrix
//! in tiles, or a table whose rows are decoded in place.

use crate::footprint::{Footprint, table_bytes};
use crate::linear::Piece;
use quarrel_formats::{DType, Tensor, dequantize};
use quarrel_ir::{Error, Result, WeightDecl};

/// A weight of the device.
pub(crate) struct Held {
    pub(crate) decl: WeightDecl,
    pub(crate) tensors: Vec<Tensor>,
    vector: Vec<f32>,
    /// The matrix in tiles, by first row.
    pub(crate) pieces: Vec<Piece>,
}

impl Held {
    pub(crate) fn new(decl: WeightDecl, tensors: Vec<Tensor>) -> Held {
        Held { decl, tensors, vector: Vec::new(), pieces: Vec::new() }
    }

    /// Checks that the stored types have a meaning here, so that later access cannot fail.
    pub(crate) fn check(&self) -> Result<()> {
        for t in &self.tensors {
            let cols = self.decl.cols as usize;
            // A vector of many parts has rows of one element, which no block type can have.
            let row = if t.shape.len() > 1 { cols } else { t.len() };
            let fail = |why: String| Error::Weight { name: t.name.clone(), why };
            let bytes = t.dtype.row_bytes(row).and_then(|b| b.checked_mul(t.len() / row.max(1)));
            if bytes != Some(t.data.len()) {
                return Err(fail(format!(
                    "{} bytes do not hold {:?} of type {}",
                    t.data.len(),
                    t.shape,
                    t.dtype
                )));
            }
            let block = t.dtype.block_len();
            dequantize(t.dtype, &t.data[..t.dtype.block_bytes().min(t.data.len())], &mut vec![0.0; block])
                .map_err(|e| fail(e.to_string()))?;
        }
        Ok(())
    }

    /// Decodes a vector, once.
    pub(crate) fn make_vector(&mut self) -> Result<()> {
        if self.vector.is_empty() {
            let mut all = Vec::with_capacity(self.decl.rows() as usize * self.decl.cols as usize);
            for t in &self.tensors {
                let at = all.len();
                all.resize(at + t.len(), 0.0);
                dequantize(t.dtype, &t.data, &mut all[at..])
                    .map_err(|e| Error::Weight { name: t.name.clone(), why: e.to_string() })?;
            }
            self.vector = all;
        }
        Ok(())
    }

    /// A norm's or bias's numbers; empty unless [`Held::make_vector`] was called.
    pub(crate) fn vector(&self) -> &[f32] {
        &self.vector
    }

    /// Where a row is, of a token or a position: type, bytes of its tensor, bytes of a row, row in the tensor.
    pub(crate) fn table_row(&self, row: u32) -> (DType, &[u8], usize, u32) {
        let mut at = row;
        for (t, part) in self.tensors.iter().zip(&self.decl.parts) {
            if at < part.rows {
                return (t.dtype, &t.data, t.data.len() / part.rows as usize, at);
            }
            at -= part.rows;
        }
        unreachable!("row {row} was checked against the table's rows")
    }

    /// Adds the bytes that it holds now.
    pub(crate) fn measure(&self, f: &mut Footprint) {
        f.vectors += self.tensors.iter().filter(|t| !t.data.is_mapped()).map(|t| t.data.len()).sum::<usize>();
        f.vectors += 4 * self.vector.len();
        f.packed += self.pieces.iter().map(Piece::bytes).sum::<usize>();
        f.mapped += self.pieces.iter().map(Piece::mapped_bytes).sum::<usize>();
    }

    /// Gives back the pages that reading rows of a table has mapped, unless products read them too.
    pub(crate) fn release_table(&self) {
        if self.pieces.iter().all(|p| p.mapped_bytes() == 0) {
            self.tensors.iter().for_each(|t| t.data.release());
        }
    }

    /// Resident bytes of a table.
    pub(crate) fn table_bytes(&self) -> usize {
        if self.pieces.iter().any(|p| p.mapped_bytes() > 0) {
            return 0; // counted with the matrices
        }
        let mapped = self.tensors.iter().zip(&self.decl.parts).filter(|(t, _)| t.data.is_mapped());
        mapped.map(|(t, p)| table_bytes(t.data.len(), p.rows as usize)).sum()
    }
}
