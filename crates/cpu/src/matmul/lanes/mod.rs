//! What the matrix kernels need of an instruction set: `L` output columns side by side, weights as bytes of four
//! neighbouring `k` per column, integer dot products into per-column sums, and `L` floats.
//!
//! Two kinds of integer sums: `W` for whole bytes, and where there is something cheaper `P` for weights of up to six bits.
//! AVX2 has only the product of unsigned and signed bytes added in pairs to i16: for few bits the pairs of a whole block are
//! added in i16, where the true result fits (|q - centre| * 127 * 16 <= 32767 with q centred, and wrapping intermediates do
//! no harm), and bytes go to i32 at once.

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
    /// Whether there are sums `P`.
    const NARROW: bool;
    /// Whether the high bytes' sum is carried on to the low bytes', which needs the codes of a block twice but only one sum.
    const CHAIN: bool;
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
    /// Stores `4 L` bytes.
    unsafe fn put(v: Self::V, p: *mut u8);
    /// Either.
    unsafe fn or(a: Self::V, b: Self::V) -> Self::V;
    /// Shifts 16-bit words right (`by > 0`) or left: bits of neighbouring bytes come in and must be masked away.
    unsafe fn shift(v: Self::V, by: i32) -> Self::V;
    /// `table[byte] ^ BYTE_XOR` for bytes below 16.
    unsafe fn lookup(v: Self::V, table: &[i8; 16]) -> Self::V;

    /// `-8 * 2^shift * sum(x)` from [`XBlock::starts`]: of a plane's 32 values, at 0 and 1, or of its first 16, at 2 and 3.
    unsafe fn start(_: i32, _: i32) -> Self::P {
        unreachable!("there are no narrow sums")
    }
    /// The same of a block's second half, from the starts of the whole and of the first half.
    unsafe fn start_second(_: i32, _: i32, _: i32) -> Self::P {
        unreachable!("there are no narrow sums")
    }
    /// Zero.
    unsafe fn zero() -> Self::P {
        unreachable!("there are no narrow sums")
    }
    /// Adds the products of each column's four bytes (unsigned) with the four bytes at `x` (signed).
    unsafe fn dot(_: Self::P, _: Self::V, _: *const i8) -> Self::P {
        unreachable!("there are no narrow sums")
    }
    /// `128 high + low` of the sums with both bytes of the activations, as floats.
    unsafe fn to_f(_: Self::P, _: Self::P) -> Self::F {
        unreachable!("there are no narrow sums")
    }

    /// Zero.
    unsafe fn zero_wide() -> Self::W;
    /// What the high bytes' sum starts from if 128 is subtracted from the codes, by [`XBlock::starts`]: of the whole block, its
    /// first and its second half, at 0, 1 and 2. Zero where bytes are signed.
    unsafe fn start_wide(start: i32) -> Self::W;
    /// Adds the products of each column's four packed bytes with the four bytes at `x`.
    unsafe fn dot_wide(p: Self::W, w: Self::V, x: *const i8) -> Self::W;
    /// 128 times.
    unsafe fn times_128(p: Self::W) -> Self::W;
    /// Sum.
    unsafe fn add_wide(a: Self::W, b: Self::W) -> Self::W;
    /// As floats.
    unsafe fn wide_to_f(p: Self::W) -> Self::F;

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
    /// Asks for the cache line at `p`, which may be anywhere, to come into the second cache.
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
