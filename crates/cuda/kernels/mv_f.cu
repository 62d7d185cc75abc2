// Matrix-vector kernels of the floating-point types.
#include "mv.cuh"
MV_KERNEL(bf16, FmtBF16)
MV_KERNEL(f16, FmtF16)
MV_KERNEL(f32, FmtF32)
