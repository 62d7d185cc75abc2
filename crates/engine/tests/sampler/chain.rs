//! Properties of the chain: it equals its definitions in any order and over many tokens, what is off is off, and rows that are
//! no distribution are errors that say where.

use crate::model::{Given, chain};
use crate::{distribution, explained};
use proptest::prelude::*;
use quarrel_engine::{BriefBias, DynamicTemperature, Error, LogitSampler, Sampling, Stage};

fn or<T: std::fmt::Debug + Clone + 'static>(
    off: T,
    on: impl Strategy<Value = T> + 'static,
) -> impl Strategy<Value = T> {
    prop_oneof![Just(off), on]
}

fn edits() -> impl Strategy<Value = Sampling> {
    (
        (or(1.0, 0.7f32..1.6), or(0.0, -1.0f32..1.0), or(0.0, -0.5f32..1.0)),
        (prop::option::of(1u32..30), prop::option::of(1u32..30), prop::option::of(1u32..30)),
        (or(0.0, 0.1f32..2.0), 1.0f32..2.0, 1u32..4, prop::collection::btree_set(0u32..8, 0..2)),
        prop::collection::vec((0u32..8, or(f32::NEG_INFINITY, -3.0f32..3.0)), 0..3),
        prop::collection::vec((0u32..8, -3.0f32..3.0, 1u32..9), 0..2),
    )
        .prop_map(
            |((repetition_penalty, presence_penalty, frequency_penalty), w, dry, logit_bias, brief)| {
                Sampling {
                    repetition_penalty,
                    presence_penalty,
                    frequency_penalty,
                    penalty_window: w.0,
                    penalty_half_life: w.1,
                    dry_window: w.2,
                    dry_multiplier: dry.0,
                    dry_base: dry.1,
                    dry_allowed_length: dry.2,
                    dry_breakers: dry.3.into_iter().collect(),
                    logit_bias,
                    brief_bias: brief
                        .into_iter()
                        .map(|(id, bias, tokens)| BriefBias { id, bias, tokens })
                        .collect(),
                    ..Sampling::default()
                }
            },
        )
}

/// Settings of everything; the order is the published one or any other that is allowed.
fn settings() -> impl Strategy<Value = Sampling> {
    let dynamic = prop::option::of((0.2f32..1.0, 0.0f32..1.0, 0.5f32..2.0));
    let late = Stage::ORDER[3..10].to_vec();
    (
        edits(),
        (or(1.0, 0.2f32..2.0), dynamic, or(0.0, 0.01f32..1.0)),
        (or(0, 1u32..60), or(1.0, 0.05f32..1.0), or(0.0, 0.0f32..0.5)),
        (or(1.0, 0.05f32..1.0), or(0.0, 0.3f32..3.0), or(0.0, 0.0f32..1.0), 0.01f32..0.4),
        (0u8..6, 0.5f32..5.0, 0.05f32..0.5),
        prop::option::of((Just(Stage::ORDER[..3].to_vec()).prop_shuffle(), Just(late).prop_shuffle())),
    )
        .prop_map(|(edits, t, top, more, mirostat, order)| {
            let dynamic_temperature =
                t.1.map(|(min, more, exponent)| DynamicTemperature { min, max: min + more, exponent });
            let mut s = Sampling {
                temperature: t.0,
                edt_theta: if dynamic_temperature.is_some() { 0.0 } else { t.2 },
                dynamic_temperature,
                top_k: top.0,
                top_p: top.1,
                min_p: top.2,
                typical_p: more.0,
                top_n_sigma: more.1,
                xtc_probability: more.2,
                xtc_threshold: more.3,
                ..edits
            };
            // In a third of the cases.
            if (1..=2).contains(&mirostat.0) {
                s.make_room(None, true);
                (s.mirostat, s.mirostat_tau, s.mirostat_eta) = mirostat;
            }
            s.samplers = order.map(|(a, b)| [a, b, vec![Stage::Mirostat]].concat());
            s
        })
}

fn row(n: impl Into<prop::collection::SizeRange>) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-9f32..9.0, n)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Over an answer of several tokens, with all that learns from them.
    #[test]
    fn equals_the_definitions(
        s in settings(), prompt in prop::collection::vec(0u32..8, 0..30), rows in prop::collection::vec(row(8..=8), 1..12),
        wide in row(60..200), seed: u64,
    ) {
        let s = Sampling { seed: Some(seed), ..s };
        s.check().unwrap();
        let rows = rows.into_iter().map(|r| r.into_iter().chain(wide[8..].iter().copied()).collect::<Vec<_>>());
        let mut sampler = LogitSampler::new(s.clone(), &prompt, wide.len()).unwrap().explained(wide.len() as u32);
        let (mut answer, mut mu) = (Vec::new(), 2.0 * f64::from(s.mirostat_tau));
        for row in rows {
            let drawn = sampler.next(&mut row.clone()).unwrap();
            let trace = drawn.trace.unwrap();
            let xtc = trace.stages.iter().any(|t| t.name == "xtc" && t.value == Some(1.0));
            let want = chain(&s, &prompt, &answer, &row, Given { xtc, mu });
            prop_assert_eq!((trace.draw.id, trace.step), (drawn.id, prompt.len() + answer.len()));
            // Where a stage decides by less than the precision of f32, either is right; the next row shows nothing then.
            if want.margin < 1e-4 {
                return Ok(());
            }
            let got = distribution(&trace, row.len());
            for (id, (g, w)) in got.iter().zip(&want.p).enumerate() {
                prop_assert!((g - w).abs() < 1e-4, "{id}: {g} {w} of {s:?}\n{trace:?}");
                prop_assert!((*g > 0.0) == (*w > 0.0) || w.max(*g) < 1e-30, "{id}: {g} {w} of {s:?}\n{trace:?}");
            }
            prop_assert!((got.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            prop_assert!((trace.draw.p - got[drawn.id as usize]).abs() < 1e-12);
            let masses: Vec<f64> = trace.stages.iter().map(|s| s.mass).collect();
            prop_assert!(masses.iter().all(|m| *m > 0.0 && *m < 1.0 + 1e-5), "{masses:?}");
            if s.mirostat > 0 {
                let bound = trace.stages.last().unwrap().value.unwrap();
                prop_assert!((bound - mu).abs() < 1e-3 * mu.abs().max(1.0), "{bound} {mu}");
                let surprise = -want.before_mirostat[drawn.id as usize].log2();
                mu -= f64::from(s.mirostat_eta) * (surprise - f64::from(s.mirostat_tau));
            }
            answer.push(drawn.id);
        }
    }

    #[test]
    fn more_permissive_settings_keep_more(s in settings(), row in row(1..200)) {
        let s = Sampling { logit_bias: Vec::new(), brief_bias: Vec::new(), mirostat: 0, xtc_probability: 0.0, ..s };
        let p = |s: &Sampling| distribution(&explained(s, &[], &row), row.len());
        let wider = Sampling { top_k: 0, top_p: 1.0, min_p: 0.0, typical_p: 1.0, top_n_sigma: 0.0, ..s.clone() };
        // A temperature that is not of the truncated set's own entropy.
        let fixed = |s: Sampling| Sampling { dynamic_temperature: None, edt_theta: 0.0, ..s };
        for (n, w) in p(&fixed(s)).iter().zip(p(&fixed(wider))) {
            prop_assert!(*n == 0.0 || w > 0.0 && *n >= w - 1e-6);
        }
    }

    /// The order of ids means nothing but where logits are equal.
    #[test]
    fn permuted_rows_have_permuted_distributions(s in settings(), row in row(2..100), by in 1usize..99) {
        let s = Sampling { logit_bias: Vec::new(), brief_bias: Vec::new(), ..s };
        let n = row.len();
        let turned: Vec<f32> = (0..n).map(|i| row[(i + by) % n]).collect();
        let (a, b) = (explained(&s, &[], &row), explained(&s, &[], &turned));
        let close = chain(&s, &[], &[], &row, Given { xtc: s.xtc_probability > 0.0, mu: 2.0 * f64::from(s.mirostat_tau) });
        prop_assume!(close.margin > 1e-4);
        prop_assert_eq!(a.stages.iter().map(|s| s.tokens).collect::<Vec<_>>(), b.stages.iter().map(|s| s.tokens).collect::<Vec<_>>());
        let (a, b) = (distribution(&a, n), distribution(&b, n));
        for i in 0..n {
            prop_assert!((a[(i + by) % n] - b[i]).abs() < 1e-5);
        }
    }

    /// Every setting at the value that says off, with its companions at any: the tokens and bytes of plain sampling.
    #[test]
    fn what_is_off_changes_nothing(s in settings(), seed: u64, prompt in prop::collection::vec(0u32..8, 0..20), row in row(8..200)) {
        let plain = Sampling { temperature: s.temperature, top_p: s.top_p, seed: Some(seed), ..Sampling::default() };
        prop_assume!(plain.samplers.is_none());
        let off = Sampling {
            xtc_threshold: s.xtc_threshold,
            dry_base: s.dry_base,
            dry_allowed_length: s.dry_allowed_length,
            dry_breakers: s.dry_breakers.clone(),
            dry_window: s.dry_window,
            penalty_window: s.penalty_window,
            penalty_half_life: s.penalty_half_life,
            mirostat_tau: s.mirostat_tau,
            mirostat_eta: s.mirostat_eta,
            logit_bias: vec![(3, 0.0)],
            samplers: Some(Stage::ORDER.to_vec()),
            ..plain.clone()
        };
        let run = |s: &Sampling, explain: bool| {
            let mut sampler = LogitSampler::new(s.clone(), &prompt, row.len()).unwrap();
            if explain {
                sampler = sampler.explained(3);
            }
            (0..12).map(|_| sampler.next(&mut row.clone()).map(|d| (d.id, d.logprob.to_bits())).unwrap()).collect::<Vec<_>>()
        };
        prop_assert_eq!(run(&off, false), run(&plain, false));
        // A trace shows what happens and changes nothing of it.
        prop_assert_eq!(run(&s, true), run(&s, false));
        prop_assert_eq!(run(&plain, true), run(&plain, false));
    }
}

#[test]
fn theta_of_zero_and_equal_bounds_are_the_static_temperature() {
    let row: Vec<f32> = (0..90).map(|i| (i * 37 % 91) as f32 / 9.0).collect();
    let p = |s: Sampling| distribution(&explained(&s, &[], &row), row.len());
    let t = Sampling { temperature: 0.6, ..Sampling::default() };
    let dynamic_temperature = Some(DynamicTemperature { min: 0.6, max: 0.6, exponent: 1.3 });
    assert_eq!(p(Sampling { dynamic_temperature, ..t.clone() }), p(t.clone()));
    assert_eq!(p(Sampling { edt_theta: 0.0, ..t.clone() }), p(t));
}

#[test]
fn rows_that_are_no_distribution_name_step_and_stage() {
    let never = |ids: std::ops::Range<u32>| ids.map(|id| (id, f32::NEG_INFINITY)).collect::<Vec<_>>();
    let tiny = Sampling { repetition_penalty: f32::MIN_POSITIVE, ..Sampling::default() };
    let cases = [
        (
            Sampling::default(),
            vec![1.0, f32::NAN, f32::NAN],
            "step 4 are no distribution after the model: 2 of 3",
        ),
        (Sampling::default(), vec![f32::NEG_INFINITY; 3], "after the model"),
        (Sampling::greedy(), vec![0.0, f32::INFINITY, 0.0], "after the model"),
        (Sampling { logit_bias: never(0..3), ..Sampling::default() }, vec![1.0; 3], "after logit_bias"),
        (tiny, vec![9.0; 3], "after penalties"),
    ];
    for (s, mut row, want) in cases {
        let mut sampler = LogitSampler::new(s, &[0, 1, 1, 0], 3).unwrap();
        let error = sampler.next(&mut row).unwrap_err();
        assert!(matches!(error, Error::Logits { step: 4, vocab: 3, .. }), "{error}");
        assert!(error.to_string().contains(want), "{error}");
    }
    let mut sampler = LogitSampler::new(Sampling::default(), &[], 3).unwrap();
    assert!(sampler.next(&mut [0.0; 4]).unwrap_err().to_string().starts_with("logits is 4"));
    assert!(LogitSampler::new(Sampling::default(), &[3], 3).is_err());
}

#[test]
fn adaptive_sampling_ends_a_loop() {
    // A model that goes on with 0, 1, 2, 3, 4 however hot, unless the penalties grow.
    let next = |last: u32| {
        (0..60).map(|i| if i == (last + 1) % 5 { 8.0 } else { (i % 7) as f32 / 7.0 }).collect::<Vec<_>>()
    };
    let loops = |s: Sampling| {
        let mut sampler = LogitSampler::new(s, &[], 60).unwrap();
        let (mut last, mut outside) = (4, 0);
        for _ in 0..200 {
            last = sampler.next(&mut next(last)).unwrap().id;
            outside += usize::from(last >= 5);
        }
        outside
    };
    let s = Sampling { temperature: 0.5, seed: Some(3), ..Sampling::default() };
    assert_eq!(loops(s.clone()), 0);
    assert!(loops(Sampling { adaptive: 1.0, ..s }) > 40);
}
