//! Pre-tokenizers: how byte-level BPE cuts text into words before merging, by the names of `tokenizer.ggml.pre`.
//! Each is a list of steps; a step splits every piece of the step before it, and what a step does not match stays
//! a piece. The published patterns need look-ahead only for runs of spaces and for digits grouped from the right; both
//! are rules here, so every pattern runs on a linear-time automaton and no text can make it backtrack.

use regex_automata::{Input, meta::Regex};

use crate::{Error, Result};

/// What happens to a match of a step's last alternative.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Tail {
    /// The pattern as it is.
    Plain,
    /// `\s+(?!\S)|\s+`: a run of spaces gives its last one to the word behind it.
    Spaces,
    /// `\s{512}(?!\S)|..|\s{1,2}(?!\S)|\s`: as above, in chunks of powers of two.
    Cascade,
}

/// One step: alternatives in order of preference, or a rule that is not a regular expression.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// Alternatives, leftmost and first listed wins.
    Split(&'static [&'static str], Tail),
    /// Digit runs in threes counted from their right end. With `true` only before a word boundary
    /// (`\d{1,3}(?=(?:\d{3})*\b)`), otherwise `(?=(\d{3})+(?!\d))`.
    Threes(bool),
}

const SPACES: &str = r"\s+";
const CONTRACTIONS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const GPT2: Step = Step::Split(
    &[r"'s|'t|'re|'ve|'m|'ll|'d", r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+", SPACES],
    Tail::Spaces,
);
const DIGIT: Step = Step::Split(&[r"\p{N}"], Tail::Plain);
const THREE_ASCII_DIGITS: Step = Step::Split(&["[0-9][0-9][0-9]"], Tail::Plain);
const WORD: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+";
const MARKS: &str = r" ?[^\s\p{L}\p{N}]+[\r\n]*";
const MARKS_SLASH: &str = r" ?[^\s\p{L}\p{N}]+[\r\n/]*";
const LINES: &str = r"\s*[\r\n]+";
const LLAMA3: Step = Step::Split(&[CONTRACTIONS, WORD, r"\p{N}{1,3}", MARKS, LINES, SPACES], Tail::Spaces);
const QWEN2: Step = Step::Split(&[CONTRACTIONS, WORD, r"\p{N}", MARKS, LINES, SPACES], Tail::Spaces);
const DEEPSEEK_WORDS: Step = Step::Split(
    &[
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
        r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
        r" ?[\p{P}\p{S}]+[\r\n]*",
        LINES,
        SPACES,
    ],
    Tail::Spaces,
);
/// The cased letters of the Unicode version that DeepSeek LLM was made with.
const DEEPSEEK_LETTERS: &str = "\\s?[\
    A-Za-z\u{B5}\u{C0}-\u{D6}\u{D8}-\u{F6}\u{F8}-\u{1BA}\u{1BC}-\u{1BF}\u{1C4}-\u{293}\
    \u{295}-\u{2AF}\u{370}-\u{373}\u{376}\u{377}\u{37B}-\u{37D}\u{37F}\u{386}\u{388}-\u{38A}\u{38C}\
    \u{38E}-\u{3A1}\u{3A3}-\u{3F5}\u{3F7}-\u{481}\u{48A}-\u{52F}\u{531}-\u{556}\u{10A0}-\u{10C5}\
    \u{13A0}-\u{13F5}\u{13F8}-\u{13FD}\u{1C90}-\u{1CBA}\u{1CBD}-\u{1CBF}\u{1D00}-\u{1D2B}\
    \u{1D6B}-\u{1D77}\u{1D79}-\u{1D9A}\u{1E00}-\u{1F15}\u{1F18}-\u{1F1D}\u{1F20}-\u{1F45}\
    \u{1F48}-\u{1F4D}\u{1F50}-\u{1F57}\u{1F59}\u{1F5B}\u{1F5D}\u{1F5F}-\u{1F7D}\u{1F80}-\u{1FB4}\
    \u{1FB6}-\u{1FBC}\u{1FBE}\u{1FC2}-\u{1FC4}\u{1FC6}-\u{1FCC}\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}\
    \u{1FE0}-\u{1FEC}\u{1FF2}-\u{1FF4}\u{1FF6}-\u{1FFC}\u{2102}\u{2107}\u{210A}-\u{2113}\u{2115}\
    \u{2119}-\u{211D}\u{2124}\u{2126}\u{2128}\u{212A}-\u{212D}\u{212F}-\u{2134}\u{2139}\
    \u{213C}-\u{213F}\u{2145}-\u{2149}\u{214E}\u{2183}\u{2184}\u{2C00}-\u{2C7B}\u{2C7E}-\u{2CE4}\
    \u{2CEB}-\u{2CEE}\u{2CF2}\u{2CF3}\u{A640}-\u{A66D}\u{A680}-\u{A69B}\u{A722}-\u{A76F}\
    \u{A771}-\u{A787}\u{A78B}-\u{A78E}\u{AB70}-\u{ABBF}\u{FB00}-\u{FB06}\u{FB13}-\u{FB17}\
    \u{FF21}-\u{FF3A}\u{FF41}-\u{FF5A}\u{10400}-\u{1044F}\u{104B0}-\u{104D3}\u{104D8}-\u{104FB}\
    \u{10C80}-\u{10CB2}\u{10CC0}-\u{10CF2}\u{118A0}-\u{118DF}\u{1E900}-\u{1E943}]+";
const CJK: Step = Step::Split(&["[一-龥぀-ゟ゠-ヿ]+"], Tail::Plain);
const UP_DOWN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+";
const UP: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*";
const UP_DOWN_S: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?";
const UP_S: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?";
const GPT4O: Step = Step::Split(&[UP_DOWN_S, UP_S, r"\p{N}{1,3}", MARKS_SLASH, LINES, SPACES], Tail::Spaces);
const POEMS: Step = Step::Split(&[" ?[^(\\s|.,!?…。，、।۔،)]+"], Tail::Plain);
const NEWLINES: Step = Step::Split(&[r"[^\n]+", r"\n+"], Tail::Plain);

/// What a name in `tokenizer.ggml.pre` stands for.
#[derive(Debug)]
pub(super) struct Rules {
    names: &'static [&'static str],
    steps: &'static [Step],
    /// A word that is a token is taken whole, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// The default of `add_bos_token`.
    pub(super) add_bos: bool,
    /// Tokens are spelled in GPT-2's printable byte alphabet (else: UTF-8 with `▁` for spaces and `<0xXX>` bytes).
    pub(super) byte_level: bool,
}

const fn rules(names: &'static [&'static str], steps: &'static [Step]) -> Rules {
    Rules { names, steps, ignore_merges: false, add_bos: false, byte_level: true }
}
const fn whole(names: &'static [&'static str], steps: &'static [Step], add_bos: bool) -> Rules {
    Rules { names, steps, ignore_merges: true, add_bos, byte_level: true }
}

/// The table: names as llama.cpp's converter writes them, patterns as the models' own `tokenizer.json` has them.
static TABLE: &[Rules] = &[
    rules(
        &["default"],
        &[
            Step::Split(&[r"[\p{P}\$\+<=>\^~\|]+"], Tail::Plain),
            GPT2,
            Step::Split(&[r"\p{N}+"], Tail::Plain),
            THREE_ASCII_DIGITS,
        ],
    ),
    whole(
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        &[LLAMA3],
        true,
    ),
    rules(&["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], &[LLAMA3]),
    whole(
        &["minicpm5"],
        &[
            Step::Split(&[r"\p{N}{1,3}"], Tail::Plain),
            Step::Split(&[CONTRACTIONS, WORD, r"\p{N}+", MARKS, LINES, SPACES], Tail::Spaces),
        ],
        false,
    ),
    rules(
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v1-en",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v2-code",
            "roberta-bpe",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ],
        &[GPT2],
    ),
    rules(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[DIGIT, GPT2],
    ),
    rules(
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "stablelm2",
            "hunyuan",
            "megrez",
            "solar-open",
            "grok-2",
            "kormo",
            "f2llmv2",
        ],
        &[QWEN2],
    ),
    rules(
        &["qwen35"],
        &[Step::Split(
            &[
                CONTRACTIONS,
                r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
                r"\p{N}",
                r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
                LINES,
                SPACES,
            ],
            Tail::Spaces,
        )],
    ),
    rules(
        &["deepseek-llm"],
        &[
            Step::Split(&[r"[\r\n]"], Tail::Plain),
            Step::Split(&[DEEPSEEK_LETTERS], Tail::Plain),
            Step::Split(&[r"\s?[!-/:-~！-／：-～‘-‟　-。]+"], Tail::Plain),
            Step::Split(&[r"\s+$"], Tail::Plain),
            Step::Split(&["[一-龥ࠀ-一가-퟿]+"], Tail::Plain),
            Step::Split(&[r"\p{N}+"], Tail::Plain),
        ],
    ),
    rules(
        &["deepseek-coder"],
        &[
            Step::Split(&[r"[\r\n]"], Tail::Plain),
            Step::Split(&[r"\s?\p{L}+"], Tail::Plain),
            Step::Split(&[r"\s?\p{P}+"], Tail::Plain),
            Step::Split(&["[一-龥ࠀ-一가-퟿]+"], Tail::Plain),
            DIGIT,
        ],
    ),
    rules(
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        &[Step::Split(&[r"\p{N}{1,3}"], Tail::Plain), CJK, DEEPSEEK_WORDS],
    ),
    whole(
        &["youtu"],
        &[
            Step::Split(
                &["[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+"],
                Tail::Plain,
            ),
            Step::Split(&[UP_DOWN_S, UP_S, r"\p{N}", MARKS_SLASH, LINES, SPACES], Tail::Spaces),
        ],
        false,
    ),
    rules(&["falcon"], &[Step::Split(&[r"[\p{P}\$\+<=>\^~\|`]+"], Tail::Plain), GPT2, THREE_ASCII_DIGITS]),
    rules(&["bloom", "poro-chat", "gpt3-finnish"], &[POEMS]),
    rules(&["viking"], &[POEMS, DIGIT]),
    whole(
        &["tekken"],
        &[Step::Split(&[UP_DOWN, UP, r"\p{N}", MARKS_SLASH, LINES, SPACES], Tail::Spaces)],
        true,
    ),
    Rules {
        names: &["chameleon"],
        steps: &[
            Step::Split(&["<sentinel:[0-9]+>"], Tail::Plain),
            Step::Split(&["IMGIMG[A-I]{1,4}Z"], Tail::Plain),
            Step::Split(&[r"[\t\n]|    |  "], Tail::Plain),
            DIGIT,
            Step::Split(&[r"[\p{P}!-/:-@\[-`{-~]"], Tail::Plain),
            GPT2,
        ],
        ignore_merges: false,
        add_bos: true,
        byte_level: true,
    },
    rules(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]),
    whole(&["granite-embed-multi-97m"], &[GPT4O], false),
    rules(&["tiny_aya", "cohere2moe"], &[Step::Threes(true), GPT4O]),
    rules(
        &["kimi-k2"],
        &[Step::Split(
            &[
                r"\p{Han}+",
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                r"\p{N}{1,3}",
                MARKS,
                LINES,
                SPACES,
            ],
            Tail::Spaces,
        )],
    ),
    rules(&["superbpe"], &[Step::Split(&[r"\p{N}+"], Tail::Plain), Step::Threes(false)]),
    rules(
        &["bailingmoe", "bailingmoe2", "llada-moe"],
        &[Step::Split(
            &[r"'(?i:[sdmt]|ll|ve|re)", WORD, r"\p{N}", MARKS, r"\s*[\r\n]", SPACES],
            Tail::Spaces,
        )],
    ),
    rules(
        &["seed-coder"],
        &[Step::Split(
            &[CONTRACTIONS, WORD, r"\p{N}", r" ?[^\s\p{L}\p{N}\r\n]+", LINES, SPACES],
            Tail::Spaces,
        )],
    ),
    rules(&["ufakzeka"], &[Step::Split(&[WORD, r"\p{N}", MARKS, LINES, SPACES], Tail::Spaces)]),
    rules(&["laguna"], &[NEWLINES, QWEN2]),
    rules(
        &["exaone-moe"],
        &[Step::Split(
            &[
                CONTRACTIONS,
                r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
                r"\p{N}",
                r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
                r"\s*[\r\n]",
                SPACES,
            ],
            Tail::Spaces,
        )],
    ),
    rules(
        &["jais-2"],
        &[Step::Split(&[CONTRACTIONS, WORD, r"\p{N}{1,3}", MARKS, LINES, SPACES], Tail::Cascade)],
    ),
    Rules {
        names: &["gemma4", "granite-embed-multi-311m"],
        steps: &[NEWLINES],
        ignore_merges: false,
        add_bos: true,
        byte_level: false,
    },
    Rules {
        names: &["sarvam-moe"],
        steps: &[NEWLINES],
        ignore_merges: false,
        add_bos: false,
        byte_level: false,
    },
];

/// A compiled pre-tokenizer.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    pub(super) rules: &'static Rules,
    steps: Vec<Compiled>,
}

#[derive(Debug)]
enum Compiled {
    Split { regex: Regex, last: usize, tail: Tail },
    Threes { digits: Regex, boundary: bool },
}

impl PreTokenizer {
    /// The pre-tokenizer of a name.
    ///
    /// # Errors
    /// [`Error::UnknownPre`] with the list of known names.
    pub(super) fn by_name(name: &str) -> Result<Self> {
        let Some(rules) = TABLE.iter().find(|r| r.names.contains(&name)) else {
            let mut known: Vec<&str> = names().collect();
            known.sort_unstable();
            return Err(Error::UnknownPre { name: shorten(name), known: known.join(", ") });
        };
        let compile = |patterns: &[&str]| {
            Regex::new_many(patterns).map_err(|e| Error::BadField {
                field: "tokenizer.ggml.pre",
                what: format!("`{name}` does not compile: {e}"),
            })
        };
        let steps = rules.steps.iter().map(|step| {
            Ok(match *step {
                Step::Split(alts, tail) => {
                    Compiled::Split { regex: compile(alts)?, last: alts.len() - 1, tail }
                }
                Step::Threes(boundary) => Compiled::Threes { digits: compile(&[r"\d+"])?, boundary },
            })
        });
        Ok(Self { steps: steps.collect::<Result<_>>()?, rules })
    }

    /// Cuts `text` into words; joined they give `text` again.
    pub(super) fn split<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut pieces = vec![text];
        for step in &self.steps {
            let mut next = Vec::with_capacity(pieces.len() * 2);
            for piece in pieces {
                step.split(piece, &mut next);
            }
            pieces = next;
        }
        pieces
    }
}

impl Compiled {
    fn split<'t>(&self, text: &'t str, out: &mut Vec<&'t str>) {
        let mut done = 0; // everything before is in `out`
        match self {
            Compiled::Split { regex, last, tail } => {
                let mut at = 0;
                while let Some(m) = regex.search(&Input::new(text).range(at..)) {
                    let mut end = m.end();
                    if *tail != Tail::Plain && m.pattern().as_usize() == *last {
                        end = m.start() + space_run(&text[m.range()], end < text.len(), *tail);
                    }
                    if end == m.start() {
                        break; // no pattern here matches nothing; this only guards the loop
                    }
                    push(out, &text[done..m.start()]);
                    push(out, &text[m.start()..end]);
                    (at, done) = (end, end);
                }
            }
            Compiled::Threes { digits, boundary } => {
                for m in digits.find_iter(text) {
                    let word_goes_on =
                        || text[m.end()..].chars().next().is_some_and(|c| c.is_alphanumeric() || c == '_');
                    if *boundary && word_goes_on() {
                        continue;
                    }
                    let run = &text[m.range()];
                    let total = run.chars().count();
                    for (i, (offset, _)) in run.char_indices().enumerate() {
                        if (total - i).is_multiple_of(3) || (*boundary && i == 0) {
                            push(out, &text[done..m.start() + offset]);
                            done = m.start() + offset;
                        }
                    }
                    if *boundary {
                        push(out, &text[done..m.end()]);
                        done = m.end();
                    }
                }
            }
        }
        push(out, &text[done..]);
    }
}

fn push<'t>(out: &mut Vec<&'t str>, piece: &'t str) {
    if !piece.is_empty() {
        out.push(piece);
    }
}

/// How many bytes of a run of spaces are one word, when `more` text (never a space) follows it.
fn space_run(run: &str, more: bool, tail: Tail) -> usize {
    let count = run.chars().count();
    let usable = if more { count - 1 } else { count };
    let take = match tail {
        Tail::Cascade => [512, 256, 128, 64, 32, 16, 8, 4, 2].into_iter().find(|&k| k <= usable).unwrap_or(1),
        Tail::Plain | Tail::Spaces => usable.max(1),
    };
    run.char_indices().nth(take).map_or(run.len(), |(i, _)| i)
}

/// All known names, in table order.
pub fn names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().flat_map(|r| r.names.iter().copied())
}

/// A name from a file, cut so that an error stays one line.
pub(super) fn shorten(name: &str) -> String {
    name.chars().take(60).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_compiles_and_loses_no_text() {
        let text = "Hello  world\n\n  x123456 \u{3000}é'S 12345 don't\t\t我想 a_1 1234a 🚀🚀 !? ";
        for name in names() {
            let pre = PreTokenizer::by_name(name).unwrap();
            let words = pre.split(text);
            assert_eq!(words.concat(), text, "{name}");
            assert!(words.len() > 1 && words.iter().all(|w| !w.is_empty()), "{name}: {words:?}");
        }
    }

    #[test]
    fn words_by_name() {
        let cases: &[(&str, &str, &[&str])] = &[
            ("gpt-2", "Hello  world 123", &["Hello", " ", " world", " 123"]),
            ("gpt-2", "a   ", &["a", "   "]),
            ("gpt-2", "a\n\n  b", &["a", "\n\n ", " b"]),
            ("gpt-2", "I'll go", &["I", "'ll", " go"]),
            ("smollm", "x 123", &["x", " ", "1", "2", "3"]),
            ("llama-bpe", "I'LL 12345\n\n  b", &["I", "'LL", " ", "123", "45", "\n\n", " ", " b"]),
            ("qwen2", "  12", &[" ", " ", "1", "2"]),
            ("superbpe", "a 1234567b", &["a ", "1", "234", "567", "b"]),
            ("tiny_aya", "1234567 12a", &["1", "234", "567", " ", "12", "a"]),
            ("jais-2", "a       b", &["a", "    ", "  ", " b"]),
            ("falcon", "a 12345!?", &["a", " ", "123", "45", "!?"]),
            ("tekken", "helloWorld HTTP", &["hello", "World", " HTTP"]),
        ];
        for (name, text, words) in cases {
            assert_eq!(&PreTokenizer::by_name(name).unwrap().split(text), words, "{name} {text:?}");
        }
    }

    #[test]
    fn an_unknown_name_is_named_with_the_known_ones() {
        let message = PreTokenizer::by_name("qwen99").unwrap_err().to_string();
        assert!(message.contains("`qwen99`") && message.contains("llama-bpe"), "{message}");
    }

    #[test]
    fn long_runs_are_linear() {
        for name in ["gpt-2", "llama-bpe", "deepseek-llm", "tekken", "jais-2"] {
            let pre = PreTokenizer::by_name(name).unwrap();
            for unit in [" ", "1", "a", "!", "\n", " \n"] {
                let text = unit.repeat(200_000) + "x";
                assert_eq!(
                    pre.split(&text).iter().map(|w| w.len()).sum::<usize>(),
                    text.len(),
                    "{name} {unit:?}"
                );
            }
        }
    }
}
