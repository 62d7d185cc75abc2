//! One file for each endpoint.

pub(crate) mod anthropic;
pub(crate) mod chat;
pub(crate) mod completions;
pub(crate) mod conversations;
pub(crate) mod embeddings;
pub(crate) mod explain;
pub(crate) mod health;
pub(crate) mod models;
pub(crate) mod ollama;
pub(crate) mod presets;
pub(crate) mod rerank;
pub(crate) mod responses;
pub(crate) mod streams;
pub(crate) mod tokens;
pub(crate) mod ws;
