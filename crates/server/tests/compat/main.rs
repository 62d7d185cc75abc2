//! The APIs that are not OpenAI's chat, as their clients see them: whole answers and streams, tools, errors, unknown fields.

#[path = "../common/mod.rs"]
mod common;

mod anthropic;
mod guidance;
mod ollama;
mod responses;
