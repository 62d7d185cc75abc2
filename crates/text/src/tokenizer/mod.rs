//! Tokenizers: text to ids and back, from a GGUF vocabulary or a `tokenizer.json`.
//!
//! Two roads, on purpose. A `tokenizer.json` is the serialised state of the `tokenizers` crate, so that crate encodes it
//! and is right by definition. A GGUF file has only tokens, scores and merges, and llama.cpp's reading of them is the
//! reference; building the crate's objects from those costs several hash maps of owned strings (hundreds of milliseconds for
//! Gemma's 262,144 tokens, against tens here), its `Bpe` cannot say "SentencePiece by score", and its regexes may
//! backtrack. Those schemes are small, so they are here: one merging loop over bytes, one table of tokens.
//! Decoding is one table lookup per token in every scheme, which is what streaming needs. Nothing is ever "cleaned up":
//! decoding gives the bytes the tokens stand for.

mod bpe;
mod json;
mod merge;
pub mod pre;
mod special;
mod spm;
mod table;
mod unigram;
mod vocab;
mod wordpiece;

use std::borrow::Cow;
use std::sync::OnceLock;

use quarrel_formats::gguf::Metadata;
use tokenizers::normalizers::BertNormalizer;

pub use vocab::{Scheme, SpecialIds, TokenType, Vocab};

use crate::{Error, Result};
use special::{Part, Partition, QUOTE, Strip};
use table::{Index, NONE, Pieces};

/// Longest text that is encoded at once.
pub const MAX_TEXT_BYTES: usize = 64 << 20;

/// Whether names of control tokens in a text are those tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// `<|im_end|>` is the token: for rendered chat templates.
    Parse,
    /// `<|im_end|>` is ten characters: for text from users and files.
    Plain,
}

/// Which tokens are put around a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// As the model was trained (`add_bos_token`, a `tokenizer.json`'s template).
    Model,
    /// None.
    None,
    /// As said, if the vocabulary has them.
    Explicit {
        /// Begin with bos (BERT: `[CLS]`).
        bos: bool,
        /// End with eos (BERT: `[SEP]`).
        eos: bool,
    },
}

/// A tokenizer. Shared between threads behind an `Arc`; encoding needs no lock.
#[derive(Debug)]
pub struct Tokenizer {
    texts: Pieces,
    bytes: Pieces,
    types: Vec<TokenType>,
    engine: Engine,
    special: SpecialIds,
    strips: Vec<(u32, Strip)>,
    end_of_generation: Vec<u32>,
    add_bos: bool,
    add_eos: bool,
    ends_prompts: bool,
    strip_leading_space: bool,
    parse: OnceLock<Partition>,
    plain: OnceLock<Partition>,
    control: OnceLock<Partition>,
}

#[derive(Debug)]
enum Engine {
    Bpe { bpe: bpe::Bpe, index: Index },
    Spm { index: Index, scores: Vec<f32>, bytes: Box<[u32; 256]>, add_space_prefix: bool },
    Unigram { unigram: unigram::Unigram, bytes: Box<[u32; 256]> },
    WordPiece { index: Index, normalizer: BertNormalizer },
    Json(Box<json::Json>),
}

/// Names that end a turn in published families, for files that do not say so in a field.
const END_NAMES: &[&str] = &[
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<turn|>",
    "<|tool_response>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "[|endofturn|]",
    "<end_of_utterance>",
    "<|eos|>",
    "<eos>",
    "</s>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

impl Tokenizer {
    /// The tokenizer of a GGUF file's metadata.
    ///
    /// # Errors
    /// `tokenizer.ggml.*` is missing, inconsistent, or names a scheme that is not known.
    pub fn from_gguf(meta: &Metadata) -> Result<Self> {
        Self::from_vocab(&Vocab::from_gguf(meta)?)
    }

    /// The tokenizer of a vocabulary.
    ///
    /// # Errors
    /// The vocabulary is inconsistent or names a pre-tokenizer that is not known.
    pub fn from_vocab(vocab: &Vocab<'_>) -> Result<Self> {
        let count = vocab.tokens.len();
        if count == 0 {
            return Err(Error::Missing { field: "tokenizer.ggml.tokens" });
        }
        let mut types = vocab.types.clone();
        types.resize(count, TokenType::Normal);
        let pre = match vocab.scheme {
            Scheme::Bpe => Some(pre::PreTokenizer::by_name(&vocab.pre)?),
            _ => None,
        };
        let byte_level = pre.as_ref().is_some_and(|p| p.rules.byte_level);
        let mut texts = Pieces::with_capacity(count);
        let mut bytes = Pieces::with_capacity(count);
        let mut byte_tokens = Box::new([NONE; 256]);
        for (id, token) in vocab.tokens.iter().enumerate() {
            texts.push_with(|out| out.extend_from_slice(token.as_bytes()))?;
            let byte = match types[id] {
                TokenType::Byte => json::byte_of(token),
                // Some converters type nothing as a byte token.
                TokenType::Normal if !byte_level => json::byte_of(token),
                _ => None,
            };
            if let Some(byte) = byte {
                types[id] = TokenType::Byte;
                byte_tokens[byte as usize] = id as u32;
            }
            bytes.push_with(|out| match (types[id], byte) {
                (_, Some(byte)) => out.push(byte),
                (TokenType::Control | TokenType::Unknown | TokenType::UserDefined, _) => {
                    out.extend_from_slice(token.as_bytes());
                }
                _ if byte_level => bpe::spell(token, true, out),
                _ => unescape(token, out),
            })?;
        }

        // Some files have them as user-defined; but text from a user must not end a turn.
        let ends = named_ends(&texts, &types);
        ends.iter().for_each(|&id| types[id as usize] = TokenType::Control);

        // What ordinary text can become. Byte-level text is looked up as bytes, the rest as spelled.
        let lookup = if byte_level { &bytes } else { &texts };
        let mut index = Index::with_capacity(count);
        for user_defined in [false, true] {
            for (id, kind) in types.iter().enumerate() {
                let wanted = match kind {
                    TokenType::Normal | TokenType::Unused => !user_defined,
                    TokenType::UserDefined => user_defined,
                    TokenType::Byte | TokenType::Control | TokenType::Unknown => false,
                };
                if wanted {
                    index.insert(lookup, id as u32); // of two with one text the first is used
                }
            }
        }

        let mut special = vocab.special;
        let (engine, add_bos, add_eos, strip_leading_space) = match (vocab.scheme, pre) {
            (Scheme::Bpe, Some(pre)) => {
                let add_bos = pre.rules.add_bos;
                let bpe = bpe::Bpe::new(pre, vocab.merges, byte_tokens, lookup, &index)?;
                (Engine::Bpe { bpe, index }, add_bos && special.bos.is_some(), false, false)
            }
            (Scheme::WordPiece, _) => {
                special.bos = special.cls.or(special.bos);
                special.eos = special.eos.or(special.sep);
                let normalizer = BertNormalizer::new(true, true, vocab.strip_accents, vocab.lowercase);
                (Engine::WordPiece { index, normalizer }, true, true, true)
            }
            (Scheme::Unigram, _) => {
                let mut unigram = unigram::Unigram::new(&texts, &types, &vocab.scores, &vocab.charsmap)?;
                unigram.add_space_prefix = vocab.add_space_prefix.unwrap_or(false);
                unigram.merge_spaces = vocab.remove_extra_whitespaces;
                let strip = unigram.add_space_prefix || unigram.merge_spaces;
                (Engine::Unigram { unigram, bytes: byte_tokens }, false, true, strip)
            }
            (Scheme::Spm | Scheme::Bpe, _) => {
                let add_space_prefix = vocab.add_space_prefix.unwrap_or(true);
                let scores = vocab.scores.to_vec();
                (
                    Engine::Spm { index, scores, bytes: byte_tokens, add_space_prefix },
                    true,
                    false,
                    add_space_prefix,
                )
            }
        };
        let (add_bos, add_eos) = match vocab.scheme {
            Scheme::WordPiece => (add_bos, add_eos), // a BERT text is always [CLS] .. [SEP]
            _ => (vocab.add_bos.unwrap_or(add_bos), vocab.add_eos.unwrap_or(add_eos)),
        };
        for (add, id, field) in [
            (add_bos, special.bos, "tokenizer.ggml.bos_token_id"),
            (add_eos, special.eos, "tokenizer.ggml.eos_token_id"),
        ] {
            if add && id.is_none() {
                return Err(Error::Missing { field });
            }
        }
        let mut tokenizer = Self {
            strips: strips(vocab, &texts, &types),
            texts,
            bytes,
            types,
            engine,
            special,
            end_of_generation: Vec::new(),
            add_bos,
            add_eos,
            ends_prompts: false,
            strip_leading_space,
            parse: OnceLock::new(),
            plain: OnceLock::new(),
            control: OnceLock::new(),
        };
        tokenizer.set_ends(ends);
        Ok(tokenizer)
    }

    /// The tokenizer of a `tokenizer.json`, with its `tokenizer_config.json` where there is one (it says which tokens
    /// are bos, eos, ..; without it they go by their usual names).
    ///
    /// # Errors
    /// The file is not a tokenizer, or decodes in a way that is not supported.
    pub fn from_json(json: &[u8], config: Option<&[u8]>) -> Result<Self> {
        let (json, tokens) = json::Json::new(json, config)?;
        let mut texts = Pieces::with_capacity(tokens.texts.len());
        let mut bytes = Pieces::with_capacity(tokens.texts.len());
        for (text, raw) in tokens.texts.iter().zip(&tokens.bytes) {
            texts.push_with(|out| out.extend_from_slice(text.as_bytes()))?;
            bytes.push_with(|out| out.extend_from_slice(raw))?;
        }
        let mut tokenizer = Self {
            texts,
            bytes,
            types: tokens.types,
            engine: Engine::Json(Box::new(json)),
            special: tokens.special,
            strips: Vec::new(),
            end_of_generation: Vec::new(),
            add_bos: false,
            add_eos: false,
            ends_prompts: false,
            strip_leading_space: tokens.strip_leading_space,
            parse: OnceLock::new(),
            plain: OnceLock::new(),
            control: OnceLock::new(),
        };
        // The file's own template says what goes around a text.
        let around = tokenizer.encode("", Special::Plain, Ends::Model)?;
        tokenizer.add_bos = tokenizer.special.bos.is_some_and(|bos| around.first() == Some(&bos));
        tokenizer.add_eos = tokenizer.special.eos.is_some_and(|eos| around.last() == Some(&eos));
        let ends = named_ends(&tokenizer.texts, &tokenizer.types);
        tokenizer.set_ends(ends);
        Ok(tokenizer)
    }

    /// The ids of a text.
    ///
    /// # Errors
    /// The text is longer than [`MAX_TEXT_BYTES`], or has something the vocabulary cannot say.
    pub fn encode(&self, text: &str, special: Special, ends: Ends) -> Result<Vec<u32>> {
        if text.len() > MAX_TEXT_BYTES {
            let what = format!("{} bytes at once (at most {MAX_TEXT_BYTES}); cut it into parts", text.len());
            return Err(Error::Encode(what));
        }
        let (bos, eos) = match ends {
            Ends::Model => (self.add_bos, self.add_eos),
            Ends::None => (false, false),
            Ends::Explicit { bos, eos } => (bos, eos),
        };
        let mut out = Vec::with_capacity(text.len() / 4 + 2);
        if let Engine::Json(json) = &self.engine {
            if ends == Ends::Model {
                return json.encode(text, special == Special::Parse, true);
            }
            out.extend(self.special.bos.filter(|_| bos));
            out.extend(json.encode(text, special == Special::Parse, false)?);
        } else {
            out.extend(self.special.bos.filter(|_| bos));
            let mut after_special = true;
            for part in self.partition(special)?.split(text) {
                match part {
                    Part::Token(id) => out.push(id),
                    Part::Text(text) if special == Special::Parse && text.contains(QUOTE) => {
                        self.encode_text(&text.replace(QUOTE, ""), after_special, &mut out)?;
                    }
                    Part::Text(text) => self.encode_text(text, after_special, &mut out)?,
                }
                after_special = matches!(part, Part::Token(_));
            }
        }
        out.extend(self.special.eos.filter(|_| eos));
        Ok(out)
    }

    /// A text from a stranger, to be put into a template whose result is encoded with [`Special::Parse`]: names of control
    /// tokens in it are marked, and [`Self::encode`] takes the marks away and leaves the names as text.
    pub fn quote<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let control = self.control.get_or_init(|| {
            let is_control =
                |id: u32| matches!(self.types[id as usize], TokenType::Control | TokenType::Unknown);
            let named = |id: &u32| is_control(*id) && self.texts.get(*id).is_some_and(|t| !t.is_empty());
            let ids = (0..self.texts.len() as u32).filter(named).map(|id| (id, Strip::default())).collect();
            // An automaton of fewer tokens than `encode` has; where that one cannot be made, no text is encoded at all.
            Partition::new(&self.texts, ids).unwrap_or_default()
        });
        control.quote(text).map_or(Cow::Borrowed(text), Cow::Owned)
    }

    /// The text without the marks of [`Self::quote`].
    pub fn unquote(text: &str) -> String {
        text.replace(QUOTE, "")
    }

    fn encode_text(&self, text: &str, after_special: bool, out: &mut Vec<u32>) -> Result<()> {
        let unk = self.special.unk;
        match &self.engine {
            Engine::Bpe { bpe, index } if bpe.pre.rules.byte_level => {
                bpe.encode(text, &self.bytes, index, unk, out)
            }
            Engine::Bpe { bpe, index } => bpe.encode(&text.replace(' ', "▁"), &self.texts, index, unk, out),
            Engine::Spm { index, scores, bytes, add_space_prefix } => {
                let mut escaped = String::with_capacity(text.len() + text.len() / 2 + 3);
                if *add_space_prefix && after_special {
                    escaped.push('▁');
                }
                for (i, part) in text.split(' ').enumerate() {
                    if i > 0 {
                        escaped.push('▁');
                    }
                    escaped.push_str(part);
                }
                spm::encode(&escaped, &self.texts, index, scores, bytes, unk, out)
            }
            Engine::Unigram { unigram, bytes } => unigram.encode(text, &self.texts, bytes, unk, out),
            Engine::WordPiece { index, normalizer } => {
                wordpiece::encode(text, normalizer, &self.texts, index, unk, out)
            }
            Engine::Json(_) => Ok(()), // encodes whole texts, in `encode`
        }
    }

    fn partition(&self, special: Special) -> Result<&Partition> {
        let (cell, control) = match special {
            Special::Parse => (&self.parse, true),
            Special::Plain => (&self.plain, false),
        };
        if let Some(there) = cell.get() {
            return Ok(there);
        }
        let wanted = |id: u32| match self.types[id as usize] {
            TokenType::UserDefined => true,
            TokenType::Control | TokenType::Unknown => control,
            _ => false,
        };
        let ids = self.strips.iter().copied().filter(|&(id, _)| wanted(id)).collect();
        let made = Partition::new(&self.texts, ids)?;
        Ok(cell.get_or_init(|| made))
    }

    /// The bytes a token stands for; part of a character, perhaps. Control tokens give their name.
    ///
    /// # Errors
    /// The id is outside the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Result<&[u8]> {
        self.bytes.get(id).ok_or(Error::BadToken { id, size: self.vocab_size() })
    }

    /// The token as the vocabulary spells it, for people to look at.
    ///
    /// # Errors
    /// The id is outside the vocabulary.
    pub fn token_text(&self, id: u32) -> Result<Cow<'_, str>> {
        let spelled = self.texts.get(id).ok_or(Error::BadToken { id, size: self.vocab_size() })?;
        Ok(String::from_utf8_lossy(spelled))
    }

    /// The bytes of a sequence of ids without its control tokens: a text that begins here, so that the space which
    /// SentencePiece puts before a text is gone again.
    ///
    /// # Errors
    /// An id is outside the vocabulary.
    pub fn decode_bytes(&self, ids: &[u32]) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(ids.len() * 4);
        let mut first = self.strip_leading_space;
        for &id in ids {
            let bytes = self.token_bytes(id)?;
            if self.is_special(id) {
                continue;
            }
            let bytes = if first { bytes.strip_prefix(b" ").unwrap_or(bytes) } else { bytes };
            first = false;
            out.extend_from_slice(bytes);
        }
        Ok(out)
    }

    /// As [`Self::decode_bytes`]; bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// An id is outside the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let bytes = self.decode_bytes(ids)?;
        Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
    }

    /// Whether a text decoded from its start loses one leading space.
    pub fn strips_leading_space(&self) -> bool {
        self.strip_leading_space
    }

    /// Number of ids.
    pub fn vocab_size(&self) -> usize {
        self.texts.len()
    }

    /// Control and unknown tokens: markup that is no text.
    pub fn is_special(&self, id: u32) -> bool {
        matches!(self.types.get(id as usize), Some(TokenType::Control | TokenType::Unknown))
    }

    /// What a token is for; `None` outside the vocabulary.
    pub fn token_type(&self, id: u32) -> Option<TokenType> {
        self.types.get(id as usize).copied()
    }

    /// The id of a token by its spelling in the vocabulary; special tokens come first.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        let is = |id: &u32| self.texts.get(*id) == Some(text.as_bytes());
        let all = 0..self.vocab_size() as u32;
        all.clone().filter(|&id| self.is_special(id)).find(is).or_else(|| all.into_iter().find(is))
    }

    /// Starts a text.
    pub fn bos(&self) -> Option<u32> {
        self.special.bos
    }

    /// Ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.special.eos
    }

    /// Fills a batch.
    pub fn pad(&self) -> Option<u32> {
        self.special.pad
    }

    /// Stands for what cannot be encoded.
    pub fn unk(&self) -> Option<u32> {
        self.special.unk
    }

    /// Whether [`Ends::Model`] begins a text with bos.
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    /// Whether [`Ends::Model`] ends a text with eos.
    pub fn adds_eos(&self) -> bool {
        self.add_eos
    }

    /// Prompts end with eos from now on, if [`Ends::Model`] ends a text with it: they are texts that an encoder reads.
    pub fn end_prompts(&mut self) {
        self.ends_prompts = self.add_eos;
    }

    /// Whether prompts end with eos.
    pub fn ends_prompts(&self) -> bool {
        self.ends_prompts
    }

    /// All ids that end an answer, ascending: eos, end of turn, end of message, by field and by well-known name.
    pub fn end_of_generation(&self) -> &[u32] {
        &self.end_of_generation
    }

    /// Whether a token ends an answer.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.end_of_generation.binary_search(&id).is_ok()
    }

    /// Adds ids that end an answer, as a `generation_config.json` lists them.
    ///
    /// # Errors
    /// An id is outside the vocabulary.
    pub fn add_end_of_generation(&mut self, ids: &[u32]) -> Result<()> {
        for &id in ids {
            self.token_bytes(id)?;
            self.end_of_generation.push(id);
        }
        self.end_of_generation.sort_unstable();
        self.end_of_generation.dedup();
        Ok(())
    }

    fn set_ends(&mut self, named: Vec<u32>) {
        let mut ends: Vec<u32> = [self.special.eos, self.special.eot, self.special.eom]
            .into_iter()
            .flatten()
            .chain(named)
            .collect();
        ends.sort_unstable();
        ends.dedup();
        self.end_of_generation = ends;
    }
}

/// Marked tokens with a name that ends a turn.
fn named_ends(texts: &Pieces, types: &[TokenType]) -> Vec<u32> {
    let mut found = Vec::new();
    for (id, kind) in types.iter().enumerate() {
        if matches!(kind, TokenType::Control | TokenType::UserDefined) {
            let text = texts.get(id as u32).unwrap_or_default();
            found.extend(END_NAMES.iter().find(|n| n.as_bytes() == text).map(|name| (*name, id as u32)));
        }
    }
    let has = |name: &str| found.iter().any(|(n, _)| *n == name);
    // In the harmony format <|end|> closes a message, not the answer; Gemma 4 has </s> as a plain tag.
    let harmony = (has("<|return|>") && has("<|call|>")) || (has("<|calls|>") && has("<|flush|>"));
    let gemma4 = has("<|tool_response>");
    found.retain(|(name, _)| !(harmony && *name == "<|end|>" || gemma4 && *name == "</s>"));
    found.into_iter().map(|(_, id)| id).collect()
}

/// Appends a SentencePiece spelling with `▁` as spaces.
fn unescape(token: &str, out: &mut Vec<u8>) {
    for (i, part) in token.split('▁').enumerate() {
        if i > 0 {
            out.push(b' ');
        }
        out.extend_from_slice(part.as_bytes());
    }
}

/// The special tokens and how they treat white space. GGUF has no field for the latter: as llama.cpp does, the families
/// that need it are known by their names.
fn strips(vocab: &Vocab<'_>, texts: &Pieces, types: &[TokenType]) -> Vec<(u32, Strip)> {
    let model = vocab.model_name.to_lowercase();
    let phi3 = model.contains("phi-3") || model.contains("phi3");
    let jina = vocab.pre.contains("jina-v2");
    let special =
        |kind: TokenType| matches!(kind, TokenType::Control | TokenType::Unknown | TokenType::UserDefined);
    let ids = (0..texts.len() as u32).filter(|&id| special(types[id as usize]));
    ids.filter_map(|id| {
        let text = texts.get(id).filter(|t| !t.is_empty())?;
        let right = phi3 && !matches!(text, b"<unk>" | b"<s>" | b"<|endoftext|>");
        let left = (jina && text == b"<mask>") || (model.contains("modern-bert") && text == b"[MASK]");
        Some((id, Strip { left, right }))
    })
    .collect()
}
