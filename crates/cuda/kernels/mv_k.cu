// Matrix-vector kernels of the types with blocks of 256.
#include "mv.cuh"
MV_KERNEL(q4_k, FmtQ4K)
MV_KERNEL(q6_k, FmtQ6K)
MV_KERNEL(q5_k, FmtQ5K)
MV_KERNEL(q3_k, FmtQ3K)
MV_KERNEL(q2_k, FmtQ2K)
MV_KERNEL(iq4_xs, FmtIQ4XS)
