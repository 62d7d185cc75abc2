//! What the device keeps of a weight: matrices in runs of parts of one tensor type, vectors as f32, tables as in the file.

use crate::args::{Ptr, Repack};
use crate::choose::{self, Layout};
use crate::gpu::{Buffer, Event, Gpu, Pinned};
use quarrel_formats::{DType, Tensor, dequantize};
use quarrel_ir::{Error, Result, Uses, WeightDecl};
use std::sync::Arc;

/// Bytes behind the last row: kernels may read a vector's width beyond it.
pub(crate) const SLACK: usize = 256;

/// Neighbouring parts of one tensor type, as far as their place goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunShape {
    pub(crate) dtype: DType,
    /// First row in the weight.
    pub(crate) first: usize,
    pub(crate) rows: usize,
}

/// The runs of a weight whose parts have these types, and the parts of each.
pub(crate) fn runs(
    decl: &WeightDecl,
    types: impl Iterator<Item = DType>,
) -> Vec<(RunShape, std::ops::Range<usize>)> {
    let mut runs: Vec<(RunShape, std::ops::Range<usize>)> = Vec::new();
    let mut first = 0;
    for (i, (dtype, part)) in types.zip(&decl.parts).enumerate() {
        let rows = part.rows as usize;
        match runs.last_mut().filter(|r| r.0.dtype == dtype) {
            Some((run, parts)) => (run.rows, parts.end) = (run.rows + rows, i + 1),
            None => runs.push((RunShape { dtype, first, rows }, i..i + 1)),
        }
        first += rows;
    }
    runs
}

/// A run on the GPU.
pub(crate) struct Run {
    pub(crate) shape: RunShape,
    /// As in the file, while something reads that.
    file: Option<Buffer>,
    /// As products read it, where that is another form.
    packed: Option<Buffer>,
    parts: std::ops::Range<usize>,
}

impl Run {
    /// Where its rows in the layout of products begin.
    pub(crate) fn matrix(&self) -> Option<Ptr> {
        self.packed.as_ref().or(self.file.as_ref()).map(|b| b.ptr)
    }

    /// Where the rows as in the file begin.
    pub(crate) fn table(&self) -> Option<Ptr> {
        self.file.as_ref().map(|f| f.ptr)
    }
}

/// A weight of the device.
pub(crate) struct Held {
    pub(crate) decl: WeightDecl,
    tensors: Vec<Tensor>,
    pub(crate) runs: Vec<Run>,
    vector: Option<Buffer>,
    /// Whether products of many rows read it as in the file, with inputs that are not rounded.
    pub(crate) exact: bool,
}

impl Held {
    /// Takes tensors in after checking that their bytes have a meaning here.
    pub(crate) fn new(decl: WeightDecl, tensors: Vec<Tensor>) -> Result<Held> {
        for t in &tensors {
            check(t, decl.cols as usize)?;
        }
        let shapes = runs(&decl, tensors.iter().map(|t| t.dtype));
        let run = |(shape, parts)| Run { shape, file: None, packed: None, parts };
        let runs = shapes.into_iter().map(run).collect();
        Ok(Held { decl, tensors, runs, vector: None, exact: false })
    }

    /// The shapes of its runs.
    pub(crate) fn shapes(&self) -> Vec<RunShape> {
        self.runs.iter().map(|r| r.shape).collect()
    }

    /// Whether it can only be a matrix: these are uploaded when they are loaded.
    pub(crate) fn is_matrix(&self) -> bool {
        self.decl.rows() > 1 && self.decl.cols > 1
    }

    /// Brings the bytes as in the file to the GPU, if they are not there in some form.
    pub(crate) fn upload(&mut self, uploader: &mut Uploader) -> Result<()> {
        for run in self.runs.iter_mut().filter(|r| r.file.is_none() && r.packed.is_none()) {
            let tensors = &self.tensors[run.parts.clone()];
            let bytes: usize = tensors.iter().map(|t| t.data.len()).sum();
            let buffer = uploader.gpu.alloc(bytes + SLACK, &tensors[0].name)?;
            let mut at = buffer.ptr;
            for t in tensors {
                uploader.send(at, &t.data)?;
                t.data.release();
                at += t.data.len() as u64;
            }
            run.file = Some(buffer);
        }
        Ok(())
    }

    /// Makes the forms that `uses` asks for, and drops the file's form where nothing reads it any more.
    pub(crate) fn ready(&mut self, uses: Uses, uploader: &mut Uploader) -> Result<()> {
        if uses.vector && self.vector.is_none() {
            self.make_vector(uploader)?;
        }
        let cols = self.decl.cols as usize;
        self.exact |= uses.exact;
        let file = uses.table || self.exact;
        let lost = file && self.runs.iter().any(|r| r.file.is_none() && r.packed.is_some());
        if lost {
            self.runs.iter_mut().for_each(|r| r.packed = None);
        }
        if uses.matrix || uses.table {
            self.upload(uploader)?;
        }
        if !uses.matrix {
            return Ok(());
        }
        let glu = uses.halves && self.runs.len() == 1;
        let runs = self.runs.len();
        for run in &mut self.runs {
            let Some(source) = run.file.as_ref().filter(|_| run.packed.is_none()) else { continue };
            let rows = run.shape.rows;
            let layout = choose::held_layout(&self.decl, uses, runs, &run.shape, &uploader.gpu.caps);
            let Layout::Tiles(format) = layout else { continue };
            let gpu = &uploader.gpu;
            let name = &self.tensors[run.parts.start].name;
            let packed = gpu.zeroed(format.bytes(rows, cols) + SLACK, name)?;
            let args = Repack {
                src: source.ptr,
                dst: packed.ptr,
                n: rows as i64,
                row0: 0,
                rows: rows as i32,
                k: cols as i32,
                glu: i32::from(glu),
                pad: 0,
            };
            let grid = (cols.div_ceil(32) * rows).div_ceil(256) as u32;
            gpu.launch(format.repack, [grid, 1, 1], 256, 0, &args)?;
            run.packed = Some(packed);
            if !file {
                gpu.wait()?;
                run.file = None;
            }
        }
        Ok(())
    }

    fn make_vector(&mut self, uploader: &mut Uploader) -> Result<()> {
        let mut bytes = Vec::with_capacity(4 * self.decl.rows() as usize * self.decl.cols as usize);
        for t in &self.tensors {
            let mut values = vec![0.0f32; t.len()];
            let fail = |e: quarrel_formats::Error| Error::Weight { name: t.name.clone(), why: e.to_string() };
            dequantize(t.dtype, &t.data, &mut values).map_err(fail)?;
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        }
        let name = self.tensors.first().map_or("a vector", |t| &t.name);
        let buffer = uploader.gpu.alloc(bytes.len(), name)?;
        uploader.send(buffer.ptr, &bytes)?;
        self.vector = Some(buffer);
        Ok(())
    }

    /// Where a vector's f32 numbers lie; null before [`Held::ready`].
    pub(crate) fn vector(&self) -> Ptr {
        self.vector.as_ref().map_or(0, |b| b.ptr)
    }

    /// Bytes on the GPU.
    pub(crate) fn bytes(&self) -> usize {
        let runs = self
            .runs
            .iter()
            .map(|r| r.file.as_ref().map_or(0, |b| b.bytes) + r.packed.as_ref().map_or(0, |b| b.bytes));
        runs.sum::<usize>() + self.vector.as_ref().map_or(0, |b| b.bytes)
    }
}

/// Checks that a tensor's type has a meaning here and that its bytes are as many as its shape says.
fn check(t: &Tensor, cols: usize) -> Result<()> {
    // A vector of many parts has rows of one element, which no block type can have.
    let row = if t.shape.len() > 1 { cols } else { t.len() };
    let bytes = t.dtype.row_bytes(row).and_then(|b| b.checked_mul(t.len() / row.max(1)));
    let fail = |why: String| Err(Error::Weight { name: t.name.clone(), why });
    if bytes != Some(t.data.len()) {
        return fail(format!("{} bytes do not hold {:?} of type {}", t.data.len(), t.shape, t.dtype));
    }
    if !choose::known(t.dtype) {
        return fail(format!("the cuda device has no kernels for weights of type {}", t.dtype));
    }
    Ok(())
}

/// Most bytes of each of the two buffers through which weights go.
const STAGE: usize = 32 << 20;

/// Threads that copy into them: one alone does not keep the bus busy.
const COPIERS: usize = 4;

/// Sends bytes through two locked buffers in turn: while one is copied over the bus, the other is filled.
pub(crate) struct Uploader {
    gpu: Arc<Gpu>,
    stages: Vec<(Pinned, Event)>,
    turn: usize,
}

impl Uploader {
    pub(crate) fn new(gpu: Arc<Gpu>) -> Uploader {
        Uploader { gpu, stages: Vec::new(), turn: 0 }
    }

    /// Queues the copy; `data` may change when this returns.
    pub(crate) fn send(&mut self, to: Ptr, data: &[u8]) -> Result<()> {
        let want = data.len().next_power_of_two().clamp(64 << 10, STAGE);
        if self.stages.first().is_none_or(|s| s.0.len() < want) {
            self.finish()?;
            for _ in 0..2 {
                self.stages.push((self.gpu.pinned(want)?, self.gpu.event(false)?));
            }
        }
        let size = self.stages[0].0.len();
        for (i, chunk) in data.chunks(size).enumerate() {
            let (stage, sent) = &mut self.stages[self.turn];
            self.turn = 1 - self.turn;
            sent.wait()?;
            let stage = &mut stage.bytes_mut()[..chunk.len()];
            copy(stage, chunk);
            self.gpu.upload(to + (i * size) as u64, stage)?;
            sent.record()?;
        }
        Ok(())
    }

    /// Waits for what was sent and gives the locked memory back.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.gpu.wait()?;
        self.stages.clear();
        Ok(())
    }
}

fn copy(to: &mut [u8], from: &[u8]) {
    let part = from.len().div_ceil(COPIERS).max(1 << 20);
    if from.len() <= part {
        return to.copy_from_slice(from);
    }
    std::thread::scope(|s| {
        for (to, from) in to.chunks_mut(part).zip(from.chunks(part)) {
            s.spawn(|| to.copy_from_slice(from));
        }
    });
}
