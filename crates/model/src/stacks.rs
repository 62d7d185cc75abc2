//! One matrix out of a tensor that has several: an expert's of all experts', a gate's of gate and up in one, a head's of all heads'.

use crate::arch::Arch;
use crate::experts::{Stack, of_stack};
use crate::latent::Latent;
use crate::spec::{ModelSpec, field_error};
use crate::{Result, names};
use quarrel_formats::{Bytes, DType, Source, Tensor, quant};
use std::ops::Range;

/// What is taken of a stored tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// The matrix, or vector, with this number of the first dimension.
    Nth(usize),
    /// The same, or the whole, and of its rows those of the gate (0) or of up (1).
    Half(Option<usize>, usize),
    /// All of it: one expert's tensor under an old name.
    All,
    /// Of the input of latent attention: the latent, or what is rotated.
    Latent {
        /// The last rows.
        rotated: bool,
    },
    /// Of what expands latents, for a head: its keys, turned, or its values.
    Head {
        /// Which.
        head: usize,
        /// Not the keys.
        values: bool,
    },
}

/// The tensor that a canonical one is part of, if there is one, and which part.
pub(crate) fn locate<'a>(source: &'a Source, arch: &Arch, canonical: &str) -> Option<(&'a Tensor, Cut)> {
    let stack = of_stack(canonical);
    let (whole, index) = stack.map_or((canonical.to_string(), None), |(name, i)| (name, Some(i)));
    let mut places = Vec::new();
    if let Some(index) = index {
        places.push((whole.clone(), Cut::Nth(index)));
        for (own, values) in [("attn_k_b", false), ("attn_v_b", true)] {
            if whole.contains(own) {
                places.push((whole.replace(own, "attn_kv_b"), Cut::Head { head: index, values }));
            }
        }
        // As the first GGUF files of Mixtral had them: a tensor for each expert.
        places.push((canonical.replace(&format!("_exps.{index}."), &format!(".{index}.")), Cut::All));
    }
    // `blk.3.ffn_gate_exps.weight` may be the first half of `blk.3.ffn_gate_up_exps.weight`.
    for (own, half) in [("ffn_gate_", 0), ("ffn_up_", 1)] {
        if whole.contains(own) && !whole.contains("_inp") {
            places.push((whole.replace(own, "ffn_gate_up_"), Cut::Half(index, half)));
        }
    }
    for (own, rotated) in [("attn_kv_a_latent", false), ("attn_kv_a_rope", true)] {
        if canonical.contains(own) {
            places.push((canonical.replace(own, "attn_kv_a_mqa"), Cut::Latent { rotated }));
        }
    }
    places.into_iter().find_map(|(name, cut)| Some((names::find(source, arch, &name)?, cut)))
}

/// The stored tensor that belongs to another, if one does: the scales of blocks.
pub(crate) fn beside(source: &Source, tensor: &Tensor) -> Option<String> {
    let scales = format!("{}_scales", tensor.name.strip_suffix("_blocks")?);
    source.tensor(&scales).map(|t| t.name.clone())
}

/// Type and bytes of what [`cut`] gives, and whether it stays where it is stored.
pub(crate) fn header(source: &Source, spec: &ModelSpec, tensor: &Tensor, part: Cut) -> (DType, usize, bool) {
    let first = tensor.shape.first().copied().unwrap_or(1).max(1);
    let stack = |index: Option<usize>| index.map_or(tensor.len(), |_| tensor.len() / first);
    let (elements, moved) = match part {
        Cut::All => (tensor.len(), false),
        Cut::Nth(i) => (stack(Some(i)), layout(source, spec) == Stack::Turned && tensor.shape.len() == 3),
        Cut::Half(i, _) => (stack(i) / 2, i.is_some() && layout(source, spec) != Stack::Rows),
        Cut::Latent { rotated } => {
            let m = spec.latent.map_or((1, 1), |m| (m.rank as usize, m.rotated as usize));
            (tensor.len() / (m.0 + m.1) * if rotated { m.1 } else { m.0 }, false)
        }
        Cut::Head { values, .. } => {
            let m = spec.latent.map_or((1, 1), |m| (m.plain as usize, m.v_dim as usize));
            let of = if values { m.1 } else { m.0 };
            (tensor.len() / ((m.0 + m.1) * spec.heads.max(1) as usize) * of, !values)
        }
    };
    if tensor.name.ends_with("_blocks") {
        return (DType::MXFP4, elements / 16 * DType::MXFP4.block_bytes(), false);
    }
    let turned = matches!(part, Cut::Head { values: false, .. });
    if moved && turned && tensor.dtype.is_quantized() {
        return (DType::F32, 4 * elements, false);
    }
    let bytes = tensor.data.len() as u128 * elements as u128 / tensor.len().max(1) as u128;
    (tensor.dtype, bytes as usize, tensor.data.is_mapped() && !moved)
}

/// How a source stores the matrices of all experts in one tensor: GGUF always as products read them.
fn layout(source: &Source, spec: &ModelSpec) -> Stack {
    match (source, spec.arch.experts) {
        (Source::Hf(_), Some(e)) => e.hf_stack,
        _ => Stack::Rows,
    }
}

/// Cuts a part out of a tensor.
pub(crate) fn cut(source: &Source, spec: &ModelSpec, tensor: &Tensor, part: Cut) -> Result<Tensor> {
    let layout = layout(source, spec);
    let matrix = |index: usize| {
        if tensor.name.ends_with("_blocks") {
            return blocks(source, tensor, index);
        }
        let m = nth(tensor, index)?;
        if layout == Stack::Turned && m.shape.len() == 2 { turn(m) } else { Ok(m) }
    };
    match part {
        Cut::All => Ok(tensor.clone()),
        Cut::Nth(index) => matrix(index),
        Cut::Half(index, half) => {
            let t = index.map_or_else(|| Ok(tensor.clone()), matrix)?;
            let n = t.shape.first().copied().unwrap_or(0);
            if index.is_some() && layout == Stack::Interleaved {
                return every_second(&t, half);
            }
            rows(&t, half * (n / 2)..(half + 1) * (n / 2), n)
        }
        Cut::Latent { rotated } => {
            let m = latent(spec, tensor)?;
            let (rank, all) = (m.rank as usize, (m.rank + m.rotated) as usize);
            rows(tensor, if rotated { rank..all } else { 0..rank }, all)
        }
        Cut::Head { head, values } => {
            let m = latent(spec, tensor)?;
            let (plain, each) = (m.plain as usize, (m.plain + m.v_dim) as usize);
            let (first, all) = (head * each, spec.heads as usize * each);
            match values {
                true => rows(tensor, first + plain..first + each, all),
                false => turn(rows(tensor, first..first + plain, all)?),
            }
        }
    }
}

fn latent<'a>(spec: &'a ModelSpec, t: &Tensor) -> Result<&'a Latent> {
    let why = "belongs to latent attention, which this model does not have";
    spec.latent.as_ref().ok_or_else(|| field_error(&t.name, why))
}

fn unlike(t: &Tensor, why: String) -> crate::Error {
    field_error(&t.name, format!("has shape {:?}; {why}", t.shape))
}

/// One matrix of several.
fn nth(t: &Tensor, index: usize) -> Result<Tensor> {
    let count = t.shape.first().copied().unwrap_or(0);
    if t.shape.len() < 2 || index >= count || !t.data.len().is_multiple_of(count) {
        return Err(unlike(t, format!("there is no matrix {index} in it")));
    }
    let bytes = t.data.len() / count;
    let data = t.data.slice(index * bytes..(index + 1) * bytes);
    Ok(Tensor { name: t.name.clone(), shape: t.shape[1..].to_vec(), data, dtype: t.dtype })
}

/// Some rows of the `all` that there must be.
fn rows(t: &Tensor, range: Range<usize>, all: usize) -> Result<Tensor> {
    let whole = t.shape.first() == Some(&all) && t.data.len().is_multiple_of(all.max(1));
    if !whole || range.is_empty() || range.end > all {
        return Err(unlike(t, format!("rows {range:?} of {all} are needed")));
    }
    let row = t.data.len() / all;
    let mut shape = t.shape.clone();
    shape[0] = range.len();
    let data = t.data.slice(range.start * row..range.end * row);
    Ok(Tensor { name: t.name.clone(), shape, data, dtype: t.dtype })
}

/// Rows `first`, `first + 2`, ...
pub(crate) fn every_second(t: &Tensor, first: usize) -> Result<Tensor> {
    let all = t.shape.first().copied().unwrap_or(0);
    if all == 0 || !all.is_multiple_of(2) || !t.data.len().is_multiple_of(all) {
        return Err(unlike(t, "an even number of rows is needed".into()));
    }
    let row = t.data.len() / all;
    let taken = t.data.chunks_exact(row).skip(first).step_by(2).flatten().copied();
    let data = Bytes::from(taken.collect::<Vec<u8>>());
    let mut shape = t.shape.clone();
    shape[0] = all / 2;
    Ok(Tensor { name: t.name.clone(), shape, data, dtype: t.dtype })
}

/// Rows become columns. Blocks of quantised types lie along rows, so those become floats.
pub(crate) fn turn(t: Tensor) -> Result<Tensor> {
    let &[rows, cols] = &t.shape[..] else { return Err(unlike(&t, "a matrix is needed".into())) };
    let t = if t.dtype.is_quantized() {
        let mut floats = vec![0.0f32; rows * cols];
        quant::dequantize(t.dtype, &t.data, &mut floats)?;
        let bytes: Vec<u8> = floats.iter().flat_map(|f| f.to_le_bytes()).collect();
        Tensor { dtype: DType::F32, data: Bytes::from(bytes), ..t }
    } else {
        t
    };
    let size = t.dtype.block_bytes();
    if t.data.len() != rows * cols * size {
        return Err(unlike(&t, format!("it has {} bytes", t.data.len())));
    }
    let mut data = Vec::with_capacity(t.data.len());
    for c in 0..cols {
        for r in 0..rows {
            data.extend_from_slice(&t.data[(r * cols + c) * size..][..size]);
        }
    }
    Ok(Tensor { shape: vec![cols, rows], data: Bytes::from(data), ..t })
}

/// One expert's matrix of `[experts, rows, blocks, 16]` bytes, two neighbouring numbers of four bits in each, and
/// `[experts, rows, blocks]` scales beside it, as GPT-OSS has them; as MXFP4, where a byte has numbers 16 apart.
fn blocks(source: &Source, t: &Tensor, index: usize) -> Result<Tensor> {
    let &[_, rows, count, 16] = &t.shape[..] else {
        return Err(unlike(t, "[experts, rows, blocks, 16] is needed".into()));
    };
    let scales = beside(source, t).and_then(|n| source.tensor(&n));
    let scales = scales.ok_or_else(|| unlike(t, "its scales are missing".into()))?;
    let (numbers, scales) = (nth(t, index)?, nth(scales, index)?);
    if numbers.data.len() != 16 * rows * count || scales.data.len() != rows * count {
        return Err(unlike(t, "its scales are of another shape".into()));
    }
    let mut data = Vec::with_capacity(17 * rows * count);
    for (pairs, scale) in numbers.data.chunks_exact(16).zip(scales.data.iter()) {
        let number = |i: usize| (pairs[i / 2] >> (4 * (i % 2))) & 15;
        data.push(*scale);
        data.extend((0..16).map(|i| number(i) | (number(i + 16) << 4)));
    }
    Ok(Tensor {
        name: t.name.clone(),
        shape: vec![rows, 32 * count],
        data: Bytes::from(data),
        dtype: DType::MXFP4,
    })
}
