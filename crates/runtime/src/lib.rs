//! A model with its words: what `run`, `chat` and `serve` share between a model's name and the text of an answer.
//!
//! [`Opened`] is a model on disk with its tokenizer and template; [`Opened::load`] gives a [`Running`] engine; `prompt` makes
//! token ids of conversations and [`TextStream`] makes text of token ids. Errors are lines for people, with the engine's and
//! the tokenizer's own errors as their sources.
#![forbid(unsafe_code)]

mod answer;
mod breakers;
pub mod devices;
pub mod doctor;
pub mod embed;
mod exits;
mod explain;
mod file;
mod guide;
mod load;
mod meaning;
pub mod memory;
mod obey;
mod open;
mod params;
pub mod process;
pub mod prompt;

pub use answer::TextStream;
pub use breakers::{DRY_BREAKERS, breakers};
pub use embed::Embeddings;
pub use exits::Exits;
pub use explain::{token_text, trace_json};
pub use guide::{CoherenceOptions, GuideOptions};
pub use load::{Draft, EngineOptions, Running};
pub use meaning::{Embedder, Sentences};
pub use obey::obey;
pub use open::{Opened, open_source, template_of, tokenizer_at, tokenizer_of};
pub use params::{ModelParams, usual};

/// Who is told what happens meanwhile: lines for people, and details for those who asked for them.
#[derive(Debug, Clone, Copy)]
pub struct Talk {
    /// Something to know about.
    pub note: fn(&str),
    /// Something for those who look closely.
    pub detail: fn(&str),
}
