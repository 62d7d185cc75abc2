//! What grammars cost with a real vocabulary: `grammar_speed MODEL.gguf`. The factory, the compilation of specifications
//! (ordinary ones and ones made to be slow), and the masks along random answers.

use quarrel_formats::Source;
use quarrel_text::{GrammarFactory, GrammarSpec, Tokenizer};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

fn main() {
    let path = std::env::args().nth(1).expect("MODEL.gguf");
    let source = Source::open(Path::new(&path)).expect("a model file");
    let tokenizer =
        Arc::new(Tokenizer::from_gguf(source.metadata().expect("a GGUF file")).expect("a tokenizer"));
    let began = Instant::now();
    let factory = GrammarFactory::new(tokenizer.clone()).expect("a factory");
    println!("factory of {} tokens: {:.0?}", factory.vocab_size(), began.elapsed());
    let person = json!({"type": "object", "required": ["name", "age", "tags"], "additionalProperties": false, "properties": {
        "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 5}}});
    let wide: serde_json::Map<_, _> =
        (0..3000).map(|i| (format!("key {i}"), json!({"type": "integer"}))).collect();
    let regex = |text: &str| GrammarSpec::Regex(text.into());
    let specs = [
        GrammarSpec::JsonObject,
        GrammarSpec::JsonSchema(person),
        GrammarSpec::JsonSchema(json!({"type": "object", "properties": wide})),
        regex(r"\d{4}-\d{2}-\d{2}"),
        regex("(.|\n)*"),
        regex("(.*a){30}"),
        regex("(a|b)*a(a|b){40}"),
        regex("(a{1,1000}){1,1000}"),
        regex(r"(\p{L}{1,500}\p{N}{1,500}){1,90}"),
        regex(&"[a-z]*".repeat(500)),
        GrammarSpec::Lark("start: start start | /[a-z ]/".into()),
        GrammarSpec::Lark("start: (a | b)*\na: /[a-z]+/ | a \" \" a\nb: /[a-y]+/ | b b".into()),
    ];
    for spec in specs {
        let began = Instant::now();
        let compiled = factory.compile(&spec);
        let compile = began.elapsed();
        let name: String = format!("{spec:?}").chars().take(60).collect();
        let mut grammar = match compiled {
            Ok(grammar) => grammar,
            Err(e) => {
                println!("{name:<62} {compile:>9.1?}  {e}");
                continue;
            }
        };
        let (mut times, mut seed, mut end) = (Vec::new(), 1u64, String::new());
        for _ in 0..300 {
            let began = Instant::now();
            let mask = match grammar.mask() {
                Ok(mask) => mask.to_vec(),
                Err(e) => {
                    end = e.to_string();
                    break;
                }
            };
            let allowed = (0..mask.len() as u32 * 32).filter(|i| mask[*i as usize / 32] >> (i % 32) & 1 == 1);
            let allowed: Vec<u32> = allowed.filter(|id| !tokenizer.is_end_of_generation(*id)).collect();
            if allowed.is_empty() {
                break;
            }
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let id = allowed[(seed >> 33) as usize % allowed.len()];
            if let Err(e) = grammar.accept(id) {
                end = e.to_string();
            }
            times.push(began.elapsed());
        }
        times.sort();
        let at = |share: usize| {
            times.get(times.len() * share / 100).or(times.last()).copied().unwrap_or(Duration::ZERO)
        };
        let began = Instant::now();
        drop(grammar.clone());
        let fork = began.elapsed();
        println!(
            "{name:<62} {compile:>9.1?}  {} tokens: p50 {:.1?} p99 {:.1?} max {:.1?} fork {fork:.1?} {end}",
            times.len(),
            at(50),
            at(99),
            at(100)
        );
    }
}
