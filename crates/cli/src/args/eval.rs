//! The flags of `quarrel eval`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::ModelArgs;

/// Measure what a model says.
#[derive(Debug, Args)]
pub(crate) struct Eval {
    #[command(subcommand)]
    pub(crate) command: EvalCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum EvalCommand {
    /// Compare ways to choose tokens: repetition, diversity, likelihood, coherence, cost
    Quality(Box<EvalQuality>),
}

/// Compare ways to choose tokens.
#[derive(Debug, Args)]
#[command(after_help = "\
The model answers each prompt with each method, and a second model reads the answers. REP-4 is the share of 4-grams of words \
that an answer had before; DISTINCT-2 the distinct 2-grams of the answers to a prompt over all of theirs; SELF-BLEU how alike \
they are; PERPLEXITY that of the answers behind their prompts under the second model; COHERENCE the mutual information of \
sentences with what precedes them, in nats for each token. Means over prompts with 95% bootstrap intervals; TOKENS are those \
computed for each token of the answers, and TIME is a ratio to the first method.")]
pub(crate) struct EvalQuality {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The model that reads the answers, in any form that --model takes: better another one than --model
    #[arg(long, value_name = "MODEL", help_heading = "Model")]
    pub(crate) judge: String,
    /// A model that makes embeddings, for the method that compares sentences
    #[arg(long, value_name = "MODEL", help_heading = "Model")]
    pub(crate) embedding_model: Option<String>,
    /// Only these methods, by the names that the table has [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "What to measure")]
    pub(crate) methods: Vec<String>,
    /// Prompts to answer, one in a line [default: 16 that come with the program]
    #[arg(long, value_name = "FILE", help_heading = "What to measure")]
    pub(crate) prompts: Option<PathBuf>,
    /// Answers to each prompt
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=16), help_heading = "What to measure")]
    pub(crate) samples: u32,
    /// Most tokens of an answer
    #[arg(short = 'n', long, value_name = "N", default_value_t = 96, value_parser = clap::value_parser!(u32).range(8..=2048), help_heading = "What to measure")]
    pub(crate) max_tokens: u32,
    /// Seed of the first answer
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "What to measure")]
    pub(crate) seed: u64,
    /// Threads to compute with [default: one for each physical core that may be used]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), help_heading = "Engine")]
    pub(crate) threads: Option<u16>,
    /// Also draw the frontier between diversity and likelihood into this file
    #[arg(long, value_name = "FILE.svg", help_heading = "Output")]
    pub(crate) plot: Option<PathBuf>,
    /// Print one JSON object: model, judge, prompts, samples, max_tokens, seed, methods
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}
