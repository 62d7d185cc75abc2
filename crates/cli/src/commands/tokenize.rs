//! `quarrel tokenize`: text to ids, exactly.

use anyhow::Result;
use quarrel_text::{Ends, Special};
use serde_json::json;

use crate::args::Tokenize;
use crate::render::Out;
use crate::{input, models};

pub(crate) fn run(args: Tokenize) -> Result<()> {
    let text = input::exact(args.text, args.file.as_deref(), "text")?;
    let tokenizer = quarrel_runtime::tokenizer_at(&models::resolve(&args.model)?.path)?;
    let (special, ends) = match args.no_special {
        true => (Special::Plain, Ends::None),
        false => (Special::Parse, Ends::Model),
    };
    let ids = tokenizer.encode(&text, special, ends)?;
    let mut out = Out::new();
    if args.json {
        return out.json(&json!({ "ids": ids }));
    }
    if args.pieces {
        let mut rows = Vec::with_capacity(ids.len());
        for id in ids {
            let bytes = tokenizer.token_bytes(id)?;
            let piece = match str::from_utf8(bytes) {
                Ok(text) => format!("{text:?}"),
                Err(_) => bytes.iter().map(|b| format!("\\x{b:02x}")).collect(),
            };
            rows.push(vec![id.to_string(), piece]);
        }
        return Ok(out.table(&rows, &[0])?);
    }
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    Ok(out.line(&ids.join(" "))?)
}
