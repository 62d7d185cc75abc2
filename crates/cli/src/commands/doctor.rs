//! `quarrel doctor`: what looks wrong with a model. Leaves with 1 if something does.

use anyhow::{Result, bail};
use quarrel_runtime::doctor::{self, Finding, Grade};
use quarrel_runtime::memory::Use;
use serde_json::json;

use crate::args::Doctor;
use crate::render::Out;
use crate::session::{self, Opened};
use crate::{interrupt, models};

/// Context that is enough for a sentence and a few tokens.
const CONTEXT: u32 = 256;

pub(crate) fn run(mut args: Doctor) -> Result<()> {
    args.model = args.model.or_named(args.target.take());
    interrupt::install()?;
    let local = models::resolve(&args.model)?;
    let source = quarrel_runtime::open_source(&local.path)?;
    let mut findings = doctor::examine(&local, &source);
    let name_of_model = local.name.clone();
    let broken =
        |f: &Finding| f.grade == Grade::Wrong && ["architecture", "tokenizer", "template"].contains(&f.what);
    if !args.no_run && !findings.iter().any(broken) {
        let spec = quarrel_model::spec(&source)?;
        drop(source);
        let opened = Opened::new(local, session::TALK)?;
        args.engine.ctx = args.engine.ctx.or(Some(CONTEXT.min(spec.context)));
        if spec.arch.causal {
            let running = session::load_for(&opened, &args.engine, Use::SCORE, None)?;
            findings.extend(doctor::smoke(&opened, &running.handle)?);
        }
    }
    let wrong = findings.iter().filter(|f| f.grade == Grade::Wrong).count();
    let mut out = Out::new();
    if args.json {
        let findings: Vec<_> = findings
            .iter()
            .map(|f| json!({ "what": f.what, "grade": name(f.grade), "said": f.said }))
            .collect();
        out.json(&json!({ "model": name_of_model, "wrong": wrong, "findings": findings }))?;
    } else {
        out.table(&rows(&findings), &[])?;
    }
    if wrong > 0 {
        bail!("{wrong} of {} findings are wrong", findings.len());
    }
    Ok(())
}

fn name(grade: Grade) -> &'static str {
    match grade {
        Grade::Good => "ok",
        Grade::Note => "note",
        Grade::Wrong => "wrong",
    }
}

fn rows(findings: &[Finding]) -> Vec<Vec<String>> {
    let row = |f: &Finding| vec![name(f.grade).to_string(), f.what.into(), f.said.clone()];
    findings.iter().map(row).collect()
}
