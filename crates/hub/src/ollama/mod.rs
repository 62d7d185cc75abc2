//! Ollama: its manifests, its store on this machine (read in place, never written) and its registry.

mod registry;
mod store;

use serde::Deserialize;

use crate::cache::Role;
use crate::digest::Digest;
use crate::error::{Error, Result};

pub(crate) use registry::pull;
pub use store::{InStore, OllamaStore};

/// A manifest is a few kB.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// No layer is larger.
const LAYER_BYTES_MAX: u64 = 1 << 42;
const LAYERS_MAX: usize = 1000;

#[derive(Deserialize)]
struct RawManifest {
    config: Option<RawLayer>,
    layers: Vec<RawLayer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawLayer {
    media_type: String,
    digest: String,
    size: u64,
}

/// The part of the image's configuration that we use.
#[derive(Deserialize, Default)]
struct ImageConfig {
    file_type: Option<String>,
}

/// One layer that we use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) role: Role,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// A manifest, reduced to what this engine can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    /// The weights first.
    pub(crate) layers: Vec<Layer>,
    /// The image's configuration, which names the precision.
    pub(crate) config: Option<(Digest, u64)>,
    /// What is left out, in words.
    pub(crate) notes: Vec<String>,
}

impl Image {
    /// Reads a manifest. `what` names it in messages.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when it needs an adapter or has no GGUF; [`Error::Malformed`] when it is damaged.
    pub(crate) fn parse(text: &str, what: &str) -> Result<Image> {
        let raw: RawManifest = serde_json::from_str(text).map_err(|e| Error::malformed(what, e))?;
        if raw.layers.len() > LAYERS_MAX {
            return Err(Error::malformed(
                what,
                format!("{} layers; at most {LAYERS_MAX} are accepted", raw.layers.len()),
            ));
        }
        let checked = |l: &RawLayer| -> Result<(Digest, u64)> {
            let digest: Digest = l.digest.parse().map_err(|why| Error::malformed(what, why))?;
            match digest {
                Digest::Sha256(_) if l.size <= LAYER_BYTES_MAX => Ok((digest, l.size)),
                _ => Err(Error::malformed(
                    what,
                    format!("layer {} of {} bytes is not acceptable", l.digest, l.size),
                )),
            }
        };
        let mut image = Image {
            layers: Vec::new(),
            config: raw.config.as_ref().map(checked).transpose()?,
            notes: Vec::new(),
        };
        for l in &raw.layers {
            let kind = l.media_type.strip_prefix("application/vnd.ollama.image.").unwrap_or(&l.media_type);
            let role = match kind {
                "model" => Role::Model,
                "template" => Role::Template,
                "system" => Role::System,
                "params" => Role::Params,
                "license" => Role::Licence,
                "adapter" => {
                    let why =
                        "it puts an adapter over a base model; merge them first, or use a tag without one"
                            .into();
                    return Err(Error::Unsupported { what: what.into(), why });
                }
                "projector" => {
                    image.notes.push("its image projector is left out: text only".into());
                    continue;
                }
                other => {
                    image.notes.push(format!("its layer `{other}` is left out"));
                    continue;
                }
            };
            let (digest, size) = checked(l)?;
            image.layers.push(Layer { role, digest, size });
        }
        image.layers.sort_by_key(|l| l.role != Role::Model);
        match image.layers.iter().filter(|l| l.role == Role::Model).count() {
            1 => Ok(image),
            n => {
                let kinds: Vec<_> = raw.layers.iter().map(|l| l.media_type.as_str()).collect();
                let why = format!(
                    "it has {n} GGUF layers where one is expected (its layers: {})",
                    kinds.join(", ")
                );
                Err(Error::Unsupported { what: what.into(), why })
            }
        }
    }

    pub(crate) fn weights(&self) -> &Layer {
        &self.layers[0]
    }
}

/// The precision in an image's configuration.
fn precision(config: &str) -> Option<String> {
    serde_json::from_str::<ImageConfig>(config)
        .unwrap_or_default()
        .file_type
        .filter(|t| !t.is_empty() && t.len() < 20)
}

/// The first line that says something, of a licence's text.
pub(crate) fn licence_line(text: &str) -> Option<String> {
    text.lines().map(str::trim).find(|l| !l.is_empty()).map(|l| l.chars().take(100).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests() {
        let layer = |kind: &str, size: &str| {
            format!(
                r#"{{"mediaType":"application/vnd.ollama.image.{kind}","digest":"{}","size":{size}}}"#,
                Digest::of(kind.as_bytes())
            )
        };
        let manifest =
            |layers: &[String]| format!(r#"{{"schemaVersion":2,"layers":[{}]}}"#, layers.join(","));
        let good = manifest(&[
            layer("template", "5"),
            layer("model", "9"),
            layer("projector", "3"),
            layer("messages", "3"),
        ]);
        let image = Image::parse(&good, "m").unwrap();
        assert_eq!(image.weights().size, 9);
        assert_eq!(image.layers.len(), 2);
        assert_eq!(
            image.notes,
            ["its image projector is left out: text only", "its layer `messages` is left out"]
        );
        for (text, part) in [
            (manifest(&[layer("model", "1"), layer("adapter", "1")]), "adapter"),
            (manifest(&[layer("tensor", "1")]), "0 GGUF layers"),
            (manifest(&[layer("model", "1"), layer("model", "1")]), "2 GGUF layers"),
            (manifest(&[layer("model", "99999999999999")]), "not acceptable"),
            (manifest(&[layer("model", "-1")]), "invalid value"),
            (manifest(&[layer("model", "1")]).replace("sha256:", "sha512:"), "not a digest"),
            ("{}".into(), "layers"),
            ("<html>".into(), "expected value"),
        ] {
            let e = Image::parse(&text, "registry/m:t").expect_err(part).to_string();
            assert!(e.contains(part) && e.contains("registry/m:t"), "{e}");
        }
    }
}
