//! The configuration file: TOML whose keys are flags, each with its line for messages.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Setting, settings};

/// The longest file that is read.
const BYTES_MAX: u64 = 1 << 20;

/// What is given for a setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Given {
    /// On or off, for a flag without a value.
    Switch(bool),
    /// One value, or several where the flag may be given several times.
    Values(Vec<String>),
}

/// A line of the file.
#[derive(Debug)]
struct Entry {
    /// The command whose table it stands in; without one it is for all that have the flag.
    command: Option<String>,
    key: String,
    given: Given,
    line: usize,
}

/// A file that was read, every key of it known.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    entries: Vec<Entry>,
}

impl File {
    /// Reads the file that was asked for, or else the one at the default place if there is one.
    pub(crate) fn find(asked: Option<&Path>, commands: &[(&str, Vec<Setting>)]) -> Result<Option<File>> {
        if let Some(path) = asked {
            let text = read(path).with_context(|| format!("the configuration {}", path.display()))?;
            return File::parse(path, &text, commands).map(Some);
        }
        let Some(path) = default_path().filter(|p| p.exists()) else { return Ok(None) };
        let text = read(&path).with_context(|| format!("the configuration {}", path.display()))?;
        File::parse(&path, &text, commands).map(Some)
    }

    pub(crate) fn parse(path: &Path, text: &str, commands: &[(&str, Vec<Setting>)]) -> Result<File> {
        let place = |at: usize| {
            let line = 1 + text.as_bytes()[..at.min(text.len())].iter().filter(|b| **b == b'\n').count();
            (line, format!("{} line {line}", path.display()))
        };
        let table = DeTable::parse(text).map_err(|e| {
            let (_, at) = place(e.span().map_or(0, |s| s.start));
            anyhow::anyhow!("{at}: {}", e.message())
        })?;
        let mut file = File { path: path.to_owned(), entries: Vec::new() };
        for (key, value) in table.get_ref().iter() {
            let (name, (line, at)) = (key.get_ref().as_ref(), place(key.span().start));
            let section = commands.iter().find(|(c, _)| *c == name);
            match (value.get_ref(), section) {
                (DeValue::Table(inner), Some((command, of))) => {
                    for (key, value) in inner {
                        let (name, (line, at)) = (key.get_ref().as_ref(), place(key.span().start));
                        let setting = of.iter().find(|s| s.key == name).ok_or_else(|| {
                            let known: Vec<_> = of.iter().map(|s| s.key.as_str()).collect();
                            anyhow::anyhow!("{at}: [{command}] has no key {name:?}{}", nearest(name, &known))
                        })?;
                        let given = given(setting, value).with_context(|| at)?;
                        let command = Some((*command).to_owned());
                        file.entries.push(Entry { command, key: name.into(), given, line });
                    }
                }
                (DeValue::Table(_), None) => {
                    let known: Vec<_> = commands.iter().map(|c| c.0).collect();
                    bail!("{at}: no table is called [{name}]; there are: {}", known.join(", "));
                }
                (_, Some(_)) => bail!("{at}: {name:?} is a table: [{name}]"),
                (_, None) => {
                    let setting = commands.iter().flat_map(|c| &c.1).find(|s| s.key == name);
                    let setting = setting.ok_or_else(|| {
                        let known: Vec<_> =
                            commands.iter().flat_map(|c| &c.1).map(|s| s.key.as_str()).collect();
                        anyhow::anyhow!("{at}: no key is called {name:?}{}", nearest(name, &known))
                    })?;
                    let given = given(setting, value).with_context(|| at)?;
                    file.entries.push(Entry { command: None, key: name.into(), given, line });
                }
            }
        }
        Ok(file)
    }

    /// What the file says of a setting of a command, and in which line. The command's own table wins.
    pub(crate) fn get(&self, command: &str, key: &str) -> Option<(&Given, usize)> {
        let of =
            |table: Option<&str>| self.entries.iter().find(|e| e.key == key && e.command.as_deref() == table);
        of(Some(command)).or_else(|| of(None)).map(|e| (&e.given, e.line))
    }
}

fn read(path: &Path) -> Result<String> {
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).context("cannot be opened")?;
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).context("cannot be read")?;
    if bytes.len() as u64 > BYTES_MAX {
        bail!("is longer than {BYTES_MAX} bytes");
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..at].iter().filter(|b| **b == b'\n').count();
        anyhow::anyhow!("is not UTF-8: line {line}")
    })
}

/// `$XDG_CONFIG_HOME/quarrel/config.toml`, or the system's usual place for a user's configuration.
pub(crate) fn default_path() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = set("XDG_CONFIG_HOME")
        .or_else(|| set("APPDATA").filter(|_| cfg!(windows)))
        .or_else(|| set("HOME").map(|h| h.join(".config")))?;
    Some(base.join("quarrel").join("config.toml"))
}

fn given(setting: &Setting, value: &Spanned<DeValue<'_>>) -> Result<Given> {
    let key = &setting.key;
    match (value.get_ref(), setting.switch, setting.many) {
        (DeValue::Boolean(on), true, _) => Ok(Given::Switch(*on)),
        (_, true, _) => bail!("{key} is on or off: true or false is needed"),
        (DeValue::Array(list), false, true) => {
            let one = |v: &Spanned<DeValue<'_>>| scalar(key, v.get_ref());
            list.iter().map(one).collect::<Result<_>>().map(Given::Values)
        }
        (DeValue::Array(_), false, false) => bail!("{key} takes one value, not a list"),
        (value, false, _) => Ok(Given::Values(vec![scalar(key, value)?])),
    }
}

fn scalar(key: &str, value: &DeValue<'_>) -> Result<String> {
    Ok(match value {
        DeValue::String(s) => s.to_string(),
        DeValue::Integer(n) => i128::from_str_radix(n.as_str(), n.radix())
            .map_err(|_| anyhow::anyhow!("{key}: {} is no number that it can be", n.as_str()))?
            .to_string(),
        DeValue::Float(n) => n.as_str().to_owned(),
        DeValue::Boolean(_) => bail!("{key} needs a value, not true or false"),
        _ => bail!("{key} needs a text or a number"),
    })
}

/// The known word that was probably meant, as the rest of a message.
fn nearest(word: &str, known: &[&str]) -> String {
    let word = word.replace('_', "-").to_lowercase();
    let best = known.iter().map(|k| (strsim::jaro_winkler(k, &word), k)).max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((near, k)) if near > 0.75 => format!("; {k} is near it"),
        _ => "; `quarrel config init -` prints all keys".into(),
    }
}

/// The settings of each command that the file may have.
pub(crate) fn commands(definitions: &clap::Command) -> Vec<(&'static str, Vec<Setting>)> {
    let of = |name| definitions.find_subcommand(name).map(settings).unwrap_or_default();
    super::COMMANDS.iter().map(|name| (*name, of(name))).collect()
}
