//! The specification of T5's kin, whose files say other things than those of all others: two stacks, buckets of distances, and
//! heads that the width does not tell.

use crate::from_gguf::Reader as Gguf;
use crate::from_hf::Reader as Hf;
use crate::spec::{DistanceSpec, LayerSpec, ModelSpec, SourceSpec, field_error};
use crate::{Arch, Result, weights};
use quarrel_formats::Source;
use quarrel_ir::Activation;

/// Distance from which on all are in one bucket, where a file does not say.
const MOST: u32 = 128;

/// What both kinds of files say.
struct Said {
    vocab: u32,
    dim: u32,
    heads: u32,
    head_dim: u32,
    ff: u32,
    /// Of one text.
    context: u32,
    eps: f32,
    buckets: u32,
    most: u32,
    encoder: u32,
    decoder: u32,
    start: u32,
    /// Logits are divided by the root of the width, which the first version does.
    scaled: bool,
}

impl Said {
    fn spec(self, source: &Source, arch: &'static Arch) -> Result<ModelSpec> {
        let has = |name: &str| weights::has(source, arch, name);
        let layers = if arch.causal { self.decoder } else { self.encoder }.min(1 << 16);
        let each = has("enc.blk.1.attn_rel_b.weight");
        let gated = has("enc.blk.0.ffn_gate.weight");
        let head_dim = self.head_dim;
        ModelSpec {
            vocab: self.vocab,
            dim: self.dim,
            heads: self.heads,
            kv_heads: self.heads,
            head_dim,
            v_dim: head_dim,
            ff: self.ff,
            // Source and answer together.
            context: if arch.causal { self.context.saturating_mul(2) } else { self.context },
            eps: self.eps,
            logit_scale: if self.scaled { (self.dim as f32).powf(-0.5) } else { 1.0 },
            tied: !has("output.weight"),
            act: if gated { (Activation::GeluTanh, true) } else { (arch.act, false) },
            distances: Some(DistanceSpec { buckets: self.buckets, most: self.most, each }),
            source: arch.causal.then_some(SourceSpec { layers: self.encoder, start: self.start }),
            layers: vec![LayerSpec { window: None, rope: None }; layers as usize],
            ..ModelSpec::new(arch)
        }
        .check()
    }
}

/// From GGUF, where nothing says whether logits are scaled: they are in the first version, which has no gate, and where the head
/// is the table of tokens.
pub(crate) fn from_gguf(r: &Gguf) -> Result<ModelSpec> {
    let has = |name: &str| weights::has(r.source, r.arch, name);
    let encoder = r.u32("block_count")?;
    let eps = r.opt_f32("attention.layer_norm_rms_epsilon")?;
    Said {
        vocab: r.table_rows("token_embd.weight"),
        dim: r.u32("embedding_length")?,
        heads: r.u32("attention.head_count")?,
        head_dim: r.u32("attention.key_length")?,
        ff: r.u32("feed_forward_length")?,
        context: r.u32("context_length")?,
        eps: eps.map_or_else(|| r.opt_f32("attention.layer_norm_epsilon"), |e| Ok(Some(e)))?.unwrap_or(1e-6),
        buckets: r.u32("attention.relative_buckets_count")?,
        most: MOST,
        encoder,
        decoder: r.opt_u32("decoder_block_count")?.unwrap_or(encoder),
        start: r.opt_u32("decoder_start_token_id")?.unwrap_or(0),
        scaled: r.arch.causal && (!has("enc.blk.0.ffn_gate.weight") || !has("output.weight")),
    }
    .spec(r.source, r.arch)
}

/// From safetensors.
pub(crate) fn from_hf(r: &Hf) -> Result<ModelSpec> {
    let kind = r.config["feed_forward_proj"].as_str().unwrap_or("relu");
    let gated = weights::has(r.source, r.arch, "enc.blk.0.ffn_gate.weight");
    if kind != if gated { "gated-gelu" } else { "relu" } {
        let why = format!("is {kind:?}; \"relu\", and \"gated-gelu\" with a gate's tensors, are known");
        return Err(field_error("feed_forward_proj", why));
    }
    let number = |key: &str, default: u32| Ok::<_, crate::Error>(r.opt_u32(key)?.unwrap_or(default));
    let encoder = r.u32("num_layers")?;
    Said {
        vocab: r.u32("vocab_size")?,
        dim: r.u32("d_model")?,
        heads: r.u32("num_heads")?,
        head_dim: number("d_kv", 64)?,
        ff: r.u32("d_ff")?,
        // Nothing in it depends on a longest text; this is what it was trained with.
        context: number("n_positions", 512)?,
        eps: r.f64("layer_norm_epsilon")?.unwrap_or(1e-6) as f32,
        buckets: number("relative_attention_num_buckets", 32)?,
        most: number("relative_attention_max_distance", MOST)?,
        encoder,
        decoder: number("num_decoder_layers", encoder)?,
        start: r.opt_u32("decoder_start_token_id")?.map_or_else(|| number("pad_token_id", 0), Ok)?,
        scaled: r.arch.causal && r.flag("tie_word_embeddings")? != Some(false),
    }
    .spec(r.source, r.arch)
}
