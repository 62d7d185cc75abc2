//! The inputs of a step on the GPU: counts, rows, rows with logits, block tables, in one buffer that is sent in one copy.
//!
//! Where each part begins depends on the sizes that a step is recorded for alone, so that a graph finds them again.

use crate::args::{Ptr, Step};
use crate::gpu::{Buffer, Event, Gpu, Pinned};
use quarrel_ir::{BLOCK_TOKENS, Limits, Result, StepInputs};
use std::sync::Arc;

/// The sizes that a step is recorded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Size {
    pub(crate) rows: usize,
    pub(crate) outputs: usize,
    /// Chunks of the longest context.
    pub(crate) chunks: usize,
}

/// Numbers before the rows.
const HEAD: usize = 16;

/// Steps whose inputs may wait to be sent.
const SLOTS: usize = 4;

/// The buffer on the GPU and its sources here.
pub(crate) struct Inputs {
    gpu: Arc<Gpu>,
    buffer: Buffer,
    words: usize,
    /// Rows of a tile of [`Lists::tiles`].
    tile: usize,
    slots: Vec<(Pinned, Event)>,
    turn: usize,
}

impl Inputs {
    /// Room for every step of `limits` whose sequences do not share most of their blocks; it grows when they do.
    pub(crate) fn new(gpu: &Arc<Gpu>, limits: &Limits, tile: usize) -> Result<Inputs> {
        Inputs::of(gpu, HEAD + 4 * limits.rows + limits.outputs + 2 * limits.kv_blocks + 1024, tile)
    }

    fn of(gpu: &Arc<Gpu>, words: usize, tile: usize) -> Result<Inputs> {
        let buffer = gpu.zeroed(4 * words, "the inputs of a step")?;
        let slots =
            (0..SLOTS).map(|_| Ok((gpu.pinned(4 * words)?, gpu.event(false)?))).collect::<Result<_>>()?;
        Ok(Inputs { gpu: gpu.clone(), buffer, words, tile, slots, turn: 0 })
    }

    /// Bytes on the GPU.
    pub(crate) fn bytes(&self) -> usize {
        self.buffer.bytes
    }

    /// Makes room for a step; true if the buffer is another now.
    pub(crate) fn reserve(&mut self, step: &StepInputs, size: Size) -> Result<bool> {
        let lists = 4 * step.copies.len() + 4 * step.seqs.len() + step.seqs.len() * MANY;
        let need = tail(step, size) + lists + 4 * self.tiles(step) + 8;
        if need <= self.words {
            return Ok(false);
        }
        self.gpu.wait()?;
        *self = Inputs::of(&self.gpu.clone(), need.next_power_of_two(), self.tile)?;
        Ok(true)
    }

    /// Where the parts of a step of this size lie.
    pub(crate) fn step(&self, size: Size) -> Step {
        let at = |words: usize| self.buffer.ptr + 4 * words as u64;
        let row = HEAD;
        let outputs = row + 4 * size.rows;
        Step { n: at(0), row: at(row), outputs: at(outputs), blocks: at(outputs + size.outputs) }
    }

    /// Where the lists behind the block tables lie.
    pub(crate) fn lists(&self, step: &StepInputs, size: Size) -> Lists {
        // Entries are read 16 bytes at a time.
        let at = |words: usize| self.buffer.ptr + 4 * words as u64;
        let copies = tail(step, size);
        let seqs = copies + 4 * step.copies.len();
        let many: Vec<usize> = step.seqs.iter().map(|s| s.rows).filter(|r| *r >= MANY).collect();
        let few = seqs + 4 * many.len();
        let few_len = step.tokens.len() - many.iter().sum::<usize>();
        Lists {
            copies: (!step.copies.is_empty()).then(|| (at(2), at(copies))),
            seqs: at(seqs),
            few: at(few),
            few_len,
            tiles: at((few + few_len).next_multiple_of(4)),
            tile_count: self.tiles(step),
            many,
        }
    }

    /// Tiles of the sequences with many rows.
    fn tiles(&self, step: &StepInputs) -> usize {
        step.seqs.iter().filter(|s| s.rows >= MANY).map(|s| s.rows.div_ceil(self.tile)).sum()
    }

    /// Queues the sending of a step, after [`Inputs::reserve`].
    pub(crate) fn send(&mut self, step: &StepInputs, size: Size) -> Result<()> {
        let (pinned, sent) = &mut self.slots[self.turn];
        self.turn = (self.turn + 1) % SLOTS;
        sent.wait()?;
        let mut words = Vec::with_capacity(64 + 4 * size.rows);
        words.extend([step.tokens.len() as u32, step.outputs.len() as u32, step.copies.len() as u32]);
        words.resize(HEAD, 0);
        let mut first = 0;
        let mut firsts = Vec::with_capacity(step.seqs.len());
        let mut token = step.tokens.iter();
        for seq in step.seqs {
            for r in 0..seq.rows {
                let id = token.next().copied().unwrap_or(0);
                words.extend([id, (seq.start + r) as u32, first, 0]);
            }
            firsts.push(first);
            first += used(seq.start + seq.rows) as u32;
        }
        words.resize(HEAD + 4 * size.rows, 0);
        words.extend(step.outputs);
        words.resize(HEAD + 4 * size.rows + size.outputs, 0);
        for seq in step.seqs {
            words.extend(&seq.blocks[..used(seq.start + seq.rows)]);
        }
        if !step.copies.is_empty() || step.seqs.iter().any(|s| s.rows >= MANY) {
            words.resize(tail(step, size), 0);
            let places: Vec<_> = step.places().collect();
            for c in step.copies {
                words.extend([c.row, places[c.row as usize].1 as u32, firsts[c.seq as usize], 0]);
            }
            let mut row = 0;
            let (mut few, mut tiles) = (Vec::new(), Vec::new());
            for (seq, first) in step.seqs.iter().zip(&firsts) {
                match seq.rows >= MANY {
                    true => {
                        words.extend([row, seq.rows as u32, *first, seq.start as u32]);
                        tiles.extend((0..seq.rows).step_by(self.tile).flat_map(|at| {
                            let rows = self.tile.min(seq.rows - at) as u32;
                            [row + at as u32, rows, (seq.start + at) as u32, *first]
                        }));
                    }
                    false => few.extend(row..row + seq.rows as u32),
                }
                row += seq.rows as u32;
            }
            words.extend(few);
            words.resize(words.len().next_multiple_of(4), 0);
            words.extend(tiles);
        }
        let bytes = &mut pinned.bytes_mut()[..4 * words.len()];
        for (to, word) in bytes.chunks_exact_mut(4).zip(&words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        self.gpu.upload(self.buffer.ptr, bytes)?;
        sent.record()
    }
}

/// Rows of a sequence from which on its attention goes to tensor cores.
pub(crate) const MANY: usize = 16;

/// Lists of a step that graphs never have.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lists {
    /// The number of rows that are stored in several sequences, and the list of them.
    pub(crate) copies: Option<(Ptr, Ptr)>,
    /// The sequences with many rows.
    pub(crate) seqs: Ptr,
    /// Their rows.
    pub(crate) many: Vec<usize>,
    /// The rows of the others.
    pub(crate) few: Ptr,
    /// How many these are.
    pub(crate) few_len: usize,
    /// The rows of sequences with many, in tiles: first row, rows, position of the first, place of the block table.
    pub(crate) tiles: Ptr,
    /// How many tiles.
    pub(crate) tile_count: usize,
}

/// Words before the lists.
fn tail(step: &StepInputs, size: Size) -> usize {
    (HEAD + 4 * size.rows + size.outputs + blocks(step)).next_multiple_of(4)
}

/// Blocks of a sequence of so many tokens.
fn used(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

fn blocks(step: &StepInputs) -> usize {
    step.seqs.iter().map(|s| used(s.start + s.rows)).sum::<usize>()
}
