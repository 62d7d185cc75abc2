// Products for many rows: floating-point weights.
#include "mm.cuh"
MM_KERNEL(bf16, FmtBF16)
MM_ONE(bf16, FmtBF16, 256, 1)
MM_KERNEL(f16, FmtF16)
