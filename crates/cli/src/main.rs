//! The `quarrel` binary: reads the command line, runs one command, turns its result into an exit code.
#![forbid(unsafe_code)]

mod adapter;
mod args;
mod bytes;
mod commands;
mod data;
mod explain;
mod failure;
mod input;
mod instructions;
mod interrupt;
mod models;
mod render;
mod session;
mod settings;
mod spelling;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

fn main() -> ExitCode {
    failure::catch_panics();
    let definitions = args::Cli::command();
    let argv = spelling::normalise(&definitions, std::env::args_os());
    let command = argv.get(1).and_then(|w| definitions.find_subcommand(w)).map(|c| c.get_name().to_owned());
    let parsed = definitions.try_get_matches_from(argv).and_then(|m| args::Cli::from_arg_matches(&m));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(e) => return failure::usage(&e, command.as_deref()),
    };
    render::set_talk(cli.talk.quiet, cli.talk.verbose);
    failure::exit_code(commands::dispatch(cli.command))
}
