//! Pulling from an Ollama registry (the Docker registry protocol, version 2) into our own cache.

use super::{Image, MANIFEST_BYTES_MAX, licence_line, precision};
use crate::cache::{Cache, Manifest, Role, now_s, read_small};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::{Fetcher, Request, Want};
use crate::hub::SIDE_TEXT_BYTES_MAX;
use crate::name::Name;
use crate::progress::Progress;
use crate::wheel::Expect;

const MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Fetches a model's layers. The manifest that comes back is not yet written. The caller holds the lock of its name.
///
/// # Errors
/// See [`Error`]; what was fetched of an interrupted layer is kept for the next try.
pub(crate) fn pull(
    cache: &Cache,
    fetcher: &Fetcher,
    default_registry: &str,
    name: &Name,
    expect: Expect,
    progress: &mut dyn Progress,
) -> Result<Manifest> {
    let base = format!("{}/v2/{}/{}", base_url(default_registry, name.host()), name.namespace(), name.model);
    let url = format!("{base}/manifests/{}", name.tag());
    let request = Request { url: &url, bearer: None, accept: Some(MANIFEST_TYPE) };
    let text = fetcher.text(request, MANIFEST_BYTES_MAX).map_err(|e| explain(e, name))?;
    let image = Image::parse(&text, &url)?;
    let told = image.weights().digest;
    if let Some(expected) = expect.digest.filter(|d| *d != told) {
        let after = "nothing was fetched; the tag has moved to other weights";
        return Err(Error::corrupt_digest(format!("{name} at {}", name.host()), &expected, &told, after));
    }
    let wanted = image.layers.iter().map(|l| (l.digest, l.size)).chain(image.config);
    for (digest, size) in wanted {
        layer(cache, fetcher, &base, name, digest, size, progress)?;
    }
    let mut files = Vec::new();
    for l in &image.layers {
        let file = match l.role {
            Role::Model => format!("{}-{}.gguf", name.model, name.tag()),
            Role::Template => "template".into(),
            Role::System => "system".into(),
            Role::Params => "params.json".into(),
            Role::Licence | Role::Beside => "license".into(),
        };
        files.push(cache.entry(l.role, &file, l.digest)?);
    }
    let side = |digest: &Digest| read_small(&cache.blob(digest), SIDE_TEXT_BYTES_MAX);
    let config = image.config.map(|(digest, _)| side(&digest)).transpose()?.flatten();
    let licence =
        image.layers.iter().find(|l| l.role == Role::Licence).map(|l| side(&l.digest)).transpose()?.flatten();
    Ok(Manifest {
        name: name.family(),
        tag: name.tag().into(),
        source: format!("{}/{}/{}:{}", name.host(), name.namespace(), name.model, name.tag()),
        fetched_s: now_s(),
        precision: config.as_deref().and_then(precision),
        licence: licence.as_deref().and_then(licence_line),
        files,
        notes: image.notes,
    })
}

fn layer(
    cache: &Cache,
    fetcher: &Fetcher,
    base: &str,
    name: &Name,
    digest: Digest,
    size: u64,
    progress: &mut dyn Progress,
) -> Result<()> {
    if std::fs::metadata(cache.blob(&digest)).is_ok_and(|m| m.len() == size) {
        return Ok(()); // every blob was verified when it came
    }
    // Two models can share a layer, so the layer has its own lock.
    let _lock = cache.lock(&digest.to_string(), progress)?;
    if std::fs::metadata(cache.blob(&digest)).is_ok_and(|m| m.len() == size) {
        return Ok(());
    }
    let url = format!("{base}/blobs/{digest}");
    let partial = cache.partial(&digest);
    let want = Want { digest: Some(digest), size: Some(size) };
    let label = format!("{name} ({})", digest.short());
    let request = Request { url: &url, bearer: None, accept: None };
    fetcher.download(request, &partial, want, &label, progress).map_err(|e| explain(e, name))?;
    cache.adopt(&partial, &digest).map(drop)
}

/// The registry's address. Only this machine is talked to without encryption.
fn base_url(default_registry: &str, host: &str) -> String {
    let bare =
        host.rsplit_once(':').map_or(host, |(h, port)| if port.parse::<u16>().is_ok() { h } else { host });
    match bare {
        "registry.ollama.ai" => default_registry.trim_end_matches('/').into(),
        "localhost" | "127.0.0.1" | "[::1]" => format!("http://{host}"),
        _ => format!("https://{host}"),
    }
}

/// What a registry's refusals mean here.
fn explain(e: Error, name: &Name) -> Error {
    match e {
        Error::Http { url, status: Some(404), .. } => Error::Http {
            url,
            why: format!("the registry has no {}/{}:{} (404)", name.namespace(), name.model, name.tag()),
            status: Some(404),
        },
        Error::Http { url, status: Some(status @ (401 | 403)), .. } => Error::Http {
            url,
            why: format!(
                "the registry asks for a login ({status}); pull it with ollama, its store is read in place"
            ),
            status: Some(status),
        },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::base_url;

    #[test]
    fn only_this_machine_is_unencrypted() {
        for (host, want) in [
            ("registry.ollama.ai", "https://registry.ollama.ai"),
            ("localhost:5000", "http://localhost:5000"),
            ("127.0.0.1", "http://127.0.0.1"),
            ("hub.example:8443", "https://hub.example:8443"),
            ("localhost.example", "https://localhost.example"),
        ] {
            assert_eq!(base_url("https://registry.ollama.ai/", host), want);
        }
    }
}
