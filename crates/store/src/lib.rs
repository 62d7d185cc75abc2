//! What the server keeps on disk and what it decides from it: conversations, stored responses and API keys in one
//! SQLite file ([`Store`]); what of a long conversation goes into the model's window ([`context`], [`bm25`],
//! [`fusion`]); named settings ([`presets`]).
//!
//! Everything is synchronous and nothing here reads a clock: the caller passes the time, and calls from a thread that
//! may block. Whatever a function returned `Ok` for is on disk.
#![forbid(unsafe_code)]

pub mod bm25;
pub mod context;
mod conversations;
mod db;
mod error;
mod export;
pub mod fusion;
mod ids;
mod keys;
mod messages;
pub mod presets;
mod responses;
mod time;
mod vectors;
mod words;

pub use conversations::{Conversation, ConversationInfo, ListPage, ListQuery, NewConversation, Summary};
pub use db::{Limits, Maintained, Store};
pub use error::{Error, Kind, Period, Result};
pub use ids::new_response_id;
pub use keys::{ApiKey, Lookup, NewKey, Quota, Reservation, Scope, Usage};
pub use messages::{Message, NewMessage, Place, Role};
pub use responses::{Chain, NewResponse, StoredResponse};
pub use time::iso;

/// Milliseconds since 1970-01-01 UTC.
pub type UnixMs = i64;
