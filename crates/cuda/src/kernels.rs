//! The compiled kernels, embedded: one compressed fat binary for each `kernels/*.cu`, made by `cargo xtask kernels`.

/// The bytes of a file, aligned as the driver wants them.
#[repr(C, align(16))]
struct Aligned<B: ?Sized>(B);

macro_rules! images {
    ($($name:literal),* $(,)?) => {
        /// Name and image of each file of kernels, those first that most launches want.
        pub(crate) static IMAGES: &[(&str, &[u8])] = &[$({
            static IMAGE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!("../kernels/built/", $name, ".fatbin")));
            ($name, &IMAGE.0)
        }),*];
    };
}

images![
    "basic",
    "attend",
    "attn_decode",
    "flash",
    "attn_prefill",
    "mv_k",
    "mv_q",
    "mv_f",
    "mv_prep",
    "mm_k",
    "mm_q",
    "mm_f",
    "mm_prep",
    "experts",
    "mvx_k",
    "mvx_q",
    "mvx_f",
    "mmx_k",
    "mmx_q",
    "mmx_f",
    "simple_experts",
    "mv_repack",
    "simple",
    "top_k",
    "peaks"
];

/// The files whose kernels all wait for those before them (`begin()`, `pdl_wait()`): they may be launched before those before them are done.
pub(crate) const DEPENDENT: &[&str] = &[
    "basic",
    "attend",
    "attn_decode",
    "flash",
    "attn_prefill",
    "mv_k",
    "mv_q",
    "mv_f",
    "mv_prep",
    "mm_k",
    "mm_q",
    "mm_f",
    "mm_prep",
    "experts",
    "mvx_k",
    "mvx_q",
    "mvx_f",
    "mmx_k",
    "mmx_q",
    "mmx_f",
    "simple_experts",
    "simple",
    "top_k",
];
