//! A tiny HTTP server, a made-up pip, and a home for a hub.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quarrel_hub::catalog::Catalog;
use quarrel_hub::fetch::NetConfig;
use quarrel_hub::wheel::PipConfig;
use quarrel_hub::{Config, Hub, LocalModel, Options, Outcome, Progress, Result};
use tempfile::TempDir;

#[derive(Debug, Clone)]
pub(crate) struct Req {
    pub(crate) method: String,
    pub(crate) path: String,
    headers: Vec<(String, String)>,
}

impl Req {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Resp {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    /// Close the connection after this many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// Never answer.
    pub(crate) silent: bool,
}

impl Resp {
    pub(crate) fn status(status: u16) -> Resp {
        Resp { status, ..Resp::default() }
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Resp {
        Resp { status: 200, body: body.into(), ..Resp::default() }
    }

    pub(crate) fn redirect(to: &str) -> Resp {
        Resp::status(302).with("location", to)
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Resp {
        self.headers.push((name, value.into()));
        self
    }

    /// A file, whole or from the byte that the request asks for.
    pub(crate) fn file(req: &Req, body: &[u8]) -> Resp {
        let start = req
            .header("range")
            .and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        let base = Resp::status(200).with("etag", "\"v1\"");
        match start {
            Some(start) if start < body.len() => Resp {
                status: 206,
                body: body[start..].to_vec(),
                ..base.with("content-range", &format!("bytes {start}-{}/{}", body.len() - 1, body.len()))
            },
            Some(_) => Resp::status(416),
            None => Resp { body: body.to_vec(), ..base },
        }
    }
}

pub(crate) struct Server {
    pub(crate) url: String,
    log: Arc<Mutex<Vec<Req>>>,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(&Req) -> Resp + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (handler, seen) = (Arc::new(handler), log.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (handler, seen) = (handler.clone(), seen.clone());
                std::thread::spawn(move || answer(stream, &*handler, &seen));
            }
        });
        Server { url, log }
    }

    /// The requests so far.
    pub(crate) fn log(&self) -> Vec<Req> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn count(&self, method: &str, path: &str) -> usize {
        self.log().iter().filter(|r| r.method == method && r.path.starts_with(path)).count()
    }

    pub(crate) fn host(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }
}

fn answer(stream: TcpStream, handler: &dyn Fn(&Req) -> Resp, seen: &Mutex<Vec<Req>>) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    let mut req = Req { method: words.next()?.into(), path: words.next()?.into(), headers: Vec::new() };
    for line in lines.by_ref() {
        match line.ok()?.split_once(": ") {
            Some((k, v)) => req.headers.push((k.to_ascii_lowercase(), v.into())),
            None => break,
        }
    }
    let resp = handler(&req);
    seen.lock().unwrap().push(req.clone());
    if resp.silent {
        lines.next(); // until the client gives up
        return None;
    }
    let mut out = stream;
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", resp.status);
    if !resp.headers.iter().any(|(k, _)| *k == "content-length") {
        head += &format!("content-length: {}\r\n", resp.body.len());
    }
    for (k, v) in &resp.headers {
        head += &format!("{k}: {v}\r\n");
    }
    out.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    if req.method != "HEAD" {
        out.write_all(&resp.body[..resp.cut.unwrap_or(resp.body.len())]).ok()?;
    }
    out.flush().ok()
}

/// An address where nothing listens.
pub(crate) fn closed() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// Fast and without proxies.
pub(crate) fn net() -> NetConfig {
    NetConfig {
        connect_timeout: Duration::from_secs(2),
        read_timeout: Duration::from_secs(2),
        tries: 3,
        backoff: Duration::from_millis(1),
        retry_after_max: Duration::from_secs(1),
        proxy_from_env: false,
        ca_file: None,
    }
}

/// Bytes that do not repeat and hardly compress.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut x = 0x9E37_79B9_7F4A_7C15u64;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 32) as u8
        })
        .collect()
}

/// Remembers what it was told.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) done: u64,
    pub(crate) total: Option<u64>,
    pub(crate) notes: Vec<String>,
}

impl Progress for Told {
    fn start(&mut self, total: Option<u64>, _what: &str) {
        self.done = 0;
        self.total = total;
    }
    fn advance(&mut self, bytes: u64) {
        self.done += bytes;
    }
    fn finish(&mut self) {}
    fn note(&mut self, line: &str) {
        self.notes.push(line.into());
    }
}

/// A hub in a temporary directory with a made-up pip; every address leads nowhere until a test sets it.
pub(crate) struct Home {
    pub(crate) dir: TempDir,
    pub(crate) config: Config,
}

pub(crate) const CATALOG: &str = r#"
default = "tiny:1m"
[[model]]
name = "tiny"
about = "a test"
licence = "MIT"
default_tag = "1m"
[[model.variant]]
tags = ["1m-q4_1", "1m"]
precision = "Q4_1"
sources = [{ hf = "org/tiny", file = "tiny-Q4_1.gguf" }, { wheel = ["tiny-weights==1.0"], file = "tiny.gguf" }]
[[model.variant]]
tags = ["1m-fp16"]
precision = "F16"
sources = [{ ollama = "tiny:1m-fp16" }, { hf = "org/tiny", file = "tiny-f16.gguf" }]
substitute = "1m-q4_1"
[[model]]
name = "tinier"
about = "a test"
licence = "MIT"
[[model.variant]]
tags = ["latest"]
precision = "Q8_0"
sources = [{ ollama = "tinier" }]
"#;

impl Home {
    pub(crate) fn new() -> Home {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let vars = |key: &str| match key {
            "QUARREL_HOME" => Some(at("quarrel").to_str().unwrap().to_string()),
            "HF_HUB_CACHE" => Some(at("hf").to_str().unwrap().to_string()),
            "OLLAMA_MODELS" => Some(at("ollama").to_str().unwrap().to_string()),
            "HF_TOKEN" => Some("secret".into()),
            _ => None,
        };
        let mut config = Config::from_vars(vars, None).unwrap();
        config.ollama.truncate(1);
        config.net = net();
        config.catalog = Catalog::parse(CATALOG).unwrap();
        config.hf.endpoint = closed();
        config.ollama_registry = closed();
        let script = at("pip.sh");
        fs::create_dir(at("wheels")).unwrap();
        fs::write(&script, PIP.replace("ROOT", dir.path().to_str().unwrap())).unwrap();
        let commands = vec![vec!["sh".into(), script.into()]];
        config.pip = PipConfig { commands, poll: Duration::from_millis(2) };
        Home { dir, config }
    }

    pub(crate) fn hub(&self) -> Hub {
        Hub::new(self.config.clone())
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn ready(&self, name: &str) -> Result<LocalModel> {
        self.ready_with(name, Options::default())
    }

    pub(crate) fn ready_with(&self, name: &str, options: Options) -> Result<LocalModel> {
        match self.hub().resolve(name, options, &mut ())? {
            Outcome::Ready(model) => Ok(model),
            other => panic!("{name}: {other:?}"),
        }
    }

    /// The message of the failure that resolving gives; always one line, unless it lists.
    pub(crate) fn failure(&self, name: &str) -> String {
        let text = self.ready(name).map(|m| format!("{m:?}")).expect_err(name).to_string();
        assert!(!text.contains('\n') || text.contains("several things"), "{text}");
        text
    }

    /// Puts a wheel where the made-up pip finds it.
    pub(crate) fn wheel(&self, package: &str, version: &str, files: &[(&str, &[u8])]) {
        let name = format!("wheels/{}-{version}-py3-none-any.whl", package.replace('-', "_"));
        let mut zip = zip::ZipWriter::new(fs::File::create(self.at(&name)).unwrap());
        for (path, bytes) in files {
            zip.start_file(*path, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
    }

    /// What the made-up pip was asked for.
    pub(crate) fn pip_log(&self) -> Vec<String> {
        fs::read_to_string(self.at("pip.log")).unwrap_or_default().lines().map(str::to_string).collect()
    }
}

const PIP: &str = r#"
[ "$1" = --version ] && exit 0
for last; do :; done
while [ $# -gt 0 ]; do [ "$1" = -d ] && dir="$2"; shift; done
echo "$last" >> ROOT/pip.log
name=$(echo "${last%%==*}" | tr - _)
file="ROOT/wheels/$name-${last##*==}-py3-none-any.whl"
[ -f "$file" ] || { echo "ERROR: No matching distribution found for $last" >&2; exit 1; }
cp "$file" "$dir/"
"#;

/// Every file below a directory, links not followed.
pub(crate) fn files(dir: &Path) -> Vec<String> {
    fn walk(dir: &Path, prefix: &str, into: &mut Vec<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            match entry.file_type().unwrap().is_dir() {
                true => walk(&entry.path(), &format!("{name}/"), into),
                false => into.push(name),
            }
        }
    }
    let mut all = Vec::new();
    walk(dir, "", &mut all);
    all.sort();
    all
}
