//! Nonlinearities as the reference computes them, in f64.

use crate::op::Activation;

/// A gate's nonlinearity in f64; `quarrel` never clamps, so NaN stays NaN.
pub fn activate(act: Activation, x: f64) -> f64 {
    match act {
        // The stable form: exp never overflows.
        Activation::Silu => {
            if x >= 0.0 {
                x / (1.0 + (-x).exp())
            } else {
                let e = x.exp();
                x * e / (1.0 + e)
            }
        }
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        Activation::GeluErf => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::Relu => {
            if x < 0.0 {
                0.0
            } else {
                x
            }
        }
    }
}

/// The error function by its Maclaurin series near zero and a continued fraction beyond, to about 1e-15.
pub fn erf(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    let a = x.abs();
    let value = if a < 2.5 {
        let (mut term, mut sum) = (a, a);
        let mut n = 0.0;
        while term.abs() > 1e-17 * sum.abs().max(1e-300) {
            n += 1.0;
            term *= -a * a / n;
            sum += term / (2.0 * n + 1.0);
            if n > 200.0 {
                break;
            }
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    } else if a < 6.0 {
        let mut f = 0.0;
        for k in (1..=60).rev() {
            f = f64::from(k) / 2.0 / (a + f);
        }
        1.0 - (-a * a).exp() / (std::f64::consts::PI.sqrt() * (a + f))
    } else {
        1.0
    };
    value.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_matches_published_values() {
        // Abramowitz & Stegun, table 7.1.
        for (x, want) in [
            (0.0, 0.0),
            (0.1, 0.112_462_916_018_284_9),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (3.0, 0.999_977_909_503_001_4),
        ] {
            assert!((erf(x) - want).abs() < 2e-15, "erf({x}) = {}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        assert!(erf(f64::NAN).is_nan());
    }

    #[test]
    fn gates_stay_finite_and_exact_at_extremes() {
        for act in [Activation::Silu, Activation::GeluTanh, Activation::GeluErf] {
            for x in [100.0, 1000.0] {
                assert_eq!(activate(act, x), x, "{act:?}({x})");
                assert!(activate(act, -x).abs() < 1e-40, "{act:?}(-{x})");
            }
            assert!(activate(act, f64::NAN).is_nan());
        }
    }
}
