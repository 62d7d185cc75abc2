//! A specification from GGUF metadata. Every key of the family is either understood or refused by name, because a key
//! that is ignored silently changes what the model computes.

use crate::arch::{self, Arch, Multipliers, Norms, Positions, QkNorm};
use crate::decoder::{Options, decoder};
use crate::experts::{ExpertSpec, Said};
use crate::hybrid::{Hybrid, Mamba2, Mixer};
use crate::latent::Latent;
use crate::rope::{Rotary, Scaling, yarn_attention};
use crate::spec::{self, LayerSpec, ModelSpec, attn_scale, field_error, layers, local_layers};
use crate::streams::{self, Streams};
use crate::{Error, Result, names, t5, weights};
use quarrel_formats::{DType, Metadata, Source, Value, quant};
use quarrel_ir::{Growth, NormKind, Scoring};

/// Keys below `ARCH.` that are read here or cannot change the result.
const UNDERSTOOD: &[&str] = &[
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "expert_count",
    "expert_used_count",
    "expert_feed_forward_length", // the tensors say it
    "expert_shared_feed_forward_length",
    "expert_shared_count",
    "expert_gating_func",
    "expert_group_count",
    "expert_group_used_count",
    "expert_weights_norm",
    "expert_weights_scale",
    "leading_dense_block_count", // which layers have a router is seen
    "interleave_moe_layer_step",
    "attention.q_lora_rank",
    "attention.kv_lora_rank",
    "attention.key_length_mla",
    "attention.value_length_mla",
    "rope.scaling.yarn_log_multiplier",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_epsilon",
    "attention.layer_norm_rms_epsilon",
    "attention.scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "pooling_type", // how embeddings are made of hidden states, which is not done here
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scaling.type",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scale_linear",
    "tensor_data_layout",
    "use_parallel_residual",
    "vocab_size",
];

/// Keys of factors, which mean something only in families that have them.
const FACTORS: &[&str] = &["embedding_scale", "residual_scale", "logit_scale"];

/// Keys of a decoder that answers an encoder, and of a bias by distance.
const TWO_STACKS: &[&str] =
    &["attention.relative_buckets_count", "decoder_block_count", "decoder_start_token_id"];

/// How positions are known where nothing is rotated, and no file may say how.
const UNROTATED: &[Positions] = &[Positions::Learned, Positions::Buckets];

/// Keys of models of several streams.
const STREAMS: &[&str] = &[
    "activation_sparsity_scale",
    "altup.active_idx",
    "altup.num_inputs",
    "attention.shared_kv_layers",
    "embedding_length_per_layer_input",
    // As Ollama's own files say it; the last three say again what is known, or what training alone needs.
    "altup.correct_scale",
    "head_dim",
    "rope.freq_base_local",
    "altup.lr_multiplier",
    "laurel_rank",
    "num_kv_shared_layers",
];

/// Keys of recurrent layers.
const SSM: &[&str] =
    &["ssm.conv_kernel", "ssm.group_count", "ssm.inner_size", "ssm.state_size", "ssm.time_step_rank"];

/// Keys that are harmless when they have this value.
const NEUTRAL: &[(&str, i128)] = &[
    ("moe_every_n_layers", 0),
    ("moe_every_n_layers", 1),
    ("attention.clamp_kqv", 0),
    ("rope.scaling.yarn_ext_factor", 1),
];

/// Tensors that are used without appearing in a Program.
const SIDE_TENSORS: &[&str] = &[
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
    "dec.blk.0.cross_attn_rel_b.weight", // in the first checkpoints of T5, which do not use it
];

/// Reads the specification of a GGUF model.
pub fn spec(source: &Source, meta: &Metadata) -> Result<ModelSpec> {
    let name = meta.str("general.architecture").ok_or_else(|| {
        field_error("general.architecture", "is missing; this is no model for a language engine")
    })?;
    let experts = meta.u32(&format!("{name}.expert_count")).is_some_and(|n| n > 0);
    let arch = arch::by_gguf(name, experts).ok_or_else(|| unknown(name, source, meta))?;
    let reader = Reader { arch, meta, source };
    reader.refuse_unknown_keys()?;
    let spec = reader.spec()?.check()?;
    reader.refuse_unknown_tensors(&spec)?;
    Ok(spec)
}

pub(crate) struct Reader<'a> {
    pub(crate) arch: &'static Arch,
    meta: &'a Metadata,
    pub(crate) source: &'a Source,
}

impl Reader<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch.gguf)
    }

    pub(crate) fn u32(&self, key: &str) -> Result<u32> {
        self.opt_u32(key)?.ok_or_else(|| field_error(self.key(key), "is missing"))
    }

    pub(crate) fn opt_u32(&self, key: &str) -> Result<Option<u32>> {
        let key = self.key(key);
        match self.meta.get(&key) {
            None => Ok(None),
            Some(Value::Array(_)) => {
                Err(field_error(key, "differs from layer to layer, which this family is not known to do"))
            }
            Some(_) => self.meta.u32(&key).map(Some).ok_or_else(|| field_error(key, "is not a whole number")),
        }
    }

    pub(crate) fn opt_f32(&self, key: &str) -> Result<Option<f32>> {
        let key = self.key(key);
        if !self.meta.contains(&key) {
            return Ok(None);
        }
        let value = self.meta.f32(&key).ok_or_else(|| field_error(key.clone(), "is not a number"))?;
        if value.is_finite() { Ok(Some(value)) } else { Err(field_error(key, "is not finite")) }
    }

    /// Rows of a table, 0 where there is none.
    pub(crate) fn table_rows(&self, name: &str) -> u32 {
        let rows = self.source.tensor(name).and_then(|t| t.shape.first());
        rows.map_or(0, |n| u32::try_from(*n).unwrap_or(u32::MAX))
    }

    fn spec(&self) -> Result<ModelSpec> {
        if self.arch.positions == Positions::Buckets {
            return t5::from_gguf(self);
        }
        let eps = epsilon(self.arch);
        let dim = self.u32("embedding_length")?;
        let heads = self.u32("attention.head_count")?;
        if heads == 0 || dim == 0 {
            return Err(field_error(self.key("attention.head_count"), "and embedding_length must not be 0"));
        }
        let head_dim = match self.opt_u32("attention.key_length")? {
            None if self.arch.streams => self.opt_u32("head_dim")?,
            said => said,
        };
        let head_dim = head_dim.unwrap_or(dim / heads);
        let count = self.u32("block_count")?;
        let table = self.source.tensor("token_embd.weight");
        let vocab = table
            .and_then(|t| t.shape.first().copied())
            .and_then(|v| u32::try_from(v).ok())
            .ok_or_else(|| self.missing("token_embd.weight"))?;
        let has = |name: &str| weights::has(self.source, self.arch, name);
        let latent = self.latent()?;
        let head_dim = latent.map_or(head_dim, |m| m.head());
        let positions = spec::positions(self.arch, count);
        let ropes = match positions {
            Positions::Rotated if self.rotates()? => self.ropes(head_dim)?,
            _ => Vec::new(),
        };
        let [embed_scale, residual_scale, logit_scale] = self.factors(dim, count)?;
        let (mixers, kv_heads) = self.mixers(count)?;
        let attends = spec::first_attention(&mixers);
        let of_attention = |name: &str| has(&format!("blk.{attends}.{name}"));
        let growth = self.growth()?;
        let scale = self.opt_f32("attention.scale")?.filter(|s| *s != 0.0);
        let (experts, sparse) = self.experts(count)?;
        let spread = latent.map_or(Ok(1.0), |_| self.latent_scale())?;
        let llama4 = self.arch.chunks;
        let spec = ModelSpec {
            vocab,
            dim,
            heads,
            kv_heads: kv_heads.unwrap_or(heads),
            head_dim,
            v_dim: self.opt_u32("attention.value_length")?.unwrap_or(head_dim),
            ff: self.same_u32("feed_forward_length")?,
            context: self.u32("context_length")?,
            eps: self.opt_f32(eps)?.ok_or_else(|| field_error(self.key(eps), "is missing"))?,
            attn_scale: spread * scale.unwrap_or_else(|| attn_scale(self.arch, count, dim, heads, head_dim)),
            streams: self.streams(count)?,
            first_shared: self.first_shared(count)?,
            cutoffs: self.cutoffs(count)?,
            attn_softcap: self.opt_f32("attn_logit_softcapping")?.filter(|c| *c != 0.0),
            logit_softcap: self
                .opt_f32("final_logit_softcapping")?
                .or(self.arch.default_number("final_logit_softcapping").map(|c| c as f32))
                .filter(|c| *c != 0.0),
            qk_norm: spec::qk_norm(self.arch, of_attention),
            norm_bias: spec::has_norm_bias(has),
            clip: self.opt_f32("attention.clamp_kqv")?.filter(|by| *by != 0.0),
            unit_head: self.arch.unit_head == Some(vocab),
            parallel: self.flag("use_parallel_residual")?.unwrap_or(self.arch.parallel),
            ff_norm: has("blk.0.ffn_norm.weight"),
            alibi: match positions {
                Positions::Alibi => Some(self.opt_f32("attention.max_alibi_bias")?.unwrap_or(8.0)),
                _ => None,
            },
            embed_scale,
            residual_scale,
            logit_scale,
            qkv_bias: of_attention("attn_q.bias"),
            out_bias: of_attention("attn_output.bias"),
            ff_bias: has("blk.0.ffn_down.bias"),
            head_bias: has("output.bias"),
            tied: !has("output.weight"),
            positions: self.table_rows("position_embd.weight"),
            token_types: self.table_rows("token_types.weight"),
            layers: self.layers(count, &ropes)?,
            ropes,
            experts,
            sparse,
            sinks: of_attention("attn_sinks.weight"),
            mixers,
            chunked: llama4.is_some(),
            // llama.cpp tells the model that has no norms by its number of experts.
            bare_norm: llama4.is_some() && experts.is_some_and(|e| e.count != 128),
            growth: llama4.map(|l| l.growth).or(growth),
            ..ModelSpec::new(self.arch)
        };
        Ok(spec.with_latent(latent))
    }

    /// A number that may be listed for every layer, if it is the same in all.
    fn same_u32(&self, key: &str) -> Result<u32> {
        let Some(listed) = self.meta.i32s(&self.key(key)) else { return self.u32(key) };
        let first = listed.first().and_then(|n| u32::try_from(*n).ok());
        first.filter(|_| listed.iter().all(|n| *n == listed[0])).ok_or_else(|| {
            field_error(self.key(key), "differs from layer to layer, which this family is not known to do")
        })
    }

    fn streams(&self, layers: u32) -> Result<Option<Streams>> {
        if !self.arch.streams {
            return Ok(None);
        }
        if let Some(n) = self.opt_u32("altup.active_idx")?.filter(|n| *n != 0) {
            return Err(field_error(self.key("altup.active_idx"), format!("is {n}; only 0 is supported")));
        }
        if self.flag("altup.correct_scale")? == Some(false) {
            return Err(field_error(self.key("altup.correct_scale"), "is false; only true is supported"));
        }
        let (count, input) = (self.u32("altup.num_inputs")?, self.u32("embedding_length_per_layer_input")?);
        Ok(Some(Streams::read(self.source, self.arch, [count, input, layers])))
    }

    fn first_shared(&self, layers: u32) -> Result<Option<usize>> {
        // The first files have it as a number with a fraction of 0.
        let (key, shared) = ("attention.shared_kv_layers", self.opt_f32("attention.shared_kv_layers")?);
        let Some(shared) = shared.filter(|n| *n != 0.0) else { return Ok(None) };
        if shared < 0.0 || shared.fract() != 0.0 {
            return Err(field_error(self.key(key), format!("is {shared}")));
        }
        streams::first_shared(layers, shared as u32, &self.key(key)).map(Some)
    }

    /// Where gates are cut off: what is minus infinity says nowhere.
    fn cutoffs(&self, layers: u32) -> Result<Vec<Option<f32>>> {
        let key = self.key("activation_sparsity_scale");
        match self.meta.f32s(&key) {
            None if !self.arch.streams => Ok(Vec::new()),
            None if !self.meta.contains(&key) => Ok(streams::cutoffs(layers)),
            Some(by) if by.len() == layers as usize => {
                Ok(by.iter().map(|by| Some(*by).filter(|by| *by != f32::NEG_INFINITY)).collect())
            }
            _ => Err(field_error(key, format!("must be {layers} numbers"))),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        let key = self.key(key);
        match self.meta.get(&key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(_) => Err(field_error(key, "is neither true nor false")),
        }
    }

    fn growth(&self) -> Result<Option<Growth>> {
        let by = self.opt_f32("attention.temperature_scale")?.filter(|by| *by != 0.0);
        let Some(by) = by else { return Ok(None) };
        let tokens = self.u32("rope.scaling.original_context_length")? as f32;
        Ok(Some(Growth { tokens, by, ahead: 0.0 }))
    }

    /// Factors on embeddings, on what blocks add, and on logits.
    fn factors(&self, dim: u32, layers: u32) -> Result<[f32; 3]> {
        let of = |key: &str| Ok::<_, Error>(self.opt_f32(key)?.filter(|s| *s != 0.0));
        let own = [of("embedding_scale")?, of("residual_scale")?, of("logit_scale")?];
        let plain = if self.arch.embed_sqrt_dim { (dim as f32).sqrt() } else { 1.0 };
        Ok(match self.arch.multipliers {
            Multipliers::None | Multipliers::Mup => [plain, 1.0, 1.0],
            Multipliers::Granite => {
                [own[0].unwrap_or(1.0), own[1].unwrap_or(1.0), 1.0 / own[2].unwrap_or(1.0)]
            }
            // Those of MiniCPM 1 and 2 where an old file says nothing.
            Multipliers::MiniCpm => [
                own[0].unwrap_or(12.0),
                own[1].unwrap_or(1.4 / (layers.max(1) as f32).sqrt()),
                1.0 / own[2].unwrap_or(dim as f32 / 256.0),
            ],
            Multipliers::Logits => [plain, 1.0, own[2].unwrap_or(1.0)],
        })
    }

    /// The sizes of latent attention. Files from before 2025 have the heads' own lengths where others say `_mla`.
    fn latent(&self) -> Result<Option<Latent>> {
        if !self.arch.latent {
            return Ok(None);
        }
        let length = |key: &str| match self.opt_u32(&format!("{key}_mla"))? {
            Some(n) => Ok(n),
            None => self.u32(key),
        };
        let (head, rotated) = (length("attention.key_length")?, self.u32("rope.dimension_count")?);
        let m = Latent {
            q_rank: self.opt_u32("attention.q_lora_rank")?.unwrap_or(0),
            rank: self.u32("attention.kv_lora_rank")?,
            plain: head.saturating_sub(rotated),
            rotated,
            v_dim: length("attention.value_length")?,
        };
        m.check().map(Some)
    }

    /// What YaRN does to the scores of latent attention.
    fn latent_scale(&self) -> Result<f32> {
        let (factor, log) =
            (self.positive("rope.scaling.factor")?, self.positive("rope.scaling.yarn_log_multiplier")?);
        Ok(match factor.zip(log) {
            Some((factor, log)) => yarn_attention(factor, 10.0 * log).powi(2) as f32,
            None => 1.0,
        })
    }

    /// The experts, and which layers have them: those with a router.
    fn experts(&self, layers: u32) -> Result<(Option<ExpertSpec>, Vec<bool>)> {
        let (count, rules) = (self.opt_u32("expert_count")?.unwrap_or(0), self.arch.experts);
        let Some(rules) = rules.filter(|_| count > 0) else {
            return match count {
                0 => Ok((None, Vec::new())),
                n => {
                    let why = format!("is {n}; this family is not known to have experts");
                    Err(field_error(self.key("expert_count"), why))
                }
            };
        };
        let scoring = match self.opt_u32("expert_gating_func")? {
            None | Some(0) => None,
            // The third is a softmax over the chosen alone, which is what dividing by the sum gives.
            Some(1 | 3) => Some(Scoring::Softmax),
            Some(2) => Some(Scoring::Sigmoid),
            Some(n) => {
                return Err(field_error(self.key("expert_gating_func"), format!("is {n}, 1 to 3 are known")));
            }
        };
        let said = Said {
            count,
            used: self.u32("expert_used_count")?,
            // SparseMixer has no number there.
            scoring: scoring.filter(|_| !matches!(rules.scoring, Scoring::Sparse { .. })),
            normalize: self.flag("expert_weights_norm")?,
            groups: self.opt_u32("expert_group_count")?.zip(self.opt_u32("expert_group_used_count")?),
            scale: self.opt_f32("expert_weights_scale")?.filter(|s| *s != 0.0).unwrap_or(1.0),
            gate: rules.gate,
        };
        rules.read(said, layers, |name| names::find(self.source, self.arch, name))
    }

    /// Whether queries and keys are rotated. llama.cpp says that of Granite 4 with a key that means something else elsewhere.
    fn rotates(&self) -> Result<bool> {
        Ok(self.arch.hybrid != Some(Hybrid::Mamba2) || self.flag("rope.scaling.finetuned")?.unwrap_or(true))
    }

    /// The sizes of a recurrent layer.
    fn mamba2(&self, l: usize) -> Result<Mamba2> {
        if let Some(groups) = self.opt_u32("ssm.group_count")?.filter(|n| *n != 1) {
            return Err(field_error(
                self.key("ssm.group_count"),
                format!("is {groups}; only 1 is supported"),
            ));
        }
        let (heads, inner) = (self.u32("ssm.time_step_rank")?, self.u32("ssm.inner_size")?);
        if heads == 0 || !inner.is_multiple_of(heads) {
            return Err(field_error(self.key("ssm.inner_size"), format!("is {inner} for {heads} heads")));
        }
        let has = |name: &str| weights::has(self.source, self.arch, &format!("blk.{l}.{name}"));
        let (state_dim, taps) = (self.u32("ssm.state_size")?, self.u32("ssm.conv_kernel")?);
        let (conv_bias, bias) = (has("ssm_conv1d.bias"), has("ssm_in.bias"));
        Mamba2 { heads, head_dim: inner / heads, state_dim, taps, conv_bias, bias }.check()
    }

    /// What each layer has for attention, where the family has something else, and the key heads: none marks the others.
    fn mixers(&self, count: u32) -> Result<(Vec<Mixer>, Option<u32>)> {
        let key = self.key("attention.head_count_kv");
        let (Some(hybrid), Some(Value::Array(listed))) = (self.arch.hybrid, self.meta.get(&key)) else {
            return Ok((Vec::new(), self.opt_u32("attention.head_count_kv")?));
        };
        let number = |i: usize| listed.get(i)?.as_int().and_then(|n| u32::try_from(n).ok());
        let listed: Option<Vec<u32>> = (0..listed.len()).map(number).collect();
        let listed = listed.filter(|l| l.len() == count as usize);
        let heads = listed.as_ref().and_then(|l| l.iter().copied().find(|n| *n > 0));
        let (Some(listed), Some(heads)) = (listed, heads) else {
            return Err(field_error(key, format!("must be {count} whole numbers, and not all 0")));
        };
        if listed.iter().any(|n| *n != 0 && *n != heads) {
            return Err(field_error(key, "differs between layers of attention, which is not supported"));
        }
        let has = |name: String| weights::has(self.source, self.arch, &name);
        let mixer = |(l, n): (usize, &u32)| match (n, hybrid) {
            (0, Hybrid::Mamba2) => self.mamba2(l).map(Mixer::Mamba2),
            (0, Hybrid::ShortConv) => Ok(Mixer::ShortConv {
                taps: self.u32("shortconv.l_cache")?,
                bias: has(format!("blk.{l}.shortconv.conv.bias")),
            }),
            _ => Ok(Mixer::Attention),
        };
        let mixers: Result<Vec<Mixer>> = listed.iter().enumerate().map(mixer).collect();
        Ok((mixers?, Some(heads)))
    }

    fn layers(&self, count: u32, ropes: &[Rotary]) -> Result<Vec<LayerSpec>> {
        let window = self.opt_u32("attention.sliding_window")?.filter(|w| *w > 0);
        let window = window.or(self.arch.chunks.map(|c| c.tokens));
        let count = count.min(1 << 16); // `check` refuses such counts; until then they must not cost memory
        let key = self.key("attention.sliding_window_pattern");
        let local = match (self.meta.bools(&key), self.meta.u32(&key)) {
            (Some(listed), _) if listed.len() == count as usize => listed.to_vec(),
            (None, Some(n)) if n > 0 => (0..count).map(|l| (l + 1) % n != 0).collect(),
            (None, None) if !self.meta.contains(&key) => local_layers(self.arch, count),
            _ => return Err(field_error(key, format!("is neither {count} booleans nor a period"))),
        };
        Ok(layers(self.arch, &local, window, ropes, None))
    }

    fn positive(&self, key: &str) -> Result<Option<f64>> {
        match self.opt_f32(key)? {
            Some(v) if v <= 0.0 => Err(field_error(self.key(key), format!("is {v}"))),
            other => Ok(other.map(f64::from)),
        }
    }

    fn ropes(&self, head_dim: u32) -> Result<Vec<Rotary>> {
        let base = self.positive("rope.freq_base")?.unwrap_or(10_000.0);
        let dims = self.opt_u32("rope.dimension_count")?.unwrap_or(head_dim);
        if dims == 0 || dims > head_dim || dims % 2 != 0 {
            return Err(field_error(
                self.key("rope.dimension_count"),
                format!("is {dims} in heads of {head_dim}"),
            ));
        }
        let global = Rotary { style: self.arch.gguf_rope, dims, base, scaling: self.scaling()? };
        let local_base = match self.opt_f32("rope.freq_base_swa")? {
            None if self.arch.streams => self.opt_f32("rope.freq_base_local")?,
            said => said,
        };
        let local_base = match local_base {
            Some(b) if self.arch.local_rope_base.is_some() => Some(f64::from(b)),
            Some(b) if f64::from(b) == base => None,
            Some(_) => {
                return Err(field_error(
                    self.key("rope.freq_base_swa"),
                    "is set, but this family has one rope base",
                ));
            }
            None => self.arch.local_rope_base,
        };
        Ok(spec::rotations(self.arch, global, local_base))
    }

    fn scaling(&self) -> Result<Scaling> {
        let key = self.key("rope.scaling.type");
        let kind = self.meta.str(&key).unwrap_or("none");
        let trained = self.opt_u32("rope.scaling.original_context_length")?;
        let factor = self.positive("rope.scaling.factor")?;
        let attention = self.positive("rope.scaling.attn_factor")?;
        let [long, short] = ["long", "short"].map(|l| self.rope_factors(&format!("rope_factors_{l}.weight")));
        if let (Some(long), Some(short)) = (long?, short?) {
            let context = trained.map_or_else(|| self.u32("context_length"), Ok)?;
            return Ok(Scaling::Long { short, long, context, attention: attention.unwrap_or(1.0) });
        }
        Ok(match (kind, self.rope_factors("rope_freqs.weight")?) {
            ("none", Some(factors)) => Scaling::Factors(factors),
            ("none", None) => self.positive("rope.scale_linear")?.map_or(Scaling::None, Scaling::Linear),
            ("linear", None) => factor.map_or(Scaling::None, Scaling::Linear),
            ("yarn", None) => {
                let need = || field_error(self.key("rope.scaling.factor"), "is missing");
                let factor = factor.ok_or_else(need)?;
                let trained = trained.map_or_else(|| self.u32("context_length"), Ok)?;
                let all = self.opt_f32("rope.scaling.yarn_log_multiplier")?.map_or(0.0, f64::from);
                let all = yarn_attention(factor, all);
                Scaling::Yarn {
                    factor,
                    context: f64::from(trained),
                    beta_fast: self.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                    beta_slow: self.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                    // Where latent attention has a factor of its own on scores, it is this one.
                    attention: match self.arch.latent {
                        true => attention.unwrap_or(1.0),
                        false => yarn_attention(factor, 1.0) / all * attention.unwrap_or(1.0),
                    },
                    truncate: self.arch.yarn_truncate,
                }
            }
            (other, factors) => {
                let with = if factors.is_some() { " with a tensor of factors" } else { "" };
                let why = format!("{other:?}{with} is not supported (none, linear, yarn and longrope are)");
                return Err(field_error(key, why));
            }
        })
    }

    /// Divisors of the frequencies, stored as a tensor.
    fn rope_factors(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(t) = self.source.tensor(name) else { return Ok(None) };
        let mut factors = vec![0.0; t.len().min(1 << 12)];
        if t.dtype != DType::F32 || t.len() != factors.len() {
            return Err(field_error(name, format!("has shape {:?} of {}; f32 are needed", t.shape, t.dtype)));
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
        let mut unknown = weights::unused(self.source, spec, &program);
        unknown.retain(|n| !SIDE_TENSORS.contains(&n.as_str()));
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
        NormKind::Layer | NormKind::Plain => "attention.layer_norm_epsilon",
    }
}

/// Whether a key means nothing else than what the family is anyway, or is read here.
fn understood(arch: Option<&Arch>, key: &str, value: &Value) -> bool {
    let flag = |b: bool| matches!(value, Value::Bool(v) if *v == b) || value.as_int() == Some(i128::from(b));
    match (arch, key) {
        (Some(a), "attention.causal") => flag(a.causal),
        // T5's has the same number for both.
        (Some(a), k) if k.ends_with("_epsilon") => k == epsilon(a) || a.positions == Positions::Buckets,
        (Some(a), k) if TWO_STACKS.contains(&k) => a.positions == Positions::Buckets,
        (Some(a), k) if k.starts_with("rope.") && UNROTATED.contains(&a.positions) => false,
        (Some(a), k) if FACTORS.contains(&k) => match a.multipliers {
            Multipliers::None | Multipliers::Mup => value.as_int() == Some(0),
            Multipliers::Logits => k == "logit_scale",
            Multipliers::Granite | Multipliers::MiniCpm => true,
        },
        (Some(a), k) if k.starts_with("ssm.") => a.hybrid == Some(Hybrid::Mamba2) && SSM.contains(&k),
        (Some(a), "shortconv.l_cache") => a.hybrid == Some(Hybrid::ShortConv),
        (Some(a), "attention.temperature_scale") => a.growing,
        (Some(a), "rope.scaling.yarn_log_multiplier") => a.growing || a.latent,
        (Some(a), "attention.clamp_kqv") if a.clips => true,
        (Some(a), k) if STREAMS.contains(&k) => a.streams,
        (Some(a), "attention.max_alibi_bias") => a.positions == Positions::Alibi,
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
        || (names::known(arch, name)
            && (matches!(arch.norms, Norms::Around | Norms::Outputs) || !norms.contains(&part))
            && (arch.norms != Norms::After || !before.contains(&part))
            && (arch.norms != Norms::Outputs || !before[..2].contains(&part))
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
