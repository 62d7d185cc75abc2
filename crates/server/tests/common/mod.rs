//! A server in this process, with a tiny model of random weights that has a chat template with tools and reasoning.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use quarrel_formats::gguf::{self, NewTensor};
use quarrel_formats::{Source, Value as MetaValue};
use quarrel_hub::{LocalModel, Store as ModelStore};
use quarrel_runtime::memory::Pool;
use quarrel_runtime::{EngineOptions, Talk};
use quarrel_server::{Hosts, ModelSettings, ModelSource, Origins, ServeConfig, Times};
use quarrel_store::presets::Presets;
use quarrel_store::{Limits, Store};
use serde_json::{Value, json};

/// What the model is called.
pub(crate) const MODEL: &str = "tiny";
/// Its context in tokens.
pub(crate) const CONTEXT: u32 = 2048;

const TEMPLATE: &str = "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}{{ m.role }}: \
    {% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}\
    {% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}\
    {% if m.role == 'tool' %}.{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: \
    {% if reasoning_effort == 'low' %}<think>{% endif %}{% endif %}";

/// What the encoder beside it is called.
pub(crate) const ENCODER: &str = "bert";

/// A golden encoder, whose vocabulary has letters and a few words.
fn encoder() -> LocalModel {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conform/goldens/embed/bert");
    local(dir.join("model.safetensors"))
}

pub(crate) fn model(dir: &Path) -> LocalModel {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conform/goldens/tiny/smollm2/model.gguf");
    let source = Source::open(&tiny).unwrap();
    let mut metadata = source.metadata().unwrap().clone();
    metadata.insert("tokenizer.chat_template", MetaValue::String(TEMPLATE.into()));
    let shapes: Vec<Vec<u64>> =
        source.tensors().map(|t| t.shape.iter().map(|d| *d as u64).collect()).collect();
    let tensors: Vec<NewTensor<'_>> = source
        .tensors()
        .zip(&shapes)
        .map(|(t, shape)| NewTensor { name: &t.name, dtype: t.dtype, shape, data: &t.data })
        .collect();
    let path = dir.join("tiny.gguf");
    gguf::write(&mut fs::File::create(&path).unwrap(), &metadata, &tensors).unwrap();
    local(path)
}

pub(crate) fn local(path: PathBuf) -> LocalModel {
    LocalModel {
        size: fs::metadata(&path).unwrap().len(),
        name: path.display().to_string(),
        path,
        store: ModelStore::Path,
        source: String::new(),
        digest: None,
        precision: None,
        licence: None,
        template: None,
        system: None,
        params: None,
        substitute_for: None,
        notes: Vec::new(),
    }
}

/// The address of a server that runs until the process ends.
pub(crate) fn server() -> SocketAddr {
    static SERVER: OnceLock<SocketAddr> = OnceLock::new();
    *SERVER.get_or_init(|| start(Vec::new()))
}

/// Starts a server.
pub(crate) fn start(keys: Vec<String>) -> SocketAddr {
    start_with(|config| config.keys = keys)
}

/// Starts a server whose settings are changed.
pub(crate) fn start_with(change: impl FnOnce(&mut ServeConfig) + Send + 'static) -> SocketAddr {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        // Removed when the server ends, which is with the process: the system's own cleaning has it then.
        let dir = tempfile::tempdir().unwrap();
        let local = model(dir.path());
        let mut config = ServeConfig {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            models: vec![
                ModelSource { id: MODEL.into(), resolve: Arc::new(move || Ok(local.clone())) },
                ModelSource { id: ENCODER.into(), resolve: Arc::new(|| Ok(encoder())) },
            ],
            settings: ModelSettings {
                engine: EngineOptions { ctx: Some(CONTEXT), threads: Some(1), ..EngineOptions::default() },
                draft: None,
                parallel: 4,
                pool: Pool::Tokens(4 * CONTEXT as usize),
                guesses: 4,
                keep_alive: None,
                loaded_max: 1,
                embedding_model: Some(ENCODER.into()),
            },
            keys: Vec::new(),
            store: Some(Arc::new(Store::open(&dir.path().join("store"), Limits::default()).unwrap())),
            presets: Presets::built_in(),
            body_bytes_max: 1 << 20,
            connections_max: 64,
            times: Times::default(),
            drain: Duration::from_secs(1),
            audit: None,
            traces: None,
            tls: None,
            origins: Origins::default(),
            hosts: Hosts::default(),
            resume_window: Duration::from_secs(60),
            compat: None,
            talk: Talk { note: |_| {}, detail: |_| {} },
        };
        change(&mut config);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(quarrel_server::serve(config, |at| tell.send(at).unwrap())).unwrap();
    });
    told.recv_timeout(Duration::from_secs(60)).expect("the server listens")
}

/// What came back.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) text: String,
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Names and data of server-sent events.
    pub(crate) fn events(&self) -> Vec<(String, Value)> {
        assert!(self.header("content-type").unwrap().starts_with("text/event-stream"), "{}", self.text);
        let event = |block: &str| {
            let field = |name: &str| block.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
            (field("event: ").to_owned(), serde_json::from_str(field("data: ")).unwrap())
        };
        self.text.split("\n\n").filter(|b| !b.is_empty()).map(event).collect()
    }

    /// Lines of JSON.
    pub(crate) fn lines(&self) -> Vec<Value> {
        assert_eq!(self.header("content-type"), Some("application/x-ndjson"), "{}", self.text);
        self.text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }
}

/// One request.
pub(crate) fn call(
    at: SocketAddr,
    method: &str,
    path: &str,
    key: Option<&str>,
    body: Option<&Value>,
) -> Reply {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(120)))
        .build()
        .into();
    let mut request = ureq::http::Request::builder().method(method).uri(format!("http://{at}{path}"));
    if let Some(key) = key {
        request = request.header("x-api-key", key);
    }
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut response = agent.run(request.body(body).unwrap()).unwrap();
    let text = |v: &ureq::http::HeaderValue| v.to_str().unwrap_or_default().to_owned();
    Reply {
        status: response.status().as_u16(),
        headers: response.headers().iter().map(|(n, v)| (n.to_string(), text(v))).collect(),
        text: response.body_mut().read_to_string().unwrap(),
    }
}

/// A metric of a server, all its labels together.
pub(crate) fn metric(at: SocketAddr, name: &str) -> f64 {
    let page = call(at, "GET", "/metrics", None, None).text;
    let of = |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
    let values =
        page.lines().filter(|l| of(l)).map(|l| l.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
    values.sum()
}

/// Looks until something is so.
pub(crate) fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !is() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Posts to the one server of these tests.
pub(crate) fn post(path: &str, body: &Value) -> Reply {
    call(server(), "POST", path, None, Some(body))
}

/// A body with more fields.
pub(crate) fn with(body: &Value, more: Value) -> Value {
    let mut body = body.clone();
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The schema of a tool's arguments: few choices, so that a model of random weights soon makes one.
pub(crate) fn schema() -> Value {
    json!({
        "type": "object", "properties": { "city": { "type": "string", "enum": ["Bonn", "Rome"] } },
        "required": ["city"], "additionalProperties": false,
    })
}
