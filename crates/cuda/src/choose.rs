//! Which kernel a product runs on: the tuned one of its tensor type where there is one, else the plain one, which reads every type as it
//! is in the file.

use crate::gpu::Caps;
use crate::tuned::{self, Format, Plan};
use crate::weights::RunShape;
use quarrel_formats::DType;
use quarrel_ir::{Uses, WeightDecl};

/// How the rows of a weight are arranged on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// As in the file.
    File,
    /// In tiles.
    Tiles(&'static Format),
}

/// The layout of products of a type with `k` columns.
pub(crate) fn layout(dtype: DType, n: usize, k: usize, caps: &Caps) -> Layout {
    let fits = |f: &&'static Format| f.plan(1, n, k, caps, true).is_some();
    tuned::format(dtype).filter(fits).map_or(Layout::File, Layout::Tiles)
}

/// The layout of experts' matrices, `n` rows each: in tiles where none holds rows of two of them. With `glu` a tile has 8 rows of both halves.
pub(crate) fn expert_layout(dtype: DType, n: usize, k: usize, glu: bool, caps: &Caps) -> Layout {
    match n.is_multiple_of(if glu { 8 } else { 16 }) {
        true => layout(dtype, n, k, caps),
        false => Layout::File,
    }
}

/// How a run of a weight is held for the products that a Program has with it; `runs`: how many the weight has.
pub(crate) fn held_layout(decl: &WeightDecl, uses: Uses, runs: usize, run: &RunShape, caps: &Caps) -> Layout {
    let cols = decl.cols as usize;
    match decl.parts.first().filter(|_| uses.experts) {
        Some(part) => expert_layout(run.dtype, part.rows as usize, cols, uses.halves && runs == 1, caps),
        None => layout(run.dtype, run.rows, cols, caps),
    }
}

/// One launch of a product.
pub(crate) struct ProductLaunch {
    /// Which run of the weight.
    pub(crate) run: usize,
    /// First output column.
    pub(crate) first: usize,
    /// Output columns: the run's rows, or half of them with a gate.
    pub(crate) n: usize,
    /// Whether the run's first half gates its second.
    pub(crate) glu: bool,
    pub(crate) kernel: Kernel,
}

/// What runs a product.
pub(crate) enum Kernel {
    /// The plain kernel and its grid.
    Plain(&'static str, [u32; 3]),
    Tuned(&'static Format, Plan),
}

/// A product of a weight, as far as its launches go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    pub(crate) rows: usize,
    pub(crate) k: usize,
    /// Whether the weight's first half gates its second.
    pub(crate) glu: bool,
    /// Whether a row's result must not depend on how many rows there are.
    pub(crate) deterministic: bool,
    /// Whether its input must not be rounded: see [`Uses::exact`].
    pub(crate) exact: bool,
    /// Whether inputs of bf16 products keep 16 bits: where experts are chosen, what is lost may choose another one.
    pub(crate) fine: bool,
}

impl Product {
    /// One launch for each run of the weight, or one for both halves of a gate where they are alike.
    pub(crate) fn launches(&self, runs: &[RunShape], caps: &Caps) -> Vec<ProductLaunch> {
        let glu = self.glu && runs.len() == 1;
        let launch = |(run, r): (usize, &RunShape)| {
            let n = if glu { r.rows / 2 } else { r.rows };
            let tuned = match layout(r.dtype, r.rows, self.k, caps) {
                Layout::File => None,
                // As in the file it is there too; one launch for all rows, with f32 inputs.
                Layout::Tiles(f) if self.exact && !self.deterministic && self.rows > f.few() => None,
                Layout::Tiles(f) => {
                    let planes = f.image_planes(self.fine);
                    let plan = f.plan(self.rows, r.rows, self.k, caps, self.deterministic);
                    Some((f, plan.map(|p| p.with_planes(planes))))
                }
            };
            let kernel = match tuned {
                Some((f, Some(plan))) => Kernel::Tuned(f, plan),
                _ => self.plain(r.dtype, n, glu),
            };
            ProductLaunch { run, first: r.first, n, glu, kernel }
        };
        runs.iter().enumerate().map(launch).collect()
    }

    /// The plain kernel: a warp for each two rows of the weight.
    fn plain(&self, dtype: DType, n: usize, glu: bool) -> Kernel {
        let one = self.rows == 1;
        let slots = if glu { n } else { n.div_ceil(2) };
        let tiles = if one { 1 } else { self.rows.div_ceil(8) };
        Kernel::Plain(plain_name(dtype, one), [slots.div_ceil(8) as u32, tiles as u32, 1])
    }
}

macro_rules! names {
    ($prefix:literal, $suffix:literal, $dtype:expr, [$($t:ident $name:literal),* $(,)?]) => {
        match $dtype {
            $(DType::$t => concat!($prefix, $name, $suffix),)*
            DType::U8 | DType::I8 | DType::I16 | DType::I32 | DType::I64 => concat!($prefix, "none", $suffix),
        }
    };
}
macro_rules! kernel_of {
    ($prefix:literal, $suffix:literal, $dtype:expr) => {
        names!($prefix, $suffix, $dtype, [
            F32 "f32", F16 "f16", BF16 "bf16", F64 "f64", Q4_0 "q4_0", Q4_1 "q4_1", Q5_0 "q5_0", Q5_1 "q5_1", Q8_0 "q8_0",
            Q8_1 "q8_1", Q2_K "q2_k", Q3_K "q3_k", Q4_K "q4_k", Q5_K "q5_k", Q6_K "q6_k", Q8_K "q8_k", IQ1_S "iq1_s",
            IQ1_M "iq1_m", IQ2_XXS "iq2_xxs", IQ2_XS "iq2_xs", IQ2_S "iq2_s", IQ3_XXS "iq3_xxs", IQ3_S "iq3_s",
            IQ4_NL "iq4_nl", IQ4_XS "iq4_xs", TQ1_0 "tq1_0", TQ2_0 "tq2_0", MXFP4 "mxfp4", NVFP4 "nvfp4",
        ])
    };
}

fn plain_name(dtype: DType, one: bool) -> &'static str {
    if one { kernel_of!("simple_", "_1", dtype) } else { kernel_of!("simple_", "_8", dtype) }
}

/// The plain kernel of experts.
pub(crate) fn experts_plain(dtype: DType) -> &'static str {
    kernel_of!("experts_", "", dtype)
}

/// The kernel that looks rows up in a table of this type.
pub(crate) fn embed(dtype: DType) -> &'static str {
    kernel_of!("embed_", "", dtype)
}

/// Whether weights of this type have a meaning here.
pub(crate) fn known(dtype: DType) -> bool {
    !matches!(dtype, DType::U8 | DType::I8 | DType::I16 | DType::I32 | DType::I64)
}

/// The number of rows that a step of so many is recorded for: exact where every row costs, few numbers beyond.
pub(crate) fn bucket(rows: usize, limit: usize) -> usize {
    let up = match rows {
        0..=8 => rows,
        9..=64 => rows.next_multiple_of(16),
        65..=128 => rows.next_multiple_of(32),
        _ => rows.next_multiple_of(64),
    };
    up.min(limit.max(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_rows_and_stays_within_the_limit() {
        for limit in [1, 7, 64, 100, 512] {
            for rows in 0..=limit {
                let b = bucket(rows, limit);
                assert!(b >= rows && b <= limit, "{rows} of {limit}: {b}");
                assert_eq!(bucket(b, limit), b, "a bucket is its own");
            }
        }
    }
}
