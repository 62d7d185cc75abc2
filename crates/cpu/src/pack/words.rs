//! Vectors of `L` words for packing, one from each of `L` rows of the file: what a tile has side by side. Rows come in by a
//! transposition, after which the codes of all columns are taken apart and put together at once.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// `L` words of 32 bits. Every method is unsafe because the CPU must have the instructions and pointers must be valid for
/// what the method's words say. Nothing needs alignment.
pub(crate) trait Words: Copy {
    /// Rows, the columns of a tile.
    const L: usize;

    /// All words `x`.
    unsafe fn splat(x: u32) -> Self;
    /// Four words from each of the rows that begin at `p`, `stride` bytes apart.
    unsafe fn rows(p: *const u8, stride: usize) -> [Self; 4];
    /// Each word and `mask`.
    unsafe fn and(self, mask: u32) -> Self;
    /// Either.
    unsafe fn or(self, b: Self) -> Self;
    /// One of both.
    unsafe fn xor(self, mask: u32) -> Self;
    /// Bits moved down.
    unsafe fn down(self, by: u32) -> Self;
    /// Bits moved up.
    unsafe fn up(self, by: u32) -> Self;
    /// Stores the words.
    unsafe fn store(self, p: *mut u8);
    /// Stores the lower half of each word.
    unsafe fn store_halves(self, p: *mut u8);
    /// Stores the lowest byte of each word.
    unsafe fn store_bytes(self, p: *mut u8);
}

#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait says what callers promise")]
impl Words for __m512i {
    const L: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: u32) -> Self {
        unsafe { _mm512_set1_epi32(x as i32) }
    }

    #[inline(always)]
    unsafe fn rows(p: *const u8, stride: usize) -> [Self; 4] {
        unsafe {
            // Row 4 i + j in the ith quarter of the jth vector: unpacking then leaves the rows in order.
            let at = |row: usize| _mm_loadu_si128(p.add(row * stride).cast());
            let r: [__m512i; 4] = std::array::from_fn(|j| {
                let v = _mm512_castsi128_si512(at(j));
                let v = _mm512_inserti32x4::<1>(v, at(j + 4));
                let v = _mm512_inserti32x4::<2>(v, at(j + 8));
                _mm512_inserti32x4::<3>(v, at(j + 12))
            });
            let low = [_mm512_unpacklo_epi32(r[0], r[1]), _mm512_unpacklo_epi32(r[2], r[3])];
            let high = [_mm512_unpackhi_epi32(r[0], r[1]), _mm512_unpackhi_epi32(r[2], r[3])];
            [
                _mm512_unpacklo_epi64(low[0], low[1]),
                _mm512_unpackhi_epi64(low[0], low[1]),
                _mm512_unpacklo_epi64(high[0], high[1]),
                _mm512_unpackhi_epi64(high[0], high[1]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn and(self, mask: u32) -> Self {
        unsafe { _mm512_and_si512(self, Self::splat(mask)) }
    }

    #[inline(always)]
    unsafe fn or(self, b: Self) -> Self {
        unsafe { _mm512_or_si512(self, b) }
    }

    #[inline(always)]
    unsafe fn xor(self, mask: u32) -> Self {
        unsafe { _mm512_xor_si512(self, Self::splat(mask)) }
    }

    #[inline(always)]
    unsafe fn down(self, by: u32) -> Self {
        unsafe { _mm512_srl_epi32(self, _mm_cvtsi32_si128(by as i32)) }
    }

    #[inline(always)]
    unsafe fn up(self, by: u32) -> Self {
        unsafe { _mm512_sll_epi32(self, _mm_cvtsi32_si128(by as i32)) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut u8) {
        unsafe { _mm512_storeu_si512(p.cast(), self) }
    }

    #[inline(always)]
    unsafe fn store_halves(self, p: *mut u8) {
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(self)) }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8) {
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(self)) }
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait says what callers promise")]
impl Words for __m256i {
    const L: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: u32) -> Self {
        unsafe { _mm256_set1_epi32(x as i32) }
    }

    #[inline(always)]
    unsafe fn rows(p: *const u8, stride: usize) -> [Self; 4] {
        unsafe {
            let at = |row: usize| _mm_loadu_si128(p.add(row * stride).cast());
            let r: [__m256i; 4] = std::array::from_fn(|j| _mm256_set_m128i(at(j + 4), at(j)));
            let low = [_mm256_unpacklo_epi32(r[0], r[1]), _mm256_unpacklo_epi32(r[2], r[3])];
            let high = [_mm256_unpackhi_epi32(r[0], r[1]), _mm256_unpackhi_epi32(r[2], r[3])];
            [
                _mm256_unpacklo_epi64(low[0], low[1]),
                _mm256_unpackhi_epi64(low[0], low[1]),
                _mm256_unpacklo_epi64(high[0], high[1]),
                _mm256_unpackhi_epi64(high[0], high[1]),
            ]
        }
    }

    #[inline(always)]
    unsafe fn and(self, mask: u32) -> Self {
        unsafe { _mm256_and_si256(self, Self::splat(mask)) }
    }

    #[inline(always)]
    unsafe fn or(self, b: Self) -> Self {
        unsafe { _mm256_or_si256(self, b) }
    }

    #[inline(always)]
    unsafe fn xor(self, mask: u32) -> Self {
        unsafe { _mm256_xor_si256(self, Self::splat(mask)) }
    }

    #[inline(always)]
    unsafe fn down(self, by: u32) -> Self {
        unsafe { _mm256_srl_epi32(self, _mm_cvtsi32_si128(by as i32)) }
    }

    #[inline(always)]
    unsafe fn up(self, by: u32) -> Self {
        unsafe { _mm256_sll_epi32(self, _mm_cvtsi32_si128(by as i32)) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut u8) {
        unsafe { _mm256_storeu_si256(p.cast(), self) }
    }

    #[inline(always)]
    unsafe fn store_halves(self, p: *mut u8) {
        unsafe {
            let v = self.and(0xffff);
            let halves = _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            _mm_storeu_si128(p.cast(), halves);
        }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8) {
        unsafe {
            let v = self.and(0xff);
            let halves = _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
            _mm_storel_epi64(p.cast(), _mm_packus_epi16(halves, halves));
        }
    }
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait says what callers promise")]
impl Words for [u32; 8] {
    const L: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: u32) -> Self {
        [x; 8]
    }

    #[inline(always)]
    unsafe fn rows(p: *const u8, stride: usize) -> [Self; 4] {
        std::array::from_fn(|word| {
            std::array::from_fn(|row| unsafe {
                u32::from_le(p.add(row * stride + 4 * word).cast::<u32>().read_unaligned())
            })
        })
    }

    #[inline(always)]
    unsafe fn and(self, mask: u32) -> Self {
        self.map(|w| w & mask)
    }

    #[inline(always)]
    unsafe fn or(self, b: Self) -> Self {
        std::array::from_fn(|i| self[i] | b[i])
    }

    #[inline(always)]
    unsafe fn xor(self, mask: u32) -> Self {
        self.map(|w| w ^ mask)
    }

    #[inline(always)]
    unsafe fn down(self, by: u32) -> Self {
        self.map(|w| w >> by)
    }

    #[inline(always)]
    unsafe fn up(self, by: u32) -> Self {
        self.map(|w| w << by)
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut u8) {
        unsafe { p.cast::<Self>().write_unaligned(self.map(u32::to_le)) }
    }

    #[inline(always)]
    unsafe fn store_halves(self, p: *mut u8) {
        unsafe { p.cast::<[u16; 8]>().write_unaligned(self.map(|w| (w as u16).to_le())) }
    }

    #[inline(always)]
    unsafe fn store_bytes(self, p: *mut u8) {
        unsafe { p.cast::<[u8; 8]>().write_unaligned(self.map(|w| w as u8)) }
    }
}
