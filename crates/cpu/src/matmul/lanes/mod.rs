//! What the matrix kernels need of an instruction set: `L` output columns side by side, weights as bytes of four
//! neighbouring `k` per column, integer dot products into per-column sums, and `L` floats.
//!
//! Two kinds of integer sums: `P` for weights of up to six bits, `W` for whole bytes. With VNNI both are i32. AVX2 has only
//! the product of unsigned and signed bytes added in pairs to i16: for few bits the pairs of a whole block are added in i16,
//! where the true result fits (|q - centre| * 127 * 16 <= 32767 with q centred, and wrapping intermediates do no harm),
//! and bytes go to i32 at once.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
pub(crate) use portable::Portable;

use super::XBlock;

/// Every method is unsafe for the same two reasons: the CPU must have the instructions, and pointers must be valid for what
/// the method's words say. Nothing needs alignment.
pub(crate) trait Lanes: Copy {
    /// Output columns of a vector: 8 or 16.
    const L: usize;
    /// Most rows of activations that a kernel takes at once.
    const ROWS: usize;
    /// What whole-byte weights are xored with when they are packed: 0x80 where the product wants them unsigned.
    const BYTE_XOR: u8;
    /// `4 L` bytes.
    type V: Copy;
    /// Sums for weights of up to six bits.
    type P: Copy;
    /// Sums for weights of whole bytes.
    type W: Copy;
    /// `L` floats.
    type F: Copy;

    /// `4 L` bytes at `p`.
    unsafe fn load(p: *const u8) -> Self::V;
    /// Each byte and `mask`.
    unsafe fn and(v: Self::V, mask: u8) -> Self::V;
    /// Either.
    unsafe fn or(a: Self::V, b: Self::V) -> Self::V;
    /// Shifts 16-bit words right (`by > 0`) or left: bits of neighbouring bytes come in and must be masked away.
    unsafe fn shift(v: Self::V, by: i32) -> Self::V;
    /// `table[byte] ^ BYTE_XOR` for bytes below 16.
    unsafe fn lookup(v: Self::V, table: &[i8; 16]) -> Self::V;

    /// `-8 * 2^shift * sum(x)` from a sum of an [`XBlock`].
    unsafe fn start(sums: i32, shift: i32) -> Self::P;
    /// The same of a block's second half, from the sums of the whole and of the first half.
    unsafe fn start_second(sums: i32, half: i32, shift: i32) -> Self::P;
    /// Zero.
    unsafe fn zero() -> Self::P;
    /// Adds the products of each column's four bytes (unsigned) with the four bytes at `x` (signed).
    unsafe fn dot(p: Self::P, w: Self::V, x: *const i8) -> Self::P;
    /// `128 high + low` of the sums with both bytes of the activations, as floats.
    unsafe fn to_f(high: Self::P, low: Self::P) -> Self::F;
    /// The sum of the second half of a block, of the whole's and the first half's.
    fn second_half(sum: i32, half: i32) -> i32;
    /// The sums of an [`XBlock`] for these 32 (or, `q[16..]` being zero, 16) values: minus eight times.
    fn sums(q: &[i8]) -> i32;
    /// `sums` back as the plain sum.
    fn plain_sum(sums: i32) -> i32;

    /// What makes a byte product with packed weights that of the signed weights.
    unsafe fn start_wide(sums: i32) -> Self::W;
    /// Adds the products of each column's four packed bytes with the four bytes at `x`.
    unsafe fn dot_wide(p: Self::W, w: Self::V, x: *const i8) -> Self::W;
    /// `128 high + low` of the sums with both bytes of the activations, as floats.
    unsafe fn wide_to_f(high: Self::W, low: Self::W) -> Self::F;

    /// Zero.
    unsafe fn fzero() -> Self::F;
    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::F;
    /// `L` half-precision numbers.
    unsafe fn f16(p: *const u8) -> Self::F;
    /// `L` bfloat16 numbers.
    unsafe fn bf16(p: *const u8) -> Self::F;
    /// `L` floats.
    unsafe fn f32(p: *const u8) -> Self::F;
    /// `L` unsigned bytes.
    unsafe fn u8(p: *const u8) -> Self::F;
    /// `L` signed bytes.
    unsafe fn i8(p: *const u8) -> Self::F;
    /// Asks for the cache line at `p`, which may be anywhere.
    fn prefetch(p: *const u8);
    /// Product.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// Sum.
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Stores `L` floats.
    unsafe fn store(a: Self::F, p: *mut f32);

    /// Quantises 32 floats at `x` (see [`XBlock`]).
    unsafe fn quantize(x: *const f32, out: *mut XBlock);
}
