//! The bytes that a prepared Program takes on a GPU, part by part, computed from shapes and types before anything is loaded, by the
//! functions that the device itself prepares with.

use crate::choose::{self, Layout};
use crate::device::ARENA_SLACK;
use crate::exec;
use crate::gpu::Caps;
use crate::kv::{KvType, places};
use crate::weights::{SLACK, runs};
use quarrel_formats::DType;
use quarrel_ir::arena::Arena;
use quarrel_ir::{Error, Limits, Program, Result, uses};

/// Bytes by part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Matrices and vectors, in the forms that kernels read.
    pub weights: usize,
    /// Embedding tables and routers that are held beside the matrix of the same tensor, because products read another form of it.
    pub tables: usize,
    /// The KV cache.
    pub kv: usize,
    /// The arena without the logits, with the angles of the rotations.
    pub activations: usize,
    /// Rows of logits.
    pub logits: usize,
    /// What kernels need for themselves.
    pub scratch: usize,
}

impl Footprint {
    /// What is neither weights nor cache.
    pub fn working(&self) -> usize {
        self.activations + self.logits + self.scratch
    }

    /// Everything.
    pub fn total(&self) -> usize {
        self.weights + self.tables + self.kv + self.working()
    }
}

/// The driver hands memory out in units of 2 MiB, which small tensors share.
const UNIT: usize = 2 << 20;

fn held(bytes: usize) -> usize {
    if bytes >= UNIT { bytes.next_multiple_of(UNIT) } else { bytes.next_multiple_of(512) }
}

/// The footprint of a Program whose weights have the types `stored`, one for each part of each of [`Program::weights`].
pub fn footprint(
    program: &Program,
    stored: &[Vec<DType>],
    limits: &Limits,
    caps: &Caps,
    kv: KvType,
    deterministic: bool,
) -> Result<Footprint> {
    let complete = stored.len() == program.weights.len()
        && stored.iter().zip(&program.weights).all(|(s, d)| s.len() == d.parts.len());
    if !complete {
        let why = "are not as many as the program declares".into();
        return Err(Error::Shape { at: "stored weights".into(), why });
    }
    let kv = places(&program.kv, kv)
        .and_then(|(_, page)| page.checked_mul(limits.kv_blocks))
        .ok_or(Error::Memory { what: "the KV cache", bytes: usize::MAX })?;
    let mut f = Footprint { kv: held(kv), ..Footprint::default() };
    let mut shapes = Vec::new();
    for ((decl, types), uses) in program.weights.iter().zip(stored).zip(uses(program)) {
        let cols = decl.cols as usize;
        if uses.vector {
            f.weights += held(4 * decl.rows() as usize * cols);
        }
        let runs: Vec<_> = runs(decl, types.iter().copied()).into_iter().map(|r| r.0).collect();
        for run in &runs {
            // Rows of one element are vectors, which have no blocks.
            let file = held(run.dtype.row_bytes(cols).unwrap_or(0) * run.rows + SLACK);
            match (uses.matrix, choose::held_layout(decl, uses, runs.len(), run, caps)) {
                (true, Layout::Tiles(format)) => {
                    f.weights += held(format.bytes(run.rows, cols) + SLACK);
                    f.tables += if uses.table || uses.exact { file } else { 0 };
                }
                (true, Layout::File) => f.weights += file,
                (false, _) => f.weights += if uses.table { file } else { 0 },
            }
        }
        shapes.push(runs);
    }
    let arena = Arena::plan(program, limits, false);
    f.logits = program.logits.map_or(0, |l| {
        let slot = arena.slots[l.value.0 as usize];
        4 * slot.rows * slot.stride
    });
    let angles: usize = program.ropes.iter().map(|t| 4 * t.rot_dims as usize * limits.rows).sum();
    f.activations = held(4 * arena.elements + ARENA_SLACK) + held(angles) - f.logits;
    let s = exec::scratch_bytes(program, &shapes, limits, caps, deterministic);
    f.scratch = [s.input + ARENA_SLACK, s.form + ARENA_SLACK, s.wide, s.lists, s.parts, s.top]
        .into_iter()
        .map(held)
        .sum();
    Ok(f)
}
