//! Tuned products: none yet; everything runs on the plain kernel.

use crate::choose::{Choice, Layout, Shape};
use crate::gpu::Caps;
use quarrel_formats::DType;

/// A layout that tuned kernels read, if there is one for this weight.
pub(crate) fn layout(_dtype: DType, _n: usize, _k: usize, _caps: &Caps) -> Option<Layout> {
    None
}

/// A tuned kernel, if there is one for this product.
pub(crate) fn choose(_shape: &Shape, _layout: &Layout, _caps: &Caps, _deterministic: bool) -> Option<Choice> {
    None
}

/// Bytes of a row of quantised input.
pub(crate) fn q8_row_bytes(k: usize) -> usize {
    4 * k
}
