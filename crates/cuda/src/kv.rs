//! The paged KV cache: one page for each block with all layers, `[layer][keys: head, 16 tokens, head_dim | values: head, 16, v_dim]`,
//! so that a block is saved, loaded and copied in one piece.

use crate::args::{CopyPages, Ptr};
use crate::gpu::{Buffer, Gpu};
use quarrel_ir::{BLOCK_TOKENS, Error, KvLayer, Result};
use std::sync::Arc;

/// Number type of the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KvType {
    /// 32-bit floats, for comparisons.
    F32,
    /// IEEE half.
    #[default]
    F16,
    /// Upper half of an f32.
    BF16,
}

impl KvType {
    /// The name in flags and displays.
    pub fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::F16 => "f16",
            KvType::BF16 => "bf16",
        }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        if self == KvType::F32 { 4 } else { 2 }
    }
}

/// Where a layer's part of a page begins, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) k: usize,
    pub(crate) v: usize,
}

/// Where the layers lie in a page, and the page's bytes; none if that is more than an address holds.
pub(crate) fn places(layers: &[KvLayer], kv: KvType) -> Option<(Vec<Place>, usize)> {
    let mut at = 0usize;
    let mut take = |heads: u32, dim: u32| {
        let bytes = (heads as usize).checked_mul(dim as usize)?.checked_mul(BLOCK_TOKENS * kv.bytes())?;
        let start = at;
        at = at.checked_add(bytes)?.checked_next_multiple_of(256)?;
        Some(start)
    };
    let places: Option<Vec<Place>> = layers
        .iter()
        .map(|l| Some(Place { k: take(l.kv_heads, l.head_dim)?, v: take(l.kv_heads, l.v_dim)? }))
        .collect();
    Some((places?, at))
}

/// The pages of a prepared Program.
pub(crate) struct KvPool {
    gpu: Arc<Gpu>,
    pub(crate) buffer: Buffer,
    pub(crate) page: usize,
    pub(crate) places: Vec<Place>,
    blocks: usize,
    pairs: Option<Buffer>,
}

impl KvPool {
    pub(crate) fn new(gpu: &Arc<Gpu>, layers: &[KvLayer], kv: KvType, blocks: usize) -> Result<KvPool> {
        let placed = places(layers, kv);
        let bytes = placed.as_ref().and_then(|(_, page)| page.checked_mul(blocks));
        let (Some((places, page)), Some(bytes)) = (placed, bytes) else {
            return Err(Error::Memory { what: "the KV cache", bytes: usize::MAX });
        };
        let buffer = gpu.zeroed(bytes, &format!("the KV cache of {} tokens", blocks * BLOCK_TOKENS))?;
        Ok(KvPool { gpu: gpu.clone(), buffer, page, places, blocks, pairs: None })
    }

    fn at(&self, block: u32) -> Result<Ptr> {
        if block as usize >= self.blocks {
            return Err(Error::Step(format!("block {block} of {}", self.blocks)));
        }
        Ok(self.buffer.ptr + (block as usize * self.page) as u64)
    }

    /// Copies pages in the order of the pairs.
    pub(crate) fn copy(&mut self, pairs: &[(u32, u32)]) -> Result<()> {
        for (from, to) in pairs {
            self.at(*from).and(self.at(*to))?;
        }
        let mut rest = pairs;
        while !rest.is_empty() {
            // As many as do not touch what an earlier one of the launch writes.
            let mut written = std::collections::HashSet::new();
            let n = rest
                .iter()
                .take(32768)
                .take_while(|(f, t)| !written.contains(f) && written.insert(*t))
                .count();
            let bytes: Vec<u8> =
                rest[..n].iter().flat_map(|p| [p.0, p.1]).flat_map(u32::to_le_bytes).collect();
            if self.pairs.as_ref().is_none_or(|b| b.bytes < bytes.len()) {
                self.pairs = Some(self.gpu.alloc(bytes.len().next_power_of_two(), "a list of blocks")?);
            }
            let list = self.pairs.as_ref().map_or(0, |b| b.ptr);
            self.gpu.upload(list, &bytes)?;
            let args = CopyPages { pool: self.buffer.ptr, pairs: list, page: self.page as i64 };
            let parts = (self.page / 16).div_ceil(256).clamp(1, 64) as u32;
            self.gpu.launch("copy_pages", [parts, n as u32, 1], 256, 0, &args)?;
            rest = &rest[n..];
        }
        Ok(())
    }

    pub(crate) fn save(&self, block: u32, out: &mut [u8]) -> Result<()> {
        self.check_len(out.len())?;
        self.gpu.read(out, self.at(block)?)
    }

    pub(crate) fn load(&self, block: u32, data: &[u8]) -> Result<()> {
        self.check_len(data.len())?;
        self.gpu.upload(self.at(block)?, data)?;
        self.gpu.wait()
    }

    fn check_len(&self, len: usize) -> Result<()> {
        if len == self.page {
            return Ok(());
        }
        Err(Error::Step(format!("a block in {len} bytes; a block of this cache has {}", self.page)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_lie_apart_in_a_page_and_a_page_is_aligned() {
        let layer = |kv_heads, head_dim, v_dim| KvLayer { kv_heads, head_dim, v_dim, window: None };
        let (places, page) = places(&[layer(2, 33, 33), layer(8, 128, 64)], KvType::F16).unwrap();
        let ends = [places[0].v, places[1].k, places[1].v, page];
        let starts = [places[0].k, places[0].v, places[1].k, places[1].v];
        let sizes = [2 * 33, 2 * 33, 8 * 128, 8 * 64].map(|n| n * 16 * 2);
        for i in 0..4 {
            assert!(starts[i] % 256 == 0 && starts[i] + sizes[i] <= ends[i], "{starts:?} {ends:?}");
        }
        assert_eq!(page % 256, 0);
        let huge = [layer(u32::MAX, u32::MAX, 1)];
        assert!(super::places(&huge, KvType::F32).is_none());
    }
}
