//! The configuration described by itself: an example file with every key (`deploy/config.toml`), and `docs/config.md`.

use clap::{Arg, Command};

use super::{COMMANDS, Setting, built, setting};

/// A key as it is described: its flag, and the commands that have it.
struct Row {
    setting: Setting,
    arg: Arg,
    commands: Vec<&'static str>,
}

/// All keys, those of the server first.
fn rows(definitions: &Command) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for name in COMMANDS {
        for arg in definitions.find_subcommand(name).into_iter().flat_map(Command::get_arguments) {
            let Some(setting) = setting(arg) else { continue };
            match rows.iter_mut().find(|r| r.setting.key == setting.key) {
                Some(row) => row.commands.push(name),
                None => rows.push(Row { setting, arg: arg.clone(), commands: vec![name] }),
            }
        }
    }
    rows
}

impl Row {
    fn heading(&self) -> &str {
        self.arg.get_help_heading().unwrap_or("Server")
    }

    /// The help without its note on the default, and that note.
    fn help(&self) -> (String, Option<String>) {
        let text = self.arg.get_help().map(ToString::to_string).unwrap_or_default();
        match text.split_once(" [default: ") {
            Some((help, default)) => (help.into(), Some(default.trim_end_matches(']').into())),
            None => (text, None),
        }
    }

    /// The default as the file has it, if it is a value.
    fn default(&self) -> Option<String> {
        if self.setting.switch {
            return Some("false".into());
        }
        let values: Vec<String> =
            self.arg.get_default_values().iter().map(|v| v.to_string_lossy().into_owned()).collect();
        let one = values.first()?;
        Some(if one.parse::<f64>().is_ok() { one.clone() } else { format!("{one:?}") })
    }

    fn choices(&self) -> Option<String> {
        if self.setting.switch {
            return None;
        }
        let names: Vec<_> = self.arg.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    }
}

/// A file with every key, each behind a `#`.
pub(crate) fn example() -> String {
    let mut out = String::from(
        "# Configuration of `quarrel`; made by `quarrel config init`.\n\
         #\n\
         # Each key is a flag without its dashes, and a line counts when its first # is taken away. A flag wins over a variable\n\
         # of the environment (QUARREL_ and the key in capitals, with _ for -), a variable over this file, this file over the\n\
         # default. Keys before the first table are for every command that has the flag; keys in [serve], [run], [chat] and\n\
         # [keys] are for that command alone, and win. `quarrel config show` prints what holds, and why.\n",
    );
    let rows = rows(&built());
    let mut headings: Vec<&str> = Vec::new();
    for row in &rows {
        if !headings.contains(&row.heading()) {
            headings.push(row.heading());
        }
    }
    for heading in headings {
        out += &format!("\n# --- {heading}\n");
        for row in rows.iter().filter(|r| r.heading() == heading) {
            let (help, note) = row.help();
            out += &format!("\n# {help}");
            out += &row.choices().map(|c| format!(" ({c})")).unwrap_or_default();
            out += &note.map(|n| format!(" [default: {n}]")).unwrap_or_default();
            if row.commands != ["serve"] {
                out += &format!("; of {}", row.commands.join(", "));
            }
            let value =
                row.default().unwrap_or_else(|| if row.setting.many { "[]".into() } else { String::new() });
            out += &format!("\n{}\n", format!("#{} = {value}", row.setting.key).trim_end());
        }
    }
    out
}

/// `docs/config.md`.
pub(crate) fn reference() -> String {
    let mut out = String::from(
        "# Configuration\n\nMade by `cargo xtask docs` from the definitions of the flags; do not edit.\n\n\
         Each setting of `serve`, `run`, `chat` and `keys` can be given in three places. The first that has it wins:\n\n\
         | | place | example |\n|---|---|---|\n\
         | 1 | a flag | `--kv-pool 32768` |\n\
         | 2 | a variable of the environment: `QUARREL_` and the flag in capitals, with `_` for `-` | `QUARREL_KV_POOL=32768` |\n\
         | 3 | the configuration file: the flag without its dashes | `kv-pool = 32768` |\n\
         | 4 | the default | |\n\n\
         The file is the one of `--config FILE`, else of `QUARREL_CONFIG`, else `quarrel/config.toml` in `$XDG_CONFIG_HOME` (`~/.config`) if\n\
         there is one. `--config /dev/null` reads none. It is TOML:\n\n\
         ```toml\nctx = 8192             # every command that has --ctx\n\n[serve]                # only `quarrel serve`\n\
         models = [\"gemma3:270m\", \"small=/models/a.gguf\"]\nhost = \"0.0.0.0\"\nparallel = 32\n\n[chat]\ntemp = 0.6             # wins over a temp without a table\n```\n\n\
         - A key that does not exist is an error that names the line and the nearest key; nothing is ignored. Values are checked as flags are.\n\
         - Flags that may be given several times take a list. In the environment, `QUARREL_API_KEY` and `QUARREL_CORS_ORIGIN` take commas.\n\
         - Switches are `true` or `false`, in the environment also `1`, `0`, `yes`, `no`, `on`, `off`. An empty variable is unset.\n\
         - A list is replaced by a higher place, not added to.\n\
         - Where two settings exclude each other, the one from the higher place wins, and a note says what was left out; in one place it is an error.\n\
         - Paths are relative to where `quarrel` is started, as on the command line.\n\
         - What concerns one call (the prompt, the form of the output) can only be a flag.\n\n\
         `quarrel config show [COMMAND]` prints what holds and where it comes from, without secrets; `quarrel config init` writes a file with\n\
         every key and its default behind a `#`, which is also [deploy/config.toml](../deploy/config.toml).\n\n\
         ## Keys\n\n| key | commands | default | what |\n|---|---|---|---|\n",
    );
    for row in rows(&built()) {
        let (help, note) = row.help();
        let default = note.or_else(|| row.default().map(|d| format!("`{d}`"))).unwrap_or_default();
        let choices = row.choices().map(|c| format!(" ({c})")).unwrap_or_default();
        let cells = [format!("`{}`", row.setting.key), row.commands.join(", "), default, help + &choices];
        out += &format!("| {} |\n", cells.map(|c| c.replace('|', "\\|")).join(" | "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{File, commands};
    use std::path::Path;

    fn committed(path: &str) -> String {
        std::fs::read_to_string(format!("{}/../../{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn the_committed_files_are_fresh() {
        assert!(
            committed("deploy/config.toml") == example(),
            "deploy/config.toml is stale: cargo xtask docs"
        );
        assert!(committed("docs/config.md") == reference(), "docs/config.md is stale: cargo xtask docs");
    }

    #[test]
    fn the_example_has_every_key_and_its_defaults_are_good_ones() {
        let (text, commands) = (example(), commands(&built()));
        let lines: Vec<&str> = text.lines().filter(|l| l.starts_with('#') && !l.starts_with("# ")).collect();
        for key in commands.iter().flat_map(|c| &c.1).map(|s| s.key.as_str()) {
            let found = lines.iter().filter(|l| l.starts_with(&format!("#{key} ="))).count();
            assert_eq!(found, 1, "{key}");
        }
        let set: String = lines
            .iter()
            .filter(|l| l.len() > 1 && !l.ends_with('='))
            .map(|l| format!("{}\n", &l[1..]))
            .collect();
        let file = File::parse(Path::new("example"), &set, &commands).unwrap();
        assert!(file.get("serve", "port").is_some() && file.get("run", "device").is_some());
        File::parse(Path::new("example"), &text, &commands).unwrap();
    }
}
