//! One matrix out of a tensor that has several: an expert's of all experts', a gate's of gate and up in one, a head's of all heads'.

use crate::experts::{Stack, of_stack};
use crate::latent::Latent;
use crate::spec::{ModelSpec, field_error};
use crate::{Result, names};
use quarrel_formats::{Bytes, DType, Source, Tensor, quant};
use std::ops::Range;

/// Where a matrix is in a stored tensor.
struct Place {
    /// As stored.
    name: String,
    cut: Cut,
}

/// What is taken of a tensor.
#[derive(Clone, Copy)]
enum Cut {
    /// All of it.
    All,
    /// The matrix with this number of the first of three dimensions.
    Nth(usize),
    /// The same, and of its rows the first or the second half.
    Half(Option<usize>, usize),
    /// Of the input of latent attention: the latent, or what is rotated.
    Latent { rotated: bool },
    /// Of what expands latents, for a head: its keys, turned, or its values.
    Head { head: usize, values: bool },
}

/// The stored names under which the tensor with a canonical name may be.
fn places(source: &Source, spec: &ModelSpec, canonical: &str) -> Vec<Place> {
    let stored = |name: &str| match source {
        Source::Gguf(_) => Some(name.to_string()),
        Source::Hf(_) => names::hf(spec.arch, name),
    };
    let mut all: Vec<(String, Cut)> = Vec::new();
    let stack = of_stack(canonical);
    if let Some((name, index)) = &stack {
        all.push((name.clone(), Cut::Nth(*index)));
        for (own, values) in [("attn_k_b", false), ("attn_v_b", true)] {
            if name.contains(own) {
                all.push((name.replace(own, "attn_kv_b"), Cut::Head { head: *index, values }));
            }
        }
    }
    // `blk.3.ffn_gate_exps.weight` may be the first half of `blk.3.ffn_gate_up_exps.weight`.
    let (whole, index) = stack.map_or((canonical.to_string(), None), |(name, i)| (name, Some(i)));
    for (own, half) in [("ffn_gate_", 0), ("ffn_up_", 1)] {
        if whole.contains(own) && !whole.contains("_inp") {
            all.push((whole.replace(own, "ffn_gate_up_"), Cut::Half(index, half)));
        }
    }
    for (own, rotated) in [("attn_kv_a_latent", false), ("attn_kv_a_rope", true)] {
        if canonical.contains(own) {
            all.push((canonical.replace(own, "attn_kv_a_mqa"), Cut::Latent { rotated }));
        }
    }
    // As the first GGUF files of Mixtral had them: a tensor for each expert.
    if let (Source::Gguf(_), Some(index)) = (source, index) {
        all.push((canonical.replace(&format!("_exps.{index}."), &format!(".{index}.")), Cut::All));
    }
    all.into_iter().filter_map(|(name, cut)| Some(Place { name: stored(&name)?, cut })).collect()
}

/// The stored name of the tensor that a canonical one is part of, if it is.
pub(crate) fn stored(source: &Source, spec: &ModelSpec, canonical: &str) -> Option<String> {
    let found = places(source, spec, canonical).into_iter().find(|p| source.tensor(&p.name).is_some());
    found.map(|p| p.name)
}

/// Cuts a tensor out of the one that has it; none if the source has none such.
pub(crate) fn find(source: &Source, spec: &ModelSpec, canonical: &str) -> Result<Option<Tensor>> {
    let found =
        places(source, spec, canonical).into_iter().find_map(|p| Some((source.tensor(&p.name)?, p.cut)));
    let Some((tensor, cut)) = found else { return Ok(None) };
    let hf = matches!(source, Source::Hf(_));
    let turned = hf && spec.arch.experts.is_some_and(|e| e.hf_stack == Stack::Turned);
    let matrix = |index: usize| {
        let m = nth(tensor, index)?;
        if turned && m.shape.len() == 2 { turn(m) } else { Ok(m) }
    };
    let t = match cut {
        Cut::All => tensor.clone(),
        Cut::Nth(index) => matrix(index)?,
        Cut::Half(index, half) => {
            let t = index.map_or_else(|| Ok(tensor.clone()), matrix)?;
            let n = t.shape.first().copied().unwrap_or(0);
            rows(&t, half * (n / 2)..(half + 1) * (n / 2), n)?
        }
        Cut::Latent { rotated } => {
            let m = latent(spec, tensor)?;
            let (rank, all) = (m.rank as usize, (m.rank + m.rotated) as usize);
            rows(tensor, if rotated { rank..all } else { 0..rank }, all)?
        }
        Cut::Head { head, values } => {
            let m = latent(spec, tensor)?;
            let (plain, each) = (m.plain as usize, (m.plain + m.v_dim) as usize);
            let (first, all) = (head * each, spec.heads as usize * each);
            match values {
                true => rows(tensor, first + plain..first + each, all)?,
                false => turn(rows(tensor, first..first + plain, all)?)?,
            }
        }
    };
    Ok(Some(Tensor { name: canonical.into(), ..t }))
}

fn latent<'a>(spec: &'a ModelSpec, t: &Tensor) -> Result<&'a Latent> {
    spec.latent
        .as_ref()
        .ok_or_else(|| field_error(&t.name, "belongs to latent attention, which this model does not have"))
}

/// One matrix of several.
fn nth(t: &Tensor, index: usize) -> Result<Tensor> {
    let count = t.shape.first().copied().unwrap_or(0);
    if t.shape.len() < 2 || index >= count || !t.data.len().is_multiple_of(count) {
        return Err(field_error(
            &t.name,
            format!("has shape {:?}; there is no matrix {index} in it", t.shape),
        ));
    }
    let bytes = t.data.len() / count;
    Ok(Tensor {
        name: t.name.clone(),
        shape: t.shape[1..].to_vec(),
        data: t.data.slice(index * bytes..(index + 1) * bytes),
        dtype: t.dtype,
    })
}

/// Some rows of the `all` that there must be.
fn rows(t: &Tensor, range: Range<usize>, all: usize) -> Result<Tensor> {
    if t.shape.first() != Some(&all)
        || range.is_empty()
        || range.end > all
        || !t.data.len().is_multiple_of(all)
    {
        return Err(field_error(
            &t.name,
            format!("has shape {:?}; rows {range:?} of {all} are needed", t.shape),
        ));
    }
    let row = t.data.len() / all;
    let mut shape = t.shape.clone();
    shape[0] = range.len();
    Ok(Tensor {
        name: t.name.clone(),
        shape,
        data: t.data.slice(range.start * row..range.end * row),
        dtype: t.dtype,
    })
}

/// Rows become columns. Blocks of quantised types lie along rows, so those become floats.
fn turn(t: Tensor) -> Result<Tensor> {
    let &[rows, cols] = &t.shape[..] else {
        return Err(field_error(&t.name, format!("has shape {:?}, a matrix is needed", t.shape)));
    };
    let t = match t.dtype.block_len() {
        1 => t,
        _ => {
            let mut floats = vec![0.0f32; rows * cols];
            quant::dequantize(t.dtype, &t.data, &mut floats)?;
            let bytes: Vec<u8> = floats.iter().flat_map(|f| f.to_le_bytes()).collect();
            Tensor { dtype: DType::F32, data: Bytes::from(bytes), ..t }
        }
    };
    let size = t.dtype.block_bytes();
    if t.data.len() != rows * cols * size {
        return Err(field_error(&t.name, format!("has {} bytes for shape {:?}", t.data.len(), t.shape)));
    }
    let mut data = Vec::with_capacity(t.data.len());
    for c in 0..cols {
        for r in 0..rows {
            data.extend_from_slice(&t.data[(r * cols + c) * size..][..size]);
        }
    }
    Ok(Tensor { shape: vec![cols, rows], data: Bytes::from(data), ..t })
}
