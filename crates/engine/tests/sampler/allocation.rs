//! A token costs no allocation once the buffers have grown, whatever stages are on.

use allocation_counter::measure;
use quarrel_engine::{BriefBias, DynamicTemperature, LogitSampler, Sampling};

#[test]
fn a_step_allocates_nothing() {
    const VOCAB: usize = 5000;
    let s = || Sampling { temperature: 0.9, seed: Some(7), ..Sampling::default() };
    let range = Some(DynamicTemperature { min: 0.2, max: 1.5, exponent: 1.0 });
    let everything = Sampling {
        logit_bias: vec![(3, -1.0)],
        brief_bias: vec![BriefBias { id: 4, bias: 1.0, tokens: 1000 }],
        repetition_penalty: 1.1,
        presence_penalty: 0.1,
        frequency_penalty: 0.1,
        penalty_window: Some(64),
        penalty_half_life: Some(20),
        dry_multiplier: 0.8,
        dry_breakers: [9, 11].into(),
        top_n_sigma: 2.5,
        typical_p: 0.95,
        xtc_probability: 0.5,
        adaptive: 0.5,
        edt_theta: 0.1,
        ..s()
    };
    let cases = [
        s(),
        Sampling { top_k: 40, top_p: 0.95, min_p: 0.05, ..s() },
        Sampling { top_p: 0.9, min_p: 0.02, dynamic_temperature: range, ..s() },
        Sampling::quality(),
        everything,
        Sampling { mirostat: 1, ..s() },
        Sampling { mirostat: 2, ..s() },
        Sampling::greedy(),
    ];
    let first: Vec<f32> = (0..VOCAB).map(|i| (i * 7919 % 5003) as f32 / 700.0).collect();
    // An answer of few tokens, so that the tables of counts have met them all.
    let prompt: Vec<u32> = (0..VOCAB as u32).collect();
    for s in cases {
        let mut sampler = LogitSampler::new(s.clone(), &prompt, VOCAB).unwrap();
        let mut row = first.clone();
        let mut step = || {
            row.copy_from_slice(&first);
            sampler.next(&mut row).unwrap().id
        };
        // Lists of the text grow now and then, by half; between that, nothing.
        for _ in 0..700 {
            step();
        }
        let calm = (0..20).filter(|_| measure(|| _ = step()).count_total == 0).count();
        assert!(calm >= 18, "{calm} of 20 steps allocate nothing with {s:?}");
    }
}
