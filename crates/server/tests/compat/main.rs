//! The APIs that are not OpenAI's chat, as their clients see them: whole answers and streams, tools, errors, unknown fields.

#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "not all tests need all of it")]
mod common;

mod anthropic;
mod cut;
mod embeddings;
mod guidance;
mod ollama;
mod responses;
mod sampling;
mod sources;
