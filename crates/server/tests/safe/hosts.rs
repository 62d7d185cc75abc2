//! Pages that reach the server by a name of their own (DNS rebinding).

use std::net::{Ipv4Addr, SocketAddr};

use quarrel_server::AllowedHost;
use serde_json::{Value, json};

use crate::common::{MODEL, server, start, start_with};
use crate::wire::{exchange, status};

fn asked(at: SocketAddr, path: &str, host: &str, key: &str) -> String {
    let body = json!({ "content": "a", "model": MODEL }).to_string();
    let (method, length) = if path == "/tokenize" { ("POST", body.len()) } else { ("GET", 0) };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\n{key}connection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    exchange(at, format!("{head}{}", &body[..length]).as_bytes())
}

#[test]
fn a_page_that_calls_the_loopback_by_its_own_name_is_refused() {
    for path in ["/", "/v1/models", "/tokenize", "/openapi.json", "/nothing"] {
        let said = asked(server(), path, "evil.example:8080", "");
        assert_eq!(status(&said), 403, "{path}: {said}");
        let body: Value = serde_json::from_str(said.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(body["error"]["code"], "host_not_allowed");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains("\"evil.example\"") && message.contains("--allowed-host"), "{message}");
        let port = server().port();
        for host in [format!("localhost:{port}"), format!("127.0.0.1:{port}"), "[::1]".into()] {
            assert_ne!(status(&asked(server(), path, &host, "")), 403, "{path} {host}");
        }
    }
    // Without the header it is no browser: HTTP/1.0, a probe.
    assert_eq!(status(&exchange(server(), b"GET /health HTTP/1.0\r\n\r\n")), 200);
}

#[test]
fn names_of_the_flag_are_let_in() {
    let at = start_with(|c| c.hosts = ["chat.example".parse::<AllowedHost>().unwrap()].into_iter().collect());
    assert_eq!(status(&asked(at, "/tokenize", "Chat.Example", "")), 200);
    assert_eq!(status(&asked(at, "/tokenize", "localhost", "")), 200);
    assert_eq!(status(&asked(at, "/tokenize", "evil.example", "")), 403);
    let at = start_with(|c| c.hosts = ["*".parse::<AllowedHost>().unwrap()].into_iter().collect());
    assert_eq!(status(&asked(at, "/tokenize", "evil.example", "")), 200);
}

#[test]
fn with_a_key_or_on_a_network_any_name_will_do_unless_some_are_named() {
    let at = start(vec!["secret".into()]);
    assert_eq!(status(&asked(at, "/tokenize", "any.example", "x-api-key: secret\r\n")), 200);
    let open = |name: Option<&str>| {
        let hosts = name.iter().map(|n| n.parse::<AllowedHost>().unwrap()).collect();
        let at = start_with(move |c| (c.address, c.hosts) = ((Ipv4Addr::UNSPECIFIED, 0).into(), hosts));
        SocketAddr::from((Ipv4Addr::LOCALHOST, at.port()))
    };
    assert_eq!(status(&asked(open(None), "/tokenize", "any.example", "")), 200);
    let named = open(Some("chat.example"));
    assert_eq!(status(&asked(named, "/tokenize", "chat.example", "")), 200);
    assert_eq!(status(&asked(named, "/tokenize", "any.example", "")), 403);
}
