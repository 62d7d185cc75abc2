//! From the tensors of a source to the weights of a device: names, Gemma's norm + 1, then `Device::load`.

use crate::spec::ModelSpec;
use crate::{Error, Result, names, stacks};
use quarrel_formats::{Bytes, DType, Source, Tensor, quant};
use quarrel_ir::{Device, HostWeight, Program, Weight};

/// Loads every weight of `program`, in its order. `progress` is called with the bytes of each tensor taken in.
pub fn load(
    source: &Source,
    spec: &ModelSpec,
    program: &Program,
    device: &mut dyn Device,
    mut progress: impl FnMut(u64),
) -> Result<Vec<Weight>> {
    program
        .weights
        .iter()
        .map(|decl| {
            let parts =
                decl.parts.iter().map(|p| tensor(source, spec, &p.name)).collect::<Result<Vec<_>>>()?;
            let bytes = parts.iter().map(|t| t.data.len() as u64).sum();
            let weight = device.load(decl, HostWeight { parts })?;
            progress(bytes);
            Ok(weight)
        })
        .collect()
}

/// Finds a tensor by its canonical name and brings it to canonical form.
pub fn tensor(source: &Source, spec: &ModelSpec, canonical: &str) -> Result<Tensor> {
    let found = find(source, spec, canonical)?;
    if changes(source, spec, canonical) { add_one(found) } else { Ok(found) }
}

/// Type, bytes and whether they stay in the file, of each part of each weight of `program`: what [`load`] will give the
/// device, from the file's header alone.
pub fn headers(
    source: &Source,
    spec: &ModelSpec,
    program: &Program,
) -> Result<Vec<Vec<(DType, usize, bool)>>> {
    let header = |canonical: &str| {
        let t = find(source, spec, canonical)?;
        Ok(match changes(source, spec, canonical) {
            true => (DType::F32, 4 * t.len(), false),
            false => (t.dtype, t.data.len(), t.data.is_mapped()),
        })
    };
    program.weights.iter().map(|d| d.parts.iter().map(|p| header(&p.name)).collect()).collect()
}

/// Where a matrix of queries, keys or values is in a file that has the three as one: the name, and which it is.
pub(crate) fn fused(canonical: &str) -> Option<(String, usize)> {
    let (layer, name) = canonical.rsplit_once(".attn_")?;
    let (part, kind) = name.split_once('.')?;
    let index = ["q", "k", "v"].iter().position(|p| *p == part)?;
    Some((format!("{layer}.attn_qkv.{kind}"), index))
}

/// The rows of one of the three.
fn split(tensor: &Tensor, spec: &ModelSpec, canonical: &str, index: usize) -> Result<Tensor> {
    let rows = [spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.kv_heads * spec.v_dim];
    let rows = rows.map(|n| n as usize);
    let (first, all): (usize, usize) = (rows[..index].iter().sum(), rows.iter().sum());
    if tensor.shape.first() != Some(&all) || !tensor.data.len().is_multiple_of(all) {
        let why = format!("has shape {:?}; queries, keys and values need {all} rows", tensor.shape);
        return Err(crate::spec::field_error(&tensor.name, why));
    }
    let row = tensor.data.len() / all;
    let mut shape = tensor.shape.clone();
    shape[0] = rows[index];
    let data = tensor.data.slice(first * row..(first + rows[index]) * row);
    Ok(Tensor { name: canonical.into(), shape, data, dtype: tensor.dtype })
}

fn find(source: &Source, spec: &ModelSpec, canonical: &str) -> Result<Tensor> {
    let name = match source {
        Source::Gguf(_) => canonical.to_string(),
        Source::Hf(_) => names::hf(spec.arch, canonical).unwrap_or_else(|| canonical.into()),
    };
    let fused = || fused(&name).and_then(|(name, index)| Some((source.tensor(&name)?, index)));
    match (source.tensor(&name), fused()) {
        (Some(tensor), _) => Ok(tensor.clone()),
        (None, Some((tensor, index))) => split(tensor, spec, canonical, index),
        (None, None) => stacks::find(source, spec, canonical)?
            .ok_or_else(|| Error::MissingTensor { name, file: crate::place(source) }),
    }
}

/// Whether a tensor's values are changed when it is read.
fn changes(source: &Source, spec: &ModelSpec, canonical: &str) -> bool {
    matches!(source, Source::Hf(_)) && spec.arch.hf_norm_minus_one && canonical.ends_with("_norm.weight")
}

/// A norm gain stored as its difference from 1.
fn add_one(tensor: Tensor) -> Result<Tensor> {
    let n: usize = tensor.shape.iter().product();
    let mut gain = vec![0.0f32; n];
    quant::dequantize(tensor.dtype, &tensor.data, &mut gain)?;
    let bytes: Vec<u8> = gain.iter().flat_map(|g| (g + 1.0).to_le_bytes()).collect();
    Ok(Tensor { dtype: DType::F32, data: Bytes::from(bytes), ..tensor })
}
