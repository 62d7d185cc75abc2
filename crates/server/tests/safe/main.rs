//! What keeps a server safe among strangers: TLS, other origins, limits on time and size.

#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "the other tests use all of it")]
mod common;

mod cors;
mod hosts;
mod limits;
mod tls;
mod told;
mod wire;
