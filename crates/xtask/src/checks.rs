//! The checks before a merge that are not tests.

use crate::{run, tidy};
use anyhow::Result;
use std::process::Command;

/// Formatting, clippy, rustdoc, tidy, and the tools that are installed of typos and cargo-deny.
pub(crate) fn lint() -> Result<()> {
    tidy::check()?;
    run(Command::new("cargo").args(["fmt", "--all", "--check"]))?;
    run(Command::new("cargo").args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))?;
    run(Command::new("cargo")
        .args(["doc", "--workspace", "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "--deny warnings"))?;
    optional("typos", &[])?;
    // Advisories need a database from the network; licences, bans and sources do not.
    optional("cargo-deny", &["check", "bans", "licenses", "sources"])
}

/// Generated documents; a test of each crate fails when one is stale.
pub(crate) fn write_docs() -> Result<()> {
    for (command, path) in [
        ("docs-cli", "docs/cli.md"),
        ("docs-architectures", "docs/architectures.md"),
        ("docs-openapi", "docs/openapi.json"),
        ("docs-metrics", "docs/metrics.md"),
        ("docs-config", "docs/config.md"),
        ("config init -", "deploy/config.toml"),
    ] {
        let words = command.split(' ');
        let output = Command::new("cargo").args(["run", "--quiet", "--"]).args(words).output()?;
        let why = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "`quarrel {command}` failed: {why}");
        std::fs::write(path, output.stdout)?;
        println!("wrote {path}");
    }
    Ok(())
}

fn optional(tool: &str, args: &[&str]) -> Result<()> {
    if Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success()) {
        return run(Command::new(tool).args(args));
    }
    eprintln!(
        "{tool} is not installed; its check did not run (`pip install typos`, `cargo install cargo-deny`)"
    );
    Ok(())
}
