//! The real models that tests run on, fetched by the same code that users fetch models with.

use anyhow::{Context, Result, bail};
use quarrel_hub::{Hub, Options, Outcome, Progress};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Catalog name and the name under which the tests look for it: of a file, or of a checkpoint's directory.
const MODELS: &[(&str, &str)] = &[
    ("smollm2:135m-instruct-q4_1", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    ("gemma3:270m", "gemma-3-270m-q4_k_m.gguf"),
    ("all-minilm", "all-MiniLM-L6-v2"),
];

/// Resolves every model, links it into `target/fixtures` and gives that folder.
pub(crate) fn fetch() -> Result<PathBuf> {
    let dir = crate::root().join("target/fixtures");
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let hub = Hub::from_env()?;
    for (name, file) in MODELS {
        let outcome = hub.resolve(name, Options::default(), &mut Lines::default())?;
        let Outcome::Ready(model) = outcome else { bail!("{name} is only reachable in another precision") };
        link(&model.path, &dir.join(file))?;
    }
    Ok(dir)
}

/// A symbolic link where the system has them, a copy elsewhere; an old one is replaced.
fn link(from: &Path, to: &Path) -> Result<()> {
    if to.symlink_metadata().is_ok() {
        std::fs::remove_file(to)?;
    }
    #[cfg(unix)]
    let linked = std::os::unix::fs::symlink(from, to);
    #[cfg(not(unix))]
    let linked = std::fs::copy(from, to).map(|_| ());
    linked.with_context(|| format!("cannot link {} to {}", to.display(), from.display()))
}

/// One line per transfer, and percentages on a terminal.
#[derive(Default)]
struct Lines {
    total: Option<u64>,
    done: u64,
}

impl Progress for Lines {
    fn start(&mut self, total: Option<u64>, what: &str) {
        (self.total, self.done) = (total, 0);
        eprintln!("fetching {what}");
    }

    fn advance(&mut self, bytes: u64) {
        let percent = |done: u64| self.total.filter(|t| *t > 0).map(|t| done * 100 / t);
        let (before, after) = (percent(self.done), percent(self.done + bytes));
        self.done += bytes;
        if let Some(p) = after.filter(|_| after != before && std::io::stderr().is_terminal()) {
            eprint!("\r{p:3}%");
            let _ = std::io::stderr().flush(); // a terminal that cannot be written to needs no percentage
        }
    }

    fn finish(&mut self) {
        if std::io::stderr().is_terminal() {
            eprint!("\r    \r");
        }
    }

    fn note(&mut self, line: &str) {
        eprintln!("{line}");
    }
}
