//! The hub against servers on 127.0.0.1, a made-up pip and stores in temporary directories. Nothing here uses the
//! network, and nothing reads the environment.

mod hf;
mod http;
mod hub;
mod ollama;
mod support;
mod wheel;
