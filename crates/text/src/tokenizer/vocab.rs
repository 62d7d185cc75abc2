//! The vocabulary as a model file states it, before any index is built: the seam between file formats and tokenizers.

use std::borrow::Cow;

use quarrel_formats::gguf::{Array, Metadata, Value};

use super::pre::shorten;
use crate::{Error, Result};

/// How text becomes ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Byte-pair encoding with merges and a pre-tokenizer (`gpt2`, `gemma4`).
    Bpe,
    /// SentencePiece BPE: merges by score (`llama`).
    Spm,
    /// SentencePiece unigram: the best path by score (`t5`).
    Unigram,
    /// WordPiece: longest match in each word (`bert`).
    WordPiece,
}

/// What a token is for, as `tokenizer.ggml.token_type` numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenType {
    /// Ordinary text.
    Normal,
    /// Stands for what cannot be encoded.
    Unknown,
    /// Markup of the model (`<|im_end|>`), never text.
    Control,
    /// Text that is always one token.
    UserDefined,
    /// In the table, never produced.
    Unused,
    /// One byte, spelled `<0xXX>`.
    Byte,
}

impl TokenType {
    fn from_gguf(n: i32) -> Self {
        match n {
            2 => Self::Unknown,
            3 => Self::Control,
            4 => Self::UserDefined,
            5 => Self::Unused,
            6 => Self::Byte,
            _ => Self::Normal, // 1, and 0 "undefined"
        }
    }
}

/// Ids with a role, where the file names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Starts a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Ends a turn.
    pub eot: Option<u32>,
    /// Ends a message that waits for a tool.
    pub eom: Option<u32>,
    /// Stands for what cannot be encoded.
    pub unk: Option<u32>,
    /// Between segments (BERT).
    pub sep: Option<u32>,
    /// Fills a batch.
    pub pad: Option<u32>,
    /// Starts a text (BERT).
    pub cls: Option<u32>,
}

/// A vocabulary and the rules that go with it. Fields keep the meaning of their GGUF keys.
#[derive(Clone, Debug)]
pub struct Vocab<'a> {
    /// How text becomes ids.
    pub scheme: Scheme,
    /// The name of the pre-tokenizer (BPE).
    pub pre: Cow<'a, str>,
    /// Token texts by id, as spelled in the file.
    pub tokens: &'a [String],
    /// Scores by id (SentencePiece); empty where there are none.
    pub scores: Cow<'a, [f32]>,
    /// Types by id; empty means all normal.
    pub types: Vec<TokenType>,
    /// Merges, best first, `left right` (BPE).
    pub merges: &'a [String],
    /// Ids with a role.
    pub special: SpecialIds,
    /// Put bos before a text; `None`: the scheme's own rule.
    pub add_bos: Option<bool>,
    /// Put eos after a text; `None`: the scheme's own rule.
    pub add_eos: Option<bool>,
    /// A text begins as if a space stood before it; `None`: the scheme's own rule.
    pub add_space_prefix: Option<bool>,
    /// Runs of spaces count as one (unigram).
    pub remove_extra_whitespaces: bool,
    /// SentencePiece's normalisation table (unigram), empty for none.
    pub charsmap: Vec<u8>,
    /// Lower-case the text (WordPiece).
    pub lowercase: bool,
    /// Strip accents (WordPiece); `None`: as `lowercase`.
    pub strip_accents: Option<bool>,
    /// `general.name`: some families' token flags are in no field and go by it.
    pub model_name: Cow<'a, str>,
}

impl<'a> Vocab<'a> {
    /// A vocabulary of plain tokens with no special ids, for tests and converters to fill in.
    pub fn new(scheme: Scheme, tokens: &'a [String]) -> Self {
        Self {
            scheme,
            pre: Cow::Borrowed("default"),
            tokens,
            scores: Cow::Borrowed(&[]),
            types: Vec::new(),
            merges: &[],
            special: SpecialIds::default(),
            add_bos: None,
            add_eos: None,
            add_space_prefix: None,
            remove_extra_whitespaces: false,
            charsmap: Vec::new(),
            lowercase: true,
            strip_accents: None,
            model_name: Cow::Borrowed(""),
        }
    }

    /// Reads `tokenizer.ggml.*` of a GGUF file.
    ///
    /// # Errors
    /// A field is missing, of the wrong type, too short, or names an id outside the vocabulary.
    pub fn from_gguf(meta: &'a Metadata) -> Result<Self> {
        let model =
            meta.str("tokenizer.ggml.model").ok_or(Error::Missing { field: "tokenizer.ggml.model" })?;
        let (scheme, defaults) = match model {
            "gpt2" | "gemma4" => (Scheme::Bpe, SpecialIds::default()),
            "llama" => {
                (Scheme::Spm, SpecialIds { bos: Some(1), eos: Some(2), unk: Some(0), ..Default::default() })
            }
            "t5" => (
                Scheme::Unigram,
                SpecialIds { eos: Some(1), unk: Some(2), pad: Some(0), ..Default::default() },
            ),
            "bert" => {
                let ids = SpecialIds { bos: Some(101), unk: Some(100), sep: Some(102), ..Default::default() };
                (Scheme::WordPiece, SpecialIds { pad: Some(0), ..ids })
            }
            other => {
                let known = "gpt2, llama, t5, bert, gemma4";
                return Err(Error::UnknownModel { name: shorten(other), known });
            }
        };
        let tokens =
            meta.strings("tokenizer.ggml.tokens").ok_or(Error::Missing { field: "tokenizer.ggml.tokens" })?;
        let mut vocab = Vocab::new(scheme, tokens);
        vocab.pre = match (model, meta.str("tokenizer.ggml.pre")) {
            ("gemma4", _) => Cow::Borrowed("gemma4"),
            (_, Some(name)) if !name.is_empty() => Cow::Borrowed(name),
            _ => Cow::Borrowed("default"),
        };
        if let Some(scores) = meta.f32s("tokenizer.ggml.scores") {
            enough("tokenizer.ggml.scores", scores.len(), tokens.len())?;
            vocab.scores = scores;
        } else if let Some(scores) = meta.i32s("tokenizer.ggml.scores") {
            enough("tokenizer.ggml.scores", scores.len(), tokens.len())?;
            vocab.scores = scores.iter().map(|&s| s as f32).collect();
        }
        if let Some(types) = meta.i32s("tokenizer.ggml.token_type") {
            enough("tokenizer.ggml.token_type", types.len(), tokens.len())?;
            vocab.types = types.iter().take(tokens.len()).map(|&t| TokenType::from_gguf(t)).collect();
        }
        if scheme == Scheme::Bpe {
            vocab.merges = meta
                .strings("tokenizer.ggml.merges")
                .ok_or(Error::Missing { field: "tokenizer.ggml.merges" })?;
        }
        let id = |key: &'static str, default: Option<u32>| -> Result<Option<u32>> {
            match meta.u32(key) {
                Some(id) if (id as usize) < tokens.len() => Ok(Some(id)),
                Some(u32::MAX) => Ok(None), // some converters write "none" so
                Some(id) => Err(Error::BadField {
                    field: key,
                    what: format!("id {id} is outside the vocabulary of {} tokens", tokens.len()),
                }),
                None => Ok(default.filter(|&id| (id as usize) < tokens.len())),
            }
        };
        let sep = id("tokenizer.ggml.seperator_token_id", defaults.sep)?; // the key's own spelling
        vocab.special = SpecialIds {
            bos: id("tokenizer.ggml.bos_token_id", defaults.bos)?,
            eos: id("tokenizer.ggml.eos_token_id", defaults.eos)?,
            eot: id("tokenizer.ggml.eot_token_id", None)?,
            eom: id("tokenizer.ggml.eom_token_id", None)?,
            unk: id("tokenizer.ggml.unknown_token_id", defaults.unk)?,
            sep: id("tokenizer.ggml.separator_token_id", sep)?,
            pad: id("tokenizer.ggml.padding_token_id", defaults.pad)?,
            cls: id("tokenizer.ggml.cls_token_id", None)?,
        };
        vocab.add_bos = meta.bool("tokenizer.ggml.add_bos_token");
        vocab.add_eos = meta.bool("tokenizer.ggml.add_eos_token");
        vocab.add_space_prefix = meta.bool("tokenizer.ggml.add_space_prefix");
        vocab.remove_extra_whitespaces =
            meta.bool("tokenizer.ggml.remove_extra_whitespaces").unwrap_or(false);
        vocab.charsmap = match meta.get("tokenizer.ggml.precompiled_charsmap") {
            None => Vec::new(),
            Some(Value::Array(Array::U8(bytes))) => bytes.clone(),
            Some(Value::Array(Array::I8(bytes))) => bytes.iter().map(|&b| b as u8).collect(),
            Some(_) => {
                return Err(Error::BadField {
                    field: "tokenizer.ggml.precompiled_charsmap",
                    what: "it is not an array of bytes".into(),
                });
            }
        };
        vocab.lowercase = meta.bool("tokenizer.ggml.normalizer.lowercase").unwrap_or(true);
        vocab.strip_accents = meta.bool("tokenizer.ggml.normalizer.strip_accents");
        vocab.model_name = Cow::Borrowed(meta.str("general.name").unwrap_or(""));
        Ok(vocab)
    }
}

fn enough(field: &'static str, have: usize, need: usize) -> Result<()> {
    if have < need {
        return Err(Error::BadField { field, what: format!("{have} entries for {need} tokens") });
    }
    Ok(())
}
