//! `quarrel pull MODEL...`.

use anyhow::Result;
use quarrel_hub::{Hub, LocalModel, human_bytes};
use serde_json::{Value, json};

use crate::args::Pull;
use crate::models;
use crate::render::Out;

pub(crate) fn run(args: Pull) -> Result<()> {
    let hub = Hub::from_env()?;
    let names = if args.models.is_empty() { vec![hub.default_model().to_owned()] } else { args.models };
    let mut out = Out::new();
    let mut pulled = Vec::new();
    for name in &names {
        let local = models::fetch(&hub, name, args.fetch, args.refresh)?;
        if args.json {
            pulled.push(entry(&local));
        } else {
            out.line(&format!("{}  {}  {}", local.name, human_bytes(local.size), local.path.display()))?;
        }
    }
    if args.json { out.json(&json!({ "models": pulled })) } else { Ok(()) }
}

fn entry(m: &LocalModel) -> Value {
    json!({
        "name": m.name,
        "path": m.path,
        "size": m.size,
        "digest": m.digest.map(|d| d.to_string()),
        "source": m.source,
        "precision": m.precision,
        "substitute_for": m.substitute_for,
    })
}
