//! `quarrel rm MODEL...`.

use anyhow::Result;
use quarrel_hub::{Hub, human_bytes};
use serde_json::json;

use crate::args::Rm;
use crate::render::Out;

pub(crate) fn run(args: Rm) -> Result<()> {
    let hub = Hub::from_env()?;
    let mut out = Out::new();
    let (mut names, mut bytes) = (Vec::new(), 0);
    for name in &args.models {
        let removed = hub.remove(name)?;
        if !args.json {
            let kept = match removed.kept {
                0 => String::new(),
                n => format!(", {n} files stay for other models"),
            };
            out.line(&format!(
                "removed {}  {} freed{kept}",
                removed.names.join(", "),
                human_bytes(removed.bytes)
            ))?;
        }
        bytes += removed.bytes;
        names.extend(removed.names);
    }
    if args.json { out.json(&json!({ "removed": names, "freed_bytes": bytes })) } else { Ok(()) }
}
