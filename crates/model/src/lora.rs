//! LoRA adapters: PEFT's directories (`adapter_config.json`, `adapter_model.safetensors`) and GGUF files of type `adapter`.
//!
//! [`read`] understands a file or refuses it by the name of what it does not understand; [`Lora::parts`] fits it to a
//! model: names, the order of rotated heads, shapes. Nothing of the base model is changed.
//! Sources: PEFT's `LoraConfig`; llama.cpp's `llama-adapter.cpp`.

use crate::arch::{self, Arch};
use crate::spec::ModelSpec;
use crate::{Error, Result, names};
use quarrel_formats::{Metadata, Source, Tensor};
use quarrel_ir::{AdapterPart, Op, Program, RANK_MAX, RopeStyle, WeightId};
use serde_json::Value;
use std::collections::BTreeMap;

/// Most tensors of a file: two for each of 16 matrices of 4096 layers.
const TENSORS_MAX: usize = 1 << 17;

/// Settings of `adapter_config.json` that are read here, or that only matter while training.
const UNDERSTOOD: &[&str] = &[
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "fan_in_fan_out", // how the base weight lies in memory; A and B lie the same way either way
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
];

/// Metadata below `adapter.` that is read here, or is a description.
const UNDERSTOOD_GGUF: &[&str] =
    &["adapter.type", "adapter.lora.alpha", "adapter.lora.task_name", "adapter.lora.prompt_prefix"];

/// What an adapter adds to one matrix.
#[derive(Debug, Clone)]
pub struct Target {
    /// The matrix, as the file calls it: `model.layers.0.self_attn.q_proj` or `blk.0.attn_q.weight`.
    pub name: String,
    /// Rows of A.
    pub rank: usize,
    /// `alpha / rank`, or `alpha / sqrt(rank)`.
    pub scale: f32,
    a: Tensor,
    b: Tensor,
}

/// An adapter file that is understood.
#[derive(Debug, Clone)]
pub struct Lora {
    /// The file, for messages.
    pub file: String,
    /// `PEFT` or `GGUF`.
    pub format: &'static str,
    /// The family that it was made for, where the file says so.
    pub arch: Option<&'static Arch>,
    /// The base model's name, where the file says so.
    pub base: Option<String>,
    /// What it changes, by name.
    pub targets: Vec<Target>,
}

/// Whether an opened file is an adapter and not a model.
pub fn is_adapter(source: &Source) -> bool {
    match source {
        Source::Gguf(g) => g.metadata.str("general.type") == Some("adapter"),
        Source::Hf(h) => h.config["peft_type"].is_string(),
    }
}

/// Reads an adapter that [`Source::open_adapter`] opened.
pub fn read(source: &Source) -> Result<Lora> {
    let file = crate::place(source);
    let reader = Reader { file: &file };
    if source.tensors().len() > TENSORS_MAX {
        return reader
            .fail("tensors", format!("{} are over the limit of {TENSORS_MAX}", source.tensors().len()));
    }
    let (format, arch, base, mut targets) = match source {
        Source::Gguf(g) => {
            let arch = reader.gguf_arch(&g.metadata)?;
            let base = g.metadata.str("general.base_model.0.name").map(String::from);
            ("GGUF", Some(arch), base, reader.gguf(source, &g.metadata)?)
        }
        Source::Hf(h) => {
            let base = h.config["base_model_name_or_path"].as_str().map(String::from);
            ("PEFT", None, base.filter(|b| !b.is_empty()), reader.peft(source, &h.config)?)
        }
    };
    if targets.is_empty() {
        return reader.fail("tensors", "has none; the file is incomplete, save the adapter again");
    }
    targets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Lora { file, format, arch, base, targets })
}

struct Reader<'a> {
    file: &'a str,
}

/// A and B of a matrix, as they are found.
type Pairs = BTreeMap<String, [Option<Tensor>; 2]>;

impl Reader<'_> {
    fn fail<T>(&self, at: impl Into<String>, why: impl Into<String>) -> Result<T> {
        Err(Error::Adapter { file: self.file.into(), at: at.into(), why: why.into() })
    }

    fn gguf_arch(&self, meta: &Metadata) -> Result<&'static Arch> {
        for (key, want) in [("general.type", "adapter"), ("adapter.type", "lora")] {
            match meta.str(key) {
                Some(is) if is == want => {}
                Some(is) => return self.fail(key, format!("is {is:?}; a LoRA adapter says {want:?}")),
                None => return self.fail(key, format!("is missing; a LoRA adapter says {want:?}")),
            }
        }
        let name = meta.str("general.architecture").unwrap_or("");
        match arch::by_gguf(name, false) {
            Some(arch) => Ok(arch),
            None => self.fail("general.architecture", format!("is {name:?}; known are {}", arch::known())),
        }
    }

    fn gguf(&self, source: &Source, meta: &Metadata) -> Result<Vec<Target>> {
        let unknown = |k: &&str| k.starts_with("adapter.") && !UNDERSTOOD_GGUF.contains(k);
        if let Some(key) = meta.iter().map(|(k, _)| k).find(unknown) {
            return self.fail(key, "is not understood; the adapter would not work as intended");
        }
        let alpha = match meta.get("adapter.lora.alpha") {
            None => 0.0,
            Some(_) => match meta.f32("adapter.lora.alpha") {
                Some(alpha) if alpha.is_finite() => alpha,
                _ => return self.fail("adapter.lora.alpha", "is not a number"),
            },
        };
        let mut pairs = Pairs::new();
        for t in source.tensors() {
            let found = [".lora_a", ".lora_b"].iter().position(|s| t.name.ends_with(s));
            let Some(side) = found else {
                return self.fail(&t.name, "is not understood: only NAME.lora_a and NAME.lora_b are");
            };
            let name = t.name[..t.name.len() - ".lora_a".len()].to_string();
            if name == "token_embd.weight" {
                return self.embedding(&t.name);
            }
            pairs.entry(name).or_default()[side] = Some(t.clone());
        }
        // As llama.cpp has it, an alpha of 0 (or none) leaves the product as it is.
        self.targets(pairs, |_, rank| Ok(if alpha == 0.0 { 1.0 } else { alpha / rank as f32 }))
    }

    fn peft(&self, source: &Source, config: &Value) -> Result<Vec<Target>> {
        let config = PeftConfig::new(self, config)?;
        let mut pairs = Pairs::new();
        for t in source.tensors() {
            let Some((module, side)) = peft_name(&t.name) else {
                if t.name.contains("lora_embedding_") {
                    return self.embedding(&t.name);
                }
                if t.name.ends_with(".base_layer.weight") {
                    let why = "is a matrix of the base model, saved whole; save the adapter with \
                               save_embedding_layers=False";
                    return self.fail(&t.name, why);
                }
                return self.fail(
                    &t.name,
                    "is not understood: only base_model.model.MODULE.lora_A.weight and lora_B.weight are; \
                     train without trained biases, saved modules and magnitudes",
                );
            };
            if pairs.entry(module.to_string()).or_default()[side].replace(t.clone()).is_some() {
                return self.fail(&t.name, "is there twice, under two adapter names; save one of them");
            }
        }
        self.targets(pairs, |module, rank| config.scale(self, module, rank))
    }

    fn embedding<T>(&self, name: &str) -> Result<T> {
        self.fail(name, "changes the embedding of tokens, which is not supported; train without embed_tokens")
    }

    fn targets(&self, pairs: Pairs, scale: impl Fn(&str, usize) -> Result<f32>) -> Result<Vec<Target>> {
        let target = |(name, pair): (String, [Option<Tensor>; 2])| {
            let [Some(a), Some(b)] = pair else {
                return self
                    .fail(name, "has only one of A and B; the file is incomplete, save the adapter again");
            };
            let ([rank, _], [_, columns]) = (&a.shape[..], &b.shape[..]) else {
                return self.fail(
                    name,
                    format!("A has shape {:?} and B {:?}, not two dimensions", a.shape, b.shape),
                );
            };
            if rank != columns {
                return self
                    .fail(name, format!("A has {rank} rows and B {columns} columns; both are the rank"));
            }
            if *rank == 0 || *rank > RANK_MAX {
                return self.fail(name, format!("has rank {rank}; 1..={RANK_MAX} is supported"));
            }
            let (rank, scale) = (*rank, scale(&name, *rank)?);
            if !scale.is_finite() {
                return self.fail(name, format!("is scaled by {scale}"));
            }
            Ok(Target { name, rank, scale, a, b })
        };
        pairs.into_iter().map(target).collect()
    }
}

/// The module of a PEFT tensor, and 0 for A or 1 for B. Old files have the adapter's name before `weight`.
fn peft_name(name: &str) -> Option<(&str, usize)> {
    let rest = name.strip_prefix("base_model.model.")?.strip_suffix(".weight")?;
    [".lora_A", ".lora_B"].iter().enumerate().find_map(|(side, mark)| {
        let (module, after) = rest.rsplit_once(mark)?;
        let adapter = after.strip_prefix('.').is_some_and(|a| !a.is_empty() && !a.contains('.'));
        (after.is_empty() || adapter).then_some((module, side))
    })
}

/// What of `adapter_config.json` decides the result.
struct PeftConfig {
    r: usize,
    alpha: f64,
    rslora: bool,
    /// By pattern.
    ranks: Vec<(String, usize)>,
    alphas: Vec<(String, f64)>,
}

impl PeftConfig {
    fn new(reader: &Reader, config: &Value) -> Result<PeftConfig> {
        let Some(entries) = config.as_object() else {
            return reader.fail("adapter_config.json", "is not an object");
        };
        match &config["peft_type"] {
            Value::String(kind) if kind == "LORA" => {}
            kind => return reader.fail("peft_type", format!("is {kind}; only \"LORA\" is supported")),
        }
        let neutral = |v: &Value| match v {
            Value::Null | Value::Bool(false) => true,
            Value::String(s) => s.is_empty(),
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.is_empty(),
            Value::Bool(true) | Value::Number(_) => false,
        };
        if let Some((key, value)) =
            entries.iter().find(|(k, v)| !UNDERSTOOD.contains(&k.as_str()) && !neutral(v))
        {
            let value: String = value.to_string().chars().take(80).collect();
            return reader.fail(
                key,
                format!("is {value}, which is not supported; the adapter would not work as intended"),
            );
        }
        if !matches!(&config["bias"], Value::Null) && config["bias"] != "none" {
            return reader.fail("bias", format!("is {}; only \"none\" is supported", config["bias"]));
        }
        // These initialisations change the base weights too, so A and B alone are not the whole change.
        let init = config["init_lora_weights"].as_str().unwrap_or("");
        if !["", "gaussian", "eva", "orthogonal"].contains(&init) {
            let why = format!(
                "is {init:?}, which moves part of the base weights into the adapter; save it with \
                 path_initial_model_for_weight_conversion, which makes it an ordinary one"
            );
            return reader.fail("init_lora_weights", why);
        }
        let r = config["r"].as_u64().filter(|r| (1..=RANK_MAX as u64).contains(r));
        let Some(r) = r else {
            return reader.fail("r", format!("is {}; a rank in 1..={RANK_MAX} is needed", config["r"]));
        };
        let Some(alpha) = config["lora_alpha"].as_f64().filter(|a| a.is_finite()) else {
            return reader.fail("lora_alpha", format!("is {}; a number is needed", config["lora_alpha"]));
        };
        let rslora = match &config["use_rslora"] {
            Value::Null => false,
            Value::Bool(b) => *b,
            other => return reader.fail("use_rslora", format!("is {other}; true or false is needed")),
        };
        let ranks = patterns(reader, config, "rank_pattern", |v| {
            v.as_u64().and_then(|r| usize::try_from(r).ok()).filter(|r| (1..=RANK_MAX).contains(r))
        })?;
        let alphas = patterns(reader, config, "alpha_pattern", |v| v.as_f64().filter(|a| a.is_finite()))?;
        Ok(PeftConfig { r: r as usize, alpha, rslora, ranks, alphas })
    }

    fn scale(&self, reader: &Reader, module: &str, rank: usize) -> Result<f32> {
        let r = self.ranks.iter().find(|(p, _)| matches(p, module)).map_or(self.r, |(_, r)| *r);
        if r != rank {
            return reader.fail(
                module,
                format!(
                    "has rank {rank}, but adapter_config.json says {r}; the two files do not belong together"
                ),
            );
        }
        let alpha = self.alphas.iter().find(|(p, _)| matches(p, module)).map_or(self.alpha, |(_, a)| *a);
        Ok((alpha / if self.rslora { (rank as f64).sqrt() } else { rank as f64 }) as f32)
    }
}

/// A table of patterns. PEFT matches them as regular expressions; what people write are names, so others are refused.
fn patterns<T>(
    reader: &Reader,
    config: &Value,
    key: &str,
    value: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(String, T)>> {
    let entries = match &config[key] {
        Value::Null => return Ok(Vec::new()),
        Value::Object(o) => o,
        other => return reader.fail(key, format!("is {other}; an object is needed")),
    };
    let entry = |(pattern, v): (&String, &Value)| {
        let plain = pattern.replace("\\.", ".");
        let name = plain.strip_prefix('^').unwrap_or(&plain);
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
            return reader
                .fail(key, format!("has the pattern {pattern:?}; only names of modules are supported"));
        }
        match value(v) {
            Some(v) => Ok((plain, v)),
            None => reader.fail(key, format!("has {v} for {pattern:?}, which is no such number")),
        }
    };
    entries.iter().map(entry).collect()
}

/// Whether a pattern names a module: its end, at a dot, or all of it behind `^`.
fn matches(pattern: &str, module: &str) -> bool {
    match pattern.strip_prefix('^') {
        Some(whole) => whole == module,
        None => module.strip_suffix(pattern).is_some_and(|before| before.is_empty() || before.ends_with('.')),
    }
}

impl Lora {
    /// Smallest and largest rank.
    pub fn ranks(&self) -> (usize, usize) {
        let ranks = || self.targets.iter().map(|t| t.rank);
        (ranks().min().unwrap_or(0), ranks().max().unwrap_or(0))
    }

    /// Numbers in A and B.
    pub fn parameters(&self) -> usize {
        self.targets.iter().map(|t| t.a.len() + t.b.len()).sum()
    }

    /// Fits the adapter to a Program of a model, its scale multiplied by `factor`.
    pub fn parts(&self, spec: &ModelSpec, program: &Program, factor: f32) -> Result<Vec<AdapterPart>> {
        let reader = Reader { file: &self.file };
        if !factor.is_finite() {
            return reader.fail("scale", format!("is {factor}; a number is needed"));
        }
        if let Some(arch) = self.arch.filter(|a| !alike(a, spec.arch)) {
            let why = format!(
                "is {:?}, but the model is {:?}; use it with the model that it was trained on",
                arch.gguf, spec.arch.gguf
            );
            return reader.fail("general.architecture", why);
        }
        let places = product_parts(program);
        self.targets.iter().map(|t| self.part(t, spec, program, &places, factor)).collect()
    }

    fn part(
        &self,
        t: &Target,
        spec: &ModelSpec,
        program: &Program,
        places: &BTreeMap<&str, (WeightId, usize)>,
        factor: f32,
    ) -> Result<AdapterPart> {
        let reader = Reader { file: &self.file };
        let canonical = match self.arch {
            Some(_) => Some(t.name.clone()),
            None => names::canonical(spec.arch, &format!("{}.weight", t.name)),
        };
        // A tied head is a product with the embedding table; the table itself stays as it is.
        let canonical =
            canonical.map(|c| if c == "output.weight" && spec.tied { "token_embd.weight".into() } else { c });
        let Some((weight, part)) = canonical.as_deref().and_then(|c| places.get(c)).copied() else {
            return reader.fail(
                &t.name,
                "is no matrix of this model; use the adapter with the model that it was trained on",
            );
        };
        let decl = &program.weights[weight.0 as usize];
        let (rows, cols) = (decl.parts[part].rows as usize, decl.cols as usize);
        if t.a.shape != [t.rank, cols] || t.b.shape != [rows, t.rank] {
            return reader.fail(
                &t.name,
                format!(
                    "A has shape {:?} and B {:?}, the model's matrix is {rows} x {cols}; use the adapter with the \
                     model that it was trained on",
                    t.a.shape, t.b.shape
                ),
            );
        }
        let (a, mut b) = (self.values(&t.name, &t.a)?, self.values(&t.name, &t.b)?);
        let head = ["attn_q.weight", "attn_k.weight"].iter().any(|n| decl.parts[part].name.ends_with(n));
        if head {
            let from = self.arch.map_or(RopeStyle::Neox, |a| a.gguf_rope);
            let to = spec.ropes.first().map_or(from, |t| t.style);
            b = reorder(b, spec.head_dim as usize, t.rank, from, to);
        }
        Ok(AdapterPart { weight, part, a, b, scale: t.scale * factor })
    }

    fn values(&self, name: &str, tensor: &Tensor) -> Result<Vec<f32>> {
        let mut values = vec![0.0; tensor.len()];
        quarrel_formats::dequantize(tensor.dtype, &tensor.data, &mut values)?;
        match values.iter().find(|v| !v.is_finite()) {
            None => Ok(values),
            Some(v) => Reader { file: &self.file }
                .fail(name, format!("has the value {v}; the training that made it has failed")),
        }
    }
}

/// Whether two families have the same names and order of heads in GGUF, so that an adapter of one is one of the other.
fn alike(a: &Arch, b: &Arch) -> bool {
    a.names == b.names && a.gguf_rope == b.gguf_rope && a.qk_norm == b.qk_norm
}

/// Where each tensor that a product multiplies is.
fn product_parts(program: &Program) -> BTreeMap<&str, (WeightId, usize)> {
    let weights = program.ops.iter().filter_map(|n| match n.op {
        Op::MatMul { weight, .. } => Some(weight),
        _ => None,
    });
    let parts = |w: WeightId| {
        let parts = program.weights[w.0 as usize].parts.iter().enumerate();
        parts.map(move |(i, p)| (p.name.as_str(), (w, i)))
    };
    weights.flat_map(parts).collect()
}

/// Rows of B in the order of the model's heads. Pair `i` of a rotated head is columns `i` and `i + half` in one order, `2 i`
/// and `2 i + 1` in the other.
fn reorder(b: Vec<f32>, head: usize, rank: usize, from: RopeStyle, to: RopeStyle) -> Vec<f32> {
    if from == to {
        return b;
    }
    let mut out = vec![0.0; b.len()];
    let half = head / 2;
    for (b, out) in b.chunks_exact(head * rank).zip(out.chunks_exact_mut(head * rank)) {
        for row in 0..head {
            let (halves, pairs) = (row, row % half * 2 + row / half);
            let (from, to) = if to == RopeStyle::Interleaved { (halves, pairs) } else { (pairs, halves) };
            out[to * rank..][..rank].copy_from_slice(&b[from * rank..][..rank]);
        }
    }
    out
}
