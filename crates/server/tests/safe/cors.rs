//! Calls by web pages of other origins.

use std::net::SocketAddr;
use std::sync::OnceLock;

use quarrel_server::Origin;
use serde_json::json;

use crate::common::{MODEL, server, start_with};
use crate::wire::{exchange, header, request, status};

const PAGE: &str = "https://app.example";

/// A server that lets one origin in.
fn open() -> SocketAddr {
    static OPEN: OnceLock<SocketAddr> = OnceLock::new();
    *OPEN.get_or_init(|| {
        start_with(|config| {
            config.keys = vec!["secret".into()];
            config.origins = [PAGE.parse::<Origin>().unwrap()].into_iter().collect();
        })
    })
}

fn preflight(at: SocketAddr, origin: &str) -> String {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type,x-stainless-lang"),
    ];
    exchange(at, &request("OPTIONS", "/v1/chat/completions", &headers, b""))
}

#[test]
fn nobody_is_let_in_unless_asked() {
    let answer = preflight(server(), PAGE);
    assert_eq!((status(&answer), header(&answer, "access-control-allow-origin")), (204, None));
    let answer = exchange(server(), &request("GET", "/v1/models", &[("origin", PAGE)], b""));
    assert_eq!((status(&answer), header(&answer, "access-control-allow-origin")), (200, None));
    // A page may send this without a preflight; it does nothing.
    let foreign = [("origin", PAGE), ("sec-fetch-site", "cross-site"), ("content-type", "text/plain")];
    let body = json!({ "model": MODEL, "prompt": "a", "max_tokens": 1 }).to_string();
    let answer = exchange(server(), &request("POST", "/v1/completions", &foreign, body.as_bytes()));
    assert!(status(&answer) == 403 && answer.contains("--cors-origin"), "{answer}");
}

#[test]
fn a_named_origin_is_let_in_by_its_preflight_without_a_key() {
    let answer = preflight(open(), PAGE);
    assert_eq!(status(&answer), 204, "{answer}");
    for (name, wanted) in [
        ("access-control-allow-origin", PAGE),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-headers", "authorization,content-type,x-stainless-lang"),
        ("access-control-max-age", "600"),
        ("vary", "origin"),
    ] {
        assert_eq!(header(&answer, name), Some(wanted), "{name}");
    }
    assert!(header(&answer, "access-control-allow-methods").unwrap().contains("DELETE"));
    let other = preflight(open(), "https://app.example.evil");
    assert_eq!(header(&other, "access-control-allow-origin"), None);
    assert_eq!(header(&other, "vary"), Some("origin"));
}

#[test]
fn answers_errors_and_streams_can_be_read_by_the_page() {
    let body = json!({ "model": MODEL, "prompt": "a", "max_tokens": 2, "stream": true, "temperature": 0 })
        .to_string();
    let headers = |key| [("origin", PAGE), ("sec-fetch-site", "cross-site"), ("x-api-key", key)];
    for (key, path, wanted) in [
        ("secret", "/v1/completions", 200),
        ("wrong", "/v1/completions", 401),
        ("secret", "/v1/nothing", 404),
    ] {
        let answer = exchange(open(), &request("POST", path, &headers(key), body.as_bytes()));
        assert_eq!(status(&answer), wanted, "{answer}");
        assert_eq!(header(&answer, "access-control-allow-origin"), Some(PAGE), "{answer}");
        assert!(header(&answer, "access-control-expose-headers").unwrap().contains("x-request-id"));
        assert!(wanted != 200 || answer.contains("[DONE]"), "{answer}");
    }
}

#[test]
fn everybodys_origin_has_no_credentials() {
    let at = start_with(|config| config.origins = ["*".parse::<Origin>().unwrap()].into_iter().collect());
    let answer = preflight(at, "https://whoever.example");
    assert_eq!(header(&answer, "access-control-allow-origin"), Some("*"));
    assert_eq!(header(&answer, "access-control-allow-credentials"), None);
}
