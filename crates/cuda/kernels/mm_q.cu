// Products for many rows: types with blocks of 32.
#include "mm.cuh"
MM_KERNEL(q8_0, FmtQ8_0)
MM_KERNEL(q4_0, FmtQ4_0)
MM_KERNEL(q4_1, FmtQ4_1)
MM_KERNEL(q5_0, FmtQ5_0)
MM_KERNEL(q5_1, FmtQ5_1)
MM_KERNEL(iq4_nl, FmtIQ4NL)
MM_KERNEL(mxfp4, FmtMXFP4)
