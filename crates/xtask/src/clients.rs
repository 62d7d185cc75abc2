//! The official clients of others' APIs against `quarrel serve`, in environments of their own under `target/clients`: each is
//! a step with a limit of time and a log, and a table at the end says how they did.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;

use crate::{fixtures, run};

/// Where everything is put.
const DIR: &str = "target/clients";
const SCRIPTS: &str = "crates/server/clients";
const BROWSER: &str = "crates/server/web/test";
/// What Python installs.
const PACKAGES: [&str; 6] = ["openai", "anthropic", "ollama", "websockets", "lm_eval[api]", "schemathesis"];
/// The key of the second server.
const KEY: &str = "test-clients";
/// Lines of a failed step's log that are shown.
const SHOWN: usize = 30;

/// What `test-clients` takes.
#[derive(Args)]
pub(crate) struct Options {
    /// The Python to make an environment with.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Only the steps whose name has this in it.
    #[arg(long, default_value = "")]
    only: String,
    /// Test the release build; the debug build is compiled sooner and fast enough.
    #[arg(long)]
    release: bool,
    /// Print the table as JSON.
    #[arg(long)]
    json: bool,
}

/// A server that ends with this.
struct Server {
    child: Child,
    base: String,
    log: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client to run.
struct Step {
    name: &'static str,
    command: Command,
    /// Most seconds that it may take.
    limit: u64,
    /// What it needs and is not there.
    lacks: Option<&'static str>,
}

/// How a step did.
struct Done {
    name: &'static str,
    outcome: Outcome,
    seconds: f64,
    /// The last line of what it said.
    said: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Outcome::Passed => "passed",
            Outcome::Failed => "FAILED",
            Outcome::Skipped => "skipped",
        }
    }
}

/// Installs the clients, starts servers with the small models, drives every route that the clients have, and tells.
pub(crate) fn test(options: &Options) -> Result<()> {
    let began = Instant::now();
    let fixtures = fixtures::fetch()?;
    let models = [fixtures.join("SmolLM2-135M-Instruct.Q4_1.gguf"), fixtures.join("all-MiniLM-L6-v2")];
    std::fs::create_dir_all(DIR).with_context(|| format!("cannot make {DIR}"))?;
    let python = install(options)?;
    let binary = build(options.release)?;
    let (smol, minilm) = (format!("smol={}", models[0].display()), format!("minilm={}", models[1].display()));
    let serve = |log: &str, more: &[&str]| {
        let common = ["serve", &smol, "--embedding-model", &minilm];
        Server::start(Command::new(&binary).args(common).args(more), log)
    };
    let data = format!("{DIR}/data");
    // A store of an earlier run would grow, and be listed.
    let _ = std::fs::remove_dir_all(&data);
    let open = serve("server", &["--data", &format!("{data}/open")])?;
    let locked = serve("server-with-key", &["--data", &format!("{data}/locked"), "--api-key", KEY])?;
    // What asks at random may ask for the longest answer that there is.
    let short = serve("server-of-short-answers", &["--data", &format!("{data}/short"), "--ctx", "256"])?;
    let servers = [&open, &locked, &short];
    let steps = steps(&python, &binary, &models[0], servers.map(|s| &*s.base));
    let mut done = Vec::new();
    for step in steps.into_iter().filter(|s| s.name.contains(&options.only)) {
        done.push(step.run()?);
    }
    let gone: Vec<_> = servers.iter().filter(|s| !s.lives()).map(|s| &*s.log).collect();
    tell(&done, options.json, began.elapsed());
    let failed: Vec<_> = done.iter().filter(|d| d.outcome == Outcome::Failed).map(|d| d.name).collect();
    if !gone.is_empty() {
        bail!("a server did not answer /health at the end; see {}", gone.join(", "));
    }
    if !failed.is_empty() {
        bail!("{} failed; their logs are in {DIR}", failed.join(", "));
    }
    if done.is_empty() {
        bail!("no step has {:?} in its name", options.only);
    }
    Ok(())
}

/// Makes the environments, or uses those of the last time.
fn install(options: &Options) -> Result<PathBuf> {
    let venv = Path::new(DIR).join("venv");
    let python = venv.join("bin/python");
    if !python.exists() {
        run(Command::new(&options.python).args(["-m", "venv"]).arg(&venv))?;
    }
    // What is there is not looked up again.
    let listed = Path::new(DIR).join("installed.txt");
    let wanted = PACKAGES.join("\n");
    if std::fs::read_to_string(&listed).is_ok_and(|text| text == wanted) {
        eprintln!("the Python clients are installed ({}; delete it for newer ones)", listed.display());
    } else {
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade"];
        run(Command::new(&python).args(pip).args(PACKAGES))?;
        std::fs::write(&listed, wanted).with_context(|| format!("cannot write {}", listed.display()))?;
    }
    if has("npm") {
        let npm = ["install", "--silent", "--no-fund", "--no-audit"];
        if !Path::new(DIR).join("node_modules/openai").exists() {
            run(Command::new("npm").current_dir(DIR).args(npm).args(["--prefix", ".", "openai"]))?;
        }
        if !Path::new(BROWSER).join("node_modules/playwright-core").exists() {
            run(Command::new("npm").current_dir(BROWSER).args(npm))?;
        }
    }
    Ok(python)
}

fn build(release: bool) -> Result<PathBuf> {
    let mut command = Command::new("cargo");
    // With the features of the whole workspace, as everything else is built.
    command.args(["build", "--workspace", "--bin", "quarrel"]);
    if release {
        command.arg("--release");
    }
    run(&mut command)?;
    let folder = if release { "release" } else { "debug" };
    Ok(Path::new("target").join(folder).join("quarrel").canonicalize()?)
}

/// Whether a program is installed.
fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success())
}

fn steps(python: &Path, binary: &Path, model: &Path, [open, locked, short]: [&str; 3]) -> Vec<Step> {
    let scripts = Path::new(SCRIPTS);
    let of = |name, script: &str, limit: u64, args: &[&str]| {
        let mut command = Command::new(python);
        command.arg(scripts.join(script)).args(args);
        Step { name, command, limit, lacks: None }
    };
    let mut lm_eval = of("lm-eval", "lm_eval/run.py", 300, &[open, "smol"]);
    lm_eval.command.arg(binary).arg(model);
    let mut all = vec![
        of("openai (Python)", "openai_client.py", 300, &[open, "smol"]),
        of("openai (Python), with a key", "openai_client.py", 300, &[locked, "smol", KEY]),
        of("anthropic", "anthropic_client.py", 300, &[open, "smol"]),
        of("ollama", "ollama_client.py", 300, &[open, "smol"]),
        of("streams and WebSockets", "streams_client.py", 300, &[open, "smol"]),
        lm_eval,
        of("clients that misbehave", "hostile.py", 300, &[open, "smol"]),
    ];
    let node = || Some("node and npm").filter(|_| !(has("node") && has("npm")));
    // The package is found beside the script.
    let script = Path::new(DIR).join("openai_client.mjs");
    let copied = std::fs::copy(scripts.join("openai_client.mjs"), &script);
    let mut command = Command::new("node");
    command.arg(&script).args([open, "smol"]);
    let lacks = node().or(Some("a folder that can be written to").filter(|_| copied.is_err()));
    all.push(Step { name: "openai (JavaScript)", command, limit: 300, lacks });
    let paths = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
    let chromium = std::env::var_os("CHROMIUM").is_some() || paths.iter().any(|p| Path::new(p).exists());
    for (name, args) in [
        ("web page, before a mock", &[][..]),
        ("web page", &[open][..]),
        ("web page, with a key", &[locked, "--key", KEY][..]),
    ] {
        let mut command = Command::new("node");
        command.arg(Path::new(BROWSER).join("browser.mjs")).args(args);
        let shots = format!("{DIR}/shots/{}", name.replace([' ', ','], "-"));
        command.args(["--shots", &shots]);
        let lacks = node().or(Some("Chromium").filter(|_| !chromium));
        all.push(Step { name, command, limit: 420, lacks });
    }
    let mut command = Command::new(python.with_file_name("schemathesis"));
    command.args(["run", &format!("{short}/openapi.json")]);
    command.args([
        "--checks",
        "not_a_server_error",
        "--max-examples",
        "10",
        "--max-time",
        "150",
        "--seed",
        "1",
    ]);
    command.args([
        "--generation-database",
        "none",
        "--request-timeout",
        "120",
        "--workers",
        "2",
        "--no-color",
    ]);
    command.args(["--continue-on-failure", "--warnings", "off"]);
    all.push(Step { name: "schemathesis", command, limit: 420, lacks: None });
    all
}

impl Server {
    /// Starts one on a free port and waits until it has made a token.
    fn start(command: &mut Command, log: &str) -> Result<Server> {
        let path = format!("{DIR}/{log}.log");
        let file = File::create(&path).with_context(|| format!("cannot write {path}"))?;
        // Free a moment ago; somebody may be faster, and then the server says so.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let command = command.args(["--log", "warn", "--port", &port.to_string()]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).spawn();
        let child = child.context("cannot start quarrel")?;
        let mut server = Server { child, base: format!("http://127.0.0.1:{port}"), log: path };
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(60) {
            if let Some(status) = server.child.try_wait()? {
                bail!("the server ended ({status}): {}", tail(&server.log, SHOWN));
            }
            if server.answers("/ready") {
                return Ok(server);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("the server was not ready within a minute: {}", tail(&server.log, SHOWN))
    }

    fn lives(&self) -> bool {
        self.answers("/health")
    }

    fn answers(&self, path: &str) -> bool {
        use std::io::{Read as _, Write as _};
        let ask = || -> std::io::Result<bool> {
            let mut stream = std::net::TcpStream::connect(self.base.trim_start_matches("http://"))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut said = [0; 12];
            stream.read_exact(&mut said)?;
            Ok(said.ends_with(b"200"))
        };
        ask().unwrap_or(false)
    }
}

impl Step {
    /// Runs it to its end, or to its limit.
    fn run(mut self) -> Result<Done> {
        let name = self.name;
        if let Some(lacks) = self.lacks {
            eprintln!("{name}: skipped, {lacks} not found");
            return Ok(Done {
                name,
                outcome: Outcome::Skipped,
                seconds: 0.0,
                said: format!("{lacks} not found"),
            });
        }
        let file: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let path = format!("{DIR}/{file}.log");
        let log = File::create(&path).with_context(|| format!("cannot write {path}"))?;
        eprintln!("{name} ... (at most {} s, {path})", self.limit);
        let start = Instant::now();
        let errors = log.try_clone()?;
        let mut child = self
            .command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let limit = Duration::from_secs(self.limit);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if start.elapsed() > limit {
                child.kill().and_then(|()| child.wait()).with_context(|| format!("cannot end {name}"))?;
                break None;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let passed = status.is_some_and(|s| s.success());
        let said = match status {
            Some(_) => tail(&path, 1).trim_matches(['=', ' ']).to_owned(),
            None => format!("not done after {} s", self.limit),
        };
        let seconds = start.elapsed().as_secs_f64();
        if !passed {
            eprintln!("{}", tail(&path, SHOWN));
        }
        eprintln!("{name}: {said} ({seconds:.1} s)");
        let outcome = if passed { Outcome::Passed } else { Outcome::Failed };
        Ok(Done { name, outcome, seconds, said })
    }
}

/// The last lines of a log that say something.
fn tail(path: &str, lines: usize) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn round(seconds: f64) -> f64 {
    (seconds * 10.0).round() / 10.0
}

fn tell(done: &[Done], json: bool, took: Duration) {
    if json {
        let one = |d: &Done| {
            let (outcome, seconds) = (d.outcome.word().to_lowercase(), round(d.seconds));
            json!({ "name": d.name, "outcome": outcome, "seconds": seconds, "said": d.said })
        };
        let steps: Vec<_> = done.iter().map(one).collect();
        println!("{}", json!({ "seconds": round(took.as_secs_f64()), "steps": steps }));
        return;
    }
    let wide = done.iter().map(|d| d.name.len()).max().unwrap_or(0);
    println!();
    for d in done {
        println!("{:wide$}  {:7}  {:6.1} s  {}", d.name, d.outcome.word(), d.seconds, d.said);
    }
    println!("{:wide$}  {:7}  {:6.1} s", "all", "", took.as_secs_f64());
}
