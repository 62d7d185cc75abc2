//! Which kernel a product runs on: the tuned one where there is one, else the plain one, which reads every type as it is in the file.

use crate::gpu::Caps;
use crate::tuned;
use quarrel_formats::DType;

/// One launch of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Type of the weight.
    pub(crate) dtype: DType,
    /// Rows of the input.
    pub(crate) rows: usize,
    /// Outputs: the weight's rows, or half of them with a gate.
    pub(crate) n: usize,
    /// Columns.
    pub(crate) k: usize,
    /// Whether a second weight of the same shape is gated by the first.
    pub(crate) glu: bool,
}

/// The form in which a product reads its input, `[rows, k]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// As it is.
    F32,
    /// IEEE half.
    F16,
    /// Upper half of an f32.
    Bf16,
    /// Quantised by the tuned kernels' own `prep_q8`.
    Q8,
}

impl Input {
    /// The kernel that makes it.
    pub(crate) fn prep(self) -> &'static str {
        match self {
            Input::F32 => "prep_f32",
            Input::F16 => "prep_f16",
            Input::Bf16 => "prep_bf16",
            Input::Q8 => "prep_q8",
        }
    }

    /// Bytes of a row.
    pub(crate) fn row_bytes(self, k: usize) -> usize {
        match self {
            Input::F32 => 4 * k,
            Input::F16 | Input::Bf16 => 2 * k,
            Input::Q8 => tuned::q8_row_bytes(k),
        }
    }
}

/// How the bytes of a weight are arranged on the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    /// For [`choose`] to know it again.
    pub(crate) name: &'static str,
    /// The kernel that makes it from the file's bytes; none for those.
    pub(crate) repack: Option<Launch>,
    /// Bytes of each group of rows.
    pub(crate) group_bytes: usize,
    /// Rows that are stored together; a part of a weight begins at a multiple.
    pub(crate) group: usize,
}

/// Grid, block and dynamic shared memory of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Name of the kernel.
    pub(crate) kernel: &'static str,
    /// Blocks.
    pub(crate) grid: [u32; 3],
    /// Threads of a block.
    pub(crate) block: u32,
    /// Bytes.
    pub(crate) shared: u32,
}

/// A kernel for a [`Shape`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The launch.
    pub(crate) launch: Launch,
    /// What it reads.
    pub(crate) input: Input,
    /// Bytes of scratch.
    pub(crate) work: usize,
}

/// The layout of the file.
const FILE: &str = "file";

impl Layout {
    /// Bytes of `n` rows.
    pub(crate) fn bytes(&self, n: usize) -> usize {
        n.div_ceil(self.group) * self.group_bytes
    }
}

/// The layout of a weight `[n, k]`, for products of any number of rows.
pub(crate) fn layout(dtype: DType, n: usize, k: usize, caps: &Caps) -> Layout {
    let file = || Layout { name: FILE, repack: None, group_bytes: dtype.row_bytes(k).unwrap_or(0), group: 1 };
    tuned::layout(dtype, n, k, caps).unwrap_or_else(file)
}

/// The kernel of a product. With `deterministic` a row's result must not depend on how many rows there are.
pub(crate) fn choose(shape: &Shape, layout: &Layout, caps: &Caps, deterministic: bool) -> Choice {
    tuned::choose(shape, layout, caps, deterministic).unwrap_or_else(|| plain(shape))
}

/// The plain product: a warp for each two rows of the weight.
fn plain(shape: &Shape) -> Choice {
    let one = shape.rows == 1;
    let slots = if shape.glu { shape.n } else { shape.n.div_ceil(2) };
    let tiles = if one { 1 } else { shape.rows.div_ceil(8) };
    let launch = Launch {
        kernel: plain_name(shape.dtype, one),
        grid: [slots.div_ceil(8) as u32, tiles as u32, 1],
        block: 256,
        shared: 0,
    };
    Choice { launch, input: Input::F32, work: 0 }
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
