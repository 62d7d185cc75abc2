//! Grammars that an answer must obey: a JSON schema, a regular expression or a Lark grammar becomes, token by token, the set
//! of ids that may come next. The work is llguidance's (an Earley parser over lexemes, run along a trie of the vocabulary);
//! here are the vocabulary, limits for specifications from strangers, and the phases of an answer that reasons first.

mod guided;
mod limits;

use std::sync::Arc;

use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

pub use guided::{Guided, Phase, Reasoning};

use crate::tokenizer::TokenType;
use crate::{Error, Result, Tokenizer};

/// A longer token is left out of grammars; the trie holds up to 1023 bytes.
const TOKEN_BYTES_MAX: usize = 1000;
/// Most bytes of stack that compiling may take: it recurses over what it compiles.
const STACK_BYTES: usize = 256 << 20;
/// Longest reason in an error, in characters; grammars are quoted there.
const LINE_MAX: usize = 300;
/// White space between the parts of a JSON text: enough for any indentation, not for a model that is lost in it.
const JSON_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,80}";

/// What an answer must obey.
#[derive(Clone, Debug, PartialEq)]
pub enum GrammarSpec {
    /// Any JSON object.
    JsonObject,
    /// JSON text that a JSON Schema accepts. A keyword that cannot be enforced is an error.
    JsonSchema(Value),
    /// Text that the whole of a regular expression matches (Rust's syntax, without look-around and lazy repeats).
    Regex(String),
    /// Text of a context-free grammar in llguidance's variant of Lark's syntax; it begins at `start`.
    Lark(String),
}

impl GrammarSpec {
    fn kind(&self) -> &'static str {
        match self {
            Self::JsonObject => "JSON object",
            Self::JsonSchema(_) => "JSON schema",
            Self::Regex(_) => "regular expression",
            Self::Lark(_) => "Lark grammar",
        }
    }
}

/// Compiles grammars for one tokenizer; shared between threads.
pub struct GrammarFactory {
    factory: ParserFactory,
    vocabulary: Arc<Vocabulary>,
}

/// What grammars know of a tokenizer.
struct Vocabulary {
    tokenizer: Arc<Tokenizer>,
    env: TokEnv,
    /// Ids that end an answer.
    ends: Vec<u32>,
}

impl GrammarFactory {
    /// A factory for a tokenizer. Takes some hundred milliseconds for a large vocabulary.
    ///
    /// # Errors
    /// No token ends an answer, or the vocabulary is beyond the trie's limits.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Result<Self> {
        let fail = |what: String| Error::Grammar { kind: "grammar vocabulary", what };
        let ends = tokenizer.end_of_generation().to_vec();
        let Some(&eos) = ends.first() else {
            let what =
                "no token ends an answer (tokenizer.ggml.eos_token_id is missing), so no grammar could end";
            return Err(fail(what.into()));
        };
        let words: Vec<Vec<u8>> = (0..tokenizer.vocab_size() as u32).map(|id| word(&tokenizer, id)).collect();
        let info = TokRxInfo::new(words.len() as u32, eos);
        let made = catch_unwind(std::panic::AssertUnwindSafe(|| {
            let trie = TokTrie::from(&info, &words).with_eos_tokens(&ends);
            let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            let slices = SlicedBiasComputer::json_slices();
            let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)?;
            factory.quiet();
            *factory.limits_mut() = ParserLimits { verbose_errors: false, ..limits::parser() };
            Ok((env, factory))
        }));
        let (env, factory) = made.map_err(|e| fail(one_line(&e)))?;
        Ok(Self { factory, vocabulary: Arc::new(Vocabulary { tokenizer, env, ends }) })
    }

    /// Compiles a specification. It may take up to seconds for one that is made to be slow: not for a thread that others wait for.
    ///
    /// # Errors
    /// The specification is wrong, has what cannot be enforced, or is too large; the error says which, in one line.
    pub fn compile(&self, spec: &GrammarSpec) -> Result<Grammar> {
        let fail = |what: String| Error::Grammar { kind: spec.kind(), what };
        limits::check(spec).map_err(fail)?;
        // Compiling recurses, and the stacks of callers are small.
        let compile = || self.factory.create_parser(lowered(spec)).map_err(|e| one_line(&e));
        let outcome = std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().name("grammar".into()).stack_size(STACK_BYTES);
            let thread =
                builder.spawn_scoped(scope, compile).map_err(|e| format!("no thread to compile it: {e}"))?;
            thread.join().unwrap_or_else(|_| Err("its compiler panicked, which is a bug".into()))
        });
        let matcher = Matcher::new(Ok(outcome.map_err(fail)?));
        if let Some(e) = matcher.get_error() {
            return Err(fail(first_line(&e)));
        }
        let mut grammar =
            Grammar { matcher, ends: self.vocabulary.ends.clone(), bits: Vec::new(), ended: false };
        // One that allows nothing must not wait for its first token to say so.
        match grammar.mask() {
            Ok(_) => Ok(grammar),
            Err(e) => Err(fail(format!("nothing matches it, or it is too complex ({e})"))),
        }
    }

    /// Number of ids that the tokenizer has; a model's logits may be more, and none of those is ever allowed.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.env.tok_trie().vocab_size()
    }
}

impl std::fmt::Debug for GrammarFactory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GrammarFactory({} tokens)", self.vocab_size())
    }
}

/// The bytes of a token in the trie; empty for one that is never allowed. Special tokens are no text: they are marked.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    if bytes.is_empty() || bytes.len() > TOKEN_BYTES_MAX {
        return Vec::new();
    }
    if tokenizer.is_special(id) || tokenizer.is_end_of_generation(id) {
        return [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat();
    }
    // The byte of the mark is in no UTF-8 text.
    let never =
        tokenizer.token_type(id) == Some(TokenType::Unused) || bytes[0] == TokTrie::SPECIAL_TOKEN_MARKER;
    if never { Vec::new() } else { bytes.to_vec() }
}

fn lowered(spec: &GrammarSpec) -> TopLevelGrammar {
    let grammar = match spec {
        GrammarSpec::JsonObject => {
            GrammarWithLexer::from_json_schema(with_options(&json!({"type": "object"})))
        }
        GrammarSpec::JsonSchema(schema) => GrammarWithLexer::from_json_schema(with_options(schema)),
        GrammarSpec::Regex(regex) => GrammarWithLexer::from_regex(regex),
        GrammarSpec::Lark(lark) => GrammarWithLexer::from_lark(lark.clone()),
    };
    TopLevelGrammar::from_grammar(grammar)
}

/// The schema with our options of the compiler, where it can carry them.
fn with_options(schema: &Value) -> Value {
    let mut schema = if *schema == Value::Bool(true) { json!({}) } else { schema.clone() };
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("x-guidance".into(), json!({"whitespace_pattern": JSON_SPACE}));
    }
    schema
}

/// A compiled grammar in a state: what has been accepted so far. A clone goes its own way from there; clones share what they
/// learn of the grammar, and so belong to one thread. [`Self::deep_clone`] shares nothing.
#[derive(Clone)]
pub struct Grammar {
    matcher: Matcher,
    ends: Vec<u32>,
    bits: Vec<u32>,
    /// Whether an end has been accepted.
    ended: bool,
}

impl Grammar {
    /// A copy for another thread, such as that of a request whose grammar was compiled before.
    pub fn deep_clone(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), ..self.clone() }
    }

    /// The ids that may come next: bit `i % 32` of word `i / 32` is id `i`. Ids that end an answer are among them exactly
    /// where the grammar may end.
    ///
    /// # Errors
    /// It has become too complex, or no token of the vocabulary goes on.
    pub fn mask(&mut self) -> Result<&[u32]> {
        let mask = if self.ended { None } else { Some(self.matcher.compute_mask_or_eos().map_err(step)?) };
        self.bits.clear();
        match &mask {
            Some(mask) => self.bits.extend_from_slice(mask.as_slice()),
            None => {
                let last = self.ends.iter().max().copied().unwrap_or(0) as usize;
                self.bits.resize(last / 32 + 1, 0);
                self.ends.iter().for_each(|&id| self.bits[id as usize / 32] |= 1 << (id % 32));
            }
        }
        Ok(&self.bits)
    }

    /// Takes the next token.
    ///
    /// # Errors
    /// The token is not allowed here, or the grammar has become too complex.
    pub fn accept(&mut self, id: u32) -> Result<()> {
        if self.ends.binary_search(&id).is_ok() && self.is_complete() {
            self.ended = true;
            return Ok(());
        }
        if self.ended || self.matcher.is_stopped() {
            return Err(Error::GrammarStep(format!("token {id} comes after the end")));
        }
        match self.matcher.try_consume_tokens(&[id]) {
            Ok(1) => Ok(()),
            Ok(_) => Err(Error::GrammarStep(format!("token {id} is not allowed here"))),
            Err(e) => Err(step(e)),
        }
    }

    /// Whether what was accepted is complete: the answer may end now.
    pub fn is_complete(&mut self) -> bool {
        let stopped = self.matcher.is_stopped() && self.matcher.stop_reason().is_ok();
        self.ended || stopped || self.matcher.is_accepting().unwrap_or(false)
    }
}

impl std::fmt::Debug for Grammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Grammar({:?})", self.matcher.stop_reason())
    }
}

fn step(e: impl std::fmt::Display) -> Error {
    Error::GrammarStep(one_line(&e))
}

fn one_line(e: &impl std::fmt::Display) -> String {
    first_line(&format!("{e:#}"))
}

/// The line that says something: a regular expression's error or else the first; the rest are state dumps and marks in the
/// source.
fn first_line(text: &str) -> String {
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    let first = lines.next().unwrap_or("it failed without saying why");
    let line = lines.find_map(|l| l.strip_prefix("error: ")).unwrap_or(first);
    let short: String = line.chars().take(LINE_MAX).collect();
    if short.len() < line.len() { short + "…" } else { short }
}
