//! Finding scales for the encoders: the searches of ggml's `make_qkx2_quants` and `make_qx_quants`.

/// To the nearest integer, ties to even, as ggml's `nearest_int`: adding 1.5 * 2^23 leaves no bits for a fraction. Many times
/// faster than `round_ties_even` where the processor is only known to have SSE2.
#[inline]
pub(super) fn nearest(x: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0;
    (x.clamp(-4_194_303.0, 4_194_303.0) + SHIFT - SHIFT) as i32
}

/// `x` as a half: the value it has then, and its bytes.
pub(super) fn round_f16(x: f32) -> (f32, [u8; 2]) {
    let h = half::f16::from_f32(x);
    (h.to_f32(), h.to_le_bytes())
}

/// The value farthest from zero, the first of equals.
pub(super) fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |m, v| if v.abs() > m.abs() { *v } else { m })
}

/// `1 / d`, or zero for zero.
pub(super) fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The least and the greatest value.
pub(super) fn range(x: &[f32]) -> (f32, f32) {
    x.iter().fold((f32::MAX, f32::MIN), |(low, high), v| (low.min(*v), high.max(*v)))
}

/// How a fit is judged.
pub(super) enum Measure {
    Absolute,
    Square,
}

/// How [`affine`] looks for a scale.
pub(super) struct Search {
    /// Largest quantised number.
    pub(super) levels: u8,
    /// The first scale tried is `(levels + start) / range`; each further one adds 0.1.
    pub(super) start: f32,
    pub(super) steps: u8,
    pub(super) measure: Measure,
}

/// The `(scale, minimum)` with the least weighted error of `x[i] ~ scale * q[i] - minimum`, where `minimum >= 0` and
/// `0 <= q <= levels`. `weight` gets the root mean square of `x` and the value.
pub(super) fn affine(x: &[f32], weight: impl Fn(f32, f32) -> f32, search: &Search) -> (f32, f32) {
    let rms = (x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32).sqrt();
    let mut weights = [0.0; 32]; // groups have 16 or 32 values
    let weights = &mut weights[..x.len()];
    weights.iter_mut().zip(x).for_each(|(w, v)| *w = weight(rms, *v));
    let pairs = || x.iter().copied().zip(weights.iter().copied());
    let low = x.iter().fold(0.0f32, |m, v| m.min(*v));
    let high = x.iter().fold(f32::MIN, |m, v| m.max(*v));
    if high <= low {
        return (0.0, -low);
    }
    let levels = f32::from(search.levels);
    let quant = |v: f32, inverse: f32| nearest(inverse * (v - low)).clamp(0, search.levels.into()) as f32;
    let error = |scale: f32, min: f32, inverse: f32| -> f32 {
        let errors = pairs().map(|(v, w)| {
            let diff = scale * quant(v, inverse) + min - v;
            w * if let Measure::Absolute = search.measure { diff.abs() } else { diff * diff }
        });
        errors.sum()
    };
    let sum_w: f32 = weights.iter().sum();
    let sum_x: f32 = pairs().map(|(v, w)| w * v).sum();
    let inverse = levels / (high - low);
    let (mut scale, mut min) = (1.0 / inverse, low);
    let mut best = error(scale, min, inverse);
    for step in 0..=search.steps {
        let inverse = (search.start + 0.1 * f32::from(step) + levels) / (high - low);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for (v, w) in pairs() {
            let l = quant(v, inverse);
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * v;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_l2;
            }
            let this = error(this_scale, this_min, inverse);
            if this < best {
                (best, scale, min) = (this, this_scale, this_min);
            }
        }
    }
    (scale, -min)
}

/// The scale with the least squared error, weighted by `x * x`, of `x[i] ~ scale * q[i]`, where `-levels <= q < levels`.
pub(super) fn symmetric(x: &[f32], levels: i16) -> f32 {
    let extreme = extreme(x);
    if extreme.abs() < 1e-15 {
        return 0.0;
    }
    let quant =
        |v: f32, inverse: f32| nearest(inverse * v).clamp(-i32::from(levels), i32::from(levels) - 1) as f32;
    best_scale(x, (-9..=9).map(|step| -(f32::from(levels) + 0.1 * step as f32) / extreme), quant)
}

/// Of the inverse scales to try, the least-squares scale of the one that fits best; values weigh by their square. Where
/// those sums leave the range of `f32`, the first one as it is.
pub(super) fn best_scale(
    x: &[f32],
    inverses: impl Iterator<Item = f32>,
    quant: impl Fn(f32, f32) -> f32,
) -> f32 {
    let (mut scale, mut best) = (None, 0.0);
    for inverse in inverses {
        let (mut sum_xl, mut sum_l2) = (0.0f32, 0.0f32);
        for v in x {
            let (l, w) = (quant(*v, inverse), v * v);
            sum_xl += w * v * l;
            sum_l2 += w * l * l;
        }
        if sum_l2 > 0.0 && sum_xl * sum_xl > best * sum_l2 {
            scale = Some(sum_xl / sum_l2);
            best = sum_xl / sum_l2 * sum_xl;
        } else if scale.is_none() {
            scale = Some(1.0 / inverse);
        }
    }
    scale.unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn nearest_rounds_ties_to_even_and_saturates() {
        for i in -100_000..100_000 {
            let x = i as f32 / 8.0;
            assert_eq!(nearest(x), x.round_ties_even() as i32, "{x}");
        }
        assert_eq!(
            (nearest(1e30), nearest(f32::NEG_INFINITY), nearest(f32::NAN)),
            (4_194_303, -4_194_303, 0)
        );
    }
}
