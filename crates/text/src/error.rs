//! What can go wrong between text and token ids, each with what, where and what to do.

use thiserror::Error;

/// The crate's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of tokenizers and chat templates.
#[derive(Debug, Error)]
pub enum Error {
    /// A metadata field that the tokenizer needs is absent.
    #[error(
        "the vocabulary has no `{field}`; without it the model has no tokenizer (use a file made with its vocabulary)"
    )]
    Missing {
        /// The GGUF key or JSON field.
        field: &'static str,
    },
    /// A metadata field is there but cannot be right.
    #[error("bad vocabulary field `{field}`: {what}")]
    BadField {
        /// The GGUF key or JSON field.
        field: &'static str,
        /// What is wrong with its value.
        what: String,
    },
    /// `tokenizer.ggml.model` names a scheme that is not built here.
    #[error("tokenizer model `{name}` is not supported (known: {known})")]
    UnknownModel {
        /// The name in the file.
        name: String,
        /// What is known.
        known: &'static str,
    },
    /// `tokenizer.ggml.pre` names rules that are not known; guessing would give wrong ids.
    #[error(
        "pre-tokenizer `{name}` (tokenizer.ggml.pre) is not known, and guessing would give wrong tokens; known: {known}"
    )]
    UnknownPre {
        /// The name in the file.
        name: String,
        /// All known names.
        known: String,
    },
    /// A `tokenizer.json` or `tokenizer_config.json` cannot be used.
    #[error("{file}: {what}")]
    Json {
        /// Which file.
        file: &'static str,
        /// What is wrong, with its place.
        what: String,
    },
    /// The text cannot be encoded.
    #[error("cannot encode the text: {0}")]
    Encode(String),
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {size} tokens")]
    BadToken {
        /// The id.
        id: u32,
        /// The number of tokens.
        size: usize,
    },
    /// The chat template does not parse.
    #[error("chat template, line {line}: {what}")]
    TemplateSyntax {
        /// Line in the template, from 1.
        line: usize,
        /// What the parser says.
        what: String,
    },
    /// The chat template failed on this conversation.
    #[error("chat template, line {line}: {what}")]
    TemplateRender {
        /// Line in the template, from 1.
        line: usize,
        /// What failed.
        what: String,
    },
    /// The template itself refuses the conversation (its `raise_exception`).
    #[error("the model's chat template refuses this conversation (line {line}): {message}")]
    TemplateRefused {
        /// Line in the template, from 1.
        line: usize,
        /// The template's own words.
        message: String,
    },
    /// The template ran longer or wrote more than it may.
    #[error("chat template, line {line}: stopped, it needs more than {what}")]
    TemplateLimit {
        /// Line in the template, from 1 (0 when not known).
        line: usize,
        /// The limit.
        what: String,
    },
    /// A part of a request (messages, tools) cannot be used.
    #[error("{at}: {what}")]
    Request {
        /// Which part: `messages[2].content`.
        at: String,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// The template source is not a usable Jinja template.
    #[error("chat template: {0}")]
    Template(String),
    /// What an answer must obey cannot be used: it is wrong, not supported or too large.
    #[error("{kind}: {what}")]
    Grammar {
        /// Which kind of specification.
        kind: &'static str,
        /// What is wrong, in one line.
        what: String,
    },
    /// A grammar cannot go on in an answer.
    #[error("grammar: {0}")]
    GrammarStep(String),
}
