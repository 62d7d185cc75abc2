//! The bytes of a prepared Program, part by part: computed from shapes and types before anything is loaded, by the functions
//! that [`Cpu`](crate::Cpu) itself prepares with, and reported by it afterwards.

use crate::device::{CpuOptions, layout};
use crate::exec::scratch_bytes;
use crate::kv::page_bytes;
use crate::linear::{self, Kinds, cuts};
use crate::pack::{InputKind, input_kind, packed_bytes};
use crate::pool::physical_cores;
use crate::simd::Isa;
use quarrel_formats::DType;
use quarrel_ir::{Error, Limits, Program, Result, Uses, WeightDecl, uses};

/// A stored tensor as far as its size goes: what a file's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Element type.
    pub dtype: DType,
    /// Bytes in the file.
    pub bytes: usize,
    /// Whether it is mapped, or in memory of its own because its values were changed when it was read.
    pub mapped: bool,
}

/// Bytes by part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Matrices in tiles, in memory of our own.
    pub packed: usize,
    /// Matrices that are read where the file is mapped.
    pub mapped: usize,
    /// Vectors in `f32`, and tensors that are not mapped.
    pub vectors: usize,
    /// Pages of embedding tables that are mapped between two times that they are given back: about as many as text touches.
    pub tables: usize,
    /// The arena without the logits, with the angles of the rotations.
    pub activations: usize,
    /// Rows of logits.
    pub logits: usize,
    /// Rows that are normed or quantised for a product.
    pub prepared: usize,
    /// What threads need for themselves and for attention over a full cache.
    pub scratch: usize,
    /// The KV cache: all blocks when computed ahead, those that were written when reported by a device, with the
    /// attention that is added up over them and the states of sequences, which are [`state_bytes`](crate::state_bytes) each.
    pub kv: usize,
}

impl Footprint {
    /// All weights.
    pub fn weights(&self) -> usize {
        self.packed + self.mapped + self.vectors
    }

    /// What is neither weights nor cache.
    pub fn working(&self) -> usize {
        self.tables + self.activations + self.logits + self.prepared + self.scratch
    }

    /// Everything.
    pub fn total(&self) -> usize {
        self.weights() + self.working() + self.kv
    }
}

/// What a file page that is read brings with it.
const AROUND: usize = 64 << 10;

/// Tokens whose rows of a mapped table are resident before they are given back.
pub(crate) const TABLE_TOKENS: usize = 256;

/// Resident bytes of a mapped table of so many bytes and rows: text has few different tokens, and frequent ones are neighbours, but
/// of long rows each has pages of its own.
pub(crate) fn table_bytes(bytes: usize, rows: usize) -> usize {
    bytes.min(TABLE_TOKENS * (AROUND / 8).max(bytes / rows.max(1)))
}

/// The footprint of a Program whose weights are `stored`, one entry for each part of each of [`Program::weights`].
pub fn footprint(
    program: &Program,
    stored: &[Vec<Stored>],
    limits: &Limits,
    options: &CpuOptions,
) -> Result<Footprint> {
    let isa = options.isa.unwrap_or_else(Isa::detect);
    let threads = options.threads.unwrap_or_else(physical_cores).max(1);
    let complete = stored.len() == program.weights.len()
        && stored.iter().zip(&program.weights).all(|(s, d)| s.len() == d.parts.len());
    if !complete {
        let why = "are not as many as the program declares".into();
        return Err(Error::Shape { at: "stored weights".into(), why });
    }
    // More than any address space holds would only overflow below.
    let kv = page_bytes(&program.kv, options.kv)
        .and_then(|b| b.checked_mul(limits.kv_blocks))
        .filter(|b| *b <= isize::MAX as usize >> 16)
        .ok_or(Error::Memory { what: "the KV cache", bytes: usize::MAX })?;
    let mut f = Footprint { kv, ..Footprint::default() };
    let mut kinds = Vec::new();
    for ((decl, parts), uses) in program.weights.iter().zip(stored).zip(uses(program)) {
        kinds.push(weight(&mut f, isa, decl, parts, uses));
    }
    let kinds = linear::kinds(program, |w| kinds[w.0 as usize]);
    f.working_memory(program, &kinds, limits, options, threads);
    Ok(f)
}

impl Footprint {
    /// Adds all that a Program needs besides weights and cache.
    pub(crate) fn working_memory(
        &mut self,
        program: &Program,
        kinds: &[Option<Kinds>],
        limits: &Limits,
        options: &CpuOptions,
        threads: usize,
    ) {
        let layout = layout(program, limits, options.keep_values);
        let logits = program.logits.map_or(0, |l| {
            let slot = layout.arena.slots[l.value.0 as usize];
            4 * slot.rows * slot.stride
        });
        self.logits += logits;
        self.activations += 4 * layout.elements - logits;
        self.prepared += linear::prepared_bytes(program, kinds, limits).iter().sum::<usize>();
        self.scratch += scratch_bytes(program, kinds, limits, threads);
    }
}

/// Adds a weight in the forms that `Cpu` brings it into, and says what its products multiply.
fn weight(f: &mut Footprint, isa: Isa, decl: &WeightDecl, stored: &[Stored], uses: Uses) -> Kinds {
    let (mut kinds, mut in_place) = (Kinds::default(), false);
    if uses.vector {
        f.vectors += 4 * decl.rows() as usize * decl.cols as usize;
    }
    if uses.matrix {
        for cut in cuts(decl, uses.halves).windows(2) {
            let mut end = 0;
            let part = decl.parts.iter().position(|p| {
                end += p.rows as usize;
                cut[0] < end
            });
            let (Some(stored), Some(rows)) = (part.map(|p| stored[p]), part.map(|p| decl.parts[p].rows))
            else {
                continue;
            };
            let cols = decl.cols as usize;
            match input_kind(isa, stored.dtype, cols) {
                InputKind::Quantized => kinds.quantized = true,
                InputKind::Float => kinds.float = true,
            }
            match packed_bytes(isa, stored.dtype, cut[1] - cut[0], cols) {
                Some(0) | None => {
                    in_place = true;
                    let bytes = stored.bytes / rows as usize * (cut[1] - cut[0]);
                    f.mapped += if stored.mapped { bytes } else { 0 };
                }
                Some(bytes) => f.packed += bytes,
            }
        }
    }
    let given_back = uses.matrix && !in_place && !uses.table;
    f.vectors += stored.iter().filter(|s| !s.mapped && !given_back).map(|s| s.bytes).sum::<usize>();
    if uses.table && !in_place {
        let mapped = stored.iter().zip(&decl.parts).filter(|(s, _)| s.mapped);
        f.tables += mapped.map(|(s, p)| table_bytes(s.bytes, p.rows as usize)).sum::<usize>();
    }
    kinds
}
