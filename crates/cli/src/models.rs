//! From what a person typed to a model on disk.

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::{Result, bail};
use quarrel_hub::{Hub, LocalModel, Options, Outcome, Wanted, human_bytes};

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
