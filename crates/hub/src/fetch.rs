//! HTTP for model files: bounded retries, resume by byte range, redirects that never carry a token to another host, and
//! errors that say what to do. Every download is hashed while it arrives.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Timeout};

use crate::cache::make_dir;
use crate::digest::{Digest, Hasher, digest_file, hash_into};
use crate::error::{Error, Result};
use crate::progress::Progress;

const REDIRECTS_MAX: usize = 10;
/// Connections for one file, however much each of them brings.
const CONNECTIONS_MAX: u32 = 500;

/// How to use the network.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// The longest wait for a name lookup, and again for a connection with its TLS handshake.
    pub connect_timeout: Duration,
    /// The longest silence of a server.
    pub read_timeout: Duration,
    /// Tries in a row that may bring nothing before giving up.
    pub tries: u32,
    /// The wait after the first failed try; doubled after each.
    pub backoff: Duration,
    /// The longest wait that a server may ask for with `Retry-After`.
    pub retry_after_max: Duration,
    /// Whether `ALL_PROXY`, `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` count.
    pub proxy_from_env: bool,
    /// Certificates (PEM) to trust instead of the built-in ones, as `SSL_CERT_FILE` names them.
    pub ca_file: Option<PathBuf>,
}

impl Default for NetConfig {
    fn default() -> Self {
        NetConfig {
            connect_timeout: Duration::from_secs(6),
            read_timeout: Duration::from_secs(30),
            tries: 4,
            backoff: Duration::from_millis(500),
            retry_after_max: Duration::from_secs(60),
            proxy_from_env: true,
            ca_file: None,
        }
    }
}

/// What to ask for.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The address, `http://` or `https://`.
    pub url: &'a str,
    /// A token for the address's own host; it goes to no other.
    pub bearer: Option<&'a str>,
    /// The media type to accept.
    pub accept: Option<&'a str>,
}

/// What a download must turn out to be.
#[derive(Debug, Clone, Copy, Default)]
pub struct Want {
    /// Its digest.
    pub digest: Option<Digest>,
    /// Its size in bytes.
    pub size: Option<u64>,
}

/// An HTTP client.
#[derive(Debug, Clone)]
pub struct Fetcher {
    agent: Agent,
    config: NetConfig,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Follow {
    All,
    /// Stop at a redirect to another host and return it: its headers are the ones that count.
    SameHost,
}

/// A failed exchange and whether it is worth another try.
struct Failure {
    error: Error,
    again: Again,
}

enum Again {
    Never,
    /// Only when the server has already been seen to work: the machine may just have no network.
    IfWorkedBefore,
    Yes,
    After(Duration),
}

impl Fetcher {
    /// A client.
    ///
    /// # Errors
    /// When the certificate file cannot be read.
    pub fn new(config: NetConfig) -> Result<Fetcher> {
        let mut builder = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("quarrel/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity") // a byte range of a compressed body would be of no use
            .timeout_resolve(Some(config.connect_timeout))
            .timeout_connect(Some(config.connect_timeout))
            .timeout_recv_response(Some(config.read_timeout))
            .timeout_per_read(Some(config.read_timeout));
        if !config.proxy_from_env {
            builder = builder.proxy(None);
        }
        if let Some(path) = &config.ca_file {
            let roots = RootCerts::Specific(Arc::new(certificates(path)?));
            builder = builder.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        Ok(Fetcher { agent: builder.build().new_agent(), config })
    }

    /// A small text, with retries.
    ///
    /// # Errors
    /// [`Error::Http`], also when it is longer than `bytes_max`.
    pub fn text(&self, request: Request<'_>, bytes_max: u64) -> Result<String> {
        self.retrying(|| {
            let reply = self.send(&request, "GET", &[], Follow::All)?;
            let fail = |again, why: String| Failure { error: http_error(request.url, None, why), again };
            let mut text = String::new();
            let mut body = reply.into_body().into_reader().take(bytes_max + 1);
            body.read_to_string(&mut text).map_err(|e| match e.kind() {
                io::ErrorKind::InvalidData => fail(Again::Never, "the answer is not UTF-8".into()),
                _ => transport(request.url, e.into(), &self.config),
            })?;
            match text.len() as u64 > bytes_max {
                true => Err(fail(Again::Never, format!("the answer is longer than {bytes_max} bytes"))),
                false => Ok(text),
            }
        })
    }

    /// The headers of the first answer that is not a redirect on the same host.
    ///
    /// # Errors
    /// [`Error::Http`].
    pub fn head(&self, request: Request<'_>) -> Result<HeaderMap> {
        self.retrying(|| {
            self.send(&request, "HEAD", &[], Follow::SameHost).map(|reply| reply.into_parts().0.headers)
        })
    }

    fn retrying<T>(&self, once: impl Fn() -> Result<T, Failure>) -> Result<T> {
        let mut failures = 0;
        loop {
            match once() {
                Ok(value) => return Ok(value),
                Err(failure) => {
                    failures += 1;
                    self.wait(failure, failures, false)?;
                }
            }
        }
    }

    /// Waits before the next try, or gives the error back when there is to be none.
    fn wait(&self, failure: Failure, failures: u32, worked_before: bool) -> Result<()> {
        let pause = match failure.again {
            Again::After(asked) if asked <= self.config.retry_after_max => asked,
            Again::Yes => self.config.backoff * 2u32.saturating_pow(failures - 1),
            Again::IfWorkedBefore if worked_before => self.config.backoff * 2u32.saturating_pow(failures - 1),
            _ => return Err(failure.error),
        };
        if failures >= self.config.tries {
            return Err(failure.error);
        }
        thread::sleep(pause);
        Ok(())
    }

    /// One exchange, following redirects. Only success statuses come back (and redirects, where [`Follow`] says so).
    fn send(
        &self,
        request: &Request<'_>,
        method: &str,
        headers: &[(&str, String)],
        follow: Follow,
    ) -> Result<Response<Body>, Failure> {
        let mut url = request.url.to_string();
        let mut bearer = request.bearer;
        for _ in 0..=REDIRECTS_MAX {
            let mut message = ureq::http::Request::builder().method(method).uri(&url);
            for (name, value) in headers {
                message = message.header(*name, value);
            }
            if let Some(token) = bearer {
                message = message.header("authorization", format!("Bearer {token}"));
            }
            if let Some(accept) = request.accept {
                message = message.header("accept", accept);
            }
            let bad = |why: String| Failure { error: http_error(&url, None, why), again: Again::Never };
            let message = message.body(()).map_err(|e| bad(format!("the address cannot be used: {e}")))?;
            let reply = self.agent.run(message).map_err(|e| transport(&url, e, &self.config))?;
            let status = reply.status().as_u16();
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                return match reply.status().is_success() {
                    true => Ok(reply),
                    false => Err(refused(&url, &reply, self.config.retry_after_max)),
                };
            }
            let location = reply.headers().get("location").and_then(|l| l.to_str().ok());
            let next = location
                .and_then(|l| join(&url, l))
                .ok_or_else(|| bad(format!("it redirects ({status}) to no usable address")))?;
            if origin(&next) != origin(&url) {
                if follow == Follow::SameHost {
                    return Ok(reply);
                }
                bearer = None;
            }
            if url.starts_with("https://") && !next.starts_with("https://") {
                return Err(bad(format!(
                    "it redirects to {}, which is not encrypted; refused",
                    shown(&next)
                )));
            }
            url = next;
        }
        Err(Failure {
            error: http_error(request.url, None, format!("more than {REDIRECTS_MAX} redirects")),
            again: Again::Never,
        })
    }

    /// Fetches into the file `to`, going on where an earlier run stopped, and verifies it. On failure the file stays
    /// when its bytes are good for another try, and is removed when they are wrong.
    ///
    /// # Errors
    /// [`Error::Http`], [`Error::Corrupt`], [`Error::DiskFull`], [`Error::Io`].
    pub fn download(
        &self,
        request: Request<'_>,
        to: &Path,
        want: Want,
        label: &str,
        progress: &mut dyn Progress,
    ) -> Result<Digest> {
        make_dir(to.parent().unwrap_or(Path::new(".")))?;
        let resumed = fs::metadata(to).is_ok_and(|m| m.len() > 0);
        let outcome = self.download_once(request, to, want, label, progress);
        progress.finish();
        match outcome {
            Err(Error::Corrupt { .. }) if resumed => {
                progress.note(&format!("what was kept of {label} is of no use; fetching it from the start"));
                let outcome = self.download_once(request, to, want, label, progress);
                progress.finish();
                outcome
            }
            other => other,
        }
    }

    fn download_once(
        &self,
        request: Request<'_>,
        to: &Path,
        want: Want,
        label: &str,
        progress: &mut dyn Progress,
    ) -> Result<Digest> {
        let mut part = Part::open(to, want)?;
        progress.start(part.size, label);
        progress.advance(part.len);
        let mut failures = 0;
        let mut worked = false;
        for _ in 0..CONNECTIONS_MAX {
            if part.size == Some(part.len) {
                break;
            }
            let before = part.len;
            match self.continue_part(&request, &mut part, label, progress) {
                Ok(()) => break,
                Err(failure) => {
                    worked |= part.len > before;
                    failures = if part.len > before { 1 } else { failures + 1 };
                    self.wait(failure, failures, worked)?;
                }
            }
        }
        part.finish(request.url)
    }

    /// One connection's worth of a download; returns when the file is whole.
    fn continue_part(
        &self,
        request: &Request<'_>,
        part: &mut Part,
        label: &str,
        progress: &mut dyn Progress,
    ) -> Result<(), Failure> {
        let stop = |error| Failure { error, again: Again::Never };
        let mut headers = Vec::new();
        if part.len > 0 {
            headers.push(("range", format!("bytes={}-", part.len)));
            // Only a strong validator may stand in If-Range, and only the one that this file's own server gave.
            headers.extend(part.etag.clone().map(|etag| ("if-range", etag)));
        }
        let reply = match self.send(request, "GET", &headers, Follow::All) {
            Err(failure) if part.len > 0 && is_status(&failure.error, 416) => {
                part.restart().map_err(stop)?; // what we have is not a beginning of what is there
                progress.start(part.size, label);
                return Err(Failure { again: Again::Yes, ..failure });
            }
            other => other?,
        };
        let total = match range_start_and_total(&reply) {
            Some((start, total)) if start == part.len => total,
            Some((start, _)) => {
                let why = format!("asked for bytes from {} on, it sent them from {start} on", part.len);
                return Err(stop(http_error(request.url, None, why)));
            }
            None => {
                if part.len > 0 {
                    part.restart().map_err(stop)?; // the server gives the whole file again
                    progress.start(part.size, label);
                }
                reply.headers().get("content-length").and_then(|v| v.to_str().ok()?.parse().ok())
            }
        };
        part.etag = strong_etag(reply.headers());
        if let (Some(told), Some(known)) = (total, part.size)
            && told != known
        {
            let what = format!("{label} at {}", shown(request.url));
            let (expected, found) = (format!("{known} bytes"), format!("{told} bytes"));
            return Err(stop(Error::Corrupt { what, expected, found, after: "nothing was fetched".into() }));
        }
        if part.size.is_none() && total.is_some() {
            part.size = total;
            progress.start(total, label);
            progress.advance(part.len);
        }
        let mut body = reply.into_body().into_reader();
        let mut buf = vec![0; 256 * 1024];
        loop {
            match body.read(&mut buf) {
                Ok(0) => break,
                Ok(n) => {
                    part.write(&buf[..n]).map_err(stop)?;
                    progress.advance(n as u64);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    return Err(Failure {
                        again: Again::Yes,
                        ..transport(request.url, e.into(), &self.config)
                    });
                }
            }
        }
        match part.size {
            Some(size) if part.len < size => {
                let why = format!(
                    "the connection ended at byte {} of {size}; run the same command again to go on",
                    part.len
                );
                Err(Failure { error: http_error(request.url, None, why), again: Again::Yes })
            }
            _ => Ok(()),
        }
    }
}

/// A file that is being fetched.
struct Part {
    path: PathBuf,
    file: File,
    len: u64,
    size: Option<u64>,
    digest: Option<Digest>,
    hasher: Hasher,
    etag: Option<String>,
}

impl Part {
    fn open(path: &Path, want: Want) -> Result<Part> {
        let io = |e| Error::io("open", path, e);
        let file = OpenOptions::new().create(true).read(true).append(true).open(path).map_err(io)?;
        let len = file.metadata().map_err(io)?.len();
        let hasher = Hasher::new(None, None);
        let mut part =
            Part { path: path.into(), file, len, size: want.size, digest: want.digest, hasher, etag: None };
        if want.size.is_some_and(|size| len > size) {
            part.restart()?;
        }
        let kept = File::open(path).map_err(io)?.take(part.len);
        hash_into(&mut part.hasher, kept, |_| ()).map_err(|e| Error::io("read", path, e))?;
        Ok(part)
    }

    fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|e| Error::io("write", &self.path, e))?;
        self.len = 0;
        self.etag = None;
        self.hasher = Hasher::new(None, None);
        Ok(())
    }

    fn write(&mut self, chunk: &[u8]) -> Result<()> {
        if self.size.is_some_and(|size| self.len + chunk.len() as u64 > size) {
            let found = format!("more than {} bytes", self.len);
            let _ = fs::remove_file(&self.path); // wrong bytes are of no use to anyone
            let expected = format!("{} bytes", self.size.unwrap_or_default());
            return Err(Error::Corrupt {
                what: self.path.display().to_string(),
                expected,
                found,
                after: REMOVED.into(),
            });
        }
        if let Err(e) = self.file.write_all(chunk) {
            return Err(match Error::io("write", &self.path, e) {
                Error::DiskFull { path, .. } => {
                    let kept = crate::quant::human_bytes(self.len);
                    let after =
                        format!("{kept} are kept; free some space and run the same command again to go on");
                    Error::DiskFull { path, after }
                }
                other => other,
            });
        }
        self.hasher.update(chunk);
        self.len += chunk.len() as u64;
        Ok(())
    }

    fn finish(self, url: &str) -> Result<Digest> {
        self.file.sync_all().map_err(|e| Error::io("write", &self.path, e))?;
        let found = match self.digest {
            Some(want @ Digest::GitSha1(_)) => digest_file(&self.path, Some(&want), |_| ())?,
            _ => self.hasher.finish(),
        };
        match self.digest {
            Some(expected) if expected != found => {
                let _ = fs::remove_file(&self.path); // wrong bytes are of no use to anyone
                Err(Error::corrupt_digest(
                    format!("the download from {}", shown(url)),
                    &expected,
                    &found,
                    REMOVED,
                ))
            }
            _ => Ok(found),
        }
    }
}

const NO_ADDRESS: &str = "its address was not found; is there a network?";
const REMOVED: &str = "it was removed; run the same command again to fetch it anew";

/// `(start, total)` of a partial answer; nothing when the answer is the whole file.
fn range_start_and_total(reply: &Response<Body>) -> Option<(u64, Option<u64>)> {
    if reply.status().as_u16() != 206 {
        return None;
    }
    let text = reply.headers().get("content-range")?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = text.split_once('/')?;
    Some((range.split_once('-')?.0.trim().parse().ok()?, total.trim().parse().ok()))
}

fn strong_etag(headers: &HeaderMap) -> Option<String> {
    headers.get("etag")?.to_str().ok().filter(|e| e.starts_with('"')).map(str::to_string)
}

fn is_status(error: &Error, wanted: u16) -> bool {
    matches!(error, Error::Http { status: Some(s), .. } if *s == wanted)
}

fn http_error(url: &str, status: Option<u16>, why: String) -> Error {
    Error::Http { url: shown(url), why, status }
}

/// An answer that is no success.
fn refused(url: &str, reply: &Response<Body>, retry_after_max: Duration) -> Failure {
    let status = reply.status().as_u16();
    let header = |name: &str| reply.headers().get(name).and_then(|v| v.to_str().ok());
    let asked = header("retry-after").and_then(|v| v.trim().parse().ok()).map(Duration::from_secs);
    let mut why = match status {
        401 => "it asks for an access token (401)".to_string(),
        403 => "access is refused (403)".to_string(),
        404 => "there is no such thing there (404)".to_string(),
        416 => "the kept bytes do not fit what is there (416)".to_string(),
        429 => "too many requests (429); try again later".to_string(),
        500.. => format!("the server failed ({status}); try again later"),
        _ => format!("the server answered {status}"),
    };
    // Hugging Face says in this header what is wrong in words; other servers do not have it.
    if let Some(words) = header("x-error-message") {
        why.push_str(&format!(
            ": {}",
            words.chars().filter(|c| !c.is_control()).take(200).collect::<String>()
        ));
    }
    let again = match (status, asked) {
        (429 | 503, Some(wait)) => {
            if wait > retry_after_max {
                why.push_str(&format!("; it asks to wait {} s", wait.as_secs()));
            }
            Again::After(wait)
        }
        (408 | 425 | 429 | 500 | 502 | 503 | 504, _) => Again::Yes,
        _ => Again::Never,
    };
    Failure { error: http_error(url, Some(status), why), again }
}

/// A failure below HTTP, in words.
fn transport(url: &str, e: ureq::Error, config: &NetConfig) -> Failure {
    let (why, again) = match e {
        ureq::Error::HostNotFound => (NO_ADDRESS.into(), Again::IfWorkedBefore),
        // The standard library gives a failed lookup no kind of its own.
        ureq::Error::Io(e) if e.to_string().contains("lookup address") => {
            (NO_ADDRESS.into(), Again::IfWorkedBefore)
        }
        ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
            let s = config.connect_timeout.as_secs_f32();
            (
                format!("no connection within {s} s; is there a network, or a proxy to set?"),
                Again::IfWorkedBefore,
            )
        }
        ureq::Error::Timeout(_) => {
            (format!("it was silent for {} s", config.read_timeout.as_secs_f32()), Again::Yes)
        }
        ureq::Error::Io(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            ("the connection was refused".into(), Again::IfWorkedBefore)
        }
        ureq::Error::Io(e) => match e.kind() {
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
                ("the network is unreachable".into(), Again::IfWorkedBefore)
            }
            _ => (format!("the connection broke: {e}"), Again::Yes),
        },
        ureq::Error::ConnectionFailed => ("no connection could be made".into(), Again::IfWorkedBefore),
        ureq::Error::Rustls(e) => {
            let hint = "; behind an inspecting proxy, set SSL_CERT_FILE to its certificates";
            (format!("the encrypted connection failed: {e}{hint}"), Again::Never)
        }
        ureq::Error::Protocol(e) => (format!("the answer is broken: {e}"), Again::Yes),
        e => (e.to_string(), Again::Never),
    };
    Failure { error: http_error(url, None, why), again }
}

/// An address without what may be secret in it: user, password, query.
fn shown(url: &str) -> String {
    let bare = url.split(['?', '#']).next().unwrap_or(url);
    match bare.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            format!("{scheme}://{}{path}", host.rsplit('@').next().unwrap_or(host))
        }
        None => bare.to_string(),
    }
}

/// Scheme, host and port.
fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

/// A `Location` seen from `base`, as a whole address.
fn join(base: &str, location: &str) -> Option<String> {
    let location = location.split('#').next()?;
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.to_string());
    }
    let (scheme, rest) = base.split_once("://")?;
    if let Some(other) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{other}"));
    }
    if location.is_empty() || location.contains("://") {
        return None;
    }
    let rest = rest.split(['?', '#']).next()?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if location.starts_with('/') {
        return Some(format!("{scheme}://{authority}{location}"));
    }
    let dir = path.rfind('/').map_or("/", |i| &path[..=i]);
    Some(format!("{scheme}://{authority}{dir}{location}"))
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>> {
    let pem = fs::read(path).map_err(|e| Error::io("read the certificates of SSL_CERT_FILE,", path, e))?;
    let found: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(c)) => Some(c),
            _ => None,
        })
        .collect();
    match found.is_empty() {
        true => Err(Error::malformed(
            path.display(),
            "SSL_CERT_FILE names it, and it has no certificate in PEM form",
        )),
        false => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations() {
        let base = "https://a.example/x/y?q=1";
        for (location, want) in [
            ("https://b.example/z", Some("https://b.example/z")),
            ("//b.example/z", Some("https://b.example/z")),
            ("/z?k=v#f", Some("https://a.example/z?k=v")),
            ("z", Some("https://a.example/x/z")),
            ("ftp://b.example/z", None),
            ("", None),
        ] {
            assert_eq!(join(base, location).as_deref(), want, "{location}");
        }
        assert_eq!(join("https://a.example", "z").as_deref(), Some("https://a.example/z"));
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(shown("https://user:pw@h.example/p/f?X-Signature=abc#x"), "https://h.example/p/f");
        assert_eq!(shown("https://h.example?token=abc"), "https://h.example");
    }

    #[test]
    fn an_origin_has_its_port() {
        assert_eq!(origin("https://A.example/x"), origin("https://a.example:443/y"));
        assert_ne!(origin("https://a.example"), origin("http://a.example"));
        assert_ne!(origin("http://a.example:1"), origin("http://a.example:2"));
    }
}
