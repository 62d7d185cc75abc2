//! Habits that no other tool checks, over the files that git knows.

use anyhow::{Result, ensure};
use std::process::Command;

/// A file past this many lines is asked whether it is two ideas.
const LINES_MAX: usize = 900;

/// What must not be committed, and why. Split so that this file does not contain what it looks for.
const FORBIDDEN: &[(&[&str], &str)] = &[
    (&["todo", "!("], "unfinished code"),
    (&["unimplemented", "!("], "unfinished code"),
    (&["dbg", "!("], "debugging left in"),
    (&["/ro", "ot/"], "a path of one machine"),
    (&["/wo", "rk/"], "a path of one machine"),
    (&["/ho", "me/runner"], "a path of one machine"),
];

/// Fails with one line for each broken habit.
pub(crate) fn check() -> Result<()> {
    let listed =
        Command::new("git").args(["ls-files", "--cached", "--others", "--exclude-standard"]).output()?;
    ensure!(listed.status.success(), "`git ls-files` failed");
    let mut problems = Vec::new();
    for path in String::from_utf8(listed.stdout)?.lines() {
        let Ok(text) = std::fs::read_to_string(path) else { continue }; // binary, or deleted but not yet staged
        problems.extend(file_problems(path, &text));
    }
    problems.extend(crate_problems()?);
    for p in &problems {
        eprintln!("tidy: {p}");
    }
    ensure!(problems.is_empty(), "tidy found {} problems", problems.len());
    Ok(())
}

fn file_problems(path: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let source = path.ends_with(".rs");
    // An included file cannot have inner doc comments; plain ones say as much.
    if source && !text.starts_with("//") && !text.starts_with("#!") {
        problems.push(format!("{path}: does not open with comment lines that say what it is"));
    }
    let lines = text.lines().count();
    if source && lines > LINES_MAX {
        problems.push(format!("{path}: {lines} lines; is it one idea? (at most {LINES_MAX})"));
    }
    let prose_or_code = [".rs", ".md", ".toml", ".py", ".sh", ".yml"].iter().any(|e| path.ends_with(e));
    for (needle, why) in FORBIDDEN.iter().filter(|_| prose_or_code) {
        let needle = needle.concat();
        for (i, line) in text.lines().enumerate() {
            if line.contains(&needle) {
                problems.push(format!("{path}:{}: {why} ({needle})", i + 1));
            }
        }
    }
    problems
}

/// The arrows of the house point down: no crate may depend on one above it.
fn crate_problems() -> Result<Vec<String>> {
    const FLOORS: &[&[&str]] = &[
        &["formats", "hub", "store"],
        &["ir", "text"],
        &["model", "cpu", "cuda"],
        &["engine"],
        &["bench", "runtime"],
        &["eval"],
        &["server"],
        &["conform", "cli", "xtask"],
    ];
    let floor = |name: &str| FLOORS.iter().position(|f| f.contains(&name));
    let mut problems = Vec::new();
    for entry in std::fs::read_dir("crates")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let manifest = std::fs::read_to_string(format!("crates/{name}/Cargo.toml"))?;
        let Some(own) = floor(&name) else {
            problems.push(format!("crates/{name}: not on the plan of floors in xtask/src/tidy.rs"));
            continue;
        };
        let normal = manifest.split("[dev-dependencies]").next().unwrap_or_default();
        for dep in normal.lines().filter_map(|l| l.strip_prefix("quarrel-")) {
            let dep = dep.split(['.', ' ', '=']).next().unwrap_or_default();
            if floor(dep).is_none_or(|f| f >= own) {
                problems.push(format!("crates/{name} depends on {dep}, which is not below it"));
            }
        }
    }
    Ok(problems)
}
