//! Calls by web pages of other origins: refused unless the server's own settings name the origin. Answers to preflights, and
//! the headers that let a page read an answer, also one that is an error or a stream.

use std::str::FromStr;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use crate::app::App;
use crate::error::ApiError;

/// How long a browser may remember a preflight.
const REMEMBER: HeaderValue = HeaderValue::from_static("600");
const METHODS: HeaderValue = HeaderValue::from_static("GET, POST, PUT, PATCH, DELETE");
/// What a page may read of an answer beside what is always readable.
const EXPOSED: HeaderValue =
    HeaderValue::from_static("x-request-id, request-id, retry-after, traceparent, www-authenticate");
/// The longest list of headers that a page may ask for.
const ASKED_MAX: usize = 2048;

/// Whose pages may call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origins {
    any: bool,
    listed: Vec<String>,
}

/// An origin of a list, or `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Everybody's, without credentials.
    Any,
    /// `https://example.com`, in lower case.
    One(String),
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Origin, String> {
        if text == "*" {
            return Ok(Origin::Any);
        }
        let wrong =
            |why: &str| format!("{text:?} is no origin: {why}; write https://example.com, or * for all");
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("it has no scheme"))?;
        if scheme.is_empty() || !scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) {
            return Err(wrong("it has no scheme"));
        }
        if rest.is_empty() || rest.contains(['/', '?', '#', '@', '*', ' ']) || !rest.is_ascii() {
            return Err(wrong("after the scheme comes a host, and a port if need be, and nothing else"));
        }
        if let Some((_, port)) = rest.rsplit_once(':').filter(|_| !rest.ends_with(']'))
            && !port.parse::<u16>().is_ok_and(|p| p > 0)
        {
            return Err(wrong("its port is no number"));
        }
        let text = text.to_ascii_lowercase();
        // Browsers leave the usual port out.
        let usual = [("http", ":80"), ("https", ":443")].into_iter().find(|(s, _)| *s == scheme);
        Ok(Origin::One(usual.and_then(|(_, port)| text.strip_suffix(port)).unwrap_or(&text).to_owned()))
    }
}

impl FromIterator<Origin> for Origins {
    fn from_iter<T: IntoIterator<Item = Origin>>(all: T) -> Origins {
        let mut origins = Origins::default();
        for origin in all {
            match origin {
                Origin::Any => origins.any = true,
                Origin::One(one) => origins.listed.push(one),
            }
        }
        origins
    }
}

impl Origins {
    /// Whether the answer depends on who asks, so that caches must know.
    fn varies(&self) -> bool {
        !self.listed.is_empty()
    }

    /// What `access-control-allow-origin` says to an origin, and whether credentials may come too: only to one that is named.
    fn allows(&self, origin: &HeaderValue) -> Option<(HeaderValue, bool)> {
        let named = origin.to_str().is_ok_and(|o| self.listed.iter().any(|l| l.eq_ignore_ascii_case(o)));
        match named {
            true => Some((origin.clone(), true)),
            false => self.any.then(|| (HeaderValue::from_static("*"), false)),
        }
    }
}

/// Answers preflights and puts the headers on answers.
pub(crate) async fn share(State(app): State<App>, request: Request, next: Next) -> Response {
    let origins = &app.origins;
    let origin = request.headers().get(header::ORIGIN).cloned();
    let allowed = origin.as_ref().and_then(|o| origins.allows(o));
    let asked = request.headers().get(header::ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let preflight = request.method() == Method::OPTIONS
        && origin.is_some()
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if preflight {
        let mut response = StatusCode::NO_CONTENT.into_response();
        if allowed.is_some() {
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, REMEMBER);
            // Clients of these APIs have many headers of their own; none of them is more than the key allows.
            if let Some(asked) = asked.filter(|a| a.len() <= ASKED_MAX) {
                headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked);
            }
        }
        response
    } else {
        let mut response = next.run(request).await;
        if allowed.is_some() {
            response.headers_mut().insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
        response
    };
    let headers = response.headers_mut();
    if origins.varies() {
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    if preflight {
        headers.append(header::VARY, HeaderValue::from_static("access-control-request-headers"));
    }
    if let Some((origin, credentials)) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
    }
    response
}

impl Origins {
    /// Whether pages of an origin may call.
    pub(crate) fn allow(&self, origin: &HeaderValue) -> bool {
        self.allows(origin).is_some()
    }

    /// Refuses what a page makes its browser send that may not call.
    pub(crate) fn check(&self, request: &Request) -> Result<(), ApiError> {
        let allowed = request.headers().get(header::ORIGIN).is_some_and(|o| self.allow(o));
        if allowed || !foreign(request.method(), request.headers()) {
            return Ok(());
        }
        let message = "a page of another origin may not call this server; --cors-origin names those that may";
        Err(ApiError::forbidden(message).code("origin_not_allowed"))
    }
}

/// Whether a browser says that a page of another site makes it change something. Browsers send such requests without asking
/// first, and only keep the answer from the page; a server on the loopback without keys must not work for every page.
fn foreign(method: &Method, headers: &HeaderMap) -> bool {
    if matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return false;
    }
    // A page that is reached through a proxy is of the same origin to the browser, whatever host the proxy names.
    let site = headers.get(HeaderName::from_static("sec-fetch-site")).map(HeaderValue::as_bytes);
    matches!(site, Some(b"cross-site" | b"same-site"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_scheme_and_a_host_and_nothing_else() {
        for (text, wanted) in [
            ("https://Example.com", "https://example.com"),
            ("https://example.com:443", "https://example.com"),
            ("http://example.com:443", "http://example.com:443"),
            ("http://localhost:3000", "http://localhost:3000"),
            ("http://[::1]", "http://[::1]"),
            ("http://[::1]:80", "http://[::1]"),
            ("chrome-extension://abcdef", "chrome-extension://abcdef"),
        ] {
            assert_eq!(text.parse(), Ok(Origin::One(wanted.into())), "{text}");
        }
        assert_eq!("*".parse(), Ok(Origin::Any));
        for text in [
            "",
            "example.com",
            "null",
            "https://",
            "https://a/",
            "https://a/b",
            "https://*.a",
            "https://u@a",
            "http://a:x",
            "http://a:0",
            "://a",
        ] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }

    #[test]
    fn credentials_are_for_named_origins_only() {
        let origins = |all: &[&str]| all.iter().map(|o| o.parse::<Origin>().unwrap()).collect::<Origins>();
        let value = HeaderValue::from_static;
        let a = value("https://a");
        assert_eq!(origins(&[]).allows(&a), None);
        assert_eq!(origins(&["https://b"]).allows(&a), None);
        assert_eq!(origins(&["https://b", "https://a"]).allows(&a), Some((a.clone(), true)));
        assert_eq!(origins(&["*"]).allows(&a), Some((value("*"), false)));
        assert_eq!(origins(&["*", "https://a"]).allows(&a), Some((a, true)));
        assert_eq!(origins(&["https://a"]).allows(&value("https://a.evil")), None);
    }

    #[test]
    fn a_page_of_another_site_changes_nothing() {
        let headers = |list: &[(&'static str, &'static str)]| {
            let pair = |(n, v): &(&'static str, &'static str)| {
                (HeaderName::from_static(n), HeaderValue::from_static(v))
            };
            list.iter().map(pair).collect::<HeaderMap>()
        };
        for (site, is) in [
            (None, false),
            (Some("same-origin"), false),
            (Some("none"), false),
            (Some("cross-site"), true),
            (Some("same-site"), true),
        ] {
            let list: Vec<_> = site.map(|s| ("sec-fetch-site", s)).into_iter().collect();
            assert_eq!(foreign(&Method::POST, &headers(&list)), is, "{list:?}");
            assert!(!foreign(&Method::GET, &headers(&list)));
        }
    }
}
