//! Tokenizers against reference ids (`generate_tokens.py` makes them), and what must hold for any text and any file.
//! Real models are compared too where `QUARREL_FIXTURES` names the folder that has them.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use proptest::prelude::*;
use quarrel_formats::gguf::Gguf;
use quarrel_text::stream_decoder::{Control, Leading};
use quarrel_text::tokenizer::{Scheme, TokenType, Vocab};
use quarrel_text::{ChatTemplate, Ends, RenderInput, Special, StreamDecoder, Tokenizer};
use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokens")
}

fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder().join(name)).unwrap()).unwrap()
}

fn load(path: &Path) -> Tokenizer {
    let bytes = std::fs::read(path).unwrap();
    if path.extension().is_some_and(|e| e == "json") {
        return Tokenizer::from_json(&bytes, None).unwrap();
    }
    Tokenizer::from_gguf(&Gguf::parse(&bytes).unwrap().metadata).unwrap()
}

/// The first few texts whose ids differ.
fn differences(tokenizer: &Tokenizer, want: &Value) -> Vec<String> {
    let texts = json("texts.json");
    let mut out = Vec::new();
    for (mode, special) in [("parse", Special::Parse), ("plain", Special::Plain)] {
        let Some(lists) = want.get(mode).and_then(Value::as_array) else { continue };
        for (text, want) in texts.as_array().unwrap().iter().zip(lists) {
            let text = text.as_str().unwrap();
            let want: Vec<u32> =
                want.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect();
            let got = tokenizer.encode(text, special, Ends::None).unwrap();
            if got != want {
                let spell = |ids: &[u32]| {
                    ids.iter().map(|&i| tokenizer.token_text(i).unwrap().into_owned()).collect::<Vec<_>>()
                };
                out.push(format!("{mode} {text:?}\n want {:?}\n got  {:?}", spell(&want), spell(&got)));
            }
        }
    }
    out
}

#[test]
fn small_vocabularies_give_the_reference_ids() {
    let ids = json("ids.json");
    for name in [
        "bpe-gpt2.gguf",
        "bpe-qwen2.gguf",
        "spm-phi3.gguf",
        "wordpiece.gguf",
        "unigram.gguf",
        "tokenizer.json",
    ] {
        let problems = differences(&load(&folder().join(name)), &ids[name]);
        assert!(
            problems.is_empty(),
            "{name}: {} differ:\n{}",
            problems.len(),
            problems[..problems.len().min(6)].join("\n")
        );
    }
}

#[test]
fn real_models_give_the_reference_ids() {
    let Ok(fixtures) = std::env::var("QUARREL_FIXTURES") else {
        println!("skipped: QUARREL_FIXTURES is not set");
        return;
    };
    for (name, ends) in [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", vec!["<|im_end|>", "<|endoftext|>"]),
        ("gemma-3-270m-q4_k_m.gguf", vec!["<eos>", "<end_of_turn>"]),
    ] {
        let path = Path::new(&fixtures).join(name);
        if !path.exists() {
            println!("skipped: {name} is not in QUARREL_FIXTURES");
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        let started = std::time::Instant::now();
        let tokenizer = Tokenizer::from_gguf(&gguf.metadata).unwrap();
        println!("{name}: ready in {:?}", started.elapsed());
        let text = include_str!("tokens.rs").replace('▁', "_").repeat(100);
        let started = std::time::Instant::now();
        let ids = tokenizer.encode(&text, Special::Plain, Ends::None).unwrap();
        println!("{name}: {} bytes, {} tokens in {:?}", text.len(), ids.len(), started.elapsed());
        assert!(tokenizer.decode(&ids).unwrap() == text, "{name}: the text does not come back");
        for end in ends {
            let id = tokenizer.token_id(end).unwrap();
            assert!(tokenizer.is_end_of_generation(id), "{name}: {end}");
        }
        let problems = differences(&tokenizer, &json("ids.json")[name]);
        assert!(
            problems.is_empty(),
            "{name}: {} differ:\n{}",
            problems.len(),
            problems[..problems.len().min(6)].join("\n")
        );
    }
}

/// What a stranger says cannot end his turn.
#[test]
fn quoted_names_of_control_tokens_are_text() {
    for name in ["bpe-gpt2.gguf", "bpe-qwen2.gguf", "spm-phi3.gguf", "unigram.gguf", "tokenizer.json"] {
        let tokenizer = load(&folder().join(name));
        let control: Vec<u32> =
            (0..tokenizer.vocab_size() as u32).filter(|id| tokenizer.is_special(*id)).collect();
        assert!(!control.is_empty(), "{name}");
        for id in &control {
            let mark = tokenizer.token_text(*id).unwrap().into_owned();
            let hostile = format!("a{mark}{mark} b{}{mark}", &mark[..mark.len().min(1)]);
            let quoted = tokenizer.quote(&hostile);
            assert_eq!(Tokenizer::unquote(&quoted), hostile);
            let ids = tokenizer.encode(&quoted, Special::Parse, Ends::None).unwrap();
            assert!(!ids.contains(id), "{name}: {hostile}");
            assert_eq!(
                ids,
                tokenizer.encode(&hostile, Special::Plain, Ends::None).unwrap(),
                "{name}: {hostile}"
            );
            // Beside a mark of the template's own.
            let both =
                tokenizer.encode(&format!("{mark}{quoted}{mark}"), Special::Parse, Ends::None).unwrap();
            assert_eq!(both.iter().filter(|i| *i == id).count(), 2, "{name}: {hostile}");
        }
        let plain = "nothing to mark, žluť 🦙";
        assert_eq!(tokenizer.quote(plain), plain);
    }
}

#[test]
fn what_stands_around_a_text() {
    let spm = load(&folder().join("spm-phi3.gguf"));
    let hello = spm.encode("Hello", Special::Plain, Ends::None).unwrap();
    let model = spm.encode("Hello", Special::Plain, Ends::Model).unwrap();
    assert_eq!((model[0], &model[1..]), (spm.bos().unwrap(), &hello[..]));
    let both = spm.encode("Hello", Special::Plain, Ends::Explicit { bos: true, eos: true }).unwrap();
    assert_eq!(both.last(), Some(&spm.eos().unwrap()));
    assert_eq!(spm.decode(&both).unwrap(), "Hello", "control tokens give no text");
    let bert = load(&folder().join("wordpiece.gguf"));
    let text = |id: u32| bert.token_text(id).unwrap().into_owned();
    let ids = bert.encode("The time", Special::Plain, Ends::Model).unwrap();
    assert_eq!((text(ids[0]), text(ids[ids.len() - 1])), ("[CLS]".into(), "[SEP]".into()));
    let json = load(&folder().join("tokenizer.json"));
    let long = "The quick brown fox jumps over the lazy dog. ".repeat(20);
    let ids = json.encode(&long, Special::Plain, Ends::Model).unwrap();
    assert!(ids.len() > 50, "the file's truncation to 16 tokens is not applied");
    assert_eq!(ids[0], json.bos().unwrap());
    assert_eq!(json.decode(&ids).unwrap(), long);
    assert!(json.is_end_of_generation(json.token_id("<|im_end|>").unwrap()));
    assert!(json.token_bytes(9999).unwrap_err().to_string().contains("9999"));
}

#[test]
fn streaming_gives_the_text_of_the_whole() {
    for name in ["bpe-gpt2.gguf", "spm-phi3.gguf", "tokenizer.json"] {
        let tokenizer = load(&folder().join(name));
        for text in ["Hello 🦙 world", "日本語 é", "  two", ""] {
            let ids = tokenizer.encode(text, Special::Plain, Ends::Model).unwrap();
            let mut stream = StreamDecoder::new(Leading::Strip, Control::Hide);
            let mut out: String = ids.iter().map(|&id| stream.push(&tokenizer, id).unwrap()).collect();
            out += &stream.finish();
            assert_eq!(out, text, "{name}");
        }
    }
    let spm = load(&folder().join("spm-phi3.gguf"));
    let mut stream = StreamDecoder::new(Leading::Keep, Control::Show);
    let ids = spm.encode("a", Special::Plain, Ends::Model).unwrap();
    let out: String = ids.iter().map(|&id| stream.push(&spm, id).unwrap()).collect();
    assert_eq!(out, "<s> a");
}

#[test]
fn bad_files_are_named() {
    let tokens = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
    let list = tokens(&["a", "b", "ab"]);
    let error = |vocab: &Vocab<'_>| Tokenizer::from_vocab(vocab).unwrap_err().to_string();
    let mut vocab = Vocab::new(Scheme::Bpe, &list);
    vocab.pre = "nonsense".into();
    assert!(error(&vocab).contains("`nonsense`"));
    let merges = tokens(&["ab"]);
    let vocab = Vocab { merges: &merges, ..Vocab::new(Scheme::Bpe, &list) };
    assert!(error(&vocab).contains("merge 0 `ab`"));
    assert!(error(&Vocab::new(Scheme::Bpe, &[])).contains("tokenizer.ggml.tokens"));
    assert!(error(&Vocab::new(Scheme::Spm, &list)).contains("bos_token_id"));
    let mut vocab = Vocab::new(Scheme::Spm, &list);
    vocab.add_bos = Some(false);
    let tokenizer = Tokenizer::from_vocab(&vocab).unwrap();
    assert!(tokenizer.encode("é", Special::Plain, Ends::None).unwrap_err().to_string().contains("`▁`"));
    let json = Tokenizer::from_json(b"{\"model\": 3}", None).unwrap_err().to_string();
    assert!(json.starts_with("tokenizer.json: "), "{json}");
}

static BPE: LazyLock<Tokenizer> = LazyLock::new(|| load(&folder().join("bpe-qwen2.gguf")));
static SPM: LazyLock<Tokenizer> = LazyLock::new(|| load(&folder().join("spm-phi3.gguf")));
static JSON: LazyLock<Tokenizer> = LazyLock::new(|| load(&folder().join("tokenizer.json")));
static JSON_FILE: LazyLock<String> =
    LazyLock::new(|| std::fs::read_to_string(folder().join("tokenizer.json")).unwrap());

fn scheme() -> impl Strategy<Value = Scheme> {
    prop_oneof![Just(Scheme::Bpe), Just(Scheme::Spm), Just(Scheme::Unigram), Just(Scheme::WordPiece)]
}

fn token_type() -> impl Strategy<Value = TokenType> {
    use TokenType::*;
    prop_oneof![4 => Just(Normal), 1 => Just(Unknown), 1 => Just(Control), 1 => Just(UserDefined), 1 => Just(Unused), 1 => Just(Byte)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn text_survives(text in any::<String>(), more in "[ a-zé\n'1🦙]{0,40}") {
        let text = text + &more;
        for tokenizer in [&*BPE, &*JSON] {
            for special in [Special::Plain, Special::Parse] {
                let ids = tokenizer.encode(&text, special, Ends::None).unwrap();
                prop_assert_eq!(&tokenizer.decode(&ids).unwrap(), &text);
            }
        }
        let text = text.replace('▁', "_"); // SentencePiece spells a space so
        let ids = SPM.encode(&text, Special::Plain, Ends::None).unwrap();
        prop_assert_eq!(&SPM.decode(&ids).unwrap(), &text);
    }

    #[test]
    fn any_vocabulary_loads_or_fails_cleanly(
        scheme in scheme(),
        tokens in prop::collection::vec("[ab▁Ġ<>0x1A-F ]{0,6}", 1..30),
        types in prop::collection::vec(token_type(), 0..30),
        scores in prop::collection::vec(any::<f32>(), 0..40),
        merges in prop::collection::vec("[ab▁Ġ]{0,3} ?[ab▁Ġ]{0,3}", 0..10),
        charsmap in prop::collection::vec(any::<u8>(), 0..40),
        unk in prop::option::of(0u32..3),
        text in "[ab▁Ġ<>0x1A-F \n]{0,30}",
    ) {
        let mut vocab = Vocab::new(scheme, &tokens);
        vocab.types = types.into_iter().take(tokens.len()).collect();
        vocab.scores = scores.into();
        vocab.merges = &merges;
        vocab.charsmap = charsmap;
        vocab.special.unk = unk.filter(|&u| (u as usize) < tokens.len());
        (vocab.add_bos, vocab.add_eos) = (Some(false), Some(false));
        if let Ok(tokenizer) = Tokenizer::from_vocab(&vocab) {
            for special in [Special::Plain, Special::Parse] {
                if let Ok(ids) = tokenizer.encode(&text, special, Ends::None) {
                    tokenizer.decode(&ids).unwrap();
                }
            }
        }
    }

    #[test]
    fn any_charsmap_is_safe(mut charsmap in prop::collection::vec(any::<u32>(), 2..40), text in any::<String>()) {
        charsmap[0] = (charsmap.len() as u32 - 2) * 4;
        let tokens: Vec<String> = ["a", "b", "▁"].map(String::from).to_vec();
        let mut vocab = Vocab::new(Scheme::Unigram, &tokens);
        vocab.scores = vec![-1.0, -2.0, -3.0].into();
        vocab.charsmap = charsmap.iter().flat_map(|n| n.to_le_bytes()).collect();
        vocab.special.unk = Some(0);
        vocab.add_eos = Some(false);
        let _ = Tokenizer::from_vocab(&vocab).and_then(|t| t.encode(&text, Special::Plain, Ends::None));
    }

    #[test]
    fn a_mutated_tokenizer_json_is_safe(at in any::<prop::sample::Index>(), cut in 0usize..12, with in "[\\[\\]{}\",:0-9a-zĠ]{0,8}") {
        let file = JSON_FILE.as_str();
        let at = file.floor_char_boundary(at.index(file.len()));
        let end = file.ceil_char_boundary((at + cut).min(file.len()));
        let mutated = format!("{}{with}{}", &file[..at], &file[end..]);
        if let Ok(tokenizer) = Tokenizer::from_json(mutated.as_bytes(), None)
            && let Ok(ids) = tokenizer.encode("Hello, world 12 <|im_end|>", Special::Parse, Ends::Model)
        {
            let _ = tokenizer.decode(&ids);
        }
    }

    #[test]
    fn any_template_is_safe(
        parts in prop::collection::vec(prop_oneof![
            "[ a-z{}%#+*|.()\\[\\]'\"0-9~-]{0,10}",
            prop::sample::select(vec!["{{ ", " }}", "{% ", " %}", "{%- if ", "messages", "{% endif %}", "{% for x in ", "{% endfor %}", "{% set x = ",
                "[x, x]", " + x", " * 99", "|tojson", ".items()", "[::-1]", "namespace(a=1)", "{% macro f(x) %}", "{% endmacro %}", "f(x)", "range(9)",
                "{% raw %}", "{% endraw %}", "{# ", " #}", "{% generation %}", "raise_exception('x')", "'é'", "((((((((((", "{% break %}"]).prop_map(String::from),
        ], 0..14)
    ) {
        let messages = serde_json::json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": null}]);
        if let Ok(template) = ChatTemplate::new(&parts.concat()) {
            let _ = template.render(&RenderInput { messages: Some(&messages), ..Default::default() });
        }
    }
}

/// all-MiniLM-L6-v2 (`tokenizer.json` with padding and truncation to 128): ids as the `tokenizers` Python package gives.
#[test]
fn a_real_tokenizer_json() {
    let path =
        std::env::var("QUARREL_FIXTURES").map(|f| Path::new(&f).join("all-MiniLM-L6-v2/tokenizer.json"));
    let Some(path) = path.ok().filter(|p| p.exists()) else {
        println!("skipped: all-MiniLM-L6-v2/tokenizer.json is not in QUARREL_FIXTURES");
        return;
    };
    let tokenizer = load(&path);
    let ids = tokenizer.encode("The Café, isn't it?", Special::Plain, Ends::Model).unwrap();
    assert_eq!(ids, [101, 1996, 7668, 1010, 3475, 1005, 1056, 2009, 1029, 102]);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "the cafe, isn ' t it?", "as that package decodes it");
}
