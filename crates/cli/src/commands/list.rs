//! `quarrel list`: what is here, or what the catalog can bring.

use anyhow::Result;
use quarrel_hub::{Hub, human_bytes};
use serde_json::json;

use crate::args::List;
use crate::render::{self, Out};

pub(crate) fn run(args: List) -> Result<()> {
    let hub = Hub::from_env()?;
    if args.catalog { catalog(&hub, args.json) } else { here(&hub, args.json) }
}

fn here(hub: &Hub, as_json: bool) -> Result<()> {
    let entries = hub.list()?;
    let mut out = Out::new();
    if as_json {
        let models: Vec<_> = entries
            .iter()
            .map(|e| {
                json!({
                    "name": e.name,
                    "store": e.store.to_string(),
                    "size": e.size,
                    "precision": e.precision,
                    "digest": e.digest.map(|d| d.to_string()),
                    "source": e.source,
                    "path": e.path,
                })
            })
            .collect();
        return out.json(&json!({ "models": models }));
    }
    if entries.is_empty() {
        render::note(format!("no models here yet; `quarrel pull` fetches {}", hub.default_model()));
        return Ok(());
    }
    let mut rows = vec![["NAME", "SIZE", "PRECISION", "STORE"].map(String::from).to_vec()];
    rows.extend(entries.into_iter().map(|e| {
        vec![e.name, human_bytes(e.size), e.precision.unwrap_or_else(|| "-".into()), e.store.to_string()]
    }));
    Ok(out.table(&rows, &[1])?)
}

fn catalog(hub: &Hub, as_json: bool) -> Result<()> {
    let models = &hub.config().catalog.models;
    let all = models.iter().flat_map(|m| m.variants.iter().map(move |v| (m, v)));
    let mut out = Out::new();
    if as_json {
        let models: Vec<_> = all
            .map(|(m, v)| {
                json!({
                    "name": format!("{}:{}", m.name, v.tag()),
                    "tags": v.tags,
                    "about": v.about.as_ref().unwrap_or(&m.about),
                    "licence": m.licence,
                    "precision": v.precision,
                    "size": v.size,
                    "sources": v.sources.iter().map(ToString::to_string).collect::<Vec<_>>(),
                })
            })
            .collect();
        return out.json(&json!({ "default": hub.default_model(), "models": models }));
    }
    let mut rows = vec![["NAME", "ALSO", "PRECISION", "SIZE", "LICENCE"].map(String::from).to_vec()];
    rows.extend(all.map(|(m, v)| {
        let also = v.tags[1..].join(", ");
        let size = v.size.map_or_else(|| "-".into(), human_bytes);
        vec![format!("{}:{}", m.name, v.tag()), also, v.precision.clone(), size, m.licence.clone()]
    }));
    Ok(out.table(&rows, &[3])?)
}
