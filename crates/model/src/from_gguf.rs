//! A specification from GGUF metadata. Every key of the family is either understood or refused by name, because a key
//! that is ignored silently changes what the model computes.

use crate::arch::{self, Arch, Norms, Positions, QkNorm};
use crate::decoder::{Options, decoder};
use crate::spec::{LayerSpec, ModelSpec, attn_scale, field_error, layers, local_layers};
use crate::{Error, Result, names, weights};
use quarrel_formats::{DType, Metadata, Source, Value, quant};
use quarrel_ir::{NormKind, RopeTable};
use std::collections::HashSet;

/// Keys below `ARCH.` that are read here or cannot change the result.
const UNDERSTOOD: &[&str] = &[
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "pooling_type", // how embeddings are made of hidden states, which is not done here
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scale_linear",
    "tensor_data_layout",
    "vocab_size",
];

/// Keys that are harmless when they have this value.
const NEUTRAL: &[(&str, i128)] = &[("expert_count", 0), ("expert_used_count", 0)];

/// Tensors that are used without appearing in a Program.
const SIDE_TENSORS: &[&str] = &["rope_freqs.weight"];

/// Reads the specification of a GGUF model.
pub fn spec(source: &Source, meta: &Metadata) -> Result<ModelSpec> {
    let name = meta.str("general.architecture").ok_or_else(|| {
        field_error("general.architecture", "is missing; this is no model for a language engine")
    })?;
    let arch = arch::by_gguf(name).ok_or_else(|| unknown(name, source, meta))?;
    let reader = Reader { arch, meta, source };
    reader.refuse_unknown_keys()?;
    let spec = reader.spec()?.check()?;
    reader.refuse_unknown_tensors(&spec)?;
    Ok(spec)
}

struct Reader<'a> {
    arch: &'static Arch,
    meta: &'a Metadata,
    source: &'a Source,
}

impl Reader<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch.gguf)
    }

    fn u32(&self, key: &str) -> Result<u32> {
        self.opt_u32(key)?.ok_or_else(|| field_error(self.key(key), "is missing"))
    }

    fn opt_u32(&self, key: &str) -> Result<Option<u32>> {
        let key = self.key(key);
        match self.meta.get(&key) {
            None => Ok(None),
            Some(Value::Array(_)) => {
                Err(field_error(key, "differs from layer to layer, which this family is not known to do"))
            }
            Some(_) => self.meta.u32(&key).map(Some).ok_or_else(|| field_error(key, "is not a whole number")),
        }
    }

    fn opt_f32(&self, key: &str) -> Result<Option<f32>> {
        let key = self.key(key);
        if !self.meta.contains(&key) {
            return Ok(None);
        }
        let value = self.meta.f32(&key).ok_or_else(|| field_error(key.clone(), "is not a number"))?;
        if value.is_finite() { Ok(Some(value)) } else { Err(field_error(key, "is not finite")) }
    }

    /// Rows of a table, 0 where there is none.
    fn table_rows(&self, name: &str) -> u32 {
        let rows = self.source.tensor(name).and_then(|t| t.shape.first());
        rows.map_or(0, |n| u32::try_from(*n).unwrap_or(u32::MAX))
    }

    fn spec(&self) -> Result<ModelSpec> {
        let eps = epsilon(self.arch);
        let dim = self.u32("embedding_length")?;
        let heads = self.u32("attention.head_count")?;
        if heads == 0 || dim == 0 {
            return Err(field_error(self.key("attention.head_count"), "and embedding_length must not be 0"));
        }
        let head_dim = self.opt_u32("attention.key_length")?.unwrap_or(dim / heads);
        let count = self.u32("block_count")?;
        let table = self.source.tensor("token_embd.weight");
        let vocab = table
            .and_then(|t| t.shape.first().copied())
            .and_then(|v| u32::try_from(v).ok())
            .ok_or_else(|| self.missing("token_embd.weight"))?;
        let has = |name: &str| self.source.tensor(name).is_some();
        let layers = self.layers(count)?;
        Ok(ModelSpec {
            arch: self.arch,
            vocab,
            dim,
            heads,
            kv_heads: self.opt_u32("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            v_dim: self.opt_u32("attention.value_length")?.unwrap_or(head_dim),
            ff: self.u32("feed_forward_length")?,
            context: self.u32("context_length")?,
            eps: self.opt_f32(eps)?.ok_or_else(|| field_error(self.key(eps), "is missing"))?,
            attn_scale: attn_scale(self.arch, count, dim, heads, head_dim),
            attn_softcap: self.opt_f32("attn_logit_softcapping")?.filter(|c| *c != 0.0),
            logit_softcap: self.opt_f32("final_logit_softcapping")?.filter(|c| *c != 0.0),
            qkv_bias: has("blk.0.attn_q.bias") || has("blk.0.attn_qkv.bias"),
            out_bias: has("blk.0.attn_output.bias"),
            ff_bias: has("blk.0.ffn_down.bias"),
            tied: !has("output.weight"),
            positions: self.table_rows("position_embd.weight"),
            token_types: self.table_rows("token_types.weight"),
            ropes: self.ropes(head_dim)?,
            layers,
        })
    }

    fn layers(&self, count: u32) -> Result<Vec<LayerSpec>> {
        let window = self.opt_u32("attention.sliding_window")?.filter(|w| *w > 0);
        let count = count.min(1 << 16); // `check` refuses such counts; until then they must not cost memory
        let key = self.key("attention.sliding_window_pattern");
        let local = match (self.meta.bools(&key), self.meta.u32(&key)) {
            (Some(listed), _) if listed.len() == count as usize => listed.to_vec(),
            (None, Some(n)) if n > 0 => (0..count).map(|l| (l + 1) % n != 0).collect(),
            (None, None) if !self.meta.contains(&key) => local_layers(self.arch, count),
            _ => return Err(field_error(key, format!("is neither {count} booleans nor a period"))),
        };
        Ok(layers(self.arch, &local, window))
    }

    fn ropes(&self, head_dim: u32) -> Result<Vec<RopeTable>> {
        if self.arch.positions == Positions::Learned {
            return Ok(Vec::new());
        }
        let base = self.opt_f32("rope.freq_base")?.unwrap_or(10_000.0);
        if base <= 0.0 {
            return Err(field_error(self.key("rope.freq_base"), format!("is {base}")));
        }
        let rot = self.opt_u32("rope.dimension_count")?.unwrap_or(head_dim);
        if rot == 0 || rot > head_dim || rot % 2 != 0 {
            return Err(field_error(
                self.key("rope.dimension_count"),
                format!("is {rot} in heads of {head_dim}"),
            ));
        }
        let key = self.key("rope.scaling.type");
        let linear = match self.meta.str(&key) {
            None | Some("none") => self.opt_f32("rope.scale_linear")?.unwrap_or(1.0),
            Some("linear") => self.opt_f32("rope.scaling.factor")?.unwrap_or(1.0),
            Some(other) => {
                return Err(field_error(
                    key,
                    format!("{other:?} is not supported for this family (none and linear are)"),
                ));
            }
        };
        if linear <= 0.0 {
            return Err(field_error(self.key("rope.scaling.factor"), format!("is {linear}")));
        }
        let factors = self.rope_factors(rot)?;
        let mut global = RopeTable::new(self.arch.gguf_rope, rot, f64::from(base), factors.as_deref());
        global.inv_freq.iter_mut().for_each(|f| *f /= f64::from(linear));
        let local_base = match self.opt_f32("rope.freq_base_swa")? {
            Some(b) if self.arch.local_rope_base.is_some() => Some(f64::from(b)),
            Some(_) => {
                return Err(field_error(
                    self.key("rope.freq_base_swa"),
                    "is set, but this family has one rope base",
                ));
            }
            None => self.arch.local_rope_base,
        };
        let local = local_base.map(|b| RopeTable::new(self.arch.gguf_rope, rot, b, None));
        Ok(std::iter::once(global).chain(local).collect())
    }

    /// Llama 3.1's divisors of the frequencies, stored as a tensor.
    fn rope_factors(&self, rot: u32) -> Result<Option<Vec<f32>>> {
        let Some(t) = self.source.tensor("rope_freqs.weight") else { return Ok(None) };
        let mut factors = vec![0.0; rot as usize / 2];
        if t.dtype != DType::F32 || t.shape.iter().product::<usize>() != factors.len() {
            return Err(field_error(
                "rope_freqs.weight",
                format!("has shape {:?}, {} f32 are needed", t.shape, rot / 2),
            ));
        }
        quant::dequantize(t.dtype, &t.data, &mut factors)?;
        Ok(Some(factors))
    }

    fn missing(&self, name: &str) -> Error {
        Error::MissingTensor { name: name.into(), file: crate::place(self.source) }
    }

    fn refuse_unknown_keys(&self) -> Result<()> {
        let unknown = unknown_keys(self.arch.gguf, Some(self.arch), self.meta);
        refuse(self.arch, "fields", unknown)
    }

    fn refuse_unknown_tensors(&self, spec: &ModelSpec) -> Result<()> {
        let program = decoder(spec, &Options { fuse: false, ..Options::default() });
        let parts = program.weights.iter().flat_map(|w| &w.parts);
        let used: HashSet<String> = parts
            .map(|p| match weights::fused(&p.name) {
                Some((fused, _)) if self.source.tensor(&p.name).is_none() => fused,
                _ => p.name.clone(),
            })
            .collect();
        let unknown = self
            .source
            .tensors()
            .map(|t| t.name.as_str())
            .filter(|n| !used.contains(*n) && !SIDE_TENSORS.contains(n))
            .map(String::from)
            .collect();
        refuse(self.arch, "tensors", unknown)
    }
}

fn refuse(arch: &'static Arch, what: &'static str, mut unknown: Vec<String>) -> Result<()> {
    if unknown.is_empty() {
        return Ok(());
    }
    unknown.sort();
    Err(Error::NotUnderstood { arch: arch.gguf, what, names: shorten(&unknown) })
}

/// The key of the norms' epsilon.
fn epsilon(arch: &Arch) -> &'static str {
    match arch.norm {
        NormKind::Rms => "attention.layer_norm_rms_epsilon",
        NormKind::Layer => "attention.layer_norm_epsilon",
    }
}

/// Whether a key means nothing else than what the family is anyway, or is read here.
fn understood(arch: Option<&Arch>, key: &str, value: &Value) -> bool {
    let flag = |b: bool| matches!(value, Value::Bool(v) if *v == b) || value.as_int() == Some(i128::from(b));
    match (arch, key) {
        (Some(a), "attention.causal") => flag(a.causal),
        (Some(a), k) if k.ends_with("_epsilon") => k == epsilon(a),
        (Some(a), k) if k.starts_with("rope.") && a.positions == Positions::Learned => false,
        (_, k) => UNDERSTOOD.contains(&k),
    }
}

fn unknown_keys(prefix: &str, arch: Option<&Arch>, meta: &Metadata) -> Vec<String> {
    let neutral = |key: &str, value: &Value| {
        NEUTRAL.iter().any(|(k, v)| {
            *k == key
                && (value.as_int() == Some(*v) || matches!(value, Value::Bool(b) if i128::from(*b) == *v))
        })
    };
    meta.iter()
        .filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.strip_prefix('.')?, k, v)))
        .filter(|(short, _, v)| !understood(arch, short, v) && !neutral(short, v))
        .map(|(_, k, _)| k.to_string())
        .collect()
}

/// Whether a family's Program can use a tensor of this name.
fn known_tensor(arch: &Arch, name: &str) -> bool {
    let norms = ["post_attention_norm", "post_ffw_norm"];
    let before = ["attn_norm", "ffn_norm", "output_norm"];
    let qk = ["attn_q_norm", "attn_k_norm"];
    let stem = name.rsplit_once('.').map_or(name, |(s, _)| s);
    let part = stem.rsplit('.').next().unwrap_or(stem);
    SIDE_TENSORS.contains(&name)
        || (names::hf(arch, name).is_some()
            && (arch.norms == Norms::Around || !norms.contains(&part))
            && (arch.norms != Norms::After || !before.contains(&part))
            && (arch.qk_norm != QkNorm::None || !qk.contains(&part)))
}

/// The first few names and a count of the rest.
pub(crate) fn shorten(names: &[String]) -> String {
    const SHOWN: usize = 8;
    match names.len() {
        0 => "none".into(),
        n if n <= SHOWN => names.join(", "),
        n => format!("{} and {} more", names[..SHOWN].join(", "), n - SHOWN),
    }
}

/// Describes an unknown family by its difference from the nearest known one.
fn unknown(name: &str, source: &Source, meta: &Metadata) -> Error {
    let unknown_of = |arch: &Arch| -> Vec<String> {
        let mut kinds: Vec<String> = source
            .tensors()
            .filter(|t| !known_tensor(arch, &t.name))
            .map(|t| match t.name.strip_prefix("blk.").and_then(|r| r.split_once('.')) {
                Some((_, rest)) => format!("blk.*.{rest}"),
                None => t.name.clone(),
            })
            .collect();
        kinds.sort();
        kinds.dedup();
        kinds
    };
    let (nearest, tensors) = arch::all()
        .map(|a| (a, unknown_of(a)))
        .min_by_key(|(_, t)| t.len())
        .expect("the table of architectures is not empty");
    let fields = unknown_keys(name, None, meta);
    Error::UnknownArch {
        name: name.into(),
        nearest: nearest.gguf.into(),
        known: arch::known(),
        fields: shorten(&fields),
        tensors: shorten(&tensors),
    }
}
