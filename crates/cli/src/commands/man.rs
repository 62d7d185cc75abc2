//! `quarrel man [DIR]`: man pages from the definitions of the flags.

use std::fs;

use anyhow::{Context, Result};
use clap::Command;

use crate::args::Man;
use crate::config;
use crate::render::{self, Out};

pub(crate) fn run(args: Man) -> Result<()> {
    let root = config::built();
    let Some(dir) = args.dir else {
        return Ok(Out::new().text(&page(root, "quarrel")?)?);
    };
    let io = |doing: &str| format!("cannot {doing} {}", dir.display());
    fs::create_dir_all(&dir).with_context(|| io("create"))?;
    let mut pages = vec![("quarrel".to_owned(), root.clone())];
    for sub in root.get_subcommands().filter(|s| !s.is_hide_set() && s.get_name() != "help") {
        pages.push((format!("quarrel-{}", sub.get_name()), sub.clone()));
    }
    for (name, command) in pages {
        let path = dir.join(format!("{name}.1"));
        fs::write(&path, page(command, &name)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        render::note(path.display());
    }
    Ok(())
}

fn page(command: Command, name: &str) -> Result<String> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).title(name.to_uppercase()).render(&mut page)?;
    Ok(String::from_utf8(page)?)
}
