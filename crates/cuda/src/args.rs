//! The argument structs of the kernels, as `kernels/*.cu` declare them: each kernel takes exactly one, by value.

/// An address in device memory; 0 is null.
pub(crate) type Ptr = u64;

/// Where the inputs of a step lie: `Step` of `common.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Step {
    pub(crate) n: Ptr,
    pub(crate) row: Ptr,
    pub(crate) outputs: Ptr,
    pub(crate) blocks: Ptr,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prep {
    pub(crate) x: Ptr,
    pub(crate) gain: Ptr,
    pub(crate) bias: Ptr,
    pub(crate) out: Ptr,
    pub(crate) x_stride: i64,
    pub(crate) rows: i32,
    pub(crate) k: i32,
    pub(crate) group: i32,
    pub(crate) kind: i32,
    pub(crate) eps: f32,
    pub(crate) gain_step: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mat {
    pub(crate) w: Ptr,
    pub(crate) w2: Ptr,
    pub(crate) x: Ptr,
    pub(crate) bias: Ptr,
    pub(crate) bias2: Ptr,
    pub(crate) add: Ptr,
    pub(crate) out: Ptr,
    pub(crate) work: Ptr,
    pub(crate) add_stride: i64,
    pub(crate) out_stride: i64,
    pub(crate) rows: i32,
    pub(crate) n: i32,
    pub(crate) k: i32,
    pub(crate) act: i32,
}

/// `q::TileArgs` of tile.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mv {
    pub(crate) w: Ptr,
    pub(crate) x: Ptr,
    pub(crate) prepared: Ptr,
    pub(crate) sums: Ptr,
    pub(crate) scales: Ptr,
    pub(crate) gain: Ptr,
    pub(crate) bias: Ptr,
    pub(crate) add: Ptr,
    pub(crate) out: Ptr,
    pub(crate) x_stride: i64,
    pub(crate) add_stride: i64,
    pub(crate) out_stride: i64,
    pub(crate) n: i32,
    pub(crate) k: i32,
    pub(crate) rows: i32,
    pub(crate) norm: i32,
    pub(crate) eps: f32,
    pub(crate) act: i32,
    pub(crate) slices: i32,
    pub(crate) cluster: i32,
    pub(crate) stages: i32,
    pub(crate) pad: i32,
}

/// `q::PrepArgs` of mv_prep.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct MvPrep {
    pub(crate) x: Ptr,
    pub(crate) gain: Ptr,
    pub(crate) out: Ptr,
    pub(crate) sums: Ptr,
    pub(crate) scales: Ptr,
    pub(crate) x_stride: i64,
    pub(crate) rows: i32,
    pub(crate) k: i32,
    pub(crate) norm: i32,
    pub(crate) eps: f32,
}

/// `q::MmArgs` of mm.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mm {
    pub(crate) w: Ptr,
    pub(crate) x: Ptr,
    pub(crate) scales: Ptr,
    pub(crate) bias: Ptr,
    pub(crate) add: Ptr,
    pub(crate) out: Ptr,
    pub(crate) add_stride: i64,
    pub(crate) out_stride: i64,
    pub(crate) n: i32,
    pub(crate) k: i32,
    pub(crate) rows: i32,
    pub(crate) image_rows: i32,
    pub(crate) act: i32,
    pub(crate) planes: i32,
}

/// `q::MmPrepArgs` of mm_prep.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct MmPrep {
    pub(crate) x: Ptr,
    pub(crate) gain: Ptr,
    pub(crate) image: Ptr,
    pub(crate) scales: Ptr,
    pub(crate) x_stride: i64,
    pub(crate) rows: i32,
    pub(crate) k: i32,
    pub(crate) norm: i32,
    pub(crate) eps: f32,
    pub(crate) image_rows: i32,
    pub(crate) planes: i32,
}

/// `q::RepackArgs` of mv_repack.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Repack {
    pub(crate) src: Ptr,
    pub(crate) dst: Ptr,
    pub(crate) n: i64,
    pub(crate) row0: i64,
    pub(crate) rows: i32,
    pub(crate) k: i32,
    pub(crate) glu: i32,
    pub(crate) pad: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Embed {
    pub(crate) step: Step,
    pub(crate) w: Ptr,
    pub(crate) out: Ptr,
    pub(crate) stride: i64,
    pub(crate) add: Ptr,
    pub(crate) add_stride: i64,
    pub(crate) first: i32,
    pub(crate) last: i32,
    pub(crate) cols: i32,
    pub(crate) scale: f32,
    pub(crate) by: i32,
    pub(crate) pad: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Norm {
    pub(crate) n: Ptr,
    pub(crate) x: Ptr,
    pub(crate) gain: Ptr,
    pub(crate) bias: Ptr,
    pub(crate) add: Ptr,
    pub(crate) out: Ptr,
    pub(crate) x_stride: i64,
    pub(crate) out_stride: i64,
    pub(crate) add_stride: i64,
    pub(crate) rows_kind: i32,
    pub(crate) group: i32,
    pub(crate) kind: i32,
    pub(crate) eps: f32,
    pub(crate) gain_step: i32,
    pub(crate) pad: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Angles {
    pub(crate) step: Step,
    pub(crate) freq: Ptr,
    pub(crate) out: Ptr,
    pub(crate) half: i32,
    pub(crate) mscale: f32,
    pub(crate) growth_tokens: f32,
    pub(crate) growth_by: f32,
    pub(crate) growth_ahead: f32,
    pub(crate) pad: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rope {
    pub(crate) n: Ptr,
    pub(crate) x: Ptr,
    pub(crate) angles: Ptr,
    pub(crate) stride: i64,
    pub(crate) heads: i32,
    pub(crate) head_dim: i32,
    pub(crate) half: i32,
    pub(crate) interleaved: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Store {
    pub(crate) n: Ptr,
    pub(crate) list: Ptr,
    pub(crate) blocks: Ptr,
    pub(crate) k: Ptr,
    pub(crate) v: Ptr,
    pub(crate) pool: Ptr,
    pub(crate) k_stride: i64,
    pub(crate) v_stride: i64,
    pub(crate) page: i64,
    pub(crate) k_at: i64,
    pub(crate) v_at: i64,
    pub(crate) kv_heads: i32,
    pub(crate) head_dim: i32,
    pub(crate) v_dim: i32,
    pub(crate) copies: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attend {
    pub(crate) step: Step,
    pub(crate) list: Ptr,
    pub(crate) q: Ptr,
    pub(crate) out: Ptr,
    pub(crate) pool: Ptr,
    pub(crate) part: Ptr,
    pub(crate) q_stride: i64,
    pub(crate) out_stride: i64,
    pub(crate) page: i64,
    pub(crate) k_at: i64,
    pub(crate) v_at: i64,
    pub(crate) heads: i32,
    pub(crate) kv_heads: i32,
    pub(crate) head_dim: i32,
    pub(crate) v_dim: i32,
    pub(crate) window: i32,
    pub(crate) chunks: i32,
    pub(crate) scale: f32,
    pub(crate) softcap: f32,
    pub(crate) sinks: Ptr,
    pub(crate) alibi: f32,
    pub(crate) chunked: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flash {
    pub(crate) step: Step,
    pub(crate) seqs: Ptr,
    pub(crate) q: Ptr,
    pub(crate) out: Ptr,
    pub(crate) pool: Ptr,
    pub(crate) q_stride: i64,
    pub(crate) out_stride: i64,
    pub(crate) page: i64,
    pub(crate) k_at: i64,
    pub(crate) v_at: i64,
    pub(crate) heads: i32,
    pub(crate) kv_heads: i32,
    pub(crate) window: i32,
    pub(crate) chunked: i32,
    pub(crate) scale: f32,
    pub(crate) softcap: f32,
    pub(crate) sinks: Ptr,
    pub(crate) alibi: f32,
    pub(crate) pad: i32,
}

/// `q::PrefillArgs` of attn_prefill.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prefill {
    pub(crate) tiles: Ptr,
    pub(crate) blocks: Ptr,
    pub(crate) q: Ptr,
    pub(crate) out: Ptr,
    pub(crate) pool: Ptr,
    pub(crate) q_stride: i64,
    pub(crate) out_stride: i64,
    pub(crate) page: i64,
    pub(crate) k_at: i64,
    pub(crate) v_at: i64,
    pub(crate) heads: i32,
    pub(crate) kv_heads: i32,
    pub(crate) window: i32,
    pub(crate) chunked: i32,
    pub(crate) scale: f32,
    pub(crate) softcap: f32,
    pub(crate) sinks: Ptr,
    pub(crate) alibi: f32,
    pub(crate) pad: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct RopeStore {
    pub(crate) store: Store,
    pub(crate) q: Ptr,
    pub(crate) angles: Ptr,
    pub(crate) q_stride: i64,
    pub(crate) heads: i32,
    pub(crate) half: i32,
    pub(crate) interleaved: i32,
    pub(crate) pad: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Map {
    pub(crate) n: Ptr,
    pub(crate) a: Ptr,
    pub(crate) b: Ptr,
    pub(crate) out: Ptr,
    pub(crate) a_stride: i64,
    pub(crate) b_stride: i64,
    pub(crate) out_stride: i64,
    pub(crate) rows_kind: i32,
    pub(crate) cols: i32,
    pub(crate) act: i32,
    pub(crate) by: f32,
}

/// `TopArgs` of top_k.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct TopK {
    pub(crate) step: Step,
    pub(crate) x: Ptr,
    pub(crate) out: Ptr,
    pub(crate) largest: Ptr,
    pub(crate) parts: Ptr,
    pub(crate) x_stride: i64,
    pub(crate) out_stride: i64,
    pub(crate) cols: i32,
    pub(crate) k: i32,
    pub(crate) groups: i32,
    pub(crate) part_count: i32,
}

/// `ExpertArgs` of experts.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Experts {
    pub(crate) n: Ptr,
    pub(crate) route: Ptr,
    pub(crate) tiles: Ptr,
    pub(crate) order: Ptr,
    pub(crate) tile_count: Ptr,
    pub(crate) route_stride: i64,
    pub(crate) w_stride: i64,
    pub(crate) x_block: i64,
    pub(crate) out_block: i64,
    pub(crate) up_bias: i64,
    pub(crate) used: i32,
    pub(crate) rows_kind: i32,
    pub(crate) low: i32,
    pub(crate) high: i32,
    pub(crate) tile0: i32,
    pub(crate) pad: i32,
    pub(crate) alpha: f32,
    pub(crate) limit: f32,
}

/// `q::MvExpertArgs` of mv.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct MvExperts {
    pub(crate) mv: Mv,
    pub(crate) experts: Experts,
}

/// `q::MmExpertArgs` of mm.cuh.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct MmExperts {
    pub(crate) mm: Mm,
    pub(crate) experts: Experts,
}

/// `q::MmPrepExpertArgs` of mm_prep.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct MmPrepExperts {
    pub(crate) prep: MmPrep,
    pub(crate) experts: Experts,
    pub(crate) of_tile: i32,
    pub(crate) pad: i32,
}

/// `PlainExpertArgs` of simple_experts.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlainExperts {
    pub(crate) w: Ptr,
    pub(crate) w2: Ptr,
    pub(crate) x: Ptr,
    pub(crate) bias: Ptr,
    pub(crate) out: Ptr,
    pub(crate) x_stride: i64,
    pub(crate) out_stride: i64,
    pub(crate) n: i32,
    pub(crate) k: i32,
    pub(crate) act: i32,
    pub(crate) pad: i32,
    pub(crate) experts: Experts,
}

/// `RouteArgs` of experts.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    pub(crate) n: Ptr,
    pub(crate) logits: Ptr,
    pub(crate) bias: Ptr,
    pub(crate) out: Ptr,
    pub(crate) logits_stride: i64,
    pub(crate) out_stride: i64,
    pub(crate) rows_kind: i32,
    pub(crate) experts: i32,
    pub(crate) used: i32,
    pub(crate) scoring: i32,
    pub(crate) groups: i32,
    pub(crate) kept: i32,
    pub(crate) best: i32,
    pub(crate) normalize: i32,
    pub(crate) eps: f32,
    pub(crate) scale: f32,
}

/// `SortArgs` of experts.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sort {
    pub(crate) n: Ptr,
    pub(crate) route: Ptr,
    pub(crate) tile_count: Ptr,
    pub(crate) tiles: Ptr,
    pub(crate) order: Ptr,
    pub(crate) route_stride: i64,
    pub(crate) rows_kind: i32,
    pub(crate) experts: i32,
    pub(crate) used: i32,
    pub(crate) of_tile: i32,
}

/// `BlocksArgs` of experts.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blocks {
    pub(crate) n: Ptr,
    pub(crate) x: Ptr,
    pub(crate) out: Ptr,
    pub(crate) x_stride: i64,
    pub(crate) out_stride: i64,
    pub(crate) x_block: i64,
    pub(crate) out_block: i64,
    pub(crate) rows_kind: i32,
    pub(crate) cols: i32,
    pub(crate) used: i32,
    pub(crate) act: i32,
    pub(crate) alpha: f32,
    pub(crate) limit: f32,
}

/// `CombineArgs` of experts.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Combine {
    pub(crate) n: Ptr,
    pub(crate) x: Ptr,
    pub(crate) weights: Ptr,
    pub(crate) add: Ptr,
    pub(crate) out: Ptr,
    pub(crate) x_stride: i64,
    pub(crate) weights_stride: i64,
    pub(crate) add_stride: i64,
    pub(crate) out_stride: i64,
    pub(crate) rows_kind: i32,
    pub(crate) cols: i32,
    pub(crate) used: i32,
    pub(crate) pad: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pick {
    pub(crate) step: Step,
    pub(crate) x: Ptr,
    pub(crate) out: Ptr,
    pub(crate) x_stride: i64,
    pub(crate) out_stride: i64,
    pub(crate) cols: i32,
    pub(crate) pad: i32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct CopyPages {
    pub(crate) pool: Ptr,
    pub(crate) pairs: Ptr,
    pub(crate) page: i64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peak {
    pub(crate) from: Ptr,
    pub(crate) out: Ptr,
    pub(crate) n: i64,
}

/// A struct that may be handed to a kernel: plain data, laid out as in C.
pub(crate) trait Args: Copy {}
macro_rules! args {
    ($($t:ty),*) => { $(impl Args for $t {})* };
}
args!(
    Prep,
    Mat,
    Mv,
    MvPrep,
    Mm,
    MmPrep,
    Repack,
    Embed,
    Norm,
    Angles,
    Rope,
    Store,
    Attend,
    Flash,
    Prefill,
    RopeStore,
    Map,
    Pick,
    TopK,
    CopyPages,
    Peak,
    MvExperts,
    MmExperts,
    MmPrepExperts,
    PlainExperts,
    Route,
    Sort,
    Blocks,
    Combine
);
