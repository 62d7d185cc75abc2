//! Every text of the shared vocabulary files against the ids that the reference tokenizer gives.
//! Run with `QUARREL_SHARED=/path/to/shared`; without it the test says that it is skipped.

use quarrel_formats::gguf::Gguf;
use quarrel_text::{Ends, Special, Tokenizer};

#[test]
fn every_shared_text_has_the_reference_ids() {
    let Ok(shared) = std::env::var("QUARREL_SHARED") else {
        println!("skipped: QUARREL_SHARED is not set");
        return;
    };
    let mut texts_seen = 0;
    for name in ["bert-bge", "gpt-2", "llama-spm", "phi-3", "qwen2"] {
        let path = format!("{shared}/tokenizers/ggml-vocab-{name}.gguf");
        let read = |ext: &str| std::fs::read_to_string(format!("{path}{ext}")).unwrap();
        let gguf = Gguf::parse(&std::fs::read(&path).unwrap()).unwrap();
        let tokenizer = Tokenizer::from_gguf(&gguf.metadata).unwrap();
        let (inp, out) = (read(".inp"), read(".out"));
        let texts: Vec<&str> = inp.split("\n__ggml_vocab_test__\n").collect();
        let lines: Vec<&str> = out.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let want: Vec<u32> = line.split_whitespace().map(|n| n.parse().unwrap()).collect();
            let got = tokenizer.encode(texts[i], Special::Parse, Ends::None).unwrap();
            assert_eq!(got, want, "{name}, text {i} {:?}: {:?}", texts[i], tokenizer.decode(&got));
            if name != "bert-bge" {
                assert_eq!(tokenizer.decode(&got).unwrap(), texts[i], "{name}, text {i}");
            }
            texts_seen += 1;
        }
    }
    assert!(texts_seen > 200, "{texts_seen}");
}
