//! The instruction sets and the one vector type that float kernels are written on: 16 lanes of `f32`.
//!
//! A kernel is a [`Kernel`]; its `run` is generic over [`Simd`] and marked `#[inline(always)]`, so that [`Isa::run`] compiles
//! it once per instruction set inside a function with the right `target_feature`. A `Simd` value is the proof that the CPU
//! has the instructions: it can only be made here, after a check, so everything on vectors is safe to call.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod math;
mod portable;

use std::{
    fmt,
    ops::{Add, Div, Mul, Neg, Sub},
    sync::OnceLock,
};

pub use portable::Portable;
pub(crate) use portable::{f16_to_f32, f32_to_f16};

/// Lanes of a [`F32x16`].
pub const LANES: usize = 16;

/// Which instructions the kernels use. A value exists only where the CPU has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Isa(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

impl Isa {
    /// Plain Rust, for any CPU.
    pub const PORTABLE: Isa = Isa(Kind::Portable);

    /// The best that this CPU has. Looked up once.
    pub fn detect() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Isa::available()[0])
    }

    /// Everything that this CPU has, best first: tests run all of them.
    pub fn available() -> Vec<Isa> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            all.extend(avx512.then_some(Isa(Kind::Avx512)));
            all.extend(avx2.then_some(Isa(Kind::Avx2)));
        }
        all.push(Isa::PORTABLE);
        all
    }

    /// The one of this name, if the CPU has it.
    pub fn named(name: &str) -> Option<Isa> {
        Isa::available().into_iter().find(|isa| isa.name() == name)
    }

    pub(crate) fn kind(self) -> Kind {
        self.0
    }

    /// `avx512`, `avx2` or `portable`.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            Kind::Portable => "portable",
        }
    }

    /// Vectors of 16 lanes that the registers hold.
    pub(crate) fn vectors(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => 32,
            _ => 8,
        }
    }

    /// Runs a kernel compiled for these instructions.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Out {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `available` saw the features, and nothing else makes this value.
            Kind::Avx512 => unsafe { avx512::run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::Avx2 => unsafe { avx2::run(kernel) },
            Kind::Portable => kernel.run(Portable),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A float kernel and its arguments. `run` must be `#[inline(always)]`, and so must what it calls with vectors.
pub trait Kernel {
    /// What it returns.
    type Out;
    /// The kernel.
    fn run<S: Simd>(self, s: S) -> Self::Out;
}

/// Makes vectors; the proof that the CPU has the instructions.
pub trait Simd: Copy + Send + Sync + 'static {
    /// The vector.
    type F: F32x16;
    /// 16 words of 32 bits.
    type I: Copy;
    /// How many of them the registers hold.
    const VECTORS: usize;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F;

    /// 16 values from `p`.
    ///
    /// # Safety
    /// `p` must be readable for 16 `f32`. It need not be aligned.
    unsafe fn load_ptr(self, p: *const f32) -> Self::F;

    /// 16 half-precision values (their bits) from `p`.
    ///
    /// # Safety
    /// `p` must be readable for 16 `u16`. It need not be aligned.
    unsafe fn load_f16_ptr(self, p: *const u16) -> Self::F;

    /// 16 bfloat16 values (their bits) from `p`.
    ///
    /// # Safety
    /// `p` must be readable for 16 `u16`. It need not be aligned.
    unsafe fn load_bf16_ptr(self, p: *const u16) -> Self::F;

    /// All words `x`.
    fn words(self, x: i32) -> Self::I;

    /// 16 words from `p`.
    ///
    /// # Safety
    /// `p` must be readable for 64 bytes. It need not be aligned.
    unsafe fn load_words(self, p: *const u8) -> Self::I;

    /// Each word and `mask`.
    fn and(self, a: Self::I, mask: i32) -> Self::I;

    /// Each half of a word moved down by `N` bits, zeros following.
    fn down<const N: i32>(self, a: Self::I) -> Self::I;

    /// `acc + a0 * b0 + a1 * b1` of the signed halves of each word; the sum must fit.
    fn dot_halves(self, acc: Self::I, a: Self::I, b: Self::I) -> Self::I;

    /// `a + b`, which must fit.
    fn add_words(self, a: Self::I, b: Self::I) -> Self::I;

    /// Words that fit in halves, in pairs: of each four, `[0 | 2 << 16, 1 | 3 << 16, 2 | 0 << 16, 3 | 1 << 16]`.
    fn pair_up(self, a: Self::I) -> Self::I;

    /// The nearest whole numbers, ties to even, for |x| < 2^31; anything for others.
    fn round_to_words(self, x: Self::F) -> Self::I;

    /// The words as floats, rounded once.
    fn to_floats(self, a: Self::I) -> Self::F;

    /// The words.
    fn to_words(self, a: Self::I) -> [i32; LANES];

    /// Stores the words to the first 16 places. Panics if there are fewer.
    #[inline(always)]
    fn store_words(self, a: Self::I, p: &mut [i32]) {
        p[..LANES].copy_from_slice(&self.to_words(a));
    }

    /// All lanes zero.
    #[inline(always)]
    fn zero(self) -> Self::F {
        self.splat(0.0)
    }

    /// The first 16 values. Panics if there are fewer.
    #[inline(always)]
    fn load(self, p: &[f32]) -> Self::F {
        // SAFETY: the slice has 16 values.
        unsafe { self.load_ptr(p[..LANES].as_ptr()) }
    }

    /// The first 16 half-precision values (their bits). Panics if there are fewer.
    #[inline(always)]
    fn load_f16(self, p: &[u16]) -> Self::F {
        // SAFETY: the slice has 16 values.
        unsafe { self.load_f16_ptr(p[..LANES].as_ptr()) }
    }

    /// The first 16 bfloat16 values (their bits). Panics if there are fewer.
    #[inline(always)]
    fn load_bf16(self, p: &[u16]) -> Self::F {
        // SAFETY: the slice has 16 values.
        unsafe { self.load_bf16_ptr(p[..LANES].as_ptr()) }
    }

    /// Up to 16 values; the lanes behind them are `fill`.
    #[inline(always)]
    fn load_partial(self, p: &[f32], fill: f32) -> Self::F {
        let mut lanes = [fill; LANES];
        let n = p.len().min(LANES);
        lanes[..n].copy_from_slice(&p[..n]);
        self.load(&lanes)
    }

    /// Up to 16 half-precision values; the lanes behind them are zero.
    #[inline(always)]
    fn load_f16_partial(self, p: &[u16]) -> Self::F {
        let mut lanes = [0; LANES];
        let n = p.len().min(LANES);
        lanes[..n].copy_from_slice(&p[..n]);
        self.load_f16(&lanes)
    }
}

/// 16 lanes of `f32`. Reductions have one fixed order on every instruction set.
pub trait F32x16:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + Neg<Output = Self>
{
    /// Another vector with all lanes `x`.
    fn same(self, x: f32) -> Self;

    /// `self * b + c`; one rounding where the CPU has it.
    fn fma(self, b: Self, c: Self) -> Self;

    /// The larger of each pair; `b` where one of the two is NaN (or both are zero).
    fn max(self, b: Self) -> Self;

    /// The smaller of each pair; `b` where one of the two is NaN (or both are zero).
    fn min(self, b: Self) -> Self;

    /// Without the sign.
    fn abs(self) -> Self;

    /// Square root.
    fn sqrt(self) -> Self;

    /// To the nearest whole number, ties to even, for |x| < 2^22.
    fn round(self) -> Self;

    /// `self * 2^n` for whole `n` in -252..=254 with one rounding of normal results.
    fn scale_by_power(self, n: Self) -> Self;

    /// Where `self < b`: `yes`, else (and where one is NaN) `no`.
    fn select_lt(self, b: Self, yes: Self, no: Self) -> Self;

    /// This magnitude with the sign of `sign`.
    fn copysign(self, sign: Self) -> Self;

    /// The sum of the lanes: i with i + 8, then i + 4, i + 2, i + 1.
    fn sum(self) -> f32;

    /// The largest lane, in the order of `sum`; a NaN may be lost.
    fn largest(self) -> f32;

    /// Stores 16 values.
    ///
    /// # Safety
    /// `p` must be writable for 16 `f32`. It need not be aligned.
    unsafe fn store_ptr(self, p: *mut f32);

    /// Stores 16 values as half precision (their bits), to the nearest, ties to even.
    ///
    /// # Safety
    /// `p` must be writable for 16 `u16`. It need not be aligned.
    unsafe fn store_f16_ptr(self, p: *mut u16);

    /// Stores to the first 16 places. Panics if there are fewer.
    #[inline(always)]
    fn store(self, p: &mut [f32]) {
        // SAFETY: the slice has 16 values.
        unsafe { self.store_ptr(p[..LANES].as_mut_ptr()) }
    }

    /// Stores half precision (bits) to the first 16 places. Panics if there are fewer.
    #[inline(always)]
    fn store_f16(self, p: &mut [u16]) {
        // SAFETY: the slice has 16 values.
        unsafe { self.store_f16_ptr(p[..LANES].as_mut_ptr()) }
    }

    /// Stores the first `p.len()` lanes, 16 at most.
    #[inline(always)]
    fn store_partial(self, p: &mut [f32]) {
        let n = p.len().min(LANES);
        p[..n].copy_from_slice(&self.to_array()[..n]);
    }

    /// Stores the first `p.len()` lanes as half precision (bits), 16 at most.
    #[inline(always)]
    fn store_f16_partial(self, p: &mut [u16]) {
        let mut lanes = [0; LANES];
        self.store_f16(&mut lanes);
        let n = p.len().min(LANES);
        p[..n].copy_from_slice(&lanes[..n]);
    }

    /// The lanes.
    #[inline(always)]
    fn to_array(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes);
        lanes
    }

    /// e^x, within 2 ulp; overflows to infinity, underflows through the subnormals to 0; NaN stays.
    #[inline(always)]
    fn exp(self) -> Self {
        math::exp(self)
    }

    /// Hyperbolic tangent, within 3 ulp.
    #[inline(always)]
    fn tanh(self) -> Self {
        math::tanh(self)
    }

    /// 1 / (1 + e^-x), in the form that neither overflows nor cancels.
    #[inline(always)]
    fn sigmoid(self) -> Self {
        math::sigmoid(self)
    }

    /// x * sigmoid(x).
    #[inline(always)]
    fn silu(self) -> Self {
        math::silu(self)
    }

    /// GELU by its tanh formula: x * sigmoid(2 * sqrt(2/pi) * (x + 0.044715 x^3)), which is the same function.
    #[inline(always)]
    fn gelu_tanh(self) -> Self {
        math::gelu_tanh(self)
    }

    /// GELU: x * Phi(x), Phi the normal distribution.
    #[inline(always)]
    fn gelu_erf(self) -> Self {
        math::gelu_erf(self)
    }
}

#[cfg(test)]
mod tests;
