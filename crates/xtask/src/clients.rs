//! The official clients of others' APIs against `quarrel serve`, in environments of their own under `target/clients`.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{fixtures, run};

/// A server that ends with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Installs the clients, starts a server with the small model, and drives every route that they have.
pub(crate) fn test(python: &Path) -> Result<()> {
    let fixtures = fixtures::fetch()?;
    let model = fixtures.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    let encoder = fixtures.join("all-MiniLM-L6-v2");
    let dir = Path::new("target/clients");
    std::fs::create_dir_all(dir)?;
    let venv = dir.join("venv");
    if !venv.exists() {
        run(Command::new(python).args(["-m", "venv"]).arg(&venv))?;
    }
    let python = venv.join("bin/python");
    let clients = ["openai", "anthropic", "ollama", "websockets", "lm_eval[api]"];
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(clients))?;
    run(Command::new("cargo").args(["build", "--release"]))?;
    // Free a moment ago; somebody may be faster, and then the server says so.
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let child = Command::new("target/release/quarrel")
        .arg("serve")
        .arg(format!("smol={}", model.display()))
        .args(["--embedding-model", &format!("minilm={}", encoder.display())])
        .arg("--data")
        .arg(dir.join("data"))
        .args(["--log", "warn", "--port", &port.to_string()])
        .spawn()
        .context("cannot start target/release/quarrel")?;
    let mut server = Server(child);
    let base = format!("http://127.0.0.1:{port}");
    wait(&mut server, port)?;
    let scripts = Path::new("crates/server/clients");
    for script in ["openai_client.py", "anthropic_client.py", "ollama_client.py", "streams_client.py"] {
        run(Command::new(&python).arg(scripts.join(script)).args([&base, "smol"]))?;
    }
    run(Command::new(&python)
        .arg(scripts.join("lm_eval/run.py"))
        .args([&base, "smol", "target/release/quarrel"])
        .arg(&model))?;
    if Command::new("npm").arg("--version").output().is_err() {
        eprintln!("npm is not installed; the JavaScript client did not run");
        return Ok(());
    }
    std::fs::copy(scripts.join("openai_client.mjs"), dir.join("openai_client.mjs"))?;
    run(Command::new("npm").current_dir(dir).args([
        "install",
        "--silent",
        "--no-fund",
        "--prefix",
        ".",
        "openai",
    ]))?;
    run(Command::new("node").current_dir(dir).args(["openai_client.mjs", &base, "smol"]))
}

fn wait(server: &mut Server, port: u16) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        if let Some(status) = server.0.try_wait()? {
            bail!("the server ended: {status}");
        }
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("the server did not listen within a minute")
}
