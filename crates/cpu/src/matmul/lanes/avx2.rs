//! AVX2 with FMA and F16C: 8 columns; products of bytes come as i16 pairs.

use std::arch::x86_64::*;

use super::{Lanes, XBlock};
use crate::matmul::{SMALLEST, STEPS, finish};

/// AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// Two i16 in an i32, low one first.
#[inline(always)]
fn pair(low: i32, high: i32) -> i32 {
    low & 0xffff | high << 16
}

/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn shifted(v: __m256i, shift: i32) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        match shift {
            0 => v,
            1.. => _mm256_sll_epi16(v, _mm_cvtsi32_si128(shift)),
            _ => _mm256_sra_epi16(v, _mm_cvtsi32_si128(-shift)),
        }
    }
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait says what callers promise")]
impl Lanes for Avx2 {
    const L: usize = 8;
    const ROWS: usize = 4;
    const BYTE_XOR: u8 = 0;
    const NARROW: bool = true;
    const CHAIN: bool = false;
    type V = __m256i;
    type P = __m256i;
    type W = __m256i;
    type F = __m256;

    #[inline(always)]
    unsafe fn load(p: *const u8) -> __m256i {
        unsafe { _mm256_loadu_si256(p.cast()) }
    }

    #[inline(always)]
    unsafe fn and(v: __m256i, mask: u8) -> __m256i {
        unsafe { _mm256_and_si256(v, _mm256_set1_epi8(mask as i8)) }
    }

    #[inline(always)]
    unsafe fn put(v: __m256i, p: *mut u8) {
        unsafe { _mm256_storeu_si256(p.cast(), v) }
    }

    #[inline(always)]
    unsafe fn or(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_or_si256(a, b) }
    }

    #[inline(always)]
    unsafe fn shift(v: __m256i, by: i32) -> __m256i {
        unsafe {
            if by >= 0 {
                _mm256_srl_epi16(v, _mm_cvtsi32_si128(by))
            } else {
                _mm256_sll_epi16(v, _mm_cvtsi32_si128(-by))
            }
        }
    }

    #[inline(always)]
    unsafe fn lookup(v: __m256i, table: &[i8; 16]) -> __m256i {
        unsafe {
            let table = _mm_loadu_si128(table.as_ptr().cast());
            _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), v)
        }
    }

    /// The sums are two i16: those of the values at 0 and 1 of each four, and at 2 and 3, as the products are.
    #[inline(always)]
    unsafe fn start(sums: i32, shift: i32) -> __m256i {
        unsafe { shifted(_mm256_set1_epi32(sums), shift) }
    }

    #[inline(always)]
    unsafe fn start_second(sums: i32, half: i32, shift: i32) -> __m256i {
        unsafe { shifted(_mm256_sub_epi16(_mm256_set1_epi32(sums), _mm256_set1_epi32(half)), shift) }
    }

    #[inline(always)]
    unsafe fn zero() -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn dot(p: __m256i, w: __m256i, x: *const i8) -> __m256i {
        unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            _mm256_add_epi16(p, _mm256_maddubs_epi16(w, x))
        }
    }

    #[inline(always)]
    unsafe fn to_f(high: __m256i, low: __m256i) -> __m256 {
        unsafe {
            // The pairs' sum and the factor of the high bytes in one instruction.
            let high = _mm256_madd_epi16(high, _mm256_set1_epi16(128));
            let low = _mm256_madd_epi16(low, _mm256_set1_epi16(1));
            _mm256_cvtepi32_ps(_mm256_add_epi32(high, low))
        }
    }

    #[inline(always)]
    unsafe fn zero_wide() -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn start_wide(_: i32) -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn dot_wide(p: __m256i, w: __m256i, x: *const i8) -> __m256i {
        unsafe {
            // |w| * (x with w's sign): two products are at most 2 * 128 * 127, which an i16 holds.
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
            _mm256_add_epi32(p, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    unsafe fn times_128(p: __m256i) -> __m256i {
        unsafe { _mm256_slli_epi32::<7>(p) }
    }

    #[inline(always)]
    unsafe fn add_wide(a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn wide_to_f(p: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(p) }
    }

    #[inline(always)]
    unsafe fn fzero() -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn f16(p: *const u8) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    unsafe fn bf16(p: *const u8) -> __m256 {
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn f32(p: *const u8) -> __m256 {
        unsafe { _mm256_loadu_ps(p.cast()) }
    }

    #[inline(always)]
    unsafe fn u8(p: *const u8) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn i8(p: *const u8) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) }
    }

    #[inline(always)]
    fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn store(a: __m256, p: *mut f32) {
        unsafe { _mm256_storeu_ps(p, a) }
    }

    #[inline(always)]
    unsafe fn quantize(x: *const f32, out: *mut XBlock) {
        unsafe {
            let v: [__m256; 4] = std::array::from_fn(|i| _mm256_loadu_ps(x.add(8 * i)));
            // As integers, magnitudes are in order, with infinity and NaN above all numbers.
            let abs = v.map(|v| _mm256_and_si256(_mm256_castps_si256(v), _mm256_set1_epi32(i32::MAX)));
            let m = _mm256_max_epi32(_mm256_max_epi32(abs[0], abs[1]), _mm256_max_epi32(abs[2], abs[3]));
            let m = _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256::<1>(m));
            let m = _mm_max_epi32(m, _mm_shuffle_epi32::<0b01_00_11_10>(m));
            let m = _mm_max_epi32(m, _mm_shuffle_epi32::<0b10_11_00_01>(m));
            let amax = _mm_cvtsi128_si32(m);
            if (SMALLEST..f32::INFINITY.to_bits() as i32).contains(&amax) {
                let amax = f32::from_bits(amax as u32);
                let inverse = _mm256_set1_ps(STEPS / amax);
                let q = v.map(|v| _mm256_cvtps_epi32(_mm256_mul_ps(v, inverse)));
                // As `split`.
                let high = q.map(|q| _mm256_srai_epi32::<7>(_mm256_add_epi32(q, _mm256_set1_epi32(64))));
                let low = std::array::from_fn(|i| _mm256_sub_epi32(q[i], _mm256_slli_epi32::<7>(high[i])));
                let (mut whole, mut first) = ([0; 2], [0; 2]);
                for (plane, q) in [high, low].into_iter().enumerate() {
                    // The packs work within 128-bit halves; the permutation puts the groups of four back in order.
                    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
                    let packed =
                        _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
                    let bytes = _mm256_permutevar8x32_epi32(packed, order);
                    _mm256_storeu_si256((&raw mut (*out).q[plane]).cast(), bytes);
                    // Pairs of neighbours as i16, even ones for values 0 and 1 of each four.
                    let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
                    let fold = |v: __m128i| {
                        let v = _mm_add_epi16(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
                        _mm_cvtsi128_si32(_mm_add_epi16(v, _mm_shuffle_epi32::<0b10_11_00_01>(v)))
                    };
                    let half = _mm256_castsi256_si128(pairs);
                    first[plane] = fold(half);
                    whole[plane] = fold(_mm_add_epi16(half, _mm256_extracti128_si256::<1>(pairs)));
                }
                let plain = |v: [i32; 2]| {
                    let sum = |v: i32| i32::from(v as i16) + (v >> 16);
                    128 * sum(v[0]) + sum(v[1])
                };
                let (all, half) = (plain(whole), plain(first));
                let start = |v: i32| pair(-8 * i32::from(v as i16), -8 * (v >> 16));
                let starts = [whole[0], whole[1], first[0], first[1]].map(start);
                finish(out, amax / STEPS, [half, all - half], starts);
            } else {
                super::super::quantize_special(amax, out);
            }
        }
    }
}
