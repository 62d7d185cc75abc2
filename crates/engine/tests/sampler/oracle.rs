//! The same logits through transformers' processors and llama.cpp's samplers: what they keep, and how likely it is.
//! `data/samplers.py` makes the cases.

use crate::{distribution, explained};
use quarrel_engine::{DynamicTemperature, LogitSampler, Sampling, Stage};
use serde_json::Value;

fn sampling(settings: &Value) -> Sampling {
    let mut s = Sampling::default();
    for (name, value) in settings.as_object().unwrap() {
        let f = value.as_f64().unwrap_or_default() as f32;
        let n = value.as_u64().map(|n| n as u32);
        match name.as_str() {
            "temperature" => s.temperature = f,
            "top_k" => s.top_k = n.unwrap(),
            "top_p" => s.top_p = f,
            "min_p" => s.min_p = f,
            "typical_p" => s.typical_p = f,
            "top_n_sigma" => s.top_n_sigma = f,
            "xtc_probability" => s.xtc_probability = f,
            "xtc_threshold" => s.xtc_threshold = f,
            "repetition_penalty" => s.repetition_penalty = f,
            "dry_multiplier" => s.dry_multiplier = f,
            "dry_base" => s.dry_base = f,
            "dry_allowed_length" => s.dry_allowed_length = n.unwrap(),
            "dry_window" => s.dry_window = n,
            "mirostat" => s.mirostat = n.unwrap() as u8,
            "mirostat_tau" => s.mirostat_tau = f,
            "dynamic_temperature" => {
                let at = |i: usize| value[i].as_f64().unwrap() as f32;
                s.dynamic_temperature = Some(DynamicTemperature { min: at(0), max: at(1), exponent: at(2) });
            }
            "samplers" => {
                let names = value.as_array().unwrap().iter().map(|v| v.as_str().unwrap());
                s.samplers = Some(Stage::list(names).unwrap());
            }
            other => panic!("{other}"),
        }
    }
    s
}

#[test]
fn equal_transformers_and_llama_cpp() {
    let cases: Value = serde_json::from_str(include_str!("../data/samplers.json")).unwrap();
    let cases = cases["cases"].as_array().unwrap();
    assert!(cases.len() > 130);
    for case in cases {
        let list = |key: &str| case[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap());
        let row: Vec<f32> = list("row").map(|l| l as f32).collect();
        let prompt: Vec<u32> = list("prompt").map(|t| t as u32).collect();
        let mut want = vec![0.0; row.len()];
        for pair in case["kept"].as_array().unwrap() {
            want[pair[0].as_u64().unwrap() as usize] = pair[1].as_f64().unwrap();
        }
        let trace = explained(&sampling(&case["sampling"]), &prompt, &row);
        let got = distribution(&trace, row.len());
        let (source, settings) = (&case["source"], &case["sampling"]);
        for id in 0..row.len() {
            assert!(
                (got[id] - want[id]).abs() < 3e-6,
                "{source} {settings}: token {id} is {} not {}",
                got[id],
                want[id]
            );
        }
        let kept = case["kept"].as_array().unwrap().len();
        assert_eq!(trace.candidates.len(), kept, "{source} {settings}");
    }
}

/// transformers' penalty on a prompt is ours on a prompt; OpenAI's penalties count an answer alone.
#[test]
fn tokens_of_an_answer_are_told_from_those_of_the_prompt() {
    let s = Sampling { presence_penalty: 1.0, frequency_penalty: 0.5, ..Sampling::default() };
    let mut sampler = LogitSampler::new(s, &[1, 1, 1], 4).unwrap();
    sampler.push(2).unwrap();
    sampler.push(2).unwrap();
    let mut row = [0.0; 4];
    sampler.next(&mut row).unwrap();
    assert_eq!(row, [0.0, 0.0, -2.0, 0.0]);
    assert!(sampler.push(4).is_err());
}
