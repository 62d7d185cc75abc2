//! `quarrel show MODEL`: what is known of a model on this machine, without looking at every tensor.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use quarrel_formats::Source;
use quarrel_hub::{CatalogInfo, Hub, LocalModel, human_bytes};
use serde_json::{Value, json};

use crate::args::Show;
use crate::render::{self, Out, Transfers, human_count};

pub(crate) fn run(args: Show) -> Result<()> {
    let hub = Hub::from_env()?;
    let name = args.model.as_deref().unwrap_or(hub.default_model());
    let mut out = Out::new();
    let info = hub.show(name)?;
    let Some(local) = info.here else {
        let Some(known) = info.catalog else { bail!("{name} is not on this machine") };
        if args.verify {
            bail!("{} is not on this machine; quarrel pull {} fetches it", known.name, known.name);
        }
        return if args.json {
            out.json(&catalog_json(&known))
        } else {
            Ok(out.table(&catalog_rows(&known), &[])?)
        };
    };
    if args.verify {
        hub.verify(name, &mut Transfers::default())?;
        render::note("every file has the digest that it should have");
    }
    let source = quarrel_runtime::open_source(&local.path)?;
    let facts = Facts::of(&source);
    if args.json { out.json(&facts.json(&local)) } else { Ok(out.table(&facts.rows(&local), &[])?) }
}

/// What the catalog says of a model that is not here.
fn catalog_rows(known: &CatalogInfo) -> Vec<Vec<String>> {
    let v = &known.variant;
    let sources: Vec<_> = v.sources.iter().map(ToString::to_string).collect();
    [
        ("name", known.name.clone()),
        ("about", v.about.as_ref().unwrap_or(&known.about).clone()),
        ("precision", v.precision.clone()),
        ("size", v.size.map_or_else(|| "-".into(), human_bytes)),
        ("licence", known.licence.clone()),
        ("sources", sources.join(", ")),
        ("here", format!("no; quarrel pull {} fetches it", known.name)),
    ]
    .map(|(what, value)| vec![what.to_owned(), value])
    .to_vec()
}

fn catalog_json(known: &CatalogInfo) -> Value {
    let v = &known.variant;
    json!({
        "name": known.name,
        "here": false,
        "about": v.about.as_ref().unwrap_or(&known.about),
        "precision": v.precision,
        "size": v.size,
        "licence": known.licence,
        "sources": v.sources.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// What the file says of itself.
pub(super) struct Facts {
    format: &'static str,
    architecture: Option<String>,
    title: Option<String>,
    parameters: u64,
    context: Option<u64>,
    /// Tensor type -> its bytes, most first.
    types: Vec<(String, u64)>,
    licence: Option<String>,
    template: bool,
}

impl Facts {
    pub(super) fn of(source: &Source) -> Facts {
        let mut types = BTreeMap::<String, u64>::new();
        for t in source.tensors() {
            *types.entry(t.dtype.to_string()).or_default() += t.data.len() as u64;
        }
        let mut types: Vec<_> = types.into_iter().collect();
        types.sort_by_key(|t| std::cmp::Reverse(t.1));
        let text = |key: &str| source.metadata().and_then(|m| m.str(key)).map(str::to_owned);
        let config = |key: &str| source.config().map(|c| &c[key]);
        let architecture = text("general.architecture")
            .or_else(|| config("architectures").and_then(|a| a[0].as_str()).map(str::to_owned));
        let context = match (source.metadata(), &architecture) {
            (Some(m), Some(arch)) => m.u64(&format!("{arch}.context_length")),
            _ => config("max_position_embeddings").and_then(Value::as_u64),
        };
        Facts {
            format: if source.metadata().is_some() { "GGUF" } else { "safetensors" },
            title: text("general.name"),
            parameters: source.tensors().map(|t| t.len() as u64).sum(),
            context,
            types,
            licence: text("general.license"),
            template: text("tokenizer.chat_template").is_some(),
            architecture,
        }
    }

    fn types_line(&self) -> String {
        let all: u64 = self.types.iter().map(|t| t.1).sum();
        let share = |bytes: u64| 100.0 * bytes as f64 / all.max(1) as f64;
        let parts: Vec<_> = self.types.iter().map(|(name, b)| format!("{name} {:.1}%", share(*b))).collect();
        parts.join(", ")
    }

    /// Two columns: what, and its value.
    fn rows(&self, local: &LocalModel) -> Vec<Vec<String>> {
        let template = match (self.template, &local.template) {
            (true, _) => "in the file".into(),
            (false, Some(_)) => "Ollama's, in Go's template language".into(),
            (false, None) => "none".into(),
        };
        let mut rows: Vec<(&str, Option<String>)> = vec![
            ("name", Some(local.name.clone())),
            ("title", self.title.clone()),
            ("path", Some(local.path.display().to_string())),
            ("store", Some(local.store.to_string())),
            ("source", Some(local.source.clone()).filter(|s| *s != local.path.display().to_string())),
            ("digest", local.digest.map(|d| d.to_string())),
            ("size", Some(human_bytes(local.size))),
            ("format", Some(self.format.into())),
            ("architecture", self.architecture.clone()),
            ("parameters", Some(human_count(self.parameters))),
            ("tensor types", Some(self.types_line())),
            ("context", self.context.map(|c| format!("{c} tokens"))),
            ("licence", local.licence.clone().or_else(|| self.licence.clone())),
            ("chat template", Some(template)),
            ("system prompt", local.system.clone()),
        ];
        let params: Vec<_> = local.params.iter().flatten().map(|(k, v)| format!("{k} {v}")).collect();
        rows.push(("parameters set", Some(params.join(", ")).filter(|p| !p.is_empty())));
        rows.into_iter()
            .filter_map(|(what, value)| Some(vec![what.into(), value?.replace('\n', "\\n")]))
            .collect()
    }

    fn json(&self, local: &LocalModel) -> Value {
        json!({
            "name": local.name,
            "here": true,
            "title": self.title,
            "path": local.path,
            "store": local.store.to_string(),
            "source": local.source,
            "digest": local.digest.map(|d| d.to_string()),
            "size": local.size,
            "format": self.format,
            "architecture": self.architecture,
            "parameters": self.parameters,
            "tensor_bytes": self.types.iter().cloned().map(|(k, v)| (k, Value::from(v))).collect::<serde_json::Map<_, _>>(),
            "context": self.context,
            "licence": local.licence.as_ref().or(self.licence.as_ref()),
            "chat_template": self.template,
            "system": local.system,
            "params": local.params,
        })
    }
}
