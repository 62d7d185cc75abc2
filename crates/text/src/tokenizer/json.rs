//! `tokenizer.json`: the `tokenizers` crate encodes, since that file is that crate's own state. Decoding goes through
//! the byte table that all schemes share, so that text can be streamed token by token.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use serde::de::IgnoredAny;
use serde_json::Value;
use tokenizers::normalizers::{NormalizerWrapper, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::Split;
use tokenizers::{SplitDelimiterBehavior, Tokenizer as Hf};

use super::bpe::spell;
use super::special::QUOTE;
use super::vocab::{SpecialIds, TokenType};
use crate::{Error, Result};

const FILE: &str = "tokenizer.json";
/// Ids above this are refused: a table of them would be all holes.
const MAX_ID: u32 = 1 << 24;

/// The two encoders: one that knows special tokens in the text and one that takes them as text.
#[derive(Debug)]
pub(super) struct Json {
    /// Takes the marks of quoted names out, behind the search for special tokens.
    parse: Hf,
    plain: OnceLock<Hf>,
    normalizer: Option<NormalizerWrapper>,
}

/// How token spellings become bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spelling {
    /// GPT-2's byte alphabet.
    Bytes,
    /// `▁` for spaces, `<0xXX>` for bytes.
    Metaspace,
    /// `##` continues a word, anything else starts one.
    WordPiece { cleanup: bool },
}

/// What a `tokenizer.json` says about its tokens, by id.
pub(super) struct Tokens {
    pub(super) texts: Vec<String>,
    pub(super) bytes: Vec<Vec<u8>>,
    pub(super) types: Vec<TokenType>,
    pub(super) special: SpecialIds,
    /// The decoder drops the space before the first word.
    pub(super) strip_leading_space: bool,
}

/// The crate's loaders index by numbers from the file; a panic in them is the file's fault and becomes an error.
fn guarded<T>(what: &str, f: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(_) => Err(format!("{what} failed inside the tokenizers library: the file contradicts itself")),
    }
}

fn bad(what: impl Into<String>) -> Error {
    Error::Json { file: FILE, what: what.into() }
}

impl Json {
    /// Reads `tokenizer.json` and, where given, `tokenizer_config.json` (for the roles of special tokens).
    pub(super) fn new(json: &[u8], config: Option<&[u8]>) -> Result<(Self, Tokens)> {
        // The crate unwraps what it has parsed halfway; a broken file should be a plain error with its place.
        serde_json::from_slice::<IgnoredAny>(json).map_err(|e| bad(e.to_string()))?;
        let mut hf = guarded("loading", || Hf::from_bytes(json)).map_err(bad)?;
        // Both would change ids silently: a cut text, or padding that was asked for by nobody.
        hf.with_padding(None);
        hf.with_truncation(None).map_err(|e| bad(e.to_string()))?;
        let decoder = serde_json::to_value(hf.get_decoder()).map_err(|e| bad(e.to_string()))?;
        let spelling = spelling(&decoder)?;
        let mut tokens = tokens(&hf, spelling)?;
        tokens.strip_leading_space = strips_leading_space(&decoder);
        tokens.special = roles(&hf, config)?;
        let normalizer = hf.get_normalizer().cloned();
        take_marks_out(&mut hf)?;
        Ok((Self { parse: hf, plain: OnceLock::new(), normalizer }, tokens))
    }

    /// Ids of `text`, with the file's own tokens around it if `template`.
    pub(super) fn encode(&self, text: &str, parse: bool, template: bool) -> Result<Vec<u32>> {
        let hf = if parse {
            &self.parse
        } else {
            self.plain.get_or_init(|| {
                let mut hf = self.parse.clone();
                hf.set_encode_special_tokens(true);
                let _ = hf.with_normalizer(self.normalizer.clone()); // as it was loaded
                hf
            })
        };
        let encoding = guarded("encoding", || hf.encode_fast(text, template)).map_err(Error::Encode)?;
        Ok(encoding.get_ids().to_vec())
    }
}

/// Has the encoder take [`QUOTE`] out of a text where it no longer looks for special tokens. Those that it looks for in the
/// normalized text need it to stay longer: it then cuts words at it.
fn take_marks_out(hf: &mut Hf) -> Result<()> {
    let wrong = |e: tokenizers::Error| bad(format!("its encoder cannot be extended: {e}"));
    let late = hf.get_added_tokens_decoder().values().any(|t| t.special && t.normalized);
    if late {
        let cut = Split::new(QUOTE.to_string(), SplitDelimiterBehavior::Removed, false).map_err(wrong)?;
        let rest = hf.get_pre_tokenizer().cloned();
        let all = std::iter::once(cut.into()).chain(rest).collect();
        hf.with_pre_tokenizer(Some(PreTokenizers::new(all)));
    } else {
        let mark = Replace::new(QUOTE.to_string(), "").map_err(wrong)?;
        let rest = hf.get_normalizer().cloned();
        let all = std::iter::once(mark.into()).chain(rest).collect();
        hf.with_normalizer(Some(Normalizers::new(all))).map_err(wrong)?;
    }
    Ok(())
}

/// All decoders of a possibly nested sequence.
fn decoders<'v>(decoder: &'v Value, out: &mut Vec<&'v Value>) {
    match decoder.get("decoders").and_then(Value::as_array) {
        Some(list) => list.iter().for_each(|d| decoders(d, out)),
        None => out.push(decoder),
    }
}

fn kind(decoder: &Value) -> &str {
    decoder.get("type").and_then(Value::as_str).unwrap_or("none")
}

fn spelling(decoder: &Value) -> Result<Spelling> {
    let mut list = Vec::new();
    decoders(decoder, &mut list);
    let is_metaspace = |d: &&Value| {
        kind(d) == "Metaspace"
            || kind(d) == "ByteFallback"
            || (kind(d) == "Replace" && d.pointer("/pattern/String").and_then(Value::as_str) == Some("▁"))
    };
    if list.iter().any(|d| kind(d) == "ByteLevel") {
        Ok(Spelling::Bytes)
    } else if list.iter().any(is_metaspace) {
        Ok(Spelling::Metaspace)
    } else if let Some(d) = list.iter().find(|d| kind(d) == "WordPiece") {
        Ok(Spelling::WordPiece { cleanup: d.get("cleanup").and_then(Value::as_bool).unwrap_or(true) })
    } else {
        let names: Vec<&str> = list.iter().map(|d| kind(d)).collect();
        let known = "ByteLevel, Metaspace, ByteFallback, WordPiece";
        Err(bad(format!("its decoder ({}) is not supported; known: {known}", names.join(", "))))
    }
}

fn strips_leading_space(decoder: &Value) -> bool {
    let mut list = Vec::new();
    decoders(decoder, &mut list);
    list.iter().any(|d| match kind(d) {
        "Metaspace" => d.get("prepend_scheme").and_then(Value::as_str) != Some("never"),
        "Strip" => d.get("start").and_then(Value::as_u64).unwrap_or(0) > 0,
        "WordPiece" => true,
        _ => false,
    })
}

fn tokens(hf: &Hf, spelling: Spelling) -> Result<Tokens> {
    let vocab = hf.get_vocab(true);
    let size = vocab.values().max().map_or(0, |&id| id as usize + 1);
    if size == 0 {
        return Err(bad("its vocabulary is empty"));
    }
    if size > MAX_ID as usize {
        return Err(bad(format!("it has a token with id {} (at most {MAX_ID})", size - 1)));
    }
    let mut out = Tokens {
        texts: vec![String::new(); size],
        bytes: vec![Vec::new(); size],
        types: vec![TokenType::Unused; size],
        special: SpecialIds::default(),
        strip_leading_space: false,
    };
    let added = hf.get_added_tokens_decoder();
    for (text, id) in vocab {
        let i = id as usize;
        let byte = byte_of(&text);
        out.types[i] = match added.get(&id) {
            Some(token) if token.special => TokenType::Control,
            Some(_) => TokenType::UserDefined,
            None if spelling == Spelling::Metaspace && byte.is_some() => TokenType::Byte,
            None => TokenType::Normal,
        };
        out.bytes[i] = match (out.types[i], spelling) {
            (TokenType::Control | TokenType::UserDefined, _) => text.clone().into_bytes(),
            (TokenType::Byte, _) => byte.into_iter().collect(),
            (_, Spelling::Bytes) => {
                let mut bytes = Vec::new();
                spell(&text, true, &mut bytes);
                bytes
            }
            (_, Spelling::Metaspace) => text.replace('▁', " ").into_bytes(),
            (_, Spelling::WordPiece { cleanup }) => word_piece(&text, cleanup).into_bytes(),
        };
        out.texts[i] = text;
    }
    Ok(out)
}

/// The byte of a token spelled `<0xXX>`.
pub(super) fn byte_of(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() != 2 { None } else { u8::from_str_radix(hex, 16).ok() }
}

/// A WordPiece token as the crate's decoder writes it inside a text.
fn word_piece(text: &str, cleanup: bool) -> String {
    let spelled = match text.strip_prefix("##") {
        Some(rest) => rest.to_string(),
        None => format!(" {text}"),
    };
    if !cleanup {
        return spelled;
    }
    [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" do not", " don't"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ]
    .iter()
    .fold(spelled, |s, (from, to)| s.replace(from, to))
}

/// Which ids are bos, eos and so on: by `tokenizer_config.json`, else by the names that families use.
fn roles(hf: &Hf, config: Option<&[u8]>) -> Result<SpecialIds> {
    let config: Value = match config {
        None => Value::Null,
        Some(bytes) => serde_json::from_slice(bytes)
            .map_err(|e| Error::Json { file: "tokenizer_config.json", what: e.to_string() })?,
    };
    let special = |name: &str| {
        let id = hf.token_to_id(name)?;
        hf.get_added_tokens_decoder().get(&id).filter(|t| t.special).map(|_| id)
    };
    let role = |key: &str, names: &[&str]| -> Option<u32> {
        match config.get(key) {
            Some(Value::Null) => None,
            Some(token) => {
                let text = token.as_str().or_else(|| token.get("content").and_then(Value::as_str))?;
                hf.token_to_id(text)
            }
            None if config.is_null() => names.iter().find_map(|n| special(n)),
            None => None,
        }
    };
    Ok(SpecialIds {
        bos: role("bos_token", &["<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[CLS]"]),
        eos: role("eos_token", &["</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "<|im_end|>", "[SEP]"]),
        unk: role("unk_token", &["<unk>", "[UNK]"]),
        pad: role("pad_token", &["<pad>", "[PAD]"]),
        sep: role("sep_token", &["[SEP]"]),
        cls: role("cls_token", &["[CLS]"]),
        eot: None,
        eom: None,
    })
}
