//! The `quarrel` binary: reads the command line, runs one command, turns its result into an exit code.
#![forbid(unsafe_code)]

mod adapter;
mod args;
mod bytes;
mod commands;
mod config;
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
mod several;
mod spelling;

use std::process::ExitCode;

use clap::FromArgMatches as _;

fn main() -> ExitCode {
    failure::catch_panics();
    let definitions = config::definitions();
    let argv = spelling::normalise(&definitions, std::env::args_os());
    let command = argv.get(1).and_then(|w| definitions.find_subcommand(w)).map(|c| c.get_name().to_owned());
    let (cli, notes) = match config::layered(&definitions, argv) {
        Ok(layered) => (args::Cli::from_arg_matches(&layered.matches), layered.notes),
        Err(config::Fault::Usage(e, place)) => {
            return failure::usage(&e, place.as_deref(), command.as_deref());
        }
        Err(config::Fault::Layer(e)) => {
            return failure::exit_code(Err(failure::Usage(format!("{e:#}")).into()));
        }
    };
    let cli = match cli {
        Ok(cli) => cli,
        Err(e) => return failure::usage(&e, None, command.as_deref()),
    };
    render::set_talk(cli.talk.quiet, cli.talk.verbose);
    notes.iter().for_each(render::note);
    failure::exit_code(commands::dispatch(cli.command))
}
