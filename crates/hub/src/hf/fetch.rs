//! Asking the hub which files there are, and fetching them into the shared cache.

use std::fs;

use serde::Deserialize;

use super::cache::{Cached, HfCache};
use super::pick::{RepoFile, pick};
use super::{HfConfig, Token};
use crate::cache::{lock_file, make_dir};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::{Fetcher, Request, Want};
use crate::name::{HfRef, check_relative};
use crate::progress::Progress;
use crate::wheel::Expect;

/// A listing of a repository with very many files is a few MB.
const LISTING_BYTES_MAX: u64 = 64 << 20;

#[derive(Deserialize)]
struct RepoInfo {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<Digest>,
}

/// What the hub says of one file.
struct Remote {
    etag: String,
    digest: Digest,
    size: Option<u64>,
}

/// Fetches what `what` names. With `expect` the weights must be those, and that is checked before they are fetched.
///
/// # Errors
/// See [`Error`]; an interrupted file stays as `.incomplete`, as the Python tools leave it, and is gone on with.
pub(crate) fn fetch(
    config: &HfConfig,
    fetcher: &Fetcher,
    what: &HfRef,
    expect: Expect,
    progress: &mut dyn Progress,
) -> Result<Cached> {
    let cache = HfCache::new(&config.cache);
    let endpoint = config.endpoint.trim_end_matches('/');
    let token = config.token.as_ref();
    let url = format!(
        "{endpoint}/api/models/{}/revision/{}?blobs=true",
        what.id(),
        encode(what.revision()).replace('/', "%2F")
    );
    let text = fetcher.text(request(&url, token), LISTING_BYTES_MAX).map_err(|e| explain(e, what, token))?;
    let info: RepoInfo =
        serde_json::from_str(&text).map_err(|e| Error::malformed(format!("the listing of {what}"), e))?;
    if info.sha.len() != 40 || !info.sha.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Error::malformed(
            format!("the listing of {what}"),
            format!("`sha` is no commit: {:?}", info.sha),
        ));
    }
    // A path that could leave the snapshot's directory is not offered at all.
    let safe = |s: &&Sibling| check_relative(&s.rfilename).is_ok();
    let files: Vec<RepoFile> = info
        .siblings
        .iter()
        .filter(safe)
        .map(|s| RepoFile { path: s.rfilename.clone(), size: s.size })
        .collect();
    let picked = pick(what, &files)?;
    for file in &picked.files {
        let listed = info.siblings.iter().find(|s| s.rfilename == *file).and_then(|s| s.lfs.as_ref()?.sha256);
        let url = format!("{endpoint}/{}/resolve/{}/{}", what.id(), info.sha, encode(file));
        let remote = ask(fetcher, &url, what, token, listed)?;
        if let Some(expected) = expect.digest.filter(|d| *d != remote.digest && is_weights(file)) {
            let after = "nothing was fetched; the repository has other weights under this name now";
            return Err(Error::corrupt_digest(
                format!("{file} at {}", what.id()),
                &expected,
                &remote.digest,
                after,
            ));
        }
        one(&cache, fetcher, &url, what, file, &remote, token, progress)?;
        cache.place(what, &info.sha, file, &remote.etag)?;
    }
    cache.set_commit(what, &info.sha)?;
    let exact = match picked.directory {
        true => what.clone(),
        false => HfRef { file: picked.files.first().cloned(), ..what.clone() },
    };
    cache
        .find(&exact)?
        .ok_or_else(|| Error::malformed(&exact, "its files were removed while it was being fetched"))
}

fn is_weights(file: &str) -> bool {
    file.ends_with(".gguf") || file.ends_with(".safetensors")
}

fn request<'a>(url: &'a str, token: Option<&'a Token>) -> Request<'a> {
    Request { url, bearer: token.map(|t| t.0.as_str()), accept: None }
}

/// The ETag, digest and size of a file, from the headers that the hub itself sends (not those of the storage behind it).
fn ask(
    fetcher: &Fetcher,
    url: &str,
    what: &HfRef,
    token: Option<&Token>,
    listed: Option<Digest>,
) -> Result<Remote> {
    let headers = fetcher.head(request(url, token)).map_err(|e| explain(e, what, token))?;
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let etag = text("x-linked-etag").or_else(|| text("etag")).unwrap_or_default();
    let etag = etag.trim_start_matches("W/").trim_matches('"');
    let redirected = headers.contains_key("location");
    let size = match text("x-linked-size") {
        Some(size) => size.parse().ok(),
        None if redirected => None,
        None => text("content-length").and_then(|v| v.parse().ok()),
    };
    match (etag.parse::<Digest>(), listed) {
        (Ok(digest), Some(listed)) if digest != listed => {
            let why = format!("its listing says {listed} and its file says {digest}; nothing was fetched");
            Err(Error::malformed(url, why))
        }
        (Ok(digest), _) => Ok(Remote { etag: etag.into(), digest, size }),
        (Err(_), Some(digest)) => Ok(Remote { etag: digest.hex(), digest, size }),
        (Err(_), None) => {
            Err(Error::malformed(url, "the server gives no digest for it, so it cannot be verified"))
        }
    }
}

/// Brings one blob into the cache.
fn one(
    cache: &HfCache,
    fetcher: &Fetcher,
    url: &str,
    what: &HfRef,
    file: &str,
    remote: &Remote,
    token: Option<&Token>,
    progress: &mut dyn Progress,
) -> Result<()> {
    let blob = cache.blob(what, &remote.etag);
    let here = || fs::metadata(&blob).is_ok_and(|m| remote.size.is_none_or(|size| m.len() == size));
    if here() {
        return Ok(());
    }
    let _lock = lock_file(&cache.lock(what, &remote.etag), file, progress)?;
    if here() {
        return Ok(());
    }
    make_dir(blob.parent().unwrap_or(cache.root()))?;
    let incomplete = blob.with_file_name(format!("{}.incomplete", remote.etag));
    let want = Want { digest: Some(remote.digest), size: remote.size };
    fetcher
        .download(request(url, token), &incomplete, want, file, progress)
        .map_err(|e| explain(e, what, token))?;
    fs::rename(&incomplete, &blob).map_err(|e| Error::io("move the download to", &blob, e))
}

/// What the hub's refusals mean.
fn explain(e: Error, what: &HfRef, token: Option<&Token>) -> Error {
    let Error::Http { url, status: Some(status), why } = e else { return e };
    let page = format!("huggingface.co/{}", what.id());
    let why = match (status, token) {
        (401, None) => format!(
            "there is no public repository {} (401); check the name, or set HF_TOKEN if it is private",
            what.id()
        ),
        (401, Some(_)) => {
            format!("the token was refused (401); check HF_TOKEN, and that {} exists", what.id())
        }
        (403, None) => format!("access is refused (403); accept the terms at {page} and set HF_TOKEN"),
        (403, Some(_)) => format!("the token may not read it (403); accept the terms at {page}"),
        (404, _) => format!("the hub has no {} at revision {} (404)", what.id(), what.revision()),
        _ => why,
    };
    Error::Http { url, status: Some(status), why }
}

/// Percent-encodes a path for an address; `/` stays.
fn encode(path: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    path.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::encode;

    #[test]
    fn paths_in_addresses() {
        assert_eq!(encode("a b/c+d#e-é.gguf"), "a%20b/c%2Bd%23e-%C3%A9.gguf");
    }
}
