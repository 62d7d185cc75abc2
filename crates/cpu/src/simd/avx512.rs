//! 16 lanes in one AVX-512 register.

use std::{
    arch::x86_64::*,
    ops::{Add, Div, Mul, Neg, Sub},
};

use super::{F32x16, Kernel, LANES, Simd};

/// Proof that the CPU has AVX-512 F, BW, DQ, VL and VNNI; made only by [`run`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512(());

/// The lanes. A value exists only where an [`Avx512`] did, which is why the intrinsics below are sound.
#[derive(Clone, Copy, Debug)]
pub(super) struct F(__m512);

/// The words; as for [`F`].
#[derive(Clone, Copy, Debug)]
pub(super) struct I(__m512i);

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) fn run<K: Kernel>(kernel: K) -> K::Out {
    kernel.run(Avx512(()))
}

/// `vpdpwssd`: the compiler splits the intrinsic into a product and a sum, which are no faster alone and twice as many.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
#[inline]
fn dot_halves(mut acc: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: the CPU has the instruction, which reads and writes these registers alone.
    unsafe {
        std::arch::asm!(
            "vpdpwssd {acc}, {a}, {b}",
            acc = inout(zmm_reg) acc,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// One intrinsic in an unsafe block.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: `self` exists, so the CPU has the instruction; pointers are the caller's promise.
        unsafe { $e }
    };
}

impl Simd for Avx512 {
    type F = F;
    type I = I;
    const VECTORS: usize = 32;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        F(op!(_mm512_set1_ps(x)))
    }

    #[inline(always)]
    unsafe fn load_ptr(self, p: *const f32) -> F {
        F(op!(_mm512_loadu_ps(p)))
    }

    #[inline(always)]
    unsafe fn load_f16_ptr(self, p: *const u16) -> F {
        // `_mm512_cvtph_ps` suppresses exceptions, which takes a register: a load and a shuffle more.
        F(op!(_mm512_cvt_roundph_ps::<_MM_FROUND_CUR_DIRECTION>(_mm256_loadu_si256(p.cast()))))
    }

    #[inline(always)]
    unsafe fn load_bf16_ptr(self, p: *const u16) -> F {
        F(op!(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(
            p.cast()
        ))))))
    }

    #[inline(always)]
    fn words(self, x: i32) -> I {
        I(op!(_mm512_set1_epi32(x)))
    }

    #[inline(always)]
    unsafe fn load_words(self, p: *const u8) -> I {
        I(op!(_mm512_loadu_si512(p.cast())))
    }

    #[inline(always)]
    fn and(self, a: I, mask: i32) -> I {
        I(op!(_mm512_and_si512(a.0, _mm512_set1_epi32(mask))))
    }

    #[inline(always)]
    fn down<const N: i32>(self, a: I) -> I {
        I(op!(_mm512_srl_epi16(a.0, _mm_cvtsi32_si128(N))))
    }

    #[inline(always)]
    fn dot_halves(self, acc: I, a: I, b: I) -> I {
        I(op!(dot_halves(acc.0, a.0, b.0)))
    }

    #[inline(always)]
    fn add_words(self, a: I, b: I) -> I {
        I(op!(_mm512_add_epi32(a.0, b.0)))
    }

    #[inline(always)]
    fn pair_up(self, a: I) -> I {
        I(op!({
            let other = _mm512_slli_epi32::<16>(_mm512_shuffle_epi32::<0x4e>(a.0));
            _mm512_or_si512(_mm512_and_si512(a.0, _mm512_set1_epi32(0xffff)), other)
        }))
    }

    #[inline(always)]
    fn round_to_words(self, x: F) -> I {
        I(op!(_mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x.0)))
    }

    #[inline(always)]
    fn to_floats(self, a: I) -> F {
        F(op!(_mm512_cvt_roundepi32_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a.0)))
    }

    #[inline(always)]
    fn to_words(self, a: I) -> [i32; LANES] {
        let mut words = [0; LANES];
        op!(_mm512_storeu_si512(words.as_mut_ptr().cast(), a.0));
        words
    }
}

impl Add for F {
    type Output = F;
    #[inline(always)]
    fn add(self, b: F) -> F {
        F(op!(_mm512_add_ps(self.0, b.0)))
    }
}

impl Sub for F {
    type Output = F;
    #[inline(always)]
    fn sub(self, b: F) -> F {
        F(op!(_mm512_sub_ps(self.0, b.0)))
    }
}

impl Mul for F {
    type Output = F;
    #[inline(always)]
    fn mul(self, b: F) -> F {
        F(op!(_mm512_mul_ps(self.0, b.0)))
    }
}

impl Div for F {
    type Output = F;
    #[inline(always)]
    fn div(self, b: F) -> F {
        F(op!(_mm512_div_ps(self.0, b.0)))
    }
}

impl Neg for F {
    type Output = F;
    #[inline(always)]
    fn neg(self) -> F {
        F(op!(_mm512_xor_ps(self.0, _mm512_set1_ps(-0.0))))
    }
}

impl F32x16 for F {
    #[inline(always)]
    fn same(self, x: f32) -> F {
        F(op!(_mm512_set1_ps(x)))
    }

    #[inline(always)]
    fn fma(self, b: F, c: F) -> F {
        F(op!(_mm512_fmadd_ps(self.0, b.0, c.0)))
    }

    #[inline(always)]
    fn max(self, b: F) -> F {
        F(op!(_mm512_max_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn min(self, b: F) -> F {
        F(op!(_mm512_min_ps(self.0, b.0)))
    }

    #[inline(always)]
    fn abs(self) -> F {
        F(op!(_mm512_abs_ps(self.0)))
    }

    #[inline(always)]
    fn sqrt(self) -> F {
        F(op!(_mm512_sqrt_ps(self.0)))
    }

    #[inline(always)]
    fn round(self) -> F {
        F(op!(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)))
    }

    #[inline(always)]
    fn scale_by_power(self, n: F) -> F {
        F(op!(_mm512_scalef_ps(self.0, n.0)))
    }

    #[inline(always)]
    fn select_lt(self, b: F, yes: F, no: F) -> F {
        F(op!(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, b.0), no.0, yes.0)))
    }

    #[inline(always)]
    fn copysign(self, sign: F) -> F {
        // 0xd8: the bit of `sign` where the mask is set, else ours.
        F(op!({
            let mask = _mm512_set1_epi32(i32::MIN);
            let (a, s) = (_mm512_castps_si512(self.0), _mm512_castps_si512(sign.0));
            _mm512_castsi512_ps(_mm512_ternarylogic_epi32::<0xd8>(a, s, mask))
        }))
    }

    #[inline(always)]
    fn sum(self) -> f32 {
        op!({
            let x = _mm256_add_ps(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0));
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        })
    }

    #[inline(always)]
    fn largest(self) -> f32 {
        op!({
            let x = _mm256_max_ps(_mm512_castps512_ps256(self.0), _mm512_extractf32x8_ps::<1>(self.0));
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        })
    }

    #[inline(always)]
    unsafe fn store_ptr(self, p: *mut f32) {
        op!(_mm512_storeu_ps(p, self.0))
    }

    #[inline(always)]
    unsafe fn store_f16_ptr(self, p: *mut u16) {
        op!(_mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)))
    }
}
