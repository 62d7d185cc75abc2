//! Whom a request thinks that it talks to. A page may point a name of its own at this machine (DNS rebinding), and its calls
//! are then of one origin to the browser; only their `Host` tells. A server on the loopback without keys therefore answers
//! to names of the loopback, and to those that the settings name.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use axum::extract::Request;
use axum::http::header;

use crate::error::ApiError;

/// The longest part of a name that is repeated in an error.
const SHOWN_MAX: usize = 80;

/// Names that a server answers to, beside those of the loopback.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hosts {
    any: bool,
    listed: Vec<String>,
}

/// A name of a list, or `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AllowedHost {
    /// Every name: nothing is looked at.
    Any,
    /// `chat.example`, in lower case; the port does not matter.
    One(String),
}

impl FromStr for AllowedHost {
    type Err = String;

    fn from_str(text: &str) -> Result<AllowedHost, String> {
        let wrong = |why: &str| format!("{text:?} is no host: {why}; write chat.example, or * for all");
        if text == "*" {
            return Ok(AllowedHost::Any);
        }
        if text.contains("://") {
            return Err(wrong("a scheme is not part of it"));
        }
        let address = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let of_name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        match address {
            Ok(address) => Ok(AllowedHost::One(address.to_canonical().to_string())),
            Err(_) if text.contains(':') => Err(wrong("every port is allowed, so none is named")),
            Err(_) if text.is_empty() || !text.bytes().all(of_name) => Err(wrong("it has other characters")),
            Err(_) => Ok(AllowedHost::One(text.trim_end_matches('.').to_ascii_lowercase())),
        }
    }
}

impl FromIterator<AllowedHost> for Hosts {
    fn from_iter<T: IntoIterator<Item = AllowedHost>>(all: T) -> Hosts {
        let mut hosts = Hosts::default();
        for host in all {
            match host {
                AllowedHost::Any => hosts.any = true,
                AllowedHost::One(one) => hosts.listed.push(one),
            }
        }
        hosts
    }
}

impl Hosts {
    /// Whether names are given that requests must have, wherever the server listens.
    pub(crate) fn are_named(&self) -> bool {
        !self.any && !self.listed.is_empty()
    }

    /// Refuses a request for another name than those of the loopback and of the list. One without any is no browser's.
    pub(crate) fn check(&self, request: &Request) -> Result<(), ApiError> {
        if self.any {
            return Ok(());
        }
        let asked = request.uri().authority().map(|a| a.as_str().as_bytes());
        let said = request.headers().get_all(header::HOST).iter().map(|v| v.as_bytes());
        for host in said.chain(asked) {
            let text = String::from_utf8_lossy(host);
            let name = name_of(&text);
            if !is_loopback(&name) && !self.listed.contains(&name) {
                let shown: String = name.chars().take(SHOWN_MAX).collect();
                let message = format!(
                    "Host is {shown:?}, and this server answers to localhost and the loopback's addresses alone, so that no web \
                     page can reach it by a name of its own; --allowed-host NAME lets a name in"
                );
                return Err(ApiError::forbidden(message).code("host_not_allowed"));
            }
        }
        Ok(())
    }
}

/// The name or address in an authority, without user, port, brackets and a last dot.
fn name_of(authority: &str) -> String {
    let host = authority.rsplit('@').next().unwrap_or(authority);
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    match name.parse::<Ipv6Addr>() {
        Ok(address) => address.to_canonical().to_string(),
        Err(_) => name,
    }
}

/// `localhost` and what is below it never leave the machine (RFC 6761, section 6.3).
fn is_loopback(name: &str) -> bool {
    let address = name.parse::<IpAddr>().is_ok_and(|a| a.is_loopback());
    address || name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn hosts(all: &[&str]) -> Hosts {
        all.iter().map(|h| h.parse::<AllowedHost>().unwrap()).collect()
    }

    fn asked(uri: &str, said: &[&str]) -> Request {
        let mut request = axum::http::Request::get(uri);
        for host in said {
            request = request.header("host", *host);
        }
        request.body(Body::empty()).unwrap()
    }

    #[test]
    fn the_loopback_has_many_names_and_a_page_has_none_of_them() {
        for (host, may) in [
            ("localhost", true),
            ("LOCALHOST:8080", true),
            ("localhost.:8080", true),
            ("app.localhost:8080", true),
            ("127.0.0.1:8080", true),
            ("127.8.9.1", true),
            ("[::1]:8080", true),
            ("[::1]", true),
            ("[::ffff:127.0.0.1]:80", true),
            ("evil.example", false),
            ("evil.example:8080", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("127.0.0.1@evil.example", false),
            ("localhost:80:evil.example", false),
            ("notlocalhost", false),
            ("10.0.0.7:8080", false),
            ("0.0.0.0", false),
            ("[::2]:1", false),
            ("", false),
            ("[", false),
        ] {
            assert_eq!(hosts(&[]).check(&asked("/", &[host])).is_ok(), may, "{host:?}");
        }
        assert!(hosts(&[]).check(&asked("/", &[])).is_ok(), "no browser leaves it out");
        assert!(hosts(&[]).check(&asked("/", &["localhost", "evil.example"])).is_err(), "each is looked at");
        assert!(hosts(&[]).check(&asked("http://evil.example/", &["localhost"])).is_err());
    }

    #[test]
    fn names_of_the_list_are_let_in_with_any_port() {
        let listed = hosts(&["Chat.Example.", "10.0.0.7", "[fd00::1]"]);
        for (host, may) in [
            ("chat.example", true),
            ("chat.example:443", true),
            ("CHAT.example.:1", true),
            ("10.0.0.7:8080", true),
            ("[fd00::1]:8080", true),
            ("[fd00:0::1]", true),
            ("localhost", true),
            ("sub.chat.example", false),
            ("10.0.0.70", false),
        ] {
            assert_eq!(listed.check(&asked("/", &[host])).is_ok(), may, "{host}");
        }
        assert!(listed.are_named() && !hosts(&[]).are_named() && !hosts(&["*", "a"]).are_named());
        assert!(hosts(&["*"]).check(&asked("/", &["evil.example"])).is_ok());
        let said = hosts(&[]).check(&asked("/", &["evil.example"])).unwrap_err();
        assert_eq!((said.status.as_u16(), said.code), (403, Some("host_not_allowed")));
        assert!(said.message.contains("evil.example") && said.message.contains("--allowed-host"));
    }

    #[test]
    fn a_host_of_the_list_is_a_name_and_nothing_else() {
        for text in ["", "http://a", "a:80", "a b", "a/b", "*.a", "a,b", "ž"] {
            assert!(text.parse::<AllowedHost>().is_err(), "{text}");
        }
        assert_eq!("A.b".parse(), Ok(AllowedHost::One("a.b".into())));
        assert_eq!("*".parse(), Ok(AllowedHost::Any));
    }
}
