//! Where models come from: names, catalog, downloads, caches, verification.

#![forbid(unsafe_code)]

pub mod cache;
pub mod catalog;
pub mod digest;
mod error;
pub mod fetch;
pub mod hf;
mod hub;
pub mod name;
pub mod ollama;
mod progress;
mod quant;
pub mod wheel;

pub use error::{Attempt, Candidate, Error, Result};
pub use hub::{CatalogInfo, Config, Entry, Hub, Info, LocalModel, Options, Outcome, Store, Wanted};
pub use progress::Progress;
pub use quant::human_bytes;
