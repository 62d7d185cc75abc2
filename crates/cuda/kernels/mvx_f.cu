// Products of experts with few rows: the floating-point types.
#include "mv.cuh"
MV_EXPERTS(bf16, FmtBF16, 2)
MV_EXPERTS(f16, FmtF16, 2)
MV_EXPERTS(f32, FmtF32, 2)
