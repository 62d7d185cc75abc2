//! The key/value cache: pages of 16 tokens for all layers, in memory that becomes resident only when it is written.
//!
//! A page holds, layer after layer, the keys of each head as `[head_dim][16 tokens]` and its values as
//! `[16 tokens][v_dim]`: 16 scores come out of lanes with no sum across them, and a value is added up along its columns.
//! Pages of all layers are together, so copying a page is one copy and a short context touches little memory.

use crate::simd::{F32x16, LANES, Simd};
use memmap2::{MmapMut, MmapOptions};
use quarrel_ir::{BLOCK_TOKENS, Error, KvLayer, Result};

/// The number type of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// Half precision.
    #[default]
    F16,
    /// Single precision, twice the memory; for comparisons with the reference.
    F32,
}

impl KvType {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            KvType::F16 => 2,
            KvType::F32 => 4,
        }
    }
}

/// A stored number: the bits of a half, or a float.
pub(crate) trait Element: Copy + Default + Send + Sync + 'static {
    /// 16 of them.
    ///
    /// # Safety
    /// `p` must be readable for 16. It need not be aligned.
    unsafe fn load_ptr<S: Simd>(s: S, p: *const Self) -> S::F;
    /// Stores 16. Panics if there is room for fewer.
    fn store<F: F32x16>(x: F, p: &mut [Self]);
}

impl Element for u16 {
    #[inline(always)]
    unsafe fn load_ptr<S: Simd>(s: S, p: *const u16) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_f16_ptr(p) }
    }

    #[inline(always)]
    fn store<F: F32x16>(x: F, p: &mut [u16]) {
        x.store_f16(p)
    }
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load_ptr<S: Simd>(s: S, p: *const f32) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { s.load_ptr(p) }
    }

    #[inline(always)]
    fn store<F: F32x16>(x: F, p: &mut [f32]) {
        x.store(p)
    }
}

/// Where a layer lies in a page, in elements.
#[derive(Debug, Clone, Copy)]
struct Place {
    k: usize,
    v: usize,
    layer: KvLayer,
}

/// The pages of one prepared Program.
pub(crate) struct KvPool {
    map: MmapMut,
    kind: KvType,
    places: Vec<Place>,
    page: usize,
    pages: usize,
    touched: Vec<bool>,
}

/// Columns of a stored value: whole vectors.
pub(crate) fn padded(v_dim: u32) -> usize {
    (v_dim as usize).next_multiple_of(LANES)
}

/// Places of the layers in a page, and its elements; none if that is more than there can be.
fn places(layers: &[KvLayer]) -> Option<(Vec<Place>, usize)> {
    let mut at = 0usize;
    let place = |&layer: &KvLayer| {
        let size = |dim: usize| (layer.kv_heads as usize).checked_mul(dim)?.checked_mul(BLOCK_TOKENS);
        let k = at;
        let v = k.checked_add(size(layer.head_dim as usize)?)?;
        at = v.checked_add(size(padded(layer.v_dim))?)?;
        Some(Place { k, v, layer })
    };
    let places = layers.iter().map(place).collect::<Option<_>>()?;
    Some((places, at))
}

/// Bytes of a page; none if that is more than there can be.
pub(crate) fn page_bytes(layers: &[KvLayer], kind: KvType) -> Option<usize> {
    places(layers)?.1.checked_mul(kind.bytes())
}

impl KvPool {
    /// Reserves `pages` pages; nothing is resident before it is written.
    pub(crate) fn new(layers: &[KvLayer], kind: KvType, pages: usize) -> Result<KvPool> {
        let bytes = page_bytes(layers, kind).and_then(|p| p.checked_mul(pages));
        let out_of_memory = Error::Memory { what: "the KV cache", bytes: bytes.unwrap_or(usize::MAX) };
        let map = bytes.and_then(|b| MmapOptions::new().len(b.max(1)).no_reserve_swap().map_anon().ok());
        let (map, (places, page)) = map.zip(places(layers)).ok_or(out_of_memory)?;
        huge_pages(&map);
        Ok(KvPool { map, kind, places, page, pages, touched: vec![false; pages] })
    }

    /// Notes that these pages are about to be written.
    pub(crate) fn touch(&mut self, pages: &[u32]) {
        pages.iter().for_each(|p| self.touched[*p as usize] = true);
    }

    /// Bytes of the pages that have been written.
    pub(crate) fn resident(&self) -> usize {
        self.touched.iter().filter(|t| **t).count() * self.page * self.kind.bytes()
    }

    /// Copies whole pages `(from, to)`, in order.
    pub(crate) fn copy(&mut self, pairs: &[(u32, u32)]) -> Result<()> {
        let bytes = self.page * self.kind.bytes();
        for &(from, to) in pairs {
            if from.max(to) as usize >= self.pages {
                return Err(Error::Step(format!("copy of block {from} to {to} of {}", self.pages)));
            }
            if self.touched[from as usize] {
                self.map.copy_within(from as usize * bytes..(from as usize + 1) * bytes, to as usize * bytes);
                self.touched[to as usize] = true;
            }
        }
        Ok(())
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

/// Asks for huge pages: a walk over the cache or over activations should not wait for page tables. Only a hint.
pub(crate) fn huge_pages(map: &MmapMut) {
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::HugePage);
    #[cfg(not(target_os = "linux"))]
    let _ = map;
}

/// Asks the processor for the cache line at `p`, which may be any address: nothing is read that the program can see.
#[inline(always)]
pub(crate) fn prefetch(p: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is part of x86-64, and a prefetch of a bad address does nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) };
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

    /// `n` elements of a page.
    ///
    /// # Safety
    /// `E` must be the type of the pool's kind, and nothing may write these elements while the slice lives.
    unsafe fn slice<E: Element>(&self, page: u32, at: usize, n: usize) -> &'a [E] {
        assert!((page as usize) < self.pages && at + n <= self.page, "page {page} of {}", self.pages);
        // SAFETY: inside the map by the assertion, whose start is aligned to a memory page; no writer by the contract.
        unsafe { std::slice::from_raw_parts(self.base.cast::<E>().add(page as usize * self.page + at), n) }
    }

    /// Writes the keys and values of one token.
    ///
    /// # Safety
    /// `E` must be the type of the pool's kind; no other thread may read this page's layer or write this token now.
    pub(crate) unsafe fn store<S: Simd, E: Element>(
        &self,
        s: S,
        layer: usize,
        page: u32,
        token: usize,
        k: &[f32],
        v: &[f32],
    ) {
        let place = self.places[layer];
        let (heads, hd) = (place.layer.kv_heads as usize, place.layer.head_dim as usize);
        let (vd, v_pad) = (place.layer.v_dim as usize, padded(place.layer.v_dim));
        assert!(
            (page as usize) < self.pages
                && token < BLOCK_TOKENS
                && k.len() == heads * hd
                && v.len() == heads * vd
        );
        // SAFETY: inside the map by the assertion on `page`.
        let base = unsafe { self.base.cast::<E>().add(page as usize * self.page) };
        let mut lanes = [E::default(); LANES];
        // The keys of all heads are one matrix `[kv_heads * head_dim][16]`, of which this is a column.
        for (i, x) in k.chunks(LANES).enumerate() {
            E::store(s.load_partial(x, 0.0), &mut lanes);
            for (j, y) in lanes[..x.len()].iter().enumerate() {
                // SAFETY: row i * 16 + j < kv_heads * head_dim of this layer's keys; this thread owns the token.
                unsafe { *base.add(place.k + (i * LANES + j) * BLOCK_TOKENS + token) = *y };
            }
        }
        for (h, v) in v.chunks_exact(vd).enumerate() {
            for (i, x) in v.chunks(LANES).enumerate() {
                let at = place.v + (h * BLOCK_TOKENS + token) * v_pad + i * LANES;
                // SAFETY: within row `token` of head h's values, which has v_pad columns; this thread owns the token.
                let out = unsafe { std::slice::from_raw_parts_mut(base.add(at), LANES) };
                E::store(s.load_partial(x, 0.0), out);
            }
        }
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

impl<'a> KvHead<'a> {
    /// Pages of the sequence.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Keys of the sequence's `block`th page: `[head_dim][16]`.
    ///
    /// # Safety
    /// `E` must be the type of the pool's kind, and nothing may write this layer while the slice lives.
    #[inline(always)]
    pub(crate) unsafe fn keys<E: Element>(&self, block: usize) -> &'a [E] {
        let n = self.place.layer.head_dim as usize * BLOCK_TOKENS;
        // SAFETY: the caller's promise.
        unsafe { self.kv.slice(self.blocks[block], self.place.k + self.head * n, n) }
    }

    /// Values of the sequence's `block`th page: `[16][padded(v_dim)]`.
    ///
    /// # Safety
    /// As for [`KvHead::keys`].
    #[inline(always)]
    pub(crate) unsafe fn values<E: Element>(&self, block: usize) -> &'a [E] {
        let n = padded(self.place.layer.v_dim) * BLOCK_TOKENS;
        // SAFETY: the caller's promise.
        unsafe { self.kv.slice(self.blocks[block], self.place.v + self.head * n, n) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Kernel};

    struct Store<'a>(KvShare<'a>, u32, usize, &'a [f32], &'a [f32]);

    impl Kernel for Store<'_> {
        type Out = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            // SAFETY: F32 pool, one thread.
            unsafe { self.0.store::<S, f32>(s, 1, self.1, self.2, self.3, self.4) }
        }
    }

    struct StoreAt<'a>(KvShare<'a>, usize, u32, usize, &'a [f32]);

    impl Kernel for StoreAt<'_> {
        type Out = ();

        #[inline(always)]
        fn run<S: Simd>(self, s: S) {
            // SAFETY: F32 pool, one thread.
            unsafe { self.0.store::<S, f32>(s, self.1, self.2, self.3, self.4, self.4) }
        }
    }

    #[test]
    fn tokens_land_in_their_pages_and_pages_are_copied_whole() {
        let layer = |kv_heads, head_dim, v_dim| KvLayer { kv_heads, head_dim, v_dim, window: None };
        let mut pool = KvPool::new(&[layer(1, 4, 4), layer(2, 5, 3)], KvType::F32, 1 << 20).unwrap();
        assert_eq!(pool.resident(), 0, "a reservation of gigabytes holds nothing");
        let k: Vec<f32> = (0..10).map(|i| i as f32).collect();
        let v: Vec<f32> = (0..6).map(|i| -(i as f32)).collect();
        for isa in Isa::available() {
            pool.touch(&[7]);
            isa.run(Store(pool.share(), 7, 3, &k, &v));
            pool.copy(&[(7, 9), (8, 10)]).unwrap();
            assert_eq!(pool.resident(), 2 * pool.page * 4, "an untouched page is not copied");
            let blocks = [7, 9];
            for (head, block) in [(0, 0), (1, 0), (1, 1)] {
                let kv = pool.share();
                let h = kv.head(1, head, &blocks);
                // SAFETY: F32 pool, one thread.
                let (keys, values) = unsafe { (h.keys::<f32>(block), h.values::<f32>(block)) };
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
        let page = pool.page * 4;
        assert_eq!((resident_pages(&pool), pool.resident()), (0, 0));
        let x = [1.0; 192];
        for pages in [1u32, 10, 40] {
            pool.touch(&(0..pages).collect::<Vec<_>>());
            for p in 0..pages {
                for token in 0..BLOCK_TOKENS {
                    for layer in 0..30 {
                        Isa::detect().run(StoreAt(pool.share(), layer, p, token, &x));
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
