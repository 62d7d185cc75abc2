//! From what a person typed to a model on disk and its tokenizer.

use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use quarrel_formats::Source;
use quarrel_hub::{Hub, LocalModel, Options, Outcome, Wanted, human_bytes};
use quarrel_text::Tokenizer;

use crate::args::{FetchArgs, ModelArgs};
use crate::render::{self, Transfers};

/// The model of `--model`, or the default one, fetched if need be.
pub(crate) fn resolve(args: &ModelArgs) -> Result<LocalModel> {
    let hub = Hub::from_env()?;
    fetch(&hub, args.name().as_deref().unwrap_or(hub.default_model()), args.fetch, false)
}

/// The same for a name that was given in another way. `refresh` asks the sources again although the model is here.
pub(crate) fn fetch(hub: &Hub, name: &str, fetch: FetchArgs, refresh: bool) -> Result<LocalModel> {
    let options = Options { offline: fetch.offline, accept_substitute: fetch.yes, refresh };
    let outcome = match hub.resolve(name, options, &mut Transfers::default())? {
        Outcome::Substitute { wanted, offered, why } => {
            let reasons: Vec<_> = why.iter().map(|a| format!("{}: {}", a.source, a.why)).collect();
            let reasons = if reasons.is_empty() { "offline".into() } else { reasons.join("; ") };
            match accepts(&wanted, &offered, &reasons)? {
                Some(true) => {}
                Some(false) => bail!("{} was not replaced, and nothing was fetched", wanted.name),
                None => bail!(
                    "{} ({}) cannot be had ({reasons}); {} ({}{}) can be used instead: add --yes, or name it with --model",
                    wanted.name,
                    wanted.precision,
                    offered.name,
                    offered.precision,
                    size_of(&offered)
                ),
            }
            let options = Options { accept_substitute: true, ..options };
            hub.resolve(name, options, &mut Transfers::default())?
        }
        ready => ready,
    };
    let Outcome::Ready(local) = outcome else { bail!("{name}: the offered substitute is gone again") };
    if let Some(wanted) = &local.substitute_for {
        render::note(format!("using {} in place of {wanted}", local.name));
    }
    for note in &local.notes {
        render::detail(note);
    }
    render::detail(format!("model {} ({})", local.name, local.path.display()));
    Ok(local)
}

fn size_of(w: &Wanted) -> String {
    match (w.here, w.size) {
        (true, _) => ", already here".into(),
        (false, Some(n)) => format!(", {}", human_bytes(n)),
        (false, None) => String::new(),
    }
}

/// Asks a person, if one is at the terminal.
fn accepts(wanted: &Wanted, offered: &Wanted, reasons: &str) -> Result<Option<bool>> {
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Ok(None);
    }
    let mut err = io::stderr().lock();
    write!(
        err,
        "{} ({}) cannot be had ({reasons}).\nUse {} ({}{}) instead? [y/N] ",
        wanted.name,
        wanted.precision,
        offered.name,
        offered.precision,
        size_of(offered)
    )?;
    err.flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(Some(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes")))
}

/// The tokenizer of whatever a path holds: a `tokenizer.json`, a GGUF (a vocabulary is enough), a checkpoint.
pub(crate) fn tokenizer_at(path: &Path) -> Result<Tokenizer> {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json")) {
        return json_tokenizer(path);
    }
    tokenizer(&open(path)?)
}

/// Opens a model file.
pub(crate) fn open(path: &Path) -> Result<Source> {
    Ok(Source::open(path)?)
}

/// The tokenizer of an opened model.
pub(crate) fn tokenizer(source: &Source) -> Result<Tokenizer> {
    match source {
        Source::Gguf(gguf) => {
            Tokenizer::from_gguf(&gguf.metadata).with_context(|| format!("{}", gguf.paths[0].display()))
        }
        Source::Hf(hf) => {
            let mut tokenizer = json_tokenizer(&hf.dir.join("tokenizer.json"))?;
            tokenizer.add_end_of_generation(&generation_ends(&hf.dir)?)?;
            Ok(tokenizer)
        }
    }
}

fn json_tokenizer(path: &Path) -> Result<Tokenizer> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let config = path.with_file_name("tokenizer_config.json");
    let config = if config.exists() { Some(read(&config)?) } else { None };
    Tokenizer::from_json(&read(path)?, config.as_deref()).with_context(|| format!("{}", path.display()))
}

/// The ids that `generation_config.json` lists as ends of an answer.
fn generation_ends(dir: &Path) -> Result<Vec<u32>> {
    let path = dir.join("generation_config.json");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let config = crate::input::json(&path)?;
    let ends = match &config["eos_token_id"] {
        serde_json::Value::Array(ids) => ids.iter().filter_map(serde_json::Value::as_u64).collect(),
        one => Vec::from_iter(one.as_u64()),
    };
    Ok(ends.into_iter().filter_map(|id| u32::try_from(id).ok()).collect())
}
