//! Texts to vectors, for the routes that give vectors and for those that compare texts: tokens, quota, the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quarrel_engine::{Class, EmbedRequest, Error as EngineError, Pooling};
use quarrel_runtime::embed::{Fitted, embed_all, fit_text, shorten};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::app::Caller;
use crate::error::ApiError;
use crate::models::Lease;
use crate::prompt::blocking;
use crate::record::Generation;

/// Most texts of a request.
pub(crate) const TEXTS_MAX: usize = 2048;

/// How the hidden states of a text become one vector.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PoolingName {
    /// Their mean.
    Mean,
    /// That of the first token.
    Cls,
    /// That of the last token.
    Last,
}

impl From<PoolingName> for Pooling {
    fn from(name: PoolingName) -> Pooling {
        match name {
            PoolingName::Mean => Pooling::Mean,
            PoolingName::Cls => Pooling::Cls,
            PoolingName::Last => Pooling::Last,
        }
    }
}

/// A text, or the tokens of one.
#[derive(Debug, Clone)]
pub(crate) enum Text {
    Words(String),
    Tokens(Vec<u32>),
}

/// Texts to embed and how.
pub(crate) struct Ask {
    pub(crate) texts: Vec<Text>,
    /// The field that they come from, for errors.
    pub(crate) field: &'static str,
    pub(crate) pooling: Option<Pooling>,
    pub(crate) normalize: bool,
    pub(crate) dimensions: Option<usize>,
    /// Leave out the end of what is too long, instead of an error.
    pub(crate) truncate: bool,
    pub(crate) class: Class,
}

impl Ask {
    /// Vectors of length 1, by the model's own pooling.
    pub(crate) fn new(texts: Vec<Text>, field: &'static str) -> Ask {
        let (pooling, dimensions, class) = (None, None, Class::default());
        Ask { texts, field, pooling, normalize: true, dimensions, truncate: false, class }
    }
}

/// Texts as vectors, in their order.
pub(crate) struct Vectors {
    pub(crate) vectors: Vec<Vec<f32>>,
    /// Tokens of all.
    pub(crate) tokens: usize,
    /// Texts that were too long, and the tokens of them that were left out.
    pub(crate) cut: Vec<(usize, usize)>,
}

/// Ends the work when the one who waits for it is gone.
struct Unwanted(Arc<AtomicBool>);

impl Drop for Unwanted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Embeds texts. Dropping the future cancels what is left of them.
pub(crate) async fn embed(lease: Lease, ask: Ask, caller: Caller) -> Result<Vectors, ApiError> {
    let flag = Arc::new(AtomicBool::new(false));
    let _unwanted = Unwanted(flag.clone());
    blocking(move || run(&lease, ask, &caller, &flag)).await
}

/// The same on a thread that may block.
pub(crate) fn run(
    lease: &Lease,
    ask: Ask,
    caller: &Caller,
    unwanted: &AtomicBool,
) -> Result<Vectors, ApiError> {
    let own = lease.running.embeddings;
    let info = lease.handle().info();
    let field = ask.field;
    let wrong =
        |at: usize, why: String| ApiError::field(format!("{field}[{at}]"), format!("{field}[{at}]: {why}"));
    if ask.texts.is_empty() || ask.texts.len() > TEXTS_MAX {
        let why = format!("{field}: {} texts; 1 to {TEXTS_MAX} are needed", ask.texts.len());
        return Err(ApiError::field(field, why));
    }
    let dimensions = dimensions(&ask, info.hidden, own.shortens)?;
    let pooling = ask.pooling.or(own.pooling).ok_or_else(|| {
        let why = "pooling: the model's own is not known here; choose mean, cls or last";
        ApiError::field("pooling", why)
    })?;
    let mut cut = Vec::new();
    let mut requests = Vec::with_capacity(ask.texts.len());
    for (at, text) in ask.texts.into_iter().enumerate() {
        let fitted = match text {
            Text::Words(words) => {
                fit_text(lease.tokenizer(), &words, own.tokens_max).map_err(|e| wrong(at, e.to_string()))?
            }
            Text::Tokens(mut tokens) => {
                let cut = tokens.len().saturating_sub(own.tokens_max);
                tokens.truncate(own.tokens_max);
                Fitted { tokens, cut }
            }
        };
        if fitted.tokens.is_empty() {
            return Err(wrong(at, "has no tokens; a text is needed".into()));
        }
        if fitted.cut > 0 && !ask.truncate {
            let (all, most) = (fitted.tokens.len() + fitted.cut, own.tokens_max);
            let why = format!("has {all} tokens and the model takes {most}; cut it into parts");
            return Err(wrong(at, why).code("context_length_exceeded"));
        }
        if fitted.cut > 0 {
            cut.push((at, fitted.cut));
        }
        let (normalize, class, key) = (ask.normalize, ask.class, caller.key.clone());
        requests.push(EmbedRequest { pooling, normalize, class, key, ..EmbedRequest::new(fitted.tokens) });
    }
    let tokens: usize = requests.iter().map(|r| r.tokens.len()).sum();
    let mut charge = caller.account.as_ref().map(|a| a.reserve(tokens as u64)).transpose()?;
    let mut told = Generation::of_prompt(&lease.id, tokens);
    let made = embed_all(lease.handle(), requests, unwanted).map_err(|e| match e {
        EngineError::Token { .. } => ApiError::field(field, e.to_string()),
        e => e.into(),
    });
    let made = made.and_then(|made| made.ok_or_else(|| ApiError::unavailable("the request was left")));
    told.error = made.as_ref().err().map(|e| e.kind);
    caller.record.iter().for_each(|r| r.generated(told.clone()));
    let made = made?;
    if let Some(charge) = &mut charge {
        charge.used = tokens as u64;
    }
    let mut vectors: Vec<Vec<f32>> = made.into_iter().filter_map(|e| e.vectors.into_iter().next()).collect();
    if let Some(n) = dimensions {
        vectors.iter_mut().for_each(|v| shorten(v, n, ask.normalize));
    }
    Ok(Vectors { vectors, tokens, cut })
}

/// The length of the vectors, if another is asked for than the model's; only some are trained for that.
fn dimensions(ask: &Ask, own: Option<usize>, shortens: bool) -> Result<Option<usize>, ApiError> {
    let Some((asked, own)) = ask.dimensions.zip(own).filter(|(asked, own)| asked != own) else {
        return Ok(None);
    };
    let why = match (shortens, asked > 0 && asked < own) {
        (true, true) => return Ok(Some(asked)),
        (true, false) => format!("dimensions is {asked}; this model has 1 to {own}"),
        (false, _) => {
            format!(
                "dimensions is {asked}; this model's vectors have {own}, and their first numbers alone mean nothing"
            )
        }
    };
    Err(ApiError::field("dimensions", why))
}

/// The texts in the standard alphabet of RFC 4648, of numbers as little-endian f32.
pub(crate) fn base64(vector: &[f32]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let word = three.iter().fold(0u32, |w, b| w << 8 | u32::from(*b)) << (8 * (3 - three.len()));
        for i in 0..4 {
            let sextet = (word >> (18 - 6 * i)) as usize & 63;
            out.push(if i <= three.len() { char::from(ALPHABET[sextet]) } else { '=' });
        }
    }
    out
}

/// The cosine of the angle between two vectors of length 1.
pub(crate) fn likeness(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_others_write_it() {
        // From Python: base64.b64encode(struct.pack("<..f", ..)).
        for (vector, text) in [
            (&[][..], ""),
            (&[1.0][..], "AACAPw=="),
            (&[1.0, -2.5][..], "AACAPwAAIMA="),
            (&[0.1, 0.2, 0.3][..], "zczMPc3MTD6amZk+"),
        ] {
            assert_eq!(base64(vector), text);
        }
    }

    #[test]
    fn other_lengths_only_where_the_model_has_them() {
        let ask = |n| Ask { dimensions: n, ..Ask::new(Vec::new(), "input") };
        assert_eq!(dimensions(&ask(None), Some(8), false).unwrap(), None);
        assert_eq!(dimensions(&ask(Some(8)), Some(8), false).unwrap(), None);
        assert_eq!(dimensions(&ask(Some(4)), Some(8), true).unwrap(), Some(4));
        for (n, shortens) in [(4, false), (9, true), (0, true)] {
            let error = dimensions(&ask(Some(n)), Some(8), shortens).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("dimensions"));
        }
    }
}
