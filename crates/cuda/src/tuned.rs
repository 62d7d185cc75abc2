//! The tuned products: weights in tiles of 16 rows (`kernels/tile.cuh`), matrix-vector kernels for few rows (`mv_*.cu`), tensor-core
//! kernels for many (`mm_*.cu`), and how they are launched.

use crate::gpu::Caps;
use quarrel_formats::DType;

/// A tensor type in tiles: the numbers of `Fmt*` in tile.cuh.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Format {
    dtype: DType,
    /// The kernel that makes tiles of rows as in the file.
    pub(crate) repack: &'static str,
    /// The kernel for up to 8 rows.
    pub(crate) mv: &'static str,
    /// The kernels for 32, 64 and 128 rows with K in slices, and for 256 rows at a time; none for f32.
    mm: Option<[&'static str; 4]>,
    /// The kernel for experts with few rows each.
    pub(crate) mvx: &'static str,
    /// The kernels for experts with many, 64 and 128 of them at a time.
    mmx: Option<[&'static str; 2]>,
    /// Columns and bytes of a tile, tiles of a stage of a ring.
    columns: usize,
    tile: usize,
    stage: usize,
    /// 16-bit numbers that an element of the input is split into.
    planes: usize,
    /// Columns whose inputs are summed for minima and offsets; 0 where there are none.
    sums: usize,
    /// Whether the input is rounded to bf16 rather than f16.
    pub(crate) bf16: bool,
}

macro_rules! tiles {
    ($dtype:ident, $name:literal, $columns:literal, $tile:literal, $stage:literal, $planes:literal, $sums:literal, $bf16:literal, $mm:expr) => {
        Format {
            dtype: DType::$dtype,
            repack: concat!("repack_", $name),
            mv: concat!("mv_", $name, "_8"),
            mm: $mm,
            mvx: concat!("mvx_", $name),
            mmx: if $mm.is_some() {
                Some([concat!("mmx_", $name, "_64"), concat!("mmx_", $name, "_128")])
            } else {
                None
            },
            columns: $columns,
            tile: $tile,
            stage: $stage,
            planes: $planes,
            sums: $sums,
            bf16: $bf16,
        }
    };
}
const NONE: Option<[&'static str; 4]> = None;
macro_rules! mm {
    ($name:literal) => {
        Some([
            concat!("mm_", $name, "_32s"),
            concat!("mm_", $name, "_64s"),
            concat!("mm_", $name, "_128s"),
            concat!("mm_", $name, "_256"),
        ])
    };
}

static FORMATS: [Format; 16] = [
    tiles!(F32, "f32", 64, 4096, 1, 2, 0, true, NONE),
    tiles!(F16, "f16", 64, 2048, 1, 1, 0, false, mm!("f16")),
    tiles!(BF16, "bf16", 64, 2048, 1, 2, 0, true, mm!("bf16")),
    tiles!(Q8_0, "q8_0", 64, 1088, 2, 1, 32, false, mm!("q8_0")),
    tiles!(Q4_0, "q4_0", 64, 576, 4, 1, 32, false, mm!("q4_0")),
    tiles!(Q4_1, "q4_1", 64, 640, 4, 1, 32, false, mm!("q4_1")),
    tiles!(Q5_0, "q5_0", 64, 704, 4, 1, 32, false, mm!("q5_0")),
    tiles!(Q5_1, "q5_1", 64, 768, 4, 1, 32, false, mm!("q5_1")),
    tiles!(IQ4_NL, "iq4_nl", 64, 576, 4, 1, 32, false, mm!("iq4_nl")),
    tiles!(MXFP4, "mxfp4", 64, 544, 4, 1, 32, false, mm!("mxfp4")),
    tiles!(Q4_K, "q4_k", 256, 2304, 1, 1, 32, false, mm!("q4_k")),
    tiles!(Q5_K, "q5_k", 256, 2816, 1, 1, 32, false, mm!("q5_k")),
    tiles!(Q6_K, "q6_k", 256, 3360, 1, 1, 16, false, mm!("q6_k")),
    tiles!(Q3_K, "q3_k", 256, 1824, 2, 1, 16, false, mm!("q3_k")),
    tiles!(Q2_K, "q2_k", 256, 1344, 2, 1, 16, false, mm!("q2_k")),
    tiles!(IQ4_XS, "iq4_xs", 256, 2208, 1, 1, 32, false, mm!("iq4_xs")),
];

/// The tiles of a type, if there are such.
pub(crate) fn format(dtype: DType) -> Option<&'static Format> {
    FORMATS.iter().find(|f| f.dtype == dtype)
}

/// Rows of a matrix-vector launch.
pub(crate) const MV_ROWS: usize = 8;

/// Slices of K: the sums are added in their order, so it must be the same whatever the number of rows.
const SLICES: usize = 8;

/// Warps of a block.
const WARPS: usize = 8;

/// A launch for up to [`MV_ROWS`] rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mv {
    pub(crate) rows: usize,
    pub(crate) cluster: u32,
    pub(crate) slices: i32,
    pub(crate) stages: i32,
    pub(crate) grid: u32,
    pub(crate) block: u32,
    pub(crate) shared: u32,
}

/// A launch for many rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mm {
    pub(crate) kernel: &'static str,
    /// Rows of the prepared input.
    pub(crate) image_rows: usize,
    /// 16-bit numbers that an element of it is split into.
    pub(crate) planes: usize,
    pub(crate) cluster: u32,
    pub(crate) grid: u32,
    pub(crate) shared: u32,
}

/// How a product of some number of rows is launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// In pieces of so many rows.
    Mv(Mv),
    Mm(Mm),
}

impl Plan {
    /// The same with so many planes of the input of many rows.
    pub(crate) fn with_planes(self, planes: usize) -> Plan {
        match self {
            Plan::Mm(mm) => Plan::Mm(Mm { planes, ..mm }),
            Plan::Mv(_) => self,
        }
    }
}

/// Where the parts of a prepared input begin, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) sums: usize,
    pub(crate) scales: usize,
    pub(crate) bytes: usize,
}

impl Format {
    /// Bytes of `n` rows of `k` columns.
    pub(crate) fn bytes(&self, n: usize, k: usize) -> usize {
        n.div_ceil(16) * k.div_ceil(self.columns) * self.tile
    }

    /// Planes of the input of many rows: in `fine` products what rounding to bf16 leaves is not left out.
    pub(crate) fn image_planes(&self, fine: bool) -> usize {
        if fine && self.bf16 { 2 } else { 1 }
    }

    /// Most rows of a launch that splits its input in two where the type's numbers have more bits than one plane.
    pub(crate) fn few(&self) -> usize {
        MV_ROWS / self.planes
    }

    /// The launch of a product `[n, k]`; `n` counts both halves of a gate. None where the GPU has too little shared memory.
    pub(crate) fn plan(
        &self,
        rows: usize,
        n: usize,
        k: usize,
        caps: &Caps,
        deterministic: bool,
    ) -> Option<Plan> {
        // Inputs of two planes are twice the work and twice the shared memory of a matrix-vector kernel; tensor cores take one.
        if let Some(kernels) = self.mm.filter(|_| rows > self.few() && !deterministic && caps.sm == 90) {
            return Some(Plan::Mm(self.mm(kernels, rows, (n, k), caps)));
        }
        let mut piece = rows.min(MV_ROWS);
        while piece > 0 {
            if let Some(mv) = self.mv(piece, n, k, SLICES, caps) {
                return Some(Plan::Mv(mv));
            }
            piece /= 2;
        }
        None
    }

    /// `slices` of K, up to [`SLICES`].
    fn mv(&self, rows: usize, n: usize, k: usize, slices: usize, caps: &Caps) -> Option<Mv> {
        let tiles = k.div_ceil(self.columns);
        let stage = (self.tile * self.stage).next_multiple_of(128);
        let most = caps.shared_max as usize;
        // Blocks of a cluster share K where a block's shared memory does not hold the input.
        let clusters: &[usize] = if caps.sm == 90 { &[1, 2, 4, 8] } else { &[1] };
        for &cluster in clusters.iter().filter(|c| **c <= slices) {
            for stages in [3, 2] {
                let columns = (tiles.div_ceil(cluster) + usize::from(cluster > 1)) * self.columns;
                let sums = columns.checked_div(self.sums).map_or(0, |groups| 32 * groups);
                let shared = 1792
                    + WARPS * stages * stage
                    + WARPS * 1024
                    + sums
                    + rows * (2 * columns + 64) * self.planes;
                if shared > most {
                    continue;
                }
                let wk = slices / cluster;
                let units = n.div_ceil(16).div_ceil(WARPS / wk);
                let per = (most / (shared + 1024)).clamp(1, 2);
                let blocks = units.min((caps.multiprocessors as usize * per / cluster).max(1)) * cluster;
                return Some(Mv {
                    rows,
                    cluster: cluster as u32,
                    slices: wk as i32,
                    stages: stages as i32,
                    grid: blocks as u32,
                    block: 32 * WARPS as u32,
                    shared: shared as u32,
                });
            }
        }
        None
    }

    /// The launch for tiles of up to `rows` pairs of an expert, of which `tiles` says how many there may be.
    pub(crate) fn experts_mv(
        &self,
        rows: usize,
        n: usize,
        k: usize,
        tiles: impl Fn(usize) -> usize,
        caps: &Caps,
    ) -> Option<Mv> {
        // Experts are small: no more slices than there are tiles along K, so that no warp is without work.
        let along = k.div_ceil(self.columns).max(1);
        let slices = SLICES.min(1 << along.ilog2());
        let mut piece = rows;
        while piece > 0 {
            if let Some(mv) = self.mv(piece, n, k, slices, caps) {
                let units = n.div_ceil(16).div_ceil(WARPS / mv.slices as usize);
                // Twice the blocks that run at once: tiles are of different experts, and not all are there.
                let wanted = 4 * caps.multiprocessors as usize;
                let blocks = wanted.div_ceil(tiles(piece) * mv.cluster as usize).clamp(1, units.max(1));
                return Some(Mv { grid: blocks as u32 * mv.cluster, ..mv });
            }
            piece /= 2;
        }
        None
    }

    /// The launch for `pairs` of `experts` where they are many, and the pairs of a tile.
    pub(crate) fn experts_mm(
        &self,
        pairs: usize,
        experts: usize,
        n: usize,
        tiles: impl Fn(usize) -> usize,
        caps: &Caps,
    ) -> Option<(Mm, usize)> {
        let kernels = self.mmx.filter(|_| caps.sm == 90 && pairs > self.few() * experts)?;
        let at = usize::from(pairs > 96 * experts);
        let (of, stages) = [(64, 6), (128, 5)][at];
        let shared = 1024 + stages * of * 128 + self.weight_stages() * 8 * self.tile + 16_384;
        let work = tiles(of) * n.div_ceil(128);
        let mm = Mm {
            kernel: kernels[at],
            image_rows: tiles(of) * of,
            planes: 1,
            cluster: 1,
            grid: work.min(caps.multiprocessors as usize) as u32,
            shared: shared as u32,
        };
        Some((mm, of))
    }

    /// Tiles of the ring of weights of the kernels for many rows: `mm_astages` of mm.cuh.
    fn weight_stages(&self) -> usize {
        match (self.columns, self.tile) {
            (64, 0..=1500) => 6,
            (64, _) => 4,
            (_, 0..=2400) => 3,
            _ => 2,
        }
    }

    fn mm(&self, kernels: [&'static str; 4], rows: usize, (n, k): (usize, usize), caps: &Caps) -> Mm {
        // Blocks of 256 rows compute the fastest, but too few of them leave multiprocessors idle.
        let few = rows.div_ceil(256) * n.div_ceil(128) < caps.multiprocessors as usize;
        let (at, tokens, most, stages) = match rows {
            0..=32 => (0, 32, 8, 5),
            33..=64 => (1, 64, 4, 6),
            65..=128 => (2, 128, 2, 5),
            129..=512 if few => (2, 128, 2, 5),
            _ => (3, 256, 0, 4),
        };
        let weights = self.weight_stages();
        let sliced = most > 0;
        let shared = 1024 + stages * tokens * 128 + weights * 8 * self.tile + if sliced { 0 } else { 16_384 };
        let work = rows.div_ceil(tokens) * n.div_ceil(16).div_ceil(8);
        // Slices of K in a cluster, until all multiprocessors have work.
        let mut cluster = 1;
        while 2 * cluster <= most
            && work * 2 * cluster <= caps.multiprocessors as usize
            && k.div_ceil(self.columns) >= 2 * cluster
        {
            cluster *= 2;
        }
        let grid = if sliced { work * cluster } else { work.min(caps.multiprocessors as usize) };
        Mm {
            kernel: kernels[at],
            image_rows: rows.next_multiple_of(tokens),
            planes: 1,
            cluster: cluster as u32,
            grid: grid as u32,
            shared: shared as u32,
        }
    }

    /// The prepared input of a plan.
    pub(crate) fn parts(&self, plan: &Plan, k: usize) -> Parts {
        let columns = k.next_multiple_of(64);
        let (numbers, sums, rows) = match plan {
            Plan::Mv(mv) => (self.planes * mv.rows * columns, mv.rows * columns / 16, mv.rows),
            Plan::Mm(mm) => (mm.planes * mm.image_rows * columns, 0, mm.image_rows),
        };
        let sums_at = (2 * numbers).next_multiple_of(256);
        let scales = (sums_at + 4 * sums).next_multiple_of(256);
        Parts { sums: sums_at, scales, bytes: (scales + 4 * rows).next_multiple_of(256) }
    }

    /// The kernel that prepares the input of a plan.
    pub(crate) fn prep(&self, plan: &Plan) -> &'static str {
        match (plan, self.bf16) {
            (Plan::Mv(_), false) => "mv_prep_f16",
            (Plan::Mv(_), true) => "mv_prep_bf16",
            (Plan::Mm(_), false) => "mm_prep_f16",
            (Plan::Mm(_), true) => "mm_prep_bf16",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h100() -> Caps {
        Caps {
            name: "H100".into(),
            sm: 90,
            multiprocessors: 132,
            shared_max: 232_448,
            l2: 50 << 20,
            memory: 80 << 30,
        }
    }

    #[test]
    fn every_type_has_a_plan_for_every_shape_of_usual_models() {
        for f in &FORMATS {
            assert_eq!(f.tile * 16 % 16, 0);
            for (n, k) in [(1, 256), (576, 1536), (4096, 14_336), (28_672, 4096), (128_256, 8192)] {
                for rows in [1, 2, 8, 9, 33, 64, 65, 128, 129, 300, 512, 4096] {
                    for deterministic in [false, true] {
                        let plan = f.plan(rows, n, k, &h100(), deterministic).unwrap();
                        let (shared, cluster, grid) = match plan {
                            Plan::Mv(p) => {
                                assert_eq!(
                                    p.slices as u32 * p.cluster,
                                    8,
                                    "{f:?}: the order of sums changes"
                                );
                                (p.shared, p.cluster, p.grid)
                            }
                            Plan::Mm(p) => {
                                assert!(p.image_rows >= rows && !deterministic);
                                (p.shared, p.cluster, p.grid)
                            }
                        };
                        assert!(shared <= 232_448 && grid % cluster == 0 && grid > 0, "{f:?} {plan:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_kernels_of_every_type_are_compiled() {
        let built = include_str!("../kernels/built/resources.tsv");
        let has = |name: &str| built.lines().any(|l| l.split('\t').nth(1) == Some(&format!("{name} sm_90a")));
        for f in &FORMATS {
            let many = f.mm.into_iter().flatten().chain(f.mmx.into_iter().flatten());
            for name in [f.repack, f.mv, f.mvx].into_iter().chain(many) {
                assert!(has(name), "{name}");
            }
        }
    }
}
