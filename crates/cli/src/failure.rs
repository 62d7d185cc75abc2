//! How a run ends badly: one clear line on stderr and an exit code. 1 is an error, 2 a command line that makes no sense,
//! 101 a fault of this program, 130 a stop by Ctrl-C. A reader that has had enough (`| head -1`) is no error.

use std::fmt;
use std::io;
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};

use crate::render;

/// A command line that parses but makes no sense.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Stopped by Ctrl-C; everything worth saying has been said.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stopped")
    }
}

impl std::error::Error for Interrupted {}

/// The exit code of a command's result, after saying what went wrong.
pub(crate) fn exit_code(result: anyhow::Result<()>) -> ExitCode {
    let Err(e) = result else { return ExitCode::SUCCESS };
    if e.chain().any(|c| c.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
    {
        return ExitCode::SUCCESS;
    }
    if e.is::<Interrupted>() {
        return ExitCode::from(130);
    }
    render::error(&chain(&e));
    ExitCode::from(if e.is::<Usage>() { 2 } else { 1 })
}

/// The messages of an error and its causes on one line, a cause that its parent already quotes left out.
fn chain(e: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in e.chain().map(ToString::to_string) {
        if !line.contains(&cause) {
            line += if line.is_empty() { "" } else { ": " };
            line += &cause;
        }
    }
    line
}

/// Prints help or the version, or the one line that a usage error is. `place` is where the value stands that is to blame, if
/// it does not stand on the command line.
pub(crate) fn usage(e: &clap::Error, place: Option<&str>, command: Option<&str>) -> ExitCode {
    if !e.use_stderr() || e.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let wanted = !e.use_stderr();
        let _ = e.print(); // to a closed pipe: nobody reads it
        return if wanted { ExitCode::SUCCESS } else { ExitCode::from(2) };
    }
    render::error(&usage_line(e, place, command));
    ExitCode::from(2)
}

/// A usage error as one line.
pub(crate) fn usage_line(e: &clap::Error, place: Option<&str>, command: Option<&str>) -> String {
    let text = e.to_string();
    let mut what = Vec::new();
    let mut tips = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
        if let Some(tip) = line.strip_prefix("tip: ") {
            tips.push(tip.to_owned());
        } else if line.starts_with("Usage: ") {
            break;
        } else if !line.starts_with("For more information") {
            what.push(line.strip_prefix("error: ").unwrap_or(line));
        }
    }
    if let (ErrorKind::InvalidSubcommand, Some(word)) = (e.kind(), e.get(ContextKind::InvalidSubcommand)) {
        tips.retain(|t| !t.contains("pass")); // clap's own advice does not know that `run` takes a prompt
        tips.push(format!("to use it as a prompt: quarrel run {word}"));
    }
    let tips = if tips.is_empty() { String::new() } else { format!(" ({})", tips.join("; ")) };
    let command = command.map(|c| format!("{c} ")).unwrap_or_default();
    let place = place.map(|p| format!("{p}: ")).unwrap_or_default();
    format!("{place}{}{tips}; see `quarrel {command}--help`", what.join(" "))
}

/// A panic is a fault of ours: one line that says so, and the end of the process, whichever thread it was in.
pub(crate) fn catch_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
        let what = info.payload_as_str().unwrap_or("no message");
        render::error(&format!(
            "a fault in quarrel itself at {place}: {what}; please report it with the command you ran, at {}/issues",
            env!("CARGO_PKG_REPOSITORY")
        ));
        std::process::exit(101);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_chain_is_one_line_without_repetition() {
        let e = io::Error::other("no space");
        let e = Err::<(), _>(e).context("cannot write x: no space").context("pulling m").unwrap_err();
        assert_eq!(chain(&e), "pulling m: cannot write x: no space");
    }

    #[test]
    fn a_closed_pipe_is_no_error() {
        let e = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("writing");
        assert_eq!(exit_code(Err(e)), ExitCode::SUCCESS);
    }
}
