//! 16 lanes in two AVX2 registers.

use std::{
    arch::x86_64::*,
    ops::{Add, Div, Mul, Neg, Sub},
};

use super::{F32x16, Kernel, LANES, Simd};

/// Proof that the CPU has AVX2, FMA and F16C; made only by [`run`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

/// The lanes, low half first. A value exists only where an [`Avx2`] did, which is why the intrinsics below are sound.
#[derive(Clone, Copy, Debug)]
pub(super) struct F(__m256, __m256);

/// The words, low half first; as for [`F`].
#[derive(Clone, Copy, Debug)]
pub(super) struct I(__m256i, __m256i);

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn run<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Avx2(()))
}

/// One intrinsic, on each half where there are several.
macro_rules! op {
    ($($e:expr),+) => {
        // SAFETY: `self` exists, so the CPU has the instruction; pointers are the caller's promise.
        unsafe { F($($e),+) }
    };
}

/// The same on words.
macro_rules! int {
    ($($e:expr),+) => {
        // SAFETY: as above.
        unsafe { I($($e),+) }
    };
}

impl Simd for Avx2 {
    type F = F;
    type I = I;
    const VECTORS: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        op!(_mm256_set1_ps(x), _mm256_set1_ps(x))
    }

    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> F {
        op!(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8)))
    }

    #[inline(always)]
    unsafe fn load_f16_ptr(self, p: *const u16) -> F {
        op!(_mm256_cvtph_ps(_mm_loadu_si128(p.cast())), _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())))
    }

    #[inline(always)]
    unsafe fn load_bf16_ptr(self, p: *const u16) -> F {
        op!(bf16(p), bf16(p.add(8)))
    }

    #[inline(always)]
    fn words(self, x: i32) -> I {
        int!(_mm256_set1_epi32(x), _mm256_set1_epi32(x))
    }

    #[inline(always)]
    unsafe fn load_words(self, p: *const u8) -> I {
        int!(_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast()))
    }

    #[inline(always)]
    fn and(self, a: I, mask: i32) -> I {
        int!(_mm256_and_si256(a.0, _mm256_set1_epi32(mask)), _mm256_and_si256(a.1, _mm256_set1_epi32(mask)))
    }

    #[inline(always)]
    fn down<const N: i32>(self, a: I) -> I {
        int!(_mm256_srli_epi16::<N>(a.0), _mm256_srli_epi16::<N>(a.1))
    }

    #[inline(always)]
    fn dot_halves(self, acc: I, a: I, b: I) -> I {
        int!(
            _mm256_add_epi32(acc.0, _mm256_madd_epi16(a.0, b.0)),
            _mm256_add_epi32(acc.1, _mm256_madd_epi16(a.1, b.1))
        )
    }

    #[inline(always)]
    fn add_words(self, a: I, b: I) -> I {
        int!(_mm256_add_epi32(a.0, b.0), _mm256_add_epi32(a.1, b.1))
    }

    #[inline(always)]
    fn pair_up(self, a: I) -> I {
        int!(pair_up(a.0), pair_up(a.1))
    }

    #[inline(always)]
    fn round_to_words(self, x: F) -> I {
        int!(_mm256_cvtps_epi32(x.0), _mm256_cvtps_epi32(x.1))
    }

    #[inline(always)]
    fn to_floats(self, a: I) -> F {
        op!(_mm256_cvtepi32_ps(a.0), _mm256_cvtepi32_ps(a.1))
    }

    #[inline(always)]
    fn to_words(self, a: I) -> [i32; LANES] {
        // SAFETY: an array of 16 words.
        unsafe { std::mem::transmute::<[__m256i; 2], [i32; LANES]>([a.0, a.1]) }
    }
}

/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn pair_up(a: __m256i) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let other = _mm256_slli_epi32::<16>(_mm256_shuffle_epi32::<0x4e>(a));
        _mm256_blend_epi16::<0xaa>(a, other)
    }
}

/// # Safety
/// The CPU has AVX2, and `p` is readable for 8 values.
#[inline(always)]
unsafe fn bf16(p: *const u16) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))) }
}

/// `a * 2^n` in two steps, as neither the largest nor the smallest power is a number of its own.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn scale(a: __m256, n: __m256) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let n = _mm256_cvtps_epi32(n);
        let half = _mm256_srai_epi32::<1>(n);
        let bias = _mm256_set1_epi32(127);
        let low = _mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias));
        let high = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_sub_epi32(n, half), bias));
        _mm256_mul_ps(_mm256_mul_ps(a, _mm256_castsi256_ps(low)), _mm256_castsi256_ps(high))
    }
}

/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn copysign(a: __m256, sign: __m256) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let mask = _mm256_set1_ps(-0.0);
        _mm256_or_ps(_mm256_andnot_ps(mask, a), _mm256_and_ps(mask, sign))
    }
}

/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn select_lt(a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)) }
}

impl Add for F {
    type Output = F;
    #[inline(always)]
    fn add(self, b: F) -> F {
        op!(_mm256_add_ps(self.0, b.0), _mm256_add_ps(self.1, b.1))
    }
}

impl Sub for F {
    type Output = F;
    #[inline(always)]
    fn sub(self, b: F) -> F {
        op!(_mm256_sub_ps(self.0, b.0), _mm256_sub_ps(self.1, b.1))
    }
}

impl Mul for F {
    type Output = F;
    #[inline(always)]
    fn mul(self, b: F) -> F {
        op!(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1))
    }
}

impl Div for F {
    type Output = F;
    #[inline(always)]
    fn div(self, b: F) -> F {
        op!(_mm256_div_ps(self.0, b.0), _mm256_div_ps(self.1, b.1))
    }
}

impl Neg for F {
    type Output = F;
    #[inline(always)]
    fn neg(self) -> F {
        op!(_mm256_xor_ps(self.0, _mm256_set1_ps(-0.0)), _mm256_xor_ps(self.1, _mm256_set1_ps(-0.0)))
    }
}

impl F32x16 for F {
    #[inline(always)]
    fn same(self, x: f32) -> F {
        op!(_mm256_set1_ps(x), _mm256_set1_ps(x))
    }

    #[inline(always)]
    fn fma(self, b: F, c: F) -> F {
        op!(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1))
    }

    #[inline(always)]
    fn max(self, b: F) -> F {
        op!(_mm256_max_ps(self.0, b.0), _mm256_max_ps(self.1, b.1))
    }

    #[inline(always)]
    fn min(self, b: F) -> F {
        op!(_mm256_min_ps(self.0, b.0), _mm256_min_ps(self.1, b.1))
    }

    #[inline(always)]
    fn abs(self) -> F {
        op!(_mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0), _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.1))
    }

    #[inline(always)]
    fn sqrt(self) -> F {
        op!(_mm256_sqrt_ps(self.0), _mm256_sqrt_ps(self.1))
    }

    #[inline(always)]
    fn round(self) -> F {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        op!(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1))
    }

    #[inline(always)]
    fn scale_by_power(self, n: F) -> F {
        op!(scale(self.0, n.0), scale(self.1, n.1))
    }

    #[inline(always)]
    fn select_lt(self, b: F, yes: F, no: F) -> F {
        op!(select_lt(self.0, b.0, yes.0, no.0), select_lt(self.1, b.1, yes.1, no.1))
    }

    #[inline(always)]
    fn copysign(self, sign: F) -> F {
        op!(copysign(self.0, sign.0), copysign(self.1, sign.1))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        // SAFETY: `self` exists, so the CPU has the instructions.
        unsafe {
            let x = _mm256_add_ps(self.0, self.1);
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        // SAFETY: `self` exists, so the CPU has the instructions.
        unsafe {
            let x = _mm256_max_ps(self.0, self.1);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        }
    }

    #[inline(always)]
    unsafe fn store_ptr(self, p: *mut f32) {
        // SAFETY: the caller gives room for 16 values.
        unsafe {
            _mm256_storeu_ps(p, self.0);
            _mm256_storeu_ps(p.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn store_f16_ptr(self, p: *mut u16) {
        // SAFETY: the caller gives room for 16 values.
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1));
        }
    }
}
