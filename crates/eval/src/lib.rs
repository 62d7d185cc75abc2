//! What settings do to the text of a model. [`study`] has a model answer a fixed set of prompts with each [`Method`]; a second
//! model reads the answers; [`metrics`] counts; [`report`] prints a table, JSON and a picture of the frontier between diversity
//! and quality. Every figure is a mean over prompts with a bootstrap interval over prompts, because answers to one prompt
//! are alike.
#![forbid(unsafe_code)]

pub mod interval;
mod methods;
pub mod metrics;
pub mod report;
mod self_bleu;
pub mod study;

pub use methods::{Method, Setting};
pub use self_bleu::self_bleu;

/// The prompts of a study, one in a line: open questions that have no one answer.
pub const PROMPTS: &str = include_str!("../data/prompts.txt");
