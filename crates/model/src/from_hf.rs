//! A specification from a Hugging Face `config.json`. As with GGUF, a setting that would change the result and is not
//! understood is refused by name.

use crate::arch::{self, Arch, AttnScale, Multipliers, Positions, QkNorm, Setting, WindowPattern};
use crate::experts::{ExpertSpec, Said};
use crate::from_gguf::shorten;
use crate::hybrid::{Hybrid, Mamba2, Mixer};
use crate::latent::Latent;
use crate::rope::{Rotary, Scaling, yarn_attention};
use crate::spec::{self, LayerSpec, ModelSpec, attn_scale, field_error, layers, local_layers};
use crate::streams::{self, Streams};
use crate::{Error, Result, names, t5, weights};
use quarrel_formats::Source;
use quarrel_ir::{Activation, Blocks, Gate, Growth, Scoring};
use serde_json::Value;

/// Other names of settings, as older configuration classes have them; the first is what messages say.
const ALIASES: &[(&str, &[&str])] = &[
    ("hidden_size", &["n_embd", "d_model", "n_embed"]),
    ("num_attention_heads", &["n_head", "n_heads", "num_heads"]),
    ("num_hidden_layers", &["n_layer", "n_layers", "num_layers"]),
    ("intermediate_size", &["n_inner", "ffn_hidden_size", "ff_intermediate_size"]),
    ("max_position_embeddings", &["n_positions", "max_seq_len", "seq_length", "model_max_length"]),
    ("eps", &["rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"]),
    ("hidden_act", &["hidden_activation", "activation_function"]),
    ("partial_rotary_factor", &["rotary_pct"]),
    ("rope_theta", &["rotary_emb_base", "rope_embedding_base"]),
    ("sliding_window", &["window_size"]),
];

/// Settings, besides those of [`ALIASES`], that are read here, or that a computation does not depend on.
const KNOWN: &[&str] = &[
    "_name_or_path",
    "architectures",
    "attention_bias",
    "attention_dropout",
    "attn_logit_softcapping",
    "auto_map",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "final_logit_softcapping",
    "head_dim",
    "hidden_dropout",
    "initializer_range",
    "layer_types",
    "max_window_layers",
    "mlp_bias",
    "model_type",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "pad_token_id",
    "pretraining_tp",
    "query_pre_attn_scalar",
    "rope_parameters",
    "rope_scaling",
    "sliding_window",
    "sliding_window_pattern",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "use_sliding_window",
    "vocab_size",
];

/// The parts of a model that sees or hears which text does not need.
const SIGHT: &[&str] =
    &["vision_tower.", "multi_modal_projector.", "embed_vision.", "audio_tower.", "embed_audio."];

/// Names of nonlinearities.
const ACTIVATIONS: &[(&str, Activation)] = &[
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_new", Activation::GeluTanh),
    ("gelu", Activation::GeluErf),
    ("relu", Activation::Relu),
];

/// Reads the specification of a safetensors model.
pub fn spec(source: &Source, config: &Value) -> Result<ModelSpec> {
    let name = config["architectures"][0]
        .as_str()
        .ok_or_else(|| field_error("architectures", "is missing from config.json"))?;
    let arch = arch::by_hf(name).ok_or_else(|| unknown(name, source, config))?;
    // A model that sees has the settings of its language part in a part of its own.
    let text = &config["text_config"];
    let reader = Reader { arch, config: if text.is_object() { text } else { config }, source };
    reader.refuse_other_settings()?;
    let spec = reader.spec()?.check()?;
    reader.refuse_unknown_tensors(&spec)?;
    Ok(spec)
}

pub(crate) struct Reader<'a> {
    pub(crate) arch: &'static Arch,
    pub(crate) config: &'a Value,
    pub(crate) source: &'a Source,
}

impl Setting {
    fn equals(&self, value: &Value) -> bool {
        match *self {
            Setting::Flag(b) => value.as_bool() == Some(b),
            Setting::Number(n) => value.as_f64() == Some(n),
            Setting::Text(t) => value.as_str() == Some(t),
        }
    }
}

impl Reader<'_> {
    /// A setting under any of its names; null where there is none.
    fn get(&self, key: &str) -> &Value {
        let aliases = ALIASES.iter().find(|(k, _)| *k == key).map_or(&[][..], |(_, more)| more);
        let names = std::iter::once(&key).chain(aliases);
        names.map(|k| &self.config[*k]).find(|v| !v.is_null()).unwrap_or(&Value::Null)
    }

    fn default(&self, key: &str) -> Option<Setting> {
        self.arch.hf_defaults.iter().find(|(k, _)| *k == key).map(|(_, s)| *s)
    }

    pub(crate) fn u32(&self, key: &str) -> Result<u32> {
        self.opt_u32(key)?.ok_or_else(|| field_error(key, "is missing from config.json"))
    }

    pub(crate) fn opt_u32(&self, key: &str) -> Result<Option<u32>> {
        match (self.get(key), self.default(key)) {
            (Value::Null, Some(Setting::Number(n))) => Ok(Some(n as u32)),
            (Value::Null, _) => Ok(None),
            (v, _) => v
                .as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .map(Some)
                .ok_or_else(|| field_error(key, format!("is {v}, a whole number is needed"))),
        }
    }

    pub(crate) fn f64(&self, key: &str) -> Result<Option<f64>> {
        match (number(key, self.get(key))?, self.default(key)) {
            (None, Some(Setting::Number(n))) => Ok(Some(n)),
            (found, _) => Ok(found),
        }
    }

    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match (self.get(key), self.default(key)) {
            (Value::Null, Some(Setting::Flag(b))) => Ok(Some(b)),
            (Value::Null, _) => Ok(None),
            (Value::Bool(b), _) => Ok(Some(*b)),
            (v, _) => Err(field_error(key, format!("is {v}, true or false is needed"))),
        }
    }

    fn has(&self, canonical: &str) -> bool {
        weights::has(self.source, self.arch, canonical)
    }

    /// Rows of a tensor, 0 where there is none.
    fn rows(&self, canonical: &str) -> u32 {
        let tensor = names::find(self.source, self.arch, canonical);
        tensor.and_then(|t| t.shape.first()).map_or(0, |n| u32::try_from(*n).unwrap_or(u32::MAX))
    }

    /// What a configuration may say that would change the result and is not built here.
    fn refuse_other_settings(&self) -> Result<()> {
        for (path, setting) in self.arch.hf_only {
            let value = path.split('.').fold(self.config, |v, key| &v[key]);
            if !value.is_null() && !setting.equals(value) {
                return Err(field_error(*path, format!("is {value}; only {setting:?} is supported")));
            }
        }
        if self.arch.causal {
            return Ok(());
        }
        let kind = self.config["position_embedding_type"].as_str();
        if let Some(kind) = kind.filter(|k| *k != "absolute") {
            return Err(field_error(
                "position_embedding_type",
                format!("is {kind:?}, only \"absolute\" is known"),
            ));
        }
        match ["is_decoder", "add_cross_attention"].into_iter().find(|k| self.config[*k] == true) {
            Some(key) => Err(field_error(key, "is true, but this family is run as an encoder")),
            None => Ok(()),
        }
    }

    fn check_activation(&self) -> Result<()> {
        let name = self.config["hidden_activation"].as_str().or(self.get("hidden_act").as_str());
        let Some(name) = name.filter(|_| self.arch.gate.is_none()) else { return Ok(()) };
        let known = ACTIVATIONS.iter().find(|(n, _)| *n == name).map(|(_, a)| *a);
        if known == Some(self.arch.act) {
            return Ok(());
        }
        Err(field_error("hidden_act", format!("is {name:?}, this family uses {:?}", self.arch.act)))
    }

    fn spec(&self) -> Result<ModelSpec> {
        if self.arch.positions == Positions::Buckets {
            return t5::from_hf(self);
        }
        self.check_activation()?;
        let (dim, heads) = (self.u32("hidden_size")?, self.u32("num_attention_heads")?);
        if heads == 0 {
            return Err(field_error("num_attention_heads", "is 0"));
        }
        let head_dim = self.opt_u32("head_dim")?.unwrap_or(dim / heads);
        let count = self.u32("num_hidden_layers")?;
        let latent = self.latent()?;
        let head_dim = latent.map_or(head_dim, |m| m.head());
        let positions = spec::positions(self.arch, count);
        let ropes = match positions {
            // Granite 4 says where it does.
            Positions::Rotated
                if self.arch.hybrid == Some(Hybrid::Mamba2)
                    && self.config["position_embedding_type"] != "rope" =>
            {
                Vec::new()
            }
            Positions::Rotated => self.ropes(latent.map_or(head_dim, |m| m.rotated))?,
            _ => Vec::new(),
        };
        let scale = match (self.f64("query_pre_attn_scalar")?, self.f64("attention_multiplier")?) {
            (Some(s), _) if self.arch.attn_scale != AttnScale::One => s.powf(-0.5) as f32,
            (_, Some(s)) => s as f32,
            (_, None) if self.arch.multipliers == Multipliers::Mup => {
                self.f64("mup_attn_multiplier")?.unwrap_or(1.0) as f32 / head_dim.max(1) as f32
            }
            (_, None) => attn_scale(self.arch, count, dim, heads, head_dim),
        };
        let cap = |key: &str| Ok::<_, Error>(self.f64(key)?.filter(|c| *c != 0.0).map(|c| c as f32));
        let [embed_scale, residual_scale, logit_scale] = self.factors(dim, count)?;
        let growth = self.growth()?;
        let eps =
            self.f64("eps")?.ok_or_else(|| field_error("eps", "of the norms is missing from config.json"))?;
        let alibi = number("alibi_bias_max", &self.config["attn_config"]["alibi_bias_max"])?;
        let (experts, sparse) = self.experts(count)?;
        let mixers = self.mixers(count)?;
        let attends = spec::first_attention(&mixers);
        let of_attention = |name: &str| self.has(&format!("blk.{attends}.{name}"));
        let scale = scale * latent.map_or(Ok(1.0), |_| self.latent_scale())?;
        let chunks = self.arch.chunks;
        let vocab = self.u32("vocab_size")?;
        let never = self.never()?;
        let spec = ModelSpec {
            vocab,
            dim,
            heads,
            kv_heads: self.kv_heads(heads, head_dim)?,
            head_dim,
            v_dim: head_dim,
            ff: self.feed_forward()?,
            context: self.u32("max_position_embeddings")?,
            eps: eps as f32,
            attn_scale: scale,
            streams: self.streams(count)?,
            first_shared: self.first_shared(count)?,
            cutoffs: self.cutoffs(count)?,
            attn_softcap: cap("attn_logit_softcapping")?,
            logit_softcap: cap("final_logit_softcapping")?,
            qk_norm: spec::qk_norm(self.arch, of_attention),
            norm_bias: spec::has_norm_bias(|n| self.has(n)),
            clip: self.clip()?,
            // Files that train version 2 further may have other vocabularies; its loss is named in all of them.
            unit_head: self
                .arch
                .unit_head
                .is_some_and(|n| n == vocab || !self.config["z_loss_weight"].is_null()),
            parallel: self.flag("use_parallel_residual")?.unwrap_or(self.arch.parallel),
            ff_norm: self.has("blk.0.ffn_norm.weight"),
            alibi: (positions == Positions::Alibi).then(|| alibi.unwrap_or(8.0) as f32),
            embed_scale,
            residual_scale,
            logit_scale,
            qkv_bias: of_attention("attn_q.bias"),
            out_bias: of_attention("attn_output.bias"),
            ff_bias: self.has("blk.0.ffn_down.bias"),
            head_bias: self.has("output.bias") || !never.is_empty(),
            tied: !self.has("output.weight"),
            positions: self.rows("position_embd.weight"),
            token_types: self.rows("token_types.weight"),
            layers: self.layers(count, &ropes)?,
            ropes,
            experts,
            sparse,
            sinks: of_attention("attn_sinks.weight"),
            mixers,
            chunked: chunks.is_some(),
            blocks: self.blocks(heads)?,
            never,
            bare_norm: chunks.is_some() && self.flag("use_qk_norm")?.unwrap_or(true),
            growth: match chunks.filter(|_| self.config["attn_temperature_tuning"] != false) {
                Some(c) => Some(Growth {
                    tokens: self.f64("floor_scale")?.map_or(c.growth.tokens, |f| f as f32),
                    by: self.f64("attn_scale")?.map_or(c.growth.by, |f| f as f32),
                    ahead: c.growth.ahead,
                }),
                None => growth,
            },
            ..ModelSpec::new(self.arch)
        };
        Ok(spec.with_latent(latent))
    }

    fn streams(&self, layers: u32) -> Result<Option<Streams>> {
        if !self.arch.streams {
            return Ok(None);
        }
        let (count, input) = (self.u32("altup_num_inputs")?, self.u32("hidden_size_per_layer_input")?);
        Ok(Some(Streams::read(self.source, self.arch, [count, input, layers])))
    }

    fn first_shared(&self, layers: u32) -> Result<Option<usize>> {
        let shared = self.opt_u32("num_kv_shared_layers")?.filter(|n| *n > 0 && self.arch.streams);
        shared.map(|n| streams::first_shared(layers, n, "num_kv_shared_layers")).transpose()
    }

    /// Where gates are cut off, by the share of them that goes.
    fn cutoffs(&self, layers: u32) -> Result<Vec<Option<f32>>> {
        let key = "activation_sparsity_pattern";
        let share = |v: &Value| v.as_f64().filter(|s| (0.0..1.0).contains(s));
        match &self.config[key] {
            _ if !self.arch.streams => Ok(Vec::new()),
            Value::Null => Ok(streams::cutoffs(layers)),
            Value::Array(listed) if listed.len() == layers as usize => {
                let all: Option<Vec<_>> = listed.iter().map(|v| share(v).map(streams::deviations)).collect();
                all.ok_or_else(|| field_error(key, "has what is no share below 1"))
            }
            _ => Err(field_error(key, format!("must be {layers} numbers"))),
        }
    }

    /// What queries, keys and values are clipped at; refused where the family is not known to do it.
    fn clip(&self) -> Result<Option<f32>> {
        let said = match &self.config["attn_config"]["clip_qkv"] {
            Value::Null => &self.config["clip_qkv"],
            nested => nested,
        };
        let by = number("clip_qkv", said)?.filter(|by| *by != 0.0);
        if by.is_some() && !self.arch.clips {
            return Err(field_error("clip_qkv", "is set, but this family is not known to clip"));
        }
        Ok(by.map(|by| by as f32))
    }

    /// The sizes of latent attention.
    fn latent(&self) -> Result<Option<Latent>> {
        if !self.arch.latent {
            return Ok(None);
        }
        let m = Latent {
            q_rank: self.opt_u32("q_lora_rank")?.unwrap_or(0),
            rank: self.u32("kv_lora_rank")?,
            plain: self.u32("qk_nope_head_dim")?,
            rotated: self.u32("qk_rope_head_dim")?,
            v_dim: self.u32("v_head_dim")?,
        };
        m.check().map(Some)
    }

    /// What YaRN does to the scores of latent attention.
    fn latent_scale(&self) -> Result<f32> {
        let nested = &self.config["rope_parameters"];
        let scaling = if nested["rope_type"].is_string() { nested } else { &self.config["rope_scaling"] };
        let of = |key: &str| Ok::<_, Error>(number(key, &scaling[key])?.filter(|v| *v != 0.0));
        Ok(match of("factor")?.zip(of("mscale_all_dim")?) {
            Some((factor, all)) => yarn_attention(factor, all).powi(2) as f32,
            None => 1.0,
        })
    }

    /// The experts, and which layers have them: those with a router.
    fn experts(&self, layers: u32) -> Result<(Option<ExpertSpec>, Vec<bool>)> {
        let none = (None, Vec::new());
        let Some(rules) = self.arch.experts else { return Ok(none) };
        let Some(count) = self.opt_u32(rules.hf_count)?.filter(|n| *n > 0) else { return Ok(none) };
        let scoring = match (rules.scoring, self.config["scoring_func"].as_str()) {
            (Scoring::Sparse { .. }, _) => {
                self.f64("router_jitter_noise")?.map(|eps| Scoring::Sparse { eps: eps as f32 })
            }
            (_, None) => None,
            (_, Some("softmax")) => Some(Scoring::Softmax),
            (_, Some("sigmoid")) => Some(Scoring::Sigmoid),
            (_, Some(other)) => {
                return Err(field_error(
                    "scoring_func",
                    format!("is {other:?}, softmax and sigmoid are known"),
                ));
            }
        };
        let said = Said {
            count,
            used: self.u32("num_experts_per_tok")?,
            scoring,
            normalize: self.flag("norm_topk_prob")?,
            // DeepSeek-V2-Lite has groups in its configuration and does not use them.
            groups: match self.config["topk_method"].as_str() {
                Some("greedy") => None,
                _ => self.opt_u32("n_group")?.zip(self.opt_u32("topk_group")?),
            },
            scale: self.f64("routed_scaling_factor")?.unwrap_or(1.0) as f32,
            gate: match rules.gate {
                Gate::Clamped { alpha, limit } => Gate::Clamped {
                    alpha: self.f64("swiglu_alpha")?.map_or(alpha, |a| a as f32),
                    limit: self.f64("swiglu_limit")?.map_or(limit, |l| l as f32),
                },
                plain => plain,
            },
        };
        rules.read(said, layers, |name| names::find(self.source, self.arch, name))
    }

    /// Key heads, by the matrix that they are in where the file does not say.
    fn kv_heads(&self, heads: u32, head_dim: u32) -> Result<u32> {
        if let Some(n) = self.opt_u32("num_key_value_heads")? {
            return Ok(n);
        }
        let all = self.rows("blk.0.attn_qkv.weight");
        if all == 0 || head_dim == 0 || self.arch.hf_transposed {
            return Ok(heads);
        }
        let of_keys = (all / head_dim).checked_sub(heads).filter(|n| *n > 0 && n % 2 == 0);
        of_keys
            .map(|n| n / 2)
            .ok_or_else(|| field_error("num_key_value_heads", "cannot be told from the tensors"))
    }

    /// Width of the feed-forward block, by the matrix into it where the file does not say.
    fn feed_forward(&self) -> Result<u32> {
        if let Some(n) = self.opt_u32("intermediate_size_mlp")? {
            return Ok(n);
        }
        // Granite 4 without experts has the shared one alone.
        let alone = self.arch.hybrid.is_some() && self.opt_u32("num_local_experts")?.unwrap_or(0) == 0;
        if let Some(n) = self.opt_u32("shared_intermediate_size")?.filter(|_| alone) {
            return Ok(n);
        }
        // One for each layer, as Gemma 3n says it.
        if let Some(listed) = self.config["intermediate_size"].as_array() {
            let first = listed.first().and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
            return first.filter(|_| listed.iter().all(|n| *n == listed[0])).ok_or_else(|| {
                field_error("intermediate_size", "differs from layer to layer, which is not supported")
            });
        }
        // What LFM2 says there is a number that the width is computed from.
        let computed = !self.config["block_multiple_of"].is_null();
        if let Some(n) = self.opt_u32("intermediate_size")?.filter(|_| !computed) {
            return Ok(n);
        }
        let (up, down) = (self.rows("blk.0.ffn_up.weight"), self.rows("blk.0.ffn_down.weight"));
        match if self.arch.hf_transposed { down } else { up } {
            0 => Err(field_error("intermediate_size", "is missing from config.json")),
            n => Ok(n),
        }
    }

    fn growth(&self) -> Result<Option<Growth>> {
        let rope = &self.config["rope_parameters"];
        let by = number("rope_parameters.llama_4_scaling_beta", &rope["llama_4_scaling_beta"])?;
        let Some(by) = by.filter(|by| self.arch.growing && *by != 0.0) else { return Ok(None) };
        let key = "original_max_position_embeddings";
        let per =
            number(key, &rope[key])?.ok_or_else(|| field_error(key, "is missing from rope_parameters"))?;
        Ok(Some(Growth { tokens: per as f32, by: by as f32, ahead: 0.0 }))
    }

    /// Factors on embeddings, on what blocks add, and on logits.
    fn factors(&self, dim: u32, layers: u32) -> Result<[f32; 3]> {
        let of = |key: &str| Ok::<_, Error>(self.f64(key)?.unwrap_or(1.0) as f32);
        let plain = if self.arch.embed_sqrt_dim { (dim as f32).sqrt() } else { 1.0 };
        Ok(match self.arch.multipliers {
            Multipliers::None => [plain, 1.0, 1.0],
            Multipliers::Granite => {
                [of("embedding_multiplier")?, of("residual_multiplier")?, 1.0 / of("logits_scaling")?]
            }
            Multipliers::MiniCpm => {
                let base = self.f64("dim_model_base")?.map_or(1.0, |base| base as f32 / dim.max(1) as f32);
                [of("scale_emb")?, of("scale_depth")? / (layers.max(1) as f32).sqrt(), base]
            }
            Multipliers::Logits => [plain, 1.0, of("logit_scale")?],
            Multipliers::Mup => [of("mup_embedding_multiplier")?, 1.0, 1.0 / of("mup_width_multiplier")?],
        })
    }

    /// Attention by blocks, as Phi-3-small says it, and every how many layers there is none.
    fn blocks(&self, heads: u32) -> Result<Option<(Blocks, u32)>> {
        let Some(tokens) = self.opt_u32("blocksparse_block_size")? else { return Ok(None) };
        if self.arch.multipliers != Multipliers::Mup {
            let why = "is set, but this family is not known to attend by blocks";
            return Err(field_error("blocksparse_block_size", why));
        }
        let stride = self.u32("blocksparse_vert_stride")?;
        let shift = match self.flag("blocksparse_homo_head_pattern")? {
            Some(true) => 0,
            _ => (stride / heads).max(1),
        };
        let local = self.u32("blocksparse_num_local_blocks")?;
        let every = self.opt_u32("dense_attention_every_n_layers")?.unwrap_or(u32::MAX);
        Ok(Some((Blocks { tokens, local, global: 0, stride, shift }, every)))
    }

    /// Rows of the vocabulary that no token has.
    fn never(&self) -> Result<Vec<u32>> {
        let list = match &self.config["dummy_token_indices"] {
            Value::Null => return Ok(Vec::new()),
            list => list
                .as_array()
                .map(|l| l.iter().map(|n| n.as_u64().and_then(|n| u32::try_from(n).ok())).collect()),
        };
        list.flatten().ok_or_else(|| field_error("dummy_token_indices", "is no list of tokens"))
    }

    /// The window layers of GPT-Neo: a list of lists of kinds, each with how often it comes.
    fn attention_types(&self, count: u32) -> Result<Vec<bool>> {
        let mut local = Vec::new();
        for item in self.config["attention_types"].as_array().into_iter().flatten() {
            let kinds = item[0].as_array().map_or(&[][..], Vec::as_slice);
            for kind in
                kinds.iter().cycle().take(kinds.len() * item[1].as_u64().unwrap_or(0).min(1 << 16) as usize)
            {
                let known = ["global", "local"].iter().position(|k| kind == k);
                local.push(known.ok_or_else(|| field_error("attention_types", format!("has {kind}")))? == 1);
            }
        }
        if local.len() != count as usize {
            return Err(field_error("attention_types", format!("must list {count} times global or local")));
        }
        Ok(local)
    }

    /// The sizes of a recurrent layer.
    fn mamba2(&self, l: usize) -> Result<Mamba2> {
        let heads = self.u32("mamba_n_heads")?;
        let inner = self.u32("hidden_size")?.saturating_mul(self.opt_u32("mamba_expand")?.unwrap_or(2));
        if heads == 0 || !inner.is_multiple_of(heads) {
            return Err(field_error("mamba_n_heads", format!("is {heads} for {inner} columns")));
        }
        let limits = self.config["time_step_limit"].as_array().filter(|l| {
            l.first().and_then(Value::as_f64) != Some(0.0)
                || l.get(1).and_then(Value::as_f64).is_some_and(f64::is_finite)
        });
        if let Some(limits) = limits {
            return Err(field_error("time_step_limit", format!("is {limits:?}; only none is supported")));
        }
        let has = |name: &str| self.has(&format!("blk.{l}.{name}"));
        let (state_dim, taps) = (self.u32("mamba_d_state")?, self.u32("mamba_d_conv")?);
        let (conv_bias, bias) = (has("ssm_conv1d.bias"), has("ssm_in.bias"));
        Mamba2 { heads, head_dim: inner / heads, state_dim, taps, conv_bias, bias }.check()
    }

    /// What each layer has for attention, where the family has something else.
    fn mixers(&self, count: u32) -> Result<Vec<Mixer>> {
        let Some(hybrid) = self.arch.hybrid else { return Ok(Vec::new()) };
        let count = count.min(1 << 16); // `check` refuses such counts; until then they must not cost memory
        let word: [&str; 2] = match hybrid {
            Hybrid::ShortConv => ["conv"; 2],
            // The second is what later versions of transformers write.
            Hybrid::Mamba2 => ["mamba", "linear_attention"],
        };
        let attends: Option<Vec<bool>> = match (&self.config["layer_types"], &self.config["full_attn_idxs"]) {
            (Value::Array(types), _) => types
                .iter()
                .map(|t| match t.as_str()? {
                    "attention" | "full_attention" => Some(true),
                    other => word.contains(&other).then_some(false),
                })
                .collect(),
            (_, Value::Array(layers)) => {
                let layers: Option<Vec<u64>> = layers.iter().map(Value::as_u64).collect();
                layers.map(|l| (0..u64::from(count)).map(|i| l.contains(&i)).collect())
            }
            _ => Some(vec![true; count as usize]),
        };
        let attends = attends.filter(|a| a.len() == count as usize).ok_or_else(|| {
            field_error("layer_types", format!("must list {count} times full_attention or {}", word[0]))
        })?;
        let mixer = |(l, attends): (usize, bool)| match (attends, hybrid) {
            (true, _) => Ok(Mixer::Attention),
            (false, Hybrid::Mamba2) => self.mamba2(l).map(Mixer::Mamba2),
            (false, Hybrid::ShortConv) => Ok(Mixer::ShortConv {
                taps: self.u32("conv_L_cache")?,
                bias: self.has(&format!("blk.{l}.shortconv.conv.bias")),
            }),
        };
        attends.into_iter().enumerate().map(mixer).collect()
    }

    fn layers(&self, count: u32, ropes: &[Rotary]) -> Result<Vec<LayerSpec>> {
        let window = match self.flag("use_sliding_window")? {
            Some(false) => None,
            _ => self.opt_u32("sliding_window")?.filter(|w| *w > 0),
        };
        let window = match (window, self.arch.chunks) {
            (None, Some(c)) => Some(self.opt_u32("attention_chunk_size")?.unwrap_or(c.tokens)),
            (window, _) => window,
        };
        // Llama has no window; a number left in its configuration by a converter is not used by transformers either.
        let window = window.filter(|_| self.arch.gguf != arch::LLAMA.gguf);
        let count = count.min(1 << 16); // `check` refuses such counts; until then they must not cost memory
        let local = match &self.config["layer_types"] {
            // Whoever has a window by default says which layers have it.
            Value::Null if self.default("sliding_window").is_some() => self.attention_types(count)?,
            // Which layers attend is all that it says then.
            _ if self.arch.hybrid.is_some() => vec![false; count as usize],
            Value::Null => self.pattern(count)?,
            types => types
                .as_array()
                .filter(|t| t.len() == count as usize)
                .and_then(|t| t.iter().map(is_local).collect::<Option<Vec<bool>>>())
                .ok_or_else(|| {
                    field_error(
                        "layer_types",
                        format!("must list {count} times full_attention or sliding_attention"),
                    )
                })?,
        };
        // Which layers rotate, as 0 and 1.
        let rotated = match &self.config["no_rope_layers"] {
            Value::Null => None,
            list => Some(
                list.as_array()
                    .filter(|l| l.len() == count as usize)
                    .and_then(|l| l.iter().map(|v| v.as_u64().map(|n| n != 0)).collect::<Option<Vec<bool>>>())
                    .ok_or_else(|| {
                        field_error("no_rope_layers", format!("must list {count} times 0 or 1"))
                    })?,
            ),
        };
        // Layers without rotation see everything where others have chunks.
        let local = match (&rotated, self.arch.chunks) {
            (Some(rotated), Some(_)) if self.config["layer_types"].is_null() => rotated.clone(),
            _ => local,
        };
        Ok(layers(self.arch, &local, window, ropes, rotated.as_deref()))
    }

    /// The window layers of a file that does not list them.
    fn pattern(&self, count: u32) -> Result<Vec<bool>> {
        if self.arch.windows == WindowPattern::FromLayer {
            let first = self.opt_u32("max_window_layers")?.unwrap_or(0);
            return Ok((0..count).map(|l| l >= first).collect());
        }
        if let Some(letters) = self.config["sliding_window_pattern"].as_str().filter(|s| !s.is_empty()) {
            return Ok(letters.chars().cycle().take(count as usize).map(|c| c == 'L').collect());
        }
        Ok(match self.opt_u32("sliding_window_pattern")? {
            Some(n) if n > 0 => (0..count).map(|l| (l + 1) % n != 0).collect(),
            _ => local_layers(self.arch, count),
        })
    }

    /// Newer files nest rope settings in `rope_parameters`, per kind of layer where there are two.
    fn ropes(&self, head_dim: u32) -> Result<Vec<Rotary>> {
        let null = Value::Null;
        let params = match &self.config["rope_parameters"] {
            Value::Null => &null,
            p if p["full_attention"].is_object() => &p["full_attention"],
            p => p,
        };
        let base = match number("rope_theta", &params["rope_theta"])? {
            Some(b) => b,
            None => self.f64("rope_theta")?.unwrap_or(10_000.0),
        };
        let part = match number("partial_rotary_factor", &params["partial_rotary_factor"])? {
            Some(p) => p,
            None => self.f64("partial_rotary_factor")?.unwrap_or(1.0),
        };
        let dims = (f64::from(head_dim) * part) as u32;
        let scaling = if params["rope_type"].is_string() { params } else { &self.config["rope_scaling"] };
        let global = Rotary { style: self.arch.hf_rope, dims, base, scaling: self.scaling(scaling)? };
        let nested = &self.config["rope_parameters"]["sliding_attention"];
        let local_base = match (self.arch.local_rope_base, number("rope_theta", &nested["rope_theta"])?) {
            (Some(_), Some(b)) => Some(b),
            (Some(default), None) => Some(self.f64("rope_local_base_freq")?.unwrap_or(default)),
            (None, _) => None,
        };
        Ok(spec::rotations(self.arch, global, local_base))
    }

    fn scaling(&self, scaling: &Value) -> Result<Scaling> {
        let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str()).unwrap_or("default");
        let have = |key: &str| number(key, &scaling[key]);
        let need = |key: &str| {
            have(key)?
                .filter(|v| *v > 0.0)
                .ok_or_else(|| field_error(format!("rope_scaling.{key}"), "is missing or not positive"))
        };
        let context = f64::from(self.u32("max_position_embeddings")?);
        let trained = match have("original_max_position_embeddings")? {
            Some(n) => n,
            None => self.f64("original_max_position_embeddings")?.unwrap_or(context),
        };
        let factors = |key: &str| -> Result<Vec<f32>> {
            let list =
                scaling[key].as_array().map(|l| l.iter().map(|v| v.as_f64().map(|f| f as f32)).collect());
            let list: Option<Vec<f32>> = list.flatten();
            list.ok_or_else(|| field_error(format!("rope_scaling.{key}"), "is no list of numbers"))
        };
        Ok(match kind {
            "default" => Scaling::None,
            "linear" => Scaling::Linear(need("factor")?),
            "dynamic" => Scaling::Dynamic { factor: need("factor")?, context: context as u32 },
            "llama3" => Scaling::Llama3 {
                factor: need("factor")?,
                low: need("low_freq_factor")?,
                high: need("high_freq_factor")?,
                context: need("original_max_position_embeddings")?,
            },
            "yarn" => {
                let factor = match have("factor")? {
                    Some(f) => f,
                    None => context / trained,
                };
                let all =
                    (have("mscale")?.filter(|m| *m != 0.0), have("mscale_all_dim")?.filter(|m| *m != 0.0));
                let attention = match (have("attention_factor")?, all) {
                    (Some(a), _) => a,
                    (None, (Some(m), Some(all))) => yarn_attention(factor, m) / yarn_attention(factor, all),
                    (None, _) => yarn_attention(factor, 1.0),
                };
                Scaling::Yarn {
                    factor,
                    context: trained,
                    beta_fast: have("beta_fast")?.unwrap_or(32.0),
                    beta_slow: have("beta_slow")?.unwrap_or(1.0),
                    attention,
                    truncate: scaling["truncate"].as_bool().unwrap_or(true),
                }
            }
            "longrope" | "su" => {
                let factor = match have("factor")? {
                    Some(f) => f,
                    None => context / trained,
                };
                // Phi-3-small has the factor itself, one for each list.
                let own = have("short_mscale")?.zip(have("long_mscale")?);
                if let Some((short, long)) = own.filter(|(short, long)| short != long) {
                    let why = format!("is {long}, but short_mscale is {short}; they are known to be equal");
                    return Err(field_error("rope_scaling.long_mscale", why));
                }
                let plain = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / trained.ln()).sqrt() };
                Scaling::Long {
                    short: factors("short_factor")?,
                    long: factors("long_factor")?,
                    context: trained as u32,
                    attention: have("attention_factor")?.or(own.map(|(_, long)| long)).unwrap_or(plain),
                }
            }
            other => {
                let why = format!(
                    "{other:?} is not supported (default, linear, dynamic, llama3, yarn and longrope are)"
                );
                return Err(field_error("rope_scaling.rope_type", why));
            }
        })
    }

    /// Whether a tensor belongs to the layers behind the last that predict tokens further ahead, which are not used.
    fn predicts_more(&self, spec: &ModelSpec, name: &str) -> bool {
        let layer = name.strip_prefix("model.layers.").and_then(|n| n.split_once('.'));
        let more = self.config["num_nextn_predict_layers"].as_u64().unwrap_or(0) as usize;
        let last = spec.layers.len();
        layer.and_then(|(l, _)| l.parse().ok()).is_some_and(|l: usize| l >= last && l - last < more)
    }

    fn refuse_unknown_tensors(&self, spec: &ModelSpec) -> Result<()> {
        let options = crate::decoder::Options { fuse: false, ..Default::default() };
        let program = crate::decoder::decoder(spec, &options);
        let mut unknown = weights::unused(self.source, spec, &program);
        // Recomputed by every engine, or of no use to it; old checkpoints store them.
        unknown.retain(|n| {
            let pattern = names::pattern(n);
            let drop =
                |u: &&str| **u == pattern || u.split_once('.').is_some_and(|(_, short)| short == pattern);
            let ahead = self.predicts_more(spec, n);
            let seen = SIGHT.iter().any(|p| n.strip_prefix("model.").unwrap_or(n).starts_with(p));
            !ahead && !seen && !n.ends_with("rotary_emb.inv_freq") && !self.arch.hf_unused.iter().any(drop)
        });
        if unknown.is_empty() {
            return Ok(());
        }
        Err(Error::NotUnderstood { arch: self.arch.gguf, what: "tensors", names: shorten(&unknown) })
    }
}

/// A finite number, or nothing.
fn number(key: &str, value: &Value) -> Result<Option<f64>> {
    match value {
        Value::Null => Ok(None),
        v => v
            .as_f64()
            .filter(|f| f.is_finite())
            .map(Some)
            .ok_or_else(|| field_error(key, format!("is {v}, a number is needed"))),
    }
}

/// A layer type of `config.json`; `None` for kinds that are not known here.
fn is_local(kind: &Value) -> Option<bool> {
    match kind.as_str()? {
        "sliding_attention" => Some(true),
        "chunked_attention" => Some(true),
        "full_attention" => Some(false),
        _ => None,
    }
}

fn unknown(name: &str, source: &Source, config: &Value) -> Error {
    let mut stems: Vec<String> = source
        .tensors()
        .map(|t| {
            t.name
                .split('.')
                .map(|p| if p.parse::<u32>().is_ok() { "*" } else { p })
                .collect::<Vec<_>>()
                .join(".")
        })
        .collect();
    stems.sort();
    stems.dedup();
    let known_by = |arch: &Arch, stem: &str| {
        let (stem, _) = stem.rsplit_once('.').unwrap_or((stem, ""));
        let qk = stem.ends_with("_norm") && arch.qk_norm == QkNorm::None && stem.contains("self_attn");
        !qk && arch.names.iter().chain(names::COMMON).any(|(_, hf)| hf.replace("{}", "*") == stem)
    };
    let (nearest, tensors) = arch::all()
        .map(|a| (a, stems.iter().filter(|s| !known_by(a, s)).cloned().collect::<Vec<_>>()))
        .min_by_key(|(_, t)| t.len())
        .expect("the table of architectures is not empty");
    let known =
        |key: &str| KNOWN.contains(&key) || ALIASES.iter().any(|(k, more)| *k == key || more.contains(&key));
    let settings = config.as_object().into_iter().flatten();
    let fields: Vec<String> = settings.map(|(k, _)| k.clone()).filter(|k| !known(k)).collect();
    Error::UnknownArch {
        name: name.into(),
        nearest: nearest.gguf.into(),
        known: arch::all().flat_map(|a| a.hf).copied().collect::<Vec<_>>().join(", "),
        fields: shorten(&fields),
        tensors: shorten(&tensors),
    }
}
