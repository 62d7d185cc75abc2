//! `quarrel completions SHELL`.

use anyhow::Result;
use clap::CommandFactory;

use crate::args::{Cli, Completions};
use crate::render::Out;

pub(crate) fn run(args: Completions) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "quarrel", &mut script);
    Ok(Out::new().text(&String::from_utf8(script)?)?)
}
