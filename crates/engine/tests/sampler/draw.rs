//! That tokens come as often as the chain's distribution says, by chi-square, and that seeds repeat them.

use crate::model::{Given, chain};
use quarrel_engine::{LogitSampler, Sampling, Stage};

const N: u32 = 40_000;

/// Pearson's statistic of N draws, in standard deviations of its distribution; tokens that are expected less than 5 times
/// are counted as one.
fn deviation(counts: &[u32], p: &[f64]) -> f64 {
    let (mut chi, mut degrees) = (0.0, -1.0);
    let (mut rare, mut rare_seen) = (0.0, 0.0);
    for (c, p) in counts.iter().zip(p) {
        assert!(*p > 0.0 || *c == 0, "a token that cannot come came {c} times");
        let want = p * f64::from(N);
        if want < 5.0 {
            (rare, rare_seen) = (rare + want, rare_seen + f64::from(*c));
            continue;
        }
        chi += (f64::from(*c) - want).powi(2) / want;
        degrees += 1.0;
    }
    if rare > 1.0 {
        chi += (rare_seen - rare).powi(2) / rare;
        degrees += 1.0;
    }
    assert!(degrees >= 1.0);
    (chi - degrees) / (2.0f64 * degrees).sqrt()
}

#[test]
fn what_is_drawn_has_the_distribution_of_the_chain() {
    let row: Vec<f32> = (0..400).map(|i| ((i * 131 % 400) as f32).sqrt() / 2.0).collect();
    let s = || Sampling { seed: Some(5), ..Sampling::default() };
    let cases = [
        s(),
        Sampling { temperature: 0.7, top_k: 60, top_p: 0.8, min_p: 0.1, ..s() },
        Sampling { typical_p: 0.5, temperature: 0.5, ..s() },
        Sampling { top_n_sigma: 1.0, temperature: 1.5, ..s() },
        Sampling { edt_theta: 0.5, top_k: 30, ..s() },
        Sampling { xtc_probability: 0.3, xtc_threshold: 0.02, temperature: 0.3, top_k: 50, ..s() },
        Sampling {
            xtc_probability: 0.8,
            xtc_threshold: 0.02,
            temperature: 2.0,
            top_k: 20,
            samplers: Some(Stage::list(["top_k", "xtc", "temperature"]).unwrap()),
            ..s()
        },
    ];
    for s in cases {
        // XTC mixes the two distributions.
        let given = |xtc| chain(&s, &[], &[], &row, Given { xtc, mu: 0.0 }).p;
        let q = f64::from(s.xtc_probability);
        let p: Vec<f64> =
            given(true).iter().zip(given(false)).map(|(on, off)| q * on + (1.0 - q) * off).collect();
        let mut sampler = LogitSampler::new(s.clone(), &[], row.len()).unwrap();
        let mut counts = vec![0u32; row.len()];
        for _ in 0..N {
            counts[sampler.next(&mut row.clone()).unwrap().id as usize] += 1;
        }
        let d = deviation(&counts, &p);
        assert!(d.abs() < 3.5, "{d} standard deviations of {s:?}");
    }
}

/// Mirostat's aim: the mean surprise of what it draws, from a distribution that allows it.
#[test]
fn mirostat_holds_the_surprise() {
    let row: Vec<f32> = (0..2000).map(|i| -1.1 * (i as f32 + 1.0).ln()).collect();
    for (version, tau) in [(1, 3.0), (1, 5.0), (2, 3.0), (2, 5.0)] {
        let s = Sampling { mirostat: version, mirostat_tau: tau, seed: Some(1), ..Sampling::default() };
        let mut sampler = LogitSampler::new(s, &[], row.len()).unwrap();
        const N: usize = 4000;
        let bits = |_| f64::from(-sampler.next(&mut row.clone()).unwrap().logprob) / std::f64::consts::LN_2;
        let mean = (0..N).map(bits).sum::<f64>() / N as f64;
        assert!((mean - f64::from(tau)).abs() < 0.1, "version {version}: {mean} bits, not {tau}");
    }
}

#[test]
fn a_seed_gives_the_same_tokens() {
    let row: Vec<f32> = (0..200).map(|i| (i * 131 % 97) as f32 / 20.0).collect();
    let run = |seed| {
        let s = Sampling { xtc_probability: 0.5, typical_p: 0.9, seed: Some(seed), ..Sampling::default() };
        let mut sampler = LogitSampler::new(s, &[1, 2], row.len()).unwrap();
        (0..50).map(|_| sampler.next(&mut row.clone()).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}
