//! Elementary functions on 16 lanes, written once on the arithmetic of [`F32x16`].
//!
//! `exp`, `tanh` and the error function follow Cephes (Moshier), expf.c, tanhf.c and ndtrf.c, whose coefficients these are.
//! Special values come through by construction: `min` and `max` return their second argument for NaN.

use super::F32x16;

#[inline(always)]
fn polynomial<F: F32x16>(x: F, coefficients: &[f32]) -> F {
    let mut y = x.same(coefficients[0]);
    for c in &coefficients[1..] {
        y = y.fma(x, x.same(*c));
    }
    y
}

#[inline(always)]
#[allow(clippy::excessive_precision, reason = "the digits of the source")]
pub(super) fn exp<F: F32x16>(x: F) -> F {
    // Beyond these the result is infinite or zero, which the scaling gives. The constant comes first: NaN stays.
    let x = x.same(89.0).min(x);
    let x = x.same(-104.0).max(x);
    let n = (x * x.same(std::f32::consts::LOG2_E)).round();
    // ln 2 in two parts: the first has few bits, so n * part is exact.
    let r = n.fma(x.same(-0.693359375), x);
    let r = n.fma(x.same(2.12194440e-4), r);
    let p = polynomial(
        r,
        &[
            1.9875691500e-4,
            1.3981999507e-3,
            8.3334519073e-3,
            4.1665795894e-2,
            1.6666665459e-1,
            5.0000001201e-1,
        ],
    );
    let y = p.fma(r * r, r) + x.same(1.0);
    y.scale_by_power(n)
}

#[inline(always)]
#[allow(clippy::excessive_precision, reason = "the digits of the source")]
pub(super) fn tanh<F: F32x16>(x: F) -> F {
    let a = x.abs();
    let one = x.same(1.0);
    let large = one - x.same(2.0) / ((a + a).exp() + one);
    let z = x * x;
    let p = polynomial(
        z,
        &[-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1],
    );
    let small = (p * z).fma(x, x);
    a.select_lt(x.same(0.625), small, large.copysign(x))
}

#[inline(always)]
pub(super) fn sigmoid<F: F32x16>(x: F) -> F {
    // e^-x may be infinite, then 1 / infinity is 0, the right limit.
    let one = x.same(1.0);
    one / (one + (-x).exp())
}

#[inline(always)]
pub(super) fn silu<F: F32x16>(x: F) -> F {
    // -infinity / infinity would be NaN, and every x below this bound gives -0 or a subnormal anyway.
    let bounded = x.same(-1.0e4).max(x);
    bounded * sigmoid(x)
}

#[inline(always)]
pub(super) fn gelu_tanh<F: F32x16>(x: F) -> F {
    // sqrt(8 / pi); the cube overflows to an infinity of the right sign.
    let u = x
        * x.same(std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::SQRT_2)
        * (x * x).fma(x.same(0.044_715), x.same(1.0));
    let bounded = x.same(-1.0e4).max(x);
    bounded * sigmoid(u)
}

#[inline(always)]
#[allow(clippy::excessive_precision, reason = "the digits of the source")]
pub(super) fn gelu_erf<F: F32x16>(x: F) -> F {
    let one = x.same(1.0);
    let half = x.same(0.5);
    let a = x * x.same(std::f32::consts::FRAC_1_SQRT_2);
    let b = a.abs();
    let z = a * a;
    // |a| < 1: erf(a) = a T(a^2).
    let erf = a * polynomial(
        z,
        &[
            7.853861353153693e-5,
            -8.010193625184903e-4,
            5.188327685732524e-3,
            -2.685381193529856e-2,
            1.128358514861418e-1,
            -3.761262582423300e-1,
            1.128379165726710e0,
        ],
    );
    // Beyond: erfc(b) = exp(-b^2) / b * P(1 / b^2), in two ranges.
    let q = one / b;
    let y = q * q;
    let p = polynomial(
        y,
        &[
            2.326819970068386e-2,
            -1.387039388740657e-1,
            3.687424674597105e-1,
            -5.824733027278666e-1,
            6.210004621745983e-1,
            -4.944515323274145e-1,
            3.404879937665872e-1,
            -2.741127028184656e-1,
            5.638259427386472e-1,
        ],
    );
    let r = polynomial(
        y,
        &[
            -1.047766399936249e1,
            1.297719955372516e1,
            -7.495518717768503,
            2.921019019210786,
            -1.015265279202700,
            4.218463358204948e-1,
            -2.820767439740514e-1,
            5.641895067754075e-1,
        ],
    );
    let erfc = (-z).exp() * q * b.select_lt(x.same(2.0), p, r);
    let zero = x.same(0.0);
    let far = a.select_lt(zero, half * erfc, one - half * erfc);
    let phi = b.select_lt(one, half.fma(erf, half), far);
    x.same(-1.0e4).max(x) * phi
}
