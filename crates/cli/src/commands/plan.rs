//! `quarrel plan`: how much memory a model will take, part by part, from its file's header.

use anyhow::Result;
use quarrel_bench::text::thousands;
use quarrel_hub::human_bytes;
use quarrel_runtime::devices::Chosen;
use quarrel_runtime::memory::{self, Planner, Use};
use quarrel_runtime::process;
use serde_json::{Map, json};

use crate::args::{DRAFT_MAX, Plan};
use crate::render::Out;
use crate::session::{self, TALK};

pub(crate) fn run(mut args: Plan) -> Result<()> {
    args.model = args.model.or_named(args.target.take());
    let bare = process::rss_bytes().unwrap_or(0) as usize;
    let opened = session::open(&args.model)?;
    let options = args.engine.options();
    let planner = Planner::new(&opened, &options)?;
    let batch = args.batch as usize;
    // As `run` and `chat` guess if nothing else is said.
    let usage = Use { batch, outputs: batch, guesses: DRAFT_MAX.into(), ..Use::ONE };
    let sizes = memory::sizes(&opened, &planner, &options, usage, TALK)?;
    let (context, running) = (sizes.config.context, sizes.config.max_running);
    let parts = planner.parts(&sizes.config, sizes.kv)?;
    let mut parts: Vec<_> = parts.iter().map(|p| (p.id, p.name, p.bytes)).collect();
    if planner.chosen == Chosen::Cpu {
        let tokenizer = planner.program_bytes.saturating_sub(bare + memory::PROGRAM_LATER);
        parts.push(("tokenizer", "tokenizer and file header", tokenizer));
        parts.push(("program", "program", planner.program_bytes - tokenizer));
    }
    let total: usize = parts.iter().map(|p| p.2).sum();
    let mut out = Out::new();
    if args.json {
        let bytes: Map<_, _> = parts.iter().map(|p| (p.0.to_owned(), p.2.into())).collect();
        return out.json(&json!({
            "model": opened.local.name,
            "context": context,
            "batch": running,
            "kv": sizes.kv.name(),
            "step_tokens": sizes.config.step_tokens,
            "bytes": bytes,
            "total_bytes": total,
        }));
    }
    out.line(&format!(
        "{}: {running} x {context} tokens of context in {}, steps of {} tokens",
        opened.local.name,
        sizes.kv.name(),
        sizes.config.step_tokens
    ))?;
    let mut rows = vec![["PART", "BYTES", ""].map(String::from).to_vec()];
    let row =
        |name: &str, bytes: usize| vec![name.into(), thousands(bytes as u64), human_bytes(bytes as u64)];
    rows.extend(parts.iter().filter(|p| p.2 > 0).map(|p| row(p.1, p.2)));
    rows.push(row("total", total));
    Ok(out.table(&rows, &[1, 2])?)
}
