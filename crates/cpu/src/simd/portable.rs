//! 16 lanes as an array, for any CPU; the compiler makes of it what it can.

use std::ops::{Add, Div, Mul, Neg, Sub};

use super::{F32x16, LANES, Simd};

/// Proof of nothing: any CPU will do.
#[derive(Clone, Copy, Debug)]
pub struct Portable;

/// The lanes.
#[derive(Clone, Copy, Debug)]
pub struct F([f32; LANES]);

impl Simd for Portable {
    type F = F;
    type I = [i32; LANES];
    const VECTORS: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        F([x; LANES])
    }

    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> F {
        // SAFETY: the caller gives 16 readable values.
        F(unsafe { p.cast::<[f32; LANES]>().read_unaligned() })
    }

    #[inline(always)]
    unsafe fn load_f16_ptr(self, p: *const u16) -> F {
        // SAFETY: the caller gives 16 readable values.
        F(unsafe { p.cast::<[u16; LANES]>().read_unaligned() }.map(f16_to_f32))
    }

    #[inline(always)]
    unsafe fn load_bf16_ptr(self, p: *const u16) -> F {
        // SAFETY: the caller gives 16 readable values.
        F(unsafe { p.cast::<[u16; LANES]>().read_unaligned() }.map(|b| f32::from_bits(u32::from(b) << 16)))
    }

    #[inline(always)]
    fn words(self, x: i32) -> Self::I {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load_words(self, p: *const u8) -> Self::I {
        // SAFETY: the caller gives 64 readable bytes.
        unsafe { p.cast::<[i32; LANES]>().read_unaligned() }.map(i32::from_le)
    }

    #[inline(always)]
    fn and(self, a: Self::I, mask: i32) -> Self::I {
        a.map(|x| x & mask)
    }

    #[inline(always)]
    fn down<const N: i32>(self, a: Self::I) -> Self::I {
        let mask = 0xffff_u32 >> N;
        a.map(|x| ((x as u32 >> N) & (mask | mask << 16)) as i32)
    }

    #[inline(always)]
    fn dot_halves(self, acc: Self::I, a: Self::I, b: Self::I) -> Self::I {
        let half = |x: i32| (i32::from(x as i16), x >> 16);
        std::array::from_fn(|i| {
            let ((a0, a1), (b0, b1)) = (half(a[i]), half(b[i]));
            acc[i].wrapping_add(a0 * b0).wrapping_add(a1 * b1)
        })
    }

    #[inline(always)]
    fn add_words(self, a: Self::I, b: Self::I) -> Self::I {
        std::array::from_fn(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    fn pair_up(self, a: Self::I) -> Self::I {
        std::array::from_fn(|i| (a[i] & 0xffff) | a[i ^ 2] << 16)
    }

    #[inline(always)]
    fn round_to_words(self, x: F) -> Self::I {
        x.0.map(|x| x.round_ties_even() as i32)
    }

    #[inline(always)]
    fn to_floats(self, a: Self::I) -> F {
        F(a.map(|x| x as f32))
    }

    #[inline(always)]
    fn to_words(self, a: Self::I) -> [i32; LANES] {
        a
    }
}

/// The value of a half-precision number's bits.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let bits = u32::from(bits);
    let (sign, rest) = ((bits & 0x8000) << 16, bits & 0x7fff);
    // The exponent is moved by multiplying with a power of two, which makes subnormals right as well.
    let small = f32::from_bits(rest << 13) * f32::from_bits((254 - 15) << 23);
    let magnitude = if rest >= 0x7c00 { rest << 13 | 0x7f80_0000 } else { small.to_bits() };
    f32::from_bits(sign | magnitude)
}

/// The bits of the nearest half-precision number, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn f32_to_f16(x: f32) -> u16 {
    let bits = x.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let a = bits & 0x7fff_ffff;
    let magnitude = if a > 0x7f80_0000 {
        0x7e00 | (a >> 13 & 0x3ff) as u16
    } else if a >= 0x4780_0000 {
        0x7c00
    } else if a < 0x3880_0000 {
        // Adding 0.5 leaves the subnormal's bits, rounded, at the end of the mantissa.
        (f32::from_bits(a) + 0.5).to_bits() as u16
    } else {
        // The carry of the rounding may go into the exponent, up to infinity, as it should.
        ((a - (112 << 23) + 0xfff + (a >> 13 & 1)) >> 13) as u16
    };
    sign | magnitude
}

#[inline(always)]
fn zip(a: F, b: F, f: impl Fn(f32, f32) -> f32) -> F {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = f(a.0[i], b.0[i]);
    }
    F(out)
}

#[inline(always)]
fn reduce(x: F, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut v = x.0;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            v[i] = f(v[i], v[i + half]);
        }
    }
    v[0]
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) << 23) as u32)
}

impl Add for F {
    type Output = F;
    #[inline(always)]
    fn add(self, b: F) -> F {
        zip(self, b, |a, b| a + b)
    }
}

impl Sub for F {
    type Output = F;
    #[inline(always)]
    fn sub(self, b: F) -> F {
        zip(self, b, |a, b| a - b)
    }
}

impl Mul for F {
    type Output = F;
    #[inline(always)]
    fn mul(self, b: F) -> F {
        zip(self, b, |a, b| a * b)
    }
}

impl Div for F {
    type Output = F;
    #[inline(always)]
    fn div(self, b: F) -> F {
        zip(self, b, |a, b| a / b)
    }
}

impl Neg for F {
    type Output = F;
    #[inline(always)]
    fn neg(self) -> F {
        F(self.0.map(|a| -a))
    }
}

impl F32x16 for F {
    #[inline(always)]
    fn same(self, x: f32) -> F {
        F([x; LANES])
    }

    #[inline(always)]
    fn fma(self, b: F, c: F) -> F {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            // Without the instruction, `mul_add` is a slow library call; two roundings are good enough then.
            out[i] = if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
                self.0[i].mul_add(b.0[i], c.0[i])
            } else {
                self.0[i] * b.0[i] + c.0[i]
            };
        }
        F(out)
    }

    #[inline(always)]
    fn max(self, b: F) -> F {
        zip(self, b, larger)
    }

    #[inline(always)]
    fn min(self, b: F) -> F {
        zip(self, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn abs(self) -> F {
        F(self.0.map(f32::abs))
    }

    #[inline(always)]
    fn sqrt(self) -> F {
        F(self.0.map(f32::sqrt))
    }

    #[inline(always)]
    fn round(self) -> F {
        // Adding 1.5 * 2^23 leaves no bits for a fraction.
        F(self.0.map(|a| (a + 12_582_912.0) - 12_582_912.0))
    }

    #[inline(always)]
    fn scale_by_power(self, n: F) -> F {
        zip(self, n, |a, n| {
            let n = n as i32;
            let half = n >> 1;
            a * power_of_two(half) * power_of_two(n - half)
        })
    }

    #[inline(always)]
    fn select_lt(self, b: F, yes: F, no: F) -> F {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = if self.0[i] < b.0[i] { yes.0[i] } else { no.0[i] };
        }
        F(out)
    }

    #[inline(always)]
    fn copysign(self, sign: F) -> F {
        zip(self, sign, f32::copysign)
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        reduce(self, |a, b| a + b)
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        reduce(self, larger)
    }

    #[inline(always)]
    unsafe fn store_ptr(self, p: *mut f32) {
        // SAFETY: the caller gives room for 16 values.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }

    #[inline(always)]
    unsafe fn store_f16_ptr(self, p: *mut u16) {
        // SAFETY: the caller gives room for 16 values.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(self.0.map(f32_to_f16)) }
    }
}
