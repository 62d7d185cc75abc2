//! Fresh processes of this program, started to be measured: the time to their first token, and the memory they need.
//! What such a process does is the caller's; it tells of it in lines of JSON on its stdout ([`Line`]).

use crate::report::{Memory, StartUp};
use crate::session::Turn;
use crate::stats::Spread;
use crate::{Error, Progress, Result};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// How often one looks whether a stop was asked for.
const LOOK: Duration = Duration::from_millis(50);

/// What a child says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The first token is there.
    FirstToken(u32),
    /// The most memory it held, in bytes, at its end.
    PeakRss(u64),
    /// One round of the work.
    Turn(Turn),
}

/// How to start a child; its kind is added as the last argument.
#[derive(Debug, Clone)]
pub struct Child {
    /// This program.
    pub exe: PathBuf,
    /// Arguments, up to the one that takes the kind.
    pub args: Vec<OsString>,
    /// Whether the user wants to stop: then the process is ended, and what it was for gives [`Error::Stopped`].
    pub stop: fn() -> bool,
}

/// What a child is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A short question, as `run` answers it, to the first token.
    Start,
    /// The prompt and the new tokens, for the memory.
    Memory,
    /// One round of the work.
    Turn,
}

impl Kind {
    /// As it stands on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Start => "start",
            Kind::Memory => "memory",
            Kind::Turn => "turn",
        }
    }
}

impl Child {
    fn command(&self, kind: Kind) -> Command {
        let mut c = Command::new(&self.exe);
        c.args(&self.args).arg(kind.name());
        c
    }

    /// Start-up of `repeat` processes, after one that brings the file into the page cache.
    ///
    /// # Errors
    /// When a process fails.
    pub fn start_up(&self, repeat: usize, progress: Progress<'_>) -> Result<StartUp> {
        let mut seconds = Vec::with_capacity(repeat);
        for round in 0..=repeat {
            progress("start-up");
            let lines = run(self.command(Kind::Start), "the start-up of a process", self.stop)?;
            let first = lines.iter().find_map(|(l, at)| matches!(l, Line::FirstToken(_)).then_some(*at));
            if round > 0 {
                seconds.extend(first);
            }
        }
        let spread = Spread::of(&seconds).ok_or_else(|| silent("the start-up of a process"))?;
        Ok(StartUp { seconds: spread.median, min: spread.min, max: spread.max })
    }

    /// Peak memory of one process; `kv_bytes` is what the cache of its tokens takes.
    ///
    /// # Errors
    /// When the process fails; `None` where the system does not tell.
    pub fn memory(&self, weight_bytes: u64, kv_bytes: u64, progress: Progress<'_>) -> Result<Option<Memory>> {
        progress("memory");
        let lines = run(self.command(Kind::Memory), "the memory of a process", self.stop)?;
        let peak = lines.iter().find_map(|(l, _)| if let Line::PeakRss(b) = l { Some(*b) } else { None });
        Ok(peak.map(|peak_rss_bytes| Memory { peak_rss_bytes, weight_bytes, kv_bytes }))
    }

    /// One round of the work in a process of its own.
    ///
    /// # Errors
    /// When the process fails.
    pub fn turn(&self) -> Result<Turn> {
        let lines = run(self.command(Kind::Turn), "a round of ours", self.stop)?;
        let turn = lines.into_iter().find_map(|(l, _)| if let Line::Turn(t) = l { Some(t) } else { None });
        turn.ok_or_else(|| silent("a round of ours"))
    }
}

fn silent(what: &str) -> Error {
    Error::Child { what: what.into(), why: "the process said nothing".into() }
}

/// Ends this process when the one that started it has ended, however that came: its end of our stdin is open as long as it lives.
pub fn end_with_parent() {
    thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()); // an error is an end too
        std::process::exit(1);
    });
}

/// Runs a process to its end, or until `stop`: its lines, each with the seconds since the start. Other lines are skipped.
pub(crate) fn run<T>(mut command: Command, what: &str, stop: fn() -> bool) -> Result<Vec<(T, f64)>>
where
    T: for<'a> Deserialize<'a> + Send + 'static,
{
    let fail = |why: String| Error::Child { what: what.into(), why };
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Ctrl-C on a terminal is for us alone: we end the process, and say nothing of its end.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let start = Instant::now();
    let mut child = command
        .spawn()
        .map_err(|e| fail(format!("{} cannot be started: {e}", command.get_program().to_string_lossy())))?;
    let (Some(_lease), Some(out), Some(mut err)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(fail("it has no streams".into()));
    };
    // Read aside, so that a process that complains at length never waits for us.
    let complaints = thread::spawn(move || {
        let mut text = Vec::new();
        let _ = err.read_to_end(&mut text); // what came before an error is all there is
        String::from_utf8_lossy(&text).into_owned()
    });
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(std::io::Result::ok) {
            let at = start.elapsed().as_secs_f64();
            let _ = serde_json::from_str(&line).map(|l| tell.send((l, at))); // after a stop nobody listens
        }
    });
    let mut lines = Vec::new();
    loop {
        match told.recv_timeout(LOOK) {
            Ok(line) => lines.push(line),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if stop() => {
                let _ = child.kill(); // it may have ended by itself
                let _ = child.wait();
                return Err(Error::Stopped);
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    let status = child.wait().map_err(|e| fail(e.to_string()))?;
    let complaints = complaints.join().unwrap_or_default();
    if !status.success() {
        // Ctrl-C may have met it before it had its own group; then we hear of it within the moment.
        thread::sleep(LOOK);
        if stop() {
            return Err(Error::Stopped);
        }
        let last = complaints.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("it gave no reason");
        let last = last.strip_prefix("quarrel: error: ").unwrap_or(last);
        return Err(fail(format!("{} ({status})", last.trim())));
    }
    Ok(lines)
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Child {
        Child { exe: "sh".into(), args: vec!["-c".into(), script.into()], stop: || false }
    }

    #[test]
    fn lines_of_a_child_are_read_and_others_skipped() {
        let child = shell(
            "echo noise; echo '{\"first_token\":7}'; echo '{\"peak_rss\":1000}'; echo '{\"turn\":{\"seconds\":[1.5]}}'",
        );
        let s = child.start_up(2, &mut |_| ()).unwrap();
        assert!(s.min > 0.0 && s.min <= s.seconds && s.seconds <= s.max);
        let memory = child.memory(600, 100, &mut |_| ()).unwrap().unwrap();
        assert_eq!(memory, Memory { peak_rss_bytes: 1000, weight_bytes: 600, kv_bytes: 100 });
        assert_eq!(child.turn().unwrap().seconds, [1.5]);
    }

    #[test]
    fn a_child_that_fails_is_quoted() {
        let e = shell("echo first >&2; echo 'quarrel: error: no such file' >&2; exit 3").turn().unwrap_err();
        let text = e.to_string();
        assert!(text.contains("no such file") && text.contains('3') && !text.contains("quarrel: "), "{text}");
        assert!(shell("true").turn().unwrap_err().to_string().contains("said nothing"));
        let missing = Child { exe: "./nowhere/quarrel".into(), args: vec![], stop: || false };
        assert!(missing.turn().unwrap_err().to_string().contains("nowhere"));
    }

    #[test]
    fn a_stop_ends_the_child() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        // The first one would tell its number and never end.
        let child =
            Child { stop: || true, ..shell(&format!("echo $$ > {}; exec sleep 1000", file.display())) };
        assert!(matches!(child.turn(), Err(Error::Stopped)));
        let pid = std::fs::read_to_string(&file).unwrap_or_default();
        let alive = shell(&format!("test -n '{0}' && kill -0 '{0}'", pid.trim())).turn().unwrap_err();
        assert!(!alive.to_string().contains("said nothing"), "{alive}");
    }
}
