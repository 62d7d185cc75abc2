//! `quarrel docs-cli`: the reference of all commands as Markdown, which `docs/cli.md` is.

use anyhow::Result;
use clap::{Arg, Command};

use crate::render::Out;

pub(crate) fn run() -> Result<()> {
    print(&markdown())
}

/// Another reference that the program makes of itself.
pub(crate) fn print(text: &str) -> Result<()> {
    Ok(Out::new().text(text)?)
}

fn markdown() -> String {
    let root = crate::config::built();
    let mut out = String::from(
        "# Commands of `quarrel`\n\nMade by `quarrel docs-cli` from the definitions in `crates/cli/src/args.rs`; do not edit.\n\n",
    );
    if let Some(after) = root.get_after_help() {
        out += &format!("{after}\n\n");
    }
    let shown = || root.get_subcommands().filter(|s| !s.is_hide_set() && s.get_name() != "help");
    for sub in shown() {
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        out += &format!("- [`quarrel {0}`](#quarrel-{0}): {about}\n", sub.get_name());
    }
    for sub in shown() {
        out += &section(sub);
    }
    out
}

fn section(command: &Command) -> String {
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let usage = command.clone().render_usage().to_string();
    let mut out = format!("\n## quarrel {}\n\n{about}.\n\n", command.get_name());
    out += &format!("    {}\n", usage.trim_start_matches("Usage: "));
    let aliases: Vec<_> = command.get_visible_aliases().map(|a| format!("`{a}`")).collect();
    if !aliases.is_empty() {
        out += &format!("\nAlso written {}.\n", aliases.join(", "));
    }
    if let Some(after) = command.get_after_help() {
        out += &format!("\n{after}\n");
    }
    let mut heading = None;
    for arg in ordered(command) {
        if heading != Some(arg.get_help_heading()) {
            heading = Some(arg.get_help_heading());
            out += &format!("\n### {}\n\n", arg.get_help_heading().unwrap_or("Arguments"));
        }
        out += &line(arg);
    }
    out
}

/// Arguments under their headings, in the order in which the headings first appear; what has none comes first.
fn ordered(command: &Command) -> Vec<&Arg> {
    let all: Vec<&Arg> = command
        .get_arguments()
        .filter(|a| !a.is_hide_set() && !["help", "version"].contains(&a.get_id().as_str()))
        .collect();
    let mut headings = vec![None];
    for arg in &all {
        if !headings.contains(&arg.get_help_heading()) {
            headings.push(arg.get_help_heading());
        }
    }
    headings.iter().flat_map(|h| all.iter().copied().filter(move |a| a.get_help_heading() == *h)).collect()
}

fn line(arg: &Arg) -> String {
    let value = match arg.get_action().takes_values() {
        true => arg
            .get_value_names()
            .unwrap_or_default()
            .iter()
            .map(|n| n.to_string())
            .collect::<Vec<_>>()
            .join(" "),
        false => String::new(),
    };
    let mut names: Vec<String> = arg.get_short().map(|c| format!("-{c}")).into_iter().collect();
    names.extend(arg.get_long().map(|l| format!("--{l}")));
    names.extend(arg.get_visible_aliases().unwrap_or_default().iter().map(|a| format!("--{a}")));
    let (names, value) = match names.is_empty() {
        true => (format!("`{value}`"), String::new()),
        false => {
            let names: Vec<_> = names.iter().map(|n| format!("`{n}`")).collect();
            (names.join(", "), if value.is_empty() { value } else { format!(" `{value}`") })
        }
    };
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let env = arg
        .get_env()
        .filter(|_| !arg.is_hide_env_set())
        .map(|e| format!(" (environment: `{}`)", e.to_string_lossy()))
        .unwrap_or_default();
    let choices: Vec<_> = arg.get_possible_values().iter().map(|v| format!("`{}`", v.get_name())).collect();
    let choices = match arg.get_action().takes_values() && !choices.is_empty() {
        true => format!(" ({})", choices.join(", ")),
        false => String::new(),
    };
    format!("- {names}{value}: {help}{env}{choices}\n")
}

#[cfg(test)]
mod tests {
    /// When this fails: `cargo run -- docs-cli > docs/cli.md`.
    #[test]
    fn the_committed_reference_is_fresh() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cli.md");
        let committed = std::fs::read_to_string(path).unwrap();
        assert!(committed == super::markdown(), "docs/cli.md is stale: cargo run -- docs-cli > docs/cli.md");
    }
}
