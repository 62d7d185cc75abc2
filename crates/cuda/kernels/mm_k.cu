// Products for many rows: types with blocks of 256.
#include "mm.cuh"
MM_KERNEL(q4_k, FmtQ4K)
MM_KERNEL(q6_k, FmtQ6K)
MM_KERNEL(q5_k, FmtQ5K)
MM_KERNEL(q3_k, FmtQ3K)
MM_KERNEL(q2_k, FmtQ2K)
MM_KERNEL(iq4_xs, FmtIQ4XS)
