//! `quarrel config`: what holds and why, and a file to begin with.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use crate::args::{Config, ConfigCommand, ConfigOf};
use crate::config::{self, Fault, Origin, Setting};
use crate::failure;
use crate::render::{self, Out};

pub(crate) fn run(args: Config) -> Result<()> {
    match args.command {
        ConfigCommand::Show { of, json } => show(of, args.config.config, json),
        ConfigCommand::Init { file } => init(file),
    }
}

fn show(of: ConfigOf, asked: Option<PathBuf>, as_json: bool) -> Result<()> {
    let name = match of {
        ConfigOf::Serve => "serve",
        ConfigOf::Run => "run",
        ConfigOf::Chat => "chat",
        ConfigOf::Keys => "keys",
    };
    let mut argv = vec!["quarrel".into(), name.into()];
    argv.extend(asked.map(|path| {
        let mut flag = std::ffi::OsString::from("--config=");
        flag.push(path);
        flag
    }));
    if of == ConfigOf::Keys {
        argv.push("list".into());
    }
    let layered = config::layered(&config::definitions(), argv).map_err(|fault| match fault {
        Fault::Usage(e, place) => anyhow!(failure::usage_line(&e, place.as_deref(), Some(name))),
        Fault::Layer(e) => e,
    })?;
    layered.notes.iter().for_each(render::note);
    let matches = layered.matches.subcommand_matches(name).context("the command has no settings")?;
    let built = config::built();
    let command = built.find_subcommand(name).context("the command has no settings")?;
    let mut rows = Vec::new();
    for setting in config::settings(command) {
        let origin = layered.origin(matches, &setting.id);
        rows.push((value(matches, &setting), setting, origin));
    }
    let mut out = Out::new();
    if as_json {
        let settings: Vec<Value> = rows
            .into_iter()
            .map(|(value, setting, origin)| {
                let from = match &origin {
                    Origin::Environment(name) => Some(name.clone()),
                    origin => origin.place(),
                };
                json!({ "key": setting.key, "value": value, "source": word(&origin), "from": from })
            })
            .collect();
        return out.json(&json!({ "command": name, "file": layered.file, "settings": settings }));
    }
    render::note(match &layered.file {
        Some(path) => format!("configuration {}", path.display()),
        None => "no configuration file".into(),
    });
    let mut table = vec![["KEY", "VALUE", "FROM"].map(String::from).to_vec()];
    for (value, setting, origin) in rows {
        let text = match value {
            Value::Null => "-".into(),
            Value::String(s) => s,
            Value::Array(list) => {
                list.iter().map(|v| v.as_str().unwrap_or_default()).collect::<Vec<_>>().join(", ")
            }
            other => other.to_string(),
        };
        table.push(vec![setting.key, text, origin.place().unwrap_or_else(|| word(&origin).into())]);
    }
    Ok(out.table(&table, &[])?)
}

fn word(origin: &Origin) -> &'static str {
    match origin {
        Origin::Flag => "flag",
        Origin::Environment(_) => "environment",
        Origin::File(..) => "file",
        Origin::Default => "default",
    }
}

/// A setting's value; none where the default is found out only when the command runs.
fn value(matches: &clap::ArgMatches, setting: &Setting) -> Value {
    if setting.switch {
        return matches.get_flag(&setting.id).into();
    }
    let raw = matches.get_raw(&setting.id).into_iter().flatten();
    let mut values: Vec<Value> = raw.map(|v| v.to_string_lossy().into_owned().into()).collect();
    if setting.secret && !values.is_empty() {
        return "(hidden)".into();
    }
    match (setting.many, values.len()) {
        (_, 0) => Value::Null,
        (false, 1) => values.remove(0),
        _ => values.into(),
    }
}

fn init(file: Option<PathBuf>) -> Result<()> {
    let text = config::example();
    if file.as_deref().is_some_and(|f| f.as_os_str() == "-") {
        return Ok(Out::new().text(&text)?);
    }
    let path =
        file.or_else(config::default_path).context("no place for a configuration is known; name a file")?;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    // It may get keys.
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&path).with_context(|| match path.exists() {
        true => format!("{} is there already and stays as it is; name another file", path.display()),
        false => format!("cannot write {}", path.display()),
    })?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    render::note(format!("{} has every key; a line counts when its # is taken away", path.display()));
    Ok(())
}
