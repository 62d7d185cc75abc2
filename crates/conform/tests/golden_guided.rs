//! Contrastive search and DoLa against the tokens that `transformers` found with the tiny models of random weights
//! (`goldens/make_guided.py` made them), on the CPU's kernels and on the reference.

use quarrel_cpu::{Cpu, CpuOptions, KvType};
use quarrel_engine::{ContrastiveSearch, Dola, Engine, Event, Guide, LoadOptions, Request, Sampling};
use quarrel_formats::Source;
use quarrel_ir::Device;
use quarrel_ir::reference::Reference;
use std::path::Path;

#[derive(serde::Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(serde::Deserialize)]
struct Case {
    model: String,
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    alpha: Option<f32>,
    k: Option<u32>,
    layers: Option<Vec<u32>>,
    chosen: Option<Vec<u32>>,
}

fn answer(case: &Case, device: Box<dyn Device>) -> Vec<u32> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/tiny");
    let source = Source::open(root.join(&case.model).join("model.safetensors")).unwrap();
    let (exits, hidden) = (case.layers.clone().unwrap_or_default(), case.alpha.is_some());
    let options = LoadOptions { context: Some(80), hidden, exits, ..LoadOptions::default() };
    // A search has as many forks as candidates.
    let room = |c: &mut quarrel_engine::EngineConfig| c.kv_blocks = Some(64);
    let loaded = Engine::load(&source, device, &options, room, |_| {}).unwrap();
    let search = case.alpha.zip(case.k).map(|(alpha, k)| ContrastiveSearch { alpha, k });
    let dola = case.layers.as_ref().map(|_| Dola::default());
    let request = Request {
        sampling: Sampling::greedy(),
        max_tokens: Some(case.tokens.len() as u32),
        guide: Some(Box::new(Guide { search, dola, ..Guide::default() })),
        ..Request::new(case.prompt.clone())
    };
    let mut tokens = Vec::new();
    for event in loaded.handle.submit(request).unwrap() {
        match event {
            Event::Token { id, .. } => tokens.push(id),
            Event::Failed(e) => panic!("{e}"),
            _ => {}
        }
    }
    tokens
}

#[test]
fn guided_answers_are_those_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens/guided.json");
    let golden: Golden = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    // A choice among layers is made at all.
    let choices = golden.cases.iter().filter_map(|c| c.chosen.as_ref());
    assert!(choices.filter(|c| c.iter().any(|l| *l != c[0])).count() > 2);
    assert!(golden.cases.iter().filter(|c| c.alpha.is_some()).count() > 20);
    for case in &golden.cases {
        let cpu =
            Cpu::new(CpuOptions { threads: Some(1), kv: KvType::F32, ..CpuOptions::default() }).unwrap();
        let devices: [Box<dyn Device>; 2] = [Box::new(cpu), Box::new(Reference::default())];
        for device in devices {
            let name = device.info().name.clone();
            let got = answer(case, device);
            assert_eq!(got, case.tokens, "{name}: {} {:?} {:?}", case.model, case.alpha, case.layers);
        }
    }
}
