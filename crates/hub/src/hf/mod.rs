//! Hugging Face: `hf:ORG/REPO[@REVISION][:FILE]`, with the cache directory that the Python tools use, so that a file
//! fetched by either is found by both.

mod cache;
mod fetch;
mod pick;

pub(crate) use pick::is_module;

use std::fmt;
use std::path::PathBuf;

use crate::cache::read_small;
use crate::error::Result;

pub use cache::{Cached, HfCache};
pub(crate) use fetch::fetch;

/// A secret that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub(crate) String);

impl Token {
    /// Keeps a token; white space around it is dropped.
    pub fn new(text: &str) -> Token {
        Token(text.trim().into())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// Where the hub is and where its files go.
#[derive(Debug, Clone)]
pub struct HfConfig {
    /// The cache directory (`.../huggingface/hub`).
    pub cache: PathBuf,
    /// The hub's address.
    pub endpoint: String,
    /// The user's token.
    pub token: Option<Token>,
    /// Whether the environment forbids asking the hub.
    pub offline: bool,
}

impl HfConfig {
    /// The configuration as the Python tools read it: `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_TOKEN`,
    /// `HF_TOKEN_PATH`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`. `user_cache` is `~/.cache` or its replacement.
    ///
    /// # Errors
    /// When a token file is there and cannot be read.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>, user_cache: PathBuf) -> Result<HfConfig> {
        const TOKEN_BYTES_MAX: u64 = 4096;
        let dir = |key: &str| var(key).map(PathBuf::from);
        let home = dir("HF_HOME").unwrap_or_else(|| user_cache.join("huggingface"));
        let yes = |key: &str| {
            var(key).is_some_and(|v| ["1", "on", "yes", "true"].contains(&v.to_ascii_lowercase().as_str()))
        };
        let token = match var("HF_TOKEN").or_else(|| var("HUGGING_FACE_HUB_TOKEN")) {
            Some(token) => Some(token),
            None if yes("HF_HUB_DISABLE_IMPLICIT_TOKEN") => None,
            None => read_small(&dir("HF_TOKEN_PATH").unwrap_or_else(|| home.join("token")), TOKEN_BYTES_MAX)?,
        };
        Ok(HfConfig {
            cache: dir("HF_HUB_CACHE")
                .or_else(|| dir("HUGGINGFACE_HUB_CACHE"))
                .unwrap_or_else(|| home.join("hub")),
            endpoint: var("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            token: token.map(|t| Token::new(&t)).filter(|t| !t.0.is_empty()),
            offline: yes("HF_HUB_OFFLINE") || yes("TRANSFORMERS_OFFLINE"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_places() {
        let dir = tempfile::tempdir().unwrap();
        let token_file = dir.path().join("tok");
        std::fs::write(&token_file, "from-file\n").unwrap();
        let token_file = token_file.to_str().unwrap();
        let read = |pairs: &[(&str, &str)]| {
            let find = |key: &str| pairs.iter().find(|(k, _)| *k == key).map(|(_, v)| v.to_string());
            HfConfig::from_vars(find, "/c".into()).unwrap()
        };
        let plain = read(&[]);
        assert_eq!(
            (plain.cache.to_str().unwrap(), plain.endpoint.as_str()),
            ("/c/huggingface/hub", "https://huggingface.co")
        );
        assert_eq!((plain.token, plain.offline), (None, false));
        assert_eq!(read(&[("HF_HOME", "/h")]).cache.to_str().unwrap(), "/h/hub");
        assert_eq!(read(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/x")]).cache.to_str().unwrap(), "/x");
        assert_eq!(read(&[("HF_TOKEN_PATH", token_file)]).token, Some(Token::new("from-file")));
        assert_eq!(
            read(&[("HF_TOKEN", " t "), ("HF_TOKEN_PATH", token_file)]).token,
            Some(Token("t".into()))
        );
        assert!(read(&[("HF_HUB_OFFLINE", "1")]).offline && !read(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert!(!format!("{:?}", read(&[("HF_TOKEN", "secret")])).contains("secret"));
    }
}
