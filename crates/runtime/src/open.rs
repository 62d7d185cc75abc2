//! A model on disk: its header, tokenizer and chat template, before its weights are read.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use quarrel_formats::{Array, Source, Value as MetaValue};
use quarrel_hub::LocalModel;
use quarrel_text::{ChatTemplate, DefaultTemplate, Tokenizer};
use serde_json::Value;

use crate::{ModelParams, Talk, file};

/// A model on disk with what is needed to talk to it.
pub struct Opened {
    /// Where it came from.
    pub local: LocalModel,
    /// Its tensors.
    pub source: Source,
    /// From text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// How it wants conversations; `None` for a model that only goes on with text.
    pub template: Option<ChatTemplate>,
    /// How it wants to be sampled.
    pub params: ModelParams,
}

impl Opened {
    /// Opens a model that is here.
    pub fn new(local: LocalModel, talk: Talk) -> Result<Opened> {
        let mut source = open_source(&local.path)?;
        if source.tensors().len() == 0 {
            bail!("{} is a vocabulary without weights; it can tokenize, not answer", local.name);
        }
        let mut tokenizer = tokenizer_of(&source)?;
        if quarrel_model::reads_source(&source) {
            tokenizer.end_prompts();
        }
        let tokenizer = Arc::new(tokenizer);
        let mut template = template_of(&source)?;
        let params = ModelParams::read(&local, &source)?;
        if template.is_none() && local.template.is_some() {
            (talk.note)(
                "the model's template is in Ollama's language (Go), which is not read; its file has none of its own",
            );
        }
        if template.is_none()
            && let Some(family) = family_template(&local, &source, &tokenizer)
        {
            (talk.note)(&format!(
                "the file has no chat template; that of {} is taken, by its tokens",
                family.name
            ));
            template = Some(family.template()?);
        }
        // Most of a header: the tokenizer has these in a form of its own.
        if let Source::Gguf(gguf) = &mut source {
            for key in ["tokens", "merges", "scores", "token_type"].map(|k| format!("tokenizer.ggml.{k}")) {
                if gguf.metadata.contains(&key) {
                    gguf.metadata.insert(key, MetaValue::Array(Array::U8(Vec::new())));
                }
            }
        }
        quarrel_cpu::trim_heap();
        Ok(Opened { local, source, tokenizer, template, params })
    }
}

/// The template of the family of an instruction model, for one that has none of its own.
pub(crate) fn family_template(
    local: &LocalModel,
    source: &Source,
    tokenizer: &Tokenizer,
) -> Option<&'static DefaultTemplate> {
    DefaultTemplate::of(tokenizer).filter(|_| is_instructed(local, source))
}

/// Whether a name says that a model was trained to converse. The tokens of turns do not: base models have them too.
fn is_instructed(local: &LocalModel, source: &Source) -> bool {
    let fields = ["general.name", "general.basename", "general.finetune"];
    let fields = fields.iter().filter_map(|k| source.metadata()?.str(k));
    let words = |name: &str| {
        let name = name.to_ascii_lowercase();
        let mut words = name.split(|c: char| !c.is_ascii_alphanumeric());
        words.any(|w| ["instruct", "chat", "it", "sft", "dpo"].contains(&w))
    };
    let file = local.path.file_stem().and_then(|n| n.to_str());
    let name = local.name.rsplit('/').next();
    fields.chain(file).chain(name).any(words)
}

/// Opens a model file.
pub fn open_source(path: &Path) -> Result<Source> {
    Ok(Source::open(path)?)
}

/// The tokenizer of whatever a path holds: a `tokenizer.json`, a GGUF (a vocabulary is enough), a checkpoint.
pub fn tokenizer_at(path: &Path) -> Result<Tokenizer> {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
        return json_tokenizer(path);
    }
    tokenizer_of(&open_source(path)?)
}

/// The tokenizer of an opened model.
pub fn tokenizer_of(source: &Source) -> Result<Tokenizer> {
    match source {
        Source::Gguf(gguf) => {
            Tokenizer::from_gguf(&gguf.metadata).with_context(|| format!("{}", gguf.paths[0].display()))
        }
        Source::Hf(hf) => {
            let mut tokenizer = json_tokenizer(&hf.dir.join("tokenizer.json"))?;
            tokenizer.add_end_of_generation(&generation_ends(&hf.dir)?)?;
            Ok(tokenizer)
        }
    }
}

fn json_tokenizer(path: &Path) -> Result<Tokenizer> {
    let config = path.with_file_name("tokenizer_config.json");
    let config = if config.exists() { Some(file::bytes(&config)?) } else { None };
    Tokenizer::from_json(&file::bytes(path)?, config.as_deref())
        .with_context(|| format!("{}", path.display()))
}

/// The ids that `generation_config.json` lists as ends of an answer.
fn generation_ends(dir: &Path) -> Result<Vec<u32>> {
    let path = dir.join("generation_config.json");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let config = file::json(&path)?;
    let ends = match &config["eos_token_id"] {
        Value::Array(ids) => ids.iter().filter_map(Value::as_u64).collect(),
        one => Vec::from_iter(one.as_u64()),
    };
    Ok(ends.into_iter().filter_map(|id| u32::try_from(id).ok()).collect())
}

/// The template that came with a model, if one did.
pub fn template_of(source: &Source) -> Result<Option<ChatTemplate>> {
    match source {
        Source::Gguf(gguf) => Ok(ChatTemplate::from_gguf(&gguf.metadata)?),
        Source::Hf(hf) => template_in(&hf.dir),
    }
}

/// A checkpoint keeps it in a file of its own or in `tokenizer_config.json`.
fn template_in(dir: &Path) -> Result<Option<ChatTemplate>> {
    let alone = dir.join("chat_template.jinja");
    if alone.exists() {
        let text = String::from_utf8(file::bytes(&alone)?)
            .with_context(|| format!("{} is not UTF-8", alone.display()))?;
        return Ok(Some(ChatTemplate::new(&text)?));
    }
    let config = dir.join("tokenizer_config.json");
    if !config.exists() {
        return Ok(None);
    }
    match file::json(&config)?.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(value) => Ok(Some(ChatTemplate::from_config(value)?)),
    }
}
