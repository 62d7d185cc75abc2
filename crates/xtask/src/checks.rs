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
    let output = Command::new("cargo").args(["run", "--quiet", "--", "docs-cli"]).output()?;
    anyhow::ensure!(
        output.status.success(),
        "`quarrel docs-cli` failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    std::fs::write("docs/cli.md", output.stdout)?;
    println!("wrote docs/cli.md");
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
