//! The key/value cache: pages of 16 tokens for all layers, in memory that becomes resident only when it is written.
//!
//! A page holds, layer after layer, the keys of each head as `[head_dim][16 tokens]` and its values as
//! `[16 tokens][v_dim]`: 16 scores come out of lanes with no sum across them, and a value is added up along its columns.
//! Pages of all layers are together, so copying a page is one copy and a short context touches little memory.

pub(crate) mod codes;

use crate::simd::{F32x16, Isa, Kernel, LANES, Portable, Simd, f16_to_f32};
use codes::{Part, Q4, Q8};
use memmap2::{MmapMut, MmapOptions};
use quarrel_ir::{BLOCK_TOKENS, Error, KvLayer, Result};
use std::marker::PhantomData;

/// The number type of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// Half precision.
    #[default]
    F16,
    /// The upper half of single precision: the range of that, 8 bits of precision.
    BF16,
    /// Single precision, twice the memory; for comparisons with the reference.
    F32,
    /// Codes of 8 bits, 32 with an f16 scale: 8.5 bits per number. Keys and values are rotated by a Hadamard matrix first.
    Q8_0,
    /// Codes of 4 bits, 32 with an f16 scale: 4.5 bits per number. Keys and values are rotated by a Hadamard matrix first.
    Q4_0,
}

impl KvType {
    /// All types, in the order of what they hold.
    pub const ALL: [KvType; 5] = [KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0, KvType::Q4_0];

    /// `f16` and the like, as people write it.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F16 => "f16",
            KvType::BF16 => "bf16",
            KvType::F32 => "f32",
            KvType::Q8_0 => "q8_0",
            KvType::Q4_0 => "q4_0",
        }
    }

    /// Bits of a number, scales included, where whole groups of 32 share one.
    pub fn bits(self) -> f64 {
        match self {
            KvType::F16 | KvType::BF16 => 16.0,
            KvType::F32 => 32.0,
            KvType::Q8_0 => 8.5,
            KvType::Q4_0 => 4.5,
        }
    }

    /// The type of a short convolution's inputs: codes are too coarse for them.
    pub(crate) fn of_inputs(self) -> KvType {
        match self {
            KvType::Q8_0 | KvType::Q4_0 => KvType::F16,
            plain => plain,
        }
    }

    /// Bytes of one head's keys or values in a page; none if that is more than there can be.
    fn head_bytes(self, part: Part, dim: usize) -> Option<usize> {
        let plain = |bytes: usize| {
            let columns = if part == Part::Keys { dim } else { dim.checked_next_multiple_of(LANES)? };
            columns.checked_mul(BLOCK_TOKENS * bytes)
        };
        match self {
            KvType::F16 | KvType::BF16 => plain(2),
            KvType::F32 => plain(4),
            KvType::Q8_0 => codes::head_bytes(part.lines::<Q8>(dim), dim),
            KvType::Q4_0 => codes::head_bytes(part.lines::<Q4>(dim), dim),
        }
    }
}

/// A number that is stored as it is: the bits of a half, or a float.
pub(crate) trait Element: Copy + Default + Send + Sync + 'static {
    /// 16 of them.
    ///
    /// # Safety
    /// `p` must be readable for 16. It need not be aligned.
    unsafe fn load_ptr<S: Simd>(s: S, p: *const Self) -> S::F;
    /// Stores 16. Panics if there is room for fewer.
    fn put<F: F32x16>(x: F, p: &mut [Self]);
    /// The number whose bytes come first. Panics if there are fewer.
    fn value(bytes: &[u8]) -> f32;
}

impl Element for u16 {
    #[inline(always)]
    unsafe fn load_ptr<S: Simd>(s: S, p: *const u16) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16_ptr(p) }
    }

    #[inline(always)]
    fn put<F: F32x16>(x: F, p: &mut [u16]) {
        x.store_f16(p)
    }

    fn value(bytes: &[u8]) -> f32 {
        f16_to_f32(u16::from_ne_bytes([bytes[0], bytes[1]]))
    }
}

/// The bits of a bfloat16.
#[derive(Clone, Copy, Default)]
pub(crate) struct Bf16(u16);

impl Element for Bf16 {
    #[inline(always)]
    unsafe fn load_ptr<S: Simd>(s: S, p: *const Bf16) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_bf16_ptr(p.cast()) }
    }

    #[inline(always)]
    fn put<F: F32x16>(x: F, p: &mut [Bf16]) {
        let to_nearest = |x: f32| {
            let bits = x.to_bits();
            // A NaN must not be rounded to infinity.
            let rounded = if x.is_nan() { bits | 0x40_0000 } else { bits + 0x7fff + (bits >> 16 & 1) };
            Bf16((rounded >> 16) as u16)
        };
        p[..LANES].iter_mut().zip(x.to_array()).for_each(|(p, x)| *p = to_nearest(x));
    }

    fn value(bytes: &[u8]) -> f32 {
        let Bf16(bits) = Bf16(u16::from_ne_bytes([bytes[0], bytes[1]]));
        f32::from_bits(u32::from(bits) << 16)
    }
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load_ptr<S: Simd>(s: S, p: *const f32) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_ptr(p) }
    }

    #[inline(always)]
    fn put<F: F32x16>(x: F, p: &mut [f32]) {
        x.store(p)
    }

    fn value(bytes: &[u8]) -> f32 {
        f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

/// How keys and values of a [`KvType`] are stored.
pub(crate) trait Stored: Send + Sync + 'static {
    /// Stores one token's numbers of one head.
    ///
    /// # Safety
    /// `page` must be the head's page of this type for `x.len()` columns, and no other thread may use this token's bytes.
    unsafe fn store<S: Simd>(s: S, part: Part, token: usize, x: &[f32], page: *mut u8);
    /// Reads them back.
    fn read(part: Part, token: usize, page: &[u8], x: &mut [f32]);
    /// Whether what is stored is rotated.
    const ROTATED: bool;
}

impl<E: Element> Stored for E {
    const ROTATED: bool = false;

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, part: Part, token: usize, x: &[f32], page: *mut u8) {
        let page = page.cast::<E>();
        let width = x.len().next_multiple_of(LANES);
        let mut lanes = [E::default(); LANES];
        for (i, x) in x.chunks(LANES).enumerate() {
            E::put(s.load_partial(x, 0.0), &mut lanes);
            match part {
                Part::Keys => {
                    for (j, y) in lanes[..x.len()].iter().enumerate() {
                        // SAFETY: a row of the head's keys and this token's column.
                        unsafe { *page.add((i * LANES + j) * BLOCK_TOKENS + token) = *y };
                    }
                }
                // SAFETY: within this token's row of the head's values, which are whole vectors.
                Part::Values => unsafe {
                    page.add(token * width + i * LANES).cast::<[E; LANES]>().write(lanes)
                },
            }
        }
    }

    fn read(part: Part, token: usize, page: &[u8], x: &mut [f32]) {
        let width = x.len().next_multiple_of(LANES);
        for (i, x) in x.iter_mut().enumerate() {
            let at = match part {
                Part::Keys => i * BLOCK_TOKENS + token,
                Part::Values => token * width + i,
            };
            *x = E::value(&page[at * size_of::<E>()..]);
        }
    }
}

impl Stored for Q8 {
    const ROTATED: bool = true;

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, part: Part, token: usize, x: &[f32], page: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { codes::store::<S, Q8>(s, part, token, x, page) }
    }

    fn read(part: Part, token: usize, page: &[u8], x: &mut [f32]) {
        codes::read::<Q8>(part, token, page, x)
    }
}

impl Stored for Q4 {
    const ROTATED: bool = true;

    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, part: Part, token: usize, x: &[f32], page: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { codes::store::<S, Q4>(s, part, token, x, page) }
    }

    fn read(part: Part, token: usize, page: &[u8], x: &mut [f32]) {
        codes::read::<Q4>(part, token, page, x)
    }
}

/// Runs `$body` with `$T` for how a type is stored.
macro_rules! by_type {
    ($kind:expr, $T:ident, $body:expr) => {
        match $kind {
            $crate::kv::KvType::F16 => {
                type $T = u16;
                $body
            }
            $crate::kv::KvType::BF16 => {
                type $T = $crate::kv::Bf16;
                $body
            }
            $crate::kv::KvType::F32 => {
                type $T = f32;
                $body
            }
            $crate::kv::KvType::Q8_0 => {
                type $T = $crate::kv::codes::Q8;
                $body
            }
            $crate::kv::KvType::Q4_0 => {
                type $T = $crate::kv::codes::Q4;
                $body
            }
        }
    };
}
pub(crate) use by_type;

/// Where a layer lies in a page, in bytes.
#[derive(Debug, Clone, Copy)]
struct Place {
    k: usize,
    v: usize,
    /// Of one head.
    k_head: usize,
    v_head: usize,
    layer: KvLayer,
}

/// The pages of one prepared Program.
pub(crate) struct KvPool {
    map: MmapMut,
    kind: KvType,
    places: Vec<Place>,
    /// Bytes.
    page: usize,
    pages: usize,
    touched: Vec<bool>,
    /// One token's numbers of a layer.
    token: Vec<f32>,
}

/// Columns of a value: whole vectors.
pub(crate) fn padded(v_dim: u32) -> usize {
    (v_dim as usize).next_multiple_of(LANES)
}

/// Places of the layers in a page, and its bytes; none if that is more than there can be.
fn places(layers: &[KvLayer], kind: KvType) -> Option<(Vec<Place>, usize)> {
    let mut at = 0usize;
    let place = |&layer: &KvLayer| {
        let kind = if layer.holds_inputs() { kind.of_inputs() } else { kind };
        let k_head = kind.head_bytes(Part::Keys, layer.head_dim as usize)?;
        let v_head = kind.head_bytes(Part::Values, layer.v_dim as usize)?;
        let k = at;
        let v = k.checked_add((layer.kv_heads as usize).checked_mul(k_head)?)?;
        at = v.checked_add((layer.kv_heads as usize).checked_mul(v_head)?)?;
        Some(Place { k, v, k_head, v_head, layer })
    };
    let places = layers.iter().map(place).collect::<Option<_>>()?;
    Some((places, at))
}

/// Bytes of a page; none if that is more than there can be.
pub(crate) fn page_bytes(layers: &[KvLayer], kind: KvType) -> Option<usize> {
    Some(places(layers, kind)?.1)
}

impl KvPool {
    /// Reserves `pages` pages; nothing is resident before it is written.
    pub(crate) fn new(layers: &[KvLayer], kind: KvType, pages: usize) -> Result<KvPool> {
        let bytes = page_bytes(layers, kind).and_then(|p| p.checked_mul(pages));
        let out_of_memory = Error::Memory { what: "the KV cache", bytes: bytes.unwrap_or(usize::MAX) };
        let map = bytes.and_then(|b| MmapOptions::new().len(b.max(1)).no_reserve_swap().map_anon().ok());
        let (map, (places, page)) = map.zip(places(layers, kind)).ok_or(out_of_memory)?;
        huge_pages(&map);
        Ok(KvPool { map, kind, places, page, pages, touched: vec![false; pages], token: Vec::new() })
    }

    /// Notes that these pages are about to be written.
    pub(crate) fn touch(&mut self, pages: &[u32]) {
        pages.iter().for_each(|p| self.touched[*p as usize] = true);
    }

    /// Bytes of the pages that have been written.
    pub(crate) fn resident(&self) -> usize {
        self.touched.iter().filter(|t| **t).count() * self.page
    }

    /// Bytes of a page.
    pub(crate) fn page_bytes(&self) -> usize {
        self.page
    }

    /// Copies whole pages `(from, to)`, in order.
    pub(crate) fn copy(&mut self, pairs: &[(u32, u32)]) -> Result<()> {
        for &(from, to) in pairs {
            if from.max(to) as usize >= self.pages {
                return Err(Error::Step(format!("copy of block {from} to {to} of {}", self.pages)));
            }
            if self.touched[from as usize] {
                let from = from as usize * self.page;
                self.map.copy_within(from..from + self.page, to as usize * self.page);
                self.touched[to as usize] = true;
            }
        }
        Ok(())
    }

    /// Copies the bytes of a page to `out`.
    pub(crate) fn save(&mut self, page: u32, out: &mut [u8]) -> Result<()> {
        let at = self.whole(page, out.len())?;
        out.copy_from_slice(&self.map[at..at + self.page]);
        Ok(())
    }

    /// Puts saved bytes in the place of a page.
    pub(crate) fn load(&mut self, page: u32, data: &[u8]) -> Result<()> {
        let at = self.whole(page, data.len())?;
        self.map[at..at + self.page].copy_from_slice(data);
        self.touch(&[page]);
        Ok(())
    }

    /// Where a page begins, if there is one and it has so many bytes.
    fn whole(&self, page: u32, bytes: usize) -> Result<usize> {
        let Self { page: size, pages, .. } = *self;
        if page as usize >= pages || bytes != size {
            let why = format!("block {page} of {pages} in {bytes} bytes; a block of this cache has {size}");
            return Err(Error::Step(why));
        }
        Ok(page as usize * size)
    }

    /// One token's keys `[kv_heads * head_dim]` and values `[kv_heads * v_dim]` of a layer, as attention sees them but not
    /// rotated.
    pub(crate) fn read_token(&self, layer: usize, page: u32, token: usize, k: &mut [f32], v: &mut [f32]) {
        let place = self.places[layer];
        assert!((page as usize) < self.pages && token < BLOCK_TOKENS);
        let page = &self.map[page as usize * self.page..][..self.page];
        for (part, at, size, dim, x) in [
            (Part::Keys, place.k, place.k_head, place.layer.head_dim as usize, k),
            (Part::Values, place.v, place.v_head, place.layer.v_dim as usize, v),
        ] {
            assert_eq!(x.len(), place.layer.kv_heads as usize * dim);
            for (x, page) in x.chunks_exact_mut(dim).zip(page[at..].chunks_exact(size)) {
                let rotated = by_type!(self.kind, T, {
                    T::read(part, token, page, x);
                    T::ROTATED
                });
                if rotated {
                    codes::rotate(Portable, x, dim);
                }
            }
        }
    }

    /// Stores one token's keys and values of a layer, as a step would.
    pub(crate) fn write_token(
        &mut self,
        isa: Isa,
        layer: usize,
        page: u32,
        token: usize,
        k: &[f32],
        v: &[f32],
    ) {
        self.touch(&[page]);
        let mut turned = std::mem::take(&mut self.token);
        let kv = self.share();
        by_type!(kv.kind, T, isa.run(Write::<T>(kv, layer, page, token, k, v, &mut turned, PhantomData)));
        self.token = turned;
    }

    /// Access for the threads of a step.
    pub(crate) fn share(&mut self) -> KvShare<'_> {
        KvShare {
            base: self.map.as_mut_ptr(),
            kind: self.kind,
            places: &self.places,
            page: self.page,
            pages: self.pages,
        }
    }
}

/// One token of one layer, stored by the thread that has the whole pool.
struct Write<'a, T>(KvShare<'a>, usize, u32, usize, &'a [f32], &'a [f32], &'a mut Vec<f32>, PhantomData<T>);

impl<T: Stored> Kernel for Write<'_, T> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Write(kv, layer, page, token, k, v, turned, _) = self;
        // SAFETY: the pool is borrowed mutably, so there is no other thread; the caller chose `T` by its kind.
        unsafe { kv.store::<S, T>(s, layer, page, token, k, v, turned) }
    }
}

/// Asks for huge pages: a walk over the cache or over activations should not wait for page tables. Only a hint.
pub(crate) fn huge_pages(map: &MmapMut) {
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    #[cfg(not(target_os = "linux"))]
    let _ = map;
}

/// Asks the processor for the cache line at `p`, which may be any address, to come into the second cache: nothing is read that the
/// program can see.
#[inline(always)]
pub(crate) fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: SSE is part of x86-64, and a prefetch of a bad address does nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// The cache as the threads of a step see it.
#[derive(Clone, Copy)]
pub(crate) struct KvShare<'a> {
    base: *mut u8,
    kind: KvType,
    places: &'a [Place],
    page: usize,
    pages: usize,
}

// SAFETY: threads write different tokens, and a barrier lies between writing and reading; see the methods.
unsafe impl Sync for KvShare<'_> {}
// SAFETY: as above; the pages belong to the pool, which is borrowed.
unsafe impl Send for KvShare<'_> {}

impl<'a> KvShare<'a> {
    pub(crate) fn kind(&self) -> KvType {
        self.kind
    }

    /// Where a part of a page begins.
    #[inline(always)]
    fn at(&self, page: u32, offset: usize) -> *mut u8 {
        assert!((page as usize) < self.pages, "page {page} of {}", self.pages);
        // SAFETY: inside the map by the assertion, as offsets come from `places`.
        unsafe { self.base.add(page as usize * self.page + offset) }
    }

    /// Writes the keys and values of one token; `turned` is scratch.
    ///
    /// # Safety
    /// `T` must be the pool's kind; no other thread may read this page's layer or write this token now.
    #[inline(always)]
    pub(crate) unsafe fn store<S: Simd, T: Stored>(
        &self,
        s: S,
        layer: usize,
        page: u32,
        token: usize,
        k: &[f32],
        v: &[f32],
        turned: &mut Vec<f32>,
    ) {
        let place = self.places[layer];
        let (heads, hd, vd) =
            (place.layer.kv_heads as usize, place.layer.head_dim as usize, place.layer.v_dim as usize);
        assert!(token < BLOCK_TOKENS && k.len() == heads * hd && v.len() == heads * vd);
        for (part, at, size, dim, x) in
            [(Part::Keys, place.k, place.k_head, hd, k), (Part::Values, place.v, place.v_head, vd, v)]
        {
            let page = self.at(page, at);
            for (head, x) in x.chunks_exact(dim).enumerate() {
                let x = if T::ROTATED {
                    turned.clear();
                    turned.extend_from_slice(x);
                    codes::rotate(s, turned, dim);
                    &turned[..]
                } else {
                    x
                };
                // SAFETY: the head's part of the page, and this thread's token, by the contract.
                unsafe { T::store(s, part, token, x, page.add(head * size)) };
            }
        }
    }

    /// Writes the inputs of one token of a layer that holds inputs.
    ///
    /// # Safety
    /// `E` must be [`KvType::of_inputs`] of the pool's kind; no other thread may read this page's layer or write this token now.
    #[inline(always)]
    pub(crate) unsafe fn store_inputs<S: Simd, E: Element>(
        &self,
        s: S,
        layer: usize,
        page: u32,
        token: usize,
        x: &[f32],
    ) {
        let KvLayer { kv_heads, head_dim, v_dim, .. } = self.places[layer].layer;
        assert!((kv_heads, head_dim) == (1, 0) && x.len() == v_dim as usize && token < BLOCK_TOKENS);
        // SAFETY: the layer's part of the page, and this thread's token, by the contract.
        unsafe { E::store(s, Part::Values, token, x, self.at(page, self.places[layer].v)) };
    }

    /// Where the inputs of one token of a layer that holds inputs begin: whole vectors of [`KvType::of_inputs`]. Nothing may be
    /// read of them while a thread writes this token.
    #[inline(always)]
    pub(crate) fn inputs<E: Element>(&self, layer: usize, page: u32, token: usize) -> *const E {
        let place = self.places[layer];
        assert!(place.layer.holds_inputs() && token < BLOCK_TOKENS);
        let token = token * padded(place.layer.v_dim) * size_of::<E>();
        self.at(page, place.v + token).cast::<E>().cast_const()
    }

    /// The keys and values of one head of one sequence.
    pub(crate) fn head(self, layer: usize, head: usize, blocks: &'a [u32]) -> KvHead<'a> {
        KvHead { kv: self, place: self.places[layer], head, blocks }
    }
}

/// One head's keys and values.
#[derive(Clone, Copy)]
pub(crate) struct KvHead<'a> {
    kv: KvShare<'a>,
    place: Place,
    head: usize,
    blocks: &'a [u32],
}

impl KvHead<'_> {
    /// Pages of the sequence.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Keys of the sequence's `block`th page, and their bytes: `[head_dim][16]`, or lines of codes and then scales. Nothing may
    /// be read of them while a thread writes this layer.
    #[inline(always)]
    pub(crate) fn keys(&self, block: usize) -> (*const u8, usize) {
        let size = self.place.k_head;
        (self.kv.at(self.blocks[block], self.place.k + self.head * size), size)
    }

    /// Values of the sequence's `block`th page: `[16][padded(v_dim)]`, or lines of codes and then scales.
    #[inline(always)]
    pub(crate) fn values(&self, block: usize) -> (*const u8, usize) {
        let size = self.place.v_head;
        (self.kv.at(self.blocks[block], self.place.v + self.head * size), size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_land_in_their_pages_and_pages_are_copied_whole() {
        let layer = |kv_heads, head_dim, v_dim| KvLayer { kv_heads, head_dim, v_dim, window: None };
        let mut pool = KvPool::new(&[layer(1, 4, 4), layer(2, 5, 3)], KvType::F32, 1 << 20).unwrap();
        assert_eq!(pool.resident(), 0, "a reservation of gigabytes holds nothing");
        let k: Vec<f32> = (0..10).map(|i| i as f32).collect();
        let v: Vec<f32> = (0..6).map(|i| -(i as f32)).collect();
        for isa in Isa::available() {
            pool.write_token(isa, 1, 7, 3, &k, &v);
            pool.copy(&[(7, 9), (8, 10)]).unwrap();
            assert_eq!(pool.resident(), 2 * pool.page, "an untouched page is not copied");
            let blocks = [7, 9];
            for (head, block) in [(0, 0), (1, 0), (1, 1)] {
                let kv = pool.share();
                let h = kv.head(1, head, &blocks);
                let floats = |(p, bytes): (*const u8, usize)| {
                    // SAFETY: F32 pool, one thread.
                    unsafe { std::slice::from_raw_parts(p.cast::<f32>(), bytes / 4) }
                };
                let (keys, values) = (floats(h.keys(block)), floats(h.values(block)));
                for d in 0..5 {
                    assert_eq!(keys[d * 16 + 3], k[head * 5 + d]);
                    assert_eq!(keys[d * 16 + 2], 0.0);
                }
                assert_eq!(&values[3 * 16..][..3], &v[head * 3..][..3]);
            }
        }
        assert!(pool.copy(&[(0, 1 << 20)]).is_err());
    }

    /// Bytes of the pool that the system holds.
    #[cfg(target_os = "linux")]
    fn resident_pages(pool: &KvPool) -> usize {
        let page = 4096;
        let mut held = vec![0u8; pool.map.len().div_ceil(page)];
        // SAFETY: the map and a byte for each of its pages.
        let code =
            unsafe { libc::mincore(pool.map.as_ptr().cast_mut().cast(), pool.map.len(), held.as_mut_ptr()) };
        assert_eq!(code, 0);
        held.iter().filter(|h| **h & 1 == 1).count() * page
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_cache_for_a_long_context_takes_what_is_written() {
        // SmolLM2 with 131,072 tokens: 6 GB. A huge page may round each stretch up.
        let layer = KvLayer { kv_heads: 3, head_dim: 64, v_dim: 64, window: None };
        let mut pool = KvPool::new(&[layer; 30], KvType::F32, 8192).unwrap();
        let page = pool.page;
        assert_eq!((resident_pages(&pool), pool.resident()), (0, 0));
        let x = [1.0; 192];
        for pages in [1u32, 10, 40] {
            for p in 0..pages {
                for token in 0..BLOCK_TOKENS {
                    for layer in 0..30 {
                        pool.write_token(Isa::detect(), layer, p, token, &x, &x);
                    }
                }
            }
            let held = resident_pages(&pool);
            assert_eq!(pool.resident(), pages as usize * page);
            assert!(
                held >= pool.resident() && held <= pool.resident() + (4 << 20),
                "{held} for {pages} pages"
            );
        }
    }

    /// Numbers in -1..1 that repeat late.
    fn numbers(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i + 1) * (seed * 2 + 7919) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    #[test]
    fn every_type_gives_back_a_token_whatever_lies_beside_it() {
        for (head_dim, v_dim) in
            [(64, 64), (33, 33), (40, 80), (80, 40), (96, 112), (112, 96), (1, 7), (256, 128)]
        {
            let layer = KvLayer { kv_heads: 2, head_dim, v_dim, window: None };
            for (kind, isa) in
                KvType::ALL.into_iter().flat_map(|k| Isa::available().into_iter().map(move |i| (k, i)))
            {
                let mut pool = KvPool::new(&[layer; 2], kind, 2).unwrap();
                let (nk, nv) = (2 * head_dim as usize, 2 * v_dim as usize);
                let read = |pool: &KvPool, token| {
                    let (mut k, mut v) = (vec![0.0; nk], vec![0.0; nv]);
                    pool.read_token(1, 1, token, &mut k, &mut v);
                    (k, v)
                };
                let (k, v) = (numbers(nk, 1), numbers(nv, 2));
                pool.write_token(isa, 1, 1, 5, &k, &v);
                let alone = read(&pool, 5);
                for token in (0..BLOCK_TOKENS).filter(|t| *t != 5) {
                    pool.write_token(isa, 1, 1, token, &numbers(nk, token + 3), &numbers(nv, token + 4));
                }
                assert!(read(&pool, 5) == alone, "{kind:?} {isa} {head_dim}: a neighbour changed a token");
                // Half a step of the largest number of a group, or a whole one at the end of the four bits' range.
                let tolerance = match kind {
                    KvType::F32 => 0.0,
                    KvType::F16 => 1.0 / 2048.0,
                    KvType::BF16 => 1.0 / 256.0,
                    KvType::Q8_0 => 1.0 / 127.0,
                    KvType::Q4_0 => 1.0 / 8.0,
                };
                for (x, y) in [(&k, &alone.0), (&v, &alone.1)] {
                    let size =
                        |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x * x)).sum::<f64>().sqrt();
                    let error = size(&mut x.iter().zip(y).map(|(x, y)| x - y));
                    let all = size(&mut x.iter().copied());
                    assert!(error <= 1.5 * tolerance * all, "{kind:?} {isa} {head_dim}: {error} of {all}");
                }
            }
        }
    }

    #[test]
    fn a_nan_is_given_back() {
        let layer = KvLayer { kv_heads: 1, head_dim: 64, v_dim: 64, window: None };
        for (kind, bad) in KvType::ALL.into_iter().flat_map(|k| [(k, f32::NAN), (k, f32::INFINITY)]) {
            let mut pool = KvPool::new(&[layer], kind, 1).unwrap();
            let mut x = numbers(64, 1);
            x[9] = bad;
            pool.write_token(Isa::detect(), 0, 0, 3, &x, &x);
            let (mut k, mut v) = (vec![0.0; 64], vec![0.0; 64]);
            pool.read_token(0, 0, 3, &mut k, &mut v);
            assert!(!k[9].is_finite() && !v[9].is_finite(), "{kind:?}");
        }
    }

    #[test]
    fn a_page_is_saved_and_loaded_whole() {
        let layer = KvLayer { kv_heads: 2, head_dim: 40, v_dim: 40, window: None };
        for kind in KvType::ALL {
            let mut pool = KvPool::new(&[layer; 3], kind, 4).unwrap();
            let (x, mut bytes) = (numbers(80, 1), vec![0; pool.page_bytes()]);
            pool.write_token(Isa::detect(), 2, 1, 3, &x, &x);
            pool.save(1, &mut bytes).unwrap();
            pool.load(3, &bytes).unwrap();
            assert_eq!(pool.resident(), 2 * pool.page_bytes(), "{kind:?}");
            let token = |page| {
                let (mut k, mut v) = (vec![0.0; 80], vec![0.0; 80]);
                pool.read_token(2, page, 3, &mut k, &mut v);
                (k, v)
            };
            assert!(token(1) == token(3) && token(3).0 != vec![0.0; 80], "{kind:?}");
            for (page, bytes) in [(4, &bytes[..]), (0, &bytes[1..]), (0, &[])] {
                assert!(pool.load(page, bytes).unwrap_err().to_string().contains("block"), "{kind:?}");
                assert!(pool.save(page, &mut bytes.to_vec()).is_err(), "{kind:?}");
            }
        }
    }

    #[test]
    fn a_cache_beyond_all_memory_is_refused() {
        let layer = KvLayer { kv_heads: 8, head_dim: 128, v_dim: 128, window: None };
        for (layer, pages) in [
            (layer, usize::MAX),
            (layer, 1 << 50),
            (KvLayer { kv_heads: u32::MAX, head_dim: u32::MAX, ..layer }, 1),
        ] {
            let error = KvPool::new(&[layer; 32], KvType::F16, pages).err().unwrap();
            assert!(error.to_string().contains("the KV cache"), "{error}");
        }
    }
}
