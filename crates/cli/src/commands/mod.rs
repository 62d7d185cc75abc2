//! One file for each command.

mod completions;
mod docs;
mod inspect;
mod list;
mod man;
mod pull;
mod rm;
mod show;
mod tokenize;

use anyhow::Result;

use crate::args::Command;

/// Runs a command.
pub(crate) fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Pull(args) => pull::run(args),
        Command::List(args) => list::run(args),
        Command::Show(args) => show::run(args),
        Command::Rm(args) => rm::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
        Command::DocsCli => docs::run(),
    }
}
