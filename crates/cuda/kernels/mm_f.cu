// Products for many rows: floating-point weights.
#include "mm.cuh"
MM_KERNEL(bf16, FmtBF16)
MM_KERNEL(f16, FmtF16)
