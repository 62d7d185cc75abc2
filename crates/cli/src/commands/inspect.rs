//! `quarrel inspect`: what is in a model file, and the program that would run it.

use anyhow::Result;
use quarrel_bench::text::thousands;
use quarrel_formats::{Array, Source, Value};
use quarrel_hub::human_bytes;
use quarrel_model::decoder;
use serde_json::{Map, json};

use crate::args::Inspect;
use crate::render::{Out, human_count};
use crate::{adapter, models};

/// Longest string and array that are printed whole.
const CHARS_SHOWN: usize = 100;
const ELEMENTS_SHOWN: usize = 6;

pub(crate) fn run(mut args: Inspect) -> Result<()> {
    args.model = args.model.or_named(args.target.take());
    let source = match args.model.name().as_deref().and_then(adapter::directory) {
        Some(source) => source?,
        None => quarrel_runtime::open_source(&models::resolve(&args.model)?.path)?,
    };
    let mut out = Out::new();
    if args.program {
        let program = decoder::decoder(&quarrel_model::spec(&source)?, &decoder::Options::default());
        let text = program.to_string();
        return if args.json { out.json(&json!({ "program": text })) } else { Ok(out.text(&text)?) };
    }
    if args.json {
        return out.json(&as_json(&source, &args));
    }
    let (metadata, tensors) = (!args.tensors, !args.metadata);
    if metadata && tensors {
        summary(&source, &mut out)?;
        out.line("")?;
    }
    if metadata {
        out.text(&metadata_lines(&source, args.full))?;
    }
    if metadata && tensors {
        out.line("")?;
    }
    if tensors {
        let mut rows = vec![["TENSOR", "TYPE", "SHAPE", "BYTES"].map(String::from).to_vec()];
        rows.extend(source.tensors().map(|t| {
            let shape = t.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ");
            vec![t.name.clone(), t.dtype.to_string(), shape, thousands(t.data.len() as u64)]
        }));
        out.table(&rows, &[3])?;
    }
    Ok(())
}

fn format(source: &Source) -> &'static str {
    if source.metadata().is_some() { "GGUF" } else { "safetensors" }
}

fn parameters(source: &Source) -> u64 {
    source.tensors().map(|t| t.len() as u64).sum()
}

fn summary(source: &Source, out: &mut Out) -> Result<()> {
    for path in source.paths() {
        out.line(&path.display().to_string())?;
    }
    let keys = source.metadata().map(|m| format!(", {} metadata keys", m.len())).unwrap_or_default();
    out.line(&format!(
        "{}, {}, {} tensors, {} parameters{keys}",
        format(source),
        human_bytes(source.total_bytes()),
        source.tensors().len(),
        human_count(parameters(source))
    ))?;
    if let Some(line) = adapter::describe(source)? {
        out.line(&line)?;
    }
    Ok(())
}

fn metadata_lines(source: &Source, full: bool) -> String {
    match (source.metadata(), source.config()) {
        (Some(meta), _) => meta.iter().map(|(k, v)| format!("{k} = {}\n", value_text(v, full))).collect(),
        (None, Some(config)) => format!("{config:#}\n"),
        (None, None) => String::new(),
    }
}

fn value_text(value: &Value, full: bool) -> String {
    match value {
        Value::String(s) if !full && s.chars().count() > CHARS_SHOWN => {
            let head: String = s.chars().take(CHARS_SHOWN).collect();
            format!("{head:?}... ({} bytes)", s.len())
        }
        Value::Array(a) if !full && a.len() > ELEMENTS_SHOWN => {
            let head: Vec<_> =
                (0..ELEMENTS_SHOWN).filter_map(|i| a.get(i)).map(|v| value_text(&v, false)).collect();
            format!(
                "[{}, ...] ({}, {} elements)",
                head.join(", "),
                value.type_name(),
                thousands(a.len() as u64)
            )
        }
        _ => to_json(value, true).to_string(),
    }
}

/// A value as JSON; a long array as its type and length unless `full`.
fn to_json(value: &Value, full: bool) -> serde_json::Value {
    match value {
        Value::U8(v) => json!(v),
        Value::I8(v) => json!(v),
        Value::U16(v) => json!(v),
        Value::I16(v) => json!(v),
        Value::U32(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::U64(v) => json!(v),
        Value::I64(v) => json!(v),
        Value::F32(v) => json!(v),
        Value::F64(v) => json!(v),
        Value::Bool(v) => json!(v),
        Value::String(v) => json!(v),
        Value::Array(a) if full || a.len() <= ELEMENTS_SHOWN => array_json(a, full),
        Value::Array(a) => json!({ "type": value.type_name(), "length": a.len() }),
    }
}

fn array_json(a: &Array, full: bool) -> serde_json::Value {
    (0..a.len()).filter_map(|i| a.get(i)).map(|v| to_json(&v, full)).collect()
}

fn as_json(source: &Source, args: &Inspect) -> serde_json::Value {
    let mut o = Map::new();
    o.insert("format".into(), json!(format(source)));
    o.insert("files".into(), json!(source.paths()));
    o.insert("bytes".into(), json!(source.total_bytes()));
    o.insert("parameters".into(), json!(parameters(source)));
    if !args.tensors {
        let metadata = match source.metadata() {
            Some(meta) => meta.iter().map(|(k, v)| (k.to_owned(), to_json(v, args.full))).collect(),
            None => source.config().cloned().unwrap_or_default(),
        };
        o.insert("metadata".into(), metadata);
    }
    if !args.metadata {
        let tensor = |t: &quarrel_formats::Tensor| json!({ "name": t.name, "dtype": t.dtype.to_string(), "shape": t.shape, "bytes": t.data.len() });
        o.insert("tensors".into(), source.tensors().map(tensor).collect());
    }
    o.into()
}
