// Products of experts with many rows: the floating-point types.
#include "mm.cuh"
MM_EXPERTS(bf16, FmtBF16)
MM_EXPERTS(f16, FmtF16)
