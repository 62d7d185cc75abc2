//! Tool calls as text: how families write them, what a model may be forced to write, and what it wrote.
//!
//! A [`ToolFormat`] is known from the chat template. An [`OutputParser`] turns the text of an answer into events. Nothing
//! that a model writes is lost: what only looked like a call comes back as content.

mod body;
mod call;
mod conversation;
mod format;
mod grammar;
mod json;
mod parser;
mod python;
mod tool;
mod xml;

pub use conversation::{ChatStyle, Conversation, Telling};
pub use format::ToolFormat;
pub use grammar::{control_token, tool_grammar};
pub use parser::{Arguments, OutputEvent, OutputParser};
pub use tool::{MAX_TOOLS, Tool, ToolChoice};

#[cfg(test)]
mod grammar_tests;
#[cfg(test)]
mod tests;
