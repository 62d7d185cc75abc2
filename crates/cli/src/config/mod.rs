//! One precedence for all settings: a flag, else the environment, else the configuration file, else the default. Everything
//! is made of the flags' definitions in `args`: a value of a lower layer becomes the flag that it stands for, unless a higher
//! layer gives that flag or one that excludes it. So a new flag is a key and a variable without a second place.

mod describe;
mod file;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, anyhow};
use clap::builder::Resettable;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory};

use crate::args::Cli;
pub(crate) use describe::{example, reference};
pub(crate) use file::{File, Given, commands, default_path};

/// The commands whose flags may be set elsewhere.
pub(crate) const COMMANDS: [&str; 4] = ["serve", "run", "chat", "keys"];
/// Flags under other headings are of one call: its prompt, its form of output.
const HEADINGS: [&str; 4] = ["Server", "Model", "Engine", "Sampling"];
/// Names the file.
const VARIABLE: &str = "QUARREL_CONFIG";

/// A flag that may be set elsewhere.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    /// clap's name of it.
    pub(crate) id: String,
    /// Its name in the file.
    pub(crate) key: String,
    /// Its name in the environment.
    pub(crate) variable: Option<String>,
    /// On or off, without a value.
    pub(crate) switch: bool,
    /// May have several values.
    pub(crate) many: bool,
    /// Not to be shown.
    pub(crate) secret: bool,
    /// How messages of clap write it.
    shown: String,
}

/// The settings of a command that is built, in the order of their definition.
pub(crate) fn settings(command: &Command) -> Vec<Setting> {
    command.get_arguments().filter_map(setting).collect()
}

/// An argument's name in the file, if it may be set there.
fn key(arg: &Arg) -> Option<&str> {
    let headed = arg.get_help_heading().is_some_and(|h| HEADINGS.contains(&h));
    match arg.get_long() {
        _ if arg.is_hide_set() => None,
        Some(long) => headed.then_some(long),
        // Of the arguments without a name only the models of a server are no matter of one call.
        None => Some(arg.get_id().as_str()).filter(|id| *id == "models"),
    }
}

fn variable(arg: &Arg) -> Option<String> {
    let key = key(arg).filter(|_| arg.get_long().is_some())?;
    Some(format!("QUARREL_{}", key.replace('-', "_").to_uppercase()))
}

fn setting(arg: &Arg) -> Option<Setting> {
    let key = key(arg)?.to_owned();
    let file = arg.get_value_names().is_some_and(|n| n.iter().any(|n| n == "FILE"));
    let secret = ["key", "token", "secret", "password"].contains(&key.rsplit('-').next().unwrap_or_default());
    Some(Setting {
        id: arg.get_id().to_string(),
        variable: variable(arg),
        switch: !arg.get_action().takes_values(),
        many: arg.get_long().is_none() || matches!(arg.get_action(), ArgAction::Append),
        secret: secret && !file,
        shown: arg.to_string(),
        key,
    })
}

/// The definitions of all commands, each setting with its variable. Only those that are often used are shown in the help.
pub(crate) fn definitions() -> Command {
    with_settings(Cli::command(), &COMMANDS, |arg| match variable(&arg) {
        Some(name) if arg.get_env().is_none() => arg.env(name).hide_env(true),
        _ => arg,
    })
}

/// The same with the flags of all commands put into each, to look at.
pub(crate) fn built() -> Command {
    let mut all = definitions();
    all.build();
    all
}

fn with_settings(all: Command, names: &[&str], mut change: impl FnMut(Arg) -> Arg) -> Command {
    all.mut_subcommands(|c| if names.contains(&c.get_name()) { c.mut_args(&mut change) } else { c })
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Flag,
    /// A variable.
    Environment(String),
    /// A line of the file.
    File(PathBuf, usize),
    Default,
}

impl Origin {
    /// For messages.
    pub(crate) fn place(&self) -> Option<String> {
        match self {
            Origin::Flag | Origin::Default => None,
            Origin::Environment(name) => Some(format!("the variable {name}")),
            Origin::File(path, line) => Some(format!("{} line {line}", path.display())),
        }
    }
}

/// A command line with what the layers below it add.
#[derive(Debug)]
pub(crate) struct Layered {
    pub(crate) matches: ArgMatches,
    /// The file that was read.
    pub(crate) file: Option<PathBuf>,
    /// What came from the environment or the file, by the setting's id.
    added: Vec<(Setting, Origin)>,
    /// What people should hear.
    pub(crate) notes: Vec<String>,
}

impl Layered {
    /// Where the value of a setting of the command comes from.
    pub(crate) fn origin(&self, matches: &ArgMatches, id: &str) -> Origin {
        match self.added.iter().find(|(s, _)| s.id == id) {
            Some((_, origin)) => origin.clone(),
            None if matches.value_source(id) == Some(ValueSource::CommandLine) => Origin::Flag,
            None => Origin::Default,
        }
    }
}

/// What is wrong with a command line, or with a layer below it.
#[derive(Debug)]
pub(crate) enum Fault {
    /// As clap says it, and the layer that is to blame.
    Usage(clap::Error, Option<String>),
    Layer(anyhow::Error),
}

/// Reads arguments (the program's name included) and the layers below them. `definitions` are those of [`definitions`].
pub(crate) fn layered(definitions: &Command, argv: Vec<OsString>) -> Result<Layered, Fault> {
    let named = argv.get(1).and_then(|w| definitions.find_subcommand(w)).map(|c| c.get_name().to_owned());
    let usage = |e| Fault::Usage(e, None);
    let Some(name) = named.filter(|n| COMMANDS.contains(&n.as_str())) else {
        let matches = definitions.clone().try_get_matches_from(argv).map_err(usage)?;
        return Ok(Layered { matches, file: None, added: Vec::new(), notes: Vec::new() });
    };
    // What is missing may come from below, so that the first look forgives it.
    let look = definitions.clone().mut_subcommands(|c| c.ignore_errors(true)).ignore_errors(true);
    let looked = look.try_get_matches_from(&argv).map_err(usage)?;
    let built = built();
    let (Some((_, given)), Some(command)) = (looked.subcommand(), built.find_subcommand(&name)) else {
        return Err(Fault::Layer(anyhow!("the command line cannot be read")));
    };
    let asked = given.try_get_one::<PathBuf>("config").ok().flatten().cloned();
    let asked = asked.or_else(|| std::env::var_os(VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from));
    let file = File::find(asked.as_deref(), &commands(&built)).map_err(Fault::Layer)?;
    // The environment is a layer of ours, so that what wins over it may also exclude it.
    let definitions = with_settings(definitions.clone(), &[&name], |arg| match key(&arg) {
        Some(_) => arg.env(Resettable::Reset),
        None => arg,
    });
    let (added, notes) = below(command, given, file.as_ref()).map_err(Fault::Layer)?;
    let mut full: Vec<OsString> = argv[..2].to_vec();
    for (setting, given, _) in &added {
        full.extend(flags(setting, given));
    }
    full.extend_from_slice(&argv[2..]);
    let matches = definitions.try_get_matches_from(full).map_err(|e| {
        let place = added.iter().find(|(s, ..)| blames(&e, s)).and_then(|(.., origin)| origin.place());
        Fault::Usage(e, place)
    })?;
    let added = added.into_iter().map(|(setting, _, origin)| (setting, origin)).collect();
    Ok(Layered { matches, file: file.map(|f| f.path), added, notes })
}

type Added = Vec<(Setting, Given, Origin)>;

/// What the environment and the file add to what was given, and what of them had to be left out.
fn below(command: &Command, given: &ArgMatches, file: Option<&File>) -> Result<(Added, Vec<String>)> {
    let explicit = |id: &str| {
        given.try_contains_id(id).is_ok() && given.value_source(id) == Some(ValueSource::CommandLine)
    };
    let all = settings(command);
    let mut stand: Vec<String> =
        command.get_arguments().map(|a| a.get_id().to_string()).filter(|id| explicit(id)).collect();
    let (mut added, mut notes): (Added, _) = (Vec::new(), Vec::new());
    for layer in [from_environment, from_file] {
        let above = stand.clone();
        for setting in all.iter().filter(|s| !above.contains(&s.id)) {
            let Some((value, origin)) = layer(command.get_name(), setting, file)? else { continue };
            if let Some(other) = above.iter().find(|other| exclude(command, &setting.id, other)) {
                notes.push(format!(
                    "{} is left out ({}), because {} is given",
                    setting.key,
                    origin.place().unwrap_or_default(),
                    other.replace('_', "-"),
                ));
                continue;
            }
            stand.push(setting.id.clone());
            added.push((setting.clone(), value, origin));
        }
    }
    Ok((added, notes))
}

fn from_environment(_: &str, setting: &Setting, _: Option<&File>) -> Result<Option<(Given, Origin)>> {
    let Some(name) = &setting.variable else { return Ok(None) };
    // Empty means unset, as usual.
    let Some(value) = std::env::var_os(name).filter(|v| !v.is_empty()) else { return Ok(None) };
    let value = value.into_string().map_err(|v| anyhow!("{name} is not UTF-8: {v:?}"))?;
    let given = match (setting.switch, value.to_ascii_lowercase().as_str()) {
        (false, _) => Given::Values(vec![value]),
        (true, "1" | "true" | "yes" | "on" | "y" | "t") => Given::Switch(true),
        (true, "0" | "false" | "no" | "off" | "n" | "f") => Given::Switch(false),
        (true, _) => return Err(anyhow!("{name}: {value:?} is neither true nor false")),
    };
    Ok(Some((given, Origin::Environment(name.clone()))))
}

fn from_file(command: &str, setting: &Setting, file: Option<&File>) -> Result<Option<(Given, Origin)>> {
    let found = file.and_then(|f| f.get(command, &setting.key).map(|found| (f, found)));
    Ok(found.map(|(f, (given, line))| (given.clone(), Origin::File(f.path.clone(), line))))
}

/// Whether two arguments cannot be given together; clap knows it from one of them.
fn exclude(command: &Command, a: &str, b: &str) -> bool {
    let find = |id: &str| command.get_arguments().find(|x| x.get_id() == id);
    let lists = |a: &str, b: &str| {
        find(a).is_some_and(|a| command.get_arg_conflicts_with(a).iter().any(|x| x.get_id() == b))
    };
    lists(a, b) || lists(b, a)
}

/// A value as it would stand on the command line.
fn flags(setting: &Setting, given: &Given) -> Vec<OsString> {
    match given {
        Given::Switch(true) => vec![format!("--{}", setting.key).into()],
        Given::Switch(false) => Vec::new(),
        Given::Values(values) if setting.variable.is_none() => values.iter().map(OsString::from).collect(),
        Given::Values(values) => values.iter().map(|v| format!("--{}={v}", setting.key).into()).collect(),
    }
}

/// Whether an error is about a setting.
fn blames(e: &clap::Error, setting: &Setting) -> bool {
    let text = |kind| e.get(kind).map(ToString::to_string);
    use clap::error::ContextKind::{InvalidArg, PriorArg};
    [InvalidArg, PriorArg].into_iter().filter_map(text).any(|t| t == setting.shown)
}

#[cfg(test)]
mod tests;
