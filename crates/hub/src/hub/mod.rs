//! The front door: a [`Hub`] turns what a person typed into a verified file on this machine, and lists, shows and removes
//! what is there.

mod local;
mod manage;
mod resolve;
mod suggest;

use std::path::PathBuf;

use crate::cache::{Cache, Manifest, Role};
use crate::catalog::Catalog;
use crate::digest::Digest;
use crate::error::{Attempt, Error, Result};
use crate::fetch::NetConfig;
use crate::hf::{HfCache, HfConfig};
use crate::ollama::OllamaStore;
use crate::wheel::PipConfig;

pub use manage::{CatalogInfo, Entry, Info};

/// Where things are and how to reach them. [`Config::from_env`] is what a program wants; tests fill it in by hand.
#[derive(Debug, Clone)]
pub struct Config {
    /// Our own cache directory.
    pub home: PathBuf,
    /// How to call pip.
    pub pip: PipConfig,
    /// Short names.
    pub catalog: Catalog,
    /// The Hugging Face hub and its cache.
    pub hf: HfConfig,
    /// Ollama stores to read, in order.
    pub ollama: Vec<OllamaStore>,
    /// The address of Ollama's registry.
    pub ollama_registry: String,
    /// How to use the network.
    pub net: NetConfig,
}

impl Config {
    /// The configuration from the environment: `QUARREL_HOME` (or `XDG_CACHE_HOME/quarrel`, or `~/.cache/quarrel`),
    /// `QUARREL_PIP`, `VIRTUAL_ENV`, `OLLAMA_MODELS`, `SSL_CERT_FILE`, and the Hugging Face variables that
    /// [`HfConfig::from_vars`] lists.
    ///
    /// # Errors
    /// When no home directory can be found.
    pub fn from_env() -> Result<Config> {
        Config::from_vars(|key| std::env::var(key).ok().filter(|v| !v.is_empty()), std::env::home_dir())
    }

    /// The same from any lookup, so that nothing has to change the process's environment.
    ///
    /// # Errors
    /// When no home directory can be found.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>, user_home: Option<PathBuf>) -> Result<Config> {
        let dir = |key: &str| var(key).map(PathBuf::from);
        let cache = dir("XDG_CACHE_HOME").or_else(|| user_home.as_ref().map(|h| h.join(".cache")));
        let home =
            dir("QUARREL_HOME").or_else(|| cache.as_ref().map(|c| c.join("quarrel"))).ok_or_else(|| {
                Error::malformed(
                    "the environment",
                    "neither QUARREL_HOME nor HOME is set; set one to a directory for models",
                )
            })?;
        let own = dir("OLLAMA_MODELS").or_else(|| user_home.as_ref().map(|h| h.join(".ollama/models")));
        let service = PathBuf::from("/usr/share/ollama/.ollama/models"); // where the Linux service keeps its models
        let mut ollama: Vec<_> = own.into_iter().chain([service]).map(OllamaStore::new).collect();
        ollama.dedup();
        Ok(Config {
            pip: PipConfig::new(var("QUARREL_PIP").as_deref(), dir("VIRTUAL_ENV").as_deref()),
            catalog: Catalog::builtin()?,
            hf: HfConfig::from_vars(&var, cache.unwrap_or_else(|| home.clone()))?,
            ollama,
            ollama_registry: "https://registry.ollama.ai".into(),
            net: NetConfig { ca_file: dir("SSL_CERT_FILE"), ..NetConfig::default() },
            home,
        })
    }
}

/// What the caller allows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Use nothing but this machine.
    pub offline: bool,
    /// Take the catalog's substitute when an exact variant cannot be had, instead of only offering it.
    pub accept_substitute: bool,
    /// Ask the sources again although the model is here, and fetch what has changed. Files of other programs' stores do
    /// not count as being here.
    pub refresh: bool,
}

/// Which program's directory a file is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// A path that the user gave.
    Path,
    /// Our cache.
    Quarrel,
    /// An Ollama store, read in place.
    Ollama,
    /// The Hugging Face cache, shared with other tools.
    HuggingFace,
}

impl std::fmt::Display for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Store::Path => "file",
            Store::Quarrel => "quarrel",
            Store::Ollama => "ollama",
            Store::HuggingFace => "hugging face",
        })
    }
}

/// A model that is on this machine and ready to open.
#[derive(Debug, Clone)]
pub struct LocalModel {
    /// What to open: a GGUF file (the first of a split one), a safetensors file, or a directory with `config.json`.
    pub path: PathBuf,
    /// The exact name; for a path, the path.
    pub name: String,
    /// Which store it is in.
    pub store: Store,
    /// Where it came from, for a person.
    pub source: String,
    /// The digest of the weights, where known without reading them.
    pub digest: Option<Digest>,
    /// The size of all files.
    pub size: u64,
    /// The precision, where the name or the source says it.
    pub precision: Option<String>,
    /// The licence, where the source says it.
    pub licence: Option<String>,
    /// A prompt template that came with the model, in Ollama's language (Go text/template), not Jinja.
    pub template: Option<String>,
    /// A system prompt that came with the model.
    pub system: Option<String>,
    /// Sampling parameters that came with the model (`temperature`, `stop`, ...), as Ollama stores them.
    pub params: Option<serde_json::Map<String, serde_json::Value>>,
    /// Set when this is the accepted substitute for another name.
    pub substitute_for: Option<String>,
    /// Lines worth showing: sources that failed before this one, parts that are ignored.
    pub notes: Vec<String>,
}

/// What resolving a name came to.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The model is here.
    Ready(LocalModel),
    /// The exact variant cannot be had; another precision of it can. Nothing was fetched: ask, or resolve again with
    /// [`Options::accept_substitute`].
    Substitute {
        /// What was asked for.
        wanted: Wanted,
        /// What could be used instead.
        offered: Wanted,
        /// Why each source of the wanted one failed.
        why: Vec<Attempt>,
    },
}

/// A variant that is wanted or offered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The exact name.
    pub name: String,
    /// Its precision.
    pub precision: String,
    /// Its size where known.
    pub size: Option<u64>,
    /// Its first source, or the path when it is already here.
    pub source: String,
    /// Whether it is already on this machine.
    pub here: bool,
}

impl std::fmt::Display for Wanted {
    /// `smollm2:135m-instruct-q4_1 (Q4_1, 98.4 MB, already here)`
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}", self.name, self.precision)?;
        self.size.map_or(Ok(()), |size| write!(f, ", {}", crate::quant::human_bytes(size)))?;
        f.write_str(if self.here { ", already here)" } else { ")" })
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Hub {
    config: Config,
    cache: Cache,
    hf: HfCache,
}

impl Hub {
    /// A hub with this configuration. Nothing is read or written yet.
    pub fn new(config: Config) -> Hub {
        Hub { cache: Cache::new(&config.home), hf: HfCache::new(&config.hf.cache), config }
    }

    /// A hub configured by the environment.
    ///
    /// # Errors
    /// See [`Config::from_env`].
    pub fn from_env() -> Result<Hub> {
        Config::from_env().map(Hub::new)
    }

    /// The name of the model to use when none is given.
    pub fn default_model(&self) -> &str {
        &self.config.catalog.default
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A model of our cache, checked quickly; nothing when a file of it is missing.
    fn open_ours(&self, manifest: &Manifest) -> Result<Option<LocalModel>> {
        let Some(path) = self.cache.open(manifest)? else { return Ok(None) };
        let text = |role: Role| -> Result<Option<String>> {
            let Some(file) = manifest.files.iter().find(|f| f.role == role) else { return Ok(None) };
            crate::cache::read_small(&self.cache.blob(&file.digest), SIDE_TEXT_BYTES_MAX)
        };
        let params = text(Role::Params)?.map(|t| parse_params(&t, &manifest.full_name())).transpose()?;
        Ok(Some(LocalModel {
            path,
            name: manifest.full_name(),
            store: Store::Quarrel,
            source: manifest.source.clone(),
            digest: manifest.weights().next().map(|f| f.digest),
            size: manifest.size(),
            precision: manifest.precision.clone(),
            licence: manifest.licence.clone(),
            template: text(Role::Template)?,
            system: text(Role::System)?,
            params,
            substitute_for: None,
            notes: manifest.notes.clone(),
        }))
    }
}

/// Templates, system prompts, parameters and licences are text; more than this is not.
pub(crate) const SIDE_TEXT_BYTES_MAX: u64 = 4 << 20;

/// Reads Ollama's parameter layer.
pub(crate) fn parse_params(text: &str, what: &str) -> Result<serde_json::Map<String, serde_json::Value>> {
    match serde_json::from_str(text) {
        Ok(serde_json::Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::malformed(format!("the parameters of {what}"), "not a JSON object")),
        Err(e) => Err(Error::malformed(format!("the parameters of {what}"), e)),
    }
}
