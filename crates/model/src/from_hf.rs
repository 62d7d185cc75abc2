//! A specification from a Hugging Face `config.json`. As with GGUF, a setting that would change the result and is not
//! understood is refused by name.

use crate::arch::{self, Arch, Positions, QkNorm};
use crate::from_gguf::shorten;
use crate::spec::{LayerSpec, ModelSpec, attn_scale, field_error, layers, local_layers};
use crate::{Error, Result, names};
use quarrel_formats::Source;
use quarrel_ir::{NormKind, RopeStyle, RopeTable};
use serde_json::Value;

/// Reads the specification of a safetensors model.
pub fn spec(source: &Source, config: &Value) -> Result<ModelSpec> {
    let name = config["architectures"][0]
        .as_str()
        .ok_or_else(|| field_error("architectures", "is missing from config.json"))?;
    let arch = arch::by_hf(name).ok_or_else(|| unknown(name, source))?;
    let reader = Reader { arch, config, source };
    let spec = reader.spec()?.check()?;
    reader.refuse_unknown_tensors(&spec)?;
    Ok(spec)
}

struct Reader<'a> {
    arch: &'static Arch,
    config: &'a Value,
    source: &'a Source,
}

impl Reader<'_> {
    fn u32(&self, key: &str) -> Result<u32> {
        self.opt_u32(key)?.ok_or_else(|| field_error(key, "is missing from config.json"))
    }

    fn opt_u32(&self, key: &str) -> Result<Option<u32>> {
        match &self.config[key] {
            Value::Null => Ok(None),
            v => v
                .as_u64()
                .and_then(|n| u32::try_from(n).ok())
                .map(Some)
                .ok_or_else(|| field_error(key, format!("is {v}, a whole number is needed"))),
        }
    }

    fn opt_f64(&self, at: &Value, key: &str) -> Result<Option<f64>> {
        match &at[key] {
            Value::Null => Ok(None),
            v => v
                .as_f64()
                .filter(|f| f.is_finite())
                .map(Some)
                .ok_or_else(|| field_error(key, format!("is {v}, a number is needed"))),
        }
    }

    fn has(&self, canonical: &str) -> bool {
        names::hf(self.arch, canonical).is_some_and(|n| self.source.tensor(&n).is_some())
    }

    /// Rows of a table, 0 where there is none.
    fn table_rows(&self, canonical: &str) -> u32 {
        let tensor = names::hf(self.arch, canonical).and_then(|n| self.source.tensor(&n));
        tensor.and_then(|t| t.shape.first()).map_or(0, |n| u32::try_from(*n).unwrap_or(u32::MAX))
    }

    /// What an encoder's configuration may say that would change the result.
    fn refuse_decoder_settings(&self) -> Result<()> {
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

    fn spec(&self) -> Result<ModelSpec> {
        if !self.arch.causal {
            self.refuse_decoder_settings()?;
        }
        let eps = match self.arch.norm {
            NormKind::Rms => "rms_norm_eps",
            NormKind::Layer => "layer_norm_eps",
        };
        let (dim, heads) = (self.u32("hidden_size")?, self.u32("num_attention_heads")?);
        if heads == 0 {
            return Err(field_error("num_attention_heads", "is 0"));
        }
        let head_dim = self.opt_u32("head_dim")?.unwrap_or(dim / heads);
        let count = self.u32("num_hidden_layers")?;
        let scale = match self.opt_f64(self.config, "query_pre_attn_scalar")? {
            Some(s) => s.powf(-0.5) as f32,
            None => attn_scale(self.arch, count, dim, heads, head_dim),
        };
        let act = self.config["hidden_act"].as_str().or(self.config["hidden_activation"].as_str());
        let expected = match self.arch.act {
            quarrel_ir::Activation::Silu => "silu",
            quarrel_ir::Activation::GeluTanh => "gelu_pytorch_tanh",
            quarrel_ir::Activation::GeluErf => "gelu",
            quarrel_ir::Activation::Relu => "relu",
        };
        if act.is_some_and(|a| a != expected) {
            return Err(field_error("hidden_act", format!("is {act:?}, this family uses {expected:?}")));
        }
        let cap = |key: &str| {
            Ok::<_, Error>(self.opt_f64(self.config, key)?.filter(|c| *c != 0.0).map(|c| c as f32))
        };
        Ok(ModelSpec {
            arch: self.arch,
            vocab: self.u32("vocab_size")?,
            dim,
            heads,
            kv_heads: self.opt_u32("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            v_dim: head_dim,
            ff: self.u32("intermediate_size")?,
            context: self.u32("max_position_embeddings")?,
            eps: self
                .opt_f64(self.config, eps)?
                .ok_or_else(|| field_error(eps, "is missing from config.json"))? as f32,
            attn_scale: scale,
            attn_softcap: cap("attn_logit_softcapping")?,
            logit_softcap: cap("final_logit_softcapping")?,
            qkv_bias: self.has("blk.0.attn_q.bias"),
            out_bias: self.has("blk.0.attn_output.bias"),
            ff_bias: self.has("blk.0.ffn_down.bias"),
            tied: !self.has("output.weight"),
            positions: self.table_rows("position_embd.weight"),
            token_types: self.table_rows("token_types.weight"),
            ropes: self.ropes(head_dim)?,
            layers: self.layers(count)?,
        })
    }

    fn layers(&self, count: u32) -> Result<Vec<LayerSpec>> {
        let window = self.opt_u32("sliding_window")?.filter(|w| *w > 0);
        // Llama has no window; a number left in its configuration by a converter is not used by transformers either.
        let window = window.filter(|_| self.arch.gguf != arch::LLAMA.gguf);
        let count = count.min(1 << 16); // `check` refuses such counts; until then they must not cost memory
        let local = match &self.config["layer_types"] {
            Value::Null => match self.opt_u32("sliding_window_pattern")? {
                Some(n) if n > 0 => (0..count).map(|l| (l + 1) % n != 0).collect(),
                _ => local_layers(self.arch, count),
            },
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
        Ok(layers(self.arch, &local, window))
    }

    /// Newer files nest rope settings in `rope_parameters`, per kind of layer where there are two.
    fn ropes(&self, head_dim: u32) -> Result<Vec<RopeTable>> {
        if self.arch.positions == Positions::Learned {
            return Ok(Vec::new());
        }
        let null = Value::Null;
        let params = match &self.config["rope_parameters"] {
            Value::Null => &null,
            p if p["full_attention"].is_object() => &p["full_attention"],
            p => p,
        };
        let base = match self.opt_f64(params, "rope_theta")? {
            Some(b) => b,
            None => self.opt_f64(self.config, "rope_theta")?.unwrap_or(10_000.0),
        };
        let scaling = if params["rope_type"].is_string() { params } else { &self.config["rope_scaling"] };
        let mut global = RopeTable::new(RopeStyle::Neox, head_dim, base, None);
        self.scale_rope(scaling, &mut global)?;
        let local = self.arch.local_rope_base.map(|default| -> Result<RopeTable> {
            let nested = &self.config["rope_parameters"]["sliding_attention"];
            let base = match self.opt_f64(nested, "rope_theta")? {
                Some(b) => b,
                None => self.opt_f64(self.config, "rope_local_base_freq")?.unwrap_or(default),
            };
            Ok(RopeTable::new(RopeStyle::Neox, head_dim, base, None))
        });
        std::iter::once(Ok(global)).chain(local).collect()
    }

    fn scale_rope(&self, scaling: &Value, table: &mut RopeTable) -> Result<()> {
        let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str()).unwrap_or("default");
        let need = |key: &str| {
            self.opt_f64(scaling, key)?
                .filter(|v| *v > 0.0)
                .ok_or_else(|| field_error(format!("rope_scaling.{key}"), "is missing or not positive"))
        };
        match kind {
            "default" => {}
            "linear" => {
                let factor = need("factor")?;
                table.inv_freq.iter_mut().for_each(|f| *f /= factor);
            }
            "llama3" => {
                let (factor, low, high) =
                    (need("factor")?, need("low_freq_factor")?, need("high_freq_factor")?);
                let context = need("original_max_position_embeddings")?;
                llama3_scaling(&mut table.inv_freq, factor, low, high, context);
            }
            other => {
                let why =
                    format!("{other:?} is not supported for this family (default, linear and llama3 are)");
                return Err(field_error("rope_scaling.rope_type", why));
            }
        }
        Ok(())
    }

    fn refuse_unknown_tensors(&self, spec: &ModelSpec) -> Result<()> {
        let program = crate::decoder::decoder(spec, &crate::decoder::Options { fuse: false, ..Default::default() });
        let used: std::collections::HashSet<String> = program
            .weights
            .iter()
            .flat_map(|w| &w.parts)
            .filter_map(|p| names::hf(self.arch, &p.name))
            .collect();
        let mut unknown: Vec<String> = self
            .source
            .tensors()
            .map(|t| t.name.clone())
            // Recomputed by every engine; old checkpoints store it.
            .filter(|n| !used.contains(n) && !n.ends_with("rotary_emb.inv_freq"))
            .filter(|n| !self.arch.hf_unused.contains(&n.as_str()))
            .collect();
        unknown.sort();
        if unknown.is_empty() {
            return Ok(());
        }
        Err(Error::NotUnderstood { arch: self.arch.gguf, what: "tensors", names: shorten(&unknown) })
    }
}

/// A layer type of `config.json`; `None` for kinds that are not known here.
fn is_local(kind: &Value) -> Option<bool> {
    match kind.as_str()? {
        "sliding_attention" => Some(true),
        "full_attention" => Some(false),
        _ => None,
    }
}

/// Llama 3.1's scaling: long wavelengths are divided by `factor`, short ones kept, those between interpolated.
fn llama3_scaling(inv_freq: &mut [f64], factor: f64, low: f64, high: f64, context: f64) {
    for f in inv_freq {
        let wavelength = 2.0 * std::f64::consts::PI / *f;
        let smooth = ((context / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        *f = (1.0 - smooth) * *f / factor + smooth * *f;
    }
}

fn unknown(name: &str, source: &Source) -> Error {
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
    Error::UnknownArch {
        name: name.into(),
        nearest: nearest.gguf.into(),
        known: arch::all().flat_map(|a| a.hf).copied().collect::<Vec<_>>().join(", "),
        fields: "config.json is read only for known families".into(),
        tensors: shorten(&tensors),
    }
}
