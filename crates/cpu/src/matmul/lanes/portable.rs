//! Plain Rust, 8 columns, for any CPU; written so that the compiler can vectorise it.

use super::{Lanes, XBlock};
use crate::matmul::{SMALLEST, STEPS, finish, split};
use crate::simd::f16_to_f32;

/// Any CPU.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

const L: usize = 8;

/// The bytes of a vector as 16-bit words: word `2 l` has the values 0 and 1 of column `l`, the next one 2 and 3. On words,
/// shifts and products of pairs (`pmaddwd`) are instructions even of old CPUs.
type Words = [u16; 2 * L];

#[inline(always)]
fn dot(p: [i32; L], x: *const i8, even: [i16; 2 * L], odd: [i16; 2 * L]) -> [i32; L] {
    // SAFETY: callers give four readable bytes.
    let x = unsafe { x.cast::<[i8; 4]>().read_unaligned() }.map(i32::from);
    let mut out = p;
    for l in 0..L {
        out[l] += i32::from(even[2 * l]) * x[0] + i32::from(even[2 * l + 1]) * x[2];
    }
    for l in 0..L {
        out[l] += i32::from(odd[2 * l]) * x[1] + i32::from(odd[2 * l + 1]) * x[3];
    }
    out
}

/// `L` things at `p`, each made a float.
#[inline(always)]
fn floats<T: Copy>(p: *const u8, f: impl Fn(T) -> f32) -> [f32; L] {
    // SAFETY: callers give `L` readable things.
    unsafe { p.cast::<[T; L]>().read_unaligned() }.map(f)
}

impl Lanes for Portable {
    const L: usize = L;
    const ROWS: usize = 4;
    const BYTE_XOR: u8 = 0;
    const NARROW: bool = true;
    const CHAIN: bool = false;
    type V = Words;
    type P = [i32; L];
    type W = [i32; L];
    type F = [f32; L];

    #[inline(always)]
    unsafe fn load(p: *const u8) -> Self::V {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<Words>().read_unaligned() }.map(u16::from_le)
    }

    #[inline(always)]
    unsafe fn and(v: Self::V, mask: u8) -> Self::V {
        v.map(|w| w & (u16::from(mask) * 0x0101))
    }

    #[inline(always)]
    unsafe fn put(v: Self::V, p: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<Words>().write_unaligned(v.map(u16::to_le)) }
    }

    #[inline(always)]
    unsafe fn or(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    unsafe fn shift(v: Self::V, by: i32) -> Self::V {
        v.map(|w| if by >= 0 { w >> by } else { w << -by })
    }

    #[inline(always)]
    unsafe fn lookup(v: Self::V, table: &[i8; 16]) -> Self::V {
        v.map(|w| u16::from_le_bytes(w.to_le_bytes().map(|b| table[usize::from(b & 15)] as u8)))
    }

    #[inline(always)]
    unsafe fn start(sums: i32, shift: i32) -> Self::P {
        [if shift >= 0 { sums << shift } else { sums >> -shift }; L]
    }

    #[inline(always)]
    unsafe fn start_second(sums: i32, half: i32, shift: i32) -> Self::P {
        // SAFETY: no instructions are needed.
        unsafe { Self::start(sums - half, shift) }
    }

    #[inline(always)]
    unsafe fn zero() -> Self::P {
        [0; L]
    }

    #[inline(always)]
    unsafe fn dot(p: Self::P, w: Self::V, x: *const i8) -> Self::P {
        dot(p, x, w.map(|w| (w & 0xff) as i16), w.map(|w| (w >> 8) as i16))
    }

    #[inline(always)]
    unsafe fn to_f(high: Self::P, low: Self::P) -> Self::F {
        std::array::from_fn(|i| ((high[i] << 7) + low[i]) as f32)
    }

    #[inline(always)]
    unsafe fn zero_wide() -> Self::W {
        [0; L]
    }

    #[inline(always)]
    unsafe fn start_wide(_: i32) -> Self::W {
        [0; L]
    }

    #[inline(always)]
    unsafe fn dot_wide(p: Self::W, w: Self::V, x: *const i8) -> Self::W {
        dot(p, x, w.map(|w| i16::from(w as u8 as i8)), w.map(|w| w as i16 >> 8))
    }

    #[inline(always)]
    unsafe fn times_128(p: Self::W) -> Self::W {
        p.map(|p| p << 7)
    }

    #[inline(always)]
    unsafe fn add_wide(a: Self::W, b: Self::W) -> Self::W {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn wide_to_f(p: Self::W) -> Self::F {
        p.map(|p| p as f32)
    }

    #[inline(always)]
    unsafe fn fzero() -> Self::F {
        [0.0; L]
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; L]
    }

    #[inline(always)]
    unsafe fn f16(p: *const u8) -> Self::F {
        floats(p, f16_to_f32)
    }

    #[inline(always)]
    unsafe fn bf16(p: *const u8) -> Self::F {
        floats(p, |b: u16| f32::from_bits(u32::from(b) << 16))
    }

    #[inline(always)]
    unsafe fn f32(p: *const u8) -> Self::F {
        floats(p, |x: f32| x)
    }

    #[inline(always)]
    unsafe fn u8(p: *const u8) -> Self::F {
        floats(p, |b: u8| f32::from(b))
    }

    #[inline(always)]
    unsafe fn i8(p: *const u8) -> Self::F {
        floats(p, |b: i8| f32::from(b))
    }

    #[inline(always)]
    fn prefetch(_: *const u8) {}

    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        std::array::from_fn(|i| {
            if cfg!(any(target_feature = "fma", target_arch = "aarch64")) {
                a[i].mul_add(b[i], c[i])
            } else {
                a[i] * b[i] + c[i]
            }
        })
    }

    #[inline(always)]
    unsafe fn store(a: Self::F, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<Self::F>().write_unaligned(a) }
    }

    #[inline(always)]
    unsafe fn quantize(x: *const f32, out: *mut XBlock) {
        // SAFETY: the caller's promise.
        let x = unsafe { x.cast::<[f32; 32]>().read_unaligned() };
        let amax = x.iter().fold(0, |m, x| m.max((x.to_bits() & 0x7fff_ffff) as i32));
        // SAFETY: the caller's promise.
        unsafe {
            if (SMALLEST..f32::INFINITY.to_bits() as i32).contains(&amax) {
                let amax = f32::from_bits(amax as u32);
                let inverse = STEPS / amax;
                // Adding 1.5 * 2^23 rounds to the nearest whole number, ties to even.
                let q = x.map(|x| split(((x * inverse + 12_582_912.0) - 12_582_912.0) as i32));
                let planes = [q.map(|(high, _)| high as i8), q.map(|(_, low)| low as i8)];
                (*out).q = planes;
                let sum = |q: &[i8]| q.iter().map(|q| i32::from(*q)).sum::<i32>();
                let (whole, first) = (planes.map(|q| sum(&q)), planes.map(|q| sum(&q[..16])));
                let (all, half) = (128 * whole[0] + whole[1], 128 * first[0] + first[1]);
                let starts = [whole[0], whole[1], first[0], first[1]].map(|s| -8 * s);
                finish(out, amax / STEPS, [half, all - half], starts);
            } else {
                super::super::quantize_special(amax, out);
            }
        }
    }
}
