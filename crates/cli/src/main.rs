//! The `quarrel` binary: reads the command line, runs one command, turns its result into an exit code.
#![forbid(unsafe_code)]

mod args;
mod chat_format;
mod commands;
mod failure;
mod input;
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
    let argv = spelling::normalise(&args::Cli::command(), std::env::args_os());
    let parsed = args::Cli::command().try_get_matches_from(argv).and_then(|m| args::Cli::from_arg_matches(&m));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(e) => return failure::usage(&e),
    };
    render::set_talk(cli.talk.quiet, cli.talk.verbose);
    failure::exit_code(commands::dispatch(cli.command))
}
