//! What goldens hold, and distances between logits, in f64.

use std::path::Path;

/// The numbers of a file of little-endian f32, as goldens have them. It panics where there is no such file.
pub fn floats(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (numbers, rest) = bytes.as_chunks();
    assert!(rest.is_empty(), "{} does not hold whole numbers", path.display());
    numbers.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// `log softmax` of a row.
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().fold(f64::NEG_INFINITY, |m, l| m.max(f64::from(*l)));
    let total: f64 = logits.iter().map(|l| (f64::from(*l) - max).exp()).sum();
    let log_total = max + total.ln();
    logits.iter().map(|l| f64::from(*l) - log_total).collect()
}

/// `KL(p || q)` in nats of two rows of logits.
pub fn kl(p: &[f32], q: &[f32]) -> f64 {
    let (p, q) = (log_softmax(p), log_softmax(q));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}

/// The mean of [`kl`] over rows of `vocab` columns.
pub fn mean_kl(p: &[f32], q: &[f32], vocab: usize) -> f64 {
    assert_eq!(p.len(), q.len());
    let rows = p.len() / vocab;
    p.chunks_exact(vocab).zip(q.chunks_exact(vocab)).map(|(p, q)| kl(p, q)).sum::<f64>() / rows as f64
}

/// Largest absolute difference; NaN anywhere gives infinity, so a comparison with a bound fails.
pub fn max_abs_diff(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |m, (a, b)| {
        let d = (a - b).abs();
        if d.is_nan() { f32::INFINITY } else { m.max(d) }
    })
}

/// Root mean square of the difference over that of `reference`; NaN gives infinity.
pub fn relative_rms(got: &[f32], reference: &[f32]) -> f64 {
    let sum = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>();
    let diff = sum(&mut got.iter().zip(reference).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = sum(&mut reference.iter().map(|b| f64::from(*b)));
    let ratio = (diff / size).sqrt();
    if ratio.is_nan() { f64::INFINITY } else { ratio }
}

/// Index of the largest value, the lowest on ties.
pub fn argmax(row: &[f32]) -> usize {
    row.iter().enumerate().fold(0, |best, (i, v)| if *v > row[best] { i } else { best })
}
