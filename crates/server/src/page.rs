//! The web page: files that are part of the program, so that it works without a network.

use axum::extract::Path;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;

const JS: &str = "text/javascript; charset=utf-8";

/// Name, kind, bytes.
const FILES: [(&str, &str, &str); 12] = [
    ("index.html", "text/html; charset=utf-8", include_str!("../web/index.html")),
    ("app.css", "text/css; charset=utf-8", include_str!("../web/app.css")),
    ("icon.svg", "image/svg+xml", include_str!("../web/icon.svg")),
    ("api.js", JS, include_str!("../web/api.js")),
    ("app.js", JS, include_str!("../web/app.js")),
    ("dom.js", JS, include_str!("../web/dom.js")),
    ("markdown.js", JS, include_str!("../web/markdown.js")),
    ("message.js", JS, include_str!("../web/message.js")),
    ("quality.js", JS, include_str!("../web/quality.js")),
    ("settings.js", JS, include_str!("../web/settings.js")),
    ("sidebar.js", JS, include_str!("../web/sidebar.js")),
    ("store.js", JS, include_str!("../web/store.js")),
];

/// Only what comes from here may run, and nothing may put the page into another one.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn file(name: &str) -> Option<Response> {
    let (_, kind, text) = FILES.iter().find(|f| f.0 == name)?;
    let mut response = (*text).into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, *kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // The program may be another one the next time.
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(HeaderName::clone(&name), HeaderValue::from_static(value));
    }
    Some(response)
}

/// The page itself.
pub(crate) async fn index() -> Result<Response, ApiError> {
    asset(Path("index.html".into())).await
}

/// One of its files; whether there is such a route is asked after all others.
pub(crate) async fn asset(Path(name): Path<String>) -> Result<Response, ApiError> {
    file(&name).ok_or_else(|| {
        ApiError::not_found(format!("there is no /{name} here; GET /openapi.json lists what there is"))
    })
}

/// Whether a path is one of the page's, which need no key.
pub(crate) fn is_page(path: &str) -> bool {
    path == "/" || FILES.iter().any(|f| path.strip_prefix('/') == Some(f.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_the_page_imports_is_there() {
        for (name, kind, text) in FILES.iter().filter(|f| f.1 == JS) {
            for line in text.lines().filter(|l| l.starts_with("import ") || l.contains(" from \"./")) {
                let Some(path) = line.split("\"./").nth(1).and_then(|r| r.split('"').next()) else {
                    continue;
                };
                assert!(FILES.iter().any(|f| f.0 == path), "{name} ({kind}) imports {path}");
            }
        }
        assert!(is_page("/") && is_page("/app.js") && !is_page("/v1/models") && !is_page("/nothing.js"));
    }
}
