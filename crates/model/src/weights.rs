//! From the tensors of a source to the weights of a device: names, fused and turned matrices, Gemma's norm + 1, then
//! `Device::load`.

use crate::arch::{Arch, Stacked};
use crate::spec::ModelSpec;
use crate::stacks::{self, Cut};
use crate::{Error, Result, names};
use quarrel_formats::{Bytes, DType, Source, Tensor, quant};
use quarrel_ir::{Device, HostWeight, Program, Weight};
use std::collections::HashSet;

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
    if let Some(made) = made(spec, canonical) {
        return Ok(made);
    }
    let (found, take) = locate(source, spec.arch, canonical)?;
    let mut tensor = found.clone();
    if transposed(source, spec, canonical) && tensor.shape.len() == 2 {
        tensor = stacks::turn(tensor)?;
    }
    tensor = match take {
        Take::Whole => tensor,
        Take::Third(index) => third(&tensor, source, spec, canonical, index)?,
        Take::Half(index) if gate_pairs(source, spec) => {
            Tensor { name: canonical.into(), ..stacks::every_second(&tensor, index)? }
        }
        Take::Half(index) => half(&tensor, canonical, index)?,
        Take::Cut(part) => Tensor { name: canonical.into(), ..stacks::cut(source, spec, found, part)? },
    };
    match () {
        () if unit_rows(spec, canonical) => unit(tensor),
        () if minus_one(source, spec, canonical) => mapped(tensor, |g| g + 1.0),
        () if logarithm(source, canonical) => mapped(tensor, |g| -g.exp()),
        () => Ok(tensor),
    }
}

/// Type, bytes and whether they stay in the file, of each part of each weight of `program`: what [`load`] will give the
/// device, from the file's header alone.
pub fn headers(
    source: &Source,
    spec: &ModelSpec,
    program: &Program,
) -> Result<Vec<Vec<(DType, usize, bool)>>> {
    let header = |canonical: &str| {
        if let Some(made) = made(spec, canonical) {
            return Ok((made.dtype, made.data.len(), false));
        }
        let (t, take) = locate(source, spec.arch, canonical)?;
        if minus_one(source, spec, canonical) || logarithm(source, canonical) {
            return Ok((DType::F32, 4 * t.len(), false));
        }
        if unit_rows(spec, canonical) {
            let dtype = unit_type(t.dtype);
            return Ok((dtype, t.len() / dtype.block_len() * dtype.block_bytes(), false));
        }
        let bytes = match take {
            Take::Whole => t.data.len(),
            Take::Half(_) => t.data.len() / 2,
            Take::Cut(part) => return Ok(stacks::header(source, spec, t, part)),
            Take::Third(index) => {
                let rows = thirds(spec);
                t.data.len() / rows.iter().sum::<usize>().max(1) * rows[index]
            }
        };
        let gathered = matches!(take, Take::Third(_)) && by_kv_head(source, spec);
        let turned = transposed(source, spec, canonical) && t.shape.len() == 2;
        let paired = matches!(take, Take::Half(_)) && gate_pairs(source, spec);
        let moved = turned || gathered || paired;
        Ok((t.dtype, bytes, t.data.is_mapped() && !moved))
    };
    program.weights.iter().map(|d| d.parts.iter().map(|p| header(&p.name)).collect()).collect()
}

/// Whether a source has a tensor, by itself or in one with others.
pub(crate) fn has(source: &Source, arch: &Arch, canonical: &str) -> bool {
    locate(source, arch, canonical).is_ok()
}

/// The tensors of a source that a Program does not use.
pub(crate) fn unused(source: &Source, spec: &ModelSpec, program: &Program) -> Vec<String> {
    let parts = program.weights.iter().flat_map(|w| &w.parts);
    let found = parts.filter_map(|p| locate(source, spec.arch, &p.name).ok());
    let mut used: HashSet<String> =
        found.flat_map(|(t, _)| [Some(t.name.clone()), stacks::beside(source, t)]).flatten().collect();
    // Files have keys and values of layers that use those of others.
    let sharing = (0..spec.layers.len()).filter(|l| !spec.keeps(*l));
    let names = sharing
        .flat_map(|l| ["attn_k", "attn_v", "attn_k_norm"].map(|name| format!("blk.{l}.{name}.weight")));
    used.extend(names.filter_map(|n| names::find(source, spec.arch, &n).map(|t| t.name.clone())));
    let mut unused: Vec<String> =
        source.tensors().map(|t| t.name.clone()).filter(|n| !used.contains(n)).collect();
    unused.sort();
    unused
}

/// Which rows of a tensor of the file are a canonical one.
enum Take {
    Whole,
    /// Of queries, keys and values.
    Third(usize),
    /// Of gate and up.
    Half(usize),
    /// Of what has several matrices otherwise.
    Cut(Cut),
}

/// Where a matrix of queries, keys or values is in a file that has the three as one: the name, and which it is.
pub(crate) fn fused(canonical: &str) -> Option<(String, usize)> {
    let (layer, name) = canonical.rsplit_once(".attn_")?;
    let (part, kind) = name.split_once('.')?;
    let index = ["q", "k", "v"].iter().position(|p| *p == part)?;
    Some((format!("{layer}.attn_qkv.{kind}"), index))
}

/// The tensor of a file that holds a canonical one: itself, or queries, keys and values in one, or gate and up.
fn locate<'a>(source: &'a Source, arch: &Arch, canonical: &str) -> Result<(&'a Tensor, Take)> {
    let find = |name: &str| names::find(source, arch, name);
    let gate = canonical.replace(".ffn_up.", ".ffn_gate.");
    let up = canonical.replace(".ffn_gate.", ".ffn_up.");
    let halves = arch.gated && gate != up && find(&gate).is_none();
    let found = if halves {
        find(&up).map(|t| (t, Take::Half(usize::from(canonical == up))))
    } else {
        find(canonical).map(|t| (t, Take::Whole))
    };
    let stacked = || fused(canonical).and_then(|(name, index)| Some((find(&name)?, Take::Third(index))));
    let part = || stacks::locate(source, arch, canonical).map(|(t, part)| (t, Take::Cut(part)));
    found.or_else(stacked).or_else(part).ok_or_else(|| {
        let name = match source {
            Source::Gguf(_) => canonical.into(),
            Source::Hf(_) => names::hf(arch, canonical).unwrap_or_else(|| canonical.into()),
        };
        Error::MissingTensor { name, file: crate::place(source) }
    })
}

/// Rows of queries, keys and values.
fn thirds(spec: &ModelSpec) -> [usize; 3] {
    [spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim, spec.kv_heads * spec.v_dim]
        .map(|n| n as usize)
}

fn by_kv_head(source: &Source, spec: &ModelSpec) -> bool {
    matches!(source, Source::Hf(_)) && spec.arch.hf_qkv == Stacked::ByKvHead
}

/// Whether a file has the rows of gate and up in turn.
fn gate_pairs(source: &Source, spec: &ModelSpec) -> bool {
    matches!(source, Source::Hf(_)) && spec.arch.hf_gate_pairs
}

/// A tensor that no file has: a bias of the head that keeps tokens from being answered, which is finite, because what is drawn from
/// is finite; or the ones that are added to the factors by which streams are corrected.
fn made(spec: &ModelSpec, canonical: &str) -> Option<Tensor> {
    let bias = match spec.streams {
        _ if canonical == "output.bias" && !spec.never.is_empty() => {
            let mut bias = vec![0.0f32; spec.vocab as usize];
            spec.never.iter().for_each(|n| bias[*n as usize] = -1e30 / spec.logit_scale);
            bias
        }
        Some(s) if canonical.ends_with(".altup_correct_coef.bias") => vec![1.0; s.count as usize],
        _ => return None,
    };
    let data = Bytes::from(bias.iter().flat_map(|b| b.to_le_bytes()).collect::<Vec<u8>>());
    Some(Tensor { name: canonical.into(), dtype: DType::F32, shape: vec![bias.len()], data })
}

/// The rows of one of the three.
fn third(
    tensor: &Tensor,
    source: &Source,
    spec: &ModelSpec,
    canonical: &str,
    index: usize,
) -> Result<Tensor> {
    let rows = thirds(spec);
    let (first, all): (usize, usize) = (rows[..index].iter().sum(), rows.iter().sum());
    let row = row_bytes(tensor, all)
        .ok_or_else(|| unlike(tensor, format!("queries, keys and values need {all} rows")))?;
    let mut shape = tensor.shape.clone();
    shape[0] = rows[index];
    let data = if by_kv_head(source, spec) {
        let heads = spec.kv_heads as usize;
        let (block, own) = (all / heads * row, rows[index] / heads * row);
        let blocks = tensor.data.chunks_exact(block);
        let bytes = blocks.flat_map(|b| b[first / heads * row..][..own].iter().copied());
        Bytes::from(bytes.collect::<Vec<u8>>())
    } else {
        tensor.data.slice(first * row..(first + rows[index]) * row)
    };
    Ok(Tensor { name: canonical.into(), shape, data, dtype: tensor.dtype })
}

/// The upper rows are the gate's, the lower ones up's.
fn half(tensor: &Tensor, canonical: &str, index: usize) -> Result<Tensor> {
    let rows = tensor.shape.first().copied().unwrap_or(0);
    let row = row_bytes(tensor, rows).filter(|_| rows % 2 == 0);
    let row = row.ok_or_else(|| unlike(tensor, "gate and up need an even number of rows".into()))?;
    let mut shape = tensor.shape.clone();
    shape[0] = rows / 2;
    let data = tensor.data.slice(index * rows / 2 * row..(index + 1) * rows / 2 * row);
    Ok(Tensor { name: canonical.into(), shape, data, dtype: tensor.dtype })
}

/// Bytes of a row, if the tensor has so many.
fn row_bytes(tensor: &Tensor, rows: usize) -> Option<usize> {
    let fits = rows > 0 && tensor.shape.first() == Some(&rows) && tensor.data.len().is_multiple_of(rows);
    fits.then(|| tensor.data.len() / rows)
}

fn unlike(tensor: &Tensor, why: String) -> Error {
    crate::spec::field_error(&tensor.name, format!("has shape {:?}; {why}", tensor.shape))
}

/// Whether the file has rows and columns of a matrix the other way round.
fn transposed(source: &Source, spec: &ModelSpec, canonical: &str) -> bool {
    matches!(source, Source::Hf(_)) && spec.arch.hf_transposed && canonical.starts_with("blk.")
}

/// Whether the file has a norm's gains minus one.
fn minus_one(source: &Source, spec: &ModelSpec, canonical: &str) -> bool {
    matches!(source, Source::Hf(_)) && spec.arch.hf_norm_minus_one && canonical.ends_with("_norm.weight")
}

/// Whether a matrix is to have rows of length 1, which the file may not have.
fn unit_rows(spec: &ModelSpec, canonical: &str) -> bool {
    spec.unit_head && canonical == "output.weight"
}

/// The type of rows that are changed after they were stored: as they were, and 16 bits where they were in blocks.
fn unit_type(stored: DType) -> DType {
    if stored.is_quantized() { DType::F16 } else { stored }
}

/// Brings rows to length 1.
fn unit(tensor: Tensor) -> Result<Tensor> {
    let (dtype, cols) = (unit_type(tensor.dtype), tensor.shape.last().copied().unwrap_or(0).max(1));
    let mut all = vec![0.0f32; tensor.len()];
    quant::dequantize(tensor.dtype, &tensor.data, &mut all)?;
    for row in all.chunks_mut(cols) {
        let length = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt().max(1e-12);
        row.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
    let mut data = Vec::new();
    quant::quantize(dtype, &all, &mut data)?;
    Ok(Tensor { dtype, data: Bytes::from(data), ..tensor })
}

/// Whether the file has the logarithm of how fast a recurrence forgets.
fn logarithm(source: &Source, canonical: &str) -> bool {
    matches!(source, Source::Hf(_)) && canonical.ends_with(".ssm_a.weight")
}

/// A vector of which the file has other numbers.
fn mapped(tensor: Tensor, number: impl Fn(f32) -> f32) -> Result<Tensor> {
    let n: usize = tensor.shape.iter().product();
    let mut stored = vec![0.0f32; n];
    quant::dequantize(tensor.dtype, &tensor.data, &mut stored)?;
    let bytes: Vec<u8> = stored.iter().flat_map(|x| number(*x).to_le_bytes()).collect();
    Ok(Tensor { dtype: DType::F32, data: Bytes::from(bytes), ..tensor })
}
