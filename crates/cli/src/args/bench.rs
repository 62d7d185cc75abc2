//! What `bench` measures, and against what.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use quarrel_cpu::Isa;
use quarrel_runtime::devices::Place;

use super::{CONTEXT_MAX, ModelArgs, above_zero, at_least_zero};
use crate::instructions;

/// Measure speed.
#[derive(Debug, Args)]
#[command(after_help = "\
Each round runs a prompt, then new tokens behind --depth tokens, then batches of sequences; speeds are medians of --repeat \
rounds. GB/s count the weights and the cache that a step reads, GOP/s two operations for each weight and token. The share of \
the peak is the time that this machine's measured peaks allow over the time taken. The peaks are measured once and kept in \
$QUARREL_HOME or ~/.cache/quarrel, until the machine differs. Weights may be random: no token ends a run.

  quarrel bench smollm2:135m
  quarrel bench -m model.gguf --threads 2 --ops --plot roofline.svg
  quarrel bench model.gguf --json > before.json ; quarrel bench model.gguf --check before.json
  quarrel bench model.gguf --against llama-cpp-python --batch none
  quarrel bench model.gguf --kv --depth 2048")]
pub(crate) struct Bench {
    /// The model, in any form that --model takes
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub(crate) target: Option<String>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Threads to compute with [default: one for each physical core that may be used]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "What to measure")]
    pub(crate) threads: Option<u16>,
    /// Where to compute: cpu, cuda or cuda:N; on a GPU what fresh processes tell is left out
    #[arg(long, value_name = "DEVICE", default_value_t = Place::Cpu, conflicts_with_all = ["kv", "speculate", "against"], help_heading = "What to measure")]
    pub(crate) device: Place,
    /// On a GPU: the mode in which the bytes do not depend on the load
    #[arg(long, conflicts_with_all = ["kv", "speculate", "against"], help_heading = "What to measure")]
    pub(crate) deterministic: bool,
    /// The processor's instructions: avx512, avx2 or portable [default: the fastest, measured once on this machine]
    #[arg(long, value_name = "NAME", value_parser = instructions::parse, help_heading = "What to measure")]
    pub(crate) isa: Option<Isa>,
    /// Tokens of the prompt; 0 leaves it out [default: 512, or the model's context if that is less]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=CONTEXT_MAX), help_heading = "What to measure")]
    pub(crate) prompt: Option<u32>,
    /// New tokens; 0 leaves decoding out [default: 128]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=CONTEXT_MAX), help_heading = "What to measure")]
    pub(crate) decode: Option<u32>,
    /// Tokens in the cache before the new ones; 0 is always measured too [default: 0,4096]
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(0..=CONTEXT_MAX), help_heading = "What to measure")]
    pub(crate) depth: Option<Vec<u32>>,
    /// Numbers of sequences that decode together, or none [default: 1,2,4,8,16,32]
    #[arg(long, value_name = "LIST", value_parser = batch_sizes, help_heading = "What to measure")]
    pub(crate) batch: Option<BatchSizes>,
    /// Tokens in the cache of each of these sequences before the new ones
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=CONTEXT_MAX), help_heading = "What to measure")]
    pub(crate) batch_depth: u32,
    /// Rounds
    #[arg(short, long, value_name = "R", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "What to measure")]
    pub(crate) repeat: u32,
    /// Only: what guessing tokens ahead gains on texts that repeat themselves and others, each answered with and without
    #[arg(long, conflicts_with_all = ["prompt", "depth", "batch", "speeds_only", "ops", "against", "check", "plot", "kv", "serve"], help_heading = "What to measure")]
    pub(crate) speculate: bool,
    /// With --speculate: a smaller model of the same vocabulary that guesses too
    #[arg(long, value_name = "MODEL", requires = "speculate", help_heading = "What to measure")]
    pub(crate) draft: Option<String>,
    /// With --speculate: only these texts [default: repeat,rewrite,story,random]
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        value_enum,
        requires = "speculate",
        help_heading = "What to measure"
    )]
    pub(crate) texts: Option<Vec<BenchText>>,
    /// Leave out what fresh processes and the engine tell: start-up, memory, first token, pauses
    #[arg(long, help_heading = "What to measure")]
    pub(crate) speeds_only: bool,
    /// Also the time, bytes and share of the peak of each kind of op
    #[arg(long, help_heading = "What to measure")]
    pub(crate) ops: bool,
    /// Compare the types of the KV cache instead: divergence from f16 on a text, bytes, and speed behind the last --depth tokens
    #[arg(long, conflicts_with_all = ["prompt", "batch", "speeds_only", "ops", "against", "check", "plot"], help_heading = "What to measure")]
    pub(crate) kv: bool,
    /// The text for --kv [default: the beginning of Alice's Adventures in Wonderland]
    #[arg(short, long, value_name = "FILE", requires = "kv", help_heading = "What to measure")]
    pub(crate) file: Option<PathBuf>,
    /// Put the engine under load instead: streams side by side, random arrivals, a long prompt among streams, short requests
    #[arg(long, conflicts_with_all = ["kv", "batch", "depth", "speeds_only", "ops", "against", "check", "plot"], help_heading = "What to measure")]
    pub(crate) serve: bool,
    #[command(flatten)]
    pub(crate) load: ServeLoad,
    /// Measure the machine again: its peaks, and which instructions are the fastest
    #[arg(long, help_heading = "What to measure")]
    pub(crate) fresh: bool,
    /// Run the same work through another engine in turn, each round a process of both, and print the ratios
    #[arg(long, value_enum, value_name = "ENGINE", help_heading = "Compare")]
    pub(crate) against: Option<Rival>,
    // Not clap's `env`, which takes an empty variable as a value.
    /// The Python that has the package of --against [default: $QUARREL_PYTHON, or python3]
    #[arg(long, value_name = "FILE", requires = "against", help_heading = "Compare")]
    pub(crate) python: Option<PathBuf>,
    /// Fail if a figure is worse than in this --json report beyond the noise of both (5% at least)
    #[arg(long, value_name = "FILE", help_heading = "Compare")]
    pub(crate) check: Option<PathBuf>,
    /// Draw the roofline and the speed of batches as SVG
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) plot: Option<PathBuf>,
    /// Print one JSON object: machine, model, prompt, decode, decode_at, batch, latency, startup, memory, ...
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
    // What a process does that this command starts to measure it.
    #[arg(long, value_enum, hide = true)]
    pub(crate) child: Option<BenchChild>,
}

/// A kind of text whose tokens are guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchText {
    // A list to be repeated.
    Repeat,
    // Code to be rewritten with one change.
    Rewrite,
    // A story, sampled.
    Story,
    // Random tokens, sampled at a high temperature.
    Random,
}

/// The load of `bench --serve`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServeLoad {
    /// Numbers of streams that each send a request when the last one is answered
    #[arg(long, value_name = "LIST", requires = "serve", value_parser = batch_sizes, default_value = "1,2,4,8,16", help_heading = "With --serve")]
    pub(crate) streams: BatchSizes,
    /// Requests per second that arrive at random, such as 2,4.5 [default: 0.5, 0.75 and 0.9 of what the streams reach]
    #[arg(long, value_name = "LIST", requires = "serve", value_delimiter = ',', value_parser = above_zero, help_heading = "With --serve")]
    pub(crate) rates: Option<Vec<f32>>,
    /// Seconds of arrivals at each rate; 0 leaves them out
    #[arg(long, value_name = "S", requires = "serve", default_value_t = 10.0, value_parser = at_least_zero, help_heading = "With --serve")]
    pub(crate) seconds: f32,
    /// A request counts as good if its first token comes within this time
    #[arg(long, value_name = "MS", requires = "serve", default_value_t = 1000.0, value_parser = above_zero, help_heading = "With --serve")]
    pub(crate) slo_ttft_ms: f32,
    /// ... and its tokens take no longer than this on average
    #[arg(long, value_name = "MS", requires = "serve", default_value_t = 50.0, value_parser = above_zero, help_heading = "With --serve")]
    pub(crate) slo_itl_ms: f32,
    /// Tokens of a prompt that comes while four streams run; 0 leaves it out
    #[arg(long, value_name = "N", requires = "serve", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(0..=CONTEXT_MAX), help_heading = "With --serve")]
    pub(crate) long_prompt: u32,
    /// Short requests on eight streams, with the memory before and after
    #[arg(long, value_name = "N", requires = "serve", default_value_t = 0, help_heading = "With --serve")]
    pub(crate) soak: u32,
    /// How long a step may take while somebody waits for its next token [default: 1.8 times what it takes without prompts, 25 ms at least, and up to 50 ms where many prompts wait]
    #[arg(long, value_name = "MS", requires = "serve", value_parser = above_zero, help_heading = "With --serve")]
    pub(crate) target_itl_ms: Option<f32>,
    /// Seed of the arrivals
    #[arg(long, value_name = "N", requires = "serve", default_value_t = 1, help_heading = "With --serve")]
    pub(crate) seed: u64,
}

/// An engine to compare with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rival {
    // llama.cpp through its Python package.
    LlamaCppPython,
}

/// The hidden parts of `bench`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchChild {
    Start,
    Memory,
    Turn,
}

/// The list of `--batch`.
#[derive(Debug, Clone)]
pub(crate) struct BatchSizes(pub(crate) Vec<usize>);

fn batch_sizes(text: &str) -> Result<BatchSizes, String> {
    if matches!(text, "none" | "0") {
        return Ok(BatchSizes(Vec::new()));
    }
    let one = |part: &str| match part.trim().parse::<usize>() {
        Ok(n) if (1..=512).contains(&n) => Ok(n),
        _ => Err(format!("{part:?} is not a number from 1 to 512; give a list such as 1,8, or none")),
    };
    text.split(',').map(one).collect::<Result<_, _>>().map(BatchSizes)
}
