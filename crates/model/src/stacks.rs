//! One matrix out of a tensor that has several: an expert's of all experts', a gate's of gate and up in one.

use crate::arch::Arch;
use crate::experts::{Stack, of_stack};
use crate::spec::field_error;
use crate::{Result, names};
use quarrel_formats::{Bytes, Source, Tensor};

/// Where a matrix is in a tensor of `[index, rows]`, or of rows alone.
struct Place {
    /// As stored.
    name: String,
    /// Which of the first dimension, if there are three.
    index: Option<usize>,
    /// Which of how many equal parts of the rows.
    part: (usize, usize),
}

/// The stored names under which the tensor with a canonical name may be.
fn places(source: &Source, arch: &Arch, canonical: &str) -> Vec<Place> {
    let stored = |name: &str| match source {
        Source::Gguf(_) => Some(name.to_string()),
        Source::Hf(_) => names::hf(arch, name),
    };
    let (all, index) = match of_stack(canonical) {
        Some((all, index)) => (all, Some(index)),
        None => (canonical.to_string(), None),
    };
    // `blk.3.ffn_gate_exps.weight` may be the first half of `blk.3.ffn_gate_up_exps.weight`.
    let halves = [("ffn_gate_", 0), ("ffn_up_", 1)];
    let half = halves.iter().find_map(|(part, i)| {
        let joined = all.replace(part, "ffn_gate_up_");
        (joined != all && !all.contains("_gate_inp")).then_some((joined, (*i, 2)))
    });
    let of = |(name, part): (String, (usize, usize))| Some(Place { name: stored(&name)?, index, part });
    let mut all: Vec<Place> =
        [Some((all.clone(), (0, 1))), half].into_iter().flatten().filter_map(of).collect();
    // As the first GGUF files of Mixtral had them: a tensor for each expert.
    if let (Source::Gguf(_), Some(index)) = (source, index) {
        let old = canonical.replace(&format!("_exps.{index}."), &format!(".{index}."));
        all.push(Place { name: old, index: None, part: (0, 1) });
    }
    all
}

/// The stored name of the tensor that a canonical one is part of, if it is.
pub(crate) fn stored(source: &Source, arch: &Arch, canonical: &str) -> Option<String> {
    let found = places(source, arch, canonical).into_iter().find(|p| source.tensor(&p.name).is_some());
    found.map(|p| p.name)
}

/// Cuts a tensor out of the one that has it; none if the source has none such.
pub(crate) fn find(source: &Source, arch: &Arch, canonical: &str) -> Result<Option<Tensor>> {
    let found = places(source, arch, canonical).into_iter().find_map(|p| Some((source.tensor(&p.name)?, p)));
    let Some((tensor, place)) = found else { return Ok(None) };
    let mut t = tensor.clone();
    let fail = |why: String| field_error(&tensor.name, format!("has shape {:?}; {why}", tensor.shape));
    if let Some(index) = place.index {
        let count = t.shape.first().copied().unwrap_or(0);
        if t.shape.len() < 2 || index >= count || !t.data.len().is_multiple_of(count) {
            return Err(fail(format!("there is no matrix {index} in it")));
        }
        let bytes = t.data.len() / count;
        t.data = t.data.slice(index * bytes..(index + 1) * bytes);
        t.shape.remove(0);
        let turned = arch.experts.is_some_and(|e| e.hf_stack == Stack::Turned);
        if turned && t.shape.len() == 2 && matches!(source, Source::Hf(_)) {
            t = turn(t)?;
        }
    }
    let (part, of) = place.part;
    let rows = t.shape.first().copied().unwrap_or(0);
    if rows == 0 || !rows.is_multiple_of(of) || !t.data.len().is_multiple_of(rows) {
        return Err(fail(format!("its rows are not {of} equal parts")));
    }
    let bytes = t.data.len() / of;
    t.data = t.data.slice(part * bytes..(part + 1) * bytes);
    t.shape[0] = rows / of;
    Ok(Some(Tensor { name: canonical.into(), ..t }))
}

/// Rows become columns; of floats only.
pub(crate) fn turn(t: Tensor) -> Result<Tensor> {
    let &[rows, cols] = &t.shape[..] else {
        return Err(field_error(&t.name, format!("has shape {:?}, a matrix is needed", t.shape)));
    };
    if t.dtype.block_len() != 1 || t.data.len() != rows * cols * t.dtype.block_bytes() {
        return Err(field_error(
            &t.name,
            format!("is stored as {} and must be turned, which only floats can be", t.dtype),
        ));
    }
    let size = t.dtype.block_bytes();
    let mut data = Vec::with_capacity(t.data.len());
    for c in 0..cols {
        for r in 0..rows {
            data.extend_from_slice(&t.data[(r * cols + c) * size..][..size]);
        }
    }
    Ok(Tensor { shape: vec![cols, rows], data: Bytes::from(data), ..t })
}
