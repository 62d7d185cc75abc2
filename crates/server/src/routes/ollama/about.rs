//! What Ollama's API tells of models: `GET /api/tags`, `/api/ps`, `/api/version` and `POST /api/show`.

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use quarrel_formats::{Source, Value as MetaValue};
use quarrel_text::ToolFormat;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::app::App;
use crate::body;
use crate::dialect::OllamaError;
use crate::error::ApiError;
use crate::models::{Live, Standing};
use crate::prompt::blocking;
use crate::store;

/// A count with the unit that its size wants.
fn short(n: u64) -> String {
    match n {
        0..1_000_000 => format!("{:.1}K", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1}M", n as f64 / 1e6),
        _ => format!("{:.1}B", n as f64 / 1e9),
    }
}

fn parameters(live: &Live) -> u64 {
    live.opened.source.tensors().map(|t| t.len() as u64).sum()
}

fn details(live: &Live) -> Value {
    let source = &live.opened.source;
    let family = live.running.spec.arch.gguf;
    let mut types = BTreeMap::<String, usize>::new();
    for t in source.tensors() {
        *types.entry(t.dtype.to_string()).or_default() += t.data.len();
    }
    let most = types.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(name, _)| name);
    let format = if source.metadata().is_some() { "gguf" } else { "safetensors" };
    json!({
        "parent_model": "", "format": format, "family": family, "families": [family],
        "parameter_size": short(parameters(live)),
        "quantization_level": live.opened.local.precision.clone().or(most),
    })
}

/// When the model's file was written.
fn modified(live: &Live) -> Option<String> {
    let written = std::fs::metadata(&live.opened.local.path).ok()?.modified().ok()?;
    let ms = written.duration_since(UNIX_EPOCH).ok()?.as_millis();
    Some(quarrel_store::iso(i64::try_from(ms).ok()?))
}

/// What lists say of a model; little while it is not loaded.
fn entry(standing: &Standing) -> Value {
    let mut entry =
        json!({ "name": standing.id, "model": standing.id, "size": 0, "digest": "", "details": {} });
    if let Some(live) = standing.live.as_deref() {
        let local = &live.opened.local;
        entry["size"] = local.size.into();
        let digest = local.digest.map(|d| d.to_string()).unwrap_or_default();
        entry["digest"] = digest.strip_prefix("sha256:").unwrap_or(&digest).into();
        entry["details"] = details(live);
        if let Some(modified) = modified(live) {
            entry["modified_at"] = modified.into();
        }
    }
    entry
}

/// The models that are served, by Ollama's API.
#[utoipa::path(get, path = "/api/tags", tag = "Ollama", responses((status = 200, body = Object)))]
pub(crate) async fn tags(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let list = app.models.list();
    blocking(move || Ok(Json(json!({ "models": list.iter().map(entry).collect::<Vec<_>>() })))).await
}

/// The models in memory, by Ollama's API.
#[utoipa::path(get, path = "/api/ps", tag = "Ollama", responses((status = 200, body = Object)))]
pub(crate) async fn ps(State(app): State<App>) -> Result<Json<Value>, ApiError> {
    let list = app.models.list();
    let keep = app.models.keep_alive();
    blocking(move || {
        let loaded = list.iter().filter_map(|s| Some((s, s.live.as_deref()?)));
        let entries = loaded.map(|(standing, live)| {
            let info = live.handle().info();
            let mut entry = entry(standing);
            entry["size"] = info.device_bytes.into();
            entry["size_vram"] = 0.into();
            entry["context_length"] = info.context.into();
            if let Some(keep) = keep {
                let left = keep.saturating_sub(live.idle()).as_millis();
                entry["expires_at"] =
                    quarrel_store::iso(store::now().saturating_add(i64::try_from(left).unwrap_or(i64::MAX)))
                        .into();
            }
            entry
        });
        Ok(Json(json!({ "models": entries.collect::<Vec<_>>() })))
    })
    .await
}

/// The server's version.
#[utoipa::path(get, path = "/api/version", tag = "Ollama", responses((status = 200, body = Object)))]
pub(crate) async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

/// A model to tell of.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Show {
    /// Its name.
    model: Option<String>,
    /// ... as older clients say it.
    name: Option<String>,
    /// Give lists of the file's metadata too, which may be long.
    verbose: Option<bool>,
}

/// What is known of a model, by Ollama's API. Loads it if need be.
#[utoipa::path(
    post, path = "/api/show", tag = "Ollama", request_body = Show,
    responses((status = 200, body = Object), (status = "4XX", body = OllamaError))
)]
pub(crate) async fn show(State(app): State<App>, bytes: Bytes) -> Result<Json<Value>, ApiError> {
    let ask: Show = body::parse(&bytes)?;
    let name = ask.model.or(ask.name);
    let lease = app.models.lease(name.as_deref()).await?;
    blocking(move || Ok(Json(facts(&lease, ask.verbose.unwrap_or(false))))).await
}

fn facts(live: &Live, verbose: bool) -> Value {
    let (opened, spec) = (&live.opened, &live.running.spec);
    let local = &opened.local;
    let settings = local.params.iter().flatten().map(|(k, v)| format!("{k} {v}"));
    let generates = live.handle().info().generates;
    let mut capabilities = vec![if generates { "completion" } else { "embedding" }];
    if let Some(style) = live.style {
        if style.format != ToolFormat::Prompted {
            capabilities.push("tools");
        }
        if style.reasoning.is_some() {
            capabilities.push("thinking");
        }
    }
    let mut info = Map::new();
    if let Source::Gguf(gguf) = &opened.source {
        info.extend(gguf.metadata.iter().filter_map(|(k, v)| Some((k.to_owned(), value(v, verbose)?))));
    }
    info.insert("general.architecture".into(), spec.arch.gguf.into());
    info.insert("general.parameter_count".into(), parameters(live).into());
    info.insert(format!("{}.context_length", spec.arch.gguf), spec.context.into());
    info.insert(format!("{}.embedding_length", spec.arch.gguf), spec.dim.into());
    json!({
        "modelfile": "",
        "parameters": settings.collect::<Vec<_>>().join("\n"),
        "template": live.template().map_or("", |t| t.source(false)),
        "system": local.system,
        "license": local.licence,
        "modified_at": modified(live),
        "details": details(live),
        "model_info": info,
        "capabilities": capabilities,
    })
}

/// A value of the file's metadata; lists only if they are wanted.
fn value(value: &MetaValue, verbose: bool) -> Option<Value> {
    match value {
        MetaValue::Bool(b) => Some((*b).into()),
        MetaValue::String(s) => Some(s.as_str().into()),
        MetaValue::F32(f) => Some((*f).into()),
        MetaValue::F64(f) => Some((*f).into()),
        MetaValue::Array(_) if !verbose => None,
        MetaValue::Array(array) => (0..array.len()).map(|i| self::value(&array.get(i)?, true)).collect(),
        number => number.as_int().and_then(|n| i64::try_from(n).ok()).map(Value::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_short() {
        assert_eq!([short(1500), short(134_515_008), short(8_030_261_312)], ["1.5K", "134.5M", "8.0B"]);
    }
}
