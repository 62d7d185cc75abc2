//! One file for each command.

mod bench;
mod bench_speculate;
mod chat;
mod completions;
mod config;
mod docs;
mod doctor;
mod embed;
mod eval;
mod inspect;
mod keys;
mod list;
mod logits;
mod man;
mod perplexity;
mod plan;
mod pull;
mod rm;
mod run;
mod serve;
mod show;
mod template;
mod tokenize;

use anyhow::Result;

use crate::args::Command;

/// Runs a command.
pub(crate) fn dispatch(command: Command) -> Result<()> {
    match command {
        Command::Run(args) => run::run(*args),
        Command::Chat(args) => chat::run(*args),
        Command::Serve(args) => serve::run(*args),
        Command::Keys(args) => keys::run(args),
        Command::Config(args) => config::run(args),
        Command::Pull(args) => pull::run(args),
        Command::List(args) => list::run(args),
        Command::Show(args) => show::run(args),
        Command::Rm(args) => rm::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Embed(args) => embed::run(*args),
        Command::Plan(args) => plan::run(args),
        Command::Perplexity(args) => perplexity::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Bench(args) => bench::run(*args),
        Command::Logits(args) => logits::run(args),
        Command::Template(args) => template::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
        Command::DocsCli => docs::run(),
        Command::DocsArchitectures => docs::print(&quarrel_model::arch::docs::markdown()),
        Command::DocsOpenapi => docs::print(&quarrel_server::reference::openapi_json()),
        Command::DocsConfig => docs::print(&crate::config::reference()),
        Command::DocsMetrics => docs::print(&quarrel_server::reference::metrics_markdown()),
    }
}
