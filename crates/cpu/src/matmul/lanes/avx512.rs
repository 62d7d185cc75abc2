//! AVX-512 with VNNI: 16 columns, one instruction for 64 products.

use std::arch::x86_64::*;

use super::{Lanes, XBlock};
use crate::matmul::{SMALLEST, STEPS, finish};

/// AVX-512 F, BW, DQ, VL and VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait says what callers promise")]
impl Lanes for Avx512 {
    const L: usize = 16;
    const ROWS: usize = 8;
    const BYTE_XOR: u8 = 0x80;
    const NARROW: bool = false;
    const CHAIN: bool = true;
    type V = __m512i;
    type P = ();
    type W = __m512i;
    type F = __m512;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn and(v: __m512i, mask: u8) -> __m512i {
        unsafe { _mm512_and_si512(v, _mm512_set1_epi8(mask as i8)) }
    }

    #[inline(always)]
    unsafe fn or(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_or_si512(a, b) }
    }

    #[inline(always)]
    unsafe fn shift(v: __m512i, by: i32) -> __m512i {
        unsafe {
            if by >= 0 {
                _mm512_srl_epi16(v, _mm_cvtsi32_si128(by))
            } else {
                _mm512_sll_epi16(v, _mm_cvtsi32_si128(-by))
            }
        }
    }

    #[inline(always)]
    unsafe fn lookup(v: __m512i, table: &[i8; 16]) -> __m512i {
        unsafe {
            let table = _mm_xor_si128(_mm_loadu_si128(table.as_ptr().cast()), _mm_set1_epi8(-128));
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), v)
        }
    }

    #[inline(always)]
    unsafe fn put(v: __m512i, p: *mut u8) {
        unsafe { _mm512_storeu_si512(p.cast(), v) }
    }

    #[inline(always)]
    unsafe fn zero_wide() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn start_wide(start: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(start) }
    }

    #[inline(always)]
    unsafe fn dot_wide(p: __m512i, w: __m512i, x: *const i8) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(p, w, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())) }
    }

    #[inline(always)]
    unsafe fn times_128(p: __m512i) -> __m512i {
        unsafe { _mm512_slli_epi32::<7>(p) }
    }

    #[inline(always)]
    unsafe fn add_wide(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn wide_to_f(p: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(p) }
    }

    #[inline(always)]
    unsafe fn fzero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn f16(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn bf16(p: *const u8) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn f32(p: *const u8) -> __m512 {
        unsafe { _mm512_loadu_ps(p.cast()) }
    }

    #[inline(always)]
    unsafe fn u8(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn i8(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) }
    }

    #[inline(always)]
    fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn store(a: __m512, p: *mut f32) {
        unsafe { _mm512_storeu_ps(p, a) }
    }

    #[inline(always)]
    unsafe fn quantize(x: *const f32, out: *mut XBlock) {
        unsafe {
            let (a, b) = (_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(16)));
            // As integers, magnitudes are in order, with infinity and NaN above all numbers.
            let abs = |v| _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(i32::MAX));
            let amax = _mm512_reduce_max_epi32(_mm512_max_epi32(abs(a), abs(b)));
            if (SMALLEST..f32::INFINITY.to_bits() as i32).contains(&amax) {
                let amax = f32::from_bits(amax as u32);
                let inverse = _mm512_set1_ps(STEPS / amax);
                let mut sums = [0; 2];
                let a = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse));
                let b = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
                for (sum, q) in sums.iter_mut().zip([a, b]) {
                    *sum = _mm512_reduce_add_epi32(q);
                }
                // As `split`.
                let high = |q| _mm512_srai_epi32::<7>(_mm512_add_epi32(q, _mm512_set1_epi32(64)));
                let low = |q, high| _mm512_sub_epi32(q, _mm512_slli_epi32::<7>(high));
                let (ah, bh) = (high(a), high(b));
                for (plane, (a, b)) in [(ah, bh), (low(a, ah), low(b, bh))].into_iter().enumerate() {
                    let q = _mm256_set_m128i(_mm512_cvtepi32_epi8(b), _mm512_cvtepi32_epi8(a));
                    _mm256_storeu_si256((&raw mut (*out).q[plane]).cast(), q);
                }
                finish(out, amax / STEPS, sums, [-(sums[0] + sums[1]), -sums[0], -sums[1], 0]);
            } else {
                super::super::quantize_special(amax, out);
            }
        }
    }
}
