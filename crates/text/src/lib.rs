//! Text in and out: tokenizers, chat templates, UTF-8 streaming, stop strings.
//! The only crate that knows strings; the engine sees token ids. No I/O, no clock, and no panic on any input.
#![forbid(unsafe_code)]

pub mod banned;
pub mod chat_template;
mod error;
pub mod grammar;
pub mod reasoning;
pub mod stop;
pub mod stream_decoder;
pub mod tokenizer;
pub mod tool_calls;

pub use banned::{Banned, Seen, TextWatch};
pub use chat_template::{ChatTemplate, DateTime, DefaultTemplate, RenderInput};
pub use error::{Error, Result};
pub use grammar::{Grammar, GrammarFactory, GrammarSpec, Guided, Reasoning};
pub use reasoning::{Prompt, ReasoningMarks};
pub use stop::StopMatcher;
pub use stream_decoder::StreamDecoder;
pub use tokenizer::{Ends, Special, Tokenizer};
pub use tool_calls::{OutputEvent, OutputParser, Tool, ToolChoice, ToolFormat};
