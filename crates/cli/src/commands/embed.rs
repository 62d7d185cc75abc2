//! `quarrel embed`: texts to vectors, and how alike they are.

use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use quarrel_engine::{EmbedRequest, Pooling};
use quarrel_runtime::embed::{Fitted, embed_all, fit_text};
use quarrel_runtime::memory::{Pool, Use};
use serde_json::{Value, json};

use crate::args::{Embed, Pool as Asked};
use crate::failure::Usage;
use crate::render::{self, Out};
use crate::session::TALK;
use crate::{input, interrupt, models};

/// Texts at once.
const AT_ONCE: usize = 16;
/// Most texts whose likeness is shown as a table.
const TABLE_MAX: usize = 16;
/// Characters of a text in the table.
const SHOWN: usize = 48;

pub(crate) fn run(args: Embed) -> Result<()> {
    let texts = texts(&args)?;
    interrupt::install()?;
    let opened = quarrel_runtime::Opened::new(models::resolve(&args.fetch.named(args.target))?, TALK)?;
    let options = quarrel_runtime::EngineOptions { embeddings: true, encoder: true, ..args.engine.options() };
    let usage = Use { batch: AT_ONCE.min(texts.len()), outputs: 1, pool: Pool::Fits, ..Use::ONE };
    let running = opened.load(&options, usage, None, 0, TALK, |_| {})?;
    let own = running.embeddings.pooling;
    let pooling = match args.pooling {
        Some(asked) => asked.into(),
        None => own.context(
            "the model pools hidden states in a way that is not known here; choose one with --pooling",
        )?,
    };
    let tokens_max = running.embeddings.tokens_max;
    let mut fitted = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate() {
        let f = fit_text(&opened.tokenizer, text, tokens_max)?;
        if f.cut > 0 {
            let most = f.tokens.len() + f.cut;
            let what = format!("text {} has {most} tokens and the model takes {tokens_max}", i + 1);
            if !args.truncate {
                bail!("{what}; cut it into parts, or --truncate leaves the end out");
            }
            render::note(format!("{what}: the last {} are left out", f.cut));
        }
        fitted.push(f);
    }
    let began = Instant::now();
    let normalize = !args.no_normalize;
    let requests =
        fitted.iter().map(|f| EmbedRequest { pooling, normalize, ..EmbedRequest::new(f.tokens.clone()) });
    let made = embed_all(&running.handle, requests, &AtomicBool::new(false))?.unwrap_or_default();
    let vectors: Vec<Vec<Vec<f32>>> = made.into_iter().map(|e| e.vectors).collect();
    let dimensions = running.handle.info().hidden.unwrap_or(0);
    let mut out = Out::new();
    if args.json {
        let alike: Vec<Vec<Value>> = match pooling {
            Pooling::None => Vec::new(),
            _ => matrix(&vectors).into_iter().map(|r| r.into_iter().map(|x| json!(x)).collect()).collect(),
        };
        return out.json(&json!({
            "model": opened.local.name, "dimensions": dimensions, "pooling": pooling.name(), "normalized": normalize,
            "embeddings": texts.iter().zip(&fitted).zip(&vectors).map(entry).collect::<Vec<_>>(),
            "similarity": alike,
        }));
    }
    let tokens: usize = fitted.iter().map(|f| f.tokens.len()).sum();
    render::detail(format!("{tokens} tokens in {:.0} ms", began.elapsed().as_secs_f64() * 1e3));
    let several = if texts.len() == 1 { "text" } else { "texts" };
    out.line(&format!("{} {several}, {dimensions} dimensions, pooling {}", texts.len(), pooling.name()))?;
    if pooling == Pooling::None || texts.len() == 1 {
        return Ok(out.table(&numbers(&vectors), &[0])?);
    }
    if texts.len() > TABLE_MAX {
        return Ok(
            out.line(&format!("the table of likeness is for {TABLE_MAX} texts at most; --json has all"))?
        );
    }
    let (rows, right) = table(&texts, &matrix(&vectors));
    Ok(out.table(&rows, &right)?)
}

/// The texts of the arguments, else the lines of a file or a pipe that are not empty.
fn texts(args: &Embed) -> Result<Vec<String>> {
    let path = match &args.file {
        Some(path) => path.as_path(),
        None if !args.texts.is_empty() => return Ok(args.texts.clone()),
        None if !std::io::stdin().is_terminal() => Path::new("-"),
        None => {
            let what = "there is no text: give some as arguments, with --file, or through a pipe, one a line";
            return Err(Usage(what.into()).into());
        }
    };
    let text = input::text_file(path)?;
    let lines: Vec<String> = text.lines().filter(|l| !l.trim().is_empty()).map(str::to_owned).collect();
    if lines.is_empty() {
        bail!("{} has no line with text", path.display());
    }
    Ok(lines)
}

fn entry(((text, fitted), vectors): ((&String, &Fitted), &Vec<Vec<f32>>)) -> Value {
    let vector = if let [one] = &vectors[..] { json!(one) } else { json!(vectors) };
    json!({ "text": text, "tokens": fitted.tokens.len(), "truncated_tokens": fitted.cut, "embedding": vector })
}

/// Cosines of all pairs; 0 where a vector has no direction.
fn matrix(vectors: &[Vec<Vec<f32>>]) -> Vec<Vec<f64>> {
    let flat: Vec<Vec<f64>> =
        vectors.iter().map(|v| v.iter().flatten().map(|x| f64::from(*x)).collect()).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let cosine = |a: &[f64], b: &[f64]| {
        let lengths = (dot(a, a) * dot(b, b)).sqrt();
        if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
    };
    flat.iter().map(|a| flat.iter().map(|b| cosine(a, b)).collect()).collect()
}

/// The numbers of vectors, one row each, as many as a line takes.
fn numbers(vectors: &[Vec<Vec<f32>>]) -> Vec<Vec<String>> {
    let row = |(i, v): (usize, &Vec<f32>)| {
        let mut cells = vec![(i + 1).to_string()];
        cells.extend(v.iter().take(6).map(|x| format!("{x:+.4}")));
        cells.push("..".into());
        cells
    };
    vectors.iter().flatten().enumerate().map(row).collect()
}

fn table(texts: &[String], alike: &[Vec<f64>]) -> (Vec<Vec<String>>, Vec<usize>) {
    let head = std::iter::once(String::new()).chain((1..=texts.len()).map(|n| n.to_string()));
    let mut rows = vec![head.chain([String::new()]).collect::<Vec<_>>()];
    for (i, (text, row)) in texts.iter().zip(alike).enumerate() {
        let mut shown: String = text.chars().take(SHOWN).collect();
        if shown.len() < text.len() {
            shown.push('…');
        }
        let cells = row.iter().map(|x| format!("{x:.3}"));
        rows.push(std::iter::once((i + 1).to_string()).chain(cells).chain([shown]).collect());
    }
    (rows, (0..=texts.len()).collect())
}

impl From<Asked> for Pooling {
    fn from(asked: Asked) -> Pooling {
        match asked {
            Asked::Mean => Pooling::Mean,
            Asked::Cls => Pooling::Cls,
            Asked::Last => Pooling::Last,
            Asked::None => Pooling::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likeness_of_directions() {
        let m = matrix(&[vec![vec![2.0, 0.0]], vec![vec![1.0, 1.0]], vec![vec![0.0, 0.0]]]);
        assert!((m[0][1] - 0.5f64.sqrt()).abs() < 1e-12 && (m[0][0] - 1.0).abs() < 1e-12);
        assert_eq!((m[2][0], m[2][2]), (0.0, 0.0));
        let (rows, right) = table(&["a".into(), "b".repeat(60), "c".into()], &m);
        assert_eq!((rows.len(), rows[0].len(), right.len()), (4, 5, 4));
        assert_eq!((rows[1][1].as_str(), rows[2][4].chars().count()), ("1.000", SHOWN + 1));
    }
}
