//! The models that are served: loaded when they are first asked for, unloaded when nobody uses them, swapped while they run.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use quarrel_engine::Handle;
use quarrel_hub::LocalModel;
use quarrel_runtime::memory::{Pool, Use};
use quarrel_runtime::{EngineOptions, Opened, Running, Talk};
use quarrel_text::tool_calls::ChatStyle;
use quarrel_text::{ChatTemplate, GrammarFactory, Tokenizer};

use crate::error::ApiError;
use crate::store;

/// A model that may be served.
#[derive(Clone)]
pub struct ModelSource {
    /// What requests call it.
    pub id: String,
    /// Finds its files, fetching them if need be; may take long.
    pub resolve: Arc<dyn Fn() -> anyhow::Result<LocalModel> + Send + Sync>,
}

impl std::fmt::Debug for ModelSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelSource").field("id", &self.id).finish_non_exhaustive()
    }
}

/// How models are held.
#[derive(Debug, Clone)]
pub struct ModelSettings {
    /// How each is loaded.
    pub engine: EngineOptions,
    /// A smaller model that guesses for those of the same vocabulary, and that answers can be contrasted with.
    pub draft: Option<ModelSource>,
    /// Sequences at once.
    pub parallel: usize,
    /// Room in the cache of all sequences together.
    pub pool: Pool,
    /// Most tokens guessed ahead in a step.
    pub guesses: usize,
    /// A model that nobody used for so long is unloaded; `None` keeps all.
    pub keep_alive: Option<Duration>,
    /// Most models in memory; the one unused for longest makes room.
    pub loaded_max: usize,
    /// The id of the model for embeddings where a request names none; it is in memory beside `loaded_max` others.
    pub embedding_model: Option<String>,
}

/// A model in memory.
pub(crate) struct Live {
    pub(crate) id: String,
    pub(crate) opened: Opened,
    pub(crate) running: Running,
    /// How the template takes conversations with tools.
    pub(crate) style: Option<ChatStyle>,
    /// Made when the first grammar is asked for.
    grammars: OnceLock<Result<GrammarFactory, quarrel_text::Error>>,
    /// Found out when it is first asked for.
    identity: OnceLock<String>,
    /// Seconds since 1970.
    pub(crate) loaded_at: u64,
    /// Milliseconds since the start of the server.
    last_used: AtomicU64,
    in_flight: AtomicUsize,
    started: Instant,
}

impl Live {
    pub(crate) fn handle(&self) -> &Handle {
        &self.running.handle
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.opened.tokenizer
    }

    pub(crate) fn template(&self) -> Option<&ChatTemplate> {
        self.opened.template.as_ref()
    }

    /// What compiles grammars for it; the first time takes some hundred milliseconds.
    pub(crate) fn grammars(&self) -> Result<&GrammarFactory, ApiError> {
        let made = self.grammars.get_or_init(|| GrammarFactory::new(self.opened.tokenizer.clone()));
        made.as_ref().map_err(|e| ApiError::bad(e.to_string()))
    }

    /// What tells it from all other models, whatever it is called. Reads parts of its file the first time.
    pub(crate) fn identity(&self) -> &str {
        self.identity.get_or_init(|| {
            let hash = quarrel_engine::identity(&self.opened.source);
            hash.iter().map(|b| format!("{b:02x}")).collect()
        })
    }

    /// Requests that use it now.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    fn touch(&self) {
        self.last_used.store(self.started.elapsed().as_millis() as u64, Ordering::Release);
    }

    /// How long nobody has used it.
    pub(crate) fn idle(&self) -> Duration {
        let last = Duration::from_millis(self.last_used.load(Ordering::Acquire));
        self.started.elapsed().saturating_sub(last)
    }
}

/// A request's hold on a model: while it lives, the model is not unloaded.
pub(crate) struct Lease(Arc<Live>, Arc<Models>);

impl Lease {
    fn new(live: Arc<Live>, models: &Arc<Models>) -> Lease {
        live.in_flight.fetch_add(1, Ordering::AcqRel);
        live.touch();
        Lease(live, models.clone())
    }

    /// The model for embeddings, loaded if need be; none if none is served.
    pub(crate) async fn embedder(&self) -> Result<Option<Lease>, ApiError> {
        match self.1.embedding_model() {
            Some(id) => self.1.lease(Some(id)).await.map(Some),
            None => Ok(None),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.touch();
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

impl std::ops::Deref for Lease {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.0
    }
}

struct Slot {
    source: ModelSource,
    live: RwLock<Option<Arc<Live>>>,
    /// Held while it is loaded, so that many requests load it once.
    loading: tokio::sync::Mutex<()>,
    /// Why the last loading failed.
    failed: Mutex<Option<String>>,
}

impl Slot {
    fn live(&self) -> Option<Arc<Live>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, live: Option<Arc<Live>>) -> Option<Arc<Live>> {
        std::mem::replace(&mut *self.live.write().unwrap_or_else(PoisonError::into_inner), live)
    }
}

/// How a model stands, for lists.
pub(crate) struct Standing {
    pub(crate) id: String,
    pub(crate) live: Option<Arc<Live>>,
    pub(crate) failed: Option<String>,
}

/// All models that may be served.
pub(crate) struct Models {
    slots: Vec<Arc<Slot>>,
    by_id: HashMap<String, usize>,
    settings: ModelSettings,
    talk: Talk,
    started: Instant,
}

impl Models {
    pub(crate) fn new(sources: Vec<ModelSource>, settings: ModelSettings, talk: Talk) -> Models {
        let by_id = sources.iter().enumerate().map(|(i, s)| (s.id.clone(), i)).collect();
        let slot = |source| {
            Arc::new(Slot {
                source,
                live: RwLock::default(),
                loading: tokio::sync::Mutex::default(),
                failed: Mutex::default(),
            })
        };
        let slots = sources.into_iter().map(slot).collect();
        Models { slots, by_id, settings, talk, started: Instant::now() }
    }

    /// The model of a request, loaded if need be. Without a name it is the first.
    pub(crate) async fn lease(self: &Arc<Self>, name: Option<&str>) -> Result<Lease, ApiError> {
        let slot = self.find(name)?;
        if let Some(live) = slot.live() {
            return Ok(Lease::new(live, self));
        }
        let models = self.clone();
        // A task of its own: loading goes on for the next request if this one is left.
        let load = tokio::spawn(async move { models.load(&slot).await });
        load.await.map_err(|e| ApiError::server(format!("loading the model failed: {e}")))?
    }

    fn find(&self, name: Option<&str>) -> Result<Arc<Slot>, ApiError> {
        let index = match name {
            None | Some("") => 0,
            Some(name) => *self
                .by_id
                .get(name)
                .or_else(|| self.by_id.get(name.strip_suffix(":latest")?))
                .ok_or_else(|| {
                    let ids: Vec<_> = self.slots.iter().map(|s| s.source.id.as_str()).collect();
                    let message = format!("model {name:?} is not served here; there are: {}", ids.join(", "));
                    ApiError { param: Some("model".into()), ..ApiError::not_found(message) }
                        .code("model_not_found")
                })?,
        };
        self.slots.get(index).cloned().ok_or_else(|| ApiError::not_found("no model is served here"))
    }

    async fn load(self: &Arc<Self>, slot: &Slot) -> Result<Lease, ApiError> {
        let _guard = slot.loading.lock().await;
        if let Some(live) = slot.live() {
            return Ok(Lease::new(live, self));
        }
        if Some(&slot.source.id) != self.settings.embedding_model.as_ref() {
            self.make_room().await;
        }
        let live = self.open(slot).await?;
        slot.set(Some(live.clone()));
        Ok(Lease::new(live, self))
    }

    /// Loads a model's file as it is now, beside what runs.
    async fn open(&self, slot: &Slot) -> Result<Arc<Live>, ApiError> {
        let (source, settings, talk, started) =
            (slot.source.clone(), self.settings.clone(), self.talk, self.started);
        let is_first = self.slots.first().is_some_and(|s| s.source.id == source.id);
        let load = tokio::task::spawn_blocking(move || -> anyhow::Result<Live> {
            let opened = Opened::new((source.resolve)()?, talk)?;
            let usage = Use {
                batch: settings.parallel,
                outputs: (4 * settings.parallel).max(64),
                guesses: settings.guesses,
                pool: settings.pool,
                spare: 0,
            };
            let encoder = settings.embedding_model.as_ref() == Some(&source.id);
            let mut engine = EngineOptions { embeddings: true, encoder, ..settings.engine };
            // An encoder has no logits to look at early, and no next token to guess; an answer to a source has no guesses.
            let alone = opened.is_encoder()? || opened.reads_source();
            if alone {
                (engine.exits, engine.exit_layers) = (None, None);
            }
            let smaller = settings.draft.filter(|_| !alone);
            let smaller = smaller.map(|d| Opened::new((d.resolve)()?, talk)).transpose()?;
            let draft = match smaller.as_ref().map(|d| opened.drafted_by(d)).transpose() {
                Ok(draft) => draft,
                Err(e) => {
                    anyhow::ensure!(!is_first, "--draft: {e:#}");
                    (talk.note)(&format!("{e:#}; it is served without"));
                    None
                }
            };
            let running = opened.load(&engine, usage, draft, 0, talk, |_| {})?;
            if draft.is_some() && !running.handle.info().speculates {
                let name = &opened.local.name;
                (talk.note)(&format!(
                    "{name} has states, so --draft guesses nothing for it; guidance may contrast with it"
                ));
            }
            let loaded_at = unix_seconds();
            let (last_used, in_flight) = (AtomicU64::default(), AtomicUsize::default());
            let style = opened.template.as_ref().map(ChatStyle::of);
            let grammars = OnceLock::new();
            Ok(Live {
                id: source.id,
                opened,
                running,
                style,
                grammars,
                identity: OnceLock::new(),
                loaded_at,
                last_used,
                in_flight,
                started,
            })
        });
        let loaded = load.await.map_err(|e| ApiError::server(format!("loading the model failed: {e}")))?;
        let failed = loaded.as_ref().err().map(|e| format!("{e:#}"));
        slot.failed.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&failed);
        match loaded {
            Ok(live) => {
                live.touch();
                (self.talk.note)(&format!(
                    "{} is loaded: context {} tokens, {} sequences at once, {:.2} s",
                    live.id,
                    live.handle().info().context,
                    live.handle().info().max_running,
                    live.running.load.as_secs_f64()
                ));
                Ok(Arc::new(live))
            }
            Err(e) => Err(ApiError::unavailable(format!("{} cannot be loaded: {e:#}", slot.source.id))
                .code("model_not_loaded")),
        }
    }

    /// Unloads the model unused for longest until another has its place.
    async fn make_room(&self) {
        loop {
            let others =
                self.slots.iter().filter(|s| Some(&s.source.id) != self.settings.embedding_model.as_ref());
            let loaded: Vec<_> = others.filter_map(|s| s.live().map(|live| (s.clone(), live))).collect();
            if loaded.len() < self.settings.loaded_max {
                return;
            }
            let Some((slot, _)) =
                loaded.iter().filter(|(_, l)| l.in_flight() == 0).max_by_key(|(_, l)| l.idle())
            else {
                return; // all are in use: memory decides
            };
            drop_live(slot.set(None)).await;
        }
    }

    /// Loads the file again, which may be another version by now, and gives new requests the new one; those that run keep
    /// the old one to their end.
    pub(crate) async fn swap(&self, name: &str) -> Result<(), ApiError> {
        let slot = self.find(Some(name))?;
        let _guard = slot.loading.lock().await;
        let live = self.open(&slot).await?;
        drop_live(slot.set(Some(live))).await;
        Ok(())
    }

    /// Unloads a model; requests that run keep it to their end. Says whether it was loaded.
    pub(crate) async fn unload(&self, name: &str) -> Result<bool, ApiError> {
        let slot = self.find(Some(name))?;
        let _guard = slot.loading.lock().await;
        let live = slot.set(None);
        let was = live.is_some();
        drop_live(live).await;
        Ok(was)
    }

    /// The id of the model for embeddings.
    pub(crate) fn embedding_model(&self) -> Option<&str> {
        self.settings.embedding_model.as_deref()
    }

    /// A model that nobody used for so long is unloaded.
    pub(crate) fn keep_alive(&self) -> Option<Duration> {
        self.settings.keep_alive
    }

    /// Unloads what nobody used for the keep-alive time.
    pub(crate) async fn sweep(&self) {
        let Some(limit) = self.settings.keep_alive else { return };
        for slot in &self.slots {
            if slot.live().is_some_and(|l| l.in_flight() == 0 && l.idle() > limit) {
                drop_live(slot.set(None)).await;
            }
        }
    }

    /// All models, in the order of the command line.
    pub(crate) fn list(&self) -> Vec<Standing> {
        let standing = |s: &Arc<Slot>| Standing {
            id: s.source.id.clone(),
            live: s.live(),
            failed: s.failed.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        };
        self.slots.iter().map(standing).collect()
    }

    /// One of them.
    pub(crate) fn get(&self, name: &str) -> Result<Standing, ApiError> {
        let slot = self.find(Some(name))?;
        Ok(Standing {
            id: slot.source.id.clone(),
            live: slot.live(),
            failed: slot.failed.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        })
    }
}

/// The last hold on an engine waits for its thread, which is nothing for an async task.
async fn drop_live(live: Option<Arc<Live>>) {
    if let Some(live) = live {
        // The task cannot panic: it only drops.
        let _ = tokio::task::spawn_blocking(move || drop(live)).await;
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    store::now().max(0) as u64 / 1000
}
