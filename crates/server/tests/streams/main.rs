//! Streams whose clients leave: work that ends with them, streams that they come back to, and many over one WebSocket.

#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "not all tests need all of it")]
mod common;

mod resume;
mod websocket;
