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

images!["basic", "attend", "flash", "simple", "peaks"];

/// The files whose kernels all begin with `begin()`: they may be launched before those before them are done.
pub(crate) const DEPENDENT: &[&str] = &["basic", "attend", "flash", "simple"];
