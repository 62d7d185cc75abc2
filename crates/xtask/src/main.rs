//! Development tasks, so that the habits of the project are commands: `cargo xtask help`.
#![forbid(unsafe_code)]

mod checks;
mod clients;
mod fixtures;
mod kernels;
mod tidy;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Development tasks of Longbow Quarrel.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Fetch what the tests need: two small real models, verified, linked into target/fixtures.
    Fixtures,
    /// Fetch the fixtures and run all tests (cargo nextest where installed, else cargo test).
    Test {
        /// Passed on to the test runner, e.g. `-- -E 'test(golden)'`.
        #[arg(last = true)]
        rest: Vec<String>,
    },
    /// Formatting, clippy, documentation, tidy; typos and cargo-deny where installed.
    Lint,
    /// Everything that must be green before a merge: lint, then test.
    Ci,
    /// Check what no other tool checks: file sizes and headers, leftovers, paths of one machine.
    Tidy,
    /// Rewrite the documents that are generated from the code.
    Docs,
    /// Mutate the seed corpora against every parser for SECONDS each; any panic fails.
    Fuzz {
        /// Seconds for each target.
        #[arg(default_value_t = 60)]
        seconds: u64,
    },
    /// Drive a server with the official clients (openai, anthropic, ollama; Python and JavaScript), WebSockets, lm-eval, clients
    /// that misbehave, a browser and schemathesis; about ten minutes.
    ///
    /// Needs Python and a network to install them from; npm and Chromium if there. Logs and pictures are in target/clients.
    TestClients(clients::Options),
    /// Compile the CUDA kernels that changed, with NVIDIA's compiler from the Python registry, and check their resources.
    Kernels {
        /// The Python to make an environment with.
        #[arg(long, default_value = "python3")]
        python: PathBuf,
        /// Also those that did not change.
        #[arg(long)]
        all: bool,
    },
    /// Regenerate the golden models; needs Python with torch, transformers and peft (see the scripts' headers).
    Golden {
        /// The Python to use.
        #[arg(long, default_value = "python3")]
        python: PathBuf,
    },
}

fn main() -> ExitCode {
    match start(Args::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(task: Task) -> Result<()> {
    std::env::set_current_dir(root())?;
    match task {
        Task::Fixtures => fixtures::fetch().map(|dir| println!("fixtures are in {}", dir.display())),
        Task::Test { rest } => test(&rest),
        Task::Lint => checks::lint(),
        Task::Ci => checks::lint().and_then(|()| test(&[])),
        Task::Tidy => tidy::check(),
        Task::Docs => checks::write_docs(),
        Task::Fuzz { seconds } => fuzz(seconds),
        Task::TestClients(options) => clients::test(&options),
        Task::Kernels { python, all } => kernels::build(&python, all),
        Task::Golden { python } => golden(&python),
    }
}

/// The workspace's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("crates/xtask is two levels deep")
        .to_owned()
}

fn test(rest: &[String]) -> Result<()> {
    let fixtures = fixtures::fetch()?;
    let nextest =
        Command::new("cargo").args(["nextest", "--version"]).output().is_ok_and(|o| o.status.success());
    let mut command = Command::new("cargo");
    if nextest {
        command.args(["nextest", "run", "--workspace"]);
    } else {
        eprintln!("cargo-nextest is not installed; cargo test runs the same tests, more slowly");
        command.args(["test", "--workspace"]);
    }
    run(command.args(rest).env("QUARREL_FIXTURES", fixtures))
}

fn fuzz(seconds: u64) -> Result<()> {
    run(Command::new("cargo")
        .args(["run", "--release", "--package", "quarrel-formats", "--example", "fuzz", "--"])
        .arg(seconds.to_string()))
}

fn golden(python: &Path) -> Result<()> {
    for script in ["make_tiny.py", "make_families.py", "make_adapters.py", "make_real.py"] {
        run(Command::new(python).arg(root().join("crates/conform/goldens").join(script)))?;
    }
    Ok(())
}

/// Runs a command, showing it; a failure names it.
fn run(command: &mut Command) -> Result<()> {
    let shown = format!(
        "{} {}",
        command.get_program().to_string_lossy(),
        command.get_args().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ")
    );
    eprintln!("$ {shown}");
    let status = command.status().with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed");
    }
    Ok(())
}
